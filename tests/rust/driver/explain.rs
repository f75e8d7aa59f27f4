//! What `explain` says that compute would do, compute does: in worlds that chance makes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use podlink::config::{ClientConfig, LeaseTimes, OnRestart, SettingsGroup};
use podlink::driver::client::{ClientDriver, Misrouted};
use podlink::error::ErrorKind;
use podlink::id::{Incarnation, LinkId, PodIndex, Token};
use podlink::op::{Begun, PodIdentity};
use podlink::route::explain::Action;
use podlink::route::link::{Persist, Removal};
use podlink::route::pick::Strategy as Choice;
use podlink::route::plan::Reason;
use podlink::route::state::{PodState, Readiness, RoutingState};
use podlink::store::Store;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::world::{GRACE, LEASE, TIMEOUT, World, route_info, service, settle};
use crate::ask::Ask as _;
use crate::stage::{pod, user};

const TIMES: LeaseTimes = LeaseTimes {
    lease: LEASE,
    grace: GRACE,
    gap: Duration::from_secs(4),
};
const PODS: i64 = 3;
/// What an explanation may ask the store for.
const READS: [&str; 2] = ["read", "inspect"];
/// What compute may ask for.
const ALL: [&str; 7] = [
    "get",
    "read",
    "inspect",
    "pods",
    "pod_certify",
    "set_if_absent",
    "relink",
];

#[derive(Debug, Clone)]
enum Step {
    /// A process begins, if it may, and says this of itself.
    Begin(i64, RoutingState, i64),
    /// The process goes on renewing, and says this of itself.
    Say(i64, RoutingState, i64),
    /// The process is gone, and no pod or client knows.
    Kill(i64),
    End(i64),
    Certify(i64),
    Link(i64, bool),
    Unlink,
    /// The living process claims the user, if it may.
    Claim(i64),
    /// The pod says "not mine".
    Refuse(i64),
    Compute,
    TellCache(i64),
    Forget,
    /// No client reads for so many milliseconds.
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let state = || {
        prop_oneof![
            6 => Just(RoutingState::Ready),
            2 => Just(RoutingState::DenyNewCall),
            1 => Just(RoutingState::Shutdown),
        ]
    };
    // One more than there ever are: a pod that was never seen.
    let (known, linked) = (0..PODS, 0..=PODS);
    prop_oneof![
        4 => (known.clone(), state(), 0..20_i64).prop_map(|(pod, state, load)| Step::Begin(pod, state, load)),
        2 => (known.clone(), state(), 0..20_i64).prop_map(|(pod, state, load)| Step::Say(pod, state, load)),
        1 => known.clone().prop_map(Step::Kill),
        1 => known.clone().prop_map(Step::End),
        1 => known.prop_map(Step::Certify),
        3 => (linked.clone(), any::<bool>()).prop_map(|(pod, persistent)| Step::Link(pod, persistent)),
        1 => Just(Step::Unlink),
        2 => (0..PODS).prop_map(Step::Claim),
        3 => linked.clone().prop_map(Step::Refuse),
        3 => Just(Step::Compute),
        1 => linked.prop_map(Step::TellCache),
        1 => Just(Step::Forget),
        4 => prop_oneof![0..100_u64, 900..1_200_u64, 9_000..17_000_u64].prop_map(Step::Pass),
    ]
}

fn rules() -> impl Strategy<Value = (Choice, OnRestart, Option<i64>)> {
    let choice = prop_oneof![
        Just(Choice::P2c),
        Just(Choice::LeastLoad),
        Just(Choice::RoundRobin),
        Just(Choice::Weighted),
        Just(Choice::Rendezvous),
    ];
    let restart = prop_oneof![Just(OnRestart::SamePod), Just(OnRestart::BestPod)];
    (choice, restart, proptest::option::of(5..15_i64))
}

/// A world, a client, and the pods that renew.
struct Play {
    world: World,
    client: ClientDriver,
    /// By index, what the living process says of itself.
    living: HashMap<i64, PodState>,
    processes: u64,
    user: LinkId,
}

impl Play {
    fn new((strategy, on_restart, overload_limit): (Choice, OnRestart, Option<i64>)) -> Self {
        let world = World::new();
        let config = ClientConfig {
            link_ttl: Duration::from_secs(20),
            cache_ttl: Duration::from_secs(15),
            cache_capacity: 1000,
            strategy,
            timeout: TIMEOUT,
            on_restart,
            ..ClientConfig::defaults().unwrap()
        };
        let pods = podlink::config::RouteInfoConfig {
            overload_limit,
            ..route_info()
        };
        let client = ClientDriver::new(
            Arc::clone(&world.store) as Arc<dyn Store>,
            world.clock.clone(),
            service().namespace,
            config.check().unwrap(),
            &world.info(pods),
            None,
            &HashMap::new(),
        );
        Self {
            world,
            client,
            living: HashMap::new(),
            processes: 0,
            user: user("user1"),
        }
    }

    async fn renew(&self, state: &PodState) {
        let (store, deadline) = (&self.world.store, self.client.deadline(None));
        store
            .pod_renew(&service(), state, TIMES, deadline)
            .await
            .unwrap();
    }

    async fn pass(&self, time: Duration) {
        /// All that live renew this often.
        const EVERY: Duration = Duration::from_secs(2);
        let mut left = time;
        while !left.is_zero() {
            let piece = left.min(EVERY);
            self.world.pass(piece).await;
            left -= piece;
            for state in self.living.values() {
                self.renew(state).await;
            }
        }
    }

    async fn take(&mut self, step: &Step) {
        let (store, deadline) = (Arc::clone(&self.world.store), self.client.deadline(None));
        match step {
            Step::Begin(index, state, load) => {
                self.processes += 1;
                let who = PodIdentity {
                    service: service(),
                    pod: pod(*index),
                    nonce: self.processes.to_string(),
                    pod_uid: String::new(),
                };
                let begun = store.pod_begin(&who, TIMES, deadline).await.unwrap();
                if let Begun::Started(incarnation) = begun {
                    let state = said(*index, *state, *load, incarnation);
                    self.renew(&state).await;
                    self.living.insert(*index, state);
                }
            }
            Step::Say(index, state, load) => {
                if let Some(known) = self.living.get_mut(index) {
                    (known.routing_state, known.load_state) = (*state, *load);
                    let known = known.clone();
                    self.renew(&known).await;
                }
            }
            Step::Kill(index) => drop(self.living.remove(index)),
            Step::End(index) => {
                if let Some(state) = self.living.remove(index) {
                    store
                        .pod_end(&service(), pod(*index), state.incarnation, deadline)
                        .await
                        .unwrap();
                }
            }
            Step::Certify(index) => {
                store
                    .pod_certify(&service(), pod(*index), deadline)
                    .await
                    .unwrap();
            }
            Step::Link(index, persistent) => {
                let hint = Persist::For(Duration::from_secs(20));
                let life = if *persistent { Persist::Forever } else { hint };
                let set = store.set(&self.user, pod(*index), life, deadline);
                set.await.unwrap();
            }
            Step::Unlink => {
                let remove = store.remove(&self.user, None, Removal::Now, deadline);
                remove.await.unwrap();
            }
            Step::Claim(index) => {
                if let Some(state) = self.living.get(index) {
                    let owner = (pod(*index), state.incarnation);
                    let claim = store.claim(&self.user, owner, None, Token::NONE, deadline);
                    claim.await.unwrap();
                }
            }
            Step::Refuse(index) => {
                let report = Misrouted::by(pod(*index));
                self.client.misrouted(self.user.clone(), report).unwrap();
            }
            Step::Compute => drop(self.compute().await),
            Step::TellCache(index) => {
                self.client
                    .set_cache(self.user.clone(), pod(*index))
                    .unwrap();
            }
            Step::Forget => {
                self.client.cache_expired(self.user.clone()).unwrap();
            }
            Step::Pass(millis) => self.pass(Duration::from_millis(*millis)).await,
        }
        settle().await;
    }

    async fn compute(&self) -> Result<PodIndex, ErrorKind> {
        let deadline = self.client.deadline(None);
        let computed = self.client.compute_linked_pod(self.user.clone(), deadline);
        computed.await.map_err(|error| error.kind())
    }

    fn asked(&self) -> HashMap<&'static str, usize> {
        let count = |name: &'static str| (name, self.world.store.asked(name).len());
        ALL.into_iter().map(count).collect()
    }

    /// Explains, computes, and holds the one against the other.
    async fn compare(&self) -> Result<Reason, TestCaseError> {
        let (counted, asked) = (self.client.stats(), self.asked());
        let deadline = self.client.deadline(None);
        let explained = self
            .client
            .explain(self.user.clone(), deadline)
            .await
            .unwrap();
        prop_assert_eq!(
            self.client.stats(),
            counted.clone(),
            "an explanation was counted"
        );
        let after = self.asked();
        for name in ALL.iter().filter(|name| !READS.contains(name)) {
            prop_assert_eq!(
                after[name],
                asked[name],
                "an explanation asked for {}",
                name
            );
        }
        let done = self.compute().await;
        settle().await;
        let rose = |name: &str| self.client.stats()[name] - counted[name];
        let certified = self.asked()["pod_certify"] > after["pod_certify"];
        let made = (
            rose("links_made"),
            rose("links_healed"),
            rose("hints_replaced"),
            rose("owners_unsure"),
        );
        let expected = match explained.action() {
            Action::MakeLink => (1, 0, 0, 0),
            Action::MoveUser if explained.reason() == Reason::OwnerRefused => (0, 0, 1, 0),
            Action::MoveUser | Action::CertifyThenMove => (0, 1, 0, 0),
            Action::KeepUntilCertain => (0, 0, 0, 1),
            _ => (0, 0, 0, 0),
        };
        prop_assert_eq!(made, expected, "{:?}", &explained);
        match &done {
            Ok(answer) => prop_assert!(
                explained.answers().contains(answer),
                "{answer}: {explained:?}"
            ),
            Err(error) => {
                prop_assert_eq!(*error, ErrorKind::NoRoutablePod, "{:?}", &explained);
                prop_assert_eq!(
                    explained.action(),
                    Action::NoRoutablePod,
                    "{:?}",
                    &explained
                );
            }
        }
        if explained.action() == Action::CertifyThenMove {
            prop_assert!(certified, "{:?}", &explained);
        }
        if explained.action() == Action::AnswerFromCache {
            let written = self.asked()["set_if_absent"] - after["set_if_absent"];
            prop_assert_eq!(written, 0, "{:?}", &explained);
        }
        Ok(explained.reason())
    }
}

fn said(index: i64, routing: RoutingState, load: i64, incarnation: Incarnation) -> PodState {
    PodState {
        pod_id: pod(index),
        state: Readiness::Ready,
        load_state: load,
        routing_state: routing,
        update_time: 0,
        incarnation,
        metadata: [("weight".to_owned(), (1 + index).to_string())].into(),
    }
}

#[test]
fn compute_does_what_explain_says() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
    };
    let mut runner = TestRunner::new(Config {
        cases: 150,
        ..Config::default()
    });
    let worlds = (rules(), proptest::collection::vec(step(), 1..16));
    let explored = runner.run(&worlds, |(rules, steps)| {
        runtime().block_on(async {
            let mut play = Play::new(rules);
            // One pod is there at first, or most worlds would be empty.
            for index in 0..2 {
                let load = 3 * index;
                play.take(&Step::Begin(index, RoutingState::Ready, load))
                    .await;
            }
            for step in &steps {
                play.take(step).await;
            }
            play.compare().await?;
            play.client.close();
            Ok(())
        })
    });
    explored.unwrap();
}

/// One world for each reason, so that none depends on chance.
#[tokio::test(start_paused = true)]
async fn each_reason_has_its_world() {
    use RoutingState::{DenyNewCall, Ready, Shutdown};
    const MINUTE: Step = Step::Pass(17_000);
    let (begin, rival) = (Step::Begin(0, Ready, 1), Step::Begin(1, Ready, 9));
    let link = Step::Link(0, true);
    let worlds: [(Reason, &[Step]); 13] = [
        (Reason::Cached, &[begin.clone(), Step::Compute]),
        (Reason::SetByProgram, &[begin.clone(), Step::TellCache(0)]),
        (Reason::OwnerReady, &[begin.clone(), link.clone()]),
        (
            Reason::OwnerDraining,
            &[Step::Begin(0, DenyNewCall, 1), rival.clone(), link.clone()],
        ),
        (
            Reason::OwnerShutdown,
            &[Step::Begin(0, Shutdown, 1), rival.clone(), link.clone()],
        ),
        (
            Reason::OwnerDead,
            &[begin.clone(), rival.clone(), link.clone(), Step::End(0)],
        ),
        (
            Reason::OwnerRefused,
            &[begin.clone(), rival.clone(), link.clone(), Step::Refuse(0)],
        ),
        (Reason::OwnerNeverSeen, &[rival.clone(), link.clone()]),
        (Reason::NoLink, std::slice::from_ref(&rival)),
        (Reason::NoRoutablePod, &[]),
        (
            Reason::DeathNotCertain,
            &[
                begin.clone(),
                rival.clone(),
                link.clone(),
                Step::Kill(0),
                Step::Pass(12_000),
            ],
        ),
        (
            Reason::OwnerSilent,
            &[begin.clone(), link.clone(), Step::Kill(0), MINUTE],
        ),
        (
            Reason::OwnerLapsed,
            &[
                begin.clone(),
                rival.clone(),
                link.clone(),
                Step::Kill(0),
                MINUTE,
            ],
        ),
    ];
    for (reason, steps) in worlds {
        let mut play = Play::new((Choice::P2c, OnRestart::SamePod, None));
        for step in steps {
            play.take(step).await;
        }
        assert_eq!(play.compare().await.unwrap(), reason, "{steps:?}");
        play.client.close();
    }
    let mut play = Play::new((Choice::LeastLoad, OnRestart::BestPod, None));
    for step in [begin.clone(), Step::Compute, Step::End(0), begin, rival] {
        play.take(&step).await;
    }
    play.pass(Duration::from_secs(2)).await;
    assert_eq!(play.compare().await.unwrap(), Reason::OwnerRestarted);
    play.client.close();
}

/// A pod that had refused the user was drawn as one of the two that are compared: the worse of the
/// others then won, which explain called impossible.
#[tokio::test(start_paused = true)]
async fn a_pod_that_refused_is_not_compared() {
    use RoutingState::Ready;
    let mut steps: Vec<Step> = [(0, 0), (1, 3), (2, 7)]
        .map(|(index, load)| Step::Begin(index, Ready, load))
        .into();
    steps.extend([Step::Link(3, false), Step::Refuse(3), Step::Refuse(2)]);
    for _ in 0..30 {
        let mut play = Play::new((Choice::P2c, OnRestart::BestPod, None));
        for step in &steps {
            play.take(step).await;
        }
        assert_eq!(play.compare().await.unwrap(), Reason::OwnerRefused);
        play.client.close();
    }
}

/// The cache remembered the user with a process of pod 0 that was gone, the link named a dead pod or
/// was gone, too, and `on_restart="best_pod"`: compute placed the user on pod 0, whose new process is
/// the best, took it for one who had stayed there through the restart, and moved it once more.
#[tokio::test(start_paused = true)]
async fn who_was_just_placed_is_not_placed_afresh() {
    use RoutingState::Ready;
    let worlds = [
        (Step::Link(2, false), Reason::OwnerNeverSeen),
        (Step::Unlink, Reason::NoLink),
    ];
    for (then, reason) in worlds {
        let mut play = Play::new((Choice::LeastLoad, OnRestart::BestPod, None));
        let (rival, back) = (Step::Begin(1, Ready, 15), Step::Begin(0, Ready, 0));
        for step in [back.clone(), rival, Step::Compute, Step::End(0), back, then] {
            play.take(&step).await;
        }
        assert_eq!(play.compare().await.unwrap(), reason);
        play.client.close();
    }
}
