//! The admin endpoint: metrics, health and pods over plain HTTP, for operators and Prometheus.
//!
//! It runs on the Tokio runtime only, so that it responds while Python's event loop is blocked.
//! It only reads, and a client's use is bounded: one request per connection, few connections,
//! small headers, short timeouts.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use crate::clock::{Clock, Tick};
use crate::error::{Error, ErrorKind, Result};
use crate::id::invalid;

/// Concurrent connections; the next one waits until one of them ends.
const CONNECTIONS_MAX: usize = 32;
/// How long a connection may last.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to send the request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// How long the readiness check may take.
const READY_TIMEOUT: Duration = Duration::from_secs(1);

/// What the endpoint shows.
#[async_trait]
pub trait AdminPages: Send + Sync + std::fmt::Debug + 'static {
    /// The metrics as OpenMetrics text.
    ///
    /// # Errors
    /// A bug in podlink.
    fn metrics(&self) -> Result<String>;

    /// Whether users can be served: the store answers, and this process's pods hold their leases.
    ///
    /// # Errors
    /// The reason why not.
    async fn ready(&self, deadline: Tick) -> Result<()>;

    /// The pods of every service that is being read, as JSON.
    fn pods(&self) -> String;
}

/// Serves the pages. Cheap to clone; the clones are one server.
#[derive(Debug, Clone)]
pub struct AdminServer {
    shared: Arc<AdminShared>,
}

#[derive(Debug)]
struct AdminShared {
    pages: Arc<dyn AdminPages>,
    listen: SocketAddr,
    clock: Clock,
    /// The running task. Never held across an await.
    tasks: Mutex<AdminTasks>,
}

#[derive(Debug, Default)]
struct AdminTasks {
    address: Option<SocketAddr>,
    stopped: bool,
    /// The acceptor, which owns the connections; aborted by `stop`, and when the server is dropped.
    task: Option<AbortHandle>,
}

impl AdminServer {
    /// A server at this address. No I/O, no task: `start` does both.
    ///
    /// # Errors
    /// `InvalidParameter` for an address that other machines can reach, unless `insecure`.
    pub fn new(
        pages: Arc<dyn AdminPages>,
        listen: SocketAddr,
        insecure: bool,
        clock: Clock,
    ) -> Result<Self> {
        if !listen.ip().is_loopback() && !insecure {
            let allowed = "an address of this machine alone (127.0.0.1, [::1]), because there is \
                           neither TLS nor a password; give insecure=True";
            return Err(invalid("listen", &listen.to_string(), allowed));
        }
        let shared = AdminShared {
            pages,
            listen,
            clock,
            tasks: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The address that the server listens on, once started.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.shared.tasks().address
    }

    /// Listens and serves until `stop`. Returns the address.
    ///
    /// # Errors
    /// `InvalidParameter` for an address that is in use; `IllegalState` for a second start;
    /// `Closed` after `stop`.
    pub async fn start(&self) -> Result<SocketAddr> {
        let shared = &self.shared;
        shared.check_startable()?;
        let listen = shared.listen;
        let listener = TcpListener::bind(listen).await.map_err(|error| {
            let text = format!("cannot listen on {listen}: {error}");
            Error::new(ErrorKind::InvalidParameter, text)
                .with("parameter", "listen")
                .with("given", listen)
        })?;
        let address = listener.local_addr().map_err(|error| {
            Error::new(ErrorKind::Internal, "the listener has no address").caused_by(error)
        })?;
        let mut tasks = shared.tasks();
        tasks.check()?;
        let acceptor = AdminAcceptor {
            pages: Arc::clone(&shared.pages),
            clock: shared.clock.clone(),
        };
        tasks.task = Some(tokio::spawn(accept(listener, acceptor)).abort_handle());
        tasks.address = Some(address);
        Ok(address)
    }

    /// Stops listening and closes every connection. It is idempotent.
    pub fn stop(&self) {
        self.shared.end();
    }
}

impl AdminTasks {
    fn check(&self) -> Result<()> {
        if self.stopped {
            let text = "the admin endpoint was stopped";
            return Err(Error::new(ErrorKind::Closed, text));
        }
        if self.address.is_some() {
            let text = "the admin endpoint was started already";
            return Err(Error::new(ErrorKind::IllegalState, text));
        }
        Ok(())
    }
}

impl AdminShared {
    fn tasks(&self) -> std::sync::MutexGuard<'_, AdminTasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_startable(&self) -> Result<()> {
        self.tasks().check()
    }

    fn end(&self) {
        let mut tasks = self.tasks();
        tasks.stopped = true;
        if let Some(task) = tasks.task.take() {
            task.abort();
        }
    }
}

impl Drop for AdminShared {
    fn drop(&mut self) {
        self.end();
    }
}

/// What each connection needs.
#[derive(Debug, Clone)]
struct AdminAcceptor {
    pages: Arc<dyn AdminPages>,
    clock: Clock,
}

/// Owns the connections: they end with it.
async fn accept(listener: TcpListener, acceptor: AdminAcceptor) {
    const RETRY_DELAY: Duration = Duration::from_millis(100);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        // This semaphore is never closed.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let serving = serve(stream, acceptor.clone());
                connections.spawn(async move {
                    // A slow client loses its connection and does not block the endpoint.
                    let _too_slow = tokio::time::timeout(CONNECTION_TIMEOUT, serving).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "the admin endpoint could not accept a connection");
                tokio::time::sleep(RETRY_DELAY).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, acceptor: AdminAcceptor) {
    let service = service_fn(move |request| {
        let acceptor = acceptor.clone();
        async move { Ok::<_, Infallible>(acceptor.respond(&request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to the admin endpoint ended");
    }
}

type AdminResponse = Response<Full<Bytes>>;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl AdminAcceptor {
    async fn respond(&self, request: &Request<Incoming>) -> AdminResponse {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = page(
                StatusCode::METHOD_NOT_ALLOWED,
                TEXT,
                "only GET and HEAD\n".into(),
            );
            let allowed = HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(ALLOW, allowed);
            return response;
        }
        match request.uri().path() {
            "/metrics" => match self.pages.metrics() {
                Ok(text) => page(StatusCode::OK, OPENMETRICS, text),
                Err(error) => page(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    TEXT,
                    format!("{error}\n"),
                ),
            },
            "/healthz" => page(StatusCode::OK, TEXT, "alive\n".into()),
            "/readyz" => {
                let deadline = self.clock.deadline(READY_TIMEOUT);
                match self.pages.ready(deadline).await {
                    Ok(()) => page(StatusCode::OK, TEXT, "ready\n".into()),
                    Err(error) => {
                        let text = format!("{}: {error}\n", error.kind().code());
                        page(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
                    }
                }
            }
            "/pods" => page(StatusCode::OK, JSON, self.pages.pods()),
            _ => {
                let known = "the pages are /metrics, /healthz, /readyz and /pods\n";
                page(StatusCode::NOT_FOUND, TEXT, known.into())
            }
        }
    }
}

fn page(status: StatusCode, kind: &'static str, text: String) -> AdminResponse {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    response
}
