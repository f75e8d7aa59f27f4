//! Reports of a step of the store's clock: which ones begin the hold again, and which ones do not.

use std::time::Duration;

use podlink::id::Incarnation;
use podlink::op::{Begun, Renewed, Stepped};
use podlink::route::clock_step::ClockStep;
use podlink::route::link::Certificate;

use super::leases::{renew, service, state};
use super::simulated_time::{LEASE, RENEW, SimulatedPod, SimulatedTime, TAKEOVER, TIMES};
use crate::ask::Ask as _;
use crate::contract::on_every_store;
use crate::stage::{Stage, pod};

on_every_store!(
    takeover_takes_lease_and_grace,
    one_report_begins_the_hold,
    a_report_does_not_shorten_a_lease,
    a_pod_with_a_bad_clock_is_not_believed,
    another_pod_is_believed_meanwhile,
    a_quiet_pod_is_believed_again,
    the_dead_report_nothing,
    a_step_is_held_once,
    a_lost_record_is_said,
);

/// How many reports in succession are believed.
const BELIEVED: usize = 4;

async fn two_pods(time: &SimulatedTime<'_>) -> [SimulatedPod; 2] {
    let mut two = [time.started(0, "a").await, time.started(1, "b").await];
    for each in &mut two {
        time.renew(each).await;
    }
    two
}

/// The minutes until pod 0 is dead, in which pod 1 renews and `each` may do more.
async fn death(
    time: &mut SimulatedTime<'_>,
    second: &mut SimulatedPod,
    each: impl AsyncFn(&SimulatedTime<'_>, &SimulatedPod, i64),
) -> i64 {
    for minute in 0..60 {
        if minute % RENEW == 0 {
            let step = time.renew(second).await;
            assert_eq!(step, None, "the clock did not step");
            each(time, second, minute).await;
        }
        if matches!(time.certify(0).await, Certificate::Dead(_)) {
            return minute;
        }
        time.pass().await;
    }
    panic!("the pod does not die")
}

async fn takeover_takes_lease_and_grace(stage: Stage) {
    let mut time = SimulatedTime::new(&stage);
    let [_, mut second] = two_pods(&time).await;
    let took = death(&mut time, &mut second, async |_, _, _| ()).await;
    assert!((TAKEOVER - 1..=TAKEOVER).contains(&took), "{took}");
}

/// In a service with one pod left, its report is the only one.
async fn one_report_begins_the_hold(stage: Stage) {
    let mut time = SimulatedTime::new(&stage);
    let [_, mut second] = two_pods(&time).await;
    let reported = async |time: &SimulatedTime<'_>, second: &SimulatedPod, minute| {
        if minute == LEASE {
            assert_eq!(time.report(second).await, Stepped::Held);
            // What a client sees of it: the pod cannot be declared dead for a lease and a grace.
            let Certificate::Alive { left, .. } = time.certify(0).await else {
                panic!("it is held")
            };
            assert!(left > TIMES.lease && left <= TIMES.lease + TIMES.grace);
        }
    };
    let took = death(&mut time, &mut second, reported).await;
    let longest = LEASE + TAKEOVER;
    assert!((longest - 1..=longest).contains(&took), "{took}");
}

async fn a_report_does_not_shorten_a_lease(stage: Stage) {
    let time = SimulatedTime::new(&stage);
    let [first, second] = two_pods(&time).await;
    let left = async |index| time.record(index).await.unwrap().lease_left;
    let before = left(0).await;
    assert_eq!(time.report(&second).await, Stepped::Held);
    assert!(left(0).await + TIMES.gap > before);
    let unknown = time.certify(9).await;
    assert_eq!(unknown, Certificate::Unknown, "no record was lost");
    let busy = time.begin(0, "next").await;
    assert!(matches!(busy, Begun::Busy { incarnation, .. }
        if incarnation == first.incarnation));
}

/// Story: one pod's machine had a slow clock. To it every renewal showed a step, and no pod of the
/// service could be declared dead any more.
async fn a_pod_with_a_bad_clock_is_not_believed(stage: Stage) {
    let mut time = SimulatedTime::new(&stage);
    let [_, mut second] = two_pods(&time).await;
    let believed = std::cell::Cell::new(0);
    let always = async |time: &SimulatedTime<'_>, second: &SimulatedPod, _| match time
        .report(second)
        .await
    {
        Stepped::Held => believed.set(believed.get() + 1),
        other => assert_eq!(other, Stepped::Unbelieved),
    };
    let took = death(&mut time, &mut second, always).await;
    assert_eq!(believed.get(), BELIEVED);
    let last = RENEW * i64::try_from(BELIEVED - 1).unwrap();
    assert!(took <= last + TAKEOVER, "{took}");
}

async fn another_pod_is_believed_meanwhile(stage: Stage) {
    let time = SimulatedTime::new(&stage);
    let [first, second] = two_pods(&time).await;
    for _ in 0..BELIEVED {
        assert_eq!(time.report(&second).await, Stepped::Held);
    }
    for _ in 0..2 {
        assert_eq!(time.report(&second).await, Stepped::Unbelieved);
    }
    assert_eq!(time.report(&first).await, Stepped::Held);
    // Another pod has seen a step as well: this one may be right after all.
    assert_eq!(time.report(&second).await, Stepped::Held);
}

async fn a_quiet_pod_is_believed_again(stage: Stage) {
    let mut time = SimulatedTime::new(&stage);
    let [_, mut second] = two_pods(&time).await;
    for _ in 0..BELIEVED {
        assert_eq!(time.report(&second).await, Stepped::Held);
    }
    // It goes on reporting, once in nine leases: that is not quiet.
    let leases = async |time: &mut SimulatedTime<'_>, second: &mut SimulatedPod, count: i64| {
        for _ in 0..count * LEASE {
            time.renew(second).await;
            time.pass().await;
        }
    };
    leases(&mut time, &mut second, 9).await;
    assert_eq!(time.report(&second).await, Stepped::Unbelieved);
    leases(&mut time, &mut second, 10).await;
    assert_eq!(time.report(&second).await, Stepped::Held);
}

/// A report of a process that is dead, or that another one has replaced, delays no takeover.
async fn the_dead_report_nothing(stage: Stage) {
    let time = SimulatedTime::new(&stage);
    let [first, second] = two_pods(&time).await;
    let (store, service, deadline) = (&stage.store, service(), stage.deadline());
    let ended = store.pod_end(&service, pod(0), first.incarnation, deadline);
    assert!(ended.await.unwrap());
    assert_eq!(time.report(&first).await, Stepped::Refused);
    time.started(0, "next").await;
    assert_eq!(time.report(&first).await, Stepped::Refused);
    // Pod 1's own lease is all that protects it still.
    let Certificate::Alive { left, .. } = time.certify(1).await else {
        panic!("it has renewed")
    };
    assert!(left <= TIMES.lease + TIMES.grace);
    assert_eq!(time.report(&second).await, Stepped::Held);
}

/// Story: after a step of a day, for which the first script had begun a hold, each pod's report began
/// it again. Takeover took 18.7 s instead of 16.
async fn a_step_is_held_once(stage: Stage) {
    let mut time = SimulatedTime::new(&stage);
    let [first, second] = two_pods(&time).await;
    let after_micros = time.renewed_at(&first).await;
    time.pass().await;
    let seen_micros = time.renewed_at(&first).await;
    let step = |by, after_micros| ClockStep {
        by: Duration::from_secs(by),
        after_micros,
        seen_micros,
    };
    for (by, after_micros, begins) in [
        (100, after_micros, true),
        (100, after_micros, false), // the same
        (60, after_micros, false),  // a part of it
        (160, after_micros, true),  // more than it
        (160, after_micros, false),
        (1, seen_micros, true), // the next one
    ] {
        time.pass().await;
        let step = step(by, after_micros);
        assert_eq!(time.report_of(&second, step).await, Stepped::Held);
        let Certificate::Alive { left, .. } = time.certify(0).await else {
            panic!("it is held")
        };
        let whole = TIMES.lease + TIMES.grace - Duration::from_secs(30);
        assert_eq!(left > whole, begins, "{by}: {left:?}");
    }
}

/// As after a fail-over that lost what happened in between.
async fn a_lost_record_is_said(stage: Stage) {
    let mut before = 0;
    for (incarnation, lost) in [(1 << 40, true), (1 << 40, false), (1 << 41, true)] {
        let renewed = renew(&stage, &state(0, Incarnation::new(incarnation))).await;
        let Renewed::Done { recreated, now, .. } = renewed else {
            panic!("no other process is there: {renewed:?}")
        };
        assert_eq!(recreated, lost);
        assert!(now >= before);
        before = now;
    }
}
