//! The operations on tags and workloads: plain commands.

use redis::{Cmd, Value};

use super::encode::Encode;
use crate::error::{Error, ErrorKind, Result};
use crate::id::ServiceName;
use crate::op::{GetTag, GetWorkload, Ping, SetTag, SetWorkload};
use crate::route::state::WorkloadState;
use crate::store::script::Form;
use crate::store::{codec, key};

impl Encode for SetWorkload {
    fn encode(&self, _form: Form) -> Result<Cmd> {
        let json = serde_json::to_string(&self.workload).map_err(|error| {
            Error::new(ErrorKind::Internal, "a workload state is not JSON").caused_by(error)
        })?;
        let mut command = redis::cmd("SET");
        command.arg(key::workload(&self.service)).arg(json);
        command.arg("PX").arg(codec::millis(self.ttl));
        Ok(command)
    }

    fn decode(&self, reply: Value) -> Result<()> {
        done(&reply)
    }
}

impl Encode for GetWorkload {
    fn encode(&self, _form: Form) -> Result<Cmd> {
        let mut command = redis::cmd("GET");
        command.arg(key::workload(&self.service));
        Ok(command)
    }

    fn decode(&self, reply: Value) -> Result<Option<WorkloadState>> {
        codec::workload(reply, &key::workload(&self.service))
    }
}

impl Encode for SetTag {
    fn encode(&self, _form: Form) -> Result<Cmd> {
        let mut command = redis::cmd("SET");
        command.arg(key::tag(&self.namespace, &self.tag));
        command.arg(self.service.as_str());
        Ok(command)
    }

    fn decode(&self, reply: Value) -> Result<bool> {
        done(&reply).map(|()| true)
    }
}

impl Encode for GetTag {
    fn encode(&self, _form: Form) -> Result<Cmd> {
        let mut command = redis::cmd("GET");
        command.arg(key::tag(&self.namespace, &self.tag));
        Ok(command)
    }

    fn decode(&self, reply: Value) -> Result<Option<ServiceName>> {
        codec::tagged(reply, &key::tag(&self.namespace, &self.tag))
    }
}

impl Encode for Ping {
    fn encode(&self, _form: Form) -> Result<Cmd> {
        Ok(redis::cmd("PING"))
    }

    fn decode(&self, _reply: Value) -> Result<()> {
        Ok(())
    }
}

/// The reply of a plain `SET`.
fn done(reply: &Value) -> Result<()> {
    match reply {
        Value::Okay => Ok(()),
        other => Err(codec::misshapen(other)),
    }
}
