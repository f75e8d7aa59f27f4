//! The only access to shared state.
//!
//! [`Store`] has one contract (`tests/rust/contract/`): in-process memory, Redis and Valkey behave
//! alike, operation by operation. Each operation is one atomic step; the Lua files in `lua/` are
//! its definition on a server, `memory/` is the same without one. What applies to every call, such as
//! metrics and traces, is a [`layer`] over any store.

mod changes;
mod codec;
mod key;
pub mod layer;
mod lease_view;
mod memory;
mod packed;
mod reading;
mod redis;
mod script;

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;

use crate::clock::{Clock, Tick};
use crate::config::{StoreAddress, StoreConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::id::ServiceId;
use crate::op::{Call, CallName, Operation, Reply, expected};

pub use changes::Changes;
pub use memory::MemoryStore;
pub use redis::{RedisStore, Stats};

/// The shared truth about links and pods.
///
/// Every call ends by `deadline`, with `Timeout` at the latest. A failed write says in its error
/// whether it was not sent or its outcome is unknown. Dropping a call's future abandons only the
/// wait: what was sent may still happen.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// Does one operation.
    async fn call(&self, call: &Call, deadline: Tick) -> Result<Reply>;

    /// Does many operations as one batch, which is cheaper: one reply each, in their order. Each is
    /// an atomic step of its own, and the failure of one need not be that of the others.
    async fn call_many(&self, calls: &[Call], deadline: Tick) -> Vec<Result<Reply>> {
        join_all(calls.iter().map(|call| self.call(call, deadline))).await
    }

    /// Subscribes to the events of a service's pods: joins, leaves, deaths and changes of the
    /// routing state, not loads. What happens after this call has returned is published; what
    /// happened before, a reading of the pods shows. The subscription ends when it is dropped, when
    /// its connection is lost, and when the store is closed.
    async fn subscribe(&self, service: &ServiceId, deadline: Tick) -> Result<Changes>;

    /// Ends the connection and every task behind it. Later calls fail with `Closed`.
    async fn close(&self);

    /// The state of the connection, and what happened to it so far.
    fn report(&self) -> ConnectionReport;
}

impl dyn Store {
    /// Does one operation, and returns the reply to it.
    ///
    /// # Errors
    /// What the store failed with; `Timeout`; `Closed`.
    pub async fn ask<O: Operation>(&self, operation: O, deadline: Tick) -> Result<O::Reply> {
        let reply = self.call(&operation.into(), deadline).await?;
        expected::<O>(reply)
    }

    /// Does many operations of one kind as one batch: one reply each, in their order.
    pub async fn ask_many<O: Operation>(
        &self,
        operations: impl IntoIterator<Item = O>,
        deadline: Tick,
    ) -> Vec<Result<O::Reply>> {
        let calls: Vec<Call> = operations.into_iter().map(Into::into).collect();
        let replies = self.call_many(&calls, deadline).await;
        let typed = |reply: Result<Reply>| reply.and_then(expected::<O>);
        replies.into_iter().map(typed).collect()
    }
}

/// The state of a store's connection, and counts of its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectionReport {
    /// Calls can be sent at this moment.
    pub up: bool,
    /// Connections made.
    pub connects: u64,
    /// Attempts to connect that failed.
    pub failed_dials: u64,
    /// Connections lost or given up.
    pub disconnects: u64,
    /// Calls that were sent and not answered in time.
    pub unanswered: u64,
    /// Scripts sent with their source.
    pub script_loads: u64,
}

/// Opens a store. No I/O: the connection is made by the first call.
///
/// # Errors
/// `InvalidParameter` if a certificate file cannot be read or used.
pub fn open(config: &StoreConfig, clock: Clock) -> Result<Arc<dyn Store>> {
    match &config.address {
        StoreAddress::Memory(name) => MemoryStore::open(name.as_deref(), clock),
        StoreAddress::Server(server) => Ok(Arc::new(RedisStore::new(server, clock)?)),
    }
}

/// The error of a store for an operation that only a peer can do.
fn only_a_peer(name: CallName) -> Error {
    Error::new(ErrorKind::Internal, "a store does not do this in one step").in_call(name)
}
