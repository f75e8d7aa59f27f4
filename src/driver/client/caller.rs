//! The callers that wait for answers of compute, and the delivery of answers in batches.

use std::fmt::Debug;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::cache::Entry;
use crate::clock::Tick;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{PodIndex, Token};
use crate::route::link::{Holder, StoredLink};

/// The answer of compute: the user's pod, and who owns the user there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routed {
    /// The pod.
    pub pod: PodIndex,
    /// Its process that owns the user; `None`: no process is known to.
    pub holder: Option<Holder>,
    /// Whether the cache had the answer.
    pub from_cache: bool,
}

impl Routed {
    /// What the store or a peer answered.
    pub(super) const fn asked(link: StoredLink) -> Self {
        Self {
            pod: link.pod,
            holder: link.holder,
            from_cache: false,
        }
    }

    /// What is remembered.
    pub(super) fn cached(entry: &Entry) -> Self {
        let owned = entry.token != Token::NONE;
        Self {
            pod: entry.pod,
            holder: owned.then_some(Holder {
                incarnation: entry.owner,
                token: entry.token,
            }),
            from_cache: true,
        }
    }
}

/// Answers, each under its caller's number.
pub type Numbered = Vec<(u64, Result<Routed>)>;

/// Where the answers for many callers go, each under the caller's number.
pub trait Inbox: Send + Sync + Debug + 'static {
    /// Takes answers. Must not wait.
    fn arrive(&self, answers: Numbered);
}

/// One caller of compute. However the lookup ends, even by a panic, the caller gets an answer.
#[derive(Debug)]
pub struct Caller {
    address: Option<Address>,
    /// Since when it waits, if that is timed here.
    asked: Option<Tick>,
}

#[derive(Debug)]
enum Address {
    Inbox(Arc<dyn Inbox>, u64),
    Channel(oneshot::Sender<Result<Routed>>),
}

impl Caller {
    /// A caller with this number at this inbox.
    #[must_use]
    pub fn new(inbox: Arc<dyn Inbox>, number: u64) -> Self {
        Self::at(Address::Inbox(inbox, number))
    }

    const fn at(address: Address) -> Self {
        Self {
            address: Some(address),
            asked: None,
        }
    }

    /// The same caller, whose waiting is counted and timed from now on.
    pub(super) fn timed(mut self, now: Tick) -> Self {
        self.asked = Some(now);
        self
    }

    pub(super) const fn asked(&self) -> Option<Tick> {
        self.asked
    }

    /// A caller that waits for its answer alone.
    pub(super) fn alone() -> (Self, impl Future<Output = Result<Routed>> + Send) {
        let (caller, answer) = oneshot::channel();
        let answer = async { answer.await.unwrap_or_else(|_| Err(ended_without_answer())) };
        (Self::at(Address::Channel(caller)), answer)
    }

    /// Answers this caller alone.
    pub(super) fn settle(self, answer: Result<Routed>) {
        let mut answers = Answers::default();
        answers.add(self, answer);
        answers.deliver();
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        if let Some(Address::Inbox(inbox, number)) = self.address.take() {
            inbox.arrive(vec![(number, Err(ended_without_answer()))]);
        }
    }
}

/// Answers on their way: each inbox gets all of its own at once.
#[derive(Debug, Default)]
pub(super) struct Answers(Vec<(Arc<dyn Inbox>, Numbered)>);

impl Answers {
    pub(super) fn add(&mut self, mut caller: Caller, answer: Result<Routed>) {
        match caller.address.take() {
            Some(Address::Inbox(inbox, number)) => {
                let known = self.0.iter_mut().find(|(at, _)| Arc::ptr_eq(at, &inbox));
                match known {
                    Some((_, answers)) => answers.push((number, answer)),
                    None => self.0.push((inbox, vec![(number, answer)])),
                }
            }
            // A caller that has stopped waiting wants no answer.
            Some(Address::Channel(channel)) => drop(channel.send(answer)),
            None => {}
        }
    }

    pub(super) fn deliver(&mut self) {
        for (inbox, answers) in self.0.drain(..) {
            inbox.arrive(answers);
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.deliver();
    }
}

/// The error of a caller whose lookup ended without an answer.
pub(super) fn ended_without_answer() -> Error {
    Error::new(
        ErrorKind::Internal,
        "the task that should have answered ended without an answer",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::link::Life;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    struct StoredAnswers(Mutex<Vec<Numbered>>);

    impl Inbox for StoredAnswers {
        fn arrive(&self, answers: Numbered) {
            self.0.lock().unwrap().push(answers);
        }
    }

    fn pod(index: i64) -> Result<Routed> {
        let pod = PodIndex::new(index)?;
        let life = Life::Persistent;
        Ok(Routed::asked(StoredLink::unowned(pod, life)))
    }

    fn inbox() -> (Arc<StoredAnswers>, Arc<dyn Inbox>) {
        let inbox = Arc::<StoredAnswers>::default();
        (Arc::clone(&inbox), inbox)
    }

    #[test]
    fn each_inbox_gets_all_of_its_answers_at_once() {
        let ((one, to_one), (two, to_two)) = (inbox(), inbox());
        let mut answers = Answers::default();
        for number in 0..5 {
            let to = if number % 2 == 0 { &to_one } else { &to_two };
            answers.add(Caller::new(Arc::clone(to), number), pod(0));
        }
        answers.deliver();
        let numbers = |inbox: &StoredAnswers| {
            let arrived = inbox.0.lock().unwrap();
            let of = |batch: &Numbered| batch.iter().map(|(number, _)| *number).collect();
            arrived.iter().map(of).collect::<Vec<Vec<u64>>>()
        };
        assert_eq!(numbers(&one), [vec![0, 2, 4]]);
        assert_eq!(numbers(&two), [vec![1, 3]]);
    }

    #[tokio::test]
    async fn a_dropped_caller_gets_an_error() {
        let (inbox, to) = inbox();
        drop(Caller::new(to, 7));
        let arrived = inbox.0.lock().unwrap().pop().unwrap();
        let (number, answer) = &arrived[0];
        let kind = answer.as_ref().unwrap_err().kind();
        assert_eq!((*number, kind), (7, ErrorKind::Internal));

        let (caller, answer) = Caller::alone();
        drop(caller);
        assert_eq!(answer.await.unwrap_err().kind(), ErrorKind::Internal);
        let (caller, answer) = Caller::alone();
        caller.settle(pod(3));
        assert_eq!(answer.await.unwrap().pod.get(), 3);
    }
}
