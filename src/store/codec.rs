//! Encodes numbers for the store and decodes its replies.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use redis::Value;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{Incarnation, LinkId, PodIndex, ServiceName, shown};
use crate::op::{Begun, Renewed};
use crate::route::link::{Certificate, Foretold, Life, Placed, StoredLink};
use crate::route::state::WorkloadState;
use crate::store::key;

/// A duration as the store takes it: whole milliseconds, at least one, at most a hundred years.
pub(super) fn millis(duration: Duration) -> i64 {
    const MILLIS_MAX: i64 = 3_153_600_000_000;
    i64::try_from(duration.as_millis())
        .unwrap_or(MILLIS_MAX)
        .clamp(1, MILLIS_MAX)
}

/// A duration of a lease: whole microseconds.
pub(super) fn micros(duration: Duration) -> u64 {
    const MICROS_MAX: u64 = 3_153_600_000_000_000;
    u64::try_from(duration.as_micros())
        .unwrap_or(MICROS_MAX)
        .min(MICROS_MAX)
}

/// The reply of every link script: `{verdict, owner, pttl, previous}`.
#[derive(Debug)]
pub(super) struct LinkReply<'a> {
    link: &'a LinkId,
    verdict: String,
    owner: String,
    left: i64,
    previous: String,
}

impl<'a> LinkReply<'a> {
    /// Decodes the reply of the script that was called on this link.
    pub(super) fn decode(reply: Value, link: &'a LinkId) -> Result<Self> {
        let [verdict, owner, left, previous] = parts(reply)?;
        Ok(Self {
            link,
            verdict: text(verdict)?,
            owner: text(owner)?,
            left: number(&left)?,
            previous: text(previous)?,
        })
    }

    /// The script's verdict.
    pub(super) fn verdict(&self) -> &str {
        &self.verdict
    }

    /// The link after the call.
    pub(super) fn link(&self) -> Result<StoredLink> {
        let life = match u64::try_from(self.left) {
            Ok(left) => Life::Temporary(Duration::from_millis(left)),
            Err(_) if self.left == -1 => Life::Persistent,
            Err(_) => Life::Temporary(Duration::ZERO),
        };
        let pod = PodIndex::parse(&self.owner).ok_or_else(|| {
            let key = key::link(&self.link.service, &self.link.uid);
            unreadable(&key, &self.owner)
        })?;
        Ok(StoredLink { pod, life })
    }

    /// The link after the call, and whether the call wrote it.
    pub(super) fn placed(&self) -> Result<Placed> {
        Ok(Placed {
            link: self.link()?,
            made: self.verdict == "made",
        })
    }

    /// The owner before the call. An unreadable value names no owner.
    pub(super) fn previous(&self) -> Option<PodIndex> {
        PodIndex::parse(&self.previous)
    }
}

/// A verdict that no script returns.
pub(super) fn unknown_verdict(verdict: &str) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("a script answered {}", shown(verdict)),
    )
}

/// The reply of a plain `GET` of a link.
pub(super) fn pod(reply: &Value, key: impl Fn() -> String) -> Result<Option<PodIndex>> {
    match reply {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => {
            let stored = String::from_utf8_lossy(bytes);
            let pod = PodIndex::parse(&stored);
            pod.map(Some).ok_or_else(|| unreadable(&key(), &stored))
        }
        other => Err(misshapen(other)),
    }
}

/// The reply of `HGETALL` of the user's hash.
pub(super) fn services(reply: Value, key: &str) -> Result<BTreeMap<ServiceName, PodIndex>> {
    pairs(&reply)?
        .into_iter()
        .map(|(name, owner)| {
            let service = ServiceName::new(&name).map_err(|_| unreadable(key, &name))?;
            Ok((service, pod_at(key, &owner)?))
        })
        .collect()
}

/// The reply of `GET` of a workload's state.
pub(super) fn workload(reply: Value, key: &str) -> Result<Option<WorkloadState>> {
    let Some(stored) = optional(reply)? else {
        return Ok(None);
    };
    let read = serde_json::from_str(&stored);
    read.map(Some)
        .map_err(|error| unreadable(key, &stored).caused_by(error))
}

/// The reply of `GET` of a tag.
pub(super) fn tagged(reply: Value, key: &str) -> Result<Option<ServiceName>> {
    let Some(stored) = optional(reply)? else {
        return Ok(None);
    };
    let service = ServiceName::new(&stored);
    service.map(Some).map_err(|_| unreadable(key, &stored))
}

fn optional(reply: Value) -> Result<Option<String>> {
    match reply {
        Value::Nil => Ok(None),
        reply => text(reply).map(Some),
    }
}

fn pod_at(key: &str, stored: &str) -> Result<PodIndex> {
    PodIndex::parse(stored).ok_or_else(|| unreadable(key, stored))
}

fn unreadable(key: &str, stored: &str) -> Error {
    let value = shown(stored);
    Error::new(
        ErrorKind::StoreData,
        format!("the value {value} at {key:?} is not podlink's"),
    )
    .with("key", key)
    .with("value", value)
}

/// The reply of `pod_begin`, `pod_end` and `pod_certify`: `{verdict, incarnation, microseconds}`.
fn lease_reply(reply: Value) -> Result<(String, Incarnation, Duration)> {
    let [verdict, incarnation, left] = parts(reply)?;
    let incarnation = Incarnation::new(unsigned(&incarnation)?);
    Ok((
        text(verdict)?,
        incarnation,
        Duration::from_micros(unsigned(&left)?),
    ))
}

/// The reply of `pod_begin`.
pub(super) fn begun(reply: Value) -> Result<Begun> {
    let (verdict, incarnation, wait) = lease_reply(reply)?;
    match verdict.as_str() {
        "ok" => Ok(Begun::Started(incarnation)),
        "busy" => Ok(Begun::Busy { incarnation, wait }),
        other => Err(unknown_verdict(other)),
    }
}

/// The reply of `pod_renew`: `{verdict, incarnation, leads, recreated, now}`. It does not say which
/// server it comes from.
pub(super) fn renewed(reply: Value) -> Result<Renewed> {
    let [verdict, incarnation, leads, recreated, now] = parts(reply)?;
    let incarnation = Incarnation::new(unsigned(&incarnation)?);
    match text(verdict)?.as_str() {
        "ok" => Ok(Renewed::Done {
            leads: number(&leads)? == 1,
            recreated: number(&recreated)? == 1,
            now: unsigned(&now)?,
            server: 0,
        }),
        "dead" => Ok(Renewed::Dead),
        "superseded" => Ok(Renewed::Superseded(incarnation)),
        other => Err(unknown_verdict(other)),
    }
}

/// The reply of `pod_end`.
pub(super) fn ended(reply: Value) -> Result<bool> {
    match lease_reply(reply)?.0.as_str() {
        "ok" => Ok(true),
        "superseded" => Ok(false),
        other => Err(unknown_verdict(other)),
    }
}

/// The reply of `pod_certify`.
pub(super) fn certificate(reply: Value) -> Result<Certificate> {
    let (verdict, incarnation, left) = lease_reply(reply)?;
    match verdict.as_str() {
        "unknown" => Ok(Certificate::Unknown),
        "dead" => Ok(Certificate::Dead(incarnation)),
        "alive" => Ok(Certificate::Alive { incarnation, left }),
        other => Err(unknown_verdict(other)),
    }
}

/// One pod's fields in the lease hash, in microseconds of the store's clock.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LeaseFields {
    pub(super) incarnation: u64,
    pub(super) deadline: u64,
    pub(super) dead: u64,
}

impl LeaseFields {
    /// A pod whose lease record was lost is the process that its state shows.
    pub(super) fn of_state(self, shown: Incarnation) -> Self {
        let incarnation = match self.incarnation {
            0 => shown.get(),
            known => known,
        };
        Self {
            incarnation,
            ..self
        }
    }
}

/// The store's clock and its record of outages, in microseconds of virtual time.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoreClock {
    pub(super) now: u64,
    pub(super) hold: u64,
    pub(super) held: u64,
    /// Zero if no pod has written its times.
    pub(super) grace: u64,
}

impl StoreClock {
    /// How much longer a pod counts as alive. A pod whose lease reached `held` was alive when the
    /// outage began, so it counts as alive until the hold ends.
    pub(super) fn lease_left(&self, lease: LeaseFields) -> Duration {
        if lease.dead >= lease.incarnation {
            return Duration::ZERO;
        }
        let fresh = if lease.deadline >= self.held {
            self.hold.saturating_sub(self.grace)
        } else {
            0
        };
        Duration::from_micros(lease.deadline.max(fresh).saturating_sub(self.now))
    }

    /// The certificate of a pod without lease and state. After the lease hash was lost, which
    /// leaves no `held`, it may be alive until the hold is over.
    pub(super) fn unknown(&self) -> Certificate {
        if self.held > 0 || self.hold == 0 || self.now > self.hold {
            return Certificate::Unknown;
        }
        Certificate::Alive {
            incarnation: Incarnation::NONE,
            left: Duration::from_micros(self.hold - self.now),
        }
    }

    /// The certificate that a pod would get now, with any outage taken into account; `None` if
    /// no process ever began under its index.
    pub(super) fn foretell(&self, lease: LeaseFields) -> Option<Foretold> {
        if lease.incarnation == 0 {
            return None;
        }
        if lease.dead >= lease.incarnation {
            return Some(Foretold {
                certificate: Certificate::Dead(Incarnation::new(lease.dead)),
                written: true,
            });
        }
        let till = self.hold.max(lease.deadline.saturating_add(self.grace));
        let incarnation = Incarnation::new(lease.incarnation);
        let certificate = if self.grace == 0 {
            let left = Duration::from_secs(1);
            Certificate::Alive { incarnation, left }
        } else if self.now <= till {
            let left = Duration::from_micros(till - self.now);
            Certificate::Alive { incarnation, left }
        } else {
            Certificate::Dead(incarnation)
        };
        Some(Foretold {
            certificate,
            written: false,
        })
    }
}

/// The parts of a reply of exactly `N` parts.
pub(super) fn parts<const N: usize>(reply: Value) -> Result<[Value; N]> {
    match reply {
        Value::Array(values) => values
            .try_into()
            .map_err(|values| misshapen(&Value::Array(values))),
        other => Err(misshapen(&other)),
    }
}

/// The fields and values of a hash, borrowed: there may be thousands.
fn pairs(reply: &Value) -> Result<Vec<(Cow<'_, str>, Cow<'_, str>)>> {
    match reply {
        Value::Array(flat) => flat
            .chunks_exact(2)
            .map(|pair| Ok((borrowed(&pair[0])?, borrowed(&pair[1])?)))
            .collect(),
        Value::Map(map) => map
            .iter()
            .map(|(name, value)| Ok((borrowed(name)?, borrowed(value)?)))
            .collect(),
        other => Err(misshapen(other)),
    }
}

fn borrowed(value: &Value) -> Result<Cow<'_, str>> {
    match value {
        Value::BulkString(bytes) => Ok(String::from_utf8_lossy(bytes)),
        Value::SimpleString(text) => Ok(Cow::Borrowed(text)),
        other => Err(misshapen(other)),
    }
}

/// A string of the store, as bytes.
pub(super) fn bytes(value: Value) -> Result<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        other => Err(misshapen(&other)),
    }
}

fn text(value: Value) -> Result<String> {
    match value {
        Value::BulkString(bytes) => Ok(String::from_utf8(bytes)
            .unwrap_or_else(|bytes| String::from_utf8_lossy(bytes.as_bytes()).into_owned())),
        Value::SimpleString(text) => Ok(text),
        other => Err(misshapen(&other)),
    }
}

fn number(value: &Value) -> Result<i64> {
    let read = match value {
        Value::Int(number) => Some(*number),
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok().and_then(|t| t.parse().ok()),
        _ => None,
    };
    read.ok_or_else(|| misshapen(value))
}

/// A number that is never negative.
pub(super) fn unsigned(value: &Value) -> Result<u64> {
    number(value).map(|number| u64::try_from(number).unwrap_or(0))
}

/// A reply of a shape that no command of podlink expects.
pub(super) fn misshapen(value: &Value) -> Error {
    let text = shown(&format!("{value:?}"));
    Error::new(
        ErrorKind::Internal,
        format!("the store's reply has an unknown shape: {text}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Namespace, ServiceId, Uid};

    fn user() -> LinkId {
        let service = ServiceId {
            namespace: Namespace::new("ns").unwrap(),
            service: ServiceName::new("svc").unwrap(),
        };
        LinkId {
            service,
            uid: Uid::new("u1").unwrap(),
        }
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn durations_become_whole_numbers_within_bounds() {
        assert_eq!(millis(Duration::from_micros(1)), 1);
        assert_eq!(millis(Duration::from_secs(300)), 300_000);
        assert_eq!(millis(Duration::MAX), 3_153_600_000_000);
        assert_eq!(micros(Duration::MAX), 3_153_600_000_000_000);
    }

    #[test]
    fn a_link_reply_is_read_whole() {
        let reply = |owner: &str, left| {
            Value::Array(vec![bulk("made"), bulk(owner), Value::Int(left), bulk("")])
        };
        let user = user();
        let read = LinkReply::decode(reply("0", 1500), &user).unwrap();
        let life = Life::Temporary(Duration::from_millis(1500));
        assert_eq!(
            read.link().unwrap(),
            StoredLink {
                pod: PodIndex::new(0).unwrap(),
                life
            }
        );
        assert!(read.placed().unwrap().made);
        assert_eq!(read.previous(), None);
        let read = LinkReply::decode(reply("7", -1), &user).unwrap();
        assert_eq!(read.link().unwrap().life, Life::Persistent);
    }

    #[test]
    fn a_link_that_is_no_pod_is_named_with_its_key_and_cut() {
        for foreign in ["-1", "", "pod-3", &"9".repeat(5000)] {
            let reply = Value::Array(vec![bulk("kept"), bulk(foreign), Value::Int(-1), bulk("")]);
            let error = LinkReply::decode(reply, &user())
                .unwrap()
                .link()
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StoreData);
            assert!(error.to_string().contains("sf:{ns:lk:u1}svc"), "{error}");
            assert!(error.to_string().len() < 200, "{error}");
        }
    }

    #[test]
    fn a_reply_of_another_shape_is_an_error_not_a_panic() {
        for reply in [Value::Nil, Value::Int(1), Value::Array(vec![]), bulk("x")] {
            assert!(LinkReply::decode(reply.clone(), &user()).is_err());
            assert!(begun(reply).is_err());
        }
    }

    #[test]
    fn a_lease_ends_with_its_deadline_or_the_hold_or_the_certificate() {
        let clock = StoreClock {
            now: 100,
            hold: 0,
            held: 0,
            grace: 5,
        };
        let lease = LeaseFields {
            incarnation: 9,
            deadline: 110,
            dead: 0,
        };
        assert_eq!(clock.lease_left(lease), Duration::from_micros(10));
        assert_eq!(
            clock.lease_left(LeaseFields { dead: 9, ..lease }),
            Duration::ZERO
        );
        assert_eq!(
            clock.lease_left(LeaseFields {
                deadline: 90,
                ..lease
            }),
            Duration::ZERO
        );
        // After an outage: alive when it began at 80, so it lives until hold - grace.
        let clock = StoreClock {
            now: 100,
            hold: 150,
            held: 80,
            grace: 5,
        };
        let held = LeaseFields {
            deadline: 90,
            ..lease
        };
        assert_eq!(clock.lease_left(held), Duration::from_micros(45));
        assert_eq!(
            clock.lease_left(LeaseFields {
                deadline: 79,
                ..lease
            }),
            Duration::ZERO
        );
    }
}
