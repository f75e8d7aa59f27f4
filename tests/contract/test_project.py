"""Habits of the whole project that a reader cannot see in one file."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

# What people write, as opposed to what tools leave behind.
FOLDERS = ("src", "python", "tests", "docs", "benches", "proto", "examples", ".ci", ".github")
GENERATED = Path("src", "proto")
TEXT = {".rs", ".py", ".pyi", ".lua", ".proto", ".md", ".toml", ".yml", ".yaml", ".sh", ".txt", ""}

LINES_AT_MOST = 600

# Where somebody's checkout or home happens to be. None of it exists where the project is used.
MACHINE_PATHS = re.compile(
    r"/(?:work|farm|home|root|Users|tmp)/[A-Za-z0-9_.-]"
    r"|[.][.]/(?:shared|[.]library)"
    r"|\b(?:index|find)-(?:url|links)\b"
)


def written_files(project: Path) -> Iterator[Path]:
    """Every text file of the project, relative to it."""
    for file in project.iterdir():
        if file.is_file() and file.suffix in TEXT and not file.name.endswith(".lock"):
            yield file.relative_to(project)
    for folder in FOLDERS:
        for file in (project / folder).rglob("*"):
            if file.is_file() and file.suffix in TEXT and "__pycache__" not in file.parts:
                yield file.relative_to(project)


def too_long(project: Path) -> list[str]:
    """Source files above the ceiling; what is generated is nobody's to read."""
    return [
        f"{file}: {lines} lines"
        for file in sorted(written_files(project))
        if file.parts[0] in {"src", "python", "tests"} and GENERATED not in file.parents
        if (lines := len((project / file).read_text().splitlines())) > LINES_AT_MOST
    ]


def machine_paths(project: Path) -> list[str]:
    """Lines that name a place on somebody's machine."""
    return [
        f"{file}:{number}: {line.strip()}"
        for file in sorted(written_files(project))
        for number, line in enumerate((project / file).read_text().splitlines(), start=1)
        if MACHINE_PATHS.search(line)
    ]


def cargo_version(project: Path) -> str:
    """The version, which is written down only in Cargo.toml."""
    manifest = tomllib.loads((project / "Cargo.toml").read_text())
    return str(manifest["package"]["version"])


def test_no_file_is_too_long() -> None:
    assert too_long(PROJECT) == []


def test_nothing_names_a_place_on_this_machine() -> None:
    assert machine_paths(PROJECT) == []


def test_the_changelog_knows_the_version() -> None:
    changelog = (PROJECT / "CHANGELOG.md").read_text()
    heading = rf"^## \[?{re.escape(cargo_version(PROJECT))}\b"
    assert re.search(heading, changelog, re.MULTILINE), f"no line of CHANGELOG.md is {heading}"


@pytest.mark.parametrize("place", ["work/a", "home/me/x", "tmp/x"])
def test_these_tests_can_fail(tmp_path: Path, place: str) -> None:
    (tmp_path / "src" / "proto").mkdir(parents=True)
    (tmp_path / "README.md").write_text(f"fine\nsee /{place}\n")
    (tmp_path / "src" / "long.rs").write_text("//\n" * (LINES_AT_MOST + 1))
    (tmp_path / "src" / "proto" / "generated.rs").write_text("//\n" * (LINES_AT_MOST + 1))
    assert machine_paths(tmp_path) == [f"README.md:2: see /{place}"]
    assert too_long(tmp_path) == ["src/long.rs: 601 lines"]
