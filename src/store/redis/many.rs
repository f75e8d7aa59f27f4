//! Many calls in one batch, which is cheaper to write, to read and to wait for.

use futures_util::{StreamExt, TryStreamExt, stream};
use redis::{Cmd, Pipeline, Value};

use super::encode::{after, decode, encode};
use super::failure::{at_key, code};
use super::links::{left_out, links_read, read_links};
use super::{
    RedisStore, StoreRequest, in_call, is_unknown_script, judged, script_still_unknown,
    server_error,
};
use crate::clock::Tick;
use crate::error::{Error, Result};
use crate::id::{PodIndex, ServiceId, Uid};
use crate::op::{BatchGet, Call, Effect, LinksRead, Reply};
use crate::store::script::Form;
use crate::store::{codec, key};

/// Links are read in pieces of so many, so that a large reading does not delay other calls...
const PIECE: usize = 512;
/// ...and so many pieces are in flight at a time.
const PIECES: usize = 4;

impl RedisStore {
    /// The pods of many users, in their order.
    pub(super) async fn get_all(
        &self,
        batch: &BatchGet,
        deadline: Tick,
    ) -> Result<LinksRead<Vec<Option<PodIndex>>>> {
        let pieces: Vec<_> = batch
            .uids
            .chunks(PIECE)
            .map(|uids| self.get_piece(&batch.service, uids, deadline))
            .collect();
        let found = stream::iter(pieces).buffered(PIECES);
        let found: Vec<LinksRead<_>> = found.try_collect().await?;
        let mut links = Vec::with_capacity(batch.uids.len());
        let mut unreadable = Vec::new();
        for piece in found {
            links.extend(piece.links);
            unreadable.extend(piece.unreadable);
        }
        Ok(LinksRead {
            links,
            unreadable: unreadable.into(),
        })
    }

    async fn get_piece(
        &self,
        service: &ServiceId,
        uids: &[Uid],
        deadline: Tick,
    ) -> Result<LinksRead<Vec<Option<PodIndex>>>> {
        let command = read_links(service, uids);
        let request = StoreRequest::One(&command);
        let (reply, connection) = self.answer(request, Effect::Read, deadline).await?;
        let mut found = if is_forbidden(&reply) {
            // The login may GET and not MGET, and what follows asks for each link by GET.
            vec![None; uids.len()].into()
        } else {
            links_read(service, uids, judged(reply, &connection, Effect::Read)?)?
        };
        // MGET returns nil for a key of the wrong type, too; GET distinguishes the two, and finds
        // again what is no pod.
        let mut unreadable = Vec::new();
        let mut commands = Pipeline::new();
        let links = uids.iter().zip(&mut found.links);
        let mut absent: Vec<_> = links.filter(|(_, pod)| pod.is_none()).collect();
        if absent.is_empty() {
            return Ok(found);
        }
        for (uid, _) in &absent {
            commands.cmd("GET").arg(key::link(service, uid));
        }
        let request = StoreRequest::Many(&commands, absent.len());
        let (replies, connection) = self.answer(request, Effect::Read, deadline).await?;
        let Value::Array(replies) = replies else {
            return Err(codec::misshapen(&replies));
        };
        for ((uid, pod), reply) in absent.iter_mut().zip(replies) {
            let key = || key::link(service, uid);
            let reply = judged(reply, &connection, Effect::Read);
            let reply = reply.map_err(|error| at_key(error, key));
            let read = reply.and_then(|reply| codec::pod(&reply, key));
            **pod = left_out(read, uid, &mut unreadable)?;
        }
        found.unreadable = unreadable.into();
        Ok(found)
    }

    /// All calls in one buffer, with one wait. An error of the server fails the one call that it
    /// belongs to; a failure of the connection fails every call that was sent.
    pub(super) async fn send_all(&self, calls: &[Call], deadline: Tick) -> Vec<Result<Reply>> {
        let by_hash: Vec<(&Call, Form)> = calls.iter().map(|call| (call, Form::Hash)).collect();
        let mut replies = self.send_batch(&by_hash, deadline).await;

        let unknown = |reply: &Result<(Value, u64)>| {
            reply
                .as_ref()
                .is_ok_and(|(reply, _)| is_unknown_script(reply))
        };
        let missed: Vec<usize> = (0..replies.len())
            .filter(|at| replies.get(*at).is_some_and(unknown))
            .collect();
        if !missed.is_empty() {
            self.stats().count_script_load();
            // The first call of each script has the source, so the server knows the script when it
            // runs the others.
            let mut with_source = Vec::new();
            let again = missed.iter().filter_map(|at| calls.get(*at));
            let again = again.map(|call| {
                let known = with_source.contains(&call.name());
                with_source.push(call.name());
                (call, if known { Form::Hash } else { Form::Source })
            });
            let again: Vec<_> = again.collect();
            for (at, reply) in missed.iter().zip(self.send_batch(&again, deadline).await) {
                let reply = match reply {
                    Ok((reply, _)) if is_unknown_script(&reply) => Err(script_still_unknown()),
                    reply => reply,
                };
                replies[*at] = reply;
            }
        }
        let read = |(call, reply): (&Call, Result<(Value, u64)>)| {
            let read = reply.and_then(|(reply, server)| decode(call, reply, server));
            read.map_err(|error| in_call(error, call))
        };
        calls.iter().zip(replies).map(read).collect()
    }

    /// One reply a call, also after a failure, with the server that replied.
    async fn send_batch(
        &self,
        calls: &[(&Call, Form)],
        deadline: Tick,
    ) -> Vec<Result<(Value, u64)>> {
        if calls.is_empty() {
            return Vec::new();
        }
        let encoded = calls.iter().map(|(call, form)| encode(call, *form));
        let encoded: Result<Vec<Cmd>> = encoded.collect();
        // A batch may be retried only if all its calls may.
        let effects = calls.iter().map(|(call, _)| call.effect());
        let reads = effects.clone().all(|effect| effect == Effect::Read);
        let effect = if reads { Effect::Read } else { Effect::Once };
        let sent = async {
            let mut commands = Pipeline::with_capacity(calls.len());
            for command in encoded? {
                commands.add_command(command);
            }
            let request = StoreRequest::Many(&commands, calls.len());
            match self.answer(request, effect, deadline).await? {
                (Value::Array(replies), connection) if replies.len() == calls.len() => {
                    Ok((replies, connection))
                }
                (other, _) => Err(after(effect, codec::misshapen(&other))),
            }
        };
        match sent.await {
            Ok((replies, connection)) => {
                let each = replies.into_iter().zip(effects);
                each.map(|(reply, effect)| {
                    judged(reply, &connection, effect).map(|reply| (reply, connection.server))
                })
                .collect()
            }
            Err(error) => calls.iter().map(|_| Err(Error::clone(&error))).collect(),
        }
    }
}

fn is_forbidden(reply: &Value) -> bool {
    server_error(reply).is_some_and(|error| code(error) == "NOPERM")
}
