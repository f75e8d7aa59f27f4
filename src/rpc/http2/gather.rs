//! Gathers many small messages into one write.
//!
//! HTTP/2 flushes after every message. With many concurrent calls that is one system call, and one
//! wakeup of the peer, per message. Here a flush is deferred until the connection's task has
//! nothing left to do in its poll. If other tasks are about to send, they send first.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use futures_util::future::poll_fn;
use prost::bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Stream;

/// At most this many bytes are gathered.
const GATHER_MAX: usize = 64 * 1024;

/// Schedules the flushes of a connection's task. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(in crate::rpc) struct FlushScheduler(Arc<GatherShared>);

#[derive(Debug, Default)]
struct GatherShared {
    /// A flush is deferred.
    deferred: AtomicBool,
    /// The deferred flush may run.
    due: AtomicBool,
    /// How many tasks may be about to send.
    pending: AtomicUsize,
}

impl FlushScheduler {
    /// Runs the work of the connection. Its stream must only be used inside.
    pub(in crate::rpc) async fn run<F: Future>(&self, work: F) -> F::Output {
        let mut work = std::pin::pin!(work);
        poll_fn(|cx| {
            let shared = &*self.0;
            // A flush deferred in the previous poll is due now.
            shared.due.store(
                shared.deferred.swap(false, Ordering::Relaxed),
                Ordering::Relaxed,
            );
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            if !shared.deferred.load(Ordering::Relaxed) {
                return Poll::Pending;
            }
            if shared.pending.load(Ordering::Relaxed) > 1 {
                // Let the other tasks send first.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            shared.deferred.store(false, Ordering::Relaxed);
            shared.due.store(true, Ordering::Relaxed);
            work.as_mut().poll(cx)
        })
        .await
    }

    /// Marks a task as about to send, until the guard is dropped.
    pub(in crate::rpc) fn pending_send(&self) -> PendingSend {
        self.0.pending.fetch_add(1, Ordering::Relaxed);
        PendingSend(self.clone())
    }
}

/// A task that is about to send.
#[derive(Debug)]
pub(in crate::rpc) struct PendingSend(FlushScheduler);

impl Drop for PendingSend {
    fn drop(&mut self) {
        self.0.0.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that gathers its writes.
pub(in crate::rpc) struct GatheredStream {
    stream: Box<dyn Stream>,
    scheduler: FlushScheduler,
    bytes: BytesMut,
}

impl GatheredStream {
    pub(in crate::rpc) fn new(stream: Box<dyn Stream>, scheduler: FlushScheduler) -> Self {
        Self {
            stream,
            scheduler,
            bytes: BytesMut::new(),
        }
    }

    /// Writes the gathered bytes.
    fn write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.bytes.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.bytes))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.bytes.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for GatheredStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for GatheredStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.bytes.len() >= GATHER_MAX {
            ready!(self.write_out(cx))?;
        }
        self.bytes.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let scheduler = &*self.scheduler.0;
        if !self.bytes.is_empty() && !scheduler.due.load(Ordering::Relaxed) {
            scheduler.deferred.store(true, Ordering::Relaxed);
            return Poll::Pending;
        }
        ready!(self.write_out(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing follows that is worth waiting for.
        ready!(self.write_out(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.bytes.len() >= GATHER_MAX {
            ready!(self.write_out(cx))?;
        }
        slices
            .iter()
            .for_each(|slice| self.bytes.extend_from_slice(slice));
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use futures_util::FutureExt;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Records each write.
    #[derive(Debug, Clone, Default)]
    struct WriteLog(Arc<Mutex<Vec<Vec<u8>>>>);

    impl WriteLog {
        fn all(&self) -> Vec<Vec<u8>> {
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        }
    }

    impl AsyncRead for WriteLog {
        fn poll_read(
            self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            _buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for WriteLog {
        fn poll_write(
            self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.push(bytes.to_vec());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn gathered() -> (WriteLog, FlushScheduler, GatheredStream) {
        let (written, scheduler) = (WriteLog::default(), FlushScheduler::default());
        let stream = GatheredStream::new(Box::new(written.clone()), scheduler.clone());
        (written, scheduler, stream)
    }

    /// Writes, and starts a flush as HTTP/2 does, without waiting for it.
    async fn send(stream: &mut GatheredStream, bytes: &[u8]) {
        stream.write_all(bytes).await.unwrap();
        poll_fn(|cx| {
            let _later = Pin::new(&mut *stream).poll_flush(cx);
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test]
    async fn messages_of_one_poll_are_one_write() {
        let (written, scheduler, mut stream) = gathered();
        let work = async {
            send(&mut stream, b"a").await;
            send(&mut stream, b"b").await;
            assert_eq!(written.all().len(), 0);
            stream.flush().await.unwrap();
            assert_eq!(written.all(), [b"ab"]);
        };
        scheduler.run(work).await;
    }

    #[tokio::test]
    async fn flush_waits_for_pending_sends() {
        let (written, scheduler, mut stream) = gathered();
        let _others = (scheduler.pending_send(), scheduler.pending_send());
        let mut work = std::pin::pin!(scheduler.run(async { send_and_flush(&mut stream).await }));
        // The poll ends, and the task has woken itself.
        assert!(work.as_mut().now_or_never().is_none());
        assert_eq!(written.all().len(), 0);
        work.await;
        assert_eq!(written.all(), [b"a"]);
    }

    async fn send_and_flush(stream: &mut GatheredStream) {
        stream.write_all(b"a").await.unwrap();
        stream.flush().await.unwrap();
    }

    #[tokio::test]
    async fn full_buffer_and_shutdown_write_everything() {
        let (written, scheduler, mut stream) = gathered();
        let work = async {
            stream.write_all(&vec![1; GATHER_MAX]).await.unwrap();
            stream.write_all(b"more").await.unwrap();
            assert_eq!(written.all().concat().len(), GATHER_MAX);
            stream.shutdown().await.unwrap();
            assert_eq!(written.all().concat().len(), GATHER_MAX + 4);
        };
        scheduler.run(work).await;
    }
}
