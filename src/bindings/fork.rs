//! What a forked child must not use of its parent.

use pyo3::prelude::*;

use super::{counters, log, queue, runtime};

/// Marks this process as a forked child: `os.register_at_fork` calls it.
#[pyfunction]
pub(super) fn after_fork_in_child() {
    runtime::after_fork_in_child();
    log::after_fork_in_child();
    queue::after_fork_in_child();
    counters::after_fork_in_child();
    crate::trace::after_fork_in_child();
}
