//! The trace context on the wire: the headers `traceparent` and `tracestate`.

use tonic::Request;
use tonic::metadata::{MetadataMap, MetadataValue};

use crate::trace::{self, TRACEPARENT, TRACESTATE, TraceContext};

/// Injects the current span's context into the request, if there is one.
pub(super) fn inject<T>(request: &mut Request<T>) {
    let Some(context) = trace::current() else {
        return;
    };
    let headers = [
        (TRACEPARENT, context.header()),
        (TRACESTATE, context.state().to_owned()),
    ];
    for (name, text) in headers {
        if let Ok(value) = MetadataValue::try_from(text)
            && !value.is_empty()
        {
            request.metadata_mut().insert(name, value);
        }
    }
}

/// Extracts the span context of a request. Anything but a valid trace context is ignored: a
/// caller may send any text.
pub(super) fn extract(metadata: &MetadataMap) -> Option<TraceContext> {
    trace::is_collecting().then(|| read(metadata)).flatten()
}

fn read(metadata: &MetadataMap) -> Option<TraceContext> {
    let text = |name| {
        let mut values = metadata.get_all(name).iter();
        let value = values.next()?.to_str().ok()?;
        // Of two values it is unknown which one is valid.
        values.next().is_none().then_some(value)
    };
    TraceContext::parse(text(TRACEPARENT)?, text(TRACESTATE).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(all: &[(&'static str, &str)]) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for (name, text) in all {
            metadata.append(*name, text.parse().unwrap());
        }
        metadata
    }

    #[test]
    fn duplicate_headers_are_ignored() {
        let found = read(&headers(&[(TRACEPARENT, GOOD), (TRACESTATE, "a=1")]));
        assert_eq!(
            found.map(|context| context.state().to_owned()),
            Some("a=1".to_owned())
        );
        let other = GOOD.replacen("4b", "4c", 1);
        assert_eq!(
            read(&headers(&[(TRACEPARENT, GOOD), (TRACEPARENT, &other)])),
            None
        );
        assert_eq!(read(&headers(&[(TRACESTATE, "a=1")])), None);
    }
}
