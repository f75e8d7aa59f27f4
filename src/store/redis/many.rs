//! Many calls in one exchange: what it is cheaper to write, to read and to wait for at once.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use redis::{Cmd, Pipeline, Value};

use super::failure::{Intent, code};
use super::operations::{after_write, number};
use super::{RedisStore, Request, is_unknown_script, judged, server_error, unknown_though_given};
use crate::clock::Tick;
use crate::error::{Error, Result};
use crate::id::{PodIndex, ServiceId, Uid};
use crate::route::link::Placed;
use crate::store::codec::{self, LinkReply};
use crate::store::script::{self, Arg, Invocation};
use crate::store::{Offer, key};

/// Links are read in pieces of so many, so that a large reading does not hold up everybody else...
const PIECE: usize = 512;
/// ...and so many pieces are under way at a time.
const PIECES: usize = 4;

impl RedisStore {
    /// The pods of many users, in their order.
    pub(super) async fn get_all(
        &self,
        service: &ServiceId,
        uids: &[Uid],
        deadline: Tick,
    ) -> Result<Vec<Option<PodIndex>>> {
        let pieces: Vec<_> = uids
            .chunks(PIECE)
            .map(|piece| self.get_piece(service, piece, deadline))
            .collect();
        let found = stream::iter(pieces).buffered(PIECES);
        let found: Vec<Vec<Option<PodIndex>>> = found.try_collect().await?;
        Ok(found.concat())
    }

    async fn get_piece(
        &self,
        service: &ServiceId,
        uids: &[Uid],
        deadline: Tick,
    ) -> Result<Vec<Option<PodIndex>>> {
        let keys: Vec<String> = uids.iter().map(|uid| key::link(service, uid)).collect();
        let mut command = Cmd::new();
        command.arg("MGET").arg(&keys);
        let request = Request::One(&command);
        let (reply, live) = self.answer(request, Intent::Read, deadline).await?;
        let mut found = if is_forbidden(&reply) {
            // The login may GET and not MGET, and what follows asks for each link by GET.
            vec![None; keys.len()]
        } else {
            pods_of(judged(reply, &live, Intent::Read)?, &keys)?
        };
        // MGET says "nothing" of a key of the wrong type, too: GET tells the two apart.
        let mut commands = Pipeline::new();
        let links = keys.iter().zip(&mut found);
        let mut absent: Vec<_> = links.filter(|(_, pod)| pod.is_none()).collect();
        if absent.is_empty() {
            return Ok(found);
        }
        for (key, _) in &absent {
            commands.cmd("GET").arg(*key);
        }
        let request = Request::Many(&commands, absent.len());
        let (replies, live) = self.answer(request, Intent::Read, deadline).await?;
        let Value::Array(replies) = replies else {
            return Err(codec::misshapen(&replies));
        };
        for ((key, pod), reply) in absent.iter_mut().zip(replies) {
            let reply = judged(reply, &live, Intent::Read)
                .map_err(|error| error.with("key", key.as_str()))?;
            **pod = codec::pod(&reply, key)?;
        }
        Ok(found)
    }

    /// Set-if-absent for all offers: one buffer, one wait. What the server refuses is refused to
    /// the offer that it belongs to; what befalls the connection befalls all that were sent.
    pub(super) async fn offer_all(
        &self,
        offers: &[Offer<'_>],
        ttl: Duration,
        deadline: Tick,
    ) -> Vec<Result<Placed>> {
        let ttl = Arg::Number(codec::millis(ttl));
        let call = |offer: &Offer<'_>| Call {
            key: key::link(&offer.link.service, &offer.link.uid),
            args: [number(offer.pod), ttl],
        };
        let calls: Vec<Call> = offers.iter().map(call).collect();
        let by_hash: Vec<(&Call, Form)> = calls.iter().map(|call| (call, Form::Hash)).collect();
        let mut replies = self.write_all(&by_hash, deadline).await;

        let unknown = |reply: &Result<Value>| reply.as_ref().is_ok_and(is_unknown_script);
        let missed: Vec<usize> = (0..replies.len())
            .filter(|at| replies.get(*at).is_some_and(unknown))
            .collect();
        if !missed.is_empty() {
            self.stats().count_script_load();
            // The first brings the source, and the server knows the script when it gets to the rest.
            let forms = std::iter::once(Form::Source).chain(std::iter::repeat(Form::Hash));
            let again = missed.iter().filter_map(|at| calls.get(*at)).zip(forms);
            let again: Vec<_> = again.collect();
            for (at, reply) in missed.iter().zip(self.write_all(&again, deadline).await) {
                let reply = match reply {
                    Ok(reply) if is_unknown_script(&reply) => Err(unknown_though_given()),
                    reply => reply,
                };
                replies[*at] = reply;
            }
        }
        let read = |(call, reply): (&Call, Result<Value>)| {
            let placed = reply.and_then(|reply| {
                let reply = LinkReply::decode(reply, &call.key);
                reply.and_then(|reply| reply.placed()).map_err(after_write)
            });
            placed.map_err(|error| error.during("set_if_absent"))
        };
        calls.iter().zip(replies).map(read).collect()
    }

    /// One reply per call, whatever happens.
    async fn write_all(&self, calls: &[(&Call, Form)], deadline: Tick) -> Vec<Result<Value>> {
        if calls.is_empty() {
            return Vec::new();
        }
        let mut commands = Pipeline::with_capacity(calls.len());
        for (call, form) in calls {
            let invocation = Invocation {
                script: &script::SET_IF_ABSENT,
                keys: &[&call.key],
                args: &call.args,
            };
            commands.add_command(match form {
                Form::Hash => invocation.by_hash(),
                Form::Source => invocation.by_source(),
            });
        }
        let request = Request::Many(&commands, calls.len());
        let error = match self.answer(request, Intent::Write, deadline).await {
            Ok((Value::Array(replies), live)) if replies.len() == calls.len() => {
                let judge = |reply| judged(reply, &live, Intent::Write);
                return replies.into_iter().map(judge).collect();
            }
            Ok((other, _)) => after_write(codec::misshapen(&other)),
            Err(error) => error,
        };
        calls.iter().map(|_| Err(Error::clone(&error))).collect()
    }
}

/// The pods that a reply to `MGET` names.
fn pods_of(reply: Value, keys: &[String]) -> Result<Vec<Option<PodIndex>>> {
    let replies = match reply {
        Value::Array(replies) if replies.len() == keys.len() => replies,
        other => return Err(codec::misshapen(&other)),
    };
    let links = keys.iter().zip(&replies);
    links.map(|(key, reply)| codec::pod(reply, key)).collect()
}

fn is_forbidden(reply: &Value) -> bool {
    server_error(reply).is_some_and(|error| code(error) == "NOPERM")
}

/// One call of the script.
struct Call {
    key: String,
    args: [Arg<'static>; 2],
}

/// How the script is named.
#[derive(Debug, Clone, Copy)]
enum Form {
    Hash,
    Source,
}
