//! Between podlink's values and the wire's messages. What comes off the wire is checked here, once.

#[cfg(any(test, fuzzing))]
mod anything;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::id::{
    Incarnation, LinkId, Namespace, PodIndex, ServiceId, ServiceName, Tag, Token, Uid, invalid,
};
use crate::proto::v1;
use crate::route::link::{Holder, Life, Persist, Removal, StoredLink};
use crate::route::snapshot::Change;
use crate::route::state::{PodRecord, PodState, Readiness, Renewal, RoutingState};

#[cfg(fuzzing)]
pub(super) use anything::read_anything;

// --- What is asked -----------------------------------------------------------------------------

pub(super) fn user(link: &LinkId) -> Option<v1::User> {
    Some(v1::User {
        namespace: link.service.namespace.to_string(),
        uid: link.uid.to_string(),
        service_name: link.service.service.to_string(),
    })
}

pub(super) fn link(user: Option<v1::User>) -> Result<LinkId> {
    let user = user.ok_or_else(|| invalid("user", "nothing", "set"))?;
    Ok(LinkId {
        service: service(&user.namespace, &user.service_name)?,
        uid: Uid::new(&user.uid)?,
    })
}

pub(super) fn service(namespace: &str, service: &str) -> Result<ServiceId> {
    Ok(ServiceId {
        namespace: Namespace::new(namespace)?,
        service: ServiceName::new(service)?,
    })
}

pub(super) fn user_of(namespace: &str, uid: &str) -> Result<(Namespace, Uid)> {
    Ok((Namespace::new(namespace)?, Uid::new(uid)?))
}

pub(super) fn tag_of(namespace: &str, tag: &str) -> Result<(Namespace, Tag)> {
    Ok((Namespace::new(namespace)?, Tag::new(tag)?))
}

pub(super) fn uids(given: &[String], most: usize) -> Result<Vec<Uid>> {
    if given.len() > most {
        let (number, allowed) = (given.len().to_string(), format!("at most {most} users"));
        return Err(invalid("uids", &number, &allowed));
    }
    given.iter().map(|uid| Uid::new(uid)).collect()
}

pub(super) fn required_pod(given: Option<u32>) -> Result<PodIndex> {
    let given = given.ok_or_else(|| invalid("pod_index", "nothing", "set"))?;
    PodIndex::new(i64::from(given))
}

/// The pods that refused the user; more than count are left out.
pub(super) fn refused(given: &[u32]) -> Result<Vec<PodIndex>> {
    const COUNTED_MAX: usize = 8;
    let pods = given.iter().take(COUNTED_MAX);
    pods.map(|pod| PodIndex::new(i64::from(*pod))).collect()
}

/// Seconds as the calls of this namespace have them; the range is checked there and then.
fn seconds(given: u64) -> i64 {
    i64::try_from(given).unwrap_or(i64::MAX)
}

pub(super) fn persist(ttl_seconds: Option<u64>) -> Result<Persist> {
    ttl_seconds.map_or(Ok(Persist::Forever), |ttl| {
        Persist::from_seconds(seconds(ttl))
    })
}

pub(super) fn ttl_seconds(persist: Persist) -> Option<u64> {
    match persist {
        Persist::Forever => None,
        Persist::For(ttl) => Some(whole_seconds(ttl)),
    }
}

pub(super) fn removal(grace_seconds: Option<u64>) -> Result<Removal> {
    grace_seconds.map_or(Ok(Removal::Now), |grace| {
        Removal::from_seconds(seconds(grace))
    })
}

pub(super) fn grace_seconds(removal: Removal) -> Option<u64> {
    match removal {
        Removal::Now => None,
        Removal::Grace(grace) => Some(whole_seconds(grace)),
    }
}

/// At least one: zero seconds would mean something else.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs().max(1)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

// --- What is answered --------------------------------------------------------------------------

/// The peer sent something that this version cannot read: its mistake or ours, not the caller's.
fn unreadable(error: Error) -> Error {
    let text = format!("the peer's answer cannot be read: {error}");
    Error::new(ErrorKind::Internal, text)
}

/// A link that lasts no time at all is not to be remembered: it has no time on the wire.
pub(super) fn from_link(link: StoredLink) -> v1::Link {
    let valid_for = match link.life {
        Life::Temporary(left) => (!left.is_zero()).then_some(left),
        // For as long as the caller's cache keeps anything.
        Life::Persistent => Some(Duration::MAX),
    };
    let holder = link.holder;
    v1::Link {
        pod_index: link.pod.get(),
        valid_for_ms: valid_for.map(milliseconds),
        incarnation: holder.map(|holder| holder.incarnation.get()),
        token: holder.map(|holder| holder.token.get()),
    }
}

pub(super) fn stored_link(link: v1::Link) -> Result<StoredLink> {
    let valid_for = link
        .valid_for_ms
        .map_or(Duration::ZERO, Duration::from_millis);
    Ok(StoredLink {
        pod: pod(link.pod_index)?,
        life: Life::Temporary(valid_for),
        holder: holder(link.incarnation, link.token)?,
    })
}

/// Who owns the user. An earlier version sends neither number.
fn holder(incarnation: Option<u64>, token: Option<u64>) -> Result<Option<Holder>> {
    let (Some(incarnation), Some(token)) = (incarnation, token) else {
        return Ok(None);
    };
    if token == 0 || token >= Token::LIMIT {
        let allowed = "above 0 and below 2^53";
        return Err(unreadable(invalid("token", &token.to_string(), allowed)));
    }
    Ok(Some(Holder {
        incarnation: Incarnation::new(incarnation),
        token: Token::new(token),
    }))
}

/// An answer that always has a link.
pub(super) fn given_link(link: Option<v1::Link>) -> Result<StoredLink> {
    link.map_or_else(
        || Err(unreadable(invalid("link", "nothing", "set"))),
        stored_link,
    )
}

pub(super) fn pod(index: u32) -> Result<PodIndex> {
    PodIndex::new(i64::from(index)).map_err(unreadable)
}

/// Users by pod; those without a link are left out.
pub(super) fn from_pods_of(uids: &[Uid], pods: &[Option<PodIndex>]) -> Vec<v1::PodUsers> {
    let mut users: BTreeMap<PodIndex, Vec<String>> = BTreeMap::new();
    for (uid, pod) in uids.iter().zip(pods) {
        if let Some(pod) = pod {
            users.entry(*pod).or_default().push(uid.to_string());
        }
    }
    let pods = users.into_iter().map(|(pod, uids)| v1::PodUsers {
        pod_index: pod.get(),
        uids,
    });
    pods.collect()
}

pub(super) fn from_services(services: BTreeMap<ServiceName, PodIndex>) -> BTreeMap<String, u32> {
    let services = services.into_iter();
    services
        .map(|(service, pod)| (service.to_string(), pod.get()))
        .collect()
}

pub(super) fn services(services: BTreeMap<String, u32>) -> Result<BTreeMap<ServiceName, PodIndex>> {
    let read = |(service, index): (String, u32)| {
        Ok((ServiceName::new(&service).map_err(unreadable)?, pod(index)?))
    };
    services.into_iter().map(read).collect()
}

pub(super) fn service_name(name: Option<String>) -> Result<Option<ServiceName>> {
    let name = name.map(|name| ServiceName::new(&name)).transpose();
    name.map_err(unreadable)
}

pub(super) fn from_record(record: PodRecord) -> v1::Pod {
    v1::Pod {
        state: Some(from_state(&record.state)),
        lease_left_ms: milliseconds(record.lease_left),
        silent_ms: record.silence().map(milliseconds),
    }
}

pub(super) fn record(found: v1::Pod) -> Result<PodRecord> {
    let lease_left = Duration::from_millis(found.lease_left_ms);
    let silence = found.silent_ms.map(Duration::from_millis);
    Ok(PodRecord {
        state: state(found.state)?.into(),
        lease_left,
        renewal: Renewal::of_silence(silence, lease_left),
    })
}

fn from_state(state: &PodState) -> v1::PodState {
    let routing = match state.routing_state {
        RoutingState::Ready => v1::RoutingState::Ready,
        RoutingState::DenyNewCall => v1::RoutingState::DenyNewCall,
        RoutingState::Shutdown => v1::RoutingState::Shutdown,
    };
    v1::PodState {
        pod_index: state.pod_id.get(),
        ready: state.state == Readiness::Ready,
        load_state: state.load_state,
        routing_state: routing.into(),
        update_time_ms: state.update_time,
        incarnation: state.incarnation.get(),
        metadata: state.metadata.clone(),
    }
}

fn state(given: Option<v1::PodState>) -> Result<PodState> {
    let state = given.ok_or_else(|| unreadable(invalid("state", "nothing", "set")))?;
    let routing_state = match state.routing_state() {
        v1::RoutingState::Ready => RoutingState::Ready,
        // A state that only a later version knows: the pod keeps its users and gets no new ones.
        v1::RoutingState::DenyNewCall | v1::RoutingState::Unspecified => RoutingState::DenyNewCall,
        v1::RoutingState::Shutdown => RoutingState::Shutdown,
    };
    let readiness = if state.ready {
        Readiness::Ready
    } else {
        Readiness::NotReady
    };
    Ok(PodState {
        pod_id: pod(state.pod_index)?,
        state: readiness,
        load_state: state.load_state,
        routing_state,
        update_time: state.update_time_ms,
        incarnation: Incarnation::new(state.incarnation),
        metadata: state.metadata,
    })
}

pub(super) fn from_changes(changes: Vec<Change>) -> v1::WatchRoutingStateResponse {
    let changes = changes.into_iter().map(|change| v1::PodChange {
        pod_index: change.pod.get(),
        previous: change.previous.as_deref().map(from_state),
        now: change.now.as_deref().map(from_state),
    });
    v1::WatchRoutingStateResponse {
        changes: changes.collect(),
    }
}

pub(super) fn changes(response: v1::WatchRoutingStateResponse) -> Result<Vec<Change>> {
    let read = |change: v1::PodChange| {
        let known = |given: Option<v1::PodState>| {
            given
                .map(|given| state(Some(given)).map(std::sync::Arc::new))
                .transpose()
        };
        Ok(Change {
            pod: pod(change.pod_index)?,
            previous: known(change.previous)?,
            now: known(change.now)?,
        })
    };
    response.changes.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    fn state_of(pod: i64) -> PodState {
        PodState {
            pod_id: PodIndex::new(pod).unwrap(),
            state: Readiness::Ready,
            load_state: -3,
            routing_state: RoutingState::DenyNewCall,
            update_time: 17,
            incarnation: Incarnation::new(4),
            metadata: BTreeMap::from([("version".into(), "1".into())]),
        }
    }

    #[test]
    fn a_pod_crosses_the_wire_unchanged() {
        let lease_left = Duration::from_millis(1500);
        for silence in [None, Some(Duration::ZERO), Some(Duration::from_secs(61))] {
            let sent = PodRecord {
                state: state_of(0).into(),
                lease_left,
                renewal: Renewal::of_silence(silence, lease_left),
            };
            let wire = from_record(sent.clone()).encode_to_vec();
            let back = record(v1::Pod::decode(wire.as_slice()).unwrap());
            assert_eq!(back.ok(), Some(sent));
        }
    }

    #[test]
    fn a_change_crosses_the_wire_unchanged() {
        let sent = vec![Change {
            pod: PodIndex::new(0).unwrap(),
            previous: None,
            now: Some(std::sync::Arc::new(state_of(0))),
        }];
        assert_eq!(changes(from_changes(sent.clone())).ok(), Some(sent));
    }

    #[test]
    fn an_owner_crosses_the_wire_unchanged() {
        let holder = Holder {
            incarnation: Incarnation::new(17),
            token: Token::new((1 << 53) - 1),
        };
        let life = Life::Temporary(Duration::from_millis(1500));
        for holder in [Some(holder), None] {
            let link = StoredLink {
                pod: PodIndex::new(0).unwrap(),
                life,
                holder,
            };
            let wire = from_link(link).encode_to_vec();
            let back = stored_link(v1::Link::decode(wire.as_slice()).unwrap());
            assert_eq!(back.ok(), Some(link));
        }
        for token in [0, 1 << 53, u64::MAX] {
            assert!(super::holder(Some(1), Some(token)).is_err(), "{token}");
        }
        assert_eq!(super::holder(Some(1), None).ok(), Some(None));
    }

    #[test]
    fn pod_zero_is_not_the_absence_of_a_pod() {
        assert_eq!(required_pod(Some(0)).map(PodIndex::get).ok(), Some(0));
        let missing = required_pod(None).map_err(|error| error.kind());
        assert_eq!(missing, Err(ErrorKind::InvalidParameter));
        assert!(required_pod(Some(u32::MAX)).is_err());
    }

    #[test]
    fn lifetimes_cross_the_wire() {
        let minute = Duration::from_secs(60);
        for given in [Persist::Forever, Persist::For(minute)] {
            assert_eq!(persist(ttl_seconds(given)).ok(), Some(given));
        }
        for given in [Removal::Now, Removal::Grace(minute)] {
            assert_eq!(removal(grace_seconds(given)).ok(), Some(given));
        }
        assert!(persist(Some(u64::MAX)).is_err());
        assert!(persist(Some(0)).is_err());
    }
}
