//! The retry budget: a failing peer must not get twice the calls.

use std::sync::atomic::{AtomicI64, Ordering};

/// The cost of a retry.
const COST: i64 = 1_000;
/// How many retries the budget holds at first, and at most.
const RESERVE: i64 = 100;

/// Every call deposits a share of a retry's cost; a retry withdraws the cost.
#[derive(Debug)]
pub(super) struct RetryBudget {
    left: AtomicI64,
    share: i64,
}

impl RetryBudget {
    /// A budget in which `ratio` of the calls may be retried.
    pub(super) fn new(ratio: f64) -> Self {
        #[allow(clippy::cast_possible_truncation, reason = "0 to 1000")]
        let share = (ratio.clamp(0.0, 1.0) * 1_000.0) as i64;
        Self {
            left: AtomicI64::new(RESERVE * COST),
            share,
        }
    }

    /// Counts a call.
    pub(super) fn deposit(&self) {
        let add = |left: i64| Some((left + self.share).min(RESERVE * COST));
        let _before = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Withdraws a retry; `false`: the budget is used up.
    pub(super) fn withdraw(&self) -> bool {
        let take = |left: i64| (left >= COST).then(|| left - COST);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_calls_is_retried_after_the_reserve() {
        let budget = RetryBudget::new(0.1);
        assert_eq!((0..1_000).filter(|_| budget.withdraw()).count(), 100);
        (0..100).for_each(|_| budget.deposit());
        assert_eq!((0..1_000).filter(|_| budget.withdraw()).count(), 10);
    }
}
