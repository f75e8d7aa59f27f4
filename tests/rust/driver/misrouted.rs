//! Pods that say "not mine", routes, and pods that give up their users one by one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use podlink::config::{ClientConfig, SettingsGroup};
use podlink::driver::client::{ClientDriver, Misrouted};
use podlink::driver::server::{Ownership, ServerDriver};
use podlink::error::ErrorKind;
use podlink::id::{PodIndex, Token};
use podlink::route::state::RoutingState;
use podlink::store::Store;

use super::faulty::Fault;
use super::world::{World, route_info, service};
use crate::ask::Ask as _;
use crate::stage::{pod, user};

const PATIENT: Duration = Duration::from_secs(20);

struct Play {
    world: World,
    servers: Vec<ServerDriver>,
    client: ClientDriver,
}

impl Play {
    async fn with_pods(count: i64) -> Self {
        let world = World::new();
        let mut servers = Vec::new();
        for index in 0..count {
            servers.push(world.started(index).await);
        }
        let client = ClientDriver::new(
            Arc::clone(&world.store) as Arc<dyn Store>,
            world.clock.clone(),
            service().namespace,
            ClientConfig::defaults().unwrap(),
            &world.info(route_info()),
            None,
            &HashMap::new(),
        );
        Self {
            world,
            servers,
            client,
        }
    }

    /// A link that no process has claimed.
    async fn hint(&self, index: i64) {
        let (ttl, deadline) = (Duration::from_secs(300), self.client.deadline(None));
        let (store, link) = (&self.world.store, user("u"));
        let placed = store.set_if_absent(&link, pod(index), ttl, deadline);
        assert!(placed.await.unwrap().made);
    }

    async fn claim(&self, index: usize) -> Ownership {
        let server = &self.servers[index];
        let deadline = server.deadline(None);
        server
            .claim(user("u"), Token::NONE, deadline)
            .await
            .unwrap()
    }

    async fn compute(&self) -> u32 {
        let deadline = self.client.deadline(Some(PATIENT));
        let computed = self.client.compute_linked_pod(user("u"), deadline);
        computed.await.unwrap().get()
    }

    fn report(&self, report: Misrouted) {
        self.client.misrouted(user("u"), report).unwrap();
    }

    async fn stored(&self) -> Option<u32> {
        let (link, deadline) = (user("u"), self.client.deadline(None));
        let get = self.world.store.get(&link, deadline);
        get.await.unwrap().map(|link| link.pod.get())
    }

    fn counted(&self, name: &str) -> u64 {
        self.client.stats()[name]
    }

    fn cached(&self) -> Option<PodIndex> {
        self.client.get_linked_in_cache(user("u")).unwrap()
    }
}

fn refused_by(index: i64) -> Misrouted {
    Misrouted::by(pod(index))
}

#[tokio::test(start_paused = true)]
async fn a_refused_hint_is_replaced() {
    let play = Play::with_pods(2).await;
    play.hint(0).await;
    assert_eq!(play.compute().await, 0);
    play.report(refused_by(0));
    assert_eq!(play.cached(), None);
    for _ in 0..3 {
        assert_eq!(play.compute().await, 1);
    }
    assert_eq!(play.stored().await, Some(1));
    let counted = ["misrouted", "hints_replaced", "links_healed", "refusals"];
    assert_eq!(counted.map(|name| play.counted(name)), [1, 1, 0, 1]);
    assert_eq!(play.world.store.asked("relink").len(), 1);
    assert_eq!(play.world.store.asked("pod_certify").len(), 0);
}

/// A lookup must not put the refused hint back into the cache, where compute would find it.
#[tokio::test(start_paused = true)]
async fn a_refused_hint_is_not_cached() {
    let play = Play::with_pods(2).await;
    play.hint(0).await;
    play.report(refused_by(0));
    let deadline = play.client.deadline(None);
    let found = play.client.get_linked_pod(user("u"), deadline);
    assert_eq!(found.await.unwrap(), Some(pod(0)));
    assert_eq!(play.cached(), None);
    assert_eq!(play.compute().await, 1);
}

#[tokio::test(start_paused = true)]
async fn an_owner_is_believed() {
    let play = Play::with_pods(2).await;
    let owner = play.claim(0).await.owner;
    for _ in 0..3 {
        play.report(refused_by(0));
        assert_eq!(play.counted("refusals"), 1);
        assert_eq!(play.compute().await, 0);
        assert_eq!(play.counted("refusals"), 0);
        assert_eq!(play.cached(), Some(pod(0)));
    }
    let deadline = play.client.deadline(None);
    let route = play.client.route(user("u"), deadline).await.unwrap();
    assert_eq!((route.pod, route.holder), (pod(0), Some(owner.holder())));
    assert!(route.from_cache);
    assert_eq!(play.counted("hints_replaced"), 0);
}

#[tokio::test(start_paused = true)]
async fn the_only_pod_is_answered_and_not_remembered() {
    let mut play = Play::with_pods(1).await;
    play.hint(0).await;
    play.report(refused_by(0));
    for _ in 0..3 {
        assert_eq!(play.compute().await, 0);
        assert_eq!(play.cached(), None);
    }
    assert_eq!(play.world.store.asked("relink").len(), 0);
    play.servers.push(play.world.started(1).await);
    play.world.pass(Duration::from_secs(3)).await;
    assert_eq!(play.compute().await, 1);
}

/// A user without a link is not sent to the pod either, unless there is no other.
#[tokio::test(start_paused = true)]
async fn a_refusal_counts_without_a_link() {
    for (pods, expected) in [(3, 2), (2, 0)] {
        let play = Play::with_pods(pods).await;
        play.report(refused_by(0));
        play.report(refused_by(1));
        let computed = play.compute().await;
        assert!(computed == 2 || pods == 2, "{computed}");
        assert_eq!(play.cached().is_some(), expected == 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_ends_after_link_ttl() {
    let play = Play::with_pods(2).await;
    play.report(refused_by(0));
    let ttl = ClientConfig::defaults().unwrap().link_ttl;
    play.world.pass(ttl + Duration::from_secs(61)).await;
    assert_eq!(play.counted("refusals"), 0);
    play.hint(0).await;
    assert_eq!(play.compute().await, 0);
}

#[tokio::test(start_paused = true)]
async fn tokens_decide_between_report_and_cache() {
    let play = Play::with_pods(3).await;
    let token = play.claim(0).await.owner.token;
    assert_eq!(play.compute().await, 0);
    let asked = play.world.store.asked("set_if_absent").len();
    let report = |by, owner: Option<i64>, above: i64| Misrouted {
        pod: pod(by),
        owner: owner.map(pod),
        token: Some(Token::new(token.get().saturating_add_signed(above))),
    };
    // What the pod said is from before the claim.
    play.report(report(0, None, -1));
    play.report(report(0, Some(1), -1));
    assert_eq!((play.cached(), play.counted("refusals")), (Some(pod(0)), 0));
    // A later owner is learnt, and no earlier one after it.
    play.report(report(0, Some(1), 5));
    play.report(report(0, Some(2), 3));
    play.report(report(2, Some(0), 3));
    assert_eq!(play.compute().await, 1);
    let deadline = play.client.deadline(None);
    let route = play.client.route(user("u"), deadline).await.unwrap();
    let holder = route.holder.unwrap();
    assert_eq!(holder.token.get(), token.get() + 5);
    assert_eq!(play.world.store.asked("set_if_absent").len(), asked);
    // Without a token there is nothing to compare: a third pod's entry stays.
    let third = Misrouted {
        owner: Some(pod(2)),
        ..refused_by(0)
    };
    play.report(third);
    assert_eq!(play.cached(), Some(pod(1)));
    // The learnt owner refuses, too: the store is asked, which knows the claim.
    play.report(refused_by(1));
    assert_eq!(play.compute().await, 0);
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_is_the_pod_itself_is_refused() {
    let play = Play::with_pods(1).await;
    let wrong = Misrouted {
        owner: Some(pod(0)),
        ..refused_by(0)
    };
    let error = play.client.misrouted(user("u"), wrong).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidParameter);
    assert_eq!(play.counted("misrouted"), 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_from_before_the_report_is_not_cached() {
    let play = Play::with_pods(2).await;
    play.hint(0).await;
    // The pods are known, so that the compute is one call.
    let warm = play.client.deadline(None);
    let warmed = play.client.compute_linked_pod(user("warm"), warm);
    warmed.await.unwrap();
    let late = Fault::Late(Duration::from_secs(1));
    play.world.store.fail("set_if_absent", &[late]);
    let (client, deadline) = (play.client.clone(), play.client.deadline(Some(PATIENT)));
    let asked = play.world.store.asked("set_if_absent").len();
    let early = tokio::spawn(async move { client.compute_linked_pod(user("u"), deadline).await });
    let sent = || play.world.store.asked("set_if_absent").len() > asked;
    play.world.until("the first is sent", sent).await;
    play.report(refused_by(0));
    play.world
        .until("it has its answer", || early.is_finished())
        .await;
    assert_eq!(early.await.unwrap().unwrap().get(), 0);
    assert_eq!(play.cached(), None);
    assert_eq!(play.compute().await, 1);
}

/// A thousand clients' requests for one user come back with "not mine", and each is computed again.
#[tokio::test(start_paused = true)]
async fn a_storm_of_reports_is_one_call() {
    let play = Play::with_pods(2).await;
    play.hint(0).await;
    assert_eq!(play.compute().await, 0);
    let late = [Fault::Late(Duration::from_millis(100)); 4];
    play.world.store.fail("set_if_absent", &late);
    play.world.store.fail("relink", &late);
    let before = play.world.store.asked("set_if_absent").len();
    let calls = (0..1_000).map(|_| {
        let client = play.client.clone();
        tokio::spawn(async move {
            client.misrouted(user("u"), refused_by(0)).unwrap();
            let deadline = client.deadline(Some(PATIENT));
            client.compute_linked_pod(user("u"), deadline).await
        })
    });
    let calls: Vec<_> = calls.collect();
    let ended = || calls.iter().all(tokio::task::JoinHandle::is_finished);
    play.world.until("all have their pod", ended).await;
    for call in join_all(calls).await {
        assert_eq!(call.unwrap().unwrap().get(), 1);
    }
    let store = &play.world.store;
    assert_eq!(store.asked("set_if_absent").len() - before, 1);
    assert_eq!(store.asked("relink").len(), 1);
    assert_eq!(play.counted("misrouted"), 1_000);
}

/// A pod that drains saves and releases its users one by one. The client remembered that they were
/// there, and answered that for as long as the pod drained.
#[tokio::test(start_paused = true)]
async fn a_user_released_in_a_drain_is_not_computed_there() {
    let play = Play::with_pods(2).await;
    let owned = play.claim(0).await;
    assert_eq!(play.compute().await, 0);
    let server = &play.servers[0];
    let deadline = server.deadline(Some(PATIENT));
    let publish = server.set_routing_state(RoutingState::DenyNewCall, deadline);
    publish.await.unwrap();
    play.world.pass(Duration::from_secs(3)).await;
    // It is still its owner.
    for _ in 0..3 {
        assert_eq!(play.compute().await, 0);
        let asked = play.world.store.asked("set_if_absent").len();
        assert_eq!(play.compute().await, 0);
        assert_eq!(play.world.store.asked("set_if_absent").len(), asked + 1);
    }
    let deadline = server.deadline(Some(PATIENT));
    assert!(server.release(&owned, None, deadline).await.unwrap());
    for _ in 0..100 {
        assert_eq!(play.compute().await, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_route_says_how_the_pod_is_reached() {
    let play = Play::with_pods(1).await;
    let route = async |deadline| play.client.route(user("u"), deadline).await.unwrap();
    let first = route(play.client.deadline(None)).await;
    assert_eq!((first.pod, first.holder), (pod(0), None));
    assert_eq!(first.address, "svc-0.svc.ns.svc");
    assert!(first.state.is_some() && !first.from_cache);
    assert!(route(play.client.deadline(None)).await.from_cache);
    let owner = play.claim(0).await.owner;
    play.client.cache_expired(user("u")).unwrap();
    let owned = route(play.client.deadline(None)).await;
    assert_eq!(owned.holder, Some(owner.holder()));
    let counted = ["computes", "cache_hits"].map(|name| play.counted(name));
    assert_eq!(counted, [3, 1]);
}
