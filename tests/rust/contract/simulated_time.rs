//! Time that a test makes, with steps of the store's clock.
//!
//! A test cannot set the clock of a server. A script uses `TIME + off` only, so to add to `off` is the
//! same as to set the clock. That is a step, and, if the test's own clock moves as well, it is time
//! that passes.
//!
//! A minute stands for a second of the default times. A test takes milliseconds, and a machine that
//! stops for some seconds changes nothing.

use std::time::Duration;

use podlink::clock::{Clock, Tick};
use podlink::config::LeaseTimes;
use podlink::id::{Incarnation, ServiceId};
use podlink::op::{Begun, Renewed, Stepped};
use podlink::route::clock_step::{ClockReading, ClockStep, ClockWatch};
use podlink::route::link::Certificate;
use podlink::route::state::PodRecord;
use podlink::store::Store;

use super::leases::{process, service, state};
use crate::ask::Ask as _;
use crate::stage::{Stage, pod};

pub(crate) const MINUTE: i64 = 60;

/// The default times of a lease, in minutes.
pub(crate) const TIMES: LeaseTimes = LeaseTimes {
    lease: Duration::from_secs(600),
    grace: Duration::from_secs(300),
    gap: Duration::from_secs(240),
};

/// How many minutes after its last renewal a pod acts no more, by its own clock: its lease.
pub(crate) const LEASE: i64 = 10;
/// How often a pod renews.
pub(crate) const RENEW: i64 = 2;
/// Lease, grace, and the time between two questions of a client.
pub(crate) const TAKEOVER: i64 = 16;

/// A step that no hold was begun for.
pub(crate) const NEW_STEP: ClockStep = ClockStep {
    by: Duration::from_secs(3),
    after_micros: u64::MAX,
    seen_micros: 0,
};

const LEASES: &str = "sf:{ns:state:svc}#lease";

/// A store and the time that passes there.
pub(crate) struct SimulatedTime<'a> {
    pub(crate) stage: &'a Stage,
    passed: Duration,
}

/// A pod with its own view of the store's clock.
pub(crate) struct SimulatedPod {
    pub(crate) index: i64,
    pub(crate) incarnation: Incarnation,
    watch: ClockWatch,
}

impl<'a> SimulatedTime<'a> {
    pub(crate) fn new(stage: &'a Stage) -> Self {
        let passed = Duration::ZERO;
        Self { stage, passed }
    }

    /// The time of every machine but the server's.
    fn now(&self) -> Tick {
        Clock::System.now().after(self.passed)
    }

    fn store(&self) -> (&dyn Store, ServiceId, Tick) {
        (&*self.stage.store, service(), self.stage.deadline())
    }

    /// A minute passes.
    pub(crate) async fn pass(&mut self) {
        let minute = Duration::from_secs(MINUTE.unsigned_abs());
        match self.stage.as_server() {
            Some(_) => self.step(MINUTE),
            None => self.stage.silence(minute).await,
        }
        self.passed += minute;
    }

    /// The server's clock steps by so many seconds.
    pub(crate) fn step(&self, seconds: i64) {
        let mut raw = self.stage.as_server().unwrap().raw();
        let micros = (seconds * 1_000_000).to_string();
        raw.run(&["HINCRBY", LEASES, "off", &micros]);
    }

    pub(crate) async fn begin(&self, index: i64, nonce: &str) -> Begun {
        let (who, deadline) = (process(index, nonce, ""), self.stage.deadline());
        let begun = self.stage.store.pod_begin(&who, TIMES, deadline).await;
        begun.unwrap()
    }

    /// A pod that need not wait for an earlier process.
    pub(crate) async fn started(&self, index: i64, nonce: &str) -> SimulatedPod {
        match self.begin(index, nonce).await {
            Begun::Started(incarnation) => SimulatedPod {
                index,
                incarnation,
                watch: ClockWatch::default(),
            },
            busy @ Begun::Busy { .. } => panic!("{nonce} has to wait: {busy:?}"),
        }
    }

    /// The pod renews; returns the store's time.
    pub(crate) async fn renewed_at(&self, of: &SimulatedPod) -> u64 {
        let (store, service, deadline) = self.store();
        let state = state(of.index, of.incarnation);
        let renewed = store.pod_renew(&service, &state, TIMES, deadline);
        let Renewed::Done { now, .. } = renewed.await.unwrap() else {
            panic!("pod {} is dead", of.index)
        };
        now
    }

    /// The pod renews, and reports a step as its driver does.
    pub(crate) async fn renew(&self, of: &mut SimulatedPod) -> Option<Stepped> {
        let sent = self.now();
        let now = self.renewed_at(of).await;
        let answered = self.now();
        let step = of.watch.step(ClockReading {
            sent,
            answered,
            store_micros: now,
        })?;
        Some(self.report_of(of, step).await)
    }

    /// The pod reports a step that no pod has reported yet.
    pub(crate) async fn report(&self, of: &SimulatedPod) -> Stepped {
        self.report_of(of, NEW_STEP).await
    }

    pub(crate) async fn report_of(&self, of: &SimulatedPod, step: ClockStep) -> Stepped {
        let (store, service, deadline) = self.store();
        let (pod, me) = (pod(of.index), of.incarnation);
        let reported = store.pod_stepped(&service, pod, me, step, TIMES, deadline);
        reported.await.unwrap()
    }

    pub(crate) async fn certify(&self, index: i64) -> Certificate {
        let (store, service, deadline) = self.store();
        let certificate = store.pod_certify(&service, pod(index), deadline);
        certificate.await.unwrap()
    }

    /// A client reads the pods.
    pub(crate) async fn record(&self, index: i64) -> Option<PodRecord> {
        let records = self.stage.pods(&service()).await.records;
        let mut records = records.into_iter();
        records.find(|record| record.state.pod_id == pod(index))
    }
}
