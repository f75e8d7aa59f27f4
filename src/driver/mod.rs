//! The use cases: they order the steps and own the tasks. Every task has an owner that ends it.

pub mod client;
mod cpu;
mod flight;
pub mod info;
pub mod peer;
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
    let namespace = named(own, given)?;
    reach(own, &namespace)?;
    Ok(namespace)
}

/// The same, wherever it is.
fn named(own: &Namespace, given: Option<&str>) -> Result<Namespace> {
    match given {
        None | Some("") => Ok(own.clone()),
        Some(name) => Namespace::new(name),
    }
}

/// A foreign namespace needs a peer that leads to it.
fn reach(own: &Namespace, namespace: &Namespace) -> Result<()> {
    if own == namespace {
        return Ok(());
    }
    Err(unreachable(own, namespace, std::iter::empty()))
}

/// Nobody leads to this namespace; the error says where somebody leads to.
fn unreachable<'a>(
    own: &Namespace,
    namespace: &Namespace,
    peers: impl Iterator<Item = &'a Namespace>,
) -> Error {
    let mut peers: Vec<&str> = peers.map(Namespace::as_str).collect();
    peers.sort_unstable();
    let configured = if peers.is_empty() {
        "has no peers".to_owned()
    } else {
        format!("has peers for {}", peers.join(", "))
    };
    let text = format!(
        "no peer is configured for namespace {:?}; this driver serves {:?} and {configured}",
        namespace.as_str(),
        own.as_str(),
    );
    Error::new(ErrorKind::NamespaceUnreachable, text)
        .with("namespace", namespace)
        .with("own_namespace", own)
        .with("peers", peers.join(", "))
}
