//! Stopping: users are saved and released or handed over, then the pod withdraws.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use rand::Rng;

use super::{Phase, ServerDriver, ServerShared};
use crate::clock::Tick;
use crate::config::Drain;
use crate::driver::view::View;
use crate::driver::with_deadline;
use crate::error::{Error, Result};
use crate::id::{LinkId, ServiceId};
use crate::op::{Relink, Remove};
use crate::route::link::{Life, StoredLink};
use crate::route::pick::{Chance, Strategy};
use crate::route::snapshot::{Policy, Snapshot};
use crate::route::state::RoutingState;
use crate::telemetry::count;

/// How many drain hooks run at a time: a game that saves to a database wants some, not all.
const HOOKS_AT_ONCE: usize = 64;
/// How many links are released at a time: they share one connection.
const LINKS_AT_ONCE: usize = 256;

/// What a stop did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DrainReport {
    /// Users whose links were released, by the hooks or afterwards.
    pub released: u64,
    /// Users whose links were moved to another pod.
    pub handed_over: u64,
    /// Users whose links were left as they are.
    pub remaining: u64,
    /// How long it took.
    pub took: Duration,
}

impl ServerDriver {
    /// Publishes DENY_NEW_CALL, lets the drain hooks save and release the users that this pod
    /// owns, treats those that remain by `rule`, publishes SHUTDOWN, ends the lease and the
    /// renewals. Ends by `deadline` even if a hook hangs, and the tasks end in every case. A second stop
    /// waits for the first and reports the same.
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
        let done = stopped.wait_for(Option::is_some);
        let report = with_deadline(
            &shared.clock,
            deadline.after(MARGIN),
            "the stop under way",
            done,
        )
        .await?;
        Ok(report.ok().and_then(|report| *report).unwrap_or_default())
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
        self.0.lock().phase = Phase::Stopped;
        self.0.stopped.send_if_modified(|report| {
            let missing = report.is_none();
            report.get_or_insert_default();
            missing
        });
    }
}

/// How many users were released and handed over so far.
#[derive(Debug, Default)]
struct DrainProgress {
    released: AtomicU64,
    handed_over: AtomicU64,
    failures: DrainFailures,
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
        let lease = self.lease_number();
        let users = self.users();
        let failures = DrainFailures::default();
        let asked = self.ask_hooks(users.clone(), &failures);
        let in_time = with_deadline(&self.clock, hooks_until, "drain hooks", asked).await;
        failures.log(&self.info.service, "drain hooks failed");
        if let Err(error) = in_time {
            tracing::warn!(service = %self.info.service, %error, "not every drain hook has ended");
        }
        let progress = DrainProgress::default();
        if lease == self.lease_number() {
            let gone = users.iter().filter(|user| !self.owned().contains(user));
            let gone = gone.count() as u64;
            progress.released.store(gone, Ordering::Relaxed);
            self.count_released(gone);
        }
        let releasing = self.release_users(rule, &progress, links_until);
        let _out_of_time =
            with_deadline(&self.clock, links_until, "the links of the pod", releasing).await;
        progress
            .failures
            .log(&self.info.service, "links were not given away");
        self.withdraw(deadline).await;
        let report = DrainReport {
            released: progress.released.into_inner(),
            handed_over: progress.handed_over.into_inner(),
            remaining: self.owned().len() as u64,
            took: self.clock.now().since(started),
        };
        self.stats.drains.time(report.took);
        self.stopped.send_replace(Some(report));
    }

    fn users(&self) -> Vec<LinkId> {
        self.owned().iter().cloned().collect()
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

    async fn ask_hooks(&self, users: Vec<LinkId>, failures: &DrainFailures) {
        let ask = |link: LinkId| async move {
            if let Err(error) = self.hooks.drain(&link).await {
                count(&self.stats.drain_hook_failures);
                failures.note(error);
            }
        };
        stream::iter(users)
            .for_each_concurrent(HOOKS_AT_ONCE, ask)
            .await;
    }

    /// Treats the users that are still owned by the rule.
    async fn release_users(&self, rule: Drain, progress: &DrainProgress, deadline: Tick) {
        if rule == Drain::Keep {
            return;
        }
        let mut targets = None;
        for users in self.users().chunks(LINKS_AT_ONCE) {
            if rule == Drain::Handover {
                // Read again for each chunk: leases are renewed while users are handed over, and a
                // reading expires.
                let fresh = self.others(targets.as_ref(), deadline).await;
                targets = fresh.or(targets);
            }
            let work = users.iter().map(|link| async {
                if let Err(error) = self
                    .release_or_hand_over(link, targets.as_ref(), progress, deadline)
                    .await
                {
                    progress.failures.note(error);
                }
            });
            join_all(work).await;
        }
    }

    async fn release_or_hand_over(
        &self,
        link: &LinkId,
        targets: Option<&View>,
        progress: &DrainProgress,
        deadline: Tick,
    ) -> Result<()> {
        let moved = match targets {
            Some(view) => self.hand_over(link, view, deadline).await?,
            None => false,
        };
        if moved {
            progress.handed_over.fetch_add(1, Ordering::Relaxed);
            self.count_handed_over();
        } else {
            // No pod takes new users: then at least no user waits for this pod.
            let owner = Some(self.info.pod);
            let removal = self.grace();
            let remove = Remove {
                link: link.clone(),
                owner,
                removal,
            };
            let removed = self.store.ask(remove, deadline).await?;
            let released = u64::from(removed.done);
            progress.released.fetch_add(released, Ordering::Relaxed);
            self.count_released(released);
        }
        self.owned().remove(link);
        Ok(())
    }

    /// The pods that may take this one's users; `previous` counts the users sent to each so far.
    async fn others(&self, previous: Option<&View>, deadline: Tick) -> Option<View> {
        let asked = self.clock.now();
        let mut records = self.read_pods(deadline).await.ok()?.records;
        records.retain(|record| record.state.pod_id != self.info.pod);
        let snapshot = Snapshot::new(records, asked, Policy::default());
        Some(View::new(snapshot, previous, 1, asked))
    }

    /// Moves a user to another pod, if the link is still this pod's. `false`: no pod takes users.
    async fn hand_over(&self, link: &LinkId, view: &View, deadline: Tick) -> Result<bool> {
        let chance = Chance {
            turn: 0,
            random: (rand::rng().random(), rand::rng().random()),
        };
        let (uid, now) = (link.uid.as_str(), self.clock.now());
        let Some(to) = view.choose(Strategy::P2c, uid, chance, now) else {
            return Ok(false);
        };
        let from = StoredLink {
            pod: self.info.pod,
            life: Life::Persistent,
        };
        // Without a grace period the new pod still needs a moment to make the user its own.
        const LEAST: Duration = Duration::from_secs(10);
        let ttl = self.config.link_grace.max(LEAST);
        let incarnation = self.lock().incarnation;
        let relink = Relink {
            link: link.clone(),
            from,
            dead: incarnation,
            to,
            ttl,
        };
        let moved = self.store.ask(relink, deadline).await?;
        Ok(moved.is_some_and(|placed| placed.made))
    }

    /// Publishes that the pod is gone. Afterwards no task is left, and nothing is published any more.
    async fn withdraw(&self, deadline: Tick) {
        self.publish_routing(RoutingState::Shutdown, deadline).await;
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
        if self.give_back(incarnation, until).await {
            self.write_last_workload(deadline.min(self.soon())).await;
        }
    }
}
