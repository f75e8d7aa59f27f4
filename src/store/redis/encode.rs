//! Operations as commands, and replies as values: what all of them share.

use redis::{Cmd, Value};

use crate::error::{Error, ErrorKind, Result, WriteOutcome};
use crate::id::{Incarnation, PodIndex, Token};
use crate::op::{Call, Effect, LeaseTimes, Operation, Renewed, Reply, match_call, reply_to_call};
use crate::route::link::Persist;
use crate::store::codec;
use crate::store::script::{Arg, Form};

/// What a script gets for "no TTL".
const PERSISTENT: i64 = -1;

/// An operation, as one command to the server.
pub(super) trait Encode: Operation {
    /// The command. One that calls no script ignores the form.
    fn encode(&self, form: Form) -> Result<Cmd>;

    /// What the server's reply means.
    fn decode(&self, reply: Value) -> Result<Self::Reply>;
}

/// The command for a call.
pub(super) fn encode(call: &Call, form: Form) -> Result<Cmd> {
    match_call!(call, operation => operation.encode(form))
}

/// What the reply to a call means that came from this server.
pub(super) fn decode(call: &Call, reply: Value, server: u64) -> Result<Reply> {
    let mut decoded = reply_to_call!(call, operation => operation.decode(reply));
    if let Ok(Reply::PodRenew(Renewed::Done { server: from, .. })) = &mut decoded {
        *from = server;
    }
    decoded.map_err(|error| after(call.effect(), error))
}

/// What an unreadable reply means for a write: a link that cannot be read was left as it was; after
/// anything else the outcome is unknown.
pub(super) fn after(effect: Effect, error: Error) -> Error {
    match (effect, error.kind()) {
        (Effect::Read, _) => error,
        (_, ErrorKind::StoreData) => error.with_outcome(WriteOutcome::NotSent),
        _ => error.with_outcome(WriteOutcome::Unknown),
    }
}

pub(super) fn pod(pod: PodIndex) -> Arg<'static> {
    Arg::Number(i64::from(pod.get()))
}

pub(super) fn incarnation(incarnation: Incarnation) -> Arg<'static> {
    Arg::Number(i64::try_from(incarnation.get()).unwrap_or(i64::MAX))
}

pub(super) fn token(token: Token) -> Arg<'static> {
    Arg::Number(i64::try_from(token.get()).unwrap_or(i64::MAX))
}

pub(super) fn persistence(persist: Persist) -> Arg<'static> {
    match persist {
        Persist::Forever => Arg::Number(PERSISTENT),
        Persist::For(ttl) => Arg::Number(codec::millis(ttl)),
    }
}

pub(super) fn times(times: LeaseTimes) -> [Arg<'static>; 3] {
    let micros = |time| Arg::Number(i64::try_from(codec::micros(time)).unwrap_or(i64::MAX));
    [micros(times.lease), micros(times.grace), micros(times.gap)]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use crate::store::redis::{links, pods};

    #[test]
    fn every_script_has_a_hash_of_its_own() {
        let all = || links::SCRIPTS.iter().chain(pods::SCRIPTS);
        let hashes: HashSet<&str> = all().map(|(_, script)| script.hash()).collect();
        assert_eq!(hashes.len(), all().count());
    }
}
