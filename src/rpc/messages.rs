//! Each method of the service: an operation as a request and its answer, once for both ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;

use super::convert;
use crate::error::Result;
use crate::id::{PodIndex, Uid};
use crate::op::{
    BatchGet, Call, Compute, Computed, Get, GetTag, LinkSource, Operation, PodAbout, Pods,
    PodsReading, ReadPods, Remove, Removed, Services, Set, SetIfAbsent, TrySet,
};
use crate::proto::v1;
use crate::route::link::{Life, Placed, StoredLink};

/// The service's name on the wire.
pub(super) const SERVICE_NAME: &str = "podlink.v1.RouteService";

/// The method that opens a stream of events.
pub(super) const WATCH: &str = "WatchRoutingState";

/// A method that has one answer.
pub(super) trait Method: Send + Sync + 'static {
    /// What it does.
    type Operation: Operation + Send + Sync;
    /// How that is asked for.
    type Request: Message + Clone + Default + 'static;
    /// How that is answered.
    type Response: Message + Default + 'static;

    /// Its name, as authorization tables name it.
    const NAME: &'static str;

    /// Where it is found.
    const PATH: &'static str;

    /// The caller's side.
    fn request(operation: &Self::Operation) -> Self::Request;

    /// The server's side: what was asked for. A server takes at most `max_batch` users at once.
    fn read(request: Self::Request, max_batch: usize) -> Result<Self::Operation>;

    /// The server's side: the answer.
    fn response(reply: MethodReply<Self>, asked: &[Uid]) -> Self::Response;

    /// The caller's side: what was answered.
    fn reply(response: Self::Response, asked: &[Uid]) -> Result<MethodReply<Self>>;

    /// Whether this method carries the operation: some operations have several methods.
    fn carries(_operation: &Self::Operation) -> bool {
        true
    }

    /// The users of a batch, in order: its answer names them again.
    fn asked(_operation: &Self::Operation) -> Arc<[Uid]> {
        Arc::default()
    }
}

/// The reply to a method's operation.
pub(super) type MethodReply<M> = <<M as Method>::Operation as Operation>::Reply;

macro_rules! methods {
    ($($method:ident: $operation:ident, $request:ident -> $response:ident { $($body:tt)* })+) => {
        $(
            pub(super) struct $method;

            impl Method for $method {
                type Operation = $operation;
                type Request = v1::$request;
                type Response = v1::$response;

                const NAME: &'static str = stringify!($method);

                const PATH: &'static str =
                    concat!("/podlink.v1.RouteService/", stringify!($method));

                $($body)*
            }
        )+

        /// Every method, as the authorization table names it.
        pub const METHODS: [&str; [$(stringify!($method)),+].len() + 1] =
            [$(stringify!($method),)+ WATCH];

        /// Evaluates an expression for the method that carries a call, and makes the call's reply of
        /// it; `None` if no method does.
        macro_rules! match_carried {
            ($call:expr, $carried:ident, $alias:ident => $work:expr) => {
                match $call {
                    $($crate::op::Call::$operation($carried)
                        if <$crate::rpc::messages::$method as $crate::rpc::messages::Method>
                            ::carries($carried) =>
                    {
                        type $alias = $crate::rpc::messages::$method;
                        Some($work.map($crate::op::Reply::$operation))
                    })+
                    _ => None,
                }
            };
        }

        /// Whether a peer may be asked this: a method carries it.
        #[must_use]
        pub fn is_carried(call: &Call) -> bool {
            match call {
                $(Call::$operation(operation) if $method::carries(operation) => true,)+
                _ => false,
            }
        }

        /// Evaluates an expression for the method of this name; `None` if there is none.
        macro_rules! match_method {
            ($name:expr, $alias:ident => $work:expr) => {
                match $name {
                    $(stringify!($method) => {
                        type $alias = $crate::rpc::messages::$method;
                        Some($work)
                    })+
                    _ => None,
                }
            };
        }
    };
}

/// A method that asks for one user's link.
macro_rules! get_from {
    ($source:ident, $request:ident, $response:ident) => {
        fn request(get: &Get) -> v1::$request {
            let user = convert::user(&get.link);
            v1::$request { user }
        }

        fn read(request: v1::$request, _max_batch: usize) -> Result<Get> {
            Ok(Get {
                link: convert::link(request.user)?,
                from: LinkSource::$source,
            })
        }

        fn carries(get: &Get) -> bool {
            get.from == LinkSource::$source
        }

        fn response(found: Option<StoredLink>, _asked: &[Uid]) -> v1::$response {
            v1::$response {
                link: found.map(convert::from_link),
            }
        }

        fn reply(response: v1::$response, _asked: &[Uid]) -> Result<Option<StoredLink>> {
            response.link.map(convert::stored_link).transpose()
        }
    };
}

methods! {
    ComputeLinkedPod: Compute, ComputeLinkedPodRequest -> ComputeLinkedPodResponse {
        fn request(compute: &Compute) -> v1::ComputeLinkedPodRequest {
            v1::ComputeLinkedPodRequest {
                user: convert::user(&compute.link),
                refused_by: compute.refused.iter().map(|pod| pod.get()).collect(),
                describe: compute.describe,
            }
        }

        fn read(request: v1::ComputeLinkedPodRequest, _max_batch: usize) -> Result<Compute> {
            Ok(Compute {
                link: convert::link(request.user)?,
                refused: convert::refused(&request.refused_by)?,
                describe: request.describe,
            })
        }

        fn response(computed: Computed, _asked: &[Uid]) -> v1::ComputeLinkedPodResponse {
            let about = computed.about.map(|about| (about.address, about.metadata));
            let (address, metadata) = about.unzip();
            v1::ComputeLinkedPodResponse {
                link: Some(convert::from_link(computed.link)),
                address,
                metadata: metadata.unwrap_or_default(),
            }
        }

        fn reply(response: v1::ComputeLinkedPodResponse, _asked: &[Uid]) -> Result<Computed> {
            let (link, metadata) = (response.link, response.metadata);
            let about = |address| Box::new(PodAbout { address, metadata });
            Ok(Computed {
                link: convert::given_link(link)?,
                about: response.address.map(about),
            })
        }
    }

    GetLinkedPod: Get, GetLinkedPodRequest -> GetLinkedPodResponse {
        get_from!(CacheOrStore, GetLinkedPodRequest, GetLinkedPodResponse);
    }

    GetLinkedPodNotCache: Get, GetLinkedPodNotCacheRequest -> GetLinkedPodNotCacheResponse {
        get_from!(
            Store,
            GetLinkedPodNotCacheRequest,
            GetLinkedPodNotCacheResponse
        );
    }

    GetLinkedPodInCacheOrIfPersist: Get,
        GetLinkedPodInCacheOrIfPersistRequest -> GetLinkedPodInCacheOrIfPersistResponse
    {
        get_from!(
            CacheOrPersistent,
            GetLinkedPodInCacheOrIfPersistRequest,
            GetLinkedPodInCacheOrIfPersistResponse
        );
    }

    BatchGetLinkedPod: BatchGet, BatchGetLinkedPodRequest -> BatchGetLinkedPodResponse {
        fn request(batch: &BatchGet) -> v1::BatchGetLinkedPodRequest {
            v1::BatchGetLinkedPodRequest {
                namespace: batch.service.namespace.to_string(),
                service_name: batch.service.service.to_string(),
                uids: batch.uids.iter().map(ToString::to_string).collect(),
            }
        }

        fn read(request: v1::BatchGetLinkedPodRequest, max_batch: usize) -> Result<BatchGet> {
            Ok(BatchGet {
                service: convert::service(&request.namespace, &request.service_name)?,
                uids: convert::uids(&request.uids, max_batch)?.into(),
            })
        }

        fn response(pods: MethodReply<Self>, asked: &[Uid]) -> v1::BatchGetLinkedPodResponse {
            v1::BatchGetLinkedPodResponse {
                pods: convert::from_pods_of(asked, &pods.links),
            }
        }

        fn reply(
            response: v1::BatchGetLinkedPodResponse,
            asked: &[Uid],
        ) -> Result<MethodReply<Self>> {
            let mut pods = HashMap::with_capacity(asked.len());
            for found in &response.pods {
                let pod = convert::pod(found.pod_index)?;
                pods.extend(found.uids.iter().map(|uid| (uid.as_str(), pod)));
            }
            let of = |uid: &Uid| pods.get(uid.as_str()).copied();
            let links: Vec<_> = asked.iter().map(of).collect();
            Ok(links.into())
        }

        fn asked(batch: &BatchGet) -> Arc<[Uid]> {
            Arc::clone(&batch.uids)
        }
    }

    GetLinkService: Services, GetLinkServiceRequest -> GetLinkServiceResponse {
        fn request(services: &Services) -> v1::GetLinkServiceRequest {
            v1::GetLinkServiceRequest {
                namespace: services.namespace.to_string(),
                uid: services.uid.to_string(),
            }
        }

        fn read(request: v1::GetLinkServiceRequest, _max_batch: usize) -> Result<Services> {
            let (namespace, uid) = convert::user_of(&request.namespace, &request.uid)?;
            Ok(Services { namespace, uid })
        }

        fn response(services: MethodReply<Self>, _asked: &[Uid]) -> v1::GetLinkServiceResponse {
            v1::GetLinkServiceResponse {
                services: convert::from_services(services.links),
            }
        }

        fn reply(response: v1::GetLinkServiceResponse, _asked: &[Uid]) -> Result<MethodReply<Self>> {
            convert::services(response.services).map(Into::into)
        }
    }

    SetLinkedPodIfAbsent: SetIfAbsent,
        SetLinkedPodIfAbsentRequest -> SetLinkedPodIfAbsentResponse
    {
        fn request(set: &SetIfAbsent) -> v1::SetLinkedPodIfAbsentRequest {
            v1::SetLinkedPodIfAbsentRequest {
                user: convert::user(&set.link),
                pod_index: Some(set.pod.get()),
            }
        }

        fn read(
            request: v1::SetLinkedPodIfAbsentRequest,
            _max_batch: usize,
        ) -> Result<SetIfAbsent> {
            Ok(SetIfAbsent {
                link: convert::link(request.user)?,
                pod: convert::required_pod(request.pod_index)?,
                // The server's own counts.
                ttl: Duration::ZERO,
            })
        }

        fn response(placed: Placed, _asked: &[Uid]) -> v1::SetLinkedPodIfAbsentResponse {
            v1::SetLinkedPodIfAbsentResponse {
                link: Some(convert::from_link(placed.link)),
            }
        }

        fn reply(response: v1::SetLinkedPodIfAbsentResponse, _asked: &[Uid]) -> Result<Placed> {
            Ok(Placed {
                link: convert::given_link(response.link)?,
                // The peer does not return it.
                made: false,
            })
        }
    }

    SetLinkedPod: Set, SetLinkedPodRequest -> SetLinkedPodResponse {
        fn request(set: &Set) -> v1::SetLinkedPodRequest {
            v1::SetLinkedPodRequest {
                user: convert::user(&set.link),
                pod_index: Some(set.pod.get()),
                ttl_seconds: convert::ttl_seconds(set.persist),
            }
        }

        fn read(request: v1::SetLinkedPodRequest, _max_batch: usize) -> Result<Set> {
            Ok(Set {
                link: convert::link(request.user)?,
                persist: convert::persist(request.ttl_seconds)?,
                pod: convert::required_pod(request.pod_index)?,
            })
        }

        fn response(previous: MethodReply<Self>, _asked: &[Uid]) -> v1::SetLinkedPodResponse {
            v1::SetLinkedPodResponse {
                previous_pod_index: previous.map(PodIndex::get),
            }
        }

        fn reply(response: v1::SetLinkedPodResponse, _asked: &[Uid]) -> Result<MethodReply<Self>> {
            response.previous_pod_index.map(convert::pod).transpose()
        }
    }

    TrySetLinkedPod: TrySet, TrySetLinkedPodRequest -> TrySetLinkedPodResponse {
        fn request(set: &TrySet) -> v1::TrySetLinkedPodRequest {
            v1::TrySetLinkedPodRequest {
                user: convert::user(&set.link),
                pod_index: Some(set.pod.get()),
                ttl_seconds: convert::ttl_seconds(set.persist),
            }
        }

        fn read(request: v1::TrySetLinkedPodRequest, _max_batch: usize) -> Result<TrySet> {
            Ok(TrySet {
                link: convert::link(request.user)?,
                persist: convert::persist(request.ttl_seconds)?,
                pod: convert::required_pod(request.pod_index)?,
            })
        }

        fn response(placed: Placed, _asked: &[Uid]) -> v1::TrySetLinkedPodResponse {
            v1::TrySetLinkedPodResponse {
                won: placed.made,
                owner_pod_index: placed.link.pod.get(),
            }
        }

        fn reply(response: v1::TrySetLinkedPodResponse, _asked: &[Uid]) -> Result<Placed> {
            let pod = convert::pod(response.owner_pod_index)?;
            // The peer does not return how long the link lasts: it must not be cached.
            let life = Life::Temporary(Duration::ZERO);
            Ok(Placed {
                link: StoredLink::unowned(pod, life),
                made: response.won,
            })
        }
    }

    RemoveLinkedPod: Remove, RemoveLinkedPodRequest -> RemoveLinkedPodResponse {
        fn request(remove: &Remove) -> v1::RemoveLinkedPodRequest {
            v1::RemoveLinkedPodRequest {
                user: convert::user(&remove.link),
                grace_seconds: convert::grace_seconds(remove.removal),
            }
        }

        fn read(request: v1::RemoveLinkedPodRequest, _max_batch: usize) -> Result<Remove> {
            Ok(Remove {
                link: convert::link(request.user)?,
                owner: None,
                removal: convert::removal(request.grace_seconds)?,
            })
        }

        fn carries(remove: &Remove) -> bool {
            remove.owner.is_none()
        }

        fn response(removed: Removed, _asked: &[Uid]) -> v1::RemoveLinkedPodResponse {
            v1::RemoveLinkedPodResponse {
                removed: removed.done,
            }
        }

        fn reply(response: v1::RemoveLinkedPodResponse, _asked: &[Uid]) -> Result<Removed> {
            Ok(removed(response.removed))
        }
    }

    RemoveLinkedPodWithId: Remove,
        RemoveLinkedPodWithIdRequest -> RemoveLinkedPodWithIdResponse
    {
        fn request(remove: &Remove) -> v1::RemoveLinkedPodWithIdRequest {
            v1::RemoveLinkedPodWithIdRequest {
                user: convert::user(&remove.link),
                pod_index: remove.owner.map(PodIndex::get),
                grace_seconds: convert::grace_seconds(remove.removal),
            }
        }

        fn read(request: v1::RemoveLinkedPodWithIdRequest, _max_batch: usize) -> Result<Remove> {
            Ok(Remove {
                link: convert::link(request.user)?,
                removal: convert::removal(request.grace_seconds)?,
                owner: Some(convert::required_pod(request.pod_index)?),
            })
        }

        fn carries(remove: &Remove) -> bool {
            remove.owner.is_some()
        }

        fn response(removed: Removed, _asked: &[Uid]) -> v1::RemoveLinkedPodWithIdResponse {
            v1::RemoveLinkedPodWithIdResponse {
                removed: removed.done,
            }
        }

        fn reply(response: v1::RemoveLinkedPodWithIdResponse, _asked: &[Uid]) -> Result<Removed> {
            Ok(removed(response.removed))
        }
    }

    GetServiceState: ReadPods, GetServiceStateRequest -> GetServiceStateResponse {
        fn request(read: &ReadPods) -> v1::GetServiceStateRequest {
            v1::GetServiceStateRequest {
                namespace: read.service.namespace.to_string(),
                service_name: read.service.service.to_string(),
            }
        }

        fn read(request: v1::GetServiceStateRequest, _max_batch: usize) -> Result<ReadPods> {
            Ok(ReadPods {
                service: convert::service(&request.namespace, &request.service_name)?,
                last: PodsReading::default(),
            })
        }

        fn response(pods: Box<Pods>, _asked: &[Uid]) -> v1::GetServiceStateResponse {
            let records = pods.records.into_iter();
            v1::GetServiceStateResponse {
                pods: records.map(convert::from_record).collect(),
            }
        }

        fn reply(response: v1::GetServiceStateResponse, _asked: &[Uid]) -> Result<Box<Pods>> {
            let records = response.pods.into_iter().map(convert::record);
            Ok(Box::new(Pods {
                records: records.collect::<Result<_>>()?,
                ..Pods::default()
            }))
        }
    }

    GetServiceNameByTag: GetTag, GetServiceNameByTagRequest -> GetServiceNameByTagResponse {
        fn request(get: &GetTag) -> v1::GetServiceNameByTagRequest {
            v1::GetServiceNameByTagRequest {
                namespace: get.namespace.to_string(),
                tag: get.tag.to_string(),
            }
        }

        fn read(request: v1::GetServiceNameByTagRequest, _max_batch: usize) -> Result<GetTag> {
            let (namespace, tag) = convert::tag_of(&request.namespace, &request.tag)?;
            Ok(GetTag { namespace, tag })
        }

        fn response(found: MethodReply<Self>, _asked: &[Uid]) -> v1::GetServiceNameByTagResponse {
            v1::GetServiceNameByTagResponse {
                service_name: found.map(|name| name.to_string()),
            }
        }

        fn reply(response: v1::GetServiceNameByTagResponse, _asked: &[Uid]) -> Result<MethodReply<Self>> {
            convert::service_name(response.service_name)
        }
    }
}

pub(super) use {match_carried, match_method};

/// The reply to a removal; the peer does not return the previous owner.
fn removed(done: bool) -> Removed {
    Removed {
        previous: None,
        done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::DESCRIPTORS;

    #[test]
    fn every_method_of_the_schema_is_here() {
        let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
        let file = &set.file[0];
        let service = &file.service[0];
        assert_eq!(
            format!("{}.{}", file.package(), service.name()),
            SERVICE_NAME
        );
        let declared: Vec<&str> = service.method.iter().map(|method| method.name()).collect();
        assert_eq!(declared, METHODS);
        for name in METHODS {
            let path = match_method!(name, M => M::PATH);
            let expected = format!("/{SERVICE_NAME}/{name}");
            assert_eq!(path, (name != WATCH).then_some(expected.as_str()));
        }
    }
}
