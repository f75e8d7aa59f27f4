//! One supervised server: at most one connection, re-established when it is lost.
//!
//! One task, the supervisor, dials, drives the connection and checks its health. Calls only
//! read the node's state, so no lock is held while a call waits.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::connection::Connection;
use super::dial::Dialer;
use super::node_state::{NodeShared, NodeState};
use super::stats::Stats;
use super::supervisor::supervise;
use crate::clock::{Clock, Tick};
use crate::error::{Error, ErrorKind, Result};

/// How long `close` waits for the supervisor to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The node as calls see it. Dropping it ends the supervisor.
pub(super) struct Node {
    shared: Arc<NodeShared>,
    /// The supervisor, spawned by the first call on the runtime of that call. It ends when this
    /// is dropped, with [`Node::close`], or with its runtime; then the next call spawns another.
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

impl Node {
    /// A node that is not connected yet. No I/O, no task.
    pub(super) fn new(dialer: Dialer, clock: Clock) -> Self {
        let (state, _) = watch::channel(NodeState::Idle);
        let shared = Arc::new(NodeShared {
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
        matches!(*self.shared.state.borrow(), NodeState::Closed)
    }

    /// Whether there is a connection that is not known to be broken.
    pub(super) fn is_up(&self) -> bool {
        matches!(&*self.shared.state.borrow(), NodeState::Up(connection) if connection.is_usable())
    }

    /// A connection that is not known to be broken.
    pub(super) async fn connection(&self, deadline: Tick) -> Result<Connection> {
        if let NodeState::Up(connection) = &*self.shared.state.borrow()
            && connection.is_usable()
        {
            return Ok(connection.clone());
        }
        self.wait(deadline).await
    }

    /// Waits for a connection until the deadline, so that a server restart delays its callers
    /// instead of failing them. A call fails at once if waiting cannot help: if the next
    /// attempt begins after its deadline, or if the failure is permanent.
    async fn wait(&self, deadline: Tick) -> Result<Connection> {
        let shared = &self.shared;
        let mut states = shared.state.subscribe();
        loop {
            let state = states.borrow_and_update().clone();
            match &state {
                NodeState::Up(connection) if connection.is_usable() => {
                    return Ok(connection.clone());
                }
                NodeState::Up(_) | NodeState::Dialing(_) => {}
                NodeState::BackingOff(failure, until)
                    if failure.permanent || *until >= deadline =>
                {
                    return Err(failure.error.clone());
                }
                NodeState::BackingOff(..) => {}
                NodeState::Idle => self.start()?,
                NodeState::Closed => return Err(closed()),
            }
            let left = deadline.since(shared.clock.now());
            if tokio::time::timeout(left, states.changed()).await.is_err() {
                return Err(match state {
                    NodeState::Dialing(Some(failure)) | NodeState::BackingOff(failure, _) => {
                        failure.error
                    }
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
        // Another call may have started it already.
        let started = self.shared.state.send_if_modified(|state| {
            let idle = matches!(state, NodeState::Idle);
            if idle {
                *state = NodeState::Dialing(None);
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
        self.shared.state.send_replace(NodeState::Closed);
        let task = self
            .supervisor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task {
            task.abort();
            // Cancelled or already finished: both are fine. A runtime that is no longer driven
            // never ends the task, so the wait is bounded.
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, task).await;
        }
    }
}

impl Drop for Node {
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
