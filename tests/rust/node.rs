//! The supervised node: what calls get while the server fails, and that the node recovers when
//! the server does.

use std::sync::Arc;
use std::time::Duration;

use podlink::clock::{Clock, Tick};
use podlink::config::ServerAddress;
use podlink::error::{Error, ErrorKind, Result, WriteOutcome};
use podlink::id::PodIndex;
use podlink::route::link::Placed;
use podlink::store::RedisStore;

use crate::ask::Ask as _;
use crate::node_end::connections;
use crate::server::{Kind, PATIENCE, Server, eventually};
use crate::stage::{pod, user};

pub(crate) const TTL: Duration = Duration::from_secs(3600);

/// Long enough for a healthy server, short enough to wait for in a test.
pub(crate) const SHORT: Duration = Duration::from_millis(300);

/// A store at this address, with access to its counters.
pub(crate) fn store(address: &ServerAddress) -> Arc<RedisStore> {
    Arc::new(RedisStore::new(address, Clock::System).unwrap())
}

pub(crate) fn within(time: Duration) -> Tick {
    Clock::System.deadline(time)
}

pub(crate) async fn get(store: &RedisStore, time: Duration) -> Result<Option<PodIndex>> {
    let found = store.get(&user("u"), within(time)).await?;
    Ok(found.map(|found| found.pod))
}

pub(crate) async fn set(store: &RedisStore, time: Duration) -> Result<Placed> {
    store
        .set_if_absent(&user("u"), pod(1), TTL, within(time))
        .await
}

/// Retries until the store answers; every error until then must be retryable.
pub(crate) async fn recovers(store: &RedisStore) {
    let answers = async || match get(store, Duration::from_secs(2)).await {
        Ok(_) => Some(()),
        Err(error) => {
            assert!(error.is_retryable(), "{error:?}");
            None
        }
    };
    eventually("the store answers again", answers).await;
}

#[track_caller]
pub(crate) fn is(error: &Error, kind: ErrorKind, outcome: Option<WriteOutcome>) {
    assert_eq!(
        (error.kind(), error.outcome()),
        (kind, outcome),
        "{error:?}"
    );
}

#[test]
fn a_store_is_made_outside_of_any_runtime_and_without_a_server() {
    let server = Server::stopped(Kind::Valkey, &[]);
    let made = store(&server.address());
    assert_eq!(made.stats().connects() + made.stats().failed_dials(), 0);
    drop(made);
}

#[tokio::test]
async fn a_server_that_is_down_at_first_is_found_when_it_comes() {
    let mut server = Server::stopped(Kind::Valkey, &[]);
    let store = store(&server.address());
    let error = set(&store, SHORT).await.unwrap_err();
    is(
        &error,
        ErrorKind::StoreUnavailable,
        Some(WriteOutcome::NotSent),
    );
    assert!(error.is_retryable());
    let text = error.to_string();
    assert!(
        text.contains(&format!("127.0.0.1:{}", server.port)),
        "{text}"
    );
    assert!(text.contains("refused"), "the cause is reported: {text}");
    assert!(store.stats().failed_dials() >= 1);
    // A call with a long enough deadline waits for the server and never fails.
    let waiting = Arc::clone(&store);
    let call = tokio::spawn(async move { get(&waiting, PATIENCE).await });
    server.restart().await;
    assert_eq!(call.await.unwrap().unwrap(), None);
    assert_eq!(store.stats().connects(), 1);
}

#[tokio::test]
async fn a_call_does_not_wait_when_waiting_cannot_help() {
    let server = Server::stopped(Kind::Valkey, &[]);
    let store = store(&server.address());
    // The next attempt begins after these deadlines once the backoff has grown.
    let quick = async || {
        let (began, time) = (Clock::System.now(), Duration::from_millis(200));
        let error = get(&store, time).await.unwrap_err();
        is(&error, ErrorKind::StoreUnavailable, None);
        (Clock::System.now().since(began) < time / 2).then_some(())
    };
    eventually("a call fails at once", quick).await;
}

#[tokio::test]
async fn all_first_calls_share_one_connection() {
    let server = Server::start(Kind::Valkey).await;
    let store = store(&server.address());
    let calls = (0..200).map(|_| get(&store, PATIENCE));
    for answer in futures_util::future::join_all(calls).await {
        answer.unwrap();
    }
    assert_eq!(store.stats().connects(), 1);
    // The test's own connection and podlink's.
    assert_eq!(connections(&mut server.raw()), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_in_mid_flight_is_told_and_survived() {
    let mut server = Server::start(Kind::Valkey).await;
    let store = store(&server.address());
    get(&store, PATIENCE).await.unwrap();
    // Frozen, so that sent requests get no response until the crash.
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
    server.kill();
    let error = write.await.unwrap().unwrap_err();
    is(
        &error,
        ErrorKind::StoreUnavailable,
        Some(WriteOutcome::Unknown),
    );
    assert!(error.is_retryable());
    assert!(
        !read.is_finished(),
        "a read is idempotent, so it waits for the server"
    );
    server.restart().await;
    read.await.unwrap().unwrap();
    assert!(
        set(&store, PATIENCE).await.unwrap().made,
        "the server lost everything"
    );
    assert_eq!(
        (store.stats().connects(), store.stats().disconnects()),
        (2, 1)
    );
}

/// Waits until both calls are sent: their bytes are queued in the frozen server's socket.
pub(crate) async fn wait_until_sent(server: &Server) {
    let port = format!(":{:04X}", server.port);
    let waiting = async || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let queued = table.lines().filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let received = columns.get(4)?.split(':').nth(1)?;
            (columns[1].ends_with(&port) && columns[3] == "01").then_some(received.to_owned())
        });
        // A script call by hash takes about 150 bytes; both together take more than 200.
        queued
            .into_iter()
            .any(|bytes| i64::from_str_radix(&bytes, 16).unwrap() > 200)
            .then_some(())
    };
    eventually("the calls are sent", waiting).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_under_load_lose_no_call_in_silence() {
    let mut server = Server::start(Kind::Valkey).await;
    let store = store(&server.address());
    let load = |n: i64| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let mut errors = 0;
            for round in 0..400 {
                let link = user(&format!("u{n}-{round}"));
                let time = within(Duration::from_secs(5));
                match store.set_if_absent(&link, pod(n), TTL, time).await {
                    Ok(placed) => assert_eq!(placed.link.pod, pod(n)),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::StoreUnavailable, "{error:?}");
                        assert!(error.outcome().is_some() && error.is_retryable());
                        errors += 1;
                    }
                }
            }
            errors
        })
    };
    let loads: Vec<_> = (0..8).map(load).collect();
    for _ in 0..3 {
        let before = store.stats().connects();
        recovers(&store).await;
        server.kill();
        server.restart().await;
        recovers(&store).await;
        eventually("it is reconnected", async || {
            (store.stats().connects() > before).then_some(())
        })
        .await;
    }
    let mut errors = 0;
    for load in loads {
        errors += load.await.unwrap();
    }
    // Each crash can only affect calls in flight: one of each of the eight tasks.
    assert!(errors <= 3 * 8, "{errors} calls failed");
}

#[tokio::test]
async fn one_unanswered_call_makes_the_supervisor_ask_for_a_sign_of_life() {
    let server = Server::start(Kind::Valkey).await;
    let store = store(&server.address());
    get(&store, PATIENCE).await.unwrap();
    server.freeze();
    let error = set(&store, SHORT).await.unwrap_err();
    is(&error, ErrorKind::Timeout, Some(WriteOutcome::Unknown));
    assert!(error.is_retryable());
    assert_eq!(store.stats().timeouts(), 1);
    let given_up = async || (store.stats().disconnects() == 1).then_some(());
    eventually("the half-open connection is retired", given_up).await;
    server.thaw();
    recovers(&store).await;
}

#[tokio::test]
async fn three_unanswered_calls_are_enough() {
    let server = Server::start(Kind::Valkey).await;
    let mut address = server.address();
    // No PING fails within this test.
    address.connect_timeout = PATIENCE * 10;
    let store = store(&address);
    get(&store, PATIENCE).await.unwrap();
    server.freeze();
    for n in 1..=3 {
        assert_eq!(store.stats().disconnects(), 0, "after {} calls", n - 1);
        let error = get(&store, SHORT).await.unwrap_err();
        is(&error, ErrorKind::Timeout, None);
    }
    let given_up = async || (store.stats().disconnects() == 1).then_some(());
    eventually("the connection is retired", given_up).await;
    server.thaw();
    recovers(&store).await;
}

#[tokio::test]
async fn impatient_calls_prove_nothing_about_the_connection() {
    let server = Server::start(Kind::Valkey).await;
    let mut address = server.address();
    address.connect_timeout = PATIENCE * 10;
    let store = store(&address);
    get(&store, PATIENCE).await.unwrap();
    server.freeze();
    for _ in 0..10 {
        let error = get(&store, Duration::from_millis(2)).await.unwrap_err();
        is(&error, ErrorKind::Timeout, None);
    }
    server.thaw();
    get(&store, PATIENCE).await.unwrap();
    assert_eq!(
        (store.stats().connects(), store.stats().disconnects()),
        (1, 0)
    );
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_harms_no_other() {
    let server = Server::start(Kind::Valkey).await;
    let store = store(&server.address());
    get(&store, PATIENCE).await.unwrap();
    server.freeze();
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { set(&store, PATIENCE).await })
        })
        .collect();
    wait_until_sent(&server).await;
    for call in &calls {
        call.abort();
    }
    server.thaw();
    assert!(get(&store, PATIENCE).await.is_ok());
    assert_eq!(store.stats().disconnects(), 0);
}
