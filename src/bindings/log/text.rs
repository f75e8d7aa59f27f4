//! An event as text for people and as fields for programs. Text from a store, a peer or a user is
//! escaped and truncated here: it cannot control a terminal or fake a second record.

use std::fmt::{Debug, Write as _};

use pyo3::prelude::*;
use tracing::Level;
use tracing::field::{Field, Visit};

use crate::id::hashed;
use crate::trace;

/// The maximum length of a field, in characters.
const FIELD_MAX: usize = 500;

/// The value of a field, of a record or of a span.
#[derive(Debug, Clone, PartialEq, IntoPyObject)]
pub(in crate::bindings) enum FieldValue {
    Flag(bool),
    Whole(i64),
    Large(u64),
    Number(f64),
    Text(String),
}

impl From<trace::AttributeValue> for FieldValue {
    fn from(value: trace::AttributeValue) -> Self {
        match value {
            trace::AttributeValue::Flag(value) => Self::Flag(value),
            trace::AttributeValue::Whole(value) => Self::Whole(value),
            trace::AttributeValue::Text(value) => Self::Text(value),
        }
    }
}

/// The message and fields of an event.
#[derive(Debug)]
pub(super) struct EventText {
    /// Uids are visible only at DEBUG and below, for fault finding.
    hide_uids: bool,
    pub(super) message: String,
    pub(super) fields: Vec<(&'static str, FieldValue)>,
}

impl EventText {
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
                FieldValue::Flag(value) => write!(line, " {name}={value}"),
                FieldValue::Whole(value) => write!(line, " {name}={value}"),
                FieldValue::Large(value) => write!(line, " {name}={value}"),
                FieldValue::Number(value) => write!(line, " {name}={value}"),
                FieldValue::Text(value) => write!(line, " {name}={value}"),
            };
        }
        line
    }

    fn add(&mut self, field: &Field, value: FieldValue) {
        self.fields.push((field.name(), value));
    }
}

impl Visit for EventText {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, FieldValue::Flag(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, FieldValue::Whole(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, FieldValue::Large(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, FieldValue::Number(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = sanitized(value, FIELD_MAX),
            "uid" if self.hide_uids => self
                .fields
                .push(("uid_hash", FieldValue::Text(hashed(value)))),
            _ => self.add(field, FieldValue::Text(sanitized(value, FIELD_MAX))),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        let _infallible = write!(text, "{value:?}");
        self.record_str(field, &text);
    }
}

/// One line, without characters that control a terminal or change the writing direction, truncated
/// to `most` characters.
pub(super) fn sanitized(given: &str, most: usize) -> String {
    let mut text = String::with_capacity(given.len().min(most));
    for c in given.chars().take(most) {
        match c {
            '"' | '\'' | '\\' => text.push(c),
            _ => text.extend(c.escape_debug()),
        }
    }
    if given.chars().nth(most).is_some() {
        let _infallible = write!(text, "… ({} bytes)", given.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_controls_are_escaped() {
        let text = sanitized(
            "a\nb\u{1b}[31mc\u{202e}d\r\0\u{9b}e \"it's\" C:\\x ü日本",
            100,
        );
        let expected = "a\\nb\\u{1b}[31mc\\u{202e}d\\r\\0\\u{9b}e \"it's\" C:\\x ü日本";
        assert_eq!(text, expected);
    }

    #[test]
    fn long_text_is_truncated() {
        let text = sanitized(&"é".repeat(10_000), 40);
        assert_eq!(text, format!("{}… (20000 bytes)", "é".repeat(40)));
        assert_eq!(sanitized("short", 5), "short");
    }
}
