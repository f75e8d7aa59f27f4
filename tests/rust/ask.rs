//! Every operation of a store as a method, so that a test reads like the contract it states.

use std::collections::BTreeMap;
use std::time::Duration;

use podlink::clock::Tick;
use podlink::error::Result;
use podlink::id::{Incarnation, LinkId, Namespace, PodIndex, ServiceId, ServiceName, Tag, Uid};
use podlink::op::{
    BatchGet, Begun, Get, GetTag, GetWorkload, Inspect, Inspection, LeaseTimes, LinkSource,
    Operation, Ping, PodBegin, PodCertify, PodEnd, PodIdentity, PodRenew, Pods, PodsReading,
    ReadPods, Relink, Remove, Removed, Renewed, Services, Set, SetIfAbsent, SetTag, SetWorkload,
    TrySet, expected,
};
use podlink::route::link::{Certificate, Persist, Placed, Removal, StoredLink};
use podlink::route::state::{PodState, WorkloadState};
use podlink::store::Store;

async fn ask<O: Operation>(
    store: &(impl Store + ?Sized),
    operation: O,
    deadline: Tick,
) -> Result<O::Reply> {
    expected::<O>(store.call(&operation.into(), deadline).await?)
}

macro_rules! asked {
    ($($name:ident($($argument:ident: $type:ty),*) -> $reply:ty = $operation:expr;)+) => {
        pub(crate) trait Ask {
            $(async fn $name(&self, $($argument: $type,)* deadline: Tick) -> Result<$reply>;)+
        }

        impl<S: Store + ?Sized> Ask for S {
            $(async fn $name(&self, $($argument: $type,)* deadline: Tick) -> Result<$reply> {
                ask(self, $operation, deadline).await
            })+
        }
    };
}

asked! {
    get(link: &LinkId) -> Option<StoredLink> = Get { link: link.clone(), from: LinkSource::Store };
    batch_get(service: &ServiceId, uids: &[Uid]) -> Vec<Option<PodIndex>> =
        BatchGet { service: service.clone(), uids: uids.into() };
    services(namespace: &Namespace, uid: &Uid) -> BTreeMap<ServiceName, PodIndex> =
        Services { namespace: namespace.clone(), uid: uid.clone() };
    set_if_absent(link: &LinkId, pod: PodIndex, ttl: Duration) -> Placed =
        SetIfAbsent { link: link.clone(), pod, ttl };
    set(link: &LinkId, pod: PodIndex, persist: Persist) -> Option<PodIndex> =
        Set { link: link.clone(), pod, persist };
    try_set(link: &LinkId, pod: PodIndex, persist: Persist) -> Placed =
        TrySet { link: link.clone(), pod, persist };
    relink(
        link: &LinkId,
        from: StoredLink,
        dead: Incarnation,
        to: PodIndex,
        ttl: Duration
    ) -> Option<Placed> = Relink { link: link.clone(), from, dead, to, ttl };
    remove(link: &LinkId, owner: Option<PodIndex>, removal: Removal) -> Removed =
        Remove { link: link.clone(), owner, removal };
    pod_begin(pod: &PodIdentity, times: LeaseTimes) -> Begun = PodBegin { pod: Box::new(pod.clone()), times };
    pod_renew(service: &ServiceId, state: &PodState, times: LeaseTimes) -> Renewed =
        PodRenew { service: service.clone(), state: state.clone().into(), times };
    pod_end(service: &ServiceId, pod: PodIndex, incarnation: Incarnation) -> bool =
        PodEnd { service: service.clone(), pod, incarnation };
    pod_certify(service: &ServiceId, pod: PodIndex) -> Certificate =
        PodCertify { service: service.clone(), pod };
    pods(service: &ServiceId, last: &PodsReading) -> Box<Pods> =
        ReadPods { service: service.clone(), last: last.clone() };
    inspect(service: &ServiceId) -> Box<Inspection> = Inspect { service: service.clone() };
    set_workload(service: &ServiceId, workload: &WorkloadState, ttl: Duration) -> () =
        SetWorkload { service: service.clone(), workload: workload.clone(), ttl };
    workload(service: &ServiceId) -> Option<WorkloadState> =
        GetWorkload { service: service.clone() };
    set_tag(namespace: &Namespace, tag: &Tag, service: &ServiceName) -> bool =
        SetTag { namespace: namespace.clone(), tag: tag.clone(), service: service.clone() };
    tag(namespace: &Namespace, tag: &Tag) -> Option<ServiceName> =
        GetTag { namespace: namespace.clone(), tag: tag.clone() };
    ping() -> () = Ping;
}
