//! `podlink.AdminServer`, the compiled half.

use std::sync::Arc;

use async_trait::async_trait;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::answer::Answer;
use super::error::OrRaise;
use super::grpc_server::address;
use super::operations::started;
use super::queue::CompletionQueue;
use super::runtime::Owned;
use super::store::StoreCore;
use super::telemetry::snapshot_of;
use crate::clock::{Clock, Tick};
use crate::error::{Error, ErrorKind, Result};
use crate::op::{OperationName, Ping};
use crate::rpc::admin::{AdminPages, AdminServer};
use crate::store::Store;
use crate::telemetry::{Metrics, openmetrics};

/// The pages about the drivers on one store.
#[derive(Debug)]
struct Pages {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

#[async_trait]
impl AdminPages for Pages {
    fn metrics(&self) -> Result<String> {
        let snapshot = snapshot_of(std::slice::from_ref(&self.metrics));
        let text = "the metrics could not be written";
        openmetrics(snapshot).map_err(|_| Error::new(ErrorKind::Internal, text))
    }

    async fn ready(&self, deadline: Tick) -> Result<()> {
        let answered = match self.metrics.trouble() {
            Some(trouble) => Err(trouble),
            None => self.store.ask(Ping, deadline).await,
        };
        answered.map_err(|error| error.during(OperationName::Ready))
    }

    fn pods(&self) -> String {
        serde_json::Value::from(self.metrics.pods()).to_string()
    }
}

/// The admin endpoint.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct AdminCore {
    server: Owned<AdminServer>,
}

#[pymethods]
impl AdminCore {
    #[new]
    fn new(store: &StoreCore, listen: &Bound<'_, PyAny>, insecure: bool) -> PyResult<Self> {
        let py = listen.py();
        let pages = Pages {
            store: store.store(py)?,
            metrics: Arc::clone(store.metrics(py)?),
        };
        let listen = address(listen)?;
        let server = AdminServer::new(Arc::new(pages), listen, insecure, Clock::System);
        Ok(Self {
            server: Owned::new(server.or_raise(py)?),
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
        let (started, _) = started(queue, waiter, operation, arguments, timeout)?;
        let server = self.server.get(py)?.clone();
        if started.name != OperationName::Start {
            return Err(started.unknown(py));
        }
        started.run(py, async move {
            let address = server.start().await?;
            Ok(Answer::Text(address.to_string()))
        })
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        self.server.get(py)?.stop();
        Ok(())
    }

    /// Host and port, once the server listens.
    fn address(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let address = self.server.get(py)?.address();
        Ok(address.map(|address| address.to_string()))
    }
}
