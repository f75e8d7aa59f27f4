//! `podlink.RouteInfoDriver`, the compiled half.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::answer::{Answer, states_to_python};
use super::argument;
use super::config::RouteInfoSettings;
use super::error::OrRaise;
use super::grpc_client::{GrpcClientCore, peer_table};
use super::hook::{Hook, PythonChangeListener};
use super::known_pods::KnownPods;
use super::log;
use super::operations::started;
use super::queue::CompletionQueue;
use super::registration::Registration;
use super::runtime::{self, Owned};
use super::store::StoreCore;
use crate::clock::Clock;
use crate::driver::info::InfoDriver;
use crate::id::{Namespace, ServiceId};
use crate::op::OperationName;

/// A route info driver.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct InfoCore {
    driver: Owned<InfoDriver>,
    timeout: Duration,
    known_pods: KnownPods,
}

#[pymethods]
impl InfoCore {
    #[new]
    fn new(
        store: &StoreCore,
        namespace: &Bound<'_, PyAny>,
        config: &RouteInfoSettings,
        logs: &CompletionQueue,
        peers: Vec<(String, PyRef<'_, GrpcClientCore>)>,
    ) -> PyResult<Self> {
        let py = namespace.py();
        let own = Namespace::new(argument::text("namespace", namespace)?).or_raise(py)?;
        let peers = peer_table(py, store, &own, &peers)?;
        log::listen(logs.arrivals(py)?);
        let shared = store.store(py)?;
        let settings = config.0.states.clone();
        let driver = InfoDriver::with_peers(shared, Clock::System, own, settings, &peers);
        driver.report_to(store.metrics(py)?);
        Ok(Self {
            driver: Owned::new(driver),
            timeout: config.0.timeout,
            known_pods: KnownPods::default(),
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
        let (started, mut given) = started(queue, waiter, operation, arguments, timeout)?;
        let driver = self.driver.get(py)?.clone();
        let deadline = driver.deadline(given.timeout()?.unwrap_or(self.timeout));
        let resolve = |name: Option<&str>| driver.resolve(name);
        match started.name {
            OperationName::GetAllServiceState => {
                let service = given.service_id(resolve)?;
                started.run(py, async move {
                    let states = driver.all_states(&service, deadline).await;
                    states.map(Answer::States)
                })
            }
            OperationName::GetReadyServiceState => {
                let service = given.service_id(resolve)?;
                started.run(py, async move {
                    let states = driver.ready_states(&service, deadline).await;
                    states.map(Answer::States)
                })
            }
            OperationName::GetPodState => {
                let (service, pod) = (given.service_id(resolve)?, given.pod_index()?);
                started.run(py, async move {
                    let state = driver.pod_state(&service, pod, deadline).await;
                    state.map(Answer::State)
                })
            }
            OperationName::GetServiceBestPod => {
                let service = given.service_id(resolve)?;
                started.run(py, async move {
                    let pod = driver.best_pod(&service, deadline).await;
                    pod.map(Answer::MaybePod)
                })
            }
            OperationName::IsWorkloadReady => {
                let service = given.service_id(resolve)?;
                started.run(py, async move {
                    let ready = driver.is_workload_ready(&service, deadline).await;
                    ready.map(Answer::Flag)
                })
            }
            OperationName::GetServiceNameByTag => {
                let (namespace, tag) = (given.namespace(resolve)?, given.tag()?);
                started.run(py, async move {
                    let service = driver.service_by_tag(&namespace, &tag, deadline).await;
                    service.map(Answer::Name)
                })
            }
            OperationName::SetGlobalServiceNameTag => {
                let (namespace, tag) = (given.namespace(resolve)?, given.tag()?);
                let service = given.service()?;
                started.run(py, async move {
                    let set = driver.set_tag(&namespace, &tag, &service, deadline).await;
                    set.map(Answer::Flag)
                })
            }
            _ => Err(started.unknown(py)),
        }
    }

    fn alive_pods<'py>(
        &self,
        namespace: &Bound<'py, PyAny>,
        service_name: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let py = namespace.py();
        let states = self.known(namespace, service_name, InfoDriver::alive_pods)?;
        states_to_python(py, &states)
    }

    /// One alive pod, as `make` makes it of the fields, or None. The object is made once for each
    /// published state.
    fn pod<'py>(
        &self,
        namespace: &Bound<'py, PyAny>,
        service_name: &Bound<'py, PyAny>,
        pod_index: &Bound<'py, PyAny>,
        make: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let pod = argument::pod_index(pod_index)?;
        let state = self.known(namespace, service_name, |driver, service| {
            driver.alive_pod(service, pod)
        })?;
        let object = state.map(|state| self.known_pods.object(&state, make));
        object.transpose()
    }

    fn routable_pods<'py>(
        &self,
        namespace: &Bound<'py, PyAny>,
        service_name: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let py = namespace.py();
        let states = self.known(namespace, service_name, InfoDriver::routable_pods)?;
        states_to_python(py, &states)
    }

    fn is_pod_routable(
        &self,
        namespace: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        pod_index: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let pod = argument::pod_index(pod_index)?;
        self.known(namespace, service_name, |driver, service| {
            driver.is_pod_routable(service, pod)
        })
    }

    fn is_pod_available(
        &self,
        namespace: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        pod_index: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let pod = argument::pod_index(pod_index)?;
        self.known(namespace, service_name, |driver, service| {
            driver.is_pod_available(service, pod)
        })
    }

    /// Seconds since the service was read, or None.
    fn age(
        &self,
        namespace: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
    ) -> PyResult<Option<f64>> {
        let age = self.known(namespace, service_name, InfoDriver::age)?;
        Ok(age.map(|age| age.as_secs_f64()))
    }

    /// Calls `hook` for every change of a service's pods, or of all services' in the namespace.
    fn register(
        &self,
        queue: &CompletionQueue,
        namespace: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        hook: &Bound<'_, PyAny>,
    ) -> PyResult<Registration> {
        let py = namespace.py();
        let driver = self.driver.get(py)?;
        let namespace = driver
            .resolve(argument::namespace(namespace)?)
            .or_raise(py)?;
        let hook = Hook::new(hook, queue)?;
        let named = !service_name.is_none();
        let service = named.then(|| argument::service(service_name)).transpose()?;
        let service = service.map(|service| ServiceId {
            namespace: namespace.clone(),
            service,
        });
        let listener = Arc::new(PythonChangeListener {
            hook,
            service: service.clone(),
        });
        let runtime = runtime::handle(py)?;
        let _runtime = runtime.enter();
        let subscription = driver.subscribe(&namespace, service.as_ref(), listener);
        let subscription = subscription.or_raise(py)?;
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

impl InfoCore {
    pub(super) fn driver(&self, py: Python<'_>) -> PyResult<&InfoDriver> {
        self.driver.get(py)
    }

    fn target(
        &self,
        namespace: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
    ) -> PyResult<(InfoDriver, ServiceId)> {
        let py = namespace.py();
        let driver = self.driver.get(py)?.clone();
        let namespace = driver
            .resolve(argument::namespace(namespace)?)
            .or_raise(py)?;
        let service = argument::service(service_name)?;
        Ok((driver, ServiceId { namespace, service }))
    }

    /// Runs a lookup that never waits.
    fn known<T>(
        &self,
        namespace: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        ask: impl FnOnce(&InfoDriver, &ServiceId) -> crate::error::Result<T>,
    ) -> PyResult<T> {
        let py = namespace.py();
        let (driver, service) = self.target(namespace, service_name)?;
        let runtime = runtime::handle(py)?;
        let _runtime = runtime.enter();
        ask(&driver, &service).or_raise(py)
    }
}
