//! What this process remembers about tags.

use std::time::Duration;

use crate::clock::Tick;
use crate::id::{ServiceName, Tag};

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
}
