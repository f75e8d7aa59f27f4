//! Python hooks: they run on a Python thread or loop, and the core awaits the reply like any other
//! I/O, or does not wait at all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyWeakrefReference};
use pyo3_async_runtimes::TaskLocals;
use tokio::sync::oneshot;

use super::counters::hooks;
use super::hook_call::{HookArguments, HookCall, Recipient, Replied};
use super::queue::{Arrivals, CompletionQueue};
use crate::clock::{Clock, Tick};
use crate::driver::client::{LostPodHook, PodChooser};
use crate::driver::server::{LeaseEvent, LeaseReason, LossReason, Ownership, PodHooks};
use crate::driver::states::ChangeListener;
use crate::error::{Error, ErrorKind};
use crate::id::{PodIndex, ServiceId, Uid};
use crate::route::snapshot::{Change, Pod};
use crate::rpc::client::{Condition, ConditionHook};

/// A Python function, with the queue of the loop or thread that runs it. Both are held weakly: the
/// Python driver owns its hooks, so a hook that refers to its driver does not keep it alive; and a
/// loop that has ended takes its descriptor with it.
#[derive(Debug, Clone)]
pub(super) struct Hook {
    callable: Arc<Py<PyWeakrefReference>>,
    home: Weak<Arrivals>,
}

impl Hook {
    /// A hook whose calls run on the loop or thread that drains `queue`.
    pub(super) fn new(callable: &Bound<'_, PyAny>, queue: &CompletionQueue) -> PyResult<Self> {
        let home = Arc::downgrade(&queue.arrivals(callable.py())?);
        let callable = Arc::new(PyWeakrefReference::new(callable)?.unbind());
        Ok(Self { callable, home })
    }

    /// Calls the function without waiting for it.
    fn notify(&self, arguments: HookArguments) {
        self.enqueue(arguments, Recipient::None, None);
    }

    /// Calls the function and waits for its result; `until` is when the caller of this stops waiting.
    async fn call<T>(
        &self,
        arguments: HookArguments,
        until: Option<Tick>,
        recipient: impl FnOnce(oneshot::Sender<Replied<T>>) -> Recipient,
    ) -> Result<T, Error> {
        let (reply, replied) = oneshot::channel();
        let recipient = recipient(reply);
        let counted = HookTimer::new(recipient.hook());
        let number = self.enqueue(arguments, recipient, until);
        let mut abandoned = Abandoned {
            hook: Some(self),
            number,
        };
        let answer = replied.await;
        abandoned.hook = None;
        let answer = match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(why)) => Err(Error::new(ErrorKind::Internal, why)),
            Err(_) => Err(self.ended_without_answer()),
        };
        counted.ended(answer.is_ok());
        answer
    }

    fn enqueue(&self, arguments: HookArguments, reply: Recipient, until: Option<Tick>) -> u64 {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        let number = CALLS.fetch_add(1, Ordering::Relaxed);
        self.send(number, arguments, reply, until);
        number
    }

    fn ended_without_answer(&self) -> Error {
        match self.home.upgrade() {
            None => Error::new(
                ErrorKind::Closed,
                "the loop or thread of the hook has ended",
            ),
            Some(_) => Error::new(ErrorKind::Internal, "the call of the hook was dropped"),
        }
    }

    fn send(&self, number: u64, arguments: HookArguments, reply: Recipient, until: Option<Tick>) {
        let Some(home) = self.home.upgrade() else {
            return;
        };
        let callable = Arc::clone(&self.callable);
        home.call(HookCall {
            number,
            callable,
            arguments,
            reply,
            until,
        });
    }
}

/// A call that is waited for. If the wait ends before the call does, the function is notified.
struct Abandoned<'a> {
    hook: Option<&'a Hook>,
    number: u64,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if let Some(hook) = self.hook {
            hook.send(self.number, HookArguments::Abandoned, Recipient::None, None);
        }
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
        until: Tick,
    ) -> Result<Option<PodIndex>, Error> {
        let arguments = HookArguments::Choose(uid.clone(), candidates);
        self.0.call(arguments, Some(until), Recipient::Pod).await
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
            .notify(HookArguments::LostPod(service.clone(), pod, users_cached));
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

/// The Python hooks of a server driver, by the name of their event.
#[derive(Debug, Default)]
pub(super) struct PythonPodHooks {
    hooks: Mutex<HashMap<&'static str, Vec<(u64, Hook)>>>,
    registered: AtomicU64,
    program: Mutex<Program>,
}

/// The loop or thread that runs the pod's program, for the watchdog. It is not kept.
#[derive(Debug, Default)]
struct Program {
    queue: Weak<Arrivals>,
    /// How often it had answered when it was last asked. It stays when the loop has ended.
    answers: u64,
}

/// The hooks that a server driver calls.
pub(super) const POD_HOOKS: [&str; 7] = [
    "load",
    "drain",
    "lease_suspended",
    "lease_resumed",
    "lease_lost",
    "ownership_lost",
    "ownership_renewed",
];

impl PythonPodHooks {
    /// Adds a hook of this name; returns its number, for `remove`.
    pub(super) fn add(&self, name: &'static str, hook: Hook) -> u64 {
        let number = self.registered.fetch_add(1, Ordering::Relaxed);
        self.lock().entry(name).or_default().push((number, hook));
        number
    }

    /// Removes the hook with this number.
    pub(super) fn remove(&self, name: &'static str, number: u64) {
        if let Some(hooks) = self.lock().get_mut(name) {
            hooks.retain(|(other, _)| *other != number);
        }
    }

    fn of(&self, name: &'static str) -> Vec<Hook> {
        let hooks = self.lock();
        let hooks = hooks.get(name).into_iter().flatten();
        hooks.map(|(_, hook)| hook.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<&'static str, Vec<(u64, Hook)>>> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The program runs on this queue's loop or thread from now on: it has called `start` there, or
    /// the loop where it did so has ended.
    pub(super) fn runs_on(&self, queue: &Arc<Arrivals>, starts: bool) {
        let mut program = self.program.lock().unwrap_or_else(PoisonError::into_inner);
        let known = program.queue.upgrade();
        if starts || known.is_none_or(|known| known.is_abandoned()) {
            program.queue = Arc::downgrade(queue);
        }
    }

    /// Calls every hook of this name, one after the other; the first failure counts. Returns whether
    /// there was any.
    async fn ask(
        &self,
        name: &'static str,
        until: Tick,
        arguments: impl Fn() -> HookArguments,
    ) -> Result<bool, Error> {
        let (mut any, mut failure) = (false, None);
        for hook in self.of(name) {
            any = true;
            let done = |to| Recipient::Done(name, to);
            let answer: HookOutcome = hook.call(arguments(), Some(until), done).await;
            failure = failure.or(answer.err());
        }
        failure.map_or(Ok(any), Err)
    }
}

type HookOutcome = Result<(), Error>;

#[async_trait]
impl PodHooks for PythonPodHooks {
    fn reports_load(&self) -> bool {
        self.lock().get("load").is_some_and(|load| !load.is_empty())
    }

    fn answers(&self) -> Option<u64> {
        let mut program = self.program.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = program.queue.upgrade() {
            program.answers = queue.answers();
        }
        Some(program.answers)
    }

    fn saves(&self) -> bool {
        self.lock()
            .get("drain")
            .is_some_and(|hooks| !hooks.is_empty())
    }

    async fn load(&self) -> Result<i64, Error> {
        match self.of("load").first() {
            Some(load) => {
                load.call(HookArguments::Nothing, None, Recipient::Number)
                    .await
            }
            None => Err(Error::new(
                ErrorKind::Closed,
                "the load function was removed",
            )),
        }
    }

    async fn drain(&self, user: &Ownership, until: Tick) -> Result<bool, Error> {
        let arguments = || HookArguments::User(user.clone());
        self.ask("drain", until, arguments).await
    }

    async fn lease(&self, what: LeaseEvent, why: LeaseReason, until: Tick) -> HookOutcome {
        let name = match what {
            LeaseEvent::Suspended => "lease_suspended",
            LeaseEvent::Resumed => "lease_resumed",
            LeaseEvent::Lost => "lease_lost",
        };
        let arguments = || HookArguments::Reason(why.as_str());
        self.ask(name, until, arguments).await.map(drop)
    }

    async fn ownership_lost(&self, user: &Ownership, why: LossReason, until: Tick) -> HookOutcome {
        let arguments = || HookArguments::Lost(user.clone(), why.as_str());
        self.ask("ownership_lost", until, arguments).await.map(drop)
    }

    async fn ownership_renewed(
        &self,
        new: &Ownership,
        old: &Ownership,
        until: Tick,
    ) -> HookOutcome {
        let arguments = || HookArguments::Renewed(new.clone(), old.clone());
        self.ask("ownership_renewed", until, arguments)
            .await
            .map(drop)
    }
}
