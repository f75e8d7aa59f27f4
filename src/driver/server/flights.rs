//! One flight per user: what this process asks of a user's ownership it asks one after the other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedMutexGuard;

use crate::clock::{Clock, Tick};
use crate::driver::with_deadline;
use crate::error::{Result, WriteOutcome};
use crate::id::{Token, Uid};

/// Users of releases without an answer are remembered up to here one by one...
const REMEMBERED: usize = 65_536;

/// The users that are being claimed or released.
#[derive(Debug, Default)]
pub(super) struct Flights {
    under_way: Mutex<HashMap<Uid, Arc<tokio::sync::Mutex<()>>>>,
    late: Mutex<LateReleases>,
}

/// Releases whose outcome is unknown: they may still arrive. The next claim of the user asks for a
/// greater token, which they do not match.
#[derive(Debug, Default)]
struct LateReleases {
    users: HashMap<Uid, Token>,
    /// ...and beyond that by the greatest of their tokens.
    others: Token,
}

/// The turn of one user. The next one may go on when it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    flights: &'a Flights,
    uid: Uid,
    turn: Option<OwnedMutexGuard<()>>,
}

impl Flights {
    fn under_way(&self) -> MutexGuard<'_, HashMap<Uid, Arc<tokio::sync::Mutex<()>>>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn late(&self) -> MutexGuard<'_, LateReleases> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other flight of this user is under way.
    pub(super) async fn enter(&self, uid: &Uid, clock: &Clock, deadline: Tick) -> Result<Turn<'_>> {
        let turn = Arc::clone(self.under_way().entry(uid.clone()).or_default());
        let mut flight = Turn {
            flights: self,
            uid: uid.clone(),
            turn: None,
        };
        let what = "an earlier operation on this user";
        let entered = with_deadline(clock, deadline, what, turn.lock_owned()).await;
        let turn = entered.map_err(|error| error.with_outcome(WriteOutcome::NotSent))?;
        flight.turn = Some(turn);
        Ok(flight)
    }

    /// A token that the next claim of the user must exceed.
    pub(super) fn above(&self, uid: &Uid) -> Token {
        let late = self.late();
        let own = late.users.get(uid).copied().unwrap_or(Token::NONE);
        own.max(late.others)
    }

    /// A release of this token may still arrive.
    pub(super) fn released_late(&self, uid: &Uid, token: Token) {
        let mut late = self.late();
        let room = late.users.len() < REMEMBERED || late.users.contains_key(uid);
        if room {
            let known = late.users.entry(uid.clone()).or_default();
            *known = token.max(*known);
        } else {
            late.others = late.others.max(token);
        }
    }

    /// The user was claimed by a token that no late release matches.
    pub(super) fn claimed(&self, uid: &Uid) {
        self.late().users.remove(uid);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut under_way = self.flights.under_way();
        drop(self.turn.take());
        // Only the table's is left: callers that wait hold one each.
        if under_way
            .get(&self.uid)
            .is_some_and(|turn| Arc::strong_count(turn) == 1)
        {
            under_way.remove(&self.uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn one_at_a_time_and_nothing_is_left() {
        let (flights, clock) = (Flights::default(), Clock::System);
        let uid = Uid::new("u").unwrap();
        let until = clock.deadline(Duration::from_secs(60));
        let first = flights.enter(&uid, &clock, until).await.unwrap();
        let late = flights.enter(&uid, &clock, clock.now()).await.unwrap_err();
        assert_eq!(late.outcome(), Some(WriteOutcome::NotSent));
        let second = flights.enter(&uid, &clock, until);
        let (second, ()) = tokio::join!(second, async { drop(first) });
        assert_eq!(flights.under_way().len(), 1);
        drop(second);
        assert!(flights.under_way().is_empty());
    }

    #[test]
    fn a_late_release_is_remembered_until_the_next_claim() {
        let flights = Flights::default();
        let (a, b) = (Uid::new("a").unwrap(), Uid::new("b").unwrap());
        flights.released_late(&a, Token::new(7));
        flights.released_late(&a, Token::new(5));
        assert_eq!(flights.above(&a), Token::new(7));
        assert_eq!(flights.above(&b), Token::NONE);
        flights.claimed(&a);
        assert_eq!(flights.above(&a), Token::NONE);
        for n in 0..REMEMBERED {
            flights.released_late(&Uid::new(&n.to_string()).unwrap(), Token::new(1));
        }
        flights.released_late(&a, Token::new(9));
        assert_eq!(flights.above(&b), Token::new(9));
    }
}
