//! One HTTP/2 connection: its requests are handed to the services, and their answers sent back.
//!
//! A request that can be answered at once, because nobody has to be waited for, is answered on the
//! connection's own task; every other one gets a task of its own. Nothing ends such a task but its
//! work, which has a deadline: a caller who cancels never leaves half a change.

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

use super::access::Peer;
use super::services::Services;
use crate::error::{Error, ErrorKind, WriteOutcome};
use crate::rpc::http2::{Busy, Gathered, Incoming, Stream, Turns, silence};
use crate::rpc::status;

/// How the server treats a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manners {
    /// How many requests may be under way.
    pub(super) max_streams: u32,
    pub(super) keepalive: Duration,
    /// Also how long the first word may take.
    pub(super) keepalive_timeout: Duration,
    /// After how long it is ended in an orderly way.
    pub(super) age: Duration,
    /// How long its requests may go on after that.
    pub(super) grace: Duration,
    /// How long a request may take. It ends by itself once it has arrived.
    pub(super) request_timeout: Duration,
}

/// How much of requests may be on its way before somebody reads it, on one connection.
const WINDOW: u32 = 1 << 20;
const HEADERS_MAX: u32 = 16 * 1024;

/// Serves a connection until it ends. Dropping it cuts the connection.
pub(super) async fn serve(
    stream: Box<dyn Stream>,
    peer: Peer,
    services: Services,
    manners: Manners,
    stop: CancellationToken,
) {
    let turns = Turns::default();
    let stream = Gathered::new(stream, turns.clone());
    let work = speak(stream, peer, services, manners, stop, turns.clone());
    turns.of(work).await;
}

async fn speak(
    stream: Gathered,
    peer: Peer,
    services: Services,
    manners: Manners,
    stop: CancellationToken,
    turns: Turns,
) {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(manners.max_streams)
        .max_header_list_size(HEADERS_MAX)
        .initial_connection_window_size(WINDOW);
    let shaking = tokio::time::timeout(manners.keepalive_timeout, builder.handshake(stream));
    let Ok(Ok(mut connection)) = shaking.await else {
        return;
    };
    let pings = connection.ping_pong();
    let silence = silence(pings, manners.keepalive, manners.keepalive_timeout);
    let work = take(&mut connection, &peer, &services, manners, stop, &turns);
    tokio::select! {
        () = work => {}
        () = silence => tracing::debug!("a caller gave no sign of life in time"),
    }
}

/// Takes requests until the connection ends: by its caller, by its age, or because the server
/// stops, and in the last two cases when the requests under way have ended.
async fn take(
    connection: &mut Connection<Gathered, Bytes>,
    peer: &Peer,
    services: &Services,
    manners: Manners,
    stop: CancellationToken,
    turns: &Turns,
) {
    let aged = tokio::time::sleep(manners.age);
    let over = tokio::time::sleep(manners.age + manners.grace);
    let (mut aged, mut over) = (pin!(aged), pin!(over));
    let mut ending = false;
    loop {
        tokio::select! {
            arrived = connection.accept() => match arrived {
                Some(Ok((request, respond))) => {
                    let (peer, services) = (peer.clone(), services.clone());
                    let patience = manners.request_timeout * 2;
                    begin(answer(request, respond, peer, services, patience, turns.busy()));
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "a caller's connection broke");
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
            () = &mut over => return,
        }
    }
}

/// Answers a request: now, if that is possible, else in a task of its own.
fn begin(answering: impl Future<Output = ()> + Send + 'static) {
    let mut answering = Box::pin(answering);
    if answering.as_mut().now_or_never().is_none() {
        tokio::spawn(answering);
    }
}

/// A request that was not answered within `patience` has not arrived: one that has ends by its
/// deadline, which is earlier.
async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    peer: Peer,
    services: Services,
    patience: Duration,
    busy: Busy,
) {
    let mut request = request.map(Incoming::new);
    request.extensions_mut().insert(peer);
    // One request that goes wrong must not take down those beside it.
    let answering = pin!(AssertUnwindSafe(services.call(request)).catch_unwind());
    let response = match tokio::time::timeout(patience, answering).await {
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
    let alone = body.is_end_stream();
    // What follows, a stream of events perhaps, is nothing that others should wait for.
    drop(busy);
    let begun = respond.send_response(Response::from_parts(parts, ()), alone);
    // Wherever sending fails, the caller has gone.
    if let (Ok(stream), false) = (begun, alone) {
        let _gone = send(body, stream).await;
    }
}

/// What happens next to an answer that is being sent.
enum Next {
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
                        Ok(data) => Next::Data(data),
                        Err(frame) => frame.into_trailers().map_or(Next::End, Next::Trailers),
                    },
                    Ok(None) => Next::End,
                    Err(status) => Next::Trailers(trailers(&status)),
                };
                return Poll::Ready(Ok(next));
            }
            // Whoever listens to events may have gone long before there is the next one.
            stream
                .poll_reset(cx)
                .map(|gone| Err(gone.map_or_else(|error| error, h2::Error::from)))
        })
        .await?;
        match next {
            Next::Data(data) => send_data(&mut stream, data).await?,
            Next::Trailers(trailers) => return stream.send_trailers(trailers),
            Next::End => return stream.send_data(Bytes::new(), true),
        }
    }
}

fn trailers(status: &tonic::Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let _unwritable = status.add_header(&mut trailers);
    trailers
}

/// Sends as the caller has room for it.
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
