//! Operations on their way to the core: a name and its arguments become a call of a driver, and the
//! driver's reply an answer for Python.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use super::answer::Answer;
use super::argument;
use super::batch::UidBatch;
use super::error::{OrRaise, raise};
use super::queue::CompletionQueue;
use crate::clock::{Clock, Tick};
use crate::config::seconds_within;
use crate::driver::server::Ownership;
use crate::error::{Error, ErrorKind, Result, WriteOutcome};
use crate::id::{
    Incarnation, LinkId, Namespace, PodIndex, ServiceId, ServiceName, Tag, Token, Uid, invalid,
    shown,
};
use crate::op::OperationName;
use crate::route::link::{Owner, Persist, Removal};

/// The name of every operation, so that a test can compare the rows of `_operations.py` with them.
#[pyfunction]
pub(super) fn operation_names() -> Vec<&'static str> {
    OperationName::ALL.map(OperationName::as_str).to_vec()
}

/// The names of those that are counted as operations on links, for the same test.
#[pyfunction]
pub(super) fn link_operation_names() -> Vec<&'static str> {
    OperationName::LINKS.map(OperationName::as_str).to_vec()
}

/// One call from Python: the operation, and the waiter that gets the answer.
pub(super) struct Started<'a> {
    queue: &'a CompletionQueue,
    waiter: Py<PyAny>,
    pub(super) name: OperationName,
}

impl<'a> Started<'a> {
    /// Where the answer goes, for a driver that delivers it itself.
    pub(super) fn waiter(self) -> (&'a CompletionQueue, Py<PyAny>) {
        (self.queue, self.waiter)
    }

    /// Starts the work on the runtime; its end is delivered to the waiter.
    pub(super) fn run(
        self,
        py: Python<'_>,
        work: impl Future<Output = Result<Answer>> + Send + 'static,
    ) -> PyResult<()> {
        let name = self.name;
        self.queue.spawn(py, self.waiter, async move {
            work.await.map_err(|error| error.during(name))
        })
    }

    /// The error of a core that does not have this operation.
    pub(super) fn unknown(&self, py: Python<'_>) -> PyErr {
        let text = "this object has no such operation";
        raise(py, &Error::new(ErrorKind::Internal, text).during(self.name))
    }
}

/// The arguments of one call, which are taken in their order.
pub(super) struct Arguments<'a, 'py> {
    given: &'a Bound<'py, PyTuple>,
    taken: usize,
    timeout: &'a Bound<'py, PyAny>,
    /// When the program made the call, if its arguments took time to arrive.
    began: Option<Tick>,
}

/// Parses a call from Python.
pub(super) fn started<'a, 'py>(
    queue: &'a CompletionQueue,
    waiter: Py<PyAny>,
    operation: &str,
    given: &'a Bound<'py, PyTuple>,
    timeout: &'a Bound<'py, PyAny>,
) -> PyResult<(Started<'a>, Arguments<'a, 'py>)> {
    let name = OperationName::parse(operation).ok_or_else(|| {
        let text = format!("{operation} is not an operation");
        raise(given.py(), &Error::new(ErrorKind::Internal, text))
    })?;
    let started = Started {
        queue,
        waiter,
        name,
    };
    let arguments = Arguments {
        given,
        taken: 0,
        timeout,
        began: None,
    };
    Ok((started, arguments))
}

impl<'py> Arguments<'_, 'py> {
    pub(super) fn py(&self) -> Python<'py> {
        self.given.py()
    }

    /// All of them, as they are.
    pub(super) fn all<const N: usize>(&self) -> PyResult<[Bound<'py, PyAny>; N]> {
        let given: Vec<Bound<'py, PyAny>> = self.given.iter().collect();
        let count = given.len();
        given.try_into().map_err(|_| {
            let text = format!("{count} arguments were given, not {N}");
            raise(self.given.py(), &Error::new(ErrorKind::Internal, text))
        })
    }

    fn next(&mut self) -> PyResult<Bound<'py, PyAny>> {
        let next = self.given.get_item(self.taken)?;
        self.taken += 1;
        Ok(next)
    }

    /// A namespace, as the driver resolves it.
    pub(super) fn namespace(
        &mut self,
        resolve: impl Fn(Option<&str>) -> Result<Namespace>,
    ) -> PyResult<Namespace> {
        let given = self.next()?;
        resolve(argument::namespace(&given)?).or_raise(given.py())
    }

    /// A service of a namespace.
    pub(super) fn service_id(
        &mut self,
        resolve: impl Fn(Option<&str>) -> Result<Namespace>,
    ) -> PyResult<ServiceId> {
        let namespace = self.namespace(resolve)?;
        let service = self.service()?;
        Ok(ServiceId { namespace, service })
    }

    /// A user of a service of a namespace.
    pub(super) fn link(
        &mut self,
        resolve: impl Fn(Option<&str>) -> Result<Namespace>,
    ) -> PyResult<LinkId> {
        let (namespace, uid) = (self.namespace(resolve)?, self.uid()?);
        let service = self.service()?;
        let service = ServiceId { namespace, service };
        Ok(LinkId { service, uid })
    }

    /// A user of a service, or of this one if none is named.
    pub(super) fn link_of(
        &mut self,
        own: &ServiceName,
        resolve: impl Fn(Option<&str>) -> Result<Namespace>,
    ) -> PyResult<LinkId> {
        let (namespace, uid) = (self.namespace(resolve)?, self.uid()?);
        let given = self.next()?;
        let service = match given.is_none() {
            true => own.clone(),
            false => argument::service(&given)?,
        };
        let service = ServiceId { namespace, service };
        Ok(LinkId { service, uid })
    }

    /// A namespace, many users of it, each once, and a service.
    pub(super) fn batch(
        &mut self,
        resolve: impl Fn(Option<&str>) -> Result<Namespace>,
    ) -> PyResult<(ServiceId, Arc<[Uid]>)> {
        let (namespace, given) = (self.namespace(resolve)?, self.next()?);
        let service = self.service()?;
        if let Ok(batch) = given.cast::<UidBatch>() {
            self.began = Some(batch.get().began);
            return Ok((ServiceId { namespace, service }, batch.get().take()));
        }
        let given = given.cast::<PyList>()?;
        let uids: PyResult<Vec<Uid>> = given.iter().map(|uid| argument::uid(&uid)).collect();
        let uids = uids?;
        let mut seen = HashSet::with_capacity(uids.len());
        if uids.iter().all(|uid| seen.insert(uid)) {
            return Ok((ServiceId { namespace, service }, uids.into()));
        }
        seen.clear();
        let once = uids.iter().filter(|uid| seen.insert(*uid)).cloned();
        Ok((ServiceId { namespace, service }, once.collect()))
    }

    pub(super) fn service(&mut self) -> PyResult<ServiceName> {
        argument::service(&self.next()?)
    }

    pub(super) fn uid(&mut self) -> PyResult<Uid> {
        argument::uid(&self.next()?)
    }

    pub(super) fn pod_index(&mut self) -> PyResult<PodIndex> {
        argument::pod_index(&self.next()?)
    }

    pub(super) fn tag(&mut self) -> PyResult<Tag> {
        let given = self.next()?;
        Tag::new(argument::text("tag", &given)?).or_raise(given.py())
    }

    /// `persist_seconds` of a set.
    pub(super) fn persist(&mut self) -> PyResult<Persist> {
        let given = self.next()?;
        let seconds = argument::integer("persist_seconds", &given)?;
        Persist::from_seconds(seconds).or_raise(given.py())
    }

    /// `persist_seconds` of a removal.
    pub(super) fn removal(&mut self) -> PyResult<Removal> {
        let given = self.next()?;
        let seconds = argument::integer("persist_seconds", &given)?;
        Removal::from_seconds(seconds).or_raise(given.py())
    }

    /// A removal, or `None` for the pod's own rule.
    pub(super) fn removal_if_given(&mut self) -> PyResult<Option<Removal>> {
        let given = self.next()?;
        if given.is_none() {
            return Ok(None);
        }
        let grace = argument::number("grace", &given)?;
        let allowed = "None, 0 (delete at once) or up to 3153600000 seconds";
        let grace = Removal::of_grace(grace)
            .ok_or_else(|| invalid("grace", &shown(&grace.to_string()), allowed));
        grace.or_raise(given.py()).map(Some)
    }

    /// A fencing token.
    pub(super) fn token(&mut self, what: &'static str) -> PyResult<Token> {
        argument::token(what, &self.next()?)
    }

    /// An ownership, as `podlink.Ownership` holds it.
    pub(super) fn ownership(
        &mut self,
        resolve: impl Fn(Option<&str>) -> Result<Namespace>,
    ) -> PyResult<Ownership> {
        let link = self.link(resolve)?;
        let pod = self.pod_index()?;
        let incarnation = Incarnation::new(self.token("incarnation")?.get());
        let (token, previous) = (self.token("token")?, self.token("previous_token")?);
        Ok(Ownership {
            link,
            owner: Owner {
                pod,
                incarnation,
                token,
            },
            previous,
        })
    }

    /// The value of a text.
    pub(super) fn parsed<T>(
        &mut self,
        what: &'static str,
        parse: impl Fn(&str) -> Result<T>,
    ) -> PyResult<T> {
        let given = self.next()?;
        parse(argument::text(what, &given)?).or_raise(given.py())
    }

    /// The value of a text, or `None`.
    pub(super) fn parsed_if_given<T>(
        &mut self,
        what: &'static str,
        parse: impl Fn(&str) -> Result<T>,
    ) -> PyResult<Option<T>> {
        if self.given.get_item(self.taken)?.is_none() {
            self.taken += 1;
            return Ok(None);
        }
        self.parsed(what, parse).map(Some)
    }

    /// A number of seconds between these.
    pub(super) fn seconds(
        &mut self,
        what: &'static str,
        least: f64,
        most: f64,
    ) -> PyResult<Duration> {
        let given = self.next()?;
        let seconds = argument::number(what, &given)?;
        seconds_within(what, seconds, least, most).or_raise(given.py())
    }

    /// A number of seconds between these, or `None`.
    pub(super) fn seconds_if_given(
        &mut self,
        what: &'static str,
        least: f64,
        most: f64,
    ) -> PyResult<Option<Duration>> {
        if self.given.get_item(self.taken)?.is_none() {
            self.taken += 1;
            return Ok(None);
        }
        self.seconds(what, least, most).map(Some)
    }

    /// The deadline of a call whose arguments took time to arrive: it counts from when the program
    /// made the call.
    ///
    /// # Errors
    /// `Timeout`: it has passed already.
    pub(super) fn counted_from_call(&self, deadline: Tick) -> Result<Tick> {
        let Some(began) = self.began else {
            return Ok(deadline);
        };
        let now = Clock::System.now();
        let late = now.since(began);
        match deadline.since(now).checked_sub(late) {
            Some(left) if !left.is_zero() => Ok(now.after(left)),
            _ => {
                let what = "the arguments of the call";
                let text = format!("the deadline passed while waiting for {what}");
                let error = Error::new(ErrorKind::Timeout, text).with("waited_for", what);
                Err(error.with_outcome(WriteOutcome::NotSent))
            }
        }
    }

    /// The timeout, or `None` for the driver's own.
    pub(super) fn timeout(&self) -> PyResult<Option<Duration>> {
        argument::timeout(self.timeout)
    }
}
