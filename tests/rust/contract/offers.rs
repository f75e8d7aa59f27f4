//! Many set-if-absent at once: each offer is a step of its own, on every store.

use std::time::Duration;

use podlink::error::{Error, ErrorKind, WriteOutcome};
use podlink::id::LinkId;
use podlink::op::SetIfAbsent;
use podlink::route::link::{Life, Persist, Placed};

use crate::ask::Ask as _;
use crate::contract::{on_every_server, on_every_store};
use crate::stage::{Stage, key_of, link, pod, user};

mod everywhere {
    use super::*;
    on_every_store!(
        each_offer_gets_its_own_answer_in_its_place,
        one_user_twice_is_made_once_and_kept_once,
        ten_thousand_offers_are_ten_thousand_answers,
        offers_after_their_deadline_do_nothing,
        no_offers_are_no_answers,
    );
}
mod on_servers {
    use super::*;
    on_every_server!(
        what_is_wrong_with_one_link_does_not_touch_the_others,
        a_server_that_forgets_its_scripts_gets_them_again,
    );
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

fn offer(link: &LinkId, to: i64) -> SetIfAbsent {
    SetIfAbsent {
        link: link.clone(),
        pod: pod(to),
        ttl: HOUR,
    }
}

async fn offered(stage: &Stage, offers: &[(&LinkId, i64)]) -> Vec<Result<Placed, Error>> {
    let offers = offers.iter().map(|&(link, to)| offer(link, to));
    stage.store.ask_many(offers, stage.deadline()).await
}

/// Whose the link is now, and whether the offer made it.
fn seen(answers: Vec<Result<Placed, Error>>) -> Vec<(u32, bool)> {
    let of = |placed: Placed| (placed.link.pod.get(), placed.made);
    answers.into_iter().map(|each| of(each.unwrap())).collect()
}

pub(super) async fn each_offer_gets_its_own_answer_in_its_place(stage: Stage) {
    let (old, owned, new) = (user("old"), link("other", "owned", "svc"), user("new"));
    let (store, deadline) = (&stage.store, stage.deadline());
    store
        .set_if_absent(&old, pod(3), MINUTE, deadline)
        .await
        .unwrap();
    store
        .set(&owned, pod(4), Persist::Forever, deadline)
        .await
        .unwrap();
    let answers = offered(&stage, &[(&old, 7), (&new, 0), (&owned, 7)]).await;
    let lives: Vec<Life> = answers
        .iter()
        .map(|each| each.as_ref().unwrap().link.life)
        .collect();
    assert_eq!(seen(answers), [(3, false), (0, true), (4, false)]);
    let raised = |life| matches!(life, Life::Temporary(left) if left > HOUR - MINUTE);
    assert!(raised(lives[0]) && raised(lives[1]), "{lives:?}");
    assert_eq!(lives[2], Life::Persistent);
}

pub(super) async fn one_user_twice_is_made_once_and_kept_once(stage: Stage) {
    let link = user("u");
    let answers = offered(&stage, &[(&link, 1), (&link, 2)]).await;
    let mut seen = seen(answers);
    assert_eq!(seen[0].0, seen[1].0);
    seen.sort_unstable();
    assert!(!seen[0].1 && seen[1].1, "{seen:?}");
}

pub(super) async fn ten_thousand_offers_are_ten_thousand_answers(stage: Stage) {
    let links: Vec<LinkId> = (0..10_000).map(|n| user(&format!("u{n}"))).collect();
    let offers: Vec<(&LinkId, i64)> = links.iter().zip(0..).collect();
    let expected: Vec<(u32, bool)> = (0..10_000).map(|n| (n, true)).collect();
    assert_eq!(seen(offered(&stage, &offers).await), expected);
}

pub(super) async fn offers_after_their_deadline_do_nothing(stage: Stage) {
    stage.store.ping(stage.deadline()).await.unwrap();
    let link = user("u");
    let offers = [offer(&link, 1), offer(&link, 1)];
    let answers = stage.store.ask_many(offers, stage.too_late()).await;
    assert_eq!(answers.len(), 2);
    for answer in answers {
        let error = answer.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert_eq!(error.outcome(), Some(WriteOutcome::NotSent));
        assert!(error.to_string().starts_with("set_if_absent: "), "{error}");
    }
    let stored = stage.store.get(&link, stage.deadline()).await.unwrap();
    assert_eq!(stored, None);
}

pub(super) async fn no_offers_are_no_answers(stage: Stage) {
    assert!(offered(&stage, &[]).await.is_empty());
}

pub(super) async fn what_is_wrong_with_one_link_does_not_touch_the_others(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    let (good, foreign, list, last) = (user("good"), user("foreign"), user("list"), user("last"));
    let spoilt = user("spoilt");
    raw.run(&["SET", &key_of(&spoilt), "1"]);
    raw.run(&["HSET", "sf:{ns:lk:spoilt}#own", "svc", "six"]);
    raw.run(&["SET", &key_of(&foreign), "pod-3"]);
    raw.run(&["RPUSH", &key_of(&list), "1"]);
    let offers = [
        (&good, 1),
        (&foreign, 1),
        (&list, 1),
        (&spoilt, 1),
        (&last, 2),
    ];
    let answers: [_; 5] = offered(&stage, &offers).await.try_into().unwrap();
    let [good, foreign, list, spoilt, last] = answers;
    assert_eq!(seen(vec![good, last]), [(1, true), (2, true)]);
    let (foreign, list, spoilt) = (foreign.unwrap_err(), list.unwrap_err(), spoilt.unwrap_err());
    assert_eq!(foreign.kind(), ErrorKind::StoreData);
    assert!(
        foreign.to_string().contains("sf:{ns:lk:foreign}svc"),
        "{foreign}"
    );
    assert_eq!(list.kind(), ErrorKind::Redis);
    assert!(
        spoilt.to_string().contains("sf:{ns:lk:spoilt}#own"),
        "{spoilt}"
    );
    for error in [foreign, list, spoilt] {
        assert_eq!(error.outcome(), Some(WriteOutcome::NotSent), "{error}");
    }
}

pub(super) async fn a_server_that_forgets_its_scripts_gets_them_again(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    let links: Vec<LinkId> = (0..100).map(|n| user(&format!("u{n}"))).collect();
    let offers: Vec<(&LinkId, i64)> = links.iter().map(|link| (link, 1)).collect();
    for made in [true, false, false] {
        raw.run(&["SCRIPT", "FLUSH"]);
        assert_eq!(seen(offered(&stage, &offers).await), vec![(1, made); 100]);
    }
}
