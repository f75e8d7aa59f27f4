//! The server driver: a pod's own side. It holds the lease, publishes the state, owns links.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rand::Rng;
use tokio::task::AbortHandle;

use super::by;
use crate::clock::{Clock, Tick};
use crate::config::ServerConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::executor::{Begun, Executor, PodIdentity, Renewed};
use crate::id::{Incarnation, LinkId, Namespace, PodIndex, ServiceId};
use crate::route::link::{Persist, Placed, Removal};
use crate::route::state::{PodState, Readiness, RoutingState};
use crate::telemetry::{ServerStats, count};

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

/// A pod's lease, state and links. Cheap to clone; the clones are one driver.
#[derive(Debug, Clone)]
pub struct ServerDriver {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    executor: Arc<dyn Executor>,
    clock: Clock,
    info: ServerInfo,
    config: ServerConfig,
    /// What the pod is and says. Never held across an await.
    state: Mutex<State>,
    /// Held while a state is on its way, so that an older one cannot overtake a newer one.
    publishing: tokio::sync::Mutex<()>,
    /// Until when the pod may act, as a [`Tick`]: one atomic load and one clock read tell.
    valid_until: AtomicU64,
    stats: ServerStats,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    incarnation: Incarnation,
    routing: RoutingState,
    load: i64,
    /// The renewal task; ended by `stop`, and when the driver is dropped.
    renewing: Option<AbortHandle>,
}

/// Where a server driver is in its life. It moves downwards only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// `start` was not called, or failed.
    New,
    /// `start` is under way.
    Starting,
    /// The lease is held and renewed.
    Running,
    /// Another process took the index.
    Superseded,
    /// `stop` was called.
    Stopped,
}

impl ServerDriver {
    /// A driver for this pod. No I/O, no task: `start` does both.
    #[must_use]
    pub fn new(
        executor: Arc<dyn Executor>,
        clock: Clock,
        info: ServerInfo,
        config: ServerConfig,
    ) -> Self {
        let state = State {
            phase: Phase::New,
            incarnation: Incarnation::NONE,
            routing: RoutingState::Ready,
            load: 0,
            renewing: None,
        };
        let shared = Shared {
            executor,
            clock,
            info,
            config,
            state: Mutex::new(state),
            publishing: tokio::sync::Mutex::new(()),
            valid_until: AtomicU64::new(0),
            stats: ServerStats::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Who this pod is.
    #[must_use]
    pub fn info(&self) -> &ServerInfo {
        &self.shared.info
    }

    /// What was counted so far, by name.
    #[must_use]
    pub fn stats(&self) -> BTreeMap<&'static str, u64> {
        self.shared.stats.read().into_iter().collect()
    }

    /// The deadline of a call with this timeout, or of one that names none.
    #[must_use]
    pub fn deadline(&self, timeout: Option<Duration>) -> Tick {
        self.shared
            .clock
            .deadline(timeout.unwrap_or(self.shared.config.timeout))
    }

    /// The deadline of a start with this timeout, or of one that names none: long enough to
    /// outwait a predecessor that was killed.
    #[must_use]
    pub fn start_deadline(&self, timeout: Option<Duration>) -> Tick {
        let times = self.shared.config.times;
        let wait = times.lease + times.grace + times.gap + self.shared.config.timeout;
        self.shared.clock.deadline(timeout.unwrap_or(wait))
    }

    /// Takes an incarnation, publishes the first state, then renews the lease until `stop`. Waits
    /// while an earlier process with the same index may be alive. A second start does nothing.
    ///
    /// # Errors
    /// `PodIndexBusy` if the earlier process is alive at the deadline; what the store failed
    /// with; `IllegalState` after `stop`. A failed start leaves nothing behind.
    pub async fn start(&self, deadline: Tick) -> Result<()> {
        {
            let mut state = self.shared.lock();
            match state.phase {
                Phase::New => state.phase = Phase::Starting,
                Phase::Running => return Ok(()),
                phase => return Err(phase.refuses("start")),
            }
        }
        let starting = Starting {
            shared: &self.shared,
        };
        self.shared.begin(deadline).await?;
        self.shared.publish(deadline).await?;
        let renewing = tokio::spawn(renew(
            Arc::downgrade(&self.shared),
            self.shared.config.renew,
        ));
        starting.succeed(renewing.abort_handle());
        Ok(())
    }

    /// Publishes SHUTDOWN, ends the lease and the renewals. Ends by `deadline`, and the renewals
    /// end in every case. A second stop does nothing.
    ///
    /// # Errors
    /// What the store failed with; then the lease ends by itself.
    pub async fn stop(&self, deadline: Tick) -> Result<()> {
        let phase = {
            let mut state = self.shared.lock();
            state.routing = RoutingState::Shutdown;
            std::mem::replace(&mut state.phase, Phase::Stopped)
        };
        if phase != Phase::Running {
            self.shared.end_renewals();
            return Ok(());
        }
        let withdrawn = self.shared.withdraw(deadline).await;
        self.shared.end_renewals();
        self.shared.valid_until.store(0, Ordering::SeqCst);
        withdrawn
    }

    /// Sets the load that the pod reports; lower is better. The next renewal publishes it.
    pub fn set_load_state(&self, load: i64) {
        self.shared.lock().load = load;
    }

    /// The load that the pod reports.
    #[must_use]
    pub fn load_state(&self) -> i64 {
        self.shared.lock().load
    }

    /// Sets the routing state and publishes it at once.
    ///
    /// # Errors
    /// `IllegalState` for a move out of SHUTDOWN or on a driver that does not run; what the store
    /// failed with: then the state stands, and the next renewal publishes it.
    pub async fn set_routing_state(&self, routing: RoutingState, deadline: Tick) -> Result<()> {
        {
            let mut state = self.shared.lock();
            state.routing.check_move(routing)?;
            match state.phase {
                // Before the start it is the state to start with.
                Phase::New | Phase::Starting => {
                    state.routing = routing;
                    return Ok(());
                }
                Phase::Running => state.routing = routing,
                phase => return Err(phase.refuses("set_routing_state")),
            }
        }
        self.shared.publish(deadline).await
    }

    /// The routing state.
    #[must_use]
    pub fn routing_state(&self) -> RoutingState {
        self.shared.lock().routing
    }

    /// The incarnation, once the driver has started.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.shared.lock().incarnation
    }

    /// Whether the pod's lease is valid at this moment, by its own clock, with the guard taken
    /// off: what it may act on (docs/decisions/0006).
    #[must_use]
    pub fn holds_lease(&self) -> bool {
        self.shared.clock.now().as_nanos() < self.shared.valid_until.load(Ordering::SeqCst)
    }

    /// Links the user to `pod`, whatever was there. Returns the previous owner.
    ///
    /// # Errors
    /// What the store failed with.
    pub async fn set_linked_pod(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<Option<PodIndex>> {
        self.shared.executor.set(link, pod, persist, deadline).await
    }

    /// Links the user to `pod` unless somebody else has a right to the user. `made` says whether
    /// `pod` has the link now.
    ///
    /// # Errors
    /// What the store failed with.
    pub async fn try_set_linked_pod(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<Placed> {
        self.shared
            .executor
            .try_set(link, pod, persist, deadline)
            .await
    }

    /// Removes the link if this pod owns it; it stays as a hint for `link_grace`.
    ///
    /// # Errors
    /// What the store failed with.
    pub async fn remove_linked_pod(&self, link: &LinkId, deadline: Tick) -> Result<bool> {
        let grace = self.shared.config.link_grace;
        let removal = if grace.is_zero() {
            Removal::Now
        } else {
            Removal::Grace(grace)
        };
        self.remove_linked_pod_with_id(link, self.shared.info.pod, removal, deadline)
            .await
    }

    /// Removes the link if `owner` owns it.
    ///
    /// # Errors
    /// What the store failed with.
    pub async fn remove_linked_pod_with_id(
        &self,
        link: &LinkId,
        owner: PodIndex,
        removal: Removal,
        deadline: Tick,
    ) -> Result<bool> {
        let removed = self
            .shared
            .executor
            .remove(link, Some(owner), removal, deadline)
            .await?;
        Ok(removed.done)
    }

    /// The namespace that a caller means: none and the empty one are the driver's own.
    ///
    /// # Errors
    /// `InvalidParameter`, or `NamespaceUnreachable` for a namespace without a peer.
    pub fn resolve(&self, given: Option<&str>) -> Result<Namespace> {
        super::resolve(&self.shared.info.service.namespace, given)
    }
}

impl Phase {
    fn refuses(self, operation: &'static str) -> Error {
        let why = match self {
            Self::New => "it was not started",
            Self::Starting => "its start is under way",
            Self::Running => "it runs",
            Self::Superseded => "another process has taken its pod index",
            Self::Stopped => "it was stopped; a pod that comes back is a new driver",
        };
        let kind = match self {
            Self::Superseded => ErrorKind::LeaseLost,
            _ => ErrorKind::IllegalState,
        };
        Error::new(kind, format!("the server driver refuses: {why}")).during(operation)
    }
}

/// A start under way; unless it succeeds, the driver is as if it had never been started.
struct Starting<'a> {
    shared: &'a Arc<Shared>,
}

impl Starting<'_> {
    fn succeed(self, renewing: AbortHandle) {
        let mut state = self.shared.lock();
        if state.phase == Phase::Starting {
            state.phase = Phase::Running;
            state.renewing = Some(renewing);
        } else {
            // Stopped while starting.
            renewing.abort();
        }
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        let incarnation = {
            let mut state = self.shared.lock();
            if state.phase != Phase::Starting && state.renewing.is_some() {
                return;
            }
            if state.phase == Phase::Starting {
                state.phase = Phase::New;
            }
            std::mem::replace(&mut state.incarnation, Incarnation::NONE)
        };
        self.shared.valid_until.store(0, Ordering::SeqCst);
        if incarnation != Incarnation::NONE {
            // The store may not answer now; then the lease ends by itself.
            let shared = Arc::clone(self.shared);
            tokio::spawn(async move { shared.end(incarnation, shared.soon()).await });
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every field is whole whatever panicked meanwhile.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn soon(&self) -> Tick {
        self.clock.deadline(self.config.timeout)
    }

    /// Takes an incarnation; waits while an earlier process may be alive.
    async fn begin(&self, deadline: Tick) -> Result<()> {
        let mut random = [0_u64; 2];
        rand::rng().fill(&mut random);
        let identity = PodIdentity {
            service: self.info.service.clone(),
            pod: self.info.pod,
            nonce: format!("{:016x}{:016x}", random[0], random[1]),
            pod_uid: self.info.pod_uid.clone(),
        };
        loop {
            let begun = self
                .executor
                .pod_begin(&identity, self.config.times, deadline)
                .await?;
            match begun {
                Begun::Started(incarnation) => {
                    self.lock().incarnation = incarnation;
                    return Ok(());
                }
                Begun::Busy { incarnation, wait } => {
                    self.outwait(incarnation, wait, deadline).await?;
                }
            }
        }
    }

    async fn outwait(&self, earlier: Incarnation, wait: Duration, deadline: Tick) -> Result<()> {
        // Asking at least every half gap keeps the store's clock going, so that the silence of a
        // dead service is not taken for an outage (docs/decisions/0006).
        let pause = wait
            .min(self.config.times.gap / 2)
            .max(Duration::from_millis(10));
        let paused = by(
            &self.clock,
            deadline,
            "the earlier process",
            tokio::time::sleep(pause),
        );
        paused.await.map_err(|_| {
            let pod = self.info.pod;
            Error::new(
                ErrorKind::PodIndexBusy,
                format!(
                    "pod {pod} of {} is held by another live process",
                    self.info.service
                ),
            )
            .with("incarnation", earlier)
        })
    }

    /// Renews the lease and publishes the state as it is now.
    async fn publish(&self, deadline: Tick) -> Result<()> {
        let _turn = by(
            &self.clock,
            deadline,
            "an earlier publication",
            self.publishing.lock(),
        )
        .await?;
        let state = self.published();
        let sent = self.clock.now();
        let service = &self.info.service;
        let times = self.config.times;
        match self
            .executor
            .pod_renew(service, &state, times, deadline)
            .await?
        {
            Renewed::Done { .. } => {
                let valid = sent.after(times.lease.saturating_sub(self.config.guard));
                self.valid_until.store(valid.as_nanos(), Ordering::SeqCst);
                count(&self.stats.published);
                Ok(())
            }
            Renewed::Dead => Err(self.lost("this incarnation was declared dead")),
            Renewed::Superseded(by) => {
                self.lock().phase = Phase::Superseded;
                Err(self
                    .lost("another process has taken the pod index")
                    .with("incarnation", by))
            }
        }
    }

    fn published(&self) -> PodState {
        let state = self.lock();
        let readiness = match state.routing {
            RoutingState::Shutdown => Readiness::NotReady,
            RoutingState::Ready | RoutingState::DenyNewCall => Readiness::Ready,
        };
        PodState {
            pod_id: self.info.pod,
            state: readiness,
            load_state: state.load,
            routing_state: state.routing,
            update_time: 0,
            incarnation: state.incarnation,
            metadata: self.info.metadata.clone(),
        }
    }

    fn lost(&self, why: &str) -> Error {
        self.valid_until.store(0, Ordering::SeqCst);
        count(&self.stats.leases_lost);
        let (pod, service) = (self.info.pod, &self.info.service);
        Error::new(
            ErrorKind::LeaseLost,
            format!("pod {pod} of {service} lost its lease: {why}"),
        )
    }

    async fn withdraw(&self, deadline: Tick) -> Result<()> {
        let published = self.publish(deadline).await;
        let incarnation = self.lock().incarnation;
        self.end(incarnation, deadline).await?;
        match published {
            // Somebody else has the index, or has declared this process dead: it is gone already.
            Err(error) if error.kind() != ErrorKind::LeaseLost => Err(error),
            _ => Ok(()),
        }
    }

    async fn end(&self, incarnation: Incarnation, deadline: Tick) -> Result<()> {
        let service = &self.info.service;
        self.executor
            .pod_end(service, self.info.pod, incarnation, deadline)
            .await?;
        Ok(())
    }

    fn end_renewals(&self) {
        if let Some(task) = self.lock().renewing.take() {
            task.abort();
        }
    }

    /// Renews once, and tries again within the period where that may help.
    async fn keep_alive(&self) {
        const PARTS: u32 = 4;
        let part = self.config.renew / PARTS;
        for _ in 0..PARTS {
            let deadline = self
                .clock
                .deadline(self.config.timeout.min(self.config.renew));
            let Err(error) = self.publish(deadline).await else {
                return;
            };
            count(&self.stats.renew_failures);
            if error.kind() == ErrorKind::LeaseLost {
                return self.recover(&error).await;
            }
            let left = Tick::from_nanos(self.valid_until.load(Ordering::SeqCst));
            let left = left.since(self.clock.now());
            let (pod, service) = (self.info.pod, &self.info.service);
            if left < self.config.renew * 2 {
                tracing::error!(%service, %pod, left_ms = left.as_millis(), %error, "a renewal failed and the lease is close to its end");
            } else {
                tracing::warn!(%service, %pod, %error, "a renewal failed");
            }
            tokio::time::sleep(part).await;
        }
    }

    /// A process that was declared dead while it slept comes back as a new incarnation.
    async fn recover(&self, error: &Error) {
        tracing::error!(service = %self.info.service, pod = %self.info.pod, %error, "the lease was lost");
        if self.lock().phase != Phase::Running {
            return;
        }
        let begun = self.begin(self.soon()).await;
        let published = match begun {
            Ok(()) => self.publish(self.soon()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = published {
            tracing::error!(service = %self.info.service, pod = %self.info.pod, %error, "no new lease yet");
        }
    }
}

/// The renewal task: owned by the driver's state, ended by `stop`, and by the driver's end.
async fn renew(shared: Weak<Shared>, period: Duration) {
    loop {
        // ±10 %, so that a thousand pods do not renew in step.
        let pause = period.mul_f64(rand::rng().random_range(0.9..1.1));
        tokio::time::sleep(pause).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if shared.lock().phase != Phase::Running {
            return;
        }
        shared.keep_alive().await;
    }
}
