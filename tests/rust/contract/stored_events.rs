//! Workloads, tags and leaders as other programs see them: exact keys and values.

use std::time::Duration;

use podlink::error::{Error, ErrorKind, WriteOutcome};
use podlink::id::{ServiceName, Tag};
use podlink::route::state::{Readiness, WorkloadState};

use super::events::{join, leads};
use super::leases::{service, started, state};
use crate::ask::Ask as _;
use crate::contract::on_every_server;
use crate::server::Raw;
use crate::stage::{Stage, pod};

on_every_server!(
    a_workload_is_one_json_object_with_a_life,
    a_workload_that_nobody_can_read_is_told_and_written_anew,
    a_tag_is_a_plain_name,
    a_tag_that_is_no_name_is_told_and_written_anew,
    a_key_of_another_type_is_told,
    the_leader_stands_in_the_lease_hash,
);

const WORKLOAD: &str = "sf:{ns:workload:svc}";
const TAG: &str = "sf:{ns:tag:blue}";
const LEASES: &str = "sf:{ns:state:svc}#lease";
const MINUTE: Duration = Duration::from_secs(60);

fn raw(stage: &Stage) -> Raw {
    stage.as_server().unwrap().raw()
}

fn mine() -> WorkloadState {
    WorkloadState {
        state: Readiness::NotReady,
        replicas: 3,
        ready_replicas: 0,
        update_time: 1_700_000_000_123,
    }
}

async fn set_workload(stage: &Stage) -> Result<(), Error> {
    let (service, deadline) = (service(), stage.deadline());
    let store = &stage.store;
    store
        .set_workload(&service, &mine(), MINUTE, deadline)
        .await
}

async fn workload(stage: &Stage) -> Result<Option<WorkloadState>, Error> {
    stage.store.workload(&service(), stage.deadline()).await
}

async fn set_tag(stage: &Stage) -> Result<bool, Error> {
    let (namespace, tag) = (service().namespace, Tag::new("blue").unwrap());
    let (name, deadline) = (service().service, stage.deadline());
    stage.store.set_tag(&namespace, &tag, &name, deadline).await
}

async fn tag(stage: &Stage) -> Result<Option<ServiceName>, Error> {
    let (namespace, tag) = (service().namespace, Tag::new("blue").unwrap());
    stage.store.tag(&namespace, &tag, stage.deadline()).await
}

#[track_caller]
fn names_the_key(error: &Error, key: &str) {
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::StoreData, None)
    );
    assert!(error.to_string().contains(key), "{error}");
}

async fn a_workload_is_one_json_object_with_a_life(stage: Stage) {
    let mut raw = raw(&stage);
    set_workload(&stage).await.unwrap();
    assert_eq!(raw.sorted(&["KEYS", "*"]), [WORKLOAD]);
    assert_eq!(
        raw.text(&["GET", WORKLOAD]),
        r#"{"state":"NOT_READY","replicas":3,"readyReplicas":0,"updateTime":1700000000123}"#
    );
    let left = raw.number(&["PTTL", WORKLOAD]);
    assert!((1..=60_000).contains(&left), "{left}");
    // The data of other programs may have more fields than podlink reads.
    let theirs = r#"{"updateTime":5,"state":"READY","readyReplicas":2,"replicas":2,"zone":"a"}"#;
    raw.run(&["SET", WORKLOAD, theirs]);
    let read = workload(&stage).await.unwrap().unwrap();
    assert_eq!(
        (read.state, read.replicas, read.update_time),
        (Readiness::Ready, 2, 5)
    );
}

async fn a_workload_that_nobody_can_read_is_told_and_written_anew(stage: Stage) {
    let mut raw = raw(&stage);
    let good = serde_json::to_string(&mine()).unwrap();
    let foreign = [
        "",
        "{",
        "null",
        "[]",
        &good.replace('3', "-3"),
        &good.replace("NOT_", "not "),
    ];
    for value in foreign {
        raw.run(&["SET", WORKLOAD, value]);
        names_the_key(&workload(&stage).await.unwrap_err(), WORKLOAD);
    }
    set_workload(&stage).await.unwrap();
    assert_eq!(workload(&stage).await.unwrap(), Some(mine()));
}

async fn a_tag_is_a_plain_name(stage: Stage) {
    let mut raw = raw(&stage);
    assert!(set_tag(&stage).await.unwrap());
    assert_eq!(raw.sorted(&["KEYS", "*"]), [TAG]);
    assert_eq!(raw.text(&["GET", TAG]), "svc");
    assert_eq!(raw.number(&["PTTL", TAG]), -1);
}

async fn a_tag_that_is_no_name_is_told_and_written_anew(stage: Stage) {
    let mut raw = raw(&stage);
    for value in ["", "a:b", "a b", "{svc}"] {
        raw.run(&["SET", TAG, value]);
        names_the_key(&tag(&stage).await.unwrap_err(), TAG);
    }
    assert!(set_tag(&stage).await.unwrap());
    assert_eq!(tag(&stage).await.unwrap(), Some(service().service));
}

async fn a_key_of_another_type_is_told(stage: Stage) {
    let mut raw = raw(&stage);
    for key in [WORKLOAD, TAG] {
        raw.run(&["RPUSH", key, "x"]);
    }
    let errors = [
        workload(&stage).await.map(drop).unwrap_err(),
        tag(&stage).await.map(drop).unwrap_err(),
    ];
    for error in errors {
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Redis, None));
    }
    // A full store takes nothing, and says so.
    raw.run(&["CONFIG", "SET", "maxmemory", "1"]);
    for error in [
        set_workload(&stage).await.map(drop).unwrap_err(),
        set_tag(&stage).await.map(drop).unwrap_err(),
    ] {
        let not_sent = Some(WriteOutcome::NotSent);
        assert_eq!(
            (error.kind(), error.outcome()),
            (ErrorKind::Redis, not_sent)
        );
    }
}

async fn the_leader_stands_in_the_lease_hash(stage: Stage) {
    let mut raw = raw(&stage);
    let mut field = |name: &str| raw.text(&["HGET", LEASES, name]);
    let me = join(&stage, &service(), 4).await;
    let deadline = field("d:4");
    assert_eq!(field("w"), format!("4:{deadline}"));
    // Invalid data of other programs is no pod.
    stage
        .as_server()
        .unwrap()
        .raw()
        .run(&["HSET", LEASES, "w", "x:y"]);
    let six = state(6, started(&stage, 6, "b").await);
    assert!(leads(&stage, &six).await);
    assert!(leads(&stage, &state(4, me)).await);
    let (store, deadline) = (&stage.store, stage.deadline());
    assert!(
        store
            .pod_end(&service(), pod(6), six.incarnation, deadline)
            .await
            .unwrap()
    );
    assert!(field("w").starts_with("4:"));
    assert!(
        store
            .pod_end(&service(), pod(4), me, deadline)
            .await
            .unwrap()
    );
    assert_eq!(field("w"), "");
}
