//! Calls by name: counts by outcome, and durations.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::count;
use super::histogram::Histogram;
use super::names::Metric;
use super::snapshot::MetricsSnapshot;
use crate::clock::{Clock, Tick};
use crate::error::{ErrorKind, Result};

const RESULTS: [&str; 3] = ["ok", "timeout", "error"];
/// Always reported, from 0, so that a rate sees the first failure.
const USUAL: [ErrorKind; 2] = [ErrorKind::Timeout, ErrorKind::StoreUnavailable];

/// The counters of one kind of calls, by name.
#[derive(Debug)]
pub struct Calls {
    names: &'static [&'static str],
    rows: Box<[Row]>,
    count: &'static Metric,
    duration: &'static Metric,
}

#[derive(Debug)]
struct Row {
    ok: AtomicU64,
    errors: [AtomicU64; ErrorKind::ALL.len()],
    /// By result.
    durations: [Histogram; RESULTS.len()],
}

impl Calls {
    /// Empty counters, reported as the metrics `count` and `duration`.
    #[must_use]
    pub fn new(
        names: &'static [&'static str],
        count: &'static Metric,
        duration: &'static Metric,
    ) -> Self {
        let row = |_| Row {
            ok: AtomicU64::new(0),
            errors: std::array::from_fn(|_| AtomicU64::new(0)),
            durations: std::array::from_fn(|_| Histogram::of(duration)),
        };
        Self {
            names,
            rows: names.iter().map(row).collect(),
            count,
            duration,
        }
    }

    /// Counts a call that has ended. A name that is not in the table is not counted.
    pub fn ended<T>(&self, name: &'static str, took: Duration, outcome: &Result<T>) {
        let at = self.names.iter().position(|known| *known == name);
        let Some(row) = at.map(|at| &self.rows[at]) else {
            debug_assert!(false, "{name} is not in the table");
            return;
        };
        let (counter, result) = match outcome {
            Ok(_) => (Some(&row.ok), 0),
            Err(error) => {
                let all = ErrorKind::ALL.iter().position(|kind| *kind == error.kind());
                let late = error.kind() == ErrorKind::Timeout;
                (all.map(|at| &row.errors[at]), if late { 1 } else { 2 })
            }
        };
        counter.into_iter().for_each(count);
        row.durations[result].time(took);
    }

    /// Runs `work`, and counts its outcome and duration.
    pub async fn observe<T>(
        &self,
        name: &'static str,
        clock: &Clock,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let began: Tick = clock.now();
        let outcome = work.await;
        self.ended(name, clock.now().since(began), &outcome);
        outcome
    }

    /// Adds the counters to `snapshot`, with `labels` before the call's own. Calls that never
    /// happened are left out.
    pub fn report(&self, snapshot: &mut MetricsSnapshot, labels: &[&str]) {
        let with = |name: &'static str, last: &'static str| {
            let labels = labels.iter().copied();
            labels.chain([name, last]).collect::<Vec<&str>>()
        };
        for (name, row) in self.names.iter().zip(&self.rows) {
            let ended = row.ended();
            if ended == 0 {
                continue;
            }
            snapshot.count(
                self.count,
                &with(name, "ok"),
                row.ok.load(Ordering::Relaxed),
            );
            for (kind, counter) in ErrorKind::ALL.iter().zip(&row.errors) {
                let counted = counter.load(Ordering::Relaxed);
                if counted > 0 || USUAL.contains(kind) {
                    snapshot.count(self.count, &with(name, kind.code()), counted);
                }
            }
            for (result, durations) in RESULTS.iter().zip(&row.durations) {
                if durations.read().count() > 0 {
                    snapshot.spread(self.duration, &with(name, result), durations);
                }
            }
        }
    }

    /// The number of calls that ended, and of those that ended with an error.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        self.rows.iter().fold((0, 0), |(ended, failed), row| {
            (ended + row.ended(), failed + row.failed())
        })
    }
}

impl Row {
    fn failed(&self) -> u64 {
        let errors = self.errors.iter();
        errors.map(|counter| counter.load(Ordering::Relaxed)).sum()
    }

    fn ended(&self) -> u64 {
        self.ok.load(Ordering::Relaxed) + self.failed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::telemetry::names;
    use crate::telemetry::snapshot::MetricValue;

    #[test]
    fn a_call_is_counted_by_how_it_ended() {
        let metrics = (&names::STORE_CALLS_TOTAL, &names::STORE_CALL_DURATION);
        let calls = Calls::new(&names::STORE_CALLS, metrics.0, metrics.1);
        let took = Duration::from_millis(3);
        calls.ended("get", took, &Ok(()));
        calls.ended("get", took, &Ok(()));
        calls.ended::<()>("get", took, &Err(Error::new(ErrorKind::Timeout, "late")));
        calls.ended::<()>("set", took, &Err(Error::new(ErrorKind::Redis, "no")));
        let mut snapshot = MetricsSnapshot::default();
        calls.report(&mut snapshot, &[]);
        assert_eq!(snapshot.misfits(), Vec::<String>::new());
        let said: Vec<(String, MetricValue)> = snapshot
            .families()
            .flat_map(|(metric, family)| {
                let name = metric.name;
                let named = move |(labels, value): (&Vec<String>, &MetricValue)| {
                    (format!("{name} {}", labels.join(" ")), value.clone())
                };
                family.iter().map(named)
            })
            .collect();
        let value = |name: &str| said.iter().find(|(said, _)| said == name).map(|(_, v)| v);
        assert_eq!(
            value("podlink_store_calls get ok"),
            Some(&MetricValue::Count(2))
        );
        assert_eq!(
            value("podlink_store_calls get TIMEOUT"),
            Some(&MetricValue::Count(1))
        );
        assert_eq!(
            value("podlink_store_calls set REDIS_ERROR"),
            Some(&MetricValue::Count(1))
        );
        assert_eq!(
            value("podlink_store_calls set STORE_UNAVAILABLE"),
            Some(&MetricValue::Count(0))
        );
        assert!(value("podlink_store_calls relink ok").is_none());
        assert!(value("podlink_store_call_duration_seconds set error").is_some());
        assert_eq!(calls.totals(), (4, 2));
    }
}
