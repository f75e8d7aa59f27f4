//! The operations on pods: each one script.

use redis::{Cmd, Value};

use super::encode::{Encode, incarnation, pod, times};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{Incarnation, ServiceId};
use crate::op::{
    Begun, Inspect, Inspection, PodBegin, PodCertify, PodEnd, PodRenew, PodStepped, Pods, ReadPods,
    Renewed, Stepped,
};
use crate::route::link::Certificate;
use crate::route::state::PodState;
use crate::store::script::{self, Arg, Form, scripts};
use crate::store::{codec, key, reading};

scripts! {
    POD_BEGIN = "lease_clock.lua" "pod_begin.lua";
    POD_RENEW = "lease_clock.lua" "pod_renew.lua";
    POD_END = "lease_clock.lua" "pod_end.lua";
    POD_CERTIFY = "lease_clock.lua" "pod_certify.lua";
    POD_STEPPED = "lease_clock.lua" "pod_stepped.lua";
    PODS = "lease_clock.lua" "pods.lua";
    INSPECT = "lease_clock.lua" "inspect.lua";
}

impl Encode for PodBegin {
    fn encode(&self, form: Form) -> Result<Cmd> {
        let [lease_key, state_key] = pod_keys(&self.pod.service);
        let [lease, grace, gap] = times(self.times);
        let (nonce, pod_uid) = (Arg::Text(&self.pod.nonce), Arg::Text(&self.pod.pod_uid));
        let args = [lease, grace, gap, pod(self.pod.pod), nonce, pod_uid];
        let keys = [&*lease_key, &*state_key];
        Ok(script::call(&POD_BEGIN, form, &keys, &args))
    }

    fn decode(&self, reply: Value) -> Result<Begun> {
        codec::begun(reply)
    }
}

impl Encode for PodRenew {
    fn encode(&self, form: Form) -> Result<Cmd> {
        // The store stamps the state with its own time, so the pod's is left out.
        let unstamped = PodState {
            update_time: 0,
            ..PodState::clone(&self.state)
        };
        let json = serde_json::to_string(&unstamped).map_err(|error| {
            Error::new(ErrorKind::Internal, "a pod state is not JSON").caused_by(error)
        })?;
        let [lease, grace, gap] = times(self.times);
        let args = [
            lease,
            grace,
            gap,
            pod(self.state.pod_id),
            incarnation(self.state.incarnation),
            Arg::Text(self.state.routing_state.as_str()),
            Arg::Text(&json),
        ];
        let [lease, state] = pod_keys(&self.service);
        Ok(script::call(&POD_RENEW, form, &[&lease, &state], &args))
    }

    fn decode(&self, reply: Value) -> Result<Renewed> {
        codec::renewed(reply)
    }
}

impl Encode for PodEnd {
    fn encode(&self, form: Form) -> Result<Cmd> {
        let [lease, state] = pod_keys(&self.service);
        let args = [pod(self.pod), incarnation(self.incarnation)];
        Ok(script::call(&POD_END, form, &[&lease, &state], &args))
    }

    fn decode(&self, reply: Value) -> Result<bool> {
        codec::ended(reply)
    }
}

impl Encode for PodCertify {
    fn encode(&self, form: Form) -> Result<Cmd> {
        let [lease, state] = pod_keys(&self.service);
        let seen = self.seen.unwrap_or(Incarnation::NONE);
        let args = [pod(self.pod), incarnation(seen)];
        Ok(script::call(&POD_CERTIFY, form, &[&lease, &state], &args))
    }

    fn decode(&self, reply: Value) -> Result<Certificate> {
        codec::certificate(reply)
    }
}

impl Encode for PodStepped {
    fn encode(&self, form: Form) -> Result<Cmd> {
        let [lease_key, state_key] = pod_keys(&self.service);
        let [lease, grace, gap] = times(self.times);
        let me = incarnation(self.incarnation);
        let micros = |micros| Arg::Number(i64::try_from(micros).unwrap_or(i64::MAX));
        let [by, after, seen] = [
            codec::micros(self.step.by),
            self.step.after_micros,
            self.step.seen_micros,
        ]
        .map(micros);
        let args = [lease, grace, gap, pod(self.pod), me, by, after, seen];
        let keys = [&*lease_key, &*state_key];
        Ok(script::call(&POD_STEPPED, form, &keys, &args))
    }

    fn decode(&self, reply: Value) -> Result<Stepped> {
        codec::stepped(reply)
    }
}

/// It may write the time, but a second call does no harm: it counts as a read.
impl Encode for ReadPods {
    fn encode(&self, form: Form) -> Result<Cmd> {
        let [lease, state] = pod_keys(&self.service);
        Ok(script::call(&PODS, form, &[&lease, &state], &[]))
    }

    fn decode(&self, reply: Value) -> Result<Box<Pods>> {
        reading::pods(reply, &self.last).map(Box::new)
    }
}

impl Encode for Inspect {
    fn encode(&self, form: Form) -> Result<Cmd> {
        let [lease, state] = pod_keys(&self.service);
        Ok(script::call(&INSPECT, form, &[&lease, &state], &[]))
    }

    fn decode(&self, reply: Value) -> Result<Box<Inspection>> {
        reading::inspection(reply).map(Box::new)
    }
}

/// The keys of a script on pods; they share a hash slot.
fn pod_keys(service: &ServiceId) -> [String; 2] {
    [key::lease(service), key::state(service)]
}
