//! Every field of every hash of a service, with an invalid value in turn: at most one pod, or one
//! user, is harmed by it.

use std::collections::BTreeMap;
use std::time::Duration;

use podlink::error::ErrorKind;
use podlink::id::Incarnation;
use podlink::op::{Begun, Renewed, Stepped};
use podlink::route::link::{Certificate, Persist};

use super::leases::{TIMES, begin, certify, process, renew, service, started, state};
use super::simulated_time::NEW_STEP;
use crate::ask::Ask as _;
use crate::contract::on_every_server;
use crate::server::Raw;
use crate::stage::{Stage, key_of, link, pod, user};

on_every_server!(
    a_lease_field_harms_its_pod_only,
    a_lease_field_that_is_missing_harms_nobody,
    a_pod_that_never_was_stops_no_service,
    a_state_harms_its_pod_only,
    a_states_field_harms_its_pod_only,
    a_reporter_harms_its_pod_only,
    a_link_harms_its_user_only,
    invalid_times_are_replaced,
    junk_during_a_hold_ends_no_protection,
    a_leader_that_never_was_is_replaced,
);

const STATES: &str = "sf:{ns:state:svc}";
const LEASES: &str = "sf:{ns:state:svc}#lease";

/// No number, or a number that cannot be right. The last is one that a script can read.
const JUNK: [&str; 10] = [
    "",
    "x",
    "-1",
    "1e400",
    "1.5",
    "1:1:1",
    "99",
    "9007199254740993",
    "4000000000000000000",
    "4000000000000000",
];

/// Times that a clock could have had: a minute and a day from the store's.
fn times(raw: &mut Raw) -> Vec<String> {
    let now = raw.number(&["HGET", LEASES, "clk"]);
    let apart = [60_000_000, 86_400_000_000];
    let times = apart.into_iter().flat_map(|by| [now - by, now + by]);
    times.map(|time| time.to_string()).collect()
}

/// A new service of two pods.
async fn pods(stage: &Stage) -> [Incarnation; 2] {
    let mut raw = stage.as_server().unwrap().raw();
    raw.run(&["FLUSHALL"]);
    let two = [started(stage, 0, "a").await, started(stage, 1, "b").await];
    for (index, incarnation) in (0..).zip(two) {
        renew(stage, &state(index, incarnation)).await;
    }
    two
}

/// The pod renews, and is neither declared dead nor replaced.
async fn lives(stage: &Stage, index: i64, incarnation: Incarnation, what: &str) {
    let renewed = renew(stage, &state(index, incarnation)).await;
    assert!(
        matches!(renewed, Renewed::Done { .. }),
        "{what}: {renewed:?}"
    );
    let certificate = certify(stage, index).await;
    assert!(
        matches!(certificate, Certificate::Alive { incarnation: alive, .. } if alive == incarnation),
        "{what}: {certificate:?}"
    );
    let shown = stage.pods(&service()).await.records;
    let shown = shown
        .iter()
        .find(|record| record.state.pod_id == pod(index));
    assert!(
        shown.is_some_and(|record| record.lease_left > Duration::ZERO),
        "{what}: {shown:?}"
    );
}

fn fields(raw: &mut Raw, key: &str) -> Vec<String> {
    raw.sorted(&["HKEYS", key])
}

async fn a_lease_field_harms_its_pod_only(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    pods(&stage).await;
    let mut names = fields(&mut raw, LEASES);
    let rare = [
        "off", "hold", "hold2", "held", "jump", "step", "i:99", "d:99", "x:99", "b:99", "u:99",
        "d:x", "",
    ];
    names.extend(rare.map(String::from));
    names.sort();
    names.dedup();
    for name in &names {
        let times = times(&mut raw);
        for junk in JUNK.into_iter().chain(times.iter().map(String::as_str)) {
            let what = format!("{name}={junk}");
            let two = pods(&stage).await;
            raw.run(&["HSET", LEASES, name, junk]);
            // No pod that lives may be declared dead, before its next renewal or after.
            for (index, incarnation) in (0..).zip(two) {
                if !name.ends_with(&format!(":{index}")) {
                    let certificate = certify(&stage, index).await;
                    assert!(
                        matches!(certificate, Certificate::Alive { .. }),
                        "{what}: {certificate:?} before its renewal"
                    );
                    lives(&stage, index, incarnation, &what).await;
                }
            }
            // A step can be reported, by each pod that may renew.
            let (service, time) = (service(), stage.deadline());
            let reported =
                (stage.store).pod_stepped(&service, pod(1), two[1], NEW_STEP, TIMES, time);
            let reported = reported.await.unwrap();
            let own = name.ends_with(":1");
            assert!(own || reported == Stepped::Held, "{what}: {reported:?}");
            let inspected = stage.store.inspect(&service, stage.deadline()).await;
            assert!(inspected.is_ok(), "{what}: {inspected:?}");
            // A pod starts, and so does another process of the pod that is harmed.
            let third = started(&stage, 2, "c").await;
            lives(&stage, 2, third, &what).await;
            let stopped = stage
                .store
                .pod_end(&service, pod(2), third, stage.deadline())
                .await;
            assert!(stopped.unwrap(), "{what}");
        }
    }
}

/// Story: without `d:1` a living pod was declared dead at once, and lost all its users.
async fn a_lease_field_that_is_missing_harms_nobody(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    pods(&stage).await;
    for name in fields(&mut raw, LEASES) {
        let two = pods(&stage).await;
        raw.run(&["HDEL", LEASES, &name]);
        for (index, incarnation) in (0..).zip(two) {
            let certificate = certify(&stage, index).await;
            assert!(
                matches!(certificate, Certificate::Alive { .. }),
                "{name}: {certificate:?}"
            );
            lives(&stage, index, incarnation, &name).await;
        }
    }
}

/// Story: `d:99` with a value that was no number ended all pods of the service within two leases,
/// because every renewal that evicts dead pods failed.
async fn a_pod_that_never_was_stops_no_service(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    let [first, _] = pods(&stage).await;
    for junk in JUNK {
        raw.run(&["HSET", LEASES, "d:99", junk, "sweep", "0"]);
        lives(&stage, 0, first, junk).await;
    }
    // It is evicted as any pod that has been dead for long.
    raw.run(&["HSET", LEASES, "d:99", "x", "sweep", "0"]);
    let evicted = async || {
        lives(&stage, 0, first, "d:99").await;
        (raw.number(&["HEXISTS", LEASES, "d:99"]) == 0).then_some(())
    };
    stage.until("it is evicted", evicted).await;
}

async fn a_state_harms_its_pod_only(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    for field in ["0", "7", "x", ""] {
        for junk in JUNK {
            let what = format!("{field}={junk}");
            let [first, second] = pods(&stage).await;
            raw.run(&["HSET", STATES, field, junk]);
            let read = stage.pods(&service()).await;
            assert_eq!(read.corrupt.len(), 1, "{what}");
            assert_eq!(read.corrupt[0].0, field);
            lives(&stage, 1, second, &what).await;
            // Its next renewal replaces it.
            lives(&stage, 0, first, &what).await;
        }
    }
}

/// Values of every JSON type, and numbers that no field can hold.
const JSON_JUNK: [&str; 12] = [
    r#""""#,
    r#""x""#,
    "-1",
    "1e400",
    "1.5",
    "9007199254740993",
    "18446744073709551616",
    "null",
    "true",
    "[]",
    r#"{"a":1}"#,
    r#"[["#,
];

/// Each field of a state with an invalid value: that pod may be missing, or be shown with less. No
/// other pod is harmed, and its own next renewal heals it.
async fn a_states_field_harms_its_pod_only(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    let [first, second] = pods(&stage).await;
    let good = raw.text(&["HGET", STATES, "0"]);
    let fields: BTreeMap<String, serde_json::Value> = serde_json::from_str(&good).unwrap();
    assert_eq!(fields.len(), 7, "{good}");
    for name in fields.keys() {
        for junk in JSON_JUNK {
            let others = fields.iter().filter(|(other, _)| *other != name);
            let others = others.map(|(other, value)| format!("{other:?}:{value}"));
            let spoilt: Vec<String> = others.chain([format!("{name:?}:{junk}")]).collect();
            let spoilt = format!("{{{}}}", spoilt.join(","));
            raw.run(&["HSET", STATES, "0", &spoilt]);
            let read = stage.pods(&service()).await;
            let shown = read
                .records
                .iter()
                .any(|record| record.state.pod_id == pod(1));
            assert!(shown && read.corrupt.len() <= 1, "{spoilt}: {read:?}");
            lives(&stage, 1, second, &spoilt).await;
            let inspected = stage.store.inspect(&service(), stage.deadline()).await;
            assert!(
                inspected.unwrap().certificates.contains_key(&pod(0)),
                "{spoilt}"
            );
            lives(&stage, 0, first, &spoilt).await;
        }
    }
}

/// What another program says of reports of steps silences the pod that it names, and no other.
async fn a_reporter_harms_its_pod_only(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    let two = pods(&stage).await;
    let now = raw.number(&["HGET", LEASES, "clk"]);
    let report = async |index: i64| {
        let (me, time) = (two[usize::try_from(index).unwrap()], stage.deadline());
        let (store, service) = (&stage.store, service());
        let reported = store.pod_stepped(&service, pod(index), me, NEW_STEP, TIMES, time);
        reported.await.unwrap()
    };
    raw.run(&["HSET", LEASES, "step", &format!("0:99:{now}")]);
    assert_eq!(report(0).await, Stepped::Unbelieved);
    assert_eq!(report(1).await, Stepped::Held);
    assert_eq!(report(0).await, Stepped::Held);
    // One in the future counts as none.
    for later in [now + 3_600_000_000, i64::MAX] {
        raw.run(&["HSET", LEASES, "step", &format!("0:99:{later}")]);
        assert_eq!(report(0).await, Stepped::Held);
    }
}

async fn a_link_harms_its_user_only(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    let (harmed, other) = (user("harmed"), user("other"));
    let hash = "sf:{ns:lk:harmed}";
    let own = "sf:{ns:lk:harmed}#own";
    for junk in ["", "x", "-1", "1.5", "4294967296"] {
        raw.run(&["FLUSHALL"]);
        raw.run(&["SET", &key_of(&harmed), junk]);
        raw.run(&["HSET", hash, "svc", junk]);
        raw.run(&["HSET", own, "svc", junk, "#", junk]);
        let (store, deadline) = (&stage.store, stage.deadline());
        let (namespace, uid) = (&harmed.service.namespace, &harmed.uid);
        let errors = [
            (
                key_of(&harmed),
                store.get(&harmed, deadline).await.unwrap_err(),
            ),
            (
                hash.to_owned(),
                store.services(namespace, uid, deadline).await.unwrap_err(),
            ),
        ];
        for (key, error) in errors {
            assert_eq!(error.kind(), ErrorKind::StoreData, "{junk}");
            assert!(error.to_string().contains(&key), "{error}");
        }
        // Another user, and the same user of another service.
        for link in [&other, &link("ns", "harmed", "chat")] {
            let placed = store.set_if_absent(link, pod(1), TIMES.lease, deadline);
            assert!(placed.await.unwrap().made, "{junk}");
        }
        // A pod's own write replaces it.
        let forever = Persist::Forever;
        store.set(&harmed, pod(1), forever, deadline).await.unwrap();
        let listed = store.services(namespace, uid, deadline).await.unwrap();
        assert_eq!(listed[&harmed.service.service], pod(1), "{junk}");
    }
}

/// What is too far ahead for a living service is not believed: a wait ends.
async fn invalid_times_are_replaced(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    for name in ["d:0", "hold"] {
        let [first, _] = pods(&stage).await;
        raw.run(&["HSET", LEASES, name, "4000000000000000"]);
        let begun = async || match begin(&stage, &process(0, "next", "")).await {
            Begun::Started(incarnation) => Some(incarnation),
            Begun::Busy { .. } => None,
        };
        assert!(stage.until("the successor begins", begun).await > first);
    }
    let [first, second] = pods(&stage).await;
    raw.run(&["HSET", LEASES, "sweep", "4000000000000000"]);
    let evicted = async || {
        lives(&stage, 1, second, "sweep").await;
        (raw.number(&["HEXISTS", LEASES, "d:0"]) == 0).then_some(())
    };
    stage.until("the dead pod is evicted", evicted).await;
    assert_eq!(certify(&stage, 0).await, Certificate::Dead(first));
}

/// After an outage the pods are shown as alive and are not declared dead, whatever is written then.
async fn junk_during_a_hold_ends_no_protection(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    pods(&stage).await;
    for name in ["hold", "hold2", "held", "t", "off", "clk", "clk2"] {
        let times = times(&mut raw);
        for junk in JUNK.into_iter().chain(times.iter().map(String::as_str)) {
            let two = pods(&stage).await;
            stage.silence(TIMES.lease + TIMES.gap).await;
            let read = stage.pods(&service()).await.records;
            assert!(read.iter().all(|record| !record.lease_left.is_zero()));
            raw.run(&["HSET", LEASES, name, junk]);
            let what = format!("{name}={junk}");
            let read = stage.pods(&service()).await.records;
            assert_eq!(read.len(), 2, "{what}");
            assert!(
                read.iter().all(|record| !record.lease_left.is_zero()),
                "{what}: {read:?}"
            );
            for (index, incarnation) in (0..).zip(two) {
                let certificate = certify(&stage, index).await;
                assert!(
                    matches!(certificate, Certificate::Alive { .. }),
                    "{what}: {certificate:?}"
                );
                lives(&stage, index, incarnation, &what).await;
            }
        }
    }
}

/// The lease of a leader that no process renews would leave the service without one.
async fn a_leader_that_never_was_is_replaced(stage: Stage) {
    let mut raw = stage.as_server().unwrap().raw();
    let [_, second] = pods(&stage).await;
    for junk in ["0:4000000000000000", "0:x", "x:9", ":", "", "0:-1"] {
        raw.run(&["HSET", LEASES, "w", junk]);
        let renewed = renew(&stage, &state(1, second)).await;
        assert!(
            matches!(renewed, Renewed::Done { leads: true, .. }),
            "{junk}"
        );
    }
}
