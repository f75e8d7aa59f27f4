//! How a node ends: closed, dropped, or with the runtime of its first call.

use std::sync::Arc;

use podlink::error::{ErrorKind, WriteOutcome};
use podlink::op::PodsReading;
use podlink::store::Store;

use crate::ask::Ask as _;
use crate::node::{SHORT, get, is, set, store, wait_until_sent, within};
use crate::server::{Kind, PATIENCE, Raw, Server, eventually};
use crate::stage::{pod, service_id};

/// How many connections the server has, including this test's own.
pub(crate) fn connections(raw: &mut Raw) -> usize {
    raw.text(&["CLIENT", "LIST"])
        .lines()
        .filter(|line| !line.is_empty())
        .count()
}

async fn connections_fall_to(raw: &mut Raw, count: usize) {
    let fallen = async || (connections(raw) == count).then_some(());
    eventually("the connection is closed", fallen).await;
}

#[tokio::test]
async fn closing_ends_the_connection_and_what_waits_for_it() {
    let server = Server::start(Kind::Valkey).await;
    let (store, mut raw) = (store(&server.address()), server.raw());
    get(&store, PATIENCE).await.unwrap();
    assert_eq!(connections(&mut raw), 2);
    server.freeze();
    let spawn = |write: bool| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            if write {
                set(&store, PATIENCE).await.map(drop)
            } else {
                get(&store, PATIENCE).await.map(drop)
            }
        })
    };
    let (write, read) = (spawn(true), spawn(false));
    wait_until_sent(&server).await;
    store.close().await;
    is(
        &write.await.unwrap().unwrap_err(),
        ErrorKind::Closed,
        Some(WriteOutcome::Unknown),
    );
    is(&read.await.unwrap().unwrap_err(), ErrorKind::Closed, None);
    is(
        &set(&store, PATIENCE).await.unwrap_err(),
        ErrorKind::Closed,
        Some(WriteOutcome::NotSent),
    );
    server.thaw();
    connections_fall_to(&mut raw, 1).await;
    store.close().await;
}

#[tokio::test]
async fn closing_ends_the_wait_for_a_server_that_is_down() {
    let server = Server::stopped(Kind::Valkey, &[]);
    let store = store(&server.address());
    let waiting = Arc::clone(&store);
    let call = tokio::spawn(async move { get(&waiting, PATIENCE).await });
    eventually("it has tried", async || {
        (store.stats().failed_dials() > 0).then_some(())
    })
    .await;
    store.close().await;
    is(&call.await.unwrap().unwrap_err(), ErrorKind::Closed, None);
    let tried = store.stats().failed_dials();
    is(
        &get(&store, SHORT).await.unwrap_err(),
        ErrorKind::Closed,
        None,
    );
    assert_eq!(store.stats().failed_dials(), tried);
}

#[tokio::test]
async fn a_store_that_was_never_used_closes_too() {
    let server = Server::stopped(Kind::Valkey, &[]);
    let store = store(&server.address());
    store.close().await;
    is(
        &get(&store, SHORT).await.unwrap_err(),
        ErrorKind::Closed,
        None,
    );
}

#[tokio::test]
async fn dropping_the_store_ends_its_connection() {
    let server = Server::start(Kind::Valkey).await;
    let (store, mut raw) = (store(&server.address()), server.raw());
    get(&store, PATIENCE).await.unwrap();
    assert_eq!(connections(&mut raw), 2);
    drop(store);
    connections_fall_to(&mut raw, 1).await;
}

/// Story: the supervisor runs on the runtime of the first call. When that runtime ends (a loop in
/// a thread, a test), the store must still work on other runtimes.
#[test]
fn a_store_outlives_the_runtime_of_its_first_call() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let first = runtime();
    let server = first.block_on(Server::start(Kind::Valkey));
    let store = store(&server.address());
    first.block_on(set(&store, PATIENCE)).unwrap();
    drop(first);
    for _ in 0..3 {
        let next = runtime();
        assert_eq!(next.block_on(get(&store, PATIENCE)).unwrap(), Some(pod(1)));
        let service = service_id("ns", "svc");
        next.block_on(store.pods(&service, &PodsReading::default(), within(PATIENCE)))
            .unwrap();
    }
    assert_eq!(store.stats().connects(), 4);
}
