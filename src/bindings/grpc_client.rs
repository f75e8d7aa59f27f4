//! `podlink.RouteGrpcClient`, the compiled half.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;

use super::argument;
use super::config::seconds;
use super::error::{OrRaise, raise};
use super::hook::{Hook, PythonConditionHook};
use super::queue::{Answer, CompletionQueue};
use super::runtime::{self, Owned};
use super::store::StoreCore;
use crate::clock::{Clock, Tick};
use crate::config::{Balance, PeerClientConfig, PeerUrl, TlsFiles};
use crate::driver::info::States;
use crate::error::Error;
use crate::id::{LinkId, Namespace, ServiceId, Tag, invalid, shown};
use crate::route::link::{Persist, Removal};
use crate::route::state::PodRecord;
use crate::rpc::client::PeerClient;
use crate::rpc::{LinkOperations, Source};

/// The figures of a `podlink.GrpcClientConfig`; they are checked with the endpoints.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct GrpcClientSettings(PeerClientConfig);

#[pymethods]
impl GrpcClientSettings {
    #[new]
    #[pyo3(signature = (
        *, timeout, connect_timeout, keepalive, keepalive_timeout, balance, max_batch, retry_ratio
    ))]
    fn new(
        timeout: &Bound<'_, PyAny>,
        connect_timeout: &Bound<'_, PyAny>,
        keepalive: &Bound<'_, PyAny>,
        keepalive_timeout: &Bound<'_, PyAny>,
        balance: &Bound<'_, PyAny>,
        max_batch: &Bound<'_, PyAny>,
        retry_ratio: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let py = timeout.py();
        let mut config = PeerClientConfig {
            // Checking wants one; the client puts its own in its place.
            endpoints: vec![PeerUrl::parse("grpc://localhost:1").or_raise(py)?],
            timeout: seconds("timeout", timeout)?,
            connect_timeout: seconds("connect_timeout", connect_timeout)?,
            keepalive: seconds("keepalive", keepalive)?,
            keepalive_timeout: seconds("keepalive_timeout", keepalive_timeout)?,
            balance: Balance::parse(argument::text("balance", balance)?).or_raise(py)?,
            max_batch: argument::size("max_batch", max_batch)?,
            retry_ratio: argument::number("retry_ratio", retry_ratio)?,
            tls: TlsFiles::default(),
            server_name: None,
            token_file: None,
            insecure: false,
        };
        config = config.check().or_raise(py)?;
        config.endpoints.clear();
        Ok(Self(config))
    }
}

/// A client of peers.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct GrpcClientCore {
    client: Owned<PeerClient>,
    namespace: Option<Namespace>,
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
        })
    }

    fn compute_linked_pod(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (client, link) = self.target(namespace, uid, service_name)?;
        let deadline = self.deadline(timeout)?;
        queue.spawn(namespace.py(), waiter, async move {
            let found = client.compute(&link, deadline).await;
            found
                .map(|found| Answer::Pod(found.pod))
                .map_err(|error| error.during("compute_linked_pod"))
        })
    }

    fn get_linked_pod(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (client, link) = self.target(namespace, uid, service_name)?;
        let deadline = self.deadline(timeout)?;
        queue.spawn(namespace.py(), waiter, async move {
            let found = get(&client, &link, Source::CacheOrStore, deadline).await;
            found.map_err(|error| error.during("get_linked_pod"))
        })
    }

    fn get_linked_pod_not_cache(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (client, link) = self.target(namespace, uid, service_name)?;
        let deadline = self.deadline(timeout)?;
        queue.spawn(namespace.py(), waiter, async move {
            let found = get(&client, &link, Source::Store, deadline).await;
            found.map_err(|error| error.during("get_linked_pod_not_cache"))
        })
    }

    fn get_linked_pod_in_cache_or_if_persist(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (client, link) = self.target(namespace, uid, service_name)?;
        let deadline = self.deadline(timeout)?;
        queue.spawn(namespace.py(), waiter, async move {
            let found = get(&client, &link, Source::CacheOrPersistent, deadline).await;
            found.map_err(|error| error.during("get_linked_pod_in_cache_or_if_persist"))
        })
    }

    fn batch_get_linked_pod(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        namespace: &Bound<'_, PyAny>,
        uids: Vec<Bound<'_, PyAny>>,
        service_name: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (client, service) = self.service(namespace, service_name)?;
        let mut seen = std::collections::HashSet::with_capacity(uids.len());
        let uids: PyResult<Vec<_>> = uids.iter().map(argument::uid).collect();
        let (mut uids, deadline) = (uids?, self.deadline(timeout)?);
        uids.retain(|uid| seen.insert(uid.clone()));
        queue.spawn(namespace.py(), waiter, async move {
            let users = client.batch_get(&service, uids, deadline).await;
            users
                .map(Answer::Users)
                .map_err(|error| error.during("batch_get_linked_pod"))
        })
    }

    fn get_link_service(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let client = self.client.get(namespace.py())?.clone();
        let (name, uid) = (self.namespace(namespace)?, argument::uid(uid)?);
        let deadline = self.deadline(timeout)?;
        queue.spawn(namespace.py(), waiter, async move {
            let services = client.services(&name, &uid, deadline).await;
            services
                .map(Answer::Services)
                .map_err(|error| error.during("get_link_service"))
        })
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "they are the operation's, and the waiter"
    )]
    fn set_linked_pod_if_absent(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        pod_index: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (client, link) = self.target(namespace, uid, service_name)?;
        let pod = argument::pod_index(pod_index)?;
        let deadline = self.deadline(timeout)?;
        queue.spawn(namespace.py(), waiter, async move {
            let found = client.set_if_absent(&link, pod, deadline).await;
            found
                .map(|found| Answer::Pod(found.pod))
                .map_err(|error| error.during("set_linked_pod_if_absent"))
        })
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "they are the operation's, and the waiter"
    )]
    fn set_linked_pod(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        pod_index: &Bound<'_, PyAny>,
        persist_seconds: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (client, link) = self.target(namespace, uid, service_name)?;
        let pod = argument::pod_index(pod_index)?;
        let persist = persist(persist_seconds)?;
        let deadline = self.deadline(timeout)?;
        queue.spawn(namespace.py(), waiter, async move {
            let previous = client.set(&link, pod, persist, deadline).await;
            previous
                .map(Answer::MaybePod)
                .map_err(|error| error.during("set_linked_pod"))
        })
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "they are the operation's, and the waiter"
    )]
    fn try_set_linked_pod(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        pod_index: &Bound<'_, PyAny>,
        persist_seconds: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (client, link) = self.target(namespace, uid, service_name)?;
        let pod = argument::pod_index(pod_index)?;
        let persist = persist(persist_seconds)?;
        let deadline = self.deadline(timeout)?;
        queue.spawn(namespace.py(), waiter, async move {
            let tried = client.try_set(&link, pod, persist, deadline).await;
            tried
                .map(|(won, owner)| Answer::Won(won, owner))
                .map_err(|error| error.during("try_set_linked_pod"))
        })
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "they are the operation's, and the waiter"
    )]
    fn remove_linked_pod(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        persist_seconds: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (client, link) = self.target(namespace, uid, service_name)?;
        let (removal, deadline) = (removal(persist_seconds)?, self.deadline(timeout)?);
        queue.spawn(namespace.py(), waiter, async move {
            let removed = client.remove(&link, None, removal, deadline).await;
            removed
                .map(Answer::Flag)
                .map_err(|error| error.during("remove_linked_pod"))
        })
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "they are the operation's, and the waiter"
    )]
    fn remove_linked_pod_with_id(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        pod_index: &Bound<'_, PyAny>,
        persist_seconds: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (client, link) = self.target(namespace, uid, service_name)?;
        let owner = argument::pod_index(pod_index)?;
        let (removal, deadline) = (removal(persist_seconds)?, self.deadline(timeout)?);
        queue.spawn(namespace.py(), waiter, async move {
            let removed = client.remove(&link, Some(owner), removal, deadline).await;
            removed
                .map(Answer::Flag)
                .map_err(|error| error.during("remove_linked_pod_with_id"))
        })
    }

    fn get_all_service_state(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        namespace: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (client, service) = self.service(namespace, service_name)?;
        let deadline = self.deadline(timeout)?;
        queue.spawn(namespace.py(), waiter, async move {
            let pods = client.pods(&service, deadline).await;
            pods.map(|pods| Answer::States(alive(pods)))
                .map_err(|error| error.during("get_all_service_state"))
        })
    }

    fn get_service_name_by_tag(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        namespace: &Bound<'_, PyAny>,
        tag: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = namespace.py();
        let client = self.client.get(py)?.clone();
        let name = self.namespace(namespace)?;
        let tag = Tag::new(argument::text("tag", tag)?).or_raise(py)?;
        let deadline = self.deadline(timeout)?;
        queue.spawn(py, waiter, async move {
            let service = client.service_by_tag(&name, &tag, deadline).await;
            service
                .map(Answer::Name)
                .map_err(|error| error.during("get_service_name_by_tag"))
        })
    }

    fn check_health(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let client = self.client.get(timeout.py())?.clone();
        let deadline = self.deadline(timeout)?;
        queue.spawn(timeout.py(), waiter, async move {
            let healthy = client.check_health(deadline).await;
            healthy
                .map(Answer::Flag)
                .map_err(|error| error.during("check_health"))
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
    fn operations(&self, py: Python<'_>) -> PyResult<Arc<dyn LinkOperations>> {
        Ok(Arc::new(self.client.get(py)?.clone()))
    }

    fn namespace(&self, given: &Bound<'_, PyAny>) -> PyResult<Namespace> {
        let py = given.py();
        match (argument::namespace(given)?, &self.namespace) {
            (None | Some(""), Some(own)) => Ok(own.clone()),
            (None | Some(""), None) => {
                let allowed = "named, in the call or as the client's namespace=";
                Err(raise(py, &invalid("namespace", "none", allowed)))
            }
            (Some(name), _) => Namespace::new(name).or_raise(py),
        }
    }

    fn target(
        &self,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
    ) -> PyResult<(PeerClient, LinkId)> {
        let client = self.client.get(namespace.py())?.clone();
        let link = argument::link(self.namespace(namespace)?, uid, service_name)?;
        Ok((client, link))
    }

    fn service(
        &self,
        namespace: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
    ) -> PyResult<(PeerClient, ServiceId)> {
        let client = self.client.get(namespace.py())?.clone();
        let service = ServiceId {
            namespace: self.namespace(namespace)?,
            service: argument::service(service_name)?,
        };
        Ok((client, service))
    }

    fn deadline(&self, timeout: &Bound<'_, PyAny>) -> PyResult<Tick> {
        let given = argument::timeout(timeout)?;
        Ok(self.client.get(timeout.py())?.deadline(given))
    }
}

/// The ways to other namespaces, for a driver of `own` on this store, which counts the calls.
pub(super) fn peer_table(
    py: Python<'_>,
    store: &StoreCore,
    own: &Namespace,
    given: &[(String, PyRef<'_, GrpcClientCore>)],
) -> PyResult<HashMap<Namespace, Arc<dyn LinkOperations>>> {
    let peers = given.iter().map(|(name, client)| {
        let namespace = Namespace::new(name).or_raise(py)?;
        if namespace == *own {
            let allowed = "of other namespaces than the driver's own";
            return Err(raise(py, &invalid("peers", &shown(name), allowed)));
        }
        let peer = store.peer(py, &namespace, client.operations(py)?)?;
        Ok((namespace, peer))
    });
    peers.collect()
}

async fn get(
    client: &PeerClient,
    link: &LinkId,
    from: Source,
    deadline: Tick,
) -> Result<Answer, Error> {
    let found = client.get(link, from, deadline).await?;
    Ok(Answer::MaybePod(found.map(|found| found.pod)))
}

fn removal(given: &Bound<'_, PyAny>) -> PyResult<Removal> {
    let seconds = argument::integer("persist_seconds", given)?;
    Removal::from_seconds(seconds).or_raise(given.py())
}

fn persist(given: &Bound<'_, PyAny>) -> PyResult<Persist> {
    let seconds = argument::integer("persist_seconds", given)?;
    let persist: Result<Persist, Error> = Persist::from_seconds(seconds);
    persist.or_raise(given.py())
}

fn alive(pods: Vec<PodRecord>) -> States {
    let alive = pods.into_iter().filter(|pod| !pod.lease_left.is_zero());
    alive.map(|pod| (pod.state.pod_id, pod.state)).collect()
}
