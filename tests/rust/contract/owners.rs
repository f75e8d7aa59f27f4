//! Owning a user: who may claim, who is refused, and what a late write does, on every store.

use std::time::Duration;

use podlink::clock::calendar_micros;
use podlink::error::{ErrorKind, WriteOutcome};
use podlink::id::{Incarnation, LinkId, PodIndex, Token};
use podlink::op::{Claimed, Rewrite, StoredUser};
use podlink::route::link::{Holder, Life, Owner, Persist, Placed, Removal, StoredLink};

use crate::ask::Ask as _;
use crate::contract::on_every_store;
use crate::stage::{Stage, link, pod, user};

on_every_store!(
    claiming_twice_is_one_claim,
    min_token_asks_for_a_new_token,
    a_restart_takes_over,
    another_pod_needs_a_certificate,
    a_bare_link_needs_a_certificate,
    a_hint_is_free_to_claim,
    other_writes_respect_an_owner,
    a_release_by_another_is_void,
    a_release_may_arrive_twice,
    a_release_may_arrive_late,
    a_swap_compares_life_pod_record,
    a_swap_may_hand_over,
    relink_spares_a_new_claim,
    relink_spares_a_later_process,
    relink_needs_the_exact_record,
    released_users_are_free,
    of_many_claims_one_wins,
    another_service_is_untouched,
    tokens_rise_over_services,
    the_greatest_token_is_the_last,
);

const HOUR: Duration = Duration::from_secs(3600);

/// A process: its pod and its incarnation.
pub(super) type Process = (i64, u64);

pub(super) async fn claim(stage: &Stage, link: &LinkId, me: Process) -> Claimed {
    claim_with(stage, link, me, None, 0).await
}

pub(super) async fn claim_with(
    stage: &Stage,
    link: &LinkId,
    me: Process,
    certified: Option<Process>,
    above: u64,
) -> Claimed {
    let named = |(index, incarnation)| (pod(index), Incarnation::new(incarnation));
    let (store, deadline) = (&stage.store, stage.deadline());
    let (certified, above) = (certified.map(named), Token::new(above));
    let claimed = store
        .claim(link, named(me), certified, above, deadline)
        .await;
    claimed.unwrap()
}

/// The token of a claim that took the user, and the last one before it.
#[track_caller]
pub(super) fn made(claimed: Claimed) -> (u64, u64) {
    match claimed {
        Claimed::Owned {
            token,
            previous,
            again: false,
        } => (token.get(), previous.get()),
        other => panic!("it is not owned: {other:?}"),
    }
}

pub(super) fn again(token: u64) -> Claimed {
    Claimed::Owned {
        token: Token::new(token),
        previous: Token::NONE,
        again: true,
    }
}

pub(super) fn taken(index: i64, incarnation: Option<u64>) -> Claimed {
    Claimed::Taken {
        pod: pod(index),
        incarnation: incarnation.map(Incarnation::new),
    }
}

pub(super) fn owner(me: Process, token: u64) -> Owner {
    Owner {
        pod: pod(me.0),
        incarnation: Incarnation::new(me.1),
        token: Token::new(token),
    }
}

pub(super) async fn read(stage: &Stage, link: &LinkId) -> StoredUser {
    *stage.store.read(link, stage.deadline()).await.unwrap()
}

/// Whether the process owns the user by this token.
pub(super) async fn owns(stage: &Stage, link: &LinkId, me: Process, token: u64) -> bool {
    read(stage, link).await.is_owned_by(owner(me, token))
}

/// Gives the user up as the process that owns it by this token.
pub(super) async fn release(stage: &Stage, link: &LinkId, me: Process, token: u64) -> bool {
    let found = StoredUser::of_owner(owner(me, token));
    swap(stage, link, &found, Rewrite::Nothing).await
}

pub(super) async fn swap(stage: &Stage, link: &LinkId, found: &StoredUser, to: Rewrite) -> bool {
    let swapped = stage.store.swap(link, found, to, stage.deadline()).await;
    swapped.unwrap().done
}

async fn set(stage: &Stage, link: &LinkId, to: i64, persist: Persist) -> Option<PodIndex> {
    let (store, deadline) = (&stage.store, stage.deadline());
    store.set(link, pod(to), persist, deadline).await.unwrap()
}

async fn try_set(stage: &Stage, link: &LinkId, to: i64, persist: Persist) -> Placed {
    let (store, deadline) = (&stage.store, stage.deadline());
    let placed = store.try_set(link, pod(to), persist, deadline).await;
    placed.unwrap()
}

async fn set_if_absent(stage: &Stage, link: &LinkId, to: i64) -> Placed {
    let (store, deadline) = (&stage.store, stage.deadline());
    let placed = store.set_if_absent(link, pod(to), HOUR, deadline).await;
    placed.unwrap()
}

pub(super) async fn relink(
    stage: &Stage,
    link: &LinkId,
    from: StoredLink,
    dead: u64,
    to: i64,
) -> Option<Placed> {
    let (store, deadline) = (&stage.store, stage.deadline());
    let dead = Incarnation::new(dead);
    let moved = store
        .relink(link, from, dead, pod(to), HOUR, deadline)
        .await;
    moved.unwrap()
}

/// The token is about the time in microseconds.
#[track_caller]
fn assert_is_now(token: u64) {
    const DAY: u64 = 86_400_000_000;
    let now = calendar_micros();
    assert!((now - DAY..now + DAY).contains(&token), "{token}");
}

/// A link to a process that owns the user.
fn owned_link(me: Process, token: u64) -> StoredLink {
    StoredLink {
        pod: pod(me.0),
        life: Life::Persistent,
        holder: Some(owner(me, token).holder()),
    }
}

async fn claiming_twice_is_one_claim(stage: Stage) {
    let link = user("u");
    let (token, previous) = made(claim(&stage, &link, (0, 1)).await);
    assert_eq!(previous, 0, "the store knows of no owner before");
    assert_is_now(token);
    for _ in 0..2 {
        assert_eq!(claim(&stage, &link, (0, 1)).await, again(token));
    }
    let found = read(&stage, &link).await;
    assert_eq!(found.record, Some(owner((0, 1), token)));
    assert_eq!(found.link, Some(owned_link((0, 1), token)));
    assert!(found.is_owned_by(owner((0, 1), token)));
    assert!(!found.is_owned_by(owner((0, 1), token + 1)));
    assert!(!found.is_owned_by(owner((0, 2), token)));
    let stored = stage.store.get(&link, stage.deadline()).await.unwrap();
    assert_eq!(stored, found.link);
    let listed = stage
        .store
        .services(&link.service.namespace, &link.uid, stage.deadline());
    assert_eq!(
        listed.await.unwrap().values().collect::<Vec<_>>(),
        [&pod(0)]
    );
}

async fn min_token_asks_for_a_new_token(stage: Stage) {
    let (link, me) = (user("u"), (3, 7));
    let (first, _) = made(claim(&stage, &link, me).await);
    assert_eq!(
        claim_with(&stage, &link, me, None, first - 1).await,
        again(first)
    );
    let (second, previous) = made(claim_with(&stage, &link, me, None, first).await);
    assert!(second > first);
    assert_eq!(previous, first);
    let far = second + 10_000_000_000;
    let (third, previous) = made(claim_with(&stage, &link, me, None, far).await);
    assert_eq!((third, previous), (far + 1, second));
    assert!(owns(&stage, &link, me, third).await);
    let free = user("free");
    let (fourth, _) = made(claim_with(&stage, &free, me, None, far).await);
    assert_eq!(fourth, far + 1, "no owner before");
}

async fn a_restart_takes_over(stage: Stage) {
    let link = user("u");
    let (old, _) = made(claim(&stage, &link, (0, 1)).await);
    let (new, previous) = made(claim(&stage, &link, (0, 2)).await);
    assert!(new > old);
    assert_eq!(previous, old);
    let stale = Claimed::Stale(Incarnation::new(2));
    assert_eq!(claim(&stage, &link, (0, 1)).await, stale);
    let certified = Some((0, 9));
    assert_eq!(
        claim_with(&stage, &link, (0, 1), certified, new).await,
        stale
    );
    assert!(!owns(&stage, &link, (0, 1), old).await);
    assert!(owns(&stage, &link, (0, 2), new).await);
}

async fn another_pod_needs_a_certificate(stage: Stage) {
    let link = user("u");
    let (old, _) = made(claim(&stage, &link, (1, 5)).await);
    // None; one for an earlier process; one for another pod; one for the pod that claims.
    for certified in [None, Some((1, 4)), Some((3, 9)), Some((2, 9))] {
        let refused = claim_with(&stage, &link, (2, 8), certified, old + 9).await;
        assert_eq!(refused, taken(1, Some(5)), "{certified:?}");
        assert!(owns(&stage, &link, (1, 5), old).await);
    }
    let certified = Some((1, 5));
    let (new, previous) = made(claim_with(&stage, &link, (2, 8), certified, 0).await);
    assert!(new > old);
    assert_eq!(previous, old);
    assert!(owns(&stage, &link, (2, 8), new).await);
    assert_eq!(claim(&stage, &link, (1, 6)).await, taken(2, Some(8)));
    let later = Some((2, 9));
    made(claim_with(&stage, &link, (1, 6), later, 0).await);
}

/// A link of version 0.1, or of another program, has no record.
async fn a_bare_link_needs_a_certificate(stage: Stage) {
    let link = user("u");
    set(&stage, &link, 1, Persist::Forever).await;
    for certified in [None, Some((3, 9)), Some((2, 9))] {
        let refused = claim_with(&stage, &link, (2, 8), certified, 0).await;
        assert_eq!(refused, taken(1, None), "{certified:?}");
    }
    assert_eq!(read(&stage, &link).await.record, None);
    let (token, previous) = made(claim_with(&stage, &link, (2, 8), Some((1, 1)), 0).await);
    assert_eq!(previous, 0);
    assert!(owns(&stage, &link, (2, 8), token).await);
    // Its own pod takes it as it is.
    let own = user("own");
    set(&stage, &own, 1, Persist::Forever).await;
    made(claim(&stage, &own, (1, 1)).await);
}

async fn a_hint_is_free_to_claim(stage: Stage) {
    let link = user("u");
    set_if_absent(&stage, &link, 1).await;
    let (token, _) = made(claim(&stage, &link, (2, 1)).await);
    assert!(owns(&stage, &link, (2, 1), token).await);
    set_if_absent(&stage, &user("own"), 2).await;
    made(claim(&stage, &user("own"), (2, 1)).await);
}

async fn other_writes_respect_an_owner(stage: Stage) {
    let (link, me) = (user("u"), (1, 5));
    let (token, _) = made(claim(&stage, &link, me).await);
    for persist in [Persist::Forever, Persist::For(HOUR)] {
        for (index, has_it) in [(1, true), (2, false)] {
            let kept = try_set(&stage, &link, index, persist).await;
            assert_eq!((kept.made, kept.link), (has_it, owned_link(me, token)));
        }
    }
    let kept = set_if_absent(&stage, &link, 2).await;
    assert_eq!((kept.made, kept.link), (false, owned_link(me, token)));
    assert!(owns(&stage, &link, me, token).await);
    // A write that asks no one, and a removal, end the ownership.
    assert_eq!(set(&stage, &link, 1, Persist::Forever).await, Some(pod(1)));
    assert_eq!(read(&stage, &link).await.record, None);
    let (token, _) = made(claim(&stage, &link, me).await);
    let (store, deadline) = (&stage.store, stage.deadline());
    let grace = Removal::Grace(HOUR);
    let removed = store.remove(&link, None, grace, deadline).await.unwrap();
    assert!(removed.done && !owns(&stage, &link, me, token).await);
    assert_eq!(read(&stage, &link).await.record, None);
}

async fn a_release_by_another_is_void(stage: Stage) {
    let (link, me) = (user("u"), (1, 5));
    assert!(!release(&stage, &link, me, 1).await, "there is nothing");
    let (old, _) = made(claim(&stage, &link, me).await);
    let (token, _) = made(claim_with(&stage, &link, me, None, old).await);
    let others = [(me, old), (me, token + 1), ((1, 4), token), ((1, 6), token)];
    for (process, token) in others.into_iter().chain([((2, 5), token)]) {
        assert!(!release(&stage, &link, process, token).await, "{process:?}");
    }
    assert!(owns(&stage, &link, me, token).await);
    assert!(release(&stage, &link, me, token).await);
    assert_eq!(read(&stage, &link).await.link, None);
}

async fn a_release_may_arrive_twice(stage: Stage) {
    let (link, me) = (user("u"), (1, 5));
    let (token, _) = made(claim(&stage, &link, me).await);
    assert!(release(&stage, &link, me, token).await);
    assert!(!release(&stage, &link, me, token).await);
    set_if_absent(&stage, &link, 1).await;
    assert!(!release(&stage, &link, me, token).await);
    set(&stage, &link, 1, Persist::Forever).await;
    assert!(!release(&stage, &link, me, token).await);
    let (next, _) = made(claim(&stage, &link, me).await);
    assert!(!release(&stage, &link, me, token).await);
    assert!(owns(&stage, &link, me, next).await);
}

/// Story: a release timed out, its process claimed the user again, and then the release arrived:
/// another pod took a user whose owner went on acting.
async fn a_release_may_arrive_late(stage: Stage) {
    let (link, me) = (user("u"), (1, 5));
    let (token, _) = made(claim(&stage, &link, me).await);
    let (next, previous) = made(claim_with(&stage, &link, me, None, token).await);
    assert_eq!(previous, token);
    assert!(!release(&stage, &link, me, token).await);
    assert_eq!(claim(&stage, &link, (2, 1)).await, taken(1, Some(5)));
    assert!(owns(&stage, &link, me, next).await);
}

async fn a_swap_compares_life_pod_record(stage: Stage) {
    let link = user("u");
    let absent = read(&stage, &link).await;
    set_if_absent(&stage, &link, 1).await;
    let hint = read(&stage, &link).await;
    set(&stage, &link, 1, Persist::Forever).await;
    let persistent = read(&stage, &link).await;
    set(&stage, &link, 2, Persist::Forever).await;
    let other_pod = read(&stage, &link).await;
    set(&stage, &link, 1, Persist::Forever).await;
    made(claim(&stage, &link, (1, 1)).await);
    let owned = read(&stage, &link).await;
    made(claim(&stage, &link, (1, 2)).await);
    let late = [&absent, &hint, &persistent, &other_pod, &owned];
    let to = Rewrite::Link(pod(9), Persist::Forever);
    for found in late {
        assert!(!swap(&stage, &link, found, to).await, "{found:?}");
    }
    set(&stage, &link, 1, Persist::Forever).await;
    for found in late {
        let same = found.link == persistent.link;
        assert_eq!(swap(&stage, &link, found, to).await, same, "{found:?}");
        set(&stage, &link, 1, Persist::Forever).await;
    }
    set(&stage, &link, 1, Persist::For(2 * HOUR)).await;
    for found in [&absent, &persistent, &other_pod, &owned] {
        assert!(!swap(&stage, &link, found, to).await, "{found:?}");
    }
    assert!(
        swap(&stage, &link, &hint, to).await,
        "however long it lasts"
    );
    let now = read(&stage, &link).await;
    assert_eq!(
        now.link,
        Some(StoredLink::unowned(pod(9), Life::Persistent))
    );
    let fresh = user("fresh");
    assert!(
        swap(
            &stage,
            &fresh,
            &absent,
            Rewrite::Link(pod(3), Persist::For(HOUR))
        )
        .await
    );
    let now = read(&stage, &fresh).await;
    assert!(
        now.link
            .is_some_and(|link| link.pod == pod(3) && link.life != Life::Persistent)
    );
}

async fn a_swap_may_hand_over(stage: Stage) {
    let (link, me) = (user("u"), (1, 5));
    let (token, _) = made(claim(&stage, &link, me).await);
    let to = |above| Rewrite::Owned {
        pod: pod(2),
        incarnation: Incarnation::new(8),
        above: Token::new(above),
    };
    let hand_over = async |token, above| {
        let found = StoredUser::of_owner(owner(me, token));
        let swapped = stage.store.swap(&link, &found, to(above), stage.deadline());
        swapped.await.unwrap()
    };
    let refused = hand_over(token - 1, 0).await;
    assert_eq!((refused.done, refused.token), (false, None));
    assert!(owns(&stage, &link, me, token).await);
    let far = token + 10_000_000_000;
    let done = hand_over(token, far).await;
    assert_eq!(done.token, Some((Token::new(far + 1), Token::new(token))));
    assert!(done.done && owns(&stage, &link, (2, 8), far + 1).await);
    // Even if the clock lags far behind the tokens.
    let found = StoredUser::of_owner(owner((2, 8), far + 1));
    let back = Rewrite::Owned {
        pod: pod(1),
        incarnation: Incarnation::new(5),
        above: Token::NONE,
    };
    assert!(swap(&stage, &link, &found, back).await);
    assert!(owns(&stage, &link, me, far + 2).await);
    // Without an owner before, time alone makes the token.
    let free = user("free");
    assert!(swap(&stage, &free, &StoredUser::default(), back).await);
    assert_is_now(read(&stage, &free).await.record.unwrap().token.get());
}

async fn relink_spares_a_new_claim(stage: Stage) {
    let (link, me) = (user("u"), (1, 5));
    set(&stage, &link, 1, Persist::Forever).await;
    let bare = StoredLink::unowned(pod(1), Life::Persistent);
    let (old, _) = made(claim(&stage, &link, me).await);
    let (new, _) = made(claim_with(&stage, &link, me, None, old).await);
    for from in [bare, owned_link(me, old)] {
        let kept = relink(&stage, &link, from, 9, 3).await.unwrap();
        assert_eq!((kept.made, kept.link), (false, owned_link(me, new)));
    }
    assert!(owns(&stage, &link, me, new).await);
}

async fn relink_spares_a_later_process(stage: Stage) {
    let link = user("u");
    let (old, _) = made(claim(&stage, &link, (1, 5)).await);
    let (new, _) = made(claim(&stage, &link, (1, 6)).await);
    for from in [owned_link((1, 5), old), owned_link((1, 6), new)] {
        let kept = relink(&stage, &link, from, 5, 3).await.unwrap();
        assert_eq!((kept.made, kept.link), (false, owned_link((1, 6), new)));
    }
    let from = owned_link((1, 6), new);
    let moved = relink(&stage, &link, from, 6, 3).await.unwrap();
    assert_eq!(
        (moved.made, moved.link.pod, moved.link.holder),
        (true, pod(3), None)
    );
    assert_eq!(read(&stage, &link).await.record, None);
}

async fn relink_needs_the_exact_record(stage: Stage) {
    let (link, me) = (user("u"), (1, 5));
    let (token, _) = made(claim(&stage, &link, me).await);
    let holder = |incarnation, token| Holder {
        incarnation: Incarnation::new(incarnation),
        token: Token::new(token),
    };
    for holder in [holder(5, token - 1), holder(5, token + 1), holder(4, token)] {
        let from = StoredLink {
            holder: Some(holder),
            ..owned_link(me, token)
        };
        let kept = relink(&stage, &link, from, 9, 3).await.unwrap();
        assert!(!kept.made, "{holder:?}");
    }
    // A link that has lost its record since.
    set(&stage, &link, 1, Persist::Forever).await;
    let kept = relink(&stage, &link, owned_link(me, token), 9, 3).await;
    assert!(!kept.unwrap().made);
}

async fn released_users_are_free(stage: Stage) {
    let (link, me) = (user("u"), (1, 5));
    let hint = Rewrite::Link(pod(1), Persist::For(HOUR));
    let bare = Rewrite::Link(pod(2), Persist::Forever);
    for (to, next) in [(Rewrite::Nothing, 2), (hint, 2), (bare, 2)] {
        let (token, _) = made(claim(&stage, &link, me).await);
        let found = StoredUser::of_owner(owner(me, token));
        assert!(swap(&stage, &link, &found, to).await);
        assert_eq!(read(&stage, &link).await.record, None, "after {to:?}");
        let (new, previous) = made(claim(&stage, &link, (next, 1)).await);
        assert!(new > token);
        assert_eq!(previous, token, "after {to:?}");
        assert!(release(&stage, &link, (next, 1), new).await);
    }
}

async fn of_many_claims_one_wins(stage: Stage) {
    let link = user("u");
    let claims = (1..=40).map(|n| claim(&stage, &link, (n, 7)));
    let claimed = futures_util::future::join_all(claims).await;
    let winner = read(&stage, &link).await.record.expect("somebody won");
    let refused = taken(winner.pod.get().into(), Some(7));
    let (won, lost): (Vec<_>, Vec<_>) = claimed.into_iter().partition(|each| *each != refused);
    assert_eq!(won.len(), 1, "{won:?}");
    assert_eq!(made(won[0]).0, winner.token.get());
    assert_eq!(lost.len(), 39);
}

async fn another_service_is_untouched(stage: Stage) {
    let (svc, chat) = (user("u"), link("ns", "u", "chat"));
    let (token, _) = made(claim(&stage, &svc, (1, 5)).await);
    let (other, previous) = made(claim(&stage, &chat, (2, 6)).await);
    assert_eq!(previous, token, "tokens are the user's");
    let there = read(&stage, &chat).await;
    assert!(release(&stage, &svc, (1, 5), token).await);
    let (token, _) = made(claim(&stage, &svc, (1, 5)).await);
    let from = owned_link((1, 5), token);
    assert!(relink(&stage, &svc, from, 5, 3).await.unwrap().made);
    set(&stage, &svc, 4, Persist::Forever).await;
    let now = read(&stage, &chat).await;
    assert_eq!((now.link, now.record), (there.link, there.record));
    assert!(owns(&stage, &chat, (2, 6), other).await);
}

async fn tokens_rise_over_services(stage: Stage) {
    let (svc, chat) = (user("u"), link("ns", "u", "chat"));
    let (first, _) = made(claim(&stage, &svc, (1, 5)).await);
    let far = first + 10_000_000_000;
    let (second, _) = made(claim_with(&stage, &chat, (1, 5), None, far).await);
    let (third, previous) = made(claim(&stage, &svc, (1, 6)).await);
    assert_eq!((third, previous), (second + 1, first));
    assert!(release(&stage, &svc, (1, 6), third).await);
    let (fourth, previous) = made(claim(&stage, &svc, (1, 6)).await);
    assert_eq!((fourth, previous), (third + 1, third));
}

/// Scripts count exactly up to 2^53; a token that falls would be worse than none.
async fn the_greatest_token_is_the_last(stage: Stage) {
    let (link, me) = (user("u"), (1, 5));
    let most = Token::LIMIT - 1;
    let (token, _) = made(claim_with(&stage, &link, me, None, most - 1).await);
    assert_eq!(token, most);
    assert_eq!(claim(&stage, &link, me).await, again(most));
    let (store, deadline) = (&stage.store, stage.deadline());
    let later = (pod(1), Incarnation::new(6));
    let claimed = store.claim(&link, later, None, Token::NONE, deadline).await;
    let to = Rewrite::Owned {
        pod: pod(1),
        incarnation: later.1,
        above: Token::NONE,
    };
    let found = StoredUser::of_owner(owner(me, most));
    let swapped = store.swap(&link, &found, to, deadline).await;
    for error in [claimed.unwrap_err(), swapped.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::StoreData, "{error}");
        assert_eq!(error.outcome(), Some(WriteOutcome::NotSent), "{error}");
        assert!(error.to_string().contains("sf:{ns:lk:u}#own"), "{error}");
    }
    assert!(owns(&stage, &link, me, most).await);
    assert!(release(&stage, &link, me, most).await);
    assert!(
        store
            .claim(&link, later, None, Token::NONE, deadline)
            .await
            .is_err()
    );
    made(claim(&stage, &user("other"), me).await);
    let to = Rewrite::Owned {
        pod: pod(1),
        incarnation: later.1,
        above: Token::new(most - 1),
    };
    let free = user("free");
    assert!(swap(&stage, &free, &StoredUser::default(), to).await);
    assert!(owns(&stage, &free, (1, 6), most).await);
}
