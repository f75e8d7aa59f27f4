//! `podlink.ServiceLinks`, the compiled half.

use pyo3::prelude::*;

use super::argument;
use super::runtime::Owned;
use crate::driver::client::ServiceLinks;

/// The links of one service.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct ServiceCore {
    links: Owned<ServiceLinks>,
}

impl ServiceCore {
    pub(super) fn new(links: ServiceLinks) -> Self {
        Self {
            links: Owned::new(links),
        }
    }
}

#[pymethods]
impl ServiceCore {
    /// The cached answer of compute, or None.
    pub(super) fn compute_cached(&self, uid: &Bound<'_, PyAny>) -> PyResult<Option<u32>> {
        let links = self.links.get(uid.py())?;
        let pod = argument::as_str(uid).and_then(|uid| links.compute_cached(uid));
        Ok(pod.map(|pod| pod.get()))
    }
}
