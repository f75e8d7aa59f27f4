//! The operations on links: each one script, or plain reads.

use std::collections::BTreeMap;

use redis::{Cmd, Value};

use super::encode::{Encode, incarnation, persistence, pod, token};
use super::failure::is_wrong_type;
use crate::error::{ErrorKind, Result};
use crate::id::{Incarnation, LinkId, PodIndex, ServiceId, ServiceName, Uid};
use crate::op::{
    BatchGet, Claim, Claimed, Compute, Computed, Get, LinksRead, Operation, Read, Relink, Remove,
    Removed, Rewrite, Services, Set, SetIfAbsent, StoredUser, Swap, Swapped, TrySet,
    UnreadableLink,
};
use crate::route::link::{Holder, Life, Owner, Persist, Placed, StoredLink};
use crate::store::codec::{self, LinkReply};
use crate::store::script::{self, Arg, Form, scripts};
use crate::store::{key, only_a_peer};

scripts! {
    GET = "get.lua";
    SET_IF_ABSENT = "set_if_absent.lua";
    TRY_SET = "try_set.lua";
    CLAIM = "claim.lua";
    SWAP = "swap.lua";
    RELINK = "relink.lua";
}

impl Encode for Compute {
    fn encode(&self, _form: Form) -> Result<Cmd> {
        Err(only_a_peer(Self::NAME))
    }

    fn decode(&self, _reply: Value) -> Result<Computed> {
        Err(only_a_peer(Self::NAME))
    }
}

impl Encode for Get {
    fn encode(&self, form: Form) -> Result<Cmd> {
        Ok(read(&self.link, form))
    }

    fn decode(&self, reply: Value) -> Result<Option<StoredLink>> {
        let reply = LinkReply::decode(reply, &self.link)?;
        let found = match reply.verdict() {
            "absent" => None,
            _ => Some(reply.link()?),
        };
        Ok(found.filter(|found| self.from.accepts(found)))
    }
}

impl Encode for Read {
    fn encode(&self, form: Form) -> Result<Cmd> {
        Ok(read(&self.link, form))
    }

    fn decode(&self, reply: Value) -> Result<Box<StoredUser>> {
        Ok(Box::new(LinkReply::decode(reply, &self.link)?.found()))
    }
}

fn read(link: &LinkId, form: Form) -> Cmd {
    let (key, owner) = (key::link(&link.service, &link.uid), key::owner(link));
    script::call(&GET, form, &[&key, &owner], &[service(link)])
}

impl Encode for BatchGet {
    fn encode(&self, _form: Form) -> Result<Cmd> {
        Ok(read_links(&self.service, &self.uids))
    }

    fn decode(&self, reply: Value) -> Result<LinksRead<Vec<Option<PodIndex>>>> {
        links_read(&self.service, &self.uids, reply)
    }
}

/// The command that reads links at once. `MGET` returns nil for a key of the wrong type, too:
/// `many.rs` reads those once more, by `GET`.
pub(super) fn read_links(service: &ServiceId, uids: &[Uid]) -> Cmd {
    const KEY_BYTES: usize = 48;
    let mut command = Cmd::with_capacity(1 + uids.len(), uids.len() * KEY_BYTES);
    command.arg("MGET");
    for uid in uids {
        command.arg(key::link(service, uid));
    }
    command
}

/// What the reply to [`read_links`] means. A value that is no pod is left out.
pub(super) fn links_read(
    service: &ServiceId,
    uids: &[Uid],
    reply: Value,
) -> Result<LinksRead<Vec<Option<PodIndex>>>> {
    let replies = match reply {
        Value::Array(replies) if replies.len() == uids.len() => replies,
        other => return Err(codec::misshapen(&other)),
    };
    let (mut links, mut unreadable) = (Vec::with_capacity(uids.len()), Vec::new());
    for (uid, reply) in uids.iter().zip(&replies) {
        let found = codec::pod(reply, || key::link(service, uid));
        links.push(left_out(found, uid, &mut unreadable)?);
    }
    Ok(LinksRead {
        links,
        unreadable: unreadable.into(),
    })
}

/// The pod that was found; none, and the error among those of `unreadable`, if another program's
/// value is at this link. Any other error is one of the whole reading.
pub(super) fn left_out(
    found: Result<Option<PodIndex>>,
    uid: &Uid,
    unreadable: &mut Vec<UnreadableLink>,
) -> Result<Option<PodIndex>> {
    match found {
        Err(error) if error.kind() == ErrorKind::StoreData || is_wrong_type(&error) => {
            let uid = uid.clone();
            unreadable.push(UnreadableLink { uid, error });
            Ok(None)
        }
        found => found,
    }
}

impl Encode for Services {
    fn encode(&self, _form: Form) -> Result<Cmd> {
        let mut command = redis::cmd("HGETALL");
        command.arg(key::user(&self.namespace, &self.uid));
        Ok(command)
    }

    fn decode(&self, reply: Value) -> Result<LinksRead<BTreeMap<ServiceName, PodIndex>>> {
        codec::services(reply, &key::user(&self.namespace, &self.uid), &self.uid)
    }
}

impl Encode for SetIfAbsent {
    fn encode(&self, form: Form) -> Result<Cmd> {
        let (link, ttl) = (&self.link, Arg::Number(codec::millis(self.ttl)));
        let (key, owner) = (key::link(&link.service, &link.uid), key::owner(link));
        let args = [service(link), pod(self.pod), ttl];
        Ok(script::call(&SET_IF_ABSENT, form, &[&key, &owner], &args))
    }

    fn decode(&self, reply: Value) -> Result<Placed> {
        LinkReply::decode(reply, &self.link)?.placed()
    }
}

impl Encode for Set {
    fn encode(&self, _form: Form) -> Result<Cmd> {
        Err(only_a_peer(Self::NAME))
    }

    fn decode(&self, _reply: Value) -> Result<Option<PodIndex>> {
        Err(only_a_peer(Self::NAME))
    }
}

impl Encode for TrySet {
    fn encode(&self, form: Form) -> Result<Cmd> {
        let keys = LinkKeys::of(&self.link);
        let args = [
            service(&self.link),
            pod(self.pod),
            persistence(self.persist),
        ];
        Ok(script::call(&TRY_SET, form, &keys.all(), &args))
    }

    fn decode(&self, reply: Value) -> Result<Placed> {
        let placed = LinkReply::decode(reply, &self.link)?.placed()?;
        // A process of the same pod may own the user: then the pod has it, and nothing was written.
        let made = placed.link.pod == self.pod;
        Ok(Placed { made, ..placed })
    }
}

impl Encode for Claim {
    fn encode(&self, form: Form) -> Result<Cmd> {
        let keys = LinkKeys::of(&self.link);
        let (certified, until) = match self.certified {
            Some((certified, until)) => (pod(certified), incarnation(until)),
            None => (Arg::Text(""), Arg::Number(0)),
        };
        let args = [
            service(&self.link),
            pod(self.pod),
            incarnation(self.incarnation),
            certified,
            until,
            token(self.above),
        ];
        Ok(script::call(&CLAIM, form, &keys.all(), &args))
    }

    fn decode(&self, reply: Value) -> Result<Claimed> {
        let reply = LinkReply::decode(reply, &self.link)?;
        let (record, verdict) = (reply.record()?, reply.verdict());
        let given = || {
            reply
                .token()?
                .ok_or_else(|| codec::unknown_verdict(verdict))
        };
        match verdict {
            "made" | "kept" => given().map(|(token, previous)| Claimed::Owned {
                token,
                previous,
                again: verdict == "kept",
            }),
            "stale" => Ok(Claimed::Stale(
                record.map_or(Incarnation::NONE, |owner| owner.incarnation),
            )),
            "owned" => Ok(Claimed::Taken {
                pod: reply.owner()?,
                incarnation: record.map(|owner| owner.incarnation),
            }),
            "invalid" => Err(codec::no_token_left(&self.link)),
            other => Err(codec::unknown_verdict(other)),
        }
    }
}

impl Encode for Swap {
    fn encode(&self, form: Form) -> Result<Cmd> {
        let keys = LinkKeys::of(&self.link);
        let (none, stored) = (Arg::Text(""), &self.found.stored);
        let [to, life, holder, above] = match self.to {
            Rewrite::Nothing => [none, Arg::Number(0), none, Arg::Number(0)],
            Rewrite::Link(to, persist) => [pod(to), persistence(persist), none, Arg::Number(0)],
            Rewrite::Owned {
                pod: to,
                incarnation: process,
                above,
            } => {
                let life = persistence(Persist::Forever);
                [pod(to), life, incarnation(process), token(above)]
            }
        };
        let args = [
            service(&self.link),
            Arg::Bytes(&stored.link),
            Arg::Number(i64::from(stored.persistent)),
            Arg::Bytes(&stored.record),
            to,
            life,
            holder,
            above,
        ];
        Ok(script::call(&SWAP, form, &keys.all(), &args))
    }

    fn decode(&self, reply: Value) -> Result<Swapped> {
        let reply = LinkReply::decode(reply, &self.link)?;
        let (done, token) = match reply.verdict() {
            "invalid" => return Err(codec::no_token_left(&self.link)),
            "kept" => (false, None),
            _ => (true, reply.token()?),
        };
        Ok(Swapped { done, token })
    }
}

impl Encode for Relink {
    fn encode(&self, form: Form) -> Result<Cmd> {
        let keys = LinkKeys::of(&self.link);
        let holder = self.from.holder;
        let record = holder.map_or_else(String::new, |holder| {
            let Holder { incarnation, token } = holder;
            let pod = self.from.pod;
            let owner = Owner {
                pod,
                incarnation,
                token,
            };
            owner.to_string()
        });
        let args = [
            service(&self.link),
            pod(self.from.pod),
            Arg::Number(i64::from(self.from.life == Life::Persistent)),
            Arg::Text(&record),
            incarnation(self.dead),
            pod(self.to),
            Arg::Number(codec::millis(self.ttl)),
        ];
        Ok(script::call(&RELINK, form, &keys.all(), &args))
    }

    fn decode(&self, reply: Value) -> Result<Option<Placed>> {
        let reply = LinkReply::decode(reply, &self.link)?;
        match reply.verdict() {
            "absent" => Ok(None),
            _ => reply.placed().map(Some),
        }
    }
}

impl Encode for Remove {
    fn encode(&self, _form: Form) -> Result<Cmd> {
        Err(only_a_peer(Self::NAME))
    }

    fn decode(&self, _reply: Value) -> Result<Removed> {
        Err(only_a_peer(Self::NAME))
    }
}

/// The keys of a link script; they share a hash slot.
struct LinkKeys {
    link: String,
    user: String,
    owner: String,
}

impl LinkKeys {
    fn of(link: &LinkId) -> Self {
        Self {
            link: key::link(&link.service, &link.uid),
            user: key::user(&link.service.namespace, &link.uid),
            owner: key::owner(link),
        }
    }

    fn all(&self) -> [&str; 3] {
        [&self.link, &self.user, &self.owner]
    }
}

fn service(link: &LinkId) -> Arg<'_> {
    Arg::Text(link.service.service.as_str())
}
