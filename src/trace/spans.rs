//! Collecting spans: into the trace of their operation, and complete traces into a buffer.

use std::collections::VecDeque;
use std::fmt::{Debug, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::{OPERATION, REQUEST, TARGET, TraceContext};
use crate::clock::{self, Clock, Tick};

/// A larger buffer means that no exporter takes the spans: the newest are dropped and counted.
const BUFFER_MAX: usize = 8192;
/// The maximum number of spans of one operation: a batch has thousands of users.
const TRACE_MAX: usize = 128;
/// The maximum length of a text, in characters.
const TEXT_MAX: usize = 256;

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum AttributeValue {
    /// A boolean.
    Flag(bool),
    /// An integer.
    Whole(i64),
    /// A text.
    Text(String),
}

/// A span that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedSpan {
    /// Its number in the trace, from 1; a parent's number is lower than its children's.
    pub number: u32,
    /// The parent's number; 0: the parent is the context of the trace.
    pub parent: u32,
    /// Its name.
    pub name: String,
    /// "internal", "client" or "server".
    pub kind: &'static str,
    /// Its start, in nanoseconds since 1970.
    pub started_ns: u64,
    /// Its duration, in nanoseconds.
    pub lasted_ns: u64,
    /// Its attributes.
    pub attributes: Vec<(&'static str, AttributeValue)>,
}

/// The spans of one operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// The context that it continues; `None`: it has no parent.
    pub context: Option<TraceContext>,
    /// Its spans, parents first.
    pub spans: Vec<FinishedSpan>,
}

#[derive(Default)]
struct SpanBuffer {
    traces: VecDeque<Trace>,
    spans: usize,
    dropped: u64,
    waker: Option<SpanWaker>,
}

/// Wakes the reader of the buffer. Must not block.
type SpanWaker = Arc<dyn Fn() + Send + Sync>;

/// Behind a pointer, because the lock may be held by a thread that a forked child does not have.
static BUFFER: LazyLock<ArcSwap<Mutex<SpanBuffer>>> = LazyLock::new(ArcSwap::default);

static COLLECTING: AtomicBool = AtomicBool::new(false);

fn with_buffer<T>(f: impl FnOnce(&mut SpanBuffer) -> T) -> T {
    let waiting = BUFFER.load();
    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    f(&mut waiting)
}

/// Turns the collecting of spans on or off.
pub fn collect(on: bool) {
    COLLECTING.store(on, Ordering::SeqCst);
    tracing::callsite::rebuild_interest_cache();
}

/// Whether spans are collected.
#[must_use]
pub fn is_collecting() -> bool {
    COLLECTING.load(Ordering::Relaxed)
}

/// Calls `waker` whenever a trace was put into the buffer.
pub fn set_waker(waker: SpanWaker) {
    with_buffer(|buffer| buffer.waker = Some(waker));
}

/// Takes the traces in the buffer, and the number of spans dropped since the last call.
#[must_use]
pub fn take() -> (Vec<Trace>, u64) {
    with_buffer(|buffer| {
        buffer.spans = 0;
        let dropped = std::mem::take(&mut buffer.dropped);
        (buffer.traces.drain(..).collect(), dropped)
    })
}

/// Starts with an empty buffer in a forked child. The old buffer and its waker belong to the parent
/// and may be in the middle of a change, so they are leaked, not dropped.
pub fn after_fork_in_child() {
    std::mem::forget(BUFFER.swap(Arc::default()));
}

/// The context that the current operation continues, to be sent along with its requests.
#[must_use]
pub fn current() -> Option<TraceContext> {
    present(|trace| trace.context.clone()).flatten()
}

/// Whether the current code should create spans: it belongs to a sampled operation.
#[must_use]
pub fn is_wanted() -> bool {
    present(OpenTrace::is_wanted).unwrap_or(false)
}

/// The result of `look` on the trace of the current operation.
fn present<T>(look: fn(&OpenTrace) -> T) -> Option<T> {
    if !is_collecting() {
        return None;
    }
    tracing::dispatcher::get_default(|dispatch| {
        let registry = dispatch.downcast_ref::<Registry>()?;
        let span = registry.span(dispatch.current_span().id()?)?;
        let extensions = span.extensions();
        extensions.get::<SpanNode>().map(|node| look(&node.trace))
    })
}

/// A trace whose operation is in progress. It is complete when its last span has ended.
struct OpenTrace {
    context: Option<TraceContext>,
    last: AtomicU32,
    ended: Mutex<Vec<FinishedSpan>>,
}

impl OpenTrace {
    fn is_wanted(&self) -> bool {
        self.context.as_ref().is_none_or(TraceContext::is_sampled)
    }
}

impl Drop for OpenTrace {
    fn drop(&mut self) {
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut spans = std::mem::take(ended);
        if spans.is_empty() {
            return;
        }
        spans.sort_by_key(|span| span.number);
        let context = self.context.take();
        let waker = with_buffer(|buffer| {
            let count = spans.len();
            if buffer.spans + count > BUFFER_MAX {
                buffer.dropped += count as u64;
                return None;
            }
            buffer.spans += count;
            buffer.traces.push_back(Trace { context, spans });
            buffer.waker.clone()
        });
        if let Some(waker) = waker {
            waker();
        }
    }
}

/// The data that the registry stores with a span.
struct SpanNode {
    trace: Arc<OpenTrace>,
    number: u32,
    parent: u32,
    started_ns: u64,
    started: Tick,
    fields: SpanFields,
}

/// Records the fields of spans until they end, and enables spans only while collecting is on.
/// Ignores events. Not a `Filter`: a span that a filter disables is created nevertheless, and only
/// hidden.
#[derive(Debug, Default)]
pub struct Spans;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.is_event() {
            Interest::always()
        } else if metadata.target() == TARGET && COLLECTING.load(Ordering::SeqCst) {
            Interest::sometimes()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, context: Context<'_, S>) -> bool {
        if metadata.is_event() || matches!(metadata.name(), OPERATION | REQUEST) {
            return true;
        }
        let within = context.lookup_current();
        within.is_some_and(|span| {
            let extensions = span.extensions();
            let node = extensions.get::<SpanNode>();
            node.is_some_and(|node| node.trace.is_wanted())
        })
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let on = COLLECTING.load(Ordering::SeqCst);
        Some(if on {
            LevelFilter::INFO
        } else {
            LevelFilter::OFF
        })
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = SpanFields::default();
        attributes.record(&mut fields);
        let begins = matches!(attributes.metadata().name(), OPERATION | REQUEST);
        let above = span.parent().filter(|_| !begins).and_then(|above| {
            let extensions = above.extensions();
            let node = extensions.get::<SpanNode>();
            node.map(|node| (Arc::clone(&node.trace), node.number))
        });
        let (trace, parent) = above.unwrap_or_else(|| {
            let open = OpenTrace {
                context: fields.context(),
                last: AtomicU32::new(0),
                ended: Mutex::default(),
            };
            (Arc::new(open), 0)
        });
        let number = if attributes.metadata().name() == OPERATION {
            0
        } else {
            trace.last.fetch_add(1, Ordering::Relaxed) + 1
        };
        span.extensions_mut().insert(SpanNode {
            trace,
            number,
            parent,
            started_ns: clock::unix_nanos(),
            started: Clock::System.now(),
            fields,
        });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(node) = span.extensions_mut().get_mut::<SpanNode>() {
            values.record(&mut node.fields);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else {
            return;
        };
        let Some(node) = span.extensions_mut().remove::<SpanNode>() else {
            return;
        };
        if node.number == 0 || !node.trace.is_wanted() {
            return;
        }
        let lasted = Clock::System.now().since(node.started).as_nanos();
        let ended = FinishedSpan {
            number: node.number,
            parent: node.parent,
            name: node.fields.name.unwrap_or_else(|| span.name().to_owned()),
            kind: node.fields.kind,
            started_ns: node.started_ns,
            lasted_ns: u64::try_from(lasted).unwrap_or(u64::MAX),
            attributes: node.fields.attributes,
        };
        let mut all = node
            .trace
            .ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if all.len() < TRACE_MAX {
            all.push(ended);
        } else {
            drop(all);
            with_buffer(|buffer| buffer.dropped += 1);
        }
    }
}

/// The fields of a span so far. The names are those of `tracing-opentelemetry`.
struct SpanFields {
    name: Option<String>,
    kind: &'static str,
    traceparent: String,
    tracestate: String,
    attributes: Vec<(&'static str, AttributeValue)>,
}

impl Default for SpanFields {
    fn default() -> Self {
        Self {
            name: None,
            kind: "internal",
            traceparent: String::new(),
            tracestate: String::new(),
            attributes: Vec::new(),
        }
    }
}

impl SpanFields {
    fn context(&self) -> Option<TraceContext> {
        TraceContext::parse(&self.traceparent, &self.tracestate)
    }

    fn add(&mut self, field: &Field, value: AttributeValue) {
        self.attributes.push((field.name(), value));
    }
}

impl Visit for SpanFields {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, AttributeValue::Flag(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, AttributeValue::Whole(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(
            field,
            AttributeValue::Whole(i64::try_from(value).unwrap_or(i64::MAX)),
        );
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "otel.name" => self.name = Some(value.to_owned()),
            "otel.kind" if value == "client" => self.kind = "client",
            "otel.kind" if value == "server" => self.kind = "server",
            "traceparent" => value.clone_into(&mut self.traceparent),
            "tracestate" => value.clone_into(&mut self.tracestate),
            _ => self.add(
                field,
                AttributeValue::Text(value.chars().take(TEXT_MAX).collect()),
            ),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _infallible = write!(text, "{value:?}");
        self.record_str(field, &text);
    }
}
