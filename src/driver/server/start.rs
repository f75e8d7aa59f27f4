//! Starting: the index is taken, the first state published.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::events::deliver;
use super::lease::renewals;
use super::load::loads;
use super::validity::lapses;
use super::watchdog::watch;
use super::{Phase, ServerDriver, ServerShared};
use crate::clock::Tick;
use crate::driver::with_deadline;
use crate::error::{Error, ErrorKind, Result};
use crate::id::Incarnation;
use crate::op::{Begun, PodBegin, PodEnd, PodIdentity};
use crate::route::state::RoutingState;
use crate::telemetry::count;

/// The start keeps its own deadline; its caller waits this much longer for the outcome.
const MARGIN: Duration = Duration::from_millis(500);
/// How often a start that waits says so.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// How long the store may take before that is worth a line.
const REPORT_STORE_AFTER: Duration = Duration::from_secs(1);

impl ServerDriver {
    /// Takes an incarnation, publishes the first state, then renews the lease until `stop`. Waits
    /// while an earlier process with the same index may be alive. A second start does nothing; one
    /// that comes while the first is under way waits for that one's outcome.
    ///
    /// # Errors
    /// `PodIndexBusy` if the earlier process is alive at the deadline; what the store failed
    /// with; `Closed` after `stop`. A failed start leaves nothing behind and may be repeated.
    pub async fn start(&self, deadline: Tick) -> Result<()> {
        let shared = &self.shared;
        let mut patience = deadline;
        let mut started = {
            let mut state = shared.lock();
            match state.phase {
                Phase::New => {
                    state.phase = Phase::Starting;
                    shared.started.send_replace(None);
                    // A task of its own: a caller that stops waiting does not end it.
                    let starting = Starting(Arc::clone(shared));
                    state.own(tokio::spawn(starting.run(deadline)));
                    patience = deadline.after(MARGIN);
                }
                Phase::Starting => {}
                Phase::Running => return Ok(()),
                phase => return Err(phase.refuses()),
            }
            shared.started.subscribe()
        };
        let done = started.wait_for(Option::is_some);
        let done = with_deadline(&shared.clock, patience, "the start under way", done).await?;
        let outcome = done.ok().and_then(|outcome| outcome.clone());
        outcome.unwrap_or_else(|| Err(Phase::Stopped.refuses()))
    }
}

/// A start under way; unless it succeeds, the driver is as if it had never been started.
struct Starting(Arc<ServerShared>);

impl Starting {
    async fn run(self, deadline: Tick) {
        let shared = &*self.0;
        let turn = shared.publishing.lock();
        let turn = with_deadline(&shared.clock, deadline, "an earlier start", turn).await;
        let outcome = match &turn {
            Ok(_) => self.attempt(deadline).await,
            Err(error) => Err(error.clone()),
        };
        let failed = outcome.is_err();
        let taken = failed.then(|| shared.undo_start());
        shared.started.send_replace(Some(outcome));
        // The turn is still held: no start begins, and no stop ends, before this is done.
        if let Some(incarnation) = taken.filter(|taken| *taken != Incarnation::NONE) {
            shared.give_back(incarnation, shared.soon()).await;
        }
    }

    async fn attempt(&self, deadline: Tick) -> Result<()> {
        let shared = &self.0;
        shared.begin(deadline).await?;
        loop {
            let published = shared.lock().routing;
            shared.publish_now(deadline).await?;
            // The program may have set another state meanwhile.
            if self.succeed(published)? {
                return Ok(());
            }
        }
    }

    fn succeed(&self, published: RoutingState) -> Result<bool> {
        let shared = &self.0;
        let mut state = shared.lock();
        if state.phase != Phase::Starting {
            return Err(state.phase.refuses());
        }
        if state.routing != published {
            return Ok(false);
        }
        state.phase = Phase::Running;
        let renew = shared.config.renew;
        state.own(tokio::spawn(renewals(Arc::downgrade(shared), renew)));
        state.own(tokio::spawn(lapses(Arc::downgrade(shared), renew)));
        if let Some(waiting) = shared.take_events() {
            // It ends by itself: a hook that stops the driver is not cut off by that.
            tokio::spawn(deliver(Arc::downgrade(shared), waiting));
        }
        if shared.hooks.reports_load() {
            state.own(tokio::spawn(loads(Arc::downgrade(shared), renew)));
        }
        if let Some(limit) = shared.config.watchdog {
            state.own(tokio::spawn(watch(Arc::downgrade(shared), limit)));
        }
        Ok(true)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        // Aborted, or ended by a panic: then the waiting callers are notified here.
        self.0.started.send_if_modified(|outcome| {
            let missing = outcome.is_none();
            outcome.get_or_insert_with(|| Err(Phase::Stopped.refuses()));
            missing
        });
        let mut state = self.0.lock();
        if state.phase == Phase::Starting {
            state.phase = Phase::New;
        }
    }
}

impl ServerShared {
    /// Takes an incarnation; waits while an earlier process may be alive. With the turn held.
    pub(super) async fn begin(&self, deadline: Tick) -> Result<()> {
        let begin = PodBegin {
            pod: Box::new(PodIdentity {
                service: self.info.service.clone(),
                pod: self.info.pod,
                nonce: self.nonce.clone(),
                pod_uid: self.info.pod_uid.clone(),
            }),
            times: self.config.times,
        };
        let mut earlier = None;
        let mut waits = StartingWait::new(self);
        loop {
            let begun = waits
                .for_store(self.store.ask(begin.clone(), deadline))
                .await;
            match (begun, earlier) {
                (Ok(Begun::Started(incarnation)), _) => {
                    waits.ended(incarnation);
                    self.begin_validity();
                    let mut state = self.lock();
                    (state.incarnation, state.dead) = (incarnation, false);
                    return Ok(());
                }
                (Ok(Begun::Busy { incarnation, wait }), _) => {
                    count(&self.stats.index_busy);
                    waits.for_process(incarnation, wait);
                    self.outwait(incarnation, wait, deadline).await?;
                    earlier = Some(incarnation);
                }
                (Err(error), Some(earlier)) if error.kind() == ErrorKind::Timeout => {
                    return Err(self.busy(earlier));
                }
                (Err(error), _) => return Err(error),
            }
        }
    }

    async fn outwait(&self, earlier: Incarnation, wait: Duration, deadline: Tick) -> Result<()> {
        const LEAST: Duration = Duration::from_millis(10);
        // Asking at least every half gap keeps the store's clock going, so that the silence of a
        // dead service is not taken for an outage (docs/decisions/0006).
        let pause = wait.min(self.config.times.gap / 2);
        let pause = pause.min(REPORT_EVERY).max(LEAST);
        let mut stopping = self.stopping.subscribe();
        let pause = async {
            tokio::select! {
                () = tokio::time::sleep(pause) => Ok(()),
                _ = stopping.wait_for(|stopping| *stopping) => Err(Phase::Stopped.refuses()),
            }
        };
        let paused = with_deadline(&self.clock, deadline, "the earlier process", pause).await;
        paused.unwrap_or_else(|_| Err(self.busy(earlier)))
    }

    fn busy(&self, earlier: Incarnation) -> Error {
        let (pod, service) = (self.info.pod, &self.info.service);
        let text = format!("pod {pod} of {service} is held by another live process");
        Error::new(ErrorKind::PodIndexBusy, text).with("incarnation", earlier)
    }

    /// The driver as if it had never been started. Returns the incarnation that it had taken.
    fn undo_start(&self) -> Incarnation {
        self.valid_until.store(0, Ordering::SeqCst);
        let mut state = self.lock();
        if state.phase == Phase::Starting {
            state.phase = Phase::New;
        }
        std::mem::replace(&mut state.incarnation, Incarnation::NONE)
    }

    /// Withdraws the pod: successors and clients need not wait for its lease to end. If the store
    /// cannot be reached, the lease ends by itself.
    pub(super) async fn give_back(&self, incarnation: Incarnation, deadline: Tick) -> bool {
        let (service, pod) = (&self.info.service, self.info.pod);
        let end = PodEnd {
            service: service.clone(),
            pod,
            incarnation,
        };
        let ended = self.store.ask(end, deadline).await;
        if let Err(error) = &ended {
            tracing::error!(%service, pod = pod.get(), %error, "the pod was not withdrawn; its lease ends by itself");
        }
        ended.is_ok()
    }
}

/// Reports what a starting pod waits for: at once, and every few seconds.
struct StartingWait<'a> {
    pod: &'a ServerShared,
    began: Tick,
    reported: Option<Tick>,
}

impl<'a> StartingWait<'a> {
    fn new(pod: &'a ServerShared) -> Self {
        Self {
            pod,
            began: pod.clock.now(),
            reported: None,
        }
    }

    /// The earlier process may be alive for so much longer.
    fn for_process(&mut self, earlier: Incarnation, left: Duration) {
        let now = self.pod.clock.now();
        // A timer may fire a little early.
        let again = REPORT_EVERY * 9 / 10;
        if self.reported.is_some_and(|at| now.since(at) < again) {
            return;
        }
        self.reported = Some(now);
        let (service, pod) = (&self.pod.info.service, self.pod.info.pod.get());
        let waited_seconds = rounded(now.since(self.began));
        let left_seconds = rounded(left);
        tracing::warn!(
            %service, pod, earlier = earlier.get(), waited_seconds, left_seconds,
            "a starting pod waits for an earlier process of its index, which may be alive"
        );
    }

    /// Waits for the store's answer to the start.
    async fn for_store<T>(&mut self, answer: impl Future<Output = T>) -> T {
        tokio::pin!(answer);
        loop {
            tokio::select! {
                answer = &mut answer => return answer,
                () = tokio::time::sleep(REPORT_STORE_AFTER) => {}
            }
            let now = self.pod.clock.now();
            if self.reported.is_none_or(|at| now.since(at) >= REPORT_EVERY) {
                self.reported = Some(now);
                let (service, pod) = (&self.pod.info.service, self.pod.info.pod.get());
                let waited_seconds = rounded(now.since(self.began));
                tracing::warn!(%service, pod, waited_seconds, "a starting pod waits for the store");
            }
        }
    }

    /// The pod has its index.
    fn ended(&self, incarnation: Incarnation) {
        if self.reported.is_some() {
            let (service, pod) = (&self.pod.info.service, self.pod.info.pod.get());
            let waited_seconds = rounded(self.pod.clock.now().since(self.began));
            let incarnation = incarnation.get();
            tracing::warn!(%service, pod, incarnation, waited_seconds, "the pod has its index");
        }
    }
}

/// Seconds to a tenth.
fn rounded(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}
