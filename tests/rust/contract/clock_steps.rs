//! Steps of a server's clock: takeover takes as long as without them, and no pod stays alive for
//! as long as the step.
//!
//! A test cannot set the clock of a server. What a script sees of a step is that `TIME` has moved
//! against all times that are stored, so the test moves those the other way.

use std::time::Duration;

use podlink::clock::{Clock, Tick};
use podlink::id::Incarnation;
use podlink::op::{Begun, Renewed};
use podlink::route::link::Certificate;

use super::leases::{
    TIMES, begin, certify, death, process, record, records, renew, service, started, state,
};
use crate::ask::Ask as _;
use crate::contract::on_every_server;
use crate::stage::{Stage, pod};

on_every_server!(
    a_step_does_not_delay_takeover,
    a_step_after_the_lease,
    a_glitch_does_not_keep_the_dead,
    a_replacement_waits_once,
    a_lost_lease_hash_moves_no_user,
    a_lost_clock_protects_all_pods,
    times_must_be_known_to_certify,
    a_reader_leaves_no_trace,
    a_first_pod_starts_at_once,
);

const LEASES: &str = "sf:{ns:state:svc}#lease";
const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;
/// A machine that stops for a moment looks like an outage, and the wait begins again: long enough for
/// that, short beside every step.
const SLOW: Duration = Duration::from_secs(8);

const STEP: &str = "
local function moved(time) return string.format('%.0f', time - ARGV[1]) end
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local name, value = all[i], all[i + 1]
  local pod, till = string.match(value, '^(%d+):(%d+)$')
  if name == 'w' then
    redis.call('HSET', KEYS[1], name, pod .. ':' .. moved(till))
  elseif string.find(' clk hold held sweep ', ' ' .. name .. ' ') or string.find(name, '^d:') then
    redis.call('HSET', KEYS[1], name, moved(value))
  end
end";

/// The server's clock steps by so many microseconds.
fn step(stage: &Stage, by: i64) {
    let mut raw = stage.as_server().unwrap().raw();
    raw.run(&["EVAL", STEP, "1", LEASES, &by.to_string()]);
}

/// Two pods have renewed; the first of them then is killed.
async fn two_pods(stage: &Stage) -> [Incarnation; 2] {
    let (first, second) = (started(stage, 0, "a").await, started(stage, 1, "b").await);
    renew(stage, &state(1, second)).await;
    renew(stage, &state(0, first)).await;
    [first, second]
}

/// Waits until pod 0 is dead, while pod 1 renews and stays alive.
async fn takeover(stage: &Stage, second: Incarnation) -> Incarnation {
    stage
        .until("the pod is dead", async || {
            assert!(matches!(
                renew(stage, &state(1, second)).await,
                Renewed::Done { .. }
            ));
            records(stage).await;
            let alive = certify(stage, 1).await;
            assert!(matches!(alive, Certificate::Alive { .. }), "{alive:?}");
            match certify(stage, 0).await {
                Certificate::Dead(incarnation) => Some(incarnation),
                _ => None,
            }
        })
        .await
}

fn since(began: Tick) -> Duration {
    Clock::System.now().since(began)
}

/// Story: `max(TIME, clk)` stopped the time for as long as the clock had stepped back: after a step
/// of 45 s takeover took 55 s.
async fn a_step_does_not_delay_takeover(stage: Stage) {
    for by in [-DAY, -45 * SECOND, 45 * SECOND, DAY, -100 * DAY] {
        let mut raw = stage.as_server().unwrap().raw();
        raw.run(&["FLUSHALL"]);
        let [first, second] = two_pods(&stage).await;
        let killed = Clock::System.now();
        step(&stage, by);
        assert_eq!(takeover(&stage, second).await, first, "step {by}");
        let took = since(killed);
        assert!(took > TIMES.lease, "step {by}: {took:?}");
        assert!(
            took < TIMES.lease + TIMES.grace + TIMES.gap + SLOW,
            "step {by}: {took:?}"
        );
    }
}

/// The lease had ended and the grace had begun: a step back does not begin it again.
async fn a_step_after_the_lease(stage: Stage) {
    let [first, second] = two_pods(&stage).await;
    let lapsed = async || {
        renew(&stage, &state(1, second)).await;
        let record = record(&stage, 0).await.unwrap();
        record.lease_left.is_zero().then_some(())
    };
    stage.until("the lease has ended", lapsed).await;
    let killed = Clock::System.now();
    step(&stage, -45 * SECOND);
    assert!(record(&stage, 0).await.unwrap().lease_left.is_zero());
    assert_eq!(takeover(&stage, second).await, first);
    assert!(since(killed) < TIMES.grace + TIMES.gap + SLOW);
}

/// Story: the clock was a day ahead for three seconds. The dead pod stayed READY for a day, and its
/// replacement could not begin.
async fn a_glitch_does_not_keep_the_dead(stage: Stage) {
    let [first, second] = two_pods(&stage).await;
    let killed = Clock::System.now();
    step(&stage, DAY);
    renew(&stage, &state(1, second)).await;
    stage.silence(TIMES.gap / 2).await;
    renew(&stage, &state(1, second)).await;
    step(&stage, -DAY);
    assert_eq!(takeover(&stage, second).await, first);
    assert!(since(killed) < TIMES.lease + TIMES.grace + TIMES.gap + SLOW);
    let shown = record(&stage, 0).await;
    assert!(shown.is_none_or(|record| record.lease_left.is_zero()));
}

/// The same, with no other pod: only the replacement asks.
async fn a_replacement_waits_once(stage: Stage) {
    let first = started(&stage, 0, "a").await;
    renew(&stage, &state(0, first)).await;
    let killed = Clock::System.now();
    step(&stage, DAY);
    let busy = begin(&stage, &process(0, "b", "")).await;
    assert!(
        matches!(busy, Begun::Busy { wait, .. } if wait <= TIMES.lease + TIMES.grace),
        "{busy:?}"
    );
    step(&stage, -DAY);
    let begun = async || match begin(&stage, &process(0, "b", "")).await {
        Begun::Started(incarnation) => Some(incarnation),
        Begun::Busy { .. } => None,
    };
    assert!(stage.until("the replacement begins", begun).await > first);
    assert!(since(killed) < TIMES.lease + TIMES.grace + TIMES.gap + SLOW);
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
            matches!(certificate, Certificate::Alive { left, .. } if left > TIMES.lease),
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
    stage.silence(TIMES.lease).await;
    raw.run(&["HDEL", LEASES, "clk"]);
    renew(&stage, &state(1, second)).await;
    let certificate = certify(&stage, 0).await;
    assert!(
        matches!(certificate, Certificate::Alive { left, .. } if left > TIMES.lease),
        "{certificate:?}"
    );
    assert_eq!(death(&stage, 0).await, first);
}

/// A pod is declared dead only by a caller that knows the grace.
async fn times_must_be_known_to_certify(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    let me = started(&stage, 0, "a").await;
    renew(&stage, &state(0, me)).await;
    raw.run(&["HSET", LEASES, "t", "rubbish"]);
    stage.silence((TIMES.lease + TIMES.grace) * 2).await;
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
        step(&stage, by);
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
