//! The load that a pod publishes: its CPU's, and what the application reports.

use std::sync::{Arc, Weak};
use std::time::Duration;

use rand::Rng;

use super::{ServerShared, ServerState};
use crate::error::Result;
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

    fn take_load(&self, answer: Result<i64>) {
        match answer {
            Ok(load) => self.lock().reported_load = load,
            Err(error) => {
                count(&self.stats.load_failures);
                let (service, pod) = (&self.info.service, self.info.pod);
                tracing::warn!(%service, pod = pod.get(), %error, "the load function failed; the last value stays");
            }
        }
    }
}

/// The load task: owned by the driver's state, ended by `stop`, when another process takes the
/// index, and by the driver's end. Its own task, so that a slow load function never delays a
/// renewal. The function is never called twice at a time: one that hangs is called once.
pub(super) async fn loads(shared: Weak<ServerShared>, period: Duration) {
    loop {
        let Some(hooks) = shared.upgrade().map(|shared| Arc::clone(&shared.hooks)) else {
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
            shared.take_load(answer);
        }
        let pause = period.mul_f64(rand::rng().random_range(0.9..1.1));
        tokio::time::sleep(pause).await;
    }
}
