//! Operations that are sent as they are, by a gRPC client to a peer or as a pod: the call that a
//! name and its arguments mean, and how the reply becomes an answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;

use super::answer::{Answer, RouteFacts};
use super::operations::{Arguments, Started};
use crate::driver::info::States;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Namespace, ServiceId};
use crate::op::{
    BatchGet, Call, Compute, Computed, Get, GetTag, LinkSource, Operation, OperationName, PodAbout,
    PodsReading, ReadPods, Remove, Reply, Services, Set, SetIfAbsent, TrySet,
};
use crate::route::address::default_address;
use crate::route::link::{Placed, StoredLink};
use crate::route::state::PodRecord;

/// How a reply becomes an answer; `None` for the reply to another operation.
pub(super) type Answering = Box<dyn FnOnce(Reply) -> Option<Answer> + Send>;

fn answering<O: Operation>(answer: impl FnOnce(O::Reply) -> Answer + Send + 'static) -> Answering {
    Box::new(|reply| O::reply(reply).map(answer))
}

/// The call that is meant, and how its reply becomes an answer.
pub(super) fn call_of(
    py: Python<'_>,
    started: &Started<'_>,
    given: &mut Arguments<'_, '_>,
    resolve: impl Fn(Option<&str>) -> Result<Namespace>,
) -> PyResult<(Call, Answering)> {
    let pod = |link: StoredLink| link.pod;
    Ok(match started.name {
        OperationName::ComputeLinkedPod => {
            let link = given.link(&resolve)?;
            let answer = answering::<Compute>(move |computed| Answer::Pod(pod(computed.link)));
            (Compute::of(link).into(), answer)
        }
        OperationName::Route => {
            let compute = Compute {
                describe: true,
                ..Compute::of(given.link(&resolve)?)
            };
            let service = compute.link.service.clone();
            let answer = answering::<Compute>(move |computed| {
                Answer::Route(Box::new(route_facts(&service, computed)))
            });
            (compute.into(), answer)
        }
        OperationName::GetLinkedPod
        | OperationName::GetLinkedPodNotCache
        | OperationName::GetLinkedPodInCacheOrIfPersist => {
            let (link, from) = (given.link(&resolve)?, source(started.name));
            let answer = answering::<Get>(move |link| Answer::MaybePod(link.map(pod)));
            (Get { link, from }.into(), answer)
        }
        OperationName::BatchGetLinkedPod => {
            let (service, uids) = given.batch(&resolve)?;
            let asked = Arc::clone(&uids);
            let answer = answering::<BatchGet>(move |read| Answer::Users(asked, read.links));
            (BatchGet { service, uids }.into(), answer)
        }
        OperationName::GetLinkService => {
            let (namespace, uid) = (given.namespace(&resolve)?, given.uid()?);
            let services = Services { namespace, uid };
            let answer = answering::<Services>(|read| Answer::Services(read.links));
            (services.into(), answer)
        }
        OperationName::GetAllServiceState => {
            let read = ReadPods {
                service: given.service_id(&resolve)?,
                last: PodsReading::default(),
            };
            let answer = answering::<ReadPods>(|pods| Answer::States(alive(pods.records)));
            (read.into(), answer)
        }
        OperationName::GetServiceNameByTag => {
            let (namespace, tag) = (given.namespace(&resolve)?, given.tag()?);
            let get = GetTag { namespace, tag };
            (get.into(), answering::<GetTag>(Answer::Name))
        }
        _ => return write_call(py, started, given, resolve),
    })
}

/// The same for the operations that write.
fn write_call(
    py: Python<'_>,
    started: &Started<'_>,
    given: &mut Arguments<'_, '_>,
    resolve: impl Fn(Option<&str>) -> Result<Namespace>,
) -> PyResult<(Call, Answering)> {
    Ok(match started.name {
        OperationName::SetLinkedPodIfAbsent => {
            let set = SetIfAbsent {
                link: given.link(&resolve)?,
                pod: given.pod_index()?,
                // The peer has a TTL of its own.
                ttl: Duration::ZERO,
            };
            let answer = answering::<SetIfAbsent>(|placed| Answer::Pod(placed.link.pod));
            (set.into(), answer)
        }
        OperationName::SetLinkedPod => {
            let set = Set {
                link: given.link(&resolve)?,
                pod: given.pod_index()?,
                persist: given.persist()?,
            };
            (set.into(), answering::<Set>(Answer::MaybePod))
        }
        OperationName::TrySetLinkedPod => {
            let set = TrySet {
                link: given.link(&resolve)?,
                pod: given.pod_index()?,
                persist: given.persist()?,
            };
            let won = |placed: Placed| Answer::Won(placed.made, placed.link.pod);
            (set.into(), answering::<TrySet>(won))
        }
        OperationName::RemoveLinkedPod | OperationName::RemoveLinkedPodWithId => {
            let link = given.link(&resolve)?;
            let named = started.name == OperationName::RemoveLinkedPodWithId;
            let owner = named.then(|| given.pod_index()).transpose()?;
            let removal = given.removal()?;
            let remove = Remove {
                link,
                owner,
                removal,
            };
            let answer = answering::<Remove>(|removed| Answer::Flag(removed.done));
            (remove.into(), answer)
        }
        _ => return Err(started.unknown(py)),
    })
}

/// A peer's answer as a route. An earlier version does not say how the pod is reached.
fn route_facts(service: &ServiceId, computed: Computed) -> RouteFacts {
    let StoredLink { pod, holder, .. } = computed.link;
    let about = computed.about.unwrap_or_else(|| {
        let address = default_address(service, pod);
        let metadata = BTreeMap::new();
        Box::new(PodAbout { address, metadata })
    });
    RouteFacts {
        pod,
        holder,
        address: about.address,
        metadata: about.metadata,
        from_cache: false,
    }
}

fn source(name: OperationName) -> LinkSource {
    match name {
        OperationName::GetLinkedPodNotCache => LinkSource::Store,
        OperationName::GetLinkedPodInCacheOrIfPersist => LinkSource::CacheOrPersistent,
        _ => LinkSource::CacheOrStore,
    }
}

fn alive(pods: Vec<PodRecord>) -> States {
    let alive = pods.into_iter().filter(|pod| !pod.lease_left.is_zero());
    alive.map(|pod| (pod.state.pod_id, pod.state)).collect()
}

/// The answer to a call.
pub(super) fn answer_of(reply: Reply, answer: Answering) -> Result<Answer> {
    answer(reply).ok_or_else(|| {
        let text = "the reply belongs to another operation";
        Error::new(ErrorKind::Internal, text)
    })
}
