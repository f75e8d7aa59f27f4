//! The use cases: they order the steps and own the tasks. Every task has an owner that ends it.

pub mod client;
mod cpu;
pub mod info;
pub mod peer;
pub mod server;
pub mod states;
pub mod view;

use std::collections::HashMap;

use crate::clock::{Clock, Tick};
use crate::error::{Error, ErrorKind, Result};
use crate::id::Namespace;

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

/// The namespace that a caller means: none and the empty one are the driver's own, and others need
/// a peer.
fn resolve<P>(
    own: &Namespace,
    given: Option<&str>,
    peers: &HashMap<Namespace, P>,
) -> Result<Namespace> {
    let namespace = match given {
        None | Some("") => return Ok(own.clone()),
        Some(name) => Namespace::new(name)?,
    };
    peer_of(own, &namespace, peers)?;
    Ok(namespace)
}

/// Who leads to a namespace: nobody has to where it is the driver's own, and a foreign one needs a
/// peer.
fn peer_of<'a, P>(
    own: &Namespace,
    namespace: &Namespace,
    peers: &'a HashMap<Namespace, P>,
) -> Result<Option<&'a P>> {
    if own == namespace {
        return Ok(None);
    }
    let nobody = || unreachable(own, namespace, peers.keys());
    peers.get(namespace).map(Some).ok_or_else(nobody)
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
