//! The hot path: cached links, and the services that it knows without asking anybody.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arc_swap::{ArcSwap, ArcSwapOption};

use super::{ClientDriver, Shared};
use crate::cache::Scope;
use crate::driver::states::Watched;
use crate::id::{PodIndex, ServiceId};
use crate::telemetry::count;

/// What the hot path needs to know about a service.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) id: ServiceId,
    /// This driver's own number for the service, in cache entries.
    pub(super) number: u32,
    pub(super) scope: Scope,
    pub(super) watched: Arc<Watched>,
}

/// The services of one namespace that were asked for, in the order of their names. A program has
/// a few, and comparing a name with those costs less than hashing it.
#[derive(Debug, Default)]
pub(super) struct Table(ArcSwap<Vec<Arc<Known>>>);

impl Table {
    /// What `look` sees in the service of this name.
    fn look<T>(&self, name: &str, look: impl FnOnce(&Arc<Known>) -> Option<T>) -> Option<T> {
        let known = self.0.load();
        let at = place(&known, name).ok()?;
        look(known.get(at)?)
    }

    /// The service of this name.
    pub(super) fn get(&self, name: &str) -> Option<Arc<Known>> {
        self.look(name, |known| Some(Arc::clone(known)))
    }

    /// Puts what `make` makes of the service that stood under this name in its place.
    pub(super) fn put(&self, name: &str, make: impl Fn(Option<&Known>) -> Known) {
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

fn place(table: &[Arc<Known>], name: &str) -> Result<usize, usize> {
    table.binary_search_by(|known| known.id.service.as_str().cmp(name))
}

impl ClientDriver {
    /// The hot path of `compute_linked_pod`: the cached link, if it is valid, its pod available,
    /// and the process that holds the pod's index the one that held it when the answer was given.
    /// Does no I/O and waits for nobody, but for who writes to the same part of the cache at this
    /// very moment.
    #[must_use]
    pub fn compute_cached(&self, namespace: &str, uid: &str, service: &str) -> Option<PodIndex> {
        let shared = &*self.shared;
        let table = shared.table(namespace)?;
        table.look(service, |known| shared.answer(known, uid))
    }

    /// The links of one service, for those who ask for them again and again.
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
    shared: Arc<Shared>,
    id: ServiceId,
    /// Empty until the service was asked for, and again after a time in which nobody did.
    known: ArcSwapOption<Known>,
}

impl ServiceLinks {
    /// The same as the driver's `compute_cached` for this service.
    #[must_use]
    pub fn compute_cached(&self, uid: &str) -> Option<PodIndex> {
        if let Some(known) = &*self.known.load()
            && !known.watched.is_retired()
        {
            return self.shared.answer(known, uid);
        }
        let table = self.shared.table(self.id.namespace.as_str())?;
        let known = table.get(self.id.service.as_str())?;
        let pod = self.shared.answer(&known, uid);
        self.known.store(Some(known));
        pod
    }
}

impl Shared {
    /// The services of this namespace, if it is one that can be reached.
    pub(super) fn table(&self, namespace: &str) -> Option<&Table> {
        Some(&self.places.find(namespace)?.known)
    }

    fn answer(&self, known: &Known, uid: &str) -> Option<PodIndex> {
        if self.closed.load(Ordering::Relaxed) {
            return None;
        }
        let now = self.clock.now();
        let view = known.watched.current(now)?;
        let entry = self.cache.get(known.scope.key(uid), now)?;
        let serves = view.as_ref()?.serves(entry.pod, entry.incarnation, now);
        serves.then(|| {
            count(&self.stats.cache_hits);
            entry.pod
        })
    }
}
