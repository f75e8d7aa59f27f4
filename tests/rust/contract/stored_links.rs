//! Links as other programs see them: exact keys and values, and what becomes of foreign ones.

use std::time::Duration;

use podlink::error::{Error, ErrorKind, WriteOutcome};
use podlink::id::{Incarnation, LinkId, Token};
use podlink::op::{Removed, Rewrite, StoredUser};
use podlink::route::link::{Life, Persist, Removal, StoredLink};

use crate::ask::Ask as _;
use crate::contract::on_every_server;
use crate::contract::owners::owner;
use crate::server::Raw;
use crate::stage::{Stage, pod, user};

on_every_server!(
    a_temporary_link_is_one_string,
    a_persistent_link_is_a_string_and_a_field,
    a_removed_link_leaves_the_hash_before_it_expires,
    a_link_of_another_program_is_found,
    a_value_that_is_no_pod_is_told_and_left_alone,
    a_key_of_the_wrong_type_loses_nothing,
);

const KEY: &str = "sf:{ns:lk:u}svc";
const USER_KEY: &str = "sf:{ns:lk:u}";
const OWNER_KEY: &str = "sf:{ns:lk:u}#own";
const HOUR: Duration = Duration::from_secs(3600);
const HOUR_MS: i64 = 3_600_000;

fn raw(stage: &Stage) -> Raw {
    stage.as_server().unwrap().raw()
}

fn link() -> LinkId {
    user("u")
}

#[track_caller]
fn lasts_an_hour(raw: &mut Raw) {
    let left = raw.number(&["PTTL", KEY]);
    assert!(
        (HOUR_MS - 60_000..=HOUR_MS).contains(&left),
        "{left} ms are left"
    );
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

async fn a_temporary_link_is_one_string(stage: Stage) {
    let mut raw = raw(&stage);
    stage
        .store
        .set_if_absent(&link(), pod(0), HOUR, stage.deadline())
        .await
        .unwrap();
    assert_eq!(raw.sorted(&["KEYS", "*"]), strings(&[KEY]));
    assert_eq!(raw.text(&["GET", KEY]), "0");
    lasts_an_hour(&mut raw);
    let persist = Persist::For(HOUR);
    stage
        .store
        .set(&link(), pod(12), persist, stage.deadline())
        .await
        .unwrap();
    stage
        .store
        .try_set(&link(), pod(13), persist, stage.deadline())
        .await
        .unwrap();
    assert_eq!(raw.sorted(&["KEYS", "*"]), strings(&[KEY]));
    assert_eq!(raw.text(&["GET", KEY]), "13");
    lasts_an_hour(&mut raw);
    // A user's links lie in one hash slot, so a script may touch all of them on a cluster.
    let tag = |key: &str| key[key.find('{').unwrap()..=key.find('}').unwrap()].to_owned();
    assert!([USER_KEY, OWNER_KEY].iter().all(|key| tag(key) == tag(KEY)));
}

async fn a_persistent_link_is_a_string_and_a_field(stage: Stage) {
    let mut raw = raw(&stage);
    for (index, by_try) in [(0, false), (0, true)] {
        let (persist, deadline) = (Persist::Forever, stage.deadline());
        if by_try {
            stage
                .store
                .try_set(&link(), pod(index), persist, deadline)
                .await
                .unwrap();
        } else {
            stage
                .store
                .set(&link(), pod(index), persist, deadline)
                .await
                .unwrap();
        }
        assert_eq!(raw.sorted(&["KEYS", "*"]), strings(&[USER_KEY, KEY]));
        assert_eq!(raw.text(&["GET", KEY]), "0");
        assert_eq!(raw.number(&["PTTL", KEY]), -1);
        assert_eq!(
            raw.pairs(&["HGETALL", USER_KEY]),
            [("svc".to_owned(), "0".to_owned())]
        );
    }
    // What makes it temporary takes it out of the hash.
    let persist = Persist::For(HOUR);
    stage
        .store
        .set(&link(), pod(1), persist, stage.deadline())
        .await
        .unwrap();
    assert_eq!(raw.sorted(&["KEYS", "*"]), strings(&[KEY]));
    stage
        .store
        .set(&link(), pod(1), Persist::Forever, stage.deadline())
        .await
        .unwrap();
    let from = StoredLink::unowned(pod(1), Life::Persistent);
    let dead = Incarnation::NONE;
    let moved = stage
        .store
        .relink(&link(), from, dead, pod(2), HOUR, stage.deadline())
        .await;
    assert!(moved.unwrap().unwrap().made);
    assert_eq!(raw.sorted(&["KEYS", "*"]), strings(&[KEY]));
    assert_eq!(raw.text(&["GET", KEY]), "2");
    lasts_an_hour(&mut raw);
}

async fn a_removed_link_leaves_the_hash_before_it_expires(stage: Stage) {
    let mut raw = raw(&stage);
    let set = async || {
        let deadline = stage.deadline();
        stage
            .store
            .set(&link(), pod(3), Persist::Forever, deadline)
            .await
            .unwrap();
    };
    set().await;
    let grace = Removal::Grace(HOUR);
    stage
        .store
        .remove(&link(), Some(pod(3)), grace, stage.deadline())
        .await
        .unwrap();
    assert_eq!(raw.sorted(&["KEYS", "*"]), strings(&[KEY]));
    assert_eq!(raw.text(&["GET", KEY]), "3");
    lasts_an_hour(&mut raw);
    set().await;
    stage
        .store
        .remove(&link(), None, Removal::Now, stage.deadline())
        .await
        .unwrap();
    assert!(raw.sorted(&["KEYS", "*"]).is_empty());
    // A field whose link has vanished is a lie, and goes with the next remove.
    raw.run(&["HSET", USER_KEY, "svc", "3", "other", "4"]);
    let removed = stage
        .store
        .remove(&link(), None, Removal::Now, stage.deadline())
        .await
        .unwrap();
    assert_eq!(
        removed,
        Removed {
            previous: None,
            done: false
        }
    );
    assert_eq!(
        raw.pairs(&["HGETALL", USER_KEY]),
        [("other".to_owned(), "4".to_owned())]
    );
}

async fn a_link_of_another_program_is_found(stage: Stage) {
    let mut raw = raw(&stage);
    raw.run(&["SET", KEY, "4"]);
    raw.run(&["HSET", USER_KEY, "svc", "4", "chat", "0"]);
    let found = stage.store.get(&link(), stage.deadline()).await.unwrap();
    assert_eq!(found, Some(StoredLink::unowned(pod(4), Life::Persistent)));
    let (namespace, uid) = (&link().service.namespace, &link().uid);
    let services = stage
        .store
        .services(namespace, uid, stage.deadline())
        .await
        .unwrap();
    let services: Vec<_> = services
        .iter()
        .map(|(name, pod)| (name.as_str(), pod.get()))
        .collect();
    assert_eq!(services, [("chat", 0), ("svc", 4)]);
}

async fn a_value_that_is_no_pod_is_told_and_left_alone(stage: Stage) {
    let mut raw = raw(&stage);
    for foreign in ["-1", "", "pod-3", "1.0", "99999999999", &"x".repeat(5000)] {
        raw.run(&["SET", KEY, foreign]);
        let (store, link, deadline) = (&stage.store, link(), stage.deadline());
        let uids = std::slice::from_ref(&link.uid);
        for error in [
            store.get(&link, deadline).await.unwrap_err(),
            store
                .batch_get(&link.service, uids, deadline)
                .await
                .unwrap_err(),
        ] {
            names_the_key(&error);
            assert_eq!(error.outcome(), None);
        }
        for error in [
            store
                .set_if_absent(&link, pod(0), HOUR, deadline)
                .await
                .unwrap_err(),
            store
                .try_set(&link, pod(0), Persist::Forever, deadline)
                .await
                .unwrap_err(),
            store
                .remove(&link, Some(pod(0)), Removal::Now, deadline)
                .await
                .unwrap_err(),
            store
                .remove(&link, None, Removal::Now, deadline)
                .await
                .unwrap_err(),
        ] {
            names_the_key(&error);
            assert_eq!(error.outcome(), Some(WriteOutcome::NotSent));
        }
        assert_eq!(raw.text(&["GET", KEY]), foreign);
        // What is written unconditionally heals it.
        assert_eq!(
            store
                .set(&link, pod(1), Persist::Forever, deadline)
                .await
                .unwrap(),
            None
        );
        assert_eq!(raw.text(&["GET", KEY]), "1");
        raw.run(&["FLUSHALL"]);
    }
    raw.run(&["HSET", USER_KEY, "svc", "three"]);
    let (namespace, uid) = (&link().service.namespace, &link().uid);
    let error = stage
        .store
        .services(namespace, uid, stage.deadline())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreData);
    assert!(error.to_string().contains("three"), "{error}");
}

#[track_caller]
fn names_the_key(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::StoreData, "{error}");
    assert!(error.to_string().contains(KEY), "{error}");
    assert!(error.to_string().len() < 250, "{error}");
    assert!(
        error.details().contains(&("key", KEY.to_owned())),
        "{error:?}"
    );
}

/// Story: a script that writes the link and then trips over the hash leaves half a change behind,
/// because Lua does not roll back. So every script reads all its keys before it writes any.
async fn a_key_of_the_wrong_type_loses_nothing(stage: Stage) {
    let mut raw = raw(&stage);
    let broken: [&[&[&str]]; 5] = [
        &[&["RPUSH", KEY, "1"]],
        &[&["SET", KEY, "3"], &["SET", USER_KEY, "x"]],
        &[&["SET", KEY, "3", "EX", "3600"], &["SET", USER_KEY, "x"]],
        &[
            &["SET", KEY, "3"],
            &["HSET", USER_KEY, "svc", "3"],
            &["SET", OWNER_KEY, "x"],
        ],
        &[&["SET", USER_KEY, "x"]],
    ];
    for commands in broken {
        raw.run(&["FLUSHALL"]);
        for command in commands {
            raw.run(command);
        }
        let before = raw.everything();
        for (operation, result) in every_write(&stage).await {
            let error = result.expect_err(operation);
            assert_eq!(error.kind(), ErrorKind::Redis, "{operation}: {error}");
            assert_eq!(
                error.outcome(),
                Some(WriteOutcome::NotSent),
                "{operation}: {error}"
            );
            let code = ("server_code", "WRONGTYPE".to_owned());
            assert!(error.details().contains(&code), "{operation}: {error:?}");
        }
        assert_eq!(raw.everything(), before, "after {commands:?}");
    }
}

/// Every operation that writes links, as far as it needs a key that may be broken.
async fn every_write(stage: &Stage) -> Vec<(&'static str, Result<(), Error>)> {
    let (store, link, deadline) = (&stage.store, link(), stage.deadline());
    let (forever, hour) = (Persist::Forever, Persist::For(HOUR));
    let mut all = Vec::new();
    for persist in [forever, hour] {
        let tried = store.try_set(&link, pod(3), persist, deadline).await;
        all.push(("try_set", tried.map(drop)));
        let written = store.set(&link, pod(4), persist, deadline).await;
        all.push(("set", written.map(drop)));
    }
    for life in [Life::Persistent, Life::Temporary(HOUR)] {
        let (from, dead) = (StoredLink::unowned(pod(3), life), Incarnation::NONE);
        let moved = store.relink(&link, from, dead, pod(4), HOUR, deadline);
        all.push(("relink", moved.await.map(drop)));
    }
    for removal in [Removal::Now, Removal::Grace(HOUR)] {
        let removed = store.remove(&link, None, removal, deadline).await;
        all.push(("remove", removed.map(drop)));
    }
    for index in [3, 4] {
        let me = (pod(index), Incarnation::new(7));
        let certified = Some((pod(3), me.1));
        let claimed = store.claim(&link, me, certified, Token::NONE, deadline);
        all.push(("claim", claimed.await.map(drop)));
    }
    let found = [
        StoredUser::default(),
        StoredUser::of_owner(owner((3, 7), 8)),
    ];
    for (found, to) in found.iter().flat_map(|found| {
        let to = [Rewrite::Nothing, Rewrite::Link(pod(3), forever)];
        to.map(|to| (found, to))
    }) {
        let swapped = store.swap(&link, found, to, deadline).await;
        all.push(("swap", swapped.map(drop)));
    }
    let mut raw = raw(stage);
    let owners_count = raw.text(&["TYPE", OWNER_KEY]) == "string" && raw.text(&["GET", KEY]) == "3";
    if raw.text(&["TYPE", KEY]) == "list" || owners_count {
        let made = store.set_if_absent(&link, pod(4), HOUR, deadline).await;
        all.push(("set_if_absent", made.map(drop)));
    }
    all
}
