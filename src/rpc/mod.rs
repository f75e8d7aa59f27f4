//! Operations across namespaces: everything that reads or writes bytes of the wire.
//!
//! [`Peer`] is a namespace as other namespaces see it. The drivers implement it for their own
//! (`driver/peer.rs`), [`client::PeerClient`] for one that it reaches over gRPC, and
//! [`server::Server`] serves any of them. `messages.rs` has each operation as a request and its
//! answer, once for both ends.

pub mod admin;
pub mod client;
mod convert;
mod http2;
mod messages;
mod metered;
pub mod server;
mod status;
mod tls;
mod traced;

pub use messages::{METHODS, is_carried};
pub use metered::MeteredPeer;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use crate::clock::Tick;
use crate::error::{Error, ErrorKind, Result};
use crate::id::ServiceId;
use crate::op::{Call, CallName, Reply};
use crate::route::snapshot::Change;

/// What pods publish when they come, go or change their routing state. It ends when it is lost; what
/// changed since, a reading of the pods shows.
pub type ChangeStream = BoxStream<'static, Vec<Change>>;

/// A namespace as other namespaces see it, local or remote.
///
/// Every call ends by `deadline`, with `Timeout` at the latest. A failed write says in its error
/// whether it was not sent or its outcome is unknown. Dropping a call's future abandons only the
/// wait: what was begun goes on.
#[async_trait]
pub trait Peer: Send + Sync + std::fmt::Debug + 'static {
    /// Does one operation there. A link in a reply lasts as long as the peer caches it; one that
    /// lasts no time at all must not be cached.
    async fn call(&self, call: &Call, deadline: Tick) -> Result<Reply>;

    /// Publishes the changes of a service's pods from now on.
    async fn watch(&self, service: &ServiceId, deadline: Tick) -> Result<ChangeStream>;

    /// The condition of each endpoint of the namespace; empty for a local one.
    fn conditions(&self) -> Vec<(String, client::Condition)> {
        Vec::new()
    }
}

/// The error of a peer for an operation that only pods and clients of its own namespace may call.
pub fn only_within(name: CallName) -> Error {
    let text = format!(
        "{} is done within a namespace only, not across namespaces",
        name.as_str()
    );
    Error::new(ErrorKind::NamespaceUnreachable, text)
}

/// Reads these bytes as each kind of request and answer. For `fuzz/` only.
#[cfg(fuzzing)]
pub fn read_anything(bytes: &[u8]) {
    convert::read_anything(bytes);
}
