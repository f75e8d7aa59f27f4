//! Leases: who is alive, who is dead for good, and that an outage of the store moves no user.
//!
//! Leases are short, and every wait ends with a condition. A test machine that stops for a moment
//! looks like an outage of the store: then things take longer, but they come out the same.

use std::collections::BTreeMap;
use std::time::Duration;

use podlink::config::LeaseTimes;
use podlink::id::{Incarnation, PodIndex, ServiceId};
use podlink::op::{Begun, PodIdentity, Renewed};
use podlink::route::link::Certificate;
use podlink::route::state::{PodRecord, PodState, Readiness, RoutingState};

use crate::ask::Ask as _;
use crate::contract::on_every_store;
use crate::stage::{Stage, pod, service_id};

on_every_store!(
    an_unknown_pod_has_nobody_to_protect,
    a_process_that_asks_twice_gets_the_same_incarnation,
    another_process_waits_until_the_first_is_dead,
    a_container_restarted_in_its_pod_need_not_wait,
    of_many_that_begin_at_once_one_does,
    a_renewal_publishes_the_state_with_the_stores_time,
    a_state_of_an_earlier_incarnation_is_not_shown,
    who_says_nothing_new_is_seen_as_before_beside_who_does,
    a_lease_runs_out_and_the_certificate_comes_after_the_grace,
    a_certificate_is_for_good,
    a_clean_stop_is_known_at_once,
    a_stop_that_comes_too_late_does_not_stop_the_successor,
    a_later_incarnation_supersedes,
    an_outage_moves_nobody,
    an_outage_of_many_leases_moves_nobody_either,
    a_second_outage_during_the_hold_changes_nothing,
    who_was_dead_before_the_outage_stays_dead,
    looking_keeps_the_clock_going,
    the_long_dead_are_dropped_and_stay_dead,
    services_do_not_mix,
);

pub(crate) const TIMES: LeaseTimes = LeaseTimes {
    lease: Duration::from_millis(300),
    grace: Duration::from_millis(200),
    gap: Duration::from_millis(200),
};

pub(crate) fn service() -> ServiceId {
    service_id("ns", "svc")
}

pub(crate) fn process(index: i64, nonce: &str, pod_uid: &str) -> PodIdentity {
    let (nonce, pod_uid) = (nonce.to_owned(), pod_uid.to_owned());
    PodIdentity {
        service: service(),
        pod: pod(index),
        nonce,
        pod_uid,
    }
}

pub(crate) fn state(index: i64, incarnation: Incarnation) -> PodState {
    PodState {
        pod_id: pod(index),
        state: Readiness::Ready,
        load_state: 12,
        routing_state: RoutingState::Ready,
        update_time: 0,
        incarnation,
        metadata: BTreeMap::from([("address".to_owned(), "10.0.0.1:7000".to_owned())]),
    }
}

pub(crate) async fn begin(stage: &Stage, who: &PodIdentity) -> Begun {
    stage
        .store
        .pod_begin(who, TIMES, stage.deadline())
        .await
        .unwrap()
}

/// Begins a process that need not wait for an earlier one.
pub(crate) async fn started(stage: &Stage, index: i64, nonce: &str) -> Incarnation {
    match begin(stage, &process(index, nonce, "")).await {
        Begun::Started(incarnation) => incarnation,
        busy => panic!("{nonce} has to wait: {busy:?}"),
    }
}

pub(crate) async fn renew(stage: &Stage, state: &PodState) -> Renewed {
    stage
        .store
        .pod_renew(&service(), state, TIMES, stage.deadline())
        .await
        .unwrap()
}

pub(crate) async fn certify(stage: &Stage, index: i64) -> Certificate {
    stage
        .store
        .pod_certify(&service(), pod(index), stage.deadline())
        .await
        .unwrap()
}

async fn end(stage: &Stage, index: i64, incarnation: Incarnation) -> bool {
    stage
        .store
        .pod_end(&service(), pod(index), incarnation, stage.deadline())
        .await
        .unwrap()
}

pub(crate) async fn records(stage: &Stage) -> Vec<PodRecord> {
    let pods = stage.pods(&service()).await;
    assert!(pods.corrupt.is_empty(), "{:?}", pods.corrupt);
    pods.records
}

pub(crate) async fn record(stage: &Stage, index: i64) -> Option<PodRecord> {
    records(stage)
        .await
        .into_iter()
        .find(|record| record.state.pod_id == pod(index))
}

/// Waits for the certificate; returns the incarnation that is dead.
pub(crate) async fn death(stage: &Stage, index: i64) -> Incarnation {
    stage
        .until("the pod is dead", async || {
            match certify(stage, index).await {
                Certificate::Dead(incarnation) => Some(incarnation),
                Certificate::Alive { left, .. } => {
                    assert!(
                        left <= TIMES.lease + TIMES.grace,
                        "{left:?} is more than a hold"
                    );
                    None
                }
                Certificate::Unknown => panic!("the pod was there"),
            }
        })
        .await
}

/// Waits until the pod's lease is over, looking at nothing but the list of pods.
async fn lapse(stage: &Stage, index: i64) {
    let lapsed = async || {
        let record = record(stage, index)
            .await
            .expect("its state stays for a while");
        record.lease_left.is_zero().then_some(())
    };
    stage.until("the lease is over", lapsed).await;
}

async fn an_unknown_pod_has_nobody_to_protect(stage: Stage) {
    assert_eq!(certify(&stage, 0).await, Certificate::Unknown);
    assert!(records(&stage).await.is_empty());
}

async fn a_process_that_asks_twice_gets_the_same_incarnation(stage: Stage) {
    let first = started(&stage, 0, "a").await;
    assert!(first > Incarnation::NONE);
    assert_eq!(started(&stage, 0, "a").await, first);
    let other = started(&stage, 1, "a").await;
    assert_eq!(
        started(&stage, 1, "a").await,
        other,
        "each index counts for itself"
    );
}

async fn another_process_waits_until_the_first_is_dead(stage: Stage) {
    let first = started(&stage, 0, "a").await;
    match begin(&stage, &process(0, "b", "")).await {
        Begun::Busy { incarnation, wait } => {
            assert_eq!(incarnation, first);
            assert!(
                wait > Duration::ZERO && wait <= TIMES.lease + TIMES.grace,
                "{wait:?}"
            );
        }
        begun => panic!("two processes hold one index: {begun:?}"),
    }
    let second = stage
        .until("the index is free", async || {
            match begin(&stage, &process(0, "b", "")).await {
                Begun::Started(incarnation) => Some(incarnation),
                Begun::Busy { .. } => None,
            }
        })
        .await;
    assert!(second > first);
    let late = renew(&stage, &state(0, first)).await;
    assert_eq!(late, Renewed::Superseded(second));
    assert!(matches!(
        renew(&stage, &state(0, second)).await,
        Renewed::Done { .. }
    ));
}

async fn a_container_restarted_in_its_pod_need_not_wait(stage: Stage) {
    let Begun::Started(first) = begin(&stage, &process(0, "a", "uid-1")).await else {
        panic!("no other process is there")
    };
    assert!(matches!(
        begin(&stage, &process(0, "b", "uid-2")).await,
        Begun::Busy { .. }
    ));
    assert!(matches!(
        begin(&stage, &process(0, "b", "")).await,
        Begun::Busy { .. }
    ));
    let Begun::Started(second) = begin(&stage, &process(0, "c", "uid-1")).await else {
        panic!("Kubernetes runs one container at a time")
    };
    assert!(second > first);
    let late = renew(&stage, &state(0, first)).await;
    assert_eq!(late, Renewed::Superseded(second));
}

async fn of_many_that_begin_at_once_one_does(stage: Stage) {
    let stage = &stage;
    let all = (0..20).map(|n| async move { begin(stage, &process(0, &n.to_string(), "")).await });
    let answers = futures_util::future::join_all(all).await;
    let started = answers
        .iter()
        .filter(|begun| matches!(begun, Begun::Started(_)))
        .count();
    assert_eq!(started, 1, "{answers:?}");
}

async fn a_renewal_publishes_the_state_with_the_stores_time(stage: Stage) {
    let me = started(&stage, 0, "a").await;
    let mut mine = state(0, me);
    mine.routing_state = RoutingState::DenyNewCall;
    // A time of the pod's own is not believed.
    mine.update_time = 5;
    assert!(matches!(renew(&stage, &mine).await, Renewed::Done { .. }));
    let shown = record(&stage, 0).await.unwrap();
    assert!(shown.lease_left > Duration::ZERO && shown.lease_left <= TIMES.lease + TIMES.grace);
    let year_2020_ms = 1_577_836_800_000;
    assert!(
        shown.state.update_time > year_2020_ms,
        "{}",
        shown.state.update_time
    );
    mine.update_time = shown.state.update_time;
    assert_eq!(*shown.state, mine);
}

async fn a_state_of_an_earlier_incarnation_is_not_shown(stage: Stage) {
    let Begun::Started(first) = begin(&stage, &process(0, "a", "uid")).await else {
        panic!("no other process is there")
    };
    renew(&stage, &state(0, first)).await;
    assert!(record(&stage, 0).await.is_some());
    begin(&stage, &process(0, "b", "uid")).await;
    assert_eq!(
        record(&stage, 0).await,
        None,
        "the new process has not said anything yet"
    );
}

/// Each look here knows what the last one has read.
async fn who_says_nothing_new_is_seen_as_before_beside_who_does(stage: Stage) {
    let loads = async || -> Vec<(u32, i64, Incarnation)> {
        let shown = records(&stage).await;
        let of = |record: &PodRecord| {
            let PodState {
                pod_id,
                load_state,
                incarnation,
                ..
            } = &*record.state;
            (pod_id.get(), *load_state, *incarnation)
        };
        shown.iter().map(of).collect()
    };
    let (quiet, lively) = (started(&stage, 7, "a").await, started(&stage, 3, "b").await);
    renew(&stage, &state(7, quiet)).await;
    for load in [12, 13, 14] {
        let said = PodState {
            load_state: load,
            ..state(3, lively)
        };
        renew(&stage, &said).await;
        assert_eq!(loads().await, [(3, load, lively), (7, 12, quiet)]);
    }
    assert!(end(&stage, 3, lively).await);
    assert_eq!(loads().await, [(7, 12, quiet)]);
    let back = started(&stage, 3, "c").await;
    assert_eq!(loads().await, [(7, 12, quiet)]);
    renew(&stage, &state(3, back)).await;
    assert_eq!(loads().await, [(3, 12, back), (7, 12, quiet)]);
}

async fn a_lease_runs_out_and_the_certificate_comes_after_the_grace(stage: Stage) {
    let me = started(&stage, 0, "a").await;
    renew(&stage, &state(0, me)).await;
    match certify(&stage, 0).await {
        Certificate::Alive { incarnation, left } => {
            assert_eq!(incarnation, me);
            assert!(left > TIMES.lease / 2, "{left:?}");
        }
        other => panic!("it has just renewed: {other:?}"),
    }
    lapse(&stage, 0).await;
    if stage.as_server().is_none() {
        // Time stands still here, so this is exact; on a server `stored_leases` looks behind it.
        let certificate = certify(&stage, 0).await;
        assert!(matches!(certificate, Certificate::Alive { left, .. } if left <= TIMES.grace));
    }
    // The pod may come back as long as no client has declared it dead.
    assert!(matches!(
        renew(&stage, &state(0, me)).await,
        Renewed::Done { .. }
    ));
    assert!(record(&stage, 0).await.unwrap().lease_left > Duration::ZERO);
    assert_eq!(death(&stage, 0).await, me);
}

async fn a_certificate_is_for_good(stage: Stage) {
    let me = started(&stage, 0, "a").await;
    renew(&stage, &state(0, me)).await;
    assert_eq!(death(&stage, 0).await, me);
    assert_eq!(renew(&stage, &state(0, me)).await, Renewed::Dead);
    assert_eq!(certify(&stage, 0).await, Certificate::Dead(me));
    let dead = record(&stage, 0).await;
    assert!(dead.is_none_or(|record| record.lease_left.is_zero()));
    // Even the same process begins again, and no process has to wait for the dead.
    let next = started(&stage, 0, "a").await;
    assert!(next > me);
    assert!(matches!(
        renew(&stage, &state(0, next)).await,
        Renewed::Done { .. }
    ));
    let late = renew(&stage, &state(0, me)).await;
    assert_eq!(late, Renewed::Superseded(next), "and never the dead one");
}

async fn a_clean_stop_is_known_at_once(stage: Stage) {
    let me = started(&stage, 0, "a").await;
    renew(&stage, &state(0, me)).await;
    assert!(end(&stage, 0, me).await);
    assert_eq!(record(&stage, 0).await, None);
    assert_eq!(certify(&stage, 0).await, Certificate::Dead(me));
    assert_eq!(renew(&stage, &state(0, me)).await, Renewed::Dead);
    assert!(end(&stage, 0, me).await, "to stop twice is no mistake");
    assert!(started(&stage, 0, "b").await > me);
}

async fn a_stop_that_comes_too_late_does_not_stop_the_successor(stage: Stage) {
    let first = started(&stage, 0, "a").await;
    assert!(end(&stage, 0, first).await);
    let second = started(&stage, 0, "b").await;
    renew(&stage, &state(0, second)).await;
    assert!(!end(&stage, 0, first).await);
    assert!(record(&stage, 0).await.is_some());
    assert!(matches!(
        certify(&stage, 0).await,
        Certificate::Alive { .. }
    ));
}

async fn a_later_incarnation_supersedes(stage: Stage) {
    // As after a fail-over that lost what happened in between.
    let (early, late) = (Incarnation::new(1 << 40), Incarnation::new(1 << 41));
    assert!(
        matches!(renew(&stage, &state(0, late)).await, Renewed::Done { .. }),
        "a lost record is made again"
    );
    assert_eq!(
        renew(&stage, &state(0, early)).await,
        Renewed::Superseded(late)
    );
    assert_eq!(record(&stage, 0).await.unwrap().state.incarnation, late);
    assert!(!end(&stage, 0, early).await);
}

async fn an_outage_moves_nobody(stage: Stage) {
    let me = started(&stage, 0, "a").await;
    renew(&stage, &state(0, me)).await;
    stage.silence((TIMES.lease + TIMES.grace) * 3).await;
    // Whichever pod is first after the outage: all have a fresh lease and grace.
    let shown = record(&stage, 0).await.unwrap();
    assert!(shown.lease_left > TIMES.lease / 2, "{:?}", shown.lease_left);
    assert!(matches!(
        certify(&stage, 0).await,
        Certificate::Alive { .. }
    ));
    assert!(matches!(
        begin(&stage, &process(0, "b", "")).await,
        Begun::Busy { .. }
    ));
    assert!(matches!(
        renew(&stage, &state(0, me)).await,
        Renewed::Done { .. }
    ));
    stage.silence((TIMES.lease + TIMES.grace) * 3).await;
    assert!(matches!(
        certify(&stage, 0).await,
        Certificate::Alive { .. }
    ));
    // It did not come back after all.
    assert_eq!(death(&stage, 0).await, me);
}

/// Story: the first pod that renewed after an outage of ten leases found all others long dead,
/// before any pod had noticed the outage, and dropped them.
async fn an_outage_of_many_leases_moves_nobody_either(stage: Stage) {
    let tenth = Duration::from_millis(100);
    let times = LeaseTimes {
        lease: tenth,
        grace: tenth,
        gap: tenth,
    };
    let renew = async |index, incarnation| {
        let state = state(index, incarnation);
        stage
            .store
            .pod_renew(&service(), &state, times, stage.deadline())
            .await
            .unwrap()
    };
    let (first, second) = (Incarnation::new(1 << 40), Incarnation::new(1 << 41));
    renew(0, first).await;
    renew(1, second).await;
    stage.silence(tenth * 15).await;
    assert!(matches!(renew(1, second).await, Renewed::Done { .. }));
    assert!(matches!(renew(0, first).await, Renewed::Done { .. }));
    assert_eq!(records(&stage).await.len(), 2);
}

/// Who was alive when the first outage began is held to be alive until the hold is over, even if
/// the store is gone once more meanwhile.
async fn a_second_outage_during_the_hold_changes_nothing(stage: Stage) {
    let seconds = Duration::from_secs;
    let times = LeaseTimes {
        lease: seconds(2),
        grace: seconds(2),
        gap: Duration::from_millis(200),
    };
    let (state, time) = (state(0, Incarnation::new(1 << 40)), stage.deadline());
    stage
        .store
        .pod_renew(&service(), &state, times, time)
        .await
        .unwrap();
    stage.silence(times.lease + times.gap).await;
    assert!(record(&stage, 0).await.unwrap().lease_left > Duration::ZERO);
    stage.silence(times.gap * 2).await;
    assert!(record(&stage, 0).await.unwrap().lease_left > Duration::ZERO);
    assert!(matches!(renew(&stage, &state).await, Renewed::Done { .. }));
}

async fn who_was_dead_before_the_outage_stays_dead(stage: Stage) {
    let dead = started(&stage, 0, "a").await;
    renew(&stage, &state(0, dead)).await;
    let alive = started(&stage, 1, "b").await;
    assert_eq!(death(&stage, 0).await, dead);
    renew(&stage, &state(1, alive)).await;
    stage.silence((TIMES.lease + TIMES.grace) * 3).await;
    assert!(record(&stage, 1).await.unwrap().lease_left > Duration::ZERO);
    assert!(
        record(&stage, 0)
            .await
            .is_none_or(|record| record.lease_left.is_zero())
    );
    assert_eq!(certify(&stage, 0).await, Certificate::Dead(dead));
    assert_eq!(renew(&stage, &state(0, dead)).await, Renewed::Dead);
}

async fn looking_keeps_the_clock_going(stage: Stage) {
    let me = started(&stage, 0, "a").await;
    renew(&stage, &state(0, me)).await;
    // The only pod is gone and no pod renews: that is a death, and no outage of the store.
    lapse(&stage, 0).await;
    assert_eq!(death(&stage, 0).await, me);
}

async fn the_long_dead_are_dropped_and_stay_dead(stage: Stage) {
    let dead = started(&stage, 0, "a").await;
    renew(&stage, &state(0, dead)).await;
    let alive = started(&stage, 1, "b").await;
    let dropped = async || {
        assert!(matches!(
            renew(&stage, &state(1, alive)).await,
            Renewed::Done { .. }
        ));
        record(&stage, 0).await.is_none().then_some(())
    };
    stage.until("the dead pod is dropped", dropped).await;
    assert_eq!(
        certify(&stage, 0).await,
        Certificate::Dead(dead),
        "no client had asked before"
    );
    assert_eq!(renew(&stage, &state(0, dead)).await, Renewed::Dead);
    assert!(started(&stage, 0, "a").await > dead);
    assert!(record(&stage, 1).await.is_some());
}

async fn services_do_not_mix(stage: Stage) {
    let me = started(&stage, 0, "a").await;
    renew(&stage, &state(0, me)).await;
    for other in [service_id("ns", "svc2"), service_id("ns2", "svc")] {
        let deadline = stage.deadline();
        assert!(stage.pods(&other).await.records.is_empty());
        let certificate = stage
            .store
            .pod_certify(&other, pod(0), deadline)
            .await
            .unwrap();
        assert_eq!(certificate, Certificate::Unknown);
        let who = PodIdentity {
            service: other,
            ..process(0, "b", "")
        };
        assert!(matches!(begin(&stage, &who).await, Begun::Started(_)));
    }
    let index: PodIndex = pod(0);
    assert_eq!(
        records(&stage)
            .await
            .iter()
            .map(|r| r.state.pod_id)
            .collect::<Vec<_>>(),
        [index]
    );
}
