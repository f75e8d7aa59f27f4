//! Spans: the steps of one operation, for tracing systems.
//!
//! Every span of podlink is created here, with `tracing`, so that other rooms need one line each.
//! [`Spans`] collects them until their operation ends, in a buffer that never blocks; the bindings
//! pass them to the exporter. While collecting is off, no span is created.
//! Work outside of operations, such as reading the pods every second, creates no span.

mod context;
mod spans;

use std::fmt::Display;

use tracing::field::Empty;
use tracing::{Instrument, Span, info_span};

use crate::error::{Error, Result};
use crate::id::{LinkId, Namespace};

pub use context::{TRACEPARENT, TRACESTATE, TraceContext};
pub use spans::{
    AttributeValue, FinishedSpan, Spans, Trace, after_fork_in_child, collect, current,
    is_collecting, is_wanted, set_waker, take,
};

/// The target of every span.
const TARGET: &str = "podlink::trace";
/// Not a span of podlink's own: the application's, whose context the spans below it continue.
const OPERATION: &str = "operation";
/// The root span of a request from another process.
const REQUEST: &str = "request";
/// The field for the outcome of a span: "ok", or the code of its error.
const OUTCOME: &str = "podlink.outcome";

/// The application's own span, as the parent of the operation's spans while it is entered.
#[must_use]
pub fn operation(context: &TraceContext) -> Span {
    let (parent, state) = (context.header(), context.state());
    info_span!(target: TARGET, OPERATION, traceparent = parent, tracestate = state)
}

/// A request from another process, which may have sent the context of its own span.
#[must_use]
pub fn request(
    method: &'static str,
    namespace: &Namespace,
    context: Option<&TraceContext>,
) -> Span {
    info_span!(
        target: TARGET,
        REQUEST,
        otel.name = method,
        otel.kind = "server",
        rpc.system = "grpc",
        rpc.method = method,
        podlink.namespace = namespace.as_str(),
        podlink.outcome = Empty,
        traceparent = context.map(TraceContext::header),
        tracestate = context.map(TraceContext::state),
    )
}

/// Finding or creating a user's link: the part of compute that the cache does not answer.
#[must_use]
pub fn place(link: &LinkId) -> Span {
    info_span!(
        target: TARGET,
        "place",
        podlink.namespace = link.service.namespace.as_str(),
        podlink.service = link.service.service.as_str(),
        podlink.uid_hash = link.uid.hashed(),
        podlink.cache = Empty,
        podlink.pod = Empty,
        podlink.outcome = Empty,
    )
}

/// A call to the store.
#[must_use]
pub fn store(script: &'static str) -> Span {
    info_span!(
        target: TARGET,
        "store",
        otel.name = script,
        otel.kind = "client",
        db.operation.name = script,
        podlink.outcome = Empty,
    )
}

/// One attempt of a call to another namespace.
#[must_use]
pub fn attempt(method: &'static str, endpoint: &impl Display, number: u32) -> Span {
    info_span!(
        target: TARGET,
        "attempt",
        otel.name = method,
        otel.kind = "client",
        rpc.system = "grpc",
        rpc.method = method,
        podlink.endpoint = %endpoint,
        podlink.attempt = number,
        podlink.outcome = Empty,
    )
}

/// Runs `work` in `span`, and records its outcome.
///
/// # Errors
/// Those of `work`.
pub async fn observed<T>(span: Span, work: impl Future<Output = Result<T>>) -> Result<T> {
    // Even a disabled span looks up its fields when a value is recorded.
    if span.is_disabled() {
        return work.await;
    }
    let done = work.instrument(span.clone()).await;
    ended(&span, done.as_ref());
    done
}

/// Records the outcome of a span.
pub fn ended<T>(span: &Span, done: std::result::Result<T, &Error>) {
    if span.is_disabled() {
        return;
    }
    let outcome = match done {
        Ok(_) => "ok",
        Err(error) => error.kind().code(),
    };
    span.record(OUTCOME, outcome);
}
