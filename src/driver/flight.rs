//! One operation for many callers: whoever comes while a question is under way shares its answer.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tracing::Instrument;

use crate::error::{Error, ErrorKind, Result};

type Answer<T> = Shared<BoxFuture<'static, Result<T>>>;

/// The questions under way, by key.
///
/// The work runs in a task of its own, so a caller that stops waiting takes nobody down. The task
/// ends with its work, which ends by its deadline.
pub(crate) struct Flights<K, T> {
    under_way: Arc<Mutex<HashMap<K, Answer<T>>>>,
}

impl<K, T> std::fmt::Debug for Flights<K, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

/// A caller's place in a flight.
pub(crate) struct Seat<T> {
    pub(crate) answer: Answer<T>,
    /// Whether this caller started the flight.
    pub(crate) first: bool,
}

impl<K, T> Flights<K, T>
where
    K: Hash + Eq + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    pub(crate) fn new() -> Self {
        Self {
            under_way: Arc::default(),
        }
    }

    /// Joins the flight for `key`, or starts one with `work`.
    pub(crate) fn join<W>(&self, key: K, work: impl FnOnce() -> W) -> Seat<T>
    where
        W: Future<Output = Result<T>> + Send + 'static,
    {
        let mut under_way = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = under_way.get(&key) {
            return Seat {
                answer: answer.clone(),
                first: false,
            };
        }
        let landing = Landing {
            under_way: Arc::clone(&self.under_way),
            key: key.clone(),
        };
        let work = work();
        let task = async move {
            // Dropped when the work ends, in whatever way: later callers ask anew.
            let _landing = landing;
            work.await
        };
        // Whoever comes first is whose trace says what was done.
        let task = tokio::spawn(task.in_current_span());
        let answer = task
            .map(|ended| ended.unwrap_or_else(|_| Err(broken())))
            .boxed()
            .shared();
        under_way.insert(key, answer.clone());
        Seat {
            answer,
            first: true,
        }
    }
}

fn broken() -> Error {
    Error::new(
        ErrorKind::Internal,
        "the task that should have answered ended without an answer",
    )
}

struct Landing<K: Hash + Eq, T> {
    under_way: Arc<Mutex<HashMap<K, Answer<T>>>>,
    key: K,
}

impl<K: Hash + Eq, T> Drop for Landing<K, T> {
    fn drop(&mut self) {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::Semaphore;

    #[tokio::test]
    async fn many_callers_share_one_question_and_one_may_leave() {
        let flights: Flights<u32, u32> = Flights::new();
        let (asked, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
        let start = || {
            let (asked, gate) = (Arc::clone(&asked), Arc::clone(&gate));
            flights.join(1, || async move {
                asked.fetch_add(1, Ordering::SeqCst);
                let _open = gate.acquire().await;
                Ok(7)
            })
        };
        let (leaves, stays) = (start(), start());
        assert!(leaves.first && !stays.first);
        drop(leaves);
        gate.add_permits(1);
        assert_eq!(stays.answer.await.ok(), Some(7));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_flight_that_panicked_is_an_error_and_not_a_trap() {
        let flights: Flights<u32, u32> = Flights::new();
        let seat = flights.join(1, || async { panic!("on purpose") });
        assert_eq!(
            seat.answer.await.err().map(|e| e.kind()),
            Some(ErrorKind::Internal)
        );
        let again = flights.join(1, || async { Ok(3) });
        assert_eq!(again.answer.await.ok(), Some(3));
    }
}
