//! The supervisor: one task that dials, moves the connection's bytes and dials again.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

use super::dial::{Dialled, Failure};
use super::line::{Shared, State};
use super::live::Live;

/// The rest after the first failed attempt to connect...
const REST_LEAST: Duration = Duration::from_millis(50);
/// ...and the longest, before jitter (which at most doubles it).
const REST_MOST: Duration = Duration::from_millis(500);
/// A connection that lasted this long was a good one: the next attempt need not rest.
const STEADY: Duration = Duration::from_secs(1);
/// How long a connection that is given up may still deliver the answers it owes.
const DRAIN: Duration = Duration::from_millis(250);

/// Tells calls when the supervisor has gone, also if its runtime dropped it.
struct Watching(Arc<Shared>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.go(State::Idle);
    }
}

/// Keeps the line up until it is dropped.
pub(super) async fn supervise(shared: Arc<Shared>) {
    let watching = Watching(shared);
    let shared = &watching.0;
    let mut rests = rests();
    let mut failed = None;
    loop {
        shared.go(State::Dialing(failed.take()));
        let began = shared.clock.now();
        let (failure, connected) = match shared.dialer.dial().await {
            Ok(dialled) => (serve(shared, dialled).await, true),
            Err(failure) => {
                shared.stats.count_failed_dial();
                (failure, false)
            }
        };
        if connected && shared.clock.now().since(began) >= STEADY {
            rests = self::rests();
        } else {
            // A connection that breaks at once, time and again, is as bad as none.
            rest(shared, &failure, &mut rests).await;
        }
        failed = Some(failure);
    }
}

fn rests() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(REST_LEAST)
        .with_max_delay(REST_MOST)
        .without_max_times()
        .with_jitter()
        .build()
}

async fn rest(shared: &Shared, failure: &Failure, rests: &mut ExponentialBackoff) {
    let rest = rests.next().unwrap_or(REST_MOST);
    shared.go(State::Resting(failure.clone(), shared.clock.deadline(rest)));
    tokio::time::sleep(rest).await;
}

/// Carries one connection until it ends, and says how it ended.
async fn serve(shared: &Shared, (connection, mut driver): Dialled) -> Failure {
    shared.stats.count_connect();
    let live = Live::new(connection.clone());
    let health = live.health();
    shared.go(State::Up(live));
    let end = health
        .watch(connection, &mut driver, shared.dialer.timeout())
        .await;
    shared.stats.count_disconnect();
    let failure = Failure::passing(shared.dialer.unavailable(end.as_str()));
    // Callers must see that the connection has gone before the driver drops their calls.
    shared.go(State::Dialing(Some(failure.clone())));
    if end.still_answers() {
        // Only calls that wait for an answer hold the connection now, so the driver ends by
        // itself with the last of them. Dropped, it would leave them in doubt.
        let _ = tokio::time::timeout(DRAIN, &mut driver).await;
    }
    failure
}
