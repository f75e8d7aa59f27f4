//! Leases in memory: the same rules as `lua/lease_clock.lua` and the scripts that include it.
//!
//! Times are microseconds of virtual time, as they are on a server.

use std::collections::BTreeMap;

use crate::id::{Incarnation, PodIndex};
use crate::op::{Begun, Inspection, LeaseTimes, PodIdentity, Pods, Renewed};
use crate::route::link::Certificate;
use crate::route::state::{PodRecord, PodState};
use crate::store::codec::{LeaseFields, StoreClock, micros};

use std::sync::Arc;
use std::time::Duration;

/// A pod that has been dead for this many leases is evicted, except for its incarnation.
const EVICT_AFTER: u64 = 10;

/// The leases and states of one service's pods.
#[derive(Debug, Default)]
pub(super) struct ServiceLeases {
    /// Virtual time is the clock's time plus this. It grows when the clock steps back.
    off: u64,
    /// The virtual time of the last access.
    last: u64,
    /// After an outage no pod is declared dead before this time.
    hold: u64,
    /// Pods whose lease reached this time count as alive during the hold.
    held: u64,
    /// When pods that have been dead for long are evicted next.
    sweep: u64,
    /// The times of the pod that wrote last, for calls that only read.
    times: LeaseMicros,
    pods: BTreeMap<PodIndex, Lease>,
    states: BTreeMap<PodIndex, Arc<PodState>>,
    /// The leader of the service, and the end of its lease.
    leader: Option<(PodIndex, u64)>,
    /// Something happened of which subscribers must be notified.
    changed: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct LeaseMicros {
    lease: u64,
    grace: u64,
    gap: u64,
}

impl From<LeaseTimes> for LeaseMicros {
    fn from(times: LeaseTimes) -> Self {
        Self {
            lease: micros(times.lease),
            grace: micros(times.grace),
            gap: micros(times.gap),
        }
    }
}

#[derive(Debug, Default)]
struct Lease {
    fields: LeaseFields,
    nonce: String,
    pod_uid: String,
}

impl ServiceLeases {
    pub(super) fn begin(&mut self, identity: &PodIdentity, times: LeaseTimes, now: u64) -> Begun {
        let times = LeaseMicros::from(times);
        let now = self.tick(times, now);
        self.times = times;
        let hold = self.hold;
        let lease = self.pods.entry(identity.pod).or_default();
        let found = lease.fields;
        let alive = found.incarnation > found.dead;
        if alive && lease.nonce == identity.nonce {
            lease.fields.deadline = found.deadline.max(now + times.lease);
            return Begun::Started(Incarnation::new(found.incarnation));
        }
        let till = hold.max(found.deadline + times.grace);
        let same_pod = !identity.pod_uid.is_empty() && lease.pod_uid == identity.pod_uid;
        if alive && now <= till && !same_pod {
            return Begun::Busy {
                incarnation: Incarnation::new(found.incarnation),
                wait: Duration::from_micros(till - now),
            };
        }
        let dead = found.incarnation.max(found.dead);
        let incarnation = now.max(dead + 1);
        lease.fields = LeaseFields {
            incarnation,
            deadline: now + times.lease,
            dead,
        };
        lease.nonce.clone_from(&identity.nonce);
        lease.pod_uid.clone_from(&identity.pod_uid);
        Begun::Started(Incarnation::new(incarnation))
    }

    pub(super) fn renew(&mut self, state: &PodState, times: LeaseTimes, now: u64) -> Renewed {
        let me = state.incarnation.get();
        let found = self.lease(state.pod_id);
        if found.incarnation > me {
            return Renewed::Superseded(Incarnation::new(found.incarnation));
        }
        if found.dead >= me {
            return Renewed::Dead;
        }
        let times = LeaseMicros::from(times);
        let lost = self.last == 0;
        // First, because during a hold no pod is evicted.
        let now = self.tick(times, now);
        if lost {
            self.hold = now + times.lease + times.grace;
        }
        self.evict_dead_pods(state.pod_id, times.lease, now);
        let known = self.states.get(&state.pod_id);
        self.changed = found.deadline <= now
            || known.is_none_or(|known| {
                known.routing_state != state.routing_state || known.incarnation != state.incarnation
            });
        let leads = self.leader.is_none_or(|(leader, until)| {
            leader == state.pod_id || until <= now || state.pod_id < leader
        });
        self.times = times;
        let lease = self.pods.entry(state.pod_id).or_default();
        lease.fields.incarnation = me;
        lease.fields.deadline = found.deadline.max(now + times.lease);
        if leads {
            self.leader = Some((state.pod_id, lease.fields.deadline));
        }
        let state = PodState {
            update_time: now / 1000,
            ..state.clone()
        };
        self.states.insert(state.pod_id, Arc::new(state));
        Renewed::Done {
            leads,
            recreated: found.incarnation < me,
            now,
            server: 0,
        }
    }

    pub(super) fn end(&mut self, pod: PodIndex, me: Incarnation, now: u64) -> bool {
        let found = self.lease(pod);
        if found.incarnation > me.get() {
            return false;
        }
        self.tick(self.times, now);
        let dead = found.dead.max(me.get());
        let lease = self.pods.entry(pod).or_default();
        lease.fields = LeaseFields {
            incarnation: me.get(),
            deadline: 0,
            dead,
        };
        self.states.remove(&pod);
        self.leader = self.leader.filter(|(leader, _)| *leader != pod);
        self.changed = true;
        true
    }

    pub(super) fn certify(&mut self, pod: PodIndex, now: u64) -> Certificate {
        let found = self.lease(pod);
        let clock = self.clock_at(now);
        let Some(foretold) = clock.foretell(found) else {
            return clock.unknown();
        };
        if foretold.written {
            return foretold.certificate;
        }
        self.tick(self.times, now);
        if let Certificate::Dead(incarnation) = foretold.certificate {
            self.pods.entry(pod).or_default().fields.dead = incarnation.get();
            self.changed = true;
        }
        foretold.certificate
    }

    pub(super) fn pods(&mut self, now: u64) -> Pods {
        let clock = self.clock_at(now);
        let stepped = now + self.off < self.last;
        if self.last > 0 && (stepped || clock.now - self.last > self.times.gap / 2) {
            self.tick(self.times, now);
        }
        self.shown(clock)
    }

    /// What `pods` and `certify` would return.
    pub(super) fn inspect(&self, now: u64) -> Inspection {
        let clock = self.clock_at(now);
        let certificates = self.pods.iter().filter_map(|(pod, lease)| {
            let foretold = clock.foretell(lease.fields)?;
            Some((*pod, foretold))
        });
        Inspection {
            pods: self.shown(clock),
            certificates: certificates.collect(),
        }
    }

    fn shown(&self, clock: StoreClock) -> Pods {
        let shown = self.states.values().filter_map(|state| {
            let lease = self.lease(state.pod_id);
            (lease.incarnation == state.incarnation.get()).then(|| PodRecord {
                state: Arc::clone(state),
                lease_left: clock.lease_left(lease),
            })
        });
        Pods {
            records: shown.collect(),
            now_ms: clock.now / 1000,
            ..Pods::default()
        }
    }

    /// Whether subscribers must be notified; `true` only once per change.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn lease(&self, pod: PodIndex) -> LeaseFields {
        self.pods
            .get(&pod)
            .map(|lease| lease.fields)
            .unwrap_or_default()
    }

    /// Advances virtual time. If the clock stepped back, it goes on from the last access. A time
    /// without access longer than the gap is an outage: every pod gets a new lease and grace.
    fn tick(&mut self, times: LeaseMicros, real: u64) -> u64 {
        let clock = self.ticked(times, real);
        (self.hold, self.held, self.last) = (clock.hold, clock.held, clock.now);
        self.off = clock.now - real;
        clock.now
    }

    /// The clock as `tick` would set it.
    fn ticked(&self, times: LeaseMicros, real: u64) -> StoreClock {
        let now = (real + self.off).max(self.last);
        let (mut hold, mut held) = (self.hold, self.held);
        if self.last > 0 && times.gap > 0 && now - self.last > times.gap {
            if self.last > hold {
                held = self.last;
            }
            hold = now + times.lease + times.grace;
        }
        StoreClock {
            now,
            hold,
            held,
            grace: times.grace,
        }
    }

    fn clock_at(&self, now: u64) -> StoreClock {
        self.ticked(self.times, now)
    }

    fn evict_dead_pods(&mut self, me: PodIndex, lease_time: u64, now: u64) {
        if now < self.sweep {
            return;
        }
        self.sweep = now + lease_time;
        if self.hold >= now {
            return;
        }
        for (pod, lease) in &mut self.pods {
            let expired = lease.fields.deadline + EVICT_AFTER * lease_time < now;
            if *pod != me && expired {
                let incarnation = lease.fields.incarnation;
                let fields = LeaseFields {
                    incarnation,
                    deadline: 0,
                    dead: incarnation,
                };
                *lease = Lease {
                    fields,
                    ..Lease::default()
                };
                self.states.remove(pod);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Namespace, ServiceId, ServiceName};

    const SECOND: u64 = 1_000_000;
    const DAY: u64 = 86_400 * SECOND;
    const START: u64 = 1_800_000_000 * SECOND;
    const TIMES: LeaseTimes = LeaseTimes {
        lease: Duration::from_secs(10),
        grace: Duration::from_secs(5),
        gap: Duration::from_secs(4),
    };

    fn pod() -> PodIndex {
        PodIndex::new(0).unwrap()
    }

    fn process(nonce: &str) -> PodIdentity {
        let (namespace, name) = (Namespace::new("ns"), ServiceName::new("svc"));
        PodIdentity {
            service: ServiceId {
                namespace: namespace.unwrap(),
                service: name.unwrap(),
            },
            pod: pod(),
            nonce: nonce.to_owned(),
            pod_uid: String::new(),
        }
    }

    /// Reads once a second until the pod is dead; returns how many seconds that took.
    fn takeover(leases: &mut ServiceLeases, from: u64) -> u64 {
        let dead = |now: u64| {
            leases.pods(now);
            matches!(leases.certify(pod(), now), Certificate::Dead(_))
        };
        let mut seconds = (0..60).map(|second| from + second * SECOND);
        seconds.position(dead).expect("the pod is dead") as u64
    }

    #[test]
    fn takeover_after_a_step_takes_as_long_as_without() {
        for (stepped, longest) in [
            (START, 16),
            (START - DAY, 16),
            (START - 45 * SECOND, 16),
            (START + 45 * SECOND, 16),
            (START + DAY, 16),
        ] {
            let mut leases = ServiceLeases::default();
            leases.begin(&process("a"), TIMES, START);
            let took = takeover(&mut leases, stepped);
            assert!((15..=longest).contains(&took), "{took} s");
        }
    }

    #[test]
    fn a_day_ahead_for_three_seconds_is_forgotten() {
        let mut leases = ServiceLeases::default();
        leases.begin(&process("a"), TIMES, START);
        for second in 0..3 {
            leases.pods(START + DAY + second * SECOND);
        }
        let first = leases.inspect(START + 3 * SECOND);
        assert!(first.pods.now_ms >= (START + DAY) / 1000, "time goes on");
        let took = takeover(&mut leases, START + 3 * SECOND);
        assert!((12..=16).contains(&took), "{took} s");
        let next = leases.begin(&process("b"), TIMES, START + 20 * SECOND);
        assert!(matches!(next, Begun::Started(_)), "{next:?}");
    }
}
