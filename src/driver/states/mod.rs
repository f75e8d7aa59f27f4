//! The state cache: the last published states of the pods of each service in use.
//!
//! One task per service reads all its pods every refresh period and swaps in a new [`View`].
//! Readers take the current view without a lock. A service that is no longer used is dropped.

mod later;
mod report;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use rand::Rng;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::view::View;
use super::with_deadline;
use crate::clock::{Clock, Tick};
use crate::config::RouteInfoConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{PodIndex, ServiceId};
use crate::namespace::Home;
use crate::op::{Pods, PodsReading, ReadPods};
use crate::route::pick::{Chance, Strategy};
use crate::route::snapshot::{AlivePods, Change, Policy, Snapshot};
use crate::store::Changes;
use crate::telemetry::{StateStats, count};
use later::LaterVersions;

/// The timeout of one reading of all pods: shorter than the usual deadline of a call, so that a
/// waiting caller gets the cause of the failure, and not only a timeout.
const LOAD_TIMEOUT: Duration = Duration::from_secs(1);

/// A subscriber to changes of pods.
pub trait ChangeListener: Send + Sync + std::fmt::Debug + 'static {
    /// Called with changes, in their order. Must not block: it runs on the refresh task.
    fn on_change(&self, service: &ServiceId, changes: &[Change]);
}

/// A listener, and what it knows.
#[derive(Debug)]
struct Subscriber {
    listener: Arc<dyn ChangeListener>,
    /// The services whose alive pods it got. `None`: it gets only changes.
    greeted: Option<Mutex<HashSet<ServiceId>>>,
}

impl Subscriber {
    fn notify(&self, service: &ServiceId, changes: &[Change], snapshot: &Snapshot, now: Tick) {
        if self.greets(service) {
            let joined = snapshot.changes(&mut AlivePods::new(), now);
            if !joined.is_empty() {
                self.listener.on_change(service, &joined);
            }
        } else if !changes.is_empty() {
            self.listener.on_change(service, changes);
        }
    }

    /// Whether this is the first notification about the service.
    fn greets(&self, service: &ServiceId) -> bool {
        let Some(greeted) = &self.greeted else {
            return false;
        };
        let mut greeted = greeted.lock().unwrap_or_else(PoisonError::into_inner);
        !greeted.contains(service) && greeted.insert(service.clone())
    }

    fn forget(&self, service: &ServiceId) {
        if let Some(greeted) = &self.greeted {
            let mut greeted = greeted.lock().unwrap_or_else(PoisonError::into_inner);
            greeted.remove(service);
        }
    }
}

/// The state caches of all services in use. Dropping it ends their tasks.
#[derive(Debug)]
pub struct StateCache {
    home: Home,
    clock: Clock,
    config: RouteInfoConfig,
    stats: Arc<StateStats>,
    /// What a later version has written.
    pub(super) later: LaterVersions,
    services: ArcSwap<HashMap<ServiceId, Arc<Watched>>>,
    /// The subscribers to changes. Never held across an await, nor while a listener runs.
    listeners: Mutex<Vec<Arc<Subscriber>>>,
    /// Serialises changes of the table; readers do not take it. True once the cache was closed.
    /// Never held across an await.
    changing: Mutex<bool>,
    /// Whether metrics report it: drivers that share it report it once.
    reported: AtomicBool,
}

impl StateCache {
    /// A cache without services, whose pods are read at `home`. No I/O.
    #[must_use]
    pub fn new(home: Home, clock: Clock, config: RouteInfoConfig) -> Arc<Self> {
        Arc::new(Self {
            home,
            clock,
            config,
            stats: Arc::default(),
            later: LaterVersions::default(),
            services: ArcSwap::default(),
            listeners: Mutex::default(),
            changing: Mutex::default(),
            reported: AtomicBool::new(false),
        })
    }

    /// The settings.
    pub(super) fn config(&self) -> &RouteInfoConfig {
        &self.config
    }

    /// The counters.
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
        let closed = self.changing();
        let services = self.services.load_full();
        if let Some(watched) = services.get(id) {
            return Arc::clone(watched);
        }
        let watched = Arc::new(Watched::new(
            id.clone(),
            self.home.clone(),
            self.clock.now(),
        ));
        if *closed {
            // A client may share the cache and outlive it: it gets an error, and no task starts.
            watched.end();
            return watched;
        }
        let task = tokio::spawn(refresh_until_idle(
            Arc::downgrade(self),
            Arc::clone(&watched),
        ));
        watched.own(task.abort_handle());
        let mut services = HashMap::clone(&services);
        services.insert(id.clone(), Arc::clone(&watched));
        self.services.store(Arc::new(services));
        watched
    }

    /// Ends every task and drops every service.
    pub fn close(&self) {
        let mut closed = self.changing();
        *closed = true;
        let services = self.services.swap(Arc::default());
        services.values().for_each(|watched| watched.end());
    }

    fn forget(&self, id: &ServiceId) {
        let _changing = self.changing();
        let mut services = HashMap::clone(&self.services.load());
        if let Some(watched) = services.remove(id) {
            watched.retired.store(1, Ordering::Release);
            for subscriber in self.listeners().iter() {
                subscriber.forget(id);
            }
        }
        self.services.store(Arc::new(services));
    }

    fn changing(&self) -> MutexGuard<'_, bool> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Subscribes `listener` to all changes from now on. Another namespace's pods that are alive
    /// at its first notification appear to it then: drivers share that cache, and another one may
    /// have read them before.
    pub fn subscribe(&self, listener: Arc<dyn ChangeListener>) {
        let greeted = self.home.is_foreign().then(Mutex::default);
        let subscriber = Subscriber { listener, greeted };
        self.listeners().push(Arc::new(subscriber));
    }

    /// Ends the subscription of `listener`.
    pub fn unsubscribe(&self, listener: &Arc<dyn ChangeListener>) {
        self.listeners()
            .retain(|other| !Arc::ptr_eq(&other.listener, listener));
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Arc<Subscriber>>> {
        let listeners = self.listeners.lock();
        listeners.unwrap_or_else(PoisonError::into_inner)
    }

    async fn load(&self, watched: &Watched) -> Result<()> {
        let asked = self.clock.now();
        let last = watched.reading().clone();
        let deadline = asked.after(LOAD_TIMEOUT);
        let service = watched.id.clone();
        let pods = self.home.ask(ReadPods { service, last }, deadline).await?;
        *watched.reading() = pods.reading.clone();
        watched.report(&pods, &self.stats);
        self.later.note(&watched.id, &pods);
        let previous = watched.view.load_full();
        let view = self.view(*pods, asked, previous.as_deref());
        watched.view.store(Some(Arc::new(view)));
        Ok(())
    }

    /// The view of a reading; it is not published.
    pub(super) fn view(&self, pods: Pods, asked: Tick, previous: Option<&View>) -> View {
        let mut records = pods.records;
        if let (Some(leased), Some(previous)) = (pods.forgot, previous) {
            // Each pod writes itself again at its next renewal; the first is not the only one alive.
            records.extend(previous.snapshot.missing(&records, &leased, asked));
        }
        let snapshot = Snapshot::new(records, asked, self.policy());
        View::new(snapshot, previous, pods.watchers, self.clock.now())
    }

    fn policy(&self) -> Policy {
        // Two missed readings may be chance; the third means that the store cannot be read.
        let stale_after = self.config.refresh * 3;
        Policy {
            overload_limit: self.config.overload_limit,
            stale_after: self.config.serve_stale.then_some(stale_after),
        }
    }

    /// Subscribes to the events of the service; without them polling finds every change.
    async fn listen(&self, watched: &Watched) -> Option<Changes> {
        let deadline = self.clock.deadline(LOAD_TIMEOUT);
        let channel = self.home.subscribe(&watched.id, deadline).await;
        if let Err(error) = &channel {
            count(&self.stats.listen_failures);
            tracing::debug!(service = %watched.id, %error, "cannot listen for changes of pods");
        }
        channel.ok()
    }

    /// Reads all pods once, and notifies waiting callers and listeners.
    async fn refresh(&self, watched: &Watched) {
        let result = self.load(watched).await;
        count(&self.stats.refreshes);
        if let Err(error) = &result {
            count(&self.stats.refresh_failures);
            tracing::debug!(service = %watched.id, %error, "the pods could not be read");
        }
        watched.landed.send_modify(|landed| {
            landed.count += 1;
            // A reading that lands after the end does not take the end back.
            if !landed.ended {
                landed.error = result.err();
            }
        });
        self.notify_listeners(watched);
    }

    /// Notifies the listeners of the changes since the last notification.
    fn notify_listeners(&self, watched: &Watched) {
        let Some(view) = watched.view.load_full() else {
            return;
        };
        let now = self.clock.now();
        if view.snapshot.serves_stale(now) {
            count(&self.stats.stale_periods);
        }
        let changes = view.snapshot.changes(&mut watched.seen(), now);
        let subscribers = self.listeners().clone();
        for subscriber in subscribers {
            subscriber.notify(&watched.id, &changes, &view.snapshot, now);
        }
    }
}

impl Drop for StateCache {
    fn drop(&mut self) {
        self.close();
    }
}

/// The task of one service: owned by its [`Watched`], ended by it, by idleness, or with the cache.
async fn refresh_until_idle(cache: Weak<StateCache>, watched: Arc<Watched>) {
    let mut channel = None;
    loop {
        let Some(cache) = cache.upgrade() else { return };
        if channel.is_none() {
            channel = cache.listen(&watched).await;
        }
        cache.refresh(&watched).await;
        let used = Tick::from_nanos(watched.used.load(Ordering::Relaxed));
        let idle = cache.clock.now().since(used) > cache.config.idle;
        if idle && watched.pinned.load(Ordering::Relaxed) == 0 {
            cache.forget(&watched.id);
            return;
        }
        // Jitter of ±10 %, so that many clients do not read in step.
        let pause = cache
            .config
            .refresh
            .mul_f64(rand::rng().random_range(0.9..1.1));
        let stats = Arc::clone(&cache.stats);
        drop(cache);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = watched.poke.notified() => {}
            alive = changed(channel.as_mut()) => {
                count(if alive { &stats.events } else { &stats.channel_losses });
                if !alive {
                    // Polling bridges the gap until the next refresh subscribes again.
                    channel = None;
                }
            }
        }
    }
}

/// Waits for an event (`true`) or the loss of the channel (`false`). Never returns without one.
async fn changed(channel: Option<&mut Changes>) -> bool {
    match channel {
        Some(channel) => channel.changed().await,
        None => std::future::pending().await,
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the driver was closed")
}

/// The number of finished readings, and the result of the last one.
#[derive(Debug, Default)]
struct Landed {
    count: u64,
    error: Option<Error>,
    /// There will be no further readings.
    ended: bool,
}

/// One service's cache.
#[derive(Debug)]
pub struct Watched {
    id: ServiceId,
    /// Also queried for the cause of a slow reading.
    home: Home,
    view: ArcSwapOption<View>,
    landed: watch::Sender<Landed>,
    poke: Notify,
    /// The last use, as a [`Tick`].
    used: AtomicU64,
    /// 1 once the service was dropped: holders must look it up again.
    retired: AtomicU64,
    /// The number of hooks that name the service: they keep it read without lookups.
    pinned: AtomicU64,
    turn: AtomicU64,
    /// The pods that were alive at the last notification of the listeners.
    seen: Mutex<AlivePods>,
    corrupt: Mutex<HashSet<String>>,
    /// The state of the last reading, for the next one. Never held across an await.
    reading: Mutex<PodsReading>,
    /// The refresh task; ended by `end`, and when this is dropped.
    task: Mutex<Option<AbortHandle>>,
}

impl Watched {
    fn new(id: ServiceId, home: Home, now: Tick) -> Self {
        Self {
            id,
            home,
            view: ArcSwapOption::empty(),
            landed: watch::Sender::new(Landed::default()),
            poke: Notify::new(),
            used: AtomicU64::new(now.as_nanos()),
            retired: AtomicU64::new(0),
            pinned: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            seen: Mutex::default(),
            corrupt: Mutex::default(),
            reading: Mutex::default(),
            task: Mutex::default(),
        }
    }

    fn own(&self, task: AbortHandle) {
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    fn end(&self) {
        self.retired.store(1, Ordering::Release);
        // Wakes the callers that wait for a reading.
        self.landed.send_modify(|landed| {
            landed.error = Some(closed());
            landed.ended = true;
        });
        if let Some(task) = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            task.abort();
        }
    }

    fn reading(&self) -> MutexGuard<'_, PodsReading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, AlivePods> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the service read even without lookups, until `unpin`.
    pub fn pin(&self) {
        self.pinned.fetch_add(1, Ordering::Relaxed);
    }

    /// Reverts one `pin`.
    pub fn unpin(&self) {
        self.pinned.fetch_sub(1, Ordering::Relaxed);
    }

    /// The age of the current view; `None` if the service was never read.
    #[must_use]
    pub fn age(&self, now: Tick) -> Option<Duration> {
        let view = self.view.load_full()?;
        Some(now.since(view.snapshot.asked()))
    }

    /// Whether the cache has dropped this service for lack of use.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire) != 0
    }

    /// The current view, if the service was ever read and is still being read. Takes no lock.
    #[must_use]
    pub fn current(&self, now: Tick) -> Option<arc_swap::Guard<Option<Arc<View>>>> {
        if self.is_retired() {
            // This view is no longer refreshed.
            return None;
        }
        self.used.store(now.as_nanos(), Ordering::Relaxed);
        let view = self.view.load();
        view.is_some().then_some(view)
    }

    /// The current view like `current`, but this does not count as a use.
    #[must_use]
    pub fn unused(&self) -> Option<Arc<View>> {
        if self.is_retired() {
            return None;
        }
        self.view.load_full()
    }

    /// The number of choices so far.
    #[must_use]
    pub fn turn(&self) -> u64 {
        self.turn.load(Ordering::Relaxed)
    }

    /// The current view; waits for the first reading if there was none.
    ///
    /// # Errors
    /// The error of the reading, or `Timeout`.
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
    /// The error of the reading, or `Timeout`.
    pub async fn fresh(&self, clock: &Clock, deadline: Tick) -> Result<Arc<View>> {
        // The reading in progress may have begun before this call; the next one has not.
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

    /// Why the last reading failed; `None`: it did not.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.landed.borrow().error.clone()
    }

    async fn reread(&self, clock: &Clock, deadline: Tick, seen: u64) -> Result<Arc<View>> {
        let mut landed = self.landed.subscribe();
        self.poke.notify_one();
        let wait = landed.wait_for(|landed| landed.ended || landed.count > seen);
        // A tenth of the time is reserved for finding the cause of a timeout.
        let left = deadline.since(clock.now());
        let until = clock.deadline(left - left / 10);
        let waited = with_deadline(clock, until, "the states of the pods", wait).await;
        let waited = waited.map(|landed| landed.map_or(None, |landed| landed.error.clone()));
        let error = match waited {
            Ok(error) => error,
            Err(timeout) => Some(self.cause(timeout, deadline).await),
        };
        match (error, self.view.load_full()) {
            (None, Some(view)) => Ok(view),
            (Some(error), _) => Err(error),
            (None, None) => Err(closed()),
        }
    }

    /// The cause of a slow reading: the error of the store, or else the timeout.
    async fn cause(&self, timeout: Error, deadline: Tick) -> Error {
        self.home.trouble(deadline).await.unwrap_or(timeout)
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
        view.choose(strategy, uid, self.chance(), now)
    }

    /// What the next choice leaves to chance.
    pub(super) fn chance(&self) -> Chance {
        let mut random = rand::rng();
        Chance {
            turn: self.turn.fetch_add(1, Ordering::Relaxed),
            random: (random.random(), random.random()),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Namespace;
    use crate::store::MemoryStore;

    #[tokio::test]
    async fn a_reading_that_lands_after_the_end_does_not_take_it_back() {
        let clock = Clock::System;
        let store = MemoryStore::open(None, clock.clone()).unwrap();
        let config = RouteInfoConfig {
            refresh: Duration::from_secs(1),
            overload_limit: None,
            idle: Duration::from_secs(60),
            serve_stale: false,
            tag_ttl: Duration::ZERO,
        };
        let cache = StateCache::new(Home::Own(store), clock.clone(), config);
        let id = ServiceId {
            namespace: Namespace::new("ns").unwrap(),
            service: crate::id::ServiceName::new("svc").unwrap(),
        };
        let watched = Watched::new(id, cache.home.clone(), clock.now());
        watched.end();
        cache.refresh(&watched).await;
        let deadline = clock.deadline(Duration::from_secs(60));
        let error = watched.fresh(&clock, deadline).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed);
    }
}
