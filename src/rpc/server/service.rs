//! The methods: the caller is checked, the request decoded, and the operation run. Only the work of a
//! request ends it before its deadline (connection.rs).

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};

use super::access::Gate;
use crate::clock::{Clock, Tick};
use crate::error::{Error, ErrorKind, Result, WriteOutcome};
use crate::id::Namespace;
use crate::op::{Call, expected};
use crate::proto::{Codec, v1};
use crate::rpc::http2::IncomingBody;
use crate::rpc::messages::{Method, WATCH, match_method};
use crate::rpc::{Peer, convert, status, traced};
use crate::trace;

type HttpRequest = http::Request<IncomingBody>;
type HttpResponse = http::Response<Body>;

type GrpcResult<T> = std::result::Result<Response<T>, Status>;

/// The service on one namespace.
#[derive(Debug, Clone)]
pub(super) struct RouteHandler {
    pub(super) operations: Arc<dyn Peer>,
    pub(super) namespace: Namespace,
    pub(super) gate: Arc<Gate>,
    pub(super) clock: Clock,
    /// Permits for requests; a request without one is refused at once.
    pub(super) permits: Arc<Semaphore>,
    /// Permits for streams of events.
    pub(super) streams: Arc<Semaphore>,
    pub(super) request_timeout: Duration,
    pub(super) max_batch: usize,
    pub(super) max_message_bytes: usize,
    /// Ends the streams.
    pub(super) stop: CancellationToken,
}

impl RouteHandler {
    /// Answers a request; an error is an answer, too. `method` is the last part of its path.
    pub(super) async fn serve(&self, method: &str, request: HttpRequest) -> HttpResponse {
        if method == WATCH {
            let mut grpc = self.grpc();
            return grpc.server_streaming(Watch(self.clone()), request).await;
        }
        let served = match_method!(method, M => self.unary::<M>(request).boxed());
        match served {
            Some(served) => served.await,
            None => Status::unimplemented("").into_http(),
        }
    }

    async fn unary<M: Method>(&self, request: HttpRequest) -> HttpResponse {
        let mut grpc = self.grpc();
        let unary = Unary::<M>(self.clone(), PhantomData);
        grpc.unary(unary, request).await
    }

    fn grpc<T, U>(&self) -> Grpc<Codec<T, U>>
    where
        T: prost::Message + Send + 'static,
        U: prost::Message + Default + Send + 'static,
    {
        let limit = Some(self.max_message_bytes);
        Grpc::new(Codec::default()).apply_max_message_size_config(limit, None)
    }

    async fn answer<M: Method>(&self, request: Request<M::Request>) -> GrpcResult<M::Response> {
        let deadline = self.deadline(request.metadata());
        let caller = traced::extract(request.metadata());
        let read = |request| {
            let operation = M::read(request, self.max_batch)?;
            let asked = M::asked(&operation);
            let call: Call = operation.into();
            let namespace = call.namespace().unwrap_or(&self.namespace).clone();
            Ok(((call, asked), namespace))
        };
        let ((call, asked), permit) = self.admit(M::NAME, request, &self.permits, read)?;
        // Clients read the pods every second, and no program's operation waits for it.
        let span = match &caller {
            None if matches!(call, Call::ReadPods(_)) => tracing::Span::none(),
            caller => trace::request(M::NAME, &self.namespace, caller.as_ref()),
        };
        let work = async {
            let reply = self.operations.call(&call, deadline).await?;
            expected::<M::Operation>(reply)
        };
        let done = trace::observed(span, work).await;
        drop(permit);
        let done = done.map_err(|error| status::from_error(&error))?;
        Ok(Response::new(M::response(done, &asked)))
    }

    async fn watch(
        &self,
        request: Request<v1::WatchRoutingStateRequest>,
    ) -> GrpcResult<BoxStream<'static, std::result::Result<v1::WatchRoutingStateResponse, Status>>>
    {
        let deadline = self.clock.deadline(self.request_timeout);
        let read = |asked: v1::WatchRoutingStateRequest| {
            let service = convert::service(&asked.namespace, &asked.service_name)?;
            let namespace = service.namespace.clone();
            Ok((service, namespace))
        };
        let (service, permit) = self.admit(WATCH, request, &self.streams, read)?;
        let changes = self.operations.watch(&service, deadline).await;
        let changes = changes.map_err(|error| status::from_error(&error))?;
        let stands = futures_util::stream::iter([Vec::new()]);
        let stop = self.stop.clone().cancelled_owned();
        let published = stands.chain(changes).map(move |changes| {
            // A stream holds its permit until it ends.
            let _held = &permit;
            Ok(convert::from_changes(changes))
        });
        Ok(Response::new(published.take_until(stop).boxed()))
    }

    /// Checks everything that can be checked without the store.
    fn admit<Q, K>(
        &self,
        method: &'static str,
        request: Request<Q>,
        permits: &Arc<Semaphore>,
        read: impl FnOnce(Q) -> Result<(K, Namespace)>,
    ) -> std::result::Result<(K, OwnedSemaphorePermit), Status> {
        let caller = self
            .gate
            .identify(request.metadata(), request.extensions())?;
        let checked = || {
            self.gate.check_rate(&caller)?;
            let (asked, namespace) = read(request.into_inner())?;
            self.gate.authorize(&caller, method, &namespace)?;
            self.serves(&namespace)?;
            Ok((asked, self.permit(permits)?))
        };
        // What is refused here has changed nothing.
        checked()
            .map_err(|error: Error| status::from_error(&error.with_outcome(WriteOutcome::NotSent)))
    }

    fn serves(&self, namespace: &Namespace) -> Result<()> {
        if *namespace == self.namespace {
            return Ok(());
        }
        let text = format!(
            "this server serves the namespace {:?}, not {:?}",
            self.namespace.as_str(),
            namespace.as_str()
        );
        Err(Error::new(ErrorKind::NamespaceUnreachable, text).with("namespace", namespace))
    }

    fn permit(&self, permits: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
        if self.stop.is_cancelled() {
            let text = "the server is stopping";
            return Err(Error::new(ErrorKind::PeerUnavailable, text));
        }
        let permit = Arc::clone(permits).try_acquire_owned();
        permit.map_err(|_| Error::new(ErrorKind::Overloaded, "too many requests are under way"))
    }

    /// The caller's own deadline, or the server's if that is earlier.
    fn deadline(&self, metadata: &MetadataMap) -> Tick {
        let given = metadata.get("grpc-timeout");
        let given = given
            .and_then(|value| value.to_str().ok())
            .and_then(timeout);
        let timeout = given.map_or(self.request_timeout, |given| {
            given.min(self.request_timeout)
        });
        self.clock.deadline(timeout)
    }
}

/// Reads `grpc-timeout`: up to eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// One method, as tonic calls it.
struct Unary<M>(RouteHandler, PhantomData<M>);

impl<M: Method> UnaryService<M::Request> for Unary<M> {
    type Response = M::Response;
    type Future = BoxFuture<'static, GrpcResult<M::Response>>;

    fn call(&mut self, request: Request<M::Request>) -> Self::Future {
        let service = self.0.clone();
        async move { service.answer::<M>(request).await }.boxed()
    }
}

/// The stream of events, as tonic calls it.
struct Watch(RouteHandler);

impl ServerStreamingService<v1::WatchRoutingStateRequest> for Watch {
    type Response = v1::WatchRoutingStateResponse;
    type ResponseStream = BoxStream<'static, std::result::Result<Self::Response, Status>>;
    type Future = BoxFuture<'static, GrpcResult<Self::ResponseStream>>;

    fn call(&mut self, request: Request<v1::WatchRoutingStateRequest>) -> Self::Future {
        let service = self.0.clone();
        async move { service.watch(request).await }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_read_or_ignored() {
        for (text, read) in [
            ("1S", Some(Duration::from_secs(1))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("", None),
            ("S", None),
            ("1", None),
            ("-1S", None),
            ("123456789S", None),
            ("1é", None),
        ] {
            assert_eq!(timeout(text), read, "{text:?}");
        }
    }
}
