//! `podlink.Store`, the compiled half.

use std::collections::BTreeMap;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyList;

use super::argument;
use super::error::OrRaise;
use super::queue::{Answer, CompletionQueue};
use super::runtime::{self, Owned};
use super::telemetry::windows_to_python;
use crate::clock::Clock;
use crate::config::{StoreAddress, StoreConfig};
use crate::id::Namespace;
use crate::rpc::{LinkOperations, ObservedPeer};
use crate::store::{Observed, Store};
use crate::telemetry::Metrics;

/// How long a ping may take when the caller names no time.
const PING_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

/// A store that drivers share. Holds no connection until the first call.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct StoreCore {
    executor: Owned<Arc<dyn Store>>,
    metrics: Owned<Arc<Metrics>>,
    #[pyo3(get)]
    shown: String,
}

#[pymethods]
impl StoreCore {
    #[new]
    fn new(url: &Bound<'_, PyAny>, options: BTreeMap<String, String>) -> PyResult<Self> {
        let py = url.py();
        let options: Vec<(String, String)> = options.into_iter().collect();
        let mut config = StoreConfig::parse(argument::text("url", url)?, &options).or_raise(py)?;
        if let StoreAddress::Memory(Some(name)) = &mut config.address {
            // A forked child has a copy of its parent's memory, and must not own what is in it.
            // No name in a URL contains this character.
            name.push_str(&format!("#{}", runtime::generation()));
        }
        let store = crate::store::open(&config, Clock::System).or_raise(py)?;
        let metrics = Metrics::new(Clock::System);
        let executor: Arc<dyn Store> = Observed::new(store, Clock::System, &metrics);
        Ok(Self {
            executor: Owned::new(executor),
            metrics: Owned::new(metrics),
            shown: config.shown,
        })
    }

    fn ping(
        &self,
        py: Python<'_>,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let executor = self.executor(py)?;
        let timeout = argument::timeout(timeout)?.unwrap_or(PING_TIMEOUT);
        let deadline = Clock::System.deadline(timeout);
        queue.spawn(py, waiter, async move {
            executor.ping(deadline).await.map(|()| Answer::Nothing)
        })
    }

    /// What happened lately on all drivers: (window, seconds, counts).
    fn windows<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        windows_to_python(py, &self.metrics.get(py)?.windows())
    }

    fn close(&self, py: Python<'_>, queue: &CompletionQueue, waiter: Py<PyAny>) -> PyResult<()> {
        let executor = self.executor(py)?;
        queue.spawn(py, waiter, async move {
            executor.close().await;
            Ok(Answer::Nothing)
        })
    }
}

impl StoreCore {
    pub(super) fn executor(&self, py: Python<'_>) -> PyResult<Arc<dyn Store>> {
        Ok(Arc::clone(self.executor.get(py)?))
    }

    /// A way to another namespace, as the drivers on this store take it: its calls are counted.
    pub(super) fn peer(
        &self,
        py: Python<'_>,
        namespace: &Namespace,
        peer: Arc<dyn LinkOperations>,
    ) -> PyResult<Arc<dyn LinkOperations>> {
        let metrics = self.metrics.get(py)?;
        Ok(ObservedPeer::new(namespace, peer, Clock::System, metrics))
    }

    /// What the drivers on this store report to.
    pub(super) fn metrics(&self, py: Python<'_>) -> PyResult<&Arc<Metrics>> {
        self.metrics.get(py)
    }
}
