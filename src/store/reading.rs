//! Reading all pods of a service.
//!
//! A client polls the same pods, thousands of them, and most states are unchanged. So each
//! reading keeps the bytes that it was decoded from: a state with the same bytes is reused.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use redis::Value;
use serde::Deserialize;

use super::codec::{bytes, parts, unsigned};
use super::lease_view::{LeaseFields, StoreClock};
use super::packed::{Field, Packed};
use crate::error::Result;
use crate::id::PodIndex;
use crate::op::{Inspection, Pods, PodsReading, ReadState, ReadStates};
use crate::route::link::Foretold;
use crate::route::state::{PodRecord, PodState, Readiness, RoutingState};

/// The state of a pod, if it was decoded from exactly these bytes.
fn unchanged<'a>(last: &'a PodsReading, pod: PodIndex, entry: &[u8]) -> Option<&'a ReadState> {
    let ReadStates { packed, states } = &*last.0;
    let known = states.get(position(states, pod, |known| known.pod)?)?;
    (packed.get(known.entry.clone()) == Some(entry)).then_some(known)
}

/// Decodes the reply of `pods`; `last` is the previous reading.
pub(super) fn pods(reply: Value, last: &PodsReading) -> Result<Pods> {
    PodsReply::decode(reply)?.pods(last)
}

/// Decodes the reply of `inspect`, which has the shape of that of `pods`.
pub(super) fn inspection(reply: Value) -> Result<Inspection> {
    let reply = PodsReply::decode(reply)?;
    let (states, _) = read_states(&reply.states, &PodsReading::default())?;
    Ok(Inspection {
        certificates: reply.certificates(&states)?,
        pods: reply.pods(&PodsReading::default())?,
    })
}

/// The reply of `pods` and of `inspect`: `{now, hold, held, grace, watchers, leases, states}`. The
/// last two are packed, because a reply of thousands of strings costs more to parse than their
/// content.
struct PodsReply {
    clock: StoreClock,
    watchers: u64,
    leases: Vec<u8>,
    states: Vec<u8>,
}

impl PodsReply {
    fn decode(reply: Value) -> Result<Self> {
        let [now, hold, held, grace, watchers, leases, states] = parts(reply)?;
        Ok(Self {
            clock: StoreClock {
                now: unsigned(&now)?,
                hold: unsigned(&hold)?,
                held: unsigned(&held)?,
                grace: unsigned(&grace)?,
            },
            watchers: unsigned(&watchers)?,
            leases: bytes(leases)?,
            states: bytes(states)?,
        })
    }

    fn pods(self, last: &PodsReading) -> Result<Pods> {
        let mut pods = Pods {
            watchers: self.watchers,
            now_ms: self.clock.now / 1000,
            ..Pods::default()
        };
        let (states, corrupt) = read_states(&self.states, last)?;
        let mut leases: Vec<(PodIndex, LeaseFields)> = states
            .iter()
            .map(|state| (state.pod, LeaseFields::default()))
            .collect();
        leases.dedup_by_key(|(pod, _)| *pod);
        let mut leased = Vec::new();
        let (lease_time, layout) = each_lease_field(&self.leases, |pod, field, value| {
            if field == LeaseFieldName::Incarnation {
                leased.push(pod);
            }
            let at = position(&leases, pod, |(pod, _)| *pod);
            if let Some((_, lease)) = at.and_then(|at| leases.get_mut(at)) {
                lease.set(field, value);
            }
        })?;
        pods.layout = layout;
        pods.forgot = self.clock.forgot().then_some(leased);
        let records = states.iter().filter_map(|ReadState { pod, state, .. }| {
            let (_, lease) = *leases.get(position(&leases, *pod, |(pod, _)| *pod)?)?;
            let held = lease.of_state(state.incarnation);
            let published = state.update_time.saturating_mul(1000);
            let record = PodRecord {
                lease_left: self.clock.lease_left(held),
                renewal: self.clock.renewal(held, lease_time, published),
                state: Arc::clone(state),
            };
            // Without a lease it is shown during the hold after the lease hash was lost.
            let lost = lease.incarnation == 0 && !record.lease_left.is_zero();
            (lost || lease.incarnation == state.incarnation.get()).then_some(record)
        });
        pods.records = records.collect();
        pods.corrupt = corrupt;
        let later = states
            .iter()
            .filter_map(|known| Some((known.pod, known.later.clone()?)));
        pods.later = later.collect();
        pods.reading = PodsReading(Arc::new(ReadStates {
            packed: self.states,
            states,
        }));
        Ok(pods)
    }

    fn certificates(&self, states: &[ReadState]) -> Result<BTreeMap<PodIndex, Foretold>> {
        let mut leases: BTreeMap<PodIndex, LeaseFields> = BTreeMap::new();
        each_lease_field(&self.leases, |pod, field, value| {
            leases.entry(pod).or_default().set(field, value);
        })?;
        for ReadState { pod, state, .. } in states {
            let lease = leases.entry(*pod).or_default();
            *lease = lease.of_state(state.incarnation);
        }
        let certificates = leases.into_iter().filter_map(|(pod, lease)| {
            let foretold = self.clock.foretell(lease)?;
            Some((pod, foretold))
        });
        Ok(certificates.collect())
    }
}

/// The position of a pod in a list sorted by pod. Pod indices rarely have gaps, so the index
/// itself is the first guess.
fn position<T>(sorted: &[T], pod: PodIndex, index: impl Fn(&T) -> PodIndex) -> Option<usize> {
    let guess = usize::try_from(pod.get()).ok()?;
    if sorted.get(guess).is_some_and(|found| index(found) == pod) {
        return Some(guess);
    }
    sorted.binary_search_by_key(&pod, index).ok()
}

/// The fields that cannot be decoded, and why.
type Corrupt = Vec<(String, String)>;

/// The states that can be decoded, sorted by pod, and the others.
fn read_states(packed: &[u8], last: &PodsReading) -> Result<(Vec<ReadState>, Corrupt)> {
    let fields = Packed::open(packed)?;
    let (mut states, mut corrupt) = (Vec::with_capacity(fields.len()), Vec::new());
    for field in fields {
        let Field { entry, name, value } = field?;
        let pod = str::from_utf8(name).ok().and_then(PodIndex::parse);
        let unchanged = pod.and_then(|pod| unchanged(last, pod, packed.get(entry.clone())?));
        let state = match unchanged {
            Some(known) => Ok((Arc::clone(&known.state), known.later.clone())),
            None => read_state(pod, value).map(|(state, later)| (Arc::new(state), later)),
        };
        match state {
            Ok((state, later)) => states.push(ReadState {
                pod: state.pod_id,
                entry,
                state,
                later,
            }),
            Err(why) => corrupt.push((String::from_utf8_lossy(name).into_owned(), why)),
        }
    }
    states.sort_by_key(|known| known.pod);
    Ok((states, corrupt))
}

/// The state, and the name that only a later version knows.
fn read_state(
    field: Option<PodIndex>,
    stored: &[u8],
) -> std::result::Result<(PodState, Option<String>), String> {
    // Invalid UTF-8 is rare, and a check is faster than a lossy copy.
    let stored =
        str::from_utf8(stored).map_or_else(|_| String::from_utf8_lossy(stored), Cow::Borrowed);
    let state: PodState = serde_json::from_str(&stored).map_err(|error| error.to_string())?;
    if field == Some(state.pod_id) {
        let later = later_name(&state, &stored);
        return Ok((state, later));
    }
    Err(format!(
        "the state of pod {} is stored under this field",
        state.pod_id
    ))
}

/// The published name of a state that only a later version knows. It was read as DENY_NEW_CALL or as
/// NOT_READY, so most states need no second look.
fn later_name(state: &PodState, stored: &str) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Names<'a> {
        #[serde(borrow)]
        state: Cow<'a, str>,
        #[serde(borrow)]
        routing_state: Cow<'a, str>,
    }
    let usual =
        state.routing_state != RoutingState::DenyNewCall && state.state != Readiness::NotReady;
    if usual {
        return None;
    }
    let names: Names<'_> = serde_json::from_str(stored).ok()?;
    let known = [
        (names.routing_state, state.routing_state.as_str()),
        (names.state, state.state.as_str()),
    ];
    let mut later = known.into_iter().filter(|(name, read_as)| name != read_as);
    later.next().map(|(name, _)| name.into_owned())
}

/// One field of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeaseFieldName {
    Incarnation,
    Deadline,
    Dead,
}

impl LeaseFields {
    fn set(&mut self, field: LeaseFieldName, value: u64) {
        match field {
            LeaseFieldName::Incarnation => self.incarnation = value,
            LeaseFieldName::Deadline => self.deadline = value,
            LeaseFieldName::Dead => self.dead = value,
        }
    }
}

/// Calls `visit` for each pod's fields in the lease hash. Returns how long a renewal counts and the
/// version of the layout, each 0 if that is not known. Other fields are skipped.
fn each_lease_field(
    packed: &[u8],
    mut visit: impl FnMut(PodIndex, LeaseFieldName, u64),
) -> Result<(u64, u64)> {
    let (mut lease_time, mut layout) = (0, 0);
    for field in Packed::open(packed)? {
        let Field { name, value, .. } = field?;
        let read = |text| str::from_utf8(text).ok();
        let (lease_field, pod) = match name {
            b"t" => {
                let lease = read(value).and_then(|times| times.split(':').next()?.parse().ok());
                lease_time = lease.unwrap_or(0);
                continue;
            }
            [b'i', b':', pod @ ..] => (LeaseFieldName::Incarnation, pod),
            [b'd', b':', pod @ ..] => (LeaseFieldName::Deadline, pod),
            [b'x', b':', pod @ ..] => (LeaseFieldName::Dead, pod),
            b"format" => {
                layout = str::from_utf8(value).map_or(0, |text| text.parse().unwrap_or(0));
                continue;
            }
            _ => continue,
        };
        let pod = read(pod).and_then(PodIndex::parse);
        let value = read(value).and_then(|value| value.parse().ok());
        if let (Some(pod), Some(value)) = (pod, value) {
            visit(pod, lease_field, value);
        }
    }
    Ok((lease_time, layout))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// What `cmsgpack.pack` returns for these strings.
    fn packed(pairs: &[(&str, &str)]) -> Value {
        let mut packed = vec![0xdc, 0, 2 * u8::try_from(pairs.len()).unwrap()];
        for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
            let length = u16::try_from(text.len()).unwrap().to_be_bytes();
            packed.extend([0xda, length[0], length[1]]);
            packed.extend(text.as_bytes());
        }
        Value::BulkString(packed)
    }

    /// The reply of `pods` 50 µs before the leases of process 7 end.
    fn reply(leases: &[(&str, &str)], states: &[(&str, &str)]) -> Value {
        let number = |text: &str| Value::BulkString(text.into());
        Value::Array(vec![
            number("100"),
            number("0"),
            number("0"),
            number("5"),
            Value::Int(2),
            packed(leases),
            packed(states),
        ])
    }

    const LEASES: [(&str, &str); 8] = [
        ("i:0", "7"),
        ("d:0", "150"),
        ("i:1", "8"),
        ("d:1", "150"),
        ("clk", "100"),
        ("b:0", "nonce"),
        ("i:00x", "9"),
        // Not a second spelling of pod 0.
        ("i:00", "9"),
    ];

    fn state(pod: u32, incarnation: u64, load: i64) -> String {
        format!(
            r#"{{"podId":{pod},"state":"READY","loadState":{load},"routingState":"READY","incarnation":{incarnation},"updateTime":5}}"#
        )
    }

    #[test]
    fn unreadable_states_reported_other_incarnations_skipped() {
        let (zero, one, two) = (state(0, 7, 1), state(1, 7, 1), state(2, 7, 1));
        let states = [
            ("2", two.as_str()),
            ("1", &one),
            ("0", &zero),
            ("3", "{"),
            ("4", &zero),
        ];
        let mut last = PodsReading::default();
        // The second time with the first reading.
        for _ in 0..2 {
            let pods = pods(reply(&LEASES, &states), &last).unwrap();
            assert_eq!(pods.records.len(), 1);
            assert_eq!(pods.records[0].state.pod_id.get(), 0);
            assert_eq!(pods.records[0].lease_left, Duration::from_micros(50));
            let corrupt = pods.corrupt.iter().map(|(field, _)| field.as_str());
            assert_eq!(corrupt.collect::<Vec<_>>(), ["3", "4"]);
            assert_eq!((pods.watchers, pods.reading.0.states.len()), (2, 3));
            last = pods.reading;
        }
    }

    #[test]
    fn only_a_state_with_the_same_bytes_is_reused() {
        let (zero, five) = (state(0, 7, 1), state(5, 7, 1));
        let leases = [("i:0", "7"), ("d:0", "150"), ("i:5", "7"), ("d:5", "150")];
        let read = |states: &[(&str, &str)], last: &PodsReading| {
            pods(reply(&leases, states), last).unwrap()
        };
        let first = read(&[("5", &five), ("0", &zero)], &PodsReading::default());
        let moved = state(5, 7, 2);
        let second = read(&[("0", &zero), ("5", &moved)], &first.reading);
        let states = |pods: &Pods| -> Vec<Arc<PodState>> {
            let records = pods.records.iter();
            records.map(|record| Arc::clone(&record.state)).collect()
        };
        let (before, after) = (states(&first), states(&second));
        assert!(Arc::ptr_eq(&before[0], &after[0]));
        assert_eq!((before[1].load_state, after[1].load_state), (1, 2));
        // The same state in another pod's field is not a state of that pod.
        let third = read(&[("0", &five), ("5", &moved)], &second.reading);
        assert_eq!(third.corrupt[0].0, "0");
        assert!(Arc::ptr_eq(&after[1], &states(&third)[0]));
        // An unreadable state is decoded again, and a pod that was missing comes back.
        let fourth = read(&[("0", &zero), ("5", &moved)], &third.reading);
        assert_eq!((&states(&fourth), fourth.corrupt.len()), (&after, 0));
    }

    #[test]
    fn unchanged_bytes_are_judged_by_the_current_lease() {
        let zero = state(0, 7, 1);
        let states = [("0", zero.as_str())];
        let first = pods(reply(&LEASES, &states), &PodsReading::default()).unwrap();
        assert_eq!(first.records.len(), 1);
        let later = [("i:0", "9"), ("d:0", "900"), ("x:0", "7")];
        let second = pods(reply(&later, &states), &first.reading).unwrap();
        assert_eq!(second.records, []);
        let dead = [("i:0", "7"), ("d:0", "900"), ("x:0", "7")];
        let third = pods(reply(&dead, &states), &second.reading).unwrap();
        assert_eq!(third.records[0].lease_left, Duration::ZERO);
        assert!(Arc::ptr_eq(
            &first.records[0].state,
            &third.records[0].state
        ));
    }

    #[test]
    fn pod_without_state_has_a_certificate_too() {
        let found = inspection(reply(&LEASES, &[])).unwrap();
        assert_eq!(found.pods.records, []);
        let pods: Vec<u32> = found.certificates.keys().map(|pod| pod.get()).collect();
        assert_eq!(pods, [0, 1]);
    }

    #[test]
    fn a_reply_of_another_shape_is_an_error_not_a_panic() {
        let list = Value::Array(vec![Value::BulkString("0".into())]);
        for states in [Value::Nil, Value::Int(1), list] {
            let Value::Array(mut parts) = reply(&LEASES, &[]) else {
                unreachable!("it is a list")
            };
            parts[6] = states.clone();
            assert!(pods(Value::Array(parts), &PodsReading::default()).is_err());
            assert!(pods(states.clone(), &PodsReading::default()).is_err());
            assert!(inspection(states).is_err());
        }
    }
}
