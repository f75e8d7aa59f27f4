//! The state cache: what the pods of each service in use said last.
//!
//! One task per service reads all its pods every refresh period and swaps in a new [`View`].
//! Readers take the current view without a lock. A service that nobody asks for is dropped.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use rand::Rng;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::by;
use crate::clock::{Clock, Tick};
use crate::config::RouteInfoConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::executor::{Executor, Pods};
use crate::id::{Incarnation, PodIndex, ServiceId};
use crate::route::pick::{Chance, Seat, Strategy, pick};
use crate::route::state::{Pod, Snapshot, Standing};
use crate::telemetry::StateStats;

/// How long one reading of all pods may take.
const LOAD_TIMEOUT: Duration = Duration::from_secs(2);

/// The state caches of all services in use. Dropping it ends their tasks.
#[derive(Debug)]
pub struct StateCache {
    executor: Arc<dyn Executor>,
    clock: Clock,
    config: RouteInfoConfig,
    stats: Arc<StateStats>,
    services: ArcSwap<HashMap<ServiceId, Arc<Watched>>>,
    /// Serialises changes of the table; readers do not take it. Never held across an await.
    changing: Mutex<()>,
}

impl StateCache {
    /// A cache without services. No I/O.
    #[must_use]
    pub fn new(executor: Arc<dyn Executor>, clock: Clock, config: RouteInfoConfig) -> Arc<Self> {
        Arc::new(Self {
            executor,
            clock,
            config,
            stats: Arc::default(),
            services: ArcSwap::default(),
            changing: Mutex::new(()),
        })
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> &StateStats {
        &self.stats
    }

    /// The service's cache; the first use starts its task. Must be called on the runtime.
    #[must_use]
    pub fn service(self: &Arc<Self>, id: &ServiceId) -> Arc<Watched> {
        if let Some(watched) = self.services.load().get(id) {
            return Arc::clone(watched);
        }
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let services = self.services.load_full();
        if let Some(watched) = services.get(id) {
            return Arc::clone(watched);
        }
        let watched = Arc::new(Watched::new(id.clone(), self.clock.now()));
        let task = tokio::spawn(keep(Arc::downgrade(self), Arc::clone(&watched)));
        watched.own(task.abort_handle());
        let mut services = HashMap::clone(&services);
        services.insert(id.clone(), Arc::clone(&watched));
        self.services.store(Arc::new(services));
        watched
    }

    /// Ends every task and forgets every service.
    pub fn close(&self) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let services = self.services.swap(Arc::default());
        services.values().for_each(|watched| watched.end());
    }

    fn forget(&self, id: &ServiceId) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut services = HashMap::clone(&self.services.load());
        if let Some(watched) = services.remove(id) {
            watched.retired.store(1, Ordering::Release);
        }
        self.services.store(Arc::new(services));
    }

    async fn load(&self, watched: &Watched) -> Result<()> {
        let asked = self.clock.now();
        let pods = self
            .executor
            .pods(&watched.id, asked.after(LOAD_TIMEOUT))
            .await?;
        watched.report(&pods, &self.stats);
        let snapshot = Snapshot::new(pods.records, asked, self.config.overload_limit);
        let view = View::new(
            snapshot,
            watched.view.load_full().as_deref(),
            self.clock.now(),
        );
        watched.view.store(Some(Arc::new(view)));
        Ok(())
    }
}

impl Drop for StateCache {
    fn drop(&mut self) {
        self.close();
    }
}

/// The task of one service: owned by its [`Watched`], ended by it, by idleness, or with the cache.
async fn keep(cache: Weak<StateCache>, watched: Arc<Watched>) {
    loop {
        let Some(cache) = cache.upgrade() else { return };
        let result = cache.load(&watched).await;
        if let Err(error) = &result {
            cache.stats.refresh_failures.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(service = %watched.id, %error, "the pods could not be read");
        }
        cache.stats.refreshes.fetch_add(1, Ordering::Relaxed);
        watched.landed.send_modify(|landed| {
            landed.count += 1;
            landed.error = result.err();
        });
        let used = Tick::from_nanos(watched.used.load(Ordering::Relaxed));
        if cache.clock.now().since(used) > cache.config.idle {
            cache.forget(&watched.id);
            return;
        }
        // ±10 %, so that a thousand clients do not ask in step.
        let pause = cache
            .config
            .refresh
            .mul_f64(rand::rng().random_range(0.9..1.1));
        drop(cache);
        let _poked_or_due = tokio::time::timeout(pause, watched.poke.notified()).await;
    }
}

/// How many readings have ended, and how the last one did.
#[derive(Debug, Default)]
struct Landed {
    count: u64,
    error: Option<Error>,
}

/// One service's cache.
#[derive(Debug)]
pub struct Watched {
    id: ServiceId,
    view: ArcSwapOption<View>,
    landed: watch::Sender<Landed>,
    poke: Notify,
    /// When somebody asked last, as a [`Tick`].
    used: AtomicU64,
    /// 1 once the service was dropped: whoever still holds it must look it up again.
    retired: AtomicU64,
    turn: AtomicU64,
    corrupt: Mutex<HashSet<String>>,
    /// The refresh task; ended by `end`, and when this is dropped.
    task: Mutex<Option<AbortHandle>>,
}

impl Watched {
    fn new(id: ServiceId, now: Tick) -> Self {
        Self {
            id,
            view: ArcSwapOption::empty(),
            landed: watch::Sender::new(Landed::default()),
            poke: Notify::new(),
            used: AtomicU64::new(now.as_nanos()),
            retired: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            corrupt: Mutex::default(),
            task: Mutex::default(),
        }
    }

    fn own(&self, task: AbortHandle) {
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    fn end(&self) {
        self.retired.store(1, Ordering::Release);
        if let Some(task) = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            task.abort();
        }
    }

    /// Whether the cache has dropped this service for lack of use.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire) != 0
    }

    /// The current view, if the service was ever read. Takes no lock.
    #[must_use]
    pub fn current(&self, now: Tick) -> Option<arc_swap::Guard<Option<Arc<View>>>> {
        self.used.store(now.as_nanos(), Ordering::Relaxed);
        let view = self.view.load();
        view.is_some().then_some(view)
    }

    /// The current view; waits for the first reading if there was none.
    ///
    /// # Errors
    /// What the reading failed with, or `Timeout`.
    pub async fn view(&self, clock: &Clock, deadline: Tick) -> Result<Arc<View>> {
        self.used.store(clock.now().as_nanos(), Ordering::Relaxed);
        if let Some(view) = self.view.load_full() {
            return Ok(view);
        }
        let seen = self.landed.borrow().count;
        self.reread(clock, deadline, seen).await
    }

    /// A view that was read after this call.
    ///
    /// # Errors
    /// What the reading failed with, or `Timeout`.
    pub async fn fresh(&self, clock: &Clock, deadline: Tick) -> Result<Arc<View>> {
        // The reading under way may have asked before this call: only the next one surely has not.
        let asked = clock.now();
        let mut seen = self.landed.borrow().count;
        loop {
            let view = self.reread(clock, deadline, seen).await?;
            if view.snapshot.asked() >= asked {
                return Ok(view);
            }
            seen = self.landed.borrow().count;
        }
    }

    async fn reread(&self, clock: &Clock, deadline: Tick, seen: u64) -> Result<Arc<View>> {
        let mut landed = self.landed.subscribe();
        self.poke.notify_one();
        let wait = landed.wait_for(|landed| landed.count > seen);
        let error = by(clock, deadline, "the states of the pods", wait)
            .await?
            .map_or_else(|_| None, |landed| landed.error.clone());
        match (error, self.view.load_full()) {
            (None, Some(view)) => Ok(view),
            (Some(error), _) => Err(error),
            (None, None) => Err(Error::new(ErrorKind::Closed, "the driver was closed")),
        }
    }

    /// Chooses a pod that may take a new user now, and counts the user as sent there.
    #[must_use]
    pub fn choose(
        &self,
        view: &View,
        strategy: Strategy,
        uid: &str,
        now: Tick,
    ) -> Option<PodIndex> {
        let mut random = rand::rng();
        let chance = Chance {
            turn: self.turn.fetch_add(1, Ordering::Relaxed),
            random: (random.random(), random.random()),
        };
        view.choose(strategy, uid, chance, now)
    }

    /// Logs each unreadable state once, and counts it each time.
    fn report(&self, pods: &Pods, stats: &StateStats) {
        let mut known = self.corrupt.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|field| pods.corrupt.iter().any(|(other, _)| other == field));
        for (field, reason) in &pods.corrupt {
            stats.corrupt_states.fetch_add(1, Ordering::Relaxed);
            if known.insert(field.clone()) {
                tracing::warn!(service = %self.id, pod = %field, %reason, "skipping a pod whose state cannot be read");
            }
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.end();
    }
}

/// The pods of one service at one moment, ready to choose from.
#[derive(Debug)]
pub struct View {
    /// The pods.
    pub snapshot: Snapshot,
    /// Whether every READY pod was over the overload limit.
    pub degraded: bool,
    seats: Vec<Seat>,
    /// By position in `seats`: users sent there since the pod last published its load.
    sent: Vec<Arc<AtomicI64>>,
}

impl View {
    fn new(snapshot: Snapshot, previous: Option<&Self>, now: Tick) -> Self {
        let routable = snapshot.routable(now);
        let degraded = routable.degraded;
        let seat = |pod: &&Pod| Seat {
            pod: pod.state.pod_id,
            load: pod.state.load_state,
            weight: pod.state.weight(),
        };
        let seats = routable.pods.iter().map(seat).collect();
        let sent = routable
            .pods
            .iter()
            .map(|pod| {
                previous
                    .and_then(|view| view.unseen(pod))
                    .unwrap_or_default()
            })
            .collect();
        Self {
            degraded,
            seats,
            sent,
            snapshot,
        }
    }

    /// The count of users sent to this pod, if it has published nothing since.
    fn unseen(&self, pod: &Pod) -> Option<Arc<AtomicI64>> {
        let known = self.snapshot.pod(pod.state.pod_id)?;
        let same = known.state.update_time == pod.state.update_time
            && known.state.incarnation == pod.state.incarnation;
        let at = self.seat(pod.state.pod_id).filter(|_| same)?;
        self.sent.get(at).cloned()
    }

    fn seat(&self, pod: PodIndex) -> Option<usize> {
        self.seats.binary_search_by_key(&pod, |seat| seat.pod).ok()
    }

    fn choose(&self, strategy: Strategy, uid: &str, chance: Chance, now: Tick) -> Option<PodIndex> {
        let ready = |pod: PodIndex| self.snapshot.standing(pod, now).takes_new_users();
        let chosen = pick(strategy, &self.seats, uid, |at| self.sent_to(at), chance)?;
        let chosen = if ready(chosen) {
            chosen
        } else {
            // A lease ended since the last reading: choose among those that are left.
            let left: Vec<Seat> = self
                .seats
                .iter()
                .copied()
                .filter(|s| ready(s.pod))
                .collect();
            let sent = |at: usize| {
                let seat = left.get(at).and_then(|seat| self.seat(seat.pod));
                seat.map_or(0.0, |at| self.sent_to(at))
            };
            pick(strategy, &left, uid, sent, chance)?
        };
        self.count_sent(chosen, 1);
        Some(chosen)
    }

    /// Counts users as sent to a pod, or takes them back.
    pub fn count_sent(&self, pod: PodIndex, users: i64) {
        if let Some(count) = self.seat(pod).and_then(|at| self.sent.get(at)) {
            count.fetch_add(users, Ordering::Relaxed);
        }
    }

    fn sent_to(&self, at: usize) -> f64 {
        let users = self
            .sent
            .get(at)
            .map_or(0, |count| count.load(Ordering::Relaxed));
        #[allow(
            clippy::cast_precision_loss,
            reason = "nobody sends 2^53 users in a second"
        )]
        let users = users as f64;
        users
    }

    /// The pods that may take new users now.
    #[must_use]
    pub fn candidates(&self, now: Tick) -> Vec<Pod> {
        let pods = self
            .seats
            .iter()
            .filter_map(|seat| self.snapshot.pod(seat.pod));
        pods.filter(|pod| pod.standing(now).takes_new_users())
            .cloned()
            .collect()
    }

    /// The standing of a pod.
    #[must_use]
    pub fn standing(&self, pod: PodIndex, now: Tick) -> Standing {
        self.snapshot.standing(pod, now)
    }

    /// The process that holds this index; `NONE` if nobody has published a state under it.
    #[must_use]
    pub fn incarnation(&self, pod: PodIndex) -> Incarnation {
        self.snapshot
            .pod(pod)
            .map_or(Incarnation::NONE, |pod| pod.state.incarnation)
    }
}
