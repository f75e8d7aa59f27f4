//! The state of the whole service, written by the pod that leads: the lowest-numbered alive one.

use super::Shared;
use crate::clock::Tick;
use crate::error::Result;
use crate::op::{Pods, PodsReading, ReadPods, SetWorkload};
use crate::route::state::WorkloadState;
use crate::telemetry::count;

impl Shared {
    /// Says what the service is like. That disappears by itself if nobody keeps it up, instead of
    /// staying READY for ever.
    pub(super) async fn write_workload(&self, deadline: Tick) {
        let service = &self.info.service;
        let times = self.config.times;
        let written = match self.read_pods(deadline).await {
            Ok(pods) => {
                let set = SetWorkload {
                    service: service.clone(),
                    workload: WorkloadState::of(&pods.records, pods.now_ms),
                    ttl: times.lease + times.grace,
                };
                self.store.ask(set, deadline).await
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
        let pods = self.read_pods(deadline).await;
        if pods.is_ok_and(|pods| pods.records.iter().all(|pod| pod.lease_left.is_zero())) {
            self.write_workload(deadline).await;
        }
    }

    /// Every pod of the service, read from scratch.
    pub(super) async fn read_pods(&self, deadline: Tick) -> Result<Pods> {
        let read = ReadPods {
            service: self.info.service.clone(),
            last: PodsReading::default(),
        };
        self.store.ask(read, deadline).await
    }
}
