//! The metrics of a client driver.

use std::sync::{Arc, Weak};

use super::{ClientDriver, ClientShared, Target};
use crate::telemetry::{Gauges, MetricSource, Metrics, MetricsSnapshot, count, names};

impl ClientDriver {
    /// Reports to these metrics from now on, until the driver is dropped. What it has counted
    /// stays.
    pub fn report_to(&self, metrics: &Metrics) {
        metrics.join(Arc::clone(&self.shared.stats) as Arc<dyn MetricSource>);
        metrics.join(self.shared.cache.stats() as Arc<dyn MetricSource>);
        let shared: Weak<ClientShared> = Arc::downgrade(&self.shared);
        metrics.watch(shared);
        let foreign = self.shared.places.foreign();
        foreign.for_each(|place| place.pods.states().report_to(metrics));
    }
}

impl ClientShared {
    /// The cache has just given no answer; it may hold one all the same, whose pod is gone or
    /// restarted. Expired entries it has dropped and counted itself.
    pub(super) fn note_stale(&self, target: &Target) {
        if self.cache.get(target.key, self.clock.now()).is_some() {
            count(&self.stats.cache_stale);
        }
    }
}

impl Gauges for ClientShared {
    fn report(&self, snapshot: &mut MetricsSnapshot) {
        if self.open().is_ok() {
            #[allow(clippy::cast_precision_loss, reason = "no cache holds that many")]
            let [entries, refusals] = [self.cache.len(), self.refusals.len()].map(|n| n as f64);
            snapshot.level(&names::CACHE_ENTRIES, &[], entries);
            snapshot.level(&names::REFUSALS, &[], refusals);
        }
    }
}
