//! Link operations across namespaces: what puts bytes on, or takes bytes off, the wire.
//!
//! [`LinkOperations`] is every link operation on one namespace. The drivers implement it for their
//! own (`driver/peer.rs`), [`client::PeerClient`] for one that it reaches over gRPC, and
//! [`server::Server`] serves any of them.

pub mod admin;
pub mod client;
mod convert;
mod http2;
mod observed;
pub mod server;
mod status;
mod tls;
mod traced;

pub use observed::ObservedPeer;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use crate::clock::Tick;
use crate::error::Result;
use crate::id::{LinkId, Namespace, PodIndex, ServiceId, ServiceName, Tag, Uid};
use crate::route::link::{Persist, Removal};
use crate::route::snapshot::Change;
use crate::route::state::PodRecord;

/// A link, as whoever answers believes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Believed {
    /// The pod that holds the user.
    pub pod: PodIndex,
    /// How long the link may be remembered while its pod is available; `None`: not at all.
    pub valid_for: Option<Duration>,
}

/// Where a link is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// In the cache, else in the store.
    CacheOrStore,
    /// In the store.
    Store,
    /// In the cache, else in the store if the link is persistent.
    CacheOrPersistent,
}

/// Users by pod, in the order in which they were asked for.
pub type UsersByPod = BTreeMap<PodIndex, Vec<Uid>>;

/// What pods say when they come, go or change their routing state. It ends when it is lost; what
/// changed since, a look at the pods shows.
pub type ChangeStream = BoxStream<'static, Vec<Change>>;

/// Every link operation on one namespace, wherever that is.
///
/// Every call ends by `deadline`, with `Timeout` at the latest. A failed write says in its error
/// whether it was not sent or its outcome is unknown. Dropping a call's future abandons only the
/// wait: what was begun goes on.
#[async_trait]
pub trait LinkOperations: Send + Sync + std::fmt::Debug + 'static {
    /// Finds or makes the user's link; its pod may serve the user.
    async fn compute(&self, link: &LinkId, deadline: Tick) -> Result<Believed>;

    /// The user's link, or `None`.
    async fn get(&self, link: &LinkId, from: Source, deadline: Tick) -> Result<Option<Believed>>;

    /// The pods of many users; those without a link are left out.
    async fn batch_get(
        &self,
        service: &ServiceId,
        uids: Vec<Uid>,
        deadline: Tick,
    ) -> Result<UsersByPod>;

    /// The services to which the user has persistent links.
    async fn services(
        &self,
        namespace: &Namespace,
        uid: &Uid,
        deadline: Tick,
    ) -> Result<BTreeMap<ServiceName, PodIndex>>;

    /// Links the user to `pod` unless there is a link; the answer is the link that stands.
    async fn set_if_absent(&self, link: &LinkId, pod: PodIndex, deadline: Tick)
    -> Result<Believed>;

    /// Links the user to `pod`, whatever was there; the answer is the previous owner.
    async fn set(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<Option<PodIndex>>;

    /// Links the user to `pod` unless somebody else owns the user: whether it does now, and the
    /// owner.
    async fn try_set(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<(bool, PodIndex)>;

    /// Removes the link if its owner is `owner` (any, if `None`): whether that was done.
    async fn remove(
        &self,
        link: &LinkId,
        owner: Option<PodIndex>,
        removal: Removal,
        deadline: Tick,
    ) -> Result<bool>;

    /// Every pod of a service with what is left of its lease.
    async fn pods(&self, service: &ServiceId, deadline: Tick) -> Result<Vec<PodRecord>>;

    /// The service that a tag stands for.
    async fn service_by_tag(
        &self,
        namespace: &Namespace,
        tag: &Tag,
        deadline: Tick,
    ) -> Result<Option<ServiceName>>;

    /// Tells of changes of a service's pods from now on.
    async fn watch(&self, service: &ServiceId, deadline: Tick) -> Result<ChangeStream>;

    /// Whether whoever answers can reach what it needs.
    async fn ready(&self, deadline: Tick) -> Result<()>;

    /// How each endpoint is that leads there; empty where there is no way to go.
    fn conditions(&self) -> Vec<(String, client::Condition)> {
        Vec::new()
    }
}

/// Reads these bytes as each kind of request and answer. For `fuzz/` only.
#[cfg(fuzzing)]
pub fn read_anything(bytes: &[u8]) {
    convert::read_anything(bytes);
}
