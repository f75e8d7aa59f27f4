//! Spans for OpenTelemetry: `podlink/otel.py` turns them into the application's own spans.

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::error::raise;
use super::log::FieldValue;
use crate::id::{invalid, shown};
use crate::trace::{self, FinishedSpan, Trace, TraceContext};

/// Turns the collecting of spans on or off.
#[pyfunction]
pub(super) fn collect_spans(on: bool) {
    trace::collect(on);
}

/// Calls `start(*arguments)`: the operation that it starts continues the span with this context.
#[pyfunction]
pub(super) fn start_traced(
    start: &Bound<'_, PyAny>,
    arguments: &Bound<'_, PyTuple>,
    traceparent: &str,
    tracestate: &str,
) -> PyResult<()> {
    let context = TraceContext::parse(traceparent, tracestate).ok_or_else(|| {
        let error = invalid("traceparent", &shown(traceparent), "a W3C trace context");
        raise(start.py(), &error)
    })?;
    let _entered = trace::operation(&context).entered();
    start.call1(arguments).map(drop)
}

/// A context as (trace id, span id, flags, tracestate).
type ContextTuple = (u128, u64, u8, String);

/// A span as (number, parent, name, kind, start, duration, attributes), times in nanoseconds.
type SpanTuple = (
    u32,
    u32,
    String,
    &'static str,
    u64,
    u64,
    Vec<(&'static str, FieldValue)>,
);

/// A trace as (the context that it continues, its spans, parents first).
type TraceTuple = (Option<ContextTuple>, Vec<SpanTuple>);

/// Takes the finished traces, and the number of spans dropped since the last call.
#[pyfunction]
pub(super) fn take_spans() -> (Vec<TraceTuple>, u64) {
    let (traces, dropped) = trace::take();
    (traces.into_iter().map(trace_tuple).collect(), dropped)
}

fn trace_tuple(trace: Trace) -> TraceTuple {
    let context = trace.context.map(|context| {
        let (trace_id, span_id, flags) = context.ids();
        (trace_id, span_id, flags, context.state().to_owned())
    });
    (context, trace.spans.into_iter().map(span).collect())
}

fn span(span: FinishedSpan) -> SpanTuple {
    let attributes = span.attributes.into_iter();
    let attributes = attributes.map(|(name, value)| (name, value.into()));
    (
        span.number,
        span.parent,
        span.name,
        span.kind,
        span.started_ns,
        span.lasted_ns,
        attributes.collect(),
    )
}

/// The hash that replaces a uid in logs and traces.
#[pyfunction]
pub(super) fn hash_uid(uid: &Bound<'_, PyAny>) -> PyResult<String> {
    Ok(super::argument::uid(uid)?.hashed())
}
