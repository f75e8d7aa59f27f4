//! The HTTP/2 connection of one endpoint: established by the first call, and again when it is lost.
//!
//! A call sends its own frames and waits for its own response, so that only one task is between it
//! and the socket: the connection's.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, poll_fn};
use h2::client::{Connection, SendRequest};
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, Uri, header};
use http_body::Body as _;
use prost::bytes::{Bytes, BytesMut};
use tokio::task::AbortHandle;
use tonic::body::Body;
use tower_service::Service;

use super::dial::PeerDialer;
use crate::rpc::http2::{FlushScheduler, GatheredStream, IncomingBody, ping_timeout};
use crate::rpc::status::{DialError, Unsent};

/// The error of a call.
type BoxError = Box<dyn std::error::Error + Send + Sync>;
type DialResult = Result<Arc<PeerConnection>, DialError>;

/// The flow-control windows: response bytes that may be sent before they are read, per stream
/// and per connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// A channel to one endpoint. Cheap to clone; the clones share the connection.
#[derive(Debug, Clone)]
pub(super) struct PeerChannel(Arc<PeerChannelInner>);

#[derive(Debug)]
struct PeerChannelInner {
    dialer: PeerDialer,
    scheme: Scheme,
    authority: Authority,
    keepalive: Duration,
    keepalive_timeout: Duration,
    /// The connection, until it is known to be lost.
    connection: ArcSwapOption<PeerConnection>,
    /// The attempt in progress, shared by all calls (single flight). Never held across an await.
    dialing: Mutex<Option<Shared<BoxFuture<'static, DialResult>>>>,
}

/// A connection. It ends with its last call after the channel has dropped it.
struct PeerConnection {
    send: SendRequest<Bytes>,
    scheduler: FlushScheduler,
    /// The task that drives it.
    task: AbortHandle,
    /// Set when the task has ended.
    ended: Arc<AtomicBool>,
}

impl std::fmt::Debug for PeerConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerConnection").finish_non_exhaustive()
    }
}

impl PeerChannel {
    pub(super) fn new(
        dialer: PeerDialer,
        authority: Authority,
        keepalive: Duration,
        keepalive_timeout: Duration,
    ) -> Self {
        let scheme = if dialer.url.tls {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        };
        Self(Arc::new(PeerChannelInner {
            dialer,
            scheme,
            authority,
            keepalive,
            keepalive_timeout,
            connection: ArcSwapOption::empty(),
            dialing: Mutex::default(),
        }))
    }

    /// Drops the connection: calls in progress may end, and a later call would reconnect.
    pub(super) fn disconnect(&self) {
        self.0.connection.store(None);
    }

    async fn send(self, request: Request<Body>) -> Result<Response<IncomingBody>, BoxError> {
        let (mut parts, body) = request.into_parts();
        let mut uri = parts.uri.into_parts();
        uri.scheme = Some(self.0.scheme.clone());
        uri.authority = Some(self.0.authority.clone());
        parts.uri = Uri::from_parts(uri)?;
        let agent = HeaderValue::from_static(concat!("podlink/", env!("CARGO_PKG_VERSION")));
        parts.headers.insert(header::USER_AGENT, agent);
        let message = collect(body).await?;
        let (connection, mut send) = self.0.ready_connection().await?;
        let _pending = connection.scheduler.pending_send();
        let (response, mut stream) = send
            .send_request(Request::from_parts(parts, ()), false)
            .map_err(|error| {
                self.0.forget(&connection);
                Unsent(error)
            })?;
        stream.send_data(message, true)?;
        Ok(response.await?.map(IncomingBody::new))
    }
}

impl PeerChannelInner {
    fn dialing(&self) -> MutexGuard<'_, Option<Shared<BoxFuture<'static, DialResult>>>> {
        self.dialing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that accepts calls.
    async fn ready_connection(
        self: &Arc<Self>,
    ) -> Result<(Arc<PeerConnection>, SendRequest<Bytes>), BoxError> {
        let mut retry = true;
        loop {
            let connection = self.connection().await?;
            let mut send = connection.send.clone();
            let error = match poll_fn(|cx| send.poll_ready(cx)).await {
                Ok(()) => return Ok((connection, send)),
                Err(error) => error,
            };
            // A connection that the server shuts down accepts no more calls; the next one does.
            self.forget(&connection);
            if !std::mem::take(&mut retry) {
                return Err(Unsent(error).into());
            }
        }
    }

    async fn connection(self: &Arc<Self>) -> DialResult {
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        let dialed = {
            let mut dialing = self.dialing();
            if let Some(connection) = self.current() {
                return Ok(connection);
            }
            let dial = || {
                // In its own task, which ends by the connect timeout: a call that stops waiting
                // must not cancel the attempt for the others.
                let task = tokio::spawn(dial(Arc::clone(self)));
                let failed = self.dialer.failed("dialing ended".to_owned());
                let dialed = async move { task.await.unwrap_or(Err(failed)) };
                dialed.boxed().shared()
            };
            dialing.get_or_insert_with(dial).clone()
        };
        dialed.await
    }

    fn current(&self) -> Option<Arc<PeerConnection>> {
        let connection = self.connection.load_full()?;
        (!connection.ended.load(Ordering::Acquire)).then_some(connection)
    }

    /// Drops this connection, unless it was replaced already.
    fn forget(&self, connection: &Arc<PeerConnection>) {
        let _other = self.connection.compare_and_swap(connection, None);
    }
}

impl Drop for PeerChannelInner {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.swap(None) {
            connection.task.abort();
        }
    }
}

async fn dial(channel: Arc<PeerChannelInner>) -> DialResult {
    let dialed = channel.open().await;
    let mut dialing = channel.dialing();
    if let Ok(connection) = &dialed {
        channel.connection.store(Some(Arc::clone(connection)));
    }
    *dialing = None;
    dialed
}

impl PeerChannelInner {
    async fn open(&self) -> DialResult {
        let stream = self.dialer.dial().await?;
        let scheduler = FlushScheduler::default();
        let stream = GatheredStream::new(stream, scheduler.clone());
        let handshake = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .enable_push(false)
            .handshake(stream);
        let connected = scheduler.run(handshake).await;
        let (send, connection) =
            connected.map_err(|error| self.dialer.failed(error.to_string()))?;
        let work = drive(connection, self.keepalive, self.keepalive_timeout);
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let own = scheduler.clone();
        let task = tokio::spawn(async move {
            own.run(work).await;
            end.store(true, Ordering::Release);
        });
        Ok(Arc::new(PeerConnection {
            send,
            scheduler,
            task: task.abort_handle(),
            ended,
        }))
    }
}

/// Drives the connection until it ends. Owned by the channel, which aborts it.
async fn drive(
    mut connection: Connection<GatheredStream, Bytes>,
    every: Duration,
    within: Duration,
) {
    let pings = connection.ping_pong();
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to a peer was lost");
            }
        }
        () = ping_timeout(pings, every, within) => {
            tracing::debug!("a peer did not answer a ping in time");
        }
    }
}

/// Collects the body of a request, which is in memory already.
async fn collect(body: Body) -> Result<Bytes, BoxError> {
    let mut body = std::pin::pin!(body);
    let mut all = Bytes::new();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        if all.is_empty() {
            all = data;
        } else {
            let mut longer = BytesMut::from(all.as_ref());
            longer.extend_from_slice(&data);
            all = longer.freeze();
        }
    }
    Ok(all)
}

impl Service<Request<Body>> for PeerChannel {
    type Response = Response<IncomingBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}
