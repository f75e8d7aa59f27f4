//! What a step names, looked up: what was read, and what was given.

use std::time::Duration;

use podlink::id::{Incarnation, Token};
use podlink::op::{self, Call, Claim, StoredUser};
use podlink::route::link::{Holder, Life, StoredLink};

use super::act::{Above, Act, From, LIMIT, Pick, Step, To};
use super::run::{Run, link_at, persist, pod_at, record, seconds};
use super::shadow::{Op, Snapshot, Target};
use crate::stage::pod;

/// The entry so many before the last one; `None` if there are none.
fn back<T>(list: Option<&Vec<T>>, back: usize) -> Option<&T> {
    let list = list?;
    list.get(list.len().checked_sub(1)?.saturating_sub(back))
}

impl Run<'_> {
    fn above(&self, at: usize, above: &Above) -> u64 {
        match above {
            Above::Any => 0,
            Above::Given { back: n, more } => {
                let owner = back(self.owners.get(&at), *n);
                owner.map_or(0, |owner| (owner.2 + more).min(LIMIT - 2))
            }
            Above::Most => LIMIT - 2,
        }
    }

    fn picked(&self, at: usize, pick: &Pick) -> (StoredUser, Snapshot) {
        match pick {
            Pick::Read { back: n } => back(self.readings.get(&at), *n)
                .cloned()
                .unwrap_or_default(),
            Pick::Owned {
                back: n,
                incarnation,
                token,
            } => {
                let owner = back(self.owners.get(&at), *n).copied().unwrap_or((0, 1, 1));
                let owner = (owner.0, owner.1 + incarnation, owner.2 - token);
                let snapshot = Snapshot {
                    link: owner.0.to_string(),
                    persistent: true,
                    record: record(owner).to_string(),
                };
                (StoredUser::of_owner(record(owner)), snapshot)
            }
        }
    }

    fn from(&self, at: usize, from: &From) -> StoredLink {
        let read = match from {
            From::Read { back: n } => back(self.readings.get(&at), *n).and_then(|read| read.0.link),
            From::Guess { pod, persistent } => {
                let hint = Life::Temporary(Duration::ZERO);
                let life = if *persistent { Life::Persistent } else { hint };
                Some(StoredLink::unowned(pod_at(*pod), life))
            }
        };
        read.unwrap_or(StoredLink::unowned(pod(0), Life::Persistent))
    }

    pub(super) fn op(&self, step: &Step) -> Op {
        let at = step.link;
        match step.act.clone() {
            Act::SetIfAbsent { pod, ttl } => Op::SetIfAbsent { pod, ttl },
            Act::TrySet { pod, ttl } => Op::TrySet { pod, ttl },
            Act::Claim {
                pod,
                incarnation,
                certified,
                above,
            } => Op::Claim {
                pod,
                incarnation,
                certified,
                above: self.above(at, &above),
            },
            Act::Swap { found, to } => Op::Swap {
                found: self.picked(at, &found).1,
                to: match to {
                    To::Nothing => Target::Nothing,
                    To::Link(pod, ttl) => Target::Link(pod, ttl),
                    To::Owned {
                        pod,
                        incarnation,
                        above,
                    } => Target::Owned {
                        pod,
                        incarnation,
                        above: self.above(at, &above),
                    },
                },
            },
            Act::Relink {
                from,
                dead,
                to,
                ttl,
            } => {
                let from = self.from(at, &from);
                let holder = |holder: Holder| (holder.incarnation.get(), holder.token.get());
                let persistent = from.life == Life::Persistent;
                let from = (from.pod.get(), persistent, from.holder.map(holder));
                Op::Relink {
                    from,
                    dead,
                    to,
                    ttl,
                }
            }
            _ => unreachable!("it is not one call"),
        }
    }

    pub(super) fn call(&self, at: usize, op: &Op, step: &Step) -> Call {
        let link = link_at(at);
        match (op, &step.act) {
            (&Op::SetIfAbsent { pod, ttl }, _) => op::SetIfAbsent {
                link,
                pod: pod_at(pod),
                ttl: seconds(ttl),
            }
            .into(),
            (&Op::TrySet { pod, ttl }, _) => op::TrySet {
                link,
                pod: pod_at(pod),
                persist: persist(ttl),
            }
            .into(),
            (
                &Op::Claim {
                    pod,
                    incarnation,
                    certified,
                    above,
                },
                _,
            ) => Claim {
                link,
                pod: pod_at(pod),
                incarnation: Incarnation::new(incarnation),
                certified: certified.map(|(pod, until)| (pod_at(pod), Incarnation::new(until))),
                above: Token::new(above),
            }
            .into(),
            (Op::Swap { to, .. }, Act::Swap { found, .. }) => op::Swap {
                link,
                found: Box::new(self.picked(at, found).0),
                to: match *to {
                    Target::Nothing => op::Rewrite::Nothing,
                    Target::Link(pod, ttl) => op::Rewrite::Link(pod_at(pod), persist(ttl)),
                    Target::Owned {
                        pod,
                        incarnation,
                        above,
                    } => op::Rewrite::Owned {
                        pod: pod_at(pod),
                        incarnation: Incarnation::new(incarnation),
                        above: Token::new(above),
                    },
                },
            }
            .into(),
            (&Op::Relink { dead, to, ttl, .. }, Act::Relink { from, .. }) => op::Relink {
                link,
                from: self.from(at, from),
                dead: Incarnation::new(dead),
                to: pod_at(to),
                ttl: seconds(ttl),
            }
            .into(),
            _ => unreachable!("it is not one call"),
        }
    }
}
