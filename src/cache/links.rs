//! The local cache of links.
//!
//! `quick_cache` bounds the number of entries and chooses which to evict; validity is decided here:
//! every entry carries its own `valid_until`, compared with `now` as an argument, and the answer to
//! a request from before an invalidation is never stored after it. An expired entry is removed by
//! the next lookup that finds it, or by the next [`LinkCache::sweep`].

use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quick_cache::sync::Cache;
use quick_cache::{Lifecycle, OptionsBuilder, UnitWeighter};
use siphasher::sip128::{Hasher128, SipHasher13};

use crate::clock::Tick;
use crate::id::{Incarnation, PodIndex, ServiceId, Token};
use crate::telemetry::{CacheStats, count};

/// A cached link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The pod that holds the user.
    pub pod: PodIndex,
    /// The process of that pod when the answer was given; `NONE` if the pod was unknown.
    pub incarnation: Incarnation,
    /// The process that owned the user then. It has no incarnation if a program named the owner.
    pub owner: Incarnation,
    /// The token by which it owned the user; `NONE` for a hint.
    pub token: Token,
    /// The driver's own number of the user's service.
    pub service: u32,
    /// The expiry of the entry.
    pub valid_until: Tick,
}

/// What becomes of a user's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revision {
    /// It stays.
    Keep,
    /// It goes; answers to earlier requests are void, also if there was none.
    Forget,
    /// This one takes its place; answers to earlier requests are void.
    Put(Entry),
}

/// A user of a service, as 128 bits of a keyed hash (docs/decisions/0005): a lookup
/// builds no string, and the probability of a collision among ten million users is below 10^-24.
///
/// Two words rather than one of 128 bits, which would be padded to a multiple of 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    high: u64,
    low: u64,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.low);
    }
}

/// Makes the keys of one service.
#[derive(Debug, Clone)]
pub struct Scope(SipHasher13);

impl Scope {
    /// The key of this user.
    #[must_use]
    pub fn key(&self, uid: &str) -> Key {
        let mut hasher = self.0;
        hasher.write(uid.as_bytes());
        let hash = hasher.finish128();
        Key {
            high: hash.h2,
            low: hash.h1,
        }
    }
}

/// Permission to store an answer, taken before the request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

/// The keys are hashes already: half of one is enough for a hash table.
#[derive(Debug, Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Counts evictions.
#[derive(Debug, Clone)]
struct EvictionCounter(Arc<CacheStats>);

impl Lifecycle<Key, Entry> for EvictionCounter {
    type RequestState = ();

    fn on_evict(&self, _request: &mut (), _key: Key, _entry: Entry) {
        count(&self.0.evictions);
    }
}

type Entries = Cache<Key, Entry, UnitWeighter, BuildHasherDefault<KeyHasher>, EvictionCounter>;

const STRIPES: usize = 256;

/// A sweep scans a table of this many entries in a tenth of a millisecond: no lookup waits longer
/// for it.
const ENTRIES_A_TABLE: u64 = 8_192;
const TABLES_AT_MOST: u64 = 1_024;

/// The local link cache. Every method may be called from any thread; none waits for I/O.
pub struct LinkCache {
    entries: Entries,
    stats: Arc<CacheStats>,
    ttl: Duration,
    /// Invalidations so far, per stripe of keys. The lock is held during an insert or a removal, so
    /// that no answer is stored between an invalidation and its count. Readers do not take it.
    stripes: Box<[Mutex<u64>]>,
    /// Random, so that an attacker cannot choose uids that collide.
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
    /// A cache of at most `capacity` entries that expire after `ttl` at the latest. It grows as it
    /// is filled. When full, it keeps entries that were used again (S3-FIFO): a burst of users that
    /// come once does not evict the regular users.
    #[must_use]
    pub fn new(capacity: u64, ttl: Duration, seed: (u64, u64)) -> Self {
        let tables = (capacity / ENTRIES_A_TABLE)
            .clamp(1, TABLES_AT_MOST)
            .next_power_of_two();
        // Every table gets the same share; rounding one up would exceed the capacity.
        let capacity = capacity - capacity % tables;
        let stripes = (0..STRIPES).map(|_| Mutex::new(0)).collect();
        let stats = Arc::<CacheStats>::default();
        Self {
            entries: entries(capacity, tables, EvictionCounter(Arc::clone(&stats))),
            stats,
            ttl,
            stripes,
            seed,
        }
    }

    /// The key factory of this service.
    #[must_use]
    pub fn scope(&self, service: &ServiceId) -> Scope {
        let mut hasher = SipHasher13::new_with_keys(self.seed.0, self.seed.1);
        // Names contain no zero byte, so the three parts are unambiguous.
        hasher.write(service.namespace.as_str().as_bytes());
        hasher.write(&[0]);
        hasher.write(service.service.as_str().as_bytes());
        hasher.write(&[0]);
        Scope(hasher)
    }

    /// The entry, unless it has expired.
    #[must_use]
    pub fn get(&self, key: Key, now: Tick) -> Option<Entry> {
        let entry = self.entries.get(&key)?;
        if now < entry.valid_until {
            return Some(entry);
        }
        let ended = self
            .entries
            .remove_if(&key, |entry| now >= entry.valid_until);
        if ended.is_some() {
            count(&self.stats.ended);
        }
        None
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> Arc<CacheStats> {
        Arc::clone(&self.stats)
    }

    /// The entry, even an expired one that was not removed yet. This does not count as a use.
    #[must_use]
    pub fn peek(&self, key: Key) -> Option<Entry> {
        self.entries.peek(&key)
    }

    /// Permission to store the answer to a request that is sent after this call.
    #[must_use]
    pub fn ticket(&self, key: Key) -> Ticket {
        Ticket(*self.stripe(key))
    }

    /// Stores an answer, unless the key was invalidated after the ticket was taken. Returns whether
    /// it was stored.
    pub fn insert(&self, key: Key, entry: Entry, ticket: Ticket) -> bool {
        let stripe = self.stripe(key);
        let fresh = *stripe == ticket.0;
        if fresh {
            self.entries.insert(key, entry);
        }
        fresh
    }

    /// Stores a link that the caller knows to be current; answers to earlier requests are void.
    pub fn replace(&self, key: Key, entry: Entry, now: Tick) -> Option<Entry> {
        let mut stripe = self.stripe(key);
        *stripe += 1;
        let previous = self.get(key, now);
        self.entries.insert(key, entry);
        previous
    }

    /// Removes the entry, unless the key was invalidated after the ticket was taken: an answer that
    /// must not be stored has overruled it.
    pub fn drop_older(&self, key: Key, ticket: Ticket) {
        let stripe = self.stripe(key);
        if *stripe == ticket.0 {
            self.entries.remove(&key);
        }
    }

    /// Decides about the valid entry, if any, while no other thread changes it.
    pub fn revise(&self, key: Key, now: Tick, decide: impl FnOnce(Option<Entry>) -> Revision) {
        let mut stripe = self.stripe(key);
        match decide(self.get(key, now)) {
            Revision::Keep => return,
            Revision::Forget => drop(self.entries.remove(&key)),
            Revision::Put(entry) => self.entries.insert(key, entry),
        }
        *stripe += 1;
    }

    /// Removes a user; answers to earlier requests are void. Returns the valid entry, if any.
    pub fn invalidate(&self, key: Key, now: Tick) -> Option<Entry> {
        let mut stripe = self.stripe(key);
        *stripe += 1;
        let (_, entry) = self.entries.remove(&key)?;
        (now < entry.valid_until).then_some(entry)
    }

    /// The interval of sweeps: a quarter of the TTL, so that expired entries take at most a quarter
    /// of the room, clamped so that sweeps stay cheap. `None`: the cache stores nothing.
    #[must_use]
    pub fn sweep_period(&self) -> Option<Duration> {
        const SHORTEST: Duration = Duration::from_millis(100);
        const LONGEST: Duration = Duration::from_secs(60);
        (!self.ttl.is_zero()).then(|| (self.ttl / 4).clamp(SHORTEST, LONGEST))
    }

    /// Removes expired entries. Scans every entry, one table at a time: lookups in that table wait
    /// meanwhile. The memory is kept for new entries.
    pub fn sweep(&self, now: Tick) {
        self.entries.retain(|_, entry| now < entry.valid_until);
    }

    /// The number of valid entries that link a user of this service to this pod. Scans every entry.
    #[must_use]
    pub fn count_on(&self, service: u32, pod: PodIndex, now: Tick) -> u64 {
        let on_pod = |entry: &Entry| entry.service == service && entry.pod == pod;
        let entries = self.entries.iter().map(|(_, entry)| entry);
        entries
            .filter(|entry| on_pod(entry) && now < entry.valid_until)
            .count() as u64
    }

    /// The number of entries, including expired ones that were not removed yet.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn stripe(&self, key: Key) -> std::sync::MutexGuard<'_, u64> {
        #[allow(clippy::cast_possible_truncation, reason = "the top byte")]
        let at = (key.high >> 56) as usize % self.stripes.len();
        // The guarded number is valid even after a panic.
        self.stripes[at]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn entries(capacity: u64, tables: u64, evictions: EvictionCounter) -> Entries {
    let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    // The estimate reserves no memory: it sets the number of tables, and how many hashes of evicted
    // entries are kept.
    let options = OptionsBuilder::new()
        .shards(size(tables))
        .estimated_items_capacity(size(capacity))
        .weight_capacity(capacity)
        .build()
        .unwrap_or_else(|error| unreachable!("both required options are set: {error}"));
    Cache::with_options(
        options,
        UnitWeighter,
        BuildHasherDefault::default(),
        evictions,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Namespace, ServiceName};
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
            owner: Incarnation::NONE,
            token: Token::NONE,
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
            assert!(!keys[..at].contains(key), "key {at} is not unique");
        }
    }

    #[test]
    fn an_entry_expires() {
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

    /// A client sent a request, the user was moved, the cache entry was invalidated, and then the
    /// old answer arrived: it must not be stored. The test runs every order of the three steps.
    #[test]
    fn an_answer_from_before_an_invalidation_is_never_stored_after_it() {
        #[derive(Clone, Copy, PartialEq)]
        enum RaceStep {
            Ask,
            Answer,
            Invalidate,
        }
        use RaceStep::{Answer, Ask, Invalidate};
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
            let cached = cache.get(key, NOW).is_some();
            assert_eq!(cached, order == [Invalidate, Ask, Answer]);
        }
    }

    /// The same with real threads: after the invalidation returned no reader may see the old pod,
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
    fn replace_overrides_and_voids_older_answers() {
        let cache = cache();
        let key = cache.scope(&service("a", "b")).key("u");
        let ticket = cache.ticket(key);
        assert_eq!(cache.replace(key, entry(2, 100), NOW), None);
        assert!(!cache.insert(key, entry(1, 100), ticket));
        assert_eq!(cache.replace(key, entry(3, 100), NOW), Some(entry(2, 100)));
        assert_eq!(cache.invalidate(key, NOW), Some(entry(3, 100)));
        assert_eq!(cache.get(key, NOW), None);
    }

    #[test]
    fn a_revision_voids_older_answers() {
        let cache = cache();
        let key = cache.scope(&service("a", "b")).key("u");
        let old = cache.ticket(key);
        cache.revise(key, NOW, |found| {
            assert_eq!(found, None);
            Revision::Keep
        });
        assert!(cache.insert(key, entry(1, 100), old));
        cache.revise(key, NOW, |found| {
            assert_eq!(found, Some(entry(1, 100)));
            Revision::Forget
        });
        assert!(!cache.insert(key, entry(1, 100), old));
        let ticket = cache.ticket(key);
        cache.revise(key, NOW, |_| Revision::Put(entry(2, 100)));
        cache.drop_older(key, ticket);
        assert_eq!(cache.get(key, NOW), Some(entry(2, 100)));
        cache.drop_older(key, cache.ticket(key));
        assert_eq!(cache.get(key, NOW), None);
    }

    #[test]
    fn expired_entries_go_by_lookup_or_sweep() {
        let cache = cache();
        let scope = cache.scope(&service("a", "b"));
        for (uid, until) in [("met", 11), ("swept", 11), ("stays", 100)] {
            let key = scope.key(uid);
            cache.insert(key, entry(1, until), cache.ticket(key));
        }
        let later = Tick::from_nanos(11);
        assert_eq!(cache.get(scope.key("met"), later), None);
        assert_eq!(cache.len(), 2);
        cache.sweep(later);
        assert_eq!(cache.len(), 1);
        assert_eq!(cache.get(scope.key("stays"), later), Some(entry(1, 100)));
    }

    /// Tables that were rounded up to equal sizes held more entries than the capacity.
    #[test]
    fn the_bound_holds_for_capacities_that_tables_do_not_divide() {
        for capacity in [1, 2, 3, 50, 8_193, 33_333] {
            let cache = LinkCache::new(capacity, Duration::from_secs(240), (1, 2));
            let scope = cache.scope(&service("a", "b"));
            for user in 0..capacity * 2 {
                let key = scope.key(&user.to_string());
                cache.insert(key, entry(1, 100), cache.ticket(key));
                assert_eq!(
                    cache.get(key, NOW),
                    Some(entry(1, 100)),
                    "{user} of {capacity}"
                );
            }
            let held = cache.len();
            assert!(held <= capacity, "{held} of {capacity}");
            assert!(held * 100 >= capacity * 95, "{held} of {capacity}");
        }
    }

    /// A burst of users that come once, ten times the capacity, between the lookups of the regular
    /// users.
    #[test]
    fn a_burst_does_not_evict_regular_users() {
        let cache = LinkCache::new(1_000, Duration::from_secs(240), (1, 2));
        let scope = cache.scope(&service("a", "b"));
        let insert = |uid: String| {
            let key = scope.key(&uid);
            cache.insert(key, entry(1, 100), cache.ticket(key));
            key
        };
        let regulars: Vec<Key> = (0..500)
            .map(|user| insert(format!("regular {user}")))
            .collect();
        let cached = || {
            regulars
                .iter()
                .filter(|key| cache.get(**key, NOW).is_some())
                .count()
        };
        assert_eq!(cached(), 500);
        for user in 0..10_000 {
            insert(format!("once {user}"));
        }
        assert!(cached() >= 450, "{} of 500 regulars", cached());
    }
}
