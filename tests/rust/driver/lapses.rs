//! What a lapse, a death certificate and another server do to the users that a process owns.

use std::sync::Arc;
use std::time::Duration;

use podlink::config::Drain;
use podlink::driver::server::NoHooks;
use podlink::error::ErrorKind;
use podlink::id::{Incarnation, Token};
use podlink::op::Claimed;
use podlink::route::link::Certificate;
use podlink::store::MemoryStore;

use super::faulty::Fault;
use super::ownership::{Heard, certificate, claim, pod_with, removed_by_hand, stored};
use super::world::{GRACE, GUARD, LEASE, RENEW, STEP, TIMEOUT, World, route_info, service, settle};
use crate::ask::Ask as _;
use crate::stage::{pod, user};

/// The clock is read at the moment of the check: no task need have noticed the lapse.
#[tokio::test(start_paused = true)]
async fn ownership_ends_with_the_lease_whatever_runs() {
    let mut world = World::new();
    // Ahead of the store's, so that no deadline has passed there.
    let own = world.wrong_clock(Duration::from_secs(2000));
    let server = world.server_with(0, "", own.clone(), Arc::new(NoHooks));
    server.start(server.start_deadline(None)).await.unwrap();
    let mine = claim(&server, "u").await.unwrap();
    let podlink::clock::Clock::Manual(hand) = own else {
        unreachable!("it is moved by hand");
    };
    hand.advance(LEASE - GUARD - STEP);
    assert!(server.owns(None, "u", None));
    hand.advance(STEP * 2);
    // Nothing was awaited in between.
    assert!(!server.holds_lease() && !server.owns(None, "u", None));
    assert_eq!(server.token(None, "u", None), None);
    assert_eq!(server.ownership(&mine.link), None);
    assert!(server.owned_users().is_empty());
}

/// A lapse voids nothing as long as nobody has a certificate: the same tokens stand again.
#[tokio::test(start_paused = true)]
async fn a_lapse_suspends_and_a_renewal_resumes() {
    let world = World::new();
    let hooks = Heard::gated();
    let server = pod_with(&world, 0, Arc::clone(&hooks) as Arc<_>).await;
    let before = claim(&server, "u").await.unwrap();
    world.store.fail("pod_renew", &[Fault::Refused; 1000]);
    world.until("it lapses", || !server.holds_lease()).await;
    assert!(!server.owns(None, "u", None));
    assert!(server.owned_users().is_empty() && server.ownership(&user("u")).is_none());
    world.until("it is told", || hooks.all().len() == 1).await;
    world.store.heal();
    // The hook of the suspension has not ended: nothing is owned before the program knows.
    world.pass(RENEW * 2).await;
    assert!(!server.holds_lease() && !server.owns(None, "u", None));
    hooks.open();
    world.until("it resumes", || server.holds_lease()).await;
    assert_eq!(server.ownership(&user("u")), Some(before));
    world
        .until("both are told", || hooks.all().len() == 2)
        .await;
    assert_eq!(hooks.all(), ["Suspended not_renewed", "Resumed renewed"]);
    let stats = server.stats();
    assert_eq!((stats["suspensions"], stats["leases_lost"]), (1, 0));
    assert!(stats["verified"] > 0);
}

#[tokio::test(start_paused = true)]
async fn after_a_lapse_only_what_stands_is_owned_again() {
    let world = World::new();
    let hooks = Arc::new(Heard::default());
    let server = pod_with(&world, 0, Arc::clone(&hooks) as Arc<_>).await;
    for uid in ["stands", "taken", "removed"] {
        claim(&server, uid).await.unwrap();
    }
    world.store.fail("pod_renew", &[Fault::Refused; 1000]);
    world.until("it lapses", || !server.holds_lease()).await;
    removed_by_hand(&world, "removed").await;
    // Another process has a certificate.
    let (link, deadline) = (user("taken"), world.clock.deadline(TIMEOUT));
    let (thief, certified) = (
        (pod(1), Incarnation::new(5)),
        (pod(0), server.incarnation()),
    );
    let taken = world
        .store
        .claim(&link, thief, Some(certified), Token::NONE, deadline)
        .await;
    assert!(matches!(taken.unwrap(), Claimed::Owned { .. }));
    world.store.heal();
    world.until("it resumes", || server.holds_lease()).await;
    settle().await;
    assert_eq!(server.owned_users(), [user("stands")]);
    let mut told = hooks.all();
    assert_eq!(told.pop().as_deref(), Some("Resumed renewed"));
    told.sort();
    let expected = [
        "Suspended not_renewed",
        "lost removed removed",
        "lost taken taken",
    ];
    assert_eq!(told, expected);
    assert_eq!(server.stats()["lost_taken"], 1);
    assert_eq!(server.stats()["lost_removed"], 1);
}

/// Confirmed by a store that does not answer: nothing is owned, and the next renewal asks again.
#[tokio::test(start_paused = true)]
async fn what_could_not_be_confirmed_is_asked_again() {
    let world = World::new();
    let server = world.started(0).await;
    claim(&server, "u").await.unwrap();
    world.store.fail("pod_renew", &[Fault::Refused; 1000]);
    world.until("it lapses", || !server.holds_lease()).await;
    world.store.heal();
    world.store.fail("read", &[Fault::Refused; 2]);
    world.pass(RENEW).await;
    assert!(!server.holds_lease());
    let waited = world.until("it resumes", || server.holds_lease()).await;
    assert!(waited < RENEW * 4, "{waited:?}");
    assert!(server.owns(None, "u", None));
}

/// Every token is void, and nothing is owned until the hooks of the loss have ended.
#[tokio::test(start_paused = true)]
async fn after_a_loss_the_hooks_come_first() {
    let world = World::new();
    let hooks = Heard::gated();
    let server = pod_with(&world, 0, Arc::clone(&hooks) as Arc<_>).await;
    let old = claim(&server, "u").await.unwrap();
    world.store.fail("pod_renew", &[Fault::Refused; 1000]);
    world.until("it lapses", || !server.holds_lease()).await;
    loop {
        if matches!(certificate(&world, 0).await, Certificate::Dead(_)) {
            break;
        }
        world.pass(Duration::from_millis(500)).await;
    }
    world.store.heal();
    let incarnation = server.incarnation();
    world
        .until("it has begun again", || server.incarnation() > incarnation)
        .await;
    world.pass(RENEW).await;
    assert!(!server.holds_lease(), "the hooks have not ended");
    let error = claim(&server, "v").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LeaseLost);
    hooks.open();
    world.until("it acts again", || server.holds_lease()).await;
    settle().await;
    let expected = [
        "Suspended not_renewed",
        "Lost declared_dead",
        "lost u lease_lost",
    ];
    assert_eq!(hooks.all(), expected);
    assert!(!server.owns(None, "u", None));
    assert!(!server.verify(&old, server.deadline(None)).await.unwrap());
    let new = claim(&server, "u").await.unwrap();
    assert!(new.owner.token > old.owner.token);
}

/// The owner's memory is a second copy: what the store has forgotten it is told again.
#[tokio::test(start_paused = true)]
async fn a_store_that_forgot_everything_is_told_again() {
    let world = World::new();
    let hooks = Arc::new(Heard::default());
    let server = pod_with(&world, 0, Arc::clone(&hooks) as Arc<_>).await;
    let old = claim(&server, "u").await.unwrap();
    let empty = MemoryStore::open(None, world.clock.clone()).unwrap();
    world.store.replace(empty, 2);
    let waited = world
        .until("it is told again", || {
            server
                .token(None, "u", None)
                .is_some_and(|token| token > old.owner.token)
        })
        .await;
    assert!(waited <= RENEW * 2, "{waited:?}");
    assert!(server.holds_lease());
    settle().await;
    assert_eq!(
        hooks.all(),
        ["renewed u false"],
        "no other process is known, but the old token neither"
    );
    let record = stored(&world, "u").await.record.unwrap();
    assert_eq!(Some(record.token), server.token(None, "u", None));
    assert_eq!(server.stats()["reasserted"], 1);
}

/// Another server, and the lease had lapsed: a certificate may have been forgotten.
#[tokio::test(start_paused = true)]
async fn after_a_lapse_another_server_is_not_believed() {
    let world = World::new();
    let hooks = Arc::new(Heard::default());
    let server = pod_with(&world, 0, Arc::clone(&hooks) as Arc<_>).await;
    let old = claim(&server, "u").await.unwrap();
    world.store.fail("pod_renew", &[Fault::Refused; 1000]);
    world.until("it lapses", || !server.holds_lease()).await;
    world.store.renumber(2);
    world.store.heal();
    world.until("it resumes", || server.holds_lease()).await;
    settle().await;
    let new = server.ownership(&user("u")).unwrap();
    assert!(new.owner.token > old.owner.token, "a new token");
    assert_eq!(new.previous, old.owner.token);
    let expected = ["Suspended not_renewed", "renewed u true", "Resumed renewed"];
    assert_eq!(hooks.all(), expected);
}

/// Another server without a lapse: what stands there stays.
#[tokio::test(start_paused = true)]
async fn another_server_is_asked_at_once() {
    let world = World::new();
    let hooks = Arc::new(Heard::default());
    let server = pod_with(&world, 0, Arc::clone(&hooks) as Arc<_>).await;
    let old = claim(&server, "u").await.unwrap();
    let verified = server.stats()["verified"];
    world.store.renumber(2);
    world
        .until("it has asked", || server.stats()["verified"] > verified)
        .await;
    settle().await;
    assert_eq!(server.ownership(&user("u")), Some(old));
    assert!(hooks.all().is_empty());
}

/// Ten thousand users are confirmed in batches.
#[tokio::test(start_paused = true)]
async fn many_users_resume_together() {
    let world = World::new();
    let server = world.started(0).await;
    for n in 0..2000 {
        claim(&server, &format!("u{n}")).await.unwrap();
    }
    world.store.fail("pod_renew", &[Fault::Refused; 1000]);
    world.until("it lapses", || !server.holds_lease()).await;
    world.store.heal();
    world.until("it resumes", || server.holds_lease()).await;
    assert_eq!(server.owned_users().len(), 2000);
    assert_eq!(server.stats()["verified"], 2000);
}

/// Whoever knew the pods still knows them: the first pod that writes itself again is not the only
/// one that is alive. A pod that ended in good order meanwhile is not kept.
#[tokio::test(start_paused = true)]
async fn a_store_that_forgot_everything_moves_nobody() {
    let world = World::new();
    let mut servers = Vec::new();
    for index in 0..4 {
        servers.push(world.started(index).await);
    }
    let info = world.info(route_info());
    let alive = async || -> Vec<u32> {
        let (service, deadline) = (service(), info.deadline(TIMEOUT));
        let states = info.all_states(&service, deadline).await.unwrap();
        states.keys().map(|pod| pod.get()).collect()
    };
    assert_eq!(alive().await, [0, 1, 2, 3]);
    let empty = MemoryStore::open(None, world.clock.clone()).unwrap();
    world.store.replace(empty, 2);
    for _ in 0..40 {
        world.pass(RENEW / 20).await;
        assert_eq!(alive().await, [0, 1, 2, 3]);
    }
    let deadline = world.clock.deadline(LEASE);
    servers[3].stop(Drain::Release, deadline).await.unwrap();
    world.pass(RENEW).await;
    assert_eq!(alive().await, [0, 1, 2]);
    // One that never writes itself again is gone with its lease.
    drop(servers.remove(2));
    let again = MemoryStore::open(None, world.clock.clone()).unwrap();
    world.store.replace(again, 3);
    world.pass(RENEW * 2).await;
    assert_eq!(alive().await, [0, 1, 2]);
    world.pass(LEASE).await;
    assert_eq!(alive().await, [0, 1]);
    info.close();
}

/// A store whose time is behind gives no smaller token to a process that has one already.
#[tokio::test(start_paused = true)]
async fn the_tokens_of_a_process_never_fall() {
    let world = World::new();
    let server = world.started(0).await;
    world.pass(LEASE * 6).await;
    let old = claim(&server, "u").await.unwrap();
    // Opened now, its calendar is behind by the simulated minute.
    let behind = MemoryStore::open(None, world.clock.clone()).unwrap();
    world.store.replace(behind, 2);
    let again = claim(&server, "u").await.unwrap();
    assert!(again.owner.token >= old.owner.token, "{again:?} {old:?}");
    world
        .until("it is told again", || server.stats()["verified"] > 0)
        .await;
    world.pass(RENEW).await;
    let held = server.token(None, "u", None);
    assert!(held.is_some_and(|held| held >= old.owner.token), "{held:?}");
    assert_eq!(
        stored(&world, "u").await.record.map(|record| record.token),
        held
    );
}

/// A claim that came too late is given back, but not if the next one got the same token.
#[tokio::test(start_paused = true)]
async fn a_late_claim_is_not_given_back_once_it_counts() {
    let world = World::new();
    let server = world.started(0).await;
    world.store.fail("claim", &[Fault::Late(RENEW * 2)]);
    let deadline = world.clock.deadline(LEASE);
    let claims: Vec<_> = (0..2)
        .map(|_| {
            let (server, link) = (server.clone(), user("u"));
            tokio::spawn(async move { server.claim(link, Token::NONE, deadline).await })
        })
        .collect();
    settle().await;
    // Another server: answers of before count no more.
    world.store.renumber(2);
    let done = || claims.iter().all(tokio::task::JoinHandle::is_finished);
    world.until("both are answered", done).await;
    let mut answers = Vec::new();
    for claimed in claims {
        answers.push(claimed.await.unwrap());
    }
    assert_eq!(server.stats()["late_answers"], 1, "{answers:?}");
    let held = server.ownership(&user("u")).unwrap();
    world.pass(RENEW * 2).await;
    assert_eq!(server.ownership(&user("u")), Some(held.clone()));
    assert_eq!(stored(&world, "u").await.record, Some(held.owner));
}

/// The store has a record of its owner, and no lease: it may be alive, for a lease and a grace.
#[tokio::test(start_paused = true)]
async fn a_forgotten_owner_is_not_dead_at_once() {
    let world = World::new();
    let server = world.started(0).await;
    let (link, forgotten) = (user("u"), (pod(7), Incarnation::new(77)));
    let deadline = world.clock.deadline(TIMEOUT);
    let theirs = world
        .store
        .claim(&link, forgotten, None, Token::NONE, deadline)
        .await;
    assert!(matches!(theirs.unwrap(), Claimed::Owned { .. }));
    let asked = world.clock.now();
    loop {
        match claim(&server, "u").await {
            Ok(_) => break,
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotOwner, "{error}"),
        }
        world.pass(Duration::from_millis(500)).await;
    }
    let took = world.clock.now().since(asked);
    assert!(took >= LEASE + GRACE, "{took:?}");
    assert!(took <= LEASE + GRACE + RENEW, "{took:?}");
}
