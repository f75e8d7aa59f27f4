//! The subscriptions to each service's events.

use std::collections::HashMap;

use tokio::sync::mpsc::Sender;

use crate::id::ServiceId;
use crate::store::Changes;

/// Every subscription of the store. Dropped ones are removed when the next one is added.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    services: HashMap<ServiceId, Vec<Listener>>,
}

#[derive(Debug)]
struct Listener {
    /// The number of the store that subscribed: the subscription ends with that store.
    store: u64,
    sender: Sender<()>,
}

impl Listeners {
    /// Adds a subscription of this store.
    pub(super) fn add(&mut self, store: u64, service: &ServiceId) -> Changes {
        self.retain(|listener| !listener.sender.is_closed());
        let (sender, changes) = Changes::channel(None);
        let listeners = self.services.entry(service.clone()).or_default();
        listeners.push(Listener { store, sender });
        changes
    }

    /// How many subscriptions this service has now.
    pub(super) fn count(&self, service: &ServiceId) -> u64 {
        let listeners = self.services.get(service).into_iter().flatten();
        let live = listeners.filter(|listener| !listener.sender.is_closed());
        u64::try_from(live.count()).unwrap_or(u64::MAX)
    }

    /// Notifies the subscribers of this service that something has changed.
    pub(super) fn notify(&self, service: &ServiceId) {
        for listener in self.services.get(service).into_iter().flatten() {
            // Full: an event is pending already, and one stands for all.
            let _ = listener.sender.try_send(());
        }
    }

    /// Ends the subscriptions of this store.
    pub(super) fn end(&mut self, store: u64) {
        self.retain(|listener| listener.store != store);
    }

    fn retain(&mut self, wanted: impl Fn(&Listener) -> bool) {
        self.services.retain(|_, listeners| {
            listeners.retain(&wanted);
            !listeners.is_empty()
        });
    }
}
