//! `podlink.ServerDriver`, the compiled half.

use std::collections::BTreeMap;
use std::sync::Arc;

use pyo3::prelude::*;

use super::argument;
use super::config::ServerSettings;
use super::error::{OrRaise, raise};
use super::grpc_client::{GrpcClientCore, peer_table};
use super::hook::{Hook, PythonPodHooks};
use super::log;
use super::queue::{Answer, CompletionQueue};
use super::runtime::Owned;
use super::store::StoreCore;
use crate::clock::{Clock, Tick};
use crate::config::{Drain, seconds_within};
use crate::driver::server::{PodHooks, ServerDriver, ServerInfo};
use crate::id::{LinkId, Namespace, ServiceId, invalid, shown};
use crate::route::link::{Persist, Removal};
use crate::route::state::RoutingState;

/// A server driver.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct ServerCore {
    driver: Owned<ServerDriver>,
    hooks: Owned<Arc<PythonPodHooks>>,
}

#[pymethods]
impl ServerCore {
    #[new]
    #[allow(clippy::too_many_arguments, reason = "they are the pod's identity")]
    fn new(
        store: &StoreCore,
        namespace: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        pod_index: &Bound<'_, PyAny>,
        pod_uid: String,
        metadata: BTreeMap<String, String>,
        config: &ServerSettings,
        callbacks: &CompletionQueue,
        load: Option<(PyRef<'_, CompletionQueue>, Py<PyAny>)>,
        peers: Vec<(String, PyRef<'_, GrpcClientCore>)>,
    ) -> PyResult<Self> {
        let py = namespace.py();
        let namespace = Namespace::new(argument::text("namespace", namespace)?).or_raise(py)?;
        let peers = peer_table(py, store, &namespace, &peers)?;
        let info = ServerInfo {
            service: ServiceId {
                namespace,
                service: argument::service(service_name)?,
            },
            pod: argument::pod_index(pod_index)?,
            pod_uid,
            metadata,
        };
        log::listen(callbacks.arrivals(py)?);
        let config = config.0.clone();
        let load = load
            .map(|(queue, hook)| Hook::new(hook, &queue, py))
            .transpose()?;
        let hooks = Arc::new(PythonPodHooks {
            load,
            ..PythonPodHooks::default()
        });
        let executor = store.executor(py)?;
        let told = Arc::clone(&hooks) as Arc<dyn PodHooks>;
        let driver = ServerDriver::with_peers(executor, Clock::System, info, config, told, peers);
        driver.report_to(store.metrics(py)?);
        Ok(Self {
            driver: Owned::new(driver),
            hooks: Owned::new(hooks),
        })
    }

    fn start(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let driver = self.driver(timeout.py())?;
        let deadline = driver.start_deadline(argument::timeout(timeout)?);
        queue.spawn(timeout.py(), waiter, async move {
            let started = driver.start(deadline).await;
            started
                .map(|()| Answer::Nothing)
                .map_err(|error| error.during("start"))
        })
    }

    fn stop(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        deadline: &Bound<'_, PyAny>,
        drain: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = deadline.py();
        let driver = self.driver(py)?;
        let rule = if drain.is_none() {
            driver.drain_rule()
        } else {
            Drain::parse(argument::text("drain", drain)?).or_raise(py)?
        };
        let seconds = argument::number("deadline", deadline)?;
        let given = seconds_within("deadline", seconds, 0.001, 3600.0).or_raise(py)?;
        let until = driver.deadline(Some(given));
        queue.spawn(py, waiter, async move {
            let report = driver.stop(rule, until).await;
            report
                .map(Answer::Drained)
                .map_err(|error| error.during("stop"))
        })
    }

    /// Calls `hook` for every user that the pod owns when it stops.
    fn on_drain(&self, py: Python<'_>, queue: &CompletionQueue, hook: Py<PyAny>) -> PyResult<()> {
        let hook = Hook::new(hook, queue, py)?;
        PythonPodHooks::add(&self.hooks.get(py)?.drain, hook);
        Ok(())
    }

    /// Calls `hook` when the lease is lost.
    fn on_lease_lost(
        &self,
        py: Python<'_>,
        queue: &CompletionQueue,
        hook: Py<PyAny>,
    ) -> PyResult<()> {
        let hook = Hook::new(hook, queue, py)?;
        PythonPodHooks::add(&self.hooks.get(py)?.lease_lost, hook);
        Ok(())
    }

    fn weighted_load(&self, py: Python<'_>) -> PyResult<i64> {
        Ok(self.driver(py)?.weighted_load())
    }

    fn set_load_state(&self, load_state: &Bound<'_, PyAny>) -> PyResult<()> {
        let load = argument::integer("load_state", load_state)?;
        self.driver(load_state.py())?.set_load_state(load);
        Ok(())
    }

    fn get_load_state(&self, py: Python<'_>) -> PyResult<i64> {
        Ok(self.driver(py)?.load_state())
    }

    fn set_routing_state(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        routing_state: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = timeout.py();
        let name = argument::text("routing_state", routing_state)?;
        let routing = RoutingState::parse(name).ok_or_else(|| {
            raise(
                py,
                &invalid(
                    "routing_state",
                    &shown(name),
                    "READY, DENY_NEW_CALL or SHUTDOWN",
                ),
            )
        })?;
        let driver = self.driver(py)?;
        let deadline = driver.deadline(argument::timeout(timeout)?);
        queue.spawn(py, waiter, async move {
            let set = driver.set_routing_state(routing, deadline).await;
            set.map(|()| Answer::Nothing)
                .map_err(|error| error.during("set_routing_state"))
        })
    }

    fn get_routing_state(&self, py: Python<'_>) -> PyResult<&'static str> {
        Ok(self.driver(py)?.routing_state().as_str())
    }

    /// The incarnation, 0 before the start.
    fn incarnation(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.driver(py)?.incarnation().get())
    }

    fn holds_lease(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.driver(py)?.holds_lease())
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
        let py = namespace.py();
        let (driver, link, deadline) = self.target(namespace, uid, service_name, timeout)?;
        let pod = argument::pod_index(pod_index)?;
        let persist = persist(persist_seconds)?;
        queue.spawn(py, waiter, async move {
            let previous = driver.set_linked_pod(&link, pod, persist, deadline).await;
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
        let py = namespace.py();
        let (driver, link, deadline) = self.target(namespace, uid, service_name, timeout)?;
        let pod = argument::pod_index(pod_index)?;
        let persist = persist(persist_seconds)?;
        queue.spawn(py, waiter, async move {
            let tried = driver
                .try_set_linked_pod(&link, pod, persist, deadline)
                .await;
            tried
                .map(|(won, owner)| Answer::Won(won, owner))
                .map_err(|error| error.during("try_set_linked_pod"))
        })
    }

    fn remove_linked_pod(
        &self,
        queue: &CompletionQueue,
        waiter: Py<PyAny>,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (driver, link, deadline) = self.target(namespace, uid, service_name, timeout)?;
        queue.spawn(namespace.py(), waiter, async move {
            let removed = driver.remove_linked_pod(&link, deadline).await;
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
        let py = namespace.py();
        let (driver, link, deadline) = self.target(namespace, uid, service_name, timeout)?;
        let pod = argument::pod_index(pod_index)?;
        let seconds = argument::integer("persist_seconds", persist_seconds)?;
        let removal = Removal::from_seconds(seconds).or_raise(py)?;
        queue.spawn(py, waiter, async move {
            let removed = driver
                .remove_linked_pod_with_id(&link, pod, removal, deadline)
                .await;
            removed
                .map(Answer::Flag)
                .map_err(|error| error.during("remove_linked_pod_with_id"))
        })
    }

    /// Every counter by name.
    fn stats(&self, py: Python<'_>) -> PyResult<BTreeMap<&'static str, u64>> {
        Ok(self.driver.get(py)?.stats())
    }
}

fn persist(seconds: &Bound<'_, PyAny>) -> PyResult<Persist> {
    let given = argument::integer("persist_seconds", seconds)?;
    Persist::from_seconds(given).or_raise(seconds.py())
}

impl ServerCore {
    fn driver(&self, py: Python<'_>) -> PyResult<ServerDriver> {
        Ok(self.driver.get(py)?.clone())
    }

    fn target(
        &self,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
        timeout: &Bound<'_, PyAny>,
    ) -> PyResult<(ServerDriver, LinkId, Tick)> {
        let py = namespace.py();
        let driver = self.driver(py)?;
        let namespace = driver
            .resolve(argument::namespace(namespace)?)
            .or_raise(py)?;
        let link = argument::link(namespace, uid, service_name)?;
        let deadline = driver.deadline(argument::timeout(timeout)?);
        Ok((driver, link, deadline))
    }
}
