//! Operations on the pods of a service: their leases and what they publish.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::Keys;
use crate::id::{Incarnation, PodIndex, ServiceId};
use crate::route::clock_step::ClockStep;
use crate::route::link::Foretold;
use crate::route::state::{PodRecord, PodState};

/// The version of the layout in which this version of podlink writes its keys. A pod writes it beside
/// its lease.
pub const LAYOUT: u64 = 1;

/// The times of a lease, which every script of a lease is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimes {
    /// How long a renewal counts as proof of life.
    pub lease: Duration,
    /// How long after its lease a pod may not be declared dead.
    pub grace: Duration,
    /// A longer silence of all pods is an outage of the store.
    pub gap: Duration,
}

/// Takes an incarnation for a pod process, or returns how long an earlier process may live.
#[derive(Debug, Clone)]
pub struct PodBegin {
    /// Who asks. Boxed, because every call is as large as the largest.
    pub pod: Box<PodIdentity>,
    /// The lease that it takes.
    pub times: LeaseTimes,
}

/// Renews the lease of `state.incarnation` and publishes `state`.
#[derive(Debug, Clone)]
pub struct PodRenew {
    /// The service.
    pub service: ServiceId,
    /// What the pod publishes. The store stamps it with its own time.
    pub state: Arc<PodState>,
    /// The lease that it renews.
    pub times: LeaseTimes,
}

/// Ends a lease cleanly and withdraws the pod; `false` if a later incarnation holds the index.
#[derive(Debug, Clone)]
pub struct PodEnd {
    /// The service.
    pub service: ServiceId,
    /// The pod.
    pub pod: PodIndex,
    /// The process whose lease ends.
    pub incarnation: Incarnation,
}

/// Declares a pod dead for good if its lease and grace are over, and publishes its death.
#[derive(Debug, Clone)]
pub struct PodCertify {
    /// The service.
    pub service: ServiceId,
    /// The pod.
    pub pod: PodIndex,
    /// The process that a user's ownership record names. If the store has forgotten it, it is not
    /// dead before a lease and a grace.
    pub seen: Option<Incarnation>,
}

/// The pod found that the store's clock stepped forward: every pod gets a new lease and grace, unless
/// it got them since because of the same step.
#[derive(Debug, Clone)]
pub struct PodStepped {
    /// The service.
    pub service: ServiceId,
    /// The pod.
    pub pod: PodIndex,
    /// The process that reports.
    pub incarnation: Incarnation,
    /// What it found. Boxed, because every call is as large as the largest.
    pub step: Box<ClockStep>,
    /// The lease that it renews.
    pub times: LeaseTimes,
}

/// Every pod of a service with what is left of its lease.
#[derive(Debug, Clone)]
pub struct ReadPods {
    /// The service.
    pub service: ServiceId,
    /// The reading that the last reply came with, or none: it makes the call cheaper and changes
    /// nothing.
    pub last: PodsReading,
}

/// What [`ReadPods`] and [`PodCertify`] would reply for every pod of a service, without a change: no
/// certificate is written, and the store's clock stays where it was.
#[derive(Debug, Clone)]
pub struct Inspect {
    /// The service.
    pub service: ServiceId,
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

/// The reply to [`PodBegin`].
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

/// The reply to [`PodRenew`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// The lease is renewed and the state published.
    Done {
        /// This pod leads the service: it has the lowest index of those that renew. After
        /// the death of a leader another one leads within a lease and a renewal.
        leads: bool,
        /// The store did not know this incarnation any more: the record of its lease was missing,
        /// or was that of an earlier one, and was written again. Links may be missing too.
        recreated: bool,
        /// The store's virtual time, in microseconds. The next renewal's shows whether the store's
        /// clock stepped (`route::clock_step`).
        now: u64,
        /// Which server replied: its process and the history of its data. Another number is
        /// another server, or one that restarted. 0 if the store does not say.
        server: u64,
    },
    /// This incarnation was declared dead. It never comes back.
    Dead,
    /// A later process holds the index.
    Superseded(Incarnation),
}

/// The reply to [`PodStepped`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stepped {
    /// No pod is declared dead for a lease and a grace.
    Held,
    /// Nothing changed: this pod has reported steps again and again, and no other pod did.
    Unbelieved,
    /// Nothing changed: this incarnation is dead, or another process holds the index.
    Refused,
}

/// The reply to [`ReadPods`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pods {
    /// Every pod with a readable state whose incarnation is the one that holds the lease.
    pub records: Vec<PodRecord>,
    /// The fields of the state hash that could not be read, and why.
    pub corrupt: Vec<(String, String)>,
    /// The pods whose routing state or readiness only a later version knows, with its name. They are
    /// in `records` too; [`PodState`] says as what.
    pub later: Vec<(PodIndex, String)>,
    /// The highest version of the layout that a pod of this service wrote; 0 if none is known.
    pub layout: u64,
    /// The store has forgotten the leases of this service, and pods may be alive that it does not
    /// show: those that are not among these, which it has leases of.
    pub forgot: Option<Vec<PodIndex>>,
    /// How many subscribe to this service's events; 0 if the store does not count. On a server all
    /// that subscribe through one store object count as one, because they share a connection.
    pub watchers: u64,
    /// The store's clock: milliseconds since 1970.
    pub now_ms: u64,
    /// For the next call.
    pub reading: PodsReading,
}

/// The reply to [`Inspect`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inspection {
    /// What [`ReadPods`] would reply.
    pub pods: Pods,
    /// What [`PodCertify`] would reply for each pod that ever began; it knows no others.
    pub certificates: BTreeMap<PodIndex, Foretold>,
}

/// The states that a reading found, and the bytes that they were read from. The next reading
/// takes over each state whose bytes are still the same.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PodsReading(pub(crate) Arc<ReadStates>);

/// What a reading keeps for the next one.
#[derive(Default, PartialEq, Eq)]
pub(crate) struct ReadStates {
    /// What the store sent.
    pub(crate) packed: Vec<u8>,
    /// In the order of the pods.
    pub(crate) states: Vec<ReadState>,
}

/// One state that could be read.
#[derive(PartialEq, Eq)]
pub(crate) struct ReadState {
    pub(crate) pod: PodIndex,
    /// Where its field and value lie in what the store sent.
    pub(crate) entry: Range<usize>,
    pub(crate) state: Arc<PodState>,
    /// The name of the state that it published, if only a later version knows that.
    pub(crate) later: Option<String>,
}

impl fmt::Debug for PodsReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PodsReading of {} states", self.0.states.len())
    }
}

macro_rules! of_one_service {
    ($($operation:ident)+) => {
        $(impl $operation {
            pub(super) fn touches(&self) -> Keys<'_> {
                Keys::Service(&self.service)
            }
        })+
    };
}

of_one_service!(PodRenew PodEnd PodCertify PodStepped ReadPods Inspect);

impl PodBegin {
    pub(super) fn touches(&self) -> Keys<'_> {
        Keys::Service(&self.pod.service)
    }
}
