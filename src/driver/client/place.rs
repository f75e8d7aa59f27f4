//! compute, the slow path: all steps that find a user's pod, or make or heal the link. What comes
//! next is decided in `route/plan.rs`.

use std::sync::Arc;
use std::time::Duration;

use super::caller::Routed;
use super::chooser::Asked;
use super::{ClientShared, Target};
use crate::cache::Ticket;
use crate::clock::Tick;
use crate::config::OnRestart;
use crate::driver::view::View;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Incarnation, PodIndex, ServiceId};
use crate::op::{Compute, Get, LinkSource, OperationName, PodCertify, Relink};
use crate::route::link::{Certificate, Life, Placed, StoredLink};
use crate::route::pick::Strategy;
use crate::route::plan::{Cached, Look, Opening, Plan, Reason, Sight, Step, cached, opening};
use crate::route::snapshot::Pod;
use crate::telemetry::count;
use crate::trace;

/// How often one compute moves its user at most. Every move beyond the first means that another
/// client moved the user meanwhile.
const ROUNDS: usize = 8;

/// Pods that were read this recently are not read again because of a user's owner: a dead pod's
/// thousand users should not cause a thousand readings.
pub(super) const FRESH: Duration = Duration::from_millis(50);

/// Finds or makes the link, or goes on from the one that was found. ARCHITECTURE.md draws the steps.
pub(super) async fn place(
    shared: Arc<ClientShared>,
    target: Target,
    ticket: Ticket,
    deadline: Tick,
    found: Option<FoundLink>,
) -> Result<Routed> {
    let placing = Placing {
        refused: shared.refusals.of(target.key, shared.clock.now()),
        shared: &shared,
        target: &target,
        ticket,
        deadline,
    };
    let span = placing.span();
    let placed = trace::observed(span.clone(), placing.run(found)).await;
    if let Ok(routed) = placed {
        span.record("podlink.pod", routed.pod.get());
    }
    placed.map_err(|error| with_context(error, &target.link.service))
}

/// An error of compute, as its callers get it.
pub(super) fn with_context(error: Error, service: &ServiceId) -> Error {
    error
        .during(OperationName::ComputeLinkedPod)
        .with("service", service)
}

struct Placing<'a> {
    shared: &'a ClientShared,
    target: &'a Target,
    ticket: Ticket,
    deadline: Tick,
    /// The pods that said "not mine": none of them is answered on the strength of a hint.
    refused: Vec<PodIndex>,
}

impl Placing<'_> {
    fn span(&self) -> tracing::Span {
        let span = trace::place(&self.target.link);
        if !span.is_disabled() {
            let now = self.shared.clock.now();
            let known = self.shared.cache.get(self.target.key, now).is_some();
            span.record("podlink.cache", if known { "stale" } else { "miss" });
        }
        span
    }

    async fn run(&self, mut owner: Option<FoundLink>) -> Result<Routed> {
        if opening(Cached::Absent, self.target.home.is_foreign()) == Opening::AskPeer {
            return self.ask_peer().await;
        }
        let watched = &self.target.known.watched;
        let mut view = watched.view(&self.shared.clock, self.deadline).await?;
        if owner.is_none()
            && let Some(adopted) = self.adopt(&view)
        {
            return Ok(adopted);
        }
        let mut plan = Plan::default();
        if let Some(found) = &owner {
            plan.linked(Some(found.placed));
        }
        let mut moves = 0;
        loop {
            match plan.next(self.sight(owner.as_ref(), &view)) {
                Step::ReadPods => view = self.fresh().await?,
                Step::Offer => {
                    // The pods of this reading may have lapsed meanwhile.
                    let Some(pod) = self.choose(&view).await else {
                        view = self.fresh().await?;
                        continue;
                    };
                    owner = Some(self.offer(pod, &view).await?);
                    plan.linked(owner.as_ref().map(|found| found.placed));
                }
                Step::Find => {
                    owner = self.find().await?;
                    plan.linked(owner.as_ref().map(|found| found.placed));
                }
                Step::Certify => plan.certified(self.certify(owner.as_ref(), &view).await?),
                Step::Move { dead, reason } => {
                    moves += 1;
                    let from = owner.as_ref().map(|found| found.link);
                    let Some(from) = from.filter(|_| moves <= ROUNDS) else {
                        return Err(unsteady());
                    };
                    let Some(to) = self.choose(&view).await else {
                        view = self.fresh().await?;
                        continue;
                    };
                    owner = self.relink(from, (dead, reason), to, &view).await?;
                    match &owner {
                        Some(found) => plan.linked(Some(found.placed)),
                        None => plan.vanished(),
                    }
                }
                Step::Answer { remember, reason } => {
                    return self.answer(owner, remember, reason);
                }
                Step::Refuse => return Err(self.no_routable_pod(&view)),
            }
        }
    }

    fn answer(&self, owner: Option<FoundLink>, remember: bool, reason: Reason) -> Result<Routed> {
        let FoundLink { link, asked, .. } = owner.ok_or_else(unsteady)?;
        if remember {
            self.shared.remember(self.target, link, asked, self.ticket);
        } else if reason == Reason::DeathNotCertain {
            count(&self.shared.stats.owners_unsure);
        } else {
            self.shared.overrule(self.target, self.ticket);
        }
        Ok(Routed::asked(link))
    }

    /// Another namespace's link: its own server finds, makes and heals it.
    async fn ask_peer(&self) -> Result<Routed> {
        let asked = self.shared.clock.now();
        let compute = Compute {
            link: self.target.link.clone(),
            refused: self.refused.clone(),
            describe: false,
        };
        let found = self.target.home.ask(compute, self.deadline).await?.link;
        let shared = self.shared;
        shared
            .remember_watched(self.target, found, asked, self.ticket, self.deadline)
            .await;
        Ok(Routed::asked(found))
    }

    /// An entry that the program put into the cache before the pods were known: valid from now on
    /// for the process that holds the pod's index.
    fn adopt(&self, view: &View) -> Option<Routed> {
        let now = self.shared.clock.now();
        let entry = self.shared.cache.get(self.target.key, now)?;
        let look = self.look(Some(entry.pod), view);
        let held = cached(true, entry.incarnation, Some(look), look);
        if opening(held, false) != Opening::Adopt {
            return None;
        }
        let holder = Routed::cached(&entry).holder;
        let entry = self.target.entry(entry.pod, holder, entry.valid_until, now);
        let adopted = self
            .shared
            .cache
            .insert(self.target.key, entry, self.ticket);
        adopted.then(|| Routed::cached(&entry))
    }

    fn sight(&self, owner: Option<&FoundLink>, view: &View) -> Sight {
        let pod = owner.map(|found| found.link.pod);
        let age = self.shared.clock.now().since(view.snapshot.asked());
        Sight {
            look: self.look(pod, view),
            young: age <= FRESH,
            refused: owner.is_some_and(|found| self.is_refused(found)),
            remembered: pod.and_then(|pod| self.remembered(pod)),
        }
    }

    fn look(&self, pod: Option<PodIndex>, view: &View) -> Look {
        view.look(pod, self.shared.clock.now(), &self.refused)
    }

    /// Whether the link is a hint whose pod said "not mine". A process that owns the user is
    /// believed over such a report, which may be older.
    fn is_refused(&self, found: &FoundLink) -> bool {
        let FoundLink { link, stands, .. } = found;
        !stands && link.holder.is_none() && self.refused.contains(&link.pod)
    }

    /// The process that the cache remembers the user with on this pod, if users of restarted pods
    /// are placed from scratch.
    fn remembered(&self, pod: PodIndex) -> Option<Incarnation> {
        if self.shared.config.on_restart != OnRestart::BestPod {
            return None;
        }
        let now = self.shared.clock.now();
        let entry = self.shared.cache.get(self.target.key, now)?;
        (entry.pod == pod).then_some(entry.incarnation)
    }

    /// Set-if-absent with this pod.
    async fn offer(&self, pod: PodIndex, view: &View) -> Result<FoundLink> {
        let asked = self.shared.clock.now();
        let offer = self.shared.offer(self.target, pod);
        let placed = self.target.home.ask(offer, self.deadline).await;
        if !placed.as_ref().is_ok_and(|placed| placed.made) {
            view.count_sent(pod, -1);
        }
        let placed = placed?;
        if placed.made {
            self.shared.stats.link_made(&self.target.link.service);
        }
        Ok(FoundLink {
            link: placed.link,
            asked,
            placed: placed.made,
            // It was chosen for lack of another.
            stands: placed.made,
        })
    }

    async fn find(&self) -> Result<Option<FoundLink>> {
        let asked = self.shared.clock.now();
        let get = Get {
            link: self.target.link.clone(),
            from: LinkSource::Store,
        };
        let stored = self.target.home.ask(get, self.deadline).await?;
        Ok(stored.map(|link| FoundLink {
            link,
            asked,
            placed: false,
            stands: false,
        }))
    }

    async fn certify(&self, owner: Option<&FoundLink>, view: &View) -> Result<Certificate> {
        let Some(found) = owner else {
            return Ok(Certificate::Unknown);
        };
        let seen = found.link.holder.map(|holder| holder.incarnation);
        let certify = PodCertify {
            service: self.target.link.service.clone(),
            pod: found.link.pod,
            // A later process of the pod keeps the users of an earlier one.
            seen: seen.filter(|seen| *seen >= self.look(Some(found.link.pod), view).incarnation),
        };
        self.target.home.ask(certify, self.deadline).await
    }

    /// Compare-and-set to this pod; the loser of a race gets the winner's link. `None`: the link
    /// has vanished.
    async fn relink(
        &self,
        from: StoredLink,
        (dead, reason): (Incarnation, Reason),
        to: PodIndex,
        view: &View,
    ) -> Result<Option<FoundLink>> {
        let asked = self.shared.clock.now();
        let relink = Relink {
            link: self.target.link.clone(),
            from,
            dead,
            to,
            ttl: self.shared.config.link_ttl,
        };
        let placed = self.target.home.ask(relink, self.deadline).await;
        if !matches!(&placed, Ok(Some(Placed { made: true, .. }))) {
            view.count_sent(to, -1);
        }
        let placed = placed?;
        if placed.is_some_and(|placed| placed.made) {
            let (service, uid) = (&self.target.link.service, &self.target.link.uid);
            match reason {
                Reason::OwnerRefused => count(&self.shared.stats.hints_replaced),
                _ => self.shared.stats.link_healed(service, from.pod),
            }
            tracing::debug!(%service, %uid, from = from.pod.get(), to = to.get(), "moved a user");
        }
        Ok(placed.map(|placed| FoundLink {
            link: placed.link,
            asked,
            placed: true,
            // It was chosen for lack of another; or the store keeps the very link that was found,
            // because its record says that a process of the pod owns the user.
            stands: placed.made || same_link(placed.link, from),
        }))
    }

    /// The best pod for this user. A pod from which users are moved is none of the candidates: it
    /// takes no new ones.
    async fn choose(&self, view: &Arc<View>) -> Option<PodIndex> {
        if view.degraded {
            count(&self.shared.stats.degraded_choices);
        }
        let custom = self.ask_chooser(view).await;
        custom.or_else(|| self.choose_by(view, self.shared.config.strategy))
    }

    fn choose_by(&self, view: &View, strategy: Strategy) -> Option<PodIndex> {
        let (uid, now) = (self.target.link.uid.as_str(), self.shared.clock.now());
        let chance = self.target.known.watched.chance();
        view.choose_beside(&self.refused, strategy, uid, chance, now)
    }

    async fn ask_chooser(&self, view: &Arc<View>) -> Option<PodIndex> {
        let chooser = self.shared.chooser.as_ref()?;
        let mut candidates = view.candidates(self.shared.clock.now());
        let willing = |pod: &Pod| !self.refused.contains(&pod.state.pod_id);
        if candidates.iter().any(willing) {
            candidates.retain(willing);
        }
        if candidates.is_empty() {
            return None;
        }
        let names: Vec<PodIndex> = candidates.iter().map(|pod| pod.state.pod_id).collect();
        let service = &self.target.link.service;
        let (clock, link) = (&self.shared.clock, &self.target.link);
        let Asked::Chosen(choice) = chooser.ask(clock, link, candidates, self.deadline).await
        else {
            count(&self.shared.stats.chooser_overloads);
            chooser.note_overload(clock.now());
            return None;
        };
        match choice {
            Ok(Some(pod)) if names.contains(&pod) => {
                view.count_sent(pod, 1);
                return Some(pod);
            }
            Ok(None) => return None,
            Ok(Some(pod)) => {
                tracing::warn!(%service, pod = pod.get(), "the strategy named a pod that takes no new users");
            }
            Err(error) => tracing::warn!(%service, %error, "the strategy failed"),
        }
        count(&self.shared.stats.chooser_failures);
        None
    }

    async fn fresh(&self) -> Result<Arc<View>> {
        let (clock, watched) = (&self.shared.clock, &self.target.known.watched);
        watched.fresh(clock, self.deadline).await
    }

    fn no_routable_pod(&self, view: &View) -> Error {
        self.shared.stats.link_refused(&self.target.link.service);
        let now = self.shared.clock.now();
        let pods = view.snapshot.pods();
        let alive = pods
            .iter()
            .filter(|pod| pod.standing(now).is_alive())
            .count();
        let service = &self.target.link.service;
        Error::new(
            ErrorKind::NoRoutablePod,
            format!(
                "no pod of {service} takes new users: {} known, {alive} alive, none READY",
                pods.len()
            ),
        )
        .with("pods_known", pods.len())
        .with("pods_alive", alive)
    }
}

/// A link and when it was asked for: its life counts from then.
#[derive(Debug, Clone, Copy)]
pub(super) struct FoundLink {
    pub(super) link: StoredLink,
    pub(super) asked: Tick,
    /// This compute created or moved the link, so `on_restart` does not apply.
    pub(super) placed: bool,
    /// The link is answered even if its pod refused the user.
    pub(super) stands: bool,
}

/// Whether this is the same link, whatever is left of its life.
fn same_link(one: StoredLink, other: StoredLink) -> bool {
    let persistent = |link: StoredLink| link.life == Life::Persistent;
    (one.pod, one.holder, persistent(one)) == (other.pod, other.holder, persistent(other))
}

/// The error of a compute whose user's owner does not settle.
fn unsteady() -> Error {
    Error::new(
        ErrorKind::PodNotAvailable,
        format!("the user's owner changed {ROUNDS} times while it was being looked up"),
    )
}
