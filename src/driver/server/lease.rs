//! The lease: renewed, lost, taken again.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rand::Rng;

use super::events::LeaseReason;
use super::validity::RenewalReply;
use super::{Phase, ServerShared};
use crate::clock::Tick;
use crate::driver::cpu::CpuMeter;
use crate::driver::with_deadline;
use crate::error::{Error, ErrorKind, Result};
use crate::op::{PodRenew, Renewed};
use crate::route::state::{PodState, Readiness, RoutingState};
use crate::telemetry::count;

impl ServerShared {
    /// Renews the lease and publishes the state as it is now.
    pub(super) async fn publish(&self, deadline: Tick) -> Result<()> {
        let turn = self.publishing.lock();
        let _turn = with_deadline(&self.clock, deadline, "an earlier publication", turn).await?;
        self.publish_now(deadline).await
    }

    /// The same, with the turn held.
    pub(super) async fn publish_now(&self, deadline: Tick) -> Result<()> {
        self.may_publish()?;
        let (state, times) = (self.published(), self.config.times);
        let sent = self.clock.now();
        let renew = PodRenew {
            service: self.info.service.clone(),
            state: Arc::new(state),
            times,
        };
        let renewed = self.store.ask(renew, deadline).await;
        self.count_publication(&renewed, sent);
        match renewed? {
            Renewed::Done {
                leads,
                recreated,
                server,
                now,
            } => {
                self.renewed(RenewalReply {
                    sent,
                    recreated,
                    server,
                });
                self.watch_store_clock(sent, now, deadline).await;
                if leads {
                    self.write_workload(deadline).await;
                }
                Ok(())
            }
            Renewed::Dead => {
                self.lock().dead = true;
                Err(self.lose(LeaseReason::DeclaredDead, DEAD))
            }
            Renewed::Superseded(by) => {
                self.superseded();
                let text = "another process has taken the pod index";
                let error = self.lose(LeaseReason::Superseded, text);
                Err(error.with("incarnation", by))
            }
        }
    }

    fn may_publish(&self) -> Result<()> {
        let state = self.lock();
        if !state.phase.publishes() {
            return Err(state.phase.refuses());
        }
        if state.dead {
            return Err(self.no_lease(DEAD));
        }
        Ok(())
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
            routing_state: state.routing_shown(),
            update_time: 0,
            incarnation: state.incarnation,
            metadata: self.info.metadata.clone(),
        }
    }

    /// Another process holds the index: this one ends for good.
    fn superseded(&self) {
        let mut state = self.lock();
        state.dead = true;
        // A stop under way goes on to its end.
        if state.phase != Phase::Draining {
            state.phase = Phase::Superseded;
        }
    }

    pub(super) fn no_lease(&self, why: &str) -> Error {
        let (pod, service) = (self.info.pod, &self.info.service);
        let text = format!("pod {pod} of {service} lost its lease: {why}");
        Error::new(ErrorKind::LeaseLost, text)
    }

    /// Renews once, and tries again within the period where that may help.
    async fn keep_alive(&self) {
        const TRIES: u32 = 4;
        let pause = self.config.renew / TRIES;
        for _ in 0..TRIES {
            let deadline = self
                .clock
                .deadline(self.config.timeout.min(self.config.renew));
            let Err(error) = self.renew(deadline).await else {
                self.log_recovery();
                return;
            };
            count(&self.stats.renew_failures);
            self.log_renew_failure(&error);
            if !self.lock().phase.renews() {
                return;
            }
            tokio::time::sleep(pause).await;
            if !self.lock().phase.renews() {
                return;
            }
        }
    }

    /// Renews. A process that was declared dead while it slept comes back as a new incarnation; one
    /// whose index was taken does not, and neither does one that is being stopped.
    async fn renew(&self, deadline: Tick) -> Result<()> {
        let turn = self.publishing.lock();
        let _turn = with_deadline(&self.clock, deadline, "an earlier publication", turn).await?;
        let renewed = self.publish_now(deadline).await;
        let back = {
            let state = self.lock();
            state.dead && state.phase == Phase::Running
        };
        match renewed {
            Err(_) if back => self.come_back(deadline).await,
            renewed => renewed,
        }
    }

    async fn come_back(&self, deadline: Tick) -> Result<()> {
        let (service, pod) = (&self.info.service, self.info.pod);
        let begun = self.begin(deadline).await;
        if begun
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::PodIndexBusy)
        {
            self.superseded();
        }
        begun?;
        self.publish_now(deadline).await?;
        tracing::warn!(%service, pod = pod.get(), "came back as a new incarnation");
        Ok(())
    }

    /// The last line about a pod's lease should say how it stands.
    fn log_recovery(&self) {
        if self.renewal_fails.swap(false, Ordering::Relaxed) {
            let (service, pod) = (&self.info.service, self.info.pod);
            tracing::warn!(%service, pod = pod.get(), "renewals succeed again");
        }
    }

    fn log_renew_failure(&self, error: &Error) {
        self.renewal_fails.store(true, Ordering::Relaxed);
        let until = Tick::from_nanos(self.valid_until.load(Ordering::SeqCst));
        let left = until.since(self.clock.now());
        let (pod, service, left_ms) = (self.info.pod, &self.info.service, left.as_millis());
        if left.is_zero() {
            tracing::error!(%service, pod = pod.get(), %error, "a renewal failed and the lease has ended");
        } else if left < self.config.renew * 2 {
            tracing::error!(%service, pod = pod.get(), left_ms, %error, "a renewal failed and the lease is close to its end");
        } else {
            tracing::warn!(%service, pod = pod.get(), left_ms, %error, "a renewal failed");
        }
    }
}

const DEAD: &str = "this incarnation was declared dead";

/// The renewal task: owned by the driver's state, ended by `stop`, and by the driver's end.
pub(super) async fn renewals(shared: Weak<ServerShared>, period: Duration) {
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
