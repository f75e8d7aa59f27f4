//! The methods: who calls is checked, the request read, and the operation run. Nobody ends it before
//! its deadline but its work (connection.rs).

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::access::Gate;
use crate::clock::{Clock, Tick};
use crate::error::{Error, ErrorKind, Result, WriteOutcome};
use crate::id::Namespace;
use crate::proto::v1;
use crate::proto::v1::route_service_server::RouteService;
use crate::rpc::convert::{self, Targets};
use crate::rpc::{LinkOperations, Source, status, traced};
use crate::trace;

/// Every method, as the authorization table names it.
pub const METHODS: [&str; 14] = [
    "ComputeLinkedPod",
    "GetLinkedPod",
    "GetLinkedPodNotCache",
    "GetLinkedPodInCacheOrIfPersist",
    "BatchGetLinkedPod",
    "GetLinkService",
    "SetLinkedPodIfAbsent",
    "SetLinkedPod",
    "TrySetLinkedPod",
    "RemoveLinkedPod",
    "RemoveLinkedPodWithId",
    "GetServiceState",
    "GetServiceNameByTag",
    "WatchRoutingState",
];

/// The method that nobody calls for its own sake.
const POLLED: &str = "GetServiceState";

type Answer<T> = std::result::Result<Response<T>, Status>;

/// The service on one namespace.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) operations: Arc<dyn LinkOperations>,
    pub(super) namespace: Namespace,
    pub(super) gate: Arc<Gate>,
    pub(super) clock: Clock,
    /// Places for requests; what finds none is refused at once.
    pub(super) places: Arc<Semaphore>,
    /// Places for streams of events.
    pub(super) streams: Arc<Semaphore>,
    pub(super) request_timeout: Duration,
    pub(super) max_batch: usize,
    /// Ends the streams.
    pub(super) stop: CancellationToken,
}

impl Service {
    /// Answers a request.
    async fn answer<Q, K, W, T, A>(
        &self,
        method: &'static str,
        request: Request<Q>,
        read: impl FnOnce(Q) -> Result<K>,
        work: impl FnOnce(Arc<dyn LinkOperations>, K, Tick) -> W,
        write: impl FnOnce(T) -> A,
    ) -> Answer<A>
    where
        K: Targets,
        W: Future<Output = Result<T>> + Send,
    {
        let deadline = self.deadline(request.metadata());
        let caller = traced::extract(request.metadata());
        let (asked, place) = self.let_in(method, request, &self.places, read)?;
        // Clients read the pods every second, and nobody's operation waits for it.
        let span = match &caller {
            None if method == POLLED => tracing::Span::none(),
            caller => trace::request(method, asked.namespace(), caller.as_ref()),
        };
        let work = work(Arc::clone(&self.operations), asked, deadline);
        let done = trace::observed(span, work).await;
        drop(place);
        let done = done.map_err(|error| status::from_error(&error))?;
        Ok(Response::new(write(done)))
    }

    /// Checks everything that can be checked without the store.
    fn let_in<Q, K: Targets>(
        &self,
        method: &'static str,
        request: Request<Q>,
        places: &Arc<Semaphore>,
        read: impl FnOnce(Q) -> Result<K>,
    ) -> std::result::Result<(K, OwnedSemaphorePermit), Status> {
        let caller = self
            .gate
            .identify(request.metadata(), request.extensions())?;
        let checked = || {
            self.gate.check_rate(&caller)?;
            let asked = read(request.into_inner())?;
            let namespace = asked.namespace();
            self.gate.authorize(&caller, method, namespace)?;
            self.serves(namespace)?;
            Ok((asked, self.place(places)?))
        };
        // Whatever is refused here has changed nothing.
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

    fn place(&self, places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
        if self.stop.is_cancelled() {
            let text = "the server is stopping";
            return Err(Error::new(ErrorKind::PeerUnavailable, text));
        }
        let place = Arc::clone(places).try_acquire_owned();
        place.map_err(|_| Error::new(ErrorKind::Overloaded, "too many requests are under way"))
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

#[tonic::async_trait]
impl RouteService for Service {
    type WatchRoutingStateStream =
        BoxStream<'static, std::result::Result<v1::WatchRoutingStateResponse, Status>>;

    async fn compute_linked_pod(
        &self,
        request: Request<v1::ComputeLinkedPodRequest>,
    ) -> Answer<v1::ComputeLinkedPodResponse> {
        self.answer(
            "ComputeLinkedPod",
            request,
            |asked| convert::link(asked.user),
            |peer, link, deadline| async move { peer.compute(&link, deadline).await },
            |found| v1::ComputeLinkedPodResponse {
                link: Some(convert::from_believed(found)),
            },
        )
        .await
    }

    async fn get_linked_pod(
        &self,
        request: Request<v1::GetLinkedPodRequest>,
    ) -> Answer<v1::GetLinkedPodResponse> {
        self.answer(
            "GetLinkedPod",
            request,
            |asked| convert::link(asked.user),
            |peer, link, deadline| async move {
                peer.get(&link, Source::CacheOrStore, deadline).await
            },
            |found| v1::GetLinkedPodResponse {
                link: found.map(convert::from_believed),
            },
        )
        .await
    }

    async fn get_linked_pod_not_cache(
        &self,
        request: Request<v1::GetLinkedPodNotCacheRequest>,
    ) -> Answer<v1::GetLinkedPodNotCacheResponse> {
        self.answer(
            "GetLinkedPodNotCache",
            request,
            |asked| convert::link(asked.user),
            |peer, link, deadline| async move { peer.get(&link, Source::Store, deadline).await },
            |found| v1::GetLinkedPodNotCacheResponse {
                link: found.map(convert::from_believed),
            },
        )
        .await
    }

    async fn get_linked_pod_in_cache_or_if_persist(
        &self,
        request: Request<v1::GetLinkedPodInCacheOrIfPersistRequest>,
    ) -> Answer<v1::GetLinkedPodInCacheOrIfPersistResponse> {
        self.answer(
            "GetLinkedPodInCacheOrIfPersist",
            request,
            |asked| convert::link(asked.user),
            |peer, link, deadline| async move {
                peer.get(&link, Source::CacheOrPersistent, deadline).await
            },
            |found| v1::GetLinkedPodInCacheOrIfPersistResponse {
                link: found.map(convert::from_believed),
            },
        )
        .await
    }

    async fn batch_get_linked_pod(
        &self,
        request: Request<v1::BatchGetLinkedPodRequest>,
    ) -> Answer<v1::BatchGetLinkedPodResponse> {
        let most = self.max_batch;
        self.answer(
            "BatchGetLinkedPod",
            request,
            |asked| {
                let service = convert::service(&asked.namespace, &asked.service_name)?;
                Ok((service, convert::uids(&asked.uids, most)?))
            },
            |peer, (service, uids), deadline| async move {
                peer.batch_get(&service, uids, deadline).await
            },
            |found| v1::BatchGetLinkedPodResponse {
                pods: convert::from_users(found),
            },
        )
        .await
    }

    async fn get_link_service(
        &self,
        request: Request<v1::GetLinkServiceRequest>,
    ) -> Answer<v1::GetLinkServiceResponse> {
        self.answer(
            "GetLinkService",
            request,
            |asked| convert::user_of(&asked.namespace, &asked.uid),
            |peer, (namespace, uid), deadline| async move {
                peer.services(&namespace, &uid, deadline).await
            },
            |found| v1::GetLinkServiceResponse {
                services: convert::from_services(found),
            },
        )
        .await
    }

    async fn set_linked_pod_if_absent(
        &self,
        request: Request<v1::SetLinkedPodIfAbsentRequest>,
    ) -> Answer<v1::SetLinkedPodIfAbsentResponse> {
        self.answer(
            "SetLinkedPodIfAbsent",
            request,
            |asked| {
                let link = convert::link(asked.user)?;
                Ok((link, convert::required_pod(asked.pod_index)?))
            },
            |peer, (link, pod), deadline| async move {
                peer.set_if_absent(&link, pod, deadline).await
            },
            |found| v1::SetLinkedPodIfAbsentResponse {
                link: Some(convert::from_believed(found)),
            },
        )
        .await
    }

    async fn set_linked_pod(
        &self,
        request: Request<v1::SetLinkedPodRequest>,
    ) -> Answer<v1::SetLinkedPodResponse> {
        self.answer(
            "SetLinkedPod",
            request,
            |asked| {
                let (link, pod) = (convert::link(asked.user)?, asked.pod_index);
                let persist = convert::persist(asked.ttl_seconds)?;
                Ok((link, convert::required_pod(pod)?, persist))
            },
            |peer, (link, pod, persist), deadline| async move {
                peer.set(&link, pod, persist, deadline).await
            },
            |previous| v1::SetLinkedPodResponse {
                previous_pod_index: previous.map(crate::id::PodIndex::get),
            },
        )
        .await
    }

    async fn try_set_linked_pod(
        &self,
        request: Request<v1::TrySetLinkedPodRequest>,
    ) -> Answer<v1::TrySetLinkedPodResponse> {
        self.answer(
            "TrySetLinkedPod",
            request,
            |asked| {
                let (link, pod) = (convert::link(asked.user)?, asked.pod_index);
                let persist = convert::persist(asked.ttl_seconds)?;
                Ok((link, convert::required_pod(pod)?, persist))
            },
            |peer, (link, pod, persist), deadline| async move {
                peer.try_set(&link, pod, persist, deadline).await
            },
            |(won, owner)| v1::TrySetLinkedPodResponse {
                won,
                owner_pod_index: owner.get(),
            },
        )
        .await
    }

    async fn remove_linked_pod(
        &self,
        request: Request<v1::RemoveLinkedPodRequest>,
    ) -> Answer<v1::RemoveLinkedPodResponse> {
        self.answer(
            "RemoveLinkedPod",
            request,
            |asked| {
                let link = convert::link(asked.user)?;
                Ok((link, convert::removal(asked.grace_seconds)?))
            },
            |peer, (link, removal), deadline| async move {
                peer.remove(&link, None, removal, deadline).await
            },
            |removed| v1::RemoveLinkedPodResponse { removed },
        )
        .await
    }

    async fn remove_linked_pod_with_id(
        &self,
        request: Request<v1::RemoveLinkedPodWithIdRequest>,
    ) -> Answer<v1::RemoveLinkedPodWithIdResponse> {
        self.answer(
            "RemoveLinkedPodWithId",
            request,
            |asked| {
                let (link, pod) = (convert::link(asked.user)?, asked.pod_index);
                let removal = convert::removal(asked.grace_seconds)?;
                Ok((link, convert::required_pod(pod)?, removal))
            },
            |peer, (link, pod, removal), deadline| async move {
                peer.remove(&link, Some(pod), removal, deadline).await
            },
            |removed| v1::RemoveLinkedPodWithIdResponse { removed },
        )
        .await
    }

    async fn get_service_state(
        &self,
        request: Request<v1::GetServiceStateRequest>,
    ) -> Answer<v1::GetServiceStateResponse> {
        self.answer(
            "GetServiceState",
            request,
            |asked| convert::service(&asked.namespace, &asked.service_name),
            |peer, service, deadline| async move { peer.pods(&service, deadline).await },
            |found| v1::GetServiceStateResponse {
                pods: found.into_iter().map(convert::from_record).collect(),
            },
        )
        .await
    }

    async fn get_service_name_by_tag(
        &self,
        request: Request<v1::GetServiceNameByTagRequest>,
    ) -> Answer<v1::GetServiceNameByTagResponse> {
        self.answer(
            "GetServiceNameByTag",
            request,
            |asked| convert::tag_of(&asked.namespace, &asked.tag),
            |peer, (namespace, tag), deadline| async move {
                peer.service_by_tag(&namespace, &tag, deadline).await
            },
            |found| v1::GetServiceNameByTagResponse {
                service_name: found.map(|name| name.to_string()),
            },
        )
        .await
    }

    async fn watch_routing_state(
        &self,
        request: Request<v1::WatchRoutingStateRequest>,
    ) -> Answer<Self::WatchRoutingStateStream> {
        let deadline = self.clock.deadline(self.request_timeout);
        let read = |asked: v1::WatchRoutingStateRequest| {
            convert::service(&asked.namespace, &asked.service_name)
        };
        let (service, place) = self.let_in("WatchRoutingState", request, &self.streams, read)?;
        let changes = self.operations.watch(&service, deadline).await;
        let changes = changes.map_err(|error| status::from_error(&error))?;
        let stands = futures_util::stream::iter([Vec::new()]);
        let stop = self.stop.clone().cancelled_owned();
        let told = stands.chain(changes).map(move |changes| {
            // A stream holds its place until it ends.
            let _held = &place;
            Ok(convert::from_changes(changes))
        });
        Ok(Response::new(told.take_until(stop).boxed()))
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
