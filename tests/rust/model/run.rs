//! Plays a history on a store and on the model, and compares them.

use std::collections::BTreeMap;
use std::time::Duration;

use podlink::clock::calendar_micros;
use podlink::error::{Error, ErrorKind, Result};
use podlink::id::{Incarnation, LinkId, Token};
use podlink::op::{self, Call, Claim, Claimed, Read, Reply, StoredUser, Swapped, expected};
use podlink::route::link::{Life, Owner as Record, Persist, Placed, Removal, StoredLink};
use proptest::prelude::*;

use super::act::{Act, Foreign, LIMIT, LINKS, Step};
use super::shadow::{Answer, Given, Linked, Op, Owner, Shadow, Snapshot, User, number};
use crate::ask::Ask as _;
use crate::server::Raw;
use crate::stage::{Stage, key_of, link, pod};

type Checked<T = ()> = std::result::Result<T, TestCaseError>;

/// So many operations are sent at once at most.
const BATCH: usize = 16;

/// One history: the store, the model, and what later steps may name.
pub(super) struct Run<'a> {
    stage: &'a Stage,
    raw: Option<Raw>,
    shadow: Shadow,
    /// What was read of each link, the last one last.
    pub(super) readings: BTreeMap<usize, Vec<(StoredUser, Snapshot)>>,
    /// Whom the store named as the owner of each link.
    pub(super) owners: BTreeMap<usize, Vec<Owner>>,
    /// The last token of each link. It rises, unless another program changes the records, or they
    /// are forgotten.
    tokens: BTreeMap<usize, u64>,
    /// The store's time when it was opened, not before and not after.
    opened: (u64, u64),
}

/// The scripts must be known before a batch, or it would be done out of order.
pub(super) async fn warm_up(stage: &Stage) {
    let (user, deadline) = (link_at(0), stage.deadline());
    let (store, found) = (&stage.store, StoredUser::default());
    let me = (pod(0), Incarnation::new(1));
    let hour = Duration::from_secs(3600);
    let from = StoredLink::unowned(pod(1), Life::Persistent);
    store.read(&user, deadline).await.unwrap();
    store
        .claim(&user, me, None, Token::NONE, deadline)
        .await
        .unwrap();
    store
        .swap(&user, &found, op::Rewrite::Nothing, deadline)
        .await
        .unwrap();
    store
        .set_if_absent(&user, pod(0), hour, deadline)
        .await
        .unwrap();
    store
        .try_set(&user, pod(0), Persist::Forever, deadline)
        .await
        .unwrap();
    let dead = Incarnation::NONE;
    store
        .relink(&user, from, dead, pod(0), hour, deadline)
        .await
        .unwrap();
}

pub(super) async fn play(stage: &Stage, steps: &[Step]) -> Checked {
    let now = calendar_micros();
    let mut run = Run {
        stage,
        raw: stage.as_server().map(|server| server.raw()),
        shadow: Shadow::default(),
        readings: BTreeMap::new(),
        owners: BTreeMap::new(),
        tokens: BTreeMap::new(),
        // The store of a stage in memory has just been opened.
        opened: (now.saturating_sub(60_000_000), now),
    };
    let one_call = |step: &Step| {
        !matches!(
            step.act,
            Act::Set { .. } | Act::Remove { .. } | Act::Expire | Act::Day | Act::Foreign(_)
        )
    };
    for together in steps.chunk_by(|a, b| one_call(a) && one_call(b)) {
        for batch in together.chunks(BATCH) {
            if one_call(&batch[0]) {
                run.batch(batch).await?;
            } else {
                run.alone(&batch[0]).await?;
            }
        }
    }
    run.compare_all().await
}

pub(super) fn link_at(index: usize) -> LinkId {
    let (uid, service) = LINKS[index];
    link("ns", uid, service)
}

pub(super) fn seconds(ttl: u64) -> Duration {
    Duration::from_secs(ttl)
}

pub(super) fn persist(ttl: Option<u64>) -> Persist {
    ttl.map_or(Persist::Forever, |ttl| Persist::For(seconds(ttl)))
}

pub(super) fn pod_at(index: u32) -> podlink::id::PodIndex {
    pod(index.into())
}

/// Whole minutes, because a real server's time goes on while the test runs.
fn linked(link: StoredLink) -> Linked {
    let life = match link.life {
        Life::Persistent => None,
        Life::Temporary(left) => Some((left.as_secs_f64() / 60.0).round() as u64 * 60),
    };
    let holder = link
        .holder
        .map(|holder| (holder.incarnation.get(), holder.token.get()));
    (link.pod.get(), life, holder)
}

fn owner(record: Record) -> Owner {
    (
        record.pod.get(),
        record.incarnation.get(),
        record.token.get(),
    )
}

pub(super) fn record((index, incarnation, token): Owner) -> Record {
    Record {
        pod: pod_at(index),
        incarnation: Incarnation::new(incarnation),
        token: Token::new(token),
    }
}

fn placed(placed: Placed) -> Answer {
    Answer::Placed {
        made: placed.made,
        link: linked(placed.link),
    }
}

/// What cannot be read, by the key that the error names.
fn bad(error: &Error) -> Answer {
    assert_eq!(error.kind(), ErrorKind::StoreData, "{error}");
    let details = error.details();
    let key = details.iter().find(|(name, _)| *name == "key");
    let (_, key) = key.expect("the error names the key");
    match key.ends_with("#own") {
        true => Answer::BadRecord,
        false => Answer::BadLink,
    }
}

fn answer_to(op: &Op, reply: Reply) -> Result<Answer> {
    Ok(match op {
        Op::SetIfAbsent { .. } => placed(expected::<op::SetIfAbsent>(reply)?),
        Op::TrySet { .. } => placed(expected::<op::TrySet>(reply)?),
        Op::Claim { .. } => match expected::<Claim>(reply)? {
            Claimed::Owned {
                token,
                previous,
                again,
            } => Answer::Owned {
                token: token.get(),
                previous: previous.get(),
                again,
            },
            Claimed::Stale(later) => Answer::Stale(later.get()),
            Claimed::Taken { pod, incarnation } => {
                Answer::Taken(pod.get(), incarnation.map(Incarnation::get))
            }
        },
        Op::Swap { .. } => {
            let Swapped { done, token } = expected::<op::Swap>(reply)?;
            let token = token.map(|(token, previous)| (token.get(), previous.get()));
            Answer::Swapped { done, token }
        }
        Op::Relink { .. } => expected::<op::Relink>(reply)?.map_or(Answer::Absent, placed),
        Op::Set { .. } | Op::Remove { .. } => unreachable!("they are more than one call"),
    })
}

/// The token that an operation was answered with.
fn token_of(answer: &Answer) -> Option<u64> {
    match answer {
        Answer::Owned { token, .. } => Some(*token),
        Answer::Swapped { token, .. } => token.map(|(token, _)| token),
        _ => None,
    }
}

impl Run<'_> {
    /// Sends operations at once, each with a reading after it.
    async fn batch(&mut self, steps: &[Step]) -> Checked {
        let planned: Vec<(usize, Op)> = steps
            .iter()
            .map(|step| (step.link, self.op(step)))
            .collect();
        let mut calls: Vec<Call> = Vec::new();
        for ((at, op), step) in planned.iter().zip(steps) {
            calls.push(self.call(*at, op, step));
            calls.push(Read { link: link_at(*at) }.into());
        }
        let before = calendar_micros();
        let replies = self.stage.store.call_many(&calls, self.stage.deadline());
        let mut replies = replies.await.into_iter();
        for (at, op) in planned {
            let answer = replies.next().expect("one reply each");
            let answer = answer.and_then(|reply| answer_to(&op, reply));
            let answer = answer.unwrap_or_else(|error| bad(&error));
            let given = self.given(before, token_of(&answer));
            let expected = self.shadow.play(at, &op, given);
            prop_assert_eq!(
                &answer,
                &expected,
                "link {}: {:?}, given {:?}",
                at,
                op,
                given
            );
            self.rises(at, &answer)?;
            let reading = replies
                .next()
                .expect("one reply each")
                .and_then(expected_reading);
            self.compare(at, &op, *reading.unwrap())?;
        }
        Ok(())
    }

    /// A step that is more than one call, or none.
    async fn alone(&mut self, step: &Step) -> Checked {
        let (at, link, deadline) = (step.link, link_at(step.link), self.stage.deadline());
        let store = &self.stage.store;
        let (op, answer) = match &step.act {
            Act::Set { pod, ttl } => {
                let previous = store
                    .set(&link, pod_at(*pod), persist(*ttl), deadline)
                    .await;
                let previous = previous.unwrap().map(|pod| pod.get());
                let (pod, ttl) = (*pod, *ttl);
                (Op::Set { pod, ttl }, Answer::Previous(previous))
            }
            Act::Remove { owner, grace } => {
                let removal = grace.map_or(Removal::Now, |grace| Removal::Grace(seconds(grace)));
                let removed = store
                    .remove(&link, owner.map(pod_at), removal, deadline)
                    .await;
                let answer = removed.map_or_else(
                    |error| bad(&error),
                    |removed| Answer::Removed(removed.done, removed.previous.map(|pod| pod.get())),
                );
                let (owner, grace) = (*owner, *grace);
                (Op::Remove { owner, grace }, answer)
            }
            Act::Expire => return self.expire(at).await,
            Act::Day => return self.day(at).await,
            Act::Foreign(foreign) => return self.foreign(at, foreign),
            _ => unreachable!("it is one call"),
        };
        let given = self.given(0, None);
        let expected = self.shadow.play(at, &op, given);
        prop_assert_eq!(&answer, &expected, "link {}: {:?}", at, op);
        let reading = self.stage.store.read(&link, deadline).await.unwrap();
        self.compare(at, &op, *reading)
    }

    fn rises(&mut self, at: usize, answer: &Answer) -> Checked {
        let again = matches!(answer, Answer::Owned { again: true, .. });
        let Some(token) = token_of(answer).filter(|_| !again) else {
            return Ok(());
        };
        let last = self.tokens.insert(at, token).unwrap_or(0);
        prop_assert!(last < token && token < LIMIT, "{token} after {last}");
        Ok(())
    }

    /// The last tokens of a user may fall now, unless a record has them.
    fn may_fall(&mut self, at: usize) {
        let (uid, records) = (LINKS[at].0, self.shadow.user(at).records.clone());
        self.tokens.retain(|&other, _| {
            let (user, service) = LINKS[other];
            user != uid || records.contains_key(service)
        });
    }

    /// What the store may have given: its time lies between those before and after the call.
    fn given(&self, before: u64, token: Option<u64>) -> Given {
        let (earliest, latest) = match self.raw {
            Some(_) => (before, calendar_micros()),
            None => self.opened,
        };
        // In memory time is what the test makes of it.
        let passed = self.shadow.now * 1_000_000;
        Given {
            token,
            earliest: earliest + passed,
            latest: latest + passed,
        }
    }

    /// Everything that the store shows of one user, compared, and kept for later steps.
    fn compare(&mut self, at: usize, op: &Op, found: StoredUser) -> Checked {
        let (expected, stored) = self.shadow.read(at);
        let reading = found.clone().readable();
        let reading = reading
            .map(|found| (found.link.map(linked), found.record.map(owner)))
            .map_err(|error| bad(&error));
        prop_assert_eq!(&reading, &expected, "link {} after {:?}", at, op);
        let owners = self.owners.entry(at).or_default();
        if let Ok((link, Some(owner))) = expected {
            let owned = link.is_some_and(|link| link.2.is_some());
            prop_assert_eq!(found.is_owned_by(record(owner)), owned);
            let (pod, incarnation, token) = owner;
            prop_assert!(!found.is_owned_by(record((pod + 1, incarnation, token))));
            prop_assert!(!found.is_owned_by(record((pod, incarnation + 1, token))));
            prop_assert!(!found.is_owned_by(record((pod, incarnation, token - 1))));
            owners.push(owner);
        }
        self.readings.entry(at).or_default().push((found, stored));
        Ok(())
    }
}

fn expected_reading(reply: Reply) -> Result<Box<StoredUser>> {
    expected::<Read>(reply)
}

/// What happens without podlink.
impl Run<'_> {
    /// On a server one link expires; in memory time passes, for all of them.
    async fn expire(&mut self, at: usize) -> Checked {
        let (_, service) = LINKS[at];
        let now = self.shadow.now;
        let links = &mut self.shadow.user(at).links;
        let Some(&(_, Some(until))) = links.get(service) else {
            return Ok(());
        };
        self.stage.expire(&link_at(at), seconds(until - now)).await;
        match self.raw {
            Some(_) => drop(self.shadow.user(at).links.remove(service)),
            None => self.pass(until - now),
        }
        Ok(())
    }

    /// The records that nobody needs expire.
    async fn day(&mut self, at: usize) -> Checked {
        const DAY: u64 = 86_400;
        let Some(raw) = &mut self.raw else {
            self.stage.silence(seconds(DAY)).await;
            self.pass(DAY);
            return Ok(());
        };
        if self.shadow.user(at).forgotten.is_some() {
            raw.run(&["DEL", &records_of(LINKS[at].0)]);
            self.shadow.user(at).lose();
            self.may_fall(at);
        }
        Ok(())
    }

    fn pass(&mut self, seconds: u64) {
        self.shadow.pass(seconds);
        for at in 0..LINKS.len() {
            if self.shadow.user(at).last.is_none() {
                self.may_fall(at);
            }
        }
    }

    fn foreign(&mut self, at: usize, foreign: &Foreign) -> Checked {
        let ((uid, service), key) = (LINKS[at], key_of(&link_at(at)));
        let (records, user) = (records_of(uid), self.shadow.user(at));
        let Some(raw) = &mut self.raw else {
            return Ok(());
        };
        let mut last = |user: &mut User, text: &str| {
            raw.run(&["HSET", &records, "#", text]);
            user.last = Some(text.to_owned());
        };
        match foreign {
            Foreign::Last(text) => last(user, text),
            Foreign::Ahead(hours) => {
                let ahead = calendar_micros() + hours * 3_600_000_000;
                if number(user.last.as_deref().unwrap_or_default()) < ahead {
                    last(user, &ahead.to_string());
                }
            }
            Foreign::Link(value, ttl) => {
                match ttl {
                    Some(ttl) => raw.run(&["SET", &key, value, "EX", &ttl.to_string()]),
                    None => raw.run(&["SET", &key, value]),
                };
                user.links.insert(service, ((*value).to_owned(), *ttl));
            }
            Foreign::Unlink => {
                raw.run(&["DEL", &key]);
                user.links.remove(service);
            }
            Foreign::Record(text) => {
                raw.run(&["HSET", &records, service, text]);
                user.records.insert(service, text.clone());
                self.tokens.remove(&at);
            }
            Foreign::Lose => {
                raw.run(&["DEL", &records]);
                user.lose();
            }
        }
        if matches!(foreign, Foreign::Last(_) | Foreign::Lose) {
            self.may_fall(at);
        }
        Ok(())
    }
}

fn records_of(uid: &str) -> String {
    format!("sf:{{ns:lk:{uid}}}#own")
}

/// The end of a history.
impl Run<'_> {
    /// Everything that the store shows, and on a server everything that it holds.
    async fn compare_all(&mut self) -> Checked {
        for at in 0..LINKS.len() {
            let (link, deadline) = (link_at(at), self.stage.deadline());
            let reading = *self.stage.store.read(&link, deadline).await.unwrap();
            let end = Op::Set { pod: 0, ttl: None };
            self.compare(at, &end, reading)?;
            self.compare_readers(at).await?;
        }
        let Some(raw) = &mut self.raw else {
            return Ok(());
        };
        let mut expected = BTreeMap::new();
        for (uid, user) in &self.shadow.users {
            for (service, (value, until)) in &user.links {
                let text = format!("{value} {}", until.is_some());
                expected.insert(format!("sf:{{ns:lk:{uid}}}{service}"), text);
            }
            if !user.listed.is_empty() {
                let key = format!("sf:{{ns:lk:{uid}}}");
                expected.insert(key, format!("{:?} false", user.listed));
            }
            if user.has_records() {
                let mut fields = user.records.clone();
                fields.extend(user.last.clone().map(|last| ("#", last)));
                let text = format!("{fields:?} {}", user.forgotten.is_some());
                expected.insert(records_of(uid), text);
            }
        }
        prop_assert_eq!(stored(raw), expected, "no key more, no key less");
        Ok(())
    }

    async fn compare_readers(&mut self, at: usize) -> Checked {
        let (link, deadline) = (link_at(at), self.stage.deadline());
        let (store, service) = (&self.stage.store, LINKS[at].1);
        let uids = std::slice::from_ref(&link.uid);
        let batch = store.batch_get(&link.service, uids, deadline).await;
        let batch = batch.map(|pods| pods[0].map(|pod| pod.get()));
        let batch = batch.map_err(|error| bad(&error));
        let namespace = &link.service.namespace;
        let listed = store.services(namespace, &link.uid, deadline).await;
        let listed = listed
            .unwrap()
            .get(&link.service.service)
            .map(ToString::to_string);

        let user = self.shadow.user(at);
        let value = user.links.get(service).map(|held| held.0.parse());
        let expected = value.transpose().map_err(|_| Answer::BadLink);
        prop_assert_eq!(batch, expected, "{}", key_of(&link));
        prop_assert_eq!(
            listed.as_ref(),
            user.listed.get(service),
            "{}",
            key_of(&link)
        );
        Ok(())
    }
}

/// Every key, with its text and whether it expires.
fn stored(raw: &mut Raw) -> BTreeMap<String, String> {
    let keys = raw.sorted(&["KEYS", "*"]);
    let mut text = |key: &String| {
        let value = match raw.text(&["TYPE", key]).as_str() {
            "hash" => {
                let pairs = raw.pairs(&["HGETALL", key]);
                format!("{:?}", BTreeMap::from_iter(pairs))
            }
            _ => raw.text(&["GET", key]),
        };
        format!("{value} {}", raw.number(&["PTTL", key]) >= 0)
    };
    keys.iter().map(|key| (key.clone(), text(key))).collect()
}
