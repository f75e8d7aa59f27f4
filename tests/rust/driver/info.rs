//! What is known of pods, in injected time: how old it may get, and when it is dropped.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use podlink::config::RouteInfoConfig;
use podlink::driver::info::InfoDriver;
use podlink::driver::states::ChangeListener;
use podlink::error::ErrorKind;
use podlink::id::ServiceId;
use podlink::route::snapshot::Change;

use super::faulty::Fault;
use super::world::{GRACE, LEASE, RENEW, STEP, TIMEOUT, World, route_info, service, settle, tasks};
use crate::stage::pod;

async fn looked(info: &InfoDriver) -> Vec<u32> {
    let service = service();
    let states = info.all_states(&service, info.deadline(TIMEOUT));
    states.await.unwrap().keys().map(|pod| pod.get()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_service_in_use_is_read_at_its_pace() {
    let world = World::new();
    let info = world.info(route_info());
    looked(&info).await;
    world.pass(Duration::from_secs(60)).await;
    let asked = world.store.asked("pods");
    let pauses = asked.windows(2).map(|two| two[1].since(two[0]));
    let pauses: Vec<Duration> = pauses.skip(1).collect();
    assert!(pauses.len() > 50, "{}", pauses.len());
    let (least, most) = (
        Duration::from_millis(900),
        Duration::from_millis(1100) + STEP * 2,
    );
    assert!(
        pauses.iter().all(|pause| (least..=most).contains(pause)),
        "{pauses:?}"
    );
    info.close();
}

#[tokio::test(start_paused = true)]
async fn a_service_that_nobody_asks_for_is_dropped_after_its_time() {
    let world = World::new();
    let before = tasks();
    let server = world.started(0).await;
    let running = tasks();
    let info = world.info(route_info());
    assert_eq!(looked(&info).await, [0]);
    world.pass(Duration::from_secs(590)).await;
    // A caller asks: it starts again from here.
    assert!(info.is_pod_routable(&service(), pod(0)).unwrap());
    world.pass(Duration::from_secs(590)).await;
    assert_eq!(tasks(), running + 1);
    world.pass(Duration::from_secs(15)).await;
    assert_eq!(tasks(), running);
    let read = world.store.asked("pods").len();
    world.pass(Duration::from_secs(1)).await;
    // The pod itself looks once a renewal.
    assert!(world.store.asked("pods").len() <= read + 1);
    // Who comes back finds what is true now.
    assert_eq!(looked(&info).await, [0]);
    info.close();
    drop(server);
    settle().await;
    assert_eq!(tasks(), before);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_a_hook_names_is_kept() {
    let world = World::new();
    let before = tasks();
    let info = world.info(route_info());
    let watched = info.watch(&service()).unwrap();
    world.pass(Duration::from_secs(1300)).await;
    assert_eq!(tasks(), before + 1);
    watched.unpin();
    world.pass(Duration::from_secs(2)).await;
    assert_eq!(tasks(), before);
    info.close();
}

#[tokio::test(start_paused = true)]
async fn what_is_known_is_bounded_by_the_lease() {
    for serve_stale in [false, true] {
        let world = World::new();
        let server = world.started(0).await;
        let config = RouteInfoConfig {
            serve_stale,
            ..route_info()
        };
        let info = world.info(config);
        assert_eq!(looked(&info).await, [0]);
        world.pass(RENEW * 3).await;
        world.store.fail("pods", &[Fault::Refused; 10_000]);
        let age = info.age(&service()).unwrap().unwrap();
        world.pass(LEASE).await;
        let later = info.age(&service()).unwrap().unwrap();
        assert!(later >= age + LEASE - STEP, "{later:?}");
        let available = info.is_pod_available(&service(), pod(0)).unwrap();
        assert_eq!(available, serve_stale);
        assert_eq!(looked(&info).await.len(), usize::from(serve_stale));
        world.pass(LEASE * 10).await;
        assert_eq!(
            info.is_pod_available(&service(), pod(0)).unwrap(),
            serve_stale
        );
        assert_eq!(info.stats()["stale_periods"] > 0, serve_stale);
        world.store.heal();
        world.pass(Duration::from_secs(2)).await;
        assert!(info.is_pod_available(&service(), pod(0)).unwrap());
        assert!(info.age(&service()).unwrap().unwrap() <= Duration::from_millis(1200));
        info.close();
        drop(server);
    }
}

#[tokio::test(start_paused = true)]
async fn a_question_without_an_answer_ends_with_what_the_store_says() {
    let world = World::new();
    let before = tasks();
    let info = world.info(route_info());
    world.store.fail("pods", &[Fault::Refused; 3]);
    let service = service();
    let states = info.all_states(&service, info.deadline(TIMEOUT));
    let error = states.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreUnavailable);
    world.store.heal();
    world.pass(Duration::from_secs(2)).await;
    assert_eq!(looked(&info).await, [0_u32; 0]);
    info.close();
    settle().await;
    assert_eq!(tasks(), before);
    let states = info.all_states(&service, info.deadline(TIMEOUT));
    assert_eq!(states.await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn who_waits_when_the_driver_closes_is_told_at_once() {
    let world = World::new();
    let info = world.info(route_info());
    world.store.fail("pods", &[Fault::Silence; 100]);
    let waiting = {
        let info = info.clone();
        let deadline = info.deadline(Duration::from_secs(50));
        tokio::spawn(async move { info.all_states(&service(), deadline).await })
    };
    world.pass(Duration::from_millis(500)).await;
    info.close();
    settle().await;
    assert!(waiting.is_finished());
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

#[derive(Debug, Default)]
struct StoredChanges(Mutex<Vec<(u32, bool, bool)>>);

impl ChangeListener for StoredChanges {
    fn on_change(&self, _service: &ServiceId, changes: &[Change]) {
        let seen = changes.iter().map(|change| {
            (
                change.pod.get(),
                change.previous.is_some(),
                change.now.is_some(),
            )
        });
        self.0.lock().unwrap().extend(seen);
    }
}

#[tokio::test(start_paused = true)]
async fn changes_are_told_once_even_if_the_channel_cannot_be_had() {
    let world = World::new();
    world.store.fail("subscribe", &[Fault::Refused; 100_000]);
    let info = world.info(route_info());
    let stored = Arc::new(StoredChanges::default());
    info.states()
        .subscribe(Arc::clone(&stored) as Arc<dyn ChangeListener>);
    let _watched = info.watch(&service()).unwrap();
    let (zero, one) = (world.started(0).await, world.started(1).await);
    world.pass(Duration::from_secs(10)).await;
    drop(zero);
    world.pass(LEASE + GRACE + RENEW).await;
    let again = world.started(0).await;
    world.pass(Duration::from_secs(5)).await;
    let expected = [
        (0, false, true),
        (1, false, true),
        (0, true, false),
        (0, false, true),
    ];
    assert_eq!(*stored.0.lock().unwrap(), expected);
    assert!(info.stats()["listen_failures"] > 10);
    info.close();
    drop((again, one));
}
