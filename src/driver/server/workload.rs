//! The state of the whole service, written by the pod that leads: the lowest-numbered alive one.

use super::Shared;
use crate::clock::Tick;
use crate::route::state::{Readiness, RoutingState, WorkloadState};
use crate::store::{Pods, PodsReading};
use crate::telemetry::count;

impl Shared {
    /// Says what the service is like. That disappears by itself if nobody keeps it up, instead of
    /// staying READY for ever.
    pub(super) async fn write_workload(&self, deadline: Tick) {
        let service = &self.info.service;
        let times = self.config.times;
        let written = match self
            .executor
            .pods(service, &PodsReading::default(), deadline)
            .await
        {
            Ok(pods) => {
                let workload = aggregate(&pods);
                let ttl = times.lease + times.grace;
                self.executor
                    .set_workload(service, &workload, ttl, deadline)
                    .await
            }
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => count(&self.stats.workloads_written),
            Err(error) => {
                count(&self.stats.workload_failures);
                tracing::warn!(%service, %error, "the workload state was not written");
            }
        }
    }

    /// What the service looks like without this pod, if nobody else is there to say so.
    pub(super) async fn write_last_workload(&self, deadline: Tick) {
        let pods = self
            .executor
            .pods(&self.info.service, &PodsReading::default(), deadline)
            .await;
        if pods.is_ok_and(|pods| pods.records.iter().all(|pod| pod.lease_left.is_zero())) {
            self.write_workload(deadline).await;
        }
    }
}

fn aggregate(pods: &Pods) -> WorkloadState {
    let alive = || pods.records.iter().filter(|pod| !pod.lease_left.is_zero());
    let ready = alive().filter(|pod| {
        pod.state.state == Readiness::Ready && pod.state.routing_state == RoutingState::Ready
    });
    let (replicas, ready) = (alive().count(), ready.count());
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    WorkloadState {
        state: if ready > 0 {
            Readiness::Ready
        } else {
            Readiness::NotReady
        },
        replicas: number(replicas),
        ready_replicas: number(ready),
        update_time: pods.now_ms,
    }
}
