//! Outbound connections. Every attempt resolves the name and reads the certificates, so that both
//! may change.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::{PeerUrl, TlsFiles};
use crate::rpc::http2::Stream;
use crate::rpc::status::DialError;
use crate::rpc::tls;

/// Resolves host names.
#[async_trait]
pub trait HostResolver: Send + Sync + std::fmt::Debug + 'static {
    /// The host's current addresses, in the order in which they are tried.
    ///
    /// # Errors
    /// The name is unknown, or the lookup failed.
    async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// The system's resolver: its files, then DNS.
#[derive(Debug)]
pub(super) struct SystemResolver;

#[async_trait]
impl HostResolver for SystemResolver {
    async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

/// Establishes the connections of one endpoint.
#[derive(Debug, Clone)]
pub(super) struct PeerDialer {
    pub(super) url: PeerUrl,
    pub(super) resolver: Arc<dyn HostResolver>,
    pub(super) tls: TlsFiles,
    pub(super) server_name: Option<String>,
    pub(super) timeout: Duration,
}

impl PeerDialer {
    /// A new connection, TLS included.
    pub(super) async fn dial(&self) -> Result<Box<dyn Stream>, DialError> {
        let connecting = tokio::time::timeout(self.timeout, self.connect());
        match connecting.await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(self.failed(error.to_string())),
            Err(_) => Err(self.failed(format!("no answer within {:?}", self.timeout))),
        }
    }

    /// The error of a failed attempt.
    pub(super) fn failed(&self, why: String) -> DialError {
        DialError {
            endpoint: self.url.to_string(),
            why,
        }
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let addresses = self
            .resolver
            .addresses(&self.url.host, self.url.port)
            .await?;
        let stream = TcpStream::connect(addresses.as_slice()).await?;
        stream.set_nodelay(true)?;
        if !self.url.tls {
            return Ok(Box::new(stream));
        }
        let files = self.tls.clone();
        let config = tokio::task::spawn_blocking(move || tls::client(&files)).await;
        let config = config?.map_err(io::Error::other)?;
        let name = self.server_name.as_ref().unwrap_or(&self.url.host).clone();
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await?;
        Ok(Box::new(stream))
    }
}
