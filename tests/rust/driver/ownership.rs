//! Who owns a user when leases lapse, answers come late, releases get lost and stores forget.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use podlink::clock::Tick;
use podlink::driver::server::{
    LeaseEvent, LeaseReason, LossReason, NoHooks, Ownership, PodHooks, ServerDriver,
};
use podlink::error::{ErrorKind, Result, WriteOutcome};
use podlink::id::Token;
use podlink::op::{Call, OperationName, Remove, Set, TrySet};
use podlink::route::link::{Certificate, Life, Persist, Removal};
use podlink::route::state::RoutingState;
use tokio::sync::Semaphore;

use super::faulty::Fault;
use super::world::{GRACE, LEASE, RENEW, STEP, TIMEOUT, World, settle};
use crate::ask::Ask as _;
use crate::stage::{pod, user};

/// Writes down what it hears; lease hooks wait for a permit, if they are told to.
#[derive(Debug, Default)]
pub(super) struct Heard {
    events: Mutex<Vec<String>>,
    gate: Option<Semaphore>,
}

impl Heard {
    pub(super) fn gated() -> Arc<Self> {
        Arc::new(Self {
            gate: Some(Semaphore::new(0)),
            ..Self::default()
        })
    }

    pub(super) fn open(&self) {
        self.gate.as_ref().unwrap().add_permits(1000);
    }

    fn note(&self, event: String) {
        self.events.lock().unwrap().push(event);
    }

    pub(super) fn all(&self) -> Vec<String> {
        self.events.lock().unwrap().clone()
    }
}

#[async_trait]
impl PodHooks for Heard {
    async fn drain(&self, user: &Ownership, _until: Tick) -> Result<bool> {
        self.note(format!("drain {}", user.link.uid));
        Ok(true)
    }

    async fn lease(&self, what: LeaseEvent, why: LeaseReason, _until: Tick) -> Result<()> {
        self.note(format!("{what:?} {}", why.as_str()));
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        Ok(())
    }

    async fn ownership_lost(&self, user: &Ownership, why: LossReason, _until: Tick) -> Result<()> {
        self.note(format!("lost {} {}", user.link.uid, why.as_str()));
        Ok(())
    }

    async fn ownership_renewed(
        &self,
        new: &Ownership,
        old: &Ownership,
        _until: Tick,
    ) -> Result<()> {
        let known = new.previous == old.owner.token;
        self.note(format!("renewed {} {known}", new.link.uid));
        assert!(new.owner.token > old.owner.token);
        Ok(())
    }
}

pub(super) async fn pod_with(world: &World, index: i64, hooks: Arc<dyn PodHooks>) -> ServerDriver {
    let server = world.server_with(index, "", world.clock.clone(), hooks);
    server.start(server.start_deadline(None)).await.unwrap();
    server
}

pub(super) async fn claim(server: &ServerDriver, uid: &str) -> Result<Ownership> {
    let deadline = server.deadline(None);
    server.claim(user(uid), Token::NONE, deadline).await
}

fn claiming(
    server: &ServerDriver,
    uid: &str,
    deadline: Tick,
) -> tokio::task::JoinHandle<Result<Ownership>> {
    let (server, link) = (server.clone(), user(uid));
    tokio::spawn(async move { server.claim(link, Token::NONE, deadline).await })
}

pub(super) async fn stored(world: &World, uid: &str) -> podlink::op::StoredUser {
    let deadline = world.clock.deadline(TIMEOUT);
    *world.store.read(&user(uid), deadline).await.unwrap()
}

pub(super) async fn certificate(world: &World, index: i64) -> Certificate {
    let (service, deadline) = (super::world::service(), world.clock.deadline(TIMEOUT));
    let certificate = world
        .store
        .pod_certify(&service, pod(index), deadline)
        .await;
    certificate.unwrap()
}

/// An operator removes the link, whoever owns the user.
pub(super) async fn removed_by_hand(world: &World, uid: &str) {
    let (link, deadline) = (user(uid), world.clock.deadline(TIMEOUT));
    let removed = world
        .store
        .remove(&link, None, Removal::Now, deadline)
        .await;
    assert!(removed.unwrap().done);
}

#[tokio::test(start_paused = true)]
async fn a_claim_repeated_gives_the_same_token_and_another_pod_is_refused() {
    let world = World::new();
    let (server, other) = (world.started(0).await, world.started(1).await);
    let first = claim(&server, "u").await.unwrap();
    let again = claim(&server, "u").await.unwrap();
    assert_eq!(first, again);
    let higher = server
        .claim(user("u"), first.owner.token, server.deadline(None))
        .await
        .unwrap();
    assert!(higher.owner.token > first.owner.token);
    assert_eq!(higher.previous, first.owner.token);
    assert!(server.owns(None, "u", None) && server.owns(Some("ns"), "u", Some("svc")));
    assert!(!server.owns(Some("other"), "u", None) && !server.owns(None, "u", Some("chat")));
    assert_eq!(server.token(None, "u", None), Some(higher.owner.token));
    let refused = claim(&other, "u").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotOwner);
    assert!(refused.details().contains(&("owner", "0".to_owned())));
    assert!(!refused.is_retryable(), "the owner lives");
    let stats = server.stats();
    assert_eq!((stats["claims_made"], stats["claims_repeated"]), (2, 1));
    assert_eq!(other.stats()["claims_not_owner"], 1);
}

/// The answer counts only under the lease that it was asked under, and the token is given back.
#[tokio::test(start_paused = true)]
async fn a_claim_that_is_answered_after_the_lease_is_not_owned() {
    for (operation, own) in [("claim", true), ("swap", false)] {
        let world = World::new();
        let server = world.started(0).await;
        world.store.fail("pod_renew", &[Fault::Refused; 1000]);
        world.store.fail(operation, &[Fault::Late(LEASE * 2)]);
        let deadline = world.clock.deadline(LEASE * 4);
        let asked = if own {
            claiming(&server, "u", deadline)
        } else {
            let server = server.clone();
            let set = Call::Set(Set {
                link: user("u"),
                pod: pod(0),
                persist: Persist::Forever,
            });
            tokio::spawn(async move {
                server
                    .call(OperationName::SetLinkedPod, set, deadline)
                    .await?;
                claim(&server, "other").await
            })
        };
        world.until("it lapses", || !server.holds_lease()).await;
        world.store.heal();
        world.until("it resumes", || server.holds_lease()).await;
        world.until("it is answered", || asked.is_finished()).await;
        let error = asked.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LeaseLost, "{operation}: {error}");
        assert_eq!(error.outcome(), Some(WriteOutcome::Unknown), "{operation}");
        assert!(!server.owns(None, "u", None));
        assert_eq!(server.stats()["late_answers"], 1);
        world.pass(RENEW).await;
        assert_eq!(
            stored(&world, "u").await.record,
            None,
            "{operation}: given back"
        );
    }
}

/// A call that waits for a connection does not go out after the end of the lease.
#[tokio::test(start_paused = true)]
async fn nothing_is_sent_after_the_lease() {
    let world = World::new();
    let server = world.started(0).await;
    world.store.fail("pod_renew", &[Fault::Refused; 1000]);
    world.store.fail("claim", &[Fault::Silence]);
    let asked = claiming(&server, "u", world.clock.deadline(LEASE * 10));
    let waited = world.until("it gives up", || asked.is_finished()).await;
    assert!(waited <= LEASE, "{waited:?}");
    let error = asked.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost);
    assert!(!server.holds_lease());
}

fn writes() -> Vec<(OperationName, Call)> {
    let (link, persist) = (user("u"), Persist::Forever);
    let removal = Removal::Now;
    let mut writes = Vec::new();
    for index in [0, 1] {
        let pod = pod(index);
        let link = || link.clone();
        let set = Set {
            link: link(),
            pod,
            persist,
        };
        let try_set = TrySet {
            link: link(),
            pod,
            persist,
        };
        let remove = Remove {
            link: link(),
            owner: Some(pod),
            removal,
        };
        writes.push((OperationName::SetLinkedPod, Call::Set(set)));
        writes.push((OperationName::TrySetLinkedPod, Call::TrySet(try_set)));
        writes.push((OperationName::RemoveLinkedPodWithId, Call::Remove(remove)));
    }
    writes
}

/// Nothing is sent for a pod that was not started, has lapsed, was superseded or stopped.
#[tokio::test(start_paused = true)]
async fn who_may_not_act_sends_nothing() {
    let refused = async |world: &World, server: &ServerDriver, kind: ErrorKind, when: &str| {
        let names = ["claim", "swap", "read", "try_set"];
        let sent = |world: &World| -> usize {
            names.iter().map(|name| world.store.asked(name).len()).sum()
        };
        let before = sent(world);
        let mut errors = vec![claim(server, "u").await.unwrap_err()];
        let deadline = || server.deadline(None);
        errors.push(
            server
                .remove_linked_pod(user("u"), deadline())
                .await
                .unwrap_err(),
        );
        for (name, call) in writes() {
            errors.push(server.call(name, call, deadline()).await.unwrap_err());
        }
        for error in errors {
            assert_eq!(error.kind(), kind, "{when}: {error}");
            assert_eq!(
                error.outcome(),
                Some(WriteOutcome::NotSent),
                "{when}: {error}"
            );
        }
        assert_eq!(sent(world), before, "{when}");
    };
    let world = World::new();
    let server = world.server(0);
    refused(&world, &server, ErrorKind::IllegalState, "not started").await;
    server.start(server.start_deadline(None)).await.unwrap();
    claim(&server, "u").await.unwrap();
    world.store.fail("pod_renew", &[Fault::Refused; 1000]);
    world.until("it lapses", || !server.holds_lease()).await;
    refused(&world, &server, ErrorKind::LeaseLost, "lapsed").await;
    world.store.heal();
    world.until("it resumes", || server.holds_lease()).await;
    let deadline = world.clock.deadline(Duration::from_secs(8));
    server
        .stop(podlink::config::Drain::Keep, deadline)
        .await
        .unwrap();
    refused(&world, &server, ErrorKind::Closed, "stopped").await;
}

/// DENY_NEW_CALL and SHUTDOWN hold for the pod itself; what it owns it may name again and release.
#[tokio::test(start_paused = true)]
async fn a_pod_that_takes_nobody_takes_nobody() {
    for routing in [RoutingState::DenyNewCall, RoutingState::Shutdown] {
        let world = World::new();
        let server = world.started(0).await;
        let mine = claim(&server, "mine").await.unwrap();
        let deadline = || server.deadline(None);
        server.set_routing_state(routing, deadline()).await.unwrap();
        let error = claim(&server, "new").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PodNotAvailable, "{error}");
        for (name, call) in writes().into_iter().take(2) {
            let error = server.call(name, call, deadline()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PodNotAvailable, "{error}");
        }
        assert_eq!(stored(&world, "new").await.record, None);
        assert_eq!(claim(&server, "mine").await.unwrap(), mine);
        assert!(
            server
                .remove_linked_pod(user("mine"), deadline())
                .await
                .unwrap()
        );
        let found = stored(&world, "mine").await;
        assert_eq!(
            (found.link, found.record),
            (None, None),
            "no hint sends it back"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_removed_user_leaves_a_hint_while_the_pod_takes_users() {
    let world = World::new();
    let server = world.started(0).await;
    let mine = claim(&server, "u").await.unwrap();
    assert!(
        server
            .remove_linked_pod(user("u"), server.deadline(None))
            .await
            .unwrap()
    );
    let found = stored(&world, "u").await;
    assert!(matches!(found.link.unwrap().life, Life::Temporary(_)));
    assert_eq!(found.record, None);
    assert!(
        !server
            .remove_linked_pod(user("v"), server.deadline(None))
            .await
            .unwrap()
    );
    let again = server
        .release(&mine, None, server.deadline(None))
        .await
        .unwrap();
    assert!(!again, "it was released already");
}

/// A release that may still arrive does not match the token of the next claim.
#[tokio::test(start_paused = true)]
async fn after_a_release_of_unknown_outcome_the_token_is_another() {
    let world = World::new();
    let server = world.started(0).await;
    let first = claim(&server, "u").await.unwrap();
    world.store.fail("swap", &[Fault::Silence]);
    let lost = server.release(&first, None, server.deadline(None));
    tokio::pin!(lost);
    let lost = loop {
        tokio::select! {
            biased;
            lost = &mut lost => break lost,
            () = world.pass(STEP) => {}
        }
    };
    assert_eq!(lost.unwrap_err().outcome(), Some(WriteOutcome::Unknown));
    assert!(!server.owns(None, "u", None));
    // It has not arrived: the store still has the old record.
    assert_eq!(stored(&world, "u").await.record, Some(first.owner));
    let second = claim(&server, "u").await.unwrap();
    assert!(second.owner.token > first.owner.token);
    assert_eq!(claim(&server, "u").await.unwrap(), second);
}

#[tokio::test(start_paused = true)]
async fn a_release_that_was_not_sent_keeps_the_user() {
    let world = World::new();
    let server = world.started(0).await;
    let mine = claim(&server, "u").await.unwrap();
    world.store.fail("swap", &[Fault::Refused]);
    let error = server.release(&mine, None, server.deadline(None)).await;
    assert_eq!(error.unwrap_err().outcome(), Some(WriteOutcome::NotSent));
    assert_eq!(server.ownership(&user("u")), Some(mine));
}

/// One flight per user: a claim waits for the release under way.
#[tokio::test(start_paused = true)]
async fn claims_and_releases_of_a_user_run_one_after_the_other() {
    let world = World::new();
    let server = world.started(0).await;
    let mine = claim(&server, "u").await.unwrap();
    world
        .store
        .fail("swap", &[Fault::Late(Duration::from_millis(500))]);
    let releasing = {
        let (server, mine) = (server.clone(), mine.clone());
        let deadline = server.deadline(None);
        tokio::spawn(async move { server.release(&mine, None, deadline).await })
    };
    settle().await;
    let claims: Vec<_> = (0..5)
        .map(|_| claiming(&server, "u", server.deadline(None)))
        .collect();
    world.pass(Duration::from_millis(200)).await;
    assert!(claims.iter().all(|claim| !claim.is_finished()));
    claim(&server, "another").await.unwrap();
    world
        .until("all are done", || {
            claims.iter().all(|claim| claim.is_finished())
        })
        .await;
    assert!(releasing.await.unwrap().unwrap());
    for claimed in claims {
        assert!(claimed.await.unwrap().unwrap().owner.token > mine.owner.token);
    }
    assert_eq!(server.stats()["claims_made"], 3);
}

/// A killed owner is replaced by the claim itself, but not before its death is certain.
#[tokio::test(start_paused = true)]
async fn a_dead_owner_is_replaced() {
    let world = World::new();
    let hooks = Arc::new(Heard::default());
    let (dying, other) = (world.started(0).await, pod_with(&world, 1, hooks).await);
    let old = claim(&dying, "u").await.unwrap();
    let killed = world.clock.now();
    drop(dying);
    let mut waits = Vec::new();
    let new = loop {
        match claim(&other, "u").await {
            Ok(new) => break new,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotOwner, "{error}");
                let details = error.details();
                let wait = details.iter().find(|(name, _)| *name == "retry_after");
                assert_eq!(wait.is_some(), error.is_retryable());
                waits.push(wait.map(|(_, wait)| wait.parse::<f64>().unwrap()));
            }
        }
        world.pass(Duration::from_millis(500)).await;
    };
    let took = world.clock.now().since(killed);
    assert!(took <= LEASE + GRACE + Duration::from_secs(1), "{took:?}");
    assert!(took > GRACE, "{took:?}");
    assert_eq!(waits[0], None, "its lease is not over");
    assert!(waits.last().unwrap().unwrap() <= GRACE.as_secs_f64());
    assert!(new.owner.token > old.owner.token);
    assert_eq!(new.previous, old.owner.token);
    assert!(other.owns(None, "u", None));
}

/// What a pod writes, keeps or gives up names its incarnation: an earlier process does no harm.
#[tokio::test(start_paused = true)]
async fn an_earlier_process_removes_nothing_of_its_successor() {
    let world = World::new();
    let hooks = Heard::gated();
    let clock = world.clock.clone();
    let earlier = world.server_with(0, "uid", clock.clone(), Arc::clone(&hooks) as Arc<_>);
    earlier.start(earlier.start_deadline(None)).await.unwrap();
    let old = claim(&earlier, "u").await.unwrap();
    let later = world.server_with(0, "uid", clock, Arc::new(NoHooks));
    later.start(later.start_deadline(None)).await.unwrap();
    let new = claim(&later, "u").await.unwrap();
    assert!(new.owner.token > old.owner.token);
    assert!(earlier.holds_lease(), "it does not know yet");
    let deadline = || earlier.deadline(None);
    assert!(
        !earlier
            .release(&old, Some(Removal::Now), deadline())
            .await
            .unwrap()
    );
    assert!(
        !earlier
            .remove_linked_pod(user("u"), deadline())
            .await
            .unwrap()
    );
    for (name, call) in writes().into_iter().take(3) {
        let done = earlier.call(name, call, deadline()).await;
        if let Ok(reply) = done {
            assert!(matches!(reply, podlink::op::Reply::Remove(removed) if !removed.done));
        }
    }
    let error = claim(&earlier, "u").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost, "{error}");
    assert_eq!(stored(&world, "u").await.record, Some(new.owner));
    world
        .until("it hears of it", || !hooks.all().is_empty())
        .await;
    assert_eq!(hooks.all()[0], "Lost superseded");
    assert!(later.owns(None, "u", None) && !earlier.owns(None, "u", None));
}

#[tokio::test(start_paused = true)]
async fn verify_drops_what_is_not_owned_any_more() {
    let world = World::new();
    let hooks = Arc::new(Heard::default());
    let server = pod_with(&world, 0, Arc::clone(&hooks) as Arc<_>).await;
    let mine = claim(&server, "u").await.unwrap();
    let deadline = || server.deadline(None);
    assert!(server.verify(&mine, deadline()).await.unwrap());
    removed_by_hand(&world, "u").await;
    assert!(server.owns(None, "u", None), "no I/O, no news");
    assert!(!server.verify(&mine, deadline()).await.unwrap());
    assert!(!server.owns(None, "u", None));
    settle().await;
    assert_eq!(hooks.all(), ["lost u removed"]);
}
