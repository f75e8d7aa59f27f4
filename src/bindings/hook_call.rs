//! Calls of Python hooks: the arguments that cross to the Python thread, and the reply that returns.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyWeakrefMethods, PyWeakrefReference};
use tokio::sync::oneshot;

use super::answer::{ownership_fields, state_fields};
use super::argument;
use crate::clock::{Clock, Tick};
use crate::driver::server::Ownership;
use crate::id::{PodIndex, ServiceId, Uid};
use crate::route::snapshot::{Change, Pod};
use crate::route::state::PodState;

/// The result of a Python function: a value, or the text of its exception.
pub(super) type Replied<T> = Result<T, String>;

/// The arguments of a hook.
pub(super) enum HookArguments {
    Nothing,
    Choose(Uid, Vec<Pod>),
    User(Ownership),
    Lost(Ownership, &'static str),
    Renewed(Ownership, Ownership),
    Reason(&'static str),
    /// No task waits for the call with this number any more.
    Abandoned,
    Changed(ServiceId, Change),
    LostPod(ServiceId, PodIndex, u64),
    Condition(String, &'static str),
}

/// The receiver of a result.
pub(super) enum Recipient {
    None,
    Pod(oneshot::Sender<Replied<Option<PodIndex>>>),
    Number(oneshot::Sender<Replied<i64>>),
    /// The name of the hook, too: several kinds have no value.
    Done(&'static str, oneshot::Sender<Replied<()>>),
}

impl Recipient {
    /// The name of the hook in the metrics.
    pub(super) fn hook(&self) -> &'static str {
        match self {
            Self::Pod(_) => "strategy",
            Self::Number(_) => "load",
            Self::Done(hook, _) => hook,
            // Notifications have no result: the Python layer, which filters them, counts the calls.
            Self::None => "pod_lost",
        }
    }

    /// Whether no task waits for the result any more.
    pub(super) fn is_abandoned(&self) -> bool {
        match self {
            Self::None => false,
            Self::Pod(to) => to.is_closed(),
            Self::Number(to) => to.is_closed(),
            Self::Done(_, to) => to.is_closed(),
        }
    }
}

/// A call of a Python function, waiting for a Python thread.
pub(super) struct HookCall {
    /// Names the call, so that it can be cancelled.
    pub(super) number: u64,
    /// Held weakly: the Python driver owns it.
    pub(super) callable: Arc<Py<PyWeakrefReference>>,
    pub(super) arguments: HookArguments,
    pub(super) reply: Recipient,
    /// When its caller stops waiting, if that is known.
    pub(super) until: Option<Tick>,
}

impl HookCall {
    /// The callable, its arguments and where to put the answer; `None`: its driver has let it go.
    pub(super) fn into_python(self, py: Python<'_>) -> PyResult<Option<Bound<'_, PyTuple>>> {
        let Some(callable) = self.callable.bind(py).upgrade() else {
            return Ok(None);
        };
        let cancels = matches!(self.arguments, HookArguments::Abandoned);
        let arguments = self.arguments.into_python(py)?;
        let to = Mutex::new(Some(self.reply));
        let reply = HookReply {
            to,
            number: self.number,
            cancels,
            until: self.until,
            began: AtomicBool::new(false),
        };
        let call = (callable, arguments, Py::new(py, reply)?);
        call.into_pyobject(py).map(Some)
    }

    /// Whether the call is not worth a start: no task waits for it any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.reply.is_abandoned()
    }
}

impl HookArguments {
    fn into_python(self, py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        match self {
            Self::Nothing | Self::Abandoned => Ok(PyTuple::empty(py)),
            Self::Choose(uid, candidates) => {
                let candidates: PyResult<Vec<_>> = candidates
                    .iter()
                    .map(|pod| state_fields(py, &pod.state))
                    .collect();
                (uid.as_str(), candidates?).into_pyobject(py)
            }
            Self::Condition(endpoint, condition) => (endpoint, condition).into_pyobject(py),
            Self::User(user) => (ownership_fields(py, &user)?,).into_pyobject(py),
            Self::Lost(user, why) => (ownership_fields(py, &user)?, why).into_pyobject(py),
            Self::Renewed(new, old) => {
                let (new, old) = (ownership_fields(py, &new)?, ownership_fields(py, &old)?);
                (new, old).into_pyobject(py)
            }
            Self::Reason(why) => (why,).into_pyobject(py),
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
            Self::LostPod(service, pod, users) => {
                (service.service.as_str(), pod.get(), users).into_pyobject(py)
            }
        }
    }
}

/// The receiver of a hook's result. A result that is no longer awaited is dropped.
#[pyclass(frozen, name = "Reply", module = "podlink._podlink")]
pub(super) struct HookReply {
    to: Mutex<Option<Recipient>>,
    /// The number of the call.
    #[pyo3(get)]
    number: u64,
    /// Whether this is no call, but the end of the one with this number: no task waits for it.
    #[pyo3(get)]
    cancels: bool,
    until: Option<Tick>,
    began: AtomicBool,
}

#[pymethods]
impl HookReply {
    /// Whether this is the first call of `begin`. A batch whose delivery was interrupted comes again,
    /// and no call of it may run twice.
    fn begin(&self) -> bool {
        !self.began.swap(true, Ordering::Relaxed)
    }

    /// Whether no task waits for the result any more.
    fn abandoned(&self) -> bool {
        let to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        to.as_ref().is_some_and(Recipient::is_abandoned)
    }

    /// For how many seconds the result is waited for at the most, `None` if the caller has no limit.
    fn seconds_left(&self) -> Option<f64> {
        let left = self.until?.since(Clock::System.now());
        Some(left.as_secs_f64())
    }

    /// Sends the value that the function returned.
    fn answer(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let Some(to) = self.take() else { return Ok(()) };
        match to {
            Recipient::None => {}
            Recipient::Done(_, to) => send(to, Ok(())),
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
            Some(Recipient::Done(_, to)) => send(to, Err(why)),
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
