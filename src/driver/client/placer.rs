//! compute for many at once: whoever asks while an exchange is under way is part of the next one.
//!
//! Callers leave requests; one task, the placer, takes whatever has come together, puts callers
//! that ask for the same user into one flight, and asks the store for all flights in one exchange.
//! What is the rule is decided here; what is not (a pod that may be dead, a peer's namespace, a
//! strategy of the program's own) goes the long way of `place.rs`, one task per flight.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;
use tracing::{Instrument, Span};

use super::caller::{Answers, Caller, broken};
use super::place::{self, Found};
use super::{Known, Shared, Target};
use crate::cache::{Key, Ticket};
use crate::clock::Tick;
use crate::driver::view::View;
use crate::error::{Error, ErrorKind, Result, WriteOutcome};
use crate::id::PodIndex;
use crate::op::OperationName;
use crate::route::link::{Placed, Verdict, judge};
use crate::telemetry::count;
use crate::trace;

/// Exchanges under way at a time: while the store works at one, the next is on its way.
const EXCHANGES: usize = 4;
/// The most users of one exchange. Where fewer wait, each exchange takes its share of them, so that
/// the server works at some while others are on their way and the program makes its next calls...
const CROWD: usize = 512;
/// ...but not less than this.
const CROWD_LEAST: usize = 8;
/// An exchange ends by the last deadline of its callers, so their deadlines lie at most this far
/// apart...
const SPREAD: Duration = Duration::from_millis(25);
/// ...and each of them waits that long, and longer, for an error that says more than that its time
/// ran out.
const MARGIN: Duration = Duration::from_millis(50);
/// How often the placer looks at new requests while all exchanges are under way...
const LOOK: Duration = Duration::from_millis(10);
/// ...and at the callers' deadlines at the latest.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// One call of compute.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) target: Target,
    pub(super) deadline: Tick,
    pub(super) caller: Caller,
    /// The caller's, while traces are collected.
    pub(super) span: Span,
    /// Whether there shall be spans of what is done for it.
    traced: bool,
}

impl Request {
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

/// What the placer has not yet looked at.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// Held for a push or a swap, never across an await.
    waiting: Mutex<Waiting>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: Vec<Request>,
    /// Whether a placer runs. It ends when nobody waits for anything any more.
    running: bool,
}

impl Requests {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands a request to the placer, which is started if none runs. Must be called on the runtime.
pub(super) fn ask(shared: &Arc<Shared>, request: Request) {
    let mut waiting = shared.requests.lock();
    waiting.requests.push(request);
    let first = waiting.requests.len() == 1;
    let running = std::mem::replace(&mut waiting.running, true);
    drop(waiting);
    if !running {
        tokio::spawn(Placer::new(Arc::clone(shared)).run());
    } else if first {
        shared.requests.news.notify_one();
    }
}

/// Which flight an answer belongs to.
#[derive(Debug, Clone, Copy)]
struct Course {
    key: Key,
    ticket: Ticket,
    /// A later flight of the same user has another one.
    number: u64,
}

/// One question under way, and who waits for its answer.
struct Flight {
    number: u64,
    known: Arc<Known>,
    /// Not yet sent to anybody.
    waits: bool,
    first: Caller,
    /// That of the first caller, by which the question ends.
    deadline: Tick,
    joined: Vec<Request>,
}

/// What is to be asked of the store for one flight.
struct Question {
    course: Course,
    target: Target,
    deadline: Tick,
    pod: PodIndex,
    /// Where the pod was chosen, and counted as sent to.
    view: Arc<View>,
}

/// An exchange that has ended.
struct Exchanged {
    questions: Vec<Question>,
    asked: Tick,
    answers: Vec<Result<Placed>>,
}

/// The task that asks for everybody.
struct Placer {
    shared: Arc<Shared>,
    flights: HashMap<(Key, Ticket), Flight>,
    /// How many flights there were.
    number: u64,
    /// Not yet sent.
    questions: VecDeque<Question>,
    exchanges: FuturesUnordered<BoxFuture<'static, Exchanged>>,
    /// Flights that go the long way, each with a task of its own.
    long_way: FuturesUnordered<BoxFuture<'static, (Course, Result<PodIndex>)>>,
    answers: Answers,
    /// No caller's time is up before this.
    due: Tick,
    /// Nobody waits any more, and the next request starts another placer.
    ended: bool,
}

impl Drop for Placer {
    /// However the placer ends, callers hear of it, and the next one finds no placer running.
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut waiting = self.shared.requests.lock();
        waiting.running = false;
        let abandoned = std::mem::take(&mut waiting.requests);
        drop(waiting);
        drop(abandoned);
    }
}

impl Placer {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            flights: HashMap::new(),
            number: 0,
            questions: VecDeque::new(),
            exchanges: FuturesUnordered::new(),
            long_way: FuturesUnordered::new(),
            answers: Answers::default(),
            due: Tick::NEVER,
            ended: false,
        }
    }

    async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let news = &shared.requests.news;
        let timer = tokio::time::sleep(LOOK);
        tokio::pin!(timer);
        let mut rings_at = Tick::ZERO;
        while self.take_requests() {
            self.send();
            self.answers.deliver();
            if self.flights.is_empty() {
                continue;
            }
            let full = self.exchanges.len() >= EXCHANGES;
            let now = shared.clock.now();
            let look = now.after(if full { LOOK } else { LOOK_AGAIN });
            let wanted = self.due.min(look);
            // A timer that rings too early does no harm: nearly always nothing has to be set.
            if wanted < rings_at || rings_at <= now {
                rings_at = wanted;
                timer.set(tokio::time::sleep(wanted.since(now)));
            }
            tokio::select! {
                biased;
                Some(exchanged) = self.exchanges.next() => self.hear(exchanged),
                Some((course, answer)) = self.long_way.next() => self.land(course, answer),
                () = news.notified(), if !full => {}
                () = &mut timer => {
                    rings_at = Tick::ZERO;
                    self.expire();
                }
            }
        }
    }

    /// Looks at everything that was asked for meanwhile. `false`: there was nothing, and nobody
    /// waits for anything any more.
    fn take_requests(&mut self) -> bool {
        let requests = {
            let mut waiting = self.shared.requests.lock();
            if waiting.requests.is_empty() && self.flights.is_empty() {
                waiting.running = false;
                self.ended = true;
                return false;
            }
            std::mem::take(&mut waiting.requests)
        };
        let now = self.shared.clock.now();
        for request in requests {
            self.admit(request, now);
        }
        true
    }

    fn admit(&mut self, request: Request, now: Tick) {
        let stats = &self.shared.stats;
        match self.shared.way(&request, now) {
            Way::Known(pod) => {
                count(&stats.cache_hits);
                self.answers.add(request.caller, Ok(pod));
            }
            way => {
                count(&stats.cache_misses);
                if matches!(way, Way::Long) {
                    self.shared.note_stale(&request.target);
                }
                self.join_or_start(request, way, now);
            }
        }
    }

    fn join_or_start(&mut self, request: Request, way: Way, now: Tick) {
        let key = request.target.key;
        let ticket = self.shared.cache.ticket(key);
        self.due = self.due.min(request.deadline.after(MARGIN));
        if let Some(flight) = self.flights.get_mut(&(key, ticket)) {
            count(&self.shared.stats.flights_joined);
            flight.joined.push(request);
            return;
        }
        let Request {
            target,
            deadline,
            caller,
            span,
            traced: _,
        } = request;
        self.number += 1;
        let course = Course {
            key,
            ticket,
            number: self.number,
        };
        let chosen = match way {
            Way::Short(view) => {
                let pod = self.shared.choose(&target, &view, now);
                pod.map(|pod| (pod, view))
            }
            Way::Known(_) | Way::Long => None,
        };
        let flight = Flight {
            number: course.number,
            known: Arc::clone(&target.known),
            waits: chosen.is_some(),
            first: caller,
            deadline,
            joined: Vec::new(),
        };
        self.flights.insert((key, ticket), flight);
        match chosen {
            Some((pod, view)) => self.questions.push_back(Question {
                course,
                target,
                deadline,
                pod,
                view,
            }),
            None => {
                let work = self.place(&course, target, deadline, None);
                self.go_the_long_way(course, work.instrument(span));
            }
        }
    }

    /// The long way of this flight, from the link that was found, if one was.
    fn place(
        &self,
        course: &Course,
        target: Target,
        deadline: Tick,
        found: Option<Found>,
    ) -> impl Future<Output = Result<PodIndex>> + Send + 'static {
        place::place(
            Arc::clone(&self.shared),
            target,
            course.ticket,
            deadline,
            found,
        )
    }

    fn go_the_long_way(
        &self,
        course: Course,
        work: impl Future<Output = Result<PodIndex>> + Send + 'static,
    ) {
        // Whoever comes first is whose trace says what was done.
        let task = tokio::spawn(work);
        self.long_way.push(Box::pin(async move {
            (course, task.await.unwrap_or_else(|_| Err(broken())))
        }));
    }

    /// Asks for as many as may be under way.
    fn send(&mut self) {
        while self.exchanges.len() < EXCHANGES && !self.questions.is_empty() {
            let questions = self.next_crowd();
            if !questions.is_empty() {
                let work = exchange(Arc::clone(&self.shared), questions);
                self.exchanges.push(Box::pin(work));
            }
        }
    }

    /// The next questions whose deadlines are about the same.
    fn next_crowd(&mut self) -> Vec<Question> {
        let mut crowd: Vec<Question> = Vec::new();
        let mut later = VecDeque::new();
        let share = self.flights.len().div_ceil(EXCHANGES);
        let most = share.clamp(CROWD_LEAST, CROWD);
        while crowd.len() < most
            && let Some(question) = self.questions.pop_front()
        {
            let near = crowd
                .first()
                .is_none_or(|first| apart(first.deadline, question.deadline) <= SPREAD / 2);
            if !near {
                later.push_back(question);
            } else if let Some(flight) = self.flight(question.course) {
                flight.waits = false;
                crowd.push(question);
            } else {
                // Its callers' time was up before it could be sent.
                question.view.count_sent(question.pod, -1);
            }
        }
        // Their place in the line is before those that nobody has looked at.
        while let Some(question) = later.pop_back() {
            self.questions.push_front(question);
        }
        crowd
    }

    fn flight(&mut self, course: Course) -> Option<&mut Flight> {
        let flight = self.flights.get_mut(&(course.key, course.ticket));
        flight.filter(|flight| flight.number == course.number)
    }

    fn hear(&mut self, exchanged: Exchanged) {
        let Exchanged {
            questions,
            asked,
            answers,
        } = exchanged;
        let now = self.shared.clock.now();
        for (question, answer) in questions.into_iter().zip(answers) {
            let Question {
                course,
                target,
                deadline,
                pod,
                view,
            } = question;
            if answer.as_ref().is_ok_and(|placed| placed.made) {
                self.shared.stats.link_made(&target.link.service);
            } else {
                view.count_sent(pod, -1);
            }
            match answer {
                Ok(Placed { link, .. }) if self.shared.keeps(&target, link.pod, now) => {
                    self.shared.remember(&target, link, asked, course.ticket);
                    self.land(course, Ok(link.pod));
                }
                // Somebody has to look at the owner more closely.
                Ok(Placed { link, made }) => {
                    let found = Some(Found {
                        link,
                        asked,
                        placed: made,
                    });
                    let work = self.place(&course, target, deadline, found);
                    self.go_the_long_way(course, work);
                }
                Err(error) => {
                    let error = place::with_context(error, &target.link.service);
                    self.land(course, Err(error));
                }
            }
        }
    }

    /// A flight has its answer. Who joined it and has more time than it had asks again.
    fn land(&mut self, course: Course, answer: Result<PodIndex>) {
        if self.flight(course).is_none() {
            return;
        }
        let Some(flight) = self.flights.remove(&(course.key, course.ticket)) else {
            return;
        };
        let late = matches!(&answer, Err(error) if error.kind() == ErrorKind::Timeout);
        for request in flight.joined {
            if late && request.deadline > flight.deadline {
                let now = self.shared.clock.now();
                let way = self.shared.way(&request, now);
                self.join_or_start(request, way, now);
            } else {
                self.answer(request.caller, answer.clone());
            }
        }
        self.answer(flight.first, answer);
    }

    fn answer(&mut self, caller: Caller, answer: Result<PodIndex>) {
        self.shared.note_answer(&caller, &answer);
        self.answers.add(caller, answer);
    }

    /// Tells those whose time is up. A flight goes on for those who have more, and once it was
    /// sent also for nobody: the cache keeps what it brings.
    fn expire(&mut self) {
        let now = self.shared.clock.now();
        if now < self.due {
            return; // the timer only wanted new requests to be looked at
        }
        let is_over = |deadline: Tick| deadline.after(MARGIN) <= now;
        let (mut late, mut over, mut due) = (Vec::new(), Vec::new(), Tick::NEVER);
        for ((key, ticket), flight) in &mut self.flights {
            let joined = &mut flight.joined;
            for request in joined.extract_if(.., |joined| is_over(joined.deadline)) {
                late.push((request.caller, flight_is_late(&flight.known, flight.waits)));
            }
            if is_over(flight.deadline) {
                let (key, ticket, number) = (*key, *ticket, flight.number);
                let error = flight_is_late(&flight.known, flight.waits);
                over.push((
                    Course {
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
        for (course, error) in over {
            self.land(course, Err(error));
        }
    }
}

/// One batch to the store for all questions.
async fn exchange(shared: Arc<Shared>, questions: Vec<Question>) -> Exchanged {
    let deadlines = questions.iter().map(|question| question.deadline);
    let deadline = deadlines.max().unwrap_or(Tick::ZERO);
    let offers = questions.iter();
    let offers = offers.map(|question| shared.offer(&question.target, question.pod));
    let asked = shared.clock.now();
    let answers = shared.places.here().home.ask_many(offers, deadline).await;
    Exchanged {
        questions,
        asked,
        answers,
    }
}

fn apart(one: Tick, other: Tick) -> Duration {
    one.since(other).max(other.since(one))
}

/// The error of a caller whose time is up before the flight has ended.
fn flight_is_late(known: &Known, waits: bool) -> Error {
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

/// How a request can be answered.
enum Way {
    /// It is known by now.
    Known(PodIndex),
    /// By one question to the store, with a pod chosen here.
    Short(Arc<View>),
    /// By whatever it takes.
    Long,
}

impl Shared {
    /// Counts and times what a caller of compute is answered.
    pub(super) fn note_answer(&self, caller: &Caller, answer: &Result<PodIndex>) {
        if let Some(asked) = caller.asked()
            && !cfg!(feature = "unmetered")
        {
            let took = self.clock.now().since(asked);
            let operations = &self.stats.operations;
            let name = OperationName::ComputeLinkedPod;
            operations.ended(name.as_str(), took, answer);
        }
    }

    fn way(&self, request: &Request, now: Tick) -> Way {
        let target = &request.target;
        let view = target.known.watched.current(now);
        let view = view.as_ref().and_then(|view| view.as_ref());
        let entry = self.cache.get(target.key, now);
        if let (Some(view), Some(entry)) = (view, entry)
            && view.serves(entry.pod, entry.incarnation, now)
        {
            return Way::Known(entry.pod);
        }
        // What the cache holds and does not believe is to be looked at; and a call of many has no
        // span of its own for each.
        let looks = entry.is_some() || request.traced;
        let asks = target.home.is_foreign() || self.chooser.is_some();
        match view {
            Some(view) if !looks && !asks => Way::Short(Arc::clone(view)),
            _ => Way::Long,
        }
    }

    fn choose(&self, target: &Target, view: &View, now: Tick) -> Option<PodIndex> {
        let (strategy, uid) = (self.config.strategy, target.link.uid.as_str());
        let chosen = target.known.watched.choose(view, strategy, uid, now)?;
        if view.degraded {
            count(&self.stats.degraded_choices);
        }
        Some(chosen)
    }

    /// Whether the owner serves, as far as is known now.
    fn keeps(&self, target: &Target, owner: PodIndex, now: Tick) -> bool {
        let view = target.known.watched.current(now);
        let view = view.as_ref().and_then(|view| view.as_ref());
        view.is_some_and(|view| judge(view.standing(owner, now)) == Verdict::Keep)
    }
}
