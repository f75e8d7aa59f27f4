//! A pod whose program does not answer takes no new users, until the program answers again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use podlink::clock::Tick;
use podlink::config::{Drain, ServerConfig};
use podlink::driver::server::{Ownership, PodHooks, ServerDriver, ServerInfo};
use podlink::error::Result;
use podlink::route::state::RoutingState;
use podlink::store::Store;

use super::faulty::Fault;
use super::ownership::claim;
use super::world::{
    LEASE, RENEW, STEP, TIMEOUT, World, config, route_info, service, settle, tasks,
};
use crate::stage::pod;

const LIMIT: Duration = Duration::from_secs(5);
/// The program is asked five times within the limit.
const PERIOD: Duration = Duration::from_secs(1);

/// A program that answers whenever it is asked, or does not.
#[derive(Debug, Default)]
struct Program {
    blocked: AtomicBool,
    answers: AtomicU64,
}

impl Program {
    fn block(&self, blocked: bool) {
        self.blocked.store(blocked, Ordering::SeqCst);
    }
}

#[async_trait]
impl PodHooks for Program {
    fn answers(&self) -> Option<u64> {
        let one = u64::from(!self.blocked.load(Ordering::SeqCst));
        Some(self.answers.fetch_add(one, Ordering::SeqCst))
    }

    /// Hangs: a drain lasts as long as it may.
    async fn drain(&self, _user: &Ownership, _until: Tick) -> Result<bool> {
        std::future::pending().await
    }
}

async fn started(world: &World, watchdog: Option<Duration>) -> (ServerDriver, Arc<Program>) {
    let program = Arc::new(Program::default());
    let info = ServerInfo {
        service: service(),
        pod: pod(0),
        pod_uid: String::new(),
        metadata: BTreeMap::new(),
    };
    let config = ServerConfig {
        watchdog,
        ..config()
    };
    let store = Arc::clone(&world.store) as Arc<dyn Store>;
    let hooks = Arc::clone(&program) as Arc<dyn PodHooks>;
    let server = ServerDriver::new(store, world.clock.clone(), info, config, hooks);
    server.start(server.start_deadline(None)).await.unwrap();
    world.pass(LEASE).await;
    (server, program)
}

/// The state that other processes see.
async fn seen(world: &World) -> RoutingState {
    let info = world.info(route_info());
    let deadline = info.deadline(TIMEOUT);
    let states = info.all_states(&service(), deadline).await.unwrap();
    info.close();
    states[&pod(0)].routing_state
}

fn stalls(server: &ServerDriver) -> u64 {
    server.stats()["program_stalls"]
}

#[tokio::test(start_paused = true)]
async fn a_silent_program_takes_no_new_users() {
    let world = World::new();
    let (server, program) = started(&world, Some(LIMIT)).await;
    assert_eq!(seen(&world).await, RoutingState::Ready);
    program.block(true);
    let noticed = world
        .until("the pod is stalled", || stalls(&server) == 1)
        .await;
    assert!(
        noticed >= LIMIT && noticed <= LIMIT + 2 * PERIOD,
        "{noticed:?}"
    );
    world.pass(STEP).await;
    assert_eq!(seen(&world).await, RoutingState::DenyNewCall);
    assert_eq!(server.routing_state(), RoutingState::Ready);
    // It is one stall, however long, and the lease is renewed.
    world.pass(LEASE * 3).await;
    assert_eq!(stalls(&server), 1);
    assert_eq!(seen(&world).await, RoutingState::DenyNewCall);
    assert!(server.holds_lease());
    program.block(false);
    world.pass(PERIOD * 2).await;
    assert_eq!(seen(&world).await, RoutingState::Ready);
    program.block(true);
    world
        .until("the pod is stalled again", || stalls(&server) == 2)
        .await;
}

#[tokio::test(start_paused = true)]
async fn short_blocks_do_not_add_up() {
    let world = World::new();
    let (server, program) = started(&world, Some(LIMIT)).await;
    for _ in 0..10 {
        program.block(true);
        world.pass(LIMIT - PERIOD).await;
        program.block(false);
        world.pass(PERIOD).await;
    }
    assert_eq!(stalls(&server), 0);
}

#[tokio::test(start_paused = true)]
async fn a_state_that_was_set_stays() {
    let world = World::new();
    let (server, program) = started(&world, Some(LIMIT)).await;
    let deadline = server.deadline(None);
    let deny = RoutingState::DenyNewCall;
    server.set_routing_state(deny, deadline).await.unwrap();
    program.block(true);
    world
        .until("the pod is stalled", || stalls(&server) == 1)
        .await;
    program.block(false);
    world.pass(LIMIT + RENEW).await;
    assert_eq!(seen(&world).await, RoutingState::DenyNewCall);
    // A state that is set during a stall counts from its end on.
    program.block(true);
    world
        .until("the pod is stalled", || stalls(&server) == 2)
        .await;
    let deadline = server.deadline(None);
    let ready = RoutingState::Ready;
    server.set_routing_state(ready, deadline).await.unwrap();
    assert_eq!(seen(&world).await, RoutingState::DenyNewCall);
    program.block(false);
    world.pass(PERIOD * 2).await;
    assert_eq!(seen(&world).await, RoutingState::Ready);
}

/// After SIGSTOP, a debugger or a suspended machine all clocks have jumped, and neither the program
/// nor podlink has run meanwhile.
#[tokio::test(start_paused = true)]
async fn a_pause_of_the_process_is_no_stall() {
    let world = World::new();
    let (server, program) = started(&world, Some(LIMIT)).await;
    program.block(true);
    world.step_store(Duration::from_secs(3600));
    // The program needs a while to come back, too.
    world.pass(PERIOD * 2).await;
    program.block(false);
    world.pass(LIMIT * 2).await;
    assert_eq!(stalls(&server), 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_is_left_alone() {
    let world = World::new();
    let (server, program) = started(&world, Some(LIMIT)).await;
    claim(&server, "u1").await.unwrap();
    program.block(true);
    let deadline = world.clock.deadline(LIMIT * 10);
    let stopping = {
        let server = server.clone();
        tokio::spawn(async move { server.stop(Drain::Release, deadline).await })
    };
    world.pass(LIMIT * 5).await;
    assert!(server.holds_lease(), "the drain goes on");
    assert_eq!(stalls(&server), 0);
    world.pass(LIMIT * 6).await;
    stopping.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_not_published_is_published_by_the_next_renewal() {
    let world = World::new();
    let (server, program) = started(&world, Some(LIMIT)).await;
    program.block(true);
    world.pass(LIMIT - STEP).await;
    world.store.fail("pod_renew", &[Fault::Refused; 4]);
    world
        .until("the pod is stalled", || stalls(&server) == 1)
        .await;
    world.store.heal();
    world.pass(RENEW * 2).await;
    assert_eq!(seen(&world).await, RoutingState::DenyNewCall);
}

#[tokio::test(start_paused = true)]
async fn without_a_watchdog_no_one_is_asked() {
    let world = World::new();
    let (server, program) = started(&world, None).await;
    program.block(true);
    world.pass(LIMIT * 10).await;
    assert_eq!(stalls(&server), 0);
    assert_eq!(program.answers.load(Ordering::SeqCst), 0);
    assert_eq!(seen(&world).await, RoutingState::Ready);
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_is_dropped_is_not_kept() {
    let world = World::new();
    let before = tasks();
    let (server, _program) = started(&world, Some(LIMIT)).await;
    drop(server);
    settle().await;
    assert_eq!(tasks(), before);
}
