//! Links: every row of the table of semantics, on every store.

use std::time::Duration;

use podlink::error::{ErrorKind, WriteOutcome};
use podlink::id::{Incarnation, LinkId, PodIndex, Uid};
use podlink::op::Removed;
use podlink::route::link::{Life, Persist, Placed, Removal, StoredLink};

use crate::ask::Ask as _;
use crate::contract::on_every_store;
use crate::stage::{Stage, link, pod, user};

on_every_store!(
    nobody_is_linked_at_first,
    the_first_to_set_if_absent_wins_and_pod_zero_is_a_pod,
    a_kept_link_is_raised_and_never_shortened,
    set_replaces_whatever_was_there,
    try_set_takes_only_what_is_free,
    relink_moves_only_the_link_that_was_found,
    a_removed_link_goes_or_stays_as_a_hint,
    remove_with_an_owner_compares_it,
    a_batch_keeps_the_order_of_the_users,
    different_triples_never_share_a_link,
    an_expired_link_is_gone,
    of_many_at_once_one_wins,
    a_call_after_its_deadline_does_nothing,
    a_closed_store_stays_closed,
);

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

async fn found(stage: &Stage, link: &LinkId) -> Option<StoredLink> {
    stage.store.get(link, stage.deadline()).await.unwrap()
}

async fn owner(stage: &Stage, link: &LinkId) -> Option<PodIndex> {
    found(stage, link).await.map(|found| found.pod)
}

async fn services(stage: &Stage, link: &LinkId) -> Vec<(String, u32)> {
    let (namespace, uid) = (&link.service.namespace, &link.uid);
    let services = stage
        .store
        .services(namespace, uid, stage.deadline())
        .await
        .unwrap();
    services
        .into_iter()
        .map(|(name, pod)| (name.to_string(), pod.get()))
        .collect()
}

async fn set_if_absent(stage: &Stage, link: &LinkId, to: i64, ttl: Duration) -> Placed {
    stage
        .store
        .set_if_absent(link, pod(to), ttl, stage.deadline())
        .await
        .unwrap()
}

async fn set(stage: &Stage, link: &LinkId, to: i64, persist: Persist) -> Option<PodIndex> {
    stage
        .store
        .set(link, pod(to), persist, stage.deadline())
        .await
        .unwrap()
}

async fn try_set(stage: &Stage, link: &LinkId, to: i64, persist: Persist) -> Placed {
    stage
        .store
        .try_set(link, pod(to), persist, stage.deadline())
        .await
        .unwrap()
}

async fn remove(stage: &Stage, link: &LinkId, owner: Option<i64>, removal: Removal) -> Removed {
    stage
        .store
        .remove(link, owner.map(pod), removal, stage.deadline())
        .await
        .unwrap()
}

async fn relink(stage: &Stage, link: &LinkId, from: StoredLink, to: i64) -> Option<Placed> {
    let (dead, deadline) = (Incarnation::NONE, stage.deadline());
    stage
        .store
        .relink(link, from, dead, pod(to), MINUTE, deadline)
        .await
        .unwrap()
}

/// The link is temporary and has about this much left.
#[track_caller]
fn lasts(link: StoredLink, ttl: Duration) {
    match link.life {
        Life::Temporary(left) => {
            assert!(
                left <= ttl && left + MINUTE / 2 > ttl,
                "{left:?} left of {ttl:?}"
            );
        }
        Life::Persistent => panic!("the link is persistent"),
    }
}

async fn nobody_is_linked_at_first(stage: Stage) {
    assert_eq!(found(&stage, &user("u")).await, None);
    assert!(services(&stage, &user("u")).await.is_empty());
    stage.store.ping(stage.deadline()).await.unwrap();
}

async fn the_first_to_set_if_absent_wins_and_pod_zero_is_a_pod(stage: Stage) {
    let first = set_if_absent(&stage, &user("u"), 0, HOUR).await;
    assert!(first.made);
    assert_eq!(first.link.pod, pod(0));
    lasts(first.link, HOUR);
    let second = set_if_absent(&stage, &user("u"), 5, HOUR).await;
    assert!(!second.made);
    assert_eq!(second.link.pod, pod(0));
    assert_eq!(owner(&stage, &user("u")).await, Some(pod(0)));
    assert!(
        services(&stage, &user("u")).await.is_empty(),
        "a hint is no persistent link"
    );
}

async fn a_kept_link_is_raised_and_never_shortened(stage: Stage) {
    set_if_absent(&stage, &user("u"), 1, HOUR).await;
    let shorter = set_if_absent(&stage, &user("u"), 1, MINUTE).await;
    lasts(shorter.link, HOUR);
    let longer = set_if_absent(&stage, &user("u"), 2, 2 * HOUR).await;
    assert_eq!(longer.link.pod, pod(1));
    lasts(longer.link, 2 * HOUR);
    lasts(found(&stage, &user("u")).await.unwrap(), 2 * HOUR);
    set(&stage, &user("p"), 1, Persist::Forever).await;
    let kept = set_if_absent(&stage, &user("p"), 2, MINUTE).await;
    assert_eq!(kept.link, StoredLink::unowned(pod(1), Life::Persistent));
    assert_eq!(found(&stage, &user("p")).await, Some(kept.link));
}

async fn set_replaces_whatever_was_there(stage: Stage) {
    let link = user("u");
    assert_eq!(set(&stage, &link, 0, Persist::Forever).await, None);
    assert_eq!(services(&stage, &link).await, [("svc".to_owned(), 0)]);
    assert_eq!(found(&stage, &link).await.unwrap().life, Life::Persistent);
    assert_eq!(set(&stage, &link, 7, Persist::Forever).await, Some(pod(0)));
    assert_eq!(services(&stage, &link).await, [("svc".to_owned(), 7)]);
    assert_eq!(
        set(&stage, &link, 8, Persist::For(MINUTE)).await,
        Some(pod(7))
    );
    lasts(found(&stage, &link).await.unwrap(), MINUTE);
    assert!(
        services(&stage, &link).await.is_empty(),
        "a temporary link is not listed"
    );
    assert_eq!(set(&stage, &link, 9, Persist::Forever).await, Some(pod(8)));
    assert_eq!(found(&stage, &link).await.unwrap().life, Life::Persistent);
}

async fn try_set_takes_only_what_is_free(stage: Stage) {
    let link = user("u");
    let absent = try_set(&stage, &link, 3, Persist::For(MINUTE)).await;
    assert!(absent.made);
    lasts(absent.link, MINUTE);
    let hint = try_set(&stage, &link, 4, Persist::Forever).await;
    assert_eq!(
        (hint.made, hint.link.pod, hint.link.life),
        (true, pod(4), Life::Persistent)
    );
    assert_eq!(services(&stage, &link).await, [("svc".to_owned(), 4)]);
    let taken = try_set(&stage, &link, 5, Persist::Forever).await;
    assert_eq!(
        (taken.made, taken.link.pod, taken.link.life),
        (false, pod(4), Life::Persistent)
    );
    let own = try_set(&stage, &link, 4, Persist::Forever).await;
    assert_eq!((own.made, own.link.pod), (true, pod(4)));
    let own_shorter = try_set(&stage, &link, 4, Persist::For(HOUR)).await;
    assert!(own_shorter.made);
    lasts(own_shorter.link, HOUR);
    assert!(services(&stage, &link).await.is_empty());
}

async fn relink_moves_only_the_link_that_was_found(stage: Stage) {
    let link = user("u");
    let temporary = |index| StoredLink::unowned(pod(index), Life::Temporary(HOUR));
    let persistent = |index| StoredLink::unowned(pod(index), Life::Persistent);
    assert_eq!(
        relink(&stage, &link, temporary(0), 1).await,
        None,
        "nothing to move"
    );
    assert_eq!(owner(&stage, &link).await, None);

    set_if_absent(&stage, &link, 0, HOUR).await;
    let other_pod = relink(&stage, &link, temporary(3), 1).await.unwrap();
    assert_eq!((other_pod.made, other_pod.link.pod), (false, pod(0)));
    let other_life = relink(&stage, &link, persistent(0), 1).await.unwrap();
    assert_eq!((other_life.made, other_life.link.pod), (false, pod(0)));
    // How long it still lasts does not matter, only whether it does.
    let from = StoredLink::unowned(pod(0), Life::Temporary(Duration::ZERO));
    let moved = relink(&stage, &link, from, 1).await.unwrap();
    assert_eq!((moved.made, moved.link.pod), (true, pod(1)));
    lasts(moved.link, MINUTE);
    let loser = relink(&stage, &link, from, 2).await.unwrap();
    assert_eq!(
        (loser.made, loser.link.pod),
        (false, pod(1)),
        "the loser gets the winner's pod"
    );

    set(&stage, &link, 6, Persist::Forever).await;
    let kept = relink(&stage, &link, temporary(6), 2).await.unwrap();
    assert_eq!((kept.made, kept.link.life), (false, Life::Persistent));
    let moved = relink(&stage, &link, persistent(6), 2).await.unwrap();
    assert!(moved.made);
    lasts(moved.link, MINUTE);
    assert!(
        services(&stage, &link).await.is_empty(),
        "the persistent link is gone"
    );
}

async fn a_removed_link_goes_or_stays_as_a_hint(stage: Stage) {
    let link = user("u");
    let absent = Removed {
        previous: None,
        done: false,
    };
    assert_eq!(remove(&stage, &link, None, Removal::Now).await, absent);
    assert_eq!(
        remove(&stage, &link, None, Removal::Grace(HOUR)).await,
        absent
    );

    set(&stage, &link, 0, Persist::Forever).await;
    let removed = Removed {
        previous: Some(pod(0)),
        done: true,
    };
    assert_eq!(
        remove(&stage, &link, None, Removal::Grace(HOUR)).await,
        removed
    );
    let hint = found(&stage, &link).await.expect("it stays as a hint");
    assert_eq!(hint.pod, pod(0));
    lasts(hint, HOUR);
    assert!(services(&stage, &link).await.is_empty());
    assert_eq!(remove(&stage, &link, None, Removal::Now).await, removed);
    assert_eq!(found(&stage, &link).await, None);

    set(&stage, &link, 4, Persist::Forever).await;
    remove(&stage, &link, None, Removal::Now).await;
    assert_eq!(found(&stage, &link).await, None);
    assert!(services(&stage, &link).await.is_empty());
}

async fn remove_with_an_owner_compares_it(stage: Stage) {
    let link = user("u");
    set(&stage, &link, 0, Persist::Forever).await;
    for removal in [Removal::Now, Removal::Grace(HOUR)] {
        let kept = remove(&stage, &link, Some(1), removal).await;
        assert_eq!(
            kept,
            Removed {
                previous: Some(pod(0)),
                done: false
            }
        );
        assert_eq!(found(&stage, &link).await.unwrap().life, Life::Persistent);
        assert_eq!(services(&stage, &link).await, [("svc".to_owned(), 0)]);
    }
    let done = remove(&stage, &link, Some(0), Removal::Grace(HOUR)).await;
    assert_eq!(
        done,
        Removed {
            previous: Some(pod(0)),
            done: true
        }
    );
    let again = remove(&stage, &link, Some(0), Removal::Now).await;
    assert!(again.done, "the hint still names the owner");
    assert_eq!(found(&stage, &link).await, None);
}

async fn a_batch_keeps_the_order_of_the_users(stage: Stage) {
    let service = user("u").service;
    // More than two pieces, every third user unlinked, one user twice.
    let count = 1200;
    for n in (0..count).filter(|n| n % 3 != 0) {
        set_if_absent(&stage, &user(&format!("u{n}")), n % 50, HOUR).await;
    }
    let mut uids: Vec<Uid> = (0..count)
        .map(|n| Uid::new(&format!("u{n}")).unwrap())
        .collect();
    uids.push(uids[1].clone());
    let pods = stage
        .store
        .batch_get(&service, &uids, stage.deadline())
        .await
        .unwrap();
    let expected = |n| (n % 3 != 0).then(|| pod(n % 50));
    assert_eq!(
        pods,
        (0..count)
            .map(expected)
            .chain([Some(pod(1))])
            .collect::<Vec<_>>()
    );
    let none = stage
        .store
        .batch_get(&service, &[], stage.deadline())
        .await
        .unwrap();
    assert!(none.is_empty());
}

async fn different_triples_never_share_a_link(stage: Stage) {
    let triples = [
        ("ns", "a", "svc"),
        ("ns", "a", "svc.b"),
        ("ns", "a:b", "svc"),
        ("ns.a", "b", "svc"),
        ("ns", "lk:a", "svc"),
        ("ns", "a svc", "svc"),
        ("ns", "a#own", "svc"),
        ("ns", "日本", "svc"),
        ("ns", "A", "svc"),
    ];
    for (n, (namespace, uid, service)) in (0..).zip(triples) {
        let persist = if n % 2 == 0 {
            Persist::Forever
        } else {
            Persist::For(HOUR)
        };
        assert_eq!(
            set(&stage, &link(namespace, uid, service), n, persist).await,
            None
        );
    }
    for (n, (namespace, uid, service)) in (0..).zip(triples) {
        let link = link(namespace, uid, service);
        assert_eq!(owner(&stage, &link).await, Some(pod(n)), "{link:?}");
    }
    assert_eq!(services(&stage, &user("a")).await, [("svc".to_owned(), 0)]);
}

async fn an_expired_link_is_gone(stage: Stage) {
    let link = user("u");
    set_if_absent(&stage, &link, 0, MINUTE).await;
    stage.expire(&link, MINUTE).await;
    assert_eq!(found(&stage, &link).await, None);
    let (service, deadline) = (&link.service, stage.deadline());
    let batch = stage
        .store
        .batch_get(service, std::slice::from_ref(&link.uid), deadline)
        .await;
    assert_eq!(batch.unwrap(), [None]);
    let again = set_if_absent(&stage, &link, 1, MINUTE).await;
    assert!(again.made, "the place is free again");
    stage.expire(&link, MINUTE).await;
    let from = StoredLink::unowned(pod(1), Life::Temporary(MINUTE));
    assert_eq!(relink(&stage, &link, from, 2).await, None);
    let removed = remove(&stage, &link, None, Removal::Now).await;
    assert_eq!(
        removed,
        Removed {
            previous: None,
            done: false
        }
    );
}

async fn of_many_at_once_one_wins(stage: Stage) {
    let (absent, claimed, dead) = (user("a"), user("c"), user("d"));
    set(&stage, &dead, 0, Persist::Forever).await;
    let from = StoredLink::unowned(pod(0), Life::Persistent);
    let rounds = (1..=40).map(|n| {
        let (stage, absent, claimed, dead) = (&stage, &absent, &claimed, &dead);
        async move {
            [
                set_if_absent(stage, absent, n, HOUR).await,
                try_set(stage, claimed, n, Persist::Forever).await,
                relink(stage, dead, from, n).await.unwrap(),
            ]
        }
    });
    let answers = futures_util::future::join_all(rounds).await;
    for (which, link) in [absent, claimed, dead].iter().enumerate() {
        let owner = owner(&stage, link).await;
        assert!(
            answers
                .iter()
                .all(|answer| Some(answer[which].link.pod) == owner)
        );
        assert_eq!(
            answers.iter().filter(|answer| answer[which].made).count(),
            1
        );
    }
}

async fn a_call_after_its_deadline_does_nothing(stage: Stage) {
    let link = user("u");
    let late = stage
        .store
        .set(&link, pod(1), Persist::Forever, stage.too_late())
        .await;
    let error = late.unwrap_err();
    assert!(
        matches!(
            error.kind(),
            ErrorKind::Timeout | ErrorKind::StoreUnavailable
        ),
        "{error}"
    );
    assert_eq!(error.outcome(), Some(WriteOutcome::NotSent));
    assert!(error.is_retryable());
    assert_eq!(found(&stage, &link).await, None);
    let late = stage
        .store
        .set(&link, pod(1), Persist::Forever, stage.too_late())
        .await;
    assert_eq!(
        late.unwrap_err().kind(),
        ErrorKind::Timeout,
        "now that there is a connection"
    );
    let error = stage.store.get(&link, stage.too_late()).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, None));
    assert!(error.to_string().starts_with("get: "), "{error}");
}

async fn a_closed_store_stays_closed(stage: Stage) {
    set(&stage, &user("u"), 0, Persist::Forever).await;
    stage.store.close().await;
    stage.store.close().await;
    let error = stage
        .store
        .get(&user("u"), stage.deadline())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    let late = stage
        .store
        .set(&user("u"), pod(1), Persist::Forever, stage.deadline())
        .await;
    let error = late.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Closed, Some(WriteOutcome::NotSent))
    );
}
