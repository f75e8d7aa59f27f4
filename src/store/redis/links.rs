//! The operations on links: each one script, or plain reads.

use std::collections::BTreeMap;

use redis::{Cmd, Value};

use super::encode::{Encode, incarnation, persistence, pod};
use crate::error::Result;
use crate::id::{LinkId, PodIndex, ServiceId, ServiceName, Uid};
use crate::op::{
    BatchGet, Compute, Get, Operation, Relink, Remove, Removed, Services, Set, SetIfAbsent, TrySet,
};
use crate::route::link::{Life, Placed, Removal, StoredLink};
use crate::store::codec::{self, LinkReply};
use crate::store::script::{self, Arg, Form, scripts};
use crate::store::{key, only_a_peer};

scripts! {
    GET = "get.lua";
    SET = "set.lua";
    SET_IF_ABSENT = "set_if_absent.lua";
    TRY_SET = "try_set.lua";
    RELINK = "relink.lua";
    REMOVE = "remove.lua";
}

impl Encode for Compute {
    fn encode(&self, _form: Form) -> Result<Cmd> {
        Err(only_a_peer(Self::NAME))
    }

    fn decode(&self, _reply: Value) -> Result<StoredLink> {
        Err(only_a_peer(Self::NAME))
    }
}

impl Encode for Get {
    fn encode(&self, form: Form) -> Result<Cmd> {
        let key = key::link(&self.link.service, &self.link.uid);
        Ok(script::call(&GET, form, &[&key], &[]))
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

impl Encode for BatchGet {
    fn encode(&self, _form: Form) -> Result<Cmd> {
        Ok(read_links(&self.service, &self.uids))
    }

    fn decode(&self, reply: Value) -> Result<Vec<Option<PodIndex>>> {
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

/// What the reply to [`read_links`] means.
pub(super) fn links_read(
    service: &ServiceId,
    uids: &[Uid],
    reply: Value,
) -> Result<Vec<Option<PodIndex>>> {
    let replies = match reply {
        Value::Array(replies) if replies.len() == uids.len() => replies,
        other => return Err(codec::misshapen(&other)),
    };
    let links = uids.iter().zip(&replies);
    links
        .map(|(uid, reply)| codec::pod(reply, || key::link(service, uid)))
        .collect()
}

impl Encode for Services {
    fn encode(&self, _form: Form) -> Result<Cmd> {
        let mut command = redis::cmd("HGETALL");
        command.arg(key::user(&self.namespace, &self.uid));
        Ok(command)
    }

    fn decode(&self, reply: Value) -> Result<BTreeMap<ServiceName, PodIndex>> {
        codec::services(reply, &key::user(&self.namespace, &self.uid))
    }
}

impl Encode for SetIfAbsent {
    fn encode(&self, form: Form) -> Result<Cmd> {
        let key = key::link(&self.link.service, &self.link.uid);
        let args = [pod(self.pod), Arg::Number(codec::millis(self.ttl))];
        Ok(script::call(&SET_IF_ABSENT, form, &[&key], &args))
    }

    fn decode(&self, reply: Value) -> Result<Placed> {
        LinkReply::decode(reply, &self.link)?.placed()
    }
}

impl Encode for Set {
    fn encode(&self, form: Form) -> Result<Cmd> {
        let keys = LinkKeys::of(&self.link);
        let args = [
            service(&self.link),
            pod(self.pod),
            persistence(self.persist),
        ];
        Ok(script::call(&SET, form, &keys.without_owner(), &args))
    }

    fn decode(&self, reply: Value) -> Result<Option<PodIndex>> {
        Ok(LinkReply::decode(reply, &self.link)?.previous())
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
        LinkReply::decode(reply, &self.link)?.placed()
    }
}

impl Encode for Relink {
    fn encode(&self, form: Form) -> Result<Cmd> {
        let keys = LinkKeys::of(&self.link);
        let args = [
            service(&self.link),
            pod(self.from.pod),
            Arg::Number(i64::from(self.from.life == Life::Persistent)),
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
    fn encode(&self, form: Form) -> Result<Cmd> {
        let keys = LinkKeys::of(&self.link);
        let grace = match self.removal {
            Removal::Now => 0,
            Removal::Grace(grace) => codec::millis(grace),
        };
        let owner = self.owner.map_or(Arg::Text(""), pod);
        let args = [service(&self.link), owner, Arg::Number(grace)];
        Ok(script::call(&REMOVE, form, &keys.without_owner(), &args))
    }

    fn decode(&self, reply: Value) -> Result<Removed> {
        let reply = LinkReply::decode(reply, &self.link)?;
        let (previous, done) = match reply.verdict() {
            "removed" => (reply.previous(), true),
            "kept" => (Some(reply.link()?.pod), false),
            _ => (None, false),
        };
        Ok(Removed { previous, done })
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

    fn without_owner(&self) -> [&str; 2] {
        [&self.link, &self.user]
    }

    fn all(&self) -> [&str; 3] {
        [&self.link, &self.user, &self.owner]
    }
}

fn service(link: &LinkId) -> Arg<'_> {
    Arg::Text(link.service.service.as_str())
}
