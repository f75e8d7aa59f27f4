//! Configuration crosses once, as plain values by name; the core's tables say how each is read.

use std::collections::HashMap;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::argument;
use super::error::{OrRaise, raise};
use crate::config::{
    self, ClientConfig, PeerClientConfig, PeerServerConfig, RouteInfoDriverConfig, ServerConfig,
    Setting, SettingKind, SettingValue, SettingsGroup,
};
use crate::id::{invalid, shown};

/// A checked `podlink.ClientConfig`.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct ClientSettings(pub(super) ClientConfig);

#[pymethods]
impl ClientSettings {
    #[new]
    fn new(values: &Bound<'_, PyDict>) -> PyResult<Self> {
        let config: ClientConfig = read(values)?;
        config.check().map(Self).or_raise(values.py())
    }
}

/// A checked `podlink.RouteInfoConfig`.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct RouteInfoSettings(pub(super) RouteInfoDriverConfig);

#[pymethods]
impl RouteInfoSettings {
    #[new]
    fn new(values: &Bound<'_, PyDict>) -> PyResult<Self> {
        let config: RouteInfoDriverConfig = read(values)?;
        config.check().map(Self).or_raise(values.py())
    }
}

/// A checked `podlink.ServerConfig`.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct ServerSettings(pub(super) ServerConfig);

#[pymethods]
impl ServerSettings {
    #[new]
    fn new(values: &Bound<'_, PyDict>) -> PyResult<Self> {
        let config: ServerConfig = read(values)?;
        config.check().map(Self).or_raise(values.py())
    }
}

/// A `podlink.GrpcClientConfig`, each setting by itself; the client checks it with its endpoints.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct GrpcClientSettings(pub(super) PeerClientConfig);

#[pymethods]
impl GrpcClientSettings {
    #[new]
    fn new(values: &Bound<'_, PyDict>) -> PyResult<Self> {
        read(values).map(Self)
    }
}

/// A `podlink.GrpcServerConfig`, each setting by itself; the server checks it with its address.
#[pyclass(frozen, module = "podlink._podlink")]
pub(super) struct GrpcServerSettings(pub(super) PeerServerConfig);

#[pymethods]
impl GrpcServerSettings {
    #[new]
    fn new(values: &Bound<'_, PyDict>) -> PyResult<Self> {
        read(values).map(Self)
    }
}

/// Settings by name; each that the table has, and no other.
fn read<C: SettingsGroup>(values: &Bound<'_, PyDict>) -> PyResult<C> {
    let py = values.py();
    let table = C::table();
    for name in values.keys() {
        let name = argument::text("settings", &name)?;
        if !table.iter().any(|setting| setting.name == name) {
            let error = invalid("settings", &shown(name), "those of the table");
            return Err(raise(py, &error));
        }
    }
    let objects: PyResult<Vec<Bound<'_, PyAny>>> = table
        .iter()
        .map(|setting| {
            let missing = || raise(py, &invalid(setting.name, "nothing", "given"));
            values.get_item(setting.name)?.ok_or_else(missing)
        })
        .collect();
    let objects = objects?;
    let mut given = HashMap::new();
    for (setting, object) in table.iter().zip(&objects) {
        given.insert(setting.name, value(setting, object)?);
    }
    C::read(&given).or_raise(py)
}

/// A Python value, as this setting's kind reads it.
fn value<'a>(setting: &Setting, given: &'a Bound<'_, PyAny>) -> PyResult<SettingValue<'a>> {
    let name = setting.name;
    Ok(match setting.kind {
        SettingKind::Limit | SettingKind::SecondsOrNone { .. } if given.is_none() => {
            SettingValue::Absent
        }
        SettingKind::Seconds { .. }
        | SettingKind::SecondsOrNone { .. }
        | SettingKind::Ratio { .. } => SettingValue::Number(argument::number(name, given)?),
        SettingKind::Count { .. } | SettingKind::Limit => {
            SettingValue::Whole(argument::integer(name, given)?)
        }
        SettingKind::Flag { .. } => SettingValue::Flag(argument::flag(name, given)?),
        SettingKind::Choice { .. } | SettingKind::Text { .. } => {
            SettingValue::Text(argument::text(name, given)?)
        }
    })
}

/// Class, name, kind, default, least and most (`None`: no limit), names to choose from, meaning.
type SettingRow = (
    &'static str,
    &'static str,
    &'static str,
    Py<PyAny>,
    Option<f64>,
    Option<f64>,
    Vec<&'static str>,
    &'static str,
);

/// Every setting, as the core defines it.
#[pyfunction]
pub(super) fn config_table(py: Python<'_>) -> PyResult<Vec<SettingRow>> {
    let mut rows = Vec::new();
    for (class, table) in config::config_table() {
        for setting in table {
            rows.push(row(py, class, &setting)?);
        }
    }
    Ok(rows)
}

fn row(py: Python<'_>, class: &'static str, setting: &Setting) -> PyResult<SettingRow> {
    let limit = |limit: f64| limit.is_finite().then_some(limit);
    let (kind, least, most) = match setting.kind {
        SettingKind::Seconds { least, most, .. } => ("seconds", limit(least), limit(most)),
        SettingKind::SecondsOrNone { least, most, .. } => {
            ("seconds_or_none", Some(least), limit(most))
        }
        SettingKind::Count { least, most, .. } => {
            let most = (most < i64::MAX).then_some(most as f64);
            ("count", Some(least as f64), most)
        }
        SettingKind::Ratio { .. } => ("ratio", Some(0.0), Some(1.0)),
        SettingKind::Limit => ("limit", None, None),
        SettingKind::Flag { .. } => ("flag", None, None),
        SettingKind::Choice { .. } => ("choice", None, None),
        SettingKind::Text { .. } => ("text", None, None),
    };
    let names = match setting.kind {
        SettingKind::Choice { names, .. } => names.to_vec(),
        _ => Vec::new(),
    };
    let default = match setting.default() {
        SettingValue::Absent => py.None(),
        SettingValue::Flag(default) => default.into_pyobject(py)?.to_owned().into_any().unbind(),
        SettingValue::Whole(default) => default.into_pyobject(py)?.into_any().unbind(),
        SettingValue::Number(default) => default.into_pyobject(py)?.into_any().unbind(),
        SettingValue::Text(default) => default.into_pyobject(py)?.into_any().unbind(),
    };
    Ok((
        class,
        setting.name,
        kind,
        default,
        least,
        most,
        names,
        setting.meaning,
    ))
}
