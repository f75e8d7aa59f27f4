//! Counts of the last one, five and fifteen minutes.

use std::collections::VecDeque;
use std::time::Duration;

use super::names::{self, WINDOWS};
use super::snapshot::MetricsSnapshot;
use crate::clock::Tick;

/// The interval of readings.
pub const EVERY: Duration = Duration::from_secs(5);
/// Enough for the longest window, and one more for its edge.
const KEPT: usize = 182;

/// The values of the counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WindowReading {
    /// Computes and lookups that the cache answered.
    pub hits: u64,
    /// Computes and lookups that the cache could not answer.
    pub misses: u64,
    /// Link operations that have ended.
    pub operations: u64,
    /// Link operations that ended with an error.
    pub errors: u64,
    /// Links created.
    pub links_made: u64,
    /// Users moved away from dead pods.
    pub links_healed: u64,
    /// Calls to the store.
    pub store_calls: u64,
    /// Calls to the store that failed.
    pub store_errors: u64,
}

impl WindowReading {
    fn fields(&mut self) -> [&mut u64; 8] {
        [
            &mut self.hits,
            &mut self.misses,
            &mut self.operations,
            &mut self.errors,
            &mut self.links_made,
            &mut self.links_healed,
            &mut self.store_calls,
            &mut self.store_errors,
        ]
    }

    pub(super) fn add(&mut self, mut other: Self) {
        let both = self.fields().into_iter().zip(other.fields());
        both.for_each(|(mine, other)| *mine += *other);
    }

    fn less(mut self, mut earlier: Self) -> Self {
        let both = self.fields().into_iter().zip(earlier.fields());
        both.for_each(|(mine, earlier)| *mine = mine.saturating_sub(*earlier));
        self
    }
}

/// The counts within one window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Its name.
    pub name: &'static str,
    /// Its actual length: shorter than its name says until enough readings exist.
    pub length: Duration,
    /// The counts in it.
    pub happened: WindowReading,
}

impl Window {
    /// The share of lookups that the cache answered; `None` if there were none.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a ratio needs no exact counts")]
    pub fn hit_ratio(&self) -> Option<f64> {
        let asked = self.happened.hits + self.happened.misses;
        (asked > 0).then(|| self.happened.hits as f64 / asked as f64)
    }
}

/// The readings of the last 15 minutes.
#[derive(Debug)]
pub struct Windows(VecDeque<(Tick, WindowReading)>);

impl Windows {
    /// Windows that begin at `now`, with all counters at zero.
    #[must_use]
    pub fn new(now: Tick) -> Self {
        Self(VecDeque::from([(now, WindowReading::default())]))
    }

    /// Records a reading. Readings that come too fast are left out.
    pub fn note(&mut self, reading: WindowReading, now: Tick) {
        let last = self.0.back().map(|(at, _)| now.since(*at));
        if last.is_some_and(|passed| passed < EVERY / 2) {
            return;
        }
        if self.0.len() >= KEPT {
            self.0.pop_front();
        }
        self.0.push_back((now, reading));
    }

    /// The counts in each window up to this reading.
    #[must_use]
    pub fn look(&self, reading: WindowReading, now: Tick) -> Vec<Window> {
        let window = |(name, seconds): (&'static str, u64)| {
            let length = Duration::from_secs(seconds);
            // The latest reading that is old enough, or the oldest one.
            let old = self.0.iter().rev().find(|(at, _)| now.since(*at) >= length);
            let from = old.or(self.0.front());
            let (at, earlier) = from.copied().unwrap_or((now, reading));
            Window {
                name,
                length: now.since(at),
                happened: reading.less(earlier),
            }
        };
        WINDOWS.into_iter().map(window).collect()
    }

    pub(super) fn report(&self, snapshot: &mut MetricsSnapshot, reading: WindowReading, now: Tick) {
        for window in self.look(reading, now) {
            if let Some(ratio) = window.hit_ratio() {
                snapshot.level(&names::CACHE_HIT_RATIO, &[window.name], ratio);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Tick {
        Tick::from_nanos(seconds * 1_000_000_000)
    }

    fn reading(hits: u64, misses: u64) -> WindowReading {
        WindowReading {
            hits,
            misses,
            ..WindowReading::default()
        }
    }

    #[test]
    fn each_window_sees_what_happened_in_it() {
        let mut windows = Windows::new(at(0));
        assert_eq!(
            windows.look(reading(9, 9), at(3))[0].happened,
            reading(9, 9)
        );
        // One hit a second for ten minutes, then only misses.
        for step in 1..=120 {
            windows.note(reading(step * 5, 0), at(step * 5));
        }
        for step in 1..=12 {
            windows.note(reading(600, step * 5), at(600 + step * 5));
        }
        let ratios = |windows: &Windows| -> Vec<f64> {
            let looks = windows.look(reading(600, 60), at(660));
            looks.iter().filter_map(Window::hit_ratio).collect()
        };
        assert_eq!(ratios(&windows), [0.0, 0.8, 600.0 / 660.0]);
        let lengths: Vec<_> = windows.look(reading(600, 60), at(660));
        let lengths: Vec<_> = lengths.iter().map(|look| look.length.as_secs()).collect();
        assert_eq!(lengths, [60, 300, 660]);
        assert!(
            windows.look(reading(600, 60), at(9_000))[0]
                .hit_ratio()
                .is_none()
        );
    }

    #[test]
    fn readings_are_bounded_and_fast_ones_are_skipped() {
        let mut windows = Windows::new(at(0));
        for step in 1..10_000 {
            windows.note(reading(step, 0), at(step * 5));
            windows.note(reading(step, 0), at(step * 5));
        }
        assert_eq!(windows.0.len(), KEPT);
        assert_eq!(
            windows.look(reading(10_000, 0), at(50_000))[2]
                .length
                .as_secs(),
            900
        );
    }
}
