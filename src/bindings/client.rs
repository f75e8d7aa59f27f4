//! `podlink.ClientDriver`, the compiled half.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::answer::{Answer, RouteFacts};
use super::argument;
use super::config::ClientSettings;
use super::error::OrRaise;
use super::grpc_client::{GrpcClientCore, peer_table};
use super::hook::{Hook, PythonChooser, PythonLostPod};
use super::info::InfoCore;
use super::log;
use super::operations::{Arguments, Started, started};
use super::queue::CompletionQueue;
use super::registration::Registration;
use super::runtime::{self, Owned};
use super::service::ServiceCore;
use super::store::StoreCore;
use crate::clock::Clock;
use crate::driver::client::{ClientDriver, Misrouted, PodChooser};
use crate::id::{LinkId, Namespace, ServiceId};
use crate::op::OperationName;

/// A client driver.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct ClientCore {
    driver: Owned<ClientDriver>,
    /// The services that were answered from the cache first. A program names its services by the
    /// same few objects again and again: those need not be read each time.
    recent: [OnceLock<Recent>; 4],
}

/// A service, and the objects that named it. They are held, so no other object has their address.
struct Recent {
    namespace: Py<PyAny>,
    service_name: Py<PyAny>,
    core: ServiceCore,
}

#[pymethods]
impl ClientCore {
    #[new]
    #[pyo3(signature = (store, namespace, config, info, logs, chooser, peers))]
    fn new(
        store: &StoreCore,
        namespace: &Bound<'_, PyAny>,
        config: &ClientSettings,
        info: &InfoCore,
        logs: &CompletionQueue,
        chooser: Option<(Bound<'_, PyAny>, PyRef<'_, CompletionQueue>)>,
        peers: Vec<(String, PyRef<'_, GrpcClientCore>)>,
    ) -> PyResult<Self> {
        let py = namespace.py();
        let own = Namespace::new(argument::text("namespace", namespace)?).or_raise(py)?;
        log::listen(logs.arrivals(py)?);
        let chooser = match chooser {
            Some((callable, home)) => {
                let hook = Hook::new(&callable, &home)?;
                Some(Arc::new(PythonChooser(hook)) as Arc<dyn PodChooser>)
            }
            None => None,
        };
        let peers = peer_table(py, store, &own, &peers)?;
        let driver = ClientDriver::new(
            store.store(py)?,
            Clock::System,
            own,
            config.0.clone(),
            info.driver(py)?,
            chooser,
            &peers,
        );
        driver.report_to(store.metrics(py)?);
        Ok(Self {
            driver: Owned::new(driver),
            recent: Default::default(),
        })
    }

    /// The driver's own namespace.
    #[getter]
    fn namespace(&self, py: Python<'_>) -> PyResult<&str> {
        Ok(self.driver.get(py)?.namespace().as_str())
    }

    /// The cached answer of compute, or None. Arguments that are not even text have no cached
    /// answer; the full form raises what is wrong with them.
    fn compute_cached(
        &self,
        py: Python<'_>,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
    ) -> PyResult<Option<u32>> {
        for recent in self.recent.iter().map_while(OnceLock::get) {
            if recent.namespace.is(namespace) && recent.service_name.is(service_name) {
                return recent.core.compute_cached(uid);
            }
        }
        let driver = self.driver.get(py)?;
        let named = if namespace.is_none() {
            Some("")
        } else {
            argument::as_str(namespace)
        };
        let (Some(named), Some(user), Some(service)) =
            (named, argument::as_str(uid), argument::as_str(service_name))
        else {
            return Ok(None);
        };
        let Some(pod) = driver.compute_cached(named, user, service) else {
            return Ok(None);
        };
        if let Some(free) = self.recent.iter().find(|recent| recent.get().is_none()) {
            // Another thread may have been quicker: its service is cached instead, which is fine.
            let (core, _) = self.service(namespace, service_name)?;
            let _occupied = free.set(Recent {
                namespace: namespace.clone().unbind(),
                service_name: service_name.clone().unbind(),
                core,
            });
        }
        Ok(Some(pod.get()))
    }

    /// The cached answer of route, or None, as the fields of `podlink.Route`.
    fn route_cached<'py>(
        &self,
        namespace: &Bound<'py, PyAny>,
        uid: &Bound<'py, PyAny>,
        service_name: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let py = namespace.py();
        let named = if namespace.is_none() {
            Some("")
        } else {
            argument::as_str(namespace)
        };
        let (Some(named), Some(user), Some(service)) =
            (named, argument::as_str(uid), argument::as_str(service_name))
        else {
            return Ok(None);
        };
        let route = self.driver.get(py)?.route_cached(named, user, service);
        let facts = route.map(RouteFacts::from);
        facts.map(|facts| facts.into_python(py)).transpose()
    }

    /// A pod said "not mine".
    fn misrouted(
        &self,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        pod_index: &Bound<'_, PyAny>,
        owner: &Bound<'_, PyAny>,
        token: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (driver, link) = self.target(namespace, uid, service_name)?;
        let report = Misrouted {
            pod: argument::pod_index(pod_index)?,
            owner: argument::owner(owner)?,
            token: match token.is_none() {
                true => None,
                false => Some(argument::token("token", token)?),
            },
        };
        let runtime = runtime::handle(namespace.py())?;
        let _runtime = runtime.enter();
        driver.misrouted(link, report).or_raise(namespace.py())
    }

    /// The links of one service of a namespace.
    fn service(
        &self,
        namespace: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
    ) -> PyResult<(ServiceCore, String)> {
        let py = namespace.py();
        let driver = self.driver.get(py)?;
        let namespace = driver
            .resolve(argument::namespace(namespace)?)
            .or_raise(py)?;
        let service = argument::service(service_name)?;
        let named = namespace.to_string();
        let links = driver.service(ServiceId { namespace, service });
        Ok((ServiceCore::new(links), named))
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
        match started.name {
            OperationName::ComputeLinkedPod => self.compute(started, given),
            _ => self.start_other(py, started, given),
        }
    }

    /// The link in the cache, for an operation that goes on without one: that refuses a wrong name
    /// or a closed driver, and counts it.
    fn cached_link(
        &self,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
    ) -> PyResult<Option<u32>> {
        let Ok((driver, link)) = self.target(namespace, uid, service_name) else {
            return Ok(None);
        };
        let runtime = runtime::handle(namespace.py())?;
        let _runtime = runtime.enter();
        let pod = driver.get_linked_in_cache(link).ok().flatten();
        Ok(pod.map(|pod| pod.get()))
    }

    fn get_linked_in_cache(
        &self,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
    ) -> PyResult<Option<u32>> {
        let (driver, link) = self.target(namespace, uid, service_name)?;
        let runtime = runtime::handle(namespace.py())?;
        let _runtime = runtime.enter();
        let pod = driver.get_linked_in_cache(link).or_raise(namespace.py())?;
        Ok(pod.map(|pod| pod.get()))
    }

    fn cache_expired(
        &self,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
    ) -> PyResult<Option<u32>> {
        let (driver, link) = self.target(namespace, uid, service_name)?;
        let runtime = runtime::handle(namespace.py())?;
        let _runtime = runtime.enter();
        let pod = driver.cache_expired(link).or_raise(namespace.py())?;
        Ok(pod.map(|pod| pod.get()))
    }

    fn set_cache(
        &self,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        pod_index: &Bound<'_, PyAny>,
    ) -> PyResult<Option<u32>> {
        let (driver, link) = self.target(namespace, uid, service_name)?;
        let pod = argument::pod_index(pod_index)?;
        let runtime = runtime::handle(namespace.py())?;
        let _runtime = runtime.enter();
        let previous = driver.set_cache(link, pod).or_raise(namespace.py())?;
        Ok(previous.map(|pod| pod.get()))
    }

    /// Calls `hook` for every pod that is lost.
    fn on_pod_lost(
        &self,
        py: Python<'_>,
        queue: &CompletionQueue,
        hook: &Bound<'_, PyAny>,
    ) -> PyResult<Registration> {
        let hook = Hook::new(hook, queue)?;
        let driver = self.driver.get(py)?;
        let subscription = driver.on_pod_lost(Arc::new(PythonLostPod(hook)));
        Ok(Registration::new(move || subscription.end()))
    }

    /// Every counter by name.
    fn stats(&self, py: Python<'_>) -> PyResult<BTreeMap<&'static str, u64>> {
        Ok(self.driver.get(py)?.stats())
    }

    fn is_closed(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.driver.get(py)?.is_closed())
    }

    /// Ends the driver's tasks.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.driver.get(py)?.close();
        Ok(())
    }
}

impl ClientCore {
    /// The miss path: the names are read as they are, and many calls share a batch.
    fn compute(&self, started: Started<'_>, given: Arguments<'_, '_>) -> PyResult<()> {
        let py = given.py();
        let driver = self.driver.get(py)?;
        let deadline = driver.deadline(given.timeout()?);
        let [namespace, uid, service] = given.all()?;
        let names = (
            argument::namespace(&namespace)?,
            argument::text("uid", &uid)?,
            argument::text("service_name", &service)?,
        );
        let runtime = runtime::handle(py)?;
        let _runtime = runtime.enter();
        let (queue, waiter) = started.waiter();
        let arrivals = queue.arrivals(py)?;
        // A call that fails here keeps no waiter.
        let caller = || queue.caller(arrivals, waiter);
        driver.compute_for(names, deadline, caller).or_raise(py)
    }

    fn start_other(
        &self,
        py: Python<'_>,
        started: Started<'_>,
        mut given: Arguments<'_, '_>,
    ) -> PyResult<()> {
        let driver = self.driver.get(py)?.clone();
        let deadline = driver.deadline(given.timeout()?);
        let resolve = |name: Option<&str>| driver.resolve(name);
        match started.name {
            OperationName::GetLinkedPod => {
                let link = given.link(resolve)?;
                started.run(py, async move {
                    let pod = driver.get_linked_pod(link, deadline).await;
                    pod.map(Answer::MaybePod)
                })
            }
            OperationName::GetLinkedPodInCacheOrIfPersist => {
                let link = given.link(resolve)?;
                started.run(py, async move {
                    let pod = driver.get_linked_pod_in_cache_or_if_persist(link, deadline);
                    pod.await.map(Answer::MaybePod)
                })
            }
            OperationName::GetLinkedPodNotCache => {
                let link = given.link(resolve)?;
                started.run(py, async move {
                    let link = driver.get_linked_pod_not_cache(link, deadline).await?;
                    Ok(Answer::MaybePod(link.map(|link| link.pod)))
                })
            }
            OperationName::GetLinkService => {
                let (namespace, uid) = (given.namespace(resolve)?, given.uid()?);
                started.run(py, async move {
                    let services = driver.get_link_service(&namespace, &uid, deadline).await;
                    services.map(Answer::Services)
                })
            }
            OperationName::BatchGetLinkedPod => {
                let (service, uids) = given.batch(resolve)?;
                let deadline = given.counted_from_call(deadline);
                started.run(py, async move {
                    let asked = Arc::clone(&uids);
                    let pods = driver.batch_get_linked_pod(&service, asked, deadline?);
                    Ok(Answer::Users(uids, pods.await?))
                })
            }
            OperationName::SetLinkedPodIfAbsent => {
                let (link, pod) = (given.link(resolve)?, given.pod_index()?);
                started.run(py, async move {
                    let owner = driver.set_linked_pod_if_absent(link, pod, deadline).await;
                    owner.map(Answer::Pod)
                })
            }
            OperationName::Route => {
                let link = given.link(resolve)?;
                started.run(py, async move {
                    let route = driver.route(link, deadline).await?;
                    Ok(Answer::Route(Box::new(route.into())))
                })
            }
            // As JSON; its names are those of `podlink.Explanation`.
            OperationName::Explain => {
                let link = given.link(resolve)?;
                started.run(py, async move {
                    let explanation = driver.explain(link, deadline).await?;
                    explanation.json().map(Answer::Text)
                })
            }
            _ => Err(started.unknown(py)),
        }
    }

    pub(super) fn driver(&self, py: Python<'_>) -> PyResult<&ClientDriver> {
        self.driver.get(py)
    }

    fn target(
        &self,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
    ) -> PyResult<(ClientDriver, LinkId)> {
        let py = namespace.py();
        let driver = self.driver.get(py)?.clone();
        let namespace = driver
            .resolve(argument::namespace(namespace)?)
            .or_raise(py)?;
        let link = argument::link(namespace, uid, service_name)?;
        Ok((driver, link))
    }
}
