//! Steps of the store's clock, as a pod's driver notices and reports them.

use std::sync::Arc;
use std::time::Duration;

use podlink::driver::server::{NoHooks, ServerDriver};

use super::faulty::Fault;
use super::world::{RENEW, World};

/// A small step: no script can tell it from time that passed.
const SMALL: Duration = Duration::from_millis(3900);

/// A pod whose machine has its own clock, ahead of the store's.
async fn pod_with_a_clock(world: &mut World) -> ServerDriver {
    let clock = world.wrong_clock(Duration::from_secs(100_000));
    let server = world.server_with(0, "", clock, Arc::new(NoHooks));
    server.start(server.start_deadline(None)).await.unwrap();
    server
}

fn reports(world: &World) -> usize {
    world.store.asked("pod_stepped").len()
}

#[tokio::test(start_paused = true)]
async fn a_step_is_reported_once() {
    let mut world = World::new();
    let server = pod_with_a_clock(&mut world).await;
    world.pass(RENEW * 5).await;
    assert_eq!(reports(&world), 0);
    world.step_store(SMALL);
    world.until("it is reported", || reports(&world) == 1).await;
    // The renewal that shows it comes first, and the report with it.
    let renewed = *world.store.asked("pod_renew").last().unwrap();
    assert_eq!(world.store.asked("pod_stepped"), [renewed]);
    world.pass(RENEW * 5).await;
    assert_eq!(reports(&world), 1);
    let stats = server.stats();
    assert_eq!(stats["clock_steps"], 1);
    assert_eq!(stats["clock_steps_unbelieved"], 0);
    assert!(server.holds_lease());
}

/// A report that was lost would leave every pod without its grace.
#[tokio::test(start_paused = true)]
async fn a_failed_report_is_repeated() {
    let mut world = World::new();
    let server = pod_with_a_clock(&mut world).await;
    world.pass(RENEW * 2).await;
    world.store.fail("pod_stepped", &[Fault::Refused; 2]);
    world.step_store(SMALL);
    world.pass(RENEW * 5).await;
    assert_eq!((reports(&world), server.stats()["clock_steps"]), (3, 1));
    assert!(server.holds_lease(), "a renewal does not fail with it");
}

#[tokio::test(start_paused = true)]
async fn a_slow_store_is_no_step() {
    let mut world = World::new();
    let server = pod_with_a_clock(&mut world).await;
    for late in [100, 900, 0, 500, 900, 900, 100] {
        let late = Fault::Late(Duration::from_millis(late));
        world.store.fail("pod_renew", &[late]);
        world.pass(RENEW).await;
    }
    world.store.fail("pod_renew", &[Fault::AnswerLost; 2]);
    world.pass(RENEW * 4).await;
    assert_eq!(reports(&world), 0);
    assert!(server.stats()["renew_failures"] >= 2);
}

/// Story: the machine's clock was slow, so that every renewal looked like a step of the store's.
#[tokio::test(start_paused = true)]
async fn a_bad_clock_is_counted() {
    let mut world = World::new();
    let server = pod_with_a_clock(&mut world).await;
    for _ in 0..10 {
        world.step_store(RENEW / 4); // not so much that the script sees it
        world.pass(RENEW).await;
    }
    let stats = server.stats();
    assert_eq!(stats["clock_steps"], 4);
    assert!(stats["clock_steps_unbelieved"] >= 3, "{stats:?}");
    assert!(server.holds_lease());
}
