//! A peer whose calls are counted and timed.

use std::sync::Arc;

use async_trait::async_trait;

use super::client::Condition;
use super::{ChangeStream, Peer};
use crate::clock::{Clock, Tick};
use crate::error::Result;
use crate::id::{Namespace, ServiceId};
use crate::op::{Call, CallName, Reply};
use crate::telemetry::{Gauges, MetricSource, Metrics, MetricsSnapshot, PeerStats, names};

/// Counts and times every call of the inner peer; retries count as one call.
#[derive(Debug)]
pub struct MeteredPeer {
    namespace: Namespace,
    peer: Arc<dyn Peer>,
    clock: Clock,
    stats: Arc<PeerStats>,
}

impl MeteredPeer {
    /// The same peer, metered; `metrics` reports what is counted.
    #[must_use]
    pub fn new(
        namespace: &Namespace,
        peer: Arc<dyn Peer>,
        clock: Clock,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let metered = Arc::new(Self {
            namespace: namespace.clone(),
            peer,
            clock,
            stats: Arc::new(PeerStats::new(namespace.as_str())),
        });
        metrics.join(Arc::clone(&metered.stats) as Arc<dyn MetricSource>);
        let gauges = Arc::downgrade(&metered);
        metrics.watch(gauges);
        metered
    }

    async fn measure<T>(&self, name: CallName, call: impl Future<Output = Result<T>>) -> Result<T> {
        let calls = &self.stats.calls;
        calls.observe(name.as_str(), &self.clock, call).await
    }
}

impl Gauges for MeteredPeer {
    fn report(&self, snapshot: &mut MetricsSnapshot) {
        for (endpoint, now) in self.peer.conditions() {
            for condition in Condition::ALL {
                let labels = [self.namespace.as_str(), &endpoint, condition.as_str()];
                let is = f64::from(u8::from(condition == now));
                snapshot.level(&names::PEER_ENDPOINTS, &labels, is);
            }
        }
    }
}

#[async_trait]
impl Peer for MeteredPeer {
    async fn call(&self, call: &Call, deadline: Tick) -> Result<Reply> {
        let work = self.peer.call(call, deadline);
        self.measure(call.name(), work).await
    }

    async fn watch(&self, service: &ServiceId, deadline: Tick) -> Result<ChangeStream> {
        let work = self.peer.watch(service, deadline);
        self.measure(CallName::Subscribe, work).await
    }

    fn conditions(&self) -> Vec<(String, Condition)> {
        self.peer.conditions()
    }
}
