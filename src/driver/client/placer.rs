//! compute in batches: requests that arrive while a batch is under way are part of the next one.
//!
//! Callers queue requests; one task, the placer, drains the queue. Calls for the same user share one
//! flight (single flight), and all flights are sent to the store in one batch. The common case is
//! decided here. The others (a pod that may be dead, a peer's namespace, a strategy of the program's
//! own) take the slow path of `place.rs`, one task per flight.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;
use tracing::{Instrument, Span};

use super::caller::{Answers, Caller, Routed, ended_without_answer};
use super::lookup::Lookup;
use super::place::{self, FoundLink};
use super::{ClientShared, KnownService, Target};
use crate::cache::{Key, Ticket};
use crate::clock::Tick;
use crate::driver::view::View;
use crate::error::{Error, ErrorKind, Result, WriteOutcome};
use crate::id::PodIndex;
use crate::route::link::Placed;
use crate::telemetry::count;
use crate::trace;

/// Batches under way at a time: while the store works at one, the next is on its way.
const BATCHES: usize = 4;
/// The most users of one batch. Where fewer wait, each batch takes its share of them, so that the
/// server works at some while others are on their way and the program makes its next calls...
const BATCH_MAX: usize = 512;
/// ...but not less than this.
const BATCH_MIN: usize = 8;
/// A batch ends by the last deadline of its callers, so their deadlines lie at most this far
/// apart...
const DEADLINE_SPREAD: Duration = Duration::from_millis(25);
/// ...and each of them waits that long, and longer, for an error that says more than that the
/// deadline passed.
const MARGIN: Duration = Duration::from_millis(50);
/// How often the placer drains the queue while all batches are under way...
const POLL_WHILE_FULL: Duration = Duration::from_millis(10);
/// ...and at the callers' deadlines at the latest.
const POLL_MAX: Duration = Duration::from_secs(60);

/// One call of compute.
#[derive(Debug)]
pub(super) struct ComputeRequest {
    pub(super) target: Target,
    pub(super) deadline: Tick,
    pub(super) caller: Caller,
    /// The caller's, while traces are collected.
    pub(super) span: Span,
    /// Whether its steps get spans.
    traced: bool,
}

impl ComputeRequest {
    pub(super) fn new(target: Target, deadline: Tick, caller: Caller) -> Self {
        let span = if trace::is_collecting() {
            Span::current()
        } else {
            Span::none()
        };
        Self {
            target,
            deadline,
            caller,
            span,
            traced: trace::is_wanted(),
        }
    }
}

/// Requests that the placer has not yet drained.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// Held for a push or a swap, never across an await.
    queue: Mutex<RequestQueue>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct RequestQueue {
    requests: Vec<ComputeRequest>,
    /// Whether a placer runs. It ends when no caller waits any more.
    running: bool,
}

impl Requests {
    fn lock(&self) -> MutexGuard<'_, RequestQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands a request to the placer, which is started if none runs. Must be called on the runtime.
pub(super) fn ask(shared: &Arc<ClientShared>, request: ComputeRequest) {
    let mut queue = shared.requests.lock();
    queue.requests.push(request);
    let first = queue.requests.len() == 1;
    let running = std::mem::replace(&mut queue.running, true);
    drop(queue);
    if !running {
        tokio::spawn(Placer::new(Arc::clone(shared)).run());
    } else if first {
        shared.requests.arrived.notify_one();
    }
}

/// Which flight an answer belongs to.
#[derive(Debug, Clone, Copy)]
struct FlightId {
    key: Key,
    ticket: Ticket,
    /// A later flight of the same user has another one.
    number: u64,
}

/// One lookup under way, and the callers that wait for its answer.
struct Flight {
    number: u64,
    known: Arc<KnownService>,
    /// Not yet sent to the store.
    waits: bool,
    first: Caller,
    /// The first caller's, by which the lookup ends.
    deadline: Tick,
    joined: Vec<ComputeRequest>,
}

/// What the store is asked for one flight.
struct PendingOffer {
    flight_id: FlightId,
    target: Target,
    deadline: Tick,
    pod: PodIndex,
    /// Where the pod was chosen, and counted as sent to.
    view: Arc<View>,
}

/// A batch that has ended.
struct FinishedBatch {
    offers: Vec<PendingOffer>,
    asked: Tick,
    replies: Vec<Result<Placed>>,
}

/// The task that sends the batches of all callers.
struct Placer {
    shared: Arc<ClientShared>,
    flights: HashMap<(Key, Ticket), Flight>,
    /// How many flights there were.
    number: u64,
    /// Not yet sent.
    offers: VecDeque<PendingOffer>,
    batches: FuturesUnordered<BoxFuture<'static, FinishedBatch>>,
    /// Flights that take the slow path, each with a task of its own.
    slow_path: FuturesUnordered<BoxFuture<'static, (FlightId, Result<Routed>)>>,
    answers: Answers,
    /// No caller's deadline passes before this.
    due: Tick,
    /// No caller waits any more, and the next request starts another placer.
    ended: bool,
}

impl Drop for Placer {
    /// However the placer ends, its callers are answered, and the next one finds no placer running.
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut queue = self.shared.requests.lock();
        queue.running = false;
        let abandoned = std::mem::take(&mut queue.requests);
        drop(queue);
        drop(abandoned);
    }
}

impl Placer {
    fn new(shared: Arc<ClientShared>) -> Self {
        Self {
            shared,
            flights: HashMap::new(),
            number: 0,
            offers: VecDeque::new(),
            batches: FuturesUnordered::new(),
            slow_path: FuturesUnordered::new(),
            answers: Answers::default(),
            due: Tick::NEVER,
            ended: false,
        }
    }

    async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let arrived = &shared.requests.arrived;
        let timer = tokio::time::sleep(POLL_WHILE_FULL);
        tokio::pin!(timer);
        let mut timer_at = Tick::ZERO;
        while self.take_requests() {
            self.send();
            self.answers.deliver();
            if self.flights.is_empty() {
                continue;
            }
            let full = self.batches.len() >= BATCHES;
            let now = shared.clock.now();
            let look = now.after(if full { POLL_WHILE_FULL } else { POLL_MAX });
            let wanted = self.due.min(look);
            // A timer that fires too early does no harm: nearly always nothing has to be set.
            if wanted < timer_at || timer_at <= now {
                timer_at = wanted;
                timer.set(tokio::time::sleep(wanted.since(now)));
            }
            tokio::select! {
                biased;
                Some(batch) = self.batches.next() => self.batch_ended(batch),
                Some((flight_id, answer)) = self.slow_path.next() => self.land(flight_id, answer),
                () = arrived.notified(), if !full => {}
                () = &mut timer => {
                    timer_at = Tick::ZERO;
                    self.expire();
                }
            }
        }
    }

    /// Drains the queue. `false`: it was empty, and no caller waits any more.
    fn take_requests(&mut self) -> bool {
        let requests = {
            let mut queue = self.shared.requests.lock();
            if queue.requests.is_empty() && self.flights.is_empty() {
                queue.running = false;
                self.ended = true;
                return false;
            }
            std::mem::take(&mut queue.requests)
        };
        let now = self.shared.clock.now();
        for request in requests {
            self.admit(request, now);
        }
        true
    }

    fn admit(&mut self, request: ComputeRequest, now: Tick) {
        let stats = &self.shared.stats;
        match self.shared.look_up(&request.target, request.traced, now) {
            Lookup::Cached(routed) => {
                count(&stats.cache_hits);
                self.answers.add(request.caller, Ok(routed));
            }
            lookup => {
                count(&stats.cache_misses);
                if matches!(lookup, Lookup::SlowPath) {
                    self.shared.note_stale(&request.target);
                }
                self.join_or_start(request, lookup, now);
            }
        }
    }

    fn join_or_start(&mut self, request: ComputeRequest, lookup: Lookup, now: Tick) {
        let key = request.target.key;
        let ticket = self.shared.cache.ticket(key);
        self.due = self.due.min(request.deadline.after(MARGIN));
        if let Some(flight) = self.flights.get_mut(&(key, ticket)) {
            count(&self.shared.stats.flights_joined);
            flight.joined.push(request);
            return;
        }
        let ComputeRequest {
            target,
            deadline,
            caller,
            span,
            traced: _,
        } = request;
        self.number += 1;
        let flight_id = FlightId {
            key,
            ticket,
            number: self.number,
        };
        let chosen = match lookup {
            Lookup::FastPath(view) => {
                let pod = self.shared.choose(&target, &view, now);
                pod.map(|pod| (pod, view))
            }
            Lookup::Cached(_) | Lookup::SlowPath => None,
        };
        let flight = Flight {
            number: flight_id.number,
            known: Arc::clone(&target.known),
            waits: chosen.is_some(),
            first: caller,
            deadline,
            joined: Vec::new(),
        };
        self.flights.insert((key, ticket), flight);
        match chosen {
            Some((pod, view)) => self.offers.push_back(PendingOffer {
                flight_id,
                target,
                deadline,
                pod,
                view,
            }),
            None => {
                let work = self.place(&flight_id, target, deadline, None);
                self.spawn_slow_path(flight_id, work.instrument(span));
            }
        }
    }

    /// The slow path of this flight, from the link that was found, if one was.
    fn place(
        &self,
        flight_id: &FlightId,
        target: Target,
        deadline: Tick,
        found: Option<FoundLink>,
    ) -> impl Future<Output = Result<Routed>> + Send + 'static {
        place::place(
            Arc::clone(&self.shared),
            target,
            flight_id.ticket,
            deadline,
            found,
        )
    }

    fn spawn_slow_path(
        &self,
        flight_id: FlightId,
        work: impl Future<Output = Result<Routed>> + Send + 'static,
    ) {
        // The steps are part of the trace of the first caller.
        let task = tokio::spawn(work);
        self.slow_path.push(Box::pin(async move {
            (
                flight_id,
                task.await.unwrap_or_else(|_| Err(ended_without_answer())),
            )
        }));
    }

    /// Sends as many batches as may be under way.
    fn send(&mut self) {
        while self.batches.len() < BATCHES && !self.offers.is_empty() {
            let offers = self.next_batch();
            if !offers.is_empty() {
                let work = send_batch(Arc::clone(&self.shared), offers);
                self.batches.push(Box::pin(work));
            }
        }
    }

    /// The next offers whose deadlines are about the same.
    fn next_batch(&mut self) -> Vec<PendingOffer> {
        let mut batch: Vec<PendingOffer> = Vec::new();
        let mut later = VecDeque::new();
        let share = self.flights.len().div_ceil(BATCHES);
        let most = share.clamp(BATCH_MIN, BATCH_MAX);
        while batch.len() < most
            && let Some(offer) = self.offers.pop_front()
        {
            let near = batch
                .first()
                .is_none_or(|first| apart(first.deadline, offer.deadline) <= DEADLINE_SPREAD / 2);
            if !near {
                later.push_back(offer);
            } else if let Some(flight) = self.flight(offer.flight_id) {
                flight.waits = false;
                batch.push(offer);
            } else {
                // Its callers' deadlines passed before it could be sent.
                offer.view.count_sent(offer.pod, -1);
            }
        }
        // Requeue skipped offers at the front: they arrived before the ones not yet drained.
        while let Some(offer) = later.pop_back() {
            self.offers.push_front(offer);
        }
        batch
    }

    fn flight(&mut self, flight_id: FlightId) -> Option<&mut Flight> {
        let flight = self.flights.get_mut(&(flight_id.key, flight_id.ticket));
        flight.filter(|flight| flight.number == flight_id.number)
    }

    fn batch_ended(&mut self, batch: FinishedBatch) {
        let FinishedBatch {
            offers,
            asked,
            replies,
        } = batch;
        let now = self.shared.clock.now();
        for (offer, answer) in offers.into_iter().zip(replies) {
            let PendingOffer {
                flight_id,
                target,
                deadline,
                pod,
                view,
            } = offer;
            if answer.as_ref().is_ok_and(|placed| placed.made) {
                self.shared.stats.link_made(&target.link.service);
            } else {
                view.count_sent(pod, -1);
            }
            match answer {
                Ok(Placed { link, .. }) if self.shared.owner_serves(&target, link.pod, now) => {
                    self.shared.remember(&target, link, asked, flight_id.ticket);
                    self.land(flight_id, Ok(Routed::asked(link)));
                }
                // The slow path has to examine the owner.
                Ok(Placed { link, made }) => {
                    let found = Some(FoundLink {
                        link,
                        asked,
                        placed: made,
                        stands: made,
                    });
                    let work = self.place(&flight_id, target, deadline, found);
                    self.spawn_slow_path(flight_id, work);
                }
                Err(error) => {
                    let error = place::with_context(error, &target.link.service);
                    self.land(flight_id, Err(error));
                }
            }
        }
    }

    /// A flight has its answer. A joined caller with a later deadline than the flight's retries.
    fn land(&mut self, flight_id: FlightId, answer: Result<Routed>) {
        if self.flight(flight_id).is_none() {
            return;
        }
        let Some(flight) = self.flights.remove(&(flight_id.key, flight_id.ticket)) else {
            return;
        };
        let late = matches!(&answer, Err(error) if error.kind() == ErrorKind::Timeout);
        for request in flight.joined {
            if late && request.deadline > flight.deadline {
                let now = self.shared.clock.now();
                let lookup = self.shared.look_up(&request.target, request.traced, now);
                self.join_or_start(request, lookup, now);
            } else {
                self.answer(request.caller, answer.clone());
            }
        }
        self.answer(flight.first, answer);
    }

    fn answer(&mut self, caller: Caller, answer: Result<Routed>) {
        self.shared.note_answer(&caller, &answer);
        self.answers.add(caller, answer);
    }

    /// Answers the callers whose deadlines have passed. A flight goes on for callers with later
    /// ones, and once it was sent even without callers: the cache keeps its answer.
    fn expire(&mut self) {
        let now = self.shared.clock.now();
        if now < self.due {
            return; // the timer fired only to drain the queue
        }
        let is_over = |deadline: Tick| deadline.after(MARGIN) <= now;
        let (mut late, mut over, mut due) = (Vec::new(), Vec::new(), Tick::NEVER);
        for ((key, ticket), flight) in &mut self.flights {
            let joined = &mut flight.joined;
            for request in joined.extract_if(.., |joined| is_over(joined.deadline)) {
                late.push((request.caller, deadline_passed(&flight.known, flight.waits)));
            }
            if is_over(flight.deadline) {
                let (key, ticket, number) = (*key, *ticket, flight.number);
                let error = deadline_passed(&flight.known, flight.waits);
                over.push((
                    FlightId {
                        key,
                        ticket,
                        number,
                    },
                    error,
                ));
            }
            let all = flight.joined.iter().map(|joined| joined.deadline);
            due = all.chain([flight.deadline]).fold(due, Tick::min);
        }
        self.due = due.after(MARGIN);
        for (caller, error) in late {
            self.answer(caller, Err(error));
        }
        for (flight_id, error) in over {
            self.land(flight_id, Err(error));
        }
    }
}

/// One batch to the store for all offers.
async fn send_batch(shared: Arc<ClientShared>, offers: Vec<PendingOffer>) -> FinishedBatch {
    let deadlines = offers.iter().map(|offer| offer.deadline);
    let deadline = deadlines.max().unwrap_or(Tick::ZERO);
    let operations = offers.iter();
    let operations = operations.map(|offer| shared.offer(&offer.target, offer.pod));
    let asked = shared.clock.now();
    let home = &shared.places.here().home;
    let replies = home.ask_many(operations, deadline).await;
    FinishedBatch {
        offers,
        asked,
        replies,
    }
}

fn apart(one: Tick, other: Tick) -> Duration {
    one.since(other).max(other.since(one))
}

/// The error of a caller whose deadline passes before the flight has ended.
fn deadline_passed(known: &KnownService, waits: bool) -> Error {
    let what = "the pod of the user";
    let text = format!("the deadline passed while waiting for {what}");
    let error = Error::new(ErrorKind::Timeout, text).with("waited_for", what);
    let outcome = if waits {
        WriteOutcome::NotSent
    } else {
        WriteOutcome::Unknown
    };
    place::with_context(error.with_outcome(outcome), &known.id)
}
