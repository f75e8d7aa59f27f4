//! Computes that come together, on a store that fails on request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use podlink::config::{ClientConfig, SettingsGroup};
use podlink::driver::client::ClientDriver;
use podlink::driver::server::ServerDriver;
use podlink::error::{Error, ErrorKind, WriteOutcome};
use podlink::id::PodIndex;
use podlink::store::Store;
use tokio::task::JoinHandle;

use super::faulty::Fault;
use super::world::{GRACE, LEASE, World, route_info, service, settle, tasks};
use crate::ask::Ask as _;
use crate::stage::user;

const HASTY: Duration = Duration::from_millis(300);
const PATIENT: Duration = Duration::from_secs(20);

/// A client that has seen the pods.
async fn client(world: &World) -> ClientDriver {
    let config = ClientConfig {
        cache_capacity: 10_000,
        ..ClientConfig::defaults().unwrap()
    };
    let store = Arc::clone(&world.store) as Arc<dyn Store>;
    let (clock, namespace) = (world.clock.clone(), service().namespace);
    let info = world.info(route_info());
    let client = ClientDriver::new(
        store,
        clock,
        namespace,
        config,
        &info,
        None,
        &HashMap::new(),
    );
    compute(&client, "warm", PATIENT).await.unwrap().unwrap();
    client
}

fn compute(
    client: &ClientDriver,
    uid: &str,
    timeout: Duration,
) -> JoinHandle<Result<PodIndex, Error>> {
    let (client, link) = (client.clone(), user(uid));
    let deadline = client.deadline(Some(timeout));
    tokio::spawn(async move { client.compute_linked_pod(link, deadline).await })
}

async fn stage() -> (World, ServerDriver, ClientDriver) {
    let world = World::new();
    let server = world.started(0).await;
    let client = client(&world).await;
    (world, server, client)
}

#[tokio::test(start_paused = true)]
async fn what_befalls_one_user_is_told_to_that_user() {
    let (world, _server, client) = stage().await;
    world
        .store
        .fail("set_if_absent", &[Fault::Refused, Fault::AnswerLost]);
    let calls = join_all((0..5).map(|n| compute(&client, &format!("u{n}"), HASTY))).await;
    let outcomes: Vec<_> = calls.into_iter().map(Result::unwrap).collect();
    let failed = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    let failure: Vec<_> = failed.map(|e| (e.kind(), e.outcome())).collect();
    let refused = (ErrorKind::StoreUnavailable, Some(WriteOutcome::NotSent));
    let lost = (ErrorKind::Timeout, Some(WriteOutcome::Unknown));
    assert_eq!(failure, [refused, lost]);
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 3);
}

/// Story: a caller with little time asks, another with more time joins it. The question ends with
/// the time of the first; the second must not get a timeout when there is time left.
#[tokio::test(start_paused = true)]
async fn who_joins_and_has_more_time_asks_again() {
    let (world, _server, client) = stage().await;
    world.store.fail("set_if_absent", &[Fault::Silence]);
    let first = compute(&client, "u", HASTY);
    settle().await;
    let second = compute(&client, "u", PATIENT);
    settle().await;
    world
        .until("both have ended", || {
            first.is_finished() && second.is_finished()
        })
        .await;
    assert_eq!(first.await.unwrap().unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(second.await.unwrap().unwrap().get(), 0);
    assert_eq!(client.stats()["flights_joined"], 1);
}

/// Who joins with less time leaves by that time, and the question goes on.
#[tokio::test(start_paused = true)]
async fn who_joins_and_has_less_time_leaves_earlier() {
    let (world, _server, client) = stage().await;
    let slow = Fault::Late(Duration::from_secs(2));
    world.store.fail("set_if_absent", &[slow]);
    let first = compute(&client, "u", PATIENT);
    settle().await;
    let second = compute(&client, "u", HASTY);
    settle().await;
    let waited = world
        .until("the second left", || second.is_finished())
        .await;
    assert!(waited < HASTY + Duration::from_millis(100), "{waited:?}");
    let error = second.await.unwrap().unwrap_err();
    let failure = (error.kind(), error.outcome());
    assert_eq!(failure, (ErrorKind::Timeout, Some(WriteOutcome::Unknown)));
    assert!(!first.is_finished());
    world
        .until("the first has its answer", || first.is_finished())
        .await;
    assert_eq!(first.await.unwrap().unwrap().get(), 0);
}

/// The store answers nothing: a caller that could not even be sent ends by its own deadline, too.
#[tokio::test(start_paused = true)]
async fn who_waits_behind_a_silent_store_leaves_in_time() {
    let (world, _server, client) = stage().await;
    world.store.fail("set_if_absent", &[Fault::Silence; 16]);
    let mut patient = Vec::new();
    for n in 0..8 {
        // Each is a batch of its own, and there are no more than a few at a time.
        patient.push(compute(&client, &format!("p{n}"), PATIENT));
        settle().await;
    }
    let hasty = compute(&client, "hasty", HASTY);
    settle().await;
    let waited = world
        .until("the hasty one left", || hasty.is_finished())
        .await;
    assert!(waited < HASTY + Duration::from_millis(100), "{waited:?}");
    let error = hasty.await.unwrap().unwrap_err();
    let failure = (error.kind(), error.outcome());
    assert_eq!(failure, (ErrorKind::Timeout, Some(WriteOutcome::NotSent)));
    world.store.heal();
    let ended = || patient.iter().all(JoinHandle::is_finished);
    world.until("the others have ended", ended).await;
}

/// Many callers are not sent in one batch, in which all would wait for the slowest answer:
/// each of those that may be under way takes its share.
#[tokio::test(start_paused = true)]
async fn a_crowd_is_shared_among_exchanges() {
    for (callers, share) in [(5, 5), (8, 8), (9, 8), (64, 16), (500, 125), (3000, 512)] {
        let (world, _server, client) = stage().await;
        let late = Fault::Late(Duration::from_secs(1));
        world.store.fail("set_if_absent", &[late]);
        let calls: Vec<_> = (0..callers)
            .map(|n| compute(&client, &format!("u{n}"), PATIENT))
            .collect();
        let waiting = || calls.iter().filter(|call| !call.is_finished()).count();
        world
            .until("the others have theirs", || waiting() <= share)
            .await;
        assert_eq!(waiting(), share, "of {callers}");
        world.until("all have their pod", || waiting() == 0).await;
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap().get(), 0);
        }
    }
}

/// A pod that is gone is looked at more closely, for each of its users.
#[tokio::test(start_paused = true)]
async fn users_of_a_dead_pod_are_moved_by_the_long_way() {
    let world = World::new();
    let (dead, alive) = (world.server(1), world.started(0).await);
    dead.start(dead.start_deadline(None)).await.unwrap();
    for n in 0..20 {
        let (link, ttl) = (user(&format!("u{n}")), Duration::from_secs(300));
        let deadline = world.clock.deadline(PATIENT);
        let placed = world
            .store
            .set_if_absent(&link, crate::stage::pod(1), ttl, deadline);
        assert!(placed.await.unwrap().made);
    }
    drop(dead);
    world.pass(LEASE + GRACE + Duration::from_secs(1)).await;
    let client = client(&world).await;
    let calls: Vec<_> = (0..20)
        .map(|n| compute(&client, &format!("u{n}"), PATIENT))
        .collect();
    let ended = || calls.iter().all(JoinHandle::is_finished);
    world.until("all are moved", ended).await;
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().get(), 0);
    }
    assert_eq!(client.stats()["links_healed"], 20);
    drop(alive);
}

/// The placer is a task only while a caller waits.
#[tokio::test(start_paused = true)]
async fn nothing_runs_when_nobody_waits() {
    let (_world, _server, client) = stage().await;
    settle().await;
    let before = tasks();
    for round in 0..3 {
        let calls = (0..100).map(|n| compute(&client, &format!("u{round}-{n}"), PATIENT));
        for call in join_all(calls).await {
            assert_eq!(call.unwrap().unwrap().get(), 0);
        }
        settle().await;
        assert_eq!(tasks(), before);
    }
}
