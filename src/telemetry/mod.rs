//! What is counted, how it is called, and how it is read.
//!
//! Whoever counts keeps plain atomics ([`counters`], [`calls`], [`services`]); a [`Metrics`] adds
//! up those of all drivers on one store when somebody looks, as a [`Sheet`] of series. Their names
//! stand in one table, [`names`].

pub mod calls;
mod counters;
pub mod histogram;
pub mod names;
mod registry;
pub mod services;
pub mod sheet;
pub mod windows;

pub use counters::{
    BridgeStats, CacheStats, ClientStats, HookStats, PeerStats, ServerStats, StateStats,
    StoreStats, count,
};
pub use registry::{Gauges, Metrics, Source, openmetrics};
pub use sheet::Sheet;
