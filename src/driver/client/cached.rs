//! The hot path: cached links, and the services that need no lookup.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::{ArcSwap, ArcSwapOption};

use super::caller::Routed;
use super::route::Route;
use super::{ClientDriver, ClientShared};
use crate::cache::{Entry, Scope};
use crate::driver::states::Watched;
use crate::id::{PodIndex, ServiceId};
use crate::telemetry::count;

/// What the hot path needs to know about a service.
#[derive(Debug)]
pub(super) struct KnownService {
    pub(super) id: ServiceId,
    /// This driver's own number for the service, in cache entries.
    pub(super) number: u32,
    pub(super) scope: Scope,
    pub(super) watched: Arc<Watched>,
}

/// The services of one namespace that were asked for, in the order of their names. A program has
/// a few, and comparing a name with those costs less than hashing it.
#[derive(Debug, Default)]
pub(super) struct ServiceTable(ArcSwap<Vec<Arc<KnownService>>>);

impl ServiceTable {
    /// What `read` finds in the service of this name.
    fn with<T>(&self, name: &str, read: impl FnOnce(&Arc<KnownService>) -> Option<T>) -> Option<T> {
        let known = self.0.load();
        let at = place(&known, name).ok()?;
        read(known.get(at)?)
    }

    /// The service of this name.
    pub(super) fn get(&self, name: &str) -> Option<Arc<KnownService>> {
        self.with(name, |known| Some(Arc::clone(known)))
    }

    /// Replaces the service of this name by what `make` makes of it.
    pub(super) fn put(&self, name: &str, make: impl Fn(Option<&KnownService>) -> KnownService) {
        self.0.rcu(|table| {
            let mut table = Vec::clone(table);
            match place(&table, name) {
                Ok(at) => table[at] = Arc::new(make(Some(&table[at]))),
                Err(at) => table.insert(at, Arc::new(make(None))),
            }
            table
        });
    }

    /// Forgets every service.
    pub(super) fn clear(&self) {
        self.0.store(Arc::default());
    }
}

fn place(table: &[Arc<KnownService>], name: &str) -> Result<usize, usize> {
    table.binary_search_by(|known| known.id.service.as_str().cmp(name))
}

impl ClientDriver {
    /// The hot path of `compute_linked_pod`: the cached link, if it is valid, its pod READY, and the
    /// process that holds the pod's index the one that held it when the answer was given.
    /// Does no I/O, and waits only for a writer to the same shard of the cache.
    #[must_use]
    pub fn compute_cached(&self, namespace: &str, uid: &str, service: &str) -> Option<PodIndex> {
        let shared = &*self.shared;
        let table = shared.table(namespace)?;
        table.with(service, |known| Some(shared.answer(known, uid)?.pod))
    }

    /// The same, with the owner of the user.
    pub(super) fn routed_cached(
        &self,
        namespace: &str,
        uid: &str,
        service: &str,
    ) -> Option<Routed> {
        let shared = &*self.shared;
        let table = shared.table(namespace)?;
        let entry = table.with(service, |known| shared.answer(known, uid))?;
        Some(Routed::cached(&entry))
    }

    /// The same for `route`: the cached link and how its pod is reached.
    #[must_use]
    pub fn route_cached(&self, namespace: &str, uid: &str, service: &str) -> Option<Route> {
        let shared = &*self.shared;
        let table = shared.table(namespace)?;
        table.with(service, |known| shared.route(known, uid))
    }

    /// The links of one service, for callers that compute them again and again.
    #[must_use]
    pub fn service(&self, id: ServiceId) -> ServiceLinks {
        ServiceLinks {
            shared: Arc::clone(&self.shared),
            id,
            known: ArcSwapOption::empty(),
        }
    }
}

/// The links of one service, whose place in the driver is looked up once.
#[derive(Debug)]
pub struct ServiceLinks {
    shared: Arc<ClientShared>,
    id: ServiceId,
    /// Empty until the service was asked for, and again after a time without a request.
    known: ArcSwapOption<KnownService>,
}

impl ServiceLinks {
    /// The same as the driver's `compute_cached` for this service.
    #[must_use]
    pub fn compute_cached(&self, uid: &str) -> Option<PodIndex> {
        if let Some(known) = &*self.known.load()
            && !known.watched.is_retired()
        {
            return Some(self.shared.answer(known, uid)?.pod);
        }
        let table = self.shared.table(self.id.namespace.as_str())?;
        let known = table.get(self.id.service.as_str())?;
        let entry = self.shared.answer(&known, uid);
        self.known.store(Some(known));
        Some(entry?.pod)
    }
}

impl ClientShared {
    /// The services of this namespace, if it is one that can be reached.
    pub(super) fn table(&self, namespace: &str) -> Option<&ServiceTable> {
        Some(&self.places.find(namespace)?.known)
    }

    fn route(&self, known: &KnownService, uid: &str) -> Option<Route> {
        let entry = self.answer(known, uid)?;
        let view = known.watched.unused()?;
        let state = view.state(entry.pod);
        Some(self.describe(&known.id, Routed::cached(&entry), state))
    }

    // Left to the compiler, it is a call of its own: a cached compute took 7 ns more.
    #[inline(always)]
    fn answer(&self, known: &KnownService, uid: &str) -> Option<Entry> {
        if self.closed.load(Ordering::Relaxed) {
            return None;
        }
        let now = self.clock.now();
        let view = known.watched.current(now)?;
        let entry = self.cache.get(known.scope.key(uid), now)?;
        let keeps = view.as_ref()?.keeps(entry.pod, entry.incarnation, now);
        keeps.then(|| {
            count(&self.stats.cache_hits);
            entry
        })
    }
}
