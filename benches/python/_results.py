"""What was measured, as JSON: every round of every contender, and on what machine.

    results = Results("cached", "podlink", "cachetools")
    results.add("podlink", "ns", [323.0, 322.1], users=1)
    results.write()

A quick run (`QUICK=1`) tells whether the scripts work. It proves nothing, so it is written
elsewhere and never into the pages.
"""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from _harness import Contender

PROJECT = Path(__file__).parents[2]
PUBLISHED = PROJECT / "benches" / "results"
QUICK = os.environ.get("QUICK", "") not in {"", "0"}
"""Whether this run is short, and not for publication."""

CPU = "CPU s/million"
"""The unit of what a client's process computes for a million calls."""

Case = dict[str, str | int | float]


def folder() -> Path:
    """Where this run's results go."""
    return PROJECT / "target" / "bench-quick" if QUICK else PUBLISHED


def rounds(many: int) -> int:
    """How many rounds count: two in a quick run."""
    return 2 if QUICK else many


class Results:
    """The figures of one subject."""

    def __init__(self, subject: str, *packages: str) -> None:
        self.subject = subject
        self._run = _where_and_when(packages)
        self._figures: list[dict[str, Any]] = []
        self._notes: list[str] = []

    @property
    def where(self) -> dict[str, Any]:
        """The machine, the versions and the commit."""
        return self._run

    def add(self, who: str, unit: str, figures: Sequence[float], **case: str | int | float) -> None:
        """Keeps the rounds of one contender; `case` tells it from others of its name."""
        kept = [float(f"{figure:.5g}") for figure in figures]
        self._figures.append({"who": who, "unit": unit, "case": case, "rounds": kept})

    def add_all(self, contenders: Iterable[Contender]) -> None:
        """Keeps the rounds of contenders that took turns."""
        for each in contenders:
            self.add(each.name, each.unit, each.figures, **each.case)
            if each.cpu:
                self.add(each.name, CPU, each.cpu, **each.case)

    def version(self, name: str, number: str) -> None:
        """Keeps the version of something that is not a Python package."""
        self._run["versions"][name] = number

    def note(self, text: str) -> None:
        """Keeps a sentence that belongs to the figures: above all what could not be measured."""
        self._notes.append(text)

    def write(self) -> None:
        """Writes the file and prints what is in it."""
        folder().mkdir(parents=True, exist_ok=True)
        content = {
            "subject": self.subject,
            "quick": QUICK,
            "run": self._run,
            "notes": self._notes,
            "figures": self._figures,
        }
        path = folder() / f"{self.subject}.json"
        path.write_text(_one_figure_a_line(content), "utf-8")
        for figure in Measured.read(folder(), self.subject).figures:
            print(f"  {figure.label:<62} {figure.shown:>14} {figure.unit:<10} {figure.spread}")
        for each in self._notes:
            print(f"  note: {each}")
        print(flush=True)


@dataclass(frozen=True)
class Figure:
    """What one contender's rounds gave, as it was written down."""

    who: str
    unit: str
    case: Case
    rounds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> str:
        """The lowest and the highest round, relative to the median."""
        if self.median == 0 or len(self.rounds) < 2:
            return ""
        low, high = min(self.rounds) / self.median - 1, max(self.rounds) / self.median - 1
        return f"{low:+.0%} {high:+.0%}"

    @property
    def shown(self) -> str:
        return shown(self.median)

    @property
    def label(self) -> str:
        return ", ".join([self.who, *(f"{name} {value}" for name, value in self.case.items())])


@dataclass(frozen=True)
class Measured:
    """One subject's file."""

    subject: str
    quick: bool
    run: dict[str, Any]
    notes: list[str]
    figures: list[Figure]

    @classmethod
    def read(cls, place: Path, subject: str) -> "Measured":
        """The file of this subject; an empty one if it was not measured."""
        path = place / f"{subject}.json"
        if not path.exists():
            return cls(subject, QUICK, {}, [], [])
        content = json.loads(path.read_text("utf-8"))
        figures = [Figure(**each) for each in content.pop("figures")]
        return cls(**content, figures=figures)

    def select(self, unit: str, who: str | None = None, **case: Any) -> Iterator[Figure]:
        """The figures in this unit, of this name if one is given, whose case has these values."""
        for figure in self.figures:
            ours = figure.unit == unit and who in (None, figure.who)
            if ours and case.items() <= figure.case.items():
                yield figure

    def find(self, unit: str, who: str, **case: Any) -> Figure | None:
        """The one figure of this name and case, if it was measured."""
        return next(self.select(unit, who, **case), None)


def shown(figure: float) -> str:
    """A figure with three digits that count, or as many as it has before the point."""
    if figure == 0 or abs(figure) >= 100:
        return f"{figure:,.0f}"
    digits = 1 if abs(figure) >= 10 else 2 if abs(figure) >= 0.1 else 4
    return f"{figure:.{digits}f}"


def _one_figure_a_line(content: dict[str, Any]) -> str:
    """JSON in which a changed figure is a changed line."""
    figures = content.pop("figures")
    head = json.dumps(content, indent=1, ensure_ascii=False)
    lines = ",\n".join(f"  {json.dumps(figure, ensure_ascii=False)}" for figure in figures)
    return f'{head.removesuffix("}").rstrip()},\n "figures": [\n{lines}\n ]\n}}\n'


def _where_and_when(packages: Sequence[str]) -> dict[str, Any]:
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": _commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {name: installed(name) or "absent" for name in packages},
        "load_before": round(os.getloadavg()[0], 2),
    }


def installed(package: str) -> str | None:
    """The version of a package, if it is installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """The commit that was measured; with a `+` where src/ or python/ has changed since."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(PROJECT), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "src", "python", "Cargo.toml", "Cargo.lock")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
