//! Python hooks: they run on a Python thread or loop, and the core awaits the reply like any other
//! I/O, or does not wait at all.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pyo3_async_runtimes::TaskLocals;
use tokio::sync::oneshot;

use super::counters::hooks;
use super::hook_call::{HookArguments, HookCall, Recipient, Replied};
use super::queue::{Arrivals, CompletionQueue};
use crate::clock::{Clock, Tick};
use crate::driver::client::{LostPodHook, PodChooser};
use crate::driver::server::PodHooks;
use crate::driver::states::ChangeListener;
use crate::error::{Error, ErrorKind};
use crate::id::{LinkId, PodIndex, ServiceId, Uid};
use crate::route::snapshot::{Change, Pod};
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
    fn notify(&self, arguments: HookArguments) {
        self.enqueue(arguments, Recipient::None);
    }

    /// Calls the function and waits for its result.
    async fn call<T>(
        &self,
        arguments: HookArguments,
        recipient: impl FnOnce(oneshot::Sender<Replied<T>>) -> Recipient,
    ) -> Result<T, Error> {
        let (reply, replied) = oneshot::channel();
        let recipient = recipient(reply);
        let counted = HookTimer::new(recipient.hook());
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

    fn enqueue(&self, arguments: HookArguments, reply: Recipient) {
        let callable = Arc::clone(&self.callable);
        self.home.call(HookCall {
            callable,
            arguments,
            reply,
        });
    }
}

/// Counts a call whose result is awaited. A call that is abandoned counts as failed.
struct HookTimer {
    hook: &'static str,
    began: Tick,
    well: bool,
}

impl HookTimer {
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

impl Drop for HookTimer {
    fn drop(&mut self) {
        let took = Clock::System.now().since(self.began);
        hooks().ended(self.hook, took, self.well);
    }
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
        let arguments = HookArguments::Choose(uid.clone(), candidates);
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
                .notify(HookArguments::Changed(service.clone(), change.clone()));
        }
    }
}

/// A Python hook for lost pods.
#[derive(Debug)]
pub(super) struct PythonLostPod(pub(super) Hook);

impl LostPodHook for PythonLostPod {
    fn lost(&self, service: &ServiceId, pod: PodIndex, users_cached: u64) {
        self.0
            .notify(HookArguments::Lost(service.clone(), pod, users_cached));
    }
}

/// A Python hook for the conditions of a gRPC client's endpoints.
#[derive(Debug)]
pub(super) struct PythonConditionHook(pub(super) Hook);

impl ConditionHook for PythonConditionHook {
    fn changed(&self, endpoint: &str, condition: Condition) {
        let arguments = HookArguments::Condition(endpoint.to_owned(), condition.as_str());
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
            Some(load) => load.call(HookArguments::Nothing, Recipient::Number).await,
            None => Ok(0),
        }
    }

    async fn drain(&self, link: &LinkId) -> Result<(), Error> {
        let mut failure = None;
        for hook in Self::all(&self.drain) {
            let answer = hook
                .call(HookArguments::User(link.clone()), Recipient::Done)
                .await;
            failure = failure.or(answer.err());
        }
        failure.map_or(Ok(()), Err)
    }

    fn lease_lost(&self) {
        for hook in Self::all(&self.lease_lost) {
            hook.notify(HookArguments::Nothing);
        }
    }
}
