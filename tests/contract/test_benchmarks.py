"""What benches/README.md says of figures, and what its pictures show, is what was measured.

The table and the pictures are made of benches/results/*.json by scripts, never by hand. Nothing
here measures anything.
"""

import importlib.util
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).parents[2]
SCRIPTS = PROJECT / "benches" / "python"
RESULTS = PROJECT / "benches" / "results"

RUN = {
    "date": "2026-01-02",
    "commit": "abc1234",
    "processor": "a processor",
    "cores": 2,
    "system": "a system",
    "python": "CPython",
    "versions": {"podlink": "0.1.0"},
    "load_before": 0.1,
}


@pytest.fixture(scope="module", autouse=True)
def _scripts_import_each_other() -> Iterator[None]:
    """Scripts import each other from their own folder; nobody else is to find them there."""
    known = set(sys.modules)
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(SCRIPTS)):
            del sys.modules[name]


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _write(folder: Path, subject: str, figures: list[dict[str, object]]) -> None:
    content = {"subject": subject, "quick": False, "run": RUN, "notes": [], "figures": figures}
    (folder / f"{subject}.json").write_text(json.dumps(content), "utf-8")


def _cached(own: list[float], other: list[float]) -> list[dict[str, object]]:
    case = {"users": "one"}
    return [
        {"who": "podlink compute_linked_pod", "unit": "ns", "case": case, "rounds": own},
        {"who": "cachetools.TTLCache", "unit": "ns", "case": case, "rounds": other},
    ]


def test_the_page_says_what_was_measured() -> None:
    report = _load("report")
    page = report.PAGE.read_text("utf-8")
    assert page == report.page_with(page, report.block(report.read(RESULTS)))


@pytest.mark.parametrize(
    ("own", "ratio", "verdict"),
    [
        ([100.0, 120.0, 90.0], "**0.10** (0.09", "yes, and the aim"),
        ([400.0, 400.0, 400.0], "**0.40**", "yes"),
        ([900.0, 900.0, 900.0], "**0.90**", "**no**"),
    ],
)
def test_a_line_is_the_median_of_ratios_and_is_judged(
    tmp_path: Path, own: list[float], ratio: str, verdict: str
) -> None:
    report = _load("report")
    _write(tmp_path, "cached", _cached(own, [1000.0, 1000.0, 1000.0]))
    made = report.block(report.read(tmp_path))
    (line,) = [each for each in made.splitlines() if "one user ÷ cachetools TTLCache" in each]
    assert f"| ≤ 0.5 | ≤ 0.3 | {ratio}" in line
    assert line.endswith(f"| {verdict} |")
    assert "a processor" in made


def test_every_picture_was_drawn_from_the_figures_beside_it() -> None:
    pictures = _load("_pictures")
    measured = {
        name: pictures.source_of(RESULTS, subject)
        for name, subject in pictures.PICTURES.items()
        if (RESULTS / f"{subject}.json").exists()
    }
    drawn = {file.stem: pictures.said_by(file) for file in RESULTS.glob("*.png")}
    assert drawn == measured


def test_a_picture_of_other_figures_is_found_out(tmp_path: Path) -> None:
    pictures = _load("_pictures")
    _write(tmp_path, "cached", _cached([1.0], [2.0]))
    said = pictures.source_of(tmp_path, "cached")
    _write(tmp_path, "cached", _cached([1.0], [3.0]))
    picture = tmp_path / "cached.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", b"") + _chunk(b"tEXt", said))
    assert pictures.said_by(picture) == said
    assert pictures.source_of(tmp_path, "cached") != said


def _chunk(kind: bytes, content: bytes | str) -> bytes:
    if isinstance(content, str):
        content = b"Source\0" + content.encode("latin-1")
    return struct.pack(">I", len(content)) + kind + content + b"\0\0\0\0"


def test_the_page_shows_every_picture() -> None:
    page = _load("report").PAGE.read_text("utf-8")
    missing = [name for name in _load("_pictures").PICTURES if f"(results/{name}.png)" not in page]
    assert missing == []


def test_nothing_published_comes_from_a_quick_run() -> None:
    quick = [f.name for f in RESULTS.glob("*.json") if json.loads(f.read_text("utf-8"))["quick"]]
    assert quick == []
