//! What a later version of podlink has written, which this version reads as well as it can.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use crate::id::{PodIndex, ServiceId};
use crate::op::{LAYOUT, Pods};

/// What was logged already. Never held across an await.
#[derive(Debug, Default)]
pub(in crate::driver) struct LaterVersions(Mutex<LoggedVersions>);

#[derive(Debug, Default)]
struct LoggedVersions {
    /// The services with a later layout.
    layouts: HashSet<ServiceId>,
    /// The pods in a state that only a later version knows.
    states: HashMap<ServiceId, HashSet<(PodIndex, String)>>,
}

impl LaterVersions {
    /// Logs a later layout once for each service, and an unknown state once for each pod.
    pub(in crate::driver) fn note(&self, service: &ServiceId, pods: &Pods) {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pods.layout > LAYOUT && logged.layouts.insert(service.clone()) {
            let (layout, known) = (pods.layout, LAYOUT);
            tracing::warn!(%service, layout, known, "a later version of podlink writes this service's pods: what this version knows of them is read");
        }
        if pods.later.is_empty() {
            logged.states.remove(service);
            return;
        }
        let states = logged.states.entry(service.clone()).or_default();
        states.retain(|known| pods.later.contains(known));
        for (pod, state) in &pods.later {
            if states.insert((*pod, state.clone())) {
                tracing::warn!(%service, pod = pod.get(), %state, "a pod is in a state that only a later version of podlink knows: it keeps its users and gets no new ones");
            }
        }
    }
}
