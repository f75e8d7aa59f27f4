//! What the operations on pods do to the tables.

use super::lease::{ServiceLeases, unheard_of};
use super::{Apply, Moment, Tables};
use crate::error::Result;
use crate::id::ServiceId;
use crate::op::{
    Begun, Inspect, Inspection, PodBegin, PodCertify, PodEnd, PodRenew, PodStepped, Pods, ReadPods,
    Renewed, Stepped,
};
use crate::route::link::Certificate;

impl Tables {
    /// Acts on the leases of a service, and publishes what the act has changed.
    fn with_service<T>(&mut self, id: &ServiceId, act: impl FnOnce(&mut ServiceLeases) -> T) -> T {
        let service = self.services.entry(id.clone()).or_default();
        let answer = act(service);
        if service.take_changed() {
            self.listeners.notify(id);
        }
        answer
    }
}

impl Apply for PodBegin {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Begun> {
        let begin = |service: &mut ServiceLeases| service.begin(&self.pod, self.times, now.micros);
        Ok(tables.with_service(&self.pod.service, begin))
    }
}

impl Apply for PodRenew {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Renewed> {
        let renew =
            |service: &mut ServiceLeases| service.renew(&self.state, self.times, now.micros);
        Ok(tables.with_service(&self.service, renew))
    }
}

impl Apply for PodEnd {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<bool> {
        let end = |service: &mut ServiceLeases| service.end(self.pod, self.incarnation, now.micros);
        Ok(tables.with_service(&self.service, end))
    }
}

impl Apply for PodCertify {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Certificate> {
        // A service without pods leaves no trace, however often it is asked for.
        if !tables.services.contains_key(&self.service) {
            return Ok(self.seen.map_or(Certificate::Unknown, unheard_of));
        }
        let certify =
            |service: &mut ServiceLeases| service.certify(self.pod, self.seen, now.micros);
        Ok(tables.with_service(&self.service, certify))
    }
}

impl Apply for PodStepped {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Stepped> {
        let report = |service: &mut ServiceLeases| service.stepped(self, now.micros);
        Ok(tables.with_service(&self.service, report))
    }
}

impl Apply for ReadPods {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Box<Pods>> {
        let service = tables.services.get_mut(&self.service);
        let mut pods = service.map_or_else(
            || Pods {
                now_ms: now.micros / 1000,
                forgot: Some(Vec::new()),
                ..Pods::default()
            },
            |service| service.pods(now.micros),
        );
        pods.watchers = tables.listeners.count(&self.service);
        Ok(Box::new(pods))
    }
}

impl Apply for Inspect {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Box<Inspection>> {
        let without_pods = ServiceLeases::default();
        let service = tables.services.get(&self.service).unwrap_or(&without_pods);
        let mut found = service.inspect(now.micros);
        found.pods.watchers = tables.listeners.count(&self.service);
        Ok(Box::new(found))
    }
}
