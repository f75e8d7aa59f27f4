//! Where spans go when they end: into the trace of their operation, and that, whole, into a queue.

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

/// More spans than this waiting means that nobody takes them: the newest are dropped and counted.
const WAITING_MAX: usize = 8192;
/// More than this of one operation are dropped, too: a batch has thousands of users.
const TRACE_MAX: usize = 128;
/// How long a text may be, in characters.
const TEXT_MAX: usize = 256;

/// What a span says of itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Yes or no.
    Flag(bool),
    /// A whole number.
    Whole(i64),
    /// A text.
    Text(String),
}

/// A span that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedSpan {
    /// Its number in the trace, from 1; a parent's is lower than its children's.
    pub number: u32,
    /// The parent's number; 0: the context of the trace.
    pub parent: u32,
    /// Its name.
    pub name: String,
    /// "internal", "client" or "server".
    pub kind: &'static str,
    /// When it began, in nanoseconds since 1970.
    pub started_ns: u64,
    /// How long it lasted, in nanoseconds.
    pub lasted_ns: u64,
    /// What it says of itself.
    pub attributes: Vec<(&'static str, Value)>,
}

/// What one operation did.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// What it continues; `None`: nothing.
    pub context: Option<TraceContext>,
    /// Its spans, parents first.
    pub spans: Vec<FinishedSpan>,
}

#[derive(Default)]
struct Waiting {
    traces: VecDeque<Trace>,
    spans: usize,
    dropped: u64,
    bell: Option<Bell>,
}

/// Wakes whoever takes the spans. Must not wait.
type Bell = Arc<dyn Fn() + Send + Sync>;

/// Behind a pointer, because the lock may be held by a thread that a forked child does not have.
static WAITING: LazyLock<ArcSwap<Mutex<Waiting>>> = LazyLock::new(ArcSwap::default);

static COLLECTING: AtomicBool = AtomicBool::new(false);

fn with_waiting<T>(f: impl FnOnce(&mut Waiting) -> T) -> T {
    let waiting = WAITING.load();
    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    f(&mut waiting)
}

/// Begins to collect spans, or ends it.
pub fn collect(on: bool) {
    COLLECTING.store(on, Ordering::SeqCst);
    tracing::callsite::rebuild_interest_cache();
}

/// Whether spans are collected.
#[must_use]
pub fn is_collecting() -> bool {
    COLLECTING.load(Ordering::Relaxed)
}

/// Calls `bell` whenever there is something to take.
pub fn ring(bell: Bell) {
    with_waiting(|waiting| waiting.bell = Some(bell));
}

/// The traces that wait, and how many spans were dropped since the last call.
#[must_use]
pub fn take() -> (Vec<Trace>, u64) {
    with_waiting(|waiting| {
        waiting.spans = 0;
        let dropped = std::mem::take(&mut waiting.dropped);
        (waiting.traces.drain(..).collect(), dropped)
    })
}

/// Starts anew in a forked child. What waited is the parent's, and so is who listened; both may
/// have been caught in the middle of a change, so they are left as they are.
pub fn after_fork_in_child() {
    std::mem::forget(WAITING.swap(Arc::default()));
}

/// The span that the present operation continues, for whoever is asked on its behalf.
#[must_use]
pub fn current() -> Option<TraceContext> {
    present(|trace| trace.context.clone()).flatten()
}

/// Whether what is done now shall have spans: it belongs to an operation that is sampled.
#[must_use]
pub fn is_wanted() -> bool {
    present(Open::is_wanted).unwrap_or(false)
}

/// What `look` sees in the trace of the present operation.
fn present<T>(look: fn(&Open) -> T) -> Option<T> {
    if !is_collecting() {
        return None;
    }
    tracing::dispatcher::get_default(|dispatch| {
        let registry = dispatch.downcast_ref::<Registry>()?;
        let span = registry.span(dispatch.current_span().id()?)?;
        let extensions = span.extensions();
        extensions.get::<Node>().map(|node| look(&node.trace))
    })
}

/// A trace while its operation is under way. It is whole when its last span has ended.
struct Open {
    context: Option<TraceContext>,
    last: AtomicU32,
    ended: Mutex<Vec<FinishedSpan>>,
}

impl Open {
    fn is_wanted(&self) -> bool {
        self.context.as_ref().is_none_or(TraceContext::is_sampled)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut spans = std::mem::take(ended);
        if spans.is_empty() {
            return;
        }
        spans.sort_by_key(|span| span.number);
        let context = self.context.take();
        let bell = with_waiting(|waiting| {
            let count = spans.len();
            if waiting.spans + count > WAITING_MAX {
                waiting.dropped += count as u64;
                return None;
            }
            waiting.spans += count;
            waiting.traces.push_back(Trace { context, spans });
            waiting.bell.clone()
        });
        if let Some(bell) = bell {
            bell();
        }
    }
}

/// What the registry keeps with a span.
struct Node {
    trace: Arc<Open>,
    number: u32,
    parent: u32,
    started_ns: u64,
    started: Tick,
    said: Said,
}

/// Collects what spans say until they end, and lets them be made only where somebody collects.
/// Of events it says nothing. Not a `Filter`: what one of those disables is made all the same,
/// and only hidden.
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
            let node = extensions.get::<Node>();
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
        let mut said = Said::default();
        attributes.record(&mut said);
        let begins = matches!(attributes.metadata().name(), OPERATION | REQUEST);
        let above = span.parent().filter(|_| !begins).and_then(|above| {
            let extensions = above.extensions();
            let node = extensions.get::<Node>();
            node.map(|node| (Arc::clone(&node.trace), node.number))
        });
        let (trace, parent) = above.unwrap_or_else(|| {
            let open = Open {
                context: said.context(),
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
        span.extensions_mut().insert(Node {
            trace,
            number,
            parent,
            started_ns: clock::unix_nanos(),
            started: Clock::System.now(),
            said,
        });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(node) = span.extensions_mut().get_mut::<Node>() {
            values.record(&mut node.said);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else {
            return;
        };
        let Some(node) = span.extensions_mut().remove::<Node>() else {
            return;
        };
        if node.number == 0 || !node.trace.is_wanted() {
            return;
        }
        let lasted = Clock::System.now().since(node.started).as_nanos();
        let ended = FinishedSpan {
            number: node.number,
            parent: node.parent,
            name: node.said.name.unwrap_or_else(|| span.name().to_owned()),
            kind: node.said.kind,
            started_ns: node.started_ns,
            lasted_ns: u64::try_from(lasted).unwrap_or(u64::MAX),
            attributes: node.said.attributes,
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
            with_waiting(|waiting| waiting.dropped += 1);
        }
    }
}

/// What a span has said so far. The names are those that `tracing-opentelemetry` uses.
struct Said {
    name: Option<String>,
    kind: &'static str,
    traceparent: String,
    tracestate: String,
    attributes: Vec<(&'static str, Value)>,
}

impl Default for Said {
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

impl Said {
    fn context(&self) -> Option<TraceContext> {
        TraceContext::parse(&self.traceparent, &self.tracestate)
    }

    fn add(&mut self, field: &Field, value: Value) {
        self.attributes.push((field.name(), value));
    }
}

impl Visit for Said {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::Flag(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::Whole(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(
            field,
            Value::Whole(i64::try_from(value).unwrap_or(i64::MAX)),
        );
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "otel.name" => self.name = Some(value.to_owned()),
            "otel.kind" if value == "client" => self.kind = "client",
            "otel.kind" if value == "server" => self.kind = "server",
            "traceparent" => value.clone_into(&mut self.traceparent),
            "tracestate" => value.clone_into(&mut self.tracestate),
            _ => self.add(field, Value::Text(value.chars().take(TEXT_MAX).collect())),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _infallible = write!(text, "{value:?}");
        self.record_str(field, &text);
    }
}
