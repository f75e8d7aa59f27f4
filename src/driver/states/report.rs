//! The metrics of the pods that are being read.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use serde_json::{Value, json};

use super::StateCache;
use crate::driver::view::View;
use crate::id::ServiceId;
use crate::route::snapshot::Pod;
use crate::route::state::Standing;
use crate::telemetry::{Gauges, MetricSource, Metrics, MetricsSnapshot, names};

impl StateCache {
    /// Reports to these metrics from now on, until the cache is dropped. What it has counted
    /// stays. A second report would count twice: it does nothing.
    pub(in crate::driver) fn report_to(self: &Arc<Self>, metrics: &Metrics) {
        if self.reported.swap(true, Ordering::SeqCst) {
            return;
        }
        metrics.join(Arc::clone(&self.stats) as Arc<dyn MetricSource>);
        let cache: Weak<Self> = Arc::downgrade(self);
        metrics.watch(cache);
    }
}

impl Gauges for StateCache {
    #[allow(clippy::cast_precision_loss, reason = "gauges are only displayed")]
    fn report(&self, snapshot: &mut MetricsSnapshot) {
        let now = self.clock.now();
        for (id, watched) in self.services.load().iter() {
            // A scrape must not keep an unused service alive.
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
                snapshot.level(
                    &names::PODS,
                    &[labels[0], labels[1], name],
                    f64::from(count),
                );
            }
            let routable = view.candidates(now).len();
            snapshot.level(&names::PODS_ROUTABLE, &labels, routable as f64);
            let age = now.since(view.snapshot.asked());
            snapshot.level(&names::PODS_AGE, &labels, age.as_secs_f64());
        }
    }

    fn pods(&self) -> Vec<Value> {
        let services = self.services.load();
        let seen = services.iter().filter_map(|(id, watched)| {
            let view = watched.view.load_full()?;
            Some(self.pods_of(id, &view))
        });
        seen.collect()
    }
}

impl StateCache {
    fn pods_of(&self, id: &ServiceId, view: &View) -> Value {
        let now = self.clock.now();
        let pod = |pod: &Pod| {
            json!({
                "pod": pod.state.pod_id.get(),
                "state": STANDINGS[place(pod.standing(now))],
                "load": pod.state.load_state,
                "incarnation": pod.state.incarnation.get(),
                "lease_left_seconds": pod.lease_until.since(now).as_secs_f64(),
                "metadata": pod.state.metadata,
            })
        };
        json!({
            "namespace": id.namespace.as_str(),
            "service": id.service.as_str(),
            "age_seconds": now.since(view.snapshot.asked()).as_secs_f64(),
            "pods": view.snapshot.pods().iter().map(pod).collect::<Vec<_>>(),
        })
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
