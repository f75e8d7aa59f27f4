//! Metrics: counters, their names, and snapshots of them.
//!
//! Drivers count in plain atomics ([`counters`], [`calls`], [`services`]). On a scrape, a
//! [`Metrics`] adds up the counters of all drivers on one store, as a [`MetricsSnapshot`] of
//! series. All names are in one table, [`names`].

pub mod calls;
mod counters;
pub mod histogram;
pub mod names;
mod registry;
pub mod services;
pub mod snapshot;
pub mod windows;

pub use counters::{
    BridgeStats, CacheStats, ClientStats, HookStats, PeerStats, ServerStats, StateStats,
    StoreStats, count,
};
pub use registry::{Gauges, MetricSource, Metrics, openmetrics};
pub use snapshot::MetricsSnapshot;
