//! A store, its clock, and pods: nothing happens until the test lets time pass.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use podlink::clock::{Clock, ManualClock, Tick};
use podlink::config::{LeaseTimes, RouteInfoConfig, ServerConfig, SettingsGroup};
use podlink::driver::info::InfoDriver;
use podlink::driver::server::{
    LeaseEvent, LeaseReason, NoHooks, PodHooks, ServerDriver, ServerInfo,
};
use podlink::error::Result;
use podlink::id::{LinkId, PodIndex, ServiceId};
use podlink::op::{OperationName, Set, expected};
use podlink::route::link::Persist;
use podlink::store::{MemoryStore, Store};

use super::faulty::Faulty;
use crate::stage::{pod, service_id};

pub(super) const LEASE: Duration = Duration::from_secs(10);
pub(super) const RENEW: Duration = Duration::from_secs(2);
pub(super) const GUARD: Duration = Duration::from_secs(1);
pub(super) const GRACE: Duration = Duration::from_secs(5);
pub(super) const TIMEOUT: Duration = Duration::from_secs(1);
pub(super) const STEP: Duration = Duration::from_millis(10);

/// Where a test plays. Made in a runtime whose time is paused.
pub(super) struct World {
    pub(super) store: Arc<Faulty>,
    pub(super) clock: Clock,
    hands: Vec<ManualClock>,
}

impl World {
    pub(super) fn new() -> Self {
        let hand = ManualClock::default();
        // Not at zero, which means "never" in places.
        hand.advance(Duration::from_secs(1000));
        let clock = Clock::Manual(hand.clone());
        let memory = MemoryStore::open(None, clock.clone()).unwrap();
        Self {
            store: Faulty::new(memory, clock.clone()),
            clock,
            hands: vec![hand],
        }
    }

    /// A clock that is so much ahead of the store's.
    pub(super) fn wrong_clock(&mut self, ahead: Duration) -> Clock {
        let hand = ManualClock::default();
        hand.advance(ahead);
        self.hands.push(hand.clone());
        Clock::Manual(hand)
    }

    /// The store's clock steps forward, and that of every driver with a clock of its own does not.
    pub(super) fn step_store(&self, by: Duration) {
        self.hands[0].advance(by);
    }

    /// Lets time pass, on every clock and in the runtime, step by step.
    pub(super) async fn pass(&self, time: Duration) {
        for _ in 0..time.as_millis() / STEP.as_millis() {
            self.hands.iter().for_each(|hand| hand.advance(STEP));
            tokio::time::advance(STEP).await;
            settle().await;
        }
    }

    /// Lets time pass until the answer is yes; fails after a minute of it.
    pub(super) async fn until(&self, what: &str, mut reached: impl FnMut() -> bool) -> Duration {
        let began = self.clock.now();
        while !reached() {
            let waited = self.clock.now().since(began);
            assert!(
                waited < Duration::from_secs(60),
                "waited too long until {what}"
            );
            self.pass(STEP).await;
        }
        self.clock.now().since(began)
    }

    pub(super) fn server(&self, index: i64) -> ServerDriver {
        self.server_with(index, "", self.clock.clone(), Arc::new(NoHooks))
    }

    pub(super) fn server_with(
        &self,
        index: i64,
        pod_uid: &str,
        clock: Clock,
        hooks: Arc<dyn PodHooks>,
    ) -> ServerDriver {
        let info = ServerInfo {
            service: service(),
            pod: pod(index),
            pod_uid: pod_uid.to_owned(),
            metadata: BTreeMap::new(),
        };
        let store = Arc::clone(&self.store) as Arc<dyn Store>;
        ServerDriver::new(store, clock, info, config(), hooks)
    }

    pub(super) fn info(&self, config: RouteInfoConfig) -> InfoDriver {
        let store = Arc::clone(&self.store) as Arc<dyn Store>;
        InfoDriver::new(store, self.clock.clone(), service().namespace, config)
    }

    /// Starts a pod that need not wait for an earlier process.
    pub(super) async fn started(&self, index: i64) -> ServerDriver {
        let server = self.server(index);
        server.start(server.start_deadline(None)).await.unwrap();
        server
    }
}

/// Lets every task do what it can do now.
pub(super) async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// How many tasks the runtime has.
pub(super) fn tasks() -> usize {
    tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks()
}

pub(super) fn service() -> ServiceId {
    service_id("ns", "svc")
}

pub(super) fn config() -> ServerConfig {
    ServerConfig {
        times: LeaseTimes {
            lease: LEASE,
            grace: GRACE,
            gap: Duration::from_secs(4),
        },
        renew: RENEW,
        guard: GUARD,
        cpu_factor: 0.0,
        timeout: TIMEOUT,
        ..ServerConfig::defaults().unwrap()
    }
    .check()
    .unwrap()
}

pub(super) fn route_info() -> RouteInfoConfig {
    RouteInfoConfig::defaults().unwrap().check().unwrap()
}

/// Counts how often the lease was lost.
#[derive(Debug, Default)]
pub(super) struct Losses(AtomicU64);

impl Losses {
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl PodHooks for Losses {
    async fn lease(&self, what: LeaseEvent, _why: LeaseReason, _until: Tick) -> Result<()> {
        if what == LeaseEvent::Lost {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// Links a user to a pod as `server`; the reply is the previous owner.
pub(super) async fn set_linked_pod(
    server: &ServerDriver,
    link: &LinkId,
    pod: PodIndex,
    persist: Persist,
    deadline: Tick,
) -> Result<Option<PodIndex>> {
    let set = Set {
        link: link.clone(),
        pod,
        persist,
    };
    let name = OperationName::SetLinkedPod;
    let reply = server.call(name, set.into(), deadline).await?;
    expected::<Set>(reply)
}
