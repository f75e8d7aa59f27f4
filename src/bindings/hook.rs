//! Python functions that the core calls: they run on a Python thread, and the core waits for the
//! reply like for any other I/O.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use tokio::sync::oneshot;

use super::argument;
use super::queue::Arrivals;
use crate::driver::client::PodChooser;
use crate::error::{Error, ErrorKind};
use crate::id::{PodIndex, ServiceId, Uid};
use crate::route::state::{Pod, PodState};

/// What a Python function answered: a value, or the text of its exception.
type Replied<T> = Result<T, String>;

/// A call of a Python function, waiting for a Python thread.
pub(super) struct Call {
    callable: Arc<Py<PyAny>>,
    uid: Uid,
    candidates: Vec<Pod>,
    reply: oneshot::Sender<Replied<Option<PodIndex>>>,
}

impl Call {
    /// The callable, its arguments and where to put the answer.
    pub(super) fn into_python(self, py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        let candidates: PyResult<Vec<_>> = self
            .candidates
            .iter()
            .map(|pod| state_fields(py, &pod.state))
            .collect();
        let arguments = (self.uid.as_str(), candidates?).into_pyobject(py)?;
        let reply = Reply {
            to: Mutex::new(Some(self.reply)),
        };
        (self.callable.clone_ref(py), arguments, Py::new(py, reply)?).into_pyobject(py)
    }
}

/// A state as `podlink.StatefulServiceState` takes it, field by field.
pub(super) fn state_fields<'py>(
    py: Python<'py>,
    state: &PodState,
) -> PyResult<Bound<'py, PyTuple>> {
    (
        state.pod_id.get(),
        state.state.as_str(),
        state.load_state,
        state.routing_state.as_str(),
        state.update_time,
        state.incarnation.get(),
        state.metadata.clone(),
    )
        .into_pyobject(py)
}

/// Where a hook's answer goes. An answer that nobody waits for any more is dropped.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct Reply {
    to: Mutex<Option<oneshot::Sender<Replied<Option<PodIndex>>>>>,
}

#[pymethods]
impl Reply {
    /// Answers with a pod index or None.
    fn answer(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let pod = if value.is_none() {
            None
        } else {
            Some(argument::pod_index(value)?)
        };
        self.put(Ok(pod));
        Ok(())
    }

    /// Answers that the hook failed.
    fn fail(&self, why: String) {
        self.put(Err(why));
    }
}

impl Reply {
    fn put(&self, replied: Replied<Option<PodIndex>>) {
        if let Some(to) = self
            .to
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            let _nobody_waits = to.send(replied);
        }
    }
}

/// A strategy that is a Python function `(uid, candidates) -> pod_index | None`.
#[derive(Debug)]
pub(super) struct PythonChooser {
    callable: Arc<Py<PyAny>>,
    thread: Arc<Arrivals>,
}

impl PythonChooser {
    pub(super) fn new(callable: Py<PyAny>, thread: Arc<Arrivals>) -> Self {
        Self {
            callable: Arc::new(callable),
            thread,
        }
    }
}

#[async_trait]
impl PodChooser for PythonChooser {
    async fn choose(
        &self,
        _service: &ServiceId,
        uid: &Uid,
        candidates: Vec<Pod>,
    ) -> Result<Option<PodIndex>, Error> {
        let (reply, replied) = oneshot::channel();
        let callable = Arc::clone(&self.callable);
        self.thread.call(Call {
            callable,
            uid: uid.clone(),
            candidates,
            reply,
        });
        match replied.await {
            Ok(Ok(pod)) => Ok(pod),
            Ok(Err(why)) => Err(Error::new(ErrorKind::Internal, why)),
            Err(_) => Err(Error::new(
                ErrorKind::Closed,
                "the callback thread has ended",
            )),
        }
    }
}
