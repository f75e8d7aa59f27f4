//! Connections on their way out. The name is looked up and the certificates are read every time, so
//! that both may change.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower_service::Service;

use crate::config::{PeerUrl, TlsFiles};
use crate::rpc::status::DialError;
use crate::rpc::tls;

/// Bytes in both directions, encrypted or not.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Makes the connections of one endpoint.
#[derive(Debug, Clone)]
pub(super) struct Dialer {
    pub(super) url: PeerUrl,
    pub(super) tls: TlsFiles,
    pub(super) server_name: Option<String>,
    pub(super) timeout: Duration,
}

impl Dialer {
    async fn dial(self) -> Result<TokioIo<Box<dyn Stream>>, DialError> {
        let failed = |why: String| DialError {
            endpoint: self.url.to_string(),
            why,
        };
        let connecting = tokio::time::timeout(self.timeout, self.connect());
        match connecting.await {
            Ok(Ok(stream)) => Ok(TokioIo::new(stream)),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("nobody answered within {:?}", self.timeout))),
        }
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect((self.url.host.as_str(), self.url.port)).await?;
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

impl Service<Uri> for Dialer {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        Box::pin(self.clone().dial())
    }
}
