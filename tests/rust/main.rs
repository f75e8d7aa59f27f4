//! The Rust tests of the crate's public API: the contract of the stores on every backend, and how
//! a connection behaves when its server fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test fails"
)]

mod ask;
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
