//! Starting and stopping when the store fails in the middle, and what is left afterwards: nothing.

use std::time::Duration;

use podlink::config::Drain;
use podlink::driver::server::ServerDriver;
use podlink::error::ErrorKind;
use podlink::id::Incarnation;
use podlink::route::link::Persist;

use super::faulty::Fault;
use super::world::{
    GRACE, LEASE, STEP, TIMEOUT, World, route_info, service, set_linked_pod, settle, tasks,
};
use crate::stage::{pod, user};

async fn start(server: &ServerDriver) -> podlink::error::Result<()> {
    server.start(server.start_deadline(None)).await
}

fn spawn_start(server: &ServerDriver) -> tokio::task::JoinHandle<podlink::error::Result<()>> {
    let server = server.clone();
    tokio::spawn(async move { start(&server).await })
}

async fn stop(world: &World, server: &ServerDriver) {
    let deadline = world.clock.deadline(Duration::from_secs(25));
    let stopping = server.stop(Drain::Release, deadline);
    tokio::pin!(stopping);
    loop {
        tokio::select! {
            biased;
            report = &mut stopping => {
                report.unwrap();
                return;
            }
            () = world.pass(STEP) => {}
        }
    }
}

/// A reader that reads for the first time.
async fn alive(world: &World) -> Vec<u32> {
    let info = world.info(route_info());
    let deadline = info.deadline(TIMEOUT);
    let states = info.all_states(&service(), deadline).await.unwrap();
    info.close();
    states.keys().map(|pod| pod.get()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ran_leaves_no_task() {
    let world = World::new();
    let before = tasks();
    let server = world.started(0).await;
    assert!(tasks() > before);
    world.pass(LEASE).await;
    stop(&world, &server).await;
    settle().await;
    assert_eq!(tasks(), before);
    let renewed = world.store.asked("pod_renew").len();
    world.pass(LEASE).await;
    assert_eq!(world.store.asked("pod_renew").len(), renewed);
    assert_eq!(alive(&world).await, [0_u32; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_is_dropped_leaves_no_task() {
    let world = World::new();
    let before = tasks();
    let server = world.started(0).await;
    world.pass(LEASE).await;
    drop(server);
    settle().await;
    assert_eq!(tasks(), before);
}

/// A program that had lost its driver, for example by an exception, kept a pod that it could not
/// stop: the driver was still referred to, and renewed for ever.
#[tokio::test(start_paused = true)]
async fn an_abandoned_driver_renews_no_more() {
    let world = World::new();
    let before = tasks();
    let server = world.started(0).await;
    world.pass(LEASE).await;
    assert!(server.abandon());
    settle().await;
    assert_eq!(tasks(), before);
    assert!(!server.holds_lease());
    let (renewed, ended) = (
        world.store.asked("pod_renew").len(),
        world.store.asked("pod_end"),
    );
    // The lease is not ended: a task that is left behind may still write what it owned.
    assert!(ended.is_empty());
    assert_eq!(alive(&world).await, [0]);
    world.pass(LEASE + GRACE).await;
    assert_eq!(world.store.asked("pod_renew").len(), renewed);
    assert!(!server.abandon());
    assert!(server.is_closed());
    assert_eq!(start(&server).await.unwrap_err().kind(), ErrorKind::Closed);
    stop(&world, &server).await;
}

#[tokio::test(start_paused = true)]
async fn only_a_driver_that_runs_is_abandoned() {
    let world = World::new();
    let server = world.server(0);
    assert!(!server.abandon());
    let starting = spawn_start(&server);
    settle().await;
    start(&server).await.unwrap();
    starting.await.unwrap().unwrap();
    assert!(!server.is_closed());
    stop(&world, &server).await;
    assert!(!server.abandon());
    assert!(server.is_closed());
}

/// The first attempt took the index, and its answer was lost. With a nonce for each attempt the
/// second one found the first alive, and waited for its lease and grace.
#[tokio::test(start_paused = true)]
async fn a_start_whose_answer_was_lost_may_be_repeated_at_once() {
    let world = World::new();
    let before = tasks();
    world.store.fail("pod_begin", &[Fault::AnswerLost]);
    let server = world.server(0);
    let error = start(&server).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(server.incarnation(), Incarnation::NONE);
    settle().await;
    assert_eq!(tasks(), before);
    let asked = world.clock.now();
    start(&server).await.unwrap();
    assert_eq!(world.clock.now(), asked);
    assert!(server.holds_lease());
    stop(&world, &server).await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_cannot_publish_gives_the_index_back() {
    for fault in [Fault::Refused, Fault::AnswerLost] {
        let world = World::new();
        settle().await;
        let before = tasks();
        world.store.fail("pod_renew", &[fault]);
        let server = world.server(0);
        start(&server).await.unwrap_err();
        settle().await;
        assert_eq!(tasks(), before, "{fault:?}");
        assert!(!server.holds_lease());
        assert_eq!(server.incarnation(), Incarnation::NONE);
        assert_eq!(alive(&world).await, [0_u32; 0]);
        // Neither it nor another process has to wait.
        let other = world.started(0).await;
        stop(&world, &other).await;
        start(&server).await.unwrap();
        stop(&world, &server).await;
    }
}

/// The caller of start got the failure before the index was given back: a start right behind it
/// must not be ended by that.
#[tokio::test(start_paused = true)]
async fn a_repeated_start_is_not_ended_by_what_the_first_one_gives_back() {
    let world = World::new();
    world.store.fail("pod_renew", &[Fault::Refused]);
    let server = world.server(0);
    start(&server).await.unwrap_err();
    start(&server).await.unwrap();
    settle().await;
    assert!(server.holds_lease());
    assert_eq!(alive(&world).await, [0]);
    world.pass(LEASE).await;
    assert_eq!(server.stats()["leases_lost"], 0);
    stop(&world, &server).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_during_a_start_leaves_nothing_whatever_the_store_does() {
    for (operation, fault) in [
        ("pod_begin", Some(Fault::Silence)),
        ("pod_renew", Some(Fault::Silence)),
        ("pod_end", Some(Fault::Silence)),
        ("pod_begin", Some(Fault::AnswerLost)),
        ("pod_renew", None),
    ] {
        let world = World::new();
        settle().await;
        let before = tasks();
        if let Some(fault) = fault {
            world.store.fail(operation, &[fault]);
        }
        let server = world.server(0);
        let starting = spawn_start(&server);
        tokio::task::yield_now().await;
        let asked = world.clock.now();
        stop(&world, &server).await;
        let took = world.clock.now().since(asked);
        assert!(took <= TIMEOUT * 2, "{operation} {fault:?}: {took:?}");
        let outcome = starting.await.unwrap();
        if let Err(error) = outcome {
            assert!(
                matches!(error.kind(), ErrorKind::Closed | ErrorKind::Timeout),
                "{operation} {fault:?}: {error}"
            );
        }
        world.pass(TIMEOUT * 2).await;
        assert_eq!(tasks(), before, "{operation} {fault:?}");
        assert!(!server.holds_lease());
        let renewed = world.store.asked("pod_renew").len();
        // A client reads meanwhile, or the silence would be taken for an outage of the store.
        let info = world.info(route_info());
        let _watched = info.watch(&service()).unwrap();
        world.pass(LEASE + GRACE).await;
        info.close();
        assert_eq!(world.store.asked("pod_renew").len(), renewed);
        assert_eq!(alive(&world).await, [0_u32; 0], "{operation} {fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_waits_for_a_dead_predecessor_and_not_longer() {
    let world = World::new();
    let earlier = world.started(0).await;
    world.pass(Duration::from_secs(1)).await;
    drop(earlier);
    let later = world.server(0);
    let starting = spawn_start(&later);
    let waited = world
        .until("it has started", || starting.is_finished())
        .await;
    starting.await.unwrap().unwrap();
    let least = LEASE + GRACE - Duration::from_secs(1);
    assert!(waited >= least, "{waited:?}");
    assert!(waited <= least + Duration::from_secs(1), "{waited:?}");
    // It asked often enough to keep the store's clock going: no outage, no hold.
    let asked = world.store.asked("pod_begin");
    assert!(
        asked
            .windows(2)
            .all(|two| two[1].since(two[0]) <= Duration::from_millis(2100))
    );
    stop(&world, &later).await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_waits_in_vain_says_that_the_index_is_busy() {
    let world = World::new();
    let first = world.started(0).await;
    // The time-out of the very last question is no other error.
    for fault in [None, Some(Fault::Silence)] {
        let second = world.server(0);
        let deadline = world.clock.deadline(Duration::from_secs(3));
        let starting = {
            let second = second.clone();
            tokio::spawn(async move { second.start(deadline).await })
        };
        world.pass(Duration::from_secs(1)).await;
        if let Some(fault) = fault {
            world.store.fail("pod_begin", &[fault]);
        }
        world
            .until("it has given up", || starting.is_finished())
            .await;
        let error = starting.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PodIndexBusy, "{fault:?}: {error}");
        assert!(first.holds_lease());
        world.store.heal();
    }
    stop(&world, &first).await;
}

#[tokio::test(start_paused = true)]
async fn starts_at_once_share_one_outcome() {
    let world = World::new();
    let first = world.started(0).await;
    let second = world.server(0);
    let starts: Vec<_> = (0..5).map(|_| spawn_start(&second)).collect();
    world.pass(Duration::from_secs(1)).await;
    assert!(starts.iter().all(|start| !start.is_finished()));
    stop(&world, &first).await;
    world.pass(Duration::from_secs(3)).await;
    for start in starts {
        start.await.unwrap().unwrap();
    }
    assert_eq!(alive(&world).await, [0]);
    stop(&world, &second).await;
}

/// A renewal between the end of the lease and the end of the renewal task found its incarnation
/// dead, and brought the pod back as a new one, after its stop.
#[tokio::test(start_paused = true)]
async fn no_renewal_comes_behind_the_end() {
    let world = World::new();
    let before = tasks();
    let server = world.started(0).await;
    // The last look at the pods takes so long that a renewal is due meanwhile.
    world.store.fail("pods", &[Fault::Silence; 8]);
    stop(&world, &server).await;
    let ended = *world.store.asked("pod_end").last().unwrap();
    world.pass(LEASE).await;
    let renewed = world.store.asked("pod_renew");
    assert!(renewed.iter().all(|at| *at <= ended));
    assert_eq!(world.store.asked("pod_begin").len(), 1);
    assert_eq!(tasks(), before);
    world.store.heal();
    assert_eq!(alive(&world).await, [0_u32; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_keeps_its_deadline_whatever_hangs() {
    for operation in ["pod_renew", "swap", "pod_end", "pods"] {
        let world = World::new();
        settle().await;
        let before = tasks();
        let server = world.started(0).await;
        for number in 0..300 {
            let link = user(&format!("u{number}"));
            let deadline = server.deadline(None);
            let set = set_linked_pod(&server, &link, pod(0), Persist::Forever, deadline);
            assert_eq!(set.await.unwrap(), None);
        }
        world.store.fail(operation, &[Fault::Silence; 1000]);
        let asked = world.clock.now();
        let deadline = world.clock.deadline(Duration::from_secs(8));
        let stopping = {
            let server = server.clone();
            tokio::spawn(async move { server.stop(Drain::Release, deadline).await })
        };
        world
            .until("it has stopped", || stopping.is_finished())
            .await;
        let report = stopping.await.unwrap().unwrap();
        let took = world.clock.now().since(asked);
        assert!(took <= Duration::from_millis(8100), "{operation}: {took:?}");
        let expected = if operation == "swap" {
            (0, 300)
        } else {
            (300, 0)
        };
        assert_eq!(
            (report.released, report.remaining()),
            expected,
            "{operation}"
        );
        world.pass(TIMEOUT).await;
        assert_eq!(tasks(), before, "{operation}");
        assert!(!server.holds_lease());
    }
}

/// A stop read the other pods once. When handing over took longer than what was left of their leases
/// then, the users that were still to come found no pod, and were only released.
#[tokio::test(start_paused = true)]
async fn handing_over_may_take_longer_than_a_lease() {
    const USERS: usize = 300;
    // Five rounds of them take much longer than a lease.
    const SLOW: Duration = Duration::from_secs(LEASE.as_secs() / 2);
    let world = World::new();
    let (server, _other) = (world.started(0).await, world.started(1).await);
    let deadline = server.deadline(None);
    for number in 0..USERS {
        let (link, forever) = (user(&format!("u{number}")), Persist::Forever);
        let set = set_linked_pod(&server, &link, pod(0), forever, deadline);
        set.await.unwrap();
    }
    world.store.fail("swap", &[Fault::Late(SLOW); USERS]);
    let until = world.clock.deadline(Duration::from_secs(100));
    let stopping = server.stop(Drain::Handover, until);
    tokio::pin!(stopping);
    let report = loop {
        tokio::select! {
            biased;
            report = &mut stopping => break report.unwrap(),
            () = world.pass(STEP) => {}
        }
    };
    let given = (report.handed_over, report.released, report.remaining());
    assert_eq!(given, (USERS as u64, 0, 0));
}
