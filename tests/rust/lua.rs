//! Rules for every Lua file, checked on its text.

use std::path::Path;

/// Commands that change the store.
const WRITES: [&str; 8] = [
    "'SET'",
    "'HSET'",
    "'DEL'",
    "'HDEL'",
    "'PEXPIRE'",
    "'PUBLISH'",
    "write()",
    "publish(",
];
/// Commands that read the store.
const READS: [&str; 7] = [
    "'GET'",
    "'HGET'",
    "'HEXISTS'",
    "'HGETALL'",
    "'PTTL'",
    "number(",
    "field(",
];

fn scripts() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store/lua");
    let mut scripts: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    scripts.sort();
    assert!(scripts.len() >= 12, "where are the scripts?");
    scripts
}

fn names(line: &str, commands: &[&str]) -> bool {
    commands.iter().any(|command| line.contains(command))
}

/// Redis does not roll a script back: one that fails halfway leaves half a change. So nothing is
/// read after the first write, up to the `return` that ends the path and reports the result.
#[test]
fn every_script_reads_everything_before_it_writes_anything() {
    for (name, source) in scripts() {
        // The prelude only defines functions; each body calls them in its own order.
        if name == "lease_clock.lua" {
            continue;
        }
        let mut written = false;
        for line in source
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with("--"))
        {
            if line.starts_with("return") {
                written = false;
                continue;
            }
            assert!(
                !written || !names(line, &READS),
                "{name} reads after it has written: {line}"
            );
            written |= names(line, &WRITES);
        }
    }
}

#[test]
fn every_script_says_what_it_takes_what_it_answers_and_why_it_is_one_step() {
    for (name, source) in scripts() {
        assert!(
            !source.starts_with("#!"),
            "{name}: Redis 6.2 rejects a shebang"
        );
        let header: Vec<&str> = source
            .lines()
            .take_while(|line| line.starts_with("--"))
            .collect();
        let header = header.join("\n");
        assert!(
            header.contains("KEYS[1]"),
            "{name} does not document its keys"
        );
        let title = name.trim_end_matches(".lua");
        assert!(
            header.starts_with(&format!("-- {title}:")),
            "{name} does not begin with its name"
        );
        if name != "lease_clock.lua" {
            assert!(
                header.contains("\n-- reply "),
                "{name} does not document its reply"
            );
            assert!(
                header.contains("\n-- Atomic"),
                "{name} does not document why it is atomic"
            );
        }
        for n in 1..=9 {
            let key = format!("KEYS[{n}]");
            let documented = header.contains(&key);
            let body = source.lines().filter(|line| !line.starts_with("--"));
            let used = body.into_iter().any(|line| line.contains(&key));
            assert!(documented || !used, "{name} does not document {key}");
        }
    }
}
