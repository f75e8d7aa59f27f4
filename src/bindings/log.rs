//! What the core logs, on its way to Python's `logging`: a bounded queue that never blocks, and
//! that the callback thread empties.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, LazyLock, Mutex, Once, PoisonError};

use arc_swap::ArcSwap;
use pyo3::prelude::*;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::queue::Arrivals;

/// More records than this waiting means that nobody listens: the newest are dropped and counted.
const CAPACITY: usize = 1024;

/// Level (as in Python's `logging`), logger name, message.
type Record = (u8, String, String);

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

/// Sends log records to this queue's thread from now on.
pub(super) fn listen(listener: Arc<Arrivals>) {
    static INSTALLED: Once = Once::new();
    with_waiting(|waiting| waiting.listener = Some(listener));
    // Where the program has a subscriber of its own already, it keeps it.
    INSTALLED.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(ToPython);
        let _already_set = tracing::subscriber::set_global_default(subscriber);
    });
}

struct ToPython;

impl<S: Subscriber> Layer<S> for ToPython {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target().starts_with("podlink") && *metadata.level() <= Level::INFO
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        const ERROR: u8 = 40;
        const WARNING: u8 = 30;
        const INFO: u8 = 20;
        let level = match *event.metadata().level() {
            Level::ERROR => ERROR,
            Level::WARN => WARNING,
            _ => INFO,
        };
        let mut text = Text::default();
        event.record(&mut text);
        let logger = event.metadata().target().replace("::", ".");
        let listener = with_waiting(|waiting| {
            if waiting.records.len() >= CAPACITY {
                waiting.dropped += 1;
                return None;
            }
            waiting
                .records
                .push_back((level, logger, text.message + &text.fields));
            waiting.listener.clone()
        });
        if let Some(listener) = listener {
            listener.ring();
        }
    }
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing into a String cannot fail.
        let _infallible = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}
