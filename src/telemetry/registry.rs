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
use super::sheet::{LabelValues, Sheet, Value};
use super::windows::{Reading, Window, Windows};
use crate::clock::Clock;
use crate::error::Error;

/// Somebody who counts: part of a driver, and alive for as long as that.
///
/// Whoever counts keeps plain atomics, so that counting costs next to nothing; adding them up is
/// the reader's work.
pub trait Source: Send + Sync + fmt::Debug + 'static {
    /// Says what was counted.
    fn report(&self, sheet: &mut Sheet);

    /// Takes the names under which services are to be reported.
    fn take_names(&self, _names: &Arc<ServiceNames>) {}

    /// What the windows are taken of.
    fn reading(&self) -> Reading {
        Reading::default()
    }
}

/// Something whose present state is of interest, as long as it is there.
pub trait Gauges: Send + Sync + fmt::Debug + 'static {
    /// Says how things are; nothing if it was closed.
    fn report(&self, sheet: &mut Sheet);

    /// Why no users can be served, if that is so.
    fn trouble(&self) -> Option<Error> {
        None
    }

    /// The services whose pods are being read, each as one JSON object.
    fn pods(&self) -> Vec<serde_json::Value> {
        Vec::new()
    }
}

/// The metrics of all drivers on one store. Drivers join; what those have counted that are gone
/// is kept, so that no counter ever falls.
#[derive(Debug)]
pub struct Metrics {
    clock: Clock,
    names: Arc<ServiceNames>,
    /// Never held across an await, nor while anything but the sources is locked.
    members: Mutex<Members>,
}

#[derive(Debug)]
struct Members {
    sources: Vec<Arc<dyn Source>>,
    gauges: Vec<Weak<dyn Gauges>>,
    /// What those have counted that are gone.
    past: Sheet,
    past_reading: Reading,
    windows: Windows,
}

impl Metrics {
    /// A registry without drivers.
    #[must_use]
    pub fn new(clock: Clock) -> Arc<Self> {
        let members = Members {
            sources: Vec::new(),
            gauges: Vec::new(),
            past: Sheet::default(),
            past_reading: Reading::default(),
            windows: Windows::new(clock.now()),
        };
        Arc::new(Self {
            clock,
            names: Arc::default(),
            members: Mutex::new(members),
        })
    }

    /// Reports from now on what `source` counts. A second time does nothing.
    pub fn join(&self, source: Arc<dyn Source>) {
        let mut members = self.members();
        members.bury();
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

    /// Reports from now on how `gauges` is, as long as it is there.
    pub fn watch(&self, gauges: Weak<dyn Gauges>) {
        let mut members = self.members();
        members.gauges.retain(|known| known.strong_count() > 0);
        members.gauges.push(gauges);
    }

    /// What everybody says at this moment.
    #[must_use]
    pub fn sheet(&self) -> Sheet {
        let now = self.clock.now();
        let (mut sheet, gauges) = {
            let mut members = self.members();
            members.bury();
            let mut sheet = members.past.clone();
            for source in &members.sources {
                source.report(&mut sheet);
            }
            let reading = members.reading();
            members.windows.report(&mut sheet, reading, now);
            (sheet, members.gauges.clone())
        };
        // Outside the lock: the last owner of a driver may go meanwhile, and its end is then here.
        for gauges in gauges.iter().filter_map(Weak::upgrade) {
            gauges.report(&mut sheet);
        }
        sheet
    }

    /// What happened lately.
    #[must_use]
    pub fn windows(&self) -> Vec<Window> {
        let members = self.members();
        members.windows.look(members.reading(), self.clock.now())
    }

    /// Why no users can be served, if that is so.
    #[must_use]
    pub fn trouble(&self) -> Option<Error> {
        self.gauges().iter().find_map(|gauges| gauges.trouble())
    }

    /// The services whose pods are being read, each once: as whoever has read them last sees them.
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

    /// Notes how far everything has come, for the windows. Called every few seconds.
    pub fn tick(&self) {
        let now = self.clock.now();
        let mut members = self.members();
        members.bury();
        let reading = members.reading();
        members.windows.note(reading, now);
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        // Every part is whole whatever panicked meanwhile.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Members {
    /// Keeps what those have counted that are gone: nobody but this list holds them.
    fn bury(&mut self) {
        let (alive, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.sources)
            .into_iter()
            .partition(|source| Arc::strong_count(source) > 1);
        self.sources = alive;
        for source in gone {
            let mut last = Sheet::default();
            source.report(&mut last);
            last.keep_counts();
            self.past.absorb(last);
            self.past_reading.add(source.reading());
        }
    }

    fn reading(&self) -> Reading {
        let mut all = self.past_reading;
        self.sources
            .iter()
            .for_each(|source| all.add(source.reading()));
        all
    }
}

/// Several registries as one text in the OpenMetrics format.
///
/// # Errors
/// If the library cannot write it: a mistake in podlink.
pub fn openmetrics(sheet: Sheet) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page(sheet)));
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    Ok(page)
}

/// A sheet, as prometheus-client takes it.
#[derive(Debug)]
struct Page(Sheet);

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
    value: &Value,
) -> fmt::Result {
    if labels.is_empty() {
        return encode(encoder, metric, value);
    }
    let names = metric.labels.iter().map(|label| label.name);
    let labels: Vec<(&str, &str)> = names.zip(labels.iter().map(String::as_str)).collect();
    encode(&mut encoder.encode_family(&labels)?, metric, value)
}

fn encode(encoder: &mut MetricEncoder<'_>, metric: &Metric, value: &Value) -> fmt::Result {
    match value {
        Value::Count(count) => encoder.encode_counter(count, None::<&Exemplar<NoLabelSet, f64>>),
        Value::Level(level) => encoder.encode_gauge(level),
        Value::Spread(counts) => {
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
        let sheet = metrics.sheet();
        let hits = sheet
            .families()
            .filter(|(metric, _)| std::ptr::eq(*metric, &names::CACHE_HITS));
        hits.flat_map(|(_, family)| family.values())
            .map(|value| match value {
                Value::Count(count) => *count,
                _ => 0,
            })
            .sum()
    }

    #[test]
    fn drivers_that_come_and_go_lose_nothing_and_no_look_sees_less_than_the_one_before() {
        const DRIVERS: u64 = 200;
        let metrics = Metrics::new(Clock::System);
        let done = AtomicBool::new(false);
        std::thread::scope(|threads| {
            let looking = threads.spawn(|| {
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
                            metrics.join(Arc::clone(&stats) as Arc<dyn Source>);
                            metrics.join(Arc::clone(&stats) as Arc<dyn Source>);
                            (0..10).for_each(|_| count(&stats.cache_hits));
                        }
                    })
                })
                .collect();
            working.into_iter().for_each(|each| each.join().unwrap());
            done.store(true, Ordering::SeqCst);
            looking.join().unwrap();
        });
        assert_eq!(hits(&metrics), 4 * DRIVERS * 10);
        assert_eq!(metrics.windows()[0].happened.hits, 4 * DRIVERS * 10);
        assert!(metrics.members().sources.is_empty());
    }

    #[test]
    fn a_page_ends_as_it_must_and_says_each_thing_once() {
        let metrics = Metrics::new(Clock::System);
        metrics.join(Arc::new(ClientStats::default()));
        let page = openmetrics(metrics.sheet()).unwrap();
        assert!(page.ends_with("# EOF\n"));
        let lines: Vec<&str> = page.lines().collect();
        let unique: std::collections::HashSet<&&str> = lines.iter().collect();
        assert_eq!(unique.len(), lines.len());
    }

    #[test]
    fn the_table_has_each_name_once_and_every_name_is_podlinks() {
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
