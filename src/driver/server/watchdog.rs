//! The watchdog: a pod whose program does not answer takes no new users.
//!
//! The renewals are podlink's own, so a pod whose event loop is blocked keeps its lease. Its users
//! stay: the pod is alive, and may be in the middle of their work.

use std::sync::Weak;
use std::time::Duration;

use super::{Phase, ServerShared, ServerState};
use crate::route::state::RoutingState;
use crate::telemetry::count;

/// How often the program is asked within the time that it may be silent.
const ASKS: u32 = 5;

impl ServerState {
    /// The routing state that the pod publishes.
    pub(super) fn routing_shown(&self) -> RoutingState {
        match self.routing {
            RoutingState::Ready if self.stalled => RoutingState::DenyNewCall,
            routing => routing,
        }
    }
}

/// How long the program has not answered.
#[derive(Debug, Default)]
struct Silence {
    answers: u64,
    lasted: Duration,
}

impl Silence {
    /// Notes how often the program has answered so far, a while after it was asked. Returns how
    /// long it was silent, if it has just answered.
    fn note(&mut self, answers: u64, waited: Duration) -> Option<Duration> {
        if answers == self.answers {
            self.lasted += waited;
            return None;
        }
        self.answers = answers;
        Some(std::mem::take(&mut self.lasted))
    }
}

impl ServerShared {
    async fn set_stalled(&self, stalled: bool, silent: Duration) {
        let shown = {
            let mut state = self.lock();
            let before = state.routing_shown();
            state.stalled = stalled;
            state.routing_shown() != before
        };
        let (service, pod, silent_ms) = (&self.info.service, self.info.pod, silent.as_millis());
        if stalled {
            count(&self.stats.program_stalls);
            tracing::warn!(%service, pod = pod.get(), silent_ms, "the program's event loop or thread does not answer; this pod takes no new users until it does");
        } else {
            tracing::warn!(%service, pod = pod.get(), silent_ms, "the program answers again; this pod publishes the routing state that was set");
        }
        if !shown {
            return; // the program has set another state than READY
        }
        if let Err(error) = self.publish(self.soon()).await {
            tracing::warn!(%service, pod = pod.get(), %error, "the routing state was not published; the next renewal publishes it");
        }
    }
}

/// The watchdog task: owned by the driver's state, ended by `stop`, and by the driver's end. It does
/// nothing from the beginning of a drain on.
pub(super) async fn watch(shared: Weak<ServerShared>, limit: Duration) {
    let period = limit / ASKS;
    let mut silence = Silence::default();
    let mut asked = None;
    loop {
        {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let stalled = {
                let state = shared.lock();
                if state.phase != Phase::Running {
                    return;
                }
                state.stalled
            };
            let Some(answers) = shared.hooks.answers() else {
                return;
            };
            // A pause of the whole process is not the program's: it counts as the time between two
            // asks, and the program gets new ones.
            let now = shared.clock.now();
            let waited = asked.replace(now).map(|before| now.since(before));
            let waited = waited.unwrap_or_default().min(period * 2);
            match silence.note(answers, waited) {
                Some(silent) if stalled => shared.set_stalled(false, silent).await,
                None if !stalled && silence.lasted >= limit => {
                    shared.set_stalled(true, silence.lasted).await;
                }
                _ => {}
            }
        }
        tokio::time::sleep(period).await;
    }
}
