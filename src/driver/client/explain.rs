//! explain: what compute would do with a user now, and why. Reads, and changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::cached::KnownService;
use super::place::FRESH;
use super::{ClientDriver, ClientPlace, ClientShared};
use crate::cache::Entry;
use crate::clock::Tick;
use crate::config::OnRestart;
use crate::driver::view::View;
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Incarnation, LinkId, PodIndex, Token};
use crate::namespace::Home;
use crate::op::{Get, Inspect, Inspection, LinkSource, OperationName, Read};
use crate::route::explain::{Action, CandidateReport, Facts, Forecast, foresee, weigh};
use crate::route::link::{Certificate, Foretold, Holder, Life, Owner, StoredLink};
use crate::route::pick::{Candidate, Chance, Strategy};
use crate::route::plan::{Cached, Look, Opening, Reason, Stale, cached, opening};
use crate::route::snapshot::Pod;
use crate::route::state::{PodState, Renewal};

/// The standing of a pod whose lease is over and that no driver has judged, because the whole
/// service is silent. A client that polls takes that for an outage of the store, and keeps the pod.
const SILENT: &str = "SILENT";

/// What is known of a user, and what compute would do. Times are seconds.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    namespace: String,
    uid: String,
    service_name: String,
    /// Whether the namespace is another one, whose peer was asked.
    foreign: bool,
    link: Option<LinkReport>,
    /// Who owns the user by the store's record, which need not be the link's pod: another program
    /// may have written the link.
    owner: Option<OwnerReport>,
    /// The record and the link contradict each other.
    overwritten: bool,
    /// The pods that said "not mine" of late.
    refused_by: Vec<PodIndex>,
    cache: CacheReport,
    /// Every pod that the store, or the peer, shows, and the user's own even if it is unknown.
    pods: Vec<PodFacts>,
    strategy: &'static str,
    overload_limit: Option<i64>,
    /// Whether every READY pod is over the overload limit, and the least loaded stands in.
    degraded: bool,
    candidates: Vec<CandidateReport>,
    /// How old the reading of the pods is that compute would begin with; `None`: it has none.
    pods_age: Option<f64>,
    action: Action,
    reason: Reason,
    /// The pods that compute may answer.
    answers: Vec<PodIndex>,
    /// Until the death of the user's pod is certain.
    certain_in: Option<f64>,
    trouble: Option<FailureReport>,
}

impl Explanation {
    /// As one JSON object.
    ///
    /// # Errors
    /// `Internal`, which would be a bug here.
    pub fn json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| {
            Error::new(ErrorKind::Internal, "an explanation is not JSON").caused_by(error)
        })
    }

    /// What compute would do.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }

    /// Why.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The pods that compute may answer.
    #[must_use]
    pub fn answers(&self) -> &[PodIndex] {
        &self.answers
    }
}

/// The stored link.
#[derive(Debug, Clone, Copy, Serialize)]
struct LinkReport {
    pod: PodIndex,
    /// `None`: a peer does not publish it.
    persistent: Option<bool>,
    /// The time left of a temporary one, or how long a peer's may be cached.
    left: Option<f64>,
}

/// An ownership record.
#[derive(Debug, Clone, Copy, Serialize)]
struct OwnerReport {
    pod: PodIndex,
    incarnation: Option<u64>,
    token: u64,
}

/// What the cache holds.
#[derive(Debug, Clone, Copy, Serialize)]
struct CacheReport {
    state: &'static str,
    why: Option<Stale>,
    pod: Option<PodIndex>,
    incarnation: Option<Incarnation>,
    token: Option<u64>,
    left: Option<f64>,
}

/// One pod.
#[derive(Debug, Clone, Serialize)]
struct PodFacts {
    pod: PodIndex,
    standing: &'static str,
    /// How long it has been silent, if its standing is `SILENT`.
    silent: Option<f64>,
    /// What it published last; nothing if it never did, or was withdrawn.
    #[serde(flatten)]
    published: Option<PublishedState>,
    lease_left: f64,
    /// Of its death: `certified`, `due`, `not_yet`, or `None` if it is unknown.
    death: Option<&'static str>,
    certain_in: Option<f64>,
}

#[derive(Debug, Clone, Serialize)]
struct PublishedState {
    routing_state: &'static str,
    state: &'static str,
    load_state: i64,
    update_time: u64,
    incarnation: Incarnation,
    /// Since it was published, by the store's clock; a peer does not publish that.
    age: Option<f64>,
    metadata: BTreeMap<String, String>,
}

/// Why the store or the peer could not be asked.
#[derive(Debug, Clone, Serialize)]
struct FailureReport {
    code: &'static str,
    message: String,
}

impl From<Error> for FailureReport {
    fn from(error: Error) -> Self {
        let error = error.during(OperationName::Explain);
        Self {
            code: error.kind().code(),
            message: error.to_string(),
        }
    }
}

impl ClientDriver {
    /// Explains what compute would do with the user now, and why. Nothing changes: not the store,
    /// not the cache, not what is known of the pods, no counter of the driver's.
    ///
    /// # Errors
    /// `Closed`. What the store or the peer fails with is part of the explanation.
    pub async fn explain(&self, link: LinkId, deadline: Tick) -> Result<Explanation> {
        let shared = &*self.shared;
        shared.open()?;
        let place = shared.places.get(&link.service.namespace)?;
        match read(shared, &place.home, &link, deadline).await {
            Err(error) if error.kind() == ErrorKind::Closed => Err(error),
            read => Ok(ExplainCase::new(shared, place, &link, read).explain()),
        }
    }
}

/// The answers of the store or the peer.
#[derive(Default)]
struct LinkAndPods {
    link: Option<StoredLink>,
    record: Option<Owner>,
    found: Inspection,
    asked: Tick,
}

async fn read(
    shared: &ClientShared,
    home: &Home,
    link: &LinkId,
    deadline: Tick,
) -> Result<LinkAndPods> {
    let (stored, record) = read_link(home, link, deadline).await?;
    let asked = shared.clock.now();
    let inspect = Inspect {
        service: link.service.clone(),
    };
    let found = home.ask(inspect, deadline).await?;
    Ok(LinkAndPods {
        link: stored,
        record,
        found: *found,
        asked,
    })
}

/// The link and the ownership record. A peer answers only what both agree on.
async fn read_link(
    home: &Home,
    link: &LinkId,
    deadline: Tick,
) -> Result<(Option<StoredLink>, Option<Owner>)> {
    let link = link.clone();
    if home.is_foreign() {
        let from = LinkSource::Store;
        let stored = home.ask(Get { link, from }, deadline).await?;
        let record = stored.and_then(|stored| {
            let Holder { incarnation, token } = stored.holder?;
            Some(Owner {
                pod: stored.pod,
                incarnation,
                token,
            })
        });
        return Ok((stored, record));
    }
    let found = home.ask(Read { link }, deadline).await?.readable()?;
    Ok((found.link, found.record))
}

/// One user's case.
struct ExplainCase<'a> {
    shared: &'a ClientShared,
    id: &'a LinkId,
    place: &'a ClientPlace,
    now: Tick,
    known: Option<Arc<KnownService>>,
    /// The pods as compute would see them at first.
    seen: Option<Arc<View>>,
    /// The pods as they are.
    fresh: View,
    entry: Option<Entry>,
    link: Option<StoredLink>,
    record: Option<Owner>,
    refused: Vec<PodIndex>,
    found: Inspection,
    trouble: Option<FailureReport>,
}

impl<'a> ExplainCase<'a> {
    fn new(
        shared: &'a ClientShared,
        place: &'a ClientPlace,
        id: &'a LinkId,
        read: Result<LinkAndPods>,
    ) -> Self {
        // What is known of the service if it was ever asked for; it is not asked for now.
        let known = place.known.get(id.service.service.as_str());
        let seen = known.as_ref().and_then(|known| known.watched.unused());
        let scope = shared.cache.scope(&id.service);
        let (read, trouble) = match read {
            Ok(read) => (read, None),
            Err(error) => (LinkAndPods::default(), Some(FailureReport::from(error))),
        };
        let states = place.pods.states();
        states.later.note(&id.service, &read.found.pods);
        let fresh = states.view(read.found.pods.clone(), read.asked, seen.as_deref());
        let (key, now) = (scope.key(id.uid.as_str()), shared.clock.now());
        Self {
            entry: shared.cache.peek(key),
            refused: shared.refusals.of(key, now),
            now,
            link: read.link,
            record: read.record,
            found: read.found,
            shared,
            id,
            place,
            known,
            seen,
            fresh,
            trouble,
        }
    }

    fn explain(self) -> Explanation {
        let cached = self.cached();
        let forecast = self.forecast(cached);
        // What compute would choose from; without a choice, what it sees.
        let view = match &self.seen {
            Some(seen) if self.trouble.is_some() || !forecast.fresh => seen,
            _ => &self.fresh,
        };
        let candidates = self.candidates(view, forecast.choices_before);
        let (namespace, service) = (&self.id.service.namespace, &self.id.service.service);
        let age = |seen: &Arc<View>| self.now.since(seen.snapshot.asked()).as_secs_f64();
        Explanation {
            namespace: namespace.as_str().to_owned(),
            uid: self.id.uid.as_str().to_owned(),
            service_name: service.as_str().to_owned(),
            foreign: self.place.home.is_foreign(),
            link: self.link_report(),
            owner: self.owner_report(),
            overwritten: self.is_overwritten(),
            refused_by: self.refused.clone(),
            cache: self.cache_report(cached),
            pods: self.pods(),
            strategy: self.strategy().as_str(),
            overload_limit: self.place.pods.states().config().overload_limit,
            degraded: view.degraded,
            answers: self.answers(&forecast, &candidates),
            candidates,
            pods_age: self.seen.as_ref().map(age),
            action: forecast.action,
            reason: self.reason(&forecast),
            certain_in: forecast.uncertain_for.map(|left| left.as_secs_f64()),
            trouble: self.trouble,
        }
    }

    fn look(&self, view: &View, pod: Option<PodIndex>) -> Look {
        view.look(pod, self.now, &self.refused)
    }

    fn cached(&self) -> Cached {
        let Some(entry) = self.entry else {
            return Cached::Absent;
        };
        let pod = Some(entry.pod);
        let seen = self.seen.as_ref().map(|seen| self.look(seen, pod));
        let in_time = self.now < entry.valid_until;
        cached(
            in_time,
            entry.incarnation,
            seen,
            self.look(&self.fresh, pod),
        )
    }

    fn forecast(&self, cached: Cached) -> Forecast {
        let certainly = |action, reason| Forecast {
            action,
            reason,
            uncertain_for: None,
            fresh: false,
            choices_before: 0,
        };
        let failed = self.trouble.is_some();
        match opening(cached, self.place.home.is_foreign()) {
            Opening::Cached => certainly(Action::AnswerFromCache, Reason::Cached),
            Opening::AskPeer if failed => certainly(Action::Fail, Reason::PeerTrouble),
            Opening::AskPeer => certainly(Action::AskPeer, Reason::ForeignNamespace),
            Opening::Adopt => certainly(Action::AnswerFromCache, Reason::SetByProgram),
            Opening::Plan if failed => certainly(Action::Fail, Reason::StoreTrouble),
            Opening::Plan => foresee(&self.facts()),
        }
    }

    /// Why, as far as one look shows: a pod that is silent is not known to be available.
    fn reason(&self, forecast: &Forecast) -> Reason {
        let owner = self.link.and_then(|link| self.pod(link.pod));
        let kept = matches!(forecast.reason, Reason::OwnerReady | Reason::OwnerDraining);
        match owner.and_then(|pod| self.silence(pod)) {
            Some(_) if kept => Reason::OwnerSilent,
            _ => forecast.reason,
        }
    }

    /// A pod as it is; without the store, as it was seen.
    fn pod(&self, index: PodIndex) -> Option<&Pod> {
        self.shown().snapshot.pod(index)
    }

    /// The pods as they are; without the store, as they were seen.
    fn shown(&self) -> &View {
        match &self.seen {
            Some(seen) if self.trouble.is_some() => seen,
            _ => &self.fresh,
        }
    }

    /// How long the pod has been silent, if that is not judged.
    fn silence(&self, pod: &Pod) -> Option<Duration> {
        let snapshot = &self.shown().snapshot;
        let alive = snapshot.standing(pod.state.pod_id, self.now).is_alive();
        let silence = pod.silence.filter(|_| alive)?;
        Some(silence + self.now.since(snapshot.asked()))
    }

    fn facts(&self) -> Facts {
        let owner = self.link.map(|link| link.pod);
        let young = |seen: &Arc<View>| self.now.since(seen.snapshot.asked()) <= FRESH;
        let remembers = |entry: &Entry| Some(entry.pod) == owner && self.now < entry.valid_until;
        let from_scratch = self.shared.config.on_restart == OnRestart::BestPod;
        let remembered = self.entry.filter(remembers).filter(|_| from_scratch);
        Facts {
            linked: self.link.is_some(),
            seen: self.seen.as_ref().map(|seen| self.look(seen, owner)),
            just_read: self.seen.as_ref().is_none_or(young),
            fresh: self.look(&self.fresh, owner),
            certificate: owner.and_then(|pod| self.certificate(pod)),
            refused: self.is_refused(),
            remembered: remembered.map(|entry| entry.incarnation),
        }
    }

    fn certificate(&self, pod: PodIndex) -> Option<Foretold> {
        self.found.certificates.get(&pod).copied()
    }

    fn strategy(&self) -> Strategy {
        match &self.shared.chooser {
            Some(_) => Strategy::Custom,
            None => self.shared.config.strategy,
        }
    }

    fn candidates(&self, view: &View, choices_before: u64) -> Vec<CandidateReport> {
        let strategy = self.strategy();
        let turn = self.known.as_ref().map_or(0, |known| known.watched.turn());
        let chance = Chance {
            turn: turn + choices_before,
            // Only strategies that leave nothing to chance are asked.
            random: (0, 0),
        };
        let uid = self.id.uid.as_str();
        let certain = view.would_choose(&self.refused, strategy, uid, chance, self.now);
        let mut candidates = view.candidates_with_sent(self.now);
        let willing = |(candidate, _): &(Candidate, f64)| !self.refused.contains(&candidate.pod);
        if candidates.iter().any(willing) {
            candidates.retain(willing);
        }
        weigh(strategy, &candidates, certain)
    }

    /// Whether the link is a hint whose pod said "not mine", and the store would let go of it.
    fn is_refused(&self) -> bool {
        self.link.is_some_and(|link| {
            let recorded = self.record.is_some_and(|record| record.pod == link.pod);
            !recorded && self.refused.contains(&link.pod)
        })
    }

    /// Whether another program has changed the link since a process came to own the user.
    fn is_overwritten(&self) -> bool {
        let confirmed = self.link.is_some_and(|link| link.holder.is_some());
        self.record.is_some() && !confirmed
    }

    fn owner_report(&self) -> Option<OwnerReport> {
        self.record.map(|record| OwnerReport {
            pod: record.pod,
            incarnation: (record.incarnation != Incarnation::NONE)
                .then_some(record.incarnation.get()),
            token: record.token.get(),
        })
    }

    /// A peer does not return whether a link is persistent, nor how long it lasts: only how long it
    /// may be cached, if at all.
    fn link_report(&self) -> Option<LinkReport> {
        let (link, foreign) = (self.link?, self.place.home.is_foreign());
        let left = match link.life {
            Life::Persistent => None,
            Life::Temporary(left) if foreign && left.is_zero() => None,
            Life::Temporary(left) => Some(left.as_secs_f64()),
        };
        Some(LinkReport {
            pod: link.pod,
            persistent: (!foreign).then_some(link.life == Life::Persistent),
            left,
        })
    }

    fn answers(&self, forecast: &Forecast, candidates: &[CandidateReport]) -> Vec<PodIndex> {
        let possible =
            |candidate: &&CandidateReport| candidate.chance.is_none_or(|chance| chance > 0.0);
        let chosen = || candidates.iter().filter(possible).map(|c| c.pod).collect();
        let owner = self.link.map(|link| link.pod);
        match forecast.action {
            Action::AnswerFromCache => self.entry.iter().map(|entry| entry.pod).collect(),
            Action::KeepLink | Action::KeepUntilCertain => owner.into_iter().collect(),
            Action::MakeLink | Action::MoveUser | Action::CertifyThenMove => chosen(),
            Action::AskPeer => match owner {
                Some(pod) if self.fresh.standing(pod, self.now).is_available() => vec![pod],
                // By its own strategy, which it does not publish.
                _ => candidates.iter().map(|candidate| candidate.pod).collect(),
            },
            Action::NoRoutablePod | Action::Fail => Vec::new(),
        }
    }

    fn cache_report(&self, cached: Cached) -> CacheReport {
        let (state, why) = match cached {
            Cached::Absent => ("absent", None),
            Cached::Valid | Cached::SetByProgram => ("valid", None),
            Cached::Stale(why) => ("stale", Some(why)),
        };
        let known = |entry: &Entry| {
            Some(entry.incarnation).filter(|incarnation| *incarnation != Incarnation::NONE)
        };
        let left = |entry: Entry| entry.valid_until.since(self.now).as_secs_f64();
        CacheReport {
            state,
            why,
            pod: self.entry.map(|entry| entry.pod),
            incarnation: self.entry.as_ref().and_then(known),
            token: self.entry.and_then(|entry| {
                let token = entry.token;
                (token != Token::NONE).then_some(token.get())
            }),
            left: self.entry.map(left),
        }
    }

    fn pods(&self) -> Vec<PodFacts> {
        let shown = self.shown().snapshot.pods().iter();
        let mut pods: BTreeMap<PodIndex, Option<&Pod>> =
            shown.map(|pod| (pod.state.pod_id, Some(pod))).collect();
        let own = [
            self.link.map(|link| link.pod),
            self.entry.map(|entry| entry.pod),
        ];
        for pod in own.into_iter().flatten() {
            pods.entry(pod).or_insert(None);
        }
        let records = self.found.pods.records.iter();
        let renewals: BTreeMap<PodIndex, Renewal> = records
            .map(|record| (record.state.pod_id, record.renewal))
            .collect();
        let facts = |(index, pod)| self.pod_facts(index, pod, renewals.get(&index));
        pods.into_iter().map(facts).collect()
    }

    fn pod_facts(&self, index: PodIndex, pod: Option<&Pod>, renewal: Option<&Renewal>) -> PodFacts {
        let (death, certain_in) = match self.certificate(index) {
            None => (None, None),
            Some(Foretold { written: true, .. }) => (Some("certified"), None),
            Some(foretold) => match foretold.certificate {
                Certificate::Alive { left, .. } => (Some("not_yet"), Some(left.as_secs_f64())),
                Certificate::Dead(_) | Certificate::Unknown => (Some("due"), None),
            },
        };
        let silent = pod.and_then(|pod| self.silence(pod));
        let standing = self.shown().standing(index, self.now).as_str();
        // Of its own renewal: what an outage would add is not known from one look.
        let lease_left = |pod: &Pod| {
            let left = pod.lease_until.since(self.now);
            renewal.map_or(left, |renewal| left.min(renewal.left))
        };
        let lease_left = pod.filter(|_| silent.is_none()).map(lease_left);
        PodFacts {
            pod: index,
            standing: silent.map_or(standing, |_| SILENT),
            silent: silent.map(|silent| silent.as_secs_f64()),
            published: pod.map(|pod| self.published(&pod.state)),
            lease_left: lease_left.unwrap_or_default().as_secs_f64(),
            death,
            certain_in,
        }
    }

    fn published(&self, state: &PodState) -> PublishedState {
        let age = Duration::from_millis(self.found.pods.now_ms.saturating_sub(state.update_time));
        PublishedState {
            routing_state: state.routing_state.as_str(),
            state: state.state.as_str(),
            load_state: state.load_state,
            update_time: state.update_time,
            incarnation: state.incarnation,
            age: (self.found.pods.now_ms > 0).then_some(age.as_secs_f64()),
            metadata: state.metadata.clone(),
        }
    }
}
