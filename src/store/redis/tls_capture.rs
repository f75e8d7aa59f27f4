//! A stream that captures the TLS error that ended it.
//!
//! In TLS 1.3 a server verifies the client's certificate after the client has finished the
//! handshake. Its alert arrives with the first read, deep inside the redis client, which only
//! reports that the connection was lost.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The TLS error that ended the stream, if one did.
pub(super) type CapturedTlsError = Arc<OnceLock<rustls::Error>>;

/// A stream whose first TLS error is kept.
pub(super) struct TlsErrorCapture<S> {
    stream: S,
    captured: CapturedTlsError,
}

impl<S> TlsErrorCapture<S> {
    pub(super) fn new(stream: S) -> (Self, CapturedTlsError) {
        let captured = CapturedTlsError::default();
        let stream = Self {
            stream,
            captured: Arc::clone(&captured),
        };
        (stream, captured)
    }

    fn capture<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &result
            && let Some(error) = tls_error(error)
        {
            // Only the first error is the cause.
            let _already_captured = self.captured.set(error.clone());
        }
        result
    }
}

/// The TLS error inside an I/O error.
pub(super) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

impl<S: AsyncRead + Unpin> AsyncRead for TlsErrorCapture<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        self.capture(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TlsErrorCapture<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.capture(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.capture(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.capture(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
