//! The use cases: they order the steps and own the tasks. Every task has an owner that ends it.

pub mod client;
mod cpu;
pub mod foreign;
pub mod info;
pub mod peer;
pub mod server;
pub mod states;
pub mod view;
pub mod writes;

use crate::clock::{Clock, Tick};
use crate::error::{Error, ErrorKind, Result};

/// Waits for `work` until `deadline` at the longest.
async fn with_deadline<T>(
    clock: &Clock,
    deadline: Tick,
    what: &'static str,
    work: impl Future<Output = T>,
) -> Result<T> {
    let left = deadline.since(clock.now());
    tokio::time::timeout(left, work).await.map_err(|_| {
        Error::new(
            ErrorKind::Timeout,
            format!("the deadline passed while waiting for {what}"),
        )
        .with("waited_for", what)
    })
}
