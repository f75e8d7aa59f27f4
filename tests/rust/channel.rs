//! The event channel on a real server: how its loss is detected, which users may subscribe, and
//! that no subscription is leaked.

use std::time::Duration;

use ::redis::Value;
use futures_util::FutureExt;
use futures_util::future::join_all;
use podlink::clock::Clock;
use podlink::config::ServerAddress;
use podlink::error::{Error, ErrorKind, Result};
use podlink::id::ServiceId;
use podlink::op::PodsReading;
use podlink::store::{Changes, RedisStore, Store};
use tokio::runtime::Runtime;

use crate::ask::Ask as _;
use crate::contract::events::{ended, notified};
use crate::node::{SHORT, get, is, set, store, within};
use crate::server::{Kind, PATIENCE, Raw, Server, address, eventually, free_port};
use crate::stage::service_id;

/// Runs every named test once on each server.
macro_rules! on_each_kind {
    ($($name:ident),+ $(,)?) => {
        mod valkey {
            $(#[tokio::test] async fn $name() {
                super::$name(crate::server::Kind::Valkey).await;
            })+
        }
        mod redis {
            $(#[tokio::test] async fn $name() {
                super::$name(crate::server::Kind::Redis).await;
            })+
        }
    };
}

on_each_kind!(
    a_killed_server_is_noticed,
    a_killed_connection_is_noticed,
    a_frozen_server_is_noticed,
    a_subscription_that_is_not_confirmed_ends_all,
    a_frozen_server_costs_a_caller_no_more_than_its_deadline,
    a_caller_that_has_gone_leaves_nothing_behind,
    all_services_share_one_connection,
    the_last_to_leave_ends_the_connection,
    coming_and_going_never_fails,
    a_password_is_asked_for,
    a_user_may_be_kept_from_listening,
    a_socket_file_will_do,
);

fn service(name: &str) -> ServiceId {
    service_id("ns", name)
}

fn channel(name: &str) -> String {
    format!("sf:{{ns:state:{name}}}")
}

async fn listen_within(store: &RedisStore, name: &str, time: Duration) -> Result<Changes> {
    store.subscribe(&service(name), within(time)).await
}

async fn listen(store: &RedisStore, name: &str) -> Changes {
    listen_within(store, name, PATIENCE).await.unwrap()
}

/// Retries the subscription until it succeeds; every error until then must be retryable.
async fn listen_again(store: &RedisStore, name: &str) -> Changes {
    let listening = async || match listen_within(store, name, Duration::from_secs(2)).await {
        Ok(changes) => Some(changes),
        Err(error) => {
            assert!(error.is_retryable(), "{error:?}");
            None
        }
    };
    eventually("a subscription succeeds again", listening).await
}

/// Publishes an event, and checks that it arrives.
async fn works(server: &Server, changes: &mut Changes, name: &str) {
    let receivers = server.raw().number(&["PUBLISH", &channel(name), "news"]);
    assert_eq!(receivers, 1, "one connection is subscribed");
    notified(changes).await;
}

/// How many connections have subscriptions.
fn subscribed(raw: &mut Raw) -> usize {
    let clients = raw.text(&["CLIENT", "LIST", "TYPE", "pubsub"]);
    clients.lines().filter(|line| !line.is_empty()).count()
}

async fn no_subscription_is_left(raw: &mut Raw) {
    let gone = async || (subscribed(raw) == 0).then_some(());
    eventually("no subscription is left", gone).await;
}

async fn a_killed_server_is_noticed(kind: Kind) {
    let mut server = Server::start(kind).await;
    let store = store(&server.address());
    let mut changes = listen(&store, "svc").await;
    works(&server, &mut changes, "svc").await;
    server.kill();
    ended(&mut changes).await;
    let error = listen_within(&store, "svc", PATIENCE).await.unwrap_err();
    is(&error, ErrorKind::StoreUnavailable, None);
    server.restart().await;
    let mut changes = listen_again(&store, "svc").await;
    works(&server, &mut changes, "svc").await;
}

async fn a_killed_connection_is_noticed(kind: Kind) {
    let server = Server::start(kind).await;
    let store = store(&server.address());
    get(&store, PATIENCE).await.unwrap();
    let (mut one, mut two) = (listen(&store, "one").await, listen(&store, "two").await);
    let killed = server.raw().number(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    assert_eq!(killed, 1);
    ended(&mut one).await;
    ended(&mut two).await;
    // Calls use the other connection.
    get(&store, PATIENCE).await.unwrap();
    assert_eq!(
        (store.stats().connects(), store.stats().disconnects()),
        (1, 0)
    );
    let mut one = listen(&store, "one").await;
    works(&server, &mut one, "one").await;
}

async fn a_frozen_server_is_noticed(kind: Kind) {
    let server = Server::start(kind).await;
    let store = store(&server.address());
    let mut changes = listen(&store, "svc").await;
    server.freeze();
    ended(&mut changes).await;
    server.thaw();
    let mut changes = listen_again(&store, "svc").await;
    works(&server, &mut changes, "svc").await;
}

async fn a_subscription_that_is_not_confirmed_ends_all(kind: Kind) {
    let server = Server::start(kind).await;
    let store = store(&server.address());
    let mut changes = listen(&store, "svc").await;
    server.freeze();
    let error = listen_within(&store, "other", PATIENCE).await.unwrap_err();
    is(&error, ErrorKind::StoreUnavailable, None);
    ended(&mut changes).await;
    server.thaw();
    let mut changes = listen_again(&store, "other").await;
    works(&server, &mut changes, "other").await;
}

async fn a_frozen_server_costs_a_caller_no_more_than_its_deadline(kind: Kind) {
    let server = Server::start(kind).await;
    let store = store(&server.address());
    for connected in [false, true] {
        let kept = if connected {
            Some(listen(&store, "kept").await)
        } else {
            None
        };
        server.freeze();
        let began = Clock::System.now();
        let error = listen_within(&store, "svc", SHORT).await.unwrap_err();
        let took = Clock::System.now().since(began);
        is(&error, ErrorKind::Timeout, None);
        assert!(took < PATIENCE / 4, "it took {took:?}");
        server.thaw();
        drop(kept);
        no_subscription_is_left(&mut server.raw()).await;
    }
}

async fn a_caller_that_has_gone_leaves_nothing_behind(kind: Kind) {
    let server = Server::start(kind).await;
    let store = store(&server.address());
    let kept = listen(&store, "kept").await;
    server.freeze();
    // Dropped before the server confirms.
    let gone = listen_within(&store, "gone", PATIENCE).now_or_never();
    assert!(gone.is_none());
    server.thaw();
    let mut raw = server.raw();
    let mut last = listen(&store, "last").await;
    works(&server, &mut last, "last").await;
    let forgotten = async || {
        (raw.text(&["PUBSUB", "NUMSUB", &channel("gone")])
            .ends_with(" 0"))
        .then_some(())
    };
    eventually("the channel is unsubscribed", forgotten).await;
    drop((kept, last));
    no_subscription_is_left(&mut raw).await;
}

async fn all_services_share_one_connection(kind: Kind) {
    let server = Server::start(kind).await;
    let store = store(&server.address());
    let names: Vec<String> = (0..50).map(|n| format!("svc{n}")).collect();
    let all = join_all(names.iter().map(|name| listen(&store, name))).await;
    let mut raw = server.raw();
    assert_eq!(subscribed(&mut raw), 1);
    assert_eq!(raw.sorted(&["PUBSUB", "CHANNELS"]).len(), 50);
    for name in ["svc7", "svc8"] {
        assert_eq!(raw.number(&["PUBLISH", &channel(name), "news"]), 1);
    }
    let mut all = all;
    notified(&mut all[8]).await;
    for (n, changes) in all.iter_mut().enumerate() {
        let expected = (n == 7).then_some(true);
        assert_eq!(changes.changed().now_or_never(), expected, "service {n}");
    }
    // Another store has another connection.
    let another = crate::node::store(&server.address());
    let _changes = listen(&another, "svc0").await;
    assert_eq!(subscribed(&mut raw), 2);
}

async fn the_last_to_leave_ends_the_connection(kind: Kind) {
    let server = Server::start(kind).await;
    let store = store(&server.address());
    let mut raw = server.raw();
    let (one, two) = (listen(&store, "one").await, listen(&store, "two").await);
    drop(one);
    let left = async || (raw.sorted(&["PUBSUB", "CHANNELS"]) == [channel("two")]).then_some(());
    eventually("one channel is left", left).await;
    assert_eq!(subscribed(&mut raw), 1);
    drop(two);
    no_subscription_is_left(&mut raw).await;
    let three = listen(&store, "three").await;
    store.close().await;
    no_subscription_is_left(&mut raw).await;
    drop(three);
}

async fn coming_and_going_never_fails(kind: Kind) {
    let server = Server::start(kind).await;
    let store = store(&server.address());
    for n in 0..300 {
        let changes = listen(&store, "svc").await;
        drop(changes);
        if n % 3 == 0 {
            // Lets the task detect, or be about to detect, that no subscription is left.
            tokio::task::yield_now().await;
        }
    }
    let mut changes = listen(&store, "svc").await;
    works(&server, &mut changes, "svc").await;
}

fn with(server: &Server, credentials: &str) -> ServerAddress {
    let port = server.port;
    address(&format!("redis://{credentials}@127.0.0.1:{port}"), &[])
}

async fn not_let_in(server: &Server, credentials: &str) {
    let store = store(&with(server, credentials));
    let error: Error = listen_within(&store, "svc", PATIENCE).await.unwrap_err();
    is(&error, ErrorKind::StoreAuthentication, None);
    let shown = format!("{error} {error:?} {:?}", error.details());
    assert!(!shown.contains("canary"), "{shown}");
}

async fn a_password_is_asked_for(kind: Kind) {
    let server = Server::start_with(kind, &["--requirepass", "right"]).await;
    not_let_in(&server, "").await;
    not_let_in(&server, ":canary-password").await;
    not_let_in(&server, "canary-user:canary-password").await;
    for credentials in [":right", "default:right"] {
        let store = store(&with(&server, credentials));
        listen(&store, "svc").await;
    }
}

async fn a_user_may_be_kept_from_listening(kind: Kind) {
    let server = Server::start(kind).await;
    let mut raw = server.raw();
    let user = ["ACL", "SETUSER", "canary-user", "on", ">canary-password"];
    let rights = ["~*", "+@all", "-pubsub", "resetchannels"];
    raw.run(&[&user[..], &rights].concat());
    let store = store(&with(&server, "canary-user:canary-password"));
    let error = listen_within(&store, "svc", PATIENCE).await.unwrap_err();
    is(&error, ErrorKind::StoreAuthentication, None);
    assert!(!error.is_retryable());
    // Everything else works; a user that may not count the subscribers counts none.
    set(&store, PATIENCE).await.unwrap();
    raw.run(&["ACL", "SETUSER", "canary-user", "&sf:*"]);
    let mut changes = listen(&store, "svc").await;
    let pods = store
        .pods(&service("svc"), &PodsReading::default(), within(PATIENCE))
        .await
        .unwrap();
    assert_eq!(pods.watchers, 0);
    raw.run(&["PUBLISH", &channel("svc"), "news"]);
    notified(&mut changes).await;
    raw.run(&["ACL", "SETUSER", "canary-user", "+pubsub|numsub"]);
    let pods = store
        .pods(&service("svc"), &PodsReading::default(), within(PATIENCE))
        .await
        .unwrap();
    assert_eq!(pods.watchers, 1);
}

async fn a_socket_file_will_do(kind: Kind) {
    let server = Server::start(kind).await;
    let url = format!("redis+unix://{}", server.socket().display());
    let store = store(&address(&url, &[]));
    let mut changes = listen(&store, "svc").await;
    works(&server, &mut changes, "svc").await;
}

#[tokio::test]
async fn events_come_over_tls() {
    let server = Server::start(Kind::Redis).await;
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| {
        let path = server.dir().join(name);
        path.to_str().unwrap().to_owned()
    });
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let mut raw = server.raw();
    let open = async || {
        let port = free_port().to_string();
        let files = ["tls-cert-file", &cert, "tls-key-file", &key];
        let rest = ["tls-ca-cert-file", &cert, "tls-auth-clients", "no"];
        let set = [&["CONFIG", "SET", "tls-port", &port], &files[..], &rest].concat();
        // Another process may have taken the port.
        matches!(raw.try_run(&set), Some(Value::Okay)).then_some(port)
    };
    let port = eventually("the server speaks TLS", open).await;
    let url = format!("rediss://127.0.0.1:{port}");
    let store = store(&address(&url, &[("ca_file", &cert)]));
    let mut changes = listen(&store, "svc").await;
    works(&server, &mut changes, "svc").await;
}

/// Story: a program calls `asyncio.run` twice; the tasks of the first run end with its runtime.
#[test]
fn a_runtime_that_ends_takes_its_subscriptions_along_and_nothing_else() {
    let first = Runtime::new().unwrap();
    let second = Runtime::new().unwrap();
    let server = second.block_on(Server::start(Kind::Valkey));
    let store = store(&server.address());
    let mut changes = first.block_on(listen(&store, "svc"));
    drop(first);
    second.block_on(async {
        ended(&mut changes).await;
        let mut changes = listen(&store, "svc").await;
        works(&server, &mut changes, "svc").await;
    });
}
