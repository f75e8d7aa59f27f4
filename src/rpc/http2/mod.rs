//! What both ends of an HTTP/2 connection need.

mod gather;

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong, RecvStream};
use http_body::Frame;
use prost::bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

pub(super) use gather::{FlushScheduler, GatheredStream, PendingSend};

/// A byte stream in both directions, encrypted or not.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Pings the peer every `every`; returns once a ping is not answered `within` that time. It never
/// returns if the connection has ended: the connection itself reports that.
pub(super) async fn ping_timeout(pings: Option<PingPong>, every: Duration, within: Duration) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(every).await;
        match tokio::time::timeout(within, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// The body of a request or response that is being received.
#[derive(Debug)]
pub(super) struct IncomingBody {
    body: RecvStream,
    ended: bool,
}

impl IncomingBody {
    pub(super) fn new(body: RecvStream) -> Self {
        let ended = body.is_end_stream();
        Self { body, ended }
    }
}

impl http_body::Body for IncomingBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(data) = ready!(self.body.poll_data(cx)) {
            let data = data?;
            self.body.flow_control().release_capacity(data.len())?;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers = ready!(self.body.poll_trailers(cx))?;
        self.ended = true;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }
}
