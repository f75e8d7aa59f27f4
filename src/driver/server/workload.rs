//! The state of the whole service, written by the pod that leads: the lowest-numbered alive one.

use super::ServerShared;
use crate::clock::Tick;
use crate::error::Result;
use crate::op::{Pods, PodsReading, ReadPods, SetWorkload};
use crate::route::state::WorkloadState;
use crate::telemetry::count;

impl ServerShared {
    /// Writes the workload state of the service. It expires unless a leader renews it, instead of
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

    /// Writes the workload state without this pod, if no other pod is alive to write it.
    pub(super) async fn write_last_workload(&self, deadline: Tick) {
        let pods = self.read_pods(deadline).await;
        if pods.is_ok_and(|pods| pods.records.iter().all(|pod| pod.lease_left.is_zero())) {
            self.write_workload(deadline).await;
        }
    }

    /// Every pod of the service, read from scratch.
    pub(super) async fn read_pods(&self, deadline: Tick) -> Result<Box<Pods>> {
        let read = ReadPods {
            service: self.info.service.clone(),
            last: PodsReading::default(),
        };
        self.store.ask(read, deadline).await
    }
}
