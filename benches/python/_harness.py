"""How everything here is measured: rounds in turn, a progress bar, medians and their spread."""

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Measure = Callable[[], float | tuple[float, float]]
"""Runs one round of one contender and returns its figure, and what CPU a million calls took."""


@dataclass
class Contender:
    """One way of doing the thing that is measured, and what its rounds gave."""

    name: str
    measure: Measure
    case: dict[str, str | int | float] = field(default_factory=dict)
    """What tells it from others of this name: the loop, how many tasks."""
    unit: str = "ns"
    figures: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """CPU seconds of this process per million calls, for contenders that say."""

    def round(self, *, counts: bool) -> None:
        """Measures once; what a warming round gave is not kept."""
        gave = self.measure()
        if not counts:
            return
        figure, *cpu = gave if isinstance(gave, tuple) else (gave,)
        self.figures.append(figure)
        self.cpu.extend(cpu)


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
            line = f"\r{self._title:<24.24} [{bar:<{self._WIDTH}}] {share:4.0%} {what:<28.28}"
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
            contender.round(counts=number > 0)
            progress.step(contender.name)
