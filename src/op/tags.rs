//! Operations on tags, on the state of whole services, and on the store itself.

use std::time::Duration;

use super::Keys;
use crate::id::{Namespace, ServiceId, ServiceName, Tag};
use crate::route::state::WorkloadState;

/// Writes the state of the whole service. It lasts for `ttl`, so that a workload that no pod keeps
/// up disappears instead of staying ready for ever.
#[derive(Debug, Clone)]
pub struct SetWorkload {
    /// The service.
    pub service: ServiceId,
    /// Its state.
    pub workload: WorkloadState,
    /// How long it lasts.
    pub ttl: Duration,
}

/// The state of the whole service, if a pod keeps it up.
#[derive(Debug, Clone)]
pub struct GetWorkload {
    /// The service.
    pub service: ServiceId,
}

/// Makes a tag stand for a service, also if it stood for another; the reply is whether it does
/// now.
#[derive(Debug, Clone)]
pub struct SetTag {
    /// The namespace.
    pub namespace: Namespace,
    /// The tag.
    pub tag: Tag,
    /// The service.
    pub service: ServiceName,
}

/// The service that a tag stands for, or `None`.
#[derive(Debug, Clone)]
pub struct GetTag {
    /// The namespace.
    pub namespace: Namespace,
    /// The tag.
    pub tag: Tag,
}

/// Asks for a sign of life.
#[derive(Debug, Clone, Copy)]
pub struct Ping;

impl SetWorkload {
    pub(super) fn touches(&self) -> Keys<'_> {
        Keys::Workload(&self.service)
    }
}

impl GetWorkload {
    pub(super) fn touches(&self) -> Keys<'_> {
        Keys::Workload(&self.service)
    }
}

impl SetTag {
    pub(super) fn touches(&self) -> Keys<'_> {
        Keys::Tag(&self.namespace, &self.tag)
    }
}

impl GetTag {
    pub(super) fn touches(&self) -> Keys<'_> {
        Keys::Tag(&self.namespace, &self.tag)
    }
}

impl Ping {
    #[expect(
        clippy::unused_self,
        reason = "every operation says whose keys it touches"
    )]
    pub(super) fn touches(&self) -> Keys<'_> {
        Keys::None
    }
}
