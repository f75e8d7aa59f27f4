//! Encodes numbers for the store and decodes its replies.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use redis::Value;

use crate::error::{Error, ErrorKind, Result, WriteOutcome};
use crate::id::{Incarnation, LinkId, PodIndex, ServiceName, Token, Uid, shown};
use crate::op::{Begun, LinksRead, Renewed, Stepped, Stored, StoredUser, UnreadableLink};
use crate::route::link::{Certificate, Life, Owner, Placed, StoredLink};
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

/// The reply of every link script: `{verdict, owner, pttl, previous, record}`.
#[derive(Debug)]
pub(super) struct LinkReply<'a> {
    link: &'a LinkId,
    verdict: String,
    owner: Vec<u8>,
    left: i64,
    previous: String,
    record: Vec<u8>,
}

impl<'a> LinkReply<'a> {
    /// Decodes the reply of the script that was called on this link.
    pub(super) fn decode(reply: Value, link: &'a LinkId) -> Result<Self> {
        let [verdict, owner, left, previous, record] = parts(reply)?;
        Ok(Self {
            link,
            verdict: text(verdict)?,
            owner: bytes(owner)?,
            left: number(&left)?,
            previous: text(previous)?,
            record: bytes(record)?,
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
        let pod = self.owner()?;
        let record = self.record()?;
        let holder = record.and_then(|record| record.of_link(pod, life));
        Ok(StoredLink { pod, life, holder })
    }

    /// The pod that the script names.
    pub(super) fn owner(&self) -> Result<PodIndex> {
        let owner = String::from_utf8_lossy(&self.owner);
        PodIndex::parse(&owner).ok_or_else(|| {
            let key = key::link(&self.link.service, &self.link.uid);
            unreadable(&key, &owner)
        })
    }

    /// The ownership record after the call.
    pub(super) fn record(&self) -> Result<Option<Owner>> {
        if self.record.is_empty() {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&self.record);
        let record = Owner::parse(&text);
        record
            .map(Some)
            .ok_or_else(|| unreadable(&key::owner(self.link), &text))
    }

    /// The token that the call gave, and the last one before it.
    pub(super) fn token(&self) -> Result<Option<(Token, Token)>> {
        let previous = self.previous.parse().map_or(Token::NONE, Token::new);
        let record = self.record()?;
        Ok(record.map(|record| (record.token, previous)))
    }

    /// Everything that the store holds about the user.
    pub(super) fn found(self) -> StoredUser {
        let link = (self.verdict == "found").then(|| self.link()).transpose();
        let (link, record) = (link, self.record());
        let unreadable = link.as_ref().err().or(record.as_ref().err()).cloned();
        StoredUser {
            link: link.ok().flatten(),
            record: record.ok().flatten(),
            unreadable,
            stored: Stored {
                link: self.owner,
                persistent: self.left == -1,
                record: self.record,
            },
        }
    }

    /// The link after the call, and whether the call wrote it.
    pub(super) fn placed(&self) -> Result<Placed> {
        if self.verdict == "invalid" {
            self.record()?;
        }
        Ok(Placed {
            link: self.link()?,
            made: self.verdict == "made",
        })
    }
}

/// A verdict that no script returns.
pub(super) fn unknown_verdict(verdict: &str) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("a script answered {}", shown(verdict)),
    )
}

/// The user's last token is the greatest there is: no owner can get a greater one.
pub(super) fn no_token_left(link: &LinkId) -> Error {
    let error = unreadable(&key::owner(link), &(Token::LIMIT - 1).to_string());
    error.with_outcome(WriteOutcome::NotSent)
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

/// The reply of `HGETALL` of the user's hash. A field that no pod wrote is left out.
pub(super) fn services(
    reply: Value,
    key: &str,
    uid: &Uid,
) -> Result<LinksRead<BTreeMap<ServiceName, PodIndex>>> {
    let (mut links, mut left_out) = (BTreeMap::new(), Vec::new());
    for (name, owner) in pairs(&reply)? {
        let service = ServiceName::new(&name).map_err(|_| unreadable(key, &name));
        match service.and_then(|service| Ok((service, pod_at(key, &owner)?))) {
            Ok((service, pod)) => drop(links.insert(service, pod)),
            Err(error) => left_out.push(UnreadableLink {
                uid: uid.clone(),
                error,
            }),
        }
    }
    Ok(LinksRead {
        links,
        unreadable: left_out.into(),
    })
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

/// The reply of `pod_begin`, `pod_end`, `pod_stepped` and `pod_certify`: `{verdict, incarnation, microseconds}`.
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

/// The reply of `pod_stepped`.
pub(super) fn stepped(reply: Value) -> Result<Stepped> {
    match lease_reply(reply)?.0.as_str() {
        "held" => Ok(Stepped::Held),
        "unbelieved" => Ok(Stepped::Unbelieved),
        "refused" => Ok(Stepped::Refused),
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
    use crate::id::{Namespace, ServiceId};
    use crate::route::link::Holder;

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
            let owner = [bulk("made"), bulk(owner), Value::Int(left), bulk("")];
            Value::Array(owner.into_iter().chain([bulk("7:5:9")]).collect())
        };
        let user = user();
        let read = LinkReply::decode(reply("0", 1500), &user).unwrap();
        let life = Life::Temporary(Duration::from_millis(1500));
        assert_eq!(
            read.link().unwrap(),
            StoredLink::unowned(PodIndex::new(0).unwrap(), life)
        );
        assert!(read.placed().unwrap().made);
        let read = LinkReply::decode(reply("7", -1), &user).unwrap();
        let holder = Holder {
            incarnation: Incarnation::new(5),
            token: Token::new(9),
        };
        let link = read.link().unwrap();
        assert_eq!((link.life, link.holder), (Life::Persistent, Some(holder)));
    }

    #[test]
    fn a_link_that_is_no_pod_is_named_with_its_key_and_cut() {
        for foreign in ["-1", "", "pod-3", &"9".repeat(5000)] {
            let reply = [
                bulk("kept"),
                bulk(foreign),
                Value::Int(-1),
                bulk(""),
                bulk(""),
            ];
            let reply = Value::Array(reply.into());
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
}
