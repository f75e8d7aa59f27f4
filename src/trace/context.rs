//! The W3C trace context: which span of which trace an operation belongs to.

/// The header that identifies the span.
pub const TRACEPARENT: &str = "traceparent";
/// The header of vendor-specific data.
pub const TRACESTATE: &str = "tracestate";

/// The length that the specification guarantees; a longer `tracestate` is left out.
const STATE_MAX: usize = 512;
/// The flag that the trace is sampled.
const SAMPLED: u8 = 1;
/// The defined flags: sampled, and random trace id.
const KNOWN_FLAGS: u8 = 3;

/// A span, maybe of another process, as its children refer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    flags: u8,
    state: String,
}

impl TraceContext {
    /// Parses the two headers as strictly as <https://www.w3.org/TR/trace-context/> requires.
    /// `None` if `traceparent` is invalid; an invalid `tracestate` is left out.
    #[must_use]
    pub fn parse(traceparent: &str, tracestate: &str) -> Option<Self> {
        const LENGTH: usize = 55;
        let (known, later) = traceparent.split_at_checked(LENGTH)?;
        let mut parts = known.split('-');
        let version = hex(parts.next()?, 2)?;
        let trace_id = hex(parts.next()?, 32)?;
        let span_id = u64::try_from(hex(parts.next()?, 16)?).ok()?;
        let flags = u8::try_from(hex(parts.next()?, 2)?).ok()?;
        // A later version may append fields after another dash; version 0 may not.
        let fits = match version {
            0 => later.is_empty(),
            0xff => false,
            _ => later.is_empty() || later.starts_with('-'),
        };
        if !fits || parts.next().is_some() || trace_id == 0 || span_id == 0 {
            return None;
        }
        let printable = tracestate.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        let state = printable && tracestate.len() <= STATE_MAX;
        Some(Self {
            trace_id,
            span_id,
            flags: flags & KNOWN_FLAGS,
            state: if state { tracestate } else { "" }.to_owned(),
        })
    }

    /// The `traceparent` header.
    #[must_use]
    pub fn header(&self) -> String {
        let Self {
            trace_id, span_id, ..
        } = self;
        format!("00-{trace_id:032x}-{span_id:016x}-{:02x}", self.flags)
    }

    /// The `tracestate` header; empty if there is none.
    #[must_use]
    pub fn state(&self) -> &str {
        &self.state
    }

    /// Whether this trace is sampled.
    #[must_use]
    pub const fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Trace id, span id and flags.
    #[must_use]
    pub const fn ids(&self) -> (u128, u64, u8) {
        (self.trace_id, self.span_id, self.flags)
    }
}

/// Exactly `length` lower-case hexadecimal digits.
fn hex(text: &str, length: usize) -> Option<u128> {
    let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let digits = text.len() == length && text.bytes().all(digit);
    digits
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_header_comes_back_as_it_was() {
        let context = TraceContext::parse(GOOD, "vendor=1").unwrap();
        assert_eq!(context.header(), GOOD);
        assert_eq!(context.state(), "vendor=1");
        assert!(context.is_sampled());
        let unsampled = GOOD.replace("-01", "-00");
        assert!(!TraceContext::parse(&unsampled, "").unwrap().is_sampled());
    }

    #[test]
    fn a_later_version_may_append_fields() {
        let later = GOOD.replacen("00-", "01-", 1);
        assert!(TraceContext::parse(&format!("{later}-what-ever"), "").is_some());
        assert!(TraceContext::parse(&format!("{later}x"), "").is_none());
        assert!(TraceContext::parse(&format!("{GOOD}-more"), "").is_none());
    }

    #[test]
    fn an_invalid_header_is_no_context() {
        let none = "0".repeat(32);
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            &format!("00-{none}-00f067aa0ba902b7-01"),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
            "00-4bf92f3577b34da6a3ce929d0e0e47-3600f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-\u{e9}",
        ] {
            assert_eq!(TraceContext::parse(bad, ""), None, "{bad}");
        }
    }

    #[test]
    fn an_invalid_state_is_left_out() {
        for bad in ["a=\n", "ä=1", &"a".repeat(513)] {
            assert_eq!(TraceContext::parse(GOOD, bad).unwrap().state(), "");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(parent in "\\PC{0,80}", state in "\\PC{0,80}") {
            let _ = TraceContext::parse(&parent, &state);
        }
    }
}
