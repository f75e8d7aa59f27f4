//! The core's log records for Python's `logging`: a bounded buffer that never blocks, drained by
//! the thread that takes them.

mod filter;
mod text;

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock, Mutex, Once, PoisonError};

use arc_swap::ArcSwap;
use pyo3::prelude::*;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use self::text::EventText;
pub(super) use self::text::FieldValue;
use super::argument;
use super::error::OrRaise;
use super::queue::Arrivals;
use crate::trace;

/// A full buffer means that no thread drains it: the newest records are dropped and counted.
const CAPACITY: usize = 1024;

/// Level (as in Python's `logging`), logger name, message, the message with its fields, the fields.
type Record = (u8, String, String, String, Vec<(&'static str, FieldValue)>);

#[derive(Default)]
struct LogBuffer {
    records: VecDeque<Record>,
    dropped: u64,
    listener: Option<Arc<Arrivals>>,
}

/// Behind a pointer, because the lock may be held by a thread that a forked child does not have.
static BUFFER: LazyLock<ArcSwap<Mutex<LogBuffer>>> = LazyLock::new(ArcSwap::default);

fn with_buffer<T>(f: impl FnOnce(&mut LogBuffer) -> T) -> T {
    let waiting = BUFFER.load();
    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    f(&mut waiting)
}

/// Starts with an empty buffer in a forked child. The old buffer and its listener belong to the
/// parent and may be in the middle of a change, so they are leaked, not dropped.
pub(super) fn after_fork_in_child() {
    std::mem::forget(BUFFER.swap(Arc::default()));
}

/// Takes the records in the buffer, and the number of records dropped since the last call.
#[pyfunction]
pub(super) fn take_logs() -> (Vec<Record>, u64) {
    with_buffer(|buffer| {
        (
            buffer.records.drain(..).collect(),
            std::mem::take(&mut buffer.dropped),
        )
    })
}

/// Applies this `PODLINK_LOG` from now on. Returns the level (as in Python's `logging`) of the most
/// verbose logger; none if all are off.
#[pyfunction]
pub(super) fn set_log_filter(text: &Bound<'_, PyAny>) -> PyResult<Option<u8>> {
    let most_verbose = filter::set(argument::text("PODLINK_LOG", text)?).or_raise(text.py())?;
    Ok(most_verbose.into_level().map(filter::number))
}

/// Sends log records, and spans if they are collected, to this queue's thread from now on.
pub(super) fn listen(listener: Arc<Arrivals>) {
    static INSTALLED: Once = Once::new();
    let reader = Arc::clone(&listener);
    trace::set_waker(Arc::new(move || reader.wake()));
    with_buffer(|buffer| buffer.listener = Some(listener));
    // If the application has already set a subscriber, it stays.
    INSTALLED.call_once(|| {
        let subscriber = tracing_subscriber::registry()
            .with(ToPython)
            .with(trace::Spans);
        let _already_set = tracing::subscriber::set_global_default(subscriber);
    });
}

/// Turns events into records. Ignores spans.
struct ToPython;

impl<S: Subscriber> Layer<S> for ToPython {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.is_span() || filter::wants(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.is_span() || filter::wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(filter::most_verbose())
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        let mut text = EventText::new(level);
        event.record(&mut text);
        let logger = event.metadata().target().replace("::", ".");
        let line = text.line();
        let listener = with_buffer(|buffer| {
            if buffer.records.len() >= CAPACITY {
                buffer.dropped += 1;
                return None;
            }
            let record = (
                filter::number(level),
                logger,
                text.message,
                line,
                text.fields,
            );
            buffer.records.push_back(record);
            buffer.listener.clone()
        });
        if let Some(listener) = listener {
            listener.wake();
        }
    }
}
