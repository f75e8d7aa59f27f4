//! What the driver's operations share: where a call goes, and what the cache may keep of its answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{ClientPlace, ClientShared, KnownService, Target};
use crate::cache::{Entry, Ticket};
use crate::clock::Tick;
use crate::config::OnRestart;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Incarnation, LinkId, Namespace, PodIndex, ServiceId, Token, Uid};
use crate::namespace::Home;
use crate::op::{Get, LinkSource, LinksRead, SetIfAbsent, UnreadableLink};
use crate::route::link::{Holder, StoredLink, valid_until};
use crate::route::state::Standing;

impl Target {
    /// What the cache is to hold: the pod as the process that it is now.
    pub(super) fn entry(
        &self,
        pod: PodIndex,
        holder: Option<Holder>,
        valid_until: Tick,
        now: Tick,
    ) -> Entry {
        Entry {
            pod,
            incarnation: self.incarnation(pod, now),
            owner: holder.map_or(Incarnation::NONE, |holder| holder.incarnation),
            token: holder.map_or(Token::NONE, |holder| holder.token),
            service: self.known.number,
            valid_until,
        }
    }

    pub(super) fn incarnation(&self, pod: PodIndex, now: Tick) -> Incarnation {
        let view = self.known.watched.current(now);
        let view = view.as_ref().and_then(|view| view.as_ref());
        view.map_or(Incarnation::NONE, |view| view.incarnation(pod))
    }

    fn drains(&self, pod: PodIndex, now: Tick) -> bool {
        let view = self.known.watched.current(now);
        let view = view.as_ref().and_then(|view| view.as_ref());
        view.is_some_and(|view| view.standing(pod, now) == Standing::Draining)
    }
}

impl ClientShared {
    pub(super) fn open(&self) -> Result<()> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::new(
                ErrorKind::Closed,
                "the client driver was closed",
            ));
        }
        Ok(())
    }

    /// The links that could be read. The others are counted, and logged once for each reading. Only
    /// DEBUG shows their keys, because those hold the uid.
    pub(super) fn readable<T>(&self, namespace: &Namespace, read: LinksRead<T>) -> T {
        if let Some(first) = read.unreadable.first() {
            let (links, uid_hash) = (read.unreadable.len(), first.uid.hashed());
            let corrupt = &self.stats.corrupt_links;
            corrupt.fetch_add(u64::try_from(links).unwrap_or(u64::MAX), Ordering::Relaxed);
            tracing::warn!(%namespace, links, uid_hash, "links that cannot be read were left out");
        }
        for UnreadableLink { error, .. } in &read.unreadable {
            tracing::debug!(%namespace, %error, "a link that cannot be read was left out");
        }
        read.links
    }

    /// Checks that the call can be served, and finds its service.
    pub(super) fn target(self: &Arc<Self>, link: LinkId) -> Result<Target> {
        self.open()?;
        self.sweeper.start(self);
        let place = self.places.get(&link.service.namespace)?;
        let known = self.known(place, &link.service);
        Ok(Target {
            key: known.scope.key(link.uid.as_str()),
            home: place.home.clone(),
            link,
            known,
        })
    }

    /// The same for a service of the driver's own that is known already: nothing but the uid is
    /// checked and copied.
    pub(super) fn target_at_once(
        &self,
        namespace: Option<&str>,
        uid: &str,
        service: &str,
    ) -> Result<Option<Target>> {
        let own = |name: &str| name.is_empty() || name == self.places.own().as_str();
        if self.closed.load(Ordering::SeqCst) || !namespace.is_none_or(own) {
            return Ok(None);
        }
        let place = self.places.here();
        let known = place.known.get(service);
        let Some(known) = known.filter(|known| !known.watched.is_retired()) else {
            return Ok(None);
        };
        let link = LinkId {
            service: known.id.clone(),
            uid: Uid::new(uid)?,
        };
        Ok(Some(Target {
            key: known.scope.key(uid),
            home: place.home.clone(),
            link,
            known,
        }))
    }

    /// Where the operations of an open driver on this namespace are sent.
    pub(super) fn home(&self, namespace: &Namespace) -> Result<&Home> {
        self.open()?;
        Ok(&self.places.get(namespace)?.home)
    }

    /// What is offered to a user who has no link.
    pub(super) fn offer(&self, target: &Target, pod: PodIndex) -> SetIfAbsent {
        SetIfAbsent {
            link: target.link.clone(),
            pod,
            ttl: self.config.link_ttl,
        }
    }

    fn known(&self, place: &ClientPlace, id: &ServiceId) -> Arc<KnownService> {
        let (table, states) = (&place.known, place.pods.states());
        let name = id.service.as_str();
        if let Some(known) = table.get(name)
            && !known.watched.is_retired()
        {
            return known;
        }
        let watched = states.service(id);
        let make = |earlier: Option<&KnownService>| {
            let next = || self.numbers.fetch_add(1, Ordering::Relaxed);
            KnownService {
                id: id.clone(),
                // A service keeps its number when it comes back after a time without use.
                number: earlier.map_or_else(next, |known| known.number),
                scope: self.cache.scope(id),
                watched: Arc::clone(&watched),
            }
        };
        table.put(name, make);
        // A driver that was closed meanwhile has forgotten it already.
        table.get(name).unwrap_or_else(|| Arc::new(make(None)))
    }

    /// The cached pod, unless the known state of the pods contradicts it.
    pub(super) fn valid_pod(&self, target: &Target) -> Option<PodIndex> {
        let now = self.clock.now();
        let entry = self.cache.get(target.key, now)?;
        let view = target.known.watched.current(now);
        let valid = view
            .as_ref()
            .and_then(|view| view.as_ref())
            .is_none_or(|view| match entry.incarnation {
                // The pod was unknown then: only its state as it is now can contradict it.
                Incarnation::NONE => {
                    let standing = view.standing(entry.pod, now);
                    standing == Standing::Unknown || standing.is_available()
                }
                incarnation => view.serves(entry.pod, incarnation, now),
            });
        valid.then_some(entry.pod)
    }

    /// The link from where it is kept; the cache keeps it, too.
    pub(super) async fn fetch(
        &self,
        target: &Target,
        from: LinkSource,
        deadline: Tick,
    ) -> Result<Option<PodIndex>> {
        let (ticket, asked) = (self.cache.ticket(target.key), self.clock.now());
        let get = Get {
            link: target.link.clone(),
            from,
        };
        let found = target.home.ask(get, deadline).await?;
        let Some(link) = found else { return Ok(None) };
        if target.home.is_foreign() {
            self.remember_watched(target, link, asked, ticket, deadline)
                .await;
        } else {
            // So that the cache knows which process of the pod it means. If the pods cannot be
            // read, the answer is good all the same.
            let _unknown = target.known.watched.view(&self.clock, deadline).await;
            self.remember(target, link, asked, ticket);
        }
        Ok(Some(link.pod))
    }

    /// Keeps a peer's answer for as long as the peer allows, if the peer's pods are read, too: an
    /// answer whose pod is not watched is not kept.
    pub(super) async fn remember_watched(
        &self,
        target: &Target,
        link: StoredLink,
        asked: Tick,
        ticket: Ticket,
        deadline: Tick,
    ) {
        let kept = valid_until(asked, link.life, self.config.cache_ttl).is_some();
        let watched = &target.known.watched;
        if kept && watched.view(&self.clock, deadline).await.is_ok() {
            self.remember(target, link, asked, ticket);
        }
    }

    /// Keeps an answer in the cache, unless the next compute could not give it: a hint whose pod
    /// refused the user, and the link to a pod that drains, which gives up its users one by one.
    pub(super) fn remember(&self, target: &Target, link: StoredLink, asked: Tick, ticket: Ticket) {
        let now = self.clock.now();
        let Some(valid_until) = valid_until(asked, link.life, self.config.cache_ttl) else {
            return;
        };
        let refused = match link.holder {
            Some(_) => {
                self.refusals.forget(target.key);
                false
            }
            None => self.refusals.of(target.key, now).contains(&link.pod),
        };
        if refused || target.drains(link.pod, now) {
            self.overrule(target, ticket);
            return;
        }
        let entry = target.entry(link.pod, link.holder, valid_until, now);
        self.cache.insert(target.key, entry, ticket);
    }

    /// Removes an older answer, which every compute would have to examine. Where users of restarted
    /// pods are placed from scratch, it is what shows that a pod has restarted.
    pub(super) fn overrule(&self, target: &Target, ticket: Ticket) {
        if self.config.on_restart == OnRestart::SamePod {
            self.cache.drop_older(target.key, ticket);
        }
    }
}
