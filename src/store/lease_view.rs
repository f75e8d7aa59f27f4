//! What a pod's lease means at a moment of the store's virtual time.

use std::time::Duration;

use crate::id::Incarnation;
use crate::route::link::{Certificate, Foretold};
use crate::route::state::Renewal;

/// One pod's fields in the lease hash, in microseconds of the store's clock.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LeaseFields {
    pub(super) incarnation: u64,
    pub(super) deadline: u64,
    pub(super) dead: u64,
}

impl LeaseFields {
    /// A pod whose lease record was lost is the process that its state shows.
    pub(super) fn of_state(self, shown: Incarnation) -> Self {
        let incarnation = match self.incarnation {
            0 => shown.get(),
            known => known,
        };
        Self {
            incarnation,
            ..self
        }
    }
}

/// The store's clock and its record of outages, in microseconds of virtual time.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoreClock {
    pub(super) now: u64,
    pub(super) hold: u64,
    pub(super) held: u64,
    /// Zero if no pod has written its times.
    pub(super) grace: u64,
}

impl StoreClock {
    /// How much longer a pod counts as alive. A pod whose lease reached `held` was alive when the
    /// outage began, so it counts as alive until the hold ends.
    pub(super) fn lease_left(&self, lease: LeaseFields) -> Duration {
        if lease.dead >= lease.incarnation {
            return Duration::ZERO;
        }
        let fresh = if lease.deadline >= self.held {
            self.hold.saturating_sub(self.grace)
        } else {
            0
        };
        Duration::from_micros(lease.deadline.max(fresh).saturating_sub(self.now))
    }

    /// The pod's last renewal by its own record. `lease_time` is how long a renewal counts, and
    /// `published` when the state was written; a time that is missing or in the future is not
    /// believed.
    pub(super) fn renewal(&self, lease: LeaseFields, lease_time: u64, published: u64) -> Renewal {
        let renewed = match lease_time {
            0 => 0,
            known => lease.deadline.saturating_sub(known),
        };
        let believed = |moment: &u64| (1..=self.now).contains(moment);
        let last = [renewed, published].into_iter().filter(believed).max();
        let left = match lease.dead >= lease.incarnation {
            true => 0,
            false => lease.deadline.saturating_sub(self.now),
        };
        Renewal {
            age: Duration::from_micros(self.now - last.unwrap_or(self.now)),
            left: Duration::from_micros(left),
        }
    }

    /// Whether the lease hash was lost: it has no time, or the hold after the loss is not over.
    pub(super) fn forgot(&self) -> bool {
        self.hold == 0 && self.grace == 0 || self.held == 0 && self.now <= self.hold
    }

    /// The certificate of a pod without lease and state. After the lease hash was lost, which
    /// leaves no `held`, it may be alive until the hold is over.
    pub(super) fn unknown(&self) -> Certificate {
        if self.held > 0 || self.hold == 0 || self.now > self.hold {
            return Certificate::Unknown;
        }
        Certificate::Alive {
            incarnation: Incarnation::NONE,
            left: Duration::from_micros(self.hold - self.now),
        }
    }

    /// The certificate that a pod would get now, with any outage taken into account; `None` if
    /// no process ever began under its index.
    pub(super) fn foretell(&self, lease: LeaseFields) -> Option<Foretold> {
        if lease.incarnation == 0 {
            return None;
        }
        if lease.dead >= lease.incarnation {
            return Some(Foretold {
                certificate: Certificate::Dead(Incarnation::new(lease.dead)),
                written: true,
            });
        }
        let till = self.hold.max(lease.deadline.saturating_add(self.grace));
        let incarnation = Incarnation::new(lease.incarnation);
        let certificate = if self.grace == 0 {
            let left = Duration::from_secs(1);
            Certificate::Alive { incarnation, left }
        } else if self.now <= till {
            let left = Duration::from_micros(till - self.now);
            Certificate::Alive { incarnation, left }
        } else {
            Certificate::Dead(incarnation)
        };
        Some(Foretold {
            certificate,
            written: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_with_its_deadline_or_the_hold_or_the_certificate() {
        let clock = StoreClock {
            now: 100,
            hold: 0,
            held: 0,
            grace: 5,
        };
        let lease = LeaseFields {
            incarnation: 9,
            deadline: 110,
            dead: 0,
        };
        assert_eq!(clock.lease_left(lease), Duration::from_micros(10));
        assert_eq!(
            clock.lease_left(LeaseFields { dead: 9, ..lease }),
            Duration::ZERO
        );
        assert_eq!(
            clock.lease_left(LeaseFields {
                deadline: 90,
                ..lease
            }),
            Duration::ZERO
        );
        // After an outage: alive when it began at 80, so it lives until hold - grace.
        let clock = StoreClock {
            now: 100,
            hold: 150,
            held: 80,
            grace: 5,
        };
        let held = LeaseFields {
            deadline: 90,
            ..lease
        };
        assert_eq!(clock.lease_left(held), Duration::from_micros(45));
        assert_eq!(
            clock.lease_left(LeaseFields {
                deadline: 79,
                ..lease
            }),
            Duration::ZERO
        );
    }
}
