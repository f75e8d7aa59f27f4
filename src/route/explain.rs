//! What compute would do with a user, and why: told from values in hand, without doing it.
//!
//! `driver/client/place.rs` does what is told here. `tests/rust/driver/explain.rs` holds the one
//! against the other, world by world.

use std::time::Duration;

use serde::Serialize;

use super::link::{Certificate, Foretold, Verdict, judge};
use super::pick::{Candidate, Strategy};
use super::state::Standing;
use crate::id::{Incarnation, PodIndex};

/// What compute would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Answer what this process remembers; the store is not asked.
    AnswerFromCache,
    /// Answer the stored link.
    KeepLink,
    /// Answer the stored link, and remember nothing: its pod may be dead.
    KeepUntilCertain,
    /// Link the user to one of the candidates.
    MakeLink,
    /// Move the user to one of the candidates.
    MoveUser,
    /// Have the pod declared dead, then move the user to one of the candidates.
    CertifyThenMove,
    /// Fail with `POD_NOT_ROUTABLE`.
    NoRoutablePod,
    /// Ask the peer that leads to the user's namespace; it decides.
    AskPeer,
    /// Fail as the explanation's own questions did.
    Fail,
}

/// Why compute would do that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// What is remembered is still valid, and its pod available.
    Cached,
    /// The program told the cache before anybody knew the pod, and the pod is available.
    ToldByProgram,
    /// The linked pod is READY.
    OwnerReady,
    /// The linked pod takes no new users, but keeps its own.
    OwnerDraining,
    /// The linked pod says that it takes nothing any more.
    OwnerShutdown,
    /// The linked pod's lease is over, but its death is not certain yet.
    DeathNotCertain,
    /// The linked pod was declared dead, for good.
    OwnerDead,
    /// The linked pod's lease and grace are over, and nobody has had it declared dead yet.
    OwnerLapsed,
    /// No process was ever seen under the linked pod's index.
    OwnerNeverSeen,
    /// The linked pod came back as a new process, and `on_restart` is `best_pod`.
    OwnerRestarted,
    /// The user has no link.
    NoLink,
    /// There is no link that can stand, and no pod takes new users.
    NoRoutablePod,
    /// The namespace is not this driver's.
    ForeignNamespace,
    /// The store could not be asked, or holds what nobody can read.
    StoreTrouble,
    /// The peer could not be asked.
    PeerTrouble,
}

/// What the cache holds of a user, as compute would take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cached {
    /// Nothing.
    Absent,
    /// An answer that compute gives.
    Valid,
    /// What the program told it before the pod was known; compute believes it from now on.
    Told,
    /// An answer that compute does not give.
    Stale(Stale),
}

/// Why a remembered answer is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stale {
    /// Its time is over.
    Expired,
    /// The pods of the service are not being read, so nobody can vouch for it.
    PodsNotRead,
    /// Its pod is not available.
    PodNotAvailable,
    /// Its pod is another process now.
    PodRestarted,
}

/// Judges what the cache remembers.
///
/// `remembered` is the process of the pod when the answer was given, `seen` what the pods that
/// this process keeps reading say of the pod, and `first` what a first reading would say.
#[must_use]
pub fn cached(in_time: bool, remembered: Incarnation, seen: Option<Look>, first: Look) -> Cached {
    if !in_time {
        return Cached::Stale(Stale::Expired);
    }
    let now = seen.unwrap_or(first);
    if remembered == Incarnation::NONE && now.owner.is_available() {
        return Cached::Told;
    }
    match seen {
        None => Cached::Stale(Stale::PodsNotRead),
        Some(seen) if !seen.owner.is_available() => Cached::Stale(Stale::PodNotAvailable),
        Some(seen) if seen.incarnation != remembered => Cached::Stale(Stale::PodRestarted),
        Some(_) => Cached::Valid,
    }
}

/// What one reading of the pods says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// The standing of the user's pod.
    pub owner: Standing,
    /// The process that holds its index.
    pub incarnation: Incarnation,
    /// Whether any pod may get a new user.
    pub takers: bool,
}

/// What there is to decide from, if the cache does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Whether the store has a link; its pod is the owner.
    pub linked: bool,
    /// The reading that compute would begin with; `None`: it would have to make one.
    pub seen: Option<Look>,
    /// That reading is too young to be repeated only because of the owner.
    pub just_read: bool,
    /// What a reading would say now.
    pub fresh: Look,
    /// The owner's certificate; `None` if no process ever began under its index.
    pub certificate: Option<Foretold>,
    /// The process with which the cache remembers the user on this pod, if users of restarted
    /// pods are placed afresh.
    pub remembered: Option<Incarnation>,
}

/// What compute would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forecast {
    /// What.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// How long until the death of the owner is certain.
    pub uncertain_for: Option<Duration>,
    /// Compute would choose from a new reading, not from the one it begins with.
    pub fresh: bool,
    /// How many choices compute would make before the one that counts.
    pub choices_before: u64,
}

/// Tells what compute would do with a user whom the cache does not answer.
#[must_use]
pub fn foresee(facts: &Facts) -> Forecast {
    let mut steps = Steps {
        facts,
        fresh: facts.seen.is_none(),
        choices: 0,
        uncertain_for: None,
    };
    // The choice comes first, because set-if-absent needs a candidate.
    let taker = steps.choose();
    if !facts.linked {
        return match taker {
            true => steps.end(Action::MakeLink, Reason::NoLink),
            false => steps.end(Action::NoRoutablePod, Reason::NoRoutablePod),
        };
    }
    let fate = steps.judge();
    // Only now: the pods may have been read anew because of the owner.
    let restarted = facts.remembered.is_some_and(|remembered| {
        remembered != Incarnation::NONE && remembered < steps.look().incarnation
    });
    let (action, reason) = match fate {
        _ if restarted => (Action::MoveUser, Reason::OwnerRestarted),
        Fate::Stays(action, reason) => return steps.end(action, reason),
        Fate::Moves(action, reason) => (action, reason),
    };
    let taker = steps.choose();
    if taker {
        steps.end(action, reason)
    } else {
        steps.end(Action::NoRoutablePod, Reason::NoRoutablePod)
    }
}

/// What becomes of a user whose owner was judged.
enum Fate {
    Stays(Action, Reason),
    Moves(Action, Reason),
}

/// How far compute would have come.
struct Steps<'a> {
    facts: &'a Facts,
    /// The pods would have been read anew.
    fresh: bool,
    choices: u64,
    uncertain_for: Option<Duration>,
}

impl Steps<'_> {
    fn look(&self) -> Look {
        match self.facts.seen {
            Some(seen) if !self.fresh => seen,
            _ => self.facts.fresh,
        }
    }

    /// Whether there is anybody to choose; reads the pods anew before it says that there is not.
    fn choose(&mut self) -> bool {
        self.choices += 1;
        if !self.look().takers {
            self.fresh = true;
            self.choices += 1;
        }
        self.look().takers
    }

    fn judge(&mut self) -> Fate {
        if judge(self.look().owner) != Verdict::Keep && !self.facts.just_read {
            self.fresh = true;
        }
        if judge(self.look().owner) == Verdict::Keep {
            return self.keeps();
        }
        let (process, left) = match self.facts.certificate {
            None => return Fate::Moves(Action::MoveUser, Reason::OwnerNeverSeen),
            Some(Foretold {
                certificate: Certificate::Alive { incarnation, left },
                ..
            }) => (incarnation, left),
            Some(Foretold { written: true, .. }) => {
                return Fate::Moves(Action::MoveUser, Reason::OwnerDead);
            }
            Some(_) => return Fate::Moves(Action::CertifyThenMove, Reason::OwnerLapsed),
        };
        if self.look().incarnation < process {
            self.fresh = true;
        }
        match judge(self.look().owner) {
            Verdict::Keep => self.keeps(),
            Verdict::Relink => Fate::Moves(Action::MoveUser, Reason::OwnerShutdown),
            Verdict::Certify => {
                self.uncertain_for = Some(left);
                Fate::Stays(Action::KeepUntilCertain, Reason::DeathNotCertain)
            }
        }
    }

    fn keeps(&self) -> Fate {
        let reason = match self.look().owner {
            Standing::Draining => Reason::OwnerDraining,
            _ => Reason::OwnerReady,
        };
        Fate::Stays(Action::KeepLink, reason)
    }

    fn end(&self, action: Action, reason: Reason) -> Forecast {
        let uncertain_for = self
            .uncertain_for
            .filter(|_| action == Action::KeepUntilCertain);
        Forecast {
            action,
            reason,
            uncertain_for,
            fresh: self.fresh,
            choices_before: self.choices.saturating_sub(1),
        }
    }
}

/// A pod that may get the user, as the strategy weighs it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CandidateReport {
    /// The pod.
    pub pod: PodIndex,
    /// The load that it published last.
    pub load: i64,
    /// Its share of new users relative to the others.
    pub weight: f64,
    /// Users that this process has sent there and that its load cannot show yet, scaled to all
    /// clients.
    pub sent: f64,
    /// What `p2c` compares: the load, and what was sent by weight.
    pub weighed: f64,
    /// How probably the strategy chooses it; `None`: only the program's own function knows.
    pub chance: Option<f64>,
}

/// The candidates with their chances, in the order of their indexes.
///
/// `certain` is the choice of a strategy that leaves nothing to chance.
#[must_use]
pub fn weigh(
    strategy: Strategy,
    seats: &[(Candidate, f64)],
    certain: Option<PodIndex>,
) -> Vec<CandidateReport> {
    #[allow(
        clippy::cast_precision_loss,
        reason = "a load above 2^53 is compared roughly, here as there"
    )]
    let weighed = |(seat, sent): &(Candidate, f64)| seat.load as f64 + sent / seat.weight;
    let total: f64 = seats.iter().map(|(seat, _)| seat.weight).sum();
    let candidate = |(at, seated): (usize, &(Candidate, f64))| {
        let (seat, sent) = seated;
        let chance = match strategy {
            Strategy::Custom => None,
            Strategy::P2c => Some(better_of_two(seats.len(), || {
                let mine = weighed(seated);
                // Ties go to the lower index.
                let better = |(other, them): &(usize, &(Candidate, f64))| {
                    let order = weighed(them).total_cmp(&mine);
                    order.is_lt() || order.is_eq() && *other < at
                };
                seats.iter().enumerate().filter(better).count()
            })),
            Strategy::Weighted => Some(seat.weight / total),
            Strategy::LeastLoad | Strategy::RoundRobin | Strategy::Rendezvous => {
                Some(f64::from(u8::from(certain == Some(seat.pod))))
            }
        };
        CandidateReport {
            pod: seat.pod,
            load: seat.load,
            weight: seat.weight,
            sent: *sent,
            weighed: weighed(seated),
            chance,
        }
    };
    seats.iter().enumerate().map(candidate).collect()
}

/// How probably a pod wins among two different ones drawn at random, if so many are better.
fn better_of_two(count: usize, better: impl FnOnce() -> usize) -> f64 {
    if count < 2 {
        return 1.0;
    }
    #[allow(clippy::cast_precision_loss, reason = "nobody has 2^53 pods")]
    let [count, better] = [count, better()].map(|number| number as f64);
    2.0 * (count - 1.0 - better) / (count * (count - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::pick::{Chance, pick};
    use rand::rngs::StdRng;
    use rand::{RngCore, SeedableRng};

    fn look(owner: Standing, takers: bool) -> Look {
        Look {
            owner,
            incarnation: Incarnation::new(1),
            takers,
        }
    }

    fn facts(owner: Standing) -> Facts {
        Facts {
            linked: true,
            seen: Some(look(owner, true)),
            just_read: false,
            fresh: look(owner, true),
            certificate: Some(alive(1)),
            remembered: None,
        }
    }

    fn alive(incarnation: u64) -> Foretold {
        Foretold {
            certificate: Certificate::Alive {
                incarnation: Incarnation::new(incarnation),
                left: Duration::from_secs(3),
            },
            written: false,
        }
    }

    fn dead(written: bool) -> Foretold {
        Foretold {
            certificate: Certificate::Dead(Incarnation::new(1)),
            written,
        }
    }

    fn told(facts: &Facts) -> (Action, Reason) {
        let forecast = foresee(facts);
        (forecast.action, forecast.reason)
    }

    #[test]
    fn the_table_of_owners_row_by_row() {
        let keep = |reason| (Action::KeepLink, reason);
        assert_eq!(told(&facts(Standing::Ready)), keep(Reason::OwnerReady));
        assert_eq!(
            told(&facts(Standing::Draining)),
            keep(Reason::OwnerDraining)
        );
        let moved = |reason| (Action::MoveUser, reason);
        assert_eq!(
            told(&facts(Standing::Shutdown)),
            moved(Reason::OwnerShutdown)
        );
        for gone in [Standing::Lapsed, Standing::Unknown] {
            let forecast = foresee(&facts(gone));
            assert_eq!(forecast.action, Action::KeepUntilCertain);
            assert_eq!(forecast.uncertain_for, Some(Duration::from_secs(3)));
            let with = |certificate| Facts {
                certificate,
                ..facts(gone)
            };
            assert_eq!(told(&with(Some(dead(true)))), moved(Reason::OwnerDead));
            let certify = (Action::CertifyThenMove, Reason::OwnerLapsed);
            assert_eq!(told(&with(Some(dead(false)))), certify);
            assert_eq!(told(&with(None)), moved(Reason::OwnerNeverSeen));
        }
    }

    #[test]
    fn nobody_to_move_to_is_an_error_and_nobody_has_to_move_is_none() {
        let alone = |owner, certificate| Facts {
            seen: Some(look(owner, false)),
            fresh: look(owner, false),
            certificate: Some(certificate),
            ..facts(owner)
        };
        let nobody = (Action::NoRoutablePod, Reason::NoRoutablePod);
        assert_eq!(told(&alone(Standing::Lapsed, dead(false))), nobody);
        assert_eq!(told(&alone(Standing::Shutdown, alive(1))), nobody);
        let draining = told(&alone(Standing::Draining, alive(1)));
        assert_eq!(draining, (Action::KeepLink, Reason::OwnerDraining));
        let new = Facts {
            linked: false,
            ..alone(Standing::Unknown, alive(1))
        };
        assert_eq!(told(&new), nobody);
    }

    #[test]
    fn a_pod_that_has_come_back_is_seen_before_its_user_is_moved() {
        let mut facts = facts(Standing::Lapsed);
        facts.fresh.owner = Standing::Ready;
        assert_eq!(told(&facts), (Action::KeepLink, Reason::OwnerReady));
        // Just read, so not read again for the lapsed lease, but for the certificate's process.
        facts.just_read = true;
        facts.certificate = Some(alive(2));
        assert_eq!(told(&facts), (Action::KeepLink, Reason::OwnerReady));
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
        let two = Incarnation::new(2);
        assert_eq!(
            cached(true, two, Some(ready), ready),
            stale(Stale::PodRestarted)
        );
        assert_eq!(cached(true, Incarnation::NONE, None, ready), Cached::Told);
        let unknown = cached(true, Incarnation::NONE, Some(gone), gone);
        assert_eq!(unknown, stale(Stale::PodNotAvailable));
    }

    #[test]
    fn chances_are_what_the_strategies_do() {
        const DRAWS: u32 = 40_000;
        let mut random = StdRng::seed_from_u64(3);
        let figures = [(5, 1.0, 0.0), (4, 2.0, 4.0), (9, 1.0, 0.0), (5, 0.5, 0.0)];
        for count in 1..=figures.len() {
            let seats: Vec<(Candidate, f64)> = figures[..count]
                .iter()
                .enumerate()
                .map(|(at, (load, weight, sent))| {
                    let seat = Candidate {
                        pod: PodIndex::new(at as i64).unwrap(),
                        load: *load,
                        weight: *weight,
                    };
                    (seat, *sent)
                })
                .collect();
            let alone: Vec<Candidate> = seats.iter().map(|(seat, _)| *seat).collect();
            for strategy in [Strategy::P2c, Strategy::Weighted] {
                let weighed = weigh(strategy, &seats, None);
                let mut hits = vec![0_u32; count];
                for _ in 0..DRAWS {
                    let chance = Chance {
                        turn: 0,
                        random: (random.next_u64(), random.next_u64()),
                    };
                    let chosen = pick(strategy, &alone, "u", |at| seats[at].1, chance);
                    hits[chosen.unwrap().get() as usize] += 1;
                }
                for (candidate, hits) in weighed.iter().zip(hits) {
                    let (told, seen) = (
                        candidate.chance.unwrap(),
                        f64::from(hits) / f64::from(DRAWS),
                    );
                    assert!(
                        (told - seen).abs() < 0.02,
                        "{strategy:?} {candidate:?}: {seen}"
                    );
                    assert_eq!(told == 0.0, hits == 0, "{strategy:?} {candidate:?}");
                }
            }
        }
    }
}
