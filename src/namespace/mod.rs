//! Where an operation on a namespace is sent: to the namespace's own store, or to a peer.
//!
//! Drivers ask a [`Home`] and do not know which of the two it is.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::sync::mpsc;

use crate::clock::Tick;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Namespace, ServiceId};
use crate::op::{Operation, Ping, expected};
use crate::rpc::Peer;
use crate::store::{Changes, Store};

/// Where the operations on one namespace are sent.
#[derive(Debug, Clone)]
pub enum Home {
    /// The store of the driver's own namespace.
    Own(Arc<dyn Store>),
    /// The peer that leads to another namespace.
    Foreign(Arc<dyn Peer>),
}

impl Home {
    /// Does one operation there.
    ///
    /// # Errors
    /// What the store or the peer failed with; `Timeout`. `NamespaceUnreachable` for an operation
    /// that only a namespace's own pods and clients can do.
    pub async fn ask<O: Operation>(&self, operation: O, deadline: Tick) -> Result<O::Reply> {
        match self {
            Self::Own(store) => store.ask(operation, deadline).await,
            Self::Foreign(peer) => {
                let reply = peer.call(&operation.into(), deadline).await?;
                expected::<O>(reply)
            }
        }
    }

    /// Does many operations of one kind there: one reply each, in their order. A store does them as
    /// one batch.
    pub async fn ask_many<O: Operation>(
        &self,
        operations: impl Iterator<Item = O>,
        deadline: Tick,
    ) -> Vec<Result<O::Reply>> {
        match self {
            Self::Own(store) => store.ask_many(operations, deadline).await,
            Self::Foreign(_) => {
                join_all(operations.map(|operation| self.ask(operation, deadline))).await
            }
        }
    }

    /// Subscribes to the events of a service's pods: as [`Store::subscribe`].
    ///
    /// # Errors
    /// What the store or the peer failed with; `Timeout`.
    pub async fn subscribe(&self, service: &ServiceId, deadline: Tick) -> Result<Changes> {
        let peer = match self {
            Self::Own(store) => return store.subscribe(service, deadline).await,
            Self::Foreign(peer) => peer,
        };
        let mut events = peer.watch(service, deadline).await?;
        let (publish, changes) = mpsc::channel(1);
        // It ends with the stream, or with the subscription.
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    () = publish.closed() => return,
                    event = events.next() => event,
                };
                if event.is_none() {
                    return;
                }
                // A pending event is enough: it only means that something changed.
                let _waits = publish.try_send(());
            }
        });
        Ok(Changes::new(changes))
    }

    /// Why a call takes too long, if that is known at once: the store's answer to a ping. A peer's
    /// own calls return what is wrong with it.
    pub async fn trouble(&self, deadline: Tick) -> Option<Error> {
        let Self::Own(store) = self else { return None };
        let answered = store.ask(Ping, deadline).await;
        answered
            .err()
            .filter(|error| error.kind() != ErrorKind::Timeout)
    }

    /// Whether a peer answers.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        matches!(self, Self::Foreign(_))
    }
}

/// The namespaces that a driver reaches: its own, and those that it has peers for. `T` is what the
/// driver knows of each.
#[derive(Debug)]
pub struct Namespaces<T> {
    own: Namespace,
    here: T,
    foreign: HashMap<Namespace, T>,
}

impl<T> Namespaces<T> {
    /// The driver's own namespace, and those of its peers.
    #[must_use]
    pub fn new(own: Namespace, here: T, foreign: HashMap<Namespace, T>) -> Self {
        Self { own, here, foreign }
    }

    /// The driver's own namespace.
    #[must_use]
    pub fn own(&self) -> &Namespace {
        &self.own
    }

    /// What is known of the driver's own namespace.
    #[must_use]
    pub fn here(&self) -> &T {
        &self.here
    }

    /// What is known of each other namespace.
    pub fn foreign(&self) -> impl Iterator<Item = &T> {
        self.foreign.values()
    }

    /// The namespace that a caller means: none and the empty one are the driver's own.
    ///
    /// # Errors
    /// `InvalidParameter`, or `NamespaceUnreachable` for a namespace without a peer.
    pub fn resolve(&self, given: Option<&str>) -> Result<Namespace> {
        let namespace = match given {
            None | Some("") => return Ok(self.own.clone()),
            Some(name) => Namespace::new(name)?,
        };
        self.get(&namespace)?;
        Ok(namespace)
    }

    /// What is known of a namespace.
    ///
    /// # Errors
    /// `NamespaceUnreachable` for a namespace without a peer.
    pub fn get(&self, namespace: &Namespace) -> Result<&T> {
        if *namespace == self.own {
            return Ok(&self.here);
        }
        let found = self.foreign.get(namespace);
        found.ok_or_else(|| self.unreachable(namespace))
    }

    /// The same by the name alone; `None` for a namespace that cannot be reached.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&T> {
        if name.is_empty() || name == self.own.as_str() {
            return Some(&self.here);
        }
        self.foreign.get(name)
    }

    /// No peer serves this namespace; the error lists the namespaces that peers serve.
    fn unreachable(&self, namespace: &Namespace) -> Error {
        let mut peers: Vec<&str> = self.foreign.keys().map(Namespace::as_str).collect();
        peers.sort_unstable();
        let configured = if peers.is_empty() {
            "has no peers".to_owned()
        } else {
            format!("has peers for {}", peers.join(", "))
        };
        let text = format!(
            "no peer is configured for namespace {:?}; this driver serves {:?} and {configured}",
            namespace.as_str(),
            self.own.as_str(),
        );
        Error::new(ErrorKind::NamespaceUnreachable, text)
            .with("namespace", namespace)
            .with("own_namespace", &self.own)
            .with("peers", peers.join(", "))
    }
}
