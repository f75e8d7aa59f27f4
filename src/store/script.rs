//! The Lua scripts: one atomic operation each, called by hash.
//!
//! A script is sent as `EVALSHA`; a server that does not know it (restart, fail-over, `SCRIPT
//! FLUSH`) replies NOSCRIPT before it has done anything, and gets the source with `EVAL` once.

use redis::{Cmd, RedisWrite, ToRedisArgs};

/// One script with its hash.
#[derive(Debug)]
pub(super) struct Script {
    source: &'static str,
    hash: String,
}

impl Script {
    pub(super) fn new(source: &'static str) -> Self {
        let hash = redis::Script::new(source).get_hash().to_owned();
        Self { source, hash }
    }

    /// What the server knows the script by.
    #[cfg(test)]
    pub(super) fn hash(&self) -> &str {
        &self.hash
    }
}

/// Scripts under their names, each from one file or from a prelude and a file.
macro_rules! scripts {
    ($($name:ident = $($file:literal)+;)+) => {
        /// Every script of this file, so that what holds for all can be tested on all.
        #[cfg(test)]
        pub(in crate::store) static SCRIPTS: &[(
            &str,
            &std::sync::LazyLock<$crate::store::script::Script>,
        )] = &[$((stringify!($name), &$name)),+];
        $(static $name: std::sync::LazyLock<$crate::store::script::Script> =
            std::sync::LazyLock::new(|| {
                let source = concat!($(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/lua/", $file))),+);
                $crate::store::script::Script::new(source)
            });)+
    };
}

pub(super) use scripts;

/// One argument of a script; numbers are written without a string in between.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arg<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
    Number(i64),
}

impl ToRedisArgs for Arg<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        match self {
            Self::Text(text) => text.write_redis_args(out),
            Self::Bytes(bytes) => bytes.write_redis_args(out),
            Self::Number(number) => number.write_redis_args(out),
        }
    }
}

/// How a call names its script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// By its hash.
    Hash,
    /// By its source, which the server then remembers.
    Source,
}

/// One call of a script.
pub(super) fn call(script: &Script, form: Form, keys: &[&str], args: &[Arg<'_>]) -> Cmd {
    const NUMBER_BYTES: usize = 16;
    let (name, text) = match form {
        Form::Hash => ("EVALSHA", script.hash.as_str()),
        Form::Source => ("EVAL", script.source),
    };
    let key_bytes: usize = keys.iter().map(|key| key.len()).sum();
    let arg_bytes = args.iter().map(|arg| match arg {
        Arg::Text(text) => text.len(),
        Arg::Bytes(bytes) => bytes.len(),
        Arg::Number(_) => NUMBER_BYTES,
    });
    let count = 3 + keys.len() + args.len();
    let bytes = name.len() + text.len() + NUMBER_BYTES + key_bytes + arg_bytes.sum::<usize>();
    let mut command = Cmd::with_capacity(count, bytes);
    command.arg(name).arg(text).arg(keys.len());
    for key in keys {
        command.arg(*key);
    }
    for arg in args {
        command.arg(*arg);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    scripts! {
        GET = "get.lua";
    }

    #[test]
    fn both_calls_carry_the_same_keys_and_arguments() {
        let (keys, args) = (["sf:{ns:lk:u}svc"], [Arg::Number(0), Arg::Text("300000")]);
        let packed = |form| {
            let command = call(&GET, form, &keys, &args);
            String::from_utf8(command.get_packed_command()).unwrap()
        };
        let (packed, sourced) = (packed(Form::Hash), packed(Form::Source));
        assert!(
            packed.starts_with("*6\r\n$7\r\nEVALSHA\r\n$40\r\n"),
            "{packed}"
        );
        assert!(packed.ends_with("$15\r\nsf:{ns:lk:u}svc\r\n$1\r\n0\r\n$6\r\n300000\r\n"));
        assert!(sourced.starts_with("*6\r\n$4\r\nEVAL\r\n"));
        assert_eq!(SCRIPTS.len(), 1);
    }
}
