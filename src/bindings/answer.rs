//! Results of operations, and the Python values that they become.

use std::collections::BTreeMap;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use super::batch::{PIECE, UsersByPod, users_by_pod};
use crate::driver::client::Route;
use crate::driver::info::States;
use crate::driver::server::{DrainReport, Ownership};
use crate::id::{Incarnation, PodIndex, ServiceName, Uid};
use crate::route::link::Holder;
use crate::route::state::PodState;

/// The result of an operation.
pub(super) enum Answer {
    Nothing,
    Pod(PodIndex),
    MaybePod(Option<PodIndex>),
    Flag(bool),
    Won(bool, PodIndex),
    Services(BTreeMap<ServiceName, PodIndex>),
    /// Users, and the pod of each.
    Users(Arc<[Uid]>, Vec<Option<PodIndex>>),
    Name(Option<ServiceName>),
    Text(String),
    State(Arc<PodState>),
    States(States),
    Drained(DrainReport),
    Owned(Ownership),
    Route(Box<RouteFacts>),
}

/// A route, as the fields of `podlink.Route`.
pub(super) struct RouteFacts {
    pub(super) pod: PodIndex,
    pub(super) holder: Option<Holder>,
    pub(super) address: String,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) from_cache: bool,
}

impl From<Route> for RouteFacts {
    fn from(route: Route) -> Self {
        let metadata = route.state.map(|state| state.metadata.clone());
        Self {
            pod: route.pod,
            holder: route.holder,
            address: route.address,
            metadata: metadata.unwrap_or_default(),
            from_cache: route.from_cache,
        }
    }
}

impl RouteFacts {
    pub(super) fn into_python(self, py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
        // The owner may have been named by a program, which knows no incarnation.
        let incarnation = self.holder.map(|holder| holder.incarnation);
        let incarnation = incarnation.filter(|known| *known != Incarnation::NONE);
        (
            self.pod.get(),
            incarnation.map(Incarnation::get),
            self.holder.map(|holder| holder.token.get()),
            self.address,
            self.metadata,
            self.from_cache,
        )
            .into_pyobject(py)
    }
}

impl Answer {
    pub(super) fn into_python(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(match self {
            Self::Nothing => py.None(),
            Self::Pod(pod) => pod.get().into_pyobject(py)?.into_any().unbind(),
            Self::MaybePod(pod) => pod
                .map(PodIndex::get)
                .into_pyobject(py)?
                .into_any()
                .unbind(),
            Self::Flag(flag) => flag.into_pyobject(py)?.to_owned().into_any().unbind(),
            Self::Won(won, pod) => (won, pod.get()).into_pyobject(py)?.into_any().unbind(),
            Self::Services(services) => {
                let table = PyDict::new(py);
                for (service, pod) in services {
                    table.set_item(service.as_str(), pod.get())?;
                }
                table.into_any().unbind()
            }
            Self::Users(uids, pods) if uids.len() > PIECE => {
                let users = UsersByPod::new(py, uids, pods)?;
                Py::new(py, users)?.into_any()
            }
            Self::Users(uids, pods) => users_by_pod(py, &uids, &pods)?.into_any().unbind(),
            Self::Name(name) => {
                let name = name.as_ref().map(ServiceName::as_str);
                name.into_pyobject(py)?.into_any().unbind()
            }
            Self::Text(text) => text.into_pyobject(py)?.into_any().unbind(),
            Self::State(state) => state_fields(py, &state)?.into_any().unbind(),
            Self::States(states) => states_to_python(py, &states)?.into_any().unbind(),
            Self::Drained(report) => {
                let texts = |uids: &[Uid]| {
                    PyList::new(py, uids.iter().map(Uid::as_str).collect::<Vec<_>>())
                };
                let fields = (
                    report.released,
                    report.handed_over,
                    report.kept,
                    texts(&report.failed)?,
                    texts(&report.unfinished)?,
                    report.took.as_secs_f64(),
                );
                fields.into_pyobject(py)?.into_any().unbind()
            }
            Self::Route(route) => route.into_python(py)?.into_any().unbind(),
            Self::Owned(user) => ownership_fields(py, &user)?.into_any().unbind(),
        })
    }
}

/// An ownership as the fields of `podlink.Ownership`.
pub(super) fn ownership_fields<'py>(
    py: Python<'py>,
    user: &Ownership,
) -> PyResult<Bound<'py, PyTuple>> {
    (
        user.link.service.namespace.as_str(),
        user.link.uid.as_str(),
        user.link.service.service.as_str(),
        user.owner.pod.get(),
        user.owner.incarnation.get(),
        user.owner.token.get(),
        user.previous.get(),
    )
        .into_pyobject(py)
}

/// States as Python sees them: pod index → fields of `StatefulServiceState`.
pub(super) fn states_to_python<'py>(
    py: Python<'py>,
    states: &States,
) -> PyResult<Bound<'py, PyDict>> {
    let table = PyDict::new(py);
    for (pod, state) in states {
        table.set_item(pod.get(), state_fields(py, state)?)?;
    }
    Ok(table)
}

/// A state as the fields of `podlink.StatefulServiceState`.
pub(super) fn state_fields<'py>(
    py: Python<'py>,
    state: &PodState,
) -> PyResult<Bound<'py, PyTuple>> {
    (
        state.pod_id.get(),
        state.state.as_str(),
        state.load_state,
        state.routing_state.as_str(),
        state.update_time,
        state.incarnation.get(),
        state.metadata.clone(),
    )
        .into_pyobject(py)
}
