//! The use cases: they order the steps and own the tasks. Every task has an owner that ends it.

pub mod client;
mod cpu;
mod flight;
pub mod info;
pub mod server;
pub mod states;
pub mod view;

use crate::clock::{Clock, Tick};
use crate::error::{Error, ErrorKind, Result};
use crate::id::Namespace;

/// Waits for `work` until `deadline` at the longest.
async fn by<T>(
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

/// The namespace that a caller means: none and the empty one are the driver's own.
fn resolve(own: &Namespace, given: Option<&str>) -> Result<Namespace> {
    let namespace = match given {
        None | Some("") => own.clone(),
        Some(name) => Namespace::new(name)?,
    };
    reach(own, &namespace)?;
    Ok(namespace)
}

/// A foreign namespace needs a peer that leads to it.
fn reach(own: &Namespace, namespace: &Namespace) -> Result<()> {
    if own == namespace {
        return Ok(());
    }
    let text = format!(
        "no peer is configured for namespace {:?}; this driver serves {:?}",
        namespace.as_str(),
        own.as_str()
    );
    Err(Error::new(ErrorKind::NamespaceUnreachable, text).with("namespace", namespace))
}
