//! The operations of the contract: each one script, or plain reads.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use redis::{Cmd, Value};

use super::failure::Intent;
use super::{RedisStore, Request};
use crate::clock::Tick;
use crate::config::LeaseTimes;
use crate::error::{Error, ErrorKind, Result, WriteOutcome};
use crate::id::{Incarnation, LinkId, Namespace, PodIndex, ServiceId, ServiceName, Tag, Uid};
use crate::route::link::{Certificate, Life, Persist, Placed, Removal, StoredLink};
use crate::route::state::{PodState, WorkloadState};
use crate::store::codec::{self, LinkReply};
use crate::store::script::{self, Arg, Invocation};
use crate::store::{
    Begun, Changes, ConnectionReport, Inspection, Offer, PodIdentity, Pods, PodsReading, Removed,
    Renewed, Store,
};
use crate::store::{key, reading};

/// What a script gets for "no TTL".
const PERSISTENT: i64 = -1;

#[async_trait]
impl Store for RedisStore {
    async fn get(&self, link: &LinkId, deadline: Tick) -> Result<Option<StoredLink>> {
        during("get", async {
            let key = key::link(&link.service, &link.uid);
            let call = Invocation {
                script: &script::GET,
                keys: &[&key],
                args: &[],
            };
            let reply = self.call(call, Intent::Read, deadline).await?;
            let reply = LinkReply::decode(reply, &key)?;
            match reply.verdict() {
                "absent" => Ok(None),
                _ => reply.link().map(Some),
            }
        })
        .await
    }

    async fn batch_get(
        &self,
        service: &ServiceId,
        uids: &[Uid],
        deadline: Tick,
    ) -> Result<Vec<Option<PodIndex>>> {
        during("batch_get", self.get_all(service, uids, deadline)).await
    }

    async fn services(
        &self,
        namespace: &Namespace,
        uid: &Uid,
        deadline: Tick,
    ) -> Result<BTreeMap<ServiceName, PodIndex>> {
        during("services", async {
            let key = key::user(namespace, uid);
            let mut command = Cmd::new();
            command.arg("HGETALL").arg(&key);
            let reply = self
                .exchange(Request::One(&command), Intent::Read, deadline)
                .await?;
            codec::services(reply, &key)
        })
        .await
    }

    async fn set_if_absent(
        &self,
        link: &LinkId,
        pod: PodIndex,
        ttl: Duration,
        deadline: Tick,
    ) -> Result<Placed> {
        during("set_if_absent", async {
            let key = key::link(&link.service, &link.uid);
            let args = [number(pod), Arg::Number(codec::millis(ttl))];
            let reply = self
                .write(&script::SET_IF_ABSENT, &[&key], &args, deadline)
                .await?;
            LinkReply::decode(reply, &key)
                .and_then(|reply| reply.placed())
                .map_err(after_write)
        })
        .await
    }

    async fn set_if_absent_many(
        &self,
        offers: &[Offer<'_>],
        ttl: Duration,
        deadline: Tick,
    ) -> Vec<Result<Placed>> {
        self.offer_all(offers, ttl, deadline).await
    }

    async fn set(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<Option<PodIndex>> {
        during("set", async {
            let keys = LinkKeys::of(link);
            let args = [service(link), number(pod), persistence(persist)];
            let reply = self
                .write(&script::SET, &keys.without_owner(), &args, deadline)
                .await?;
            let reply = LinkReply::decode(reply, &keys.link).map_err(after_write)?;
            Ok(reply.previous())
        })
        .await
    }

    async fn try_set(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<Placed> {
        during("try_set", async {
            let keys = LinkKeys::of(link);
            let args = [service(link), number(pod), persistence(persist)];
            let reply = self
                .write(&script::TRY_SET, &keys.all(), &args, deadline)
                .await?;
            let reply = LinkReply::decode(reply, &keys.link);
            reply.and_then(|reply| reply.placed()).map_err(after_write)
        })
        .await
    }

    async fn relink(
        &self,
        link: &LinkId,
        from: StoredLink,
        dead: Incarnation,
        to: PodIndex,
        ttl: Duration,
        deadline: Tick,
    ) -> Result<Option<Placed>> {
        during("relink", async {
            let keys = LinkKeys::of(link);
            let args = [
                service(link),
                number(from.pod),
                Arg::Number(i64::from(from.life == Life::Persistent)),
                incarnation(dead),
                number(to),
                Arg::Number(codec::millis(ttl)),
            ];
            let reply = self
                .write(&script::RELINK, &keys.all(), &args, deadline)
                .await?;
            let reply = LinkReply::decode(reply, &keys.link).map_err(after_write)?;
            match reply.verdict() {
                "absent" => Ok(None),
                _ => reply.placed().map(Some).map_err(after_write),
            }
        })
        .await
    }

    async fn remove(
        &self,
        link: &LinkId,
        owner: Option<PodIndex>,
        removal: Removal,
        deadline: Tick,
    ) -> Result<Removed> {
        during("remove", async {
            let keys = LinkKeys::of(link);
            let grace = match removal {
                Removal::Now => 0,
                Removal::Grace(grace) => codec::millis(grace),
            };
            let owner = owner.map_or(Arg::Text(""), number);
            let args = [service(link), owner, Arg::Number(grace)];
            let reply = self
                .write(&script::REMOVE, &keys.without_owner(), &args, deadline)
                .await?;
            let reply = LinkReply::decode(reply, &keys.link).map_err(after_write)?;
            match reply.verdict() {
                "removed" => Ok(Removed {
                    previous: reply.previous(),
                    done: true,
                }),
                "kept" => {
                    let kept = reply.link().map_err(after_write)?;
                    Ok(Removed {
                        previous: Some(kept.pod),
                        done: false,
                    })
                }
                _ => Ok(Removed {
                    previous: None,
                    done: false,
                }),
            }
        })
        .await
    }

    async fn pod_begin(
        &self,
        pod: &PodIdentity,
        times: LeaseTimes,
        deadline: Tick,
    ) -> Result<Begun> {
        during("pod_begin", async {
            let key = key::lease(&pod.service);
            let [lease, grace, gap] = figures(times);
            let who = [
                number(pod.pod),
                Arg::Text(&pod.nonce),
                Arg::Text(&pod.pod_uid),
            ];
            let args = [lease, grace, gap, who[0], who[1], who[2]];
            let reply = self
                .write(&script::POD_BEGIN, &[&key], &args, deadline)
                .await?;
            codec::begun(reply).map_err(after_write)
        })
        .await
    }

    async fn pod_renew(
        &self,
        service: &ServiceId,
        state: &PodState,
        times: LeaseTimes,
        deadline: Tick,
    ) -> Result<Renewed> {
        during("pod_renew", async {
            // The store stamps the state with its own time, so ours is left out.
            let unstamped = PodState {
                update_time: 0,
                ..state.clone()
            };
            let json = serde_json::to_string(&unstamped).map_err(|error| {
                Error::new(ErrorKind::Internal, "a pod state is not JSON").caused_by(error)
            })?;
            let [lease, grace, gap] = figures(times);
            let args = [
                lease,
                grace,
                gap,
                number(state.pod_id),
                incarnation(state.incarnation),
                Arg::Text(state.routing_state.as_str()),
                Arg::Text(&json),
            ];
            let keys = [&*key::lease(service), &*key::state(service)];
            let reply = self
                .write(&script::POD_RENEW, &keys, &args, deadline)
                .await?;
            codec::renewed(reply).map_err(after_write)
        })
        .await
    }

    async fn pod_end(
        &self,
        service: &ServiceId,
        pod: PodIndex,
        me: Incarnation,
        deadline: Tick,
    ) -> Result<bool> {
        during("pod_end", async {
            let keys = [&*key::lease(service), &*key::state(service)];
            let args = [number(pod), incarnation(me)];
            let reply = self.write(&script::POD_END, &keys, &args, deadline).await?;
            codec::ended(reply).map_err(after_write)
        })
        .await
    }

    async fn pod_certify(
        &self,
        service: &ServiceId,
        pod: PodIndex,
        deadline: Tick,
    ) -> Result<Certificate> {
        during("pod_certify", async {
            let keys = [&*key::lease(service), &*key::state(service)];
            let reply = self
                .write(&script::POD_CERTIFY, &keys, &[number(pod)], deadline)
                .await?;
            codec::certificate(reply).map_err(after_write)
        })
        .await
    }

    async fn pods(&self, service: &ServiceId, last: &PodsReading, deadline: Tick) -> Result<Pods> {
        during("pods", async {
            let keys = [&*key::lease(service), &*key::state(service)];
            let call = Invocation {
                script: &script::PODS,
                keys: &keys,
                args: &[],
            };
            // It may write the time, but asking twice does no harm.
            reading::pods(self.call(call, Intent::Read, deadline).await?, last)
        })
        .await
    }

    async fn inspect(&self, service: &ServiceId, deadline: Tick) -> Result<Inspection> {
        during("inspect", async {
            let keys = [&*key::lease(service), &*key::state(service)];
            let call = Invocation {
                script: &script::INSPECT,
                keys: &keys,
                args: &[],
            };
            reading::inspection(self.call(call, Intent::Read, deadline).await?)
        })
        .await
    }

    async fn listen(&self, service: &ServiceId, deadline: Tick) -> Result<Changes> {
        let name = key::state(service);
        during("listen", self.channel.subscribe(&name, deadline)).await
    }

    async fn set_workload(
        &self,
        service: &ServiceId,
        workload: &WorkloadState,
        ttl: Duration,
        deadline: Tick,
    ) -> Result<()> {
        during("set_workload", async {
            let json = serde_json::to_string(workload).map_err(|error| {
                Error::new(ErrorKind::Internal, "a workload state is not JSON").caused_by(error)
            })?;
            let mut command = redis::cmd("SET");
            command.arg(key::workload(service)).arg(json);
            command.arg("PX").arg(codec::millis(ttl));
            self.store(&command, deadline).await
        })
        .await
    }

    async fn workload(&self, service: &ServiceId, deadline: Tick) -> Result<Option<WorkloadState>> {
        during("workload", async {
            let key = key::workload(service);
            codec::workload(self.load(&key, deadline).await?, &key)
        })
        .await
    }

    async fn set_tag(
        &self,
        namespace: &Namespace,
        tag: &Tag,
        service: &ServiceName,
        deadline: Tick,
    ) -> Result<bool> {
        during("set_tag", async {
            let mut command = redis::cmd("SET");
            command.arg(key::tag(namespace, tag));
            command.arg(service.as_str());
            self.store(&command, deadline).await.map(|()| true)
        })
        .await
    }

    async fn tag(
        &self,
        namespace: &Namespace,
        tag: &Tag,
        deadline: Tick,
    ) -> Result<Option<ServiceName>> {
        during("tag", async {
            let key = key::tag(namespace, tag);
            codec::tagged(self.load(&key, deadline).await?, &key)
        })
        .await
    }

    async fn ping(&self, deadline: Tick) -> Result<()> {
        during("ping", async {
            let mut command = Cmd::new();
            command.arg("PING");
            self.exchange(Request::One(&command), Intent::Read, deadline)
                .await
                .map(|_| ())
        })
        .await
    }

    async fn close(&self) {
        self.channel.close().await;
        self.node.close().await;
    }

    fn connection(&self) -> ConnectionReport {
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

impl RedisStore {
    /// A plain `SET`.
    async fn store(&self, command: &Cmd, deadline: Tick) -> Result<()> {
        let request = Request::One(command);
        match self.exchange(request, Intent::Write, deadline).await? {
            Value::Okay => Ok(()),
            other => Err(after_write(codec::misshapen(&other))),
        }
    }

    /// A plain `GET`.
    async fn load(&self, key: &str, deadline: Tick) -> Result<Value> {
        let mut command = redis::cmd("GET");
        command.arg(key);
        self.exchange(Request::One(&command), Intent::Read, deadline)
            .await
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

/// Puts the operation's name on its error.
async fn during<T>(operation: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
    call.await.map_err(|error| error.during(operation))
}

/// What an unreadable reply to a write means: a link that nobody can read was left as it was;
/// after anything else nobody knows.
pub(super) fn after_write(error: Error) -> Error {
    let untouched = error.kind() == ErrorKind::StoreData;
    error.with_outcome(if untouched {
        WriteOutcome::NotSent
    } else {
        WriteOutcome::Unknown
    })
}

fn service(link: &LinkId) -> Arg<'_> {
    Arg::Text(link.service.service.as_str())
}

pub(super) fn number(pod: PodIndex) -> Arg<'static> {
    Arg::Number(i64::from(pod.get()))
}

fn incarnation(incarnation: Incarnation) -> Arg<'static> {
    Arg::Number(i64::try_from(incarnation.get()).unwrap_or(i64::MAX))
}

fn persistence(persist: Persist) -> Arg<'static> {
    match persist {
        Persist::Forever => Arg::Number(PERSISTENT),
        Persist::For(ttl) => Arg::Number(codec::millis(ttl)),
    }
}

fn figures(times: LeaseTimes) -> [Arg<'static>; 3] {
    let figure = |duration| Arg::Number(i64::try_from(codec::micros(duration)).unwrap_or(i64::MAX));
    [figure(times.lease), figure(times.grace), figure(times.gap)]
}
