//! Links, tags and workload states that another program spoilt: each harms its own user or its own
//! name, with an error that names the key.

use std::collections::BTreeMap;
use std::time::Duration;

use podlink::error::{Error, ErrorKind};
use podlink::id::{LinkId, Namespace, ServiceId, ServiceName, Tag, Uid};
use podlink::op::{Call, Reply, SetIfAbsent};
use podlink::route::link::Persist;
use podlink::route::state::{Readiness, WorkloadState};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::ask::Ask as _;
use crate::contract::on_every_server;
use crate::server::Raw;
use crate::stage::{Stage, key_of, pod, service_id, user};

on_every_server!(
    spoilt_links_harm_their_users_only,
    a_spoilt_service_of_a_user_hides_no_other,
    a_spoilt_hash_is_named,
    spoilt_tags_and_workloads_harm_their_name_only,
);

/// Values that are no pod index. The last one stands for a key of the wrong type.
const JUNK: [&str; 12] = [
    "007",
    "00",
    "-1",
    "+1",
    " 1",
    "1 ",
    "",
    "x",
    "1e3",
    "2147483648",
    "4294967296",
    WRONG_TYPE,
];
const WRONG_TYPE: &str = "a list";
const HOUR: Duration = Duration::from_secs(3600);
/// More than two pieces of a batch.
const USERS: usize = 1200;
const ROUNDS: u64 = 8;

fn spoil(raw: &mut Raw, key: &str, junk: &str) {
    raw.run(&["DEL", key]);
    match junk {
        WRONG_TYPE => raw.run(&["RPUSH", key, "1"]),
        junk => raw.run(&["SET", key, junk]),
    };
}

/// The error names the key, and says whose fault it is.
#[track_caller]
fn names(error: &Error, key: &str) {
    assert!(error.to_string().contains(key), "{error}");
    let named = error
        .details()
        .into_iter()
        .any(|detail| detail == ("key", key.to_owned()));
    assert!(named, "{error:?}");
    let kinds = [ErrorKind::StoreData, ErrorKind::Redis];
    assert!(kinds.contains(&error.kind()), "{error:?}");
    assert!(!error.is_retryable(), "{error:?}");
}

fn uids(links: &[LinkId]) -> Vec<Uid> {
    links.iter().map(|link| link.uid.clone()).collect()
}

/// Story: a link whose value was `007` was read as pod 7, which no script takes for pod 7; and one
/// unreadable link failed the whole batch.
async fn spoilt_links_harm_their_users_only(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    let links: Vec<LinkId> = (0..USERS).map(|n| user(&format!("u{n}"))).collect();
    for seed in 0..ROUNDS {
        let mut random = StdRng::seed_from_u64(seed);
        raw.run(&["FLUSHALL"]);
        let mut expected = Vec::new();
        let mut spoilt = BTreeMap::new();
        for (at, link) in links.iter().enumerate() {
            let key = key_of(link);
            let index = random.random_range(0..50_i64);
            match random.random_range(0..20) {
                0 => {
                    let junk = JUNK[random.random_range(0..JUNK.len())];
                    spoil(&mut raw, &key, junk);
                    spoilt.insert(at, (key, junk));
                    expected.push(None);
                }
                1 => expected.push(None),
                _ => {
                    raw.run(&["SET", &key, &index.to_string()]);
                    expected.push(Some(pod(index)));
                }
            }
        }
        let (store, deadline) = (&stage.store, stage.deadline());
        let read = store
            .batch_read(&links[0].service, &uids(&links), deadline)
            .await
            .unwrap();
        assert_eq!(read.links, expected, "seed {seed}");
        assert_eq!(read.unreadable.len(), spoilt.len(), "seed {seed}");
        for (left_out, (at, (key, _))) in read.unreadable.iter().zip(&spoilt) {
            assert_eq!(left_out.uid, links[*at].uid, "seed {seed}");
            names(&left_out.error, key);
        }
        let calls = |link: &LinkId| -> Call {
            let (link, pod) = (link.clone(), pod(7));
            SetIfAbsent {
                link,
                pod,
                ttl: HOUR,
            }
            .into()
        };
        let calls: Vec<Call> = links.iter().map(calls).collect();
        let placed = store.call_many(&calls, deadline).await;
        for (at, placed) in placed.into_iter().enumerate() {
            match (placed, spoilt.get(&at)) {
                (Err(error), Some((key, _))) => names(&error, key),
                (Ok(Reply::SetIfAbsent(placed)), None) => {
                    assert_eq!(
                        placed.link.pod,
                        expected[at].unwrap_or(pod(7)),
                        "seed {seed}"
                    );
                }
                other => panic!("seed {seed}, user {at}: {other:?}"),
            }
        }
        for (at, (key, junk)) in &spoilt {
            let link = &links[*at];
            names(&store.get(link, deadline).await.unwrap_err(), key);
            // Only an unconditional write mends it.
            if *junk != WRONG_TYPE {
                assert_eq!(raw.text(&["GET", key]), *junk);
                let set = store.set(link, pod(3), Persist::Forever, deadline).await;
                assert_eq!(set.unwrap(), None);
                assert_eq!(
                    store.get(link, deadline).await.unwrap().unwrap().pod,
                    pod(3)
                );
            }
        }
    }
}

async fn a_spoilt_service_of_a_user_hides_no_other(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    let (namespace, uid) = (Namespace::new("ns").unwrap(), Uid::new("u").unwrap());
    let key = "sf:{ns:lk:u}";
    let values = JUNK.iter().filter(|junk| **junk != WRONG_TYPE);
    let fields = values
        .map(|junk| ("svc", *junk))
        .chain([("a:b", "1"), ("", "0")]);
    for (field, value) in fields {
        raw.run(&["DEL", key]);
        raw.run(&["HSET", key, field, value, "chat", "4"]);
        let read = stage
            .store
            .services_read(&namespace, &uid, stage.deadline());
        let read = read.await.unwrap();
        let chat = (ServiceName::new("chat").unwrap(), pod(4));
        assert_eq!(read.links, BTreeMap::from([chat]), "{field}={value}");
        assert_eq!(read.unreadable.len(), 1, "{field}={value}");
        assert_eq!(read.unreadable[0].uid, uid);
        names(&read.unreadable[0].error, key);
    }
}

async fn a_spoilt_hash_is_named(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    let (link, key) = (user("u"), "sf:{ns:lk:u}");
    spoil(&mut raw, key, "1");
    let (store, deadline) = (&stage.store, stage.deadline());
    let (namespace, uid) = (&link.service.namespace, &link.uid);
    names(
        &store
            .services_read(namespace, uid, deadline)
            .await
            .unwrap_err(),
        key,
    );
    let set = store.set(&link, pod(1), Persist::Forever, deadline).await;
    names(&set.unwrap_err(), key);
    assert_eq!(store.get(&link, deadline).await.unwrap(), None);
}

async fn spoilt_tags_and_workloads_harm_their_name_only(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    let namespace = Namespace::new("ns").unwrap();
    let [blue, green] = ["blue", "green"].map(|name| Tag::new(name).unwrap());
    let [first, second]: [ServiceId; 2] = ["svc", "chat"].map(|name| service_id("ns", name));
    let (store, deadline) = (&stage.store, stage.deadline());
    let workload = WorkloadState {
        state: Readiness::Ready,
        replicas: 1,
        ready_replicas: 1,
        update_time: 1,
    };
    store
        .set_tag(&namespace, &green, &second.service, deadline)
        .await
        .unwrap();
    store
        .set_workload(&second, &workload, HOUR, deadline)
        .await
        .unwrap();
    for junk in ["", "a b", "a:b", "{}", "\u{7f}", WRONG_TYPE] {
        let (tag_key, workload_key) = ("sf:{ns:tag:blue}", "sf:{ns:workload:svc}");
        spoil(&mut raw, tag_key, junk);
        spoil(&mut raw, workload_key, junk);
        names(
            &store.tag(&namespace, &blue, deadline).await.unwrap_err(),
            tag_key,
        );
        names(
            &store.workload(&first, deadline).await.unwrap_err(),
            workload_key,
        );
        let other = store.tag(&namespace, &green, deadline).await.unwrap();
        assert_eq!(other.as_ref(), Some(&second.service), "{junk:?}");
        let other = store.workload(&second, deadline).await.unwrap();
        assert_eq!(other.as_ref(), Some(&workload), "{junk:?}");
        // The next write replaces it.
        store
            .set_tag(&namespace, &blue, &first.service, deadline)
            .await
            .unwrap();
        store
            .set_workload(&first, &workload, HOUR, deadline)
            .await
            .unwrap();
        let mended = store.tag(&namespace, &blue, deadline).await.unwrap();
        assert_eq!(mended.as_ref(), Some(&first.service), "{junk:?}");
        let mended = store.workload(&first, deadline).await.unwrap();
        assert_eq!(mended.as_ref(), Some(&workload), "{junk:?}");
    }
}
