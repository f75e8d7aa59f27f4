//! The Python objects of pods' states: one for each state, however often a program asks for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;

use super::answer::state_fields;
use crate::route::state::PodState;

/// So many objects are kept before the first look for states that were replaced.
const PURGE_MIN: usize = 64;

/// The objects that were made, by the address of their state.
#[derive(Debug, Default)]
pub(super) struct KnownPods(Mutex<MadeObjects>);

#[derive(Debug, Default)]
struct MadeObjects {
    /// Each with its state, which keeps the address from being reused.
    made: HashMap<usize, (Arc<PodState>, Py<PyAny>)>,
    purge_at: usize,
}

impl KnownPods {
    /// The object of this state; the first time `make` makes it of the state's fields.
    pub(super) fn object<'py>(
        &self,
        state: &Arc<PodState>,
        make: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, at) = (make.py(), Arc::as_ptr(state).addr());
        if let Some((_, object)) = self.lock().made.get(&at) {
            return Ok(object.bind(py).clone());
        }
        // Without the lock: it runs Python code.
        let object = make.call1((state_fields(py, state)?,))?;
        let kept = (Arc::clone(state), object.clone().unbind());
        drop(self.insert(at, kept));
        Ok(object)
    }

    /// Keeps an object. Returns those of states that were replaced, to be dropped without the lock.
    fn insert(
        &self,
        at: usize,
        kept: (Arc<PodState>, Py<PyAny>),
    ) -> Vec<(Arc<PodState>, Py<PyAny>)> {
        let mut objects = self.lock();
        let mut dropped: Vec<_> = objects.made.insert(at, kept).into_iter().collect();
        if objects.made.len() >= objects.purge_at.max(PURGE_MIN) {
            let replaced = objects
                .made
                .extract_if(|_, (state, _)| Arc::strong_count(state) == 1);
            dropped.extend(replaced.map(|(_, replaced)| replaced));
            objects.purge_at = objects.made.len() * 2;
        }
        dropped
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, MadeObjects> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
