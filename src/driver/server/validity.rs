//! Suspended, resumed, lost: what a lapse, another server and a death certificate do to the users
//! that this process owns (docs/decisions/0021).

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::ServerShared;
use super::events::{Event, LeaseEvent, LeaseReason, LossReason};
use super::owned::{OwnedUser, Ownership};
use crate::clock::Tick;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Incarnation, LinkId, Token, Uid};
use crate::op::{Claim, Claimed, Read};
use crate::route::link::Owner;
use crate::telemetry::count;

/// So many users are asked for in one batch.
const BATCH: usize = 512;

/// What is known of the lease beside the moment of its end.
#[derive(Debug, Default)]
pub(super) struct Validity {
    /// The lease lapsed: nothing is owned until what stands is confirmed.
    pub(super) suspended: bool,
    /// The lease was lost, and hooks of so many losses have not ended.
    losses: usize,
    /// The end of the lease by the last renewal, with the guard taken off.
    renewed_until: Tick,
    /// The server that replied to the last renewal; 0 if unknown.
    server: u64,
    /// The store may have forgotten links: users without a record are claimed again.
    forgot: bool,
    /// The store may have forgotten a death certificate: every user is claimed again.
    reclaim: bool,
    /// A task confirms what is doubted.
    settling: bool,
}

/// What a successful renewal says of the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct RenewalReply {
    pub(super) sent: Tick,
    pub(super) recreated: bool,
    pub(super) server: u64,
}

impl ServerShared {
    /// A new incarnation begins: it owns nothing yet.
    pub(super) fn begin_validity(&self) {
        let mut state = self.lock();
        let losses = state.validity.losses;
        state.validity = Validity {
            losses,
            ..Validity::default()
        };
    }

    /// The lease was renewed.
    pub(super) fn renewed(&self, renewal: RenewalReply) {
        let length = self.config.times.lease.saturating_sub(self.config.guard);
        let until = renewal.sent.after(length);
        // A lapse that was not noticed so far.
        self.notice_lapse();
        let settle = {
            let mut state = self.lock();
            let validity = &mut state.validity;
            let known = validity.server;
            let other = known != 0 && renewal.server != 0 && known != renewal.server;
            validity.server = renewal.server;
            validity.renewed_until = until;
            if other || renewal.recreated {
                // With a lapse before it, a death certificate may be forgotten, too.
                validity.reclaim |= validity.suspended || validity.forgot;
                validity.forgot = true;
                self.owned.doubt();
            }
            self.admit(validity);
            let settle = validity.suspended || self.owned.doubted() > 0;
            if !settle {
                validity.forgot = false;
            }
            self.settled.send_replace(!settle);
            let begins = settle && !validity.settling;
            validity.settling |= begins;
            begins
        };
        if settle && let Some(shared) = self.me.upgrade() {
            let settling = tokio::spawn(settle_doubts(shared));
            self.lock().own(settling);
        }
    }

    /// Lets the pod act until the end of its lease, unless it is suspended or the hooks of a loss run.
    fn admit(&self, validity: &Validity) {
        if !validity.suspended && validity.losses == 0 {
            let until = validity.renewed_until.as_nanos();
            self.valid_until.store(until, Ordering::SeqCst);
        }
    }

    /// The hooks of a loss have ended: a new incarnation may act.
    pub(super) fn losses_heard(&self) {
        let mut state = self.lock();
        state.validity.losses -= 1;
        self.admit(&state.validity);
    }

    /// Whether the lease was held, and its end has passed.
    fn has_lapsed(&self) -> bool {
        let until = self.valid_until.load(Ordering::SeqCst);
        until != 0 && self.clock.now().as_nanos() >= until
    }

    /// A lease that is over suspends the pod: it acts again only when what it owns is confirmed.
    pub(super) fn notice_lapse(&self) {
        let users = {
            let mut state = self.lock();
            if state.validity.suspended || !self.has_lapsed() {
                return;
            }
            state.validity.suspended = true;
            state.validity.reclaim |= state.validity.forgot;
            self.valid_until.store(0, Ordering::SeqCst);
            self.settled.send_replace(false);
            self.owned.doubt()
        };
        // Not only a metric: it numbers the leases.
        count(&self.stats.suspensions);
        let (service, pod) = (&self.info.service, self.info.pod);
        tracing::error!(%service, pod = pod.get(), users, "the lease was not renewed in time; this pod is suspended and owns nothing until it is renewed");
        let why = LeaseReason::NotRenewed;
        self.tell(Event::Lease(LeaseEvent::Suspended, why));
    }

    /// The lease is lost for good, and every token with it.
    pub(super) fn lose(&self, why: LeaseReason, text: &str) -> Error {
        let lost = {
            let mut state = self.lock();
            let held = self.valid_until.swap(0, Ordering::SeqCst) != 0;
            let held = held || state.validity.suspended;
            state.validity.suspended = false;
            state.validity.reclaim = false;
            state.validity.forgot = false;
            state.validity.renewed_until = Tick::ZERO;
            let users = self.owned.clear();
            let lost = (held || !users.is_empty()).then_some(users);
            state.validity.losses += usize::from(lost.is_some());
            self.settled.send_replace(true);
            lost
        };
        let error = self.no_lease(text);
        if let Some(users) = lost {
            count(&self.stats.leases_lost);
            let (service, pod, users_lost) = (&self.info.service, self.info.pod, users.len());
            tracing::error!(%service, pod = pod.get(), users = users_lost, %error, "the lease was lost; users of this pod must be claimed again");
            let own = |(uid, held): (Uid, OwnedUser)| held.ownership(service, pod, uid);
            let users: Vec<Ownership> = users.into_iter().map(own).collect();
            for _ in &users {
                self.count_loss(LossReason::LeaseLost);
            }
            self.tell(Event::Lost(why, users));
        }
        error
    }

    /// The store may hold another token of this process for the user: the next renewal asks.
    pub(super) fn doubt_user(&self, uid: &Uid, token: Token) {
        self.owned.doubt_one(uid, token);
        self.settled.send_replace(self.owned.doubted() == 0);
    }

    /// Confirms what is doubted, or claims it again. `false`: not everything could be asked.
    async fn settle(&self) -> bool {
        let deadline = self.soon();
        let (incarnation, again, forgot, suspended) = {
            let state = self.lock();
            let validity = &state.validity;
            let (again, forgot) = (validity.reclaim, validity.forgot);
            (state.incarnation, again, forgot, validity.suspended)
        };
        let generation = self.owned.generation();
        if suspended {
            // The program is notified of the lapse before anything is owned again.
            self.hooks_ended().await;
        }
        let doubted = self.owned.all(false);
        let mut changed = Changed::default();
        let mut asked_all = true;
        for users in doubted.chunks(BATCH) {
            let batch = Doubted {
                users,
                incarnation,
                generation,
            };
            let missing = match again {
                true => users.to_vec(),
                false => self.confirm(batch, forgot, &mut changed, deadline).await,
            };
            let Some(missing) = (self.owned.generation() == generation).then_some(missing) else {
                return false;
            };
            let batch = Doubted {
                users: &missing,
                ..batch
            };
            self.claim_again(batch, &mut changed, deadline).await;
            asked_all &= std::mem::take(&mut changed.failed).is_none_or(|error| {
                let service = &self.info.service;
                tracing::warn!(%service, pod = self.info.pod.get(), %error, "owned users could not be confirmed; the next renewal tries again");
                false
            });
        }
        let (service, pod) = (&self.info.service, self.info.pod.get());
        if !changed.renewed.is_empty() {
            let users = changed.renewed.len();
            tracing::warn!(%service, pod, users, "the store had forgotten users of this pod; they are claimed again");
        }
        if !changed.lost.is_empty() {
            let users = changed.lost.len();
            tracing::warn!(%service, pod, users, "users of this pod are another's, or their links were removed");
        }
        self.ownerships_changed(changed.lost, changed.renewed);
        asked_all && self.owned.doubted() == 0 && self.end_doubts(generation)
    }

    /// Everything is confirmed: the pod may act again.
    fn end_doubts(&self, generation: u64) -> bool {
        let resumed = {
            let mut state = self.lock();
            let validity = &mut state.validity;
            if self.owned.generation() != generation {
                return false;
            }
            (validity.forgot, validity.reclaim) = (false, false);
            let resumed = validity.suspended;
            if resumed && self.clock.now() >= validity.renewed_until {
                // Over again, before it began.
                return false;
            }
            validity.suspended = false;
            self.admit(validity);
            self.settled.send_replace(true);
            resumed
        };
        if resumed {
            let (service, pod, users) = (&self.info.service, self.info.pod, self.owned.len());
            tracing::warn!(%service, pod = pod.get(), users, "the lease was renewed; this pod acts again");
            let why = LeaseReason::Renewed;
            self.tell(Event::Lease(LeaseEvent::Resumed, why));
        }
        true
    }

    /// Asks the store who owns these users. Returns those that no process owns, if the store forgot.
    async fn confirm(
        &self,
        batch: Doubted<'_>,
        forgot: bool,
        changed: &mut Changed,
        deadline: Tick,
    ) -> Vec<(Uid, OwnedUser)> {
        let reads = batch.users.iter().map(|(uid, _)| Read {
            link: self.own_link(uid),
        });
        let found = self.store.ask_many(reads, deadline).await;
        let mut missing = Vec::new();
        for ((uid, held), found) in batch.users.iter().zip(found) {
            let found = match found {
                Ok(found) => found,
                Err(error) if is_of_one_key(&error) => {
                    // One user suffers, and the others go on.
                    self.drop_user(uid, *held, LossReason::Removed, changed);
                    continue;
                }
                Err(error) => {
                    changed.failed.get_or_insert(error);
                    continue;
                }
            };
            count(&self.stats.verified);
            let owner = Owner {
                pod: self.info.pod,
                incarnation: held.incarnation,
                token: held.token,
            };
            if found.is_owned_by(owner) {
                self.owned.confirm(uid, held.token, batch.generation);
            } else if found
                .record
                .map_or(forgot, |record| record.is_of_process(owner))
            {
                // Forgotten, or owned by another token of this very process.
                missing.push((uid.clone(), *held));
            } else {
                self.drop_user(uid, *held, LossReason::of(&found), changed);
            }
        }
        missing
    }

    /// Claims users again by new tokens: the store has forgotten that they were this process's.
    async fn claim_again(&self, batch: Doubted<'_>, changed: &mut Changed, deadline: Tick) {
        let claims = batch.users.iter().map(|(uid, held)| Claim {
            link: self.own_link(uid),
            pod: self.info.pod,
            incarnation: batch.incarnation,
            certified: None,
            above: held.token,
        });
        let claimed = self.store.ask_many(claims, deadline).await;
        for ((uid, old), claimed) in batch.users.iter().zip(claimed) {
            let (token, previous) = match claimed {
                Ok(Claimed::Owned {
                    token, previous, ..
                }) => (token, previous),
                Ok(Claimed::Taken { .. } | Claimed::Stale(_)) => {
                    self.drop_user(uid, *old, LossReason::Taken, changed);
                    continue;
                }
                Err(error) if is_of_one_key(&error) => {
                    self.drop_user(uid, *old, LossReason::Removed, changed);
                    continue;
                }
                Err(error) => {
                    changed.failed.get_or_insert(error);
                    continue;
                }
            };
            let new = OwnedUser {
                incarnation: batch.incarnation,
                token,
                previous,
            };
            let own =
                |held: OwnedUser| held.ownership(&self.info.service, self.info.pod, uid.clone());
            if self.owned.replace(uid, old.token, new, batch.generation) {
                count(&self.stats.reasserted);
                changed.renewed.push((own(new), own(*old)));
            } else if !self.owned.holds(uid, old.token) {
                // Released meanwhile: the new token is not used.
                self.give_back_later(&self.own_link(uid), own(new), deadline);
            }
        }
    }

    fn drop_user(&self, uid: &Uid, held: OwnedUser, why: LossReason, changed: &mut Changed) {
        if let Some(held) = self.owned.remove(uid, held.token) {
            let own = held.ownership(&self.info.service, self.info.pod, uid.clone());
            changed.lost.push((own, why));
        }
    }

    pub(super) fn own_link(&self, uid: &Uid) -> LinkId {
        LinkId {
            service: self.info.service.clone(),
            uid: uid.clone(),
        }
    }
}

/// Users whose ownership is in doubt.
#[derive(Debug, Clone, Copy)]
struct Doubted<'a> {
    users: &'a [(Uid, OwnedUser)],
    incarnation: Incarnation,
    generation: u64,
}

/// What became of users that were in doubt.
#[derive(Debug, Default)]
struct Changed {
    lost: Vec<(Ownership, LossReason)>,
    renewed: Vec<(Ownership, Ownership)>,
    /// The first failure of the store's.
    failed: Option<Error>,
}

/// Whether another program's value at one key is the cause: other users have nothing to do with it.
fn is_of_one_key(error: &Error) -> bool {
    let keyed = || error.details().iter().any(|(name, _)| *name == "key");
    error.kind() == ErrorKind::StoreData || error.kind() == ErrorKind::Redis && keyed()
}

/// Confirms what is doubted. What could not be asked the next renewal asks again.
async fn settle_doubts(shared: Arc<ServerShared>) {
    let settled = shared.settle().await;
    shared.lock().validity.settling = false;
    if !settled {
        tracing::debug!(service = %shared.info.service, "not everything is confirmed yet");
    }
}

/// The task that notices a lapse when it happens, while no renewal succeeds. It ends with the
/// renewals.
pub(super) async fn lapses(shared: Weak<ServerShared>, renew: Duration) {
    const LEAST: Duration = Duration::from_millis(5);
    loop {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if !shared.lock().phase.renews() {
            return;
        }
        shared.notice_lapse();
        let until = Tick::from_nanos(shared.valid_until.load(Ordering::SeqCst));
        let left = until.since(shared.clock.now());
        drop(shared);
        let renew = renew.max(LEAST);
        let held = until != Tick::ZERO;
        tokio::time::sleep(if held {
            left.clamp(LEAST, renew)
        } else {
            renew
        })
        .await;
    }
}

impl ServerShared {
    /// Waits until nothing is in doubt.
    pub(super) async fn confirmed(&self) -> Result<()> {
        let mut settled = self.settled.subscribe();
        // The sender is a field of this driver's, so it is there.
        let _there = settled.wait_for(|settled| *settled).await;
        Ok(())
    }
}
