//! The states that pods publish, and the one table of alive, available and routable.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, ErrorKind};
use crate::id::{Incarnation, PodIndex, shown};

/// No version gives a state a longer name.
const NAME_MAX: usize = 63;

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

    /// The readiness with this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let all = [Self::Ready, Self::NotReady];
        all.into_iter().find(|state| state.as_str() == name)
    }
}

/// One pod's state, as it publishes it: one compact JSON object in the state hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodState {
    /// The pod.
    pub pod_id: PodIndex,
    /// Whether the application is ready. A value that only a later version knows is read as
    /// [`Readiness::NotReady`].
    #[serde(deserialize_with = "readiness")]
    pub state: Readiness,
    /// Lower is better.
    pub load_state: i64,
    /// Which users it takes. A value that only a later version knows is read as
    /// [`RoutingState::DenyNewCall`]: the pod keeps its users and gets no new ones.
    #[serde(deserialize_with = "routing_state")]
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

/// The state with this name; `later` for a name that only a later version knows.
fn named<'de, T, D: Deserializer<'de>>(
    deserializer: D,
    parse: impl Fn(&str) -> Option<T>,
    later: T,
) -> Result<T, D::Error> {
    let name = Cow::<'de, str>::deserialize(deserializer)?;
    let is_name = name.starts_with(|first: char| first.is_ascii_uppercase())
        && name.len() <= NAME_MAX
        && name
            .bytes()
            .all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_'));
    let known = parse(&name).or_else(|| is_name.then_some(later));
    known.ok_or_else(|| D::Error::custom(format!("{} is no name of a state", shown(&name))))
}

fn routing_state<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RoutingState, D::Error> {
    named(deserializer, RoutingState::parse, RoutingState::DenyNewCall)
}

fn readiness<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Readiness, D::Error> {
    named(deserializer, Readiness::parse, Readiness::NotReady)
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
    /// The remaining time of its lease by the store's clock; zero if it has expired. An outage of
    /// the store gives every pod a new one.
    pub lease_left: Duration,
    /// What its own last renewal says, without what an outage adds.
    pub renewal: Renewal,
}

/// The last renewal of a pod, by the store's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Renewal {
    /// How long ago it was.
    pub age: Duration,
    /// What it left of the lease; zero if that has expired.
    pub left: Duration,
}

impl Renewal {
    /// What is known of the renewal of a pod with so much lease, which has been silent for so long.
    #[must_use]
    pub fn of_silence(silence: Option<Duration>, lease_left: Duration) -> Self {
        Self {
            age: silence.unwrap_or_default(),
            left: silence.map_or(lease_left, |_| Duration::ZERO),
        }
    }
}

impl PodRecord {
    /// How long the pod has been silent, if its lease is over and it counts as alive only because
    /// the whole service was silent. A client that polls takes that for an outage of the store. One
    /// look cannot judge it: the pod may have died while no client read.
    #[must_use]
    pub fn silence(&self) -> Option<Duration> {
        let judged = self.lease_left.is_zero() || !self.renewal.left.is_zero();
        (!judged).then_some(self.renewal.age)
    }
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

    #[test]
    fn states_of_later_versions_are_read() {
        let json = |state: &str, routing: &str| {
            format!(
                r#"{{"podId":0,"state":{state},"loadState":5,"routingState":{routing},"incarnation":1,"zone":{{"of":[1]}}}}"#
            )
        };
        let read = |state: &str, routing: &str| {
            let read = serde_json::from_str::<PodState>(&json(state, routing));
            read.map(|read| (read.state, read.routing_state))
        };
        let (ready, later) = (r#""READY""#, r#""PAUSED_2""#);
        assert_eq!(
            read(ready, later).unwrap(),
            (Readiness::Ready, RoutingState::DenyNewCall)
        );
        assert_eq!(
            read(later, ready).unwrap(),
            (Readiness::NotReady, RoutingState::Ready)
        );
        // An escape does not hide a name.
        let escaped = r#""\u0052EADY""#;
        assert_eq!(read(escaped, escaped).unwrap(), read(ready, ready).unwrap());
        let long = format!("\"{}\"", "A".repeat(64));
        for junk in [
            r#""""#,
            r#""ready""#,
            r#""2""#,
            r#""A B""#,
            "7",
            "null",
            "[]",
            &long,
        ] {
            assert!(read(ready, junk).is_err(), "{junk}");
            assert!(read(junk, ready).is_err(), "{junk}");
        }
    }
}
