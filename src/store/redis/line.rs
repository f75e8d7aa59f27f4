//! The line to the server: at most one connection, made anew when it breaks.
//!
//! One task, the supervisor, dials, moves the connection's bytes and watches over it. Calls only
//! look at the line's state, so no lock is held while anybody waits.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::dial::{Dialer, Failure};
use super::live::Live;
use super::stats::Stats;
use super::supervisor::supervise;
use crate::clock::{Clock, Tick};
use crate::error::{Error, ErrorKind, Result};

/// How long closing waits for the supervisor to be gone.
const CLOSING: Duration = Duration::from_secs(1);

/// The line as calls see it. Dropping it ends the supervisor.
pub(super) struct Line {
    shared: Arc<Shared>,
    /// The supervisor, started by the first call on the runtime of that call. It ends when this
    /// is dropped, with [`Line::close`], or with its runtime; then the next call starts another.
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

/// What the line and its supervisor share.
pub(super) struct Shared {
    pub(super) dialer: Dialer,
    pub(super) clock: Clock,
    pub(super) stats: Stats,
    state: watch::Sender<State>,
}

/// What the supervisor is doing.
#[derive(Debug, Clone)]
pub(super) enum State {
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

    /// Whether there is a connection that works, as far as anybody knows.
    pub(super) fn is_up(&self) -> bool {
        matches!(&*self.shared.state.borrow(), State::Up(live) if live.serves())
    }

    /// A connection that works, as far as anybody knows.
    pub(super) async fn connection(&self, deadline: Tick) -> Result<Live> {
        if let State::Up(live) = &*self.shared.state.borrow()
            && live.serves()
        {
            return Ok(live.clone());
        }
        self.wait(deadline).await
    }

    /// Waits for a connection until the deadline, so that a server that restarts costs its
    /// callers a moment and not an error. A call fails at once if waiting cannot help: if the
    /// next attempt begins after its deadline, or if somebody has to mend something first.
    async fn wait(&self, deadline: Tick) -> Result<Live> {
        let shared = &self.shared;
        let mut states = shared.state.subscribe();
        loop {
            let state = states.borrow_and_update().clone();
            match &state {
                State::Up(live) if live.serves() => return Ok(live.clone()),
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
        let runtime = Handle::try_current().map_err(|error| {
            Error::new(ErrorKind::Internal, "a store was used outside of a runtime")
                .caused_by(error)
        })?;
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
            // It was cancelled, or it had ended: either is what was asked for. A runtime that
            // nobody drives any more ends nothing, and is not waited for.
            let _ = tokio::time::timeout(CLOSING, task).await;
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
    pub(super) fn go(&self, next: State) {
        self.state.send_if_modified(|state| {
            let open = !matches!(state, State::Closed);
            if open {
                *state = next;
            }
            open
        });
    }
}
