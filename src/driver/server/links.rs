//! The links of a pod: made its own, and released.

use std::sync::atomic::Ordering;

use super::{Phase, ServerDriver, ServerShared};
use crate::clock::Tick;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{LinkId, PodIndex, invalid, shown};
use crate::namespace::Home;
use crate::op::{OperationName, Remove, Set, TrySet};
use crate::route::link::{Persist, Removal};

impl ServerDriver {
    /// Links the user to `pod` unconditionally. Returns the previous owner.
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
        let work = self.set(link, pod, persist, deadline);
        self.shared.observe(OperationName::SetLinkedPod, work).await
    }

    /// Links the user to `pod` unless another pod has a right to the user. Returns whether `pod` has
    /// the link now, and which pod has it.
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
        let work = self.try_set(link, pod, persist, deadline);
        let name = OperationName::TrySetLinkedPod;
        self.shared.observe(name, work).await
    }

    /// Removes the link if this pod owns it; it stays as a hint for `link_grace`.
    ///
    /// # Errors
    /// `InvalidParameter` for a link of another namespace, where this pod owns no user; what the
    /// store failed with.
    pub async fn remove_linked_pod(&self, link: &LinkId, deadline: Tick) -> Result<bool> {
        let work = self.remove_own(link, deadline);
        let name = OperationName::RemoveLinkedPod;
        self.shared.observe(name, work).await
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
        let work = self.remove(link, owner, removal, deadline);
        let name = OperationName::RemoveLinkedPodWithId;
        self.shared.observe(name, work).await
    }

    async fn set(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<Option<PodIndex>> {
        let (home, lease) = (self.shared.home(link)?, self.shared.may_act(link, pod)?);
        let set = Set {
            link: link.clone(),
            pod,
            persist,
        };
        let previous = home.ask(set, deadline).await?;
        self.shared.note(link, pod, persist, lease);
        Ok(previous)
    }

    async fn try_set(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<(bool, PodIndex)> {
        let (home, lease) = (self.shared.home(link)?, self.shared.may_act(link, pod)?);
        let set = TrySet {
            link: link.clone(),
            pod,
            persist,
        };
        let placed = home.ask(set, deadline).await?;
        if placed.made {
            self.shared.note(link, pod, persist, lease);
        } else {
            self.shared.owned().remove(link);
        }
        Ok((placed.made, placed.link.pod))
    }

    async fn remove_own(&self, link: &LinkId, deadline: Tick) -> Result<bool> {
        let (own, given) = (self.shared.homes.own(), &link.service.namespace);
        if own != given {
            let allowed = format!(
                "this pod's own, {own}: it owns no user elsewhere; name the owner with \
                 remove_linked_pod_with_id"
            );
            return Err(invalid("namespace", &shown(given.as_str()), &allowed));
        }
        let (pod, removal) = (self.shared.info.pod, self.shared.grace());
        self.remove(link, pod, removal, deadline).await
    }

    async fn remove(
        &self,
        link: &LinkId,
        owner: PodIndex,
        removal: Removal,
        deadline: Tick,
    ) -> Result<bool> {
        // Releasing needs no lease: it only gives away.
        self.shared.is_open()?;
        let remove = Remove {
            link: link.clone(),
            owner: Some(owner),
            removal,
        };
        let removed = self.shared.home(link)?.ask(remove, deadline).await?;
        if owner == self.shared.info.pod {
            // Removed, or another pod's: not this pod's in either case. What it owns is of its own
            // service, so a link elsewhere is not there.
            self.shared.owned().remove(link);
        }
        Ok(removed.done)
    }
}

impl ServerShared {
    /// Where the operations on this link are sent.
    fn home(&self, link: &LinkId) -> Result<&Home> {
        self.homes.get(&link.service.namespace)
    }

    /// How a link of this pod is released.
    pub(super) fn grace(&self) -> Removal {
        match self.config.link_grace {
            grace if grace.is_zero() => Removal::Now,
            grace => Removal::Grace(grace),
        }
    }

    fn is_open(&self) -> Result<()> {
        match self.lock().phase {
            phase @ (Phase::Stopped | Phase::Superseded) => Err(phase.refuses()),
            _ => Ok(()),
        }
    }

    /// A pod whose lease is over may have been replaced: it must not take users of its own
    /// namespace. Returns the number of the lease under which the pod acts.
    fn may_act(&self, link: &LinkId, pod: PodIndex) -> Result<u64> {
        self.is_open()?;
        let ours = pod == self.info.pod && link.service.namespace == self.info.service.namespace;
        if ours && self.lock().phase.renews() && !self.holds_lease() {
            let text = "this pod's lease is over; it must be renewed before it may take users";
            return Err(Error::new(ErrorKind::LeaseLost, text)
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
