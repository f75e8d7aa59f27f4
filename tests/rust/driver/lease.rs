//! Renewals in injected time: their pace, their retries, what is lost and how it is had again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use podlink::clock::{Clock, Tick};
use podlink::driver::info::InfoDriver;
use podlink::driver::server::{NoHooks, ServerDriver, ServerInfo};
use podlink::error::ErrorKind;
use podlink::route::link::{Certificate, Persist};
use podlink::route::state::RoutingState;
use podlink::store::MemoryStore;

use super::faulty::Fault;
use super::world::{
    GRACE, GUARD, LEASE, Losses, RENEW, STEP, TIMEOUT, World, config, route_info, service,
    set_linked_pod,
};
use crate::ask::Ask as _;
use crate::stage::{pod, user};

fn pauses(asked: &[Tick]) -> Vec<Duration> {
    asked.windows(2).map(|two| two[1].since(two[0])).collect()
}

async fn own(server: &ServerDriver, uid: &str) -> podlink::error::Result<()> {
    let (link, deadline) = (user(uid), server.deadline(None));
    let set = set_linked_pod(server, &link, pod(0), Persist::Forever, deadline);
    set.await.map(|_| ())
}

#[tokio::test(start_paused = true)]
async fn renewals_keep_their_pace_within_a_tenth() {
    let world = World::new();
    let server = world.started(0).await;
    world.pass(RENEW * 50).await;
    let pauses = pauses(&world.store.asked("pod_renew"));
    assert!(pauses.len() >= 45, "{}", pauses.len());
    let (least, most) = (RENEW.mul_f64(0.9), RENEW.mul_f64(1.1) + STEP * 2);
    assert!(
        pauses.iter().all(|pause| (least..=most).contains(pause)),
        "{pauses:?}"
    );
    // Not in step with others.
    assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    assert!(server.holds_lease());
}

#[tokio::test(start_paused = true)]
async fn a_missed_renewal_is_tried_again_within_the_period() {
    let world = World::new();
    let server = world.started(0).await;
    world.pass(RENEW * 2).await;
    let before = world.store.asked("pod_renew").len();
    world.store.fail("pod_renew", &[Fault::Refused; 3]);
    world.pass(RENEW * 2).await;
    let asked = world.store.asked("pod_renew");
    let retries = &pauses(&asked[before..])[..3];
    assert!(
        retries.iter().all(|pause| *pause < RENEW / 2),
        "{retries:?}"
    );
    let stats = server.stats();
    assert_eq!((stats["renew_failures"], stats["leases_lost"]), (3, 0));
    assert!(server.holds_lease());
}

#[tokio::test(start_paused = true)]
async fn renewals_never_overlap() {
    let world = World::new();
    let server = world.started(0).await;
    world.store.fail("pod_renew", &[Fault::Silence; 3]);
    // Each hangs for its whole time; others want to publish as well.
    world.pass(RENEW).await;
    let publish = |state: RoutingState| {
        let (server, deadline) = (server.clone(), world.clock.deadline(RENEW));
        tokio::spawn(async move { server.set_routing_state(state, deadline).await })
    };
    let states = [RoutingState::DenyNewCall, RoutingState::Ready];
    let publishing = states.map(publish);
    world.pass(RENEW * 5).await;
    assert!(publishing.iter().all(tokio::task::JoinHandle::is_finished));
    assert_eq!(world.store.most_at_once("pod_renew"), 1);
    assert!(world.store.asked("pod_renew").len() > 5);
    assert!(server.holds_lease());
}

#[tokio::test(start_paused = true)]
async fn the_pod_knows_by_its_own_clock_when_its_lease_is_over() {
    let world = World::new();
    let losses = Arc::new(Losses::default());
    let server = world.server_with(0, "", world.clock.clone(), Arc::clone(&losses) as Arc<_>);
    server.start(server.start_deadline(None)).await.unwrap();
    own(&server, "u").await.unwrap();
    let sent = *world.store.asked("pod_renew").last().unwrap();
    world.store.fail("pod_renew", &[Fault::Refused; 100]);
    let end = sent.after(LEASE - GUARD);
    while world.clock.now().after(STEP) < end {
        assert!(server.holds_lease());
        world.pass(STEP).await;
    }
    world.pass(STEP * 2).await;
    assert!(!server.holds_lease());
    let error = own(&server, "u2").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost);
    assert!(error.is_retryable());
    world
        .until("the lapse is noticed", || {
            server.stats()["suspensions"] == 1
        })
        .await;
    assert!(server.owned_users().is_empty());
    let incarnation = server.incarnation();
    world.store.heal();
    world
        .until("it holds its lease", || server.holds_lease())
        .await;
    // No client had declared it dead.
    assert_eq!(server.incarnation(), incarnation);
    assert_eq!(losses.count(), 0);
    assert!(server.owns(None, "u", None));
}

/// Puts a pod to sleep until it is declared dead, and wakes it.
async fn declared_dead(world: &World) -> (ServerDriver, Arc<Losses>) {
    let losses = Arc::new(Losses::default());
    let server = world.server_with(0, "", world.clock.clone(), Arc::clone(&losses) as Arc<_>);
    server.start(server.start_deadline(None)).await.unwrap();
    own(&server, "u").await.unwrap();
    // Its renewals do not arrive; another client's requests keep the store's clock going.
    world.store.fail("pod_renew", &[Fault::Refused; 1000]);
    let last = world.clock.now();
    loop {
        let deadline = world.clock.deadline(TIMEOUT);
        let certificate = world.store.pod_certify(&service(), pod(0), deadline).await;
        if let Certificate::Dead(_) = certificate.unwrap() {
            break;
        }
        world.pass(Duration::from_millis(500)).await;
    }
    assert!(world.clock.now().since(last) >= LEASE + GRACE - RENEW);
    (server, losses)
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_was_declared_dead_comes_back_as_another_and_owns_nobody() {
    let world = World::new();
    let (server, losses) = declared_dead(&world).await;
    let old = server.incarnation();
    assert!(!server.holds_lease());
    world.store.heal();
    world.until("it is back", || server.holds_lease()).await;
    assert!(server.incarnation() > old);
    assert_eq!(losses.count(), 1);
    assert_eq!(server.stats()["owned_users"], 0);
    own(&server, "u").await.unwrap();
    assert_eq!(server.stats()["owned_users"], 1);
}

/// The new incarnation was taken, and the answer was lost. The next renewal was one of the old
/// incarnation, so the pod was superseded by itself, for good.
#[tokio::test(start_paused = true)]
async fn a_pod_is_not_superseded_by_itself() {
    for fault in [Fault::AnswerLost, Fault::Refused, Fault::Silence] {
        let world = World::new();
        let (server, losses) = declared_dead(&world).await;
        let old = server.incarnation();
        world.store.heal();
        world.store.fail("pod_begin", &[fault; 3]);
        let waited = world.until("it is back", || server.holds_lease()).await;
        assert!(server.incarnation() > old, "{fault:?}");
        assert_eq!(losses.count(), 1);
        assert!(waited < RENEW * 6, "{fault:?}: {waited:?}");
        own(&server, "u").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_index_was_taken_ends_for_good() {
    let world = World::new();
    let losses = Arc::new(Losses::default());
    let clock = world.clock.clone();
    let earlier = world.server_with(0, "uid", clock.clone(), Arc::clone(&losses) as Arc<_>);
    earlier.start(earlier.start_deadline(None)).await.unwrap();
    own(&earlier, "u").await.unwrap();
    let later = world.server_with(0, "uid", clock, Arc::new(NoHooks));
    later.start(later.start_deadline(None)).await.unwrap();
    world.until("it knows", || losses.count() > 0).await;
    let begun = world.store.asked("pod_begin").len();
    world.pass(LEASE * 3).await;
    // It does not try to have the index back, and it renews nothing.
    assert_eq!(world.store.asked("pod_begin").len(), begun);
    assert!(!earlier.holds_lease());
    assert!(later.holds_lease());
    assert_eq!(later.stats()["leases_lost"], 0);
    assert_eq!(earlier.stats()["leases_lost"], 1);
    let error = own(&earlier, "u").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost);
    assert!(!error.is_retryable());
}

/// A pod whose own clock is years off, and another one whose clock has just been booted: only
/// differences mean anything, and every moment in the store is the store's own.
#[tokio::test(start_paused = true)]
async fn wrong_clocks_change_nothing() {
    const YEARS: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
    let mut world = World::new();
    let clocks = [
        world.wrong_clock(YEARS),
        world.wrong_clock(Duration::from_millis(1)),
    ];
    // One store, by the clock of its first handle; each process has a handle of its own.
    let open = |clock: &Clock| MemoryStore::open(Some("wrong clocks"), clock.clone()).unwrap();
    let store = open(&world.clock);
    let servers: Vec<ServerDriver> = (0..)
        .zip(clocks)
        .map(|(index, clock)| {
            let info = ServerInfo {
                service: service(),
                pod: pod(index),
                pod_uid: String::new(),
                metadata: BTreeMap::new(),
            };
            ServerDriver::new(open(&clock), clock, info, config(), Arc::new(NoHooks))
        })
        .collect();
    let namespace = service().namespace;
    let info = InfoDriver::new(store, world.clock.clone(), namespace, route_info());
    for server in &servers {
        server.start(server.start_deadline(None)).await.unwrap();
    }
    for _ in 0..10 {
        world.pass(LEASE / 2).await;
        assert!(servers.iter().all(ServerDriver::holds_lease));
        let states = info
            .all_states(&service(), info.deadline(TIMEOUT))
            .await
            .unwrap();
        assert_eq!(states.len(), 2);
        let stamps: Vec<u64> = states.values().map(|state| state.update_time).collect();
        assert!(stamps[0].abs_diff(stamps[1]) < 3000, "{stamps:?}");
    }
    assert!(
        servers
            .iter()
            .all(|server| server.stats()["leases_lost"] == 0)
    );
    info.close();
}
