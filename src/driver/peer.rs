//! This namespace as its peers see it: every operation that they may send, run by drivers of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use super::client::{ClientDriver, Misrouted};
use super::info::{InfoDriver, Subscription};
use super::states::ChangeListener;
use super::writes;
use crate::clock::{Clock, Tick};
use crate::config::ClientConfig;
use crate::error::Result;
use crate::id::{LinkId, Namespace, PodIndex, ServiceId};
use crate::op::{Call, Compute, Computed, Get, LinkSource, PodAbout, Pods, Reply, SetIfAbsent};
use crate::route::link::{Holder, Life, Placed, StoredLink};
use crate::route::snapshot::Change;
use crate::rpc::{ChangeStream, Peer, is_carried, only_within};
use crate::store::Store;

/// The namespace of these drivers, for callers in others.
#[derive(Debug)]
pub struct LocalPeer {
    store: Arc<dyn Store>,
    client: ClientDriver,
    info: InfoDriver,
    config: ClientConfig,
}

impl LocalPeer {
    /// Operations through these drivers, which share the store.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        client: ClientDriver,
        info: InfoDriver,
        config: ClientConfig,
    ) -> Self {
        Self {
            store,
            client,
            info,
            config,
        }
    }

    /// Drivers of their own on this store.
    #[must_use]
    pub fn on(
        store: Arc<dyn Store>,
        clock: Clock,
        namespace: Namespace,
        config: ClientConfig,
        info: InfoDriver,
    ) -> Self {
        let client = ClientDriver::new(
            Arc::clone(&store),
            clock,
            namespace,
            config.clone(),
            &info,
            None,
            &HashMap::new(),
        );
        Self::new(store, client, info, config)
    }

    /// Ends the drivers.
    pub fn close(&self) {
        self.client.close();
        self.info.close();
    }

    /// The pod, for as long as this process itself caches it, and who owns the user there.
    fn cached_link(&self, link: &LinkId, pod: PodIndex) -> StoredLink {
        let cached = self.client.cached_link(link);
        let cached = cached.filter(|cached| cached.pod == pod);
        cached.unwrap_or(StoredLink::unowned(pod, Life::Temporary(Duration::ZERO)))
    }

    async fn compute(&self, compute: &Compute, deadline: Tick) -> Result<Computed> {
        for pod in &compute.refused {
            let report = Misrouted::by(*pod);
            self.client.misrouted(compute.link.clone(), report)?;
        }
        let link = compute.link.clone();
        if !compute.describe {
            let routed = self.client.compute_link(link, deadline).await?;
            let link = self.routed_link(compute, routed.pod, routed.holder);
            return Ok(Computed { link, about: None });
        }
        let route = self.client.route(link, deadline).await?;
        let link = self.routed_link(compute, route.pod, route.holder);
        let metadata = route.state.map(|state| state.metadata.clone());
        let about = PodAbout {
            address: route.address,
            metadata: metadata.unwrap_or_default(),
        };
        let about = Some(Box::new(about));
        Ok(Computed { link, about })
    }

    fn routed_link(&self, of: &Compute, pod: PodIndex, holder: Option<Holder>) -> StoredLink {
        StoredLink {
            holder,
            ..self.cached_link(&of.link, pod)
        }
    }

    /// A link straight from the store, for as long as a cache here would keep it.
    fn stored(&self, link: StoredLink) -> StoredLink {
        let left = match link.life {
            Life::Persistent => self.config.cache_ttl,
            Life::Temporary(left) => left.min(self.config.cache_ttl),
        };
        StoredLink {
            life: Life::Temporary(left),
            ..link
        }
    }

    async fn get(&self, get: &Get, deadline: Tick) -> Result<Option<StoredLink>> {
        let (client, link) = (&self.client, get.link.clone());
        let found = match get.from {
            LinkSource::Store => {
                let stored = client.get_linked_pod_not_cache(link, deadline).await?;
                return Ok(stored.map(|link| self.stored(link)));
            }
            LinkSource::CacheOrStore => client.get_linked_pod(link, deadline).await?,
            LinkSource::CacheOrPersistent => {
                client
                    .get_linked_pod_in_cache_or_if_persist(link, deadline)
                    .await?
            }
        };
        Ok(found.map(|pod| self.cached_link(&get.link, pod)))
    }

    async fn set_if_absent(&self, set: &SetIfAbsent, deadline: Tick) -> Result<Placed> {
        let (link, pod) = (set.link.clone(), set.pod);
        let owner = self
            .client
            .set_linked_pod_if_absent(link, pod, deadline)
            .await?;
        Ok(Placed {
            link: self.cached_link(&set.link, owner),
            made: owner == set.pod,
        })
    }

    /// A write that goes straight to the store. Whether it fails or not, the cached link is not valid
    /// any more.
    async fn write(&self, call: &Call, deadline: Tick) -> Result<Reply> {
        let store = &*self.store;
        let written = match call {
            Call::Set(set) => writes::set(store, set, deadline).await.map(Reply::Set),
            Call::Remove(remove) => {
                let removed = writes::remove(store, remove, deadline).await;
                removed.map(Reply::Remove)
            }
            other => store.call(other, deadline).await,
        };
        if let Some(link) = call.link() {
            let _forgotten = self.client.cache_expired(link.clone());
        }
        written
    }
}

#[async_trait]
impl Peer for LocalPeer {
    async fn call(&self, call: &Call, deadline: Tick) -> Result<Reply> {
        match call {
            Call::Compute(compute) => {
                let computed = self.compute(compute, deadline).await;
                computed.map(Reply::Compute)
            }
            Call::Get(get) => self.get(get, deadline).await.map(Reply::Get),
            Call::BatchGet(batch) => {
                let uids = Arc::clone(&batch.uids);
                let pods = self
                    .client
                    .batch_get_linked_pod(&batch.service, uids, deadline);
                pods.await.map(|pods| Reply::BatchGet(pods.into()))
            }
            Call::Services(services) => {
                let (namespace, uid) = (&services.namespace, &services.uid);
                let found = self.client.get_link_service(namespace, uid, deadline);
                found.await.map(|found| Reply::Services(found.into()))
            }
            Call::SetIfAbsent(set) => {
                let placed = self.set_if_absent(set, deadline).await;
                placed.map(Reply::SetIfAbsent)
            }
            Call::ReadPods(read) => {
                let records = self.info.records(&read.service, deadline).await?;
                let pods = Pods {
                    records,
                    ..Pods::default()
                };
                Ok(Reply::ReadPods(Box::new(pods)))
            }
            Call::GetTag(get) => {
                let found = self.info.service_by_tag(&get.namespace, &get.tag, deadline);
                found.await.map(Reply::GetTag)
            }
            Call::Ping(_) => self.store.call(call, deadline).await,
            // What else is carried across namespaces is a write to one link.
            _ if is_carried(call) => self.write(call, deadline).await,
            _ => Err(only_within(call.name())),
        }
    }

    async fn watch(&self, service: &ServiceId, _deadline: Tick) -> Result<ChangeStream> {
        /// A listener that is further behind than this reads the pods instead.
        const BEHIND_MAX: usize = 64;
        let (publish, published) = mpsc::channel(BEHIND_MAX);
        let listener: Arc<dyn ChangeListener> = Arc::new(Publisher {
            service: service.clone(),
            publish: Mutex::new(Some(publish)),
        });
        let subscription = self
            .info
            .subscribe(&service.namespace, Some(service), listener)?;
        let subscription = StreamSubscription(subscription);
        let next = |(mut published, subscription): (
            mpsc::Receiver<Vec<Change>>,
            StreamSubscription,
        )| async move {
            let changes = published.recv().await?;
            Some((changes, (published, subscription)))
        };
        Ok(stream::unfold((published, subscription), next).boxed())
    }
}

/// Publishes the changes of one service to one stream.
#[derive(Debug)]
struct Publisher {
    service: ServiceId,
    /// Gone once the listener could not keep up: its stream ends, and it reads the pods.
    publish: Mutex<Option<mpsc::Sender<Vec<Change>>>>,
}

impl ChangeListener for Publisher {
    fn on_change(&self, service: &ServiceId, changes: &[Change]) {
        if *service != self.service {
            return;
        }
        let mut publish = self.publish.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = publish
            .as_ref()
            .is_some_and(|publish| publish.try_send(changes.to_vec()).is_err());
        if lost {
            *publish = None;
        }
    }
}

/// A stream's subscription, which ends when the stream is dropped.
struct StreamSubscription(Arc<Subscription>);

impl Drop for StreamSubscription {
    fn drop(&mut self) {
        self.0.end();
    }
}
