//! Links in memory: which pod has which user, until when.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::{Apply, Moment, Tables};
use crate::clock::Tick;
use crate::error::Result;
use crate::id::{LinkId, Namespace, PodIndex, ServiceName, Uid};
use crate::op::{
    BatchGet, Compute, Get, Operation, Relink, Remove, Removed, Services, Set, SetIfAbsent, TrySet,
};
use crate::route::link::{Life, Persist, Placed, Removal, StoredLink};
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
        StoredLink {
            pod: self.pod,
            life,
        }
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
        self.sweep_sometimes(now);
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

    /// Lets a link live at least `ttl` from now on.
    pub(super) fn raise(
        &mut self,
        link: &LinkId,
        found: StoredLink,
        ttl: Duration,
        now: Tick,
    ) -> StoredLink {
        match found.life {
            Life::Temporary(left) if left < ttl => {
                self.put(link, found.pod, Persist::For(ttl), now)
            }
            _ => found,
        }
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

    fn sweep_sometimes(&mut self, now: Tick) {
        if let Some(left) = self.writes_left.checked_sub(1) {
            self.writes_left = left;
            return;
        }
        self.users.retain(|_, held| {
            held.retain(|held| held.lives(now));
            !held.is_empty()
        });
        self.writes_left = self.users.len().max(SWEEP_LEAST);
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
    fn apply(&self, _tables: &mut Tables, _now: Moment) -> Result<StoredLink> {
        Err(only_a_peer(Self::NAME))
    }
}

impl Apply for Get {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Option<StoredLink>> {
        let found = tables.links.get(&self.link, now.tick);
        Ok(found.filter(|found| self.from.accepts(found)))
    }
}

impl Apply for BatchGet {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Vec<Option<PodIndex>>> {
        let pod = |uid: &Uid| {
            let link = LinkId {
                service: self.service.clone(),
                uid: uid.clone(),
            };
            tables.links.get(&link, now.tick).map(|found| found.pod)
        };
        Ok(self.uids.iter().map(pod).collect())
    }
}

impl Apply for Services {
    fn apply(&self, tables: &mut Tables, _now: Moment) -> Result<BTreeMap<ServiceName, PodIndex>> {
        Ok(tables.links.persistent(&self.namespace, &self.uid))
    }
}

impl Apply for SetIfAbsent {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Placed> {
        let (links, ttl) = (&mut tables.links, whole(self.ttl));
        Ok(match links.get(&self.link, now.tick) {
            None => Placed {
                link: links.put(&self.link, self.pod, Persist::For(ttl), now.tick),
                made: true,
            },
            Some(found) => Placed {
                link: links.raise(&self.link, found, ttl, now.tick),
                made: false,
            },
        })
    }
}

impl Apply for Set {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Option<PodIndex>> {
        let previous = tables.links.get(&self.link, now.tick);
        let persist = whole_persist(self.persist);
        tables.links.put(&self.link, self.pod, persist, now.tick);
        Ok(previous.map(|found| found.pod))
    }
}

impl Apply for TrySet {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Placed> {
        if let Some(found) = tables.links.get(&self.link, now.tick)
            && found.pod != self.pod
            && found.life == Life::Persistent
        {
            return Ok(Placed {
                link: found,
                made: false,
            });
        }
        let persist = whole_persist(self.persist);
        Ok(Placed {
            link: tables.links.put(&self.link, self.pod, persist, now.tick),
            made: true,
        })
    }
}

impl Apply for Relink {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Option<Placed>> {
        let Some(found) = tables.links.get(&self.link, now.tick) else {
            return Ok(None);
        };
        let persistent = |link: StoredLink| link.life == Life::Persistent;
        if found.pod != self.from.pod || persistent(found) != persistent(self.from) {
            return Ok(Some(Placed {
                link: found,
                made: false,
            }));
        }
        let persist = Persist::For(whole(self.ttl));
        let link = tables.links.put(&self.link, self.to, persist, now.tick);
        Ok(Some(Placed { link, made: true }))
    }
}

impl Apply for Remove {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Removed> {
        let Some(found) = tables.links.get(&self.link, now.tick) else {
            return Ok(Removed {
                previous: None,
                done: false,
            });
        };
        let done = self.owner.is_none_or(|owner| owner == found.pod);
        if done {
            match self.removal {
                Removal::Now => tables.links.delete(&self.link),
                Removal::Grace(grace) => {
                    let persist = Persist::For(whole(grace));
                    tables.links.put(&self.link, found.pod, persist, now.tick);
                }
            }
        }
        Ok(Removed {
            previous: Some(found.pod),
            done,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ServiceId;

    #[test]
    fn expired_links_do_not_pile_up() {
        let mut links = Links::default();
        let mut now = Tick::ZERO;
        for n in 0..50_000 {
            let link = LinkId {
                service: ServiceId {
                    namespace: Namespace::new("ns").unwrap(),
                    service: ServiceName::new("svc").unwrap(),
                },
                uid: Uid::new(&format!("u{n}")).unwrap(),
            };
            now = now.after(Duration::from_secs(1));
            let ttl = Persist::For(Duration::from_secs(10));
            links.put(&link, PodIndex::new(0).unwrap(), ttl, now);
        }
        assert!(
            links.users() <= 2 * SWEEP_LEAST,
            "{} users are left",
            links.users()
        );
    }
}
