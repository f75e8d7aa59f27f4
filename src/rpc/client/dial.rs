//! Connections on their way out. The name is looked up and the certificates are read every time, so
//! that both may change.

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

/// Looks up the names of hosts.
#[async_trait]
pub trait Names: Send + Sync + std::fmt::Debug + 'static {
    /// Where the host is now, in the order in which the addresses are tried.
    ///
    /// # Errors
    /// Nobody knows the name, or nobody could be asked.
    async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// What the system knows: its files, then DNS.
#[derive(Debug)]
pub(super) struct SystemNames;

#[async_trait]
impl Names for SystemNames {
    async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

/// Makes the connections of one endpoint.
#[derive(Debug, Clone)]
pub(super) struct Dialer {
    pub(super) url: PeerUrl,
    pub(super) names: Arc<dyn Names>,
    pub(super) tls: TlsFiles,
    pub(super) server_name: Option<String>,
    pub(super) timeout: Duration,
}

impl Dialer {
    /// A new connection, TLS included.
    pub(super) async fn dial(&self) -> Result<Box<dyn Stream>, DialError> {
        let connecting = tokio::time::timeout(self.timeout, self.connect());
        match connecting.await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(self.failed(error.to_string())),
            Err(_) => Err(self.failed(format!("nobody answered within {:?}", self.timeout))),
        }
    }

    /// Why there is no connection.
    pub(super) fn failed(&self, why: String) -> DialError {
        DialError {
            endpoint: self.url.to_string(),
            why,
        }
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let addresses = self.names.addresses(&self.url.host, self.url.port).await?;
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
