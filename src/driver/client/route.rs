//! route: a user's pod, who owns the user there, and how the pod is reached.

use std::sync::Arc;

use super::caller::Routed;
use super::{ClientDriver, ClientShared};
use crate::clock::Tick;
use crate::error::Result;
use crate::id::{LinkId, PodIndex, ServiceId};
use crate::op::OperationName;
use crate::route::link::Holder;
use crate::route::state::PodState;

/// What a gateway needs to send a user's request.
#[derive(Debug, Clone)]
pub struct Route {
    /// The pod.
    pub pod: PodIndex,
    /// Its process that owns the user, and the token by which it does; `None` for a hint.
    pub holder: Option<Holder>,
    /// Where the pod is reached.
    pub address: String,
    /// What the pod published last; `None`: that is not known.
    pub state: Option<Arc<PodState>>,
    /// Whether the cache had the answer.
    pub from_cache: bool,
}

impl ClientDriver {
    /// Finds or makes the user's link like `compute_linked_pod`, and says who owns the user and how
    /// the pod is reached.
    ///
    /// # Errors
    /// Those of `compute_linked_pod`.
    pub async fn route(&self, link: LinkId, deadline: Tick) -> Result<Route> {
        let (id, uid) = (link.service.clone(), link.uid.as_str());
        let (namespace, service) = (id.namespace.as_str(), id.service.as_str());
        if let Some(route) = self.route_cached(namespace, uid, service) {
            return Ok(route);
        }
        let work = async {
            let target = self.shared.target(link.clone())?;
            let routed = self.compute(link, deadline).await?;
            let view = target.known.watched.unused();
            let state = view.as_ref().and_then(|view| view.state(routed.pod));
            Ok(self.shared.describe(&id, routed, state))
        };
        self.observe(OperationName::Route, work).await
    }
}

impl ClientShared {
    /// A route to this pod.
    pub(super) fn describe(
        &self,
        service: &ServiceId,
        routed: Routed,
        state: Option<&Arc<PodState>>,
    ) -> Route {
        let template = &self.config.address_template;
        Route {
            pod: routed.pod,
            holder: routed.holder,
            address: template.address(service, routed.pod, state.map(Arc::as_ref)),
            state: state.cloned(),
            from_cache: routed.from_cache,
        }
    }
}
