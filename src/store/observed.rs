//! A store whose calls are counted and timed, whatever store it is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;

use super::{
    Begun, Changes, Inspection, Offer, PodIdentity, Pods, PodsReading, Removed, Renewed, Store,
};
use crate::clock::{Clock, Tick};
use crate::config::LeaseTimes;
use crate::error::Result;
use crate::id::{Incarnation, LinkId, Namespace, PodIndex, ServiceId, ServiceName, Tag, Uid};
use crate::route::link::{Certificate, Persist, Placed, Removal, StoredLink};
use crate::route::state::{PodState, WorkloadState};
use crate::telemetry::{Metrics, Sheet, Source, StoreStats, names, windows};
use crate::trace;

/// Counts and times every call of the store within. The first call starts a task that keeps the
/// windows of the metrics going; it ends with them.
#[derive(Debug)]
pub struct Observed {
    watch: Arc<Watch>,
    metrics: Weak<Metrics>,
}

/// What is told of the store.
#[derive(Debug)]
struct Watch {
    store: Arc<dyn Store>,
    clock: Clock,
    stats: StoreStats,
    /// Somebody has called it: a store that nobody uses need not be connected.
    used: AtomicBool,
    closed: AtomicBool,
}

/// A call that waits for its answer; it does so no longer, however it ends.
struct UnderWay<'a>(&'a StoreStats);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Observed {
    /// The same store, watched; `metrics` reports what is seen.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: Clock, metrics: &Arc<Metrics>) -> Arc<Self> {
        let watch = Arc::new(Watch {
            store,
            clock,
            stats: StoreStats::default(),
            used: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        metrics.join(Arc::clone(&watch) as Arc<dyn Source>);
        Arc::new(Self {
            watch,
            metrics: Arc::downgrade(metrics),
        })
    }

    async fn call<T>(
        &self,
        name: &'static str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let call = trace::observed(trace::store(name), call);
        let noted = |stats: &StoreStats, took, outcome: &Result<T>| {
            stats.ended(name, took, outcome);
        };
        self.watch_over(call, noted).await
    }

    /// One exchange with the store; `note` is told how long it took and how it ended.
    async fn watch_over<T>(
        &self,
        call: impl Future<Output = T>,
        note: impl FnOnce(&StoreStats, Duration, &T),
    ) -> T {
        if cfg!(feature = "unmetered") {
            return call.await;
        }
        if !self.watch.used.load(Ordering::Relaxed) {
            self.first_call();
        }
        let Watch { clock, stats, .. } = &*self.watch;
        stats.in_flight.fetch_add(1, Ordering::Relaxed);
        let under_way = UnderWay(stats);
        let began = clock.now();
        let outcome = call.await;
        drop(under_way);
        note(stats, clock.now().since(began), &outcome);
        outcome
    }

    fn first_call(&self) {
        if !self.watch.used.swap(true, Ordering::Relaxed) {
            tokio::spawn(tick(self.metrics.clone()));
        }
    }
}

/// Keeps the windows going: owned by nobody, ended with the metrics.
async fn tick(metrics: Weak<Metrics>) {
    loop {
        tokio::time::sleep(windows::EVERY).await;
        let Some(metrics) = metrics.upgrade() else {
            return;
        };
        metrics.tick();
    }
}

impl Source for Watch {
    fn report(&self, sheet: &mut Sheet) {
        self.stats.report(sheet);
        let link = self.store.connection();
        let counts = [
            (&names::STORE_CONNECTS, link.connects),
            (&names::STORE_FAILED_DIALS, link.failed_dials),
            (&names::STORE_DISCONNECTS, link.disconnects),
            (&names::STORE_UNANSWERED, link.unanswered),
            (&names::STORE_SCRIPT_LOADS, link.script_loads),
        ];
        for (metric, counted) in counts {
            sheet.count(metric, &[], counted);
        }
        if self.used.load(Ordering::Relaxed) && !self.closed.load(Ordering::Relaxed) {
            sheet.level(&names::STORES, &[], 1.0);
            sheet.level(&names::STORE_CONNECTED, &[], f64::from(u8::from(link.up)));
        }
    }

    fn reading(&self) -> windows::Reading {
        self.stats.reading()
    }
}

#[async_trait]
impl Store for Observed {
    async fn get(&self, link: &LinkId, deadline: Tick) -> Result<Option<StoredLink>> {
        let call = self.watch.store.get(link, deadline);
        self.call("get", call).await
    }

    async fn batch_get(
        &self,
        service: &ServiceId,
        uids: &[Uid],
        deadline: Tick,
    ) -> Result<Vec<Option<PodIndex>>> {
        self.watch.stats.batch("batch_get", uids.len());
        let call = self.watch.store.batch_get(service, uids, deadline);
        self.call("batch_get", call).await
    }

    async fn services(
        &self,
        namespace: &Namespace,
        uid: &Uid,
        deadline: Tick,
    ) -> Result<BTreeMap<ServiceName, PodIndex>> {
        let call = self.watch.store.services(namespace, uid, deadline);
        self.call("services", call).await
    }

    async fn set_if_absent(
        &self,
        link: &LinkId,
        pod: PodIndex,
        ttl: Duration,
        deadline: Tick,
    ) -> Result<Placed> {
        let call = self.watch.store.set_if_absent(link, pod, ttl, deadline);
        self.call("set_if_absent", call).await
    }

    /// One exchange, and as many calls as there are offers: each of them took as long as it.
    async fn set_if_absent_many(
        &self,
        offers: &[Offer<'_>],
        ttl: Duration,
        deadline: Tick,
    ) -> Vec<Result<Placed>> {
        let call = self.watch.store.set_if_absent_many(offers, ttl, deadline);
        let noted = |stats: &StoreStats, took, outcomes: &Vec<Result<Placed>>| {
            stats.batch("set_if_absent", offers.len());
            for outcome in outcomes {
                stats.ended("set_if_absent", took, outcome);
            }
        };
        self.watch_over(call, noted).await
    }

    async fn set(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<Option<PodIndex>> {
        let call = self.watch.store.set(link, pod, persist, deadline);
        self.call("set", call).await
    }

    async fn try_set(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<Placed> {
        let call = self.watch.store.try_set(link, pod, persist, deadline);
        self.call("try_set", call).await
    }

    async fn relink(
        &self,
        link: &LinkId,
        from: StoredLink,
        dead: Incarnation,
        to: PodIndex,
        ttl: Duration,
        deadline: Tick,
    ) -> Result<Option<Placed>> {
        let call = self.watch.store.relink(link, from, dead, to, ttl, deadline);
        self.call("relink", call).await
    }

    async fn remove(
        &self,
        link: &LinkId,
        owner: Option<PodIndex>,
        removal: Removal,
        deadline: Tick,
    ) -> Result<Removed> {
        let call = self.watch.store.remove(link, owner, removal, deadline);
        self.call("remove", call).await
    }

    async fn pod_begin(
        &self,
        pod: &PodIdentity,
        times: LeaseTimes,
        deadline: Tick,
    ) -> Result<Begun> {
        let call = self.watch.store.pod_begin(pod, times, deadline);
        self.call("pod_begin", call).await
    }

    async fn pod_renew(
        &self,
        service: &ServiceId,
        state: &PodState,
        times: LeaseTimes,
        deadline: Tick,
    ) -> Result<Renewed> {
        let call = self.watch.store.pod_renew(service, state, times, deadline);
        self.call("pod_renew", call).await
    }

    async fn pod_end(
        &self,
        service: &ServiceId,
        pod: PodIndex,
        incarnation: Incarnation,
        deadline: Tick,
    ) -> Result<bool> {
        let call = self
            .watch
            .store
            .pod_end(service, pod, incarnation, deadline);
        self.call("pod_end", call).await
    }

    async fn pod_certify(
        &self,
        service: &ServiceId,
        pod: PodIndex,
        deadline: Tick,
    ) -> Result<Certificate> {
        let call = self.watch.store.pod_certify(service, pod, deadline);
        self.call("pod_certify", call).await
    }

    async fn pods(&self, service: &ServiceId, last: &PodsReading, deadline: Tick) -> Result<Pods> {
        let call = self.watch.store.pods(service, last, deadline);
        self.call("pods", call).await
    }

    async fn inspect(&self, service: &ServiceId, deadline: Tick) -> Result<Inspection> {
        let call = self.watch.store.inspect(service, deadline);
        self.call("inspect", call).await
    }

    async fn listen(&self, service: &ServiceId, deadline: Tick) -> Result<Changes> {
        let call = self.watch.store.listen(service, deadline);
        self.call("listen", call).await
    }

    async fn set_workload(
        &self,
        service: &ServiceId,
        workload: &WorkloadState,
        ttl: Duration,
        deadline: Tick,
    ) -> Result<()> {
        let call = self
            .watch
            .store
            .set_workload(service, workload, ttl, deadline);
        self.call("set_workload", call).await
    }

    async fn workload(&self, service: &ServiceId, deadline: Tick) -> Result<Option<WorkloadState>> {
        let call = self.watch.store.workload(service, deadline);
        self.call("workload", call).await
    }

    async fn set_tag(
        &self,
        namespace: &Namespace,
        tag: &Tag,
        service: &ServiceName,
        deadline: Tick,
    ) -> Result<bool> {
        let call = self.watch.store.set_tag(namespace, tag, service, deadline);
        self.call("set_tag", call).await
    }

    async fn tag(
        &self,
        namespace: &Namespace,
        tag: &Tag,
        deadline: Tick,
    ) -> Result<Option<ServiceName>> {
        let call = self.watch.store.tag(namespace, tag, deadline);
        self.call("tag", call).await
    }

    async fn ping(&self, deadline: Tick) -> Result<()> {
        let call = self.watch.store.ping(deadline);
        self.call("ping", call).await
    }

    async fn close(&self) {
        self.watch.closed.store(true, Ordering::Relaxed);
        self.watch.store.close().await;
    }

    fn connection(&self) -> super::ConnectionReport {
        self.watch.store.connection()
    }
}
