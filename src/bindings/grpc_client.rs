//! `podlink.RouteGrpcClient`, the compiled half.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::argument;
use super::config::GrpcClientSettings;
use super::error::{OrRaise, raise};
use super::hook::{Hook, PythonConditionHook};
use super::operations::{Arguments, Started, started, users_by_pod};
use super::queue::{Answer, CompletionQueue};
use super::runtime::{self, Owned};
use super::store::StoreCore;
use crate::clock::Clock;
use crate::config::{PeerClientConfig, PeerUrl, TlsFiles};
use crate::driver::foreign::{ForeignNamespace, ForeignNamespaces};
use crate::driver::info::States;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Namespace, invalid, shown};
use crate::op::{
    BatchGet, Call, Compute, Get, GetTag, LinkSource, Operation, OperationName, PodsReading,
    ReadPods, Remove, Reply, Services, Set, SetIfAbsent, TrySet,
};
use crate::route::link::{Placed, StoredLink};
use crate::route::state::PodRecord;
use crate::rpc::client::PeerClient;
use crate::rpc::{MeteredPeer, Peer};

/// A client of peers.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct GrpcClientCore {
    client: Owned<PeerClient>,
    namespace: Option<Namespace>,
    /// What drivers share, by namespace and store. Never held across an await.
    foreign: Mutex<HashMap<(Namespace, usize), Weak<ForeignNamespace>>>,
}

#[pymethods]
impl GrpcClientCore {
    #[new]
    #[pyo3(signature = (
        endpoints, namespace, config, ca_file, cert_file, key_file, server_name, token_file, insecure
    ))]
    #[allow(
        clippy::too_many_arguments,
        reason = "each is one option of the client"
    )]
    fn new(
        py: Python<'_>,
        endpoints: Vec<Bound<'_, PyAny>>,
        namespace: &Bound<'_, PyAny>,
        config: &GrpcClientSettings,
        ca_file: Option<PathBuf>,
        cert_file: Option<PathBuf>,
        key_file: Option<PathBuf>,
        server_name: Option<String>,
        token_file: Option<PathBuf>,
        insecure: bool,
    ) -> PyResult<Self> {
        let read = |given: &Bound<'_, PyAny>| {
            PeerUrl::parse(argument::text("endpoint", given)?).or_raise(py)
        };
        let endpoints: PyResult<Vec<PeerUrl>> = endpoints.iter().map(read).collect();
        let namespace = argument::namespace(namespace)?.filter(|name| !name.is_empty());
        let namespace = namespace.map(Namespace::new).transpose().or_raise(py)?;
        let config = PeerClientConfig {
            endpoints: endpoints?,
            tls: TlsFiles {
                ca_file,
                cert_file,
                key_file,
            },
            server_name,
            token_file,
            insecure,
            ..config.0.clone()
        };
        let config = config.check().or_raise(py)?;
        let runtime = runtime::handle(py)?;
        let _runtime = runtime.enter();
        let client = PeerClient::new(config, Clock::System).or_raise(py)?;
        Ok(Self {
            client: Owned::new(client),
            namespace,
            foreign: Mutex::default(),
        })
    }

    /// Starts an operation; its end is delivered to `waiter` by `queue`.
    fn start(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        operation: &str,
        arguments: &Bound<'_, PyTuple>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = arguments.py();
        let (started, given) = started(queue, waiter, operation, arguments, timeout)?;
        let client = self.client.get(py)?.clone();
        let deadline = client.deadline(given.timeout()?);
        if started.name == OperationName::CheckHealth {
            return started.run(py, async move {
                let healthy = client.check_health(deadline).await;
                healthy.map(Answer::Flag)
            });
        }
        let (operation, answer) = self.operation(py, &started, given)?;
        started.run(py, async move {
            let reply = client.call(&operation, deadline).await?;
            answer(reply).ok_or_else(mismatched)
        })
    }

    /// Each endpoint's condition.
    fn status(&self, py: Python<'_>) -> PyResult<BTreeMap<String, &'static str>> {
        let conditions = self.client.get(py)?.conditions();
        let named = conditions.into_iter();
        Ok(named
            .map(|(endpoint, condition)| (endpoint, condition.as_str()))
            .collect())
    }

    /// Calls `hook` for every change of an endpoint's condition.
    fn on_status_changed(
        &self,
        py: Python<'_>,
        queue: &CompletionQueue,
        hook: Py<PyAny>,
    ) -> PyResult<()> {
        let hook = Hook::new(hook, queue, py)?;
        let hook = Arc::new(PythonConditionHook(hook));
        self.client.get(py)?.on_condition(hook);
        Ok(())
    }

    /// Ends the connections.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.client.get(py)?.close();
        Ok(())
    }
}

impl GrpcClientCore {
    /// What a peer is asked for, and how its reply becomes an answer.
    fn operation(
        &self,
        py: Python<'_>,
        started: &Started<'_>,
        mut given: Arguments<'_, '_>,
    ) -> PyResult<(Call, Answering)> {
        let resolve = |name: Option<&str>| self.resolve(name);
        let pod = |link: StoredLink| link.pod;
        Ok(match started.name {
            OperationName::ComputeLinkedPod => {
                let link = given.link(resolve)?;
                let answer = answering::<Compute>(move |link| Answer::Pod(pod(link)));
                (Compute { link }.into(), answer)
            }
            OperationName::GetLinkedPod
            | OperationName::GetLinkedPodNotCache
            | OperationName::GetLinkedPodInCacheOrIfPersist => {
                let (link, from) = (given.link(resolve)?, source(started.name));
                let answer = answering::<Get>(move |link| Answer::MaybePod(link.map(pod)));
                (Get { link, from }.into(), answer)
            }
            OperationName::BatchGetLinkedPod => {
                let (service, uids) = given.batch(resolve)?;
                let asked = uids.clone();
                let answer = answering::<BatchGet>(move |pods| users_by_pod(asked, pods));
                (BatchGet { service, uids }.into(), answer)
            }
            OperationName::GetLinkService => {
                let (namespace, uid) = (given.namespace(resolve)?, given.uid()?);
                let services = Services { namespace, uid };
                (services.into(), answering::<Services>(Answer::Services))
            }
            OperationName::SetLinkedPodIfAbsent => {
                let set = SetIfAbsent {
                    link: given.link(resolve)?,
                    pod: given.pod_index()?,
                    // The peer has a TTL of its own.
                    ttl: Duration::ZERO,
                };
                let answer = answering::<SetIfAbsent>(|placed| Answer::Pod(placed.link.pod));
                (set.into(), answer)
            }
            OperationName::SetLinkedPod => {
                let set = Set {
                    link: given.link(resolve)?,
                    pod: given.pod_index()?,
                    persist: given.persist()?,
                };
                (set.into(), answering::<Set>(Answer::MaybePod))
            }
            OperationName::TrySetLinkedPod => {
                let set = TrySet {
                    link: given.link(resolve)?,
                    pod: given.pod_index()?,
                    persist: given.persist()?,
                };
                let won = |placed: Placed| Answer::Won(placed.made, placed.link.pod);
                (set.into(), answering::<TrySet>(won))
            }
            OperationName::RemoveLinkedPod | OperationName::RemoveLinkedPodWithId => {
                let link = given.link(resolve)?;
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
            OperationName::GetAllServiceState => {
                let read = ReadPods {
                    service: given.service_id(resolve)?,
                    last: PodsReading::default(),
                };
                let answer = answering::<ReadPods>(|pods| Answer::States(alive(pods.records)));
                (read.into(), answer)
            }
            OperationName::GetServiceNameByTag => {
                let (namespace, tag) = (given.namespace(resolve)?, given.tag()?);
                let get = GetTag { namespace, tag };
                (get.into(), answering::<GetTag>(Answer::Name))
            }
            _ => return Err(started.unknown(py)),
        })
    }

    fn resolve(&self, given: Option<&str>) -> Result<Namespace> {
        match (given, &self.namespace) {
            (None | Some(""), Some(own)) => Ok(own.clone()),
            (None | Some(""), None) => {
                let allowed = "named, in the call or as the client's namespace=";
                Err(invalid("namespace", "none", allowed))
            }
            (Some(name), _) => Namespace::new(name),
        }
    }

    /// A namespace that this client leads to, as the drivers on this store share it: its calls are
    /// counted, and its pods read once.
    fn foreign(
        &self,
        py: Python<'_>,
        store: &StoreCore,
        namespace: &Namespace,
    ) -> PyResult<Arc<ForeignNamespace>> {
        let metrics = store.metrics(py)?;
        let key = (namespace.clone(), Arc::as_ptr(metrics) as usize);
        let mut all = self.foreign.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, known| known.strong_count() > 0);
        if let Some(known) = all.get(&key).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let peer: Arc<dyn Peer> = Arc::new(self.client.get(py)?.clone());
        let peer = MeteredPeer::new(namespace, peer, Clock::System, metrics);
        let foreign = ForeignNamespace::new(peer, Clock::System);
        all.insert(key, Arc::downgrade(&foreign));
        Ok(foreign)
    }
}

/// How a reply becomes an answer; `None` for the reply to another operation.
type Answering = Box<dyn FnOnce(Reply) -> Option<Answer> + Send>;

fn answering<O: Operation>(answer: impl FnOnce(O::Reply) -> Answer + Send + 'static) -> Answering {
    Box::new(|reply| O::reply(reply).map(answer))
}

fn mismatched() -> Error {
    let text = "the reply belongs to another operation";
    Error::new(ErrorKind::Internal, text)
}

fn source(name: OperationName) -> LinkSource {
    match name {
        OperationName::GetLinkedPodNotCache => LinkSource::Store,
        OperationName::GetLinkedPodInCacheOrIfPersist => LinkSource::CacheOrPersistent,
        _ => LinkSource::CacheOrStore,
    }
}

/// The other namespaces that a driver of `own` on this store reaches.
pub(super) fn peer_table(
    py: Python<'_>,
    store: &StoreCore,
    own: &Namespace,
    given: &[(String, PyRef<'_, GrpcClientCore>)],
) -> PyResult<ForeignNamespaces> {
    let peers = given.iter().map(|(name, client)| {
        let namespace = Namespace::new(name).or_raise(py)?;
        if namespace == *own {
            let allowed = "of other namespaces than the driver's own";
            return Err(raise(py, &invalid("peers", &shown(name), allowed)));
        }
        let foreign = client.foreign(py, store, &namespace)?;
        Ok((namespace, foreign))
    });
    peers.collect()
}

fn alive(pods: Vec<PodRecord>) -> States {
    let alive = pods.into_iter().filter(|pod| !pod.lease_left.is_zero());
    alive.map(|pod| (pod.state.pod_id, pod.state)).collect()
}
