//! The links of a pod: made its own, and released.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Phase, ServerDriver, Shared};
use crate::clock::Tick;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{LinkId, Namespace, PodIndex, invalid, shown};
use crate::route::link::{Persist, Removal};
use crate::rpc::LinkOperations;

impl ServerDriver {
    /// Links the user to `pod`, whatever was there. Returns the previous owner.
    ///
    /// # Errors
    /// `LeaseLost` if `pod` is this one and its lease is over; what the store failed with.
    pub async fn set_linked_pod(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<Option<PodIndex>> {
        if let Some(peer) = self.shared.peer(&link.service.namespace)? {
            self.shared.is_open("set_linked_pod")?;
            return peer.set(link, pod, persist, deadline).await;
        }
        let lease = self.shared.may_act(pod, "set_linked_pod")?;
        let executor = &self.shared.executor;
        let work = executor.set(link, pod, persist, deadline);
        let previous = self.shared.observe("set_linked_pod", work).await?;
        self.shared.note(link, pod, persist, lease);
        Ok(previous)
    }

    /// Links the user to `pod` unless somebody else has a right to the user. `made` says whether
    /// `pod` has the link now, and who has it.
    ///
    /// # Errors
    /// `LeaseLost` if `pod` is this one and its lease is over; what the store failed with.
    pub async fn try_set_linked_pod(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<(bool, PodIndex)> {
        if let Some(peer) = self.shared.peer(&link.service.namespace)? {
            self.shared.is_open("try_set_linked_pod")?;
            return peer.try_set(link, pod, persist, deadline).await;
        }
        let lease = self.shared.may_act(pod, "try_set_linked_pod")?;
        let executor = &self.shared.executor;
        let work = executor.try_set(link, pod, persist, deadline);
        let placed = self.shared.observe("try_set_linked_pod", work).await?;
        if placed.made {
            self.shared.note(link, pod, persist, lease);
        } else {
            self.shared.owned().remove(link);
        }
        Ok((placed.made, placed.link.pod))
    }

    /// Removes the link if this pod owns it; it stays as a hint for `link_grace`.
    ///
    /// # Errors
    /// `InvalidParameter` for a link of another namespace, where this pod owns nobody; what the
    /// store failed with.
    pub async fn remove_linked_pod(&self, link: &LinkId, deadline: Tick) -> Result<bool> {
        let (own, given) = (&self.shared.info.service.namespace, &link.service.namespace);
        if own != given {
            let allowed = format!(
                "this pod's own, {own}: it owns nobody elsewhere; name the owner with \
                 remove_linked_pod_with_id"
            );
            return Err(invalid("namespace", &shown(given.as_str()), &allowed));
        }
        let removal = self.shared.grace();
        let pod = self.shared.info.pod;
        self.remove("remove_linked_pod", link, pod, removal, deadline)
            .await
    }

    /// Removes the link if `owner` owns it.
    ///
    /// # Errors
    /// What the store failed with.
    pub async fn remove_linked_pod_with_id(
        &self,
        link: &LinkId,
        owner: PodIndex,
        removal: Removal,
        deadline: Tick,
    ) -> Result<bool> {
        self.remove("remove_linked_pod_with_id", link, owner, removal, deadline)
            .await
    }

    async fn remove(
        &self,
        name: &'static str,
        link: &LinkId,
        owner: PodIndex,
        removal: Removal,
        deadline: Tick,
    ) -> Result<bool> {
        // Releasing needs no lease: it only gives away.
        self.shared.is_open("remove_linked_pod")?;
        if let Some(peer) = self.shared.peer(&link.service.namespace)? {
            return peer.remove(link, Some(owner), removal, deadline).await;
        }
        let executor = &self.shared.executor;
        let work = executor.remove(link, Some(owner), removal, deadline);
        let removed = self.shared.observe(name, work).await?;
        if owner == self.shared.info.pod {
            // Removed, or somebody else's: not this pod's in either case.
            self.shared.owned().remove(link);
        }
        Ok(removed.done)
    }
}

impl Shared {
    /// Whom to ask about a namespace; `None`: the pod's own store.
    pub(super) fn peer(&self, namespace: &Namespace) -> Result<Option<&Arc<dyn LinkOperations>>> {
        crate::driver::peer_of(&self.info.service.namespace, namespace, &self.peers)
    }

    /// How a link of this pod is released.
    pub(super) fn grace(&self) -> Removal {
        match self.config.link_grace {
            grace if grace.is_zero() => Removal::Now,
            grace => Removal::Grace(grace),
        }
    }

    fn is_open(&self, operation: &'static str) -> Result<()> {
        match self.lock().phase {
            phase @ (Phase::Stopped | Phase::Superseded) => Err(phase.refuses(operation)),
            _ => Ok(()),
        }
    }

    /// A pod whose lease is over may have been replaced: it must not take users. Returns the
    /// number of the lease under which the pod acts.
    fn may_act(&self, pod: PodIndex, operation: &'static str) -> Result<u64> {
        self.is_open(operation)?;
        let lapsed = self.lock().phase.renews() && !self.holds_lease();
        if lapsed && pod == self.info.pod {
            let text = "this pod's lease is over; it must be renewed before it may take users";
            return Err(Error::new(ErrorKind::LeaseLost, text)
                .during(operation)
                .with("pod", pod)
                .retryable());
        }
        Ok(self.lease_number())
    }

    /// Remembers the users that the pod has made its own. One that was asked for under a lease
    /// that was lost meanwhile is not.
    fn note(&self, link: &LinkId, pod: PodIndex, persist: Persist, lease: u64) {
        let ours = pod == self.info.pod && link.service == self.info.service;
        let mut owned = self.owned();
        if ours && persist == Persist::Forever && lease == self.lease_number() {
            owned.insert(link.clone());
        } else {
            owned.remove(link);
        }
    }

    /// Rises whenever a lease is lost.
    pub(super) fn lease_number(&self) -> u64 {
        self.stats.leases_lost.load(Ordering::SeqCst)
    }
}
