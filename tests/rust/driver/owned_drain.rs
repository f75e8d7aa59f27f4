//! Stopping with owned users: nobody is given away before the hook has ended well.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use podlink::clock::Tick;
use podlink::config::Drain;
use podlink::driver::server::{DrainReport, Ownership, PodHooks, ServerDriver};
use podlink::error::{Error, ErrorKind, Result};
use podlink::route::link::Certificate;

use super::faulty::Fault;
use super::ownership::{certificate, claim, pod_with, stored};
use super::world::{GRACE, LEASE, RENEW, STEP, World};
use crate::stage::pod;

/// What a drain hook does, by the first letter of the uid: (s)aves, (f)ails, (h)angs, (w)aits 3 s.
#[derive(Debug, Default)]
struct Saves {
    begun: Mutex<Vec<String>>,
    cancelled: Arc<Mutex<Vec<String>>>,
}

/// Notes a hook that did not come to its end.
struct Running(Arc<Mutex<Vec<String>>>, Option<String>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(uid) = self.1.take() {
            self.0.lock().unwrap().push(uid);
        }
    }
}

#[async_trait]
impl PodHooks for Saves {
    async fn drain(&self, owned: &Ownership, _until: Tick) -> Result<bool> {
        let uid = owned.link.uid.to_string();
        self.begun.lock().unwrap().push(uid.clone());
        let mut running = Running(Arc::clone(&self.cancelled), Some(uid.clone()));
        match uid.as_bytes()[0] {
            b'f' => {
                running.1 = None;
                return Err(Error::new(ErrorKind::Internal, "on purpose"));
            }
            b'h' => std::future::pending().await,
            b'w' => tokio::time::sleep(Duration::from_secs(3)).await,
            _ => {}
        }
        running.1 = None;
        Ok(true)
    }
}

async fn stopped(world: &World, server: &ServerDriver, rule: Drain, seconds: u64) -> DrainReport {
    let deadline = world.clock.deadline(Duration::from_secs(seconds));
    let stopping = {
        let server = server.clone();
        tokio::spawn(async move { server.stop(rule, deadline).await })
    };
    world
        .until("it has stopped", || stopping.is_finished())
        .await;
    stopping.await.unwrap().unwrap()
}

fn names(uids: &[podlink::id::Uid]) -> Vec<String> {
    let mut names: Vec<_> = uids.iter().map(ToString::to_string).collect();
    names.sort();
    names
}

#[tokio::test(start_paused = true)]
async fn only_who_was_saved_is_released() {
    let world = World::new();
    let hooks = Arc::new(Saves::default());
    let server = pod_with(&world, 0, Arc::clone(&hooks) as Arc<_>).await;
    let uids = ["saved", "failed", "hangs", "waits"];
    for uid in uids {
        claim(&server, uid).await.unwrap();
    }
    let report = stopped(&world, &server, Drain::Release, 8).await;
    assert_eq!(
        (report.released, report.handed_over, report.kept),
        (2, 0, 0)
    );
    assert_eq!(names(&report.failed), ["failed"]);
    assert_eq!(names(&report.unfinished), ["hangs"]);
    assert_eq!(report.remaining(), 2);
    assert_eq!(
        *hooks.cancelled.lock().unwrap(),
        ["hangs"],
        "it is cancelled"
    );
    for uid in uids {
        let kept = stored(&world, uid).await.record.is_some();
        assert_eq!(kept, ["failed", "hangs"].contains(&uid), "{uid}");
    }
    // The lease runs out: nobody takes a user whose save may still be under way.
    let certificate = certificate(&world, 0).await;
    assert!(matches!(certificate, Certificate::Alive { .. }));
    let other = world.started(1).await;
    let refused = claim(&other, "hangs").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotOwner);
    world.pass(LEASE + GRACE + STEP).await;
    claim(&other, "hangs").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_failed_does_not_hold_the_lease() {
    let world = World::new();
    let server = pod_with(&world, 0, Arc::new(Saves::default())).await;
    claim(&server, "failed").await.unwrap();
    let report = stopped(&world, &server, Drain::Release, 8).await;
    assert_eq!(names(&report.failed), ["failed"]);
    let other = world.started(1).await;
    claim(&other, "failed").await.unwrap();
}

/// More users than hooks at a time, and too little time for all: the others are never started.
#[tokio::test(start_paused = true)]
async fn a_hook_that_nobody_waits_for_is_not_started() {
    let world = World::new();
    let hooks = Arc::new(Saves::default());
    let server = pod_with(&world, 0, Arc::clone(&hooks) as Arc<_>).await;
    for n in 0..200 {
        claim(&server, &format!("hangs{n}")).await.unwrap();
    }
    let report = stopped(&world, &server, Drain::Release, 4).await;
    assert_eq!((report.released, report.unfinished.len()), (0, 200));
    assert_eq!(hooks.begun.lock().unwrap().len(), 64);
    world.pass(LEASE).await;
    assert_eq!(hooks.begun.lock().unwrap().len(), 64);
    assert_eq!(hooks.cancelled.lock().unwrap().len(), 64);
}

#[tokio::test(start_paused = true)]
async fn rules_treat_only_who_was_saved() {
    for (rule, expected) in [
        (Drain::Keep, (0, 0, 1)),
        (Drain::Release, (1, 0, 0)),
        (Drain::Handover, (0, 1, 0)),
    ] {
        let world = World::new();
        let server = pod_with(&world, 0, Arc::new(Saves::default())).await;
        let other = world.started(1).await;
        claim(&server, "saved").await.unwrap();
        claim(&server, "failed").await.unwrap();
        let report = stopped(&world, &server, rule, 8).await;
        let given = (report.released, report.handed_over, report.kept);
        assert_eq!((given, report.failed.len()), (expected, 1), "{rule:?}");
        let found = stored(&world, "saved").await;
        assert_eq!(found.record.is_some(), rule == Drain::Keep, "{rule:?}");
        let link = found.link.map(|link| link.pod);
        let expected = match rule {
            Drain::Keep => Some(pod(0)),
            Drain::Release => None,
            Drain::Handover => Some(pod(1)),
        };
        assert_eq!(link, expected, "{rule:?}");
        // A kept user is free once its pod has ended in good order.
        claim(&other, "saved").await.unwrap();
    }
}

/// From the first moment of the stop the pod takes nobody, also if the claim was sent before.
#[tokio::test(start_paused = true)]
async fn a_claim_that_is_answered_during_the_stop_does_not_win() {
    let world = World::new();
    let hooks = Arc::new(Saves::default());
    let server = pod_with(&world, 0, Arc::clone(&hooks) as Arc<_>).await;
    claim(&server, "waits").await.unwrap();
    world
        .store
        .fail("claim", &[Fault::Late(Duration::from_millis(500))]);
    let late = {
        let server = server.clone();
        tokio::spawn(async move { claim(&server, "late").await })
    };
    super::world::settle().await;
    let report = stopped(&world, &server, Drain::Release, 8).await;
    let error = late.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PodNotAvailable, "{error}");
    assert_eq!((report.released, report.remaining()), (1, 0));
    assert_eq!(stored(&world, "late").await.record, None, "given back");
    assert_eq!(*hooks.begun.lock().unwrap(), ["waits"]);
}

/// A pause of the store, then a stop: what stands is confirmed first, and then saved.
#[tokio::test(start_paused = true)]
async fn after_a_lapse_the_users_are_confirmed_and_saved() {
    let world = World::new();
    let hooks = Arc::new(Saves::default());
    let server = pod_with(&world, 0, Arc::clone(&hooks) as Arc<_>).await;
    for n in 0..10 {
        claim(&server, &format!("s{n}")).await.unwrap();
    }
    world.store.fail("pod_renew", &[Fault::Refused; 1000]);
    world.until("it lapses", || !server.holds_lease()).await;
    world.store.heal();
    let report = stopped(&world, &server, Drain::Release, 20).await;
    assert_eq!((report.released, report.remaining()), (10, 0));
    assert_eq!(hooks.begun.lock().unwrap().len(), 10);
}

/// The store is away for the whole stop: nobody is saved as an owner, and everybody is reported.
#[tokio::test(start_paused = true)]
async fn without_a_lease_the_users_are_reported_unfinished() {
    let world = World::new();
    let hooks = Arc::new(Saves::default());
    let server = pod_with(&world, 0, Arc::clone(&hooks) as Arc<_>).await;
    claim(&server, "s").await.unwrap();
    world.store.fail("pod_renew", &[Fault::Refused; 10_000]);
    world.until("it lapses", || !server.holds_lease()).await;
    let report = stopped(&world, &server, Drain::Release, 8).await;
    assert_eq!(names(&report.unfinished), ["s"]);
    assert!(hooks.begun.lock().unwrap().is_empty());
    assert!(stored(&world, "s").await.record.is_some());
}

/// A hook may release its user itself.
#[tokio::test(start_paused = true)]
async fn a_hook_may_release_its_user_itself() {
    #[derive(Debug, Default)]
    struct Releases(Mutex<Option<ServerDriver>>);

    #[async_trait]
    impl PodHooks for Releases {
        async fn drain(&self, owned: &Ownership, _until: Tick) -> Result<bool> {
            let server = self.0.lock().unwrap().clone().unwrap();
            let released = server.release(owned, None, server.deadline(None)).await?;
            assert!(released);
            Ok(true)
        }
    }

    let world = World::new();
    let hooks = Arc::new(Releases::default());
    let server = pod_with(&world, 0, Arc::clone(&hooks) as Arc<_>).await;
    *hooks.0.lock().unwrap() = Some(server.clone());
    for n in 0..5 {
        claim(&server, &format!("u{n}")).await.unwrap();
    }
    let report = stopped(&world, &server, Drain::Keep, 8).await;
    assert_eq!((report.released, report.remaining()), (5, 0));
    assert!(
        stored(&world, "u0").await.link.is_none(),
        "no hint sends the user back"
    );
    hooks.0.lock().unwrap().take();
    world.pass(RENEW + STEP).await;
}
