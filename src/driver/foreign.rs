//! Another namespace, as all drivers of this process share it: its pods are read once, however many
//! drivers look at them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::states::StateCache;
use crate::clock::Clock;
use crate::config::RouteInfoConfig;
use crate::id::Namespace;
use crate::namespace::Home;
use crate::rpc::Peer;

/// The other namespaces that a driver reaches.
pub type ForeignNamespaces = HashMap<Namespace, Arc<ForeignNamespace>>;

/// The way to another namespace, and what this process reads there.
#[derive(Debug)]
pub struct ForeignNamespace {
    home: Home,
    clock: Clock,
    /// One cache for each set of settings in use, with the number of drivers that hold it. Never
    /// held across an await.
    caches: Mutex<Vec<(Arc<StateCache>, usize)>>,
}

impl ForeignNamespace {
    /// The namespace that this peer leads to. No I/O.
    #[must_use]
    pub fn new(peer: Arc<dyn Peer>, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            home: Home::Foreign(peer),
            clock,
            caches: Mutex::default(),
        })
    }

    /// Where its operations are sent.
    #[must_use]
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// The pods of this namespace, read with these settings.
    pub(super) fn hold(self: &Arc<Self>, config: &RouteInfoConfig) -> HeldStates {
        let mut caches = self.lock();
        let shared = caches
            .iter_mut()
            .find(|(cache, _)| cache.config() == config);
        let states = match shared {
            Some((cache, holders)) => {
                *holders += 1;
                Arc::clone(cache)
            }
            None => {
                let home = self.home.clone();
                let cache = StateCache::new(home, self.clock.clone(), config.clone());
                caches.push((Arc::clone(&cache), 1));
                cache
            }
        };
        drop(caches);
        HeldStates {
            states,
            foreign: Some(Arc::clone(self)),
            released: AtomicBool::new(false),
        }
    }

    fn release(&self, states: &Arc<StateCache>) {
        let mut caches = self.lock();
        let held = caches
            .iter_mut()
            .position(|(cache, _)| Arc::ptr_eq(cache, states));
        let Some(at) = held else { return };
        caches[at].1 -= 1;
        if caches[at].1 == 0 {
            caches.swap_remove(at);
            drop(caches);
            states.close();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Arc<StateCache>, usize)>> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A driver's share of the pods of one namespace. The last driver that gives up its share of
/// another namespace's pods ends the reading.
#[derive(Debug)]
pub(super) struct HeldStates {
    states: Arc<StateCache>,
    /// `None`: the route info driver of this namespace owns the cache.
    foreign: Option<Arc<ForeignNamespace>>,
    released: AtomicBool,
}

impl HeldStates {
    /// The pods of the driver's own namespace, which its route info driver reads.
    pub(super) fn own(states: Arc<StateCache>) -> Self {
        Self {
            states,
            foreign: None,
            released: AtomicBool::new(false),
        }
    }

    pub(super) fn states(&self) -> &Arc<StateCache> {
        &self.states
    }

    /// Gives up the share. A second time does nothing.
    pub(super) fn release(&self) {
        if let Some(foreign) = &self.foreign
            && !self.released.swap(true, Ordering::SeqCst)
        {
            foreign.release(&self.states);
        }
    }
}

impl Drop for HeldStates {
    fn drop(&mut self) {
        self.release();
    }
}
