//! Claims: a user becomes this process's own, and is given back.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::owned::{OwnedUser, Ownership};
use super::permit::Permit;
use super::{ServerDriver, ServerShared};
use crate::clock::Tick;
use crate::driver::{with_deadline, writes};
use crate::error::{Error, ErrorKind, Result, WriteOutcome};
use crate::id::{Incarnation, LinkId, PodIndex, Token};
use crate::op::{Claim, Claimed, OperationName, PodCertify, Rewrite, StoredUser, Swap};
use crate::route::link::{Certificate, Removal};
use crate::telemetry::count;

impl ServerDriver {
    /// Takes the user for this process. Repeated, it gives the same token, if that exceeds `above`.
    /// An owner that is dead is replaced.
    ///
    /// # Errors
    /// `NotOwner` if another pod holds the user; `LeaseLost` if the lease ended meanwhile: then the
    /// user is not owned, whatever the store answered; `PodNotAvailable` of a pod that takes no new
    /// users; what the store failed with.
    pub async fn claim(&self, link: LinkId, above: Token, deadline: Tick) -> Result<Ownership> {
        let name = OperationName::Claim;
        let work = self.shared.claim(&link, above, deadline);
        self.shared.observe(name, work).await
    }

    /// What this process holds of a user at this moment: no I/O.
    #[must_use]
    pub fn ownership(&self, link: &LinkId) -> Option<Ownership> {
        let shared = &self.shared;
        if link.service != shared.info.service {
            return None;
        }
        let until = shared.valid_until.load(Ordering::SeqCst);
        let held = shared.owned.get(link.uid.as_str())?;
        let holds = shared.clock.now().as_nanos() < until;
        holds.then(|| shared.ownership(link, held))
    }

    /// Whether this process owns the user at this moment: one look-up and one look at the clock.
    /// `None` for the namespace and the service are the pod's own.
    #[must_use]
    pub fn owns(&self, namespace: Option<&str>, uid: &str, service: Option<&str>) -> bool {
        self.token(namespace, uid, service).is_some()
    }

    /// The token by which this process owns the user at this moment.
    #[must_use]
    pub fn token(
        &self,
        namespace: Option<&str>,
        uid: &str,
        service: Option<&str>,
    ) -> Option<Token> {
        let shared = &self.shared;
        let own = &shared.info.service;
        let elsewhere = namespace
            .is_some_and(|name| !name.is_empty() && name != own.namespace.as_str())
            || service.is_some_and(|name| name != own.service.as_str());
        if elsewhere {
            return None;
        }
        // The end of the lease first, the clock last: a lapse in between is past that end.
        let until = shared.valid_until.load(Ordering::SeqCst);
        let held = shared.owned.get(uid)?;
        (shared.clock.now().as_nanos() < until).then_some(held.token)
    }

    /// The users that this process owns at this moment.
    #[must_use]
    pub fn owned_users(&self) -> Vec<LinkId> {
        let users = self.shared.owned.all(true);
        if !self.shared.holds_lease() {
            return Vec::new();
        }
        let service = &self.shared.info.service;
        let links = users.into_iter().map(|(uid, _)| LinkId {
            service: service.clone(),
            uid,
        });
        links.collect()
    }

    /// Asks the store whether the ownership stands. If not, the user is dropped and the hooks are
    /// called.
    ///
    /// # Errors
    /// `LeaseLost` while the lease is over; what the store failed with.
    pub async fn verify(&self, ownership: &Ownership, deadline: Tick) -> Result<bool> {
        let work = self.shared.verify_one(ownership, deadline);
        self.shared.observe(OperationName::Verify, work).await
    }

    /// Gives the user back, if this process owns it by this very token.
    ///
    /// # Errors
    /// `LeaseLost` while the lease is over; what the store failed with.
    pub async fn release(
        &self,
        ownership: &Ownership,
        removal: Option<Removal>,
        deadline: Tick,
    ) -> Result<bool> {
        let shared = &self.shared;
        let work = async {
            let (link, token) = (&ownership.link, ownership.owner.token);
            if !shared.owned.holds(&link.uid, token) {
                return Ok(false);
            }
            let _turn = shared.enter(link, deadline).await?;
            let permit = shared.permit()?;
            let removal = shared.removal(removal);
            shared
                .release_held(link, token, removal, permit, deadline)
                .await
        };
        shared.observe(OperationName::Release, work).await
    }
}

impl ServerShared {
    pub(super) fn ownership(&self, link: &LinkId, held: OwnedUser) -> Ownership {
        held.ownership(&self.info.service, self.info.pod, link.uid.clone())
    }

    pub(super) async fn enter(
        &self,
        link: &LinkId,
        deadline: Tick,
    ) -> Result<super::flights::Turn<'_>> {
        self.flights.enter(&link.uid, &self.clock, deadline).await
    }

    /// Claims a user of this pod's service.
    async fn claim(&self, link: &LinkId, above: Token, deadline: Tick) -> Result<Ownership> {
        self.is_own(link)?;
        let claimed = self.try_claim(link, above, deadline).await?;
        claimed.map_err(Refusal::into_error)
    }

    /// The same; a refusal is an answer.
    pub(super) async fn try_claim(
        &self,
        link: &LinkId,
        above: Token,
        deadline: Tick,
    ) -> Result<OrRefused<Ownership>> {
        // Before the turn: who may not act waits for nothing.
        self.permit()?;
        let turn = self.enter(link, deadline).await?;
        if self.owned.is_doubted(&link.uid) {
            // The store is being asked about it: what stands needs no new token.
            let what = "the confirmation of the user";
            let confirmed = with_deadline(&self.clock, deadline, what, self.confirmed()).await;
            confirmed.map_err(|error| error.with_outcome(WriteOutcome::NotSent))??;
        }
        let claimed = match self.permit_to_take() {
            Ok(permit) => self.claim_new(link, above, permit, deadline).await,
            Err(refused) if refused.kind() == ErrorKind::PodNotAvailable => self
                .claim_held(link, above, refused, deadline)
                .await
                .map(|held| Ok((held, true))),
            Err(refused) => Err(refused),
        };
        drop(turn);
        count(match &claimed {
            Ok(Ok((_, true))) => &self.stats.claims_repeated,
            Ok(Ok((_, false))) => &self.stats.claims_made,
            Ok(Err(_)) => &self.stats.claims_not_owner,
            Err(_) => &self.stats.claims_failed,
        });
        claimed.map(|claimed| claimed.map(|(ownership, _)| ownership))
    }

    /// A pod that takes no new users: what it owns already is no new claim.
    async fn claim_held(
        &self,
        link: &LinkId,
        above: Token,
        refused: Error,
        deadline: Tick,
    ) -> Result<Ownership> {
        let held = self.owned.get(link.uid.as_str());
        let Some(held) = held.filter(|held| held.token > above) else {
            return Err(refused);
        };
        let ownership = self.ownership(link, held);
        match self.verify_one(&ownership, deadline).await? {
            true => Ok(ownership),
            false => Err(refused),
        }
    }

    /// Claims a user of whom this pod need not own anything; `true`: it owned the user already.
    async fn claim_new(
        &self,
        link: &LinkId,
        above: Token,
        permit: Permit,
        deadline: Tick,
    ) -> Result<OrRefused<(Ownership, bool)>> {
        let least = self.above(link);
        let mut claim = Claim {
            link: link.clone(),
            pod: self.info.pod,
            incarnation: permit.incarnation,
            certified: None,
            above: above.max(least),
        };
        loop {
            let asked = self.ask_under(permit, claim.clone(), deadline).await;
            if let Err(error) = &asked
                && error.outcome() != Some(WriteOutcome::NotSent)
                && let Some(held) = self.owned.get(link.uid.as_str())
                && held.token <= claim.above
            {
                // The store may have given a new token, and the old one is void then.
                self.doubt_user(&link.uid, held.token);
            }
            match asked? {
                Claimed::Owned {
                    token,
                    previous,
                    again,
                } => {
                    let taken = self.take_up(link, token, previous, permit, deadline)?;
                    self.flights.claimed(&link.uid);
                    return Ok(Ok((taken, again)));
                }
                Claimed::Stale(by) => return Err(self.replaced(by)),
                Claimed::Taken { pod, incarnation } => {
                    let certified = self
                        .certify_owner(pod, incarnation, permit, deadline)
                        .await?;
                    match certified {
                        Ok(dead) => claim.certified = Some((pod, dead)),
                        Err(refused) => return Ok(Err(refused)),
                    }
                }
            }
        }
    }

    /// A token that the next one of this user must exceed.
    pub(super) fn above(&self, link: &LinkId) -> Token {
        self.flights
            .above(&link.uid)
            .max(self.owned.above(&link.uid))
    }

    /// Does an operation of this permit: it is not sent after the end of the lease.
    pub(super) async fn ask_under<O: crate::op::Operation>(
        &self,
        permit: Permit,
        operation: O,
        deadline: Tick,
    ) -> Result<O::Reply> {
        let asked = self.store.ask(operation, deadline.min(permit.until)).await;
        asked.map_err(|error| self.failed_under(permit, error))
    }

    /// The death certificate of the process that holds a user, or why the claim is refused.
    async fn certify_owner(
        &self,
        pod: PodIndex,
        incarnation: Option<Incarnation>,
        permit: Permit,
        deadline: Tick,
    ) -> Result<OrRefused<Incarnation>> {
        let certify = PodCertify {
            service: self.info.service.clone(),
            pod,
            seen: incarnation,
        };
        let least = incarnation.unwrap_or(Incarnation::NONE);
        let certificate = self.ask_under(permit, certify, deadline).await;
        // The question changes no user.
        let certificate = certificate.map_err(|error| error.with_outcome(WriteOutcome::NotSent))?;
        let retry_after = match certificate {
            Certificate::Dead(dead) if dead >= least => return Ok(Ok(dead)),
            // No process is left to protect: neither the leases nor the states know the pod.
            Certificate::Unknown => return Ok(Ok(least)),
            // Not dead yet, and silent for longer than a lease.
            Certificate::Alive { left, .. } if left <= self.config.times.grace => Some(left),
            Certificate::Dead(_) | Certificate::Alive { .. } => None,
        };
        Ok(Err(Refusal {
            owner: pod,
            retry_after,
        }))
    }

    /// A later process of this pod owns the user: this one is over, and its next renewal says so.
    pub(super) fn replaced(&self, by: Incarnation) -> Error {
        let error = self.no_lease("a later process of this pod owns the user");
        let error = error.with("incarnation", by);
        error.with_outcome(WriteOutcome::NotSent)
    }

    /// The store has given this process the user. If the lease has ended meanwhile, or the pod
    /// takes no users any more, that does not count, and the token is given back.
    pub(super) fn take_up(
        &self,
        link: &LinkId,
        token: Token,
        previous: Token,
        permit: Permit,
        deadline: Tick,
    ) -> Result<Ownership> {
        let held = OwnedUser {
            incarnation: permit.incarnation,
            token,
            previous,
        };
        let again = self
            .owned
            .get(link.uid.as_str())
            .filter(|held| held.token == token);
        let held = again.unwrap_or(held);
        let refused = match self.takes_users() {
            Err(refused) if again.is_none() => Some(refused),
            _ if !self.holds_lease() => None,
            _ if self.owned.insert(link.uid.clone(), held, permit.generation) => {
                return Ok(self.ownership(link, held));
            }
            _ => None,
        };
        count(&self.stats.late_answers);
        self.give_back_later(link, self.ownership(link, held), deadline);
        let error = refused.unwrap_or_else(|| self.no_lease_now());
        Err(error.with_outcome(WriteOutcome::Unknown))
    }

    /// Gives back a token that does not count, without anybody waiting for it.
    pub(super) fn give_back_later(&self, link: &LinkId, ownership: Ownership, deadline: Tick) {
        let Some(shared) = self.me.upgrade() else {
            return;
        };
        let link = link.clone();
        // It ends by its deadline.
        tokio::spawn(async move {
            let until = deadline.max(shared.soon());
            let Ok(_turn) = shared.enter(&link, until).await else {
                shared
                    .flights
                    .released_late(&link.uid, ownership.owner.token);
                return;
            };
            // A claim in between may have got the same token, and then it counts.
            if !shared.owned.holds(&link.uid, ownership.owner.token) {
                let _given = shared.swap_away(&ownership, Rewrite::Nothing, until).await;
            }
        });
    }

    /// Gives a user back that is held by this token; `false` if it is not.
    pub(super) async fn release_held(
        &self,
        link: &LinkId,
        token: Token,
        removal: Removal,
        permit: Permit,
        deadline: Tick,
    ) -> Result<bool> {
        let to = writes::after_removal(self.info.pod, removal);
        self.give_away(link, token, to, permit, deadline).await
    }

    /// Gives a user away that is held by this token. From the first step on it is held no more,
    /// unless the request was certainly not sent.
    pub(super) async fn give_away(
        &self,
        link: &LinkId,
        token: Token,
        to: Rewrite,
        permit: Permit,
        deadline: Tick,
    ) -> Result<bool> {
        let Some(held) = self.owned.remove(&link.uid, token) else {
            return Ok(false);
        };
        let ownership = self.ownership(link, held);
        let until = deadline.min(permit.until);
        let given = self.swap_away(&ownership, to, until).await;
        if given.as_ref().is_ok_and(|given| *given) {
            self.note_given_away(&link.uid);
        }
        if let Err(error) = &given
            && error.outcome() == Some(WriteOutcome::NotSent)
        {
            // If the lease has ended meanwhile, it is not this process's any more.
            self.owned.insert(link.uid.clone(), held, permit.generation);
        }
        given.map_err(|error| self.failed_under(permit, error))
    }

    /// Compare-and-set away from this very token.
    async fn swap_away(&self, ownership: &Ownership, to: Rewrite, deadline: Tick) -> Result<bool> {
        let swap = Swap {
            link: ownership.link.clone(),
            found: Box::new(StoredUser::of_owner(ownership.owner)),
            to,
        };
        let swapped = self.store.ask(swap, deadline).await;
        let late = swapped
            .as_ref()
            .is_err_and(|error| error.outcome() != Some(WriteOutcome::NotSent));
        if late {
            let (uid, token) = (&ownership.link.uid, ownership.owner.token);
            self.flights.released_late(uid, token);
        }
        Ok(swapped?.done)
    }

    async fn verify_one(&self, ownership: &Ownership, deadline: Tick) -> Result<bool> {
        let permit = self.permit()?;
        let link = &ownership.link;
        let read = crate::op::Read { link: link.clone() };
        let found = self.ask_under(permit, read, deadline).await?;
        let stands = found.is_owned_by(ownership.owner);
        count(&self.stats.verified);
        let token = ownership.owner.token;
        if !stands && let Some(held) = self.owned.remove(&link.uid, token) {
            let reason = super::events::LossReason::of(&found);
            self.ownerships_changed(vec![(self.ownership(link, held), reason)], Vec::new());
        }
        let held = self.owned.get(link.uid.as_str());
        Ok(stands && held.is_some_and(|held| held.token == token) && self.still_holds(permit))
    }
}

/// What is refused because another pod owns the user.
pub(super) type OrRefused<T> = std::result::Result<T, Refusal>;

/// Another pod owns the user.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    pub(super) owner: PodIndex,
    /// When it may be dead, if it has not renewed its lease.
    retry_after: Option<Duration>,
}

impl Refusal {
    fn into_error(self) -> Error {
        let owner = self.owner;
        let error = Error::new(ErrorKind::NotOwner, format!("pod {owner} owns the user"));
        let error = error
            .with("owner", owner)
            .with_outcome(WriteOutcome::NotSent);
        match self.retry_after {
            Some(wait) => error.with("retry_after", wait.as_secs_f64()).retryable(),
            None => error,
        }
    }
}
