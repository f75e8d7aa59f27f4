//! Whether the store's clock stepped forward between two renewals.
//!
//! A script cannot distinguish a small step from time that has passed. A pod can: both replies say the
//! store's time, and the pod has a clock of its own.

use std::time::Duration;

use crate::clock::Tick;

/// What the two clocks may differ by without a step. Their rates differ by much less in the time
/// between two renewals.
const TOLERANCE: Duration = Duration::from_millis(250);

/// One renewal that succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockReading {
    /// When it was sent.
    pub sent: Tick,
    /// When its reply was received.
    pub answered: Tick,
    /// The store's virtual time in the reply, in microseconds.
    pub store_micros: u64,
}

/// A step forward of the store's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockStep {
    /// How far it stepped, or all steps together.
    pub by: Duration,
    /// It did so after this moment of its own: that of the renewal before.
    pub after_micros: u64,
    /// And not after this one: that of the renewal that showed it.
    pub seen_micros: u64,
}

/// Compares the store's clock with this machine's from renewal to renewal.
#[derive(Debug, Default)]
pub struct ClockWatch {
    last: Option<ClockReading>,
}

impl ClockWatch {
    /// How far the store's clock stepped forward since the last renewal; `None`: it did not.
    ///
    /// The store read its clock after the first renewal was sent and before the second one's reply
    /// was received. So a slow network never looks like a step.
    pub fn step(&mut self, reading: ClockReading) -> Option<ClockStep> {
        let last = self.last.replace(reading)?;
        let passed = Duration::from_micros(reading.store_micros.saturating_sub(last.store_micros));
        let explained = reading.answered.since(last.sent) + TOLERANCE;
        let by = passed.saturating_sub(explained);
        (!by.is_zero()).then_some(ClockStep {
            by,
            after_micros: last.store_micros,
            seen_micros: reading.store_micros,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn millis(millis: u64) -> Tick {
        Tick::from_nanos(millis * 1_000_000)
    }

    fn reading(sent: u64, answered: u64, store_micros: u64) -> ClockReading {
        ClockReading {
            sent: millis(sent),
            answered: millis(answered),
            store_micros,
        }
    }

    #[test]
    fn first_renewal_tells_nothing() {
        assert_eq!(ClockWatch::default().step(reading(0, 1, 99 * SECOND)), None);
    }

    #[test]
    fn equal_clocks_do_not_step() {
        let mut watch = ClockWatch::default();
        for second in 0..100 {
            let at = second * 1000;
            assert_eq!(watch.step(reading(at, at + 1, second * SECOND)), None);
        }
    }

    #[test]
    fn a_step_forward_is_seen_once() {
        let mut watch = ClockWatch::default();
        watch.step(reading(0, 10, 50 * SECOND));
        // 2 s later by this clock, 5.9 s by the store's.
        let step = watch.step(reading(2000, 2010, 55 * SECOND + 900_000));
        let by = Duration::from_millis(5900 - 2010 - 250);
        let (after_micros, seen_micros) = (50 * SECOND, 55 * SECOND + 900_000);
        let found = ClockStep {
            by,
            after_micros,
            seen_micros,
        };
        assert_eq!(step, Some(found));
        let next = watch.step(reading(4000, 4010, 57 * SECOND + 900_000));
        assert_eq!(next, None);
    }

    #[test]
    fn a_slow_network_is_no_step() {
        let mut watch = ClockWatch::default();
        // The first reached the store at once and its reply took 3 s; the second took 9 s to get
        // there: the store saw them 11 s apart, and they were sent 2 s apart.
        watch.step(reading(0, 3000, 0));
        assert_eq!(watch.step(reading(2000, 11_010, 11 * SECOND)), None);
    }

    #[test]
    fn only_more_than_the_tolerance_counts() {
        for (micros, step) in [(2_250_000, None), (2_250_001, Some(1))] {
            let mut watch = ClockWatch::default();
            watch.step(reading(0, 1, 0));
            let found = watch.step(reading(1999, 2000, micros)).map(|step| step.by);
            assert_eq!(found, step.map(Duration::from_micros));
        }
    }

    #[test]
    fn a_step_back_is_the_scripts_matter() {
        let mut watch = ClockWatch::default();
        watch.step(reading(0, 1, 500 * SECOND));
        assert_eq!(watch.step(reading(2000, 2001, 400 * SECOND)), None);
        // The next one counts from there.
        let step = watch.step(reading(4000, 4001, 406 * SECOND));
        let by = step.map(|step| step.by);
        assert_eq!(by, Some(Duration::from_millis(6000 - 2001 - 250)));
    }
}
