//! Ownership beside other programs: records that outlive their link, and what is no record.

use std::time::Duration;

use podlink::clock::calendar_micros;
use podlink::error::{Error, ErrorKind, WriteOutcome};
use podlink::id::{Incarnation, LinkId, Token};
use podlink::op::{Claimed, Rewrite, StoredUser};
use podlink::route::link::{Life, Persist, Removal, StoredLink};

use crate::ask::Ask as _;
use crate::contract::on_every_server;
use crate::contract::owners::{
    again, claim, claim_with, made, owner, owns, read, release, relink, swap, taken,
};
use crate::server::Raw;
use crate::stage::{Stage, link, pod, user};

on_every_server!(
    an_owner_is_three_keys,
    a_record_outlives_its_link,
    a_hint_moves_beside_a_record,
    an_overwritten_link_wins,
    an_overwritten_link_moves,
    tokens_are_kept_for_a_day,
    relink_keeps_tokens_for_a_day,
    tokens_outlive_a_clock_step,
    a_spoilt_last_token_is_ignored,
    a_lost_last_token_is_restored,
    the_last_token_may_be_the_greatest,
    a_spoilt_record_harms_its_user,
    a_spoilt_link_is_not_taken,
    bytes_that_are_no_text_are_replaced,
);

const KEY: &str = "sf:{ns:lk:u}svc";
const USER_KEY: &str = "sf:{ns:lk:u}";
const OWNER_KEY: &str = "sf:{ns:lk:u}#own";
const HOUR: Duration = Duration::from_secs(3600);
const DAY_MS: i64 = 86_400_000;

fn raw(stage: &Stage) -> Raw {
    stage.as_server().unwrap().raw()
}

fn record(me: (i64, u64), token: u64) -> String {
    format!("{}:{}:{token}", me.0, me.1)
}

/// The tokens are forgotten in a day, and not before.
#[track_caller]
fn kept_for_a_day(raw: &mut Raw) {
    let left = raw.number(&["PTTL", OWNER_KEY]);
    assert!((DAY_MS - 60_000..=DAY_MS).contains(&left), "{left} ms");
}

async fn an_owner_is_three_keys(stage: Stage) {
    let (mut raw, me) = (raw(&stage), (0, 17));
    let (token, _) = made(claim(&stage, &user("u"), me).await);
    let now = calendar_micros();
    assert!((now - 60_000_000..=now).contains(&token), "the time in µs");
    assert_eq!(raw.sorted(&["KEYS", "*"]), [USER_KEY, OWNER_KEY, KEY]);
    assert_eq!(raw.text(&["GET", KEY]), "0");
    assert_eq!(raw.text(&["HGETALL", USER_KEY]), "svc 0");
    let fields = [("#", token.to_string()), ("svc", record(me, token))];
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    assert_eq!(raw.pairs(&["HGETALL", OWNER_KEY]), fields);
    for key in [KEY, USER_KEY, OWNER_KEY] {
        assert_eq!(raw.number(&["PTTL", key]), -1, "{key}");
    }
    assert!(release(&stage, &user("u"), me, token).await);
    assert_eq!(raw.sorted(&["KEYS", "*"]), [OWNER_KEY]);
    assert_eq!(raw.text(&["HGETALL", OWNER_KEY]), format!("# {token}"));
}

/// Story: a link that expired, or that a person deleted, set the user free while its owner acted.
async fn a_record_outlives_its_link(stage: Stage) {
    let (mut raw, link, me) = (raw(&stage), user("u"), (1, 5));
    let spoil: [&[&str]; 3] = [
        &["PEXPIRE", KEY, "3600000"],
        &["SET", KEY, "3", "PX", "3600000"],
        &["DEL", KEY],
    ];
    for command in spoil {
        raw.run(&["FLUSHALL"]);
        let (token, _) = made(claim(&stage, &link, me).await);
        raw.run(command);
        assert!(!owns(&stage, &link, me, token).await, "{command:?}");
        let before = raw.everything();
        for certified in [None, Some((1, 4)), Some((3, 9))] {
            let refused = claim_with(&stage, &link, (2, 9), certified, 0).await;
            assert_eq!(refused, taken(1, Some(5)), "{command:?} {certified:?}");
        }
        assert_eq!(
            claim(&stage, &link, (1, 4)).await,
            Claimed::Stale(Incarnation::new(5))
        );
        for index in [1, 2, 3] {
            let (store, deadline) = (&stage.store, stage.deadline());
            let kept = store.try_set(&link, pod(index), Persist::Forever, deadline);
            let kept = kept.await.unwrap();
            assert_eq!((kept.link.pod, kept.link.holder), (pod(1), None));
            assert_eq!(kept.made, index == 1, "{command:?}");
            assert_ne!(kept.link.life, Life::Persistent);
        }
        assert_eq!(raw.everything(), before, "{command:?}");
        let (back, previous) = made(claim(&stage, &link, me).await);
        assert!(back > token && previous == token);
        raw.run(command);
        let (new, _) = made(claim_with(&stage, &link, (2, 9), Some((1, 5)), 0).await);
        assert!(new > back && owns(&stage, &link, (2, 9), new).await);
    }
}

async fn a_hint_moves_beside_a_record(stage: Stage) {
    let (mut raw, link) = (raw(&stage), user("u"));
    let (token, _) = made(claim(&stage, &link, (1, 5)).await);
    raw.run(&["SET", KEY, "3", "PX", "3600000"]);
    let hint = StoredLink::unowned(pod(3), Life::Temporary(HOUR));
    assert!(relink(&stage, &link, hint, 0, 4).await.unwrap().made);
    assert_eq!(read(&stage, &link).await.record, Some(owner((1, 5), token)));
    // A hint to the owner's pod moves only if the owner is dead.
    raw.run(&["SET", KEY, "1", "PX", "3600000"]);
    let hint = StoredLink::unowned(pod(1), Life::Temporary(HOUR));
    assert!(!relink(&stage, &link, hint, 4, 4).await.unwrap().made);
    assert!(relink(&stage, &link, hint, 5, 4).await.unwrap().made);
    assert_eq!(read(&stage, &link).await.record, None);
    kept_for_a_day(&mut raw);
}

/// A program that is not podlink ignores records. What it wrote counts until a process claims.
async fn an_overwritten_link_wins(stage: Stage) {
    let (mut raw, link, old) = (raw(&stage), user("u"), (1, 5));
    let (token, _) = made(claim(&stage, &link, old).await);
    raw.run(&["SET", KEY, "2"]);
    assert!(!owns(&stage, &link, old, token).await);
    let found = read(&stage, &link).await;
    assert_eq!(
        found.link,
        Some(StoredLink::unowned(pod(2), Life::Persistent))
    );
    assert_eq!(found.record, Some(owner(old, token)));
    assert!(!release(&stage, &link, old, token).await);
    let before = raw.everything();
    assert_eq!(claim(&stage, &link, old).await, taken(2, None));
    assert_eq!(claim(&stage, &link, (1, 6)).await, taken(2, None));
    assert_eq!(
        claim(&stage, &link, (1, 4)).await,
        Claimed::Stale(Incarnation::new(5))
    );
    for certified in [None, Some((1, 5)), Some((1, 9))] {
        let refused = claim_with(&stage, &link, (3, 1), certified, 0).await;
        assert_eq!(refused, taken(2, None));
    }
    let (store, deadline) = (&stage.store, stage.deadline());
    let kept = store
        .try_set(&link, pod(1), Persist::Forever, deadline)
        .await
        .unwrap();
    assert_eq!(
        (kept.made, kept.link.pod, kept.link.holder),
        (false, pod(2), None)
    );
    assert_eq!(raw.everything(), before);
    let (new, previous) = made(claim(&stage, &link, (2, 7)).await);
    assert!(new > token && previous == token);
    assert!(owns(&stage, &link, (2, 7), new).await);
    // A certificate for the pod of the link frees the user, whatever the record says.
    raw.run(&["SET", KEY, "3"]);
    let (last, _) = made(claim_with(&stage, &link, (1, 6), Some((3, 1)), 0).await);
    assert!(owns(&stage, &link, (1, 6), last).await);
}

async fn an_overwritten_link_moves(stage: Stage) {
    let (mut raw, link) = (raw(&stage), user("u"));
    let (token, _) = made(claim(&stage, &link, (1, 5)).await);
    raw.run(&["SET", KEY, "2"]);
    // The link's pod may make a hint of it; the record stays.
    let (store, deadline) = (&stage.store, stage.deadline());
    let hint = store
        .try_set(&link, pod(2), Persist::For(HOUR), deadline)
        .await
        .unwrap();
    assert_eq!((hint.made, hint.link.pod), (true, pod(2)));
    assert_eq!(raw.text(&["HGETALL", USER_KEY]), "");
    // Also beside a record that is too great to be one: the write is not denied after it was done.
    raw.run(&["SET", KEY, "2"]);
    raw.run(&["HSET", OWNER_KEY, "svc", "1:5:9007199254740992"]);
    let hint = store
        .try_set(&link, pod(2), Persist::For(HOUR), deadline)
        .await;
    assert!(hint.unwrap().made);
    raw.run(&["HSET", OWNER_KEY, "svc", &record((1, 5), token)]);
    raw.run(&["SET", KEY, "2"]);
    let found = StoredLink::unowned(pod(2), Life::Persistent);
    let moved = relink(&stage, &link, found, 0, 3).await.unwrap();
    assert_eq!((moved.made, moved.link.pod), (true, pod(3)));
    assert_eq!(raw.text(&["HGET", OWNER_KEY, "svc"]), record((1, 5), token));
    assert_eq!(raw.number(&["PTTL", OWNER_KEY]), -1, "it still protects");
}

async fn tokens_are_kept_for_a_day(stage: Stage) {
    let (mut raw, svc, chat) = (raw(&stage), user("u"), link("ns", "u", "chat"));
    let (first, _) = made(claim(&stage, &svc, (1, 5)).await);
    let (second, _) = made(claim(&stage, &chat, (1, 5)).await);
    assert!(release(&stage, &svc, (1, 5), first).await);
    assert_eq!(raw.number(&["PTTL", OWNER_KEY]), -1, "chat is owned");
    assert!(release(&stage, &chat, (1, 5), second).await);
    assert_eq!(raw.text(&["HGETALL", OWNER_KEY]), format!("# {second}"));
    kept_for_a_day(&mut raw);
    let (third, previous) = made(claim(&stage, &svc, (1, 5)).await);
    assert_eq!((raw.number(&["PTTL", OWNER_KEY]), previous), (-1, second));
    let found = StoredUser::of_owner(owner((1, 5), third));
    let hint = Rewrite::Link(pod(1), Persist::For(HOUR));
    assert!(swap(&stage, &svc, &found, hint).await);
    kept_for_a_day(&mut raw);
    let found = read(&stage, &svc).await;
    let owned = Rewrite::Owned {
        pod: pod(1),
        incarnation: Incarnation::new(5),
        above: Token::NONE,
    };
    assert!(swap(&stage, &svc, &found, owned).await);
    assert_eq!(raw.number(&["PTTL", OWNER_KEY]), -1);
    let last = read(&stage, &svc).await.record.unwrap().token;
    assert_eq!(raw.text(&["HGET", OWNER_KEY, "#"]), last.to_string());
}

async fn relink_keeps_tokens_for_a_day(stage: Stage) {
    let (mut raw, svc, chat) = (raw(&stage), user("u"), link("ns", "u", "chat"));
    let (token, _) = made(claim(&stage, &svc, (1, 5)).await);
    let (other, _) = made(claim(&stage, &chat, (1, 5)).await);
    for link in [&svc, &chat] {
        assert_eq!(raw.number(&["PTTL", OWNER_KEY]), -1);
        let from = read(&stage, link).await.link.unwrap();
        assert!(relink(&stage, link, from, 5, 3).await.unwrap().made);
    }
    assert!(other > token);
    assert_eq!(raw.text(&["HGETALL", OWNER_KEY]), format!("# {other}"));
    kept_for_a_day(&mut raw);
}

/// A server whose clock stepped back is one whose last token lies ahead.
async fn tokens_outlive_a_clock_step(stage: Stage) {
    let (mut raw, link) = (raw(&stage), user("u"));
    let ahead = calendar_micros() + 86_400_000_000;
    raw.run(&["HSET", OWNER_KEY, "#", &ahead.to_string()]);
    let (first, previous) = made(claim(&stage, &link, (1, 5)).await);
    assert_eq!((first, previous), (ahead + 1, ahead));
    let (second, _) = made(claim(&stage, &link, (1, 6)).await);
    assert_eq!(second, ahead + 2);
    assert!(release(&stage, &link, (1, 6), second).await);
    let (third, previous) = made(claim(&stage, &link, (1, 6)).await);
    assert_eq!((third, previous), (ahead + 3, second));
    assert_eq!(raw.text(&["HGET", OWNER_KEY, "#"]), third.to_string());
}

async fn a_spoilt_last_token_is_ignored(stage: Stage) {
    let (mut raw, link) = (raw(&stage), user("u"));
    for junk in [
        "",
        "x",
        "-5",
        "2e15",
        "9007199254740992",
        "99999999999999999999",
    ] {
        raw.run(&["FLUSHALL"]);
        raw.run(&["HSET", OWNER_KEY, "#", junk]);
        let (token, previous) = made(claim(&stage, &link, (1, 5)).await);
        assert!(
            token <= calendar_micros() && previous == 0,
            "{junk}: {token}"
        );
        // The record knows it too.
        let far = token + 86_400_000_000;
        made(claim_with(&stage, &link, (1, 5), None, far).await);
        raw.run(&["HSET", OWNER_KEY, "#", junk]);
        let (new, previous) = made(claim(&stage, &link, (1, 6)).await);
        assert_eq!((new, previous), (far + 2, far + 1), "{junk}");
        raw.run(&["HSET", OWNER_KEY, "#", junk]);
        let found = StoredUser::of_owner(owner((1, 6), new));
        let owned = Rewrite::Owned {
            pod: pod(1),
            incarnation: Incarnation::new(7),
            above: Token::NONE,
        };
        assert!(swap(&stage, &link, &found, owned).await);
        assert!(owns(&stage, &link, (1, 7), far + 3).await, "{junk}");
    }
}

/// Story: another program spoilt the last token, the owner released the user, and the next token
/// was smaller than the one before.
async fn a_lost_last_token_is_restored(stage: Stage) {
    let (mut raw, link, me) = (raw(&stage), user("u"), (1, 5));
    let far = calendar_micros() + 86_400_000_000;
    for by_relink in [false, true] {
        for command in [
            &["HSET", OWNER_KEY, "#", "x"][..],
            &["HSET", OWNER_KEY, "#", "2e15"],
            &["HSET", OWNER_KEY, "#", "9007199254740992"],
            &["HDEL", OWNER_KEY, "#"],
        ] {
            raw.run(&["FLUSHALL"]);
            let (token, _) = made(claim_with(&stage, &link, me, None, far).await);
            raw.run(command);
            if by_relink {
                let from = read(&stage, &link).await.link.unwrap();
                assert!(relink(&stage, &link, from, 5, 3).await.unwrap().made);
            } else {
                assert!(release(&stage, &link, me, token).await);
            }
            assert_eq!(raw.text(&["HGETALL", OWNER_KEY]), format!("# {token}"));
            kept_for_a_day(&mut raw);
            let (next, previous) = made(claim(&stage, &link, (2, 1)).await);
            assert_eq!((next, previous), (token + 1, token));
        }
    }
}

async fn the_last_token_may_be_the_greatest(stage: Stage) {
    let (mut raw, link, me) = (raw(&stage), user("u"), (1, 5));
    raw.run(&["HSET", OWNER_KEY, "#", &(Token::LIMIT - 2).to_string()]);
    let (token, previous) = made(claim(&stage, &link, me).await);
    assert_eq!((token, previous), (Token::LIMIT - 1, Token::LIMIT - 2));
    assert_eq!(claim(&stage, &link, me).await, again(token));
    assert!(release(&stage, &link, me, token).await);
    let before = raw.everything();
    let later = (pod(1), Incarnation::new(6));
    let refused = stage
        .store
        .claim(&link, later, None, Token::NONE, stage.deadline());
    names_the_records(&refused.await.unwrap_err());
    let found = read(&stage, &link).await;
    let owned = Rewrite::Owned {
        pod: later.0,
        incarnation: later.1,
        above: Token::NONE,
    };
    let refused = stage
        .store
        .swap(&link, &found, owned, stage.deadline())
        .await;
    names_the_records(&refused.unwrap_err());
    assert_eq!(raw.everything(), before);
}

#[track_caller]
fn names_the_records(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::StoreData, "{error}");
    let key = ("key", OWNER_KEY.to_owned());
    assert!(error.details().contains(&key), "{error:?}");
    assert_ne!(error.outcome(), Some(WriteOutcome::Unknown), "{error}");
}

async fn a_spoilt_record_harms_its_user(stage: Stage) {
    let (mut raw, bad, good) = (raw(&stage), user("u"), user("good"));
    let chat = link("ns", "u", "chat");
    let junk = ["six", "1:5", "1:5:", "1:5:x", "1:5:9:9", "-1:5:9", " 1:5:9"];
    for junk in junk.into_iter().chain(["1:5:9007199254740992"]) {
        for life in [
            &["SET", KEY, "1"][..],
            &["SET", KEY, "1", "EX", "3600"],
            &["DEL", KEY],
        ] {
            raw.run(&["FLUSHALL"]);
            raw.run(&["HSET", OWNER_KEY, "svc", junk]);
            raw.run(life);
            let before = raw.everything();
            for error in spoilt(&stage, &bad, life.contains(&"1")).await {
                names_the_records(&error);
            }
            assert_eq!(raw.everything(), before, "{junk} {life:?}");
        }
        made(claim(&stage, &good, (1, 5)).await);
        made(claim(&stage, &chat, (1, 5)).await);
        let (store, deadline) = (&stage.store, stage.deadline());
        store
            .set(&bad, pod(2), Persist::Forever, deadline)
            .await
            .unwrap();
        assert_eq!(raw.text(&["HGET", OWNER_KEY, "svc"]), "", "set heals it");
        made(claim(&stage, &bad, (2, 5)).await);
    }
}

/// Everything that must not be done to a user with a spoilt record.
async fn spoilt(stage: &Stage, link: &LinkId, is_linked: bool) -> Vec<Error> {
    let (store, deadline) = (&stage.store, stage.deadline());
    let later = (pod(3), Incarnation::new(6));
    let found = *store.read(link, deadline).await.unwrap();
    let (forever, hour) = (Persist::Forever, Persist::For(HOUR));
    let mut errors = vec![
        found.readable().unwrap_err(),
        store
            .claim(link, later, None, Token::NONE, deadline)
            .await
            .unwrap_err(),
        store
            .try_set(link, pod(3), forever, deadline)
            .await
            .unwrap_err(),
        store
            .try_set(link, pod(3), hour, deadline)
            .await
            .unwrap_err(),
        store
            .remove(link, None, Removal::Now, deadline)
            .await
            .unwrap_err(),
    ];
    if is_linked {
        errors.push(store.get(link, deadline).await.unwrap_err());
        for life in [Life::Persistent, Life::Temporary(HOUR)] {
            let (from, dead) = (StoredLink::unowned(pod(1), life), Incarnation::new(4));
            let moved = store.relink(link, from, dead, pod(3), HOUR, deadline).await;
            errors.push(moved.unwrap_err());
        }
    }
    errors
}

async fn a_spoilt_link_is_not_taken(stage: Stage) {
    let (mut raw, link) = (raw(&stage), user("u"));
    for junk in ["", "pod-3"] {
        raw.run(&["SET", KEY, junk]);
        let me = (pod(1), Incarnation::new(5));
        let refused = stage
            .store
            .claim(&link, me, None, Token::NONE, stage.deadline());
        let error = refused.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreData, "{error}");
        assert!(
            error.details().contains(&("key", KEY.to_owned())),
            "{error}"
        );
        assert_eq!(raw.text(&["GET", KEY]), junk);
        assert_eq!(raw.sorted(&["KEYS", "*"]), [KEY]);
    }
}

/// Story: such bytes were compared as the text that stands for them. They never matched, and the
/// write was tried again until its deadline.
async fn bytes_that_are_no_text_are_replaced(stage: Stage) {
    let (mut raw, link) = (raw(&stage), user("u"));
    for script in [
        "return redis.call('SET', KEYS[1], '\\255')",
        "return redis.call('HSET', KEYS[2], 'svc', '\\255')",
    ] {
        raw.run(&["EVAL", script, "2", KEY, OWNER_KEY]);
        let (store, deadline) = (&stage.store, stage.deadline());
        let previous = store.set(&link, pod(1), Persist::Forever, deadline).await;
        assert_eq!(previous.unwrap(), None);
        assert_eq!(raw.sorted(&["KEYS", "*"]), [USER_KEY, KEY]);
    }
}
