//! The route info driver: what there is to route to.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::Rng;

use super::peer::PeerPods;
use super::states::{StateCache, Watched};
use super::view::View;
use crate::cache::TagCache;
use crate::clock::{Clock, Tick};
use crate::config::RouteInfoConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Namespace, PodIndex, ServiceId, ServiceName, Tag};
use crate::route::pick::Strategy;
use crate::route::snapshot::Pod;
use crate::route::state::{PodRecord, PodState, Readiness, Standing};
use crate::rpc::LinkOperations;
use crate::store::Store;
use crate::telemetry::Metrics;

/// What is known of the pods of each service. Cheap to clone; the clones are one driver.
#[derive(Debug, Clone)]
pub struct InfoDriver {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    executor: Arc<dyn Store>,
    clock: Clock,
    namespace: Namespace,
    states: Arc<StateCache>,
    tags: TagCache,
    /// The other namespaces, as their peers tell.
    peers: HashMap<Namespace, Peer>,
    closed: AtomicBool,
}

/// The way to another namespace, and what is known of it.
#[derive(Debug)]
struct Peer {
    operations: Arc<dyn LinkOperations>,
    states: Arc<StateCache>,
    tags: TagCache,
}

/// Pods' states by index.
pub type States = BTreeMap<PodIndex, Arc<PodState>>;

impl InfoDriver {
    /// A driver for services of `namespace`. No I/O, no task: the first call starts what it needs.
    #[must_use]
    pub fn new(
        executor: Arc<dyn Store>,
        clock: Clock,
        namespace: Namespace,
        config: RouteInfoConfig,
    ) -> Self {
        Self::with_peers(executor, clock, namespace, config, HashMap::new())
    }

    /// The same, which asks `peers` for what is in other namespaces.
    #[must_use]
    pub fn with_peers(
        executor: Arc<dyn Store>,
        clock: Clock,
        namespace: Namespace,
        config: RouteInfoConfig,
        peers: HashMap<Namespace, Arc<dyn LinkOperations>>,
    ) -> Self {
        let peers = peers.into_iter().map(|(namespace, operations)| {
            let pods = HashMap::from([(namespace.clone(), Arc::clone(&operations))]);
            let pods = Arc::new(PeerPods(pods));
            let peer = Peer {
                operations,
                states: StateCache::reading(pods, clock.clone(), config.clone()),
                tags: TagCache::new(config.tag_ttl, config.refresh),
            };
            (namespace, peer)
        });
        let peers = peers.collect();
        let tags = TagCache::new(config.tag_ttl, config.refresh);
        let states = StateCache::new(Arc::clone(&executor), clock.clone(), config);
        let shared = Shared {
            executor,
            clock,
            namespace,
            states,
            tags,
            peers,
            closed: AtomicBool::new(false),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The state cache, for a client driver that shares it.
    #[must_use]
    pub fn states(&self) -> Arc<StateCache> {
        Arc::clone(&self.shared.states)
    }

    /// The state cache of a namespace.
    ///
    /// # Errors
    /// `NamespaceUnreachable` for a namespace without a peer.
    pub fn states_in(&self, namespace: &Namespace) -> Result<Arc<StateCache>> {
        let peer = self.peer(namespace)?;
        Ok(Arc::clone(
            peer.map_or(&self.shared.states, |peer| &peer.states),
        ))
    }

    /// What was counted so far, by name, for all namespaces together.
    #[must_use]
    pub fn stats(&self) -> BTreeMap<&'static str, u64> {
        let mut all: BTreeMap<_, _> = self.shared.states.stats().read().into_iter().collect();
        for peer in self.shared.peers.values() {
            for (name, number) in peer.states.stats().read() {
                *all.entry(name).or_default() += number;
            }
        }
        all
    }

    /// Reports to these metrics from now on, until the driver is dropped. What it has counted
    /// stays.
    pub fn report_to(&self, metrics: &Metrics) {
        self.shared.states.report_to(metrics);
        let peers = self.shared.peers.values();
        peers.for_each(|peer| peer.states.report_to(metrics));
    }

    /// The deadline of a call with this timeout.
    #[must_use]
    pub fn deadline(&self, timeout: Duration) -> Tick {
        self.shared.clock.deadline(timeout)
    }

    /// Every alive pod of a service; reads the service first if nobody has.
    ///
    /// # Errors
    /// What the store failed with; `Timeout`.
    pub async fn all_states(&self, service: &ServiceId, deadline: Tick) -> Result<States> {
        let view = self.view(service, deadline).await?;
        Ok(self.shared.those(&view, Standing::is_alive))
    }

    /// Every known pod with what is left of its lease; reads the service first if nobody has.
    ///
    /// # Errors
    /// What the store failed with; `Timeout`.
    pub async fn records(&self, service: &ServiceId, deadline: Tick) -> Result<Vec<PodRecord>> {
        let view = self.view(service, deadline).await?;
        let now = self.shared.clock.now();
        let record = |pod: &Pod| PodRecord {
            state: Arc::clone(&pod.state),
            lease_left: pod.lease_until.since(now),
        };
        Ok(view.snapshot.pods().iter().map(record).collect())
    }

    /// Every alive pod whose application is ready; reads the service first if nobody has.
    ///
    /// # Errors
    /// What the store failed with; `Timeout`.
    pub async fn ready_states(&self, service: &ServiceId, deadline: Tick) -> Result<States> {
        let mut states = self.all_states(service, deadline).await?;
        states.retain(|_, state| state.state == Readiness::Ready);
        Ok(states)
    }

    /// The pod that a new user should get; reads the service first if nobody has. The choice
    /// counts as a user sent there.
    ///
    /// # Errors
    /// What the store failed with; `Timeout`.
    pub async fn best_pod(&self, service: &ServiceId, deadline: Tick) -> Result<Option<PodIndex>> {
        let watched = self.watched(service)?;
        let view = watched.view(&self.shared.clock, deadline).await?;
        // The strategies that need a user do not apply here.
        let uid = rand::rng().random::<u64>().to_string();
        Ok(watched.choose(&view, Strategy::P2c, &uid, self.shared.clock.now()))
    }

    /// The alive pods, as far as is known; empty if the service was never read. Never waits.
    /// Must be called on the runtime.
    ///
    /// # Errors
    /// `Closed`, or `NamespaceUnreachable`.
    pub fn alive_pods(&self, service: &ServiceId) -> Result<States> {
        self.known(service, |view| self.shared.those(view, Standing::is_alive))
    }

    /// The pods that take new users, as far as is known. Never waits. Must be called on the
    /// runtime.
    ///
    /// # Errors
    /// `Closed`, or `NamespaceUnreachable`.
    pub fn routable_pods(&self, service: &ServiceId) -> Result<States> {
        self.known(service, |view| {
            let pods = view.candidates(self.shared.clock.now());
            pods.into_iter()
                .map(|pod| (pod.state.pod_id, pod.state))
                .collect()
        })
    }

    /// Whether a pod takes new users, as far as is known. Never waits. Must be called on the
    /// runtime.
    ///
    /// # Errors
    /// `Closed`, or `NamespaceUnreachable`.
    pub fn is_pod_routable(&self, service: &ServiceId, pod: PodIndex) -> Result<bool> {
        Ok(self.routable_pods(service)?.contains_key(&pod))
    }

    /// Whether a pod may serve the users linked to it, as far as is known. Never waits. Must be
    /// called on the runtime.
    ///
    /// # Errors
    /// `Closed`, or `NamespaceUnreachable`.
    pub fn is_pod_available(&self, service: &ServiceId, pod: PodIndex) -> Result<bool> {
        self.known(service, |view| {
            view.standing(pod, self.shared.clock.now()).is_available()
        })
    }

    /// How old what is known of the service is; `None` if it was never read. Must be called on
    /// the runtime.
    ///
    /// # Errors
    /// `Closed`, or `NamespaceUnreachable`.
    pub fn age(&self, service: &ServiceId) -> Result<Option<Duration>> {
        Ok(self.watched(service)?.age(self.shared.clock.now()))
    }

    /// Whether the service as a whole is ready, as its lowest-numbered pod says. A workload that
    /// nobody keeps up any more is not. In another namespace: whether a pod takes new users.
    ///
    /// # Errors
    /// What the store failed with; `Timeout`.
    pub async fn is_workload_ready(&self, service: &ServiceId, deadline: Tick) -> Result<bool> {
        if self.peer(&service.namespace)?.is_some() {
            let view = self.view(service, deadline).await?;
            return Ok(!view.candidates(self.shared.clock.now()).is_empty());
        }
        let workload = self.shared.executor.workload(service, deadline).await?;
        Ok(workload.is_some_and(|workload| workload.state == Readiness::Ready))
    }

    /// The service that a tag stands for; from the cache if it is there.
    ///
    /// # Errors
    /// What the store failed with; `Timeout`.
    pub async fn service_by_tag(
        &self,
        namespace: &Namespace,
        tag: &Tag,
        deadline: Tick,
    ) -> Result<Option<ServiceName>> {
        let (shared, peer) = (&self.shared, self.peer(namespace)?);
        let tags = peer.map_or(&shared.tags, |peer| &peer.tags);
        let asked = shared.clock.now();
        if let Some(known) = tags.get(tag, asked) {
            return Ok(known);
        }
        let found = match peer {
            Some(peer) => {
                let found = peer.operations.service_by_tag(namespace, tag, deadline);
                found.await?
            }
            None => shared.executor.tag(namespace, tag, deadline).await?,
        };
        tags.insert(tag, found.clone(), asked);
        Ok(found)
    }

    /// Makes a tag stand for a service, for everybody. Says whether it does now.
    ///
    /// # Errors
    /// What the store failed with; `Timeout`; `NamespaceUnreachable` for another namespace, whose
    /// tags can only be read.
    pub async fn set_tag(
        &self,
        namespace: &Namespace,
        tag: &Tag,
        service: &ServiceName,
        deadline: Tick,
    ) -> Result<bool> {
        if self.peer(namespace)?.is_some() {
            let text = format!("the tags of {namespace} can only be read from here");
            let error = Error::new(ErrorKind::NamespaceUnreachable, text);
            return Err(error.with("namespace", namespace));
        }
        let shared = &self.shared;
        let set = shared
            .executor
            .set_tag(namespace, tag, service, deadline)
            .await;
        // Whatever happened, what was known of the tag before is worth nothing.
        shared.tags.forget(tag);
        set
    }

    /// Reads a service from now on though nobody asks, until `unwatch`. Must be called on the
    /// runtime.
    ///
    /// # Errors
    /// `Closed`, or `NamespaceUnreachable`.
    pub fn watch(&self, service: &ServiceId) -> Result<Arc<Watched>> {
        let watched = self.watched(service)?;
        watched.pin();
        Ok(watched)
    }

    /// Ends the driver's tasks. Later calls fail with `Closed`. A second close does nothing.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.states.close();
        let peers = self.shared.peers.values();
        peers.for_each(|peer| peer.states.close());
    }

    /// The namespace that a caller means: none and the empty one are the driver's own.
    ///
    /// # Errors
    /// `InvalidParameter`, or `NamespaceUnreachable` for a namespace without a peer.
    pub fn resolve(&self, given: Option<&str>) -> Result<Namespace> {
        super::resolve(&self.shared.namespace, given, &self.shared.peers)
    }

    /// Whom to ask about a namespace; `None`: this driver's own store.
    fn peer(&self, namespace: &Namespace) -> Result<Option<&Peer>> {
        if self.shared.closed.load(Ordering::SeqCst) {
            return Err(Error::new(
                ErrorKind::Closed,
                "the route info driver was closed",
            ));
        }
        super::peer_of(&self.shared.namespace, namespace, &self.shared.peers)
    }

    fn watched(&self, service: &ServiceId) -> Result<Arc<Watched>> {
        Ok(self.states_in(&service.namespace)?.service(service))
    }

    async fn view(&self, service: &ServiceId, deadline: Tick) -> Result<Arc<View>> {
        let watched = self.watched(service)?;
        watched.view(&self.shared.clock, deadline).await
    }

    fn known<T: Default>(&self, service: &ServiceId, ask: impl FnOnce(&View) -> T) -> Result<T> {
        let watched = self.watched(service)?;
        let view = watched.current(self.shared.clock.now());
        let view = view.as_ref().and_then(|view| view.as_ref());
        Ok(view.map(|view| ask(view)).unwrap_or_default())
    }
}

impl Shared {
    fn those(&self, view: &View, wanted: fn(Standing) -> bool) -> States {
        let pods = view.snapshot.those(self.clock.now(), wanted);
        pods.map(|pod| (pod.state.pod_id, Arc::clone(&pod.state)))
            .collect()
    }
}
