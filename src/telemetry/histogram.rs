//! Histograms in plain atomics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::names::{Kind, Metric};

/// A histogram in plain atomics: prometheus-client's own cannot be read back, and the histograms
/// of several drivers must be added up (docs/decisions/0014).
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One more than there are bounds; the last one has no upper bound.
    buckets: Box<[AtomicU64]>,
    /// In billionths: atomics add integers only.
    sum: AtomicU64,
}

/// A copy of a histogram's counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Counts {
    /// The number of values in each bucket; the last has no upper bound.
    pub buckets: Vec<u64>,
    /// The sum of all values.
    pub sum: f64,
}

impl Counts {
    /// The number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    pub(super) fn add(&mut self, other: &Self) {
        let both = self.buckets.iter_mut().zip(&other.buckets);
        both.for_each(|(mine, other)| *mine += other);
        self.sum += other.sum;
    }
}

const BILLION: f64 = 1e9;

impl Histogram {
    /// An empty histogram of this metric; without bounds if the metric is not a histogram.
    #[must_use]
    pub fn of(metric: &Metric) -> Self {
        let bounds = match metric.kind {
            Kind::Histogram(bounds) => bounds,
            Kind::Counter | Kind::Gauge(_) => &[],
        };
        Self {
            bounds,
            buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// Adds a duration, in seconds.
    pub fn time(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.put(took.as_secs_f64(), nanos);
    }

    /// Adds a size.
    pub fn size(&self, size: usize) {
        const EACH: u64 = 1_000_000_000;
        let size = u64::try_from(size).unwrap_or(u64::MAX);
        #[allow(clippy::cast_precision_loss, reason = "no batch is that large")]
        self.put(size as f64, size.saturating_mul(EACH));
    }

    fn put(&self, value: f64, billionths: u64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(billionths, Ordering::Relaxed);
    }

    /// Sets all counts to zero.
    pub fn reset(&self) {
        let counters = self.buckets.iter().chain([&self.sum]);
        counters.for_each(|counter| counter.store(0, Ordering::Relaxed));
    }

    /// The counts so far.
    #[must_use]
    pub fn read(&self) -> Counts {
        let buckets = self.buckets.iter();
        #[allow(clippy::cast_precision_loss, reason = "the sum is only displayed")]
        let sum = self.sum.load(Ordering::Relaxed) as f64 / BILLION;
        Counts {
            buckets: buckets.map(|count| count.load(Ordering::Relaxed)).collect(),
            sum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::names;

    #[test]
    fn a_bound_belongs_to_its_bucket_and_what_is_too_large_to_the_last() {
        let sizes = Histogram::of(&names::STORE_BATCH);
        [1, 2, 3, 4, 512, 513]
            .into_iter()
            .for_each(|size| sizes.size(size));
        let counts = sizes.read();
        assert_eq!(counts.buckets, [1, 1, 2, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!((counts.count(), counts.sum), (6, 1035.0));
        let times = Histogram::of(&names::OPERATION_DURATION);
        times.time(Duration::from_micros(100));
        times.time(Duration::MAX);
        let counts = times.read();
        assert_eq!((counts.buckets[0], counts.buckets[16]), (1, 1));
    }

    #[test]
    fn a_metric_that_is_no_histogram_has_no_buckets_to_miss() {
        let none = Histogram::of(&names::CACHE_HITS);
        none.time(Duration::from_secs(1));
        assert_eq!(none.read().buckets, [1]);
    }
}
