//! What the node and its supervisor share.

use tokio::sync::watch;

use super::connection::Connection;
use super::dial::{DialFailure, Dialer};
use super::stats::Stats;
use crate::clock::{Clock, Tick};

/// The node as its supervisor sees it.
pub(super) struct NodeShared {
    pub(super) dialer: Dialer,
    pub(super) clock: Clock,
    pub(super) stats: Stats,
    pub(super) state: watch::Sender<NodeState>,
}

/// What the supervisor is doing.
#[derive(Debug, Clone)]
pub(super) enum NodeState {
    /// No supervisor runs.
    Idle,
    /// An attempt is in progress; the failure is that of the previous attempt, if it failed.
    Dialing(Option<DialFailure>),
    /// The last attempt failed like this; the next one begins at that time.
    BackingOff(DialFailure, Tick),
    /// Connected.
    Up(Connection),
    /// Closed for good.
    Closed,
}

impl NodeShared {
    /// `Closed` is final; every other state may follow any other.
    pub(super) fn transition(&self, next: NodeState) {
        self.state.send_if_modified(|state| {
            let open = !matches!(state, NodeState::Closed);
            if open {
                *state = next;
            }
            open
        });
    }
}
