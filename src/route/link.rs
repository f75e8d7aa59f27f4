//! Links: who owns a user, how long an answer stays valid, and what to do about a lost owner.

use std::fmt;
use std::time::Duration;

use crate::clock::Tick;
use crate::error::Error;
use crate::id::{Incarnation, PodIndex, Token, invalid};
use crate::route::state::Standing;

/// A cached answer expires this much before the link, so that it never outlives the link, even
/// when the reply was slow.
pub const CACHE_MARGIN: Duration = Duration::from_millis(50);

/// A link as the store holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredLink {
    /// The pod that holds the user.
    pub pod: PodIndex,
    /// The remaining lifetime of the link.
    pub life: Life,
    /// The process of that pod which owns the user. `None` for a hint, and for a link that no
    /// record confirms.
    pub holder: Option<Holder>,
}

impl StoredLink {
    /// A link without an owner.
    #[must_use]
    pub const fn unowned(pod: PodIndex, life: Life) -> Self {
        Self {
            pod,
            life,
            holder: None,
        }
    }
}

/// The process of a pod that owns a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Holder {
    /// The process.
    pub incarnation: Incarnation,
    /// The token by which it owns the user.
    pub token: Token,
}

/// An ownership record: whose the user is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner {
    /// The pod.
    pub pod: PodIndex,
    /// The process of the pod.
    pub incarnation: Incarnation,
    /// The token by which it owns the user.
    pub token: Token,
}

impl Owner {
    /// Reads `pod:incarnation:token`; `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let mut number = || {
            let part = parts.next()?;
            let digits = part.bytes().all(|byte| byte.is_ascii_digit());
            (digits && !part.is_empty()).then_some(part)
        };
        let (pod, incarnation, token) = (number()?, number()?, number()?);
        let owner = Self {
            pod: PodIndex::parse(pod)?,
            incarnation: Incarnation::new(incarnation.parse().ok()?),
            token: Token::new(token.parse().ok()?),
        };
        let whole = parts.next().is_none() && owner.token.get() < Token::LIMIT;
        whole.then_some(owner)
    }

    /// Whether both records are of one process, by whatever token.
    #[must_use]
    pub fn is_of_process(self, other: Self) -> bool {
        self.pod == other.pod && self.incarnation == other.incarnation
    }

    /// The same, for callers that know the pod.
    #[must_use]
    pub const fn holder(self) -> Holder {
        Holder {
            incarnation: self.incarnation,
            token: self.token,
        }
    }

    /// The process that owns the user of a link to `pod` with this life.
    #[must_use]
    pub fn of_link(self, pod: PodIndex, life: Life) -> Option<Holder> {
        (self.pod == pod && life == Life::Persistent).then(|| self.holder())
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.pod, self.incarnation, self.token)
    }
}

/// The remaining lifetime of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Unlimited: the owning pod created it.
    Persistent,
    /// This long: a routing hint that a client created, or a grace period.
    Temporary(Duration),
}

/// The answer of an operation that writes conditionally.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// The link after the operation, whichever caller wrote it.
    pub link: StoredLink,
    /// Whether this call wrote it.
    pub made: bool,
}

/// The lifetime of a link that is being set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persist {
    /// Unlimited.
    Forever,
    /// This long.
    For(Duration),
}

impl Persist {
    /// Parses `persist_seconds` of a set: -1 is unlimited, positive is a TTL.
    ///
    /// # Errors
    /// `InvalidParameter` for 0, other negative numbers and more than a hundred years.
    pub fn from_seconds(seconds: i64) -> Result<Self, Error> {
        match seconds {
            -1 => Ok(Self::Forever),
            1..=SECONDS_MAX => Ok(Self::For(Duration::from_secs(seconds.unsigned_abs()))),
            _ => Err(invalid(
                "persist_seconds",
                &seconds.to_string(),
                "-1 (for ever) or 1 to 3153600000 seconds",
            )),
        }
    }
}

/// What happens to a link that is being removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is deleted at once.
    Now,
    /// It stays this long, as a routing hint.
    Grace(Duration),
}

impl Removal {
    /// Parses `persist_seconds` of a remove: 0 and -1 delete at once, positive is the grace TTL.
    ///
    /// # Errors
    /// `InvalidParameter` for other negative numbers and more than a hundred years.
    pub fn from_seconds(seconds: i64) -> Result<Self, Error> {
        match seconds {
            -1 | 0 => Ok(Self::Now),
            1..=SECONDS_MAX => Ok(Self::Grace(Duration::from_secs(seconds.unsigned_abs()))),
            _ => Err(invalid(
                "persist_seconds",
                &seconds.to_string(),
                "0 or -1 (delete at once) or a grace of 1 to 3153600000 seconds",
            )),
        }
    }
}

impl Removal {
    /// The grace of a release in seconds; 0 deletes at once. `None` for what is no such time.
    #[must_use]
    pub fn of_grace(seconds: f64) -> Option<Self> {
        let grace = Duration::try_from_secs_f64(seconds).ok()?;
        #[allow(clippy::cast_precision_loss, reason = "it is far below 2^53")]
        let legal = seconds <= SECONDS_MAX as f64;
        legal.then_some(match grace.is_zero() {
            true => Self::Now,
            false => Self::Grace(grace),
        })
    }
}

/// A hundred years: a longer time is probably in the wrong unit.
const SECONDS_MAX: i64 = 3_153_600_000;

/// Until when an answer may be served from the local cache, or `None` if it must not be cached.
///
/// `asked` is when the request was sent: the link's lifetime was measured later, so the result can
/// only be too early, never too late.
#[must_use]
pub fn valid_until(asked: Tick, life: Life, cache_ttl: Duration) -> Option<Tick> {
    let valid_for = match life {
        Life::Persistent => cache_ttl,
        Life::Temporary(left) => left.saturating_sub(CACHE_MARGIN).min(cache_ttl),
    };
    (!valid_for.is_zero()).then(|| asked.after(valid_for))
}

/// What to do with a user whose link was just read from the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The owner serves: return it, and cache the answer.
    Keep,
    /// The owner may be gone: request a death certificate before the user is moved.
    Certify,
    /// The owner published that it takes no users: move the user.
    Relink,
}

/// Judges the owner of a link by its standing.
#[must_use]
pub const fn judge(owner: Standing) -> Verdict {
    match owner {
        Standing::Ready | Standing::Draining => Verdict::Keep,
        Standing::Shutdown => Verdict::Relink,
        Standing::Lapsed | Standing::Unknown => Verdict::Certify,
    }
}

/// The store's answer to a request to declare a pod dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certificate {
    /// No process was ever seen under this index: there is no owner to protect.
    Unknown,
    /// Every incarnation up to this one is fenced: its renewals are rejected permanently.
    Dead(Incarnation),
    /// It may still be alive.
    Alive {
        /// The incarnation that may be alive.
        incarnation: Incarnation,
        /// How long to wait before a retry can succeed.
        left: Duration,
    },
}

/// The certificate that a pod has, or would get if it were requested now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foretold {
    /// The expected answer; never `Unknown`.
    pub certificate: Certificate,
    /// Whether the store has recorded it already.
    pub written: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(240);

    #[test]
    fn an_answer_never_outlives_its_link() {
        let now = Tick::from_nanos(1);
        let short = Life::Temporary(Duration::from_secs(3));
        let until = valid_until(now, short, TTL);
        assert!(until.is_some_and(|t| t.since(now) < Duration::from_secs(3)));
        let long = valid_until(now, Life::Temporary(Duration::from_secs(300)), TTL);
        assert_eq!(long.map(|t| t.since(now)), Some(TTL));
        assert_eq!(valid_until(now, Life::Temporary(CACHE_MARGIN), TTL), None);
        let persistent = valid_until(now, Life::Persistent, TTL);
        assert_eq!(persistent.map(|t| t.since(now)), Some(TTL));
    }

    #[test]
    fn a_record_reads_back_and_nothing_else_is_one() {
        let owner = Owner::parse("3:17:1764331200000000").unwrap();
        assert_eq!(owner.pod.get(), 3);
        assert_eq!(owner.incarnation.get(), 17);
        assert_eq!(owner.to_string(), "3:17:1764331200000000");
        let whole = Life::Persistent;
        assert_eq!(owner.of_link(owner.pod, whole), Some(owner.holder()));
        let hint = Life::Temporary(TTL);
        assert_eq!(owner.of_link(owner.pod, hint), None);
        let junk = [
            "", "3", "3:1", "3:1:", "3:1:2:3", "-1:1:2", "3:x:2", " 3:1:2",
        ];
        for junk in junk.into_iter().chain(["3:1:9007199254740992"]) {
            assert_eq!(Owner::parse(junk), None, "{junk}");
        }
    }

    #[test]
    fn persist_seconds_of_a_set_and_of_a_remove_differ() {
        assert_eq!(Persist::from_seconds(-1).ok(), Some(Persist::Forever));
        let minute = Duration::from_secs(60);
        assert_eq!(Persist::from_seconds(60).ok(), Some(Persist::For(minute)));
        assert_eq!(Removal::from_seconds(-1).ok(), Some(Removal::Now));
        assert_eq!(Removal::from_seconds(0).ok(), Some(Removal::Now));
        assert_eq!(Removal::from_seconds(60).ok(), Some(Removal::Grace(minute)));
        for bad in [0, -2, i64::MIN, i64::MAX] {
            assert!(Persist::from_seconds(bad).is_err(), "{bad}");
        }
        for bad in [-2, i64::MIN, i64::MAX] {
            assert!(Removal::from_seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_user_is_moved_from_a_pod_that_may_be_alive() {
        assert_eq!(judge(Standing::Draining), Verdict::Keep);
        assert_eq!(judge(Standing::Lapsed), Verdict::Certify);
    }
}
