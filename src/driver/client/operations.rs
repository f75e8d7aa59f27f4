//! The link operations as programs ask for them: each is counted and timed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{ClientDriver, Routed};
use crate::clock::Tick;
use crate::error::Result;
use crate::id::{LinkId, Namespace, PodIndex, ServiceId, ServiceName, Uid};
use crate::op::{LinkSource, OperationName};
use crate::route::link::StoredLink;
use crate::telemetry::count;

impl ClientDriver {
    /// Finds or makes the user's link and returns a pod that may serve the user.
    ///
    /// # Errors
    /// `NoRoutablePod` if no pod can take the user; what the store failed with; `Timeout`.
    pub async fn compute_linked_pod(&self, link: LinkId, deadline: Tick) -> Result<PodIndex> {
        let (id, uid) = (&link.service, link.uid.as_str());
        if let Some(pod) = self.compute_cached(id.namespace.as_str(), uid, id.service.as_str()) {
            return Ok(pod);
        }
        let work = self.compute(link, deadline);
        let routed = self.observe(OperationName::ComputeLinkedPod, work).await;
        routed.map(|routed| routed.pod)
    }

    /// The same, with the owner of the user. What the cache has is not looked up here.
    ///
    /// # Errors
    /// Those of `compute_linked_pod`.
    pub async fn compute_link(&self, link: LinkId, deadline: Tick) -> Result<Routed> {
        let (id, uid) = (&link.service, link.uid.as_str());
        if let Some(routed) = self.routed_cached(id.namespace.as_str(), uid, id.service.as_str()) {
            return Ok(routed);
        }
        let work = self.compute(link, deadline);
        self.observe(OperationName::ComputeLinkedPod, work).await
    }

    /// The link, from the cache if it is there, else from the store; the cache keeps it.
    ///
    /// # Errors
    /// What the store failed with; `Timeout`.
    pub async fn get_linked_pod(&self, link: LinkId, deadline: Tick) -> Result<Option<PodIndex>> {
        if let Some(pod) = self.cached(&link, OperationName::GetLinkedPod)? {
            return Ok(Some(pod));
        }
        count(&self.shared.stats.lookup_misses);
        let work = self.look_up(link, LinkSource::CacheOrStore, deadline);
        self.observe(OperationName::GetLinkedPod, work).await
    }

    /// The link from the cache, else from the store if it is persistent; the cache keeps it.
    ///
    /// # Errors
    /// What the store failed with; `Timeout`.
    pub async fn get_linked_pod_in_cache_or_if_persist(
        &self,
        link: LinkId,
        deadline: Tick,
    ) -> Result<Option<PodIndex>> {
        if let Some(pod) = self.cached(&link, OperationName::GetLinkedPodInCacheOrIfPersist)? {
            return Ok(Some(pod));
        }
        count(&self.shared.stats.lookup_misses);
        let work = self.look_up(link, LinkSource::CacheOrPersistent, deadline);
        self.observe(OperationName::GetLinkedPodInCacheOrIfPersist, work)
            .await
    }

    /// The link from the store; the cache is neither asked nor changed.
    ///
    /// # Errors
    /// What the store failed with; `Timeout`.
    pub async fn get_linked_pod_not_cache(
        &self,
        link: LinkId,
        deadline: Tick,
    ) -> Result<Option<StoredLink>> {
        let work = self.look_up_stored(link, deadline);
        self.observe(OperationName::GetLinkedPodNotCache, work)
            .await
    }

    /// The services to which the user has persistent links, with the pods.
    ///
    /// # Errors
    /// What the store failed with; `Timeout`.
    pub async fn get_link_service(
        &self,
        namespace: &Namespace,
        uid: &Uid,
        deadline: Tick,
    ) -> Result<BTreeMap<ServiceName, PodIndex>> {
        let work = self.look_up_services(namespace, uid, deadline);
        self.observe(OperationName::GetLinkService, work).await
    }

    /// The pods of many users, in their order. The cache is neither asked nor changed.
    ///
    /// # Errors
    /// What the store failed with; `Timeout`.
    pub async fn batch_get_linked_pod(
        &self,
        service: &ServiceId,
        uids: Arc<[Uid]>,
        deadline: Tick,
    ) -> Result<Vec<Option<PodIndex>>> {
        let work = self.look_up_many(service, uids, deadline);
        self.observe(OperationName::BatchGetLinkedPod, work).await
    }

    /// Links the user to `pod` unless there is a link; returns the owner, which may be another pod.
    ///
    /// # Errors
    /// What the store failed with; `Timeout`.
    pub async fn set_linked_pod_if_absent(
        &self,
        link: LinkId,
        pod: PodIndex,
        deadline: Tick,
    ) -> Result<PodIndex> {
        let work = self.link_if_absent(link, pod, deadline);
        self.observe(OperationName::SetLinkedPodIfAbsent, work)
            .await
    }

    /// The pod in the cache. A lookup that a closed driver refuses is counted like every other.
    fn cached(&self, link: &LinkId, name: OperationName) -> Result<Option<PodIndex>> {
        let cached = self.get_linked_in_cache(link.clone());
        cached.map_err(|error| {
            let error = error.during(name);
            let refused: Result<()> = Err(error.clone());
            let operations = &self.shared.stats.operations;
            operations.ended(name.as_str(), Duration::ZERO, &refused);
            error
        })
    }

    pub(super) async fn observe<T>(
        &self,
        name: OperationName,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let shared = &self.shared;
        let operations = &shared.stats.operations;
        let done = operations.observe(name.as_str(), &shared.clock, work).await;
        done.map_err(|error| error.during(name))
    }
}
