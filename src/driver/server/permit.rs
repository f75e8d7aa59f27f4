//! Whether this process may act: judged when an operation begins, is sent, and is answered.

use std::sync::atomic::Ordering;

use super::{Phase, ServerShared};
use crate::clock::Tick;
use crate::error::{Error, ErrorKind, Result, WriteOutcome};
use crate::id::{Incarnation, LinkId, invalid, shown};
use crate::route::state::RoutingState;

/// The lease under which an operation runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Permit {
    pub(super) incarnation: Incarnation,
    /// What is answered in another generation counts no more.
    pub(super) generation: u64,
    /// What was not sent by then is not sent any more.
    pub(super) until: Tick,
}

impl ServerShared {
    /// A pod that was not started, has lapsed, was declared dead or superseded sends nothing.
    pub(super) fn permit(&self) -> Result<Permit> {
        // Before the end of the lease is read: a lapse in between makes the generation old.
        let generation = self.owned.generation();
        let (phase, incarnation) = {
            let state = self.lock();
            (state.phase, state.incarnation)
        };
        if !phase.renews() {
            return Err(phase.refuses().with_outcome(WriteOutcome::NotSent));
        }
        let until = Tick::from_nanos(self.valid_until.load(Ordering::SeqCst));
        if self.clock.now() >= until {
            return Err(self.no_lease_now().with_outcome(WriteOutcome::NotSent));
        }
        Ok(Permit {
            incarnation,
            generation,
            until,
        })
    }

    /// The same for what takes a user: a pod that drains, or publishes that it takes no new users,
    /// takes none itself.
    pub(super) fn permit_to_take(&self) -> Result<Permit> {
        let permit = self.permit()?;
        self.takes_users()?;
        Ok(permit)
    }

    /// Whether this pod takes new users.
    pub(super) fn takes_users(&self) -> Result<()> {
        let (phase, routing) = {
            let state = self.lock();
            (state.phase, state.routing)
        };
        let why = match (phase, routing) {
            (Phase::Draining, _) => "it is being stopped",
            (_, RoutingState::Ready) => return Ok(()),
            (_, routing) => routing.as_str(),
        };
        let pod = self.info.pod;
        let text = format!("pod {pod} of {} takes no users: {why}", self.info.service);
        let error = Error::new(ErrorKind::PodNotAvailable, text).with("pod", pod);
        // This pod will not change its mind soon.
        Err(error
            .with_retryable(false)
            .with_outcome(WriteOutcome::NotSent))
    }

    /// Whether the lease has stood since the permit was given.
    pub(super) fn still_holds(&self, permit: Permit) -> bool {
        self.owned.generation() == permit.generation && self.holds_lease()
    }

    /// The failure of what was sent under a permit: if the lease has ended meanwhile, that is why.
    pub(super) fn failed_under(&self, permit: Permit, error: Error) -> Error {
        let waited = matches!(
            error.kind(),
            ErrorKind::Timeout | ErrorKind::StoreUnavailable
        );
        if !waited || self.still_holds(permit) {
            return error;
        }
        let outcome = error.outcome();
        let lost = self.no_lease_now().caused_by(error);
        match outcome {
            Some(outcome) => lost.with_outcome(outcome),
            None => lost,
        }
    }

    /// The error of a pod whose lease is over at this moment.
    pub(super) fn no_lease_now(&self) -> Error {
        let text = "this pod's lease is over; it must be renewed before the pod acts again";
        let error = Error::new(ErrorKind::LeaseLost, text);
        error.with("pod", self.info.pod).retryable()
    }

    /// A pod owns users of its own service only: leases and incarnations are a service's.
    pub(super) fn is_own(&self, link: &LinkId) -> Result<()> {
        let (own, given) = (&self.info.service, &link.service);
        if own == given {
            return Ok(());
        }
        let allowed = |own: &str| format!("this pod's own, {own}: a pod owns no user elsewhere");
        if own.namespace != given.namespace {
            let (own, given) = (own.namespace.as_str(), given.namespace.as_str());
            return Err(invalid("namespace", &shown(given), &allowed(own)));
        }
        let (own, given) = (own.service.as_str(), given.service.as_str());
        Err(invalid("service_name", &shown(given), &allowed(own)))
    }
}
