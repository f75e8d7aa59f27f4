//! Every operation as one request and its answer.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Condition, Manner, PeerClient};
use crate::clock::Tick;
use crate::error::Result;
use crate::id::{LinkId, Namespace, PodIndex, ServiceId, ServiceName, Tag, Uid};
use crate::proto::v1;
use crate::route::link::{Persist, Removal};
use crate::route::state::PodRecord;
use crate::rpc::convert;
use crate::rpc::{Believed, ChangeStream, LinkOperations, Source, UsersByPod};

/// Parts of one batch that are under way at once.
const PARTS_AT_ONCE: usize = 4;
/// Well below the 64 KiB that a server takes unless it is configured otherwise.
const PART_BYTES: usize = 48 * 1024;

impl PeerClient {
    async fn part(&self, service: &ServiceId, uids: &[Uid], deadline: Tick) -> Result<UsersByPod> {
        let message = v1::BatchGetLinkedPodRequest {
            namespace: service.namespace.to_string(),
            service_name: service.service.to_string(),
            uids: uids.iter().map(ToString::to_string).collect(),
        };
        let answer = self
            .route(
                Manner::Read,
                deadline,
                message,
                |mut stub, request| async move { stub.batch_get_linked_pod(request).await },
            )
            .await?;
        convert::users(answer.pods)
    }

    /// As many users at once as fit into one request.
    fn parts<'a>(&self, mut uids: &'a [Uid]) -> Vec<&'a [Uid]> {
        let mut parts = Vec::new();
        while !uids.is_empty() {
            let mut bytes = 0;
            let fit = uids.iter().take_while(|uid| {
                bytes += uid.as_str().len() + 4;
                bytes <= PART_BYTES
            });
            let length = fit.take(self.shared.config.max_batch).count().max(1);
            let (part, rest) = uids.split_at(length);
            parts.push(part);
            uids = rest;
        }
        parts
    }
}

#[async_trait]
impl LinkOperations for PeerClient {
    async fn compute(&self, link: &LinkId, deadline: Tick) -> Result<Believed> {
        let user = convert::user(link);
        let message = v1::ComputeLinkedPodRequest { user };
        let answer = self
            .route(
                Manner::Repeatable,
                deadline,
                message,
                |mut stub, request| async move { stub.compute_linked_pod(request).await },
            )
            .await?;
        convert::given(answer.link)
    }

    async fn get(&self, link: &LinkId, from: Source, deadline: Tick) -> Result<Option<Believed>> {
        let user = convert::user(link);
        let found = match from {
            Source::CacheOrStore => {
                let message = v1::GetLinkedPodRequest { user };
                let answer = self.route(
                    Manner::Read,
                    deadline,
                    message,
                    |mut stub, request| async move { stub.get_linked_pod(request).await },
                );
                answer.await?.link
            }
            Source::Store => {
                let message = v1::GetLinkedPodNotCacheRequest { user };
                let answer = self.route(
                    Manner::Read,
                    deadline,
                    message,
                    |mut stub, request| async move { stub.get_linked_pod_not_cache(request).await },
                );
                answer.await?.link
            }
            Source::CacheOrPersistent => {
                let message = v1::GetLinkedPodInCacheOrIfPersistRequest { user };
                let answer = self.route(
                    Manner::Read,
                    deadline,
                    message,
                    |mut stub, request| async move {
                        stub.get_linked_pod_in_cache_or_if_persist(request).await
                    },
                );
                answer.await?.link
            }
        };
        found.map(convert::believed).transpose()
    }

    async fn batch_get(
        &self,
        service: &ServiceId,
        uids: Vec<Uid>,
        deadline: Tick,
    ) -> Result<UsersByPod> {
        let parts = self.parts(&uids).into_iter();
        let asked = parts.map(|part| self.part(service, part, deadline));
        let asked: Vec<_> = asked.collect();
        let mut users = UsersByPod::new();
        let mut answers = stream::iter(asked).buffered(PARTS_AT_ONCE);
        while let Some(part) = answers.try_next().await? {
            for (pod, found) in part {
                users.entry(pod).or_default().extend(found);
            }
        }
        Ok(users)
    }

    async fn services(
        &self,
        namespace: &Namespace,
        uid: &Uid,
        deadline: Tick,
    ) -> Result<BTreeMap<ServiceName, PodIndex>> {
        let message = v1::GetLinkServiceRequest {
            namespace: namespace.to_string(),
            uid: uid.to_string(),
        };
        let answer = self
            .route(
                Manner::Read,
                deadline,
                message,
                |mut stub, request| async move { stub.get_link_service(request).await },
            )
            .await?;
        convert::services(answer.services)
    }

    async fn set_if_absent(
        &self,
        link: &LinkId,
        pod: PodIndex,
        deadline: Tick,
    ) -> Result<Believed> {
        let message = v1::SetLinkedPodIfAbsentRequest {
            user: convert::user(link),
            pod_index: Some(pod.get()),
        };
        let answer = self
            .route(
                Manner::Repeatable,
                deadline,
                message,
                |mut stub, request| async move { stub.set_linked_pod_if_absent(request).await },
            )
            .await?;
        convert::given(answer.link)
    }

    async fn set(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<Option<PodIndex>> {
        let message = v1::SetLinkedPodRequest {
            user: convert::user(link),
            pod_index: Some(pod.get()),
            ttl_seconds: convert::ttl_seconds(persist),
        };
        let answer = self
            .route(
                Manner::Once,
                deadline,
                message,
                |mut stub, request| async move { stub.set_linked_pod(request).await },
            )
            .await?;
        answer.previous_pod_index.map(convert::pod).transpose()
    }

    async fn try_set(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<(bool, PodIndex)> {
        let message = v1::TrySetLinkedPodRequest {
            user: convert::user(link),
            pod_index: Some(pod.get()),
            ttl_seconds: convert::ttl_seconds(persist),
        };
        let answer = self
            .route(
                Manner::Repeatable,
                deadline,
                message,
                |mut stub, request| async move { stub.try_set_linked_pod(request).await },
            )
            .await?;
        Ok((answer.won, convert::pod(answer.owner_pod_index)?))
    }

    async fn remove(
        &self,
        link: &LinkId,
        owner: Option<PodIndex>,
        removal: Removal,
        deadline: Tick,
    ) -> Result<bool> {
        let (user, grace_seconds) = (convert::user(link), convert::grace_seconds(removal));
        let Some(owner) = owner else {
            let message = v1::RemoveLinkedPodRequest {
                user,
                grace_seconds,
            };
            let answer = self.route(
                Manner::Once,
                deadline,
                message,
                |mut stub, request| async move { stub.remove_linked_pod(request).await },
            );
            return Ok(answer.await?.removed);
        };
        let message = v1::RemoveLinkedPodWithIdRequest {
            user,
            pod_index: Some(owner.get()),
            grace_seconds,
        };
        let answer = self.route(
            Manner::Once,
            deadline,
            message,
            |mut stub, request| async move { stub.remove_linked_pod_with_id(request).await },
        );
        Ok(answer.await?.removed)
    }

    async fn pods(&self, service: &ServiceId, deadline: Tick) -> Result<Vec<PodRecord>> {
        let message = v1::GetServiceStateRequest {
            namespace: service.namespace.to_string(),
            service_name: service.service.to_string(),
        };
        let answer = self
            .route(
                Manner::Read,
                deadline,
                message,
                |mut stub, request| async move { stub.get_service_state(request).await },
            )
            .await?;
        answer.pods.into_iter().map(convert::record).collect()
    }

    async fn service_by_tag(
        &self,
        namespace: &Namespace,
        tag: &Tag,
        deadline: Tick,
    ) -> Result<Option<ServiceName>> {
        let message = v1::GetServiceNameByTagRequest {
            namespace: namespace.to_string(),
            tag: tag.to_string(),
        };
        let answer = self
            .route(
                Manner::Read,
                deadline,
                message,
                |mut stub, request| async move { stub.get_service_name_by_tag(request).await },
            )
            .await?;
        convert::service_name(answer.service_name)
    }

    async fn watch(&self, service: &ServiceId, deadline: Tick) -> Result<ChangeStream> {
        let message = v1::WatchRoutingStateRequest {
            namespace: service.namespace.to_string(),
            service_name: service.service.to_string(),
        };
        let told = self
            .route(
                Manner::Read,
                deadline,
                message,
                |mut stub, mut request| async move {
                    // The deadline is for the beginning of the stream, which has no end of its own.
                    request.metadata_mut().remove("grpc-timeout");
                    stub.watch_routing_state(request).await
                },
            )
            .await?;
        let changes = told.map(|told| told.ok().and_then(|told| convert::changes(told).ok()));
        let changes = changes.take_while(|told| std::future::ready(told.is_some()));
        Ok(changes.filter_map(std::future::ready).boxed())
    }

    async fn ready(&self, deadline: Tick) -> Result<()> {
        if self.check_health(deadline).await? {
            return Ok(());
        }
        let text = "the peer says that it cannot answer";
        let error = crate::error::Error::new(crate::error::ErrorKind::PeerUnavailable, text);
        Err(error)
    }

    fn conditions(&self) -> Vec<(String, Condition)> {
        Self::conditions(self)
    }
}
