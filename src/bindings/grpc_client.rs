//! `podlink.RouteGrpcClient`, the compiled half.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::answer::Answer;
use super::argument;
use super::calls::{answer_of, call_of};
use super::config::GrpcClientSettings;
use super::error::{OrRaise, raise};
use super::hook::{Hook, PythonConditionHook};
use super::operations::started;
use super::queue::CompletionQueue;
use super::registration::Registration;
use super::runtime::{self, Owned};
use super::store::StoreCore;
use crate::clock::Clock;
use crate::config::{PeerClientConfig, PeerUrl, TlsFiles};
use crate::driver::foreign::{ForeignNamespace, ForeignNamespaces};
use crate::error::Result;
use crate::id::{Namespace, invalid, shown};
use crate::op::OperationName;
use crate::rpc::client::{ConditionHook, PeerClient};
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
        let (started, mut given) = started(queue, waiter, operation, arguments, timeout)?;
        let client = self.client.get(py)?.clone();
        let deadline = client.deadline(given.timeout()?);
        if started.name == OperationName::CheckHealth {
            return started.run(py, async move {
                let healthy = client.check_health(deadline).await;
                healthy.map(Answer::Flag)
            });
        }
        let resolve = |name: Option<&str>| self.resolve(name);
        let (call, answer) = call_of(py, &started, &mut given, resolve)?;
        let deadline = given.counted_from_call(deadline);
        started.run(py, async move {
            let reply = client.call(&call, deadline?).await?;
            answer_of(reply, answer)
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
        hook: &Bound<'_, PyAny>,
    ) -> PyResult<Registration> {
        let hook: Arc<dyn ConditionHook> = Arc::new(PythonConditionHook(Hook::new(hook, queue)?));
        let client = self.client.get(py)?.clone();
        client.on_condition(Arc::clone(&hook));
        Ok(Registration::new(move || client.off_condition(&hook)))
    }

    fn is_closed(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.client.get(py)?.is_closed())
    }

    /// Ends the connections.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.client.get(py)?.close();
        Ok(())
    }
}

impl GrpcClientCore {
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
