//! Inbound connections: accepting, limiting their number, and the TLS handshake.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::access::{ConnectionPeer, certificate_names};
use super::connection::{ConnectionLimits, serve};
use super::services::ServiceStack;
use crate::rpc::http2::Stream;

/// The listener, and what each connection needs.
pub(super) struct Acceptor {
    pub(super) listener: TcpListener,
    /// The TLS configuration from the current files.
    pub(super) tls: Option<Arc<ArcSwap<ServerConfig>>>,
    /// One permit per connection.
    pub(super) permits: Arc<Semaphore>,
    pub(super) services: ServiceStack,
    pub(super) limits: ConnectionLimits,
    /// Stops listening, and shuts connections down gracefully.
    pub(super) stop: CancellationToken,
}

/// Accepts connections until `stop`, then waits for them to end. Each has its own task, so that a
/// slow one delays no other; they end with this task.
pub(super) async fn accept(acceptor: Acceptor) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = acceptor.stop.cancelled() => break,
            _ended = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accept_connection(&acceptor) => accepted,
        };
        let Some((stream, address, permit)) = accepted else {
            continue;
        };
        let (tls, services) = (acceptor.tls.clone(), acceptor.services.clone());
        let (limits, stop) = (acceptor.limits, acceptor.stop.clone());
        connections.spawn(async move {
            let handshake =
                tokio::time::timeout(limits.keepalive_timeout, tls_handshake(stream, tls));
            // A client that connects and sends nothing must not hold a permit forever.
            if let Ok(Some((stream, names))) = handshake.await {
                let peer = ConnectionPeer { address, names };
                serve(stream, peer, services, limits, stop).await;
            }
            drop(permit);
        });
    }
    drop(acceptor.listener);
    while connections.join_next().await.is_some() {}
}

/// A connection with its permit.
async fn accept_connection(
    acceptor: &Acceptor,
) -> Option<(TcpStream, IpAddr, OwnedSemaphorePermit)> {
    // Out of file descriptors, for example: an immediate retry would only burn CPU.
    const RETRY_DELAY: Duration = Duration::from_millis(50);
    let permit = Arc::clone(&acceptor.permits).acquire_owned().await.ok()?;
    match acceptor.listener.accept().await {
        Ok((stream, from)) => {
            let _without = stream.set_nodelay(true);
            Some((stream, from.ip(), permit))
        }
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(RETRY_DELAY).await;
            None
        }
    }
}

async fn tls_handshake(
    stream: TcpStream,
    tls: Option<Arc<ArcSwap<ServerConfig>>>,
) -> Option<(Box<dyn Stream>, Arc<[String]>)> {
    let Some(tls) = tls else {
        return Some((Box::new(stream), Arc::from([])));
    };
    match TlsAcceptor::from(tls.load_full()).accept(stream).await {
        Ok(stream) => {
            let certificates = stream.get_ref().1.peer_certificates();
            let leaf = certificates.and_then(|certificates| certificates.first());
            let names = leaf.map_or_else(Vec::new, |leaf| certificate_names(leaf));
            Some((Box::new(stream), names.into()))
        }
        Err(error) => {
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
    }
}
