//! The supervisor: one task that dials, drives the connection and reconnects when it is lost.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use super::connection::Connection;
use super::dial::{DialFailure, DialedConnection};
use super::node_state::{NodeShared, NodeState};
use crate::clock::Tick;

/// The backoff after the first failed attempt to connect...
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// ...and the longest one, before jitter (which at most doubles it).
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// A connection that lasted this long was stable: the reconnect needs no backoff.
const STABLE_AFTER: Duration = Duration::from_secs(1);
/// How long a retired connection may still deliver responses to requests that were sent.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(250);

/// Sets the state to `Idle` when the supervisor ends, also if its runtime drops it.
struct IdleOnDrop(Arc<NodeShared>);

impl Drop for IdleOnDrop {
    fn drop(&mut self) {
        self.0.transition(NodeState::Idle);
    }
}

/// Keeps the node connected until the task is dropped.
pub(super) async fn supervise(shared: Arc<NodeShared>) {
    let guard = IdleOnDrop(shared);
    let shared = &guard.0;
    let mut backoff = backoff();
    let mut failed = None;
    let mut outage = Outage::default();
    loop {
        shared.transition(NodeState::Dialing(failed.take()));
        let began = shared.clock.now();
        let (failure, connected) = match shared.dialer.dial().await {
            Ok(dialed) => {
                outage.ended(shared);
                (serve(shared, dialed).await, true)
            }
            Err(failure) => {
                shared.stats.count_failed_dial();
                (failure, false)
            }
        };
        outage.goes_on(shared, &failure);
        if connected && shared.clock.now().since(began) >= STABLE_AFTER {
            backoff = self::backoff();
        } else {
            // A connection that breaks at once, every time, is as bad as a failed attempt.
            back_off(shared, &failure, &mut backoff).await;
        }
        failed = Some(failure);
    }
}

/// Since when the store is away: one log line when it is lost, one when it is found again.
#[derive(Default)]
struct Outage(Option<Tick>);

impl Outage {
    fn goes_on(&mut self, shared: &NodeShared, failure: &DialFailure) {
        if self.0.is_none() {
            self.0 = Some(shared.clock.now());
            let why = &failure.error;
            tracing::warn!(%why, "the store is away: calls wait for it until their deadlines");
        }
    }

    fn ended(&mut self, shared: &NodeShared) {
        if let Some(since) = self.0.take() {
            let away = shared.clock.now().since(since).as_secs_f64();
            let store = shared.dialer.endpoint();
            // As visible as its loss.
            tracing::warn!(%store, away_seconds = %format_args!("{away:.3}"), "the store is back");
        }
    }
}

fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(BACKOFF_MIN)
        .with_max_delay(BACKOFF_MAX)
        .without_max_times()
        .with_jitter()
        .build()
}

async fn back_off(shared: &NodeShared, failure: &DialFailure, backoff: &mut ExponentialBackoff) {
    let delay = backoff.next().unwrap_or(BACKOFF_MAX);
    shared.transition(NodeState::BackingOff(
        failure.clone(),
        shared.clock.deadline(delay),
    ));
    tokio::time::sleep(delay).await;
}

/// Drives one connection until it ends; returns why it ended.
async fn serve(shared: &NodeShared, dialed: DialedConnection) -> DialFailure {
    shared.stats.count_connect();
    let (multiplexed, mut driver) = (dialed.connection, dialed.driver);
    let connection = Connection::new(multiplexed.clone(), dialed.server);
    let health = connection.health();
    shared.transition(NodeState::Up(connection));
    let end = health
        .watch(multiplexed, &mut driver, shared.dialer.timeout())
        .await;
    shared.stats.count_disconnect();
    let failure = DialFailure::transient(shared.dialer.unavailable(end.as_str()));
    // Callers must see that the connection is gone before the driver drops their calls.
    shared.transition(NodeState::Dialing(Some(failure.clone())));
    if end.may_still_respond() {
        // Only calls that wait for a response hold the connection now, so the driver ends by
        // itself with the last of them. Dropping it would leave their outcome unknown.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, &mut driver).await;
    }
    failure
}
