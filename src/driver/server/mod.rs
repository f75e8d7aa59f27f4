//! The server driver: a pod's own side. It holds the lease, publishes the state, owns links.

mod claim;
mod clock_steps;
mod drain;
mod events;
mod flights;
mod lease;
mod links;
mod load;
mod owned;
mod permit;
mod report;
mod start;
mod validity;
mod watchdog;
mod workload;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use rand::Rng;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::foreign::ForeignNamespaces;
use crate::clock::{Clock, Tick};
use crate::config::{Drain, ServerConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Incarnation, Namespace, PodIndex, ServiceId, Uid};
use crate::namespace::{Home, Namespaces};
use crate::route::state::RoutingState;
use crate::store::Store;
use crate::telemetry::ServerStats;

pub use drain::DrainReport;
pub use events::{LeaseEvent, LeaseReason, LossReason};
pub use owned::Ownership;

use events::Event;
use flights::Flights;
use owned::OwnedUsers;
use validity::Validity;

/// Who this pod is.
#[derive(Debug, Clone)]
pub struct ServerInfo {
    /// The service in its namespace.
    pub service: ServiceId,
    /// The pod.
    pub pod: PodIndex,
    /// The Kubernetes pod UID, or empty.
    pub pod_uid: String,
    /// Address, version, labels: published with the state.
    pub metadata: BTreeMap<String, String>,
}

/// The program's hooks of a pod. Failures are logged and counted, never fatal, and no hook delays a
/// renewal. What a program does not have does nothing.
#[async_trait]
pub trait PodHooks: Send + Sync + std::fmt::Debug + 'static {
    /// Whether `load` should be called.
    fn reports_load(&self) -> bool {
        false
    }

    /// The load that the application reports now.
    async fn load(&self) -> Result<i64> {
        Ok(0)
    }

    /// How often the program's event loop or thread has answered so far; asks it to answer again.
    /// `None`: there is none to ask. Must not wait.
    fn answers(&self) -> Option<u64> {
        None
    }

    /// Whether the program has a hook that saves users when the pod stops.
    fn saves(&self) -> bool {
        false
    }

    /// The pod is stopping and owns this user: time to save. Returns whether there was a hook to call.
    /// Dropping the future cancels it.
    async fn drain(&self, _user: &Ownership, _until: Tick) -> Result<bool> {
        Ok(false)
    }

    /// Something happened to the lease.
    async fn lease(&self, _what: LeaseEvent, _why: LeaseReason, _until: Tick) -> Result<()> {
        Ok(())
    }

    /// This process owns the user no more.
    async fn ownership_lost(
        &self,
        _user: &Ownership,
        _why: LossReason,
        _until: Tick,
    ) -> Result<()> {
        Ok(())
    }

    /// This process owns the user by a new token: the store had forgotten the old one.
    async fn ownership_renewed(
        &self,
        _new: &Ownership,
        _old: &Ownership,
        _until: Tick,
    ) -> Result<()> {
        Ok(())
    }
}

/// For programs without hooks.
#[derive(Debug)]
pub struct NoHooks;

impl PodHooks for NoHooks {}

/// A pod's lease, state and links. Cheap to clone; the clones are one driver.
#[derive(Debug, Clone)]
pub struct ServerDriver {
    shared: Arc<ServerShared>,
}

#[derive(Debug)]
struct ServerShared {
    /// This driver, for the tasks that it starts.
    me: Weak<ServerShared>,
    store: Arc<dyn Store>,
    clock: Clock,
    info: ServerInfo,
    config: ServerConfig,
    hooks: Arc<dyn PodHooks>,
    /// Where the operations on links are sent, by namespace.
    homes: Namespaces<Home>,
    /// The pod's state, and what it publishes. Never held across an await.
    state: Mutex<ServerState>,
    /// The users that this process owns.
    owned: OwnedUsers,
    /// One claim or release of a user at a time.
    flights: Flights,
    /// The events for the hooks, in order; the task that calls them takes the other end.
    events: mpsc::UnboundedSender<Event>,
    events_waiting: Mutex<Option<mpsc::UnboundedReceiver<Event>>>,
    /// How many events there were, and of how many the hooks have ended.
    events_told: AtomicU64,
    events_heard: watch::Sender<u64>,
    /// The users that were given away while the pod is being stopped: what else is not held any
    /// more was lost.
    given_away: Mutex<Option<HashSet<Uid>>>,
    /// Whether nothing that this process owns is in doubt.
    settled: watch::Sender<bool>,
    /// Drawn once per driver: it makes `begin` idempotent. A retry after a lost answer gets the
    /// same incarnation.
    nonce: String,
    /// Held while the pod begins, publishes or ends, so that an older state cannot overtake a newer
    /// one.
    publishing: tokio::sync::Mutex<()>,
    /// Until when the pod may act, as a [`Tick`]; 0 without a lease. Checked with one atomic load
    /// and one clock read.
    valid_until: AtomicU64,
    /// What the renewals have shown of the store's clock.
    clock_steps: clock_steps::ClockSteps,
    /// The last renewal failed.
    renewal_fails: AtomicBool,
    /// How the start under way ended: a second start waits for it.
    started: watch::Sender<Option<Result<()>>>,
    /// Whether `stop` was called: a start that waits for an earlier process waits no longer.
    stopping: watch::Sender<bool>,
    /// What the stop did, once it is done: a second stop waits for it.
    stopped: watch::Sender<Option<DrainReport>>,
    stats: Arc<ServerStats>,
}

#[derive(Debug)]
struct ServerState {
    phase: Phase,
    incarnation: Incarnation,
    /// The incarnation was declared dead, or its successor's answer was lost: the next renewal
    /// begins a new one.
    dead: bool,
    validity: Validity,
    /// What the program has set.
    routing: RoutingState,
    /// The program does not answer: a pod that is READY publishes DENY_NEW_CALL.
    stalled: bool,
    /// What the application reports.
    reported_load: i64,
    /// How busy the CPU was when the lease was last renewed, in percent.
    cpu_percent: f64,
    /// The start, renewal and load tasks; ended by `stop`, and when the driver is dropped.
    tasks: Vec<AbortHandle>,
}

impl ServerState {
    /// Keeps a task until `stop` ends it.
    fn own(&mut self, task: tokio::task::JoinHandle<()>) {
        self.tasks.retain(|task| !task.is_finished());
        self.tasks.push(task.abort_handle());
    }
}

/// Where a server driver is in its life. It moves downwards only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// `start` was not called, or failed.
    New,
    /// `start` is under way.
    Starting,
    /// The lease is held and renewed.
    Running,
    /// `stop` is under way; the lease is still renewed.
    Draining,
    /// Another process took the index.
    Superseded,
    /// `stop` has ended.
    Stopped,
}

impl Phase {
    /// Whether the lease is to be renewed.
    const fn renews(self) -> bool {
        matches!(self, Self::Running | Self::Draining)
    }

    /// Whether the pod may publish its state.
    const fn publishes(self) -> bool {
        matches!(self, Self::Starting) || self.renews()
    }

    fn refuses(self) -> Error {
        let (kind, why) = match self {
            Self::New => (ErrorKind::IllegalState, "it was not started"),
            Self::Starting => (ErrorKind::IllegalState, "its start is under way"),
            Self::Running => (ErrorKind::IllegalState, "it runs"),
            Self::Draining => (ErrorKind::IllegalState, "it is being stopped"),
            Self::Superseded => (
                ErrorKind::LeaseLost,
                "another process has taken its pod index",
            ),
            Self::Stopped => (
                ErrorKind::Closed,
                "it was stopped; a pod that comes back is a new driver",
            ),
        };
        Error::new(kind, format!("the server driver refuses: {why}"))
    }
}

impl ServerDriver {
    /// A driver for this pod. No I/O, no task: `start` does both.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        clock: Clock,
        info: ServerInfo,
        config: ServerConfig,
        hooks: Arc<dyn PodHooks>,
    ) -> Self {
        Self::with_peers(store, clock, info, config, hooks, &HashMap::new())
    }

    /// The same, whose operations on links of other namespaces go to `peers`.
    #[must_use]
    pub fn with_peers(
        store: Arc<dyn Store>,
        clock: Clock,
        info: ServerInfo,
        config: ServerConfig,
        hooks: Arc<dyn PodHooks>,
        peers: &ForeignNamespaces,
    ) -> Self {
        let foreign = peers.iter();
        let foreign = foreign.map(|(name, foreign)| (name.clone(), foreign.home().clone()));
        let own = info.service.namespace.clone();
        let home = Home::Own(Arc::clone(&store));
        let homes = Namespaces::new(own, home, foreign.collect());
        let state = ServerState {
            phase: Phase::New,
            incarnation: Incarnation::NONE,
            dead: false,
            validity: Validity::default(),
            routing: RoutingState::Ready,
            stalled: false,
            reported_load: 0,
            cpu_percent: 0.0,
            tasks: Vec::new(),
        };
        let mut random = [0_u64; 2];
        rand::rng().fill(&mut random);
        let (events, waiting) = mpsc::unbounded_channel();
        let shared = |me: &Weak<ServerShared>| ServerShared {
            me: me.clone(),
            nonce: format!("{:016x}{:016x}", random[0], random[1]),
            store,
            clock,
            info,
            config,
            hooks,
            homes,
            state: Mutex::new(state),
            owned: OwnedUsers::default(),
            flights: Flights::default(),
            events,
            events_waiting: Mutex::new(Some(waiting)),
            events_told: AtomicU64::new(0),
            events_heard: watch::Sender::new(0),
            given_away: Mutex::default(),
            settled: watch::Sender::new(true),
            publishing: tokio::sync::Mutex::new(()),
            valid_until: AtomicU64::new(0),
            clock_steps: clock_steps::ClockSteps::default(),
            renewal_fails: AtomicBool::new(false),
            started: watch::Sender::new(None),
            stopping: watch::Sender::new(false),
            stopped: watch::Sender::new(None),
            stats: Arc::default(),
        };
        Self {
            shared: Arc::new_cyclic(shared),
        }
    }

    /// Who this pod is.
    #[must_use]
    pub fn info(&self) -> &ServerInfo {
        &self.shared.info
    }

    /// How `stop` treats owned links if its caller names no rule.
    #[must_use]
    pub fn drain_rule(&self) -> Drain {
        self.shared.config.drain
    }

    /// What was counted so far, by name, and how many users the pod owns.
    #[must_use]
    pub fn stats(&self) -> BTreeMap<&'static str, u64> {
        let mut all: BTreeMap<_, _> = self.shared.stats.read().into_iter().collect();
        all.insert("owned_users", self.shared.owned.len() as u64);
        all
    }

    /// The deadline of a call with this timeout, or of one that names none.
    #[must_use]
    pub fn deadline(&self, timeout: Option<Duration>) -> Tick {
        let timeout = timeout.unwrap_or(self.shared.config.timeout);
        self.shared.clock.deadline(timeout)
    }

    /// The deadline of a start with this timeout, or of one that names none: long enough to
    /// outwait a predecessor that was killed.
    #[must_use]
    pub fn start_deadline(&self, timeout: Option<Duration>) -> Tick {
        let times = self.shared.config.times;
        let wait = times.lease + times.grace + times.gap + self.shared.config.timeout;
        self.shared.clock.deadline(timeout.unwrap_or(wait))
    }

    /// The deadline of a stop that may take this long, or of one that names none.
    #[must_use]
    pub fn stop_deadline(&self, given: Option<Duration>) -> Tick {
        let time = given.unwrap_or(self.shared.config.stop_deadline);
        self.shared.clock.deadline(time)
    }

    /// Sets the load that the application reports; lower is better. The next renewal publishes it.
    pub fn set_load_state(&self, load: i64) {
        self.shared.lock().reported_load = load;
    }

    /// The load that the application reports.
    #[must_use]
    pub fn load_state(&self) -> i64 {
        self.shared.lock().reported_load
    }

    /// The load that is published: `cpu_factor` × CPU + (1 − `cpu_factor`) × reported.
    #[must_use]
    pub fn weighted_load(&self) -> i64 {
        self.shared.weighted_load(&self.shared.lock())
    }

    /// Sets the routing state and publishes it at once.
    ///
    /// # Errors
    /// `IllegalState` for a move out of SHUTDOWN or on a driver that is being stopped; what the
    /// store failed with: then the state stands, and the next renewal publishes it.
    pub async fn set_routing_state(&self, routing: RoutingState, deadline: Tick) -> Result<()> {
        {
            let mut state = self.shared.lock();
            let phase = state.phase;
            if !matches!(phase, Phase::New | Phase::Starting | Phase::Running) {
                return Err(phase.refuses());
            }
            state.routing.check_move(routing)?;
            state.routing = routing;
            if phase != Phase::Running {
                // It is the state to start with.
                return Ok(());
            }
        }
        self.shared.publish(deadline).await
    }

    /// The routing state that the program has set. The watchdog does not change it.
    #[must_use]
    pub fn routing_state(&self) -> RoutingState {
        self.shared.lock().routing
    }

    /// The incarnation, once the driver has started.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.shared.lock().incarnation
    }

    /// Whether the pod's lease is valid at this moment, by its own boot-time clock, with the
    /// guard taken off: what it may act on (docs/decisions/0006).
    #[must_use]
    pub fn holds_lease(&self) -> bool {
        self.shared.holds_lease()
    }

    /// The namespace that a caller means: none and the empty one are the driver's own.
    ///
    /// # Errors
    /// `InvalidParameter`, or `NamespaceUnreachable` for a namespace without a peer.
    pub fn resolve(&self, given: Option<&str>) -> Result<Namespace> {
        self.shared.homes.resolve(given)
    }
}

impl ServerShared {
    fn lock(&self) -> MutexGuard<'_, ServerState> {
        // Every field is valid even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn soon(&self) -> Tick {
        self.clock.deadline(self.config.timeout)
    }

    fn holds_lease(&self) -> bool {
        self.clock.now().as_nanos() < self.valid_until.load(Ordering::SeqCst)
    }

    /// Ends the driver's tasks.
    fn end_tasks(&self) {
        let tasks = std::mem::take(&mut self.lock().tasks);
        tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Drop for ServerShared {
    fn drop(&mut self) {
        self.lock().tasks.iter().for_each(AbortHandle::abort);
    }
}
