//! Hooks that are registered.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;

use super::runtime::Owned;

type End = Box<dyn FnOnce() + Send>;

/// A hook that is called until this is unregistered or dropped. Its Python driver holds it.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct Registration {
    end: Owned<Mutex<Option<End>>>,
}

impl Registration {
    /// A hook whose calls `end` ends.
    pub(super) fn new(end: impl FnOnce() + Send + 'static) -> Self {
        Self {
            end: Owned::new(Mutex::new(Some(Box::new(end)))),
        }
    }
}

#[pymethods]
impl Registration {
    /// Ends the calls of the hook. A second call does nothing.
    fn unregister(&self, py: Python<'_>) -> PyResult<()> {
        end(self.end.get(py)?);
        Ok(())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(registered) = self.end.ours() {
            end(registered);
        }
    }
}

fn end(registered: &Mutex<Option<End>>) {
    let end = registered
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(end) = end {
        end();
    }
}
