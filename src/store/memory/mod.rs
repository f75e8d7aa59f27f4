//! The shared state without a server: one process, one lock, the same contract.

mod lease;
mod links;
mod listeners;
mod owners;
mod pods;
mod tags;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;

use super::codec::micros;
use super::{Changes, ConnectionReport, Store};
use crate::clock::{Clock, Tick, calendar_micros};
use crate::error::{Error, ErrorKind, Result, WriteOutcome};
use crate::id::{Namespace, ServiceId, ServiceName, Tag};
use crate::op::{Call, CallName, Effect, Operation, Reply, reply_to_call};
use crate::route::state::WorkloadState;

use lease::ServiceLeases;
use links::Links;
use listeners::Listeners;
use owners::Owners;

/// The stores that have a name, as long as one handle is open.
static NAMED: LazyLock<Mutex<HashMap<String, Weak<MemoryData>>>> = LazyLock::new(Mutex::default);

/// How many stores were opened: each gets a number.
static STORES: AtomicU64 = AtomicU64::new(0);

/// A store in this process.
pub struct MemoryStore {
    data: Arc<MemoryData>,
    clock: Clock,
    closed: AtomicBool,
    /// Identifies this handle's subscriptions among those of all handles with the same data.
    number: u64,
}

struct MemoryData {
    clock: Clock,
    /// The calendar time, in microseconds, at which `clock` showed `origin`.
    calendar_origin: u64,
    origin: Tick,
    /// Never held across an await: every operation is a few look-ups.
    tables: Mutex<Tables>,
}

/// The time of one call.
#[derive(Debug, Clone, Copy)]
struct Moment {
    tick: Tick,
    /// The store's calendar time.
    micros: u64,
}

/// What an operation does to the tables, in one step.
trait Apply: Operation {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Self::Reply>;
}

#[derive(Default)]
struct Tables {
    links: Links,
    owners: Owners,
    services: HashMap<ServiceId, ServiceLeases>,
    listeners: Listeners,
    /// Each with its end.
    workloads: HashMap<ServiceId, (WorkloadState, Tick)>,
    tags: HashMap<(Namespace, Tag), ServiceName>,
}

impl MemoryData {
    fn new(clock: Clock) -> Self {
        let (calendar_origin, origin) = (calendar_micros(), clock.now());
        Self {
            clock,
            calendar_origin,
            origin,
            tables: Mutex::default(),
        }
    }

    fn moment(&self) -> Moment {
        let tick = self.clock.now();
        Moment {
            tick,
            micros: self.calendar_origin + micros(tick.since(self.origin)),
        }
    }
}

impl MemoryStore {
    /// Opens a store. The same name is the same store for as long as one handle is open; without
    /// a name it is a new store. Links and leases run by the clock of the first handle.
    ///
    /// # Errors
    /// None so far; opening another kind of store can fail.
    pub fn open(name: Option<&str>, clock: Clock) -> Result<Arc<dyn Store>> {
        let data = match name.filter(|name| !name.is_empty()) {
            Some(name) => named(name, &clock),
            None => Arc::new(MemoryData::new(clock.clone())),
        };
        Ok(Arc::new(Self {
            data,
            clock,
            closed: AtomicBool::new(false),
            number: STORES.fetch_add(1, Ordering::Relaxed),
        }))
    }

    /// Begins a call: fails if its deadline has passed, then locks the tables and reads the time.
    fn begin(&self, deadline: Tick) -> Result<(MutexGuard<'_, Tables>, Moment)> {
        let refused = |kind, why| Err(Error::new(kind, why));
        if self.closed.load(Ordering::Acquire) {
            return refused(ErrorKind::Closed, "the store was closed");
        }
        if self.clock.now() >= deadline {
            return refused(
                ErrorKind::Timeout,
                "the deadline had passed before the call",
            );
        }
        let tables = self.data.tables.lock();
        let tables = tables.unwrap_or_else(PoisonError::into_inner);
        // The time is read under the lock, so it rises from call to call.
        Ok((tables, self.data.moment()))
    }

    fn apply(&self, call: &Call, deadline: Tick) -> Result<Reply> {
        let (mut tables, now) = self.begin(deadline).map_err(|error| match call.effect() {
            Effect::Read => error,
            Effect::Idempotent | Effect::Once => error.with_outcome(WriteOutcome::NotSent),
        })?;
        let tables = &mut *tables;
        reply_to_call!(call, operation => operation.apply(tables, now))
    }

    fn end_subscriptions(&self) {
        let tables = self.data.tables.lock();
        let mut tables = tables.unwrap_or_else(PoisonError::into_inner);
        tables.listeners.end(self.number);
    }
}

fn named(name: &str, clock: &Clock) -> Arc<MemoryData> {
    let mut stores = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(store) = stores.get(name).and_then(Weak::upgrade) {
        return store;
    }
    stores.retain(|_, store| store.strong_count() > 0);
    let store = Arc::new(MemoryData::new(clock.clone()));
    stores.insert(name.to_owned(), Arc::downgrade(&store));
    store
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.end_subscriptions();
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn call(&self, call: &Call, deadline: Tick) -> Result<Reply> {
        let reply = self.apply(call, deadline);
        reply.map_err(|error| error.in_call(call.name()))
    }

    async fn subscribe(&self, service: &ServiceId, deadline: Tick) -> Result<Changes> {
        let begun = self.begin(deadline);
        let (mut tables, _) = begun.map_err(|error| error.in_call(CallName::Subscribe))?;
        Ok(tables.listeners.add(self.number, service))
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.end_subscriptions();
    }

    /// A store in this process has no connection that could break.
    fn report(&self) -> ConnectionReport {
        ConnectionReport {
            up: true,
            ..ConnectionReport::default()
        }
    }
}
