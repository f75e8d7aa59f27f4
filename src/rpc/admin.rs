//! The admin endpoint: metrics, health and pods over plain HTTP, for people and for Prometheus.
//!
//! It runs on the runtime alone, so that it answers also while the program's event loop is stuck.
//! It only reads, and what it takes from a caller is bounded: one request a connection, few
//! connections, small heads, little time.

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

/// Connections at a time; the next one waits until one of them ends.
const CONNECTIONS: usize = 32;
/// How long a connection may take from its beginning to its end.
const LIFE: Duration = Duration::from_secs(10);
/// How long a caller may take to send the head of the request.
const HEAD: Duration = Duration::from_secs(5);
const HEAD_BYTES: usize = 16 * 1024;
const HEADERS: usize = 64;
/// How long the store may take to say that it is there.
const READY: Duration = Duration::from_secs(1);

/// What the endpoint shows.
#[async_trait]
pub trait AdminPages: Send + Sync + std::fmt::Debug + 'static {
    /// The metrics as OpenMetrics text.
    ///
    /// # Errors
    /// A mistake in podlink.
    fn metrics(&self) -> Result<String>;

    /// Whether users can be served: the store answers, and this process's pods hold their leases.
    ///
    /// # Errors
    /// Why not.
    async fn ready(&self, deadline: Tick) -> Result<()>;

    /// The pods of every service that is being read, as JSON.
    fn pods(&self) -> String;
}

/// Serves the pages. Cheap to clone; the clones are one server.
#[derive(Debug, Clone)]
pub struct AdminServer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pages: Arc<dyn AdminPages>,
    listen: SocketAddr,
    clock: Clock,
    /// What runs. Never held across an await.
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    address: Option<SocketAddr>,
    stopped: bool,
    /// The acceptor, which owns the connections; ended by `stop`, and when the server is dropped.
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
        let shared = Shared {
            pages,
            listen,
            clock,
            running: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Where the server listens, once it does.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.shared.running().address
    }

    /// Listens and serves until `stop`. Returns the address.
    ///
    /// # Errors
    /// `InvalidParameter` for an address that is taken; `IllegalState` for a second start;
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
        let mut running = shared.running();
        running.check()?;
        let door = Door {
            pages: Arc::clone(&shared.pages),
            clock: shared.clock.clone(),
        };
        running.task = Some(tokio::spawn(accept(listener, door)).abort_handle());
        running.address = Some(address);
        Ok(address)
    }

    /// Stops listening and cuts every connection. A second stop does nothing.
    pub fn stop(&self) {
        self.shared.end();
    }
}

impl Running {
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

impl Shared {
    fn running(&self) -> std::sync::MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_startable(&self) -> Result<()> {
        self.running().check()
    }

    fn end(&self) {
        let mut running = self.running();
        running.stopped = true;
        if let Some(task) = running.task.take() {
            task.abort();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.end();
    }
}

/// What each connection needs.
#[derive(Debug, Clone)]
struct Door {
    pages: Arc<dyn AdminPages>,
    clock: Clock,
}

/// Owns the connections: they end with it.
async fn accept(listener: TcpListener, door: Door) {
    const PAUSE: Duration = Duration::from_millis(100);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // Nobody closes this semaphore.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let serving = serve(stream, door.clone());
                connections.spawn(async move {
                    // Whoever is slow loses the connection, not the endpoint.
                    let _too_slow = tokio::time::timeout(LIFE, serving).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "the admin endpoint could not accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, door: Door) {
    let answer = service_fn(move |request| {
        let door = door.clone();
        async move { Ok::<_, Infallible>(door.answer(&request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to the admin endpoint ended");
    }
}

type Answer = Response<Full<Bytes>>;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Door {
    async fn answer(&self, request: &Request<Incoming>) -> Answer {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = page(
                StatusCode::METHOD_NOT_ALLOWED,
                TEXT,
                "only GET and HEAD\n".into(),
            );
            let allowed = HeaderValue::from_static("GET, HEAD");
            answer.headers_mut().insert(ALLOW, allowed);
            return answer;
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
                let deadline = self.clock.deadline(READY);
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
                let known = "there is /metrics, /healthz, /readyz and /pods\n";
                page(StatusCode::NOT_FOUND, TEXT, known.into())
            }
        }
    }
}

fn page(status: StatusCode, kind: &'static str, text: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    answer
}
