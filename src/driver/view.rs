//! The pods of one service at one moment, ready to choose from.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::clock::Tick;
use crate::id::{Incarnation, PodIndex};
use crate::route::pick::{Candidate, Chance, Strategy, pick};
use crate::route::plan::Look;
use crate::route::snapshot::{Pod, Snapshot};
use crate::route::state::{PodState, Standing};

/// The pods of one service at one moment, ready to choose from.
#[derive(Debug)]
pub struct View {
    /// The pods.
    pub snapshot: Snapshot,
    /// Whether every READY pod was over the overload limit.
    pub degraded: bool,
    candidates: Vec<Candidate>,
    /// By position in `candidates`: users sent there since the pod last published its load.
    sent: Vec<Arc<AtomicI64>>,
    /// The number of clients that place users: what the others send is not known, but estimated.
    clients: f64,
}

impl View {
    /// A view of this snapshot that takes over the counts of `previous`. `watchers` is the number
    /// of clients that watch the service, including this one.
    pub(super) fn new(
        snapshot: Snapshot,
        previous: Option<&Self>,
        watchers: u64,
        now: Tick,
    ) -> Self {
        let routable = snapshot.routable(now);
        let degraded = routable.degraded;
        let placed = routable.pods.iter().map(|pod| {
            let kept = previous.and_then(|view| view.kept(pod));
            kept.unwrap_or_else(|| (candidate_of(&pod.state), Arc::default()))
        });
        let (candidates, sent) = placed.unzip();
        #[allow(clippy::cast_precision_loss, reason = "there are never 2^53 clients")]
        let clients = watchers.max(1) as f64;
        Self {
            degraded,
            candidates,
            sent,
            clients,
            snapshot,
        }
    }

    /// The candidate of this pod and its count of sent users, if it has published nothing since.
    fn kept(&self, pod: &Pod) -> Option<(Candidate, Arc<AtomicI64>)> {
        let known = self.snapshot.pod(pod.state.pod_id)?;
        let at = self.position_of(pod.state.pod_id)?;
        let sent = self.sent.get(at)?;
        if Arc::ptr_eq(&known.state, &pod.state) {
            return Some((*self.candidates.get(at)?, Arc::clone(sent)));
        }
        let same = known.state.update_time == pod.state.update_time
            && known.state.incarnation == pod.state.incarnation;
        same.then(|| (candidate_of(&pod.state), Arc::clone(sent)))
    }

    fn position_of(&self, pod: PodIndex) -> Option<usize> {
        self.candidates
            .binary_search_by_key(&pod, |candidate| candidate.pod)
            .ok()
    }

    /// Chooses a pod that may take a new user now, and counts the user as sent there.
    pub(super) fn choose(
        &self,
        strategy: Strategy,
        uid: &str,
        chance: Chance,
        now: Tick,
    ) -> Option<PodIndex> {
        self.choose_beside(&[], strategy, uid, chance, now)
    }

    /// The same, but a pod that refused the user only if there is no other.
    pub(super) fn choose_beside(
        &self,
        refused: &[PodIndex],
        strategy: Strategy,
        uid: &str,
        chance: Chance,
        now: Tick,
    ) -> Option<PodIndex> {
        let chosen = self.would_choose(refused, strategy, uid, chance, now)?;
        self.count_sent(chosen, 1);
        Some(chosen)
    }

    /// The choice of `choose_beside`, without counting it.
    pub(super) fn would_choose(
        &self,
        refused: &[PodIndex],
        strategy: Strategy,
        uid: &str,
        chance: Chance,
        now: Tick,
    ) -> Option<PodIndex> {
        let willing = self.pick_among(refused, strategy, uid, chance, now);
        if willing.is_some() || refused.is_empty() {
            return willing;
        }
        // A pod that refused the user is better than none.
        self.pick_among(&[], strategy, uid, chance, now)
    }

    fn pick_among(
        &self,
        refused: &[PodIndex],
        strategy: Strategy,
        uid: &str,
        chance: Chance,
        now: Tick,
    ) -> Option<PodIndex> {
        let takes = |pod: PodIndex| self.snapshot.standing(pod, now).takes_new_users();
        if refused.is_empty() {
            let chosen = pick(
                strategy,
                &self.candidates,
                uid,
                |at| self.sent_to(at),
                chance,
            )?;
            if takes(chosen) {
                return Some(chosen);
            }
        }
        // A lease expired since the last reading, or a pod refused the user: choose among the others.
        let left: Vec<Candidate> = self
            .candidates
            .iter()
            .copied()
            .filter(|candidate| takes(candidate.pod) && !refused.contains(&candidate.pod))
            .collect();
        let sent = |at: usize| {
            let candidate = left
                .get(at)
                .and_then(|candidate| self.position_of(candidate.pod));
            candidate.map_or(0.0, |at| self.sent_to(at))
        };
        pick(strategy, &left, uid, sent, chance)
    }

    /// The candidates of `choose` at `now`, each with the users sent there that its published load
    /// does not include yet.
    pub(super) fn candidates_with_sent(&self, now: Tick) -> Vec<(Candidate, f64)> {
        let candidates = self.candidates.iter().enumerate();
        let ready = candidates
            .filter(|(_, candidate)| self.snapshot.standing(candidate.pod, now).takes_new_users());
        ready
            .map(|(at, candidate)| (*candidate, self.sent_to(at)))
            .collect()
    }

    /// Counts users as sent to a pod, or subtracts them.
    pub fn count_sent(&self, pod: PodIndex, users: i64) {
        if let Some(count) = self.position_of(pod).and_then(|at| self.sent.get(at)) {
            count.fetch_add(users, Ordering::Relaxed);
        }
    }

    fn sent_to(&self, at: usize) -> f64 {
        let users = self
            .sent
            .get(at)
            .map_or(0, |count| count.load(Ordering::Relaxed));
        #[allow(clippy::cast_precision_loss, reason = "there are never 2^53 users")]
        let users = users as f64;
        users * self.clients
    }

    /// The pods that may take new users now.
    #[must_use]
    pub fn candidates(&self, now: Tick) -> Vec<Pod> {
        self.snapshot
            .routable(now)
            .pods
            .into_iter()
            .cloned()
            .collect()
    }

    /// The standing of a pod.
    #[must_use]
    pub fn standing(&self, pod: PodIndex, now: Tick) -> Standing {
        self.snapshot.standing(pod, now)
    }

    /// What this view shows of a user's pod, or of no pod.
    #[must_use]
    pub(super) fn look(&self, pod: Option<PodIndex>, now: Tick, refused: &[PodIndex]) -> Look {
        let candidates = self.candidates_with_sent(now);
        let willing = |(candidate, _): &(Candidate, f64)| !refused.contains(&candidate.pod);
        let unknown = (Standing::Unknown, Incarnation::NONE);
        let of_pod = |pod| (self.standing(pod, now), self.incarnation(pod));
        let (owner, incarnation) = pod.map_or(unknown, of_pod);
        Look {
            owner,
            incarnation,
            routable: !candidates.is_empty(),
            willing: candidates.iter().any(willing),
        }
    }

    /// The process that holds this index; `NONE` if no process has published a state under it.
    #[must_use]
    pub fn incarnation(&self, pod: PodIndex) -> Incarnation {
        self.snapshot
            .pod(pod)
            .map_or(Incarnation::NONE, |pod| pod.state.incarnation)
    }

    /// Whether this pod may serve its users, and is still the process `incarnation`.
    #[must_use]
    pub(super) fn serves(&self, pod: PodIndex, incarnation: Incarnation, now: Tick) -> bool {
        let judged = self.snapshot.judged(pod, now);
        judged.is_some_and(|(pod, standing)| {
            pod.state.incarnation == incarnation && standing.is_available()
        })
    }

    /// Whether this pod keeps its users: it serves them, and does not give them up one by one, as a
    /// pod that drains does. What is remembered of it can then be answered.
    #[must_use]
    pub(super) fn keeps(&self, pod: PodIndex, incarnation: Incarnation, now: Tick) -> bool {
        let judged = self.snapshot.judged(pod, now);
        judged.is_some_and(|(pod, standing)| {
            pod.state.incarnation == incarnation && standing == Standing::Ready
        })
    }

    /// What this pod published last.
    pub(super) fn state(&self, pod: PodIndex) -> Option<&Arc<PodState>> {
        self.snapshot.pod(pod).map(|pod| &pod.state)
    }
}

fn candidate_of(state: &PodState) -> Candidate {
    Candidate {
        pod: state.pod_id,
        load: state.load_state,
        weight: state.weight(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::snapshot::Policy;
    use crate::route::state::{PodRecord, Readiness, Renewal, RoutingState};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use std::collections::BTreeMap;
    use std::time::Duration;

    const USERS: usize = 10_000;
    const CLIENTS: usize = 16;
    /// Users arrive over ten seconds; a tick is the time between two of them.
    const TICKS_A_SECOND: usize = 1_000;

    /// A pod of the simulation: the number of its users, and the number that it has published.
    struct Simulated {
        users: i64,
        published: i64,
        published_at: u64,
        weight: f64,
    }

    /// 16 clients place 10,000 users over ten seconds. Every pod publishes its number of users
    /// (relative to its capacity) once a second and every client reads once a second, all at
    /// different times: a load is up to two seconds old.
    fn simulate(strategy: Strategy, starting: &[i64], weights: &[f64]) -> Vec<Simulated> {
        let mut random = StdRng::seed_from_u64(7);
        let mut pods: Vec<Simulated> = starting
            .iter()
            .zip(weights)
            .map(|(users, weight)| Simulated {
                users: *users,
                published: *users,
                published_at: 1,
                weight: *weight,
            })
            .collect();
        let mut views: Vec<Option<View>> = (0..CLIENTS).map(|_| None).collect();
        for tick in 0..USERS {
            let now = Tick::from_nanos(tick as u64 * 1_000_000);
            for (at, pod) in pods.iter_mut().enumerate() {
                if tick % TICKS_A_SECOND == at * 97 % TICKS_A_SECOND {
                    (pod.published, pod.published_at) = (pod.users, tick as u64 + 1);
                }
            }
            for (at, view) in views.iter_mut().enumerate() {
                if view.is_none() || tick % TICKS_A_SECOND == at * 61 % TICKS_A_SECOND {
                    let snapshot = Snapshot::new(records(&pods), now, Policy::default());
                    *view = Some(View::new(snapshot, view.as_ref(), CLIENTS as u64, now));
                }
            }
            let chance = Chance {
                turn: 0,
                random: (random.random(), random.random()),
            };
            let view = views[random.random_range(0..CLIENTS)].as_ref().unwrap();
            let chosen = view.choose(strategy, "user", chance, now).unwrap();
            pods[chosen.get() as usize].users += 1;
        }
        pods
    }

    fn records(pods: &[Simulated]) -> Vec<PodRecord> {
        let record = |(at, pod): (usize, &Simulated)| PodRecord {
            state: Arc::new(PodState {
                pod_id: PodIndex::new(at as i64).unwrap(),
                state: Readiness::Ready,
                load_state: (pod.published as f64 / pod.weight) as i64,
                routing_state: RoutingState::Ready,
                update_time: pod.published_at,
                incarnation: Incarnation::new(1),
                metadata: BTreeMap::from([("weight".into(), pod.weight.to_string())]),
            }),
            lease_left: Duration::from_secs(60),
            renewal: Renewal::default(),
        };
        pods.iter().enumerate().map(record).collect()
    }

    /// The fullest pod against the mean, both relative to capacity.
    fn max_over_mean(pods: &[Simulated]) -> f64 {
        let fullness = |pod: &Simulated| pod.users as f64 / pod.weight;
        let most = pods.iter().map(fullness).fold(0.0, f64::max);
        let capacity: f64 = pods.iter().map(|pod| pod.weight).sum();
        let users: i64 = pods.iter().map(|pod| pod.users).sum();
        most / (users as f64 / capacity)
    }

    /// With loads a second old, all clients that pick the least loaded pod would pick the same one.
    /// Corrected by the users just sent, neither that nor two choices herds.
    #[test]
    #[allow(clippy::print_stdout, reason = "the measured ratios are worth reading")]
    fn neither_p2c_nor_least_load_herds() {
        let (empty, equal) = ([0; 10], [1.0; 10]);
        let two_choices = max_over_mean(&simulate(Strategy::P2c, &empty, &equal));
        let least = max_over_mean(&simulate(Strategy::LeastLoad, &empty, &equal));
        println!("max/mean: p2c {two_choices:.3}, least_load {least:.3}");
        assert!(two_choices <= 1.05, "p2c: {two_choices:.3}");
        assert!(least <= 1.05, "least_load: {least:.3}");
    }

    #[test]
    #[allow(clippy::print_stdout, reason = "the measured ratios are worth reading")]
    fn p2c_evens_out_unequal_starts_and_follows_capacity() {
        let starts: Vec<i64> = (0..10).map(|pod| pod * 60).collect();
        let even = max_over_mean(&simulate(Strategy::P2c, &starts, &[1.0; 10]));
        let weights = [1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0];
        let scaled = max_over_mean(&simulate(Strategy::P2c, &[0; 10], &weights));
        println!("max/mean: unequal starts {even:.3}, unequal capacity {scaled:.3}");
        assert!(even <= 1.05, "unequal starts: {even:.3}");
        assert!(scaled <= 1.05, "unequal capacity: {scaled:.3}");
    }

    #[test]
    fn a_lease_that_ended_since_the_last_reading_is_not_chosen() {
        let pods: Vec<Simulated> = (0..2)
            .map(|_| Simulated {
                users: 0,
                published: 0,
                published_at: 1,
                weight: 1.0,
            })
            .collect();
        let mut records = records(&pods);
        records[0].lease_left = Duration::from_secs(1);
        let snapshot = Snapshot::new(records, Tick::ZERO, Policy::default());
        let view = View::new(snapshot, None, 1, Tick::ZERO);
        let later = Tick::ZERO.after(Duration::from_secs(2));
        for random in 0..20 {
            let chance = Chance {
                turn: random,
                random: (random, random),
            };
            for strategy in [Strategy::P2c, Strategy::LeastLoad, Strategy::RoundRobin] {
                let chosen = view.choose(strategy, "user", chance, later);
                assert_eq!(chosen.map(PodIndex::get), Some(1));
            }
        }
    }

    #[test]
    fn one_pod_with_index_zero_and_five_thousand_pods() {
        for count in [1, 5_000] {
            let pods: Vec<Simulated> = (0..count)
                .map(|_| Simulated {
                    users: 0,
                    published: 0,
                    published_at: 1,
                    weight: 1.0,
                })
                .collect();
            let snapshot = Snapshot::new(records(&pods), Tick::ZERO, Policy::default());
            let view = View::new(snapshot, None, 1, Tick::ZERO);
            let mut random = StdRng::seed_from_u64(1);
            for _ in 0..100 {
                let chance = Chance {
                    turn: 0,
                    random: (random.random(), random.random()),
                };
                let chosen = view.choose(Strategy::P2c, "user", chance, Tick::ZERO);
                assert!(chosen.is_some_and(|pod| pod.get() < count));
            }
        }
    }
}
