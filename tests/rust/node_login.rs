//! Login: which users are accepted, what a refusal reports (never a credential), and recovery.

use std::time::Duration;

use podlink::clock::Clock;
use podlink::config::ServerAddress;
use podlink::error::{Error, ErrorKind, WriteOutcome};
use podlink::id::{Incarnation, Token};
use podlink::op::{PodsReading, Renewed, Rewrite};
use podlink::route::link::{Persist, Removal};
use podlink::store::RedisStore;

use crate::ask::Ask as _;
use crate::contract::leases::{TIMES, process, service, state};
use crate::contract::on_every_server;
use crate::node::{get, is, set, store, within};
use crate::server::{PATIENCE, Raw, Server, address, eventually};
use crate::stage::{Stage, pod, user};

on_every_server!(
    a_wrong_password_is_told_at_once_and_mended_by_the_server,
    a_missing_password_is_told,
    a_password_for_a_server_without_one_is_told,
    a_user_comes_and_goes,
    a_missing_permission_is_told_and_mended_by_the_server,
    these_permissions_are_enough,
    each_permission_is_needed,
    databases_are_apart_and_a_missing_one_is_told,
    a_socket_file_will_do,
);

/// No error may contain these.
const SECRETS: [&str; 2] = ["canary-password", "canary-user"];

fn server(stage: &Stage) -> &Server {
    stage.as_server().unwrap()
}

fn with(server: &Server, credentials: &str, path: &str) -> ServerAddress {
    address(
        &format!("redis://{credentials}@127.0.0.1:{}/{path}", server.port),
        &[],
    )
}

/// The error of a call with a long deadline, which must fail at once.
async fn refused_at_once(store: &RedisStore) -> Error {
    let began = Clock::System.now();
    let error = set(store, PATIENCE).await.unwrap_err();
    let took = Clock::System.now().since(began);
    assert!(took < PATIENCE / 4, "it took {took:?}");
    let shown = format!("{error} {error:?} {:?} {store:?}", error.details());
    assert!(
        SECRETS.iter().all(|secret| !shown.contains(secret)),
        "{shown}"
    );
    error
}

async fn not_let_in(store: &RedisStore) {
    let error = refused_at_once(store).await;
    is(
        &error,
        ErrorKind::StoreAuthentication,
        Some(WriteOutcome::NotSent),
    );
    assert!(
        !error.is_retryable(),
        "an operator must change something first"
    );
}

/// Retries until the login succeeds; until then every error must be a refused login.
async fn let_in(store: &RedisStore) {
    let inside = async || match get(store, Duration::from_secs(2)).await {
        Ok(_) => Some(()),
        Err(error) => {
            is(&error, ErrorKind::StoreAuthentication, None);
            None
        }
    };
    eventually("the login succeeds", inside).await;
}

async fn a_wrong_password_is_told_at_once_and_mended_by_the_server(stage: Stage) {
    let mut raw = server(&stage).raw();
    raw.run(&["CONFIG", "SET", "requirepass", "right"]);
    for credentials in [":canary-password", "canary-user:canary-password"] {
        let store = store(&with(server(&stage), credentials, ""));
        not_let_in(&store).await;
        not_let_in(&store).await;
        assert!(store.stats().failed_dials() >= 1);
    }
    let store = store(&with(server(&stage), ":canary-password", ""));
    not_let_in(&store).await;
    raw.run(&["CONFIG", "SET", "requirepass", "canary-password"]);
    let_in(&store).await;
}

async fn a_missing_password_is_told(stage: Stage) {
    server(&stage)
        .raw()
        .run(&["CONFIG", "SET", "requirepass", "right"]);
    // With a database and without.
    for url in ["redis://127.0.0.1:PORT", "redis://127.0.0.1:PORT/3"] {
        let url = url.replace("PORT", &server(&stage).port.to_string());
        not_let_in(&store(&address(&url, &[]))).await;
    }
}

async fn a_password_for_a_server_without_one_is_told(stage: Stage) {
    not_let_in(&store(&with(server(&stage), ":canary-password", ""))).await;
}

async fn a_user_comes_and_goes(stage: Stage) {
    let mut raw = server(&stage).raw();
    let store = store(&with(server(&stage), "canary-user:canary-password", ""));
    not_let_in(&store).await;
    let create = [
        "ACL",
        "SETUSER",
        "canary-user",
        "on",
        ">canary-password",
        "~*",
        "&*",
        "+@all",
    ];
    raw.run(&create);
    let_in(&store).await;
    set(&store, PATIENCE).await.unwrap();
    // The server closes the connections of a user that it deletes.
    raw.run(&["ACL", "DELUSER", "canary-user"]);
    let out = async || {
        set(&store, PATIENCE)
            .await
            .err()
            .filter(|e| !e.is_retryable())
    };
    let error = eventually("the user is locked out", out).await;
    is(
        &error,
        ErrorKind::StoreAuthentication,
        Some(WriteOutcome::NotSent),
    );
    raw.run(&create);
    let_in(&store).await;
}

async fn a_missing_permission_is_told_and_mended_by_the_server(stage: Stage) {
    let mut raw = server(&stage).raw();
    let store = store(&with(server(&stage), "canary-user:canary-password", ""));
    // No scripts; scripts, but no SET inside them; no keys; no commands.
    for (rights, outcome) in [
        (
            vec!["~*", "+@all", "-evalsha", "-eval"],
            WriteOutcome::NotSent,
        ),
        (vec!["~*", "+@all", "-set"], WriteOutcome::Unknown),
        (vec!["+@all"], WriteOutcome::NotSent),
        (vec!["~*", "-@all"], WriteOutcome::NotSent),
    ] {
        let mut create = vec![
            "ACL",
            "SETUSER",
            "canary-user",
            "reset",
            "on",
            ">canary-password",
        ];
        create.extend(&rights);
        raw.run(&create);
        let out = async || {
            let error = refused_at_once(&store).await;
            // Changing a user may also close its connections.
            (!error.is_retryable()).then_some(error)
        };
        let error = eventually("the permission is missing", out).await;
        is(&error, ErrorKind::StoreAuthentication, Some(outcome));
        assert_eq!(raw.number(&["DBSIZE"]), 0, "{rights:?}");
        raw.run(&[
            "ACL",
            "SETUSER",
            "canary-user",
            "reset",
            "on",
            ">canary-password",
            "~*",
            "+@all",
        ]);
        let_in(&store).await;
        set(&store, PATIENCE).await.unwrap();
        raw.run(&["FLUSHALL"]);
    }
}

/// The permissions that the documentation lists.
const COMMANDS: [&str; 18] = [
    "+ping", "+eval", "+evalsha", "+time", "+exists", "+get", "+set", "+del", "+pttl", "+pexpire",
    "+persist", "+hget", "+hset", "+hdel", "+hlen", "+hexists", "+hgetall", "+publish",
];

fn grant<'a>(raw: &mut Raw, rights: impl IntoIterator<Item = &'a str>) {
    let user = ["ACL", "SETUSER", "canary-user", "reset", "on"];
    let mut create = user.to_vec();
    create.extend([">canary-password", "resetchannels", "~sf:*"]);
    create.extend(rights);
    raw.run(&create);
}

/// Everything that a login is needed for.
async fn use_all(store: &RedisStore) -> Result<(), Error> {
    let (link, time) = (user("u"), within(PATIENCE));
    set(store, PATIENCE).await?;
    let forever = Persist::Forever;
    store.set(&link, pod(2), forever, time).await?;
    store.try_set(&link, pod(2), forever, time).await?;
    let hint = Persist::For(Duration::from_secs(60));
    store.try_set(&link, pod(2), hint, time).await?;
    let uids = std::slice::from_ref(&link.uid);
    store.batch_get(&link.service, uids, time).await?;
    store
        .services(&link.service.namespace, &link.uid, time)
        .await?;
    store.remove(&link, None, Removal::Now, time).await?;
    let me = Incarnation::new(1 << 40);
    let owner = (pod(2), me);
    for _ in 0..2 {
        store.claim(&link, owner, None, Token::NONE, time).await?;
        let found = store.read(&link, time).await?;
        store.swap(&link, &found, Rewrite::Nothing, time).await?;
    }
    store.pod_begin(&process(1, "one", ""), TIMES, time).await?;
    let renewed = store
        .pod_renew(&service(), &state(0, me), TIMES, time)
        .await?;
    assert!(matches!(renewed, Renewed::Done { .. }));
    let pods = store
        .pods(&service(), &PodsReading::default(), time)
        .await?;
    assert_eq!(pods.records.len(), 1);
    assert!(store.pod_end(&service(), pod(0), me, time).await?);
    store.ping(time).await
}

/// Without the permission to publish, a renewal is only noticed later.
async fn these_permissions_are_enough(stage: Stage) {
    let mut raw = server(&stage).raw();
    let quiet = || COMMANDS.into_iter().filter(|&right| right != "+publish");
    for more in [
        &["+publish", "&sf:*", "+hello", "+select"][..],
        &["+publish"],
        &[],
    ] {
        grant(&mut raw, quiet().chain(more.iter().copied()));
        let store = store(&with(server(&stage), "canary-user:canary-password", ""));
        use_all(&store).await.unwrap();
        raw.run(&["FLUSHALL"]);
    }
}

async fn each_permission_is_needed(stage: Stage) {
    let mut raw = server(&stage).raw();
    for without in COMMANDS.into_iter().filter(|&right| right != "+publish") {
        raw.run(&["FLUSHALL"]);
        raw.run(&["SCRIPT", "FLUSH"]);
        grant(
            &mut raw,
            COMMANDS.into_iter().filter(|&right| right != without),
        );
        let store = store(&with(server(&stage), "canary-user:canary-password", ""));
        let error = use_all(&store).await.expect_err(without);
        assert_eq!(
            error.kind(),
            ErrorKind::StoreAuthentication,
            "{without}: {error}"
        );
    }
}

async fn databases_are_apart_and_a_missing_one_is_told(stage: Stage) {
    let url = |db: u32| format!("redis://127.0.0.1:{}/{db}", server(&stage).port);
    let (three, four) = (store(&address(&url(3), &[])), store(&address(&url(4), &[])));
    set(&three, PATIENCE).await.unwrap();
    assert_eq!(get(&three, PATIENCE).await.unwrap(), Some(pod(1)));
    assert_eq!(get(&four, PATIENCE).await.unwrap(), None);
    let mut raw = server(&stage).raw();
    assert_eq!(raw.number(&["DBSIZE"]), 0);
    raw.run(&["SELECT", "3"]);
    assert_eq!(raw.number(&["DBSIZE"]), 1);

    let error = refused_at_once(&store(&address(&url(9999), &[]))).await;
    is(
        &error,
        ErrorKind::InvalidParameter,
        Some(WriteOutcome::NotSent),
    );
    let text = error.to_string();
    assert!(text.contains("db") && text.contains("9999"), "{text}");
}

async fn a_socket_file_will_do(stage: Stage) {
    let socket = server(&stage).socket();
    let url = format!("redis+unix://{}?db=2", socket.display());
    let store = store(&address(&url, &[]));
    set(&store, PATIENCE).await.unwrap();
    assert_eq!(get(&store, PATIENCE).await.unwrap(), Some(pod(1)));

    let url = format!("redis+unix://{}-missing", socket.display());
    let store = self::store(&address(&url, &[]));
    let error = get(&store, Duration::from_millis(300)).await.unwrap_err();
    is(&error, ErrorKind::StoreUnavailable, None);
    assert!(error.to_string().contains("-missing"), "{error}");
}
