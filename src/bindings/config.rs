//! Configuration crosses once, as plain data: seconds become durations and are checked here.

use pyo3::prelude::*;

use super::argument;
use super::error::OrRaise;
use crate::config::{
    ClientConfig, Drain, LeaseTimes, OnRestart, RouteInfoConfig, ServerConfig, seconds_within,
};
use crate::route::pick::Strategy;

/// A hundred years; the finer limits are checked with the settings' relations.
const MAX: f64 = 3_153_600_000.0;

/// A number of seconds; the finer limits are checked later.
pub(super) fn seconds(
    what: &'static str,
    given: &Bound<'_, PyAny>,
) -> PyResult<std::time::Duration> {
    seconds_within(what, argument::number(what, given)?, 0.0, MAX).or_raise(given.py())
}

/// A checked `podlink.ClientConfig`.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct ClientSettings(pub(super) ClientConfig);

#[pymethods]
impl ClientSettings {
    #[new]
    #[pyo3(signature = (*, link_ttl, cache_ttl, cache_capacity, strategy, timeout, on_restart))]
    fn new(
        link_ttl: &Bound<'_, PyAny>,
        cache_ttl: &Bound<'_, PyAny>,
        cache_capacity: &Bound<'_, PyAny>,
        strategy: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
        on_restart: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let py = link_ttl.py();
        let config = ClientConfig {
            link_ttl: seconds("link_ttl", link_ttl)?,
            cache_ttl: seconds("cache_ttl", cache_ttl)?,
            cache_capacity: argument::count("cache_capacity", cache_capacity)?,
            strategy: Strategy::parse(argument::text("strategy", strategy)?).or_raise(py)?,
            timeout: seconds("timeout", timeout)?,
            on_restart: OnRestart::parse(argument::text("on_restart", on_restart)?).or_raise(py)?,
        };
        config.check().map(Self).or_raise(py)
    }
}

/// A checked `podlink.RouteInfoConfig`.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct RouteInfoSettings {
    pub(super) config: RouteInfoConfig,
    /// The deadline of a call that names none.
    pub(super) timeout: std::time::Duration,
}

#[pymethods]
impl RouteInfoSettings {
    #[new]
    #[pyo3(signature = (*, refresh, overload_limit, idle, serve_stale, tag_ttl, timeout))]
    fn new(
        refresh: &Bound<'_, PyAny>,
        overload_limit: &Bound<'_, PyAny>,
        idle: &Bound<'_, PyAny>,
        serve_stale: bool,
        tag_ttl: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let limited = !overload_limit.is_none();
        let limit = limited.then(|| argument::integer("overload_limit", overload_limit));
        let config = RouteInfoConfig {
            refresh: seconds("refresh", refresh)?,
            overload_limit: limit.transpose()?,
            idle: seconds("idle", idle)?,
            serve_stale,
            tag_ttl: seconds("tag_ttl", tag_ttl)?,
        };
        let given = argument::number("timeout", timeout)?;
        let timeout = seconds_within("timeout", given, 0.001, 3600.0).or_raise(refresh.py())?;
        let config = config.check().or_raise(refresh.py())?;
        Ok(Self { config, timeout })
    }
}

/// A checked `podlink.ServerConfig`.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct ServerSettings(pub(super) ServerConfig);

#[pymethods]
impl ServerSettings {
    #[new]
    #[pyo3(signature = (*, lease, renew, guard, gap, grace, cpu_factor, link_grace, drain, timeout))]
    #[allow(clippy::too_many_arguments, reason = "each is one setting")]
    fn new(
        lease: &Bound<'_, PyAny>,
        renew: &Bound<'_, PyAny>,
        guard: &Bound<'_, PyAny>,
        gap: &Bound<'_, PyAny>,
        grace: &Bound<'_, PyAny>,
        cpu_factor: &Bound<'_, PyAny>,
        link_grace: &Bound<'_, PyAny>,
        drain: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let times = LeaseTimes {
            lease: seconds("lease", lease)?,
            grace: seconds("grace", grace)?,
            gap: seconds("gap", gap)?,
        };
        let config = ServerConfig {
            times,
            renew: seconds("renew", renew)?,
            guard: seconds("guard", guard)?,
            cpu_factor: argument::number("cpu_factor", cpu_factor)?,
            link_grace: seconds("link_grace", link_grace)?,
            drain: Drain::parse(argument::text("drain", drain)?).or_raise(lease.py())?,
            timeout: seconds("timeout", timeout)?,
        };
        config.check().map(Self).or_raise(lease.py())
    }
}
