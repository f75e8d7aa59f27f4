//! The counters of the whole process: of the bridge, and of hooks, which belong to loops and threads,
//! not to stores.

use std::sync::LazyLock;
use std::time::Duration;

use pyo3::prelude::*;

use crate::telemetry::{BridgeStats, HookStats, names};

/// The counters of the bridge.
pub(super) fn bridge() -> &'static BridgeStats {
    static BRIDGE: LazyLock<BridgeStats> = LazyLock::new(BridgeStats::default);
    &BRIDGE
}

/// The counters of hooks.
pub(super) fn hooks() -> &'static HookStats {
    static HOOKS: LazyLock<HookStats> = LazyLock::new(HookStats::default);
    &HOOKS
}

/// Counts a call of a hook whose end the core does not see.
#[pyfunction]
pub(super) fn hook_called(hook: &str) {
    if let Some(hook) = known(hook) {
        hooks().called(hook);
    }
}

/// Counts the end of such a hook call, and its duration.
#[pyfunction]
pub(super) fn hook_ended(hook: &str, seconds: f64, well: bool) {
    if let Some(hook) = known(hook) {
        let took = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        hooks().ended(hook, took, well);
    }
}

fn known(hook: &str) -> Option<&'static str> {
    names::HOOKS.into_iter().find(|known| *known == hook)
}

/// Resets the counters in a forked child.
pub(super) fn after_fork_in_child() {
    bridge().reset();
    hooks().reset();
}
