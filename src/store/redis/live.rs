//! One connection, with what calls have found out about it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::sync::Notify;

use super::dial::{Driver, is_replica};

/// This many calls in a row without an answer, and the connection is given up.
const STRIKES: u32 = 3;
/// A call that waited shorter than this proves nothing about the connection.
const STRIKE_LEAST: Duration = Duration::from_millis(100);
/// The connection is asked for a sign of life this often.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// A connection that works, as far as anybody knows. A call holds one until it has its answer.
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub(super) connection: MultiplexedConnection,
    health: Arc<Health>,
}

/// What is known about a connection; calls write it, the supervisor acts on it.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Calls in a row that were not answered.
    strikes: AtomicU32,
    /// Asks the supervisor for a sign of life at once.
    doubt: Notify,
    /// Asks the supervisor to give the connection up.
    condemned: Notify,
    verdict: OnceLock<End>,
    /// New calls keep off, even before the supervisor has heard of it.
    shunned: AtomicBool,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The socket is closed.
    Lost,
    /// A sign of life did not come in time.
    Silent,
    /// Several calls in a row were not answered.
    Unanswered,
    /// A fail-over made the server a replica.
    Demoted,
    /// The server no longer accepts this connection's login.
    Refused,
}

impl End {
    /// How people are told.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "the connection was lost",
            Self::Silent => "there was no sign of life",
            Self::Unanswered => "several calls in a row were not answered",
            Self::Demoted => "the server became a read-only replica",
            Self::Refused => "the server no longer accepts the login",
        }
    }

    /// Whether what was sent may still be answered.
    pub(super) const fn still_answers(self) -> bool {
        matches!(self, Self::Demoted | Self::Refused)
    }
}

impl Live {
    pub(super) fn new(connection: MultiplexedConnection) -> Self {
        Self {
            connection,
            health: Arc::default(),
        }
    }

    pub(super) fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    /// Whether a new call may use it.
    pub(super) fn serves(&self) -> bool {
        !self.health.shunned.load(Ordering::Acquire)
    }

    /// A call was answered.
    pub(super) fn answered(&self) {
        // Nearly always it is zero, and looking is cheaper than writing.
        if self.health.strikes.load(Ordering::Relaxed) != 0 {
            self.health.strikes.store(0, Ordering::Relaxed);
        }
    }

    /// A call was not answered within `waited`.
    pub(super) fn unanswered(&self, waited: Duration) {
        self.health.doubt.notify_one();
        let counts = waited >= STRIKE_LEAST;
        if counts && self.health.strikes.fetch_add(1, Ordering::Relaxed) + 1 >= STRIKES {
            self.condemn(End::Unanswered);
        }
    }

    /// Another connection is wanted. New calls keep off from now on: until the supervisor has
    /// heard of it, each of them would fail in turn.
    pub(super) fn condemn(&self, why: End) {
        // The first verdict is the one that is told.
        let _ = self.health.verdict.set(why);
        self.health.shunned.store(true, Ordering::Release);
        self.health.condemned.notify_one();
    }
}

impl Health {
    /// Watches over a connection while its driver moves the bytes; says how it ended.
    pub(super) async fn watch(
        &self,
        connection: MultiplexedConnection,
        driver: &mut Driver,
        limit: Duration,
    ) -> End {
        tokio::select! {
            () = driver => End::Lost,
            () = self.condemned.notified() => self.verdict.get().copied().unwrap_or(End::Lost),
            end = self.signs_of_life(connection, limit) => end,
        }
    }

    /// Asks for a sign of life every now and then, and whenever a call was not answered. The
    /// role is asked for too: a replica's links may be old, and somebody who only reads would
    /// never be told READONLY.
    async fn signs_of_life(&self, mut connection: MultiplexedConnection, limit: Duration) -> End {
        let mut questions = redis::Pipeline::new();
        questions.cmd("HELLO").cmd("PING");
        loop {
            // Asked for or not, it is time to ask.
            let _ = tokio::time::timeout(ASK_EVERY, self.doubt.notified()).await;
            let answers = connection.send_packed_commands(&questions, 0, questions.len());
            match tokio::time::timeout(limit, answers).await {
                Ok(Ok(answers)) if answers.iter().any(is_replica) => return End::Demoted,
                // An error of the server is a sign of life too.
                Ok(Ok(_)) => self.strikes.store(0, Ordering::Relaxed),
                Ok(Err(_)) => return End::Lost,
                Err(_) => return End::Silent,
            }
        }
    }
}
