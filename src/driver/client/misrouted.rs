//! misrouted: a pod said that a user is not its own.

use super::{ClientDriver, ClientShared, Target};
use crate::cache::{Entry, Revision};
use crate::clock::Tick;
use crate::error::Result;
use crate::id::{LinkId, PodIndex, Token, invalid};
use crate::route::link::{Holder, Life, valid_until};
use crate::telemetry::count;

/// What a pod answered to a request that was sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Misrouted {
    /// The pod, which said "not mine".
    pub pod: PodIndex,
    /// The pod that owns the user, if that was said.
    pub owner: Option<PodIndex>,
    /// The owner's token, or the last that the pod knew of.
    pub token: Option<Token>,
}

impl Misrouted {
    /// This pod said "not mine", and no more.
    #[must_use]
    pub const fn by(pod: PodIndex) -> Self {
        Self {
            pod,
            owner: None,
            token: None,
        }
    }

    /// Whether this entry is from after the report: a later owner than the pod knew of.
    fn is_older_than(&self, entry: &Entry) -> bool {
        self.token.is_some_and(|token| entry.token > token)
    }
}

impl ClientDriver {
    /// Takes note that a pod said "not mine". The cache forgets its entry if that names the pod, or
    /// learns the owner; and the next computes do not answer that pod on the strength of a hint.
    /// Never waits. Must be called on the runtime.
    ///
    /// # Errors
    /// `InvalidParameter` if the owner is the pod itself; `Closed`.
    pub fn misrouted(&self, link: LinkId, report: Misrouted) -> Result<()> {
        if report.owner == Some(report.pod) {
            let pod = report.pod.to_string();
            let allowed = "another pod than the one that said \"not mine\"";
            return Err(invalid("owner", &pod, allowed));
        }
        let target = self.shared.target(link)?;
        count(&self.shared.stats.misrouted);
        self.shared.take_refusal(&target, report);
        Ok(())
    }
}

impl ClientShared {
    fn take_refusal(&self, target: &Target, report: Misrouted) {
        let now = self.clock.now();
        let refusing = |entry: &Entry| entry.pod == report.pod;
        let cached = self.cache.get(target.key, now);
        if cached.is_some_and(|entry| refusing(&entry) && report.is_older_than(&entry)) {
            return;
        }
        let news = self.refusals.add(target.key, report.pod, now);
        if let (Some(owner), Some(_)) = (report.owner, report.token) {
            self.refusals.forget_pod(target.key, owner);
        }
        self.cache.revise(target.key, now, |entry| {
            if let Some(learnt) = self.learnt(target, report, entry, now) {
                return Revision::Put(learnt);
            }
            match entry {
                Some(entry) if refusing(&entry) && report.is_older_than(&entry) => Revision::Keep,
                Some(entry) if refusing(&entry) => Revision::Forget,
                // Answers that are under way may name the pod.
                None if news => Revision::Forget,
                _ => Revision::Keep,
            }
        });
    }

    /// The entry for the owner that was named, unless the cache knows better.
    fn learnt(
        &self,
        target: &Target,
        report: Misrouted,
        entry: Option<Entry>,
        now: Tick,
    ) -> Option<Entry> {
        let (owner, token) = (report.owner?, report.token.unwrap_or(Token::NONE));
        // Without a token there is nothing to compare: only what the report contradicts gives way,
        // and hints.
        let gives_way = |entry: Entry| match report.token {
            Some(token) => entry.token <= token,
            None => entry.pod == report.pod || entry.pod != owner && entry.token == Token::NONE,
        };
        if !entry.is_none_or(gives_way) {
            return None;
        }
        let holder = (token != Token::NONE).then(|| Holder {
            incarnation: target.incarnation(owner, now),
            token,
        });
        let valid_until = valid_until(now, Life::Persistent, self.config.cache_ttl)?;
        Some(target.entry(owner, holder, valid_until, now))
    }
}
