//! A snapshot of the metrics of all drivers.

use std::collections::BTreeMap;

use super::histogram::{Counts, Histogram};
use super::names::{ALL, Kind, Merge, Metric, Values};

/// The value of one series.
#[derive(Debug, Clone, PartialEq)]
pub enum MetricValue {
    /// A counter.
    Count(u64),
    /// A gauge.
    Level(f64),
    /// A histogram.
    Spread(Counts),
}

/// Label values, in the order of the metric's labels.
pub type LabelValues = Vec<String>;

/// Every series with its value; values of several drivers for one series are merged.
#[derive(Debug, Clone, Default)]
pub struct MetricsSnapshot {
    /// By the metric's position in the table.
    families: BTreeMap<usize, BTreeMap<LabelValues, MetricValue>>,
}

impl MetricsSnapshot {
    /// Adds to a counter.
    pub fn count(&mut self, metric: &'static Metric, labels: &[&str], count: u64) {
        self.add(metric, labels, MetricValue::Count(count));
    }

    /// Merges the value of a gauge.
    pub fn level(&mut self, metric: &'static Metric, labels: &[&str], level: f64) {
        self.add(metric, labels, MetricValue::Level(level));
    }

    /// Adds to a histogram.
    pub fn spread(&mut self, metric: &'static Metric, labels: &[&str], histogram: &Histogram) {
        self.add(metric, labels, MetricValue::Spread(histogram.read()));
    }

    fn add(&mut self, metric: &'static Metric, labels: &[&str], value: MetricValue) {
        debug_assert_eq!(labels.len(), metric.labels.len(), "{}", metric.name);
        let Some(at) = ALL.iter().position(|known| std::ptr::eq(*known, metric)) else {
            return;
        };
        let labels = labels.iter().map(ToString::to_string).collect();
        self.put(at, labels, value);
    }

    fn put(&mut self, at: usize, labels: LabelValues, value: MetricValue) {
        let family = self.families.entry(at).or_default();
        match family.get_mut(&labels) {
            Some(known) => known.merge(ALL[at].kind, value),
            None => {
                family.insert(labels, value);
            }
        }
    }

    /// Merges another snapshot into this one.
    pub fn absorb(&mut self, other: Self) {
        for (at, family) in other.families {
            for (labels, value) in family {
                self.put(at, labels, value);
            }
        }
    }

    /// Drops the gauges and keeps what must never decrease: counters and histograms.
    pub fn keep_counts(&mut self) {
        self.families
            .retain(|at, _| !matches!(ALL[*at].kind, Kind::Gauge(_)));
    }

    /// Every metric that has series, with its series.
    pub fn families(
        &self,
    ) -> impl Iterator<Item = (&'static Metric, &BTreeMap<LabelValues, MetricValue>)> {
        let families = self.families.iter();
        families.map(|(at, family)| (ALL[*at], family))
    }

    /// The label values that the table does not allow. For tests.
    #[must_use]
    pub fn misfits(&self) -> Vec<String> {
        let mut misfits = Vec::new();
        for (metric, family) in self.families() {
            for (label, at) in metric.labels.iter().zip(0..) {
                let given = |labels: &LabelValues| labels[at].clone();
                let mut used: Vec<String> = family.keys().map(given).collect();
                used.dedup();
                let allowed = match label.values {
                    Values::OneOf(allowed) => allowed(),
                    Values::AtMost(_) | Values::Configured => continue,
                };
                used.retain(|value| !allowed.contains(&value.as_str()));
                misfits.extend(used.iter().map(|value| format!("{}: {value}", metric.name)));
            }
        }
        misfits
    }
}

impl MetricValue {
    fn merge(&mut self, kind: Kind, other: Self) {
        match (self, other) {
            (Self::Count(mine), Self::Count(other)) => *mine += other,
            (Self::Spread(mine), Self::Spread(other)) => mine.add(&other),
            (Self::Level(mine), Self::Level(other)) => {
                *mine = match kind {
                    Kind::Gauge(Merge::Most) => mine.max(other),
                    Kind::Gauge(Merge::Least) => mine.min(other),
                    _ => *mine + other,
                }
            }
            // The table gives each metric one kind, and each kind has one method to add it.
            _ => debug_assert!(false, "a metric of two kinds"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::names;

    #[test]
    fn several_drivers_make_one_series() {
        let mut snapshot = MetricsSnapshot::default();
        for count in [3, 4] {
            snapshot.count(&names::CACHE_HITS, &[], count);
            snapshot.level(&names::CACHE_ENTRIES, &[], 2.0);
            snapshot.level(&names::PODS_ROUTABLE, &["ns", "svc"], 5.0);
            let margins = Histogram::of(&names::LEASE_MARGIN);
            margins.time(std::time::Duration::from_secs(count));
            snapshot.spread(&names::LEASE_MARGIN, &[], &margins);
        }
        snapshot.level(&names::LEASE_LEFT, &["ns", "svc", "0"], 2.0);
        snapshot.level(&names::LEASE_LEFT, &["ns", "svc", "0"], 1.0);
        let values: Vec<_> = snapshot
            .families()
            .flat_map(|(_, family)| family.values().cloned())
            .collect();
        assert!(values.contains(&MetricValue::Count(7)));
        assert_eq!(
            values
                .iter()
                .filter(|v| **v == MetricValue::Level(4.0))
                .count(),
            1
        );
        assert_eq!(
            values
                .iter()
                .filter(|v| **v == MetricValue::Level(5.0))
                .count(),
            1
        );
        assert_eq!(
            values
                .iter()
                .filter(|v| **v == MetricValue::Level(1.0))
                .count(),
            1
        );
        let spread = |v: &&MetricValue| matches!(v, MetricValue::Spread(s) if s.count() == 2 && s.sum == 7.0);
        assert_eq!(values.iter().filter(spread).count(), 1);
        snapshot.keep_counts();
        assert_eq!(snapshot.families().count(), 2);
    }
}
