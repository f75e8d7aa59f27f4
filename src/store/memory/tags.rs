//! What the operations on tags and workloads do to the tables.

use super::links::whole;
use super::{Apply, Moment, Tables};
use crate::error::Result;
use crate::id::ServiceName;
use crate::op::{GetTag, GetWorkload, Ping, SetTag, SetWorkload};
use crate::route::state::WorkloadState;

impl Apply for SetWorkload {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<()> {
        let kept = (self.workload.clone(), now.tick.after(whole(self.ttl)));
        tables.workloads.insert(self.service.clone(), kept);
        Ok(())
    }
}

impl Apply for GetWorkload {
    fn apply(&self, tables: &mut Tables, now: Moment) -> Result<Option<WorkloadState>> {
        let kept = tables.workloads.get(&self.service);
        let kept = kept.filter(|(_, until)| now.tick < *until);
        Ok(kept.map(|(workload, _)| workload.clone()))
    }
}

impl Apply for SetTag {
    fn apply(&self, tables: &mut Tables, _now: Moment) -> Result<bool> {
        let key = (self.namespace.clone(), self.tag.clone());
        tables.tags.insert(key, self.service.clone());
        Ok(true)
    }
}

impl Apply for GetTag {
    fn apply(&self, tables: &mut Tables, _now: Moment) -> Result<Option<ServiceName>> {
        let key = (self.namespace.clone(), self.tag.clone());
        Ok(tables.tags.get(&key).cloned())
    }
}

impl Apply for Ping {
    fn apply(&self, _tables: &mut Tables, _now: Moment) -> Result<()> {
        Ok(())
    }
}
