//! What the core logs, on its way to Python's `logging`: a bounded queue that never blocks, and
//! that the callback thread empties.

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

use self::text::Text;
pub(super) use self::text::Value;
use super::argument;
use super::error::OrRaise;
use super::queue::Arrivals;
use crate::trace;

/// More records than this waiting means that nobody listens: the newest are dropped and counted.
const CAPACITY: usize = 1024;

/// Level (as in Python's `logging`), logger name, message, the message with its fields, the fields.
type Record = (u8, String, String, String, Vec<(&'static str, Value)>);

#[derive(Default)]
struct Waiting {
    records: VecDeque<Record>,
    dropped: u64,
    listener: Option<Arc<Arrivals>>,
}

/// Behind a pointer, because the lock may be held by a thread that a forked child does not have.
static WAITING: LazyLock<ArcSwap<Mutex<Waiting>>> = LazyLock::new(ArcSwap::default);

fn with_waiting<T>(f: impl FnOnce(&mut Waiting) -> T) -> T {
    let waiting = WAITING.load();
    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    f(&mut waiting)
}

/// Starts anew in a forked child. What waited is the parent's, and so is who listened; both may
/// have been caught in the middle of a change, so they are left as they are.
pub(super) fn after_fork_in_child() {
    std::mem::forget(WAITING.swap(Arc::default()));
}

/// The records that wait, and how many were dropped since the last call.
#[pyfunction]
pub(super) fn take_logs() -> (Vec<Record>, u64) {
    with_waiting(|waiting| {
        (
            waiting.records.drain(..).collect(),
            std::mem::take(&mut waiting.dropped),
        )
    })
}

/// Goes by this `PODLINK_LOG` from now on. Returns the level (as in Python's `logging`) of the
/// most talkative logger; none if all are off.
#[pyfunction]
pub(super) fn set_log_filter(text: &Bound<'_, PyAny>) -> PyResult<Option<u8>> {
    let most = filter::set(argument::text("PODLINK_LOG", text)?).or_raise(text.py())?;
    Ok(most.into_level().map(filter::number))
}

/// Sends log records, and spans if they are collected, to this queue's thread from now on.
pub(super) fn listen(listener: Arc<Arrivals>) {
    static INSTALLED: Once = Once::new();
    let bell = Arc::clone(&listener);
    trace::ring(Arc::new(move || bell.ring()));
    with_waiting(|waiting| waiting.listener = Some(listener));
    // Where the program has a subscriber of its own already, it keeps it.
    INSTALLED.call_once(|| {
        let subscriber = tracing_subscriber::registry()
            .with(ToPython)
            .with(trace::Spans);
        let _already_set = tracing::subscriber::set_global_default(subscriber);
    });
}

/// Makes records of events. Of spans it says nothing.
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
        Some(filter::most())
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        let mut text = Text::new(level);
        event.record(&mut text);
        let logger = event.metadata().target().replace("::", ".");
        let line = text.line();
        let listener = with_waiting(|waiting| {
            if waiting.records.len() >= CAPACITY {
                waiting.dropped += 1;
                return None;
            }
            let record = (
                filter::number(level),
                logger,
                text.message,
                line,
                text.fields,
            );
            waiting.records.push_back(record);
            waiting.listener.clone()
        });
        if let Some(listener) = listener {
            listener.ring();
        }
    }
}
