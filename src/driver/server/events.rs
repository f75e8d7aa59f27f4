//! What happens to the lease and to owned users, as the program's hooks get it: in order, one
//! event after the other, each with a time limit.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use super::{Ownership, PodHooks, ServerShared};
use crate::clock::Tick;
use crate::op::StoredUser;
use crate::telemetry::count;

/// How many hooks of one event run at a time.
const HOOKS_AT_ONCE: usize = 64;

/// What happened to the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseEvent {
    /// It ended without a renewal. Nothing is lost yet, and the pod may not act.
    Suspended,
    /// It was renewed again, and what still stands was confirmed.
    Resumed,
    /// It was lost for good, and with it every user.
    Lost,
}

/// Why something happened to the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseReason {
    /// It was not renewed in time.
    NotRenewed,
    /// A renewal succeeded.
    Renewed,
    /// The store has declared this incarnation dead.
    DeclaredDead,
    /// A later process holds the pod index.
    Superseded,
}

impl LeaseReason {
    /// The reason as programs see it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotRenewed => "not_renewed",
            Self::Renewed => "renewed",
            Self::DeclaredDead => "declared_dead",
            Self::Superseded => "superseded",
        }
    }
}

/// Why a user is owned no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossReason {
    /// Another process owns the user.
    Taken,
    /// The link was removed or overwritten, and no process owns the user.
    Removed,
    /// The lease was lost.
    LeaseLost,
}

impl LossReason {
    /// The reason as programs see it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Removed => "removed",
            Self::LeaseLost => "lease_lost",
        }
    }

    /// Why a user is lost of whom this was found.
    pub(super) const fn of(found: &StoredUser) -> Self {
        match found.record {
            Some(_) => Self::Taken,
            None => Self::Removed,
        }
    }
}

/// One event, for the hooks.
#[derive(Debug)]
pub(super) enum Event {
    Lease(LeaseEvent, LeaseReason),
    /// The lease is lost, and these users with it: until the hooks have ended the pod may not act.
    Lost(LeaseReason, Vec<Ownership>),
    /// The driver was stopped: nothing comes after it.
    End,
    /// Users were lost, and owned by a new token (new, old).
    Ownerships(Vec<(Ownership, LossReason)>, Vec<(Ownership, Ownership)>),
}

impl ServerShared {
    /// Queues an event for the hooks.
    pub(super) fn tell(&self, event: Event) {
        self.events_told.fetch_add(1, Ordering::SeqCst);
        // The task that calls the hooks has ended: then no hook is called any more.
        if self.events.send(event).is_err() {
            self.events_told.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Users were lost, or are owned by a new token.
    pub(super) fn ownerships_changed(
        &self,
        lost: Vec<(Ownership, LossReason)>,
        renewed: Vec<(Ownership, Ownership)>,
    ) {
        for (_, reason) in &lost {
            self.count_loss(*reason);
        }
        if !lost.is_empty() || !renewed.is_empty() {
            self.tell(Event::Ownerships(lost, renewed));
        }
    }

    /// The events' other end, for the task that calls the hooks; once.
    pub(super) fn take_events(&self) -> Option<mpsc::UnboundedReceiver<Event>> {
        let waiting = self.events_waiting.lock();
        waiting.unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn count_loss(&self, reason: LossReason) {
        count(match reason {
            LossReason::Taken => &self.stats.lost_taken,
            LossReason::Removed => &self.stats.lost_removed,
            LossReason::LeaseLost => &self.stats.lost_with_lease,
        });
    }

    /// Waits until the hooks of all events so far have ended, or their time is over.
    pub(super) async fn hooks_ended(&self) {
        let told = self.events_told.load(Ordering::SeqCst);
        let mut heard = self.events_heard.subscribe();
        // The sender is a field of this driver's, so it is there.
        let _there = heard.wait_for(|heard| *heard >= told).await;
    }

    fn heard(&self, loss: bool) {
        if loss {
            self.losses_heard();
        }
        self.events_heard.send_modify(|heard| *heard += 1);
    }
}

/// The task that calls the hooks, in the order of the events. It ends after the last event of a stop,
/// and with the driver.
pub(super) async fn deliver(
    shared: Weak<ServerShared>,
    mut events: mpsc::UnboundedReceiver<Event>,
) {
    while let Some(event) = events.recv().await {
        if matches!(event, Event::End) {
            return;
        }
        let Some((hooks, limit, until)) = shared.upgrade().map(|shared| {
            let limit = shared.config.times.lease;
            let until = shared.clock.deadline(limit);
            (Arc::clone(&shared.hooks), limit, until)
        }) else {
            return;
        };
        let loss = matches!(event, Event::Lost(..));
        let called = tokio::time::timeout(limit, call(hooks, event, until)).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let failures = called.unwrap_or(1);
        if failures > 0 {
            let service = &shared.info.service;
            tracing::warn!(%service, pod = shared.info.pod.get(), failures, "hooks of an ownership event failed or were late");
        }
        for _ in 0..failures {
            count(&shared.stats.ownership_hook_failures);
        }
        shared.heard(loss);
    }
}

/// Calls the hooks of one event; returns how many failed.
async fn call(hooks: Arc<dyn PodHooks>, event: Event, until: Tick) -> usize {
    let (lost, renewed) = match event {
        Event::Lease(what, why) => {
            return usize::from(hooks.lease(what, why, until).await.is_err());
        }
        Event::Lost(why, users) => {
            let failed = hooks.lease(LeaseEvent::Lost, why, until).await.is_err();
            let lost = users
                .into_iter()
                .map(|user| (user, LossReason::LeaseLost))
                .collect();
            return usize::from(failed) + call_lost(hooks, lost, until).await;
        }
        Event::Ownerships(lost, renewed) => (lost, renewed),
        Event::End => return 0,
    };
    let failed = call_lost(Arc::clone(&hooks), lost, until).await;
    let renewed = stream::iter(renewed).map(|(new, old)| {
        let hooks = Arc::clone(&hooks);
        async move { hooks.ownership_renewed(&new, &old, until).await.is_err() }
    });
    let ended = renewed.buffer_unordered(HOOKS_AT_ONCE);
    failed
        + ended
            .filter(|failed| std::future::ready(*failed))
            .count()
            .await
}

async fn call_lost(
    hooks: Arc<dyn PodHooks>,
    lost: Vec<(Ownership, LossReason)>,
    until: Tick,
) -> usize {
    let lost = stream::iter(lost).map(|(user, why)| {
        let hooks = Arc::clone(&hooks);
        async move { hooks.ownership_lost(&user, why, until).await.is_err() }
    });
    let ended = lost.buffer_unordered(HOOKS_AT_ONCE);
    ended
        .filter(|failed| std::future::ready(*failed))
        .count()
        .await
}
