//! The shared truth on one Redis or Valkey server.

mod channel;
mod connection;
mod dial;
mod encode;
mod failure;
mod links;
mod many;
mod node;
mod node_state;
mod pods;
mod server_id;
mod stats;
mod supervisor;
mod tags;
mod tls;
mod tls_capture;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use redis::{Cmd, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};

use super::script::Form;
use super::{Changes, ConnectionReport, Store, key};
use crate::clock::{Clock, Tick};
use crate::config::ServerAddress;
use crate::error::{Error, ErrorKind, Result, WriteOutcome};
use crate::id::ServiceId;
use crate::op::{Call, CallName, Effect, Get, Keys, Reply, SetIfAbsent};

use channel::Channel;
use connection::{Connection, ConnectionEnd};
use dial::Dialer;
use encode::{decode, encode};
use failure::{at_key, refusal, with_outcome};
use node::{Node, closed};
pub use stats::Stats;

/// A store on one server.
pub struct RedisStore {
    node: Node,
    channel: Channel,
}

/// One request to the server, already encoded.
#[derive(Clone, Copy)]
enum StoreRequest<'a> {
    One(&'a Cmd),
    Many(&'a Pipeline, usize),
}

impl StoreRequest<'_> {
    async fn send(self, mut connection: Connection) -> RedisResult<Value> {
        match self {
            Self::One(command) => connection.connection.send_packed_command(command).await,
            Self::Many(commands, count) => connection
                .connection
                .send_packed_commands(commands, 0, count)
                .await
                .map(Value::Array),
        }
    }
}

impl RedisStore {
    /// A store at this address. No I/O: the connection is made by the first call, and is served by
    /// the runtime of that call, which has to be driven for as long as the store is used. When it
    /// ends, the next call makes a new connection on its own runtime.
    ///
    /// # Errors
    /// `InvalidParameter` if TLS could never check the host's name.
    pub fn new(address: &ServerAddress, clock: Clock) -> Result<Self> {
        Ok(Self {
            node: Node::new(Dialer::new(address)?, clock.clone()),
            channel: Channel::new(Dialer::new(address)?, clock),
        })
    }

    /// What happened to the connection so far.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        self.node.stats()
    }

    /// Sends a request, waits for the reply, and judges it; also returns which server replied.
    async fn request(
        &self,
        request: StoreRequest<'_>,
        effect: Effect,
        deadline: Tick,
    ) -> Result<(Value, u64)> {
        let (reply, connection) = self.answer(request, effect, deadline).await?;
        Ok((judged(reply, &connection, effect)?, connection.server))
    }

    /// Sends a request and waits for the reply, even if that is an error. A read whose connection
    /// breaks is sent again on the next one; a write is not, because it may have happened.
    async fn answer(
        &self,
        request: StoreRequest<'_>,
        effect: Effect,
        deadline: Tick,
    ) -> Result<(Value, Connection)> {
        loop {
            let connection = self.node.connection(deadline).await;
            let connection =
                connection.map_err(|error| with_outcome(error, effect, WriteOutcome::NotSent))?;
            let left = deadline.since(self.node.clock().now());
            if left.is_zero() {
                return Err(with_outcome(
                    deadline_passed(),
                    effect,
                    WriteOutcome::NotSent,
                ));
            }
            let error = match tokio::time::timeout(left, request.send(connection.clone())).await {
                Ok(Ok(reply)) => {
                    connection.answered();
                    return Ok((reply, connection));
                }
                Ok(Err(_)) if self.node.is_closed() => closed(),
                Ok(Err(error)) => {
                    connection.retire(ConnectionEnd::Lost);
                    if effect == Effect::Read {
                        continue;
                    }
                    lost(error)
                }
                Err(_) => {
                    self.stats().count_timeout();
                    connection.unanswered(left);
                    unanswered(left)
                }
            };
            return Err(with_outcome(error, effect, WriteOutcome::Unknown));
        }
    }

    /// Sends a call, with its script's hash, and once more with the source if the server does not
    /// know the script; also returns which server replied.
    async fn send(&self, call: &Call, deadline: Tick) -> Result<(Value, u64)> {
        let effect = call.effect();
        let command = encode(call, Form::Hash)?;
        let reply = self.request(StoreRequest::One(&command), effect, deadline);
        let (reply, server) = reply.await?;
        if !is_unknown_script(&reply) {
            return Ok((reply, server));
        }
        self.stats().count_script_load();
        let command = encode(call, Form::Source)?;
        let reply = self.request(StoreRequest::One(&command), effect, deadline);
        let (reply, server) = reply.await?;
        if !is_unknown_script(&reply) {
            return Ok((reply, server));
        }
        Err(script_still_unknown())
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn call(&self, call: &Call, deadline: Tick) -> Result<Reply> {
        let replied = match call {
            Call::BatchGet(batch) => self.get_all(batch, deadline).await.map(Reply::BatchGet),
            _ => {
                let reply = self.send(call, deadline).await;
                reply.and_then(|(reply, server)| decode(call, reply, server))
            }
        };
        replied.map_err(|error| in_call(error, call))
    }

    async fn call_many(&self, calls: &[Call], deadline: Tick) -> Vec<Result<Reply>> {
        if calls.iter().any(|call| matches!(call, Call::BatchGet(_))) {
            return join_all(calls.iter().map(|call| self.call(call, deadline))).await;
        }
        self.send_all(calls, deadline).await
    }

    async fn subscribe(&self, service: &ServiceId, deadline: Tick) -> Result<Changes> {
        let name = key::state(service);
        let changes = self.channel.subscribe(&name, deadline).await;
        changes.map_err(|error| error.in_call(CallName::Subscribe))
    }

    async fn close(&self) {
        self.channel.close().await;
        self.node.close().await;
    }

    fn report(&self) -> ConnectionReport {
        let stats = self.stats();
        ConnectionReport {
            up: self.node.is_up(),
            connects: stats.connects(),
            failed_dials: stats.failed_dials(),
            disconnects: stats.disconnects(),
            unanswered: stats.timeouts(),
            script_loads: stats.script_loads(),
        }
    }
}

/// The error of a call, with the key if that holds a value of another type.
fn in_call(error: Error, call: &Call) -> Error {
    let error = match key_of(call) {
        Some(key) => at_key(error, || key),
        None => error,
    };
    error.in_call(call.name())
}

/// The key of a call. A script on several keys does not say which one it failed at: all of them
/// begin with this one.
fn key_of(call: &Call) -> Option<String> {
    match (call, call.keys()) {
        (Call::Get(Get { link, .. }) | Call::SetIfAbsent(SetIfAbsent { link, .. }), _) => {
            Some(key::link(&link.service, &link.uid))
        }
        (_, Keys::User(namespace, uid)) => Some(key::user(namespace, uid)),
        (_, Keys::Service(service)) => Some(key::state(service)),
        (_, Keys::Workload(service)) => Some(key::workload(service)),
        (_, Keys::Tag(namespace, tag)) => Some(key::tag(namespace, tag)),
        // Each link of a batch names its own.
        (_, Keys::Users(..) | Keys::None) => None,
    }
}

fn deadline_passed() -> Error {
    Error::new(
        ErrorKind::Timeout,
        "the deadline had passed before the call",
    )
}

fn lost(error: RedisError) -> Error {
    let text = "the connection to the store was lost during the call";
    Error::new(ErrorKind::StoreUnavailable, text).caused_by(error)
}

fn unanswered(waited: Duration) -> Error {
    Error::new(
        ErrorKind::Timeout,
        format!("the store did not answer within {waited:?}"),
    )
}

/// The reply, or what the server's error means. The caller handles a missing script.
fn judged(reply: Value, connection: &Connection, effect: Effect) -> Result<Value> {
    let error = match &reply {
        Value::ServerError(error) if error.kind() != Some(ServerErrorKind::NoScript) => error,
        Value::Array(values) => match values.iter().find_map(server_error) {
            Some(error) => error,
            None => return Ok(reply),
        },
        _ => return Ok(reply),
    };
    let (error, redial) = refusal(error, effect);
    if redial {
        let demoted = error.kind() == ErrorKind::StoreUnavailable;
        connection.retire(if demoted {
            ConnectionEnd::Demoted
        } else {
            ConnectionEnd::Refused
        });
    }
    Err(error)
}

fn server_error(value: &Value) -> Option<&redis::ServerError> {
    match value {
        Value::ServerError(error) => Some(error),
        _ => None,
    }
}

fn is_unknown_script(reply: &Value) -> bool {
    server_error(reply).is_some_and(|e| e.kind() == Some(ServerErrorKind::NoScript))
}

fn script_still_unknown() -> Error {
    Error::new(
        ErrorKind::Internal,
        "the store does not know a script that it was given",
    )
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("stats", self.stats())
            .finish_non_exhaustive()
    }
}
