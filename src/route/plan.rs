//! What compute does next, decided once, from values in hand.
//!
//! `driver/client/place.rs` runs the steps; `route/explain.rs` simulates them with the known facts,
//! to explain what compute would do.

use super::link::{Certificate, Verdict, judge};
use super::state::Standing;
use crate::id::Incarnation;

/// Why compute does what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The cached link is still valid, and its pod available.
    Cached,
    /// The program set the cache before the pod was known, and the pod is available.
    SetByProgram,
    /// The linked pod is READY.
    OwnerReady,
    /// The linked pod takes no new users, but keeps its own.
    OwnerDraining,
    /// The linked pod is silent for longer than its lease, and so is the whole service: that is
    /// taken for an outage of the store, and the link is kept.
    OwnerSilent,
    /// The linked pod published SHUTDOWN.
    OwnerShutdown,
    /// The linked pod's lease is over, but its death is not certain yet.
    DeathNotCertain,
    /// The linked pod was declared dead, for good.
    OwnerDead,
    /// The linked pod's lease and grace are over, and it was not declared dead yet.
    OwnerLapsed,
    /// No process was ever seen under the linked pod's index.
    OwnerNeverSeen,
    /// The linked pod came back as a new process, and `on_restart` is `best_pod`.
    OwnerRestarted,
    /// The linked pod said "not mine", and the link is only a hint.
    OwnerRefused,
    /// The user has no link.
    NoLink,
    /// There is no link that can stand, and no pod takes new users.
    NoRoutablePod,
    /// The namespace is not this driver's.
    ForeignNamespace,
    /// The store could not be asked, or holds data that cannot be read.
    StoreTrouble,
    /// The peer could not be asked.
    PeerTrouble,
}

/// How a compute begins that the hot path did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// The cache has a valid answer.
    Cached,
    /// The cache has an entry that the program set before the pod was known: the pod is available,
    /// so the entry is adopted for the process that the pod is now.
    Adopt,
    /// The namespace is another one: its peer decides.
    AskPeer,
    /// The steps of a [`Plan`].
    Plan,
}

/// What the cache holds of a user, as compute takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cached {
    /// Nothing.
    Absent,
    /// An answer that compute gives.
    Valid,
    /// An entry that the program set before the pod was known; compute trusts it from now on.
    SetByProgram,
    /// An answer that compute does not give.
    Stale(Stale),
}

/// Why a cached answer is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stale {
    /// Its time is over.
    Expired,
    /// The pods of the service are not being read, so it cannot be checked.
    PodsNotRead,
    /// Its pod is not available.
    PodNotAvailable,
    /// Its pod takes no new users, and may have given this one up.
    PodDraining,
    /// Its pod is another process now.
    PodRestarted,
}

/// What one reading of the pods shows of a user's pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// The standing of the user's pod.
    pub owner: Standing,
    /// The process that holds its index.
    pub incarnation: Incarnation,
    /// Whether any pod may get a new user.
    pub routable: bool,
    /// Whether one of them has not refused this user.
    pub willing: bool,
}

/// What is known when a step is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    /// What the present reading of the pods shows.
    pub look: Look,
    /// That reading is too young to be repeated only because of the owner.
    pub young: bool,
    /// The link is a hint, and its pod said "not mine".
    pub refused: bool,
    /// The process with which the cache remembers the user on this pod, if users of restarted pods
    /// are placed from scratch (`on_restart="best_pod"`).
    pub remembered: Option<Incarnation>,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Read the pods again.
    ReadPods,
    /// Choose a pod, and set-if-absent. The choice comes before the store is asked, because
    /// set-if-absent needs a candidate; an existing link wins over it.
    Offer,
    /// Read the link: no pod takes new users, but an old link may stand.
    Find,
    /// Ask the store whether the owner is dead. No user is moved on the strength of a clock here.
    Certify,
    /// Choose a pod, and move the user there by compare-and-set.
    Move {
        /// Every incarnation of the owner up to this one is dead or shut down.
        dead: Incarnation,
        /// Why.
        reason: Reason,
    },
    /// Answer the owner.
    Answer {
        /// Whether the cache may keep the answer.
        remember: bool,
        /// Why.
        reason: Reason,
    },
    /// There is no link that can stand, and no pod takes new users.
    Refuse,
}

/// Judges what the cache remembers.
///
/// `remembered` is the process of the pod when the answer was given, `seen` what the pods that
/// this process keeps reading show of the pod, and `first` what a first reading would show.
#[must_use]
pub fn cached(in_time: bool, remembered: Incarnation, seen: Option<Look>, first: Look) -> Cached {
    if !in_time {
        return Cached::Stale(Stale::Expired);
    }
    let now = seen.unwrap_or(first);
    if remembered == Incarnation::NONE && now.owner == Standing::Ready {
        return Cached::SetByProgram;
    }
    match seen {
        None => Cached::Stale(Stale::PodsNotRead),
        Some(seen) if seen.owner == Standing::Draining => Cached::Stale(Stale::PodDraining),
        Some(seen) if seen.owner != Standing::Ready => Cached::Stale(Stale::PodNotAvailable),
        Some(seen) if seen.incarnation != remembered => Cached::Stale(Stale::PodRestarted),
        Some(_) => Cached::Valid,
    }
}

/// How a compute begins.
#[must_use]
pub const fn opening(cached: Cached, foreign: bool) -> Opening {
    match (cached, foreign) {
        (Cached::Valid, _) => Opening::Cached,
        (_, true) => Opening::AskPeer,
        (Cached::SetByProgram, false) => Opening::Adopt,
        (Cached::Absent | Cached::Stale(_), false) => Opening::Plan,
    }
}

/// The steps of one compute in its own namespace: what was found so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plan {
    link: LinkState,
    certificate: Option<Certificate>,
    /// Once decided, a move stands: a reading made for the choice does not take it back.
    moving: Option<(Incarnation, Reason)>,
    read_for_owner: bool,
    read_for_certificate: bool,
    read_for_choice: bool,
    /// The best pod may be the one that came back: users are moved once because of a restart.
    restart_applied: bool,
}

#[derive(Debug, Clone, Copy, Default)]
enum LinkState {
    #[default]
    NotAsked,
    Absent,
    Found {
        /// This compute created or moved it, so `on_restart` does not apply.
        placed: bool,
    },
}

impl Plan {
    /// Takes note of the link: absent, or found. `placed`: this compute created or moved it.
    pub fn linked(&mut self, found: Option<bool>) {
        *self = Self {
            link: found.map_or(LinkState::Absent, |placed| LinkState::Found { placed }),
            restart_applied: self.restart_applied,
            ..Self::default()
        };
    }

    /// Takes note that the link has vanished: the steps begin from the start.
    pub fn vanished(&mut self) {
        *self = Self {
            restart_applied: self.restart_applied,
            ..Self::default()
        };
    }

    /// Takes note of the store's answer about the owner's death.
    pub fn certified(&mut self, certificate: Certificate) {
        self.certificate = Some(certificate);
    }

    /// The next step.
    pub fn next(&mut self, sight: Sight) -> Step {
        let placed = match self.link {
            LinkState::NotAsked => return self.choose(sight, Step::Offer, Step::Find),
            LinkState::Absent => return Step::Refuse,
            LinkState::Found { placed } => placed,
        };
        let moving = match self.moving {
            Some(moving) => moving,
            None => match self.judge(sight, placed) {
                Judged::Step(step) => return step,
                Judged::Move(dead, reason) => *self.moving.insert((dead, reason)),
            },
        };
        let (dead, reason) = moving;
        self.choose(sight, Step::Move { dead, reason }, Step::Refuse)
    }

    /// Reads the pods again before it takes for true that no pod takes users.
    fn choose(&mut self, sight: Sight, chosen: Step, otherwise: Step) -> Step {
        if sight.look.routable {
            return chosen;
        }
        if std::mem::replace(&mut self.read_for_choice, true) {
            return otherwise;
        }
        Step::ReadPods
    }

    /// What the owner's standing asks for.
    fn judge(&mut self, sight: Sight, placed: bool) -> Judged {
        let Look {
            owner, incarnation, ..
        } = sight.look;
        // No process owns the user, so none has to be dead.
        if sight.refused && sight.look.willing {
            return Judged::Move(Incarnation::NONE, Reason::OwnerRefused);
        }
        let verdict = judge(owner);
        // The pod may have come, or renewed, since the pods were last read.
        if verdict != Verdict::Keep
            && !sight.young
            && !std::mem::replace(&mut self.read_for_owner, true)
        {
            return Judged::Step(Step::ReadPods);
        }
        let decided = if verdict == Verdict::Keep {
            Judged::Step(keep(owner))
        } else {
            // Certified also for a user that leaves because of a restart: the store takes note of
            // the death, so that all clients agree on it.
            let Some(certificate) = self.certificate else {
                return Judged::Step(Step::Certify);
            };
            // A process that this reading does not show yet has come back under the index.
            if let Certificate::Alive {
                incarnation: alive, ..
            } = certificate
                && incarnation < alive
                && !std::mem::replace(&mut self.read_for_certificate, true)
            {
                return Judged::Step(Step::ReadPods);
            }
            settled(certificate, verdict, incarnation)
        };
        let restarted = |earlier: &Incarnation| {
            *earlier != Incarnation::NONE && *earlier < incarnation && !placed
        };
        match sight.remembered.filter(restarted) {
            Some(earlier) if !std::mem::replace(&mut self.restart_applied, true) => {
                Judged::Move(earlier, Reason::OwnerRestarted)
            }
            _ => decided,
        }
    }
}

/// What an owner's standing asks for.
enum Judged {
    Step(Step),
    /// Every incarnation of the owner up to this one is dead or shut down.
    Move(Incarnation, Reason),
}

/// What the store's answer about an owner's death asks for.
fn settled(certificate: Certificate, verdict: Verdict, incarnation: Incarnation) -> Judged {
    match certificate {
        Certificate::Unknown => Judged::Move(Incarnation::NONE, Reason::OwnerNeverSeen),
        Certificate::Dead(dead) => Judged::Move(dead, Reason::OwnerDead),
        // It published SHUTDOWN itself.
        Certificate::Alive { .. } if verdict == Verdict::Relink => {
            Judged::Move(incarnation, Reason::OwnerShutdown)
        }
        Certificate::Alive { .. } => Judged::Step(Step::Answer {
            remember: false,
            reason: Reason::DeathNotCertain,
        }),
    }
}

/// The step for an owner that serves its users. One that drains gives them up one by one: each
/// answer is asked for.
const fn keep(owner: Standing) -> Step {
    match owner {
        Standing::Draining => Step::Answer {
            remember: false,
            reason: Reason::OwnerDraining,
        },
        _ => Step::Answer {
            remember: true,
            reason: Reason::OwnerReady,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(owner: Standing, routable: bool) -> Look {
        Look {
            owner,
            incarnation: Incarnation::new(1),
            routable,
            willing: routable,
        }
    }

    fn sight(owner: Standing, routable: bool) -> Sight {
        Sight {
            look: look(owner, routable),
            young: false,
            refused: false,
            remembered: None,
        }
    }

    #[test]
    fn no_taker_is_read_twice() {
        let mut plan = Plan::default();
        let alone = sight(Standing::Unknown, false);
        assert_eq!(plan.next(alone), Step::ReadPods);
        assert_eq!(plan.next(alone), Step::Find);
        plan.linked(None);
        assert_eq!(plan.next(alone), Step::Refuse);
    }

    #[test]
    fn a_move_stands_once_decided() {
        let mut plan = Plan::default();
        plan.linked(Some(false));
        let gone = sight(Standing::Lapsed, false);
        assert_eq!(plan.next(gone), Step::ReadPods);
        assert_eq!(plan.next(gone), Step::Certify);
        plan.certified(Certificate::Dead(Incarnation::new(1)));
        assert_eq!(plan.next(gone), Step::ReadPods);
        let back = sight(Standing::Ready, true);
        let moved = Step::Move {
            dead: Incarnation::new(1),
            reason: Reason::OwnerDead,
        };
        assert_eq!(plan.next(back), moved);
    }

    #[test]
    fn a_restart_moves_once() {
        let mut plan = Plan::default();
        plan.linked(Some(false));
        let restarted = Sight {
            look: Look {
                incarnation: Incarnation::new(2),
                ..look(Standing::Ready, true)
            },
            remembered: Some(Incarnation::new(1)),
            ..sight(Standing::Ready, true)
        };
        assert!(matches!(plan.next(restarted), Step::Move { .. }));
        plan.linked(Some(false));
        assert_eq!(plan.next(restarted), keep(Standing::Ready));
        let mut plan = Plan::default();
        plan.linked(Some(true));
        assert_eq!(plan.next(restarted), keep(Standing::Ready));
    }

    #[test]
    fn a_link_that_vanishes_does_not_forget_the_restart() {
        let restarted = Sight {
            look: Look {
                incarnation: Incarnation::new(2),
                ..look(Standing::Ready, true)
            },
            remembered: Some(Incarnation::new(1)),
            ..sight(Standing::Ready, true)
        };
        let mut plan = Plan::default();
        plan.linked(Some(false));
        assert!(matches!(plan.next(restarted), Step::Move { .. }));
        plan.vanished();
        assert_eq!(plan.next(restarted), Step::Offer);
        plan.linked(Some(false));
        assert_eq!(plan.next(restarted), keep(Standing::Ready));
    }

    #[test]
    fn a_young_reading_is_not_repeated_for_the_owner() {
        let young = Sight {
            young: true,
            ..sight(Standing::Lapsed, true)
        };
        let mut plan = Plan::default();
        plan.linked(Some(false));
        assert_eq!(plan.next(young), Step::Certify);
    }

    #[test]
    fn a_death_is_certified_before_a_restart_moves() {
        let mut plan = Plan::default();
        plan.linked(Some(false));
        let again = Sight {
            look: Look {
                incarnation: Incarnation::new(2),
                ..look(Standing::Lapsed, true)
            },
            young: true,
            refused: false,
            remembered: Some(Incarnation::new(1)),
        };
        assert_eq!(plan.next(again), Step::Certify);
        plan.certified(Certificate::Dead(Incarnation::new(2)));
        let moved = Step::Move {
            dead: Incarnation::new(1),
            reason: Reason::OwnerRestarted,
        };
        assert_eq!(plan.next(again), moved);
    }

    #[test]
    fn a_refused_hint_moves_if_another_pod_is_willing() {
        let moved = Step::Move {
            dead: Incarnation::NONE,
            reason: Reason::OwnerRefused,
        };
        for owner in [Standing::Ready, Standing::Draining, Standing::Lapsed] {
            let mut plan = Plan::default();
            plan.linked(Some(false));
            let refused = Sight {
                refused: true,
                ..sight(owner, true)
            };
            assert_eq!(plan.next(refused), moved);
        }
        let mut plan = Plan::default();
        plan.linked(Some(false));
        let alone = Sight {
            look: Look {
                willing: false,
                ..look(Standing::Ready, true)
            },
            refused: true,
            ..sight(Standing::Ready, true)
        };
        assert_eq!(plan.next(alone), keep(Standing::Ready));
    }

    #[test]
    fn what_the_cache_holds_is_judged_as_compute_judges_it() {
        let one = Incarnation::new(1);
        let ready = look(Standing::Ready, true);
        let gone = look(Standing::Lapsed, true);
        let stale = Cached::Stale;
        assert_eq!(cached(true, one, Some(ready), ready), Cached::Valid);
        assert_eq!(
            cached(false, one, Some(ready), ready),
            stale(Stale::Expired)
        );
        assert_eq!(cached(true, one, None, ready), stale(Stale::PodsNotRead));
        assert_eq!(
            cached(true, one, Some(gone), ready),
            stale(Stale::PodNotAvailable)
        );
        let draining = look(Standing::Draining, true);
        let judged = cached(true, one, Some(draining), draining);
        assert_eq!(judged, stale(Stale::PodDraining));
        let two = Incarnation::new(2);
        assert_eq!(
            cached(true, two, Some(ready), ready),
            stale(Stale::PodRestarted)
        );
        assert_eq!(
            cached(true, Incarnation::NONE, None, ready),
            Cached::SetByProgram
        );
        let unknown = cached(true, Incarnation::NONE, Some(gone), gone);
        assert_eq!(unknown, stale(Stale::PodNotAvailable));
    }
}
