//! The states that pods publish, and the one table of alive, available and routable.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};
use crate::id::{Incarnation, PodIndex};

/// The routing state that a pod publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RoutingState {
    /// Takes new users.
    Ready,
    /// Keeps its users, takes no new ones.
    DenyNewCall,
    /// Serves no users.
    Shutdown,
}

impl RoutingState {
    /// Every state, so that tables can be tested for completeness.
    pub const ALL: [Self; 3] = [Self::Ready, Self::DenyNewCall, Self::Shutdown];

    /// The name that the store holds and that users see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "READY",
            Self::DenyNewCall => "DENY_NEW_CALL",
            Self::Shutdown => "SHUTDOWN",
        }
    }

    /// The state with this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// Whether a pod may go from this state to `next`. SHUTDOWN is final; all other states may be
    /// reverted.
    ///
    /// # Errors
    /// `IllegalState` that names both states.
    pub fn check_move(self, next: Self) -> Result<(), Error> {
        if self != Self::Shutdown || next == Self::Shutdown {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::IllegalState,
            format!(
                "routing state cannot go from {} to {}: a pod that was shut down must start again",
                self.as_str(),
                next.as_str()
            ),
        ))
    }
}

/// Whether the application in the pod is ready, as the pod publishes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Readiness {
    /// It is.
    Ready,
    /// It is starting or stopping.
    NotReady,
}

impl Readiness {
    /// The name that the store holds and that users see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "READY",
            Self::NotReady => "NOT_READY",
        }
    }
}

/// One pod's state, as it publishes it: one compact JSON object in the state hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodState {
    /// The pod.
    pub pod_id: PodIndex,
    /// Whether the application is ready.
    pub state: Readiness,
    /// Lower is better.
    pub load_state: i64,
    /// Which users it takes.
    pub routing_state: RoutingState,
    /// When it was published: milliseconds since 1970 by the store's clock. The store fills it in.
    #[serde(default, skip_serializing_if = "is_unset")]
    pub update_time: u64,
    /// The process of this index that published it.
    pub incarnation: Incarnation,
    /// Address, version, labels: data that the service publishes for other programs.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature is serde's"
)]
const fn is_unset(update_time: &u64) -> bool {
    *update_time == 0
}

impl PodState {
    /// Whether the process, the readiness or the routing state differs.
    pub(super) fn differs(&self, other: &Self) -> bool {
        self.incarnation != other.incarnation
            || self.routing_state != other.routing_state
            || self.state != other.state
    }

    /// The pod's share of new users relative to others: metadata `weight`, a positive number,
    /// 1 if there is none or it cannot be read.
    #[must_use]
    pub fn weight(&self) -> f64 {
        let given = self.metadata.get("weight").and_then(|w| w.parse().ok());
        given
            .filter(|w: &f64| w.is_finite() && *w > 0.0)
            .unwrap_or(1.0)
    }
}

/// The state of a whole service, as one of its pods publishes it: one compact JSON object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadState {
    /// Whether the service as a whole is ready.
    pub state: Readiness,
    /// How many pods it has.
    pub replicas: u32,
    /// How many of them are ready.
    pub ready_replicas: u32,
    /// When it was published: milliseconds since 1970 by the store's clock.
    pub update_time: u64,
}

impl WorkloadState {
    /// What these pods make of their service, read at this time of the store's clock.
    #[must_use]
    pub fn of(pods: &[PodRecord], now_ms: u64) -> Self {
        let alive = || pods.iter().filter(|pod| !pod.lease_left.is_zero());
        let ready = alive().filter(|pod| {
            pod.state.state == Readiness::Ready && pod.state.routing_state == RoutingState::Ready
        });
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let ready_replicas = number(ready.count());
        Self {
            state: if ready_replicas > 0 {
                Readiness::Ready
            } else {
                Readiness::NotReady
            },
            replicas: number(alive().count()),
            ready_replicas,
            update_time: now_ms,
        }
    }
}

/// One pod as read from the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRecord {
    /// What the pod published last.
    pub state: Arc<PodState>,
    /// The remaining time of its lease by the store's clock; zero if it has expired.
    pub lease_left: Duration,
}

/// How a pod may be used: the one table, from best to worst.
///
/// | standing | alive | available | takes new users |
/// |---|---|---|---|
/// | `Ready` | yes | yes | yes, unless overloaded |
/// | `Draining` | yes | yes | no |
/// | `Shutdown` | yes | no | no |
/// | `Lapsed` | no | no | no |
/// | `Unknown` | no | no | no |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Lease valid, READY.
    Ready,
    /// Lease valid, DENY_NEW_CALL.
    Draining,
    /// Lease valid, SHUTDOWN.
    Shutdown,
    /// Its lease has expired.
    Lapsed,
    /// No process has published a state under this index.
    Unknown,
}

impl Standing {
    /// Every standing, so that the table can be tested for completeness.
    pub const ALL: [Self; 5] = [
        Self::Ready,
        Self::Draining,
        Self::Shutdown,
        Self::Lapsed,
        Self::Unknown,
    ];

    /// The name that users see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "READY",
            Self::Draining => "DRAINING",
            Self::Shutdown => "SHUTDOWN",
            Self::Lapsed => "LAPSED",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// Whether its lease is valid.
    #[must_use]
    pub const fn is_alive(self) -> bool {
        matches!(self, Self::Ready | Self::Draining | Self::Shutdown)
    }

    /// Whether it may serve the users that are linked to it.
    #[must_use]
    pub const fn is_available(self) -> bool {
        matches!(self, Self::Ready | Self::Draining)
    }

    /// Whether its own state allows new users.
    #[must_use]
    pub const fn takes_new_users(self) -> bool {
        matches!(self, Self::Ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routable_is_within_available_is_within_alive() {
        for standing in Standing::ALL {
            assert!(
                !standing.takes_new_users() || standing.is_available(),
                "{standing:?}"
            );
            assert!(
                !standing.is_available() || standing.is_alive(),
                "{standing:?}"
            );
        }
    }

    #[test]
    fn shutdown_is_final_and_the_rest_may_be_reverted() {
        for from in RoutingState::ALL {
            for to in RoutingState::ALL {
                let legal = from != RoutingState::Shutdown || to == RoutingState::Shutdown;
                assert_eq!(from.check_move(to).is_ok(), legal, "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn a_state_is_the_json_of_the_reference() {
        let mut state = PodState {
            pod_id: PodIndex::new(0).unwrap(),
            state: Readiness::Ready,
            load_state: 5,
            routing_state: RoutingState::DenyNewCall,
            update_time: 1,
            incarnation: Incarnation::new(1),
            metadata: BTreeMap::new(),
        };
        state
            .metadata
            .insert("address".into(), "10.0.0.1:7000".into());
        let json = serde_json::to_string(&state).unwrap();
        assert_eq!(
            json,
            r#"{"podId":0,"state":"READY","loadState":5,"routingState":"DENY_NEW_CALL","updateTime":1,"incarnation":1,"metadata":{"address":"10.0.0.1:7000"}}"#
        );
        assert_eq!(serde_json::from_str::<PodState>(&json).unwrap(), state);
    }
}
