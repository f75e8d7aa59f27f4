//! The registry of all drivers on one store.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

use super::names::{Kind, Metric};
use super::services::ServiceNames;
use super::snapshot::{LabelValues, MetricValue, MetricsSnapshot};
use super::windows::{Window, WindowReading, Windows};
use crate::clock::Clock;
use crate::error::Error;

/// A part of a driver that counts, and lives as long as the driver.
///
/// Sources count in plain atomics, so that counting is cheap; the scrape adds them up.
pub trait MetricSource: Send + Sync + fmt::Debug + 'static {
    /// Adds the counters to `snapshot`.
    fn report(&self, snapshot: &mut MetricsSnapshot);

    /// Takes the label values of services.
    fn take_names(&self, _names: &Arc<ServiceNames>) {}

    /// The counters that the windows are computed from.
    fn reading(&self) -> WindowReading {
        WindowReading::default()
    }
}

/// A part of a driver that reports its current state as gauges while it is alive.
pub trait Gauges: Send + Sync + fmt::Debug + 'static {
    /// Adds the gauges to `snapshot`; none after a close.
    fn report(&self, snapshot: &mut MetricsSnapshot);

    /// Why users cannot be served, or `None` if they can.
    fn trouble(&self) -> Option<Error> {
        None
    }

    /// The services whose pods are being read, each as one JSON object.
    fn pods(&self) -> Vec<serde_json::Value> {
        Vec::new()
    }
}

/// The metrics of all drivers on one store. Drivers register; the counts of dropped drivers are
/// kept, so that no counter ever decreases.
#[derive(Debug)]
pub struct Metrics {
    clock: Clock,
    names: Arc<ServiceNames>,
    /// Never held across an await, nor while any lock but the sources' own is held.
    members: Mutex<Members>,
}

#[derive(Debug)]
struct Members {
    sources: Vec<Arc<dyn MetricSource>>,
    gauges: Vec<Weak<dyn Gauges>>,
    /// The counts of dropped sources.
    past: MetricsSnapshot,
    past_reading: WindowReading,
    windows: Windows,
}

impl Metrics {
    /// A registry without drivers.
    #[must_use]
    pub fn new(clock: Clock) -> Arc<Self> {
        let members = Members {
            sources: Vec::new(),
            gauges: Vec::new(),
            past: MetricsSnapshot::default(),
            past_reading: WindowReading::default(),
            windows: Windows::new(clock.now()),
        };
        Arc::new(Self {
            clock,
            names: Arc::default(),
            members: Mutex::new(members),
        })
    }

    /// Registers `source`. Idempotent.
    pub fn join(&self, source: Arc<dyn MetricSource>) {
        let mut members = self.members();
        members.retire_dropped();
        if members
            .sources
            .iter()
            .any(|known| Arc::ptr_eq(known, &source))
        {
            return;
        }
        source.take_names(&self.names);
        members.sources.push(source);
    }

    /// Registers `gauges` until it is dropped.
    pub fn watch(&self, gauges: Weak<dyn Gauges>) {
        let mut members = self.members();
        members.gauges.retain(|known| known.strong_count() > 0);
        members.gauges.push(gauges);
    }

    /// A snapshot of all counters and gauges.
    #[must_use]
    pub fn snapshot(&self) -> MetricsSnapshot {
        let now = self.clock.now();
        let (mut snapshot, gauges) = {
            let mut members = self.members();
            members.retire_dropped();
            let mut snapshot = members.past.clone();
            for source in &members.sources {
                source.report(&mut snapshot);
            }
            let reading = members.reading();
            members.windows.report(&mut snapshot, reading, now);
            (snapshot, members.gauges.clone())
        };
        // Outside the lock: this may be the last reference to a driver, whose drop then runs here.
        for gauges in gauges.iter().filter_map(Weak::upgrade) {
            gauges.report(&mut snapshot);
        }
        snapshot
    }

    /// The counts of the last minutes, by window.
    #[must_use]
    pub fn windows(&self) -> Vec<Window> {
        let members = self.members();
        members.windows.look(members.reading(), self.clock.now())
    }

    /// Why users cannot be served, or `None` if they can.
    #[must_use]
    pub fn trouble(&self) -> Option<Error> {
        self.gauges().iter().find_map(|gauges| gauges.trouble())
    }

    /// The services whose pods are being read, each once, from the driver with the latest reading.
    #[must_use]
    pub fn pods(&self) -> Vec<serde_json::Value> {
        let mut services = BTreeMap::new();
        for service in self.gauges().iter().flat_map(|gauges| gauges.pods()) {
            let text = |name: &str| service[name].as_str().unwrap_or_default().to_owned();
            let age = service["age_seconds"].as_f64().unwrap_or(f64::MAX);
            let key = (text("namespace"), text("service"));
            let older = |(known, _): &(f64, _)| *known > age;
            if services.get(&key).is_none_or(older) {
                services.insert(key, (age, service));
            }
        }
        services.into_values().map(|(_, service)| service).collect()
    }

    fn gauges(&self) -> Vec<Arc<dyn Gauges>> {
        let members = self.members();
        members.gauges.iter().filter_map(Weak::upgrade).collect()
    }

    /// Takes a reading for the windows. Called every few seconds.
    pub fn tick(&self) {
        let now = self.clock.now();
        let mut members = self.members();
        members.retire_dropped();
        let reading = members.reading();
        members.windows.note(reading, now);
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        // Every part is valid even after a panic.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Members {
    /// Removes dropped sources, which only this list still holds, and keeps their counts.
    fn retire_dropped(&mut self) {
        let (alive, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.sources)
            .into_iter()
            .partition(|source| Arc::strong_count(source) > 1);
        self.sources = alive;
        for source in gone {
            let mut last = MetricsSnapshot::default();
            source.report(&mut last);
            last.keep_counts();
            self.past.absorb(last);
            self.past_reading.add(source.reading());
        }
    }

    fn reading(&self) -> WindowReading {
        let mut all = self.past_reading;
        self.sources
            .iter()
            .for_each(|source| all.add(source.reading()));
        all
    }
}

/// The snapshot as text in the OpenMetrics format.
///
/// # Errors
/// If prometheus-client cannot write it: a bug in podlink.
pub fn openmetrics(snapshot: MetricsSnapshot) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page(snapshot)));
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    Ok(page)
}

/// A snapshot, as a collector of prometheus-client.
#[derive(Debug)]
struct Page(MetricsSnapshot);

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (metric, family) in self.0.families() {
            let (name, unit) = metric.parts();
            let unit = unit.map(|unit| Unit::Other(unit.to_owned()));
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge(_) => MetricType::Gauge,
                Kind::Histogram(_) => MetricType::Histogram,
            };
            let mut encoder = encoder.encode_descriptor(name, metric.help, unit.as_ref(), kind)?;
            for (labels, value) in family {
                series(&mut encoder, metric, labels, value)?;
            }
        }
        Ok(())
    }
}

fn series(
    encoder: &mut MetricEncoder<'_>,
    metric: &Metric,
    labels: &LabelValues,
    value: &MetricValue,
) -> fmt::Result {
    if labels.is_empty() {
        return encode(encoder, metric, value);
    }
    let names = metric.labels.iter().map(|label| label.name);
    let labels: Vec<(&str, &str)> = names.zip(labels.iter().map(String::as_str)).collect();
    encode(&mut encoder.encode_family(&labels)?, metric, value)
}

fn encode(encoder: &mut MetricEncoder<'_>, metric: &Metric, value: &MetricValue) -> fmt::Result {
    match value {
        MetricValue::Count(count) => {
            encoder.encode_counter(count, None::<&Exemplar<NoLabelSet, f64>>)
        }
        MetricValue::Level(level) => encoder.encode_gauge(level),
        MetricValue::Spread(counts) => {
            let Kind::Histogram(bounds) = metric.kind else {
                return Err(fmt::Error);
            };
            let bounds = bounds.iter().copied().chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds.zip(counts.buckets.iter().copied()).collect();
            let none = None::<&HashMap<usize, Exemplar<NoLabelSet, f64>>>;
            encoder.encode_histogram(counts.sum, counts.count(), &buckets, none)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{ClientStats, count, names};
    use std::sync::atomic::{AtomicBool, Ordering};

    fn hits(metrics: &Metrics) -> u64 {
        let snapshot = metrics.snapshot();
        let hits = snapshot
            .families()
            .filter(|(metric, _)| std::ptr::eq(*metric, &names::CACHE_HITS));
        hits.flat_map(|(_, family)| family.values())
            .map(|value| match value {
                MetricValue::Count(count) => *count,
                _ => 0,
            })
            .sum()
    }

    #[test]
    fn counters_never_decrease_while_drivers_come_and_go() {
        const DRIVERS: u64 = 200;
        let metrics = Metrics::new(Clock::System);
        let done = AtomicBool::new(false);
        std::thread::scope(|threads| {
            let scraping = threads.spawn(|| {
                let mut last = 0;
                while !done.load(Ordering::SeqCst) {
                    let now = hits(&metrics);
                    assert!(now >= last, "{now} after {last}");
                    last = now;
                }
            });
            let working: Vec<_> = (0..4)
                .map(|_| {
                    threads.spawn(|| {
                        for _ in 0..DRIVERS {
                            let stats = Arc::new(ClientStats::default());
                            metrics.join(Arc::clone(&stats) as Arc<dyn MetricSource>);
                            metrics.join(Arc::clone(&stats) as Arc<dyn MetricSource>);
                            (0..10).for_each(|_| count(&stats.cache_hits));
                        }
                    })
                })
                .collect();
            working.into_iter().for_each(|each| each.join().unwrap());
            done.store(true, Ordering::SeqCst);
            scraping.join().unwrap();
        });
        assert_eq!(hits(&metrics), 4 * DRIVERS * 10);
        assert_eq!(metrics.windows()[0].happened.hits, 4 * DRIVERS * 10);
        assert!(metrics.members().sources.is_empty());
    }

    #[test]
    fn a_page_ends_with_eof_and_has_no_duplicate_lines() {
        let metrics = Metrics::new(Clock::System);
        metrics.join(Arc::new(ClientStats::default()));
        let page = openmetrics(metrics.snapshot()).unwrap();
        assert!(page.ends_with("# EOF\n"));
        let lines: Vec<&str> = page.lines().collect();
        let unique: std::collections::HashSet<&&str> = lines.iter().collect();
        assert_eq!(unique.len(), lines.len());
    }

    #[test]
    fn metric_names_are_unique_and_prefixed() {
        for (at, metric) in names::ALL.iter().enumerate() {
            let twice = names::ALL[..at]
                .iter()
                .any(|other| other.name == metric.name);
            assert!(!twice, "{}", metric.name);
            assert!(metric.name.starts_with("podlink_"), "{}", metric.name);
            assert!(!metric.name.ends_with("_total"), "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            for label in metric.labels {
                assert!(
                    !matches!(label.name, "uid" | "user" | "le"),
                    "{}",
                    metric.name
                );
            }
        }
    }
}
