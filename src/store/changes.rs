//! A subscription to the changes of a service's pods.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio::sync::mpsc::{self, Receiver, Sender};

/// A subscription to the events of one service's pods. Dropping it ends the subscription.
///
/// An event means *that* something changed, never what: the subscriber reads the pods. So any
/// number of events that arrive between two waits are one.
#[derive(Debug)]
pub struct Changes {
    events: Receiver<()>,
    /// Notified when the subscription is dropped, so that the store can unsubscribe.
    dropped: Option<Arc<Notify>>,
}

impl Changes {
    /// A subscription to the events that the other end of this channel sends. It is lost when
    /// every sender is dropped. With a capacity of 1, `try_send` coalesces events.
    #[must_use]
    pub const fn new(events: Receiver<()>) -> Self {
        Self {
            events,
            dropped: None,
        }
    }

    /// A subscription and the sender of its events.
    pub(super) fn channel(dropped: Option<Arc<Notify>>) -> (Sender<()>, Self) {
        let (sender, events) = mpsc::channel(1);
        (sender, Self { events, dropped })
    }

    /// Waits for an event. `true`: something changed, so read the pods. `false`: the channel was
    /// lost, and changes since the last event are unknown; subscribe again, then read the pods.
    ///
    /// Cancel safe: dropping the future loses no event.
    pub async fn changed(&mut self) -> bool {
        self.events.recv().await.is_some()
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        // Closed before the notification, so that the store finds it closed.
        self.events.close();
        if let Some(dropped) = &self.dropped {
            dropped.notify_one();
        }
    }
}
