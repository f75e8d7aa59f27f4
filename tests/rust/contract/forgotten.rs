//! Processes that own users although the store has no lease of them: it has forgotten them.

use podlink::id::Incarnation;
use podlink::op::Renewed;
use podlink::route::link::Certificate;

use crate::ask::Ask as _;
use crate::contract::leases::{TIMES, certify, renew, service, started, state};
use crate::contract::on_every_store;
use crate::stage::{Stage, pod};

on_every_store!(
    a_forgotten_process_gets_a_lease_and_a_grace,
    a_forgotten_process_comes_back_in_time,
    before_any_pod_nobody_is_dead,
    an_earlier_process_is_dead_whoever_has_the_index,
);

async fn certify_seen(stage: &Stage, index: i64, seen: u64) -> Certificate {
    let (service, seen) = (service(), Incarnation::new(seen));
    let deadline = stage.deadline();
    let certificate = stage
        .store
        .certify_seen(&service, pod(index), seen, deadline);
    certificate.await.unwrap()
}

async fn a_forgotten_process_gets_a_lease_and_a_grace(stage: Stage) {
    started(&stage, 0, "a").await;
    let seen = Incarnation::new(77);
    match certify_seen(&stage, 5, 77).await {
        Certificate::Alive { incarnation, left } => {
            assert_eq!(incarnation, seen);
            assert!(left > TIMES.lease, "{left:?}");
        }
        other => panic!("it may be alive: {other:?}"),
    }
    assert_eq!(
        certify(&stage, 5).await,
        Certificate::Unknown,
        "without a record"
    );
    let dead = stage
        .until("it is dead", async || {
            match certify_seen(&stage, 5, 77).await {
                Certificate::Dead(dead) => Some(dead),
                Certificate::Alive { .. } => None,
                Certificate::Unknown => panic!("a record names it"),
            }
        })
        .await;
    assert_eq!(dead, seen);
    // For good: its renewal comes too late.
    let late = renew(&stage, &state(5, seen)).await;
    assert_eq!(late, Renewed::Dead);
    assert_eq!(certify_seen(&stage, 5, 76).await, Certificate::Dead(seen));
}

async fn a_forgotten_process_comes_back_in_time(stage: Stage) {
    started(&stage, 0, "a").await;
    let seen = Incarnation::new(77);
    assert!(matches!(
        certify_seen(&stage, 5, 77).await,
        Certificate::Alive { .. }
    ));
    let back = renew(&stage, &state(5, seen)).await;
    assert!(
        matches!(
            back,
            Renewed::Done {
                recreated: true,
                ..
            }
        ),
        "{back:?}"
    );
    match certify_seen(&stage, 5, 77).await {
        Certificate::Alive { incarnation, .. } => assert_eq!(incarnation, seen),
        other => panic!("it has just renewed: {other:?}"),
    }
}

async fn before_any_pod_nobody_is_dead(stage: Stage) {
    let asked = certify_seen(&stage, 5, 77).await;
    assert!(matches!(asked, Certificate::Alive { .. }), "{asked:?}");
}

async fn an_earlier_process_is_dead_whoever_has_the_index(stage: Stage) {
    let first = started(&stage, 0, "a").await;
    let deadline = stage.deadline();
    let ended = stage
        .store
        .pod_end(&service(), pod(0), first, deadline)
        .await;
    assert!(ended.unwrap());
    let second = started(&stage, 0, "b").await;
    assert!(second > first);
    let earlier = certify_seen(&stage, 0, first.get()).await;
    assert_eq!(earlier, Certificate::Dead(first));
    let later = certify_seen(&stage, 0, second.get()).await;
    assert!(matches!(later, Certificate::Alive { .. }), "{later:?}");
}
