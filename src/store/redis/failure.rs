//! Classifies the server's errors: for the caller, for the write, and for the connection.

use redis::ServerError;

use crate::error::{Error, ErrorKind, WriteOutcome};
use crate::op::Effect;

/// Adds the write outcome, if the call is a write.
pub(super) fn with_outcome(error: Error, effect: Effect, outcome: WriteOutcome) -> Error {
    match effect {
        Effect::Read => error,
        Effect::Idempotent | Effect::Once => error.with_outcome(outcome),
    }
}

/// One row of the table of server errors.
struct ErrorClass {
    kind: ErrorKind,
    retryable: bool,
    /// Whether the server refused the call before it changed anything.
    refused: bool,
    /// Whether a new connection may succeed.
    redial: bool,
}

/// The class of a server error, by the code that the server prefixes it with.
///
/// Every script reads and checks before its first write. So an error that a first command can
/// raise (a wrong type, no memory, no permission) means that nothing was written.
fn classify(code: &str) -> ErrorClass {
    use ErrorKind::{Redis, StoreAuthentication, StoreUnavailable};
    let (kind, retryable, refused, redial) = match code {
        // A failover made it a replica. The name may resolve to the new primary by now.
        "READONLY" => (StoreUnavailable, true, true, true),
        "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "BUSY" | "NOREPLICAS" => {
            (StoreUnavailable, true, true, false)
        }
        "NOAUTH" | "WRONGPASS" => (StoreAuthentication, false, true, true),
        "NOPERM" => (StoreAuthentication, false, true, false),
        "OOM" | "MISCONF" => (Redis, true, true, false),
        "WRONGTYPE" | "NOSCRIPT" | "MOVED" | "ASK" | "CROSSSLOT" => (Redis, false, true, false),
        _ => (Redis, false, false, false),
    };
    ErrorClass {
        kind,
        retryable,
        refused,
        redial,
    }
}

/// The error that the caller gets, and whether the node should reconnect.
pub(super) fn refusal(error: &ServerError, effect: Effect) -> (Error, bool) {
    let code = code(error);
    let class = classify(code);
    let details = error.details().unwrap_or_default();
    // A script may lack the permission for its second write only.
    let partial = code == "NOPERM" && details.contains("script");
    let outcome = if class.refused && !partial {
        WriteOutcome::NotSent
    } else {
        WriteOutcome::Unknown
    };
    let details = if class.kind == ErrorKind::StoreAuthentication {
        without_user(details)
    } else {
        details
    };
    let text = format!("the store answered {code}: {}", truncated(details));
    let mut error = Error::new(class.kind, text).with("server_code", code);
    if class.retryable {
        error = error.retryable();
    }
    (with_outcome(error, effect, outcome), class.redial)
}

/// Whether the server said so because the key holds a value of another type.
pub(super) fn is_wrong_type(error: &Error) -> bool {
    let details = error.details();
    let mut code = details.iter().filter(|(name, _)| *name == "server_code");
    code.any(|(_, code)| code == "WRONGTYPE")
}

/// The error, with the key if that holds a value of another type.
pub(super) fn at_key(error: Error, key: impl FnOnce() -> String) -> Error {
    if !is_wrong_type(&error) {
        return error;
    }
    let key = key();
    let text = format!("the value at {key:?} is not podlink's: the store answered WRONGTYPE");
    let named = Error::new(error.kind(), text)
        .with("server_code", "WRONGTYPE")
        .with("key", key);
    match error.outcome() {
        Some(outcome) => named.with_outcome(outcome),
        None => named,
    }
}

/// The code of a server error. An error inside a script keeps its code since Redis 7. Redis 6.2
/// calls everything ERR and puts the code into the text. A missing permission has no code in
/// either, only words.
pub(super) fn code(error: &ServerError) -> &str {
    const IN_TEXT: [&str; 8] = [
        "READONLY",
        "LOADING",
        "MASTERDOWN",
        "NOREPLICAS",
        "OOM",
        "MISCONF",
        "WRONGTYPE",
        "NOPERM",
    ];
    const FORBIDDEN: [&str; 3] = [
        "ACL failure in script",
        "can't run this command",
        "can't access at least one of the keys",
    ];
    let code = error.code();
    if code != "ERR" {
        return code;
    }
    let text = error.details().unwrap_or_default();
    if FORBIDDEN.iter().any(|words| text.contains(words)) {
        return "NOPERM";
    }
    if !text.contains("user_script") {
        return code;
    }
    let named = IN_TEXT
        .into_iter()
        .find(|code| text.split([' ', '-']).any(|word| word == *code));
    named.unwrap_or(code)
}

/// The missing permission, without the user's name: a user name is half a credential.
fn without_user(text: &str) -> &str {
    const BEGINNINGS: [&str; 4] = [
        "no permission",
        "No permission",
        "can't run",
        "can't access",
    ];
    let begin = BEGINNINGS.iter().find_map(|words| text.find(words));
    begin
        .and_then(|at| text.get(at..))
        .unwrap_or("permission denied")
}

/// A server's text is untrusted: enough of it to recognise the error, not all of it.
fn truncated(text: &str) -> String {
    const CHARS_MAX: usize = 200;
    text.chars()
        .filter(|c| !c.is_control())
        .take(CHARS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ErrorKind::{Redis, StoreAuthentication, StoreUnavailable};

    fn server_error(line: &str) -> ServerError {
        match redis::parse_redis_value(format!("-{line}\r\n").as_bytes()) {
            Ok(redis::Value::ServerError(error)) => error,
            other => unreachable!("{line} is read as {other:?}"),
        }
    }

    /// A server's error, and its kind, retryable, outcome and redial.
    const ROWS: &[(&str, ErrorKind, bool, WriteOutcome, bool)] = &[
        (
            "READONLY You can't write",
            StoreUnavailable,
            true,
            WriteOutcome::NotSent,
            true,
        ),
        (
            "LOADING Redis is loading",
            StoreUnavailable,
            true,
            WriteOutcome::NotSent,
            false,
        ),
        (
            "MASTERDOWN Link with MASTER",
            StoreUnavailable,
            true,
            WriteOutcome::NotSent,
            false,
        ),
        (
            "CLUSTERDOWN Hash slot",
            StoreUnavailable,
            true,
            WriteOutcome::NotSent,
            false,
        ),
        (
            "BUSY Redis is busy",
            StoreUnavailable,
            true,
            WriteOutcome::NotSent,
            false,
        ),
        (
            "NOREPLICAS Not enough",
            StoreUnavailable,
            true,
            WriteOutcome::NotSent,
            false,
        ),
        (
            "NOAUTH Authentication required.",
            StoreAuthentication,
            false,
            WriteOutcome::NotSent,
            true,
        ),
        (
            "WRONGPASS invalid",
            StoreAuthentication,
            false,
            WriteOutcome::NotSent,
            true,
        ),
        (
            "NOPERM no permissions",
            StoreAuthentication,
            false,
            WriteOutcome::NotSent,
            false,
        ),
        (
            "OOM command not allowed",
            Redis,
            true,
            WriteOutcome::NotSent,
            false,
        ),
        (
            "MISCONF Errors writing",
            Redis,
            true,
            WriteOutcome::NotSent,
            false,
        ),
        (
            "WRONGTYPE Operation against",
            Redis,
            false,
            WriteOutcome::NotSent,
            false,
        ),
        ("MOVED 1 h:1", Redis, false, WriteOutcome::NotSent, false),
        (
            "ERR something else",
            Redis,
            false,
            WriteOutcome::Unknown,
            false,
        ),
        ("WEIRD", Redis, false, WriteOutcome::Unknown, false),
    ];

    #[test]
    fn every_row_of_the_table() {
        for &(line, kind, retryable, outcome, redial) in ROWS {
            let (error, again) = refusal(&server_error(line), Effect::Once);
            assert_eq!(error.kind(), kind, "{line}");
            assert_eq!(error.is_retryable(), retryable, "{line}");
            assert_eq!(error.outcome(), Some(outcome), "{line}");
            assert_eq!(again, redial, "{line}");
            let (error, _) = refusal(&server_error(line), Effect::Read);
            assert_eq!(error.outcome(), None, "{line}");
        }
    }

    #[test]
    fn a_code_is_found_inside_the_text_of_a_script_error() {
        let rows = [
            (
                "ERR Error running script (call to f_1): @user_script:7: WRONGTYPE Operation against",
                "WRONGTYPE",
            ),
            (
                "ERR Error running script (call to f_1): @user_script:7: -OOM command not allowed",
                "OOM",
            ),
            (
                "ERR The user executing the script can't run this command or subcommand",
                "NOPERM",
            ),
            ("ERR OOM in a key name", "ERR"),
            (
                "WRONGTYPE Operation script: 1, on @user_script:5.",
                "WRONGTYPE",
            ),
        ];
        for (line, expected) in rows {
            assert_eq!(code(&server_error(line)), expected, "{line}");
        }
    }

    #[test]
    fn missing_permission_without_user_name() {
        let rows = [
            (
                "NOPERM User canary has no permissions to run the 'get' command",
                "the 'get' command",
            ),
            ("NOPERM No permissions to access a key", "access a key"),
            (
                "WRONGPASS invalid username-password pair of canary",
                "permission denied",
            ),
        ];
        for (line, expected) in rows {
            let text = refusal(&server_error(line), Effect::Read).0.to_string();
            assert!(
                text.contains(expected) && !text.contains("canary"),
                "{text}"
            );
        }
    }

    #[test]
    fn a_long_text_of_the_server_is_cut() {
        let line = format!("ERR {}", "x".repeat(10_000));
        let (error, _) = refusal(&server_error(&line), Effect::Read);
        assert!(error.to_string().len() < 300);
    }
}
