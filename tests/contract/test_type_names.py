"""A type's name is unique in the crate.

Why: a reader who searches for a name must find one type, not the seven that were called `Shared`.
"""

import re
from collections import defaultdict
from pathlib import Path

import pytest

from helpers.rust_paths import code_of

PROJECT = Path(__file__).parents[2]
# Its names are those of the schema, which the types of the core share.
GENERATED = ("proto/podlink.v1.rs",)

_TYPE = re.compile(
    r"^(?P<indent>[ \t]*)(?:pub(?:\([a-z ]+\))?\s+)?(?:unsafe\s+)?"
    r"(?:struct|enum|union|trait|type)\s+(?P<name>[A-Z]\w*)",
    re.MULTILINE,
)
# Blocks whose `type` is an associated one: its name belongs to the trait.
_TRAIT_BLOCK = re.compile(r"^(?P<indent>[ \t]*)(?:pub(?:\([a-z ]+\))?\s+)?(?:impl|trait)\b")


def duplicates(source_root: Path) -> dict[str, list[str]]:
    """Each name that stands for several types, with their places."""
    places = defaultdict(list)
    for file in sorted(source_root.rglob("*.rs")):
        place = file.relative_to(source_root).as_posix()
        if place not in GENERATED:
            for line, name in _types(code_of(file)):
                places[name].append(f"{place}:{line}")
    return {name: found for name, found in places.items() if len(found) > 1}


def _types(code: str) -> list[tuple[int, str]]:
    found = []
    block: str | None = None  # the indent of the impl or trait that the line is part of
    for number, line in enumerate(code.splitlines(), start=1):
        if block is not None and line.startswith(f"{block}}}"):
            block = None
            continue
        if match := _TYPE.match(line):
            associated = block is not None and match["indent"] != block
            if not associated:
                found.append((number, match["name"]))
        opens = _TRAIT_BLOCK.match(line)
        if block is None and opens and not line.rstrip().endswith(("}", ";")):
            block = opens["indent"]
    return found


def test_type_names_are_unique() -> None:
    assert duplicates(PROJECT / "src") == {}


@pytest.mark.parametrize(
    "other",
    ["struct Shared;", "pub(super) enum Shared {}", "    pub trait Shared: Send {\n    }"],
)
def test_duplicate_is_found(tmp_path: Path, other: str) -> None:
    (tmp_path / "a.rs").write_text("/// One.\npub struct Shared {\n    a: u8,\n}\n")
    (tmp_path / "b.rs").write_text(f"// struct Shared;\n{other}\n")
    assert duplicates(tmp_path) == {"Shared": ["a.rs:2", "b.rs:2"]}


def test_associated_types_are_free(tmp_path: Path) -> None:
    (tmp_path / "proto").mkdir()
    (tmp_path / "proto" / "podlink.v1.rs").write_text("pub struct Error {}\n")
    (tmp_path / "a.rs").write_text(
        "pub struct Error;\n"
        "impl<'a> A for B<'a>\nwhere\n    B<'a>: C,\n{\n    type Error = Error;\n}\n"
        "pub trait D {\n    type Error: Send;\n}\n"
        'const E: &str = "\nstruct Error;\n";\n'
        "impl F for G {}\n/* struct Error; */\n"
    )
    assert duplicates(tmp_path) == {}
