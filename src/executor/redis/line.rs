//! The line to the server: at most one connection, made anew when it breaks.
//!
//! One task, the supervisor, dials, moves the connection's bytes and watches over it. Calls only
//! look at the line's state, so no lock is held while anybody waits.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use redis::aio::MultiplexedConnection;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::dial::{Dialer, Dialled, Driver, Failure};
use super::stats::Stats;
use crate::clock::{Clock, Tick};
use crate::error::{Error, ErrorKind, Result};

/// This many calls in a row without an answer, and the connection is given up.
const STRIKES: u32 = 3;
/// A call that waited shorter than this proves nothing about the connection.
const STRIKE_LEAST: Duration = Duration::from_millis(100);
/// The connection is asked for a sign of life this often.
const PING_EVERY: Duration = Duration::from_secs(5);
/// The rest after the first failed attempt to connect...
const REST_LEAST: Duration = Duration::from_millis(50);
/// ...and the longest, before jitter (which at most doubles it).
const REST_MOST: Duration = Duration::from_millis(500);
/// A connection that lasted this long was a good one: the next attempt need not rest.
const STEADY: Duration = Duration::from_secs(1);

/// The line as calls see it. Dropping it ends the supervisor.
pub(super) struct Line {
    shared: Arc<Shared>,
    /// The supervisor, started by the first call on the runtime of that call. It ends when this
    /// is dropped, with [`Line::close`], or with its runtime; then the next call starts another.
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    dialer: Dialer,
    clock: Clock,
    stats: Stats,
    state: watch::Sender<State>,
}

#[derive(Debug, Clone)]
enum State {
    /// No supervisor runs.
    Idle,
    /// An attempt is under way; the last one, if it was no success, failed like this.
    Dialing(Option<Failure>),
    /// The last attempt failed like this, and the next one begins then.
    Resting(Failure, Tick),
    /// Connected.
    Up(Live),
    /// Closed for good.
    Closed,
}

/// One connection, with what calls have found out about it.
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub(super) connection: MultiplexedConnection,
    health: Arc<Health>,
}

#[derive(Debug, Default)]
struct Health {
    /// Calls in a row that were not answered.
    strikes: AtomicU32,
    /// Asks the supervisor for a PING at once.
    doubt: Notify,
    /// Asks the supervisor to give the connection up, and says why.
    condemned: Notify,
    reason: OnceLock<&'static str>,
}

impl Live {
    fn new(connection: MultiplexedConnection) -> Self {
        Self {
            connection,
            health: Arc::default(),
        }
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.health, &other.health)
    }

    /// A call was answered.
    pub(super) fn answered(&self) {
        if self.health.strikes.load(Ordering::Relaxed) != 0 {
            self.health.strikes.store(0, Ordering::Relaxed);
        }
    }

    /// A call was not answered within `waited`.
    pub(super) fn unanswered(&self, waited: Duration) {
        self.health.doubt.notify_one();
        if waited >= STRIKE_LEAST
            && self.health.strikes.fetch_add(1, Ordering::Relaxed) + 1 >= STRIKES
        {
            self.condemn("several calls in a row were not answered");
        }
    }

    /// The connection leads to the wrong place: another one is wanted.
    pub(super) fn condemn(&self, reason: &'static str) {
        // The first reason is the one that is told.
        let _ = self.health.reason.set(reason);
        self.health.condemned.notify_one();
    }
}

impl Line {
    /// A line that nobody has used yet. No I/O, no task.
    pub(super) fn new(dialer: Dialer, clock: Clock) -> Self {
        let (state, _) = watch::channel(State::Idle);
        let shared = Arc::new(Shared {
            dialer,
            clock,
            stats: Stats::default(),
            state,
        });
        Self {
            shared,
            supervisor: Mutex::new(None),
        }
    }

    pub(super) fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(*self.shared.state.borrow(), State::Closed)
    }

    /// A connection that works, as far as anybody knows. `not` is one that the caller has just
    /// seen break: the supervisor may not have heard of it yet.
    pub(super) async fn connection(&self, not: Option<&Live>, deadline: Tick) -> Result<Live> {
        if let State::Up(live) = &*self.shared.state.borrow()
            && not.is_none_or(|dead| !dead.is(live))
        {
            return Ok(live.clone());
        }
        self.wait(not, deadline).await
    }

    /// Waits for a connection until the deadline, so that a server that restarts costs its
    /// callers a moment and not an error. A call fails at once if waiting cannot help: if the
    /// next attempt begins after its deadline, or if somebody has to mend something first.
    async fn wait(&self, not: Option<&Live>, deadline: Tick) -> Result<Live> {
        let shared = &self.shared;
        let mut states = shared.state.subscribe();
        loop {
            let state = states.borrow_and_update().clone();
            match &state {
                State::Up(live) if not.is_none_or(|dead| !dead.is(live)) => return Ok(live.clone()),
                State::Up(_) | State::Dialing(_) => {}
                State::Resting(failure, until) if failure.hopeless || *until >= deadline => {
                    return Err(failure.error.clone());
                }
                State::Resting(..) => {}
                State::Idle => self.start()?,
                State::Closed => return Err(closed()),
            }
            let left = deadline.since(shared.clock.now());
            if tokio::time::timeout(left, states.changed()).await.is_err() {
                return Err(match state {
                    State::Dialing(Some(failure)) | State::Resting(failure, _) => failure.error,
                    _ => shared
                        .dialer
                        .unavailable("not connected before the call's deadline"),
                });
            }
        }
    }

    fn start(&self) -> Result<()> {
        let mut supervisor = self
            .supervisor
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Another call may have been quicker.
        let started = self.shared.state.send_if_modified(|state| {
            let idle = matches!(state, State::Idle);
            if idle {
                *state = State::Dialing(None);
            }
            idle
        });
        if started {
            let runtime = Handle::try_current().map_err(|error| {
                Error::new(ErrorKind::Internal, "a store was used outside of a runtime")
                    .caused_by(error)
            })?;
            *supervisor = Some(runtime.spawn(supervise(Arc::clone(&self.shared))));
        }
        Ok(())
    }

    /// Ends the connection and the supervisor. Calls that wait fail with `Closed`.
    pub(super) async fn close(&self) {
        self.shared.state.send_replace(State::Closed);
        let task = self
            .supervisor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task {
            task.abort();
            // It was cancelled, or it had ended: either is what was asked for.
            let _ = task.await;
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let task = self
            .supervisor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task {
            task.abort();
        }
    }
}

/// The error of a call on a closed store.
pub(super) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the store was closed")
}

impl Shared {
    /// Closed is the end; every other state may follow any other.
    fn go(&self, next: State) {
        self.state.send_if_modified(|state| {
            let open = !matches!(state, State::Closed);
            if open {
                *state = next;
            }
            open
        });
    }
}

/// Tells calls when the supervisor has gone, also if its runtime dropped it.
struct Watching(Arc<Shared>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.go(State::Idle);
    }
}

async fn supervise(shared: Arc<Shared>) {
    let watching = Watching(shared);
    let shared = &watching.0;
    let mut rests = rests();
    let mut failed = None;
    loop {
        shared.go(State::Dialing(failed.take()));
        let failure = match shared.dialer.dial().await {
            Ok(dialled) => {
                shared.stats.count_connect();
                let began = shared.clock.now();
                let failure = serve(shared, dialled).await;
                shared.stats.count_disconnect();
                if shared.clock.now().since(began) >= STEADY {
                    rests = self::rests();
                    failed = Some(failure);
                    continue;
                }
                failure
            }
            Err(failure) => {
                shared.stats.count_failed_dial();
                failure
            }
        };
        let rest = rests.next().unwrap_or(REST_MOST);
        shared.go(State::Resting(failure.clone(), shared.clock.deadline(rest)));
        tokio::time::sleep(rest).await;
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

/// Carries one connection until it ends, and says how it ended.
async fn serve(shared: &Shared, (connection, mut driver): Dialled) -> Failure {
    let live = Live::new(connection.clone());
    shared.go(State::Up(live.clone()));
    let why = watch_over(
        &live.health,
        connection,
        &mut driver,
        shared.dialer.timeout(),
    )
    .await;
    let failure = Failure::passing(shared.dialer.unavailable(why));
    // Callers must see that the connection has gone before the driver drops their calls.
    shared.go(State::Dialing(Some(failure.clone())));
    drop(driver);
    failure
}

async fn watch_over(
    health: &Health,
    connection: MultiplexedConnection,
    driver: &mut Driver,
    limit: Duration,
) -> &'static str {
    tokio::select! {
        () = driver => "the connection was lost",
        () = health.condemned.notified() => health.reason.get().copied().unwrap_or("given up"),
        why = signs_of_life(health, connection, limit) => why,
    }
}

/// Asks for a sign of life every now and then, and whenever a call was not answered. Returns
/// when there was none.
async fn signs_of_life(
    health: &Health,
    mut connection: MultiplexedConnection,
    limit: Duration,
) -> &'static str {
    let ping = redis::cmd("PING");
    loop {
        // Either way it is time to ask.
        let _ = tokio::time::timeout(PING_EVERY, health.doubt.notified()).await;
        // An error of the server is a sign of life too.
        match tokio::time::timeout(limit, connection.send_packed_command(&ping)).await {
            Ok(Ok(_)) => health.strikes.store(0, Ordering::Relaxed),
            Ok(Err(_)) => return "the connection was lost",
            Err(_) => return "a PING was not answered",
        }
    }
}
