//! Calls of Python hooks: the arguments that cross to the Python thread, and the reply that returns.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use tokio::sync::oneshot;

use super::answer::state_fields;
use super::argument;
use crate::id::{LinkId, PodIndex, ServiceId, Uid};
use crate::route::snapshot::{Change, Pod};
use crate::route::state::PodState;

/// The result of a Python function: a value, or the text of its exception.
pub(super) type Replied<T> = Result<T, String>;

/// The arguments of a hook.
pub(super) enum HookArguments {
    Nothing,
    Choose(Uid, Vec<Pod>),
    User(LinkId),
    Changed(ServiceId, Change),
    Lost(ServiceId, PodIndex, u64),
    Condition(String, &'static str),
}

/// The receiver of a result.
pub(super) enum Recipient {
    None,
    Pod(oneshot::Sender<Replied<Option<PodIndex>>>),
    Number(oneshot::Sender<Replied<i64>>),
    Done(oneshot::Sender<Replied<()>>),
}

impl Recipient {
    /// The name of the hook in the metrics.
    pub(super) fn hook(&self) -> &'static str {
        match self {
            Self::Pod(_) => "strategy",
            Self::Number(_) => "load",
            Self::Done(_) => "drain",
            // Notifications have no result: the Python layer, which filters them, counts the calls.
            Self::None => "lease_lost",
        }
    }
}

/// A call of a Python function, waiting for a Python thread.
pub(super) struct HookCall {
    pub(super) callable: Arc<Py<PyAny>>,
    pub(super) arguments: HookArguments,
    pub(super) reply: Recipient,
}

impl HookCall {
    /// The callable, its arguments and where to put the answer.
    pub(super) fn into_python(self, py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        let arguments = self.arguments.into_python(py)?;
        let to = Mutex::new(Some(self.reply));
        (
            self.callable.clone_ref(py),
            arguments,
            Py::new(py, HookReply { to })?,
        )
            .into_pyobject(py)
    }
}

impl HookArguments {
    fn into_python(self, py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        match self {
            Self::Nothing => Ok(PyTuple::empty(py)),
            Self::Choose(uid, candidates) => {
                let candidates: PyResult<Vec<_>> = candidates
                    .iter()
                    .map(|pod| state_fields(py, &pod.state))
                    .collect();
                (uid.as_str(), candidates?).into_pyobject(py)
            }
            Self::Condition(endpoint, condition) => (endpoint, condition).into_pyobject(py),
            Self::User(link) => (
                link.service.namespace.as_str(),
                link.uid.as_str(),
                link.service.service.as_str(),
            )
                .into_pyobject(py),
            Self::Changed(service, change) => {
                let fields = |state: Option<Arc<PodState>>| {
                    state.map(|state| state_fields(py, &state)).transpose()
                };
                (
                    service.namespace.as_str(),
                    service.service.as_str(),
                    change.pod.get(),
                    fields(change.previous)?,
                    fields(change.now)?,
                )
                    .into_pyobject(py)
            }
            Self::Lost(service, pod, users) => {
                (service.service.as_str(), pod.get(), users).into_pyobject(py)
            }
        }
    }
}

/// The receiver of a hook's result. A result that is no longer awaited is dropped.
#[pyclass(frozen, name = "Reply", module = "podlink._podlink")]
pub(super) struct HookReply {
    to: Mutex<Option<Recipient>>,
}

#[pymethods]
impl HookReply {
    /// Sends the value that the function returned.
    fn answer(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let Some(to) = self.take() else { return Ok(()) };
        match to {
            Recipient::None => {}
            Recipient::Done(to) => send(to, Ok(())),
            Recipient::Number(to) => send(to, read(argument::integer("load", value))),
            Recipient::Pod(to) if value.is_none() => send(to, Ok(None)),
            Recipient::Pod(to) => send(to, read(argument::pod_index(value)).map(Some)),
        }
        Ok(())
    }

    /// Sends that the hook failed.
    fn fail(&self, why: String) {
        match self.take() {
            Some(Recipient::Pod(to)) => send(to, Err(why)),
            Some(Recipient::Number(to)) => send(to, Err(why)),
            Some(Recipient::Done(to)) => send(to, Err(why)),
            Some(Recipient::None) | None => {}
        }
    }
}

impl HookReply {
    fn take(&self) -> Option<Recipient> {
        self.to
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

fn send<T>(to: oneshot::Sender<T>, answer: T) {
    let _abandoned = to.send(answer);
}

/// An invalid result is a failure of the hook, with the message of an invalid argument.
fn read<T>(answer: PyResult<T>) -> Replied<T> {
    answer.map_err(|error| error.to_string())
}
