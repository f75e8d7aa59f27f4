//! Stopping: users are saved and released or handed over, then the pod withdraws.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use rand::Rng;

use super::events::Event;
use super::{LossReason, Ownership, Phase, ServerDriver, ServerShared};
use crate::clock::Tick;
use crate::config::Drain;
use crate::driver::view::View;
use crate::driver::with_deadline;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{LinkId, ServiceId, Uid};
use crate::op::Rewrite;
use crate::route::link::Persist;
use crate::route::pick::{Chance, Strategy};
use crate::route::snapshot::{Policy, Snapshot};
use crate::route::state::RoutingState;
use crate::telemetry::count;

/// How many drain hooks run at a time: a game that saves to a database wants some, not all.
const HOOKS_AT_ONCE: usize = 64;

/// How the hook of a user ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HookEnd {
    Well,
    Failed,
    /// It has not ended by the deadline, or was not started.
    Late,
}

/// The pods to hand users over to. OwnedUser while they are read: the others wait for that reading.
#[derive(Debug, Default)]
struct Targets(tokio::sync::Mutex<Option<Arc<View>>>);

/// What a stop did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DrainReport {
    /// Users that were released, by their hook or after it.
    pub released: u64,
    /// Users whose links were moved to another pod.
    pub handed_over: u64,
    /// Users whose links were left as they are, as the rule says.
    pub kept: u64,
    /// Users whose hook failed, or whom the store did not release: they are owned still.
    pub failed: Vec<Uid>,
    /// Users whose hook had not ended by the deadline, or was never started: they are owned still,
    /// until the lease runs out.
    pub unfinished: Vec<Uid>,
    /// How long it took.
    pub took: Duration,
}

impl DrainReport {
    /// Users whose links were left as they are.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.kept + (self.failed.len() + self.unfinished.len()) as u64
    }
}

impl ServerDriver {
    /// Publishes DENY_NEW_CALL, calls the drain hooks for every user that this process owns, treats
    /// each whose hook has ended well by `rule`, publishes SHUTDOWN, ends the lease and the
    /// renewals. Ends by `deadline` even if a hook hangs, and the tasks end in every case. If a hook
    /// has not ended, the lease is not ended but runs out: no pod takes a user whose save may still
    /// be under way. A second stop waits for the first and reports the same.
    ///
    /// # Errors
    /// `Timeout` of a second stop whose deadline is shorter than the first one's.
    pub async fn stop(&self, rule: Drain, deadline: Tick) -> Result<DrainReport> {
        let shared = &self.shared;
        let phase = {
            let mut state = shared.lock();
            let phase = state.phase;
            state.phase = match phase {
                Phase::Running => Phase::Draining,
                Phase::Draining | Phase::Stopped => phase,
                _ => Phase::Stopped,
            };
            phase
        };
        if !matches!(phase, Phase::Draining | Phase::Stopped) {
            let stopping = Stopping(Arc::clone(shared));
            // A task of its own: the lease must be progress back even if the caller stops waiting.
            tokio::spawn(async move {
                if phase == Phase::Running {
                    stopping.0.drain(rule, deadline).await;
                } else {
                    stopping.0.call_off_start(deadline).await;
                }
            });
        }
        let mut stopped = shared.stopped.subscribe();
        let mut until = deadline.after(MARGIN);
        if phase == Phase::Running {
            let done = stopped.wait_for(Option::is_some);
            let _late = with_deadline(&shared.clock, until, "the stop under way", done).await;
            // After a pause of the whole process the stop is as late as its caller.
            until = until.max(shared.clock.deadline(MARGIN));
        }
        let done = stopped.wait_for(Option::is_some);
        let report = with_deadline(&shared.clock, until, "the stop under way", done).await?;
        let report = report.ok().and_then(|report| report.clone());
        Ok(report.unwrap_or_default())
    }
}

impl ServerDriver {
    /// Ends a driver that its program has lost without a stop: nothing is published or renewed any
    /// more, and no hook is called. The lease is not ended but runs out: what the pod owns may still
    /// be written by a task that the program has left behind. Returns whether the driver ran. One
    /// that is being stopped goes on.
    pub fn abandon(&self) -> bool {
        let shared = &self.shared;
        {
            let mut state = shared.lock();
            if !matches!(state.phase, Phase::Starting | Phase::Running) {
                return false;
            }
            state.phase = Phase::Stopped;
        }
        let (service, pod, users) = (&shared.info.service, shared.info.pod, shared.owned.len());
        tracing::warn!(%service, pod = pod.get(), users, "a server driver was dropped while it ran; its lease runs out");
        shared.stopping.send_replace(true);
        drop(Stopping(Arc::clone(shared)));
        true
    }

    /// Whether the stop has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.lock().phase == Phase::Stopped && self.shared.stopped.borrow().is_some()
    }
}

/// The drain task keeps its own deadline; its callers wait this much longer.
const MARGIN: Duration = Duration::from_millis(500);

/// A stop under way: however it ends, its waiters are notified and the tasks are gone.
struct Stopping(Arc<ServerShared>);

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.end_tasks();
        self.0.valid_until.store(0, Ordering::SeqCst);
        self.0.owned.doubt();
        self.0.tell(Event::End);
        self.0.lock().phase = Phase::Stopped;
        self.0.stopped.send_if_modified(|report| {
            let missing = report.is_none();
            report.get_or_insert_default();
            missing
        });
    }
}

/// What became of the users so far.
#[derive(Debug, Default)]
struct DrainProgress {
    /// The program had a hook that saves users when the stop began.
    saves: bool,
    released: AtomicU64,
    handed_over: AtomicU64,
    kept: AtomicU64,
    failed: Mutex<Vec<Uid>>,
    unfinished: Mutex<Vec<Uid>>,
    hook_failures: DrainFailures,
    link_failures: DrainFailures,
}

impl DrainProgress {
    fn add(users: &Mutex<Vec<Uid>>, uid: &Uid) {
        let mut users = users.lock().unwrap_or_else(PoisonError::into_inner);
        users.push(uid.clone());
    }

    fn take(users: &Mutex<Vec<Uid>>) -> Vec<Uid> {
        std::mem::take(&mut *users.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Failures of the same kind: all of them get one line in the log. One line for each of ten
/// thousand users would hide everything else.
#[derive(Debug, Default)]
struct DrainFailures {
    count: AtomicU64,
    first: OnceLock<Error>,
}

impl DrainFailures {
    fn note(&self, error: Error) {
        count(&self.count);
        // The others are most likely the same.
        let _not_the_first = self.first.set(error);
    }

    fn log(&self, service: &ServiceId, what: &'static str) {
        if let Some(error) = self.first.get() {
            let failures = self.count.load(Ordering::Relaxed);
            tracing::warn!(%service, failures, first = %error, "{what}");
        }
    }
}

/// How the time of a stop is shared, so that what hangs in one step leaves time for the next.
struct DrainTimes {
    hooks_until: Tick,
    links_until: Tick,
}

impl DrainTimes {
    /// Withdrawing matters most, and comes last; second, that no user is linked to a pod that is gone.
    fn of(started: Tick, deadline: Tick) -> Self {
        const WITHDRAWAL: Duration = Duration::from_secs(2);
        const LINKS: Duration = Duration::from_secs(5);
        let quarter = deadline.since(started) / 4;
        let left_for_users = deadline.since(started) - quarter.min(WITHDRAWAL);
        Self {
            hooks_until: started.after(left_for_users - quarter.min(LINKS)),
            links_until: started.after(left_for_users),
        }
    }
}

impl ServerShared {
    async fn drain(&self, rule: Drain, deadline: Tick) {
        let started = self.clock.now();
        let DrainTimes {
            hooks_until,
            links_until,
        } = DrainTimes::of(started, deadline);
        self.publish_routing(RoutingState::DenyNewCall, hooks_until)
            .await;
        // After a lapse the renewal has just confirmed what this process owns, or soon will.
        // And the program knows the tokens by which it is going to save.
        let confirmed = async {
            self.confirmed().await?;
            self.hooks_ended().await;
            Ok::<(), Error>(())
        };
        let _in_doubt = with_deadline(&self.clock, hooks_until, "the owned users", confirmed).await;
        *self.given_away() = Some(HashSet::new());
        let progress = DrainProgress {
            saves: self.hooks.saves(),
            ..DrainProgress::default()
        };
        let targets = Targets::default();
        let drain_one = |(uid, held)| {
            let ownership = self.ownership(&self.own_link(&uid), held);
            let (progress, targets) = (&progress, &targets);
            async move {
                let hook = self.hook_of(&ownership, progress, hooks_until).await;
                if hook == HookEnd::Well {
                    self.give_up(&ownership, rule, targets, progress, links_until)
                        .await;
                }
            }
        };
        // What is still in doubt was not confirmed in time: no hook may save it as its owner.
        for (uid, _) in self.owned.all(false) {
            DrainProgress::add(&progress.unfinished, &uid);
        }
        stream::iter(self.owned.all(true))
            .for_each_concurrent(HOOKS_AT_ONCE, drain_one)
            .await;
        let service = &self.info.service;
        progress.hook_failures.log(service, "drain hooks failed");
        progress
            .link_failures
            .log(service, "links were not given away");
        let unfinished = DrainProgress::take(&progress.unfinished);
        if !unfinished.is_empty() {
            tracing::warn!(%service, users = unfinished.len(), "not every user was saved in time; the lease runs out by itself");
        }
        self.withdraw(unfinished.is_empty(), deadline).await;
        let report = DrainReport {
            released: progress.released.into_inner(),
            handed_over: progress.handed_over.into_inner(),
            kept: progress.kept.into_inner(),
            failed: DrainProgress::take(&progress.failed),
            unfinished,
            took: self.clock.now().since(started),
        };
        self.stats.drains.time(report.took);
        self.stopped.send_replace(Some(report));
    }

    fn given_away(&self) -> MutexGuard<'_, Option<HashSet<Uid>>> {
        self.given_away
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn was_given_away(&self, uid: &Uid) -> bool {
        let given = self.given_away();
        given.as_ref().is_some_and(|given| given.contains(uid))
    }

    /// Takes note of a user that was given away. It is read only if the pod is being stopped.
    pub(super) fn note_given_away(&self, uid: &Uid) {
        if let Some(given) = &mut *self.given_away() {
            given.insert(uid.clone());
        }
    }

    /// Calls the hook for one user. A hook that could not end is not started, and one that has not
    /// ended is cancelled.
    async fn hook_of(
        &self,
        ownership: &Ownership,
        progress: &DrainProgress,
        until: Tick,
    ) -> HookEnd {
        let uid = &ownership.link.uid;
        let asked = async {
            // Nor for a user that may be another's by now.
            if self.clock.now() >= until || !self.holds_lease() {
                return Err(HookEnd::Late);
            }
            let hook = self.hooks.drain(ownership, until);
            let hook = with_deadline(&self.clock, until, "the drain hook", hook).await;
            hook.map_err(|_| HookEnd::Late)
        };
        match asked.await {
            Ok(Ok(true)) => HookEnd::Well,
            Ok(Ok(false)) if !progress.saves => HookEnd::Well, // the program saves no user
            Ok(hook) => {
                let text = "the drain hook was removed while the pod stops";
                let removed = || Error::new(ErrorKind::IllegalState, text);
                let error = hook.err().unwrap_or_else(removed);
                count(&self.stats.drain_hook_failures);
                progress.hook_failures.note(error);
                DrainProgress::add(&progress.failed, uid);
                HookEnd::Failed
            }
            Err(late) => {
                count(&self.stats.drain_hook_failures);
                DrainProgress::add(&progress.unfinished, uid);
                late
            }
        }
    }

    /// Treats a user whose hook has ended well by the rule.
    async fn give_up(
        &self,
        ownership: &Ownership,
        rule: Drain,
        targets: &Targets,
        progress: &DrainProgress,
        deadline: Tick,
    ) {
        let (link, token) = (&ownership.link, ownership.owner.token);
        let held = self.owned.get(link.uid.as_str());
        if held.is_none_or(|held| held.token != token) {
            if self.was_given_away(&link.uid) {
                // By its hook.
                progress.released.fetch_add(1, Ordering::Relaxed);
                self.count_released(1);
            } else {
                progress.link_failures.note(self.no_lease_now());
                DrainProgress::add(&progress.failed, &link.uid);
            }
            return;
        }
        if rule == Drain::Keep {
            progress.kept.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let to = match rule {
            Drain::Handover => self.target_of(link, targets, deadline).await,
            _ => None,
        };
        // No pod takes new users: then at least no user waits for this pod.
        let target = to.unwrap_or(Rewrite::Nothing);
        let given = async {
            let _turn = self.enter(link, deadline).await?;
            let permit = self.permit()?;
            self.give_away(link, token, target, permit, deadline).await
        };
        match given.await {
            Ok(true) if to.is_some() => {
                progress.handed_over.fetch_add(1, Ordering::Relaxed);
                self.count_handed_over();
            }
            Ok(true) => {
                progress.released.fetch_add(1, Ordering::Relaxed);
                self.count_released(1);
            }
            Ok(false) => {
                // Another program has given the user away.
                let lost = (ownership.clone(), LossReason::Taken);
                self.ownerships_changed(vec![lost], Vec::new());
            }
            Err(error) => {
                progress.link_failures.note(error);
                DrainProgress::add(&progress.failed, &link.uid);
            }
        }
    }

    /// Where a user is handed over to; `None` if no pod takes users.
    async fn target_of(&self, link: &LinkId, targets: &Targets, deadline: Tick) -> Option<Rewrite> {
        let chance = Chance {
            turn: 0,
            random: (rand::rng().random(), rand::rng().random()),
        };
        let view = self.others(targets, deadline).await?;
        let (uid, now) = (link.uid.as_str(), self.clock.now());
        let to = view.choose(Strategy::P2c, uid, chance, now)?;
        // Without a grace period the new pod still needs a moment to make the user its own.
        const LEAST: Duration = Duration::from_secs(10);
        let ttl = self.config.link_grace.max(LEAST);
        Some(Rewrite::Link(to, Persist::For(ttl)))
    }

    /// The pods that may take this one's users, and the users sent to each so far. Read again now
    /// and then: leases are renewed while users are handed over, and a reading expires.
    async fn others(&self, targets: &Targets, deadline: Tick) -> Option<Arc<View>> {
        let mut last = targets.0.lock().await;
        let asked = self.clock.now();
        let young = last
            .as_ref()
            .is_some_and(|view| asked.since(view.snapshot.asked()) < self.config.renew);
        if young {
            return last.clone();
        }
        if let Ok(pods) = self.read_pods(deadline).await {
            let mut records = pods.records;
            records.retain(|record| record.state.pod_id != self.info.pod);
            let snapshot = Snapshot::new(records, asked, Policy::default());
            let view = View::new(snapshot, last.as_deref(), 1, asked);
            *last = Some(Arc::new(view));
        }
        last.clone()
    }

    /// Waits until a start under way has progress back what it has taken; ends it if that lasts.
    async fn call_off_start(&self, deadline: Tick) {
        self.stopping.send_replace(true);
        let until = deadline.min(self.soon());
        let turn = self.publishing.lock();
        let _turn = with_deadline(&self.clock, until, "the start under way", turn).await;
        self.end_tasks();
    }

    /// Publishes a routing state; a failure is logged.
    async fn publish_routing(&self, routing: RoutingState, deadline: Tick) {
        {
            let mut state = self.lock();
            if state.routing.check_move(routing).is_err() {
                return;
            }
            state.routing = routing;
        }
        if let Err(error) = self.publish(deadline.min(self.soon())).await {
            let (service, pod) = (&self.info.service, self.info.pod);
            tracing::warn!(%service, pod = pod.get(), state = routing.as_str(), %error, "the last state was not published");
        }
    }

    /// Publishes that the pod is gone, and ends its lease or lets it run out. Afterwards no task is
    /// left, and nothing is published any more.
    async fn withdraw(&self, end_lease: bool, deadline: Tick) {
        self.publish_routing(RoutingState::Shutdown, deadline).await;
        let until = deadline.min(self.soon());
        let told = self.hooks_ended();
        let _late = with_deadline(&self.clock, until, "the hooks of ownership", told).await;
        // A renewal after the end would find its incarnation dead, and bring the pod back as a
        // new one.
        self.end_tasks();
        let turn = self.publishing.lock();
        let until = deadline.min(self.soon());
        let _turn = with_deadline(&self.clock, until, "the last publication", turn).await;
        self.valid_until.store(0, Ordering::SeqCst);
        let incarnation = {
            let mut state = self.lock();
            state.phase = Phase::Stopped;
            state.incarnation
        };
        if end_lease && self.give_back(incarnation, until).await {
            self.write_last_workload(deadline.min(self.soon())).await;
        }
    }
}
