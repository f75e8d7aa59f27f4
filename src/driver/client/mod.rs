//! The client driver: find or make the link user → pod.

mod cached;
mod caller;
mod chooser;
mod explain;
mod lookup;
mod misrouted;
mod operations;
mod place;
mod placer;
mod report;
mod route;
mod shared;
mod sweep;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use rand::Rng;

use super::foreign::{ForeignNamespaces, HeldStates};
use super::info::{InfoDriver, Subscription};
use super::states::ChangeListener;
use crate::cache::{Key, LinkCache, Refusals};
use crate::clock::{Clock, Tick};
use crate::config::ClientConfig;
use crate::error::Result;
use crate::id::{LinkId, Namespace, PodIndex, ServiceId, ServiceName, Uid};
use crate::namespace::{Home, Namespaces};
use crate::op::{BatchGet, Get, LinkSource, OperationName, Services};
use crate::route::link::{Life, StoredLink, valid_until};
use crate::route::snapshot::{Change, Pod};
use crate::store::Store;
use crate::telemetry::{ClientStats, count};

pub use cached::ServiceLinks;
use cached::{KnownService, ServiceTable};
pub use caller::{Caller, Inbox, Numbered, Routed};
use chooser::ChooserQueue;
pub use explain::Explanation;
pub use misrouted::Misrouted;
use placer::{ComputeRequest, Requests};
pub use route::Route;
use sweep::Sweeper;

/// The most users whose refusals are remembered. More at a time than can be settled means that
/// something else is wrong.
const REFUSALS_MAX: usize = 65_536;

/// A function of the program's own that chooses a pod for a new user.
#[async_trait]
pub trait PodChooser: Send + Sync + std::fmt::Debug + 'static {
    /// Chooses among `candidates`, which is never empty; the compute waits until `until`. `None`, a pod that is not among them,
    /// and an error all mean: choose by `p2c`. Errors are logged and counted, never fatal. A driver
    /// expects one call to begin when the one before it has ended.
    async fn choose(
        &self,
        service: &ServiceId,
        uid: &Uid,
        candidates: Vec<Pod>,
        until: Tick,
    ) -> Result<Option<PodIndex>>;
}

/// Is called when a pod is lost.
pub trait LostPodHook: Send + Sync + std::fmt::Debug + 'static {
    /// The pod is gone, and so many users were remembered with it. Must not wait.
    fn lost(&self, service: &ServiceId, pod: PodIndex, users_cached: u64);
}

/// Looks for lost pods among all changes.
#[derive(Debug)]
struct LostPods {
    client: Weak<ClientShared>,
    hook: Arc<dyn LostPodHook>,
}

impl ChangeListener for LostPods {
    fn on_change(&self, service: &ServiceId, changes: &[Change]) {
        let Some(client) = self.client.upgrade() else {
            return;
        };
        let lost = changes.iter().filter(|change| change.now.is_none());
        let lost: Vec<PodIndex> = lost.map(|change| change.pod).collect();
        let number = client
            .places
            .here()
            .known
            .get(service.service.as_str())
            .map(|known| known.number);
        let (hook, service) = (Arc::clone(&self.hook), service.clone());
        if lost.is_empty() || client.places.own() != &service.namespace {
            return;
        }
        // Counting reads the whole cache: not on a thread that does I/O. It ends by itself.
        tokio::task::spawn_blocking(move || {
            for pod in lost {
                let now = client.clock.now();
                let users = number.map_or(0, |number| client.cache.count_on(number, pod, now));
                hook.lost(&service, pod, users);
            }
        });
    }
}

/// Finds or makes links. Cheap to clone; the clones are one driver.
#[derive(Debug, Clone)]
pub struct ClientDriver {
    shared: Arc<ClientShared>,
}

#[derive(Debug)]
struct ClientShared {
    clock: Clock,
    config: ClientConfig,
    chooser: Option<ChooserQueue>,
    cache: LinkCache,
    /// The users whose pod said "not mine".
    refusals: Refusals,
    /// The task that drops what has ended there: it ends with the driver.
    sweeper: Sweeper,
    /// Computes that the cache could not answer, on their way to the placer.
    requests: Requests,
    /// The namespaces that the driver reaches.
    places: Namespaces<ClientPlace>,
    /// The services that have a number; the next one gets the next.
    numbers: AtomicU32,
    stats: Arc<ClientStats>,
    closed: AtomicBool,
}

/// What the driver knows of one namespace.
#[derive(Debug)]
struct ClientPlace {
    home: Home,
    pods: HeldStates,
    /// The services that were asked for, ready for the hot path.
    known: ServiceTable,
}

impl ClientPlace {
    fn new(home: Home, pods: HeldStates) -> Self {
        Self {
            home,
            pods,
            known: ServiceTable::default(),
        }
    }
}

/// A call's user, checked, with its place in the cache.
#[derive(Debug, Clone)]
struct Target {
    link: LinkId,
    key: Key,
    known: Arc<KnownService>,
    /// Where to ask.
    home: Home,
}

impl ClientDriver {
    /// A driver for links of `namespace` that sees the pods as `info` does, and asks `peers` for
    /// those of other namespaces. No I/O, no task: the first call starts what it needs.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        clock: Clock,
        namespace: Namespace,
        config: ClientConfig,
        info: &InfoDriver,
        chooser: Option<Arc<dyn PodChooser>>,
        peers: &ForeignNamespaces,
    ) -> Self {
        let seed = rand::rng().random();
        let states = info.states();
        let foreign = peers.iter().map(|(namespace, foreign)| {
            let pods = foreign.hold(states.config());
            let place = ClientPlace::new(foreign.home().clone(), pods);
            (namespace.clone(), place)
        });
        let foreign = foreign.collect();
        let here = ClientPlace::new(Home::Own(store), HeldStates::own(states));
        let shared = ClientShared {
            cache: LinkCache::new(config.cache_capacity, config.cache_ttl, seed),
            refusals: Refusals::new(REFUSALS_MAX, config.link_ttl),
            sweeper: Sweeper::default(),
            clock,
            config,
            chooser: chooser.map(ChooserQueue::new),
            requests: Requests::default(),
            places: Namespaces::new(namespace, here, foreign),
            numbers: AtomicU32::new(0),
            stats: Arc::default(),
            closed: AtomicBool::new(false),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The driver's namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        self.shared.places.own()
    }

    /// What was counted so far, by name.
    #[must_use]
    pub fn stats(&self) -> BTreeMap<&'static str, u64> {
        let counted = self.shared.stats.read().into_iter();
        let states = self.shared.places.here().pods.states();
        let mut all: BTreeMap<_, _> = counted.chain(states.stats().read()).collect();
        // A hit is counted once on the hot path, not twice: every compute is a hit or a miss.
        let counted = |name| all.get(name).copied().unwrap_or_default();
        all.insert("computes", counted("cache_hits") + counted("cache_misses"));
        all.insert("cache_entries", self.shared.cache.len());
        all.insert("refusals", self.shared.refusals.len());
        all
    }

    /// The deadline of a call with this timeout, or of one that names none.
    #[must_use]
    pub fn deadline(&self, timeout: Option<Duration>) -> Tick {
        self.shared
            .clock
            .deadline(timeout.unwrap_or(self.shared.config.timeout))
    }

    async fn compute(&self, link: LinkId, deadline: Tick) -> Result<Routed> {
        let target = self.shared.target(link)?;
        let (caller, answer) = Caller::alone();
        placer::ask(&self.shared, ComputeRequest::new(target, deadline, caller));
        answer.await
    }

    /// `compute_linked_pod` for a caller that gets the answer by its inbox, right after a cache
    /// miss: the names are read as they are. Must be called on the runtime.
    ///
    /// # Errors
    /// What is wrong with the names. Every other error goes to the caller's inbox.
    pub fn compute_for(
        &self,
        (namespace, uid, service): (Option<&str>, &str, &str),
        deadline: Tick,
        caller: impl FnOnce() -> Caller,
    ) -> Result<()> {
        let target = match self.shared.target_at_once(namespace, uid, service)? {
            Some(target) => Ok(target),
            None => {
                let namespace = self.resolve(namespace)?;
                let uid = Uid::new(uid)?;
                let service = ServiceName::new(service)?;
                let service = ServiceId { namespace, service };
                self.shared.target(LinkId { service, uid })
            }
        };
        let caller = caller().timed(self.shared.clock.now());
        match target {
            Ok(target) => placer::ask(&self.shared, ComputeRequest::new(target, deadline, caller)),
            Err(error) => {
                let answer = Err(error.during(OperationName::ComputeLinkedPod));
                self.shared.note_answer(&caller, &answer);
                caller.settle(answer);
            }
        }
        Ok(())
    }

    /// The link from the store, or from the cache of a peer; the cache keeps it.
    async fn look_up(
        &self,
        link: LinkId,
        from: LinkSource,
        deadline: Tick,
    ) -> Result<Option<PodIndex>> {
        let target = self.shared.target(link)?;
        self.shared.note_stale(&target);
        self.shared.fetch(&target, from, deadline).await
    }

    /// The link from the store; the cache is neither asked nor changed.
    async fn look_up_stored(&self, link: LinkId, deadline: Tick) -> Result<Option<StoredLink>> {
        let home = self.shared.home(&link.service.namespace)?;
        let get = Get {
            link,
            from: LinkSource::Store,
        };
        home.ask(get, deadline).await
    }

    /// The link in the cache, if it is valid. Never waits. Must be called on the runtime.
    ///
    /// # Errors
    /// `Closed`.
    pub fn get_linked_in_cache(&self, link: LinkId) -> Result<Option<PodIndex>> {
        let target = self.shared.target(link)?;
        let valid_pod = self.shared.valid_pod(&target);
        if valid_pod.is_some() {
            count(&self.shared.stats.lookup_hits);
        }
        Ok(valid_pod)
    }

    /// Makes the cache forget the user; answers under way are not stored. Returns the
    /// pod that it held. Must be called on the runtime.
    ///
    /// # Errors
    /// `Closed`.
    pub fn cache_expired(&self, link: LinkId) -> Result<Option<PodIndex>> {
        let target = self.shared.target(link)?;
        count(&self.shared.stats.cache_invalidations);
        let dropped = self
            .shared
            .cache
            .invalidate(target.key, self.shared.clock.now());
        Ok(dropped.map(|entry| entry.pod))
    }

    /// Sets the user's pod in the cache to `pod`, for `cache_ttl`. Returns the pod that it held
    /// before. Must be called on the runtime.
    ///
    /// # Errors
    /// `Closed`.
    pub fn set_cache(&self, link: LinkId, pod: PodIndex) -> Result<Option<PodIndex>> {
        let target = self.shared.target(link)?;
        let now = self.shared.clock.now();
        let Some(valid_until) = valid_until(now, Life::Persistent, self.shared.config.cache_ttl)
        else {
            return Ok(None);
        };
        let entry = target.entry(pod, None, valid_until, now);
        count(&self.shared.stats.cache_invalidations);
        let previous = self.shared.cache.replace(target.key, entry, now);
        Ok(previous.map(|entry| entry.pod))
    }

    async fn look_up_services(
        &self,
        namespace: &Namespace,
        uid: &Uid,
        deadline: Tick,
    ) -> Result<BTreeMap<ServiceName, PodIndex>> {
        let services = Services {
            namespace: namespace.clone(),
            uid: uid.clone(),
        };
        let read = self.shared.home(namespace)?.ask(services, deadline).await?;
        Ok(self.shared.readable(namespace, read))
    }

    async fn look_up_many(
        &self,
        service: &ServiceId,
        uids: Arc<[Uid]>,
        deadline: Tick,
    ) -> Result<Vec<Option<PodIndex>>> {
        let batch = BatchGet {
            service: service.clone(),
            uids,
        };
        let home = self.shared.home(&service.namespace)?;
        let read = home.ask(batch, deadline).await?;
        Ok(self.shared.readable(&service.namespace, read))
    }

    async fn link_if_absent(
        &self,
        link: LinkId,
        pod: PodIndex,
        deadline: Tick,
    ) -> Result<PodIndex> {
        let shared = &self.shared;
        let target = shared.target(link)?;
        let (ticket, asked) = (shared.cache.ticket(target.key), shared.clock.now());
        let offer = shared.offer(&target, pod);
        let placed = target.home.ask(offer, deadline).await?;
        if target.home.is_foreign() {
            shared
                .remember_watched(&target, placed.link, asked, ticket, deadline)
                .await;
        } else {
            shared.remember(&target, placed.link, asked, ticket);
        }
        Ok(placed.link.pod)
    }

    /// Calls `hook` for every pod that is lost from now on, dead or withdrawn, until the
    /// subscription ends.
    #[must_use]
    pub fn on_pod_lost(&self, hook: Arc<dyn LostPodHook>) -> Arc<Subscription> {
        let client = Arc::downgrade(&self.shared);
        let listener: Arc<dyn ChangeListener> = Arc::new(LostPods { client, hook });
        let states = Arc::clone(self.shared.places.here().pods.states());
        states.subscribe(Arc::clone(&listener));
        Arc::new(Subscription::new(states, listener, None))
    }

    /// Ends the driver: later calls fail with `Closed`. A second close does nothing. What it
    /// knew of the pods belongs to the route info driver.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.places.here().known.clear();
        for place in self.shared.places.foreign() {
            place.known.clear();
            place.pods.release();
        }
        self.shared.sweeper.end();
    }

    /// Whether the driver was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::SeqCst)
    }

    /// The cached link of the user, whose life is how much longer it is valid; `None`: there is
    /// none. Must be called on the runtime.
    #[must_use]
    pub fn cached_link(&self, link: &LinkId) -> Option<StoredLink> {
        let target = self.shared.target(link.clone()).ok()?;
        let now = self.shared.clock.now();
        let entry = self.shared.cache.get(target.key, now)?;
        Some(StoredLink {
            pod: entry.pod,
            life: Life::Temporary(entry.valid_until.since(now)),
            holder: Routed::cached(&entry).holder,
        })
    }

    /// The namespace that a caller means: none and the empty one are the driver's own.
    ///
    /// # Errors
    /// `InvalidParameter`, or `NamespaceUnreachable` for a namespace without a peer.
    pub fn resolve(&self, given: Option<&str>) -> Result<Namespace> {
        self.shared.places.resolve(given)
    }
}
