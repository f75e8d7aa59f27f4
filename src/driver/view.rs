//! The pods of one service at one moment, ready to choose from.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::clock::Tick;
use crate::id::{Incarnation, PodIndex};
use crate::route::pick::{Chance, Seat, Strategy, pick};
use crate::route::state::{Pod, Snapshot, Standing};

/// The pods of one service at one moment, ready to choose from.
#[derive(Debug)]
pub struct View {
    /// The pods.
    pub snapshot: Snapshot,
    /// Whether every READY pod was over the overload limit.
    pub degraded: bool,
    seats: Vec<Seat>,
    /// By position in `seats`: users sent there since the pod last published its load.
    sent: Vec<Arc<AtomicI64>>,
    /// How many clients place users as this one does: what they send is not seen, but guessed.
    clients: f64,
}

impl View {
    /// A view of this snapshot, which goes on counting what `previous` has counted. `watchers` is
    /// how many clients watch the service, this one among them.
    pub(super) fn new(snapshot: Snapshot, previous: Option<&Self>, watchers: u64, now: Tick) -> Self {
        let routable = snapshot.routable(now);
        let degraded = routable.degraded;
        let seat = |pod: &&Pod| Seat {
            pod: pod.state.pod_id,
            load: pod.state.load_state,
            weight: pod.state.weight(),
        };
        let seats = routable.pods.iter().map(seat).collect();
        let sent = routable
            .pods
            .iter()
            .map(|pod| {
                previous
                    .and_then(|view| view.unseen(pod))
                    .unwrap_or_default()
            })
            .collect();
        #[allow(clippy::cast_precision_loss, reason = "nobody has 2^53 clients")]
        let clients = watchers.max(1) as f64;
        Self {
            degraded,
            seats,
            sent,
            clients,
            snapshot,
        }
    }

    /// The count of users sent to this pod, if it has published nothing since.
    fn unseen(&self, pod: &Pod) -> Option<Arc<AtomicI64>> {
        let known = self.snapshot.pod(pod.state.pod_id)?;
        let same = known.state.update_time == pod.state.update_time
            && known.state.incarnation == pod.state.incarnation;
        let at = self.seat(pod.state.pod_id).filter(|_| same)?;
        self.sent.get(at).cloned()
    }

    fn seat(&self, pod: PodIndex) -> Option<usize> {
        self.seats.binary_search_by_key(&pod, |seat| seat.pod).ok()
    }

    /// Chooses a pod that may take a new user now, and counts the user as sent there.
    pub(super) fn choose(&self, strategy: Strategy, uid: &str, chance: Chance, now: Tick) -> Option<PodIndex> {
        let ready = |pod: PodIndex| self.snapshot.standing(pod, now).takes_new_users();
        let chosen = pick(strategy, &self.seats, uid, |at| self.sent_to(at), chance)?;
        let chosen = if ready(chosen) {
            chosen
        } else {
            // A lease ended since the last reading: choose among those that are left.
            let left: Vec<Seat> = self
                .seats
                .iter()
                .copied()
                .filter(|s| ready(s.pod))
                .collect();
            let sent = |at: usize| {
                let seat = left.get(at).and_then(|seat| self.seat(seat.pod));
                seat.map_or(0.0, |at| self.sent_to(at))
            };
            pick(strategy, &left, uid, sent, chance)?
        };
        self.count_sent(chosen, 1);
        Some(chosen)
    }

    /// Counts users as sent to a pod, or takes them back.
    pub fn count_sent(&self, pod: PodIndex, users: i64) {
        if let Some(count) = self.seat(pod).and_then(|at| self.sent.get(at)) {
            count.fetch_add(users, Ordering::Relaxed);
        }
    }

    fn sent_to(&self, at: usize) -> f64 {
        let users = self
            .sent
            .get(at)
            .map_or(0, |count| count.load(Ordering::Relaxed));
        #[allow(
            clippy::cast_precision_loss,
            reason = "nobody sends 2^53 users in a second"
        )]
        let users = users as f64;
        users * self.clients
    }

    /// The pods that may take new users now.
    #[must_use]
    pub fn candidates(&self, now: Tick) -> Vec<Pod> {
        self.snapshot.routable(now).pods.into_iter().cloned().collect()
    }

    /// The standing of a pod.
    #[must_use]
    pub fn standing(&self, pod: PodIndex, now: Tick) -> Standing {
        self.snapshot.standing(pod, now)
    }

    /// The process that holds this index; `NONE` if nobody has published a state under it.
    #[must_use]
    pub fn incarnation(&self, pod: PodIndex) -> Incarnation {
        self.snapshot
            .pod(pod)
            .map_or(Incarnation::NONE, |pod| pod.state.incarnation)
    }
}
