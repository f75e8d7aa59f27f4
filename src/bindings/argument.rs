//! Arguments on their way to the core: the right type, or an error with the argument, the value
//! given and what is allowed.

use std::time::Duration;

use pyo3::exceptions::PyOverflowError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyString};

use super::error::{OrRaise, raise};
use crate::config::seconds_within;
use crate::id::{LinkId, Namespace, PodIndex, ServiceId, ServiceName, Token, Uid, invalid};

/// The name of an object's type, for error messages.
fn type_name(given: &Bound<'_, PyAny>) -> String {
    given
        .get_type()
        .name()
        .map_or_else(|_| "an object".to_owned(), |name| name.to_string())
}

fn wrong_type(what: &'static str, given: &Bound<'_, PyAny>, allowed: &str) -> PyErr {
    raise(
        given.py(),
        &invalid(what, &type_name(given), allowed).with("wrong_type", true),
    )
}

/// A `str`, as UTF-8.
pub(super) fn text<'a>(what: &'static str, given: &'a Bound<'_, PyAny>) -> PyResult<&'a str> {
    let string = given
        .cast::<PyString>()
        .map_err(|_| wrong_type(what, given, "a str"))?;
    string.to_str().map_err(|_| {
        raise(
            given.py(),
            &invalid(what, "a str with lone surrogates", "valid Unicode text"),
        )
    })
}

/// The text of a `str` that can be written as UTF-8.
pub(super) fn as_str<'a>(given: &'a Bound<'_, PyAny>) -> Option<&'a str> {
    given.cast::<PyString>().ok()?.to_str().ok()
}

/// A namespace argument: `None`, or a `str`.
pub(super) fn namespace<'a>(given: &'a Bound<'_, PyAny>) -> PyResult<Option<&'a str>> {
    if given.is_none() {
        return Ok(None);
    }
    text("namespace", given).map(Some)
}

/// A service name.
pub(super) fn service(given: &Bound<'_, PyAny>) -> PyResult<ServiceName> {
    ServiceName::new(text("service_name", given)?).or_raise(given.py())
}

/// A uid.
pub(super) fn uid(given: &Bound<'_, PyAny>) -> PyResult<Uid> {
    Uid::new(text("uid", given)?).or_raise(given.py())
}

/// A user of a service in a namespace that is known already.
pub(super) fn link(
    namespace: Namespace,
    user: &Bound<'_, PyAny>,
    name: &Bound<'_, PyAny>,
) -> PyResult<LinkId> {
    let uid = uid(user)?;
    let service = ServiceId {
        namespace,
        service: service(name)?,
    };
    Ok(LinkId { service, uid })
}

/// A whole number that is not a `bool`: an `int`, or another type's number that has `__index__`.
pub(super) fn integer(what: &'static str, given: &Bound<'_, PyAny>) -> PyResult<i64> {
    let index = || given.call_method0("__index__");
    let indexed = match given.is_instance_of::<PyInt>() {
        true => None,
        false => Some(index().map_err(|_| wrong_type(what, given, "an int"))?),
    };
    let given = indexed.as_ref().unwrap_or(given);
    if given.is_instance_of::<PyBool>() || !given.is_instance_of::<PyInt>() {
        return Err(wrong_type(what, given, "an int"));
    }
    given.extract().map_err(|_| {
        raise(
            given.py(),
            &invalid(what, &written(given), "a whole number of 64 bits"),
        )
    })
}

/// A pod index.
pub(super) fn pod_index(given: &Bound<'_, PyAny>) -> PyResult<PodIndex> {
    PodIndex::new(integer("pod_index", given)?).or_raise(given.py())
}

/// The pod that owns a user, or `None`.
pub(super) fn owner(given: &Bound<'_, PyAny>) -> PyResult<Option<PodIndex>> {
    if given.is_none() {
        return Ok(None);
    }
    // The error names the argument.
    let index = integer("owner", given)?;
    let owner = PodIndex::new(index).map_err(|_| {
        let allowed = format!("None or 0 to {}", PodIndex::MAX);
        invalid("owner", &index.to_string(), &allowed)
    });
    owner.map(Some).or_raise(given.py())
}

/// A fencing token, or another number that counts like one.
pub(super) fn token(what: &'static str, given: &Bound<'_, PyAny>) -> PyResult<Token> {
    let number = integer(what, given)?;
    let most = match what {
        // Tokens rise from here: that leaves the user four thousand million owners more.
        "min_token" => Token::LIMIT - (1 << 32),
        _ => Token::LIMIT - 1,
    };
    let token = u64::try_from(number).ok().filter(|number| *number <= most);
    let allowed = format!("0 to {most}");
    let token = token.ok_or_else(|| invalid(what, &number.to_string(), &allowed));
    token.map(Token::new).or_raise(given.py())
}

/// A number.
pub(super) fn number(what: &'static str, given: &Bound<'_, PyAny>) -> PyResult<f64> {
    if given.is_instance_of::<PyBool>() {
        return Err(wrong_type(what, given, "a number"));
    }
    given.extract().map_err(|error: PyErr| {
        let py = given.py();
        if error.is_instance_of::<PyOverflowError>(py) {
            return raise(py, &invalid(what, &written(given), "a number of 64 bits"));
        }
        wrong_type(what, given, "a number")
    })
}

/// A `bool`.
pub(super) fn flag(what: &'static str, given: &Bound<'_, PyAny>) -> PyResult<bool> {
    let flag = given.cast::<PyBool>();
    let flag = flag.map_err(|_| wrong_type(what, given, "a bool"))?;
    Ok(flag.is_true())
}

/// A number too large to be read, cut to what can be shown.
fn written(given: &Bound<'_, PyAny>) -> String {
    let text = given.str().map(|text| text.to_string());
    crate::id::shown(&text.unwrap_or_else(|_| "a huge number".to_owned()))
}

/// A timeout in seconds, or `None` for the driver's default.
pub(super) fn timeout(given: &Bound<'_, PyAny>) -> PyResult<Option<Duration>> {
    const MIN: f64 = 0.001;
    const MAX: f64 = 3600.0;
    if given.is_none() {
        return Ok(None);
    }
    let seconds = number("timeout", given)?;
    seconds_within("timeout", seconds, MIN, MAX)
        .or_raise(given.py())
        .map(Some)
}

/// Refuses a wrong timeout where the answer needs none, because it is known already.
#[pyfunction]
#[pyo3(signature = (timeout))]
pub(super) fn check_timeout(timeout: &Bound<'_, PyAny>) -> PyResult<()> {
    self::timeout(timeout).map(|_| ())
}

/// Checks the parts of a pod's identity.
#[pyfunction]
pub(super) fn check_pod(
    namespace: &Bound<'_, PyAny>,
    service_name: &Bound<'_, PyAny>,
    index: &Bound<'_, PyAny>,
) -> PyResult<()> {
    Namespace::new(text("namespace", namespace)?).or_raise(namespace.py())?;
    service(service_name)?;
    pod_index(index).map(|_| ())
}
