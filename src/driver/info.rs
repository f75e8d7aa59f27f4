//! The route info driver: the pods of each service, tags and workloads.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng;

use super::foreign::{ForeignNamespaces, HeldStates};
use super::states::{ChangeListener, StateCache, Watched};
use super::view::View;
use crate::cache::TagCache;
use crate::clock::{Clock, Tick};
use crate::config::RouteInfoConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Namespace, PodIndex, ServiceId, ServiceName, Tag};
use crate::namespace::{Home, Namespaces};
use crate::op::{GetTag, GetWorkload, SetTag};
use crate::route::pick::Strategy;
use crate::route::snapshot::Pod;
use crate::route::state::{PodRecord, PodState, Readiness, Renewal, Standing};
use crate::store::Store;
use crate::telemetry::Metrics;

/// What is known of the pods of each service. Cheap to clone; the clones are one driver.
#[derive(Debug, Clone)]
pub struct InfoDriver {
    shared: Arc<InfoShared>,
}

#[derive(Debug)]
struct InfoShared {
    clock: Clock,
    places: Namespaces<InfoPlace>,
    /// The listeners that were subscribed: ended with the driver. Never held across an await.
    subscriptions: Mutex<Vec<Arc<Subscription>>>,
    closed: AtomicBool,
}

/// What the driver knows of one namespace.
#[derive(Debug)]
struct InfoPlace {
    home: Home,
    pods: HeldStates,
    tags: TagCache,
}

/// Pods' states by index.
pub type States = BTreeMap<PodIndex, Arc<PodState>>;

impl InfoDriver {
    /// A driver for services of `namespace`. No I/O, no task: the first call starts what it needs.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        clock: Clock,
        namespace: Namespace,
        config: RouteInfoConfig,
    ) -> Self {
        Self::with_peers(store, clock, namespace, config, &HashMap::new())
    }

    /// The same, which asks `peers` for what is in other namespaces.
    #[must_use]
    pub fn with_peers(
        store: Arc<dyn Store>,
        clock: Clock,
        namespace: Namespace,
        config: RouteInfoConfig,
        peers: &ForeignNamespaces,
    ) -> Self {
        let tags = || TagCache::new(config.tag_ttl, config.refresh);
        let foreign = peers.iter().map(|(namespace, foreign)| {
            let place = InfoPlace {
                home: foreign.home().clone(),
                pods: foreign.hold(&config),
                tags: tags(),
            };
            (namespace.clone(), place)
        });
        let foreign = foreign.collect();
        let home = Home::Own(store);
        let states = StateCache::new(home.clone(), clock.clone(), config.clone());
        let here = InfoPlace {
            home,
            pods: HeldStates::own(states),
            tags: tags(),
        };
        let shared = InfoShared {
            clock,
            places: Namespaces::new(namespace, here, foreign),
            subscriptions: Mutex::default(),
            closed: AtomicBool::new(false),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The state cache of the driver's own namespace, for a client driver that shares it.
    #[must_use]
    pub fn states(&self) -> Arc<StateCache> {
        Arc::clone(self.shared.places.here().pods.states())
    }

    /// Calls `listener` for every change of the pods of a namespace, or of one of its services,
    /// which is read from now on though no call asks for it. Ends with the subscription, and with
    /// the driver. Must be called on the runtime.
    ///
    /// # Errors
    /// `Closed`, or `NamespaceUnreachable` for a namespace without a peer.
    pub fn subscribe(
        &self,
        namespace: &Namespace,
        service: Option<&ServiceId>,
        listener: Arc<dyn ChangeListener>,
    ) -> Result<Arc<Subscription>> {
        let states = Arc::clone(self.place(namespace)?.pods.states());
        // Before the service is read for the first time, so that no join is missed.
        states.subscribe(Arc::clone(&listener));
        let watched = service.map(|service| self.watch(service)).transpose()?;
        let subscription = Arc::new(Subscription::new(states, listener, watched));
        let mut subscriptions = self.shared.subscriptions();
        subscriptions.retain(|other| !other.has_ended());
        subscriptions.push(Arc::clone(&subscription));
        Ok(subscription)
    }

    /// What was counted so far, by name, for all namespaces together.
    #[must_use]
    pub fn stats(&self) -> BTreeMap<&'static str, u64> {
        let here = self.shared.places.here().pods.states();
        let mut all: BTreeMap<_, _> = here.stats().read().into_iter().collect();
        for place in self.shared.places.foreign() {
            for (name, number) in place.pods.states().stats().read() {
                *all.entry(name).or_default() += number;
            }
        }
        all
    }

    /// Reports to these metrics from now on, until the driver is dropped. What it has counted
    /// stays.
    pub fn report_to(&self, metrics: &Metrics) {
        let places = &self.shared.places;
        places.here().pods.states().report_to(metrics);
        let foreign = places.foreign();
        foreign.for_each(|place| place.pods.states().report_to(metrics));
    }

    /// The deadline of a call with this timeout.
    #[must_use]
    pub fn deadline(&self, timeout: Duration) -> Tick {
        self.shared.clock.deadline(timeout)
    }

    /// Every alive pod of a service; reads the service first if it was not read.
    ///
    /// # Errors
    /// What the store failed with; `Timeout`.
    pub async fn all_states(&self, service: &ServiceId, deadline: Tick) -> Result<States> {
        let view = self.view(service, deadline).await?;
        Ok(self.shared.pods_with(&view, Standing::is_alive))
    }

    /// Every known pod with what is left of its lease; reads the service first if it was not read.
    ///
    /// # Errors
    /// What the store failed with; `Timeout`.
    pub async fn records(&self, service: &ServiceId, deadline: Tick) -> Result<Vec<PodRecord>> {
        let view = self.view(service, deadline).await?;
        let now = self.shared.clock.now();
        let age = now.since(view.snapshot.asked());
        let record = |pod: &Pod| {
            let lease_left = pod.lease_until.since(now);
            let silence = pod.silence.map(|silence| silence + age);
            PodRecord {
                state: Arc::clone(&pod.state),
                lease_left,
                renewal: Renewal::of_silence(silence, lease_left),
            }
        };
        Ok(view.snapshot.pods().iter().map(record).collect())
    }

    /// Every alive pod whose application is ready; reads the service first if it was not read.
    ///
    /// # Errors
    /// What the store failed with; `Timeout`.
    pub async fn ready_states(&self, service: &ServiceId, deadline: Tick) -> Result<States> {
        let mut states = self.all_states(service, deadline).await?;
        states.retain(|_, state| state.state == Readiness::Ready);
        Ok(states)
    }

    /// The state of one alive pod; reads the service first if it was not read.
    ///
    /// # Errors
    /// `ServiceNotFound` if no pod of the service is known, `PodNotFound` if this one is not alive;
    /// what the store failed with; `Timeout`.
    pub async fn pod_state(
        &self,
        service: &ServiceId,
        pod: PodIndex,
        deadline: Tick,
    ) -> Result<Arc<PodState>> {
        let watched = self.watched(service)?;
        let view = watched.view(&self.shared.clock, deadline).await?;
        let mut alive = self.shared.pods_with(&view, Standing::is_alive);
        if let Some(state) = alive.remove(&pod) {
            return Ok(state);
        }
        // A store that cannot be read shows no lease either: that is not the pod's death.
        if let Some(error) = watched.failure() {
            return Err(error);
        }
        if view.snapshot.pods().is_empty() {
            let text = format!("no pod of {service} is known");
            return Err(Error::new(ErrorKind::ServiceNotFound, text).with("service", service));
        }
        let text = format!("pod {pod} of {service} is not alive; {} are", alive.len());
        let missing = Error::new(ErrorKind::PodNotFound, text);
        Err(missing.with("service", service).with("pod", pod))
    }

    /// The pod that a new user should get; reads the service first if it was not read. The choice
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
        self.known(service, |view| {
            self.shared.pods_with(view, Standing::is_alive)
        })
    }

    /// One pod, if it is alive as far as is known. Never waits. Must be called on the runtime.
    ///
    /// # Errors
    /// `Closed`, or `NamespaceUnreachable`.
    pub fn alive_pod(&self, service: &ServiceId, pod: PodIndex) -> Result<Option<Arc<PodState>>> {
        self.known(service, |view| {
            let judged = view.snapshot.judged(pod, self.shared.clock.now());
            let alive = judged.filter(|(_, standing)| standing.is_alive());
            alive.map(|(pod, _)| Arc::clone(&pod.state))
        })
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

    /// Whether the service as a whole is ready, as its lowest-numbered pod publishes. An expired
    /// workload is not. In another namespace it is computed from the pods, as the leader here does.
    ///
    /// # Errors
    /// What the store failed with; `Timeout`.
    pub async fn is_workload_ready(&self, service: &ServiceId, deadline: Tick) -> Result<bool> {
        let get = GetWorkload {
            service: service.clone(),
        };
        let home = &self.place(&service.namespace)?.home;
        let workload = home.ask(get, deadline).await?;
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
        let place = self.place(namespace)?;
        let asked = self.shared.clock.now();
        if let Some(known) = place.tags.get(tag, asked) {
            return Ok(known);
        }
        let get = GetTag {
            namespace: namespace.clone(),
            tag: tag.clone(),
        };
        let found = place.home.ask(get, deadline).await?;
        place.tags.insert(tag, found.clone(), asked);
        Ok(found)
    }

    /// Makes a tag stand for a service, for all clients. Returns whether it does now.
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
        let place = self.place(namespace)?;
        let set = SetTag {
            namespace: namespace.clone(),
            tag: tag.clone(),
            service: service.clone(),
        };
        let set = place.home.ask(set, deadline).await;
        // Whether it failed or not, the cached service of the tag is not valid any more.
        place.tags.forget(tag);
        set
    }

    /// Reads a service from now on though no call asks for it, until `unpin`. Must be called on the
    /// runtime.
    ///
    /// # Errors
    /// `Closed`, or `NamespaceUnreachable`.
    pub fn watch(&self, service: &ServiceId) -> Result<Arc<Watched>> {
        let watched = self.watched(service)?;
        watched.pin();
        Ok(watched)
    }

    /// Ends the driver's tasks and hooks. Later calls fail with `Closed`. A second close does
    /// nothing.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        let subscriptions = std::mem::take(&mut *self.shared.subscriptions());
        subscriptions.iter().for_each(|each| each.end());
        self.shared.places.here().pods.states().close();
        self.shared
            .places
            .foreign()
            .for_each(|place| place.pods.release());
    }

    /// Whether the driver was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::SeqCst)
    }

    /// The namespace that a caller means: none and the empty one are the driver's own.
    ///
    /// # Errors
    /// `InvalidParameter`, or `NamespaceUnreachable` for a namespace without a peer.
    pub fn resolve(&self, given: Option<&str>) -> Result<Namespace> {
        self.shared.places.resolve(given)
    }

    /// What the driver knows of a namespace.
    fn place(&self, namespace: &Namespace) -> Result<&InfoPlace> {
        if self.shared.closed.load(Ordering::SeqCst) {
            return Err(Error::new(
                ErrorKind::Closed,
                "the route info driver was closed",
            ));
        }
        self.shared.places.get(namespace)
    }

    fn watched(&self, service: &ServiceId) -> Result<Arc<Watched>> {
        Ok(self
            .place(&service.namespace)?
            .pods
            .states()
            .service(service))
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

impl InfoShared {
    fn subscriptions(&self) -> MutexGuard<'_, Vec<Arc<Subscription>>> {
        self.subscriptions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn pods_with(&self, view: &View, wanted: fn(Standing) -> bool) -> States {
        let pods = view.snapshot.those(self.clock.now(), wanted);
        pods.map(|pod| (pod.state.pod_id, Arc::clone(&pod.state)))
            .collect()
    }
}

/// A listener that is called for changes, until this is ended.
#[derive(Debug)]
pub struct Subscription {
    states: Arc<StateCache>,
    listener: Arc<dyn ChangeListener>,
    /// The service that is read for the listener's sake.
    watched: Option<Arc<Watched>>,
    ended: AtomicBool,
}

impl Subscription {
    /// A listener that these states know already.
    pub(super) fn new(
        states: Arc<StateCache>,
        listener: Arc<dyn ChangeListener>,
        watched: Option<Arc<Watched>>,
    ) -> Self {
        Self {
            states,
            listener,
            watched,
            ended: AtomicBool::new(false),
        }
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Calls the listener no more. A second time does nothing.
    pub fn end(&self) {
        if self.ended.swap(true, Ordering::SeqCst) {
            return;
        }
        self.states.unsubscribe(&self.listener);
        if let Some(watched) = &self.watched {
            watched.unpin();
        }
    }
}
