//! What this process remembers about links.
//!
//! moka bounds the number of entries; what may be believed is decided here: every entry carries
//! its own `valid_until`, judged with `now` as an argument, and an answer that was asked for
//! before an invalidation is never stored after it.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::clock::Tick;
use crate::id::{Incarnation, PodIndex, ServiceId, ServiceName, Tag};

/// A remembered link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The pod that holds the user.
    pub pod: PodIndex,
    /// The process of that pod when the answer was given; `NONE` if nobody knew the pod.
    pub incarnation: Incarnation,
    /// Which service the user belongs to: the driver's own number for it.
    pub service: u32,
    /// When the answer may no longer be believed.
    pub valid_until: Tick,
}

/// A user of a service, as 128 bits of a keyed hash (docs/decisions/0005): looked up without
/// building a string, and two users in ten million meet with a probability below 10^-24.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(u128);

/// Makes the keys of one service.
#[derive(Debug, Clone)]
pub struct Scope(SipHasher13);

impl Scope {
    /// The key of this user.
    #[must_use]
    pub fn key(&self, uid: &str) -> Key {
        let mut hasher = self.0;
        hasher.write(uid.as_bytes());
        Key(hasher.finish128().as_u128())
    }
}

/// Permission to store an answer, taken before the question is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

/// The keys are hashes already: moka needs to hash them no further.
#[derive(Debug, Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word.iter_mut()
                .zip(chunk)
                .for_each(|(to, from)| *to = *from);
            self.0 ^= u64::from_le_bytes(word);
        }
    }

    fn write_u128(&mut self, key: u128) {
        #[allow(clippy::cast_possible_truncation, reason = "half of a hash is a hash")]
        let low = key as u64;
        self.0 = low;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

const STRIPES: usize = 256;

/// The local link cache. Every method may be called from any thread; none waits for I/O.
pub struct LinkCache {
    entries: moka::sync::Cache<Key, Entry, BuildHasherDefault<KeyHasher>>,
    /// Invalidations so far, per stripe of keys. The lock is held while an entry goes in or out,
    /// so that an answer cannot slip in between an invalidation and its count. Readers do not
    /// take it.
    stripes: Box<[Mutex<u64>]>,
    /// Drawn at random, so that nobody can choose uids that collide.
    seed: (u64, u64),
}

impl std::fmt::Debug for LinkCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkCache")
            .field("entries", &self.len())
            .finish_non_exhaustive()
    }
}

impl LinkCache {
    /// A cache of at most `capacity` entries that are dropped after `ttl` even if nobody asks.
    #[must_use]
    pub fn new(capacity: u64, ttl: Duration, seed: (u64, u64)) -> Self {
        // moka evicts by its own clock; zero would mean "never", which bounds nothing.
        let ttl = ttl.max(Duration::from_millis(1));
        let entries = moka::sync::Cache::builder()
            .max_capacity(capacity)
            .time_to_live(ttl)
            .build_with_hasher(BuildHasherDefault::default());
        let stripes = (0..STRIPES).map(|_| Mutex::new(0)).collect();
        Self {
            entries,
            stripes,
            seed,
        }
    }

    /// What makes the keys of this service.
    #[must_use]
    pub fn scope(&self, service: &ServiceId) -> Scope {
        let mut hasher = SipHasher13::new_with_keys(self.seed.0, self.seed.1);
        // Names contain no zero byte, so the three parts cannot run into one another.
        hasher.write(service.namespace.as_str().as_bytes());
        hasher.write(&[0]);
        hasher.write(service.service.as_str().as_bytes());
        hasher.write(&[0]);
        Scope(hasher)
    }

    /// The entry, unless it is over.
    #[must_use]
    pub fn get(&self, key: Key, now: Tick) -> Option<Entry> {
        self.entries
            .get(&key)
            .filter(|entry| now < entry.valid_until)
    }

    /// Permission to store the answer to a question that is asked after this call.
    #[must_use]
    pub fn ticket(&self, key: Key) -> Ticket {
        Ticket(*self.stripe(key))
    }

    /// Stores an answer, unless the key was invalidated after the ticket was taken. Says whether
    /// it was stored.
    pub fn insert(&self, key: Key, entry: Entry, ticket: Ticket) -> bool {
        let stripe = self.stripe(key);
        let fresh = *stripe == ticket.0;
        if fresh {
            self.entries.insert(key, entry);
        }
        fresh
    }

    /// Stores what the caller knows to be true now; answers to earlier questions are void.
    pub fn replace(&self, key: Key, entry: Entry, now: Tick) -> Option<Entry> {
        let mut stripe = self.stripe(key);
        *stripe += 1;
        let previous = self.get(key, now);
        self.entries.insert(key, entry);
        previous
    }

    /// Forgets a user; answers to earlier questions are void. Returns what was believed.
    pub fn invalidate(&self, key: Key, now: Tick) -> Option<Entry> {
        let mut stripe = self.stripe(key);
        *stripe += 1;
        self.entries
            .remove(&key)
            .filter(|entry| now < entry.valid_until)
    }

    /// How many entries say that a user of this service is on this pod. Looks at every entry.
    #[must_use]
    pub fn count_on(&self, service: u32, pod: PodIndex, now: Tick) -> u64 {
        let on_pod = |entry: &Entry| entry.service == service && entry.pod == pod;
        let entries = self.entries.iter().map(|(_, entry)| entry);
        entries
            .filter(|entry| on_pod(entry) && now < entry.valid_until)
            .count() as u64
    }

    /// About how many entries there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.entries.run_pending_tasks();
        self.entries.entry_count()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn stripe(&self, key: Key) -> std::sync::MutexGuard<'_, u64> {
        #[allow(clippy::cast_possible_truncation, reason = "the top byte of 128 bits")]
        let at = (key.0 >> 120) as usize % self.stripes.len();
        // The guarded number is whole whatever panicked meanwhile.
        self.stripes[at]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What this process remembers about tags, absent ones too.
pub struct TagCache {
    entries: moka::sync::Cache<Tag, (Option<ServiceName>, Tick)>,
    ttl: Duration,
    absent_ttl: Duration,
}

impl std::fmt::Debug for TagCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TagCache").finish_non_exhaustive()
    }
}

impl TagCache {
    /// A cache that believes a tag for `ttl`, and the absence of one for `absent_ttl` at most.
    #[must_use]
    pub fn new(ttl: Duration, absent_ttl: Duration) -> Self {
        const CAPACITY: u64 = 10_000;
        let bound = ttl.max(Duration::from_millis(1));
        let entries = moka::sync::Cache::builder();
        let entries = entries.max_capacity(CAPACITY).time_to_live(bound).build();
        let absent_ttl = absent_ttl.min(ttl);
        Self {
            entries,
            ttl,
            absent_ttl,
        }
    }

    /// What is remembered: a service, or that there is none.
    #[must_use]
    #[allow(
        clippy::option_option,
        reason = "not remembered, remembered as absent, remembered"
    )]
    pub fn get(&self, tag: &Tag, now: Tick) -> Option<Option<ServiceName>> {
        let (service, valid_until) = self.entries.get(tag)?;
        (now < valid_until).then_some(service)
    }

    /// Remembers an answer to a question that was sent at `asked`.
    pub fn insert(&self, tag: &Tag, service: Option<ServiceName>, asked: Tick) {
        let ttl = if service.is_some() {
            self.ttl
        } else {
            self.absent_ttl
        };
        self.entries
            .insert(tag.clone(), (service, asked.after(ttl)));
    }

    /// Forgets a tag.
    pub fn forget(&self, tag: &Tag) {
        self.entries.invalidate(tag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Namespace;
    use std::sync::Arc;

    fn service(namespace: &str, name: &str) -> ServiceId {
        ServiceId {
            namespace: Namespace::new(namespace).unwrap(),
            service: ServiceName::new(name).unwrap(),
        }
    }

    fn cache() -> LinkCache {
        LinkCache::new(1_000, Duration::from_secs(240), (1, 2))
    }

    fn entry(pod: i64, until: u64) -> Entry {
        Entry {
            pod: PodIndex::new(pod).unwrap(),
            incarnation: Incarnation::new(1),
            service: 0,
            valid_until: Tick::from_nanos(until),
        }
    }

    const NOW: Tick = Tick::from_nanos(10);

    #[test]
    fn different_triples_have_different_keys() {
        let cache = cache();
        let keys = [
            cache.scope(&service("a", "b-c")).key("u"),
            cache.scope(&service("a-b", "c")).key("u"),
            cache.scope(&service("a", "b")).key("-cu"),
            cache.scope(&service("a", "b-c")).key("v"),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[..at].contains(key), "key {at} stands twice");
        }
    }

    #[test]
    fn an_entry_ends_by_itself() {
        let cache = cache();
        let key = cache.scope(&service("a", "b")).key("u");
        assert!(cache.insert(key, entry(0, 11), cache.ticket(key)));
        assert_eq!(cache.get(key, NOW), Some(entry(0, 11)));
        assert_eq!(cache.get(key, Tick::from_nanos(11)), None);
    }

    #[test]
    fn the_number_of_entries_is_bounded() {
        let cache = LinkCache::new(100, Duration::from_secs(240), (1, 2));
        let scope = cache.scope(&service("a", "b"));
        for user in 0..10_000 {
            let key = scope.key(&user.to_string());
            cache.insert(key, entry(1, 100), cache.ticket(key));
        }
        assert!(cache.len() <= 100, "{} entries", cache.len());
    }

    /// A client asked the store, the user was moved and the cache told so, and then the old
    /// answer arrived: it must not be believed. Every order of the three steps is tried.
    #[test]
    fn an_answer_from_before_an_invalidation_is_never_stored_after_it() {
        #[derive(Clone, Copy, PartialEq)]
        enum Step {
            Ask,
            Answer,
            Invalidate,
        }
        use Step::{Answer, Ask, Invalidate};
        for order in [
            [Ask, Answer, Invalidate],
            [Ask, Invalidate, Answer],
            [Invalidate, Ask, Answer],
        ] {
            let cache = cache();
            let key = cache.scope(&service("a", "b")).key("u");
            let mut ticket = None;
            for step in order {
                match step {
                    Ask => ticket = Some(cache.ticket(key)),
                    Answer => _ = cache.insert(key, entry(1, 100), ticket.unwrap()),
                    Invalidate => _ = cache.invalidate(key, NOW),
                }
            }
            let believed = cache.get(key, NOW).is_some();
            assert_eq!(believed, order == [Invalidate, Ask, Answer]);
        }
    }

    /// The same with real threads: after the invalidation returned nobody may read the old pod,
    /// however the threads interleave.
    #[test]
    fn threads_never_see_an_old_answer_after_an_invalidation() {
        let cache = Arc::new(cache());
        let scope = cache.scope(&service("a", "b"));
        for round in 0..2_000 {
            let key = scope.key(&round.to_string());
            let ticket = cache.ticket(key);
            let late = Arc::clone(&cache);
            let insert = std::thread::spawn(move || late.insert(key, entry(1, 100), ticket));
            cache.invalidate(key, NOW);
            let seen = cache.get(key, NOW);
            insert.join().unwrap();
            assert_eq!(seen.or_else(|| cache.get(key, NOW)), None, "round {round}");
        }
    }

    #[test]
    fn users_on_a_pod_are_counted_by_service() {
        let cache = cache();
        let scope = cache.scope(&service("a", "b"));
        for (uid, pod, until) in [("u", 1, 100), ("v", 1, 100), ("w", 2, 100), ("x", 1, 5)] {
            let key = scope.key(uid);
            cache.insert(key, entry(pod, until), cache.ticket(key));
        }
        let one = PodIndex::new(1).unwrap();
        assert_eq!(cache.count_on(0, one, NOW), 2);
        assert_eq!(cache.count_on(1, one, NOW), 0);
    }

    #[test]
    fn tags_and_their_absence_are_remembered_for_a_while() {
        let seconds = Duration::from_secs;
        let cache = TagCache::new(seconds(60), seconds(1));
        let at = |s| Tick::ZERO.after(seconds(s));
        let (known, absent) = (Tag::new("room").unwrap(), Tag::new("none").unwrap());
        let name = ServiceName::new("room-service").ok();
        cache.insert(&known, name.clone(), at(0));
        cache.insert(&absent, None, at(0));
        assert_eq!(cache.get(&known, at(59)), Some(name));
        assert_eq!(cache.get(&known, at(60)), None);
        assert_eq!(cache.get(&absent, at(0)), Some(None));
        assert_eq!(cache.get(&absent, at(1)), None);
        cache.forget(&known);
        assert_eq!(cache.get(&known, at(1)), None);
    }

    #[test]
    fn what_the_program_says_replaces_and_voids() {
        let cache = cache();
        let key = cache.scope(&service("a", "b")).key("u");
        let ticket = cache.ticket(key);
        assert_eq!(cache.replace(key, entry(2, 100), NOW), None);
        assert!(!cache.insert(key, entry(1, 100), ticket));
        assert_eq!(cache.replace(key, entry(3, 100), NOW), Some(entry(2, 100)));
        assert_eq!(cache.invalidate(key, NOW), Some(entry(3, 100)));
        assert_eq!(cache.get(key, NOW), None);
    }
}
