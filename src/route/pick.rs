//! Choosing a pod for a new user: a pure function of candidates and chance.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::error::Result;
use crate::id::{PodIndex, invalid, shown};

/// How a new user's pod is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// The better of two random pods.
    P2c,
    /// The least loaded pod, counting the users just sent there.
    LeastLoad,
    /// In turn.
    RoundRobin,
    /// At random, in proportion to the pods' `weight`.
    Weighted,
    /// By the uid: highest random weight.
    Rendezvous,
    /// A function of the application chooses (`driver::client::PodChooser`).
    Custom,
}

impl Strategy {
    /// The name that users see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::P2c => "p2c",
            Self::LeastLoad => "least_load",
            Self::RoundRobin => "round_robin",
            Self::Weighted => "weighted",
            Self::Rendezvous => "rendezvous",
            Self::Custom => "custom",
        }
    }

    /// The strategy with this name.
    ///
    /// # Errors
    /// `InvalidParameter` that lists the names.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "p2c" => Ok(Self::P2c),
            "least_load" => Ok(Self::LeastLoad),
            "round_robin" => Ok(Self::RoundRobin),
            "weighted" => Ok(Self::Weighted),
            "rendezvous" => Ok(Self::Rendezvous),
            "custom" => Ok(Self::Custom),
            _ => Err(invalid(
                "strategy",
                &shown(name),
                "p2c, least_load, round_robin, weighted, rendezvous or a callable",
            )),
        }
    }
}

/// A pod that may get a new user.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The pod.
    pub pod: PodIndex,
    /// The load that the pod published last; lower is better.
    pub load: i64,
    /// Its share of new users relative to the others.
    pub weight: f64,
}

/// The turn and the random numbers of one choice. Tests pass fixed ones.
#[derive(Debug, Clone, Copy)]
pub struct Chance {
    /// Increases by one with every choice.
    pub turn: u64,
    /// Two random numbers.
    pub random: (u64, u64),
}

/// Chooses one of `candidates`, which are in the order of their indexes; `None` if there are none.
///
/// `sent` is how many users this process has sent to a candidate (by position) since the candidate
/// published its load, scaled to all clients. Ties go to the lower index.
#[must_use]
pub fn pick(
    strategy: Strategy,
    candidates: &[Candidate],
    uid: &str,
    sent: impl Fn(usize) -> f64,
    chance: Chance,
) -> Option<PodIndex> {
    let last = candidates.len().checked_sub(1)?;
    let at = match strategy {
        Strategy::P2c | Strategy::Custom => two_choices(candidates, sent, chance.random),
        Strategy::LeastLoad => least(
            candidates,
            (0..=last).collect::<Vec<_>>().as_slice(),
            |at| load(candidates, at, sent(at)),
        ),
        Strategy::RoundRobin => position(chance.turn, candidates.len()),
        Strategy::Weighted => weighted(candidates, chance.random.0),
        Strategy::Rendezvous => rendezvous(candidates, uid),
    };
    candidates.get(at.min(last)).map(|candidate| candidate.pod)
}

/// The better of two random pods by load. Unlike picking the least loaded of all, this does not
/// herd when loads are old (Mitzenmacher, "How Useful Is Old Information?", 2000). The users that
/// this process has just sent are added to the published load, as for `LeastLoad`.
fn two_choices(candidates: &[Candidate], sent: impl Fn(usize) -> f64, random: (u64, u64)) -> usize {
    let first = position(random.0, candidates.len());
    if candidates.len() == 1 {
        return first;
    }
    // The second differs from the first: one of the others, counted on from there.
    let step = 1 + position(random.1, candidates.len() - 1);
    let second = (first + step) % candidates.len();
    least(candidates, &[first.min(second), first.max(second)], |at| {
        load(candidates, at, sent(at))
    })
}

fn load(candidates: &[Candidate], at: usize, sent: f64) -> f64 {
    #[allow(
        clippy::cast_precision_loss,
        reason = "a load above 2^53 is compared roughly"
    )]
    candidates.get(at).map_or(f64::INFINITY, |candidate| {
        candidate.load as f64 + sent / candidate.weight
    })
}

fn least(candidates: &[Candidate], among: &[usize], load: impl Fn(usize) -> f64) -> usize {
    debug_assert!(among.iter().all(|at| *at < candidates.len()));
    let best = among
        .iter()
        .copied()
        .min_by(|a, b| load(*a).total_cmp(&load(*b)));
    best.unwrap_or(0)
}

/// Maps a number onto a position; the bias of the remainder is below one in 2^32.
fn position(number: u64, count: usize) -> usize {
    usize::try_from(number % (count.max(1) as u64)).unwrap_or(0)
}

/// In proportion to the weights.
fn weighted(candidates: &[Candidate], random: u64) -> usize {
    let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
    #[allow(
        clippy::cast_precision_loss,
        reason = "a fraction needs no more than 53 bits"
    )]
    let mut point = (random >> 11) as f64 / (1_u64 << 53) as f64 * total;
    for (at, candidate) in candidates.iter().enumerate() {
        point -= candidate.weight;
        if point < 0.0 {
            return at;
        }
    }
    candidates.len() - 1
}

/// Highest random weight (Thaler and Ravishankar, 1998): a pod that joins or leaves moves only its
/// own share of the users. The hash is SipHash-1-3 with a zero key over uid, a zero byte and the
/// index as 4 bytes little-endian: frozen, because all clients must agree across versions.
fn rendezvous(candidates: &[Candidate], uid: &str) -> usize {
    let weight = |candidate: &Candidate| {
        let mut hasher = SipHasher13::new();
        hasher.write(uid.as_bytes());
        hasher.write(&[0]);
        hasher.write(&candidate.pod.get().to_le_bytes());
        hasher.finish()
    };
    let mut best = (0, 0);
    for (at, candidate) in candidates.iter().enumerate() {
        let this = weight(candidate);
        if at == 0 || this > best.1 {
            best = (at, this);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop, prop_assert, proptest};
    use rand::rngs::StdRng;
    use rand::{RngCore, SeedableRng};

    fn candidates(loads: &[i64]) -> Vec<Candidate> {
        let candidate = |(at, load): (usize, &i64)| Candidate {
            pod: PodIndex::new(at as i64).unwrap(),
            load: *load,
            weight: 1.0,
        };
        loads.iter().enumerate().map(candidate).collect()
    }

    fn choose(
        strategy: Strategy,
        candidates: &[Candidate],
        uid: &str,
        chance: Chance,
    ) -> Option<u32> {
        pick(strategy, candidates, uid, |_| 0.0, chance).map(PodIndex::get)
    }

    fn chance(turn: u64, first: u64, second: u64) -> Chance {
        Chance {
            turn,
            random: (first, second),
        }
    }

    const ALL: [Strategy; 5] = [
        Strategy::P2c,
        Strategy::LeastLoad,
        Strategy::RoundRobin,
        Strategy::Weighted,
        Strategy::Rendezvous,
    ];

    #[test]
    fn no_candidate_gives_none_and_one_gives_that_one() {
        for strategy in ALL {
            assert_eq!(choose(strategy, &[], "u", chance(0, 0, 0)), None);
            assert_eq!(
                choose(strategy, &candidates(&[9]), "u", chance(3, 5, 7)),
                Some(0)
            );
        }
    }

    #[test]
    fn ties_go_to_the_lower_index() {
        let equal = candidates(&[4, 4, 4]);
        assert_eq!(
            choose(Strategy::LeastLoad, &equal, "u", chance(0, 0, 0)),
            Some(0)
        );
        // First draws position 2, the step of 1 leads to position 0.
        assert_eq!(choose(Strategy::P2c, &equal, "u", chance(0, 2, 0)), Some(0));
    }

    #[test]
    fn p2c_takes_the_better_of_two_and_counts_what_was_sent() {
        let pods = candidates(&[5, 4]);
        assert_eq!(choose(Strategy::P2c, &pods, "u", chance(0, 0, 0)), Some(1));
        let sent = |at| if at == 1 { 2.0 } else { 0.0 };
        let picked = pick(Strategy::P2c, &pods, "u", sent, chance(0, 0, 0));
        assert_eq!(picked.map(PodIndex::get), Some(0));
    }

    #[test]
    fn least_load_counts_what_was_sent() {
        let pods = candidates(&[5, 4, 9]);
        let sent = |at| if at == 1 { 2.0 } else { 0.0 };
        let picked = pick(Strategy::LeastLoad, &pods, "u", sent, chance(0, 0, 0));
        assert_eq!(picked.map(PodIndex::get), Some(0));
    }

    #[test]
    fn round_robin_takes_turns() {
        let pods = candidates(&[0, 0, 0]);
        let turns: Vec<_> = (0..4)
            .filter_map(|turn| choose(Strategy::RoundRobin, &pods, "u", chance(turn, 0, 0)))
            .collect();
        assert_eq!(turns, [0, 1, 2, 0]);
    }

    #[test]
    fn weighted_follows_the_weights() {
        let mut pods = candidates(&[0, 0]);
        pods[1].weight = 3.0;
        let mut random = StdRng::seed_from_u64(1);
        let hits = (0..10_000)
            .filter(|_| {
                choose(
                    Strategy::Weighted,
                    &pods,
                    "u",
                    chance(0, random.next_u64(), 0),
                ) == Some(1)
            })
            .count();
        assert!(
            (7_300..7_700).contains(&hits),
            "{hits} of 10,000, 7,500 expected"
        );
    }

    #[test]
    fn rendezvous_is_frozen() {
        let pods = candidates(&[0; 10]);
        let of = |uid| choose(Strategy::Rendezvous, &pods, uid, chance(0, 0, 0)).unwrap();
        let picked: Vec<u32> = ["user1", "user2", "user3", "日本", "a:b", "x"]
            .map(of)
            .to_vec();
        assert_eq!(picked, RENDEZVOUS_VECTORS);
    }

    /// Clients of different versions must agree: these may never change. CPython computes the same:
    /// `hash(uid.encode() + b"\0" + pod.to_bytes(4, "little")) % 2**64` with PYTHONHASHSEED=0.
    const RENDEZVOUS_VECTORS: [u32; 6] = [3, 9, 1, 1, 4, 6];

    #[test]
    fn rendezvous_moves_only_the_share_of_the_pod_that_joins() {
        let (ten, eleven) = (candidates(&[0; 10]), candidates(&[0; 11]));
        let of = |pods: &[Candidate], uid: &str| {
            choose(Strategy::Rendezvous, pods, uid, chance(0, 0, 0)).unwrap()
        };
        let mut moved = 0;
        for user in 0..11_000 {
            let uid = format!("user{user}");
            let (before, after) = (of(&ten, &uid), of(&eleven, &uid));
            assert!(before == after || after == 10, "{uid} moved to an old pod");
            moved += usize::from(before != after);
        }
        assert!(
            (850..1_150).contains(&moved),
            "{moved} of 11,000 moved, 1,000 expected"
        );
    }

    proptest! {
        #[test]
        fn the_choice_is_always_a_candidate(
            loads in prop::collection::vec(any::<i64>(), 1..20),
            turn: u64, first: u64, second: u64, sent in -1e9..1e9_f64,
        ) {
            let pods = candidates(&loads);
            for strategy in ALL {
                let picked = pick(strategy, &pods, "u", |_| sent, chance(turn, first, second));
                prop_assert!(picked.is_some_and(|pod| (pod.get() as usize) < pods.len()));
            }
        }
    }
}
