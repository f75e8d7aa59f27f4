//! The queue in front of the program's own strategy. The function answers one call after the other,
//! so a compute waits for it only if its turn comes soon; otherwise podlink chooses at once.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::PodChooser;
use crate::clock::{Clock, Tick};
use crate::driver::with_deadline;
use crate::error::Result;
use crate::id::{LinkId, PodIndex};
use crate::route::snapshot::Pod;

/// The most calls that wait for the function. Only a function that takes microseconds gets so many.
const QUEUE_MAX: usize = 4_096;
/// The share of a compute's time in which its call must be expected to begin.
const QUEUE_SHARE: u32 = 8;
/// The share after which a call that has not begun is given up: the function became slower.
const GIVE_UP_SHARE: u32 = 4;
/// The average is over so many calls.
const SAMPLES: u32 = 16;
/// How often an overload is logged.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// The program's strategy, and the calls that wait for it. Dropping it ends them.
#[derive(Debug)]
pub(super) struct ChooserQueue {
    chooser: Arc<dyn PodChooser>,
    load: Arc<ChooserLoad>,
}

/// What came of asking the strategy.
pub(super) enum Asked {
    /// What it returned, or how it failed.
    Chosen(Result<Option<PodIndex>>),
    /// Its turn would have come too late, or did.
    Overloaded,
}

impl ChooserQueue {
    pub(super) fn new(chooser: Arc<dyn PodChooser>) -> Self {
        let load = Arc::default();
        Self { chooser, load }
    }

    /// Asks the strategy for this user's pod, if its turn comes in time, until half of the time to
    /// `deadline` is over. Must be called on the runtime.
    pub(super) async fn ask(
        &self,
        clock: &Clock,
        link: &LinkId,
        candidates: Vec<Pod>,
        deadline: Tick,
    ) -> Asked {
        let now = clock.now();
        let left = deadline.since(now);
        let Some((waiting, mut answer)) = self.enqueue(clock, link, candidates, now, left) else {
            return Asked::Overloaded;
        };
        let give_up = now.after(left / GIVE_UP_SHARE);
        let mut answered = with_deadline(clock, give_up, "the strategy", &mut answer).await;
        if answered.is_err() {
            if !waiting.has_begun() {
                return Asked::Overloaded;
            }
            // A strategy that does not answer must not fail the compute.
            let half = now.after(left / 2);
            answered = with_deadline(clock, half, "the strategy", &mut answer).await;
        }
        match answered {
            Ok(Ok(choice)) => Asked::Chosen(choice),
            // The call was given up, because the function is slower than expected.
            Ok(Err(_)) => Asked::Overloaded,
            Err(late) => Asked::Chosen(Err(late)),
        }
    }

    /// Starts a call, unless too many wait already.
    fn enqueue(
        &self,
        clock: &Clock,
        link: &LinkId,
        candidates: Vec<Pod>,
        now: Tick,
        left: Duration,
    ) -> Option<(WaitingCompute, oneshot::Receiver<Result<Option<PodIndex>>>)> {
        let mut calls = self.load.calls();
        let (begin_by, until) = (now.after(left / QUEUE_SHARE), now.after(left / 2));
        if !calls.admits(now, begin_by) {
            return None;
        }
        let number = calls.next;
        let (load, waits) = (Arc::clone(&self.load), Arc::clone(&self.load));
        let running = RunningCall { load, number };
        let (sender, answer) = oneshot::channel();
        let (chooser, link, clock) = (Arc::clone(&self.chooser), link.clone(), clock.clone());
        let choice = async move {
            let choice = chooser.choose(&link.service, &link.uid, candidates, until);
            choice.await
        };
        let choice = Droppable::new(choice);
        let droppable = choice.clone();
        // It goes on when the compute stops waiting, so that the queue knows what the function is
        // at. It ends with the function, with its place in the queue, or with the queue.
        let task = tokio::spawn(async move {
            let choice = choice.ended().await;
            running.answered(clock.now());
            let _gone = sender.send(choice);
        });
        calls.push(now, begin_by, Some((droppable, task.abort_handle())));
        Some((
            WaitingCompute {
                load: waits,
                number,
            },
            answer,
        ))
    }

    /// Notes a compute that the strategy had no time for, and logs it rarely.
    pub(super) fn note_overload(&self, now: Tick) {
        let unlogged = self.load.calls().note_overload(now);
        if let Some(computes) = unlogged {
            tracing::warn!(
                computes,
                "the strategy is too slow for so many new users: podlink chose for some"
            );
        }
    }
}

impl Drop for ChooserQueue {
    fn drop(&mut self) {
        let calls = std::mem::take(&mut self.load.calls().waiting);
        end(calls.into_values());
    }
}

/// A compute that waits for its call. If it stops waiting before the call has begun, the call ends.
struct WaitingCompute {
    load: Arc<ChooserLoad>,
    number: u64,
}

impl WaitingCompute {
    /// Whether the function is at this very call.
    fn has_begun(&self) -> bool {
        self.load.calls().first() == Some(self.number)
    }
}

impl Drop for WaitingCompute {
    fn drop(&mut self) {
        let mut calls = self.load.calls();
        if calls.first() != Some(self.number) {
            let call = calls.waiting.remove(&self.number);
            drop(calls);
            end(call);
        }
    }
}

/// The task of a call. However it ends, the next call of the queue begins.
struct RunningCall {
    load: Arc<ChooserLoad>,
    number: u64,
}

impl RunningCall {
    fn answered(&self, now: Tick) {
        let too_late = self.load.calls().answered(self.number, now);
        end(too_late);
    }
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        self.load.calls().waiting.remove(&self.number);
    }
}

fn end(calls: impl IntoIterator<Item = QueuedCall>) {
    for call in calls {
        if let Some((choice, task)) = call.task {
            choice.drop_now();
            task.abort();
        }
    }
}

type Choice = Result<Option<PodIndex>>;

/// A call that another task may drop: at once, where an aborted task is dropped when the runtime
/// gets to it. Until then Python would begin what no caller waits for.
#[derive(Clone)]
struct Droppable(Arc<Mutex<Option<BoxFuture<'static, Choice>>>>);

impl Droppable {
    fn new(choice: impl Future<Output = Choice> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(choice.boxed()))))
    }

    fn call(&self) -> MutexGuard<'_, Option<BoxFuture<'static, Choice>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_now(&self) {
        let call = self.call().take();
        drop(call);
    }

    /// Its result. It does not end if the call was dropped; its task is aborted then.
    async fn ended(&self) -> Choice {
        poll_fn(|context| match self.call().as_mut() {
            Some(call) => call.as_mut().poll(context),
            None => Poll::Pending,
        })
        .await
    }
}

impl std::fmt::Debug for Droppable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Droppable").finish_non_exhaustive()
    }
}

/// The calls of one strategy. Never held across an await.
#[derive(Debug, Default)]
struct ChooserLoad(Mutex<QueuedCalls>);

impl ChooserLoad {
    fn calls(&self) -> MutexGuard<'_, QueuedCalls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The calls that the function has not answered, by number. The first is the one that it is at.
#[derive(Debug, Default)]
struct QueuedCalls {
    waiting: BTreeMap<u64, QueuedCall>,
    next: u64,
    /// Since when the function is at the first call.
    began: Tick,
    /// Whether the first call waited while the function was at the one before it.
    followed: bool,
    /// How long a call takes, on average over the last ones that followed another. What a call takes
    /// to reach an idle thread is not part of it.
    each: Duration,
    /// The calls that the average is made of, `SAMPLES` at the most.
    samples: u32,
    logged: Option<Tick>,
    /// The overloads since then.
    unlogged: u64,
}

#[derive(Debug)]
struct QueuedCall {
    begin_by: Tick,
    /// Dropping the call ends it, if the function has not begun with it; the task is aborted then.
    task: Option<(Droppable, AbortHandle)>,
}

impl QueuedCalls {
    fn first(&self) -> Option<u64> {
        self.waiting.keys().next().copied()
    }

    /// Whether one more call can be expected to begin in time.
    fn admits(&self, now: Tick, begin_by: Tick) -> bool {
        self.waiting.len() < QUEUE_MAX && self.begins(self.waiting.len(), now) <= begin_by
    }

    /// When a call with so many others before it is expected to begin.
    fn begins(&self, before: usize, now: Tick) -> Tick {
        let Some(others) = before.checked_sub(1) else {
            return now;
        };
        // A few calls may have waited for the interpreter: they say little of the others.
        let known = self.samples == SAMPLES;
        let each = if known { self.each } else { Duration::ZERO };
        // A call that takes longer than usual may take as long again.
        let elapsed = now.since(self.began);
        let first = each.checked_sub(elapsed).unwrap_or(elapsed);
        let others = u32::try_from(others).unwrap_or(u32::MAX);
        now.after(first + each.saturating_mul(others))
    }

    fn push(&mut self, now: Tick, begin_by: Tick, task: Option<(Droppable, AbortHandle)>) {
        if self.waiting.is_empty() {
            (self.began, self.followed) = (now, false);
        }
        let call = QueuedCall { begin_by, task };
        self.waiting.insert(self.next, call);
        self.next += 1;
    }

    /// Notes an answer. Returns the calls that are given up, the newest of the queue: they cannot
    /// begin in time any more.
    fn answered(&mut self, number: u64, now: Tick) -> Vec<QueuedCall> {
        let took = now.since(self.began);
        let was_first = self.first() == Some(number);
        self.waiting.remove(&number);
        if was_first {
            if self.followed {
                self.each = (self.each * self.samples + took) / (self.samples + 1);
                self.samples = (self.samples + 1).min(SAMPLES);
            }
            (self.began, self.followed) = (now, true);
        }
        let mut given_up = Vec::new();
        // The function is at the first one already.
        while let before @ 1.. = self.waiting.len().saturating_sub(1) {
            let begins = self.begins(before, now);
            let last = self.waiting.last_entry();
            let Some(late) = last.filter(|last| last.get().begin_by < begins) else {
                break;
            };
            given_up.push(late.remove());
        }
        given_up
    }

    /// Counts an overload. Returns how many are to be logged, if it is time.
    fn note_overload(&mut self, now: Tick) -> Option<u64> {
        self.unlogged += 1;
        let due = self.logged.is_none_or(|at| now.since(at) >= WARN_EVERY);
        due.then(|| {
            self.logged = Some(now);
            std::mem::take(&mut self.unlogged)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Tick {
        Tick::ZERO.after(Duration::from_millis(millis))
    }

    /// Pushes calls, all at the same moment, while they are admitted; returns how many were.
    fn push_many(calls: &mut QueuedCalls, count: usize, now: Tick, begin_by: Tick) -> usize {
        let admitted = (0..count).take_while(|_| {
            let admits = calls.admits(now, begin_by);
            if admits {
                calls.push(now, begin_by, None);
            }
            admits
        });
        admitted.count()
    }

    /// Calls that were answered one after the other, 2 ms each.
    fn seasoned() -> QueuedCalls {
        let mut calls = QueuedCalls::default();
        assert_eq!(push_many(&mut calls, 17, at(0), at(100)), 17);
        for number in 0..17 {
            calls.answered(number, at(50 + 2 * number));
        }
        calls
    }

    #[test]
    fn only_calls_that_begin_in_time_are_admitted() {
        let mut calls = seasoned();
        // The 51st call begins after 100 ms.
        assert_eq!(push_many(&mut calls, 1_000, at(100), at(200)), 51);
        assert!(!calls.admits(at(101), at(201)));
        calls.answered(17, at(102));
        assert!(calls.admits(at(102), at(202)));
    }

    #[test]
    fn the_first_answers_end_what_cannot_begin_in_time() {
        let mut calls = QueuedCalls::default();
        // Not knowing how long a call takes, the queue takes all.
        assert_eq!(push_many(&mut calls, 1_000, at(0), at(100)), 1_000);
        // The first call took long to reach the thread, which says nothing of the others.
        for number in 0..16 {
            assert!(calls.answered(number, at(20 + 2 * number)).is_empty());
        }
        assert_eq!(calls.answered(16, at(52)).len(), 1_000 - 17 - 25);
        assert_eq!(calls.first(), Some(17), "the oldest are served");
    }

    #[test]
    fn the_call_that_the_function_is_at_is_not_given_up() {
        let mut calls = seasoned();
        assert_eq!(push_many(&mut calls, 2, at(100), at(200)), 2);
        assert!(calls.answered(17, at(300)).is_empty());
        assert_eq!(calls.first(), Some(18));
    }

    #[test]
    fn behind_a_call_that_hangs_none_waits() {
        let mut calls = QueuedCalls::default();
        calls.push(at(0), at(100), None);
        assert!(calls.admits(at(50), at(150)));
        assert!(!calls.admits(at(200), at(300)));
        // It has ended after all: the next one is admitted.
        calls.answered(0, at(10_000));
        assert!(calls.admits(at(10_000), at(10_100)));
    }

    #[test]
    fn the_queue_is_bounded_and_an_overload_is_logged_rarely() {
        let mut calls = QueuedCalls::default();
        let admitted = push_many(&mut calls, 2 * QUEUE_MAX, at(0), at(100));
        assert_eq!(admitted, QUEUE_MAX);
        assert_eq!(calls.note_overload(at(0)), Some(1));
        assert!((1..10_000).all(|now| calls.note_overload(at(now)).is_none()));
        assert_eq!(calls.note_overload(at(10_000)), Some(10_000));
    }
}
