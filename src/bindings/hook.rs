//! Python hooks: they run on a Python thread or loop, and the core awaits the reply like any other
//! I/O, or does not wait at all.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use pyo3_async_runtimes::TaskLocals;
use tokio::sync::oneshot;

use super::argument;
use super::queue::{Arrivals, CompletionQueue};
use super::telemetry::hooks;
use crate::clock::{Clock, Tick};
use crate::driver::client::{LostPodHook, PodChooser};
use crate::driver::server::PodHooks;
use crate::driver::states::ChangeListener;
use crate::error::{Error, ErrorKind};
use crate::id::{LinkId, PodIndex, ServiceId, Uid};
use crate::route::snapshot::{Change, Pod};
use crate::route::state::PodState;
use crate::rpc::client::{Condition, ConditionHook};

/// A Python function, with the queue of the loop or thread that runs it.
#[derive(Debug, Clone)]
pub(super) struct Hook {
    callable: Arc<Py<PyAny>>,
    home: Arc<Arrivals>,
}

impl Hook {
    /// A hook whose calls run on the loop or thread that drains `queue`.
    pub(super) fn new(
        callable: Py<PyAny>,
        queue: &CompletionQueue,
        py: Python<'_>,
    ) -> PyResult<Self> {
        let callable = Arc::new(callable);
        let home = queue.arrivals(py)?;
        Ok(Self { callable, home })
    }

    /// Calls the function without waiting for it.
    fn notify(&self, arguments: Arguments) {
        self.enqueue(arguments, Recipient::None);
    }

    /// Calls the function and waits for its result.
    async fn call<T>(
        &self,
        arguments: Arguments,
        recipient: impl FnOnce(oneshot::Sender<Replied<T>>) -> Recipient,
    ) -> Result<T, Error> {
        let (reply, replied) = oneshot::channel();
        let recipient = recipient(reply);
        let counted = Counted::new(recipient.hook());
        self.enqueue(arguments, recipient);
        let answer = match replied.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(why)) => Err(Error::new(ErrorKind::Internal, why)),
            Err(_) => Err(Error::new(
                ErrorKind::Closed,
                "the loop or thread of the hook has ended",
            )),
        };
        counted.ended(answer.is_ok());
        answer
    }

    fn enqueue(&self, arguments: Arguments, reply: Recipient) {
        let callable = Arc::clone(&self.callable);
        self.home.call(HookCall {
            callable,
            arguments,
            reply,
        });
    }
}

/// Counts a call whose result is awaited. A call that is abandoned counts as failed.
struct Counted {
    hook: &'static str,
    began: Tick,
    well: bool,
}

impl Counted {
    fn new(hook: &'static str) -> Self {
        hooks().called(hook);
        Self {
            hook,
            began: Clock::System.now(),
            well: false,
        }
    }

    fn ended(mut self, well: bool) {
        self.well = well;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let took = Clock::System.now().since(self.began);
        hooks().ended(self.hook, took, self.well);
    }
}

/// The result of a Python function: a value, or the text of its exception.
type Replied<T> = Result<T, String>;

/// The arguments of a hook.
enum Arguments {
    Nothing,
    Choose(Uid, Vec<Pod>),
    User(LinkId),
    Changed(ServiceId, Change),
    Lost(ServiceId, PodIndex, u64),
    Condition(String, &'static str),
}

/// The receiver of a result.
enum Recipient {
    None,
    Pod(oneshot::Sender<Replied<Option<PodIndex>>>),
    Number(oneshot::Sender<Replied<i64>>),
    Done(oneshot::Sender<Replied<()>>),
}

impl Recipient {
    /// The name of the hook in the metrics.
    fn hook(&self) -> &'static str {
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
    callable: Arc<Py<PyAny>>,
    arguments: Arguments,
    reply: Recipient,
}

impl HookCall {
    /// The callable, its arguments and where to put the answer.
    pub(super) fn into_python(self, py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        let arguments = self.arguments.into_python(py)?;
        let to = Mutex::new(Some(self.reply));
        (
            self.callable.clone_ref(py),
            arguments,
            Py::new(py, Reply { to })?,
        )
            .into_pyobject(py)
    }
}

impl Arguments {
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

/// A state as the fields of `podlink.StatefulServiceState`.
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

/// The receiver of a hook's result. A result that is no longer awaited is dropped.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct Reply {
    to: Mutex<Option<Recipient>>,
}

#[pymethods]
impl Reply {
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

impl Reply {
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

/// Starts a hook's coroutine as a task of `event_loop`, with the context variables of the hook's
/// registration. `answering` sends its own reply. pyo3-async-runtimes carries loop and context; its
/// `into_future` is not used, because it takes the GIL on a runtime thread when a loop ends under
/// a coroutine (docs/decisions/0002).
#[pyfunction]
pub(super) fn start_coroutine<'py>(
    event_loop: Bound<'py, PyAny>,
    context: Bound<'py, PyAny>,
    answering: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = event_loop.py();
    let locals = TaskLocals::new(event_loop).with_context(context);
    let arguments = PyDict::new(py);
    arguments.set_item("context", locals.context(py))?;
    let create_task = locals.event_loop(py).getattr("create_task")?;
    create_task.call((answering,), Some(&arguments))
}

/// A strategy that is a Python function `(uid, candidates) -> pod_index | None`.
#[derive(Debug)]
pub(super) struct PythonChooser(pub(super) Hook);

#[async_trait]
impl PodChooser for PythonChooser {
    async fn choose(
        &self,
        _service: &ServiceId,
        uid: &Uid,
        candidates: Vec<Pod>,
    ) -> Result<Option<PodIndex>, Error> {
        let arguments = Arguments::Choose(uid.clone(), candidates);
        self.0.call(arguments, Recipient::Pod).await
    }
}

/// A Python hook for changes of one service, or of all.
#[derive(Debug)]
pub(super) struct PythonChangeListener {
    pub(super) hook: Hook,
    pub(super) service: Option<ServiceId>,
}

impl ChangeListener for PythonChangeListener {
    fn on_change(&self, service: &ServiceId, changes: &[Change]) {
        if self
            .service
            .as_ref()
            .is_some_and(|wanted| wanted != service)
        {
            return;
        }
        for change in changes {
            self.hook
                .notify(Arguments::Changed(service.clone(), change.clone()));
        }
    }
}

/// A Python hook for lost pods.
#[derive(Debug)]
pub(super) struct PythonLostPod(pub(super) Hook);

impl LostPodHook for PythonLostPod {
    fn lost(&self, service: &ServiceId, pod: PodIndex, users_cached: u64) {
        self.0
            .notify(Arguments::Lost(service.clone(), pod, users_cached));
    }
}

/// A Python hook for the conditions of a gRPC client's endpoints.
#[derive(Debug)]
pub(super) struct PythonConditionHook(pub(super) Hook);

impl ConditionHook for PythonConditionHook {
    fn changed(&self, endpoint: &str, condition: Condition) {
        let arguments = Arguments::Condition(endpoint.to_owned(), condition.as_str());
        self.0.notify(arguments);
    }
}

/// The Python hooks of a server driver.
#[derive(Debug, Default)]
pub(super) struct PythonPodHooks {
    pub(super) load: Option<Hook>,
    pub(super) drain: Mutex<Vec<Hook>>,
    pub(super) lease_lost: Mutex<Vec<Hook>>,
}

impl PythonPodHooks {
    fn all(hooks: &Mutex<Vec<Hook>>) -> Vec<Hook> {
        hooks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn add(hooks: &Mutex<Vec<Hook>>, hook: Hook) {
        hooks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(hook);
    }
}

#[async_trait]
impl PodHooks for PythonPodHooks {
    fn reports_load(&self) -> bool {
        self.load.is_some()
    }

    async fn load(&self) -> Result<i64, Error> {
        match &self.load {
            Some(load) => load.call(Arguments::Nothing, Recipient::Number).await,
            None => Ok(0),
        }
    }

    async fn drain(&self, link: &LinkId) -> Result<(), Error> {
        let mut failure = None;
        for hook in Self::all(&self.drain) {
            let answer = hook
                .call(Arguments::User(link.clone()), Recipient::Done)
                .await;
            failure = failure.or(answer.err());
        }
        failure.map_or(Ok(()), Err)
    }

    fn lease_lost(&self) {
        for hook in Self::all(&self.lease_lost) {
            hook.notify(Arguments::Nothing);
        }
    }
}
