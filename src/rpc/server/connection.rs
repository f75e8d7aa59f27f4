//! One HTTP/2 connection: passes requests to the services, and sends their responses.
//!
//! A request that is ready at its first poll is answered on the connection's own task; every other
//! request gets its own task. Such a task is never cancelled, it ends by its deadline: a caller
//! that cancels never leaves half a change.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::poll_fn;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use http_body::Body as _;
use prost::bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;

use super::access::ConnectionPeer;
use super::services::ServiceStack;
use crate::error::{Error, ErrorKind, WriteOutcome};
use crate::rpc::http2::{
    FlushScheduler, GatheredStream, IncomingBody, PendingSend, Stream, ping_timeout,
};
use crate::rpc::status;

/// The limits of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionLimits {
    /// The maximum of concurrent requests.
    pub(super) max_streams: u32,
    pub(super) keepalive: Duration,
    /// Also the timeout of the handshake.
    pub(super) keepalive_timeout: Duration,
    /// The age at which it is shut down gracefully.
    pub(super) age: Duration,
    /// How long its requests may continue after that.
    pub(super) grace: Duration,
    /// How long a request may take. A request that has arrived ends by its own deadline.
    pub(super) request_timeout: Duration,
}

/// The flow-control window of a connection: request bytes that may be sent before they are read.
const WINDOW: u32 = 1 << 20;
const HEADERS_MAX: u32 = 16 * 1024;

/// Serves a connection until it ends. Dropping the future closes the connection.
pub(super) async fn serve(
    stream: Box<dyn Stream>,
    peer: ConnectionPeer,
    services: ServiceStack,
    limits: ConnectionLimits,
    stop: CancellationToken,
) {
    let scheduler = FlushScheduler::default();
    let stream = GatheredStream::new(stream, scheduler.clone());
    let work = handshake(stream, peer, services, limits, stop, scheduler.clone());
    scheduler.run(work).await;
}

async fn handshake(
    stream: GatheredStream,
    peer: ConnectionPeer,
    services: ServiceStack,
    limits: ConnectionLimits,
    stop: CancellationToken,
    scheduler: FlushScheduler,
) {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(HEADERS_MAX)
        .initial_connection_window_size(WINDOW);
    let shaking = tokio::time::timeout(limits.keepalive_timeout, builder.handshake(stream));
    let Ok(Ok(mut connection)) = shaking.await else {
        return;
    };
    let pings = connection.ping_pong();
    let ping_timeout = ping_timeout(pings, limits.keepalive, limits.keepalive_timeout);
    let work = accept_requests(&mut connection, &peer, &services, limits, stop, &scheduler);
    tokio::select! {
        () = work => {}
        () = ping_timeout => tracing::debug!("a client did not answer a ping in time"),
    }
}

/// Accepts requests until the client closes the connection, it reaches its age, or the server
/// stops. In the last two cases it ends when the requests in progress have ended.
async fn accept_requests(
    connection: &mut Connection<GatheredStream, Bytes>,
    peer: &ConnectionPeer,
    services: &ServiceStack,
    limits: ConnectionLimits,
    stop: CancellationToken,
    scheduler: &FlushScheduler,
) {
    let aged = tokio::time::sleep(limits.age);
    let expired = tokio::time::sleep(limits.age + limits.grace);
    let (mut aged, mut expired) = (pin!(aged), pin!(expired));
    let mut ending = false;
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, sender))) => {
                    let (peer, services) = (peer.clone(), services.clone());
                    let (timeout, pending) = (limits.request_timeout * 2, scheduler.pending_send());
                    let response = respond(request, sender, peer, services, timeout, pending);
                    spawn_unless_ready(response);
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "a client's connection was lost");
                    return;
                }
                None => return,
            },
            () = stop.cancelled(), if !ending => {
                ending = true;
                connection.graceful_shutdown();
            }
            () = &mut aged, if !ending => {
                ending = true;
                connection.graceful_shutdown();
            }
            () = &mut expired => return,
        }
    }
}

/// Answers a request: at once if it is ready, else in a task of its own.
fn spawn_unless_ready(response: impl Future<Output = ()> + Send + 'static) {
    let mut response = Box::pin(response);
    if response.as_mut().now_or_never().is_none() {
        tokio::spawn(response);
    }
}

/// A request without a response within `timeout` has not arrived completely: one that has ends by
/// its deadline, which is earlier.
async fn respond(
    request: Request<RecvStream>,
    mut sender: SendResponse<Bytes>,
    peer: ConnectionPeer,
    services: ServiceStack,
    timeout: Duration,
    pending: PendingSend,
) {
    let mut request = request.map(IncomingBody::new);
    request.extensions_mut().insert(peer);
    // A request that panics must not take down the other requests.
    let response = pin!(AssertUnwindSafe(services.call(request)).catch_unwind());
    let response = match tokio::time::timeout(timeout, response).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            let text = "the operation ended without an answer";
            let error = Error::new(ErrorKind::Internal, text).with_outcome(WriteOutcome::Unknown);
            status::from_error(&error).into_http()
        }
        Err(_) => {
            let text = "the request did not arrive in time";
            let error = Error::new(ErrorKind::Timeout, text).with_outcome(WriteOutcome::NotSent);
            status::from_error(&error).into_http()
        }
    };
    let (parts, body) = response.into_parts();
    let no_body = body.is_end_stream();
    // The body may be a long stream of events: other tasks must not wait for it.
    drop(pending);
    let sent = sender.send_response(Response::from_parts(parts, ()), no_body);
    // Where sending fails, the client has disconnected.
    if let (Ok(stream), false) = (sent, no_body) {
        let _disconnected = send(body, stream).await;
    }
}

/// The next part of a response that is being sent.
enum ResponsePart {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

async fn send(body: Body, mut stream: SendStream<Bytes>) -> Result<(), h2::Error> {
    let mut body = pin!(body);
    loop {
        let next = poll_fn(|cx| {
            if let Poll::Ready(frame) = body.as_mut().poll_frame(cx) {
                let next = match frame.transpose() {
                    Ok(Some(frame)) => match frame.into_data() {
                        Ok(data) => ResponsePart::Data(data),
                        Err(frame) => frame
                            .into_trailers()
                            .map_or(ResponsePart::End, ResponsePart::Trailers),
                    },
                    Ok(None) => ResponsePart::End,
                    Err(status) => ResponsePart::Trailers(trailers(&status)),
                };
                return Poll::Ready(Ok(next));
            }
            // A subscriber may disconnect long before the next event.
            stream
                .poll_reset(cx)
                .map(|reset| Err(reset.map_or_else(|error| error, h2::Error::from)))
        })
        .await?;
        match next {
            ResponsePart::Data(data) => send_data(&mut stream, data).await?,
            ResponsePart::Trailers(trailers) => return stream.send_trailers(trailers),
            ResponsePart::End => return stream.send_data(Bytes::new(), true),
        }
    }
}

fn trailers(status: &tonic::Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let _unwritable = status.add_header(&mut trailers);
    trailers
}

/// Sends as much as the client's flow-control window allows.
async fn send_data(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        while stream.capacity() == 0 {
            let more = poll_fn(|cx| stream.poll_capacity(cx)).await;
            more.unwrap_or(Err(Reason::CANCEL.into()))?;
        }
        let fits = stream.capacity().min(data.len());
        stream.send_data(data.split_to(fits), false)?;
    }
    Ok(())
}
