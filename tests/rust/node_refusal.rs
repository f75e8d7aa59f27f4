//! A server that answers, but refuses calls: out of memory, a replica, loading, without scripts.

use podlink::error::{Error, ErrorKind, WriteOutcome};
use podlink::op::PodsReading;
use podlink::route::link::Persist;

use crate::ask::Ask as _;
use crate::contract::on_every_server;
use crate::node::{SHORT, TTL, get, is, recovers, set, store, within};
use crate::server::{Kind, PATIENCE, Raw, Server, eventually};
use crate::stage::{Stage, pod, user};

#[tokio::test]
async fn a_replica_is_neither_read_nor_written() {
    for kind in [Kind::Valkey, Kind::Redis] {
        let server = Server::start(kind).await;
        let store = store(&server.address());
        set(&store, PATIENCE).await.unwrap();
        let mut raw = server.raw();
        // No process listens on port 1: the primary is unreachable.
        raw.run(&["REPLICAOF", "127.0.0.1", "1"]);
        for persist in [Persist::For(TTL), Persist::Forever] {
            let error = store
                .set(&user("u"), pod(2), persist, within(SHORT))
                .await
                .unwrap_err();
            is_a_replica(&error, Some(WriteOutcome::NotSent));
        }
        is_a_replica(&get(&store, SHORT).await.unwrap_err(), None);
        raw.run(&["REPLICAOF", "NO", "ONE"]);
        recovers(&store).await;
        assert!(
            !set(&store, PATIENCE).await.unwrap().made,
            "the link is still there"
        );
    }
}

#[track_caller]
fn is_a_replica(error: &Error, outcome: Option<WriteOutcome>) {
    is(error, ErrorKind::StoreUnavailable, outcome);
    assert!(error.is_retryable());
    assert!(
        error
            .details()
            .contains(&("server_code", "READONLY".to_owned())),
        "{error:?}"
    );
}

/// Story: a client that only reads never gets READONLY, so it would read a demoted primary
/// forever. So the periodic ping checks the role too.
#[tokio::test]
async fn a_reader_leaves_a_demoted_primary() {
    let server = Server::start(Kind::Valkey).await;
    let store = store(&server.address());
    get(&store, PATIENCE).await.unwrap();
    let mut raw = server.raw();
    raw.run(&["REPLICAOF", "127.0.0.1", "1"]);
    assert!(get(&store, PATIENCE).await.is_ok(), "no ping was sent yet");
    // An unanswered call makes the supervisor ping at once.
    server.freeze();
    is(
        &get(&store, SHORT).await.unwrap_err(),
        ErrorKind::Timeout,
        None,
    );
    server.thaw();
    let left = async || get(&store, SHORT).await.err();
    is_a_replica(&eventually("the replica is left", left).await, None);
}

#[tokio::test]
async fn a_server_that_loads_its_data_is_waited_for() {
    for kind in [Kind::Valkey, Kind::Redis] {
        let mut server = Server::start(kind).await;
        let store = store(&server.address());
        set(&store, PATIENCE).await.unwrap();
        let mut raw = server.raw();
        for n in 0..300 {
            raw.run(&["SET", &format!("filler{n}"), &"x".repeat(1000)]);
        }
        raw.run(&["SAVE"]);
        server.kill();
        // Loading takes a millisecond per key, and clients are served now and then.
        server.set_args(&[
            "--key-load-delay",
            "1000",
            "--loading-process-events-interval-bytes",
            "1024",
        ]);
        server.restart().await;
        let found = get(&store, PATIENCE).await.unwrap();
        assert_eq!(
            found,
            Some(pod(1)),
            "the answer is that of a server with all its data"
        );
    }
}

on_every_server!(
    a_script_flush_in_the_middle_is_mended,
    a_server_out_of_memory_changes_nothing_and_can_be_looked_at,
    a_server_without_replicas_changes_nothing_and_can_be_looked_at,
);

async fn a_script_flush_in_the_middle_is_mended(stage: Stage) {
    let server = stage.as_server().unwrap();
    let (store, mut raw) = (store(&server.address()), server.raw());
    for n in 1..=5 {
        set(&store, PATIENCE).await.unwrap();
        set(&store, PATIENCE).await.unwrap();
        assert_eq!(
            store.stats().script_loads(),
            n,
            "sent with its source once after each flush"
        );
        raw.run(&["SCRIPT", "FLUSH"]);
    }
    raw.run(&["FLUSHALL"]);
    let calls = (0..100).map(|_| set(&store, PATIENCE));
    let answers = futures_util::future::join_all(calls).await;
    assert_eq!(
        answers
            .into_iter()
            .filter(|answer| answer.as_ref().unwrap().made)
            .count(),
        1
    );
}

async fn a_server_out_of_memory_changes_nothing_and_can_be_looked_at(stage: Stage) {
    let server = stage.as_server().unwrap();
    let refuse = |raw: &mut Raw| drop(raw.run(&["CONFIG", "SET", "maxmemory", "1"]));
    let allow = |raw: &mut Raw| drop(raw.run(&["CONFIG", "SET", "maxmemory", "0"]));
    refuses_writes(server, ErrorKind::Redis, "OOM", refuse, allow).await;
}

async fn a_server_without_replicas_changes_nothing_and_can_be_looked_at(stage: Stage) {
    let server = stage.as_server().unwrap();
    let set = |count: &'static str| {
        move |raw: &mut Raw| drop(raw.run(&["CONFIG", "SET", "min-replicas-to-write", count]))
    };
    refuses_writes(
        server,
        ErrorKind::StoreUnavailable,
        "NOREPLICAS",
        set("1"),
        set("0"),
    )
    .await;
}

async fn refuses_writes(
    server: &Server,
    kind: ErrorKind,
    code: &str,
    refuse: impl Fn(&mut Raw),
    allow: impl Fn(&mut Raw),
) {
    use crate::contract::leases::{TIMES, service, state};
    let (store, mut raw) = (store(&server.address()), server.raw());
    set(&store, PATIENCE).await.unwrap();
    let me = podlink::id::Incarnation::new(1 << 40);
    let (service, state, time) = (service(), state(0, me), within(PATIENCE));
    store
        .pod_renew(&service, &state, TIMES, time)
        .await
        .unwrap();
    let before = raw.everything();
    refuse(&mut raw);
    let other = user("other");
    for error in [
        store
            .set_if_absent(&other, pod(1), TTL, time)
            .await
            .unwrap_err(),
        store
            .set(&other, pod(1), Persist::Forever, time)
            .await
            .unwrap_err(),
        store
            .try_set(&other, pod(1), Persist::For(TTL), time)
            .await
            .unwrap_err(),
        store
            .pod_renew(&service, &state, TIMES, time)
            .await
            .unwrap_err(),
    ] {
        is(&error, kind, Some(WriteOutcome::NotSent));
        assert!(error.is_retryable(), "{error:?}");
        assert!(
            error.details().contains(&("server_code", code.to_owned())),
            "{error:?}"
        );
    }
    // Links and pods can be read while nothing can be written.
    assert_eq!(get(&store, PATIENCE).await.unwrap(), Some(pod(1)));
    let looked = async || {
        let pods = store
            .pods(&service, &PodsReading::default(), time)
            .await
            .unwrap();
        assert_eq!(pods.records.len(), 1);
        // No renewal for longer than the gap: an outage, so the pod counts as alive.
        let micros = raw.text(&["HGET", "sf:{ns:state:svc}#lease", "clk"]);
        let now = raw.text(&["TIME"]).replace(' ', "");
        let silent = now
            .parse::<u64>()
            .unwrap()
            .saturating_sub(micros.parse().unwrap());
        (silent > 1_000_000).then(|| assert!(!pods.records[0].lease_left.is_zero()))
    };
    eventually("no write for a second", looked).await;
    assert_eq!(raw.everything(), before);
    allow(&mut raw);
    assert!(
        store
            .set_if_absent(&other, pod(1), TTL, time)
            .await
            .unwrap()
            .made
    );
    store
        .pod_renew(&service, &state, TIMES, time)
        .await
        .unwrap();
    assert_eq!(
        store.stats().connects(),
        1,
        "the connection is not replaced"
    );
}
