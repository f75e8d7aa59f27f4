//! The HTTP/2 connection of one endpoint: made by the first call, and made anew when it breaks.
//!
//! A call sends its frames itself and waits for its own answer, so that between it and the socket
//! there is one task only, the connection's.

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

use super::dial::Dialer;
use crate::rpc::http2::{Gathered, Incoming, Turns, silence};
use crate::rpc::status::{DialError, Unsent};

/// What goes wrong with a call.
type Failure = Box<dyn std::error::Error + Send + Sync>;
type Dialled = Result<Arc<Live>, DialError>;

/// How much of answers may be on its way before somebody reads it: of one, and of all together.
const WINDOW: u32 = 1 << 20;
const WINDOW_OF_ALL: u32 = 8 << 20;

/// The way to one endpoint. Cheap to clone; the clones share the connection.
#[derive(Debug, Clone)]
pub(super) struct Line(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dialer: Dialer,
    scheme: Scheme,
    authority: Authority,
    keepalive: Duration,
    keepalive_timeout: Duration,
    /// The connection, while it is thought to live.
    live: ArcSwapOption<Live>,
    /// The making of one, which all who need it wait for. Never held across an await.
    dialling: Mutex<Option<Shared<BoxFuture<'static, Dialled>>>>,
}

/// A connection. It ends with its last call once the line has dropped it.
struct Live {
    send: SendRequest<Bytes>,
    turns: Turns,
    /// The task that moves its bytes.
    task: AbortHandle,
    /// Set when that has ended.
    ended: Arc<AtomicBool>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").finish_non_exhaustive()
    }
}

impl Line {
    pub(super) fn new(
        dialer: Dialer,
        authority: Authority,
        keepalive: Duration,
        keepalive_timeout: Duration,
    ) -> Self {
        let scheme = if dialer.url.tls {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        };
        Self(Arc::new(Inner {
            dialer,
            scheme,
            authority,
            keepalive,
            keepalive_timeout,
            live: ArcSwapOption::empty(),
            dialling: Mutex::default(),
        }))
    }

    /// Lets the connection go: calls under way may end, and the next one would make a new one.
    pub(super) fn leave(&self) {
        self.0.live.store(None);
    }

    async fn send(self, request: Request<Body>) -> Result<Response<Incoming>, Failure> {
        let (mut parts, body) = request.into_parts();
        let mut uri = parts.uri.into_parts();
        uri.scheme = Some(self.0.scheme.clone());
        uri.authority = Some(self.0.authority.clone());
        parts.uri = Uri::from_parts(uri)?;
        let agent = HeaderValue::from_static(concat!("podlink/", env!("CARGO_PKG_VERSION")));
        parts.headers.insert(header::USER_AGENT, agent);
        let message = gathered(body).await?;
        let (live, mut send) = self.0.open_line().await?;
        let _busy = live.turns.busy();
        let (answer, mut stream) = send
            .send_request(Request::from_parts(parts, ()), false)
            .map_err(|error| {
                self.0.forget(&live);
                Unsent(error)
            })?;
        stream.send_data(message, true)?;
        let answer = answer.await?;
        Ok(answer.map(Incoming::new))
    }
}

impl Inner {
    fn dialling(&self) -> MutexGuard<'_, Option<Shared<BoxFuture<'static, Dialled>>>> {
        self.dialling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that takes calls.
    async fn open_line(self: &Arc<Self>) -> Result<(Arc<Live>, SendRequest<Bytes>), Failure> {
        let mut again = true;
        loop {
            let live = self.live().await?;
            let mut send = live.send.clone();
            let error = match poll_fn(|cx| send.poll_ready(cx)).await {
                Ok(()) => return Ok((live, send)),
                Err(error) => error,
            };
            // A connection that its server is ending takes no more calls; the one after it does.
            self.forget(&live);
            if !std::mem::take(&mut again) {
                return Err(Unsent(error).into());
            }
        }
    }

    async fn live(self: &Arc<Self>) -> Dialled {
        if let Some(live) = self.current() {
            return Ok(live);
        }
        let dialled = {
            let mut dialling = self.dialling();
            if let Some(live) = self.current() {
                return Ok(live);
            }
            let dial = || {
                // In a task of its own, which ends by the connect timeout: whoever gives up
                // waiting takes nothing from the others.
                let task = tokio::spawn(dial(Arc::clone(self)));
                let failed = self.dialer.failed("dialling ended".to_owned());
                let dialled = async move { task.await.unwrap_or(Err(failed)) };
                dialled.boxed().shared()
            };
            dialling.get_or_insert_with(dial).clone()
        };
        dialled.await
    }

    fn current(&self) -> Option<Arc<Live>> {
        let live = self.live.load_full()?;
        (!live.ended.load(Ordering::Acquire)).then_some(live)
    }

    /// This connection takes no more calls.
    fn forget(&self, live: &Arc<Live>) {
        let _other = self.live.compare_and_swap(live, None);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(live) = self.live.swap(None) {
            live.task.abort();
        }
    }
}

async fn dial(line: Arc<Inner>) -> Dialled {
    let dialled = line.open().await;
    let mut dialling = line.dialling();
    if let Ok(live) = &dialled {
        line.live.store(Some(Arc::clone(live)));
    }
    *dialling = None;
    dialled
}

impl Inner {
    async fn open(&self) -> Dialled {
        let stream = self.dialer.dial().await?;
        let turns = Turns::default();
        let stream = Gathered::new(stream, turns.clone());
        let shaking = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW_OF_ALL)
            .enable_push(false)
            .handshake(stream);
        let shaken = turns.of(shaking).await;
        let (send, connection) = shaken.map_err(|error| self.dialer.failed(error.to_string()))?;
        let carrying = carry(connection, self.keepalive, self.keepalive_timeout);
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let own = turns.clone();
        let task = tokio::spawn(async move {
            own.of(carrying).await;
            end.store(true, Ordering::Release);
        });
        Ok(Arc::new(Live {
            send,
            turns,
            task: task.abort_handle(),
            ended,
        }))
    }
}

/// Moves the connection's bytes until it ends. Owned by the line, which ends it.
async fn carry(mut connection: Connection<Gathered, Bytes>, every: Duration, within: Duration) {
    let pings = connection.ping_pong();
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to a peer broke");
            }
        }
        () = silence(pings, every, within) => tracing::debug!("a peer gave no sign of life in time"),
    }
}

/// What a call sends, which is in memory already.
async fn gathered(body: Body) -> Result<Bytes, Failure> {
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

impl Service<Request<Body>> for Line {
    type Response = Response<Incoming>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}
