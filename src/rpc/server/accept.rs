//! Connections on their way in: accepted, counted, and with TLS shaken hands with.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::access::{Peer, names};

/// How long a handshake may take: who connects and says nothing must not hold a place for ever.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The listener's figures and what it needs for each connection.
pub(super) struct Door {
    pub(super) listener: TcpListener,
    /// TLS as the files have it now.
    pub(super) tls: Option<Arc<ArcSwap<ServerConfig>>>,
    /// Places for connections.
    pub(super) places: Arc<Semaphore>,
    /// Ends listening.
    pub(super) stop: CancellationToken,
    /// Ends every connection, whatever goes on there.
    pub(super) cut: CancellationToken,
}

/// Accepts until it is told to stop. Handshakes run beside each other: a slow one delays nobody.
/// They end with this task.
pub(super) async fn accept(door: Door, accepted: mpsc::Sender<io::Result<Connection>>) {
    let mut handshakes = JoinSet::new();
    loop {
        let arrived = tokio::select! {
            () = door.stop.cancelled() => return,
            _ended = handshakes.join_next(), if !handshakes.is_empty() => continue,
            arrived = arrive(&door) => arrived,
        };
        let Some((stream, address, place)) = arrived else {
            continue;
        };
        let (tls, cut, accepted) = (door.tls.clone(), door.cut.clone(), accepted.clone());
        handshakes.spawn(async move {
            let Some((stream, names)) = shake_hands(stream, tls).await else {
                return;
            };
            let connection = Connection {
                stream,
                peer: Peer { address, names },
                cut: Box::pin(cut.cancelled_owned()),
                _place: place,
            };
            // Nobody takes it: the server has stopped.
            let _stopped = accepted.send(Ok(connection)).await;
        });
    }
}

/// A connection for which there is a place.
async fn arrive(door: &Door) -> Option<(TcpStream, IpAddr, OwnedSemaphorePermit)> {
    // Out of descriptors, for example: trying again at once would only burn the CPU.
    const PAUSE: Duration = Duration::from_millis(50);
    let place = Arc::clone(&door.places).acquire_owned().await.ok()?;
    match door.listener.accept().await {
        Ok((stream, from)) => {
            let _without = stream.set_nodelay(true);
            Some((stream, from.ip(), place))
        }
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}

async fn shake_hands(
    stream: TcpStream,
    tls: Option<Arc<ArcSwap<ServerConfig>>>,
) -> Option<(Stream, Arc<[String]>)> {
    let Some(tls) = tls else {
        return Some((Stream::Plain(stream), Arc::from([])));
    };
    let shaking = TlsAcceptor::from(tls.load_full()).accept(stream);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, shaking).await {
        Ok(Ok(stream)) => {
            let shown = stream.get_ref().1.peer_certificates();
            let leaf = shown.and_then(|certificates| certificates.first());
            let known = leaf.map_or_else(Vec::new, |leaf| names(leaf));
            Some((Stream::Tls(Box::new(stream)), known.into()))
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
        Err(_) => None,
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection that can be cut from outside: streams that nobody ends must not outlive the server.
pub(super) struct Connection {
    stream: Stream,
    peer: Peer,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
