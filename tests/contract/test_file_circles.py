"""No two files of a room of src/ import each other, directly or through others.

Why: files that need each other cannot be read, tested or moved alone; they are one file in parts.
A `mod.rs` and what is below it are one module, so a file may name its parent. Modules for tests may
name every file.
"""

from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from helpers.rust_paths import module_of, named_paths

PROJECT = Path(__file__).parents[2]

Module = tuple[str, ...]


def circles(source_root: Path) -> list[list[str]]:
    """A circle of each room that has one: its files, each imports the next."""
    files = {tuple(module_of(file, source_root)): file for file in source_root.rglob("*.rs")}
    files.pop((), None)  # lib.rs names every room
    rooms: dict[str, list[Module]] = defaultdict(list)
    for module in sorted(files):
        rooms[module[0]].append(module)
    found = []
    for modules in rooms.values():
        imports = {
            module: _imported(module, files[module], source_root, modules) for module in modules
        }
        try:
            TopologicalSorter(imports).prepare()
        except CycleError as error:
            # graphlib names the imported file first, so that the import goes to the left.
            circle = [files[module] for module in reversed(error.args[1])]
            found.append([file.relative_to(source_root).as_posix() for file in circle])
    return found


def _imported(module: Module, file: Path, source_root: Path, modules: list[Module]) -> set[Module]:
    """The other files of the room that this one names, without its parents."""
    imported = set()
    for path in named_paths(file, source_root).code:
        crate, *parts = path.split("::")
        if crate == "crate":
            prefixes = (tuple(parts[:length]) for length in range(len(parts), 0, -1))
            imported.add(next((prefix for prefix in prefixes if prefix in modules), module))
    return {other for other in imported if module[: len(other)] != other}


def test_no_room_has_a_circle() -> None:
    assert circles(PROJECT / "src") == []


CIRCLES = [
    # Two files, written in both ways.
    ({"a/x.rs": "use super::y::Y;", "a/y.rs": "fn y() { crate::a::x::x() }"}, ["a/x.rs", "a/y.rs"]),
    # Three files, one of them the root of a folder.
    (
        {
            "a/x.rs": "use super::{w, y::{self, Y}};",
            "a/y.rs": "use crate::a::z::Z;",
            "a/z/mod.rs": "use super::x::X;",
            "a/w.rs": "",
        },
        ["a/x.rs", "a/y.rs", "a/z/mod.rs"],
    ),
]


@pytest.mark.parametrize(("sources", "expected"), CIRCLES)
def test_planted_circle_is_found(
    tmp_path: Path, sources: dict[str, str], expected: list[str]
) -> None:
    _write(tmp_path, sources)
    (circle,) = circles(tmp_path)
    assert circle[0] == circle[-1]
    assert sorted(circle[1:]) == expected
    start = circle.index(expected[0])
    turned = [*circle[start:-1], *circle[:start]]
    assert turned == expected


def test_parents_and_rooms_are_no_circle(tmp_path: Path) -> None:
    sources = {
        "lib.rs": "pub mod a; use crate::a::A;",
        "a/mod.rs": "mod x; mod y; use crate::a::x::X; pub struct A;",
        "a/x.rs": "use super::A; use super::y::Y; use crate::b::B;",
        "a/y.rs": "// use super::x::X;\nuse super::*;\n#[cfg(test)] mod t { use crate::a::x::X; }",
        "b.rs": "use crate::a::A;",
    }
    _write(tmp_path, sources)
    assert circles(tmp_path) == []


def _write(folder: Path, sources: dict[str, str]) -> None:
    for name, code in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)
