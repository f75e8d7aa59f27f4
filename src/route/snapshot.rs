//! All pods of a service at one moment, and the changes since an earlier moment.

use std::sync::Arc;
use std::time::Duration;

use super::state::{PodRecord, PodState, Renewal, RoutingState, Standing};
use crate::clock::Tick;
use crate::id::PodIndex;

/// One pod of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// What the pod published last.
    pub state: Arc<PodState>,
    /// The end of its lease, by this machine's clock.
    pub lease_until: Tick,
    /// How long it had been silent when the snapshot was read, if it counts as alive only because
    /// the whole service was silent.
    pub silence: Option<Duration>,
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

/// The rules for judging a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// A READY pod above this load gets no new users while another one is below.
    pub overload_limit: Option<i64>,
    /// A snapshot older than this, because the store cannot be read, is judged as of its own time.
    /// `None`: leases expire on time, even while the store is down.
    pub stale_after: Option<Duration>,
}

/// All pods of one service at one moment. Immutable: a refresh creates a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pods: Vec<Pod>,
    asked: Tick,
    policy: Policy,
}

impl Snapshot {
    /// A snapshot of the store's answer to a request sent at `asked`.
    ///
    /// Leases count from the moment of the request, so a pod never looks alive for longer here than
    /// it is in the store.
    #[must_use]
    pub fn new(records: Vec<PodRecord>, asked: Tick, policy: Policy) -> Self {
        let mut pods: Vec<Pod> = records
            .into_iter()
            .map(|record| Pod {
                lease_until: asked.after(record.lease_left),
                silence: record.silence(),
                state: record.state,
            })
            .collect();
        pods.sort_by_key(|pod| pod.state.pod_id);
        Self {
            pods,
            asked,
            policy,
        }
    }

    /// Every pod in the store, in the order of their indexes, dead ones too.
    #[must_use]
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// The pods whose lease has not ended at `asked`, and which are not among those of a newer
    /// reading, nor among those that the store has leases of.
    #[must_use]
    pub fn missing(&self, newer: &[PodRecord], leased: &[PodIndex], asked: Tick) -> Vec<PodRecord> {
        let known = |pod: &Pod| {
            let index = pod.state.pod_id;
            let shown = newer.iter().any(|record| record.state.pod_id == index);
            shown || leased.contains(&index)
        };
        let alive = |pod: &&Pod| pod.lease_until > asked && !known(pod);
        let record = |pod: &Pod| {
            let lease_left = pod.lease_until.since(asked);
            PodRecord {
                state: Arc::clone(&pod.state),
                lease_left,
                renewal: Renewal::of_silence(pod.silence, lease_left),
            }
        };
        self.pods.iter().filter(alive).map(record).collect()
    }

    /// When the request was sent to the store.
    #[must_use]
    pub const fn asked(&self) -> Tick {
        self.asked
    }

    /// Whether the snapshot is so old that it is judged as of its own time.
    #[must_use]
    pub fn serves_stale(&self, now: Tick) -> bool {
        let age = now.since(self.asked);
        self.policy.stale_after.is_some_and(|limit| age > limit)
    }

    fn judged_at(&self, now: Tick) -> Tick {
        if self.serves_stale(now) {
            self.asked
        } else {
            now
        }
    }

    /// The pod with this index.
    #[must_use]
    pub fn pod(&self, index: PodIndex) -> Option<&Pod> {
        // StatefulSet ordinals have no gaps, so the index is nearly always the position.
        let guess = usize::try_from(index.get()).ok()?;
        if let Some(pod) = self.pods.get(guess).filter(|p| p.state.pod_id == index) {
            return Some(pod);
        }
        let found = self
            .pods
            .binary_search_by_key(&index, |pod| pod.state.pod_id);
        found.ok().and_then(|at| self.pods.get(at))
    }

    /// The pod with this index and its standing at `now`.
    #[must_use]
    pub fn judged(&self, index: PodIndex, now: Tick) -> Option<(&Pod, Standing)> {
        let pod = self.pod(index)?;
        Some((pod, pod.standing(self.judged_at(now))))
    }

    /// The standing of the pod with this index at `now`.
    #[must_use]
    pub fn standing(&self, index: PodIndex, now: Tick) -> Standing {
        let judged = self.judged(index, now);
        judged.map_or(Standing::Unknown, |(_, standing)| standing)
    }

    /// The pods whose standing at `now` is `wanted`, in the order of their indexes.
    pub fn those(&self, now: Tick, wanted: fn(Standing) -> bool) -> impl Iterator<Item = &Pod> {
        let at = self.judged_at(now);
        self.pods.iter().filter(move |pod| wanted(pod.standing(at)))
    }

    /// The pods that may get new users at `now`, in the order of their indexes.
    #[must_use]
    pub fn routable(&self, now: Tick) -> Routable<'_> {
        let ready: Vec<&Pod> = self.those(now, Standing::takes_new_users).collect();
        let Some(limit) = self.policy.overload_limit else {
            return Routable {
                pods: ready,
                degraded: false,
            };
        };
        let below = |pod: &&Pod| pod.state.load_state <= limit;
        let fit: Vec<&Pod> = ready.iter().copied().filter(below).collect();
        if !fit.is_empty() || ready.is_empty() {
            return Routable {
                pods: fit,
                degraded: false,
            };
        }
        // All pods are overloaded: the least loaded takes new users, rather than none.
        let least = ready
            .into_iter()
            .min_by_key(|pod| (pod.state.load_state, pod.state.pod_id));
        Routable {
            pods: least.into_iter().collect(),
            degraded: true,
        }
    }

    /// The changes since `seen`, the pods that were alive at the last call; `seen` becomes the pods
    /// that are alive at `now`. Loads and times are not changes.
    pub fn changes(&self, seen: &mut AlivePods, now: Tick) -> Vec<Change> {
        let alive: AlivePods = self
            .those(now, Standing::is_alive)
            .map(|pod| Arc::clone(&pod.state))
            .collect();
        // Both are sorted by pod: one merge pass finds the differences.
        let mut before = std::mem::take(seen).into_iter().peekable();
        let (mut changes, mut gone) = (Vec::new(), Vec::new());
        for state in &alive {
            gone.extend(std::iter::from_fn(|| {
                before.next_if(|earlier| earlier.pod_id < state.pod_id)
            }));
            let previous = before.next_if(|earlier| earlier.pod_id == state.pod_id);
            if previous
                .as_ref()
                .is_none_or(|previous| previous.differs(state))
            {
                changes.push(Change {
                    pod: state.pod_id,
                    previous,
                    now: Some(Arc::clone(state)),
                });
            }
        }
        gone.extend(before);
        changes.extend(gone.into_iter().map(|state| Change {
            pod: state.pod_id,
            previous: Some(state),
            now: None,
        }));
        *seen = alive;
        changes
    }
}

/// The pods that were alive at one moment, in the order of their indexes.
pub type AlivePods = Vec<Arc<PodState>>;

/// A pod that appeared, disappeared, or changed its published state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The pod.
    pub pod: PodIndex,
    /// Its state before; `None` if it was not alive.
    pub previous: Option<Arc<PodState>>,
    /// Its state now; `None` if it is no longer alive.
    pub now: Option<Arc<PodState>>,
}

/// The pods that may get new users.
#[derive(Debug)]
pub struct Routable<'a> {
    /// The pods, in the order of their indexes.
    pub pods: Vec<&'a Pod>,
    /// Every READY pod is over the overload limit, so only the least loaded one is listed.
    pub degraded: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Incarnation;
    use crate::route::state::{Readiness, Renewal};
    use std::collections::BTreeMap;

    fn record(index: i64, routing: RoutingState, load: i64, left: u64) -> PodRecord {
        PodRecord {
            state: Arc::new(PodState {
                pod_id: PodIndex::new(index).unwrap(),
                state: Readiness::Ready,
                load_state: load,
                routing_state: routing,
                update_time: 1,
                incarnation: Incarnation::new(1),
                metadata: BTreeMap::new(),
            }),
            lease_left: Duration::from_secs(left),
            renewal: Renewal::of_silence(None, Duration::from_secs(left)),
        }
    }

    fn limit(overload: i64) -> Policy {
        Policy {
            overload_limit: Some(overload),
            stale_after: None,
        }
    }

    fn at(seconds: u64) -> Tick {
        Tick::ZERO.after(Duration::from_secs(seconds))
    }

    fn indexes(routable: &Routable<'_>) -> Vec<u32> {
        routable
            .pods
            .iter()
            .map(|pod| pod.state.pod_id.get())
            .collect()
    }

    #[test]
    fn standings_follow_the_table() {
        let rows = [
            (RoutingState::Ready, 10, Standing::Ready),
            (RoutingState::DenyNewCall, 10, Standing::Draining),
            (RoutingState::Shutdown, 10, Standing::Shutdown),
            (RoutingState::Ready, 0, Standing::Lapsed),
            (RoutingState::DenyNewCall, 0, Standing::Lapsed),
            (RoutingState::Shutdown, 0, Standing::Lapsed),
        ];
        for (routing, left, expected) in rows {
            let snapshot = Snapshot::new(
                vec![record(0, routing, 0, left)],
                Tick::ZERO,
                Policy::default(),
            );
            let standing = snapshot.standing(PodIndex::new(0).unwrap(), Tick::ZERO);
            assert_eq!(standing, expected, "{routing:?} with {left} s left");
        }
    }

    #[test]
    fn a_lease_ends_without_a_refresh() {
        let snapshot = Snapshot::new(
            vec![record(3, RoutingState::Ready, 0, 10)],
            Tick::ZERO,
            Policy::default(),
        );
        let pod = PodIndex::new(3).unwrap();
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
        let snapshot = Snapshot::new(records, Tick::ZERO, Policy::default());
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
        let snapshot = Snapshot::new(records.clone(), Tick::ZERO, limit(50));
        let routable = snapshot.routable(Tick::ZERO);
        assert!(routable.degraded);
        assert_eq!(indexes(&routable), [1]);
        let fit = Snapshot::new(records, Tick::ZERO, limit(80));
        assert_eq!(indexes(&fit.routable(Tick::ZERO)), [1]);
        assert!(!fit.routable(Tick::ZERO).degraded);
    }

    #[test]
    fn a_stale_snapshot_is_used_only_if_configured() {
        let records = vec![record(0, RoutingState::Ready, 0, 10)];
        let policy = Policy {
            overload_limit: None,
            stale_after: Some(Duration::from_secs(3)),
        };
        let strict = Snapshot::new(records.clone(), Tick::ZERO, Policy::default());
        let lenient = Snapshot::new(records, Tick::ZERO, policy);
        let pod = PodIndex::new(0).unwrap();
        assert_eq!(strict.standing(pod, at(11)), Standing::Lapsed);
        assert_eq!(lenient.standing(pod, at(11)), Standing::Ready);
        assert!(!lenient.serves_stale(at(3)) && lenient.serves_stale(at(4)));
    }

    #[test]
    fn every_change_is_reported_once() {
        let pods = |pods: &[(i64, RoutingState, u64)]| {
            let records = pods
                .iter()
                .map(|(i, routing, left)| record(*i, *routing, 0, *left));
            Snapshot::new(records.collect(), Tick::ZERO, Policy::default())
        };
        let changes_of =
            |snapshot: &Snapshot, seen: &mut AlivePods, now| -> Vec<(u32, bool, bool)> {
                let changes = snapshot.changes(seen, now);
                let brief = |c: &Change| (c.pod.get(), c.previous.is_some(), c.now.is_some());
                changes.iter().map(brief).collect()
            };
        let mut seen = AlivePods::new();
        let both = pods(&[(0, RoutingState::Ready, 10), (1, RoutingState::Ready, 20)]);
        assert_eq!(
            changes_of(&both, &mut seen, at(0)),
            [(0, false, true), (1, false, true)]
        );
        assert_eq!(changes_of(&both, &mut seen, at(1)), []);
        // A lease expired, although the store returned the same as before.
        assert_eq!(changes_of(&both, &mut seen, at(10)), [(0, true, false)]);
        assert_eq!(changes_of(&both, &mut seen, at(11)), []);
        let drained = pods(&[(1, RoutingState::DenyNewCall, 20)]);
        assert_eq!(changes_of(&drained, &mut seen, at(12)), [(1, true, true)]);
        assert_eq!(
            changes_of(&pods(&[]), &mut seen, at(13)),
            [(1, true, false)]
        );
    }
}
