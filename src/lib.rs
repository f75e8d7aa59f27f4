//! podlink: which pod of a stateful service holds this user?
//!
//! The rooms, from the inside out (ARCHITECTURE.md draws them):
//!
//! * [`id`], [`error`], [`clock`], [`config`]: the types that all other rooms use.
//! * [`route`]: decisions, as pure functions over values already in hand.
//! * [`store`]: the only access to shared state: in-process memory, Redis or Valkey.
//! * [`cache`]: the local caches of links and tags.
//! * [`rpc`]: link operations across namespaces, over gRPC.
//! * [`driver`]: the use cases; they order the steps and own the tasks.
//! * [`trace`]: spans, and the buffer that holds them for the exporter.
//! * `bindings`: the only room that knows Python (feature `python`).

pub mod cache;
pub mod clock;
pub mod config;
pub mod driver;
pub mod error;
pub mod id;
pub mod namespace;
pub mod op;
pub(crate) mod proto;
pub mod route;
pub mod rpc;
pub mod store;
pub mod telemetry;
pub mod trace;

#[cfg(feature = "python")]
mod bindings;
