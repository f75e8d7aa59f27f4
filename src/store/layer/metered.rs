//! A store whose calls are counted and timed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;

use crate::clock::{Clock, Tick};
use crate::error::Result;
use crate::id::ServiceId;
use crate::op::{Call, CallName, Reply};
use crate::store::{Changes, ConnectionReport, Store};
use crate::telemetry::{MetricSource, Metrics, MetricsSnapshot, StoreStats, names, windows};

/// Counts and times every call of the store within. The first call starts a task that keeps the
/// windows of the metrics going; it ends with them.
#[derive(Debug)]
pub struct Metered {
    meter: Arc<Meter>,
    metrics: Weak<Metrics>,
}

/// What is counted of the store.
#[derive(Debug)]
struct Meter {
    store: Arc<dyn Store>,
    clock: Clock,
    stats: StoreStats,
    /// It was called: a store that is not used need not be connected.
    used: AtomicBool,
    closed: AtomicBool,
}

/// A call that waits for its answer; it does so no longer, however it ends.
struct InFlight<'a>(&'a StoreStats);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metered {
    /// The same store, metered; `metrics` reports what is counted.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: Clock, metrics: &Arc<Metrics>) -> Arc<Self> {
        let meter = Arc::new(Meter {
            store,
            clock,
            stats: StoreStats::default(),
            used: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        metrics.join(Arc::clone(&meter) as Arc<dyn MetricSource>);
        Arc::new(Self {
            meter,
            metrics: Arc::downgrade(metrics),
        })
    }

    /// One batch or call; `note` gets how long it took and how it ended.
    async fn measure<T>(
        &self,
        call: impl Future<Output = T>,
        note: impl FnOnce(&StoreStats, Duration, &T),
    ) -> T {
        if !self.meter.used.load(Ordering::Relaxed) {
            self.first_call();
        }
        let Meter { clock, stats, .. } = &*self.meter;
        stats.in_flight.fetch_add(1, Ordering::Relaxed);
        let in_flight = InFlight(stats);
        let began = clock.now();
        let outcome = call.await;
        drop(in_flight);
        note(stats, clock.now().since(began), &outcome);
        outcome
    }

    fn first_call(&self) {
        if !self.meter.used.swap(true, Ordering::Relaxed) {
            tokio::spawn(tick(self.metrics.clone()));
        }
    }
}

/// Keeps the windows going: owned by no object, ended with the metrics.
async fn tick(metrics: Weak<Metrics>) {
    loop {
        tokio::time::sleep(windows::EVERY).await;
        let Some(metrics) = metrics.upgrade() else {
            return;
        };
        metrics.tick();
    }
}

impl MetricSource for Meter {
    fn report(&self, snapshot: &mut MetricsSnapshot) {
        self.stats.report(snapshot);
        let connection = self.store.report();
        let counts = [
            (&names::STORE_CONNECTS, connection.connects),
            (&names::STORE_FAILED_DIALS, connection.failed_dials),
            (&names::STORE_DISCONNECTS, connection.disconnects),
            (&names::STORE_UNANSWERED, connection.unanswered),
            (&names::STORE_SCRIPT_LOADS, connection.script_loads),
        ];
        for (metric, counted) in counts {
            snapshot.count(metric, &[], counted);
        }
        if self.used.load(Ordering::Relaxed) && !self.closed.load(Ordering::Relaxed) {
            snapshot.level(&names::STORES, &[], 1.0);
            let up = f64::from(u8::from(connection.up));
            snapshot.level(&names::STORE_CONNECTED, &[], up);
        }
    }

    fn reading(&self) -> windows::WindowReading {
        self.stats.reading()
    }
}

#[async_trait]
impl Store for Metered {
    async fn call(&self, call: &Call, deadline: Tick) -> Result<Reply> {
        let name = call.name();
        if let Call::BatchGet(batch) = call {
            self.meter.stats.batch(name, batch.uids.len());
        }
        let noted = |stats: &StoreStats, took, outcome: &Result<Reply>| {
            stats.ended(name, took, outcome);
        };
        self.measure(self.meter.store.call(call, deadline), noted)
            .await
    }

    /// One batch, and as many calls: each of them took as long as the batch.
    async fn call_many(&self, calls: &[Call], deadline: Tick) -> Vec<Result<Reply>> {
        let noted = |stats: &StoreStats, took, outcomes: &Vec<Result<Reply>>| {
            if let Some(first) = calls.first() {
                stats.batch(first.name(), calls.len());
            }
            for (call, outcome) in calls.iter().zip(outcomes) {
                stats.ended(call.name(), took, outcome);
            }
        };
        let batch = self.meter.store.call_many(calls, deadline);
        self.measure(batch, noted).await
    }

    async fn subscribe(&self, service: &ServiceId, deadline: Tick) -> Result<Changes> {
        let noted = |stats: &StoreStats, took, outcome: &Result<Changes>| {
            stats.ended(CallName::Subscribe, took, outcome);
        };
        let call = self.meter.store.subscribe(service, deadline);
        self.measure(call, noted).await
    }

    async fn close(&self) {
        self.meter.closed.store(true, Ordering::Relaxed);
        self.meter.store.close().await;
    }

    fn report(&self) -> ConnectionReport {
        self.meter.store.report()
    }
}
