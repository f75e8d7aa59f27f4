//! `podlink.Store`, the compiled half.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use super::answer::Answer;
use super::argument;
use super::error::OrRaise;
use super::operations::started;
use super::queue::CompletionQueue;
use super::runtime::{self, Owned};
use crate::clock::Clock;
use crate::config::{StoreAddress, StoreConfig};
use crate::op::{OperationName, Ping};
use crate::store::Store;
use crate::store::layer::{Metered, Traced};
use crate::telemetry::Metrics;
use crate::telemetry::windows::Window;

/// How long a ping may take when the caller names no time.
const PING_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

/// A store that drivers share. Holds no connection until the first call.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct StoreCore {
    store: Owned<Arc<dyn Store>>,
    metrics: Owned<Arc<Metrics>>,
    #[pyo3(get)]
    shown: String,
    closed: AtomicBool,
}

#[pymethods]
impl StoreCore {
    #[new]
    fn new(url: &Bound<'_, PyAny>, options: BTreeMap<String, String>) -> PyResult<Self> {
        let py = url.py();
        let options: Vec<(String, String)> = options.into_iter().collect();
        let mut config = StoreConfig::parse(argument::text("url", url)?, &options).or_raise(py)?;
        if let StoreAddress::Memory(Some(name)) = &mut config.address {
            // A forked child has a copy of its parent's memory, and must not use its tables. No
            // name in a URL contains this character.
            name.push_str(&format!("#{}", runtime::generation()));
        }
        let store = crate::store::open(&config, Clock::System).or_raise(py)?;
        let metrics = Metrics::new(Clock::System);
        let store = Metered::new(Traced::new(store), Clock::System, &metrics);
        Ok(Self {
            store: Owned::new(store),
            metrics: Owned::new(metrics),
            shown: config.shown,
            closed: AtomicBool::new(false),
        })
    }

    /// Starts an operation; its end is delivered to `waiter` by `queue`.
    fn start(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        operation: &str,
        arguments: &Bound<'_, PyTuple>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = arguments.py();
        let (started, given) = started(queue, waiter, operation, arguments, timeout)?;
        let store = self.store(py)?;
        match started.name {
            OperationName::Ping => {
                let timeout = given.timeout()?.unwrap_or(PING_TIMEOUT);
                let deadline = Clock::System.deadline(timeout);
                started.run(py, async move {
                    let answered = store.ask(Ping, deadline).await;
                    answered.map(|()| Answer::Nothing)
                })
            }
            OperationName::Aclose => {
                self.closed.store(true, Ordering::Relaxed);
                started.run(py, async move {
                    store.close().await;
                    Ok(Answer::Nothing)
                })
            }
            _ => Err(started.unknown(py)),
        }
    }

    /// Whether the store was closed.
    fn is_closed(&self, py: Python<'_>) -> PyResult<bool> {
        self.store(py)?;
        Ok(self.closed.load(Ordering::Relaxed))
    }

    /// The counts of all drivers in recent windows: (window, seconds, counts).
    fn windows<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        windows_to_python(py, &self.metrics.get(py)?.windows())
    }
}

impl StoreCore {
    pub(super) fn store(&self, py: Python<'_>) -> PyResult<Arc<dyn Store>> {
        Ok(Arc::clone(self.store.get(py)?))
    }

    /// The metrics that the drivers on this store report to.
    pub(super) fn metrics(&self, py: Python<'_>) -> PyResult<&Arc<Metrics>> {
        self.metrics.get(py)
    }
}

/// The counts of each window: (window, seconds, counts).
fn windows_to_python<'py>(py: Python<'py>, windows: &[Window]) -> PyResult<Bound<'py, PyList>> {
    let windows = windows.iter().map(|window| {
        let happened = window.happened;
        let counts = (
            happened.hits,
            happened.misses,
            happened.operations,
            happened.errors,
            happened.links_made,
            happened.links_healed,
            happened.store_calls,
            happened.store_errors,
        );
        (window.name, window.length.as_secs_f64(), counts)
    });
    PyList::new(py, windows.collect::<Vec<_>>())
}
