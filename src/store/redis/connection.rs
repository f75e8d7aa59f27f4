//! One connection, and its health as calls and the supervisor observe it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::sync::Notify;

use super::dial::{Driver, is_replica};

/// After this many consecutive calls without a response the connection is retired.
const UNANSWERED_MAX: u32 = 3;
/// A call that waited shorter than this proves nothing about the connection.
const UNANSWERED_WAIT_MIN: Duration = Duration::from_millis(100);
/// How often the connection is pinged.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// A connection that is not known to be broken. A call holds one until it has its response.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) connection: MultiplexedConnection,
    /// Which server it leads to; see [`super::server_id`].
    pub(super) server: u64,
    health: Arc<Health>,
}

/// The health of a connection: calls update it, the supervisor acts on it.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Consecutive calls that were not answered.
    unanswered: AtomicU32,
    /// Asks the supervisor to ping the server at once.
    ping_now: Notify,
    /// Asks the supervisor to close the connection.
    close: Notify,
    end: OnceLock<ConnectionEnd>,
    /// New calls must not use it, even before the supervisor has closed it.
    retired: AtomicBool,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionEnd {
    /// The socket is closed.
    Lost,
    /// A ping was not answered in time.
    Silent,
    /// Several consecutive calls were not answered.
    Unanswered,
    /// A failover made the server a replica.
    Demoted,
    /// The server no longer accepts this connection's login.
    Refused,
}

impl ConnectionEnd {
    /// The text of error messages.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "the connection was lost",
            Self::Silent => "a ping was not answered in time",
            Self::Unanswered => "several consecutive calls were not answered",
            Self::Demoted => "the server became a read-only replica",
            Self::Refused => "the server no longer accepts the login",
        }
    }

    /// Whether requests that were sent may still get their responses.
    pub(super) const fn may_still_respond(self) -> bool {
        matches!(self, Self::Demoted | Self::Refused)
    }
}

impl Connection {
    pub(super) fn new(connection: MultiplexedConnection, server: u64) -> Self {
        Self {
            connection,
            server,
            health: Arc::default(),
        }
    }

    pub(super) fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Whether a new call may use it.
    pub(super) fn is_usable(&self) -> bool {
        !self.health.retired.load(Ordering::Acquire)
    }

    /// A call was answered.
    pub(super) fn answered(&self) {
        // It is nearly always zero, and a load is cheaper than a store.
        if self.health.unanswered.load(Ordering::Relaxed) != 0 {
            self.health.unanswered.store(0, Ordering::Relaxed);
        }
    }

    /// A call was not answered within `waited`.
    pub(super) fn unanswered(&self, waited: Duration) {
        self.health.ping_now.notify_one();
        let counts = waited >= UNANSWERED_WAIT_MIN;
        if counts && self.health.unanswered.fetch_add(1, Ordering::Relaxed) + 1 >= UNANSWERED_MAX {
            self.retire(ConnectionEnd::Unanswered);
        }
    }

    /// Requests a new connection. New calls avoid this one from now on: until the supervisor
    /// acts, each of them would fail in turn.
    pub(super) fn retire(&self, end: ConnectionEnd) {
        // The first reason is the one that is reported.
        let _ = self.health.end.set(end);
        self.health.retired.store(true, Ordering::Release);
        self.health.close.notify_one();
    }
}

impl Health {
    /// Monitors a connection while its driver moves the bytes; returns why it ended.
    pub(super) async fn watch(
        &self,
        connection: MultiplexedConnection,
        driver: &mut Driver,
        limit: Duration,
    ) -> ConnectionEnd {
        tokio::select! {
            () = driver => ConnectionEnd::Lost,
            () = self.close.notified() => self.end.get().copied().unwrap_or(ConnectionEnd::Lost),
            end = self.ping_periodically(connection, limit) => end,
        }
    }

    /// Pings the server periodically, and whenever a call was not answered. It asks for the role
    /// too: a replica's links may be stale, and a client that only reads never gets READONLY.
    async fn ping_periodically(
        &self,
        mut connection: MultiplexedConnection,
        limit: Duration,
    ) -> ConnectionEnd {
        let mut pings = redis::Pipeline::new();
        pings.cmd("HELLO").cmd("PING");
        loop {
            // Requested or due: both mean ping now.
            let _ = tokio::time::timeout(PING_INTERVAL, self.ping_now.notified()).await;
            let replies = connection.send_packed_commands(&pings, 0, pings.len());
            match tokio::time::timeout(limit, replies).await {
                Ok(Ok(replies)) if replies.iter().any(is_replica) => return ConnectionEnd::Demoted,
                // A server error proves that the connection works, too.
                Ok(Ok(_)) => self.unanswered.store(0, Ordering::Relaxed),
                Ok(Err(_)) => return ConnectionEnd::Lost,
                Err(_) => return ConnectionEnd::Silent,
            }
        }
    }
}
