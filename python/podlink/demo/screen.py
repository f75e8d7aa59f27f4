"""Where the demo prints: whole lines, and on a terminal a progress bar below them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

__all__ = ["Screen"]

_BAR_WIDTH = 30
_REDRAW_SECONDS = 0.05
_PLAIN_STEPS = 4  # without a terminal a task reports each quarter of its work


class Screen:
    """Prints lines and progress to a stream, each line at once.

    On a terminal progress is a bar that is drawn over and erased in the end; elsewhere, and on a
    terminal that calls itself dumb, it is a plain line for each quarter. Nothing but letters and
    carriage returns is written, so every terminal and every log can show it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._drawn = 0

    def say(self, text: str = "") -> None:
        """Prints one line."""
        self._erase()
        self._write(f"{text}\n")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints a table, aligned to the right."""
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        for row in (head, *rows):
            cells = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            self.say("   " + "  ".join(cells))

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Shows how far a task is, from a function that takes what is done of ``total``."""
        started = time.monotonic()
        drawn_at = -_REDRAW_SECONDS
        said = 0

        def show(done: int) -> None:
            nonlocal drawn_at, said
            now = time.monotonic()
            if self._live and (now - drawn_at >= _REDRAW_SECONDS or done == total):
                drawn_at = now
                self._draw(what, done, total, now - started)
            step = done * _PLAIN_STEPS // total if total else 0
            if not self._live and said < step < _PLAIN_STEPS:
                # The last quarter needs no line: the next line shows that all is done.
                said = step
                self.say(f"   {what}: {done:,} of {total:,}")

        try:
            show(0)
            yield show
        finally:
            self._erase()

    def _draw(self, what: str, done: int, total: int, seconds: float) -> None:
        filled = _BAR_WIDTH * done // total if total else _BAR_WIDTH
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        line = f"   {what} [{bar}] {done:,} of {total:,}, {seconds:.1f} s"
        # A line that fills the last column wraps on some terminals and could not be erased.
        line = line[: shutil.get_terminal_size().columns - 1]
        self._write("\r" + line.ljust(self._drawn))
        self._drawn = len(line)

    def _erase(self) -> None:
        if self._drawn:
            self._write("\r" + " " * self._drawn + "\r")
            self._drawn = 0

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
