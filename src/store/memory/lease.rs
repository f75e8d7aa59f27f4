//! Leases in memory: the same rules as `lua/lease_clock.lua` and the scripts that include it.
//!
//! Times are microseconds of virtual time, as they are on a server.

use std::collections::BTreeMap;

use crate::id::{Incarnation, PodIndex};
use crate::op::{
    Begun, Inspection, LAYOUT, LeaseTimes, PodIdentity, PodStepped, Pods, Renewed, Stepped,
};
use crate::route::link::Certificate;
use crate::route::state::{PodRecord, PodState};
use crate::store::codec::micros;
use crate::store::lease_view::{LeaseFields, StoreClock};

use std::sync::Arc;
use std::time::Duration;

/// A pod that has been dead for this many leases is evicted, except for its incarnation.
const EVICT_AFTER: u64 = 10;

/// How many reports of a step are believed that one pod makes in succession.
const STEPS_BELIEVED: u32 = 4;

/// Reports are in succession if the later one comes within so many leases.
const STEPS_QUIET: u64 = 10;

/// How much what two pods find of one step may differ.
const STEP_TOLERANCE: u64 = 250_000;

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
    /// The pod that last reported a step, how often it did so in succession, and when last.
    step: Option<(PodIndex, u32, u64)>,
    /// The last jump of time for which a hold began: by how much, and when it was seen.
    jump: (u64, u64),
    /// The times of the pod that wrote last, for calls that only read.
    times: LeaseMicros,
    pods: BTreeMap<PodIndex, Lease>,
    /// Processes that own users and have no lease here, and when they were first asked about.
    forgotten: BTreeMap<PodIndex, (Incarnation, u64)>,
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

/// The certificate of a process that owns a user, before any pod has written its times.
pub(super) fn unheard_of(seen: Incarnation) -> Certificate {
    Certificate::Alive {
        incarnation: seen,
        left: Duration::from_secs(1),
    }
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

    pub(super) fn stepped(&mut self, report: &PodStepped, now: u64) -> Stepped {
        let (pod, me) = (report.pod, report.incarnation);
        let found = self.lease(pod);
        if found.incarnation != me.get() || found.dead >= me.get() {
            return Stepped::Refused;
        }
        let times = LeaseMicros::from(report.times);
        let last = self.last;
        let now = self.tick(times, now);
        let by = micros(report.step.by);
        let (jump, at) = self.jump;
        if at > report.step.after_micros && by <= jump + STEP_TOLERANCE {
            return Stepped::Held;
        }
        let again = self.step.filter(|(reporter, _, at)| {
            *reporter == pod && now.saturating_sub(*at) < STEPS_QUIET * times.lease
        });
        let count = again.map_or(1, |(_, count, _)| count.saturating_add(1));
        self.step = Some((pod, count, now));
        if count > STEPS_BELIEVED {
            return Stepped::Unbelieved;
        }
        if last > self.hold {
            self.held = last;
        }
        self.hold = now + times.lease + times.grace;
        self.jump = (by, report.step.seen_micros.min(now));
        Stepped::Held
    }

    pub(super) fn certify(
        &mut self,
        pod: PodIndex,
        seen: Option<Incarnation>,
        now: u64,
    ) -> Certificate {
        let found = self.lease(pod);
        if seen.is_some_and(|seen| seen.get() <= found.dead) {
            // That process was replaced or is dead, whichever process has the index now.
            return Certificate::Dead(Incarnation::new(found.dead));
        }
        if let Some(seen) = seen.filter(|seen| seen.get() > found.incarnation.max(found.dead)) {
            return self.certify_forgotten(pod, seen, now);
        }
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

    /// The certificate of a process that owns a user, and that this store has no lease of: it gets
    /// a lease and a grace from when it was first asked about.
    fn certify_forgotten(&mut self, pod: PodIndex, seen: Incarnation, now: u64) -> Certificate {
        let times = self.times;
        if times.lease == 0 {
            return unheard_of(seen);
        }
        self.tick(times, now);
        let clock = self.clock_at(now);
        let first = (seen, clock.now);
        let known = self.forgotten.entry(pod).or_insert(first);
        if known.0 != seen {
            *known = first;
        }
        let till = (known.1 + times.lease + times.grace).max(clock.hold);
        if clock.now <= till {
            let left = Duration::from_micros(till - clock.now);
            return Certificate::Alive {
                incarnation: seen,
                left,
            };
        }
        self.forgotten.remove(&pod);
        self.pods.entry(pod).or_default().fields.dead = seen.get();
        self.changed = true;
        Certificate::Dead(seen)
    }

    pub(super) fn pods(&mut self, now: u64) -> Pods {
        let clock = self.clock_at(now);
        let stepped = now + self.off < self.last;
        if self.last > 0 && (stepped || clock.now - self.last > self.times.gap / 8) {
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
                renewal: clock.renewal(lease, self.times.lease, state.update_time * 1000),
            })
        });
        Pods {
            records: shown.collect(),
            forgot: clock.forgot().then(|| self.pods.keys().copied().collect()),
            now_ms: clock.now / 1000,
            layout: LAYOUT,
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
        if clock.hold > self.hold {
            self.jump = (clock.now - self.last, clock.now);
        }
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
    use crate::clock::Tick;
    use crate::id::{Namespace, ServiceId, ServiceName};
    use crate::route::clock_step::{ClockReading, ClockWatch};
    use crate::route::state::{Readiness, RoutingState};

    const SECOND: u64 = 1_000_000;
    const DAY: u64 = 86_400 * SECOND;
    const START: u64 = 1_800_000_000 * SECOND;
    const TIMES: LeaseTimes = LeaseTimes {
        lease: Duration::from_secs(10),
        grace: Duration::from_secs(5),
        gap: Duration::from_secs(4),
    };

    fn pod(index: i64) -> PodIndex {
        PodIndex::new(index).unwrap()
    }

    fn service() -> ServiceId {
        let (namespace, name) = (Namespace::new("ns"), ServiceName::new("svc"));
        ServiceId {
            namespace: namespace.unwrap(),
            service: name.unwrap(),
        }
    }

    fn begin(leases: &mut ServiceLeases, index: i64, now: u64) -> Incarnation {
        let identity = PodIdentity {
            service: service(),
            pod: pod(index),
            nonce: format!("{index}-{now}"),
            pod_uid: String::new(),
        };
        match leases.begin(&identity, TIMES, now) {
            Begun::Started(incarnation) => incarnation,
            busy @ Begun::Busy { .. } => panic!("{busy:?}"),
        }
    }

    fn renew(leases: &mut ServiceLeases, index: i64, incarnation: Incarnation, now: u64) -> u64 {
        let state = PodState {
            pod_id: pod(index),
            state: Readiness::Ready,
            load_state: 0,
            routing_state: RoutingState::Ready,
            update_time: 0,
            incarnation,
            metadata: BTreeMap::new(),
        };
        match leases.renew(&state, TIMES, now) {
            Renewed::Done { now, .. } => now,
            other => panic!("{other:?}"),
        }
    }

    /// Pod 0 renews every 2 s until it is killed, pod 1 goes on and reports steps, and a client asks
    /// every second. Returns when pod 0 is dead, and when it had renewed last.
    fn death_after(steps: &[(u64, i64)], killed: u64) -> (u64, u64) {
        let mut leases = ServiceLeases::default();
        let [first, second] = [0, 1].map(|index| begin(&mut leases, index, START));
        let (mut wall, mut renewed, mut watch) = (START, 0, ClockWatch::default());
        for passed in 0..100 {
            for (_, by) in steps.iter().filter(|(at, _)| *at == passed) {
                wall = wall.saturating_add_signed(*by);
            }
            if passed % 2 == 0 {
                if passed <= killed {
                    renew(&mut leases, 0, first, wall);
                    renewed = passed;
                }
                let sent = Tick::from_nanos(passed * 1_000_000_000);
                let store_micros = renew(&mut leases, 1, second, wall);
                let answered = sent;
                let reading = ClockReading {
                    sent,
                    answered,
                    store_micros,
                };
                if let Some(step) = watch.step(reading) {
                    let report = PodStepped {
                        service: service(),
                        pod: pod(1),
                        incarnation: second,
                        step: Box::new(step),
                        times: TIMES,
                    };
                    assert_eq!(leases.stepped(&report, wall), Stepped::Held);
                }
            }
            leases.pods(wall);
            let alive = leases.certify(pod(1), None, wall);
            assert!(matches!(alive, Certificate::Alive { .. }), "{alive:?}");
            if leases.certify(pod(0), None, wall) == Certificate::Dead(first) {
                begin(&mut leases, 0, wall);
                return (passed, renewed);
            }
            wall += SECOND;
        }
        panic!("the pod does not die")
    }

    #[test]
    fn takeover_after_steps_takes_as_long_as_without() {
        let (day, second) = (DAY.cast_signed(), SECOND.cast_signed());
        let small = second * 39 / 10;
        let steps: [&[(u64, i64)]; 7] = [
            &[],
            &[(3, -day)],
            &[(3, -45 * second)],
            &[(3, 45 * second)],
            &[(3, day)],
            &[(3, day), (6, -day)],
            &[(3, small), (4, small), (6, small), (7, small)],
        ];
        for steps in steps {
            for killed in 0..12 {
                let (died, renewed) = death_after(steps, killed);
                let forward = steps.iter().filter(|(_, by)| *by > 0);
                let since = forward.map(|(at, _)| *at).max().unwrap_or(0).max(killed);
                let back = steps.iter().any(|(_, by)| *by < 0);
                // A small step forward counts from its report, which comes with the next renewal. A
                // step back costs the time since the last access.
                let reported = steps.iter().any(|(_, by)| (1..4 * second).contains(by));
                let longest = 16 + if reported { 2 } else { 0 } + u64::from(back);
                let what = format!("{steps:?}, killed at {killed}: dead at {died}");
                assert!(died <= since + longest, "{what}");
                assert!(died >= renewed + 10, "{what}, renewed at {renewed}");
            }
        }
    }
}
