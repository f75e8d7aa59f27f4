//! What can be asked of a namespace: every operation is a value, and its reply has a type.
//!
//! The table below names each operation once, with its effect and its reply. From it come
//! [`Call`] and [`Reply`], which any store and any peer takes and gives, and [`CallName`], the one
//! spelling in errors, metrics and traces. A store that lacks an operation does not compile: it
//! dispatches with `match_call!` or `reply_to_call!`, over a trait that each operation implements.

mod links;
mod name;
mod pods;
mod tags;

use std::collections::BTreeMap;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{Namespace, PodIndex, ServiceId, ServiceName, Tag, Uid};
use crate::route::link::{Certificate, Placed, StoredLink};
use crate::route::state::WorkloadState;

pub(crate) use links::Stored;
pub use links::{
    BatchGet, Claim, Claimed, Compute, Computed, Get, LinkSource, LinksRead, PodAbout, Read,
    Relink, Remove, Removed, Rewrite, Services, Set, SetIfAbsent, StoredUser, Swap, Swapped,
    TrySet, UnreadableLink,
};
use name::names;
pub use pods::{
    Begun, Inspect, Inspection, LAYOUT, LeaseTimes, PodBegin, PodCertify, PodEnd, PodIdentity,
    PodRenew, PodStepped, Pods, PodsReading, ReadPods, Renewed, Stepped,
};
pub(crate) use pods::{ReadState, ReadStates};
pub use tags::{GetTag, GetWorkload, Ping, SetTag, SetWorkload};

/// What happens if an operation is sent a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It changes nothing: it may be sent again on any failure.
    Read,
    /// It changes something, and a second time nothing more: it is idempotent.
    Idempotent,
    /// It may be sent again only if it was certainly not sent.
    Once,
}

/// Whose keys an operation touches. All keys of one owner share a hash slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys<'a> {
    /// The links of one user.
    User(&'a Namespace, &'a Uid),
    /// The links of many users: the operation can be split by user.
    Users(&'a ServiceId, &'a [Uid]),
    /// The pods of a service.
    Service(&'a ServiceId),
    /// The workload state of a service.
    Workload(&'a ServiceId),
    /// A tag.
    Tag(&'a Namespace, &'a Tag),
    /// None: any node answers.
    None,
}

/// An operation on a namespace.
pub trait Operation: Into<Call> + Send + 'static {
    /// What comes back.
    type Reply: Send + 'static;

    /// The operation's name.
    const NAME: CallName;

    /// What happens if it is sent a second time.
    const EFFECT: Effect;

    /// Whose keys it touches.
    fn keys(&self) -> Keys<'_>;

    /// The reply to this operation; `None` if the reply is to another one.
    fn reply(reply: Reply) -> Option<Self::Reply>;
}

/// The reply to an operation of this kind.
///
/// # Errors
/// `Internal` for the reply to another one, which would be a mistake of the store's.
pub fn expected<O: Operation>(reply: Reply) -> Result<O::Reply> {
    O::reply(reply).ok_or_else(|| {
        let text = "the reply belongs to another operation";
        Error::new(ErrorKind::Internal, text).in_call(O::NAME)
    })
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $text:literal: $effect:ident -> $reply:ty;)+) => {
        names! {
            /// What a store or a peer is asked for.
            CallName {
                $($name = $text,)+
                Subscribe = "subscribe",
            }
        }

        /// Any operation.
        #[derive(Debug, Clone)]
        pub enum Call {
            $($(#[$doc])* $name($name),)+
        }

        /// The reply to any operation.
        #[derive(Debug, Clone)]
        pub enum Reply {
            $($(#[$doc])* $name($reply),)+
        }

        impl Call {
            /// The operation's name.
            #[must_use]
            pub const fn name(&self) -> CallName {
                match self {
                    $(Self::$name(_) => CallName::$name,)+
                }
            }

            /// What happens if it is sent a second time.
            #[must_use]
            pub const fn effect(&self) -> Effect {
                match self {
                    $(Self::$name(_) => Effect::$effect,)+
                }
            }

            /// The namespace that it is about; `None` for an operation that is about none.
            #[must_use]
            pub fn namespace(&self) -> Option<&Namespace> {
                match self.keys() {
                    Keys::User(namespace, _) | Keys::Tag(namespace, _) => Some(namespace),
                    Keys::Users(service, _) | Keys::Service(service) | Keys::Workload(service) => {
                        Some(&service.namespace)
                    }
                    Keys::None => None,
                }
            }

            /// Whose keys it touches.
            #[must_use]
            pub fn keys(&self) -> Keys<'_> {
                match self {
                    $(Self::$name(operation) => Operation::keys(operation),)+
                }
            }
        }

        $(
            impl From<$name> for Call {
                fn from(operation: $name) -> Self {
                    Self::$name(operation)
                }
            }

            impl Operation for $name {
                type Reply = $reply;

                const NAME: CallName = CallName::$name;

                const EFFECT: Effect = Effect::$effect;

                fn keys(&self) -> Keys<'_> {
                    self.touches()
                }

                fn reply(reply: Reply) -> Option<Self::Reply> {
                    match reply {
                        Reply::$name(reply) => Some(reply),
                        _ => None,
                    }
                }
            }
        )+

        /// Evaluates an expression on the operation within a call, whichever it is.
        macro_rules! match_call {
            ($call:expr, $operation:ident => $work:expr) => {
                match $call {
                    $($crate::op::Call::$name($operation) => $work,)+
                }
            };
        }

        /// The same, and makes the reply to the call of what the expression gives.
        macro_rules! reply_to_call {
            ($call:expr, $operation:ident => $work:expr) => {
                match $call {
                    $($crate::op::Call::$name($operation) => {
                        $work.map($crate::op::Reply::$name)
                    })+
                }
            };
        }
    };
}

operations! {
    /// Find or make the link of a user; its pod may serve the user. Only a peer answers it.
    Compute = "compute": Idempotent -> Computed;
    /// The link of a user.
    Get = "get": Read -> Option<StoredLink>;
    /// The pods of many users.
    BatchGet = "batch_get": Read -> LinksRead<Vec<Option<PodIndex>>>;
    /// The services to which a user has persistent links.
    Services = "services": Read -> LinksRead<BTreeMap<ServiceName, PodIndex>>;
    /// Write a temporary link if there is none.
    SetIfAbsent = "set_if_absent": Idempotent -> Placed;
    /// Everything that the store holds about one user.
    Read = "read": Read -> Box<StoredUser>;
    /// Write a link whichever pod has it. A store does it in two steps.
    Set = "set": Once -> Option<PodIndex>;
    /// Write a link unless another pod owns the user.
    TrySet = "try_set": Idempotent -> Placed;
    /// Make a user a process's own.
    Claim = "claim": Idempotent -> Claimed;
    /// Change a link if it is still what was found.
    Swap = "swap": Once -> Swapped;
    /// Move a user away from a dead pod.
    Relink = "relink": Once -> Option<Placed>;
    /// Remove a link. A store does it in two steps.
    Remove = "remove": Once -> Removed;
    /// Take an incarnation.
    PodBegin = "pod_begin": Idempotent -> Begun;
    /// Renew a lease and publish the pod's state.
    PodRenew = "pod_renew": Idempotent -> Renewed;
    /// End a lease and withdraw the pod.
    PodEnd = "pod_end": Idempotent -> bool;
    /// Declare a pod dead if its time is over.
    PodCertify = "pod_certify": Idempotent -> Certificate;
    /// Report a step of the store's clock.
    PodStepped = "pod_stepped": Idempotent -> Stepped;
    /// Every pod of a service.
    ReadPods = "pods": Read -> Box<Pods>;
    /// Every pod of a service with the certificate that each would get.
    Inspect = "inspect": Read -> Box<Inspection>;
    /// Write the state of the whole service.
    SetWorkload = "set_workload": Idempotent -> ();
    /// The state of the whole service.
    GetWorkload = "workload": Read -> Option<WorkloadState>;
    /// Let a tag stand for a service.
    SetTag = "set_tag": Idempotent -> bool;
    /// The service that a tag stands for.
    GetTag = "tag": Read -> Option<ServiceName>;
    /// A sign of life.
    Ping = "ping": Read -> ();
}

pub(crate) use {match_call, reply_to_call};

names! {
    /// What a program asks a driver for: the name of the Python method.
    OperationName {
        ComputeLinkedPod = "compute_linked_pod",
        Route = "route",
        GetLinkedInCache = "get_linked_in_cache",
        GetLinkedPod = "get_linked_pod",
        GetLinkedPodInCacheOrIfPersist = "get_linked_pod_in_cache_or_if_persist",
        GetLinkedPodNotCache = "get_linked_pod_not_cache",
        GetLinkService = "get_link_service",
        BatchGetLinkedPod = "batch_get_linked_pod",
        SetLinkedPodIfAbsent = "set_linked_pod_if_absent",
        SetLinkedPod = "set_linked_pod",
        TrySetLinkedPod = "try_set_linked_pod",
        RemoveLinkedPod = "remove_linked_pod",
        RemoveLinkedPodWithId = "remove_linked_pod_with_id",
        Claim = "claim",
        Verify = "verify",
        Release = "release",
        Explain = "explain",
        Start = "start",
        Stop = "stop",
        SetRoutingState = "set_routing_state",
        GetAllServiceState = "get_all_service_state",
        GetReadyServiceState = "get_ready_service_state",
        GetPodState = "get_pod_state",
        GetServiceBestPod = "get_service_best_pod",
        IsWorkloadReady = "is_workload_ready",
        GetServiceNameByTag = "get_service_name_by_tag",
        SetGlobalServiceNameTag = "set_global_service_name_tag",
        CheckHealth = "check_health",
        Ping = "ping",
        Ready = "ready",
        Aclose = "aclose",
    }
}

impl OperationName {
    /// The operations on links, which are counted and timed. What the cache answers is all counted
    /// as `get_linked_in_cache`.
    pub const LINKS: [Self; 16] = [
        Self::ComputeLinkedPod,
        Self::Route,
        Self::GetLinkedInCache,
        Self::GetLinkedPod,
        Self::GetLinkedPodInCacheOrIfPersist,
        Self::GetLinkedPodNotCache,
        Self::GetLinkService,
        Self::BatchGetLinkedPod,
        Self::SetLinkedPodIfAbsent,
        Self::SetLinkedPod,
        Self::TrySetLinkedPod,
        Self::RemoveLinkedPod,
        Self::RemoveLinkedPodWithId,
        Self::Claim,
        Self::Verify,
        Self::Release,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for name in CallName::ALL {
            assert_eq!(CallName::parse(name.as_str()), Some(name));
        }
        for name in OperationName::ALL {
            assert_eq!(OperationName::parse(name.as_str()), Some(name));
        }
        assert_eq!(OperationName::parse("set_linked_pods"), None);
    }

    #[test]
    fn calls_and_replies_stay_small() {
        // A batch moves hundreds of them: what is large is boxed.
        assert!(size_of::<Call>() <= 128, "{}", size_of::<Call>());
        assert!(size_of::<Reply>() <= 64, "{}", size_of::<Reply>());
    }
}
