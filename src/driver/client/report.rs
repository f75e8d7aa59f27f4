//! What the metrics say of a client driver.

use std::sync::{Arc, Weak};

use super::{ClientDriver, Shared, Target};
use crate::telemetry::{Gauges, MetricSource, Metrics, MetricsSnapshot, count, names};

impl ClientDriver {
    /// Reports to these metrics from now on, until the driver is dropped. What it has counted
    /// stays.
    pub fn report_to(&self, metrics: &Metrics) {
        metrics.join(Arc::clone(&self.shared.stats) as Arc<dyn MetricSource>);
        metrics.join(self.shared.cache.stats() as Arc<dyn MetricSource>);
        let shared: Weak<Shared> = Arc::downgrade(&self.shared);
        metrics.watch(shared);
        let foreign = self.shared.places.foreign();
        foreign.for_each(|place| place.pods.states().report_to(metrics));
    }
}

impl Shared {
    /// The cache has just given no answer; it may hold one all the same, whose pod is gone or
    /// restarted. Those that were over it has dropped, and counted itself.
    pub(super) fn note_stale(&self, target: &Target) {
        if self.cache.get(target.key, self.clock.now()).is_some() {
            count(&self.stats.cache_stale);
        }
    }
}

impl Gauges for Shared {
    fn report(&self, sheet: &mut MetricsSnapshot) {
        if self.open().is_ok() {
            #[allow(clippy::cast_precision_loss, reason = "no cache holds that many")]
            sheet.level(&names::CACHE_ENTRIES, &[], self.cache.len() as f64);
        }
    }
}
