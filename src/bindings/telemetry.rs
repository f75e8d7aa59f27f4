//! The metrics for Python: as OpenMetrics text, or series by series.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use super::counters::{bridge, hooks};
use super::error::raise;
use super::queue::queue_loads;
use super::store::StoreCore;
use crate::error::{Error, ErrorKind};
use crate::telemetry::names::{self, Kind, Merge, Metric, Values};
use crate::telemetry::snapshot::{LabelValues, MetricValue};
use crate::telemetry::{MetricSource, Metrics, MetricsSnapshot, openmetrics};

/// The metrics of all drivers on these stores, added up, and the metrics of the whole process,
/// once.
fn snapshot(py: Python<'_>, stores: &[PyRef<'_, StoreCore>]) -> PyResult<MetricsSnapshot> {
    let mut metrics: Vec<Arc<Metrics>> = Vec::with_capacity(stores.len());
    for store in stores {
        let each = store.metrics(py)?;
        // A store that is listed twice is counted once.
        if !metrics.iter().any(|known| Arc::ptr_eq(known, each)) {
            metrics.push(Arc::clone(each));
        }
    }
    // The drivers' locks are short, but other Python threads need not wait for all of them.
    Ok(py.detach(move || snapshot_of(&metrics)))
}

/// The snapshots of these stores added up, and the metrics of the whole process, once.
pub(super) fn snapshot_of(stores: &[Arc<Metrics>]) -> MetricsSnapshot {
    let mut snapshot = MetricsSnapshot::default();
    snapshot.level(&names::BUILD, &[env!("CARGO_PKG_VERSION")], 1.0);
    let (waiting, operations) = queue_loads();
    bridge().waiting.store(waiting, Ordering::Relaxed);
    bridge().operations.store(operations, Ordering::Relaxed);
    bridge().report(&mut snapshot);
    hooks().report(&mut snapshot);
    stores
        .iter()
        .for_each(|each| snapshot.absorb(each.snapshot()));
    snapshot
}

/// Everything as OpenMetrics text.
#[pyfunction]
pub(super) fn metrics_text(py: Python<'_>, stores: Vec<PyRef<'_, StoreCore>>) -> PyResult<String> {
    let snapshot = snapshot(py, &stores)?;
    py.detach(|| openmetrics(snapshot)).map_err(|_| {
        let text = "the metrics could not be written";
        raise(py, &Error::new(ErrorKind::Internal, text))
    })
}

/// Everything, series by series: (name, kind, help, label names, [(label values, value)]). The
/// value of a histogram is ([(upper bound, count up to it)], sum).
#[pyfunction]
pub(super) fn metrics_collect<'py>(
    py: Python<'py>,
    stores: Vec<PyRef<'py, StoreCore>>,
) -> PyResult<Vec<Bound<'py, PyTuple>>> {
    let snapshot = snapshot(py, &stores)?;
    let families = snapshot.families().map(|(metric, family)| {
        let series: PyResult<Vec<_>> = family
            .iter()
            .map(|(labels, value)| series(py, metric, labels, value))
            .collect();
        let labels = metric.labels.iter().map(|label| label.name);
        let labels = PyTuple::new(py, labels)?;
        let kind = kind(metric.kind);
        (metric.name, kind, metric.help, labels, series?).into_pyobject(py)
    });
    families.collect()
}

fn series<'py>(
    py: Python<'py>,
    metric: &Metric,
    labels: &LabelValues,
    value: &MetricValue,
) -> PyResult<Bound<'py, PyTuple>> {
    let labels = PyTuple::new(py, labels)?;
    let value = match value {
        MetricValue::Count(count) => count.into_pyobject(py)?.into_any(),
        MetricValue::Level(level) => level.into_pyobject(py)?.into_any(),
        MetricValue::Spread(counts) => {
            let bounds = match metric.kind {
                Kind::Histogram(bounds) => bounds,
                Kind::Counter | Kind::Gauge(_) => &[],
            };
            let bounds = bounds.iter().copied().chain([f64::INFINITY]);
            let mut so_far = 0;
            let buckets = bounds.zip(&counts.buckets).map(|(bound, count)| {
                so_far += count;
                (bound, so_far)
            });
            let buckets = PyList::new(py, buckets.collect::<Vec<_>>())?;
            (buckets, counts.sum).into_pyobject(py)?.into_any()
        }
    };
    (labels, value).into_pyobject(py)
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Counter => "counter",
        Kind::Gauge(_) => "gauge",
        Kind::Histogram(_) => "histogram",
    }
}

/// A row of the table: name, kind, help text, labels with their allowed values, the merge rule of
/// gauges of several processes, the upper bounds of a histogram.
type TableRow = (
    &'static str,
    &'static str,
    &'static str,
    Vec<(&'static str, Option<Vec<&'static str>>)>,
    &'static str,
    &'static [f64],
);

/// Every metric.
#[pyfunction]
pub(super) fn metrics_table() -> Vec<TableRow> {
    let allowed = |values: Values| match values {
        Values::OneOf(values) => Some(values()),
        Values::AtMost(_) | Values::Configured => None,
    };
    let row = |metric: &&'static Metric| {
        let labels = metric.labels.iter();
        let labels = labels.map(|label| (label.name, allowed(label.values)));
        let (merge, bounds): (_, &[f64]) = match metric.kind {
            Kind::Counter => ("", &[]),
            Kind::Gauge(Merge::Sum) => ("sum", &[]),
            Kind::Gauge(Merge::Most) => ("most", &[]),
            Kind::Gauge(Merge::Least) => ("least", &[]),
            Kind::Histogram(bounds) => ("", bounds),
        };
        let (kind, labels) = (kind(metric.kind), labels.collect());
        (metric.name, kind, metric.help, labels, merge, bounds)
    };
    names::ALL.iter().map(row).collect()
}
