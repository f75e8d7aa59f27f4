//! The task that removes ended entries from the cache that no caller asks for any more, and refusals
//! that have expired.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::task::AbortHandle;

use super::ClientShared;

/// How often refusals are swept where the cache stores nothing.
const LONGEST_PERIOD: Duration = Duration::from_secs(60);

/// Sweeps a driver's cache, from the first call that may put something in until it is dropped.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    started: AtomicBool,
    /// The task; ended by `end`, and when this is dropped. Never held across an await.
    task: Mutex<Option<AbortHandle>>,
}

impl Sweeper {
    /// Sees to it that the task runs. Must be called on the runtime.
    pub(super) fn start(&self, client: &Arc<ClientShared>) {
        if self.started.load(Ordering::Relaxed) || self.started.swap(true, Ordering::SeqCst) {
            return;
        }
        // A cache that stores nothing needs no sweep, but the refusals do.
        let period = client.cache.sweep_period().unwrap_or(LONGEST_PERIOD);
        let task = tokio::spawn(sweep(Arc::downgrade(client), period));
        *self.task() = Some(task.abort_handle());
    }

    /// Ends the task.
    pub(super) fn end(&self) {
        if let Some(task) = self.task().take() {
            task.abort();
        }
    }

    fn task(&self) -> std::sync::MutexGuard<'_, Option<AbortHandle>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.end();
    }
}

async fn sweep(client: Weak<ClientShared>, period: Duration) {
    loop {
        tokio::time::sleep(period).await;
        let Some(client) = client.upgrade() else {
            return;
        };
        client.refusals.sweep(client.clock.now());
        if client.cache.is_empty() {
            continue;
        }
        // Sweeping reads every entry: not on a thread that does I/O.
        let swept = tokio::task::spawn_blocking(move || client.cache.sweep(client.clock.now()));
        if let Err(error) = swept.await {
            tracing::warn!(%error, "the link cache was not swept");
        }
    }
}
