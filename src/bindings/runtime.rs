//! The tokio runtime of this process, and its handling of a fork.

use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use tokio::runtime::{Builder, Handle};

use super::error::{out_of_resources, raise};
use crate::error::{Error, ErrorKind};

/// Increases with every fork, in the child.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// The runtime of this generation. Only locked with the GIL held, and a fork happens with the GIL
/// held by the forking thread, so no child inherits it locked.
static RUNTIME: Mutex<Option<(u64, Handle)>> = Mutex::new(None);

/// Marks this process as a forked child.
pub(super) fn after_fork_in_child() {
    GENERATION.fetch_add(1, Ordering::SeqCst);
}

/// The number of forks between the first process and this one.
pub(super) fn generation() -> u64 {
    GENERATION.load(Ordering::SeqCst)
}

/// The runtime, started by the first call in this process.
pub(super) fn handle(py: Python<'_>) -> PyResult<Handle> {
    let mut runtime = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    let generation = GENERATION.load(Ordering::SeqCst);
    if let Some((made, handle)) = &*runtime
        && *made == generation
    {
        return Ok(handle.clone());
    }
    // tokio panics if its first thread cannot be started.
    std::thread::Builder::new()
        .spawn(|| ())
        .map_err(|cause| out_of_resources(py, "thread", cause))?;
    let started = Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("podlink")
        .enable_all()
        .build();
    let started = started.map_err(|cause| out_of_resources(py, "descriptor for its I/O", cause))?;
    let handle = started.handle().clone();
    // It ends with the process: its threads never touch Python, so no shutdown has to wait for
    // them. After a fork the parent's runtime has no threads here, and dropping it would wait for
    // them.
    std::mem::forget(started);
    *runtime = Some((generation, handle.clone()));
    Ok(handle)
}

/// One thread does the I/O while a Python thread prepares the next call; Python needs the other
/// cores.
const WORKERS: usize = 1;

/// A value that must not be used, nor even dropped, in a forked child: its tasks and connections
/// belong to the parent, and its locks may have been held at the fork.
#[derive(Debug)]
pub(super) struct Owned<T> {
    generation: u64,
    value: ManuallyDrop<T>,
}

impl<T> Owned<T> {
    pub(super) fn new(value: T) -> Self {
        let generation = GENERATION.load(Ordering::SeqCst);
        Self {
            generation,
            value: ManuallyDrop::new(value),
        }
    }

    /// Whether this process created the value. One atomic load.
    pub(super) fn is_ours(&self) -> bool {
        self.generation == GENERATION.load(Ordering::Relaxed)
    }

    /// The value in the process that created it, `None` elsewhere.
    pub(super) fn ours(&self) -> Option<&T> {
        self.is_ours().then_some(&*self.value)
    }

    /// The value in the process that created it, a `ForkedProcess` error elsewhere.
    pub(super) fn get(&self, py: Python<'_>) -> PyResult<&T> {
        if self.is_ours() {
            return Ok(self.value.deref());
        }
        Err(raise(
            py,
            &Error::new(
                ErrorKind::ForkedProcess,
                "this object was made before os.fork and belongs to the parent process; make a \
                 new store and new drivers in the child",
            ),
        ))
    }
}

impl<T> Drop for Owned<T> {
    #[allow(unsafe_code, reason = "ManuallyDrop is dropped once, here")]
    fn drop(&mut self) {
        if self.is_ours() {
            // SAFETY: `value` is not used after this, the last moment of its owner.
            unsafe { ManuallyDrop::drop(&mut self.value) }
        }
    }
}
