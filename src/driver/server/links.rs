//! The links of a pod: made its own, and released.

use std::sync::atomic::Ordering;

use super::{Phase, ServerDriver, ServerShared};
use crate::clock::Tick;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{LinkId, PodIndex, invalid, shown};
use crate::namespace::Home;
use crate::op::{Call, OperationName, Remove, Removed, Reply, Set, TrySet};
use crate::route::link::{Persist, Placed, Removal};

impl ServerDriver {
    /// Does an operation on a link as this pod: `Set`, `TrySet` or `Remove`. It is counted under
    /// this name.
    ///
    /// # Errors
    /// `LeaseLost` if the link shall name this pod and its lease is over; `Closed` after `stop`;
    /// what the store failed with; `Internal` for an operation that a pod does not do.
    pub async fn call(&self, name: OperationName, call: Call, deadline: Tick) -> Result<Reply> {
        let work = async {
            match call {
                Call::Set(set) => self.set(set, deadline).await.map(Reply::Set),
                Call::TrySet(set) => self.try_set(set, deadline).await.map(Reply::TrySet),
                Call::Remove(remove) => self.remove(remove, deadline).await.map(Reply::Remove),
                other => {
                    let text = "a pod does not do this operation";
                    Err(Error::new(ErrorKind::Internal, text).in_call(other.name()))
                }
            }
        };
        self.shared.observe(name, work).await
    }

    /// Removes the link if this pod owns it; it stays as a hint for `link_grace`.
    ///
    /// # Errors
    /// `InvalidParameter` for a link of another namespace, where this pod owns no user; what the
    /// store failed with.
    pub async fn remove_linked_pod(&self, link: LinkId, deadline: Tick) -> Result<bool> {
        let name = OperationName::RemoveLinkedPod;
        self.shared
            .observe(name, self.remove_own(link, deadline))
            .await
    }

    async fn set(&self, set: Set, deadline: Tick) -> Result<Option<PodIndex>> {
        let Set { link, pod, persist } = set.clone();
        let (home, lease) = (self.shared.home(&link)?, self.shared.may_act(&link, pod)?);
        let previous = home.ask(set, deadline).await?;
        self.shared.note(&link, pod, persist, lease);
        Ok(previous)
    }

    async fn try_set(&self, set: TrySet, deadline: Tick) -> Result<Placed> {
        let TrySet { link, pod, persist } = set.clone();
        let (home, lease) = (self.shared.home(&link)?, self.shared.may_act(&link, pod)?);
        let placed = home.ask(set, deadline).await?;
        if placed.made {
            self.shared.note(&link, pod, persist, lease);
        } else {
            self.shared.owned().remove(&link);
        }
        Ok(placed)
    }

    async fn remove_own(&self, link: LinkId, deadline: Tick) -> Result<bool> {
        let (own, given) = (self.shared.homes.own(), &link.service.namespace);
        if own != given {
            let allowed = format!(
                "this pod's own, {own}: it owns no user elsewhere; name the owner with \
                 remove_linked_pod_with_id"
            );
            return Err(invalid("namespace", &shown(given.as_str()), &allowed));
        }
        let remove = Remove {
            link,
            owner: Some(self.shared.info.pod),
            removal: self.shared.grace(),
        };
        Ok(self.remove(remove, deadline).await?.done)
    }

    async fn remove(&self, remove: Remove, deadline: Tick) -> Result<Removed> {
        // Releasing needs no lease: it only gives away.
        self.shared.is_open()?;
        let (link, owner) = (remove.link.clone(), remove.owner);
        let removed = self.shared.home(&link)?.ask(remove, deadline).await?;
        if owner.is_none_or(|owner| owner == self.shared.info.pod) {
            // Removed, or another pod's: not this pod's in either case. What it owns is of its own
            // service, so a link elsewhere is not there.
            self.shared.owned().remove(&link);
        }
        Ok(removed)
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
