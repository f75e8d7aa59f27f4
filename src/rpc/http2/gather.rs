//! Many small messages in one write.
//!
//! HTTP/2 flushes whenever it has sent what there is, which with many calls at once means one system
//! call for each message, and one awakening of the other end. Here a flush waits until the
//! connection's task has nothing left to do in its turn; and where others are about to send,
//! until they have had theirs.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use futures_util::future::poll_fn;
use prost::bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Stream;

/// As much is gathered at the most.
const MOST: usize = 64 * 1024;

/// The turns of a connection's task. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(in crate::rpc) struct Turns(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// A flush waits.
    waiting: AtomicBool,
    /// The flush that waits may be done.
    due: AtomicBool,
    /// How many may be about to send.
    busy: AtomicUsize,
}

impl Turns {
    /// Does the work of the connection. Every use of its stream has to happen inside.
    pub(in crate::rpc) async fn of<F: Future>(&self, work: F) -> F::Output {
        let mut work = std::pin::pin!(work);
        poll_fn(|cx| {
            let shared = &*self.0;
            // What waited since the last turn has waited long enough.
            shared.due.store(
                shared.waiting.swap(false, Ordering::Relaxed),
                Ordering::Relaxed,
            );
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            if !shared.waiting.load(Ordering::Relaxed) {
                return Poll::Pending;
            }
            if shared.busy.load(Ordering::Relaxed) > 1 {
                // Whoever is about to send comes first.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            shared.waiting.store(false, Ordering::Relaxed);
            shared.due.store(true, Ordering::Relaxed);
            work.as_mut().poll(cx)
        })
        .await
    }

    /// Somebody is about to send, until the answer is dropped.
    pub(in crate::rpc) fn busy(&self) -> Busy {
        self.0.busy.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }
}

/// Somebody who is about to send.
#[derive(Debug)]
pub(in crate::rpc) struct Busy(Turns);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream whose writes are gathered.
pub(in crate::rpc) struct Gathered {
    stream: Box<dyn Stream>,
    turns: Turns,
    bytes: BytesMut,
}

impl Gathered {
    pub(in crate::rpc) fn new(stream: Box<dyn Stream>, turns: Turns) -> Self {
        Self {
            stream,
            turns,
            bytes: BytesMut::new(),
        }
    }

    /// Writes what was gathered.
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

impl AsyncRead for Gathered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.bytes.len() >= MOST {
            ready!(self.write_out(cx))?;
        }
        self.bytes.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let turns = &*self.turns.0;
        if !self.bytes.is_empty() && !turns.due.load(Ordering::Relaxed) {
            turns.waiting.store(true, Ordering::Relaxed);
            return Poll::Pending;
        }
        ready!(self.write_out(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing comes after this that could be worth waiting for.
        ready!(self.write_out(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.bytes.len() >= MOST {
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

    /// Remembers each write.
    #[derive(Debug, Clone, Default)]
    struct Written(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Written {
        fn all(&self) -> Vec<Vec<u8>> {
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        }
    }

    impl AsyncRead for Written {
        fn poll_read(
            self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            _buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Written {
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

    fn gathered() -> (Written, Turns, Gathered) {
        let (written, turns) = (Written::default(), Turns::default());
        let stream = Gathered::new(Box::new(written.clone()), turns.clone());
        (written, turns, stream)
    }

    /// Writes, and flushes as HTTP/2 does: without waiting for it.
    async fn say(stream: &mut Gathered, bytes: &[u8]) {
        stream.write_all(bytes).await.unwrap();
        poll_fn(|cx| {
            let _later = Pin::new(&mut *stream).poll_flush(cx);
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test]
    async fn what_is_said_in_one_turn_is_written_at_once() {
        let (written, turns, mut stream) = gathered();
        let work = async {
            say(&mut stream, b"a").await;
            say(&mut stream, b"b").await;
            assert_eq!(written.all().len(), 0);
            stream.flush().await.unwrap();
            assert_eq!(written.all(), [b"ab"]);
        };
        turns.of(work).await;
    }

    #[tokio::test]
    async fn whoever_is_about_to_send_comes_first() {
        let (written, turns, mut stream) = gathered();
        let _others = (turns.busy(), turns.busy());
        let mut work = std::pin::pin!(turns.of(async { say_and_flush(&mut stream).await }));
        // The turn ends, and is taken up again by whoever it woke.
        assert!(work.as_mut().now_or_never().is_none());
        assert_eq!(written.all().len(), 0);
        work.await;
        assert_eq!(written.all(), [b"a"]);
    }

    async fn say_and_flush(stream: &mut Gathered) {
        stream.write_all(b"a").await.unwrap();
        stream.flush().await.unwrap();
    }

    #[tokio::test]
    async fn nothing_is_kept_when_the_stream_ends_or_much_has_been_said() {
        let (written, turns, mut stream) = gathered();
        let work = async {
            stream.write_all(&vec![1; MOST]).await.unwrap();
            stream.write_all(b"more").await.unwrap();
            assert_eq!(written.all().concat().len(), MOST);
            stream.shutdown().await.unwrap();
            assert_eq!(written.all().concat().len(), MOST + 4);
        };
        turns.of(work).await;
    }
}
