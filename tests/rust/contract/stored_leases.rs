//! Leases and states as other programs see them: exact keys, fields and events.

use std::time::Duration;

use podlink::clock::Tick;
use podlink::config::LeaseTimes;
use podlink::error::{ErrorKind, WriteOutcome};
use podlink::id::Incarnation;
use podlink::op::{LAYOUT, PodsReading, Renewed};
use podlink::route::link::Certificate;
use podlink::route::snapshot::{Policy, Snapshot};
use podlink::route::state::{RoutingState, Standing};

use super::leases::{
    TIMES, certify, death, process, record, records, renew, service, started, state,
};
use crate::ask::Ask as _;
use crate::contract::on_every_server;
use crate::server::{PATIENCE, Raw};
use crate::stage::{Stage, pod};

on_every_server!(
    a_lease_is_a_handful_of_fields,
    a_state_is_one_json_object,
    a_certificate_waits_for_lease_and_grace,
    a_renewal_shortens_no_lease,
    a_record_lost_in_a_failover_is_made_again,
    what_is_unreadable_is_told_and_left_out,
    a_dropped_pod_leaves_its_incarnations_behind,
    changes_are_published_and_loads_are_not,
    a_lease_key_of_the_wrong_type_loses_nothing,
    time_goes_on_after_a_step_back,
    a_renewal_says_what_was_lost,
    a_later_version_is_read,
    a_later_layout_stays,
    a_renewal_names_its_server,
);

const STATES: &str = "sf:{ns:state:svc}";
const LEASES: &str = "sf:{ns:state:svc}#lease";

fn raw(stage: &Stage) -> Raw {
    stage.as_server().unwrap().raw()
}

fn micros(raw: &mut Raw) -> u64 {
    let time = raw.text(&["TIME"]);
    let (seconds, micros) = time.split_once(' ').unwrap();
    seconds.parse::<u64>().unwrap() * 1_000_000 + micros.parse::<u64>().unwrap()
}

fn field(raw: &mut Raw, name: &str) -> u64 {
    raw.text(&["HGET", LEASES, name]).parse().unwrap()
}

async fn a_lease_is_a_handful_of_fields(stage: Stage) {
    let mut raw = raw(&stage);
    let before = micros(&mut raw);
    let who = process(0, "nonce-a", "uid-a");
    stage
        .store
        .pod_begin(&who, TIMES, stage.deadline())
        .await
        .unwrap();
    let after = micros(&mut raw);
    assert_eq!(raw.sorted(&["KEYS", "*"]), [LEASES]);
    assert_eq!(
        raw.sorted(&["HKEYS", LEASES]),
        [
            "b:0", "clk", "clk2", "d:0", "format", "i:0", "t", "u:0", "x:0"
        ]
    );
    let now = field(&mut raw, "clk");
    assert!(
        (before..=after).contains(&now),
        "{now} is the store's time in microseconds"
    );
    assert_eq!(field(&mut raw, "i:0"), now);
    assert_eq!(field(&mut raw, "d:0"), now + 300_000);
    assert_eq!(field(&mut raw, "x:0"), 0);
    assert_eq!(raw.text(&["HGET", LEASES, "b:0"]), "nonce-a");
    assert_eq!(raw.text(&["HGET", LEASES, "u:0"]), "uid-a");
    assert_eq!(raw.text(&["HGET", LEASES, "t"]), "300000:200000:200000");
    assert_eq!(field(&mut raw, "format"), LAYOUT);
    assert_eq!(raw.number(&["PTTL", LEASES]), -1);
}

async fn a_state_is_one_json_object(stage: Stage) {
    let mut raw = raw(&stage);
    let me = started(&stage, 0, "a").await;
    renew(&stage, &state(0, me)).await;
    let stamped = field(&mut raw, "clk") / 1000;
    let json = format!(
        r#"{{"podId":0,"state":"READY","loadState":12,"routingState":"READY","incarnation":{me},"metadata":{{"address":"10.0.0.1:7000"}},"updateTime":{stamped}}}"#
    );
    assert_eq!(raw.pairs(&["HGETALL", STATES]), [("0".to_owned(), json)]);
    assert_eq!(record(&stage, 0).await.unwrap().state.update_time, stamped);
}

async fn a_certificate_waits_for_lease_and_grace(stage: Stage) {
    let mut raw = raw(&stage);
    let me = started(&stage, 0, "a").await;
    renew(&stage, &state(0, me)).await;
    assert_eq!(death(&stage, 0).await, me);
    let certified = field(&mut raw, "clk");
    assert!(
        certified > field(&mut raw, "d:0") + 200_000,
        "not before lease and grace are over"
    );
    assert_eq!(field(&mut raw, "x:0"), me.get());
}

/// A process with a shorter lease begins where one with a longer lease has promised more.
async fn a_renewal_shortens_no_lease(stage: Stage) {
    let mut raw = raw(&stage);
    let me = started(&stage, 0, "a").await;
    let longer = LeaseTimes {
        lease: TIMES.lease * 5,
        ..TIMES
    };
    let (service, state, time) = (service(), state(0, me), stage.deadline());
    let renewed = stage.store.pod_renew(&service, &state, longer, time);
    renewed.await.unwrap();
    let promised = field(&mut raw, "d:0");
    renew(&stage, &state).await;
    assert_eq!(field(&mut raw, "d:0"), promised);
}

async fn a_record_lost_in_a_failover_is_made_again(stage: Stage) {
    let mut raw = raw(&stage);
    let me = started(&stage, 0, "a").await;
    renew(&stage, &state(0, me)).await;
    raw.run(&["FLUSHALL"]);
    assert!(records(&stage).await.is_empty());
    assert!(matches!(
        renew(&stage, &state(0, me)).await,
        Renewed::Done { .. }
    ));
    assert_eq!(record(&stage, 0).await.unwrap().state.incarnation, me);
    assert_eq!(field(&mut raw, "i:0"), me.get());
    assert_eq!(field(&mut raw, "d:0"), field(&mut raw, "clk") + 300_000);
}

async fn what_is_unreadable_is_told_and_left_out(stage: Stage) {
    let mut raw = raw(&stage);
    let me = started(&stage, 3, "a").await;
    renew(&stage, &state(3, me)).await;
    let good = raw.text(&["HGET", STATES, "3"]);
    let foreign = [
        ("0", "{"),
        ("1", "null"),
        ("2", r#"{"podId":-1}"#),
        ("4", good.as_str()),
        ("6", &good.replace("READY", "ready")),
        ("7", &good.replace("12", "\"low\"")),
        ("x", good.as_str()),
    ];
    for (name, value) in foreign {
        raw.run(&["HSET", STATES, name, value]);
    }
    // Readable, but of a process that holds no lease.
    raw.run(&[
        "HSET",
        STATES,
        "8",
        &good.replace("\"podId\":3", "\"podId\":8"),
    ]);
    let pods = stage.pods(&service()).await;
    let shown: Vec<u32> = pods
        .records
        .iter()
        .map(|record| record.state.pod_id.get())
        .collect();
    assert_eq!(shown, [3]);
    let mut corrupt: Vec<&str> = pods.corrupt.iter().map(|(name, _)| name.as_str()).collect();
    corrupt.sort_unstable();
    assert_eq!(corrupt, foreign.map(|(name, _)| name));
    assert!(pods.corrupt.iter().all(|(_, why)| !why.is_empty()));
    // What the pod itself publishes next is readable again.
    raw.run(&["HSET", STATES, "3", "\u{1}not json"]);
    let pods = stage.pods(&service()).await;
    assert_eq!(pods.records, []);
    assert!(pods.corrupt.iter().any(|(name, _)| name == "3"));
    assert!(matches!(
        renew(&stage, &state(3, me)).await,
        Renewed::Done { .. }
    ));
    let pods = stage.pods(&service()).await;
    assert!(
        pods.records
            .iter()
            .any(|record| record.state.pod_id == pod(3))
    );
}

async fn a_dropped_pod_leaves_its_incarnations_behind(stage: Stage) {
    let mut raw = raw(&stage);
    let dead = started(&stage, 0, "a").await;
    renew(&stage, &state(0, dead)).await;
    let alive = started(&stage, 1, "b").await;
    let dropped = async || {
        renew(&stage, &state(1, alive)).await;
        (raw.number(&["HEXISTS", STATES, "0"]) == 0).then_some(())
    };
    stage.until("the dead pod is dropped", dropped).await;
    let mut names = raw.sorted(&["HKEYS", LEASES]);
    names.retain(|name| name.ends_with(":0"));
    assert_eq!(names, ["i:0", "x:0"]);
    assert_eq!(field(&mut raw, "x:0"), dead.get());
    assert_eq!(certify(&stage, 0).await, Certificate::Dead(dead));
}

async fn changes_are_published_and_loads_are_not(stage: Stage) {
    let mut connection = raw(&stage).into_inner();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut events = connection.as_pubsub();
    events.subscribe(STATES).unwrap();
    let mut next = || {
        events
            .get_message()
            .unwrap()
            .get_payload::<String>()
            .unwrap()
    };

    let me = started(&stage, 0, "a").await;
    let mut mine = state(0, me);
    renew(&stage, &mine).await;
    assert_eq!(next(), r#"{"podId":0,"event":"READY"}"#);
    // A new load and the next renewal say nothing; the next event is the next routing state.
    mine.load_state += 1;
    renew(&stage, &mine).await;
    mine.routing_state = RoutingState::DenyNewCall;
    renew(&stage, &mine).await;
    assert_eq!(next(), r#"{"podId":0,"event":"DENY_NEW_CALL"}"#);
    assert_eq!(death(&stage, 0).await, me);
    assert_eq!(next(), r#"{"podId":0,"event":"DEATH"}"#);
    // The certificate is issued once, so it is announced once.
    certify(&stage, 0).await;
    let me = started(&stage, 0, "b").await;
    renew(&stage, &state(0, me)).await;
    assert_eq!(next(), r#"{"podId":0,"event":"READY"}"#);
    assert!(
        stage
            .store
            .pod_end(&service(), pod(0), me, stage.deadline())
            .await
            .unwrap()
    );
    assert_eq!(next(), r#"{"podId":0,"event":"LEAVE"}"#);
}

async fn a_lease_key_of_the_wrong_type_loses_nothing(stage: Stage) {
    let mut raw = raw(&stage);
    let me = started(&stage, 0, "a").await;
    renew(&stage, &state(0, me)).await;
    for broken in [LEASES, STATES] {
        raw.run(&["COPY", broken, "saved", "REPLACE"]);
        raw.run(&["SET", broken, "x"]);
        let before = raw.everything();
        let (store, deadline) = (&stage.store, stage.deadline());
        let mut results = vec![
            store
                .pod_renew(&service(), &state(0, me), TIMES, deadline)
                .await
                .map(drop),
            store
                .pod_end(&service(), pod(0), me, deadline)
                .await
                .map(drop),
        ];
        if broken == LEASES {
            let who = process(0, "b", "");
            results.push(store.pod_begin(&who, TIMES, deadline).await.map(drop));
            results.push(
                store
                    .pod_certify(&service(), pod(0), deadline)
                    .await
                    .map(drop),
            );
        }
        for error in results.into_iter().map(|result| result.expect_err(broken)) {
            assert_eq!(error.kind(), ErrorKind::Redis, "{error}");
            assert_eq!(error.outcome(), Some(WriteOutcome::NotSent), "{error}");
        }
        let error = store
            .pods(&service(), &PodsReading::default(), deadline)
            .await
            .unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Redis, None));
        assert_eq!(raw.everything(), before);
        raw.run(&["RENAME", "saved", broken]);
    }
    assert!(matches!(
        renew(&stage, &state(0, me)).await,
        Renewed::Done { .. } | Renewed::Dead
    ));
}

/// Story: a fail-over to a server whose clock is behind must not give leases back.
async fn time_goes_on_after_a_step_back(stage: Stage) {
    let mut raw = raw(&stage);
    let me = started(&stage, 0, "a").await;
    renew(&stage, &state(0, me)).await;
    // The same as a clock that jumps back: a client was here an hour from now.
    let hour = 3_600_000_000;
    let ahead = field(&mut raw, "clk") + hour;
    let ahead_text = ahead.to_string();
    raw.run(&["HSET", LEASES, "clk", &ahead_text, "clk2", &ahead_text]);
    assert_eq!(record(&stage, 0).await.unwrap().lease_left, Duration::ZERO);
    assert_eq!(certify(&stage, 0).await, Certificate::Dead(me));
    let next = started(&stage, 0, "b").await;
    assert!(next > me && next >= Incarnation::new(ahead));
    let clock = field(&mut raw, "clk");
    assert_eq!(next, Incarnation::new(clock));
    assert!(clock - ahead < hour / 60, "time goes on from the step");
    assert!(matches!(
        renew(&stage, &state(0, next)).await,
        Renewed::Done { .. }
    ));
    let left = record(&stage, 0).await.unwrap().lease_left;
    assert!(left > Duration::ZERO && left <= TIMES.lease, "{left:?}");
    assert!(field(&mut raw, "clk") > clock, "time does not stand still");
}

/// What a renewal says besides that it succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Said {
    recreated: bool,
    now: u64,
    server: u64,
}

async fn renewed(stage: &Stage, me: Incarnation) -> Said {
    match renew(stage, &state(0, me)).await {
        Renewed::Done {
            recreated,
            now,
            server,
            ..
        } => Said {
            recreated,
            now,
            server,
        },
        other => panic!("no other process is there: {other:?}"),
    }
}

/// Lost with everything, or replaced by the record of an earlier process, as after a fail-over to a
/// replica that lagged behind.
async fn a_renewal_says_what_was_lost(stage: Stage) {
    let mut raw = raw(&stage);
    let me = started(&stage, 0, "a").await;
    let mut before = 0;
    for _ in 0..2 {
        let said = renewed(&stage, me).await;
        assert!(!said.recreated && said.now > before, "{said:?}");
        assert_eq!(said.now, field(&mut raw, "clk"));
        before = said.now;
    }
    let earlier = (me.get() - 1).to_string();
    for lost in [&["FLUSHALL"][..], &["HSET", LEASES, "i:0", &earlier]] {
        raw.run(lost);
        assert!(renewed(&stage, me).await.recreated, "{lost:?}");
        assert!(!renewed(&stage, me).await.recreated, "{lost:?}");
    }
}

async fn a_renewal_names_its_server(mut stage: Stage) {
    /// Waits until there is a connection again; returns the server, and what was lost.
    async fn reconnected(stage: &Stage, me: Incarnation) -> (u64, bool) {
        let renewed = async || {
            let (state, time) = (state(0, me), stage.deadline());
            let renewed = stage.store.pod_renew(&service(), &state, TIMES, time).await;
            match renewed.ok()? {
                Renewed::Done {
                    server, recreated, ..
                } => Some((server, recreated)),
                other => panic!("no other process is there: {other:?}"),
            }
        };
        stage.until("it renews again", renewed).await
    }
    let me = started(&stage, 0, "a").await;
    let first = renewed(&stage, me).await.server;
    assert_ne!(first, 0);
    let disconnect = ["CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "yes"];
    raw(&stage).run(&disconnect);
    assert_eq!(reconnected(&stage, me).await, (first, false));
    stage.restart().await;
    let (next, recreated) = reconnected(&stage, me).await;
    assert!(recreated && next != 0 && next != first);
}

/// A pod in a state that this version does not know, with fields that it does not know, is shown
/// beside the others. It is as good as one that drains: it keeps its users and gets no new ones.
async fn a_later_version_is_read(stage: Stage) {
    let mut raw = raw(&stage);
    let [first, second] = [started(&stage, 0, "a").await, started(&stage, 1, "b").await];
    renew(&stage, &state(0, first)).await;
    renew(&stage, &state(1, second)).await;
    let stored = raw.text(&["HGET", STATES, "0"]);
    let paused = stored.replace(r#""routingState":"READY""#, r#""routingState":"PAUSED""#);
    let paused = paused.replace(
        r#""podId":0"#,
        r#""podId":0,"zone":{"of":[1,2]},"shards":null"#,
    );
    raw.run(&["HSET", STATES, "0", &paused]);
    raw.run(&["HSET", LEASES, "z:0", "later", "zone", "7", "format", "2"]);
    // The second time with the first reading.
    for _ in 0..2 {
        let pods = stage.pods(&service()).await;
        assert_eq!((pods.records.len(), pods.corrupt.len()), (2, 0));
        assert_eq!(pods.later, [(pod(0), "PAUSED".to_owned())]);
        assert_eq!(pods.layout, 2);
        let snapshot = Snapshot::new(pods.records, Tick::from_nanos(1), Policy::default());
        let standing = |index| snapshot.standing(pod(index), Tick::from_nanos(1));
        assert_eq!(
            [standing(0), standing(1)],
            [Standing::Draining, Standing::Ready]
        );
    }
    let found = stage.store.inspect(&service(), stage.deadline()).await;
    let found = found.unwrap();
    assert_eq!((found.pods.layout, found.pods.later.len()), (2, 1));
    assert_eq!(found.pods.records.len(), 2);
    // The pod is certified, replaced and published like any other, and its fields stay.
    let certificate = certify(&stage, 0).await;
    assert!(matches!(certificate, Certificate::Alive { incarnation, .. } if incarnation == first));
    assert_eq!(death(&stage, 0).await, first);
    let next = started(&stage, 0, "c").await;
    renew(&stage, &state(0, next)).await;
    let pods = stage.pods(&service()).await;
    assert_eq!((pods.records.len(), pods.later.len()), (2, 0));
    assert_eq!(raw.text(&["HMGET", LEASES, "z:0", "zone"]), "later 7");
}

/// A pod of this version beside one of a later version does not make the layout an earlier one. A
/// number that no version wrote is replaced, and so is one that was lost.
async fn a_later_layout_stays(stage: Stage) {
    let mut raw = raw(&stage);
    let me = started(&stage, 0, "a").await;
    raw.run(&["HSET", LEASES, "format", "2"]);
    started(&stage, 1, "b").await;
    renew(&stage, &state(0, me)).await;
    assert_eq!(field(&mut raw, "format"), 2);
    for junk in ["", "x", "-1", "1e400"] {
        raw.run(&["HSET", LEASES, "format", junk]);
        assert_eq!(stage.pods(&service()).await.layout, 0, "{junk}");
        started(&stage, 0, "a").await;
        assert_eq!(field(&mut raw, "format"), LAYOUT, "{junk}");
    }
    raw.run(&["FLUSHALL"]);
    renew(&stage, &state(0, me)).await;
    assert_eq!(field(&mut raw, "format"), LAYOUT);
}
