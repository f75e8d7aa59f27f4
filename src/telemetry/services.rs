//! Counters by service and pod, with a bound on the number of label values.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::names::{self, Metric, OTHER, PODS_MAX, SERVICES_MAX};
use super::snapshot::MetricsSnapshot;
use crate::id::{PodIndex, ServiceId};

/// The label values of a service and its pods.
#[derive(Debug)]
pub struct Naming {
    /// The namespace, or `other`.
    pub namespace: String,
    /// The service, or `other`.
    pub service: String,
    /// The pods that have series of their own; later ones are `other`. Never held across an await.
    pods: Mutex<HashSet<PodIndex>>,
}

impl Naming {
    fn new(namespace: &str, service: &str) -> Arc<Self> {
        Arc::new(Self {
            namespace: namespace.to_owned(),
            service: service.to_owned(),
            pods: Mutex::default(),
        })
    }

    /// The label value of this pod.
    #[must_use]
    pub fn pod(&self, pod: PodIndex) -> String {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if pods.len() < PODS_MAX {
            pods.insert(pod);
        }
        if pods.contains(&pod) {
            return pod.to_string();
        }
        OTHER.to_owned()
    }
}

/// The services that have series of their own: the first ones of a store, in order of first use.
/// All others are `other`. A service keeps its label for good.
#[derive(Debug, Default)]
pub struct ServiceNames(Mutex<HashMap<ServiceId, Arc<Naming>>>);

impl ServiceNames {
    /// The label values of this service.
    #[must_use]
    pub fn of(&self, service: &ServiceId) -> Arc<Naming> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(naming) = known.get(service) {
            return Arc::clone(naming);
        }
        if known.len() < SERVICES_MAX {
            let naming = Naming::new(service.namespace.as_str(), service.service.as_str());
            known.insert(service.clone(), Arc::clone(&naming));
            return naming;
        }
        Naming::new(OTHER, OTHER)
    }
}

/// One driver's counters of the links of each service.
#[derive(Debug, Default)]
pub struct ServiceCounters {
    names: OnceLock<Arc<ServiceNames>>,
    tallies: Mutex<HashMap<ServiceId, Arc<LinkTally>>>,
    /// Shared by all services that have no series of their own.
    rest: OnceLock<Arc<LinkTally>>,
}

impl ServiceCounters {
    pub(super) fn take_names(&self, names: &Arc<ServiceNames>) {
        // A driver belongs to one store, and registers before it counts anything.
        let _second_store = self.names.set(Arc::clone(names));
    }

    /// The label values of this service.
    #[must_use]
    pub fn name(&self, service: &ServiceId) -> Arc<Naming> {
        self.names.get_or_init(Arc::default).of(service)
    }

    /// The counters of this service's links.
    #[must_use]
    pub fn tally(&self, service: &ServiceId) -> Arc<LinkTally> {
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tally) = tallies.get(service) {
            return Arc::clone(tally);
        }
        let naming = self.name(service);
        if naming.service == OTHER && naming.namespace == OTHER {
            let rest = self.rest.get_or_init(|| LinkTally::new(naming));
            return Arc::clone(rest);
        }
        let tally = LinkTally::new(naming);
        tallies.insert(service.clone(), Arc::clone(&tally));
        tally
    }

    pub(super) fn report(&self, snapshot: &mut MetricsSnapshot) {
        let tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        let all = tallies.values().chain(self.rest.get());
        all.for_each(|tally| tally.report(snapshot));
    }

    /// Links made and users moved away from dead pods, so far.
    pub(super) fn totals(&self) -> (u64, u64) {
        let tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        let all = tallies.values().chain(self.rest.get());
        all.fold((0, 0), |(made, healed), tally| {
            let made = made + tally.made.load(Ordering::Relaxed);
            (made, healed + tally.healed.total())
        })
    }
}

/// The counters of the links of one service.
#[derive(Debug)]
pub struct LinkTally {
    naming: Arc<Naming>,
    /// Links created for new users.
    pub made: AtomicU64,
    /// Computes that found no routable pod.
    pub refused: AtomicU64,
    healed: ByPod,
    moved: ByPod,
    released: ByPod,
}

impl LinkTally {
    fn new(naming: Arc<Naming>) -> Arc<Self> {
        Arc::new(Self {
            naming,
            made: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            healed: ByPod::default(),
            moved: ByPod::default(),
            released: ByPod::default(),
        })
    }

    /// Counts a user that was moved away from this dead or shut-down pod.
    pub fn healed(&self, from: PodIndex) {
        self.healed.add(self.naming.pod(from), 1);
    }

    /// Counts users that this stopping pod handed over.
    pub fn moved(&self, from: PodIndex, users: u64) {
        self.moved.add(self.naming.pod(from), users);
    }

    /// Counts users that this stopping pod released.
    pub fn released(&self, from: PodIndex, users: u64) {
        self.released.add(self.naming.pod(from), users);
    }

    fn report(&self, snapshot: &mut MetricsSnapshot) {
        let (namespace, service) = (self.naming.namespace.as_str(), self.naming.service.as_str());
        let plain = [
            (&names::LINKS_MADE, &self.made),
            (&names::LINKS_REFUSED, &self.refused),
        ];
        for (metric, counter) in plain {
            let counted = counter.load(Ordering::Relaxed);
            snapshot.count(metric, &[namespace, service], counted);
        }
        let by_pod: [(&'static Metric, &ByPod); 3] = [
            (&names::LINKS_HEALED, &self.healed),
            (&names::LINKS_MOVED, &self.moved),
            (&names::LINKS_RELEASED, &self.released),
        ];
        for (metric, counters) in by_pod {
            for (pod, counted) in counters.lock().iter() {
                snapshot.count(metric, &[namespace, service, pod], *counted);
            }
        }
    }
}

/// Counters by pod, behind a lock: they change only when users are moved, which is rare.
#[derive(Debug, Default)]
struct ByPod(Mutex<BTreeMap<String, u64>>);

impl ByPod {
    fn add(&self, pod: String, more: u64) {
        if more > 0 {
            *self.lock().entry(pod).or_default() += more;
        }
    }

    fn total(&self) -> u64 {
        self.lock().values().sum()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Namespace, ServiceName};
    use crate::telemetry::snapshot::MetricValue;

    fn service(name: &str) -> ServiceId {
        ServiceId {
            namespace: Namespace::new("ns").unwrap(),
            service: ServiceName::new(name).unwrap(),
        }
    }

    #[test]
    fn more_services_than_fit_share_one_name_and_none_loses_its_own() {
        let services = ServiceCounters::default();
        for number in 0..SERVICES_MAX * 3 {
            services
                .tally(&service(&format!("s{number}")))
                .made
                .fetch_add(1, Ordering::Relaxed);
        }
        services
            .tally(&service("s0"))
            .made
            .fetch_add(1, Ordering::Relaxed);
        let mut snapshot = MetricsSnapshot::default();
        services.report(&mut snapshot);
        let (_, made) = snapshot.families().next().unwrap();
        assert_eq!(made.len(), SERVICES_MAX + 1);
        let count = |namespace: &str, name: &str| &made[&vec![namespace.into(), name.into()]];
        assert_eq!(*count("ns", "s0"), MetricValue::Count(2));
        let rest = 2 * SERVICES_MAX as u64;
        assert_eq!(*count(OTHER, OTHER), MetricValue::Count(rest));
        assert_eq!(services.totals(), (3 * SERVICES_MAX as u64 + 1, 0));
    }

    #[test]
    fn more_pods_than_fit_share_one_name() {
        let services = ServiceCounters::default();
        let tally = services.tally(&service("s"));
        let pod = |number: usize| PodIndex::new(i64::try_from(number).unwrap()).unwrap();
        (0..PODS_MAX * 2).for_each(|number| tally.healed(pod(number)));
        tally.healed(pod(0));
        let healed = tally.healed.lock();
        assert_eq!(healed.len(), PODS_MAX + 1);
        assert_eq!((healed["0"], healed[OTHER]), (2, PODS_MAX as u64));
    }
}
