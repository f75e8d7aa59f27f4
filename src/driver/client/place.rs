//! compute, the long way: whatever it takes to find a user's pod, or to make or heal the link.

use std::sync::Arc;
use std::time::Duration;

use super::{Shared, Target};
use crate::cache::Ticket;
use crate::clock::Tick;
use crate::config::OnRestart;
use crate::driver::view::View;
use crate::driver::with_deadline;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Incarnation, PodIndex, ServiceId};
use crate::route::link::{Certificate, Placed, StoredLink, Verdict, judge};
use crate::route::pick::Strategy;
use crate::route::state::Standing;
use crate::rpc::LinkOperations;
use crate::telemetry::count;
use crate::trace;

/// How often a user may be found with a new owner before the answer is taken as it is. Every
/// round means that somebody else moved the user meanwhile.
const ROUNDS: usize = 8;

/// Pods that were read this recently are not read anew because of a user's owner: a dead pod's
/// thousand users should not cause a thousand readings.
pub(super) const FRESH: Duration = Duration::from_millis(50);

/// Finds or makes the link, or goes on from the one that was found. ARCHITECTURE.md draws the steps.
pub(super) async fn place(
    shared: Arc<Shared>,
    target: Target,
    ticket: Ticket,
    deadline: Tick,
    found: Option<Found>,
) -> Result<PodIndex> {
    let placing = Placing {
        shared: &shared,
        target: &target,
        ticket,
        deadline,
    };
    let span = placing.span();
    let placed = trace::observed(span.clone(), placing.run(found)).await;
    if let Ok(pod) = placed {
        span.record("podlink.pod", pod.get());
    }
    placed.map_err(|error| told(error, &target.link.service))
}

/// An error of compute, as its callers are told.
pub(super) fn told(error: Error, service: &ServiceId) -> Error {
    error.during("compute_linked_pod").with("service", service)
}

struct Placing<'a> {
    shared: &'a Shared,
    target: &'a Target,
    ticket: Ticket,
    deadline: Tick,
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

    async fn run(&self, found: Option<Found>) -> Result<PodIndex> {
        if let Some(peer) = &self.target.peer {
            return self.ask(peer).await;
        }
        let watched = &self.target.known.watched;
        let mut view = watched.view(&self.shared.clock, self.deadline).await?;
        if found.is_none()
            && let Some(pod) = self.adopt(&view)
        {
            return Ok(pod);
        }
        let mut afresh = self.shared.config.on_restart == OnRestart::BestPod;
        let mut owner = found;
        for _ in 0..ROUNDS {
            let Found {
                link,
                asked,
                placed,
            } = match owner.take() {
                Some(found) => found,
                None => self.find_or_make(&mut view).await?,
            };
            let mut decision = self.judge(link, &mut view).await?;
            // Judged in the same view, and once: the best pod may be the one that came back. Whoever
            // was placed a moment ago, for whatever reason, was placed afresh.
            if afresh
                && !placed
                && let Some(earlier) = self.restarted(link.pod, &view)
            {
                afresh = false;
                decision = Decision::Move(earlier);
            }
            match decision {
                Decision::Answer { remember } => {
                    if remember {
                        self.shared.remember(self.target, link, asked, self.ticket);
                    }
                    return Ok(link.pod);
                }
                Decision::Move(dead) => owner = self.relink(link, dead, &mut view).await?,
            }
        }
        Err(Error::new(
            ErrorKind::PodNotAvailable,
            format!("the user's owner changed {ROUNDS} times while it was being looked up"),
        ))
    }

    /// Another namespace's link: its own server finds, makes and heals it.
    async fn ask(&self, peer: &Arc<dyn LinkOperations>) -> Result<PodIndex> {
        let asked = self.shared.clock.now();
        let found = peer.compute(&self.target.link, self.deadline).await?;
        self.shared
            .remember_at(self.target, found, asked, self.ticket, self.deadline)
            .await;
        Ok(found.pod)
    }

    /// What the program told the cache before the pods were known: believed from now on for the
    /// process that holds the pod's index.
    fn adopt(&self, view: &View) -> Option<PodIndex> {
        let now = self.shared.clock.now();
        let entry = self.shared.cache.get(self.target.key, now)?;
        let serves = view.standing(entry.pod, now).is_available();
        if entry.incarnation != Incarnation::NONE || !serves {
            return None;
        }
        let entry = self.target.entry(entry.pod, entry.valid_until, now);
        let adopted = self
            .shared
            .cache
            .insert(self.target.key, entry, self.ticket);
        adopted.then_some(entry.pod)
    }

    /// The process that the cache remembers the user with, if `pod` is held by another one now.
    fn restarted(&self, pod: PodIndex, view: &View) -> Option<Incarnation> {
        let entry = self
            .shared
            .cache
            .get(self.target.key, self.shared.clock.now())?;
        let changed = entry.pod == pod
            && entry.incarnation != Incarnation::NONE
            && entry.incarnation < view.incarnation(pod);
        changed.then_some(entry.incarnation)
    }

    /// Set-if-absent with the best pod. Where no pod takes new users an old link may still stand.
    async fn find_or_make(&self, view: &mut Arc<View>) -> Result<Found> {
        let (link, executor) = (&self.target.link, &self.shared.executor);
        let chosen = self.choose(view).await?;
        let asked = self.shared.clock.now();
        let Some(pod) = chosen else {
            let stored = executor.get(link, self.deadline).await?;
            let found = stored.map(|link| Found {
                link,
                asked,
                placed: false,
            });
            return found.ok_or_else(|| self.nobody(view));
        };
        let ttl = self.shared.config.link_ttl;
        let placed = executor.set_if_absent(link, pod, ttl, self.deadline).await;
        if !placed.as_ref().is_ok_and(|placed| placed.made) {
            view.count_sent(pod, -1);
        }
        let placed = placed?;
        if placed.made {
            self.shared.stats.link_made(&self.target.link.service);
        }
        Ok(Found {
            link: placed.link,
            asked,
            placed: placed.made,
        })
    }

    async fn judge(&self, link: StoredLink, view: &mut Arc<View>) -> Result<Decision> {
        if judge(self.standing(view, link.pod)) != Verdict::Keep {
            // The pod may have come, or renewed, since the pods were last read.
            self.renew(view).await?;
        }
        match judge(self.standing(view, link.pod)) {
            Verdict::Keep => Ok(Decision::Answer { remember: true }),
            Verdict::Relink | Verdict::Certify => self.certify(link.pod, view).await,
        }
    }

    /// Nobody moves a user on the strength of his own clock: the store declares the pod dead, for
    /// good, or says that it may still be alive. Then the user stays, and nobody remembers it.
    async fn certify(&self, pod: PodIndex, view: &mut Arc<View>) -> Result<Decision> {
        let (service, executor) = (&self.target.link.service, &self.shared.executor);
        let certificate = executor.pod_certify(service, pod, self.deadline).await?;
        let incarnation = match certificate {
            Certificate::Unknown => return Ok(Decision::Move(Incarnation::NONE)),
            Certificate::Dead(incarnation) => return Ok(Decision::Move(incarnation)),
            Certificate::Alive { incarnation, .. } => incarnation,
        };
        if view.incarnation(pod) < incarnation {
            // A process that this view does not show yet has come back under the index.
            *view = self.fresh().await?;
        }
        match judge(self.standing(view, pod)) {
            Verdict::Keep => return Ok(Decision::Answer { remember: true }),
            // It says itself that it takes nothing any more.
            Verdict::Relink => return Ok(Decision::Move(view.incarnation(pod))),
            Verdict::Certify => {}
        }
        count(&self.shared.stats.owners_unsure);
        Ok(Decision::Answer { remember: false })
    }

    /// Compare-and-set to the best pod; the loser of a race gets the winner's link to judge.
    /// `None`: the link has vanished, start over.
    async fn relink(
        &self,
        from: StoredLink,
        dead: Incarnation,
        view: &mut Arc<View>,
    ) -> Result<Option<Found>> {
        let Some(to) = self.choose(view).await? else {
            return Err(self.nobody(view));
        };
        let (link, ttl) = (&self.target.link, self.shared.config.link_ttl);
        let (executor, asked) = (&self.shared.executor, self.shared.clock.now());
        let placed = executor
            .relink(link, from, dead, to, ttl, self.deadline)
            .await;
        if !matches!(&placed, Ok(Some(Placed { made: true, .. }))) {
            view.count_sent(to, -1);
        }
        let placed = placed?;
        if placed.is_some_and(|placed| placed.made) {
            let (service, uid) = (&self.target.link.service, &self.target.link.uid);
            self.shared.stats.link_healed(service, from.pod);
            tracing::debug!(%service, %uid, from = from.pod.get(), to = to.get(), "moved a user");
        }
        Ok(placed.map(|placed| Found {
            link: placed.link,
            asked,
            placed: true,
        }))
    }

    /// The best pod for this user. Reads the pods anew before it says that there is none. A pod
    /// from which users are moved is none of the candidates: it takes no new ones.
    async fn choose(&self, view: &mut Arc<View>) -> Result<Option<PodIndex>> {
        let chosen = self.choose_in(view).await;
        if chosen.is_some() {
            return Ok(chosen);
        }
        *view = self.fresh().await?;
        Ok(self.choose_in(view).await)
    }

    async fn choose_in(&self, view: &Arc<View>) -> Option<PodIndex> {
        if view.degraded {
            count(&self.shared.stats.degraded_choices);
        }
        let custom = self.ask_chooser(view).await;
        custom.or_else(|| self.choose_by(view, self.shared.config.strategy))
    }

    fn choose_by(&self, view: &View, strategy: Strategy) -> Option<PodIndex> {
        let (uid, now) = (self.target.link.uid.as_str(), self.shared.clock.now());
        self.target.known.watched.choose(view, strategy, uid, now)
    }

    async fn ask_chooser(&self, view: &Arc<View>) -> Option<PodIndex> {
        let chooser = self.shared.chooser.as_ref()?;
        let candidates = view.candidates(self.shared.clock.now());
        if candidates.is_empty() {
            return None;
        }
        let names: Vec<PodIndex> = candidates.iter().map(|pod| pod.state.pod_id).collect();
        let (service, uid) = (&self.target.link.service, &self.target.link.uid);
        // Half of what is left: a function that does not answer costs time, and not the user.
        let now = self.shared.clock.now();
        let until = now.after(self.deadline.since(now) / 2);
        let choice = chooser.choose(service, uid, candidates);
        let choice = with_deadline(&self.shared.clock, until, "the strategy", choice).await;
        match choice.flatten() {
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

    /// Reads the pods anew, unless that was only just done.
    async fn renew(&self, view: &mut Arc<View>) -> Result<()> {
        if self.shared.clock.now().since(view.snapshot.asked()) > FRESH {
            *view = self.fresh().await?;
        }
        Ok(())
    }

    async fn fresh(&self) -> Result<Arc<View>> {
        let (clock, watched) = (&self.shared.clock, &self.target.known.watched);
        watched.fresh(clock, self.deadline).await
    }

    fn standing(&self, view: &View, pod: PodIndex) -> Standing {
        view.standing(pod, self.shared.clock.now())
    }

    fn nobody(&self, view: &View) -> Error {
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
pub(super) struct Found {
    pub(super) link: StoredLink,
    pub(super) asked: Tick,
    /// It was not found but made, just now.
    pub(super) placed: bool,
}

/// What is to be done with a user whose owner was judged.
enum Decision {
    /// Answer the owner.
    Answer {
        /// Whether the cache may keep the answer.
        remember: bool,
    },
    /// Move the user: every incarnation of its pod up to this one is dead or shut down.
    Move(Incarnation),
}
