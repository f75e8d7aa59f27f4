//! Errors for Python. The classes are written in Python (`podlink/errors.py`).

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};

use crate::error::{Error, ErrorKind};

/// Code, message, retryable and details: the arguments of `podlink.errors.from_core`.
pub(super) fn parts<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyTuple>> {
    let details = PyDict::new(py);
    for (name, value) in error.details() {
        details.set_item(name, value)?;
    }
    (
        error.kind().code(),
        error.to_string(),
        error.is_retryable(),
        details,
    )
        .into_pyobject(py)
}

/// The exception for this error.
pub(super) fn raise(py: Python<'_>, error: &Error) -> PyErr {
    match exception(py, error) {
        Ok(exception) => PyErr::from_value(exception),
        Err(failure) => failure,
    }
}

fn exception<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    static FROM_CORE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    FROM_CORE
        .import(py, "podlink.errors", "from_core")?
        .call1(parts(py, error)?)
}

/// The exception for a descriptor or a thread that the system does not give.
pub(super) fn out_of_resources(py: Python<'_>, what: &str, cause: std::io::Error) -> PyErr {
    let text = format!("the system gives podlink no {what}: {cause}");
    let error = Error::new(ErrorKind::OutOfResources, text);
    raise(py, &error.caused_by(cause))
}

/// Converts the error of a result to an exception.
pub(super) trait OrRaise<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for Result<T, Error> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| raise(py, &error))
    }
}

/// Every error code with whether it is retryable, for a test of the Python classes.
#[pyfunction]
pub(super) fn error_codes() -> Vec<(&'static str, bool)> {
    ErrorKind::ALL
        .iter()
        .map(|kind| (kind.code(), kind.is_retryable()))
        .collect()
}
