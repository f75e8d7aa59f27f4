//! An event as text for people and as fields for programs. Whatever a store, a peer or a user may
//! have written is escaped and cut here: it drives no terminal and fakes no second record.

use std::fmt::{Debug, Write as _};

use pyo3::prelude::*;
use tracing::Level;
use tracing::field::{Field, Visit};

use crate::id::hashed;
use crate::trace;

/// How long a field may be, in characters.
const FIELD_MAX: usize = 500;

/// The value of a field, of a record or of a span.
#[derive(Debug, Clone, PartialEq, IntoPyObject)]
pub(in crate::bindings) enum Value {
    Flag(bool),
    Whole(i64),
    Large(u64),
    Number(f64),
    Text(String),
}

impl From<trace::Value> for Value {
    fn from(value: trace::Value) -> Self {
        match value {
            trace::Value::Flag(value) => Self::Flag(value),
            trace::Value::Whole(value) => Self::Whole(value),
            trace::Value::Text(value) => Self::Text(value),
        }
    }
}

/// What an event says.
#[derive(Debug)]
pub(super) struct Text {
    /// Uids are shown to those who look for a fault, and to nobody else.
    hide_uids: bool,
    pub(super) message: String,
    pub(super) fields: Vec<(&'static str, Value)>,
}

impl Text {
    pub(super) fn new(level: Level) -> Self {
        Self {
            hide_uids: level <= Level::INFO,
            message: String::new(),
            fields: Vec::new(),
        }
    }

    /// The message with the fields behind it.
    pub(super) fn line(&self) -> String {
        let mut line = self.message.clone();
        for (name, value) in &self.fields {
            // Writing into a String cannot fail.
            let _infallible = match value {
                Value::Flag(value) => write!(line, " {name}={value}"),
                Value::Whole(value) => write!(line, " {name}={value}"),
                Value::Large(value) => write!(line, " {name}={value}"),
                Value::Number(value) => write!(line, " {name}={value}"),
                Value::Text(value) => write!(line, " {name}={value}"),
            };
        }
        line
    }

    fn add(&mut self, field: &Field, value: Value) {
        self.fields.push((field.name(), value));
    }
}

impl Visit for Text {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::Flag(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::Whole(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, Value::Large(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, Value::Number(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = tame(value, FIELD_MAX),
            "uid" if self.hide_uids => self.fields.push(("uid_hash", Value::Text(hashed(value)))),
            _ => self.add(field, Value::Text(tame(value, FIELD_MAX))),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        let _infallible = write!(text, "{value:?}");
        self.record_str(field, &text);
    }
}

/// On one line, without what drives a terminal or turns the direction of writing, and not longer
/// than `most` characters.
pub(super) fn tame(given: &str, most: usize) -> String {
    let mut tamed = String::with_capacity(given.len().min(most));
    for c in given.chars().take(most) {
        match c {
            '"' | '\'' | '\\' => tamed.push(c),
            _ => tamed.extend(c.escape_debug()),
        }
    }
    if given.chars().nth(most).is_some() {
        let _infallible = write!(tamed, "… ({} bytes)", given.len());
    }
    tamed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_drives_a_terminal_is_escaped() {
        let text = tame(
            "a\nb\u{1b}[31mc\u{202e}d\r\0\u{9b}e \"it's\" C:\\x ü日本",
            100,
        );
        let expected = "a\\nb\\u{1b}[31mc\\u{202e}d\\r\\0\\u{9b}e \"it's\" C:\\x ü日本";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_is_long_is_cut() {
        let text = tame(&"é".repeat(10_000), 40);
        assert_eq!(text, format!("{}… (20000 bytes)", "é".repeat(40)));
        assert_eq!(tame("short", 5), "short");
    }
}
