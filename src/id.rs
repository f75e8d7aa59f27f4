//! Names and numbers, validated once at the edge and trusted everywhere behind it.
//!
//! A valid name can be used in a store key unchanged: no two different (namespace, uid, service)
//! triples share a key. An invalid name is rejected, never changed (docs/decisions/0004).

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, ErrorKind};

/// The longest namespace, service name or tag, in characters: a Kubernetes label's limit.
pub const NAME_MAX: usize = 63;
/// The longest uid, in bytes of UTF-8.
pub const UID_MAX: usize = 128;

fn check_name(what: &'static str, given: &str) -> Result<(), Error> {
    let legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    if !given.is_empty() && given.len() <= NAME_MAX && given.bytes().all(legal) {
        return Ok(());
    }
    Err(invalid(
        what,
        &shown(given),
        "1 to 63 characters from A-Z a-z 0-9 . _ -",
    ))
}

/// An INVALID_PARAMETER error: which argument, what was given, what is allowed.
#[must_use]
pub fn invalid(what: &'static str, given: &str, allowed: &str) -> Error {
    Error::new(
        ErrorKind::InvalidParameter,
        format!("{what} must be {allowed}, got {given}"),
    )
    .with("parameter", what)
    .with("given", given)
    .with("allowed", allowed)
}

/// How a rejected text is shown: quoted, control characters escaped, cut after 40 characters.
#[must_use]
pub fn shown(given: &str) -> String {
    const SHOWN_MAX: usize = 40;
    let mut cut: String = given.chars().take(SHOWN_MAX).collect();
    if cut.len() < given.len() {
        cut.push('…');
        return format!("{cut:?} ({} bytes)", given.len());
    }
    format!("{cut:?}")
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Validates a name: 1 to 63 characters `[A-Za-z0-9._-]`.
            ///
            /// # Errors
            /// `InvalidParameter` for anything else.
            pub fn new(given: &str) -> Result<Self, Error> {
                check_name($what, given).map(|()| Self(given.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        // Lookups in tables use plain text, without building a name first.
        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// A Kubernetes namespace: links of different namespaces never meet.
    Namespace,
    "namespace"
);
name!(
    /// The name of a stateful service.
    ServiceName,
    "service_name"
);
name!(
    /// An alias of a service name.
    Tag,
    "tag"
);

/// A user id, chosen by the application.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(Arc<str>);

impl Uid {
    /// Validates a uid: 1 to 128 bytes UTF-8, no control characters, no `{` or `}`.
    ///
    /// # Errors
    /// `InvalidParameter` for anything else.
    pub fn new(given: &str) -> Result<Self, Error> {
        let legal = |c: char| !c.is_control() && c != '{' && c != '}';
        if !given.is_empty() && given.len() <= UID_MAX && given.chars().all(legal) {
            return Ok(Self(given.into()));
        }
        Err(invalid(
            "uid",
            &shown(given),
            "1 to 128 bytes of UTF-8 without control characters, '{' or '}'",
        ))
    }

    /// The uid as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hash that replaces the uid in logs and traces.
    #[must_use]
    pub fn hashed(&self) -> String {
        hashed(&self.0)
    }
}

/// The hash that replaces a uid in logs and traces: the first 12 hexadecimal digits of its
/// SHA-256. It is the same in every process, and `sha256sum` prints it, too.
#[must_use]
pub fn hashed(uid: &str) -> String {
    const BYTES: usize = 6;
    let digest = ring::digest::digest(&ring::digest::SHA256, uid.as_bytes());
    let first = digest.as_ref().iter().take(BYTES);
    first.map(|byte| format!("{byte:02x}")).collect()
}

// Lookups in tables use plain text, without building a uid first.
impl std::borrow::Borrow<str> for Uid {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A StatefulSet ordinal. 0 is a valid pod; "no pod" is `Option::None`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(into = "u32", try_from = "i64")]
pub struct PodIndex(u32);

impl From<PodIndex> for u32 {
    fn from(index: PodIndex) -> Self {
        index.0
    }
}

impl TryFrom<i64> for PodIndex {
    type Error = Error;

    fn try_from(given: i64) -> Result<Self, Error> {
        Self::new(given)
    }
}

impl PodIndex {
    /// The largest ordinal in Kubernetes.
    pub const MAX: u32 = i32::MAX as u32;

    /// Validates a pod index: 0 to 2147483647.
    ///
    /// # Errors
    /// `InvalidParameter` for anything else.
    pub fn new(given: i64) -> Result<Self, Error> {
        match u32::try_from(given) {
            Ok(index) if index <= Self::MAX => Ok(Self(index)),
            _ => Err(invalid(
                "pod_index",
                &given.to_string(),
                "a whole number from 0 to 2147483647",
            )),
        }
    }

    /// The index as a number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Parses an index as a store holds it: decimal digits without leading zeros. Scripts compare
    /// indexes as text, so each has one spelling.
    #[must_use]
    pub fn parse(stored: &str) -> Option<Self> {
        let digits = stored.bytes().all(|b| b.is_ascii_digit());
        let canonical = digits && (stored == "0" || !stored.starts_with('0'));
        let index = stored.parse::<i64>().ok().filter(|_| canonical)?;
        Self::new(index).ok()
    }
}

impl fmt::Display for PodIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Increases every time a pod process starts; 0 means that no process was ever seen.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Incarnation(u64);

impl Incarnation {
    /// No process was ever seen under this index.
    pub const NONE: Self = Self(0);

    /// The incarnation with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A fencing token: it rises with every change of a user's owner. A database that refuses smaller
/// tokens is safe from an owner that has been replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Token(u64);

impl Token {
    /// Before every other token: no user was ever owned by it.
    pub const NONE: Self = Self(0);
    /// Tokens are below this: a script and a program in JavaScript count exactly up to here.
    pub const LIMIT: u64 = 1 << 53;

    /// The token with this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A stateful service in its namespace: the owner of a state cache and of leases.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId {
    /// The namespace.
    pub namespace: Namespace,
    /// The service.
    pub service: ServiceName,
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service)
    }
}

/// One user of one service: the key of a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId {
    /// The service.
    pub service: ServiceId,
    /// The user.
    pub uid: Uid,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_rejected_not_changed() {
        for bad in ["", "a:b", "a b", "{x}", "ü", "a\n", &"x".repeat(64)] {
            let error = Namespace::new(bad).err().map(|e| e.kind());
            assert_eq!(error, Some(ErrorKind::InvalidParameter), "{bad:?}");
        }
        for good in ["a", "default", "A-b_c.9", &"x".repeat(63)] {
            assert!(Namespace::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn uids_may_be_almost_anything_printable() {
        for good in ["user123", "a:b", "日本", "a b", &"x".repeat(128)] {
            assert!(Uid::new(good).is_ok(), "{good:?}");
        }
        for bad in ["", "a{b", "a}b", "a\0b", "a\u{85}b", &"x".repeat(129)] {
            assert!(Uid::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_uid_is_hashed_as_sha256sum_does_it() {
        let uid = Uid::new("user123").unwrap();
        assert_eq!(uid.hashed(), "e606e38b0d8c");
    }

    #[test]
    fn pod_zero_is_a_pod_and_minus_one_is_not() {
        assert_eq!(PodIndex::new(0).map(PodIndex::get).ok(), Some(0));
        assert!(PodIndex::new(-1).is_err());
        assert!(PodIndex::new(1 << 31).is_err());
    }

    #[test]
    fn a_stored_index_is_digits_only() {
        for good in [0, 7, 10, i64::from(PodIndex::MAX)] {
            let parsed = PodIndex::parse(&good.to_string());
            assert_eq!(parsed, PodIndex::new(good).ok(), "{good}");
        }
        for bad in [
            "",
            "-1",
            "+1",
            " 1",
            "1 ",
            "1.0",
            "abc",
            "007",
            "00",
            "1e3",
            "1\n",
            "2147483648",
            "99999999999",
        ] {
            assert_eq!(PodIndex::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_refusal_names_argument_value_and_rule() {
        let text = Uid::new(&"y".repeat(500)).err().map(|e| e.to_string());
        let text = text.unwrap_or_default();
        assert!(text.contains("uid") && text.contains("500 bytes") && text.contains("128"));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_check_panic(text in "\\PC*") {
            let _ = (Namespace::new(&text), Uid::new(&text), PodIndex::parse(&text));
        }
    }
}
