//! A peer whose calls are counted and timed.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;

use super::client::Condition;
use super::{Believed, ChangeStream, LinkOperations, Source, UsersByPod};
use crate::clock::{Clock, Tick};
use crate::error::Result;
use crate::id::{LinkId, Namespace, PodIndex, ServiceId, ServiceName, Tag, Uid};
use crate::route::link::{Persist, Removal};
use crate::route::state::PodRecord;
use crate::telemetry::{Gauges, Metrics, MetricsSnapshot, PeerStats, names};

/// Counts and times every call of the peer within, repetitions as one.
#[derive(Debug)]
pub struct ObservedPeer {
    namespace: Namespace,
    peer: Arc<dyn LinkOperations>,
    clock: Clock,
    stats: Arc<PeerStats>,
}

impl ObservedPeer {
    /// The same peer, watched; `metrics` reports what is seen.
    #[must_use]
    pub fn new(
        namespace: &Namespace,
        peer: Arc<dyn LinkOperations>,
        clock: Clock,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let observed = Arc::new(Self {
            namespace: namespace.clone(),
            peer,
            clock,
            stats: Arc::new(PeerStats::new(namespace.as_str())),
        });
        metrics.join(Arc::clone(&observed.stats) as Arc<dyn crate::telemetry::MetricSource>);
        let gauges = Arc::downgrade(&observed);
        metrics.watch(gauges);
        observed
    }

    async fn call<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.stats.calls.observe(method, &self.clock, call).await
    }
}

impl Gauges for ObservedPeer {
    fn report(&self, sheet: &mut MetricsSnapshot) {
        for (endpoint, now) in self.peer.conditions() {
            for condition in Condition::ALL {
                let labels = [self.namespace.as_str(), &endpoint, condition.as_str()];
                let is = f64::from(u8::from(condition == now));
                sheet.level(&names::PEER_ENDPOINTS, &labels, is);
            }
        }
    }
}

#[async_trait]
impl LinkOperations for ObservedPeer {
    async fn compute(&self, link: &LinkId, deadline: Tick) -> Result<Believed> {
        let call = self.peer.compute(link, deadline);
        self.call("compute", call).await
    }

    async fn get(&self, link: &LinkId, from: Source, deadline: Tick) -> Result<Option<Believed>> {
        let call = self.peer.get(link, from, deadline);
        self.call("get", call).await
    }

    async fn batch_get(
        &self,
        service: &ServiceId,
        uids: Vec<Uid>,
        deadline: Tick,
    ) -> Result<UsersByPod> {
        let call = self.peer.batch_get(service, uids, deadline);
        self.call("batch_get", call).await
    }

    async fn services(
        &self,
        namespace: &Namespace,
        uid: &Uid,
        deadline: Tick,
    ) -> Result<BTreeMap<ServiceName, PodIndex>> {
        let call = self.peer.services(namespace, uid, deadline);
        self.call("services", call).await
    }

    async fn set_if_absent(
        &self,
        link: &LinkId,
        pod: PodIndex,
        deadline: Tick,
    ) -> Result<Believed> {
        let call = self.peer.set_if_absent(link, pod, deadline);
        self.call("set_if_absent", call).await
    }

    async fn set(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<Option<PodIndex>> {
        let call = self.peer.set(link, pod, persist, deadline);
        self.call("set", call).await
    }

    async fn try_set(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<(bool, PodIndex)> {
        let call = self.peer.try_set(link, pod, persist, deadline);
        self.call("try_set", call).await
    }

    async fn remove(
        &self,
        link: &LinkId,
        owner: Option<PodIndex>,
        removal: Removal,
        deadline: Tick,
    ) -> Result<bool> {
        let call = self.peer.remove(link, owner, removal, deadline);
        self.call("remove", call).await
    }

    async fn pods(&self, service: &ServiceId, deadline: Tick) -> Result<Vec<PodRecord>> {
        let call = self.peer.pods(service, deadline);
        self.call("pods", call).await
    }

    async fn service_by_tag(
        &self,
        namespace: &Namespace,
        tag: &Tag,
        deadline: Tick,
    ) -> Result<Option<ServiceName>> {
        let call = self.peer.service_by_tag(namespace, tag, deadline);
        self.call("service_by_tag", call).await
    }

    async fn watch(&self, service: &ServiceId, deadline: Tick) -> Result<ChangeStream> {
        let call = self.peer.watch(service, deadline);
        self.call("watch", call).await
    }

    async fn ready(&self, deadline: Tick) -> Result<()> {
        let call = self.peer.ready(deadline);
        self.call("ready", call).await
    }

    fn conditions(&self) -> Vec<(String, Condition)> {
        self.peer.conditions()
    }
}
