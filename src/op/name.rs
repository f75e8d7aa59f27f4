//! Names of operations: one spelling, in errors, metrics, traces, gRPC and Python.

use crate::error::Named;

macro_rules! names {
    ($(#[$doc:meta])* $type:ident { $($name:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "each is the name of an operation that is documented where it is")]
        pub enum $type { $($name,)+ }

        impl $type {
            /// Every name.
            pub const ALL: [Self; [$($text),+].len()] = [$(Self::$name),+];

            /// The name as text.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// Names as text.
            #[must_use]
            pub const fn texts<const N: usize>(names: [Self; N]) -> [&'static str; N] {
                let mut texts = [""; N];
                let mut at = 0;
                while at < N {
                    texts[at] = names[at].as_str();
                    at += 1;
                }
                texts
            }

            /// The name that is written so.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)+ _ => None }
            }
        }

        impl Named for $type {
            fn name(&self) -> &'static str {
                self.as_str()
            }
        }
    };
}

names! {
    /// What a store or a peer is asked for.
    CallName {
        Compute = "compute",
        Get = "get",
        BatchGet = "batch_get",
        Services = "services",
        SetIfAbsent = "set_if_absent",
        Set = "set",
        TrySet = "try_set",
        Relink = "relink",
        Remove = "remove",
        PodBegin = "pod_begin",
        PodRenew = "pod_renew",
        PodEnd = "pod_end",
        PodCertify = "pod_certify",
        ReadPods = "pods",
        Inspect = "inspect",
        SetWorkload = "set_workload",
        GetWorkload = "workload",
        SetTag = "set_tag",
        GetTag = "tag",
        Ping = "ping",
        Subscribe = "subscribe",
    }
}

names! {
    /// What a program asks a driver for: the name of the Python method.
    OperationName {
        ComputeLinkedPod = "compute_linked_pod",
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
    pub const LINKS: [Self; 12] = [
        Self::ComputeLinkedPod,
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
}
