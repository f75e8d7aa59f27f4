"""What the benchmarks share: rounds in turn, a progress line, medians with their spread."""

import gc
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

Measure = Callable[[], float]
"""Runs one round of one contender and returns its figure."""


@dataclass
class Contender:
    """One way of doing the thing that is measured, and what its rounds gave."""

    name: str
    measure: Measure
    figures: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.figures)

    @property
    def spread(self) -> str:
        """The lowest and the highest round, relative to the median."""
        low, high = min(self.figures) / self.median - 1, max(self.figures) / self.median - 1
        return f"{low:+.0%} {high:+.0%}"


class Progress:
    """A bar on a terminal; elsewhere a line now and then."""

    _WIDTH = 30
    _LINES = 4

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._done = title, total, 0
        self._terminal = sys.stderr.isatty()

    def step(self, what: str) -> None:
        """One measurement more is done; `what` comes next or has just been."""
        self._done += 1
        share = self._done / self._total
        if self._terminal:
            bar = "#" * round(share * self._WIDTH)
            line = f"\r{self._title} [{bar:<{self._WIDTH}}] {share:4.0%} {what:<28.28}"
            end = "\n" if self._done == self._total else ""
            print(line, end=end, file=sys.stderr, flush=True)
        elif self._done * self._LINES % self._total < self._LINES:
            print(f"{self._title}: {share:.0%}", file=sys.stderr, flush=True)


def interleave(title: str, contenders: Sequence[Contender], rounds: int) -> None:
    """Measures all contenders in turn, in another order each round; the first round warms up.

    Whatever happens to the machine meanwhile happens to all of them.
    """
    progress = Progress(title, (rounds + 1) * len(contenders))
    for number in range(rounds + 1):
        turn = number % len(contenders)
        for contender in (*contenders[turn:], *contenders[:turn]):
            gc.collect()
            figure = contender.measure()
            if number > 0:
                contender.figures.append(figure)
            progress.step(contender.name)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a Markdown table, so that it can be pasted into benches/README.md as it is."""
    widths = [max(len(row[at]) for row in (header, *rows)) for at in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        shown = [first, *(c.strip().rjust(w) for c, w in zip(rest, widths[1:], strict=True))]
        return "| " + " | ".join(shown) + " |"

    first, *rest = ("-" * (width + 1) for width in widths)
    print(line(header))
    print(f"|{first}-|" + "".join(f"{dashes}:|" for dashes in rest))
    for row in rows:
        print(line(row))
    print(flush=True)


def describe(*packages: str) -> None:
    """Prints when, on what and with which versions this was measured."""
    versions = ", ".join(f"{name} {installed(name) or 'absent'}" for name in packages)
    print(f"{datetime.now(UTC):%Y-%m-%d}, {_processor()}, {os.cpu_count()} cores,")
    print(f"{platform.system()} {platform.release()}, {platform.python_implementation()}", end=" ")
    print(f"{platform.python_version()}, {versions}")
    print(f"load before the run: {os.getloadavg()[0]:.2f}\n", flush=True)


def installed(package: str) -> str | None:
    """The version of a package, if it is installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
