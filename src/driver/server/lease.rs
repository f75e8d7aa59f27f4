//! The lease: taken, renewed, lost, taken again.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rand::Rng;
use tokio::task::AbortHandle;

use super::{Phase, ServerDriver, Shared, State};
use crate::clock::Tick;
use crate::driver::by;
use crate::driver::cpu::CpuMeter;
use crate::error::{Error, ErrorKind, Result};
use crate::executor::{Begun, PodIdentity, Pods, Renewed};
use crate::id::Incarnation;
use crate::route::load::weighted;
use crate::route::state::{PodState, Readiness, RoutingState, WorkloadState};
use crate::telemetry::count;

impl ServerDriver {
    /// Takes an incarnation, publishes the first state, then renews the lease until `stop`. Waits
    /// while an earlier process with the same index may be alive. A second start does nothing.
    ///
    /// # Errors
    /// `PodIndexBusy` if the earlier process is alive at the deadline; what the store failed
    /// with; `Closed` after `stop`. A failed start leaves nothing behind.
    pub async fn start(&self, deadline: Tick) -> Result<()> {
        {
            let mut state = self.shared.lock();
            match state.phase {
                Phase::New => state.phase = Phase::Starting,
                Phase::Running => return Ok(()),
                phase => return Err(phase.refuses("start")),
            }
        }
        let starting = Starting {
            shared: &self.shared,
        };
        self.shared.begin(deadline).await?;
        self.shared.publish(deadline).await?;
        starting.succeed()
    }
}

/// A start under way; unless it succeeds, the driver is as if it had never been started.
struct Starting<'a> {
    shared: &'a Arc<Shared>,
}

impl Starting<'_> {
    fn succeed(self) -> Result<()> {
        let mut state = self.shared.lock();
        if state.phase != Phase::Starting {
            // Stopped meanwhile; the drop gives the lease back.
            return Err(state.phase.refuses("start"));
        }
        state.phase = Phase::Running;
        let renew = self.shared.config.renew;
        let mut own = |task: tokio::task::JoinHandle<()>| state.tasks.push(task.abort_handle());
        own(tokio::spawn(renewals(Arc::downgrade(self.shared), renew)));
        if self.shared.hooks.reports_load() {
            own(tokio::spawn(loads(Arc::downgrade(self.shared), renew)));
        }
        Ok(())
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        let incarnation = {
            let mut state = self.shared.lock();
            match state.phase {
                Phase::Running => return,
                Phase::Starting => state.phase = Phase::New,
                _ => {}
            }
            std::mem::replace(&mut state.incarnation, Incarnation::NONE)
        };
        self.shared.valid_until.store(0, Ordering::SeqCst);
        if incarnation != Incarnation::NONE {
            // The store may not answer now; then the lease ends by itself.
            let shared = Arc::clone(self.shared);
            tokio::spawn(async move { shared.end(incarnation, shared.soon()).await });
        }
    }
}

impl Shared {
    /// Takes an incarnation; waits while an earlier process may be alive.
    async fn begin(&self, deadline: Tick) -> Result<()> {
        let mut random = [0_u64; 2];
        rand::rng().fill(&mut random);
        let identity = PodIdentity {
            service: self.info.service.clone(),
            pod: self.info.pod,
            nonce: format!("{:016x}{:016x}", random[0], random[1]),
            pod_uid: self.info.pod_uid.clone(),
        };
        loop {
            let times = self.config.times;
            match self.executor.pod_begin(&identity, times, deadline).await? {
                Begun::Started(incarnation) => {
                    self.lock().incarnation = incarnation;
                    return Ok(());
                }
                Begun::Busy { incarnation, wait } => {
                    self.outwait(incarnation, wait, deadline).await?;
                }
            }
        }
    }

    async fn outwait(&self, earlier: Incarnation, wait: Duration, deadline: Tick) -> Result<()> {
        const LEAST: Duration = Duration::from_millis(10);
        // Asking at least every half gap keeps the store's clock going, so that the silence of a
        // dead service is not taken for an outage (docs/decisions/0006).
        let pause = wait.min(self.config.times.gap / 2).max(LEAST);
        let pause = tokio::time::sleep(pause);
        let paused = by(&self.clock, deadline, "the earlier process", pause).await;
        paused.map_err(|_| {
            let (pod, service) = (self.info.pod, &self.info.service);
            let text = format!("pod {pod} of {service} is held by another live process");
            Error::new(ErrorKind::PodIndexBusy, text).with("incarnation", earlier)
        })
    }

    /// Renews the lease and publishes the state as it is now.
    pub(super) async fn publish(&self, deadline: Tick) -> Result<()> {
        let turn = self.publishing.lock();
        let _turn = by(&self.clock, deadline, "an earlier publication", turn).await?;
        self.notice_lapse();
        let (state, times) = (self.published(), self.config.times);
        let (service, sent) = (&self.info.service, self.clock.now());
        let renewed = self
            .executor
            .pod_renew(service, &state, times, deadline)
            .await?;
        match renewed {
            Renewed::Done { leads } => {
                let valid = sent.after(times.lease.saturating_sub(self.config.guard));
                self.valid_until.store(valid.as_nanos(), Ordering::SeqCst);
                count(&self.stats.published);
                if leads {
                    self.write_workload(deadline).await;
                }
                Ok(())
            }
            Renewed::Dead => Err(self.lost("this incarnation was declared dead")),
            Renewed::Superseded(by) => {
                self.lock().phase = Phase::Superseded;
                let error = self.lost("another process has taken the pod index");
                Err(error.with("incarnation", by))
            }
        }
    }

    fn published(&self) -> PodState {
        let state = self.lock();
        let readiness = match state.routing {
            RoutingState::Shutdown => Readiness::NotReady,
            RoutingState::Ready | RoutingState::DenyNewCall => Readiness::Ready,
        };
        PodState {
            pod_id: self.info.pod,
            state: readiness,
            load_state: self.weighted_load(&state),
            routing_state: state.routing,
            update_time: 0,
            incarnation: state.incarnation,
            metadata: self.info.metadata.clone(),
        }
    }

    pub(super) fn weighted_load(&self, state: &State) -> i64 {
        weighted(
            self.config.cpu_factor,
            state.cpu_percent,
            state.reported_load,
        )
    }

    /// The state of the whole service, written by the pod that leads: the lowest-numbered alive
    /// one. It disappears by itself if nobody keeps it up, instead of staying READY for ever.
    async fn write_workload(&self, deadline: Tick) {
        let service = &self.info.service;
        let times = self.config.times;
        let written = match self.executor.pods(service, deadline).await {
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
            Err(error) => tracing::warn!(%service, %error, "the workload state was not written"),
        }
    }

    /// A lease that is over may have been replaced: what was held under it is held no more, even
    /// if the next renewal succeeds (docs/decisions/0006).
    fn notice_lapse(&self) {
        let until = self.valid_until.load(Ordering::SeqCst);
        if until != 0 && self.clock.now().as_nanos() >= until {
            let error = self.lost("it was not renewed in time");
            let (service, pod) = (&self.info.service, self.info.pod);
            tracing::error!(%service, %pod, %error, "users of this pod must be claimed again");
        }
    }

    fn lost(&self, why: &str) -> Error {
        if self.valid_until.swap(0, Ordering::SeqCst) != 0 {
            count(&self.stats.leases_lost);
            self.owned().clear();
            self.hooks.lease_lost();
        }
        let (pod, service) = (self.info.pod, &self.info.service);
        let text = format!("pod {pod} of {service} lost its lease: {why}");
        Error::new(ErrorKind::LeaseLost, text)
    }

    /// Withdraws the pod: successors and clients need not wait for its lease to end.
    pub(super) async fn end(&self, incarnation: Incarnation, deadline: Tick) -> Result<()> {
        let (service, pod) = (&self.info.service, self.info.pod);
        self.executor
            .pod_end(service, pod, incarnation, deadline)
            .await?;
        Ok(())
    }

    /// What the service looks like without this pod, if nobody else is there to say so.
    pub(super) async fn write_last_workload(&self, deadline: Tick) {
        let pods = self.executor.pods(&self.info.service, deadline).await;
        if pods.is_ok_and(|pods| pods.records.iter().all(|pod| pod.lease_left.is_zero())) {
            self.write_workload(deadline).await;
        }
    }

    /// Renews once, and tries again within the period where that may help.
    async fn keep_alive(&self) {
        const TRIES: u32 = 4;
        let pause = self.config.renew / TRIES;
        for _ in 0..TRIES {
            let deadline = self
                .clock
                .deadline(self.config.timeout.min(self.config.renew));
            let Err(error) = self.publish(deadline).await else {
                return;
            };
            count(&self.stats.renew_failures);
            if error.kind() == ErrorKind::LeaseLost {
                return self.recover(&error).await;
            }
            self.complain(&error);
            tokio::time::sleep(pause).await;
            if !self.lock().phase.renews() {
                return;
            }
        }
    }

    fn complain(&self, error: &Error) {
        let until = Tick::from_nanos(self.valid_until.load(Ordering::SeqCst));
        let left = until.since(self.clock.now());
        let (pod, service, left_ms) = (self.info.pod, &self.info.service, left.as_millis());
        if left < self.config.renew * 2 {
            tracing::error!(%service, %pod, left_ms, %error, "a renewal failed and the lease is close to its end");
        } else {
            tracing::warn!(%service, %pod, left_ms, %error, "a renewal failed");
        }
    }

    /// A process that was declared dead while it slept comes back as a new incarnation. One whose
    /// index was taken does not.
    async fn recover(&self, error: &Error) {
        let (service, pod) = (&self.info.service, self.info.pod);
        tracing::error!(%service, %pod, %error, "the lease was lost");
        if !self.lock().phase.renews() {
            return;
        }
        let deadline = self.soon();
        let begun = match self.begin(deadline).await {
            Ok(()) => self.publish(deadline).await,
            Err(error) => Err(error),
        };
        match begun {
            Ok(()) => tracing::warn!(%service, %pod, "came back as a new incarnation"),
            Err(error) if error.kind() == ErrorKind::PodIndexBusy => {
                self.lock().phase = Phase::Superseded;
                tracing::error!(%service, %pod, %error, "the pod index was taken");
            }
            // The next period tries again.
            Err(error) => tracing::error!(%service, %pod, %error, "no new lease yet"),
        }
    }

    /// Ends the renewal and the load task.
    pub(super) fn end_tasks(&self) {
        let tasks = std::mem::take(&mut self.lock().tasks);
        tasks.iter().for_each(AbortHandle::abort);
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

/// The renewal task: owned by the driver's state, ended by `stop`, and by the driver's end.
async fn renewals(shared: Weak<Shared>, period: Duration) {
    let Some(clock) = shared.upgrade().map(|shared| shared.clock.clone()) else {
        return;
    };
    let mut cpu = CpuMeter::new(&clock);
    loop {
        // ±10 %, so that a thousand pods do not renew in step.
        let pause = period.mul_f64(rand::rng().random_range(0.9..1.1));
        tokio::time::sleep(pause).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if !shared.lock().phase.renews() {
            return;
        }
        let percent = cpu.sample(&clock);
        shared.lock().cpu_percent = percent;
        shared.keep_alive().await;
    }
}

/// The load task: owned by the driver's state, ended by `stop`, and by the driver's end. Its own
/// task, so that a slow load function never delays a renewal.
async fn loads(shared: Weak<Shared>, period: Duration) {
    loop {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let asked = tokio::time::timeout(period, shared.hooks.load()).await;
        match asked {
            Ok(Ok(load)) => shared.lock().reported_load = load,
            Ok(Err(error)) => {
                count(&shared.stats.load_failures);
                let (service, pod) = (&shared.info.service, shared.info.pod);
                tracing::warn!(%service, %pod, %error, "the load function failed; the last value stays");
            }
            // It answers later or never: the last value stays.
            Err(_) => count(&shared.stats.load_failures),
        }
        drop(shared);
        let pause = period.mul_f64(rand::rng().random_range(0.9..1.1));
        tokio::time::sleep(pause).await;
    }
}
