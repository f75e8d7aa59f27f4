//! Every operation as one request and its answer.

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::uri::PathAndQuery;
use tonic::Request;
use tonic::client::Grpc;

use super::{Condition, PeerClient};
use crate::clock::Tick;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{PodIndex, ServiceId, Uid};
use crate::op::{
    BatchGet, Call, Effect, Inspection, LinksRead, Operation, Pods, PodsReading, ReadPods, Reply,
};
use crate::proto::{Codec, v1};
use crate::route::state::WorkloadState;
use crate::rpc::messages::{self, Method, SERVICE_NAME, WATCH, match_carried};
use crate::rpc::{ChangeStream, Peer, convert, only_within};

/// Parts of one batch that are in flight at once.
const PARTS_AT_ONCE: usize = 4;
/// Well below the 64 KiB that a server takes unless it is configured otherwise.
const PART_BYTES: usize = 48 * 1024;
/// What a server with the largest batch and long names may answer.
const ANSWER_MAX: usize = 64 << 20;

impl PeerClient {
    /// Sends an operation as the request of a method.
    ///
    /// # Errors
    /// What the peer failed with, or why it was not reached; `Timeout`; `Closed`.
    async fn send<M: Method>(
        &self,
        operation: &M::Operation,
        deadline: Tick,
    ) -> Result<messages::MethodReply<M>> {
        let path = PathAndQuery::from_static(M::PATH);
        let ask = |channel, request: Request<M::Request>| {
            let path = path.clone();
            async move {
                let mut grpc = Grpc::new(channel).max_decoding_message_size(ANSWER_MAX);
                grpc.unary(request, path, Codec::default()).await
            }
        };
        self.shared.start().await?;
        let effect = M::Operation::EFFECT;
        let call = self
            .shared
            .call(M::NAME, effect, deadline, M::request(operation), ask);
        M::reply(call.await?, &M::asked(operation))
    }

    /// A batch, in parts that a server takes.
    async fn get_all(
        &self,
        batch: &BatchGet,
        deadline: Tick,
    ) -> Result<LinksRead<Vec<Option<PodIndex>>>> {
        let part = |uids: &[Uid]| BatchGet {
            service: batch.service.clone(),
            uids: uids.into(),
        };
        let parts = self.parts(&batch.uids).into_iter();
        let asked = parts.map(|uids| async move {
            self.send::<messages::BatchGetLinkedPod>(&part(uids), deadline)
                .await
        });
        let asked: Vec<_> = asked.collect();
        let answers = stream::iter(asked).buffered(PARTS_AT_ONCE);
        let answers: Vec<LinksRead<_>> = answers.try_collect().await?;
        let links = answers.into_iter().flat_map(|answer| answer.links);
        Ok(links.collect::<Vec<_>>().into())
    }

    /// As many users at once as fit into one request.
    fn parts<'a>(&self, mut uids: &'a [Uid]) -> Vec<&'a [Uid]> {
        let mut parts = Vec::new();
        while !uids.is_empty() {
            let mut bytes = 0;
            let fit = uids.iter().take_while(|uid| {
                bytes += uid.as_str().len() + 4;
                bytes <= PART_BYTES
            });
            let length = fit.take(self.shared.config.max_batch).count().max(1);
            let (part, rest) = uids.split_at(length);
            parts.push(part);
            uids = rest;
        }
        parts
    }

    async fn pods(&self, service: &ServiceId, deadline: Tick) -> Result<Box<Pods>> {
        let read = ReadPods {
            service: service.clone(),
            last: PodsReading::default(),
        };
        self.send::<messages::GetServiceState>(&read, deadline)
            .await
    }
}

#[async_trait]
impl Peer for PeerClient {
    async fn call(&self, call: &Call, deadline: Tick) -> Result<Reply> {
        match call {
            Call::BatchGet(batch) => self.get_all(batch, deadline).await.map(Reply::BatchGet),
            // The wire has no field for the certainty of a pod's death.
            Call::Inspect(inspect) => {
                let pods = self.pods(&inspect.service, deadline).await?;
                let found = Inspection {
                    pods: *pods,
                    ..Inspection::default()
                };
                Ok(Reply::Inspect(Box::new(found)))
            }
            // The wire has no workload: it is computed from the pods.
            Call::GetWorkload(get) => {
                let pods = self.pods(&get.service, deadline).await?;
                let workload = WorkloadState::of(&pods.records, pods.now_ms);
                Ok(Reply::GetWorkload(Some(workload)))
            }
            Call::Ping(_) => {
                if self.check_health(deadline).await? {
                    return Ok(Reply::Ping(()));
                }
                let text = "the peer says that it cannot answer";
                Err(Error::new(ErrorKind::PeerUnavailable, text))
            }
            Call::SetTag(set) => {
                let text = format!("the tags of {} can only be read from here", set.namespace);
                let error = Error::new(ErrorKind::NamespaceUnreachable, text);
                Err(error.with("namespace", &set.namespace))
            }
            _ => {
                let reply = match_carried!(call, operation, M => {
                    self.send::<M>(operation, deadline).await
                });
                reply.unwrap_or_else(|| Err(only_within(call.name())))
            }
        }
    }

    async fn watch(&self, service: &ServiceId, deadline: Tick) -> Result<ChangeStream> {
        let message = v1::WatchRoutingStateRequest {
            namespace: service.namespace.to_string(),
            service_name: service.service.to_string(),
        };
        let path = PathAndQuery::try_from(format!("/{SERVICE_NAME}/{WATCH}"));
        let path = path.unwrap_or(PathAndQuery::from_static("/"));
        let ask = |channel, mut request: Request<v1::WatchRoutingStateRequest>| {
            let path = path.clone();
            async move {
                // The deadline is for the beginning of the stream, which has no end of its own.
                request.metadata_mut().remove("grpc-timeout");
                let mut grpc = Grpc::new(channel).max_decoding_message_size(ANSWER_MAX);
                grpc.server_streaming(request, path, Codec::default()).await
            }
        };
        self.shared.start().await?;
        let published: tonic::Streaming<v1::WatchRoutingStateResponse> = self
            .shared
            .call(WATCH, Effect::Read, deadline, message, ask)
            .await?;
        let changes =
            published.map(|event| event.ok().and_then(|event| convert::changes(event).ok()));
        let changes = changes.take_while(|event| std::future::ready(event.is_some()));
        Ok(changes.filter_map(std::future::ready).boxed())
    }

    fn conditions(&self) -> Vec<(String, Condition)> {
        Self::conditions(self)
    }
}
