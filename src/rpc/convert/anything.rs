//! Reading any bytes that arrive, as the fuzzer and the tests do it: nothing panics, and a request
//! that cannot be meant is refused with INVALID_PARAMETER and nothing else.

use prost::Message;

use super::changes;
use crate::error::ErrorKind;
use crate::id::Uid;
use crate::proto::v1;
use crate::rpc::messages::{METHODS, Method, match_method};

/// How many users a request may ask for, as a server is configured by default.
const MAX_BATCH: usize = 512;

/// Reads the bytes as each kind of request, as the server does, and as each kind of answer, as the
/// client does.
pub(in crate::rpc) fn read_anything(bytes: &[u8]) {
    for name in METHODS {
        match_method!(name, M => read_as::<M>(bytes));
    }
    if let Ok(asked) = v1::WatchRoutingStateRequest::decode(bytes) {
        taken_or_refused(super::service(&asked.namespace, &asked.service_name));
    }
    if let Ok(published) = v1::WatchRoutingStateResponse::decode(bytes) {
        let _unreadable = changes(published);
    }
}

/// The bytes as a request and as an answer of one method.
fn read_as<M: Method>(bytes: &[u8]) {
    if let Ok(request) = M::Request::decode(bytes) {
        taken_or_refused(M::read(request, MAX_BATCH));
    }
    // An invalid answer is an error of any kind.
    if let (Ok(response), Ok(uid)) = (M::Response::decode(bytes), Uid::new("a")) {
        let _unreadable = M::reply(response, &[uid]);
    }
}

fn taken_or_refused<T>(result: crate::error::Result<T>) {
    if let Err(error) = result {
        assert_eq!(error.kind(), ErrorKind::InvalidParameter, "{error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    /// Messages as they should be, of every shape.
    fn examples() -> Vec<Vec<u8>> {
        let user = Some(v1::User {
            namespace: "prod".to_owned(),
            uid: "user-123".to_owned(),
            service_name: "game".to_owned(),
        });
        let state = v1::PodState {
            pod_index: 3,
            ready: true,
            load_state: -5,
            routing_state: v1::RoutingState::DenyNewCall.into(),
            update_time_ms: 1_700_000_000_000,
            incarnation: 7,
            metadata: [("address".to_owned(), "10.0.0.1".to_owned())].into(),
        };
        let pods = vec![v1::Pod {
            state: Some(state.clone()),
            lease_left_ms: 9_000,
            silent_ms: Some(61_000),
        }];
        let changes = vec![v1::PodChange {
            pod_index: 3,
            previous: None,
            now: Some(state),
        }];
        let set = v1::SetLinkedPodRequest {
            user: user.clone(),
            pod_index: Some(3),
            ttl_seconds: Some(300),
        };
        let removal = v1::RemoveLinkedPodWithIdRequest {
            user: user.clone(),
            pod_index: Some(0),
            grace_seconds: Some(60),
        };
        let batch = v1::BatchGetLinkedPodRequest {
            namespace: "prod".to_owned(),
            service_name: "game".to_owned(),
            uids: vec!["a".to_owned(), "b".to_owned()],
        };
        let tag = v1::GetServiceNameByTagRequest {
            namespace: "prod".to_owned(),
            tag: "rooms".to_owned(),
        };
        let link = Some(v1::Link {
            pod_index: 3,
            valid_for_ms: Some(240_000),
            incarnation: Some(7),
            token: Some(1_764_331_200_000_000),
        });
        let compute = v1::ComputeLinkedPodRequest {
            user: user.clone(),
            refused_by: vec![0, 3],
            describe: true,
        };
        let computed = v1::ComputeLinkedPodResponse {
            link,
            address: Some("10.0.0.1".to_owned()),
            metadata: [("address".to_owned(), "10.0.0.1".to_owned())].into(),
        };
        let users = vec![v1::PodUsers {
            pod_index: 3,
            uids: vec!["a".to_owned()],
        }];
        let services = [("game".to_owned(), 3)].into();
        vec![
            compute.encode_to_vec(),
            set.encode_to_vec(),
            removal.encode_to_vec(),
            batch.encode_to_vec(),
            tag.encode_to_vec(),
            computed.encode_to_vec(),
            v1::BatchGetLinkedPodResponse { pods: users }.encode_to_vec(),
            v1::GetLinkServiceResponse { services }.encode_to_vec(),
            v1::GetServiceStateResponse { pods }.encode_to_vec(),
            v1::WatchRoutingStateResponse { changes }.encode_to_vec(),
        ]
    }

    /// Does to a message what a fuzzer does: bits flipped, bytes replaced, removed, repeated, and
    /// taken from another message.
    fn spoil(message: &mut Vec<u8>, others: &[Vec<u8>], chance: &mut SmallRng) {
        let at = chance.random_range(0..=message.len());
        let upto = chance.random_range(at..=message.len());
        match chance.random_range(0..6) {
            0 => message[at..upto.min(at + 1)].fill(chance.random()),
            1 => message[at..upto.min(at + 1)]
                .iter_mut()
                .for_each(|byte| *byte ^= 1 << chance.random_range(0..8)),
            2 => drop(message.drain(at..upto)),
            3 => message.extend_from_within(at..upto),
            4 => drop(message.splice(at..at, [0xff; 9])),
            _ => {
                let other = &others[chance.random_range(0..others.len())];
                drop(message.splice(at..upto, other.iter().copied()));
            }
        }
    }

    #[test]
    fn examples_are_whole() {
        let decoded = examples();
        assert!(v1::SetLinkedPodRequest::decode(decoded[1].as_slice()).is_ok());
        assert!(decoded.iter().all(|message| !message.is_empty()));
    }

    #[test]
    fn no_spoilt_message_makes_the_reading_panic() {
        const INPUTS: usize = 20_000;
        const LONGEST: usize = 4096;
        let (examples, mut chance) = (examples(), SmallRng::seed_from_u64(1));
        for number in 0..INPUTS {
            let mut message = examples[number % examples.len()].clone();
            for _ in 0..chance.random_range(0..6) {
                spoil(&mut message, &examples, &mut chance);
                message.truncate(LONGEST);
            }
            read_anything(&message);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reading_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            read_anything(&bytes);
        }

        #[test]
        fn no_text_makes_the_reading_panic(
            namespace in "\\PC{0,70}", uid in "\\PC{0,140}", service_name in "\\PC{0,70}",
            pod_index in any::<Option<u32>>(), ttl_seconds in any::<Option<u64>>(),
        ) {
            let user = Some(v1::User { namespace, uid, service_name });
            let asked = v1::SetLinkedPodRequest { user, pod_index, ttl_seconds };
            read_anything(&asked.encode_to_vec());
        }
    }
}
