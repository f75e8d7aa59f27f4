//! Links in memory: which pod has which user, until when.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::{Apply, Moment, Tables};
use crate::clock::Tick;
use crate::error::Result;
use crate::id::{Incarnation, LinkId, Namespace, PodIndex, ServiceName, Token, Uid};
use crate::op::{
    BatchGet, Claim, Claimed, Compute, Computed, Get, LinksRead, Operation, Read, Relink, Remove,
    Removed, Rewrite, Services, Set, SetIfAbsent, StoredUser, Swap, Swapped, TrySet,
};
use crate::route::link::{Life, Persist, Placed, StoredLink};
use crate::store::codec::millis;
use crate::store::only_a_peer;

/// Expired links are looked for again after at least this many writes.
const SWEEP_LEAST: usize = 1024;

/// All links of the store.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// A user has links to a handful of services, so a list is the quickest map.
    users: HashMap<(Namespace, Uid), Vec<Held>>,
    /// Writes until the next sweep. A sweep costs as much as there are users, and comes once in
    /// as many writes, so it costs a write nothing worth mentioning.
    writes_left: usize,
}

#[derive(Debug)]
struct Held {
    service: ServiceName,
    pod: PodIndex,
    /// `None` is for ever.
    until: Option<Tick>,
}

impl Held {
    fn lives(&self, now: Tick) -> bool {
        self.until.is_none_or(|until| now < until)
    }

    fn link(&self, now: Tick) -> StoredLink {
        let life = self
            .until
            .map_or(Life::Persistent, |until| Life::Temporary(until.since(now)));
        StoredLink::unowned(self.pod, life)
    }
}

impl Links {
    /// The link, if it has not expired.
    pub(super) fn get(&self, link: &LinkId, now: Tick) -> Option<StoredLink> {
        let held = self.users.get(&user(link))?;
        let held = held
            .iter()
            .find(|held| held.service == link.service.service)?;
        held.lives(now).then(|| held.link(now))
    }

    /// Writes the link unconditionally; returns it as it is now.
    pub(super) fn put(
        &mut self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        now: Tick,
    ) -> StoredLink {
        let until = match persist {
            Persist::Forever => None,
            Persist::For(ttl) => Some(now.after(ttl)),
        };
        let new = Held {
            service: link.service.service.clone(),
            pod,
            until,
        };
        let stored = new.link(now);
        let held = self.users.entry(user(link)).or_default();
        match held.iter_mut().find(|held| held.service == new.service) {
            Some(old) => *old = new,
            None => held.push(new),
        }
        stored
    }

    /// Takes the link away.
    pub(super) fn delete(&mut self, link: &LinkId) {
        let user = user(link);
        if let Some(held) = self.users.get_mut(&user) {
            held.retain(|held| held.service != link.service.service);
            if held.is_empty() {
                self.users.remove(&user);
            }
        }
    }

    /// The services to which this user has persistent links.
    pub(super) fn persistent(
        &self,
        namespace: &Namespace,
        uid: &Uid,
    ) -> BTreeMap<ServiceName, PodIndex> {
        let held = self.users.get(&(namespace.clone(), uid.clone()));
        held.into_iter()
            .flatten()
            .filter(|held| held.until.is_none())
            .map(|held| (held.service.clone(), held.pod))
            .collect()
    }

    /// How many users have a link, including expired links that were not looked up.
    #[cfg(test)]
    pub(super) fn users(&self) -> usize {
        self.users.len()
    }

    /// Forgets expired links once in a while; whether it did.
    pub(super) fn sweep_sometimes(&mut self, now: Tick) -> bool {
        if let Some(left) = self.writes_left.checked_sub(1) {
            self.writes_left = left;
            return false;
        }
        self.users.retain(|_, held| {
            held.retain(|held| held.lives(now));
            !held.is_empty()
        });
        self.writes_left = self.users.len().max(SWEEP_LEAST);
        true
    }
}

fn user(link: &LinkId) -> (Namespace, Uid) {
    (link.service.namespace.clone(), link.uid.clone())
}

/// A server counts in whole milliseconds; so does memory, or the two would differ.
pub(super) fn whole(ttl: Duration) -> Duration {
    Duration::from_millis(millis(ttl).unsigned_abs())
}

fn whole_persist(persist: Persist) -> Persist {
    match persist {
        Persist::Forever => Persist::Forever,
        Persist::For(ttl) => Persist::For(whole(ttl)),
    }
}

impl Apply for Compute {
    fn apply(&self, _tables: &mut Tables, _now: Moment) -> Result<Computed> {
        Err(only_a_peer(Self::NAME))
    }
}

impl Tables {
    /// The link with its owner, if it has not expired.
    fn link(&self, link: &LinkId, now: Tick) -> Option<StoredLink> {
        let found = self.links.get(link, now)?;
        Some(self.with_holder(link, found))
    }

    fn with_holder(&self, link: &LinkId, found: StoredLink) -> StoredLink {
        let owner = self.owners.get(link);
        let holder = owner.and_then(|owner| owner.of_link(found.pod, found.life));
        StoredLink { holder, ..found }
    }

    /// Writes the link unconditionally; returns it as it is now.
    fn put(&mut self, link: &LinkId, pod: PodIndex, persist: Persist, now: Tick) -> StoredLink {
        if self.links.sweep_sometimes(now) {
            self.owners.sweep(now);
        }
        let persist = whole_persist(persist);
        let stored = self.links.put(link, pod, persist, now);
        self.with_holder(link, stored)
    }

    fn read(&self, link: &LinkId, now: Tick) -> StoredUser {
        StoredUser::new(self.link(link, now), self.owners.get(link))
    }
}

impl Apply for Get {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Option<StoredLink>> {
        let found = tables.link(&self.link, now.tick);
        Ok(found.filter(|found| self.from.accepts(found)))
    }
}

impl Apply for Read {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Box<StoredUser>> {
        Ok(Box::new(tables.read(&self.link, now.tick)))
    }
}

impl Apply for BatchGet {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<LinksRead<Vec<Option<PodIndex>>>> {
        let pod = |uid: &Uid| {
            let link = LinkId {
                service: self.service.clone(),
                uid: uid.clone(),
            };
            tables.links.get(&link, now.tick).map(|found| found.pod)
        };
        let links: Vec<_> = self.uids.iter().map(pod).collect();
        Ok(links.into())
    }
}

impl Apply for Services {
    fn apply(
        &self,
        tables: &mut Tables,
        _now: Moment,
    ) -> Result<LinksRead<BTreeMap<ServiceName, PodIndex>>> {
        Ok(tables.links.persistent(&self.namespace, &self.uid).into())
    }
}

impl Apply for SetIfAbsent {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Placed> {
        let found = tables.link(&self.link, now.tick);
        let (to, ttl) = match found {
            None => (self.pod, whole(self.ttl)),
            Some(StoredLink {
                pod,
                life: Life::Temporary(left),
                ..
            }) if left < whole(self.ttl) => (pod, whole(self.ttl)),
            Some(link) => return Ok(Placed { link, made: false }),
        };
        Ok(Placed {
            link: tables.put(&self.link, to, Persist::For(ttl), now.tick),
            made: found.is_none(),
        })
    }
}

impl Apply for Set {
    fn apply(&self, _tables: &mut Tables, _now: Moment) -> Result<Option<PodIndex>> {
        Err(only_a_peer(Self::NAME))
    }
}

impl Apply for TrySet {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Placed> {
        let found = tables.read(&self.link, now.tick);
        let fixed = found.link.filter(|link| link.life == Life::Persistent);
        let kept = match (found.record, fixed) {
            (Some(owner), None) => {
                let life = Life::Temporary(Duration::ZERO);
                let life = found.link.map_or(life, |link| link.life);
                Some(StoredLink::unowned(owner.pod, life))
            }
            (Some(owner), Some(fixed)) if owner.pod == fixed.pod => Some(fixed),
            (_, Some(fixed)) if fixed.pod != self.pod => Some(fixed),
            _ => None,
        };
        let link = kept.unwrap_or_else(|| tables.put(&self.link, self.pod, self.persist, now.tick));
        let made = link.pod == self.pod;
        Ok(Placed { link, made })
    }
}

impl Apply for Claim {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Claimed> {
        let StoredUser { link, record, .. } = tables.read(&self.link, now.tick);
        let fixed = link.filter(|link| link.life == Life::Persistent);
        let fixed = fixed.map(|link| link.pod);
        let dead = |pod, until| {
            self.certified
                .is_some_and(|(dead, incarnation)| dead == pod && until <= incarnation)
        };
        let taken = |pod, incarnation: Option<Incarnation>| {
            let until = incarnation.unwrap_or(Incarnation::NONE);
            (!dead(pod, until)).then_some(Claimed::Taken { pod, incarnation })
        };
        if let Some(owner) = record.filter(|owner| owner.pod == self.pod) {
            if owner.incarnation > self.incarnation {
                return Ok(Claimed::Stale(owner.incarnation));
            }
            let ours = owner.incarnation == self.incarnation && fixed == Some(self.pod);
            if ours && owner.token > self.above {
                return Ok(Claimed::Owned {
                    token: owner.token,
                    previous: Token::NONE,
                    again: true,
                });
            }
        }
        let refused = match (fixed, record) {
            (Some(pod), record) if pod != self.pod => {
                let owner = record.filter(|owner| owner.pod == pod);
                taken(pod, owner.map(|owner| owner.incarnation))
            }
            (None, Some(owner)) if owner.pod != self.pod => {
                taken(owner.pod, Some(owner.incarnation))
            }
            _ => None,
        };
        if let Some(refused) = refused {
            return Ok(refused);
        }
        let given = tables.own(&self.link, self.pod, self.incarnation, self.above, now)?;
        Ok(Claimed::Owned {
            token: given.0,
            previous: given.1,
            again: false,
        })
    }
}

impl Tables {
    /// Makes the user this process's own; returns its token and the last one before.
    fn own(
        &mut self,
        link: &LinkId,
        pod: PodIndex,
        incarnation: Incarnation,
        above: Token,
        now: Moment,
    ) -> Result<(Token, Token)> {
        let given = self.owners.put(link, pod, incarnation, above, now)?;
        self.put(link, pod, Persist::Forever, now.tick);
        Ok(given)
    }
}

impl Apply for Swap {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Swapped> {
        if tables.read(&self.link, now.tick).stored != self.found.stored {
            return Ok(Swapped {
                done: false,
                token: None,
            });
        }
        let token = match self.to {
            Rewrite::Nothing => {
                tables.links.delete(&self.link);
                tables.owners.delete(&self.link, now.tick);
                None
            }
            Rewrite::Link(pod, persist) => {
                tables.owners.delete(&self.link, now.tick);
                tables.put(&self.link, pod, persist, now.tick);
                None
            }
            Rewrite::Owned {
                pod,
                incarnation,
                above,
            } => Some(tables.own(&self.link, pod, incarnation, above, now)?),
        };
        Ok(Swapped { done: true, token })
    }
}

impl Apply for Relink {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Option<Placed>> {
        let StoredUser { link, record, .. } = tables.read(&self.link, now.tick);
        let Some(found) = link else {
            return Ok(None);
        };
        let persistent = |link: StoredLink| link.life == Life::Persistent;
        let owner = record.filter(|owner| owner.pod == found.pod);
        let same = found.pod == self.from.pod
            && found.holder == self.from.holder
            && persistent(found) == persistent(self.from)
            && owner.is_none_or(|owner| owner.incarnation <= self.dead);
        if !same {
            return Ok(Some(Placed {
                link: found,
                made: false,
            }));
        }
        if owner.is_some() {
            tables.owners.delete(&self.link, now.tick);
        }
        let link = tables.put(&self.link, self.to, Persist::For(self.ttl), now.tick);
        Ok(Some(Placed { link, made: true }))
    }
}

impl Apply for Remove {
    fn apply(&self, _tables: &mut Tables, _now: Moment) -> Result<Removed> {
        Err(only_a_peer(Self::NAME))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ServiceId;

    fn of(uid: &str) -> LinkId {
        LinkId {
            service: ServiceId {
                namespace: Namespace::new("ns").unwrap(),
                service: ServiceName::new("svc").unwrap(),
            },
            uid: Uid::new(uid).unwrap(),
        }
    }

    fn pod(index: i64) -> PodIndex {
        PodIndex::new(index).unwrap()
    }

    const NOW: Moment = Moment {
        tick: Tick::ZERO,
        micros: 1,
    };

    fn claim(tables: &mut Tables, index: i64, certified: Option<i64>) -> Claimed {
        let claim = Claim {
            link: of("u"),
            pod: pod(index),
            incarnation: Incarnation::new(5),
            certified: certified.map(|dead| (pod(dead), Incarnation::new(5))),
            above: Token::NONE,
        };
        claim.apply(tables, NOW).unwrap()
    }

    /// Only on a server can other programs part a link from its record; the rules are the same.
    #[test]
    fn a_record_protects_without_its_link() {
        let (link, hour) = (of("u"), Persist::For(Duration::from_secs(3600)));
        let taken = |index, incarnation: Option<u64>| Claimed::Taken {
            pod: pod(index),
            incarnation: incarnation.map(Incarnation::new),
        };
        let mut tables = Tables::default();
        claim(&mut tables, 1, None);
        for hint in [None, Some(1), Some(2)] {
            tables.links.delete(&link);
            if let Some(hint) = hint {
                tables.links.put(&link, pod(hint), hour, NOW.tick);
            }
            assert_eq!(claim(&mut tables, 2, None), taken(1, Some(5)));
            for (index, has_it) in [(1, true), (2, false)] {
                let tried = TrySet {
                    link: link.clone(),
                    pod: pod(index),
                    persist: Persist::Forever,
                };
                let kept = tried.apply(&mut tables, NOW).unwrap();
                assert_eq!((kept.made, kept.link.pod), (has_it, pod(1)));
                assert_ne!(kept.link.life, Life::Persistent);
            }
            let back = claim(&mut tables, 1, None);
            assert!(matches!(back, Claimed::Owned { again: false, .. }));
        }
        tables.links.put(&link, pod(2), Persist::Forever, NOW.tick);
        assert_eq!(claim(&mut tables, 3, Some(1)), taken(2, None));
        let mut relink = Relink {
            link: link.clone(),
            from: StoredLink::unowned(pod(2), Life::Persistent),
            dead: Incarnation::NONE,
            to: pod(4),
            ttl: Duration::from_secs(3600),
        };
        let moved = relink.apply(&mut tables, NOW).unwrap().unwrap();
        assert!(moved.made && tables.owners.get(&link).is_some());
        relink.from = moved.link;
        assert!(relink.apply(&mut tables, NOW).unwrap().unwrap().made);
    }

    #[test]
    fn expired_links_do_not_pile_up() {
        let mut links = Links::default();
        let mut now = Tick::ZERO;
        for n in 0..50_000 {
            let link = of(&format!("u{n}"));
            now = now.after(Duration::from_secs(1));
            let ttl = Persist::For(Duration::from_secs(10));
            links.put(&link, pod(0), ttl, now);
            links.sweep_sometimes(now);
        }
        assert!(
            links.users() <= 2 * SWEEP_LEAST,
            "{} users are left",
            links.users()
        );
    }
}
