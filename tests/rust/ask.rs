//! Every operation of a store as a method, so that a test reads like the contract it states.

use std::collections::BTreeMap;
use std::time::Duration;

use podlink::clock::Tick;
use podlink::driver::writes;
use podlink::error::Result;
use podlink::id::{
    Incarnation, LinkId, Namespace, PodIndex, ServiceId, ServiceName, Tag, Token, Uid,
};
use podlink::op::{
    BatchGet, Begun, Claim, Claimed, Get, GetTag, GetWorkload, Inspect, Inspection, LeaseTimes,
    LinkSource, LinksRead, Operation, Ping, PodBegin, PodCertify, PodEnd, PodIdentity, PodRenew,
    PodStepped, Pods, PodsReading, Read, ReadPods, Relink, Remove, Removed, Renewed, Rewrite,
    Services, Set, SetIfAbsent, SetTag, SetWorkload, Stepped, StoredUser, Swap, Swapped, TrySet,
    expected,
};
use podlink::route::clock_step::ClockStep;
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

/// The links; the error of the first one that was left out.
fn whole<T>(read: LinksRead<T>) -> Result<T> {
    match read.unreadable.into_iter().next() {
        Some(left_out) => Err(left_out.error),
        None => Ok(read.links),
    }
}

macro_rules! asked {
    ($($name:ident($($argument:ident: $type:ty),*) -> $reply:ty = $operation:expr;)+) => {
        pub(crate) trait Ask {
            $(async fn $name(&self, $($argument: $type,)* deadline: Tick) -> Result<$reply>;)+

            async fn set(&self, link: &LinkId, pod: PodIndex, persist: Persist, deadline: Tick)
            -> Result<Option<PodIndex>>;

            async fn remove(
                &self, link: &LinkId, owner: Option<PodIndex>, removal: Removal, deadline: Tick,
            ) -> Result<Removed>;

            /// The pods of users whose links can all be read.
            async fn batch_get(
                &self,
                service: &ServiceId,
                uids: &[Uid],
                deadline: Tick,
            ) -> Result<Vec<Option<PodIndex>>> {
                whole(self.batch_read(service, uids, deadline).await?)
            }

            /// The services of a user whose links can all be read.
            async fn services(
                &self,
                namespace: &Namespace,
                uid: &Uid,
                deadline: Tick,
            ) -> Result<BTreeMap<ServiceName, PodIndex>> {
                whole(self.services_read(namespace, uid, deadline).await?)
            }
        }

        impl<S: Store + ?Sized> Ask for S {
            $(async fn $name(&self, $($argument: $type,)* deadline: Tick) -> Result<$reply> {
                ask(self, $operation, deadline).await
            })+

            // The writes that take two steps.
            async fn set(
                &self, link: &LinkId, pod: PodIndex, persist: Persist, deadline: Tick,
            ) -> Result<Option<PodIndex>> {
                let link = link.clone();
                writes::set(self, &Set { link, pod, persist }, deadline).await
            }

            async fn remove(
                &self, link: &LinkId, owner: Option<PodIndex>, removal: Removal, deadline: Tick,
            ) -> Result<Removed> {
                let link = link.clone();
                writes::remove(self, &Remove { link, owner, removal }, deadline).await
            }
        }
    };
}

asked! {
    get(link: &LinkId) -> Option<StoredLink> = Get { link: link.clone(), from: LinkSource::Store };
    batch_read(service: &ServiceId, uids: &[Uid]) -> LinksRead<Vec<Option<PodIndex>>> =
        BatchGet { service: service.clone(), uids: uids.into() };
    services_read(namespace: &Namespace, uid: &Uid) -> LinksRead<BTreeMap<ServiceName, PodIndex>> =
        Services { namespace: namespace.clone(), uid: uid.clone() };
    set_if_absent(link: &LinkId, pod: PodIndex, ttl: Duration) -> Placed =
        SetIfAbsent { link: link.clone(), pod, ttl };
    read(link: &LinkId) -> Box<StoredUser> = Read { link: link.clone() };
    claim(link: &LinkId, owner: (PodIndex, Incarnation), certified: Option<(PodIndex, Incarnation)>,
          above: Token) -> Claimed =
        Claim { link: link.clone(), pod: owner.0, incarnation: owner.1, certified, above };
    swap(link: &LinkId, found: &StoredUser, to: Rewrite) -> Swapped =
        Swap { link: link.clone(), found: Box::new(found.clone()), to };
    try_set(link: &LinkId, pod: PodIndex, persist: Persist) -> Placed =
        TrySet { link: link.clone(), pod, persist };
    relink(
        link: &LinkId,
        from: StoredLink,
        dead: Incarnation,
        to: PodIndex,
        ttl: Duration
    ) -> Option<Placed> = Relink { link: link.clone(), from, dead, to, ttl };
    pod_begin(pod: &PodIdentity, times: LeaseTimes) -> Begun = PodBegin { pod: Box::new(pod.clone()), times };
    pod_renew(service: &ServiceId, state: &PodState, times: LeaseTimes) -> Renewed =
        PodRenew { service: service.clone(), state: state.clone().into(), times };
    pod_end(service: &ServiceId, pod: PodIndex, incarnation: Incarnation) -> bool =
        PodEnd { service: service.clone(), pod, incarnation };
    pod_stepped(
        service: &ServiceId,
        pod: PodIndex,
        incarnation: Incarnation,
        step: ClockStep,
        times: LeaseTimes
    ) -> Stepped = PodStepped { service: service.clone(), pod, incarnation, step: Box::new(step), times };
    pod_certify(service: &ServiceId, pod: PodIndex) -> Certificate =
        PodCertify { service: service.clone(), pod, seen: None };
    certify_seen(service: &ServiceId, pod: PodIndex, seen: Incarnation) -> Certificate =
        PodCertify { service: service.clone(), pod, seen: Some(seen) };
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
