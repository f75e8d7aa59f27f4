//! What the metrics say of the pods that are being read.

use std::sync::{Arc, Weak};

use super::StateCache;
use crate::route::state::Standing;
use crate::telemetry::{Gauges, Metrics, Sheet, Source, names};

impl StateCache {
    /// Reports to these metrics from now on, until the cache is dropped. What it has counted
    /// stays.
    pub(in crate::driver) fn report_to(self: &Arc<Self>, metrics: &Metrics) {
        metrics.join(Arc::clone(&self.stats) as Arc<dyn Source>);
        let cache: Weak<Self> = Arc::downgrade(self);
        metrics.watch(cache);
    }
}

impl Gauges for StateCache {
    #[allow(
        clippy::cast_precision_loss,
        reason = "gauges are shown, not counted on"
    )]
    fn report(&self, sheet: &mut Sheet) {
        let now = self.clock.now();
        for (id, watched) in self.services.load().iter() {
            // Looking must not keep a service alive that nobody uses.
            let Some(view) = watched.view.load_full() else {
                continue;
            };
            let service = self.stats.services.name(id);
            let labels = [service.namespace.as_str(), service.service.as_str()];
            let mut standings = [0_u32; 4];
            for pod in view.snapshot.pods() {
                standings[place(pod.standing(now))] += 1;
            }
            for (name, count) in STANDINGS.iter().zip(standings) {
                sheet.level(
                    &names::PODS,
                    &[labels[0], labels[1], name],
                    f64::from(count),
                );
            }
            let routable = view.candidates(now).len();
            sheet.level(&names::PODS_ROUTABLE, &labels, routable as f64);
            let age = now.since(view.snapshot.asked());
            sheet.level(&names::PODS_AGE, &labels, age.as_secs_f64());
        }
    }
}

const STANDINGS: [&str; 4] = ["ready", "draining", "shutdown", "lapsed"];

fn place(standing: Standing) -> usize {
    match standing {
        Standing::Ready => 0,
        Standing::Draining => 1,
        Standing::Shutdown => 2,
        Standing::Lapsed | Standing::Unknown => 3,
    }
}
