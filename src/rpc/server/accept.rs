//! Connections on their way in: accepted, counted, and with TLS shaken hands with.

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

use super::access::{Peer, names};
use super::connection::{Manners, serve};
use super::services::Services;
use crate::rpc::http2::Stream;

/// The listener, and what it needs for each connection.
pub(super) struct Door {
    pub(super) listener: TcpListener,
    /// TLS as the files have it now.
    pub(super) tls: Option<Arc<ArcSwap<ServerConfig>>>,
    /// Places for connections.
    pub(super) places: Arc<Semaphore>,
    pub(super) services: Services,
    pub(super) manners: Manners,
    /// Ends listening, and connections in an orderly way.
    pub(super) stop: CancellationToken,
}

/// Accepts until it is told to stop, then waits for its connections. Each has a task of its own, so
/// that a slow one delays nobody; they end with this task.
pub(super) async fn accept(door: Door) {
    let mut connections = JoinSet::new();
    loop {
        let arrived = tokio::select! {
            () = door.stop.cancelled() => break,
            _ended = connections.join_next(), if !connections.is_empty() => continue,
            arrived = arrive(&door) => arrived,
        };
        let Some((stream, address, place)) = arrived else {
            continue;
        };
        let (tls, services) = (door.tls.clone(), door.services.clone());
        let (manners, stop) = (door.manners, door.stop.clone());
        connections.spawn(async move {
            let shaking = tokio::time::timeout(manners.keepalive_timeout, shake_hands(stream, tls));
            // Who connects and says nothing must not hold a place for ever.
            if let Ok(Some((stream, names))) = shaking.await {
                let peer = Peer { address, names };
                serve(stream, peer, services, manners, stop).await;
            }
            drop(place);
        });
    }
    drop(door.listener);
    while connections.join_next().await.is_some() {}
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
) -> Option<(Box<dyn Stream>, Arc<[String]>)> {
    let Some(tls) = tls else {
        return Some((Box::new(stream), Arc::from([])));
    };
    match TlsAcceptor::from(tls.load_full()).accept(stream).await {
        Ok(stream) => {
            let shown = stream.get_ref().1.peer_certificates();
            let leaf = shown.and_then(|certificates| certificates.first());
            let known = leaf.map_or_else(Vec::new, |leaf| names(leaf));
            Some((Box::new(stream), known.into()))
        }
        Err(error) => {
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
    }
}
