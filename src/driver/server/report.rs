//! The metrics of a server driver.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::{Phase, ServerDriver, ServerShared};
use crate::clock::Tick;
use crate::error::{Error, Result};
use crate::op::{OperationName, Renewed};
use crate::telemetry::{Gauges, MetricSource, Metrics, MetricsSnapshot, count, names};

impl ServerDriver {
    /// Reports to these metrics from now on, until the driver is dropped. What it has counted
    /// stays.
    pub fn report_to(&self, metrics: &Metrics) {
        metrics.join(Arc::clone(&self.shared.stats) as Arc<dyn MetricSource>);
        let shared: Weak<ServerShared> = Arc::downgrade(&self.shared);
        metrics.watch(shared);
    }
}

impl ServerShared {
    /// Counts and times a publication, while the end of the lease before is still stored.
    pub(super) fn count_publication(&self, renewed: &Result<Renewed>, sent: Tick) {
        if !matches!(renewed, Ok(Renewed::Done { .. })) {
            count(&self.stats.publish_failures);
            return;
        }
        count(&self.stats.published);
        let now = self.clock.now();
        self.stats.publication.time(now.since(sent));
        let before = Tick::from_nanos(self.valid_until.load(Ordering::SeqCst));
        if before != Tick::from_nanos(0) {
            // Had it been sent in time, it would end a period after the one before.
            let length = self.config.times.lease.saturating_sub(self.config.guard);
            let lateness = sent.after(length).since(before.after(self.config.renew));
            self.stats.lateness.time(lateness);
            self.stats.margin.time(before.since(now));
        }
    }

    /// Does the work of a link operation, which is counted and timed.
    pub(super) async fn observe<T>(
        &self,
        name: OperationName,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let operations = &self.stats.operations;
        let done = operations.observe(name.as_str(), &self.clock, work).await;
        done.map_err(|error| error.during(name))
    }

    /// Counts users that were released because the pod stops.
    pub(super) fn count_released(&self, users: u64) {
        self.stats
            .users_released
            .fetch_add(users, Ordering::Relaxed);
        let links = self.stats.services.tally(&self.info.service);
        links.released(self.info.pod, users);
    }

    /// Counts a user that was handed over because the pod stops.
    pub(super) fn count_handed_over(&self) {
        count(&self.stats.users_handed_over);
        let links = self.stats.services.tally(&self.info.service);
        links.moved(self.info.pod, 1);
    }

    #[allow(clippy::cast_precision_loss, reason = "no pod has that many users")]
    fn report_users(&self, snapshot: &mut MetricsSnapshot, [namespace, service, pod]: [&str; 3]) {
        let fates = [
            ("remaining", self.owned.len() as u64),
            (
                "released",
                self.stats.users_released.load(Ordering::Relaxed),
            ),
            (
                "handed_over",
                self.stats.users_handed_over.load(Ordering::Relaxed),
            ),
        ];
        for (fate, users) in fates {
            let labels = [namespace, service, pod, fate];
            snapshot.level(&names::DRAIN_USERS, &labels, users as f64);
        }
    }
}

impl Gauges for ServerShared {
    #[allow(
        clippy::cast_precision_loss,
        reason = "gauges are shown, not counted on"
    )]
    fn report(&self, snapshot: &mut MetricsSnapshot) {
        let (phase, load) = {
            let state = self.lock();
            (state.phase, self.weighted_load(&state))
        };
        let service = self.stats.services.name(&self.info.service);
        let pod = self.info.pod.to_string();
        let labels = [service.namespace.as_str(), service.service.as_str(), &pod];
        let draining = f64::from(u8::from(phase == Phase::Draining));
        snapshot.level(&names::DRAINING, &labels, draining);
        if phase >= Phase::Draining {
            self.report_users(snapshot, labels);
        }
        if !phase.renews() {
            return;
        }
        let until = Tick::from_nanos(self.valid_until.load(Ordering::SeqCst));
        let left = until.since(self.clock.now());
        snapshot.level(&names::LEASE_LEFT, &labels, left.as_secs_f64());
        snapshot.level(&names::POD_LOAD, &labels, load as f64);
        snapshot.level(&names::OWNED_USERS, &labels, self.owned.len() as f64);
    }

    fn trouble(&self) -> Option<Error> {
        let phase = self.lock().phase;
        if phase == Phase::Draining {
            return Some(phase.refuses());
        }
        let lost = phase == Phase::Superseded || phase == Phase::Running && !self.holds_lease();
        lost.then(|| self.no_lease("it is not valid at this moment"))
    }
}
