//! The shared truth without a server: one process, one lock, the same contract.
//!
//! Nobody owns a user by a record here, because no operation makes one yet.

mod lease;
mod links;
mod listeners;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;

use super::codec::{micros, millis};
use super::{Begun, Changes, Inspection, PodIdentity, Pods, PodsReading, Removed, Renewed, Store};
use crate::clock::{Clock, Tick, calendar_micros};
use crate::config::LeaseTimes;
use crate::error::{Error, ErrorKind, Result, WriteOutcome};
use crate::id::{Incarnation, LinkId, Namespace, PodIndex, ServiceId, ServiceName, Tag, Uid};
use crate::route::link::{Certificate, Life, Persist, Placed, Removal, StoredLink};
use crate::route::state::{PodState, WorkloadState};

use lease::ServiceLeases;
use links::Links;
use listeners::Listeners;

/// The stores that have a name, as long as somebody holds them.
static NAMED: LazyLock<Mutex<HashMap<String, Weak<Data>>>> = LazyLock::new(Mutex::default);

/// How many executors there have been: each gets a number.
static EXECUTORS: AtomicU64 = AtomicU64::new(0);

/// A store in this process.
pub struct MemoryStore {
    store: Arc<Data>,
    clock: Clock,
    closed: AtomicBool,
    /// Tells this executor's subscriptions from those of others with the same store.
    number: u64,
}

struct Data {
    clock: Clock,
    /// The calendar time, in microseconds, at which `clock` showed `origin`.
    calendar_origin: u64,
    origin: Tick,
    /// Never held across an await: every operation is a few look-ups.
    tables: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    links: Links,
    services: HashMap<ServiceId, ServiceLeases>,
    listeners: Listeners,
    /// Each with its end.
    workloads: HashMap<ServiceId, (WorkloadState, Tick)>,
    tags: HashMap<(Namespace, Tag), ServiceName>,
}

impl Data {
    fn new(clock: Clock) -> Self {
        let (calendar_origin, origin) = (calendar_micros(), clock.now());
        Self {
            clock,
            calendar_origin,
            origin,
            tables: Mutex::default(),
        }
    }

    fn micros_at(&self, now: Tick) -> u64 {
        self.calendar_origin + micros(now.since(self.origin))
    }
}

impl MemoryStore {
    /// Opens a store. The same name is the same store for as long as anybody has it open; no
    /// name is a store of one's own. Links and leases run by the clock of whoever made the store.
    ///
    /// # Errors
    /// None so far; opening another kind of store can fail.
    pub fn open(name: Option<&str>, clock: Clock) -> Result<Arc<dyn Store>> {
        let store = match name.filter(|name| !name.is_empty()) {
            Some(name) => named(name, &clock),
            None => Arc::new(Data::new(clock.clone())),
        };
        Ok(Arc::new(Self {
            store,
            clock,
            closed: AtomicBool::new(false),
            number: EXECUTORS.fetch_add(1, Ordering::Relaxed),
        }))
    }

    /// Begins a call: refuses what comes too late, then takes the tables and the time.
    fn begin(
        &self,
        operation: &'static str,
        deadline: Tick,
    ) -> Result<(MutexGuard<'_, Tables>, Tick)> {
        let refused = |kind, why| Err(Error::new(kind, why).during(operation));
        if self.closed.load(Ordering::Acquire) {
            return refused(ErrorKind::Closed, "the store was closed");
        }
        if self.clock.now() >= deadline {
            return refused(
                ErrorKind::Timeout,
                "the deadline had passed before the call",
            );
        }
        let tables = self
            .store
            .tables
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // The time is read under the lock, so it rises from call to call.
        let now = self.store.clock.now();
        Ok((tables, now))
    }

    fn begin_write(
        &self,
        operation: &'static str,
        deadline: Tick,
    ) -> Result<(MutexGuard<'_, Tables>, Tick)> {
        self.begin(operation, deadline)
            .map_err(|error| error.with_outcome(WriteOutcome::NotSent))
    }

    fn end_subscriptions(&self) {
        let tables = self.store.tables.lock();
        let mut tables = tables.unwrap_or_else(PoisonError::into_inner);
        tables.listeners.end(self.number);
    }

    fn with_service<T>(
        &self,
        operation: &'static str,
        service: &ServiceId,
        deadline: Tick,
        act: impl FnOnce(&mut ServiceLeases, u64) -> T,
    ) -> Result<T> {
        let (mut tables, now) = self.begin_write(operation, deadline)?;
        let micros = self.store.micros_at(now);
        let tables = &mut *tables;
        let pods = tables.services.entry(service.clone()).or_default();
        let answer = act(pods, micros);
        if pods.take_changed() {
            tables.listeners.notify(service);
        }
        Ok(answer)
    }
}

fn named(name: &str, clock: &Clock) -> Arc<Data> {
    let mut stores = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(store) = stores.get(name).and_then(Weak::upgrade) {
        return store;
    }
    stores.retain(|_, store| store.strong_count() > 0);
    let store = Arc::new(Data::new(clock.clone()));
    stores.insert(name.to_owned(), Arc::downgrade(&store));
    store
}

/// A server counts in whole milliseconds; so does memory, or the two would differ.
fn whole(ttl: Duration) -> Duration {
    Duration::from_millis(millis(ttl).unsigned_abs())
}

fn whole_persist(persist: Persist) -> Persist {
    match persist {
        Persist::Forever => Persist::Forever,
        Persist::For(ttl) => Persist::For(whole(ttl)),
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.end_subscriptions();
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, link: &LinkId, deadline: Tick) -> Result<Option<StoredLink>> {
        let (tables, now) = self.begin("get", deadline)?;
        Ok(tables.links.get(link, now))
    }

    async fn batch_get(
        &self,
        service: &ServiceId,
        uids: &[Uid],
        deadline: Tick,
    ) -> Result<Vec<Option<PodIndex>>> {
        let (tables, now) = self.begin("batch_get", deadline)?;
        let pod = |uid: &Uid| {
            let link = LinkId {
                service: service.clone(),
                uid: uid.clone(),
            };
            tables.links.get(&link, now).map(|found| found.pod)
        };
        Ok(uids.iter().map(pod).collect())
    }

    async fn services(
        &self,
        namespace: &Namespace,
        uid: &Uid,
        deadline: Tick,
    ) -> Result<BTreeMap<ServiceName, PodIndex>> {
        let (tables, _) = self.begin("services", deadline)?;
        Ok(tables.links.persistent(namespace, uid))
    }

    async fn set_if_absent(
        &self,
        link: &LinkId,
        pod: PodIndex,
        ttl: Duration,
        deadline: Tick,
    ) -> Result<Placed> {
        let (mut tables, now) = self.begin_write("set_if_absent", deadline)?;
        let ttl = whole(ttl);
        Ok(match tables.links.get(link, now) {
            None => Placed {
                link: tables.links.put(link, pod, Persist::For(ttl), now),
                made: true,
            },
            Some(found) => Placed {
                link: tables.links.raise(link, found, ttl, now),
                made: false,
            },
        })
    }

    async fn set(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<Option<PodIndex>> {
        let (mut tables, now) = self.begin_write("set", deadline)?;
        let previous = tables.links.get(link, now).map(|found| found.pod);
        tables.links.put(link, pod, whole_persist(persist), now);
        Ok(previous)
    }

    async fn try_set(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<Placed> {
        let (mut tables, now) = self.begin_write("try_set", deadline)?;
        if let Some(found) = tables.links.get(link, now)
            && found.pod != pod
            && found.life == Life::Persistent
        {
            return Ok(Placed {
                link: found,
                made: false,
            });
        }
        Ok(Placed {
            link: tables.links.put(link, pod, whole_persist(persist), now),
            made: true,
        })
    }

    async fn relink(
        &self,
        link: &LinkId,
        from: StoredLink,
        _dead: Incarnation,
        to: PodIndex,
        ttl: Duration,
        deadline: Tick,
    ) -> Result<Option<Placed>> {
        let (mut tables, now) = self.begin_write("relink", deadline)?;
        let Some(found) = tables.links.get(link, now) else {
            return Ok(None);
        };
        let persistent = |link: StoredLink| link.life == Life::Persistent;
        if found.pod != from.pod || persistent(found) != persistent(from) {
            return Ok(Some(Placed {
                link: found,
                made: false,
            }));
        }
        let link = tables.links.put(link, to, Persist::For(whole(ttl)), now);
        Ok(Some(Placed { link, made: true }))
    }

    async fn remove(
        &self,
        link: &LinkId,
        owner: Option<PodIndex>,
        removal: Removal,
        deadline: Tick,
    ) -> Result<Removed> {
        let (mut tables, now) = self.begin_write("remove", deadline)?;
        let Some(found) = tables.links.get(link, now) else {
            return Ok(Removed {
                previous: None,
                done: false,
            });
        };
        let done = owner.is_none_or(|owner| owner == found.pod);
        if done {
            match removal {
                Removal::Now => tables.links.delete(link),
                Removal::Grace(grace) => {
                    tables
                        .links
                        .put(link, found.pod, Persist::For(whole(grace)), now);
                }
            }
        }
        Ok(Removed {
            previous: Some(found.pod),
            done,
        })
    }

    async fn pod_begin(
        &self,
        pod: &PodIdentity,
        times: LeaseTimes,
        deadline: Tick,
    ) -> Result<Begun> {
        self.with_service("pod_begin", &pod.service, deadline, |service, now| {
            service.begin(pod, times, now)
        })
    }

    async fn pod_renew(
        &self,
        service: &ServiceId,
        state: &PodState,
        times: LeaseTimes,
        deadline: Tick,
    ) -> Result<Renewed> {
        self.with_service("pod_renew", service, deadline, |service, now| {
            service.renew(state, times, now)
        })
    }

    async fn pod_end(
        &self,
        service: &ServiceId,
        pod: PodIndex,
        incarnation: Incarnation,
        deadline: Tick,
    ) -> Result<bool> {
        self.with_service("pod_end", service, deadline, |service, now| {
            service.end(pod, incarnation, now)
        })
    }

    async fn pod_certify(
        &self,
        service: &ServiceId,
        pod: PodIndex,
        deadline: Tick,
    ) -> Result<Certificate> {
        let (mut tables, now) = self.begin_write("pod_certify", deadline)?;
        let micros = self.store.micros_at(now);
        let tables = &mut *tables;
        // A service that nobody serves leaves no trace, however often it is asked for.
        let Some(pods) = tables.services.get_mut(service) else {
            return Ok(Certificate::Unknown);
        };
        let certificate = pods.certify(pod, micros);
        if pods.take_changed() {
            tables.listeners.notify(service);
        }
        Ok(certificate)
    }

    async fn pods(&self, service: &ServiceId, _last: &PodsReading, deadline: Tick) -> Result<Pods> {
        let (mut tables, now) = self.begin("pods", deadline)?;
        let micros = self.store.micros_at(now);
        let pods = tables.services.get_mut(service);
        let mut pods = pods.map_or_else(
            || Pods {
                now_ms: micros / 1000,
                ..Pods::default()
            },
            |service| service.pods(micros),
        );
        pods.watchers = tables.listeners.count(service);
        Ok(pods)
    }

    async fn inspect(&self, service: &ServiceId, deadline: Tick) -> Result<Inspection> {
        let (tables, now) = self.begin("inspect", deadline)?;
        let micros = self.store.micros_at(now);
        let nobody = ServiceLeases::default();
        let pods = tables.services.get(service).unwrap_or(&nobody);
        let mut found = pods.inspect(micros);
        found.pods.watchers = tables.listeners.count(service);
        Ok(found)
    }

    async fn listen(&self, service: &ServiceId, deadline: Tick) -> Result<Changes> {
        let (mut tables, _) = self.begin("listen", deadline)?;
        Ok(tables.listeners.add(self.number, service))
    }

    async fn set_workload(
        &self,
        service: &ServiceId,
        workload: &WorkloadState,
        ttl: Duration,
        deadline: Tick,
    ) -> Result<()> {
        let (mut tables, now) = self.begin_write("set_workload", deadline)?;
        let kept = (workload.clone(), now.after(whole(ttl)));
        tables.workloads.insert(service.clone(), kept);
        Ok(())
    }

    async fn workload(&self, service: &ServiceId, deadline: Tick) -> Result<Option<WorkloadState>> {
        let (tables, now) = self.begin("workload", deadline)?;
        let kept = tables.workloads.get(service);
        let kept = kept.filter(|(_, until)| now < *until);
        Ok(kept.map(|(workload, _)| workload.clone()))
    }

    async fn set_tag(
        &self,
        namespace: &Namespace,
        tag: &Tag,
        service: &ServiceName,
        deadline: Tick,
    ) -> Result<bool> {
        let (mut tables, _) = self.begin_write("set_tag", deadline)?;
        let key = (namespace.clone(), tag.clone());
        tables.tags.insert(key, service.clone());
        Ok(true)
    }

    async fn tag(
        &self,
        namespace: &Namespace,
        tag: &Tag,
        deadline: Tick,
    ) -> Result<Option<ServiceName>> {
        let (tables, _) = self.begin("tag", deadline)?;
        Ok(tables.tags.get(&(namespace.clone(), tag.clone())).cloned())
    }

    async fn ping(&self, deadline: Tick) -> Result<()> {
        self.begin("ping", deadline).map(|_| ())
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.end_subscriptions();
    }
}
