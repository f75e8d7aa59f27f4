//! What a look at all pods of a service finds.
//!
//! A client reads the same pods again and again, thousands of them, and most have said nothing new.
//! So each reading keeps what it was read from: a state whose bytes are the same is taken over.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use redis::Value;

use super::codec::{LeaseFields, StoreClock, bytes, parts, unsigned};
use super::packed::{Field, Packed};
use crate::error::Result;
use crate::id::PodIndex;
use crate::op::{Inspection, Pods, PodsReading, ReadState, ReadStates};
use crate::route::link::Foretold;
use crate::route::state::{PodRecord, PodState};

/// The state of a pod, if exactly this was read for it.
fn same<'a>(last: &'a PodsReading, pod: PodIndex, entry: &[u8]) -> Option<&'a Arc<PodState>> {
    let ReadStates { packed, states } = &*last.0;
    let known = states.get(at(states, pod, |known| known.pod)?)?;
    (packed.get(known.entry.clone()) == Some(entry)).then_some(&known.state)
}

/// The reply of `pods`; `last` is what was read the last time.
pub(super) fn pods(reply: Value, last: &PodsReading) -> Result<Pods> {
    Shown::decode(reply)?.pods(last)
}

/// The reply of `inspect`, which has the shape of that of `pods`.
pub(super) fn inspection(reply: Value) -> Result<Inspection> {
    let shown = Shown::decode(reply)?;
    Ok(Inspection {
        certificates: shown.certificates()?,
        pods: shown.pods(&PodsReading::default())?,
    })
}

/// The reply of `pods` and of `inspect`: `{now, hold, held, grace, watchers, leases, states}`. The
/// last two are packed, because a reply of thousands of strings costs more to take apart than all
/// that is in them.
struct Shown {
    clock: StoreClock,
    watchers: u64,
    leases: Vec<u8>,
    states: Vec<u8>,
}

impl Shown {
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
        each_figure(&self.leases, |pod, figure, value| {
            let at = at(&leases, pod, |(pod, _)| *pod);
            if let Some((_, lease)) = at.and_then(|at| leases.get_mut(at)) {
                lease.set(figure, value);
            }
        })?;
        let shown = states.iter().filter_map(|ReadState { pod, state, .. }| {
            let (_, lease) = *leases.get(at(&leases, *pod, |(pod, _)| *pod)?)?;
            (lease.incarnation == state.incarnation.get()).then(|| PodRecord {
                lease_left: self.clock.lease_left(lease),
                state: Arc::clone(state),
            })
        });
        pods.records = shown.collect();
        pods.corrupt = corrupt;
        pods.reading = PodsReading(Arc::new(ReadStates {
            packed: self.states,
            states,
        }));
        Ok(pods)
    }

    fn certificates(&self) -> Result<BTreeMap<PodIndex, Foretold>> {
        let mut leases: BTreeMap<PodIndex, LeaseFields> = BTreeMap::new();
        each_figure(&self.leases, |pod, figure, value| {
            leases.entry(pod).or_default().set(figure, value);
        })?;
        let certificates = leases.into_iter().filter_map(|(pod, lease)| {
            let foretold = self.clock.foretell(lease)?;
            Some((pod, foretold))
        });
        Ok(certificates.collect())
    }
}

/// Where a pod stands in a list that is in the order of the pods. They are nearly always counted
/// without gaps, so the index is the first guess.
fn at<T>(sorted: &[T], pod: PodIndex, index: impl Fn(&T) -> PodIndex) -> Option<usize> {
    let guess = usize::try_from(pod.get()).ok()?;
    if sorted.get(guess).is_some_and(|found| index(found) == pod) {
        return Some(guess);
    }
    sorted.binary_search_by_key(&pod, index).ok()
}

/// The fields that cannot be read, and why.
type Corrupt = Vec<(String, String)>;

/// The states that can be read, in the order of the pods, and the others.
fn read_states(packed: &[u8], last: &PodsReading) -> Result<(Vec<ReadState>, Corrupt)> {
    let fields = Packed::open(packed)?;
    let (mut states, mut corrupt) = (Vec::with_capacity(fields.len()), Vec::new());
    for field in fields {
        let Field { entry, name, value } = field?;
        let pod = str::from_utf8(name).ok().and_then(PodIndex::parse);
        let same = pod.and_then(|pod| same(last, pod, packed.get(entry.clone())?));
        let state = match same {
            Some(state) => Ok(Arc::clone(state)),
            None => read_state(pod, value).map(Arc::new),
        };
        match state {
            Ok(state) => states.push(ReadState {
                pod: state.pod_id,
                entry,
                state,
            }),
            Err(why) => corrupt.push((String::from_utf8_lossy(name).into_owned(), why)),
        }
    }
    states.sort_by_key(|known| known.pod);
    Ok((states, corrupt))
}

fn read_state(field: Option<PodIndex>, stored: &[u8]) -> std::result::Result<PodState, String> {
    // Checking is quicker than mending, and hardly ever is there anything to mend.
    let stored =
        str::from_utf8(stored).map_or_else(|_| String::from_utf8_lossy(stored), Cow::Borrowed);
    let state: PodState = serde_json::from_str(&stored).map_err(|error| error.to_string())?;
    if field == Some(state.pod_id) {
        return Ok(state);
    }
    Err(format!(
        "the state of pod {} stands under this field",
        state.pod_id
    ))
}

/// One of the figures of a lease.
#[derive(Debug, Clone, Copy)]
enum Figure {
    Incarnation,
    Deadline,
    Dead,
}

impl LeaseFields {
    fn set(&mut self, figure: Figure, value: u64) {
        match figure {
            Figure::Incarnation => self.incarnation = value,
            Figure::Deadline => self.deadline = value,
            Figure::Dead => self.dead = value,
        }
    }
}

/// Tells what the lease hash says of pods. What is none of that is left out.
fn each_figure(packed: &[u8], mut tell: impl FnMut(PodIndex, Figure, u64)) -> Result<()> {
    for field in Packed::open(packed)? {
        let Field { name, value, .. } = field?;
        let (figure, pod) = match name {
            [b'i', b':', pod @ ..] => (Figure::Incarnation, pod),
            [b'd', b':', pod @ ..] => (Figure::Deadline, pod),
            [b'x', b':', pod @ ..] => (Figure::Dead, pod),
            _ => continue,
        };
        let read = |text| str::from_utf8(text).ok();
        let pod = read(pod).and_then(PodIndex::parse);
        let value = read(value).and_then(|value| value.parse().ok());
        if let (Some(pod), Some(value)) = (pod, value) {
            tell(pod, figure, value);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// What `cmsgpack.pack` makes of these strings.
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
        let figure = |text: &str| Value::BulkString(text.into());
        Value::Array(vec![
            figure("100"),
            figure("0"),
            figure("0"),
            figure("5"),
            Value::Int(2),
            packed(leases),
            packed(states),
        ])
    }

    const LEASES: [(&str, &str); 7] = [
        ("i:0", "7"),
        ("d:0", "150"),
        ("i:1", "8"),
        ("d:1", "150"),
        ("clk", "100"),
        ("b:0", "nonce"),
        ("i:00x", "9"),
    ];

    fn state(pod: u32, incarnation: u64, load: i64) -> String {
        format!(
            r#"{{"podId":{pod},"state":"READY","loadState":{load},"routingState":"READY","incarnation":{incarnation},"updateTime":5}}"#
        )
    }

    #[test]
    fn unreadable_states_are_told_and_those_of_other_incarnations_left_out() {
        let (zero, one, two) = (state(0, 7, 1), state(1, 7, 1), state(2, 7, 1));
        let states = [
            ("2", two.as_str()),
            ("1", &one),
            ("0", &zero),
            ("3", "{"),
            ("4", &zero),
        ];
        let mut last = PodsReading::default();
        // The second time from what the first has left.
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
    fn only_a_state_whose_bytes_are_the_same_is_taken_over() {
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
        // The same state under another pod's field is no state of that pod.
        let third = read(&[("0", &five), ("5", &moved)], &second.reading);
        assert_eq!(third.corrupt[0].0, "0");
        assert!(Arc::ptr_eq(&after[1], &states(&third)[0]));
        // What was unreadable is read again, and a pod that was gone comes back.
        let fourth = read(&[("0", &zero), ("5", &moved)], &third.reading);
        assert_eq!((&states(&fourth), fourth.corrupt.len()), (&after, 0));
    }

    #[test]
    fn the_same_bytes_under_another_lease_are_judged_by_that() {
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
    fn who_has_no_state_is_foretold_a_certificate_all_the_same() {
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
