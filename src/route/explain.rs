//! What compute would do with a user, and why: decided from values in hand, without doing it.
//!
//! The steps are those of `plan.rs`, which `driver/client/place.rs` runs. `tests/rust/driver/explain.rs`
//! holds the one against the other, world by world.

use std::time::Duration;

use serde::Serialize;

use super::link::{Certificate, Foretold};
use super::pick::{Candidate, Strategy};
use super::plan::{Look, Plan, Reason, Sight, Step};
use crate::id::{Incarnation, PodIndex};

/// What compute would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Answer from the cache; the store is not asked.
    AnswerFromCache,
    /// Answer the stored link.
    KeepLink,
    /// Answer the stored link, and cache nothing: its pod may be dead.
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
    /// Fail as the explanation's own requests did.
    Fail,
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
    /// What a reading would show now.
    pub fresh: Look,
    /// The owner's certificate; `None` if no process ever began under its index.
    pub certificate: Option<Foretold>,
    /// The link is a hint, and its pod said "not mine".
    pub refused: bool,
    /// The process with which the cache remembers the user on this pod, if users of restarted
    /// pods are placed from scratch.
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

/// What compute would do with a user after a cache miss: simulates the steps of a [`Plan`] with the
/// facts.
#[must_use]
pub fn foresee(facts: &Facts) -> Forecast {
    let mut run = Simulation {
        facts,
        fresh: facts.seen.is_none(),
        choices: 0,
    };
    let mut plan = Plan::default();
    loop {
        let sight = run.sight();
        match plan.next(sight) {
            Step::ReadPods => run.fresh = true,
            Step::Offer => {
                run.choices += 1;
                if !facts.linked {
                    return run.end(Action::MakeLink, Reason::NoLink);
                }
                plan.linked(Some(false));
            }
            Step::Find => plan.linked(facts.linked.then_some(false)),
            Step::Certify => plan.certified(run.certificate()),
            Step::Move { reason, .. } => {
                run.choices += 1;
                return match reason {
                    Reason::OwnerDead if !run.is_certified() => {
                        run.end(Action::CertifyThenMove, Reason::OwnerLapsed)
                    }
                    reason => run.end(Action::MoveUser, reason),
                };
            }
            Step::Answer { reason, .. } => {
                return match reason {
                    Reason::DeathNotCertain => run.end(Action::KeepUntilCertain, reason),
                    reason => run.end(Action::KeepLink, reason),
                };
            }
            Step::Refuse => return run.end(Action::NoRoutablePod, Reason::NoRoutablePod),
        }
    }
}

/// The state of the simulated compute.
struct Simulation<'a> {
    facts: &'a Facts,
    /// The pods would have been read again.
    fresh: bool,
    choices: u64,
}

impl Simulation<'_> {
    fn sight(&self) -> Sight {
        let (look, young) = match self.facts.seen {
            Some(seen) if !self.fresh => (seen, self.facts.just_read),
            _ => (self.facts.fresh, true),
        };
        Sight {
            look,
            young,
            refused: self.facts.refused,
            remembered: self.facts.remembered,
        }
    }

    fn certificate(&self) -> Certificate {
        let foretold = self.facts.certificate;
        foretold.map_or(Certificate::Unknown, |foretold| foretold.certificate)
    }

    fn is_certified(&self) -> bool {
        self.facts
            .certificate
            .is_some_and(|foretold| foretold.written)
    }

    fn end(&self, action: Action, reason: Reason) -> Forecast {
        let uncertain_for = match self.certificate() {
            Certificate::Alive { left, .. } if action == Action::KeepUntilCertain => Some(left),
            _ => None,
        };
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
    candidates: &[(Candidate, f64)],
    certain: Option<PodIndex>,
) -> Vec<CandidateReport> {
    #[allow(
        clippy::cast_precision_loss,
        reason = "a load above 2^53 is compared roughly, here as there"
    )]
    let weighed =
        |(candidate, sent): &(Candidate, f64)| candidate.load as f64 + sent / candidate.weight;
    let total: f64 = candidates
        .iter()
        .map(|(candidate, _)| candidate.weight)
        .sum();
    let report = |(at, pair): (usize, &(Candidate, f64))| {
        let (candidate, sent) = pair;
        let chance = match strategy {
            Strategy::Custom => None,
            Strategy::P2c => Some(better_of_two(candidates.len(), || {
                let mine = weighed(pair);
                // Ties go to the lower index.
                let better = |(other, them): &(usize, &(Candidate, f64))| {
                    let order = weighed(them).total_cmp(&mine);
                    order.is_lt() || order.is_eq() && *other < at
                };
                candidates.iter().enumerate().filter(better).count()
            })),
            Strategy::Weighted => Some(candidate.weight / total),
            Strategy::LeastLoad | Strategy::RoundRobin | Strategy::Rendezvous => {
                Some(f64::from(u8::from(certain == Some(candidate.pod))))
            }
        };
        CandidateReport {
            pod: candidate.pod,
            load: candidate.load,
            weight: candidate.weight,
            sent: *sent,
            weighed: weighed(pair),
            chance,
        }
    };
    candidates.iter().enumerate().map(report).collect()
}

/// How probably a pod wins among two different ones drawn at random, if so many are better.
fn better_of_two(count: usize, better: impl FnOnce() -> usize) -> f64 {
    if count < 2 {
        return 1.0;
    }
    #[allow(clippy::cast_precision_loss, reason = "no service has 2^53 pods")]
    let [count, better] = [count, better()].map(|number| number as f64);
    2.0 * (count - 1.0 - better) / (count * (count - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::pick::{Chance, pick};
    use crate::route::state::Standing;
    use rand::rngs::StdRng;
    use rand::{RngCore, SeedableRng};

    fn look(owner: Standing, routable: bool) -> Look {
        Look {
            owner,
            incarnation: Incarnation::new(1),
            routable,
            willing: routable,
        }
    }

    fn facts(owner: Standing) -> Facts {
        Facts {
            linked: true,
            seen: Some(look(owner, true)),
            just_read: false,
            fresh: look(owner, true),
            certificate: Some(alive(1)),
            refused: false,
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

    fn foreseen(facts: &Facts) -> (Action, Reason) {
        let forecast = foresee(facts);
        (forecast.action, forecast.reason)
    }

    #[test]
    fn the_table_of_owners_row_by_row() {
        let keep = |reason| (Action::KeepLink, reason);
        assert_eq!(foreseen(&facts(Standing::Ready)), keep(Reason::OwnerReady));
        assert_eq!(
            foreseen(&facts(Standing::Draining)),
            keep(Reason::OwnerDraining)
        );
        let moved = |reason| (Action::MoveUser, reason);
        assert_eq!(
            foreseen(&facts(Standing::Shutdown)),
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
            assert_eq!(foreseen(&with(Some(dead(true)))), moved(Reason::OwnerDead));
            let certify = (Action::CertifyThenMove, Reason::OwnerLapsed);
            assert_eq!(foreseen(&with(Some(dead(false)))), certify);
            assert_eq!(foreseen(&with(None)), moved(Reason::OwnerNeverSeen));
        }
    }

    #[test]
    fn no_target_is_an_error_only_if_a_user_must_move() {
        let alone = |owner, certificate| Facts {
            seen: Some(look(owner, false)),
            fresh: look(owner, false),
            certificate: Some(certificate),
            ..facts(owner)
        };
        let refused = (Action::NoRoutablePod, Reason::NoRoutablePod);
        assert_eq!(foreseen(&alone(Standing::Lapsed, dead(false))), refused);
        assert_eq!(foreseen(&alone(Standing::Shutdown, alive(1))), refused);
        let draining = foreseen(&alone(Standing::Draining, alive(1)));
        assert_eq!(draining, (Action::KeepLink, Reason::OwnerDraining));
        let new = Facts {
            linked: false,
            ..alone(Standing::Unknown, alive(1))
        };
        assert_eq!(foreseen(&new), refused);
    }

    #[test]
    fn a_refused_hint_is_replaced_without_a_certificate() {
        for owner in [Standing::Ready, Standing::Draining, Standing::Unknown] {
            let refused = Facts {
                refused: true,
                ..facts(owner)
            };
            let moved = (Action::MoveUser, Reason::OwnerRefused);
            assert_eq!(foreseen(&refused), moved);
        }
    }

    #[test]
    fn a_pod_that_has_come_back_is_seen_before_its_user_is_moved() {
        let mut facts = facts(Standing::Lapsed);
        facts.fresh.owner = Standing::Ready;
        assert_eq!(foreseen(&facts), (Action::KeepLink, Reason::OwnerReady));
        // Just read, so not read again for the lapsed lease, but for the certificate's process.
        facts.just_read = true;
        facts.certificate = Some(alive(2));
        assert_eq!(foreseen(&facts), (Action::KeepLink, Reason::OwnerReady));
    }

    #[test]
    fn chances_are_what_the_strategies_do() {
        const DRAWS: u32 = 40_000;
        let mut random = StdRng::seed_from_u64(3);
        let pods = [(5, 1.0, 0.0), (4, 2.0, 4.0), (9, 1.0, 0.0), (5, 0.5, 0.0)];
        for count in 1..=pods.len() {
            let candidates: Vec<(Candidate, f64)> = pods[..count]
                .iter()
                .enumerate()
                .map(|(at, (load, weight, sent))| {
                    let candidate = Candidate {
                        pod: PodIndex::new(at as i64).unwrap(),
                        load: *load,
                        weight: *weight,
                    };
                    (candidate, *sent)
                })
                .collect();
            let alone: Vec<Candidate> =
                candidates.iter().map(|(candidate, _)| *candidate).collect();
            for strategy in [Strategy::P2c, Strategy::Weighted] {
                let weighed = weigh(strategy, &candidates, None);
                let mut hits = vec![0_u32; count];
                for _ in 0..DRAWS {
                    let chance = Chance {
                        turn: 0,
                        random: (random.next_u64(), random.next_u64()),
                    };
                    let chosen = pick(strategy, &alone, "u", |at| candidates[at].1, chance);
                    hits[chosen.unwrap().get() as usize] += 1;
                }
                for (report, hits) in weighed.iter().zip(hits) {
                    let (expected, seen) =
                        (report.chance.unwrap(), f64::from(hits) / f64::from(DRAWS));
                    assert!(
                        (expected - seen).abs() < 0.02,
                        "{strategy:?} {report:?}: {seen}"
                    );
                    assert_eq!(expected == 0.0, hits == 0, "{strategy:?} {report:?}");
                }
            }
        }
    }
}
