//! The Rust tests that need the outside of the crate: the contract of the executors on every
//! store, and what happens to a connection when its server misbehaves.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test fails"
)]

mod ask;
mod channel;
mod contract;
mod driver;
mod line;
mod line_end;
mod line_login;
mod line_refusal;
mod line_tls;
mod lua;
mod model;
mod names;
mod server;
mod stage;
mod trace;
