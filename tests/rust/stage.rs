//! Where the contract is played: one store, empty, with what a test needs to look behind it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use podlink::clock::{Clock, ManualClock, Tick};
use podlink::id::{LinkId, Namespace, PodIndex, ServiceId, ServiceName, Uid};
use podlink::op::{Pods, PodsReading};
use podlink::route::state::PodState;
use podlink::store::{MemoryStore, RedisStore, Store};

use crate::ask::Ask;
use crate::server::{Kind, PATIENCE, Server, eventually};

/// One store and its surroundings.
pub(crate) struct Stage {
    pub(crate) store: Arc<dyn Store>,
    clock: Clock,
    place: Place,
    reading: Mutex<PodsReading>,
}

enum Place {
    /// Time stands still there until the test moves it.
    Memory(ManualClock),
    Server(Box<Server>),
}

impl Stage {
    pub(crate) async fn memory() -> Self {
        let hand = ManualClock::default();
        // Not at zero, so that "before" exists.
        hand.advance(Duration::from_secs(1000));
        let clock = Clock::Manual(hand.clone());
        let store = MemoryStore::open(None, clock.clone()).unwrap();
        Self {
            store,
            clock,
            place: Place::Memory(hand),
            reading: Mutex::default(),
        }
    }

    pub(crate) async fn server(kind: Kind) -> Self {
        let server = Server::start(kind).await;
        let store = RedisStore::new(&server.address(), Clock::System).unwrap();
        let place = Place::Server(Box::new(server));
        Self {
            store: Arc::new(store),
            clock: Clock::System,
            place,
            reading: Mutex::default(),
        }
    }

    /// Reads the pods as a client that reads again and again. Its reading must be the same as that
    /// of a client that reads for the first time.
    pub(crate) async fn pods(&self, service: &ServiceId) -> Pods {
        let last = self.reading.lock().unwrap().clone();
        let read = async |last: &PodsReading| {
            let pods = self.store.pods(service, last, self.deadline()).await;
            pods.unwrap()
        };
        let (again, first) = (read(&last).await, read(&PodsReading::default()).await);
        let states = |pods: &Pods| -> Vec<Arc<PodState>> {
            let records = pods.records.iter();
            records.map(|record| Arc::clone(&record.state)).collect()
        };
        assert_eq!(states(&again), states(&first));
        assert_eq!(again.corrupt, first.corrupt);
        *self.reading.lock().unwrap() = again.reading.clone();
        *again
    }

    /// A deadline that no healthy call reaches.
    pub(crate) fn deadline(&self) -> Tick {
        self.clock.deadline(PATIENCE)
    }

    /// A deadline that has just passed.
    pub(crate) fn too_late(&self) -> Tick {
        self.clock.now()
    }

    /// The server, if this store is one.
    pub(crate) fn as_server(&self) -> Option<&Server> {
        match &self.place {
            Place::Server(server) => Some(server),
            Place::Memory(_) => None,
        }
    }

    /// Kills the server and starts it again, on its port and without its data.
    pub(crate) async fn restart(&mut self) {
        let Place::Server(server) = &mut self.place else {
            panic!("no server to restart")
        };
        server.kill();
        server.restart().await;
    }

    /// Lets a temporary link expire that has at most `left` to live.
    pub(crate) async fn expire(&self, link: &LinkId, left: Duration) {
        match &self.place {
            Place::Memory(hand) => hand.advance(left),
            Place::Server(server) => {
                let mut raw = server.raw();
                let key = key_of(link);
                raw.run(&["PEXPIRE", &key, "1"]);
                let gone = async || (raw.number(&["EXISTS", &key]) == 0).then_some(());
                eventually("the link has expired", gone).await;
            }
        }
    }

    /// Lets time pass without a call.
    pub(crate) async fn silence(&self, time: Duration) {
        match &self.place {
            Place::Memory(hand) => hand.advance(time),
            Place::Server(server) => {
                let mut raw = server.raw();
                let micros = move |raw: &mut crate::server::Raw| {
                    let time = raw.text(&["TIME"]);
                    let (seconds, micros) = time.split_once(' ').unwrap();
                    seconds.parse::<u128>().unwrap() * 1_000_000 + micros.parse::<u128>().unwrap()
                };
                let until = micros(&mut raw) + time.as_micros();
                let passed = async || (micros(&mut raw) >= until).then_some(());
                eventually("the time has passed", passed).await;
            }
        }
    }

    /// Asks again and again, while time passes, until there is an answer.
    pub(crate) async fn until<T>(&self, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
        let Place::Memory(hand) = &self.place else {
            return eventually(what, ask).await;
        };
        const STEP: Duration = Duration::from_millis(5);
        for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
            if let Some(answer) = ask().await {
                return answer;
            }
            hand.advance(STEP);
        }
        panic!("waited too long until {what}");
    }
}

/// The pod with this index.
pub(crate) fn pod(index: i64) -> PodIndex {
    PodIndex::new(index).unwrap()
}

/// A user of service `svc` in namespace `ns`.
pub(crate) fn user(uid: &str) -> LinkId {
    link("ns", uid, "svc")
}

/// Any link.
pub(crate) fn link(namespace: &str, uid: &str, service: &str) -> LinkId {
    let service = service_id(namespace, service);
    LinkId {
        service,
        uid: Uid::new(uid).unwrap(),
    }
}

/// Any service.
pub(crate) fn service_id(namespace: &str, service: &str) -> ServiceId {
    let namespace = Namespace::new(namespace).unwrap();
    ServiceId {
        namespace,
        service: ServiceName::new(service).unwrap(),
    }
}

/// The key of a link, spelled out here once more: a test must not ask the code what is right.
pub(crate) fn key_of(link: &LinkId) -> String {
    format!(
        "sf:{{{}:lk:{}}}{}",
        link.service.namespace, link.uid, link.service.service
    )
}
