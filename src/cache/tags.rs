//! The local cache of tags.

use std::time::Duration;

use crate::clock::Tick;
use crate::id::{ServiceName, Tag};

/// The local cache of tags, including negative entries.
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
    /// A cache that keeps a tag for `ttl`, and a negative entry for at most `absent_ttl`.
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

    /// The cached answer: a service, or that the tag has none.
    #[must_use]
    #[allow(clippy::option_option, reason = "not cached, cached as absent, cached")]
    pub fn get(&self, tag: &Tag, now: Tick) -> Option<Option<ServiceName>> {
        let (service, valid_until) = self.entries.get(tag)?;
        (now < valid_until).then_some(service)
    }

    /// Caches the answer to a request that was sent at `asked`.
    pub fn insert(&self, tag: &Tag, service: Option<ServiceName>, asked: Tick) {
        let ttl = if service.is_some() {
            self.ttl
        } else {
            self.absent_ttl
        };
        self.entries
            .insert(tag.clone(), (service, asked.after(ttl)));
    }

    /// Removes a tag.
    pub fn forget(&self, tag: &Tag) {
        self.entries.invalidate(tag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_their_absence_expire() {
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
}
