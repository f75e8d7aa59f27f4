//! Pods and their states: the one table of alive, available and routable.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Tick;
use crate::error::{Error, ErrorKind};
use crate::id::{Incarnation, PodIndex};

/// What a pod says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RoutingState {
    /// Takes new users.
    Ready,
    /// Keeps its users, takes no new ones.
    DenyNewCall,
    /// Takes nothing.
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

    /// Whether a pod may go from this state to `next`. SHUTDOWN is the end; everything else may
    /// be taken back.
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
                "routing state cannot go from {} to {}: a pod that was shut down starts anew",
                self.as_str(),
                next.as_str()
            ),
        ))
    }
}

/// Whether the application in the pod is ready, as the pod says.
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
    /// Which process of this index published it.
    pub incarnation: Incarnation,
    /// Address, version, labels: whatever the service wants others to see.
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

/// One pod as the store shows it at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRecord {
    /// What the pod published last.
    pub state: PodState,
    /// How much longer its lease is valid by the store's clock; zero if it is over.
    pub lease_left: Duration,
}

/// One pod of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// What the pod published last.
    pub state: PodState,
    /// Until when its lease counts, by this machine's clock.
    pub lease_until: Tick,
}

/// What may be done with a pod: the one table, from best to worst.
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
    /// Its lease is over.
    Lapsed,
    /// Nobody has published a state under this index.
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

    /// Its lease is valid.
    #[must_use]
    pub const fn is_alive(self) -> bool {
        matches!(self, Self::Ready | Self::Draining | Self::Shutdown)
    }

    /// It may serve the users that are linked to it.
    #[must_use]
    pub const fn is_available(self) -> bool {
        matches!(self, Self::Ready | Self::Draining)
    }

    /// It may get new users, as far as its own state goes.
    #[must_use]
    pub const fn takes_new_users(self) -> bool {
        matches!(self, Self::Ready)
    }
}

impl Pod {
    /// The pod's standing at `now`.
    #[must_use]
    pub fn standing(&self, now: Tick) -> Standing {
        if now >= self.lease_until {
            return Standing::Lapsed;
        }
        match self.state.routing_state {
            RoutingState::Ready => Standing::Ready,
            RoutingState::DenyNewCall => Standing::Draining,
            RoutingState::Shutdown => Standing::Shutdown,
        }
    }
}

/// All pods of one service at one moment. Immutable: a refresh makes a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pods: Vec<Pod>,
    asked: Tick,
    overload_limit: Option<i64>,
}

impl Snapshot {
    /// A snapshot of what the store showed when it was asked at `asked`.
    ///
    /// Leases count from the moment of asking, so a pod never looks alive for longer here than it
    /// is in the store.
    #[must_use]
    pub fn new(records: Vec<PodRecord>, asked: Tick, overload_limit: Option<i64>) -> Self {
        let mut pods: Vec<Pod> = records
            .into_iter()
            .map(|record| Pod {
                lease_until: asked.after(record.lease_left),
                state: record.state,
            })
            .collect();
        pods.sort_by_key(|pod| pod.state.pod_id);
        Self {
            pods,
            asked,
            overload_limit,
        }
    }

    /// Every pod that the store showed, in the order of their indexes, dead ones too.
    #[must_use]
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// When the store was asked.
    #[must_use]
    pub const fn asked(&self) -> Tick {
        self.asked
    }

    /// The pod with this index.
    #[must_use]
    pub fn pod(&self, index: PodIndex) -> Option<&Pod> {
        // StatefulSets count without gaps, so the index is nearly always the position.
        let guess = usize::try_from(index.get()).ok()?;
        if let Some(pod) = self.pods.get(guess).filter(|p| p.state.pod_id == index) {
            return Some(pod);
        }
        let found = self
            .pods
            .binary_search_by_key(&index, |pod| pod.state.pod_id);
        found.ok().and_then(|at| self.pods.get(at))
    }

    /// The standing of the pod with this index at `now`.
    #[must_use]
    pub fn standing(&self, index: PodIndex, now: Tick) -> Standing {
        self.pod(index)
            .map_or(Standing::Unknown, |pod| pod.standing(now))
    }

    /// Whether this pod may get new users at `now`.
    #[must_use]
    pub fn is_routable(&self, index: PodIndex, now: Tick) -> bool {
        self.routable(now)
            .pods
            .iter()
            .any(|pod| pod.state.pod_id == index)
    }

    /// The pods that may get new users at `now`, in the order of their indexes.
    #[must_use]
    pub fn routable(&self, now: Tick) -> Routable<'_> {
        let ready = self
            .pods
            .iter()
            .filter(|pod| pod.standing(now).takes_new_users());
        let Some(limit) = self.overload_limit else {
            return Routable {
                pods: ready.collect(),
                degraded: false,
            };
        };
        let ready: Vec<&Pod> = ready.collect();
        let fit: Vec<&Pod> = ready
            .iter()
            .copied()
            .filter(|pod| pod.state.load_state <= limit)
            .collect();
        if !fit.is_empty() || ready.is_empty() {
            return Routable {
                pods: fit,
                degraded: false,
            };
        }
        // Everybody is overloaded: the least loaded takes them, rather than nobody.
        let least = ready
            .into_iter()
            .min_by_key(|pod| (pod.state.load_state, pod.state.pod_id));
        Routable {
            pods: least.into_iter().collect(),
            degraded: true,
        }
    }
}

/// Which pods may get new users.
#[derive(Debug)]
pub struct Routable<'a> {
    /// The pods, in the order of their indexes.
    pub pods: Vec<&'a Pod>,
    /// Every READY pod was over the overload limit, and the least loaded one stands in.
    pub degraded: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(index: i64, routing: RoutingState, load: i64, left: u64) -> PodRecord {
        PodRecord {
            state: PodState {
                pod_id: PodIndex::new(index).unwrap(),
                state: Readiness::Ready,
                load_state: load,
                routing_state: routing,
                update_time: 1,
                incarnation: Incarnation::new(1),
                metadata: BTreeMap::new(),
            },
            lease_left: Duration::from_secs(left),
        }
    }

    fn indexes(routable: &Routable<'_>) -> Vec<u32> {
        routable
            .pods
            .iter()
            .map(|pod| pod.state.pod_id.get())
            .collect()
    }

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
    fn the_table_of_the_design_row_by_row() {
        let rows = [
            (RoutingState::Ready, 10, Standing::Ready),
            (RoutingState::DenyNewCall, 10, Standing::Draining),
            (RoutingState::Shutdown, 10, Standing::Shutdown),
            (RoutingState::Ready, 0, Standing::Lapsed),
            (RoutingState::DenyNewCall, 0, Standing::Lapsed),
            (RoutingState::Shutdown, 0, Standing::Lapsed),
        ];
        for (routing, left, expected) in rows {
            let snapshot = Snapshot::new(vec![record(0, routing, 0, left)], Tick::ZERO, None);
            let standing = snapshot.standing(PodIndex::new(0).unwrap(), Tick::ZERO);
            assert_eq!(standing, expected, "{routing:?} with {left} s left");
        }
    }

    #[test]
    fn a_lease_ends_while_nobody_refreshes() {
        let snapshot = Snapshot::new(
            vec![record(3, RoutingState::Ready, 0, 10)],
            Tick::ZERO,
            None,
        );
        let pod = PodIndex::new(3).unwrap();
        let at = |s| Tick::ZERO.after(Duration::from_secs(s));
        assert_eq!(snapshot.standing(pod, at(9)), Standing::Ready);
        assert_eq!(snapshot.standing(pod, at(10)), Standing::Lapsed);
        assert_eq!(
            snapshot.standing(PodIndex::new(0).unwrap(), at(0)),
            Standing::Unknown
        );
    }

    #[test]
    fn pods_need_not_start_at_zero() {
        let records = (7..=9)
            .map(|i| record(i, RoutingState::Ready, 0, 10))
            .collect();
        let snapshot = Snapshot::new(records, Tick::ZERO, None);
        assert_eq!(indexes(&snapshot.routable(Tick::ZERO)), [7, 8, 9]);
        assert_eq!(
            snapshot.standing(PodIndex::new(8).unwrap(), Tick::ZERO),
            Standing::Ready
        );
    }

    #[test]
    fn all_overloaded_means_the_least_loaded_not_pod_zero() {
        let records = vec![
            record(0, RoutingState::Ready, 90, 10),
            record(1, RoutingState::Ready, 80, 10),
            record(2, RoutingState::DenyNewCall, 1, 10),
        ];
        let snapshot = Snapshot::new(records.clone(), Tick::ZERO, Some(50));
        let routable = snapshot.routable(Tick::ZERO);
        assert!(routable.degraded);
        assert_eq!(indexes(&routable), [1]);
        let fit = Snapshot::new(records, Tick::ZERO, Some(80));
        assert_eq!(indexes(&fit.routable(Tick::ZERO)), [1]);
        assert!(!fit.routable(Tick::ZERO).degraded);
    }

    #[test]
    fn shutdown_is_the_end_and_the_rest_may_be_taken_back() {
        for from in RoutingState::ALL {
            for to in RoutingState::ALL {
                let legal = from != RoutingState::Shutdown || to == RoutingState::Shutdown;
                assert_eq!(from.check_move(to).is_ok(), legal, "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn a_state_is_the_json_of_the_reference() {
        let mut state = record(0, RoutingState::DenyNewCall, 5, 1).state;
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
