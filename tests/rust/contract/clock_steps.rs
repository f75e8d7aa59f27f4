//! Steps of a server's clock: takeover takes as long as without them, no pod is declared dead while
//! it may act, and no pod stays alive for as long as the step.

use std::time::Duration;

use podlink::id::Incarnation;
use podlink::op::{Begun, Renewed};
use podlink::route::link::Certificate;

use super::leases::{
    TIMES as SHORT, begin, certify, death, process, record, records, renew, service, started, state,
};
use super::simulated_time::{LEASE, MINUTE, RENEW, SimulatedTime, TAKEOVER, TIMES};
use crate::ask::Ask as _;
use crate::contract::on_every_server;
use crate::server::Raw;
use crate::stage::{Stage, pod};

on_every_server!(
    a_step_does_not_delay_takeover,
    a_step_after_the_lease,
    a_replacement_waits_once,
    a_lost_lease_hash_moves_no_user,
    a_lost_clock_protects_all_pods,
    times_must_be_known_to_certify,
    times_that_were_read_shorten_nothing,
    a_reader_leaves_no_trace,
    a_first_pod_starts_at_once,
);

const LEASES: &str = "sf:{ns:state:svc}#lease";
const DAY: i64 = 24 * 60 * MINUTE;

/// Steps of the server's clock: each in which minute, and by how many seconds.
type Steps = &'static [(i64, i64)];

const STEPS: [(&str, Steps); 8] = [
    ("none", &[]),
    ("a day back", &[(3, -DAY)]),
    ("a hundred days back", &[(3, -100 * DAY)]),
    ("45 back", &[(3, -45 * MINUTE)]),
    ("45 forward", &[(3, 45 * MINUTE)]),
    ("a day forward", &[(3, DAY)]),
    ("a day forward for 3", &[(3, DAY), (6, -DAY)]),
    (
        "3.9 forward, four times",
        &[(3, 234), (4, 234), (6, 234), (7, 234)],
    ),
];

/// Pod 0 is killed in this minute, pod 1 lives. Returns the minute in which a client gets the
/// certificate of pod 0, and the minute of its last renewal.
async fn death_after(stage: &Stage, steps: Steps, killed: i64) -> (i64, i64) {
    let mut time = SimulatedTime::new(stage);
    let (mut first, mut second) = (time.started(0, "a").await, time.started(1, "b").await);
    let mut renewed = 0;
    for minute in 0..100 {
        for (_, by) in steps.iter().filter(|(at, _)| *at == minute) {
            time.step(*by);
        }
        if minute % RENEW == 0 {
            if minute <= killed {
                time.renew(&mut first).await;
                renewed = minute;
            }
            time.renew(&mut second).await;
        }
        let shown = time.record(0).await;
        let alive = time.certify(1).await;
        assert!(matches!(alive, Certificate::Alive { .. }), "{alive:?}");
        match time.certify(0).await {
            Certificate::Dead(incarnation) => {
                assert_eq!(incarnation, first.incarnation);
                let shown = shown.map(|record| record.lease_left);
                assert!(shown.is_none_or(|left| left.is_zero()), "{shown:?}");
                return (minute, renewed);
            }
            Certificate::Alive { .. } => {}
            Certificate::Unknown => panic!("the pod was there"),
        }
        time.pass().await;
    }
    panic!("pod 0 does not die")
}

/// Story: `max(TIME, clk)` stopped the time for as long as the clock had stepped back: after a step
/// of 45 s takeover took 55 s. Four steps of 3.9 s, each too small for a script to see, used up
/// lease and grace of pods that lived.
async fn a_step_does_not_delay_takeover(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    for (name, steps) in STEPS {
        for killed in [0, 2, 4, 6, 10] {
            raw.run(&["FLUSHALL"]);
            let (died, renewed) = death_after(&stage, steps, killed).await;
            let forward = steps.iter().filter(|(_, by)| *by > 0);
            let since = forward.map(|(at, _)| *at).max().unwrap_or(0).max(killed);
            // A small step forward counts from its report, which comes with the next renewal. A step
            // back costs the minute since the last access.
            let reported = steps.iter().any(|(_, by)| (1..4 * MINUTE).contains(by));
            let back = steps.iter().any(|(_, by)| *by < 0);
            let longest = TAKEOVER + if reported { RENEW } else { 0 } + i64::from(back);
            let what = format!("{name}, killed at {killed}: dead at {died}");
            assert!(died <= since + longest, "{what}");
            assert!(died >= renewed + LEASE, "{what}, renewed at {renewed}");
        }
    }
}

/// The lease had ended and the grace had begun: a step back does not begin it again. Time goes on
/// from the last write, and never from before it.
async fn a_step_after_the_lease(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    let mut time = SimulatedTime::new(&stage);
    let (mut first, mut second) = (time.started(0, "a").await, time.started(1, "b").await);
    time.renew(&mut first).await;
    for _ in 0..=LEASE {
        time.renew(&mut second).await;
        time.pass().await;
    }
    time.renew(&mut second).await;
    assert!(time.record(0).await.unwrap().lease_left.is_zero());
    let Certificate::Alive { left, .. } = time.certify(0).await else {
        panic!("the grace is not over")
    };
    let written = |raw: &mut Raw| raw.number(&["HGET", LEASES, "clk"]);
    let before = written(&mut raw);
    time.step(-45 * MINUTE);
    let clock_ms = stage.pods(&service()).await.now_ms;
    assert!(i64::try_from(clock_ms).unwrap() >= before / 1000);
    assert!(time.record(0).await.unwrap().lease_left.is_zero());
    match time.certify(0).await {
        Certificate::Alive { left: after, .. } => assert!(after <= left, "{after:?}, {left:?}"),
        other => panic!("no time has passed: {other:?}"),
    }
    for _ in LEASE + 1..TAKEOVER {
        time.pass().await;
        time.renew(&mut second).await;
    }
    let certificate = time.certify(0).await;
    assert_eq!(certificate, Certificate::Dead(first.incarnation));
}

/// Story: the clock was a day ahead for three seconds. The dead pod stayed READY for a day, and its
/// replacement could not begin. Here only the replacement asks.
async fn a_replacement_waits_once(stage: Stage) {
    let mut time = SimulatedTime::new(&stage);
    let mut first = time.started(0, "a").await;
    time.renew(&mut first).await;
    time.step(DAY);
    let busy = time.begin(0, "b").await;
    let hold = TIMES.lease + TIMES.grace;
    assert!(
        matches!(busy, Begun::Busy { wait, .. } if wait <= hold),
        "{busy:?}"
    );
    time.step(-DAY);
    for _ in 0..TAKEOVER {
        time.pass().await;
        if let Begun::Started(next) = time.begin(0, "b").await {
            assert!(next > first.incarnation);
            return;
        }
    }
    panic!("the replacement waits longer than for a pod that was killed")
}

/// Two pods have renewed; the first of them then is killed.
async fn two_pods(stage: &Stage) -> [Incarnation; 2] {
    let (first, second) = (started(stage, 0, "a").await, started(stage, 1, "b").await);
    renew(stage, &state(1, second)).await;
    renew(stage, &state(0, first)).await;
    [first, second]
}

/// Story: the lease hash was lost, the links and states were not. The first client moved the users
/// of every pod that had not renewed yet.
async fn a_lost_lease_hash_moves_no_user(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    let [first, second] = two_pods(&stage).await;
    raw.run(&["DEL", LEASES]);
    for lost_states in [false, true] {
        if lost_states {
            raw.run(&["FLUSHALL"]);
        } else {
            let certificate = certify(&stage, 0).await;
            assert!(matches!(certificate, Certificate::Alive { .. }));
            assert_eq!(certify(&stage, 9).await, Certificate::Unknown);
        }
        // The other pod is first to renew; pod 0 is protected until its own renewal.
        renew(&stage, &state(1, second)).await;
        let certificate = certify(&stage, 0).await;
        assert!(
            matches!(certificate, Certificate::Alive { left, .. } if left > SHORT.lease),
            "{certificate:?}"
        );
        let found = stage.store.inspect(&service(), stage.deadline()).await;
        let foretold = found.unwrap().certificates.get(&pod(0)).copied();
        assert_eq!(foretold.is_some(), !lost_states);
        if !lost_states {
            assert!(record(&stage, 0).await.unwrap().lease_left > Duration::ZERO);
            let another = begin(&stage, &process(0, "b", "")).await;
            assert!(matches!(another, Begun::Busy { incarnation, .. } if incarnation == first));
        }
    }
    let back = renew(&stage, &state(0, first)).await;
    assert!(matches!(back, Renewed::Done { .. }));
    assert_eq!(death(&stage, 0).await, first);
    assert_eq!(certify(&stage, 9).await, Certificate::Unknown);
}

async fn a_lost_clock_protects_all_pods(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    let [first, second] = two_pods(&stage).await;
    stage.silence(SHORT.lease).await;
    // That was an outage: it wrote which pods were alive.
    renew(&stage, &state(1, second)).await;
    assert!(raw.number(&["HGET", LEASES, "held"]) > 0);
    raw.run(&["HDEL", LEASES, "clk", "clk2"]);
    renew(&stage, &state(1, second)).await;
    let certificate = certify(&stage, 0).await;
    assert!(
        matches!(certificate, Certificate::Alive { left, .. } if left > SHORT.lease),
        "{certificate:?}"
    );
    // A pod of which nothing is left may be alive too.
    let unknown = certify(&stage, 9).await;
    assert!(matches!(unknown, Certificate::Alive { .. }), "{unknown:?}");
    assert_eq!(death(&stage, 0).await, first);
}

/// A pod is declared dead only by a caller that knows the grace.
async fn times_must_be_known_to_certify(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    let me = started(&stage, 0, "a").await;
    renew(&stage, &state(0, me)).await;
    raw.run(&["HSET", LEASES, "t", "rubbish"]);
    stage.silence((SHORT.lease + SHORT.grace) * 2).await;
    let before = raw.everything();
    let certificate = certify(&stage, 0).await;
    assert!(matches!(certificate, Certificate::Alive { .. }));
    let found = stage.store.inspect(&service(), stage.deadline()).await;
    let foretold = found.unwrap().certificates[&pod(0)];
    assert_eq!(
        (foretold.certificate, foretold.written),
        (certificate, false)
    );
    assert_eq!(raw.everything(), before);
}

/// Reading a service without pods writes nothing, and inspecting never does.
async fn a_reader_leaves_no_trace(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    assert!(records(&stage).await.is_empty());
    assert_eq!(certify(&stage, 0).await, Certificate::Unknown);
    assert_eq!(raw.number(&["DBSIZE"]), 0);
    two_pods(&stage).await;
    for by in [-DAY, DAY] {
        SimulatedTime::new(&stage).step(by);
        let before = raw.everything();
        let found = stage.store.inspect(&service(), stage.deadline()).await;
        let pods = found.unwrap().pods;
        assert!(pods.records.iter().all(|pod| !pod.lease_left.is_zero()));
        assert_eq!(raw.everything(), before);
        // A client ends the step.
        assert_eq!(records(&stage).await.len(), 2);
        assert_ne!(raw.everything(), before);
    }
}

/// Neither a new service nor a lost lease hash makes an index wait that no process has used.
async fn a_first_pod_starts_at_once(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    let me = started(&stage, 0, "a").await;
    assert_eq!(raw.number(&["HEXISTS", LEASES, "hold"]), 0);
    renew(&stage, &state(0, me)).await;
    raw.run(&["DEL", LEASES]);
    started(&stage, 1, "b").await;
    assert_eq!(raw.number(&["HEXISTS", LEASES, "hold"]), 1);
    started(&stage, 2, "c").await;
}

/// Another program wrote shorter times: by them a lease, or a hold, would be too far ahead to be true.
async fn times_that_were_read_shorten_nothing(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    let time = SimulatedTime::new(&stage);
    let (mut first, mut second) = (time.started(0, "a").await, time.started(1, "b").await);
    time.renew(&mut first).await;
    time.renew(&mut second).await;
    for (held, gap) in [(false, 3_600_000_000_i64), (true, 3_600_000_000), (true, 1)] {
        if held {
            time.report(&second).await;
        }
        raw.run(&["HSET", LEASES, "t", &format!("100000:0:{gap}")]);
        for _ in 0..3 {
            time.record(0).await;
            let Certificate::Alive { left, .. } = time.certify(0).await else {
                panic!("its lease is not over")
            };
            let least = if held { TIMES.lease } else { TIMES.lease / 2 };
            assert!(left > least, "{left:?}");
        }
    }
}
