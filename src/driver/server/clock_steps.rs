//! Steps of the store's clock: what the renewals show is reported to the store at once, so that no
//! pod is declared dead too early (docs/decisions/0020).

use std::sync::{Mutex, PoisonError};

use super::ServerShared;
use crate::clock::Tick;
use crate::op::{PodStepped, Stepped};
use crate::route::clock_step::{ClockReading, ClockStep, ClockWatch};
use crate::telemetry::count;

/// What the renewals have shown of the store's clock.
#[derive(Debug, Default)]
pub(super) struct ClockSteps {
    /// Never held across an await.
    seen: Mutex<SeenSteps>,
}

#[derive(Debug, Default)]
struct SeenSteps {
    watch: ClockWatch,
    /// A step that the store does not know yet: a report that failed is repeated.
    unreported: Option<ClockStep>,
    /// The last report was not believed, and that was logged.
    unbelieved: bool,
}

impl ClockSteps {
    fn with<T>(&self, act: impl FnOnce(&mut SeenSteps) -> T) -> T {
        // Every field is valid even after a panic.
        act(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The step to report after this renewal.
    fn unreported(&self, reading: ClockReading) -> Option<ClockStep> {
        self.with(|seen| {
            match seen.watch.step(reading) {
                Some(step) => seen.unreported = Some(step),
                None if seen.unreported.is_none() => seen.unbelieved = false,
                None => {}
            }
            seen.unreported
        })
    }
}

impl ServerShared {
    /// Judges the store's clock by a renewal that has just succeeded, and reports a step.
    pub(super) async fn watch_store_clock(&self, sent: Tick, store_micros: u64, deadline: Tick) {
        let reading = ClockReading {
            sent,
            answered: self.clock.now(),
            store_micros,
        };
        let Some(step) = self.clock_steps.unreported(reading) else {
            return;
        };
        let report = PodStepped {
            service: self.info.service.clone(),
            pod: self.info.pod,
            incarnation: self.lock().incarnation,
            step: Box::new(step),
            times: self.config.times,
        };
        let (service, pod, step_ms) = (&self.info.service, self.info.pod, step.by.as_millis());
        match self.store.ask(report, deadline).await {
            Ok(verdict) => self.count_step(verdict, step_ms),
            Err(error) => {
                tracing::warn!(%service, pod = pod.get(), step_ms, %error, "a step of the store's clock was not reported; the next renewal repeats it");
            }
        }
    }

    fn count_step(&self, verdict: Stepped, step_ms: u128) {
        let (service, pod) = (&self.info.service, self.info.pod);
        let known = self.clock_steps.with(|seen| {
            seen.unreported = None;
            std::mem::replace(&mut seen.unbelieved, verdict == Stepped::Unbelieved)
        });
        match verdict {
            Stepped::Held => {
                count(&self.stats.clock_steps);
                tracing::warn!(%service, pod = pod.get(), step_ms, "the store's clock stepped forward: no pod is declared dead for a lease and a grace");
            }
            Stepped::Unbelieved => {
                count(&self.stats.clock_steps_unbelieved);
                if !known {
                    tracing::error!(%service, pod = pod.get(), step_ms, "only this pod sees steps of the store's clock, again and again: it is not believed. Check the clock of its machine");
                }
            }
            // The next renewal says why.
            Stepped::Refused => {}
        }
    }
}
