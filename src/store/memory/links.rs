//! Links in memory: who holds which user, until when.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::clock::Tick;
use crate::id::{LinkId, Namespace, PodIndex, ServiceName, Uid};
use crate::route::link::{Life, Persist, StoredLink};

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

    /// Writes the link whatever was there; returns it as it is now.
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

    /// How many users have a link, expired ones that nobody has looked for included.
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
