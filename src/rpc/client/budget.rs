//! How many calls may be repeated: a peer in trouble is not helped by twice the calls.

use std::sync::atomic::{AtomicI64, Ordering};

/// A retry costs this much.
const PRICE: i64 = 1_000;
/// As many retries are free at first, and at most saved up.
const RESERVE: i64 = 100;

/// Every call pays in a share of a retry's price.
#[derive(Debug)]
pub(super) struct Budget {
    left: AtomicI64,
    share: i64,
}

impl Budget {
    /// A budget in which `ratio` of the calls may be repeated.
    pub(super) fn new(ratio: f64) -> Self {
        #[allow(clippy::cast_possible_truncation, reason = "0 to 1000")]
        let share = (ratio.clamp(0.0, 1.0) * 1_000.0) as i64;
        Self {
            left: AtomicI64::new(RESERVE * PRICE),
            share,
        }
    }

    /// A call is made.
    pub(super) fn pay(&self) {
        let add = |left: i64| Some((left + self.share).min(RESERVE * PRICE));
        let _before = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Whether a call may be repeated.
    pub(super) fn take(&self) -> bool {
        let take = |left: i64| (left >= PRICE).then(|| left - PRICE);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_calls_is_repeated_once_the_reserve_is_gone() {
        let budget = Budget::new(0.1);
        assert_eq!((0..1_000).filter(|_| budget.take()).count(), 100);
        (0..100).for_each(|_| budget.pay());
        assert_eq!((0..1_000).filter(|_| budget.take()).count(), 10);
    }
}
