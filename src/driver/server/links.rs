//! The module's own operations on links, as this pod does them.

use super::owned::OwnedUser;
use super::permit::Permit;
use super::{ServerDriver, ServerShared};
use crate::clock::Tick;
use crate::driver::writes;
use crate::error::{Error, ErrorKind, Result, WriteOutcome};
use crate::id::{LinkId, PodIndex, Token, invalid, shown};
use crate::namespace::Home;
use crate::op::{
    Call, OperationName, Remove, Removed, Reply, Rewrite, Set, StoredUser, Swap, Swapped, TrySet,
};
use crate::route::link::{Life, Owner, Persist, Placed, Removal, StoredLink};

impl ServerDriver {
    /// Does an operation on a link as this pod: `Set`, `TrySet` or `Remove`. It is counted under
    /// this name.
    ///
    /// # Errors
    /// `IllegalState` before the start, `LeaseLost` while the lease is over, `Closed` after `stop`:
    /// then nothing was sent. `PodNotAvailable` for a user that this pod would take although it
    /// takes none. What the store failed with; `Internal` for an operation that a pod does not do.
    pub async fn call(&self, name: OperationName, call: Call, deadline: Tick) -> Result<Reply> {
        let shared = &self.shared;
        let work = async {
            match call {
                Call::Set(set) => shared.set(set, deadline).await.map(Reply::Set),
                Call::TrySet(set) => shared.try_set(set, deadline).await.map(Reply::TrySet),
                Call::Remove(remove) => shared.remove(remove, deadline).await.map(Reply::Remove),
                other => {
                    let text = "a pod does not do this operation";
                    Err(Error::new(ErrorKind::Internal, text).in_call(other.name()))
                }
            }
        };
        shared.observe(name, work).await
    }

    /// Releases the user if this process owns it. As long as the pod takes users the link stays as
    /// a hint for `link_grace`.
    ///
    /// # Errors
    /// `InvalidParameter` for a link of another namespace, where this pod owns no user; as
    /// [`ServerDriver::call`].
    pub async fn remove_linked_pod(&self, link: LinkId, deadline: Tick) -> Result<bool> {
        let shared = &self.shared;
        let name = OperationName::RemoveLinkedPod;
        shared
            .observe(name, shared.remove_own(link, deadline))
            .await
    }
}

impl ServerShared {
    async fn set(&self, set: Set, deadline: Tick) -> Result<Option<PodIndex>> {
        let permit = self.permit()?;
        match self.home(&set.link)? {
            Home::Foreign(_) => self.ask_home(permit, set, deadline).await,
            Home::Own(_) if self.is_ours(&set.link, set.pod) => match set.persist {
                Persist::Forever => self.take_over(&set.link, deadline).await,
                Persist::For(_) => self.overwrite(set, deadline).await,
            },
            Home::Own(_) => self.overwrite(set, deadline).await,
        }
    }

    async fn try_set(&self, set: TrySet, deadline: Tick) -> Result<Placed> {
        let permit = self.permit()?;
        if !self.is_ours(&set.link, set.pod) || set.persist != Persist::Forever {
            return self.ask_home(permit, set, deadline).await;
        }
        // With a claim that is refused, the owner is the answer.
        let persistent = |pod| StoredLink::unowned(pod, Life::Persistent);
        let claimed = self.try_claim(&set.link, Token::NONE, deadline).await?;
        Ok(match claimed {
            Ok(ownership) => Placed {
                link: persistent(ownership.owner.pod),
                made: true,
            },
            Err(refused) => Placed {
                link: persistent(refused.owner),
                made: false,
            },
        })
    }

    async fn remove_own(&self, link: LinkId, deadline: Tick) -> Result<bool> {
        let (own, given) = (self.homes.own(), &link.service.namespace);
        if own != given {
            let allowed = format!(
                "this pod's own, {own}: it owns no user elsewhere; name the owner with \
                 remove_linked_pod_with_id"
            );
            return Err(invalid("namespace", &shown(given.as_str()), &allowed));
        }
        self.is_own(&link)?;
        let remove = Remove {
            owner: Some(self.info.pod),
            removal: self.grace(),
            link,
        };
        Ok(self.remove(remove, deadline).await?.done)
    }

    async fn remove(&self, remove: Remove, deadline: Tick) -> Result<Removed> {
        let permit = self.permit()?;
        let store = match self.home(&remove.link)? {
            Home::Foreign(_) => return self.ask_home(permit, remove, deadline).await,
            Home::Own(store) => store,
        };
        let ours = remove.owner == Some(self.info.pod) && remove.link.service == self.info.service;
        if ours {
            return self.remove_ours(remove, deadline).await;
        }
        let removed = writes::remove(&**store, &remove, deadline.min(permit.until)).await;
        removed.map_err(|error| self.failed_under(permit, error))
    }

    /// Releases a user of this pod: exactly what this process owns, or a link to this pod that no
    /// later process owns.
    async fn remove_ours(&self, remove: Remove, deadline: Tick) -> Result<Removed> {
        let Remove { link, removal, .. } = remove;
        let _turn = self.enter(&link, deadline).await?;
        let permit = self.permit()?;
        let removal = self.removal(Some(removal));
        if let Some(held) = self.owned.held(&link.uid) {
            let done = self
                .release_held(&link, held.token, removal, permit, deadline)
                .await?;
            let previous = done.then_some(self.info.pod);
            return Ok(Removed { previous, done });
        }
        loop {
            let found = self.read(permit, &link, deadline).await?.readable()?;
            let previous = found.link.map(|link| link.pod);
            if previous != Some(self.info.pod) || !self.precedes(&found, permit) {
                return Ok(Removed {
                    previous,
                    done: false,
                });
            }
            let to = writes::after_removal(self.info.pod, removal);
            if self.swap(permit, &link, found, to, deadline).await?.done {
                return Ok(Removed {
                    previous,
                    done: true,
                });
            }
        }
    }

    /// Makes the user this process's own whichever pod has it; returns the previous owner.
    async fn take_over(&self, link: &LinkId, deadline: Tick) -> Result<Option<PodIndex>> {
        let _turn = self.enter(link, deadline).await?;
        let permit = self.permit_to_take()?;
        let above = self.above(link);
        loop {
            let found = self.read(permit, link, deadline).await?;
            let previous = found.link.map(|link| link.pod);
            if let Some(held) = self.owned.get(link.uid.as_str())
                && found.is_owned_by(self.owner(held))
            {
                return Ok(previous);
            }
            if !self.precedes(&found, permit)
                && let Some(record) = found.record
                && record.pod == self.info.pod
            {
                return Err(self.replaced(record.incarnation));
            }
            let to = Rewrite::Owned {
                pod: self.info.pod,
                incarnation: permit.incarnation,
                above,
            };
            let swapped = self.swap(permit, link, found, to, deadline).await?;
            if let Some((token, previous_token)) = swapped.token {
                self.take_up(link, token, previous_token, permit, deadline)?;
                self.flights.claimed(&link.uid);
                return Ok(previous);
            }
        }
    }

    /// Links the user to a pod without an owner, whichever pod has it; returns the previous owner.
    async fn overwrite(&self, set: Set, deadline: Tick) -> Result<Option<PodIndex>> {
        let link = &set.link;
        let _turn = self.enter(link, deadline).await?;
        let permit = self.permit()?;
        let to = Rewrite::Link(set.pod, set.persist);
        let own_service = link.service == self.info.service;
        let held = self.owned.held(&link.uid).filter(|_| own_service);
        if let Some(held) = held
            && self
                .give_away(link, held.token, to, permit, deadline)
                .await?
        {
            return Ok(Some(self.info.pod));
        }
        loop {
            let found = self.read(permit, link, deadline).await?;
            let previous = found.link.map(|link| link.pod);
            if own_service && !self.precedes(&found, permit) {
                let by = found.record.map(|record| record.incarnation);
                return Err(self.replaced(by.unwrap_or(permit.incarnation)));
            }
            if self.swap(permit, link, found, to, deadline).await?.done {
                return Ok(previous);
            }
        }
    }

    /// Whether no later process of this pod owns the user.
    fn precedes(&self, found: &StoredUser, permit: Permit) -> bool {
        let record = found.record.filter(|record| record.pod == self.info.pod);
        record.is_none_or(|record| record.incarnation <= permit.incarnation)
    }

    fn owner(&self, held: OwnedUser) -> Owner {
        Owner {
            pod: self.info.pod,
            incarnation: held.incarnation,
            token: held.token,
        }
    }

    async fn read(&self, permit: Permit, link: &LinkId, deadline: Tick) -> Result<StoredUser> {
        let until = deadline.min(permit.until);
        let found = writes::read(&*self.store, link, until).await;
        found.map_err(|error| self.failed_under(permit, error))
    }

    async fn swap(
        &self,
        permit: Permit,
        link: &LinkId,
        found: StoredUser,
        to: Rewrite,
        deadline: Tick,
    ) -> Result<Swapped> {
        let own = found.record.filter(|record| record.pod == self.info.pod);
        let swap = Swap {
            link: link.clone(),
            found: Box::new(found),
            to,
        };
        let swapped = self.ask_under(permit, swap, deadline).await;
        if let (Err(error), Some(own)) = (&swapped, own)
            && error.outcome() != Some(WriteOutcome::NotSent)
        {
            self.flights.released_late(&link.uid, own.token);
        }
        swapped
    }

    /// Does an operation where the link's namespace is; it is not sent after the end of the lease.
    async fn ask_home<O: crate::op::Operation + HasLink>(
        &self,
        permit: Permit,
        operation: O,
        deadline: Tick,
    ) -> Result<O::Reply> {
        let home = self.home(operation.link())?;
        let asked = home.ask(operation, deadline.min(permit.until)).await;
        asked.map_err(|error| self.failed_under(permit, error))
    }

    /// Where the operations on this link are sent.
    fn home(&self, link: &LinkId) -> Result<&Home> {
        self.homes.get(&link.service.namespace)
    }

    fn is_ours(&self, link: &LinkId, pod: PodIndex) -> bool {
        pod == self.info.pod && link.service == self.info.service
    }

    /// How a link of this pod is released if nothing else is asked for.
    pub(super) fn grace(&self) -> Removal {
        match self.config.link_grace {
            grace if grace.is_zero() => Removal::Now,
            grace => Removal::Grace(grace),
        }
    }

    /// How a link of this pod is released now. A pod that takes no users leaves no hint: it would
    /// send the user back.
    pub(super) fn removal(&self, asked: Option<Removal>) -> Removal {
        match self.takes_users() {
            Ok(()) => asked.unwrap_or_else(|| self.grace()),
            Err(_) => Removal::Now,
        }
    }
}

/// An operation on one link.
trait HasLink {
    fn link(&self) -> &LinkId;
}

macro_rules! has_link {
    ($($operation:ident)+) => {
        $(impl HasLink for $operation {
            fn link(&self) -> &LinkId {
                &self.link
            }
        })+
    };
}

has_link!(Set TrySet Remove);
