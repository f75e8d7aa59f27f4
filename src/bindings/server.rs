//! `podlink.ServerDriver`, the compiled half.

use std::collections::BTreeMap;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::answer::{Answer, ownership_fields};
use super::argument;
use super::calls::{answer_of, call_of};
use super::config::ServerSettings;
use super::error::OrRaise;
use super::grpc_client::{GrpcClientCore, peer_table};
use super::hook::{Hook, POD_HOOKS, PythonPodHooks};
use super::log;
use super::operations::started;
use super::queue::CompletionQueue;
use super::registration::Registration;
use super::runtime::Owned;
use super::store::StoreCore;
use crate::clock::Clock;
use crate::config::Drain;
use crate::driver::server::{PodHooks, ServerDriver, ServerInfo};
use crate::error::Result;
use crate::id::{LinkId, Namespace, ServiceId, invalid, shown};
use crate::op::OperationName;
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
        logs: &CompletionQueue,
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
        log::listen(logs.arrivals(py)?);
        let config = config.0.clone();
        let hooks = Arc::new(PythonPodHooks::default());
        let shared = store.store(py)?;
        let asked = Arc::clone(&hooks) as Arc<dyn PodHooks>;
        let driver = ServerDriver::with_peers(shared, Clock::System, info, config, asked, &peers);
        driver.report_to(store.metrics(py)?);
        Ok(Self {
            driver: Owned::new(driver),
            hooks: Owned::new(hooks),
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
        let driver = self.driver(py)?;
        let starts = matches!(started.name, OperationName::Start);
        self.hooks.get(py)?.runs_on(&queue.arrivals(py)?, starts);
        let deadline = driver.deadline(given.timeout()?);
        match started.name {
            OperationName::Start => {
                let deadline = driver.start_deadline(given.timeout()?);
                started.run(py, async move {
                    let begun = driver.start(deadline).await;
                    begun.map(|()| Answer::Nothing)
                })
            }
            OperationName::Stop => {
                let given_time = given.seconds_if_given("deadline", 0.001, 3600.0)?;
                let rule = given.parsed_if_given("drain", Drain::parse)?;
                let rule = rule.unwrap_or_else(|| driver.drain_rule());
                let until = driver.stop_deadline(given_time);
                started.run(py, async move {
                    let report = driver.stop(rule, until).await;
                    report.map(Answer::Drained)
                })
            }
            OperationName::SetRoutingState => {
                let routing = given.parsed("routing_state", routing_state)?;
                started.run(py, async move {
                    let set = driver.set_routing_state(routing, deadline).await;
                    set.map(|()| Answer::Nothing)
                })
            }
            OperationName::RemoveLinkedPod => {
                let link = given.link(|name| driver.resolve(name))?;
                started.run(py, async move {
                    let removed = driver.remove_linked_pod(link, deadline).await;
                    removed.map(Answer::Flag)
                })
            }
            OperationName::Claim => {
                let own = &driver.info().service.service;
                let link = given.link_of(own, |name| driver.resolve(name))?;
                let above = given.token("min_token")?;
                started.run(py, async move {
                    let claimed = driver.claim(link, above, deadline).await;
                    claimed.map(Answer::Owned)
                })
            }
            OperationName::Verify => {
                let user = given.ownership(|name| driver.resolve(name))?;
                started.run(py, async move {
                    let stands = driver.verify(&user, deadline).await;
                    stands.map(Answer::Flag)
                })
            }
            OperationName::Release => {
                let user = given.ownership(|name| driver.resolve(name))?;
                let removal = given.removal_if_given()?;
                started.run(py, async move {
                    let released = driver.release(&user, removal, deadline).await;
                    released.map(Answer::Flag)
                })
            }
            name => {
                let resolve = |name: Option<&str>| driver.resolve(name);
                let (call, answer) = call_of(py, &started, &mut given, resolve)?;
                started.run(py, async move {
                    let reply = driver.call(name, call, deadline).await?;
                    answer_of(reply, answer)
                })
            }
        }
    }

    /// Calls `hook` at the event of this name.
    fn on(
        &self,
        name: &str,
        queue: &CompletionQueue,
        hook: &Bound<'_, PyAny>,
    ) -> PyResult<Registration> {
        let py = hook.py();
        let known = POD_HOOKS.into_iter().find(|known| *known == name);
        let known = known.ok_or_else(|| invalid("name", &shown(name), &POD_HOOKS.join(", ")));
        let known = known.or_raise(py)?;
        let hook = Hook::new(hook, queue)?;
        let hooks = Arc::clone(self.hooks.get(py)?);
        let number = hooks.add(known, hook);
        Ok(Registration::new(move || hooks.remove(known, number)))
    }

    /// Ends a driver that was dropped without a stop. Returns whether it ran.
    fn abandon(&self) -> bool {
        self.driver.ours().is_some_and(ServerDriver::abandon)
    }

    /// Whether the stop has ended.
    fn is_closed(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.driver.get(py)?.is_closed())
    }

    /// Whether this process owns the user at this moment. Never in a forked child.
    fn owns(
        &self,
        namespace: &Bound<'_, PyAny>,
        uid: &Bound<'_, PyAny>,
        service_name: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let namespace = argument::namespace(namespace)?;
        let uid = argument::text("uid", uid)?;
        let service = match service_name.is_none() {
            true => None,
            false => Some(argument::text("service_name", service_name)?),
        };
        let driver = self.driver.ours();
        Ok(driver.is_some_and(|driver| driver.owns(namespace, uid, service)))
    }

    /// Whether this process owns the user at this moment by this very token.
    fn owns_by(&self, uid: &str, token: u64) -> bool {
        let held = self
            .driver
            .ours()
            .and_then(|driver| driver.token(None, uid, None));
        held.is_some_and(|held| held.get() == token)
    }

    /// What this process holds of a user at this moment: the fields of `podlink.Ownership`.
    fn ownership<'py>(
        &self,
        namespace: &Bound<'py, PyAny>,
        uid: &Bound<'py, PyAny>,
        service_name: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let py = uid.py();
        let (uid, given) = (argument::uid(uid)?, argument::namespace(namespace)?);
        let service = match service_name.is_none() {
            true => None,
            false => Some(argument::service(service_name)?),
        };
        // Nothing is owned in a forked child, nor elsewhere.
        let Some(driver) = self.driver.ours() else {
            return Ok(None);
        };
        let own = &driver.info().service;
        let named = given.filter(|given| !given.is_empty());
        let elsewhere = named.is_some_and(|given| given != own.namespace.as_str())
            || service.is_some_and(|given| given != own.service);
        if elsewhere {
            return Ok(None);
        }
        let link = LinkId {
            service: own.clone(),
            uid,
        };
        let held = driver.ownership(&link);
        held.map(|held| ownership_fields(py, &held)).transpose()
    }

    /// The users that this process owns at this moment.
    fn owned_users(&self) -> Vec<String> {
        let users = self.driver.ours().map(|driver| driver.owned_users());
        let users = users.into_iter().flatten();
        users.map(|link| link.uid.to_string()).collect()
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

    /// Every counter by name.
    fn stats(&self, py: Python<'_>) -> PyResult<BTreeMap<&'static str, u64>> {
        Ok(self.driver.get(py)?.stats())
    }
}

impl ServerCore {
    fn driver(&self, py: Python<'_>) -> PyResult<ServerDriver> {
        Ok(self.driver.get(py)?.clone())
    }
}

/// The routing state of this name.
fn routing_state(name: &str) -> Result<RoutingState> {
    let allowed = "READY, DENY_NEW_CALL or SHUTDOWN";
    let parsed = RoutingState::parse(name);
    parsed.ok_or_else(|| invalid("routing_state", &shown(name), allowed))
}
