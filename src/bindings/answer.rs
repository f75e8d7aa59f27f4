//! Results of operations, and the Python values that they become.

use std::collections::BTreeMap;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use crate::driver::info::States;
use crate::driver::server::DrainReport;
use crate::id::{PodIndex, ServiceName, Uid};
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
            Self::Users(uids, pods) => users_by_pod(py, &uids, &pods)?.into_any().unbind(),
            Self::Name(name) => {
                let name = name.as_ref().map(ServiceName::as_str);
                name.into_pyobject(py)?.into_any().unbind()
            }
            Self::Text(text) => text.into_pyobject(py)?.into_any().unbind(),
            Self::State(state) => state_fields(py, &state)?.into_any().unbind(),
            Self::States(states) => states_to_python(py, &states)?.into_any().unbind(),
            Self::Drained(report) => {
                let seconds = report.took.as_secs_f64();
                let fields = (
                    report.released,
                    report.handed_over,
                    report.remaining,
                    seconds,
                );
                fields.into_pyobject(py)?.into_any().unbind()
            }
        })
    }
}

/// Users by pod, in the order in which they were asked for; users without a link are left out.
fn users_by_pod<'py>(
    py: Python<'py>,
    uids: &[Uid],
    pods: &[Option<PodIndex>],
) -> PyResult<Bound<'py, PyDict>> {
    let mut users: BTreeMap<PodIndex, Vec<&str>> = BTreeMap::new();
    for (uid, pod) in uids.iter().zip(pods) {
        if let Some(pod) = pod {
            users.entry(*pod).or_default().push(uid.as_str());
        }
    }
    let table = PyDict::new(py);
    for (pod, uids) in users {
        table.set_item(pod.get(), PyList::new(py, uids)?)?;
    }
    Ok(table)
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
