//! What one look at all drivers says.

use std::collections::BTreeMap;

use super::histogram::{Counts, Histogram};
use super::names::{ALL, Kind, Merge, Metric, Values};

/// The value of one series.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Of a counter.
    Count(u64),
    /// Of a gauge.
    Level(f64),
    /// Of a histogram.
    Spread(Counts),
}

/// The values of the labels, in the order of the metric's labels.
pub type LabelValues = Vec<String>;

/// Every series with its value: what several drivers say about one is merged.
#[derive(Debug, Clone, Default)]
pub struct Sheet {
    /// By the metric's place in the table.
    families: BTreeMap<usize, BTreeMap<LabelValues, Value>>,
}

impl Sheet {
    /// Adds to a counter.
    pub fn count(&mut self, metric: &'static Metric, labels: &[&str], count: u64) {
        self.add(metric, labels, Value::Count(count));
    }

    /// Says how high a gauge is.
    pub fn level(&mut self, metric: &'static Metric, labels: &[&str], level: f64) {
        self.add(metric, labels, Value::Level(level));
    }

    /// Adds to a histogram.
    pub fn spread(&mut self, metric: &'static Metric, labels: &[&str], histogram: &Histogram) {
        self.add(metric, labels, Value::Spread(histogram.read()));
    }

    fn add(&mut self, metric: &'static Metric, labels: &[&str], value: Value) {
        debug_assert_eq!(labels.len(), metric.labels.len(), "{}", metric.name);
        let Some(at) = ALL.iter().position(|known| std::ptr::eq(*known, metric)) else {
            return;
        };
        let labels = labels.iter().map(ToString::to_string).collect();
        self.put(at, labels, value);
    }

    fn put(&mut self, at: usize, labels: LabelValues, value: Value) {
        let family = self.families.entry(at).or_default();
        match family.get_mut(&labels) {
            Some(known) => known.merge(ALL[at].kind, value),
            None => {
                family.insert(labels, value);
            }
        }
    }

    /// Adds everything that another sheet says.
    pub fn absorb(&mut self, other: Self) {
        for (at, family) in other.families {
            for (labels, value) in family {
                self.put(at, labels, value);
            }
        }
    }

    /// Keeps what must not be forgotten: what was counted, but no gauges.
    pub fn keep_counts(&mut self) {
        self.families
            .retain(|at, _| !matches!(ALL[*at].kind, Kind::Gauge(_)));
    }

    /// Every metric that has something to say, with its series.
    pub fn families(
        &self,
    ) -> impl Iterator<Item = (&'static Metric, &BTreeMap<LabelValues, Value>)> {
        let families = self.families.iter();
        families.map(|(at, family)| (ALL[*at], family))
    }

    /// Whether a label says something that it must not, by the table. For tests.
    #[must_use]
    pub fn misfits(&self) -> Vec<String> {
        let mut misfits = Vec::new();
        for (metric, family) in self.families() {
            for (label, at) in metric.labels.iter().zip(0..) {
                let given = |labels: &LabelValues| labels[at].clone();
                let mut said: Vec<String> = family.keys().map(given).collect();
                said.dedup();
                let allowed = match label.values {
                    Values::OneOf(allowed) => allowed(),
                    Values::AtMost(_) | Values::Configured => continue,
                };
                said.retain(|value| !allowed.contains(&value.as_str()));
                misfits.extend(said.iter().map(|value| format!("{}: {value}", metric.name)));
            }
        }
        misfits
    }
}

impl Value {
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
            // The table says of each metric what it is, and there is one way to add each kind.
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
        let mut sheet = Sheet::default();
        for count in [3, 4] {
            sheet.count(&names::CACHE_HITS, &[], count);
            sheet.level(&names::CACHE_ENTRIES, &[], 2.0);
            sheet.level(&names::PODS_ROUTABLE, &["ns", "svc"], 5.0);
            let margins = Histogram::of(&names::LEASE_MARGIN);
            margins.time(std::time::Duration::from_secs(count));
            sheet.spread(&names::LEASE_MARGIN, &[], &margins);
        }
        sheet.level(&names::LEASE_LEFT, &["ns", "svc", "0"], 2.0);
        sheet.level(&names::LEASE_LEFT, &["ns", "svc", "0"], 1.0);
        let values: Vec<_> = sheet
            .families()
            .flat_map(|(_, family)| family.values().cloned())
            .collect();
        assert!(values.contains(&Value::Count(7)));
        assert_eq!(
            values.iter().filter(|v| **v == Value::Level(4.0)).count(),
            1
        );
        assert_eq!(
            values.iter().filter(|v| **v == Value::Level(5.0)).count(),
            1
        );
        assert_eq!(
            values.iter().filter(|v| **v == Value::Level(1.0)).count(),
            1
        );
        let spread = |v: &&Value| matches!(v, Value::Spread(s) if s.count() == 2 && s.sum == 7.0);
        assert_eq!(values.iter().filter(spread).count(), 1);
        sheet.keep_counts();
        assert_eq!(sheet.families().count(), 2);
    }
}
