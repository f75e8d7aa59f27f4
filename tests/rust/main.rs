//! The Rust tests that need the outside of the crate: the contract of the executors on every
//! store, and what happens to a connection when its server misbehaves.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test fails"
)]

mod channel;
mod contract;
mod driver;
mod lua;
mod model;
mod names;
mod node;
mod node_end;
mod node_login;
mod node_refusal;
mod node_tls;
mod server;
mod stage;
mod trace;
