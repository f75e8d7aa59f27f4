//! How a compute that the hot path did not answer goes on.

use std::sync::Arc;

use super::caller::{Caller, Routed};
use super::{ClientShared, Target};
use crate::clock::Tick;
use crate::driver::view::View;
use crate::error::Result;
use crate::id::PodIndex;
use crate::op::OperationName;
use crate::route::link::{Verdict, judge};
use crate::telemetry::count;

/// How a request is answered.
pub(super) enum Lookup {
    /// The cache has the answer by now.
    Cached(Routed),
    /// By one set-if-absent, with a pod chosen here.
    FastPath(Arc<View>),
    /// By the steps of `place.rs`.
    SlowPath,
}

impl ClientShared {
    /// Counts and times an answer of compute.
    pub(super) fn note_answer(&self, caller: &Caller, answer: &Result<Routed>) {
        if let Some(asked) = caller.asked() {
            let took = self.clock.now().since(asked);
            let operations = &self.stats.operations;
            let name = OperationName::ComputeLinkedPod;
            operations.ended(name.as_str(), took, answer);
        }
    }

    pub(super) fn look_up(&self, target: &Target, traced: bool, now: Tick) -> Lookup {
        let view = target.known.watched.current(now);
        let view = view.as_ref().and_then(|view| view.as_ref());
        let entry = self.cache.get(target.key, now);
        if let (Some(view), Some(entry)) = (view, entry)
            && view.keeps(entry.pod, entry.incarnation, now)
        {
            return Lookup::Cached(Routed::cached(&entry));
        }
        // A cached link whose pod is doubtful has to be examined, and a hint whose pod refused the
        // user replaced; and a batch has no spans of its own for each user.
        let refused = !self.refusals.is_empty() && !self.refusals.of(target.key, now).is_empty();
        let examines = entry.is_some() || traced || refused;
        let asks = target.home.is_foreign() || self.chooser.is_some();
        match view {
            Some(view) if !examines && !asks => Lookup::FastPath(Arc::clone(view)),
            _ => Lookup::SlowPath,
        }
    }

    pub(super) fn choose(&self, target: &Target, view: &View, now: Tick) -> Option<PodIndex> {
        let (strategy, uid) = (self.config.strategy, target.link.uid.as_str());
        let chosen = target.known.watched.choose(view, strategy, uid, now)?;
        if view.degraded {
            count(&self.stats.degraded_choices);
        }
        Some(chosen)
    }

    /// Whether the owner serves, as far as is known now.
    pub(super) fn owner_serves(&self, target: &Target, owner: PodIndex, now: Tick) -> bool {
        let view = target.known.watched.current(now);
        let view = view.as_ref().and_then(|view| view.as_ref());
        view.is_some_and(|view| judge(view.standing(owner, now)) == Verdict::Keep)
    }
}
