//! A store that fails when a test wants it to, and remembers what it was asked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use podlink::clock::{Clock, Tick};
use podlink::error::{Error, ErrorKind, Result, WriteOutcome};
use podlink::id::ServiceId;
use podlink::op::{Call, CallName, Renewed, Reply};
use podlink::store::{Changes, ConnectionReport, Store};

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The store cannot be reached.
    Refused,
    /// The store runs the operation, and the reply is lost.
    AnswerLost,
    /// The call waits until its deadline, and nothing happens.
    Silence,
    /// The store does what it is asked for at once, and its answer takes so long.
    Late(Duration),
}

/// A store in front of another one.
#[derive(Debug)]
pub(super) struct Faulty {
    store: Mutex<Arc<dyn Store>>,
    clock: Clock,
    /// Which server renewals say they come from.
    server: AtomicU64,
    /// Per operation, what happens to its next calls; then all is well again.
    faults: Mutex<BTreeMap<&'static str, VecDeque<Fault>>>,
    /// What was asked, and when.
    calls: Mutex<Vec<(&'static str, Tick)>>,
    /// Per operation, how many calls are under way, and how many there were at most.
    under_way: Mutex<BTreeMap<&'static str, (usize, usize)>>,
}

/// A call under way, however it ends.
struct UnderWay<'a>(&'a Faulty, &'static str);

impl<'a> UnderWay<'a> {
    fn new(store: &'a Faulty, operation: &'static str) -> Self {
        let mut all = store.under_way.lock().unwrap();
        let (now, most) = all.entry(operation).or_default();
        *now += 1;
        *most = (*most).max(*now);
        Self(store, operation)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut all = self.0.under_way.lock().unwrap();
        all.entry(self.1).or_default().0 -= 1;
    }
}

impl Faulty {
    pub(super) fn new(store: Arc<dyn Store>, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            store: Mutex::new(store),
            clock,
            server: AtomicU64::new(1),
            faults: Mutex::default(),
            calls: Mutex::default(),
            under_way: Mutex::default(),
        })
    }

    /// From now on this server replies.
    pub(super) fn replace(&self, store: Arc<dyn Store>, server: u64) {
        *self.store.lock().unwrap() = store;
        self.server.store(server, Ordering::SeqCst);
    }

    /// From now on renewals come from another server with the same data.
    pub(super) fn renumber(&self, server: u64) {
        self.server.store(server, Ordering::SeqCst);
    }

    fn inner(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store.lock().unwrap())
    }

    /// The next calls of this operation fail so, one after the other.
    pub(super) fn fail(&self, operation: &'static str, faults: &[Fault]) {
        let mut all = self.faults.lock().unwrap();
        all.entry(operation).or_default().extend(faults);
    }

    /// From now on nothing fails.
    pub(super) fn heal(&self) {
        self.faults.lock().unwrap().clear();
    }

    /// When this operation was asked for.
    pub(super) fn asked(&self, operation: &str) -> Vec<Tick> {
        let calls = self.calls.lock().unwrap();
        let wanted = calls.iter().filter(|(name, _)| *name == operation);
        wanted.map(|(_, at)| *at).collect()
    }

    /// How many calls of this operation were under way at a time.
    pub(super) fn most_at_once(&self, operation: &str) -> usize {
        let all = self.under_way.lock().unwrap();
        all.get(operation).map_or(0, |(_, most)| *most)
    }

    /// Waits by the clock of the test.
    async fn sleep_until(&self, moment: Tick) {
        while self.clock.now() < moment {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn pass<T>(
        &self,
        operation: &'static str,
        deadline: Tick,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.calls
            .lock()
            .unwrap()
            .push((operation, self.clock.now()));
        let _under_way = UnderWay::new(self, operation);
        let fault = {
            let mut faults = self.faults.lock().unwrap();
            faults.get_mut(operation).and_then(VecDeque::pop_front)
        };
        let error = |kind| Error::new(kind, "on purpose");
        match fault {
            None => call.await,
            Some(Fault::Refused) => {
                Err(error(ErrorKind::StoreUnavailable).with_outcome(WriteOutcome::NotSent))
            }
            Some(Fault::AnswerLost) => {
                call.await?;
                Err(error(ErrorKind::Timeout).with_outcome(WriteOutcome::Unknown))
            }
            Some(Fault::Late(by)) => {
                let answer = call.await;
                self.sleep_until(self.clock.now().after(by)).await;
                answer
            }
            Some(Fault::Silence) => {
                self.sleep_until(deadline).await;
                Err(error(ErrorKind::Timeout).with_outcome(WriteOutcome::Unknown))
            }
        }
    }
}

#[async_trait]
impl Store for Faulty {
    async fn call(&self, call: &Call, deadline: Tick) -> Result<Reply> {
        let store = self.inner();
        let work = async {
            let mut reply = store.call(call, deadline).await?;
            if let Reply::PodRenew(Renewed::Done { server, .. }) = &mut reply {
                *server = self.server.load(Ordering::SeqCst);
            }
            Ok(reply)
        };
        self.pass(call.name().as_str(), deadline, work).await
    }

    async fn subscribe(&self, service: &ServiceId, deadline: Tick) -> Result<Changes> {
        let store = self.inner();
        let work = store.subscribe(service, deadline);
        let name = CallName::Subscribe.as_str();
        self.pass(name, deadline, work).await
    }

    async fn close(&self) {
        self.inner().close().await;
    }

    fn report(&self) -> ConnectionReport {
        self.inner().report()
    }
}
