//! Which server a connection leads to.

use std::hash::Hasher as _;

use redis::Value;
use siphasher::sip::SipHasher13;

/// The sections of INFO that name the server's process and the history of its data. A fail-over, a
/// restart and another history each change one of the names.
pub(super) const SECTIONS: [&str; 2] = ["server", "replication"];

const NAMES: [&str; 2] = ["run_id:", "master_replid:"];

/// The number of the server that sent these sections; 0 if they name nothing, as the reply to a
/// user without the permission to read them.
pub(super) fn server_id<'a>(sections: impl IntoIterator<Item = &'a Value>) -> u64 {
    let mut hasher = SipHasher13::new();
    let mut named = false;
    for section in sections {
        let text = match section {
            Value::BulkString(bytes) => String::from_utf8_lossy(bytes),
            Value::VerbatimString { text, .. } => text.as_str().into(),
            _ => continue,
        };
        let lines = text.lines().map(str::trim);
        let names = lines.filter(|line| NAMES.iter().any(|name| line.starts_with(name)));
        for name in names.filter(|line| !line.ends_with(':')) {
            hasher.write(name.as_bytes());
            hasher.write(b"\n");
            named = true;
        }
    }
    if named { hasher.finish().max(1) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(sections: &[&str]) -> u64 {
        let sections: Vec<Value> = sections
            .iter()
            .map(|text| Value::BulkString((*text).into()))
            .collect();
        server_id(&sections)
    }

    #[test]
    fn each_name_distinguishes_servers() {
        let server = "# Server\r\nrun_id:aa\r\nuptime_in_seconds:1\r\n";
        let history = "# Replication\r\nrole:master\r\nmaster_replid:bb\r\n";
        let first = id(&[server, history]);
        assert_ne!(first, 0);
        // What changes while a server runs is no part of it.
        let later = server.replace("seconds:1", "seconds:2");
        assert_eq!(id(&[&later, history]), first);
        assert_ne!(id(&[&server.replace("aa", "ab"), history]), first);
        assert_ne!(id(&[server, &history.replace("bb", "bc")]), first);
        assert_ne!(id(&[server]), first);
    }

    #[test]
    fn a_server_that_names_nothing_is_zero() {
        assert_eq!(id(&[]), 0);
        assert_eq!(id(&["# Server\r\nrun_id:\r\n", "role:master"]), 0);
        assert_eq!(server_id(&[Value::Nil, Value::Okay]), 0);
    }

    #[test]
    fn a_reply_of_resp3_is_read_too() {
        let text = "run_id:aa".to_owned();
        let format = redis::VerbatimFormat::Text;
        let verbatim = Value::VerbatimString { format, text };
        assert_eq!(server_id(&[verbatim]), id(&["run_id:aa"]));
    }
}
