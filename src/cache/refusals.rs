//! The refusals: users whose pod said "not mine".
//!
//! A small table beside the link cache: a program reports few refusals, and each is settled by the
//! next compute of the user or ends after a time.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Key;
use super::links::KeyHasher;
use crate::clock::Tick;
use crate::id::PodIndex;

/// The most pods that are remembered for one user; the oldest refusal makes room.
const PODS_MAX: usize = 8;

/// Which pods refused which users, of late. Every method may be called from any thread; none waits
/// for I/O.
#[derive(Debug)]
pub struct Refusals {
    /// The most users.
    capacity: usize,
    ttl: Duration,
    /// The number of users, so that nearly every caller finds out without the lock that there is
    /// none.
    users: AtomicUsize,
    /// Held for a lookup or a change, never across an await.
    table: Mutex<RefusalTable>,
}

#[derive(Debug, Default)]
struct RefusalTable {
    users: HashMap<Key, Vec<(PodIndex, Tick)>, BuildHasherDefault<KeyHasher>>,
    /// Each user once, by the expiry of a refusal: the next to be looked at.
    order: VecDeque<(Tick, Key)>,
}

impl Refusals {
    /// A table of at most `capacity` users, whose refusals expire after `ttl`.
    #[must_use]
    pub fn new(capacity: usize, ttl: Duration) -> Self {
        Self {
            capacity,
            ttl,
            users: AtomicUsize::new(0),
            table: Mutex::default(),
        }
    }

    /// Takes note that the pod refused the user. Whether that was not known.
    pub fn add(&self, key: Key, pod: PodIndex, now: Tick) -> bool {
        let until = now.after(self.ttl);
        let mut table = self.table();
        table.expire(now);
        if !table.users.contains_key(&key) {
            if table.users.len() >= self.capacity {
                table.drop_oldest();
            }
            table.order.push_back((until, key));
        }
        let pods = table.users.entry(key).or_default();
        pods.retain(|(_, until)| now < *until);
        let known = pods.iter().any(|(known, _)| *known == pod);
        if !known {
            if pods.len() >= PODS_MAX {
                pods.remove(0);
            }
            pods.push((pod, until));
        }
        self.note(&table);
        !known
    }

    /// The pods that refused the user.
    #[must_use]
    pub fn of(&self, key: Key, now: Tick) -> Vec<PodIndex> {
        if self.is_empty() {
            return Vec::new();
        }
        let table = self.table();
        let pods = table.users.get(&key).into_iter().flatten();
        let valid = pods.filter(|(_, until)| now < *until);
        valid.map(|(pod, _)| *pod).collect()
    }

    /// Forgets what refused the user: a process owns the user.
    pub fn forget(&self, key: Key) {
        if self.is_empty() {
            return;
        }
        let mut table = self.table();
        if table.users.remove(&key).is_some() {
            table.order.retain(|(_, other)| *other != key);
            self.note(&table);
        }
    }

    /// Forgets that this pod refused the user.
    pub fn forget_pod(&self, key: Key, pod: PodIndex) {
        if self.is_empty() {
            return;
        }
        let mut table = self.table();
        let Some(pods) = table.users.get_mut(&key) else {
            return;
        };
        pods.retain(|(refused, _)| *refused != pod);
        if pods.is_empty() {
            table.users.remove(&key);
            table.order.retain(|(_, other)| *other != key);
        }
        self.note(&table);
    }

    /// Removes what has expired; the memory is given back.
    pub fn sweep(&self, now: Tick) {
        if self.is_empty() {
            return;
        }
        let mut table = self.table();
        table.expire(now);
        table.users.shrink_to_fit();
        table.order.shrink_to_fit();
        self.note(&table);
    }

    /// The number of users with a refusal.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.users.load(Ordering::Acquire) as u64
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn note(&self, table: &RefusalTable) {
        self.users.store(table.users.len(), Ordering::Release);
    }

    fn table(&self) -> MutexGuard<'_, RefusalTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RefusalTable {
    fn expire(&mut self, now: Tick) {
        while let Some((until, key)) = self.order.front().copied()
            && until <= now
        {
            self.order.pop_front();
            let Some(pods) = self.users.get_mut(&key) else {
                continue;
            };
            pods.retain(|(_, until)| now < *until);
            match pods.iter().map(|(_, until)| *until).min() {
                Some(next) => self.order.push_back((next, key)),
                None => drop(self.users.remove(&key)),
            }
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((_, key)) = self.order.pop_front() {
            self.users.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::LinkCache;
    use crate::id::{Namespace, ServiceId, ServiceName};

    const TTL: Duration = Duration::from_secs(10);

    fn keys(count: usize) -> Vec<Key> {
        let cache = LinkCache::new(1, TTL, (1, 2));
        let scope = cache.scope(&ServiceId {
            namespace: Namespace::new("ns").unwrap(),
            service: ServiceName::new("svc").unwrap(),
        });
        (0..count)
            .map(|user| scope.key(&user.to_string()))
            .collect()
    }

    fn pod(index: i64) -> PodIndex {
        PodIndex::new(index).unwrap()
    }

    fn at(seconds: u64) -> Tick {
        Tick::ZERO.after(Duration::from_secs(seconds))
    }

    #[test]
    fn each_refusal_expires_by_itself() {
        let (refusals, key) = (Refusals::new(10, TTL), keys(1)[0]);
        assert!(refusals.add(key, pod(0), at(0)));
        assert!(!refusals.add(key, pod(0), at(1)));
        assert!(refusals.add(key, pod(1), at(5)));
        assert_eq!(refusals.of(key, at(9)), [pod(0), pod(1)]);
        assert_eq!(refusals.of(key, at(10)), [pod(1)]);
        refusals.sweep(at(10));
        assert_eq!(refusals.len(), 1);
        refusals.sweep(at(15));
        assert_eq!((refusals.len(), refusals.of(key, at(15))), (0, vec![]));
        assert!(refusals.add(key, pod(0), at(20)));
    }

    #[test]
    fn forgotten_refusals_leave_nothing_behind() {
        let (refusals, keys) = (Refusals::new(10, TTL), keys(2));
        for key in &keys {
            refusals.add(*key, pod(0), at(0));
            refusals.add(*key, pod(1), at(0));
        }
        refusals.forget_pod(keys[0], pod(0));
        assert_eq!(refusals.of(keys[0], at(1)), [pod(1)]);
        refusals.forget_pod(keys[0], pod(1));
        refusals.forget(keys[1]);
        assert!(refusals.is_empty());
        let table = refusals.table();
        assert_eq!((table.users.len(), table.order.len()), (0, 0));
    }

    #[test]
    fn users_and_their_pods_are_bounded() {
        let (refusals, keys) = (Refusals::new(100, TTL), keys(1_000));
        for (user, key) in keys.iter().enumerate() {
            for index in 0..20 {
                refusals.add(*key, pod(index), at(0));
            }
            assert!(refusals.len() <= 100, "{user}");
            assert_eq!(refusals.of(*key, at(1)).len(), PODS_MAX);
        }
        assert_eq!(refusals.of(keys[0], at(1)), []);
        assert_eq!(refusals.table().order.len(), 100);
        refusals.sweep(at(11));
        assert!(refusals.is_empty());
        assert_eq!(refusals.table().users.capacity(), 0);
    }
}
