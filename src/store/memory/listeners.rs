//! Who listens to the events of which service.

use std::collections::HashMap;

use tokio::sync::mpsc::Sender;

use crate::id::ServiceId;
use crate::store::Changes;

/// Every subscription of the store. One that was dropped is swept out with the next that comes.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    services: HashMap<ServiceId, Vec<Listener>>,
}

#[derive(Debug)]
struct Listener {
    /// Which executor made it, because it ends with that executor.
    executor: u64,
    tell: Sender<()>,
}

impl Listeners {
    /// Adds a subscription of this executor.
    pub(super) fn add(&mut self, executor: u64, service: &ServiceId) -> Changes {
        self.keep(|listener| !listener.tell.is_closed());
        let (tell, changes) = Changes::channel(None);
        let listeners = self.services.entry(service.clone()).or_default();
        listeners.push(Listener { executor, tell });
        changes
    }

    /// How many listen to this service now.
    pub(super) fn count(&self, service: &ServiceId) -> u64 {
        let listeners = self.services.get(service).into_iter().flatten();
        let live = listeners.filter(|listener| !listener.tell.is_closed());
        u64::try_from(live.count()).unwrap_or(u64::MAX)
    }

    /// Tells everybody who listens to this service that something has changed.
    pub(super) fn tell(&self, service: &ServiceId) {
        for listener in self.services.get(service).into_iter().flatten() {
            // Full: an event waits already, and one is as good as two.
            let _ = listener.tell.try_send(());
        }
    }

    /// Ends what this executor has subscribed to.
    pub(super) fn end(&mut self, executor: u64) {
        self.keep(|listener| listener.executor != executor);
    }

    fn keep(&mut self, wanted: impl Fn(&Listener) -> bool) {
        self.services.retain(|_, listeners| {
            listeners.retain(&wanted);
            !listeners.is_empty()
        });
    }
}
