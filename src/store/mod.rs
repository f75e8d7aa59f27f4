//! The only door to shared state.
//!
//! [`Store`] is one trait with one contract (`tests/rust/contract/`): in-process memory, Redis and
//! Valkey behave alike, call by call. Each link operation is one atomic step; the Lua files in
//! `lua/` are its definition on a server, `memory.rs` is the same thing without one.

mod changes;
mod codec;
mod key;
mod memory;
mod observed;
mod packed;
mod reading;
mod redis;
mod script;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;

use crate::clock::{Clock, Tick};
use crate::config::{Address, LeaseTimes, StoreConfig};
use crate::error::Result;
use crate::id::{Incarnation, LinkId, Namespace, PodIndex, ServiceId, ServiceName, Tag, Uid};
use crate::route::link::{Certificate, Foretold, Persist, Placed, Removal, StoredLink};
use crate::route::state::{PodRecord, PodState, WorkloadState};

pub use changes::Changes;
pub use memory::MemoryStore;
pub use observed::Observed;
pub use reading::PodsReading;
pub use redis::{RedisStore, Stats};

/// The shared truth about links and pods.
///
/// Every call ends by `deadline`, with `Timeout` at the latest. A failed write says in its error
/// whether it was not sent or its outcome is unknown. Dropping a call's future abandons only the
/// wait: what was sent may still happen.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// The link of a user, or `None`.
    async fn get(&self, link: &LinkId, deadline: Tick) -> Result<Option<StoredLink>>;

    /// The pods of many users, in the order of `uids`.
    async fn batch_get(
        &self,
        service: &ServiceId,
        uids: &[Uid],
        deadline: Tick,
    ) -> Result<Vec<Option<PodIndex>>>;

    /// The services to which this user has persistent links.
    async fn services(
        &self,
        namespace: &Namespace,
        uid: &Uid,
        deadline: Tick,
    ) -> Result<BTreeMap<ServiceName, PodIndex>>;

    /// Writes a temporary link if there is none. An existing link stays; if it is temporary, its
    /// life is raised to `ttl`, never shortened.
    async fn set_if_absent(
        &self,
        link: &LinkId,
        pod: PodIndex,
        ttl: Duration,
        deadline: Tick,
    ) -> Result<Placed>;

    /// `set_if_absent` for many links at once, which is cheaper: one answer each, in the order of
    /// `offers`. Each is a step of its own, and what befalls one need not befall the others.
    async fn set_if_absent_many(
        &self,
        offers: &[Offer<'_>],
        ttl: Duration,
        deadline: Tick,
    ) -> Vec<Result<Placed>> {
        let calls = offers
            .iter()
            .map(|offer| self.set_if_absent(offer.link, offer.pod, ttl, deadline));
        join_all(calls).await
    }

    /// Writes the link whatever was there; returns the previous owner.
    async fn set(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<Option<PodIndex>>;

    /// Writes the link if there is none, if it already names `pod`, or if it is temporary and
    /// nobody owns it; otherwise leaves it. `made` says whether `pod` has it now.
    async fn try_set(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<Placed>;

    /// Moves a user away from a dead pod: writes a temporary link to `to`, only if the stored
    /// link is still exactly `from` and no incarnation later than `dead` owns it. `None` if the
    /// link has vanished meanwhile; a loser gets the winner's link.
    async fn relink(
        &self,
        link: &LinkId,
        from: StoredLink,
        dead: Incarnation,
        to: PodIndex,
        ttl: Duration,
        deadline: Tick,
    ) -> Result<Option<Placed>>;

    /// Removes the link if its owner is `owner` (any, if `None`); returns the previous owner and
    /// whether it was removed.
    async fn remove(
        &self,
        link: &LinkId,
        owner: Option<PodIndex>,
        removal: Removal,
        deadline: Tick,
    ) -> Result<Removed>;

    /// Takes an incarnation for a pod process, or says how long an earlier process may live.
    async fn pod_begin(
        &self,
        pod: &PodIdentity,
        times: LeaseTimes,
        deadline: Tick,
    ) -> Result<Begun>;

    /// Renews the lease of `state.incarnation` and publishes `state`.
    async fn pod_renew(
        &self,
        service: &ServiceId,
        state: &PodState,
        times: LeaseTimes,
        deadline: Tick,
    ) -> Result<Renewed>;

    /// Ends a lease cleanly and withdraws the pod; `false` if a later incarnation holds the index.
    async fn pod_end(
        &self,
        service: &ServiceId,
        pod: PodIndex,
        incarnation: Incarnation,
        deadline: Tick,
    ) -> Result<bool>;

    /// Declares a pod dead for good if its lease and grace are over, and publishes its death.
    async fn pod_certify(
        &self,
        service: &ServiceId,
        pod: PodIndex,
        deadline: Tick,
    ) -> Result<Certificate>;

    /// Every pod of a service with what is left of its lease. `last` is the reading that the last
    /// answer came with, or none: it makes the call cheaper and changes nothing.
    async fn pods(&self, service: &ServiceId, last: &PodsReading, deadline: Tick) -> Result<Pods>;

    /// What `pods` and `pod_certify` would say of every pod of a service, and nothing changes: no
    /// certificate is written, and the store's clock stays where it was.
    async fn inspect(&self, service: &ServiceId, deadline: Tick) -> Result<Inspection>;

    /// Subscribes to the events of a service's pods: joins, leaves, deaths and changes of the
    /// routing state, not loads. What happens after this call has returned is told; what happened
    /// before, a look at the pods shows. The subscription ends when it is dropped, when its
    /// connection is lost, and when the store is closed.
    async fn listen(&self, service: &ServiceId, deadline: Tick) -> Result<Changes>;

    /// Writes the state of the whole service. It lasts for `ttl`, so that a workload that nobody
    /// keeps up disappears instead of staying ready for ever.
    async fn set_workload(
        &self,
        service: &ServiceId,
        workload: &WorkloadState,
        ttl: Duration,
        deadline: Tick,
    ) -> Result<()>;

    /// The state of the whole service, if somebody keeps it up.
    async fn workload(&self, service: &ServiceId, deadline: Tick) -> Result<Option<WorkloadState>>;

    /// Lets a tag stand for a service, whatever it stood for before; `true` if it does now.
    async fn set_tag(
        &self,
        namespace: &Namespace,
        tag: &Tag,
        service: &ServiceName,
        deadline: Tick,
    ) -> Result<bool>;

    /// The service that a tag stands for, or `None`.
    async fn tag(
        &self,
        namespace: &Namespace,
        tag: &Tag,
        deadline: Tick,
    ) -> Result<Option<ServiceName>>;

    /// Asks the store for a sign of life.
    async fn ping(&self, deadline: Tick) -> Result<()>;

    /// Ends the connection and every task behind it. Later calls fail with `Closed`.
    async fn close(&self);

    /// How the connection is, and what happened to it so far. A store in this process has none
    /// that could break.
    fn connection(&self) -> ConnectionReport {
        ConnectionReport {
            up: true,
            ..ConnectionReport::default()
        }
    }
}

/// How a store's connection is, and how often what has happened to it.
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

/// One link of a `set_if_absent_many`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer<'a> {
    /// The user.
    pub link: &'a LinkId,
    /// The pod to link the user to if there is no link.
    pub pod: PodIndex,
}

/// What `remove` found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// The owner that was found.
    pub previous: Option<PodIndex>,
    /// Whether the link was removed, or got its grace period.
    pub done: bool,
}

/// Who asks for an incarnation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodIdentity {
    /// The service.
    pub service: ServiceId,
    /// The pod.
    pub pod: PodIndex,
    /// Drawn once per process: the same nonce gets the same incarnation, so a retry is safe.
    pub nonce: String,
    /// The Kubernetes pod UID, or empty: a container restarted in the same pod need not wait.
    pub pod_uid: String,
}

/// What `pod_begin` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// The process holds the index under this incarnation.
    Started(Incarnation),
    /// An earlier process may still be alive for this long.
    Busy {
        /// The incarnation that may be alive.
        incarnation: Incarnation,
        /// How long to wait before asking again can help.
        wait: Duration,
    },
}

/// What `pod_renew` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// The lease is renewed and the state published.
    Done {
        /// This pod speaks for the service: it has the lowest index of those that renew. After
        /// the death of a leader another one leads within a lease and a renewal.
        leads: bool,
    },
    /// This incarnation was declared dead. It never comes back.
    Dead,
    /// A later process holds the index.
    Superseded(Incarnation),
}

/// What `pods` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pods {
    /// Every pod with a readable state whose incarnation is the one that holds the lease.
    pub records: Vec<PodRecord>,
    /// The fields of the state hash that could not be read, and why.
    pub corrupt: Vec<(String, String)>,
    /// How many listen to this service's events; 0 if the store does not tell. On a server all
    /// that listen through one executor count as one, because they share a connection.
    pub watchers: u64,
    /// The store's clock: milliseconds since 1970.
    pub now_ms: u64,
    /// For the next call.
    pub reading: PodsReading,
}

/// What `inspect` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inspection {
    /// What `pods` would say.
    pub pods: Pods,
    /// What `pod_certify` would say of each pod that ever began; it knows no others.
    pub certificates: BTreeMap<PodIndex, Foretold>,
}

/// Opens a store. No I/O: the connection is made by the first call.
///
/// # Errors
/// `InvalidParameter` if a certificate file cannot be read or used.
pub fn open(config: &StoreConfig, clock: Clock) -> Result<Arc<dyn Store>> {
    match &config.address {
        Address::Memory(name) => MemoryStore::open(name.as_deref(), clock),
        Address::Server(server) => Ok(Arc::new(RedisStore::new(server, clock)?)),
    }
}
