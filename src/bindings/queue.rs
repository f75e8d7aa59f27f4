//! The bridge: delivers results of the runtime to a Python event loop or thread.
//!
//! A runtime thread puts an arrival into the queue and, if the queue was empty, wakes its reader.
//! The reader wakes once per batch and drains the queue with the GIL that it holds anyway. The
//! runtime never sees a Python object: waiters stay here, under a number.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwap;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};
use slab::Slab;
use tracing::Instrument;

use super::answer::Answer;
use super::counters::bridge;
use super::error::{out_of_resources, parts};
use super::hook_call::HookCall;
use super::runtime::{self, Owned};
use super::waker::Waker;
use crate::driver::client::{Caller, Inbox as Answers, Numbered, Routed};
use crate::error::{Error, ErrorKind};
use crate::op::OperationName;
use crate::telemetry::count;

type Outcome = Result<Answer, Error>;

/// The half of a queue that the runtime sees.
pub(super) struct Arrivals {
    inbox: Mutex<ArrivalBuffer>,
    waker: Waker,
    /// The queue's Python half was dropped.
    abandoned: AtomicBool,
    /// The number of awaited operations, for the metrics only.
    awaited: AtomicUsize,
    /// How often the queue was drained, for the watchdog only.
    drains: AtomicU64,
}

#[derive(Default)]
struct ArrivalBuffer {
    done: Vec<(u64, Outcome)>,
    calls: Vec<HookCall>,
}

impl std::fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arrivals").finish_non_exhaustive()
    }
}

impl Arrivals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            inbox: Mutex::default(),
            waker: Waker::new()?,
            abandoned: AtomicBool::new(false),
            awaited: AtomicUsize::new(0),
            drains: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, ArrivalBuffer> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, put: impl FnOnce(&mut ArrivalBuffer)) {
        let was_empty = {
            let mut inbox = self.lock();
            let was_empty = inbox.done.is_empty() && inbox.calls.is_empty();
            put(&mut inbox);
            was_empty
        };
        if was_empty {
            self.wake();
        }
    }

    /// Clears the reader's wake-ups, unless something has arrived since: that did not wake it.
    fn clear_waker_if_empty(&self) {
        let inbox = self.lock();
        if inbox.done.is_empty() && inbox.calls.is_empty() {
            self.waker.clear();
        }
    }

    /// Wakes the reader.
    pub(super) fn wake(&self) {
        count(&bridge().wake_ups);
        self.waker.wake();
    }

    /// Puts a hook call into the queue. If the loop has ended, or is far behind, the call is
    /// dropped: its caller gets an error, and the queue stays bounded.
    pub(super) fn call(&self, call: HookCall) {
        const WAITING_MAX: usize = 100_000;
        if self.abandoned.load(Ordering::Acquire) {
            return;
        }
        self.put(|inbox| {
            if inbox.calls.len() < WAITING_MAX {
                inbox.calls.push(call);
            } else {
                count(&bridge().dropped);
                tracing::warn!("a hook call was dropped: its loop or thread does not keep up");
            }
        });
    }

    /// How often the queue was drained; has it drained once more, even if it is empty.
    pub(super) fn answers(&self) -> u64 {
        self.waker.wake();
        self.drains.load(Ordering::Relaxed)
    }

    /// Whether the queue is no longer drained.
    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// Marks the queue as one that is no longer drained.
    fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
        self.lock().calls.clear();
    }

    /// The number of queued items, and of awaited operations.
    fn load(&self) -> (usize, usize) {
        let inbox = self.lock();
        let waiting = inbox.done.len() + inbox.calls.len();
        (waiting, self.awaited.load(Ordering::Relaxed))
    }
}

impl Answers for Arrivals {
    fn arrive(&self, answers: Numbered) {
        let named = |error: Error| error.during(OperationName::ComputeLinkedPod);
        let pod = |routed: Routed| Answer::Pod(routed.pod);
        let outcomes = answers
            .into_iter()
            .map(|(waiter, answer)| (waiter, answer.map(pod).map_err(named)));
        self.put(|inbox| inbox.done.extend(outcomes));
    }
}

/// An operation in progress. However it ends, even by a panic, its waiter gets an outcome.
struct Pending {
    arrivals: Arc<Arrivals>,
    waiter: u64,
    outcome: Option<Outcome>,
}

impl Pending {
    fn settle(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or_else(|| {
            Err(Error::new(
                ErrorKind::Internal,
                "the operation ended without an answer",
            ))
        });
        self.arrivals
            .put(|inbox| inbox.done.push((self.waiter, outcome)));
    }
}

/// The completion queue of one event loop, or of a thread of podlink's.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct CompletionQueue {
    arrivals: Owned<Arc<Arrivals>>,
    /// The waiters, by number; a number is reused once its waiter has been handed out. Only
    /// accessed with the GIL held.
    waiters: Mutex<Slab<Py<PyAny>>>,
    /// What `drain` handed out and `delivered` has not confirmed yet. As above.
    batch: Mutex<Option<Py<PyTuple>>>,
}

#[pymethods]
impl CompletionQueue {
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        let arrivals = Arrivals::new()
            .map_err(|cause| out_of_resources(py, "descriptor to wake a loop with", cause))?;
        let arrivals = Arc::new(arrivals);
        note_queue(&arrivals);
        Ok(Self {
            arrivals: Owned::new(arrivals),
            waiters: Mutex::default(),
            batch: Mutex::default(),
        })
    }

    /// The descriptor that becomes readable when the queue has items to drain.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        Ok(self.arrivals.get(py)?.waker.descriptor())
    }

    /// Everything that has arrived: waiters and, in the same order, their values; failures as
    /// (waiter, error parts); and hook calls as (callable, arguments, reply).
    ///
    /// The same batch comes again until `delivered` is called, and the descriptor stays readable: a
    /// signal handler may raise in the middle of a delivery.
    fn drain(&self, py: Python<'_>) -> PyResult<Py<PyTuple>> {
        if let Some(batch) = &*self.batch() {
            return Ok(batch.clone_ref(py));
        }
        let batch = self.take(py)?.into_pyobject(py)?.unbind();
        *self.batch() = Some(batch.clone_ref(py));
        Ok(batch)
    }

    /// Confirms that everything of the last batch was delivered.
    fn delivered(&self, py: Python<'_>) -> PyResult<()> {
        let arrivals = self.arrivals.get(py)?;
        // Dropped when the lock is free: that may run a finaliser.
        let _batch = self.batch().take();
        arrivals.clear_waker_if_empty();
        arrivals.drains.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Wakes the reader of an empty queue.
    fn wake(&self, py: Python<'_>) -> PyResult<()> {
        self.arrivals.get(py)?.wake();
        Ok(())
    }

    /// The number of awaited operations.
    fn __len__(&self) -> usize {
        self.waiters().len()
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        if let Some(arrivals) = self.arrivals.ours() {
            arrivals.abandon();
        }
    }
}

/// The parts of a batch.
type Batch<'py> = (
    Bound<'py, PyList>,
    Bound<'py, PyList>,
    Vec<(Py<PyAny>, Bound<'py, PyTuple>)>,
    Vec<Bound<'py, PyTuple>>,
);

impl CompletionQueue {
    /// Starts `work` on the runtime; its outcome is delivered to `waiter` by a later `drain`. A
    /// waiter that stops waiting does not cancel the work.
    pub(super) fn spawn(
        &self,
        py: Python<'_>,
        waiter: Py<PyAny>,
        work: impl Future<Output = Outcome> + Send + 'static,
    ) -> PyResult<()> {
        let runtime = runtime::handle(py)?;
        let arrivals = Arc::clone(self.arrivals.get(py)?);
        let number = self.enrol(&arrivals, waiter);
        let pending = Pending {
            arrivals,
            waiter: number,
            outcome: None,
        };
        // Its span ends before the waiter gets the outcome.
        let work = work.in_current_span();
        runtime.spawn(async move {
            let outcome = work.await;
            pending.settle(outcome);
        });
        Ok(())
    }

    /// A caller of the core whose result is delivered to `waiter` by a later `drain`.
    pub(super) fn caller(&self, arrivals: Arc<Arrivals>, waiter: Py<PyAny>) -> Caller {
        let number = self.enrol(&arrivals, waiter);
        Caller::new(arrivals, number)
    }

    /// Makes a batch of all arrivals.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Batch<'py>> {
        let arrivals = self.arrivals.get(py)?;
        // Both at once: an arrival in a queue that is not empty does not wake the reader.
        let ArrivalBuffer { done, calls } = std::mem::take(&mut *arrivals.lock());
        let taken = done.len() + calls.len();
        if taken > 0 {
            bridge().batches.size(taken);
        }
        let (mut settled, mut values, mut failures) = (
            Vec::with_capacity(done.len()),
            Vec::with_capacity(done.len()),
            Vec::new(),
        );
        for (waiter, outcome) in self.awaited(arrivals, done) {
            match outcome {
                Ok(answer) => {
                    values.push(answer.into_python(py)?);
                    settled.push(waiter);
                }
                Err(error) => failures.push((waiter, parts(py, &error)?)),
            }
        }
        // What no task waits for any more is not started.
        let calls = calls.into_iter().filter(|call| !call.is_abandoned());
        let calls = calls.filter_map(|call| call.into_python(py).transpose());
        let calls: PyResult<Vec<_>> = calls.collect();
        Ok((
            PyList::new(py, settled)?,
            PyList::new(py, values)?,
            failures,
            calls?,
        ))
    }

    fn batch(&self) -> MutexGuard<'_, Option<Py<PyTuple>>> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The waiters of these outcomes. Must not create Python objects: that may run the garbage
    /// collector, whose finalisers may start an operation here, or let another thread start one,
    /// which would wait for this lock with the GIL held.
    fn awaited(&self, arrivals: &Arrivals, done: Vec<(u64, Outcome)>) -> Vec<(Py<PyAny>, Outcome)> {
        let mut waiters = self.waiters();
        let found = done.into_iter().filter_map(|(number, outcome)| {
            let waiter = waiters.try_remove(usize::try_from(number).ok()?)?;
            Some((waiter, outcome))
        });
        let found = found.collect();
        arrivals.awaited.store(waiters.len(), Ordering::Relaxed);
        found
    }

    fn enrol(&self, arrivals: &Arrivals, waiter: Py<PyAny>) -> u64 {
        let mut waiters = self.waiters();
        let number = waiters.insert(waiter);
        arrivals.awaited.store(waiters.len(), Ordering::Relaxed);
        number as u64
    }

    fn waiters(&self) -> MutexGuard<'_, Slab<Py<PyAny>>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The runtime's half of the queue.
    pub(super) fn arrivals(&self, py: Python<'_>) -> PyResult<Arc<Arrivals>> {
        Ok(Arc::clone(self.arrivals.get(py)?))
    }
}

/// Every queue in use. Without a lock: a forked child might inherit it locked.
static QUEUES: LazyLock<ArcSwap<Vec<Weak<Arrivals>>>> = LazyLock::new(ArcSwap::default);

/// Registers a new queue.
fn note_queue(queue: &Arc<Arrivals>) {
    QUEUES.rcu(|queues| {
        let alive = queues.iter().filter(|known| known.strong_count() > 0);
        let mut queues: Vec<_> = alive.cloned().collect();
        queues.push(Arc::downgrade(queue));
        queues
    });
}

/// The number of items in all queues, and of awaited operations.
pub(super) fn queue_loads() -> (u64, u64) {
    let queues = QUEUES.load();
    let loads = queues.iter().filter_map(Weak::upgrade);
    loads.fold((0, 0), |(waiting, operations), queue| {
        let load = queue.load();
        (waiting + load.0 as u64, operations + load.1 as u64)
    })
}

/// Drops the parent's queues in a forked child.
pub(super) fn after_fork_in_child() {
    QUEUES.store(Arc::default());
}
