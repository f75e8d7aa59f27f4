//! Link operations across namespaces: this namespace's own, for callers in others, and what others
//! tell of their pods.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use super::client::ClientDriver;
use super::info::InfoDriver;
use super::states::{Audience, PodSource, StateCache, Watched};
use crate::clock::{Clock, Tick};
use crate::config::ClientConfig;
use crate::error::{Error, Result};
use crate::id::{LinkId, Namespace, PodIndex, ServiceId, ServiceName, Tag, Uid};
use crate::route::link::{Life, Persist, Removal, StoredLink};
use crate::route::snapshot::Change;
use crate::route::state::PodRecord;
use crate::rpc::{Believed, ChangeStream, LinkOperations, Source, UsersByPod};
use crate::store::{Changes, Pods, PodsReading, Store};

/// Every link operation on the namespace of these drivers.
#[derive(Debug)]
pub struct LocalOperations {
    executor: Arc<dyn Store>,
    client: ClientDriver,
    info: InfoDriver,
    config: ClientConfig,
}

impl LocalOperations {
    /// Operations through these drivers, which share the store `executor`.
    #[must_use]
    pub fn new(
        executor: Arc<dyn Store>,
        client: ClientDriver,
        info: InfoDriver,
        config: ClientConfig,
    ) -> Self {
        Self {
            executor,
            client,
            info,
            config,
        }
    }

    /// Drivers of their own on this store.
    #[must_use]
    pub fn on(
        executor: Arc<dyn Store>,
        clock: Clock,
        namespace: Namespace,
        config: ClientConfig,
        info: InfoDriver,
    ) -> Self {
        let client = ClientDriver::new(
            Arc::clone(&executor),
            clock,
            namespace,
            config.clone(),
            &info,
            None,
            HashMap::new(),
        );
        Self::new(executor, client, info, config)
    }

    /// Ends the drivers.
    pub fn close(&self) {
        self.client.close();
        self.info.close();
    }

    /// The pod, and how long this process itself believes that.
    fn believed(&self, link: &LinkId, pod: PodIndex) -> Believed {
        Believed {
            pod,
            valid_for: self.client.believed_for(link),
        }
    }

    /// A link straight from the store.
    fn stored(&self, link: StoredLink) -> Believed {
        let valid_for = match link.life {
            Life::Persistent => self.config.cache_ttl,
            Life::Temporary(left) => left.min(self.config.cache_ttl),
        };
        Believed {
            pod: link.pod,
            valid_for: Some(valid_for),
        }
    }
}

#[async_trait]
impl LinkOperations for LocalOperations {
    async fn compute(&self, link: &LinkId, deadline: Tick) -> Result<Believed> {
        let pod = self
            .client
            .compute_linked_pod(link.clone(), deadline)
            .await?;
        Ok(self.believed(link, pod))
    }

    async fn get(&self, link: &LinkId, from: Source, deadline: Tick) -> Result<Option<Believed>> {
        let (client, asked) = (&self.client, link.clone());
        let found = match from {
            Source::Store => {
                let stored = self.executor.get(link, deadline).await?;
                return Ok(stored.map(|link| self.stored(link)));
            }
            Source::CacheOrStore => client.get_linked_pod(asked, deadline).await?,
            Source::CacheOrPersistent => {
                client
                    .get_linked_pod_in_cache_or_if_persist(asked, deadline)
                    .await?
            }
        };
        Ok(found.map(|pod| self.believed(link, pod)))
    }

    async fn batch_get(
        &self,
        service: &ServiceId,
        uids: Vec<Uid>,
        deadline: Tick,
    ) -> Result<UsersByPod> {
        self.client
            .batch_get_linked_pod(service, uids, deadline)
            .await
    }

    async fn services(
        &self,
        namespace: &Namespace,
        uid: &Uid,
        deadline: Tick,
    ) -> Result<BTreeMap<ServiceName, PodIndex>> {
        self.client.get_link_service(namespace, uid, deadline).await
    }

    async fn set_if_absent(
        &self,
        link: &LinkId,
        pod: PodIndex,
        deadline: Tick,
    ) -> Result<Believed> {
        let owner = self
            .client
            .set_linked_pod_if_absent(link.clone(), pod, deadline)
            .await?;
        Ok(self.believed(link, owner))
    }

    async fn set(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<Option<PodIndex>> {
        let previous = self.executor.set(link, pod, persist, deadline).await;
        // Whatever happened, what was known of the link before is worth nothing.
        let _forgotten = self.client.cache_expired(link.clone());
        previous
    }

    async fn try_set(
        &self,
        link: &LinkId,
        pod: PodIndex,
        persist: Persist,
        deadline: Tick,
    ) -> Result<(bool, PodIndex)> {
        let placed = self.executor.try_set(link, pod, persist, deadline).await;
        let _forgotten = self.client.cache_expired(link.clone());
        placed.map(|placed| (placed.made, placed.link.pod))
    }

    async fn remove(
        &self,
        link: &LinkId,
        owner: Option<PodIndex>,
        removal: Removal,
        deadline: Tick,
    ) -> Result<bool> {
        let removed = self.executor.remove(link, owner, removal, deadline).await;
        let _forgotten = self.client.cache_expired(link.clone());
        removed.map(|removed| removed.done)
    }

    async fn pods(&self, service: &ServiceId, deadline: Tick) -> Result<Vec<PodRecord>> {
        self.info.records(service, deadline).await
    }

    async fn service_by_tag(
        &self,
        namespace: &Namespace,
        tag: &Tag,
        deadline: Tick,
    ) -> Result<Option<ServiceName>> {
        self.info.service_by_tag(namespace, tag, deadline).await
    }

    async fn watch(&self, service: &ServiceId, _deadline: Tick) -> Result<ChangeStream> {
        /// Who is further behind than this looks at the pods instead.
        const BEHIND_MAX: usize = 64;
        let (tell, told) = mpsc::channel(BEHIND_MAX);
        let states = self.info.states();
        let audience: Arc<dyn Audience> = Arc::new(Teller {
            service: service.clone(),
            tell: Mutex::new(Some(tell)),
        });
        states.tell(Arc::clone(&audience));
        let seat = Seat {
            audience,
            watched: self.info.watch(service).ok(),
            states,
        };
        let next = |(mut told, seat): (mpsc::Receiver<Vec<Change>>, Seat)| async move {
            let changes = told.recv().await?;
            Some((changes, (told, seat)))
        };
        Ok(stream::unfold((told, seat), next).boxed())
    }

    async fn ready(&self, deadline: Tick) -> Result<()> {
        self.executor.ping(deadline).await
    }
}

/// Tells one stream of the changes of one service.
#[derive(Debug)]
struct Teller {
    service: ServiceId,
    /// Gone once the listener could not keep up: it hears the end, and looks at the pods.
    tell: Mutex<Option<mpsc::Sender<Vec<Change>>>>,
}

impl Audience for Teller {
    fn hear(&self, service: &ServiceId, changes: &[Change]) {
        if *service != self.service {
            return;
        }
        let mut tell = self.tell.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = tell
            .as_ref()
            .is_some_and(|tell| tell.try_send(changes.to_vec()).is_err());
        if lost {
            *tell = None;
        }
    }
}

/// A listener's place; given up when its stream is dropped.
struct Seat {
    states: Arc<StateCache>,
    audience: Arc<dyn Audience>,
    watched: Option<Arc<Watched>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.states.tell_no_more(&self.audience);
        if let Some(watched) = &self.watched {
            watched.unpin();
        }
    }
}

/// The pods of other namespaces, as their peers tell.
#[derive(Debug)]
pub(super) struct PeerPods(pub(super) HashMap<Namespace, Arc<dyn LinkOperations>>);

impl PeerPods {
    fn peer(&self, service: &ServiceId) -> Result<&Arc<dyn LinkOperations>> {
        let namespace = &service.namespace;
        let nobody = || super::unreachable(namespace, namespace, self.0.keys());
        self.0.get(namespace).ok_or_else(nobody)
    }
}

#[async_trait]
impl PodSource for PeerPods {
    async fn pods(&self, service: &ServiceId, _last: &PodsReading, deadline: Tick) -> Result<Pods> {
        let records = self.peer(service)?.pods(service, deadline).await?;
        Ok(Pods {
            records,
            ..Pods::default()
        })
    }

    async fn listen(&self, service: &ServiceId, deadline: Tick) -> Result<Changes> {
        let mut told = self.peer(service)?.watch(service, deadline).await?;
        let (tell, changes) = mpsc::channel(1);
        // It ends with the stream, or when nobody listens any more.
        tokio::spawn(async move {
            loop {
                let news = tokio::select! {
                    () = tell.closed() => return,
                    news = told.next() => news,
                };
                if news.is_none() {
                    return;
                }
                // One that waits already is enough: it only says that something changed.
                let _waits = tell.try_send(());
            }
        });
        Ok(Changes::new(changes))
    }

    async fn trouble(&self, _deadline: Tick) -> Option<Error> {
        // The peer's own calls say what is wrong with it.
        None
    }
}
