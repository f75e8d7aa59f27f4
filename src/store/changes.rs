//! Word that something has changed.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio::sync::mpsc::{self, Receiver, Sender};

/// A subscription to the events of one service's pods. Dropping it ends the subscription.
///
/// It says *that* something changed, never what: whoever hears it looks at the pods. So any
/// number of events that come while nobody waits are one.
#[derive(Debug)]
pub struct Changes {
    news: Receiver<()>,
    /// Told when nobody listens here any more, so that the store can end the subscription.
    left: Option<Arc<Notify>>,
}

impl Changes {
    /// Changes that are told through the other end of this channel, which is lost when every
    /// sender is dropped. With a capacity of 1, `try_send` makes one event of many.
    #[must_use]
    pub const fn new(news: Receiver<()>) -> Self {
        Self { news, left: None }
    }

    /// A subscription and the end through which it is told.
    pub(super) fn channel(left: Option<Arc<Notify>>) -> (Sender<()>, Self) {
        let (tell, news) = mpsc::channel(1);
        (tell, Self { news, left })
    }

    /// Waits. `true`: something has changed, look again. `false`: the channel was lost, and what
    /// has changed since the last event nobody knows; listen again, then look.
    ///
    /// Dropping the wait loses nothing.
    pub async fn changed(&mut self) -> bool {
        self.news.recv().await.is_some()
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        // Closed first, so that whoever is told finds it closed.
        self.news.close();
        if let Some(left) = &self.left {
            left.notify_one();
        }
    }
}
