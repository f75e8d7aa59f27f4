//! `podlink.RouteGrpcServer`, the compiled half.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::answer::Answer;
use super::argument;
use super::client::ClientCore;
use super::config::{ClientSettings, GrpcServerSettings};
use super::error::{OrRaise, raise};
use super::info::InfoCore;
use super::operations::started;
use super::queue::CompletionQueue;
use super::runtime::Owned;
use super::store::StoreCore;
use crate::clock::Clock;
use crate::config::{Allowed, PeerServerConfig, ServerTls};
use crate::driver::peer::LocalPeer;
use crate::id::{Namespace, invalid, shown};
use crate::op::OperationName;
use crate::rpc::METHODS;
use crate::rpc::server::Server;

/// A hundred years: a stop that waits for longer is a mistake in the unit.
const DEADLINE_MAX: f64 = 3_153_600_000.0;

/// A server for peers.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct GrpcServerCore {
    server: Owned<Server>,
}

#[pymethods]
impl GrpcServerCore {
    #[new]
    #[pyo3(signature = (
        store, namespace, client, info, client_config, config, listen, cert_file, key_file,
        client_ca_file, tokens_file, authorize, insecure, reflection
    ))]
    #[allow(
        clippy::too_many_arguments,
        reason = "each is one option of the server"
    )]
    fn new(
        store: &StoreCore,
        namespace: &Bound<'_, PyAny>,
        client: &ClientCore,
        info: &InfoCore,
        client_config: &ClientSettings,
        config: &GrpcServerSettings,
        listen: &Bound<'_, PyAny>,
        cert_file: Option<PathBuf>,
        key_file: Option<PathBuf>,
        client_ca_file: Option<PathBuf>,
        tokens_file: Option<PathBuf>,
        authorize: Vec<(String, String, String)>,
        insecure: bool,
        reflection: bool,
    ) -> PyResult<Self> {
        let py = namespace.py();
        let own = Namespace::new(argument::text("namespace", namespace)?).or_raise(py)?;
        let read = |(caller, method, namespace): &(String, String, String)| {
            Allowed::parse(caller, method, namespace, &METHODS)
        };
        let allowed: Result<Vec<Allowed>, _> = authorize.iter().map(read).collect();
        let config = PeerServerConfig {
            listen: address(listen)?,
            tls: tls(py, cert_file, key_file, client_ca_file)?,
            insecure,
            tokens_file,
            allowed: allowed.or_raise(py)?,
            reflection,
            ..config.0.clone()
        };
        let config = config.check().or_raise(py)?;
        let operations = LocalPeer::new(
            store.store(py)?,
            client.driver(py)?.clone(),
            info.driver(py)?.clone(),
            client_config.0.clone(),
        );
        let server = Server::new(Arc::new(operations), own, config, Clock::System);
        Ok(Self {
            server: Owned::new(server),
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
        let server = self.server.get(py)?.clone();
        match started.name {
            OperationName::Start => started.run(py, async move {
                let address = server.start().await?;
                Ok(Answer::Text(address.to_string()))
            }),
            // Whether every request in flight ended in time.
            OperationName::Stop => {
                let time = given.seconds("deadline", 0.0, DEADLINE_MAX)?;
                started.run(py, async move {
                    let deadline = server.deadline(time);
                    Ok(Answer::Flag(server.stop(deadline).await))
                })
            }
            _ => Err(started.unknown(py)),
        }
    }

    /// Host and port, once the server listens.
    fn address(&self, py: Python<'_>) -> PyResult<Option<String>> {
        let address = self.server.get(py)?.address();
        Ok(address.map(|address| address.to_string()))
    }
}

/// `host:port`; a name must be one that this machine can look up.
pub(super) fn address(given: &Bound<'_, PyAny>) -> PyResult<SocketAddr> {
    let text = argument::text("listen", given)?;
    let allowed = "host:port of this machine, like 127.0.0.1:50051 or [::]:50051";
    let refused = || raise(given.py(), &invalid("listen", &shown(text), allowed));
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let mut found = text.to_socket_addrs().map_err(|_| refused())?;
    found.next().ok_or_else(refused)
}

fn tls(
    py: Python<'_>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    client_ca_file: Option<PathBuf>,
) -> PyResult<Option<ServerTls>> {
    match (cert_file, key_file, client_ca_file) {
        (Some(cert_file), Some(key_file), client_ca_file) => Ok(Some(ServerTls {
            cert_file,
            key_file,
            client_ca_file,
        })),
        (None, None, None) => Ok(None),
        _ => {
            let allowed = "given with key_file, and client_ca_file only with both";
            Err(raise(
                py,
                &invalid("cert_file", "an incomplete set", allowed),
            ))
        }
    }
}
