//! The one place that reads a clock.
//!
//! All other code takes a [`Tick`] as an argument, so that tests control the time.
//! The system clock is `CLOCK_BOOTTIME`: it does not jump when the date is set, and it runs while
//! the machine is suspended, so a lease cannot outlive a suspend.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A moment on this machine's boot-time clock, in nanoseconds. Only differences mean anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tick(u64);

impl Tick {
    /// Before every other moment.
    pub const ZERO: Self = Self(0);
    /// After every other moment: the end of what never ends.
    pub const NEVER: Self = Self(u64::MAX);

    /// The moment `nanos` nanoseconds after the clock's origin.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's origin.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// This moment plus `by`; saturates at [`Tick::NEVER`].
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }

    /// How long it is from `earlier` to this moment; zero if this moment is not later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The source of the time: the machine, or a test.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The machine's boot-time clock.
    #[default]
    System,
    /// A clock that stands still until a test advances it.
    Manual(ManualClock),
}

impl Clock {
    /// The present moment.
    #[must_use]
    pub fn now(&self) -> Tick {
        match self {
            Self::System => system_now(),
            Self::Manual(clock) => clock.now(),
        }
    }

    /// The moment `timeout` from now.
    #[must_use]
    pub fn deadline(&self, timeout: Duration) -> Tick {
        self.now().after(timeout)
    }
}

/// A clock for tests: it moves only by [`ManualClock::advance`].
#[derive(Debug, Clone, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::SeqCst);
    }

    fn now(&self) -> Tick {
        Tick(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
const CLOCK_ID: rustix::time::ClockId = rustix::time::ClockId::Boottime;
/// Elsewhere (macOS) the monotonic clock is the closest equivalent.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const CLOCK_ID: rustix::time::ClockId = rustix::time::ClockId::Monotonic;

fn system_now() -> Tick {
    let time = rustix::time::clock_gettime(CLOCK_ID);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Tick(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// The date, in nanoseconds since 1970: for spans, which are compared with other machines' spans.
/// No decision depends on it.
#[must_use]
pub fn unix_nanos() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// How much CPU time this process has used, over all its threads.
#[must_use]
pub fn process_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(nanos)
}

/// Microseconds since 1970 by this machine's calendar clock. Only the in-memory store reads it:
/// it is its own server, and a server stamps states with calendar time.
#[must_use]
#[allow(
    clippy::disallowed_methods,
    reason = "this is the one place that reads the clock"
)]
pub fn calendar_micros() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_saturate_at_both_ends() {
        assert_eq!(Tick::NEVER.after(Duration::from_secs(1)), Tick::NEVER);
        assert_eq!(Tick::ZERO.since(Tick::from_nanos(5)), Duration::ZERO);
    }

    #[test]
    fn a_manual_clock_moves_only_by_advance() {
        let hand = ManualClock::default();
        let clock = Clock::Manual(hand.clone());
        let before = clock.now();
        assert_eq!(clock.now(), before);
        hand.advance(Duration::from_secs(3));
        assert_eq!(clock.now().since(before), Duration::from_secs(3));
    }

    #[test]
    fn the_system_clock_does_not_run_backwards() {
        let first = Clock::System.now();
        assert!(Clock::System.now() >= first);
    }
}
