//! `podlink.RouteInfoDriver`, the compiled half.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::argument;
use super::config::RouteInfoSettings;
use super::error::OrRaise;
use super::grpc_client::{GrpcClientCore, peer_table};
use super::hook::{Hook, PythonChangeListener, state_fields};
use super::log;
use super::queue::{Answer, CompletionQueue};
use super::runtime::{self, Owned};
use super::store::StoreCore;
use crate::clock::{Clock, Tick};
use crate::driver::info::{InfoDriver, States};
use crate::driver::states::{ChangeListener, StateCache, Watched};
use crate::id::{Namespace, ServiceId, Tag};

/// A route info driver.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct InfoCore {
    driver: Owned<InfoDriver>,
    timeout: Duration,
}

#[pymethods]
impl InfoCore {
    #[new]
    fn new(
        store: &StoreCore,
        namespace: &Bound<'_, PyAny>,
        config: &RouteInfoSettings,
        callbacks: &CompletionQueue,
        peers: Vec<(String, PyRef<'_, GrpcClientCore>)>,
    ) -> PyResult<Self> {
        let py = namespace.py();
        let own = Namespace::new(argument::text("namespace", namespace)?).or_raise(py)?;
        let peers = peer_table(py, store, &own, &peers)?;
        log::listen(callbacks.arrivals(py)?);
        let executor = store.executor(py)?;
        let figures = config.config.clone();
        let driver = InfoDriver::with_peers(executor, Clock::System, own, figures, peers);
        driver.report_to(store.metrics(py)?);
        Ok(Self {
            driver: Owned::new(driver),
            timeout: config.timeout,
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
        let (driver, service) = self.target(namespace, service_name)?;
        let deadline = self.deadline(timeout)?;
        queue.spawn(namespace.py(), waiter, async move {
            let states = driver.all_states(&service, deadline).await;
            states
                .map(Answer::States)
                .map_err(|error| error.during("get_all_service_state"))
        })
    }

    fn get_ready_service_state(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        namespace: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (driver, service) = self.target(namespace, service_name)?;
        let deadline = self.deadline(timeout)?;
        queue.spawn(namespace.py(), waiter, async move {
            let states = driver.ready_states(&service, deadline).await;
            states
                .map(Answer::States)
                .map_err(|error| error.during("get_ready_service_state"))
        })
    }

    fn get_service_best_pod(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        namespace: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (driver, service) = self.target(namespace, service_name)?;
        let deadline = self.deadline(timeout)?;
        queue.spawn(namespace.py(), waiter, async move {
            let pod = driver.best_pod(&service, deadline).await;
            pod.map(Answer::MaybePod)
                .map_err(|error| error.during("get_service_best_pod"))
        })
    }

    fn is_workload_ready(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        namespace: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (driver, service) = self.target(namespace, service_name)?;
        let deadline = self.deadline(timeout)?;
        queue.spawn(namespace.py(), waiter, async move {
            let ready = driver.is_workload_ready(&service, deadline).await;
            ready
                .map(Answer::Flag)
                .map_err(|error| error.during("is_workload_ready"))
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
        let driver = self.driver.get(py)?.clone();
        let namespace = driver
            .resolve(argument::namespace(namespace)?)
            .or_raise(py)?;
        let tag = Tag::new(argument::text("tag", tag)?).or_raise(py)?;
        let deadline = self.deadline(timeout)?;
        queue.spawn(py, waiter, async move {
            let service = driver.service_by_tag(&namespace, &tag, deadline).await;
            service
                .map(Answer::Name)
                .map_err(|error| error.during("get_service_name_by_tag"))
        })
    }

    fn set_global_service_name_tag(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        namespace: &Bound<'_, PyAny>,
        tag: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = namespace.py();
        let (driver, id) = self.target(namespace, service_name)?;
        let tag = Tag::new(argument::text("tag", tag)?).or_raise(py)?;
        let deadline = self.deadline(timeout)?;
        queue.spawn(py, waiter, async move {
            let set = driver
                .set_tag(&id.namespace, &tag, &id.service, deadline)
                .await;
            set.map(Answer::Flag)
                .map_err(|error| error.during("set_global_service_name_tag"))
        })
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
        hook: Py<PyAny>,
    ) -> PyResult<Registration> {
        let py = namespace.py();
        let driver = self.driver.get(py)?;
        let namespace = driver
            .resolve(argument::namespace(namespace)?)
            .or_raise(py)?;
        let hook = Hook::new(hook, queue, py)?;
        let named = !service_name.is_none();
        let service = named.then(|| argument::service(service_name)).transpose()?;
        let states = driver.states_in(&namespace).or_raise(py)?;
        let service = service.map(|service| ServiceId { namespace, service });
        let audience: Arc<dyn ChangeListener> = Arc::new(PythonChangeListener {
            hook,
            service: service.clone(),
        });
        // Before the service is read for the first time, so that no join is missed.
        states.subscribe(Arc::clone(&audience));
        let runtime = runtime::handle(py)?;
        let _runtime = runtime.enter();
        let watched = service.map(|service| driver.watch(&service)).transpose();
        let watched = watched.or_raise(py)?;
        Ok(Registration::new(states, audience, watched))
    }

    /// Every counter by name.
    fn stats(&self, py: Python<'_>) -> PyResult<BTreeMap<&'static str, u64>> {
        Ok(self.driver.get(py)?.stats())
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

    fn deadline(&self, timeout: &Bound<'_, PyAny>) -> PyResult<Tick> {
        let given = argument::timeout(timeout)?.unwrap_or(self.timeout);
        Ok(self.driver.get(timeout.py())?.deadline(given))
    }

    /// Asks something that never waits.
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

/// States as Python sees them: pod index → fields of `StatefulServiceState`.
pub(super) fn states_to_python<'py>(
    py: Python<'py>,
    states: &States,
) -> PyResult<Bound<'py, PyDict>> {
    let table = PyDict::new(py);
    for (pod, state) in states {
        table.set_item(pod.get(), state_fields(py, state)?)?;
    }
    Ok(table)
}

/// A hook that hears of changes, until it is taken back.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct Registration {
    kept: Mutex<Option<Owned<Kept>>>,
}

struct Kept {
    states: Arc<StateCache>,
    audience: Arc<dyn ChangeListener>,
    watched: Option<Arc<Watched>>,
}

impl Registration {
    pub(super) fn new(
        states: Arc<StateCache>,
        audience: Arc<dyn ChangeListener>,
        watched: Option<Arc<Watched>>,
    ) -> Self {
        let kept = Owned::new(Kept {
            states,
            audience,
            watched,
        });
        Self {
            kept: Mutex::new(Some(kept)),
        }
    }
}

#[pymethods]
impl Registration {
    /// Takes the hook back. A second time does nothing.
    fn unregister(&self, py: Python<'_>) -> PyResult<()> {
        let kept = self
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(kept) = &kept {
            let kept = kept.get(py)?;
            kept.states.unsubscribe(&kept.audience);
            if let Some(watched) = &kept.watched {
                watched.unpin();
            }
        }
        Ok(())
    }
}
