//! The gRPC server: any [`Peer`] for callers in other namespaces.

mod accept;
mod access;
mod connection;
mod files;
mod service;
mod services;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use self::accept::{Acceptor, accept};
use self::access::Gate;
use self::connection::ConnectionLimits;
use self::files::Files;
use self::service::RouteHandler;
use self::services::ServiceStack;
use super::messages::SERVICE_NAME;
use super::{Peer, tls};
use crate::clock::{Clock, Tick};
use crate::config::PeerServerConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::id::Namespace;
use crate::op::{Call, Ping};

/// The health of the process: serving from `start` to `stop`, whatever the store does.
const LIVENESS: &str = "liveness";
/// Whether requests can be answered: the store answers, and the server is not stopping.
pub(super) const READINESS: &str = "readiness";

/// Serves one namespace to callers in others. Cheap to clone; the clones are one server.
#[derive(Debug, Clone)]
pub struct Server {
    shared: Arc<GrpcServerShared>,
}

#[derive(Debug)]
struct GrpcServerShared {
    operations: Arc<dyn Peer>,
    namespace: Namespace,
    config: PeerServerConfig,
    clock: Clock,
    /// Permits for requests under way: held by each until its work has ended.
    permits: Arc<Semaphore>,
    /// Permits for streams of events.
    streams: Arc<Semaphore>,
    /// Ends listening, streams and the health of everything.
    stop: CancellationToken,
    /// What runs. Never held across an await.
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    address: Option<SocketAddr>,
    health: Option<HealthReporter>,
    /// The acceptor, which owns the connections, the health check and the reader of changed files;
    /// ended by `stop`, and when the server is dropped.
    tasks: Vec<AbortHandle>,
}

impl Server {
    /// A server of `namespace` through `operations`. No I/O, no task: `start` does both.
    #[must_use]
    pub fn new(
        operations: Arc<dyn Peer>,
        namespace: Namespace,
        config: PeerServerConfig,
        clock: Clock,
    ) -> Self {
        let shared = GrpcServerShared {
            operations,
            namespace,
            permits: Arc::new(Semaphore::new(config.max_in_flight)),
            streams: Arc::new(Semaphore::new(config.max_event_streams)),
            config,
            clock,
            stop: CancellationToken::new(),
            running: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The deadline of something that may take this long.
    #[must_use]
    pub fn deadline(&self, timeout: Duration) -> Tick {
        self.shared.clock.deadline(timeout)
    }

    /// Where the server listens, once it does.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.shared.running().address
    }

    /// Reads the files, listens, and serves until `stop`. Returns the address.
    ///
    /// # Errors
    /// `InvalidParameter` for a file that cannot be used or an address that is taken;
    /// `IllegalState` for a second start.
    pub async fn start(&self) -> Result<SocketAddr> {
        let shared = &self.shared;
        shared.check_startable()?;
        let files = Files::of(&shared.config);
        let read = files.clone();
        let first = tokio::task::spawn_blocking(move || read.load()).await;
        let first = first.map_err(|_| Error::new(ErrorKind::Internal, "reading files ended"))??;
        let listen = shared.config.listen;
        let listener = TcpListener::bind(listen).await.map_err(|error| {
            let text = format!("cannot listen on {listen}: {error}");
            Error::new(ErrorKind::InvalidParameter, text)
                .with("parameter", "listen")
                .with("given", listen)
        })?;
        let address = listener.local_addr().map_err(|error| {
            Error::new(ErrorKind::Internal, "the listener has no address").caused_by(error)
        })?;
        shared.check_startable()?;
        shared.run(listener, address, files, first).await;
        tracing::info!(%address, "the gRPC server listens");
        Ok(address)
    }

    /// Stops: no new connections and requests; those under way may end until `deadline`, then
    /// every connection is cut. Returns whether all of them ended. A second stop does nothing more.
    pub async fn stop(&self, deadline: Tick) -> bool {
        let shared = &self.shared;
        let health = shared.running().health.clone();
        if let Some(mut health) = health {
            for service in ["", READINESS, SERVICE_NAME, LIVENESS] {
                health
                    .set_service_status(service, ServingStatus::NotServing)
                    .await;
            }
            shared.stop.cancel();
            let ended = shared.drained(deadline).await;
            // Watchers of the health are notified of its end.
            for service in ["", READINESS, SERVICE_NAME, LIVENESS] {
                health.clear_service_status(service).await;
            }
            shared.end();
            return ended;
        }
        shared.stop.cancel();
        shared.end();
        true
    }
}

impl GrpcServerShared {
    fn running(&self) -> std::sync::MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_startable(&self) -> Result<()> {
        if self.stop.is_cancelled() {
            return Err(Error::new(ErrorKind::Closed, "the gRPC server was stopped"));
        }
        if self.running().address.is_some() {
            let text = "the gRPC server was started already";
            return Err(Error::new(ErrorKind::IllegalState, text));
        }
        Ok(())
    }

    async fn run(
        &self,
        listener: TcpListener,
        address: SocketAddr,
        files: Files,
        first: files::Loaded,
    ) {
        let tls = first.tls.map(|tls| Arc::new(ArcSwap::from_pointee(tls)));
        let gate = Arc::new(Gate::new(&self.config, first.tokens, self.clock.clone()));
        let (health, health_service) = health().await;
        let config = &self.config;
        let acceptor = Acceptor {
            listener,
            tls: tls.clone(),
            permits: Arc::new(Semaphore::new(config.max_connections)),
            services: self.services(Arc::clone(&gate), health_service),
            limits: ConnectionLimits {
                max_streams: config.max_streams,
                keepalive: config.keepalive,
                keepalive_timeout: config.keepalive_timeout,
                age: config.connection_age,
                grace: config.connection_grace,
                request_timeout: config.request_timeout,
            },
            stop: self.stop.clone(),
        };
        let tasks = [
            tokio::spawn(accept(acceptor)),
            tokio::spawn(files.follow(tls, gate, first.signature)),
            tokio::spawn(report(
                health.clone(),
                Arc::clone(&self.operations),
                self.clock.clone(),
            )),
        ];
        let mut running = self.running();
        running.address = Some(address);
        running.health = Some(health);
        running.tasks = tasks.iter().map(|task| task.abort_handle()).collect();
    }

    fn services(&self, gate: Arc<Gate>, health: HealthServer<HealthService>) -> ServiceStack {
        let config = &self.config;
        let route = RouteHandler {
            operations: Arc::clone(&self.operations),
            namespace: self.namespace.clone(),
            gate: Arc::clone(&gate),
            clock: self.clock.clone(),
            permits: Arc::clone(&self.permits),
            streams: Arc::clone(&self.streams),
            request_timeout: config.request_timeout,
            max_batch: config.max_batch,
            max_message_bytes: config.max_message_bytes,
            stop: self.stop.clone(),
        };
        ServiceStack::new(route, health, config.reflection, gate)
    }

    /// Waits until no request is under way.
    async fn drained(&self, deadline: Tick) -> bool {
        let all = u32::try_from(self.config.max_in_flight).unwrap_or(u32::MAX);
        let left = deadline.since(self.clock.now());
        let idle = self.permits.acquire_many(all);
        let ended = tokio::time::timeout(left, idle).await.is_ok();
        // The last answers are written by the connections' tasks.
        const FLUSH_TIME: Duration = Duration::from_millis(50);
        tokio::time::sleep(FLUSH_TIME.min(deadline.since(self.clock.now()))).await;
        ended
    }

    fn end(&self) {
        let tasks = std::mem::take(&mut self.running().tasks);
        tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Drop for GrpcServerShared {
    fn drop(&mut self) {
        self.stop.cancel();
        self.end();
    }
}

async fn health() -> (HealthReporter, HealthServer<HealthService>) {
    let reporter = HealthReporter::new();
    reporter
        .set_service_status(LIVENESS, ServingStatus::Serving)
        .await;
    for service in ["", READINESS, SERVICE_NAME] {
        reporter
            .set_service_status(service, ServingStatus::NotServing)
            .await;
    }
    let service = HealthService::from_health_reporter(reporter.clone());
    (reporter, HealthServer::new(service))
}

/// Publishes whether requests can be answered, once a second.
async fn report(health: HealthReporter, operations: Arc<dyn Peer>, clock: Clock) {
    const EVERY: Duration = Duration::from_secs(1);
    let (ping, mut last) = (Call::from(Ping), None);
    loop {
        let ready = operations.call(&ping, clock.deadline(EVERY)).await.is_ok();
        if last.replace(ready) != Some(ready) {
            let status = if ready {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            for service in ["", READINESS, SERVICE_NAME] {
                health.set_service_status(service, status).await;
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}
