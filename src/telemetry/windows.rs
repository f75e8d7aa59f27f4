//! How much happened lately: the last minute, five, fifteen.

use std::collections::VecDeque;
use std::time::Duration;

use super::names::{self, WINDOWS};
use super::sheet::Sheet;
use crate::clock::Tick;

/// How often a reading is noted.
pub const EVERY: Duration = Duration::from_secs(5);
/// Enough for the longest window, and one more for what lies on its edge.
const KEPT: usize = 182;

/// How far the counters had come at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// Computes and look-ups that the cache answered.
    pub hits: u64,
    /// Those that it could not answer.
    pub misses: u64,
    /// Link operations that have ended.
    pub operations: u64,
    /// Those that ended with an error.
    pub errors: u64,
    /// Links made.
    pub links_made: u64,
    /// Users moved away from dead pods.
    pub links_healed: u64,
    /// Calls of the store.
    pub store_calls: u64,
    /// Those that failed.
    pub store_errors: u64,
}

impl Reading {
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

/// What happened within one window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Its name.
    pub name: &'static str,
    /// How long it really was: less than its name says as long as less is known.
    pub length: Duration,
    /// What happened in it.
    pub happened: Reading,
}

impl Window {
    /// The share of look-ups that the cache answered; `None` if there were none.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a ratio of counts is no count")]
    pub fn hit_ratio(&self) -> Option<f64> {
        let asked = self.happened.hits + self.happened.misses;
        (asked > 0).then(|| self.happened.hits as f64 / asked as f64)
    }
}

/// The readings of the last quarter of an hour.
#[derive(Debug)]
pub struct Windows(VecDeque<(Tick, Reading)>);

impl Windows {
    /// Windows that begin now, with nothing counted yet.
    #[must_use]
    pub fn new(now: Tick) -> Self {
        Self(VecDeque::from([(now, Reading::default())]))
    }

    /// Notes how far the counters have come. Readings that come too fast are left out.
    pub fn note(&mut self, reading: Reading, now: Tick) {
        let last = self.0.back().map(|(at, _)| now.since(*at));
        if last.is_some_and(|passed| passed < EVERY / 2) {
            return;
        }
        if self.0.len() >= KEPT {
            self.0.pop_front();
        }
        self.0.push_back((now, reading));
    }

    /// What happened in each window up to this reading.
    #[must_use]
    pub fn look(&self, reading: Reading, now: Tick) -> Vec<Window> {
        let window = |(name, seconds): (&'static str, u64)| {
            let length = Duration::from_secs(seconds);
            // The latest reading that is old enough, or the oldest that there is.
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

    pub(super) fn report(&self, sheet: &mut Sheet, reading: Reading, now: Tick) {
        for window in self.look(reading, now) {
            if let Some(ratio) = window.hit_ratio() {
                sheet.level(&names::CACHE_HIT_RATIO, &[window.name], ratio);
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

    fn reading(hits: u64, misses: u64) -> Reading {
        Reading {
            hits,
            misses,
            ..Reading::default()
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
    fn the_past_is_bounded_and_a_hasty_caller_does_not_push_it_out() {
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
