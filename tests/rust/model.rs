//! Random sequences of operations against a small model of a store, on every store.
//!
//! The model knows nothing of Redis, of Lua or of the memory store: a map of links with the time
//! at which each ends. Expiry is a step like any other.

use std::collections::BTreeMap;
use std::time::Duration;

use podlink::id::{Incarnation, LinkId};
use podlink::op::Removed;
use podlink::route::link::{Life, Persist, Placed, Removal, StoredLink};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Runtime;

use crate::ask::Ask;
use crate::server::Kind;
use crate::stage::{Stage, key_of, link, pod};

/// Three users of two services.
const LINKS: [(&str, &str); 6] = [
    ("a", "svc"),
    ("a", "chat"),
    ("b", "svc"),
    ("b", "chat"),
    ("a:lk:b", "svc"),
    ("ü", "chat"),
];

#[derive(Debug, Clone)]
struct Step {
    link: usize,
    act: Act,
}

#[derive(Debug, Clone)]
enum Act {
    SetIfAbsent {
        pod: i64,
        ttl: u64,
    },
    Set {
        pod: i64,
        ttl: Option<u64>,
    },
    TrySet {
        pod: i64,
        ttl: Option<u64>,
    },
    Relink {
        from: i64,
        persistent: bool,
        dead: u64,
        to: i64,
        ttl: u64,
    },
    Remove {
        owner: Option<i64>,
        grace: Option<u64>,
    },
    /// The link's time is over, if it has one.
    Expire,
    /// A pod claims the user; only servers have owner records so far.
    Record {
        pod: i64,
        incarnation: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let pod = || 0_i64..4;
    let ttl = || (1_u64..6).prop_map(|minutes| minutes * 60);
    let life = || proptest::option::of(ttl());
    let act = prop_oneof![
        3 => (pod(), ttl()).prop_map(|(pod, ttl)| Act::SetIfAbsent { pod, ttl }),
        2 => (pod(), life()).prop_map(|(pod, ttl)| Act::Set { pod, ttl }),
        3 => (pod(), life()).prop_map(|(pod, ttl)| Act::TrySet { pod, ttl }),
        3 => (pod(), any::<bool>(), 0_u64..4, pod(), ttl()).prop_map(
            |(from, persistent, dead, to, ttl)| Act::Relink { from, persistent, dead, to, ttl }
        ),
        2 => (proptest::option::of(pod()), life())
            .prop_map(|(owner, grace)| Act::Remove { owner, grace }),
        1 => Just(Act::Expire),
        1 => (pod(), 1_u64..4).prop_map(|(pod, incarnation)| Act::Record { pod, incarnation }),
    ];
    (0..LINKS.len(), act).prop_map(|(link, act)| Step { link, act })
}

/// A link of the model: its pod, and the second at which it ends, if it does.
type Held = (i64, Option<u64>);

#[derive(Debug, Default)]
struct Model {
    now: u64,
    links: BTreeMap<usize, Held>,
    records: BTreeMap<usize, (i64, u64)>,
}

/// What an operation answers, in words common to all of them.
#[derive(Debug, PartialEq)]
enum Answer {
    Placed(bool, i64, Option<u64>),
    Absent,
    Previous(Option<i64>),
    Removed(bool, Option<i64>),
    Nothing,
}

impl Model {
    fn put(&mut self, at: usize, pod: i64, ttl: Option<u64>) -> Answer {
        self.links.insert(at, (pod, ttl.map(|ttl| self.now + ttl)));
        Answer::Placed(true, pod, ttl)
    }

    fn kept(&self, (pod, until): Held) -> Answer {
        Answer::Placed(false, pod, until.map(|until| until - self.now))
    }

    fn play(&mut self, step: &Step) -> Answer {
        let at = step.link;
        let found = self.links.get(&at).copied();
        match (&step.act, found) {
            (Act::SetIfAbsent { pod, ttl }, None) => self.put(at, *pod, Some(*ttl)),
            (Act::SetIfAbsent { ttl, .. }, Some((pod, until))) => {
                let until = until.map(|until| until.max(self.now + ttl));
                self.links.insert(at, (pod, until));
                self.kept((pod, until))
            }
            (Act::Set { pod, ttl }, _) => {
                self.put(at, *pod, *ttl);
                Answer::Previous(found.map(|(pod, _)| pod))
            }
            (Act::TrySet { pod, ttl }, None) => self.put(at, *pod, *ttl),
            (Act::TrySet { pod, ttl }, Some(held)) => {
                let owned = self
                    .records
                    .get(&at)
                    .is_some_and(|record| record.0 == held.0);
                let somebody_elses = held.0 != *pod && (held.1.is_none() || owned);
                if somebody_elses {
                    self.kept(held)
                } else {
                    self.put(at, *pod, *ttl)
                }
            }
            (Act::Relink { .. }, None) => Answer::Absent,
            (
                Act::Relink {
                    from,
                    persistent,
                    dead,
                    to,
                    ttl,
                },
                Some(held),
            ) => {
                let exact = held.0 == *from && held.1.is_none() == *persistent;
                let record = self.records.get(&at).filter(|record| record.0 == held.0);
                let later = record.is_some_and(|record| record.1 > *dead);
                if exact && !later {
                    self.put(at, *to, Some(*ttl))
                } else {
                    self.kept(held)
                }
            }
            (Act::Remove { .. }, None) => Answer::Removed(false, None),
            (Act::Remove { owner, grace }, Some((pod, _))) => {
                let done = owner.is_none_or(|owner| owner == pod);
                match grace {
                    _ if !done => {}
                    Some(grace) => drop(self.put(at, pod, Some(*grace))),
                    None => drop(self.links.remove(&at)),
                }
                Answer::Removed(done, Some(pod))
            }
            (Act::Expire | Act::Record { .. }, _) => Answer::Nothing,
        }
    }
}

fn link_at(index: usize) -> LinkId {
    let (uid, service) = LINKS[index];
    link("ns", uid, service)
}

fn seconds(ttl: u64) -> Duration {
    Duration::from_secs(ttl)
}

fn persist(ttl: Option<u64>) -> Persist {
    ttl.map_or(Persist::Forever, |ttl| Persist::For(seconds(ttl)))
}

/// Whole minutes, because a real server's time goes on while the test runs.
fn rounded(link: StoredLink) -> (i64, Option<u64>) {
    let life = match link.life {
        Life::Persistent => None,
        Life::Temporary(left) => Some((left.as_secs_f64() / 60.0).round() as u64 * 60),
    };
    (i64::from(link.pod.get()), life)
}

fn placed(placed: Placed) -> Answer {
    let (pod, life) = rounded(placed.link);
    Answer::Placed(placed.made, pod, life)
}

async fn perform(stage: &Stage, step: &Step, model: &mut Model) -> Answer {
    let (link, store, deadline) = (link_at(step.link), &stage.store, stage.deadline());
    match step.act {
        Act::SetIfAbsent { pod: to, ttl } => placed(
            store
                .set_if_absent(&link, pod(to), seconds(ttl), deadline)
                .await
                .unwrap(),
        ),
        Act::Set { pod: to, ttl } => {
            let previous = store
                .set(&link, pod(to), persist(ttl), deadline)
                .await
                .unwrap();
            Answer::Previous(previous.map(|pod| i64::from(pod.get())))
        }
        Act::TrySet { pod: to, ttl } => placed(
            store
                .try_set(&link, pod(to), persist(ttl), deadline)
                .await
                .unwrap(),
        ),
        Act::Relink {
            from,
            persistent,
            dead,
            to,
            ttl,
        } => {
            let life = if persistent {
                Life::Persistent
            } else {
                Life::Temporary(Duration::ZERO)
            };
            let (from, dead) = (
                StoredLink {
                    pod: pod(from),
                    life,
                },
                Incarnation::new(dead),
            );
            let moved = store
                .relink(&link, from, dead, pod(to), seconds(ttl), deadline)
                .await;
            moved.unwrap().map_or(Answer::Absent, placed)
        }
        Act::Remove { owner, grace } => {
            let removal = grace.map_or(Removal::Now, |grace| Removal::Grace(seconds(grace)));
            let Removed { previous, done } = store
                .remove(&link, owner.map(pod), removal, deadline)
                .await
                .unwrap();
            Answer::Removed(done, previous.map(|pod| i64::from(pod.get())))
        }
        Act::Expire => {
            expire(stage, step.link, model).await;
            Answer::Nothing
        }
        Act::Record { pod, incarnation } => {
            if let Some(server) = stage.as_server() {
                let (uid, service) = LINKS[step.link];
                let (key, record) = (
                    format!("sf:{{ns:lk:{uid}}}#own"),
                    format!("{pod}:{incarnation}:9"),
                );
                server.raw().run(&["HSET", &key, service, &record]);
                model.records.insert(step.link, (pod, incarnation));
            }
            Answer::Nothing
        }
    }
}

/// On a server one link expires; in memory time passes, for all of them.
async fn expire(stage: &Stage, at: usize, model: &mut Model) {
    let Some(&(_, Some(until))) = model.links.get(&at) else {
        return;
    };
    stage.expire(&link_at(at), seconds(until - model.now)).await;
    if stage.as_server().is_some() {
        model.links.remove(&at);
    } else {
        model.now = until;
        model
            .links
            .retain(|_, (_, until)| until.is_none_or(|until| until > model.now));
    }
}

async fn play(stage: &Stage, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut model = Model::default();
    for (n, step) in steps.iter().enumerate() {
        let expected = model.play(step);
        let answer = perform(stage, step, &mut model).await;
        prop_assert_eq!(&answer, &expected, "step {}: {:?}", n, step);
        let found = stage
            .store
            .get(&link_at(step.link), stage.deadline())
            .await
            .unwrap();
        let held = model.links.get(&step.link);
        let expected = held.map(|&(pod, until)| (pod, until.map(|until| until - model.now)));
        prop_assert_eq!(found.map(rounded), expected, "after step {}: {:?}", n, step);
    }
    compare(stage, &model).await
}

/// Everything that the store shows, and on a server everything that it holds.
async fn compare(stage: &Stage, model: &Model) -> Result<(), TestCaseError> {
    for (at, &(uid, service)) in LINKS.iter().enumerate() {
        let (link, deadline) = (link_at(at), stage.deadline());
        let uids = std::slice::from_ref(&link.uid);
        let batch = stage
            .store
            .batch_get(&link.service, uids, deadline)
            .await
            .unwrap();
        let expected = model.links.get(&at).map(|held| held.0);
        prop_assert_eq!(
            batch[0].map(|pod| i64::from(pod.get())),
            expected,
            "{}",
            key_of(&link)
        );

        let namespace = &link.service.namespace;
        let services = stage
            .store
            .services(namespace, &link.uid, deadline)
            .await
            .unwrap();
        let listed = services
            .get(&link.service.service)
            .map(|pod| i64::from(pod.get()));
        let persistent = model.links.get(&at).filter(|held| held.1.is_none());
        prop_assert_eq!(
            listed,
            persistent.map(|held| held.0),
            "{} of {}",
            service,
            uid
        );
    }
    if let Some(server) = stage.as_server() {
        let mut raw = server.raw();
        let mut expected: Vec<String> =
            model.links.keys().map(|&at| key_of(&link_at(at))).collect();
        let persistent = model.links.iter().filter(|(_, held)| held.1.is_none());
        expected.extend(persistent.map(|(&at, _)| format!("sf:{{ns:lk:{}}}", LINKS[at].0)));
        expected.extend(
            model
                .records
                .keys()
                .map(|&at| format!("sf:{{ns:lk:{}}}#own", LINKS[at].0)),
        );
        expected.sort();
        expected.dedup();
        prop_assert_eq!(
            raw.sorted(&["KEYS", "*"]),
            expected,
            "no key more, no key less"
        );
    }
    Ok(())
}

fn explore(cases: u32, mut test: impl FnMut(&[Step]) -> Result<(), TestCaseError>) {
    let mut runner = TestRunner::new(Config {
        cases,
        ..Config::default()
    });
    let test = std::cell::RefCell::new(&mut test);
    let strategy = proptest::collection::vec(step(), 30..80);
    runner
        .run(&strategy, |steps| test.borrow_mut()(&steps))
        .unwrap();
}

fn explore_server(kind: Kind) {
    let runtime = Runtime::new().unwrap();
    let stage = runtime.block_on(Stage::server(kind));
    let mut raw = stage.as_server().unwrap().raw();
    explore(60, |steps| {
        raw.run(&["FLUSHALL"]);
        runtime.block_on(play(&stage, steps))
    });
}

#[test]
fn memory_does_what_the_model_does() {
    let runtime = Runtime::new().unwrap();
    explore(300, |steps| {
        runtime.block_on(async { play(&Stage::memory().await, steps).await })
    });
}

#[test]
fn valkey_does_what_the_model_does() {
    explore_server(Kind::Valkey);
}

#[test]
fn redis_does_what_the_model_does() {
    explore_server(Kind::Redis);
}
