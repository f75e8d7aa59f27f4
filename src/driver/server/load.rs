//! The load that a pod publishes: its CPU's, and what the application reports.

use std::sync::{Arc, Weak};
use std::time::Duration;

use rand::Rng;

use super::{ServerShared, ServerState};
use crate::error::{ErrorKind, Result};
use crate::route::load::weighted;
use crate::telemetry::count;

impl ServerShared {
    pub(super) fn weighted_load(&self, state: &ServerState) -> i64 {
        weighted(
            self.config.cpu_factor,
            state.cpu_percent,
            state.reported_load,
        )
    }

    /// Takes what the load function has answered. Returns whether to call it again.
    fn take_load(&self, answer: Result<i64>) -> bool {
        match answer {
            Ok(load) => self.lock().reported_load = load,
            Err(error) if error.kind() == ErrorKind::Closed => {
                count(&self.stats.load_failures);
                let (service, pod) = (&self.info.service, self.info.pod);
                tracing::warn!(%service, pod = pod.get(), %error, "the load function is called no more; the last value stays");
                return false;
            }
            Err(error) => {
                count(&self.stats.load_failures);
                let (service, pod) = (&self.info.service, self.info.pod);
                tracing::warn!(%service, pod = pod.get(), %error, "the load function failed; the last value stays");
            }
        }
        true
    }
}

/// The load task: owned by the driver's state, ended by `stop`, when another process takes the
/// index, by the driver's end, and when there is no load function or loop of it any more. Its own task, so that a slow load function never delays a
/// renewal. The function is never called twice at a time: one that hangs is called once.
pub(super) async fn loads(shared: Weak<ServerShared>, period: Duration) {
    loop {
        let hooks = shared.upgrade().map(|shared| Arc::clone(&shared.hooks));
        let Some(hooks) = hooks.filter(|hooks| hooks.reports_load()) else {
            return;
        };
        let mut answer = hooks.load();
        let answer = loop {
            if let Ok(answer) = tokio::time::timeout(period, &mut answer).await {
                break answer;
            }
            // The last value stays until the answer comes, if it does.
            let Some(shared) = shared.upgrade() else {
                return;
            };
            count(&shared.stats.load_failures);
        };
        {
            let Some(shared) = shared
                .upgrade()
                .filter(|shared| shared.lock().phase.renews())
            else {
                return;
            };
            if hooks.reports_load() && !shared.take_load(answer) {
                return;
            }
        }
        let pause = period.mul_f64(rand::rng().random_range(0.9..1.1));
        tokio::time::sleep(pause).await;
    }
}
