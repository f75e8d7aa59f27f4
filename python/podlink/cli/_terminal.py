"""A terminal that is drawn on as a whole and always restored."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
import unicodedata
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from podlink._show import one_line

__all__ = ["Terminal", "fit", "is_live"]

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"  # another screen, no cursor, no wrapping
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME = "\x1b[H"
_CLEAR_LINE = "\x1b[K"
_CLEAR_BELOW = "\x1b[J"
_BOLD = "\x1b[1m"
_REVERSE = "\x1b[7m"
_PLAIN = "\x1b[0m"


def is_live() -> bool:
    """Whether stdout is a terminal that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")


def fit(text: str, width: int) -> str:
    """The text on one line, cut to so many columns; wide letters count twice."""
    text, used = one_line(text), 0
    for at, letter in enumerate(text):
        used += _columns(letter)
        if used > width:
            return text[:at]
    return text


def _columns(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


class Terminal:
    """The terminal at stdout, within ``with``, in a running event loop.

    ``wake`` is called when the size has changed or a key was pressed; ``keys`` holds what was
    pressed. Ctrl-Z gives the terminal back and takes it again afterwards.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._input = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._found: list[Any] | None = None
        self._previous = signal.SIG_DFL
        self.keys = ""

    def __enter__(self) -> Self:
        self._take()
        self._loop.add_signal_handler(signal.SIGWINCH, self._wake)
        self._loop.add_signal_handler(signal.SIGTSTP, self._pause)
        if self._input is not None:
            self._loop.add_reader(self._input, self._read, self._input)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._input is not None:
            self._loop.remove_reader(self._input)
        for number in (signal.SIGWINCH, signal.SIGTSTP):
            self._loop.remove_signal_handler(number)
        self._give_back()

    def size(self) -> os.terminal_size:
        """Columns and lines."""
        try:
            return os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            return os.terminal_size((80, 24))

    def draw(self, lines: Sequence[tuple[str, str]]) -> None:
        """Shows these lines, each with a style: ``""``, ``"bold"`` or ``"head"``."""
        width, height = self.size()
        styles = {"": "", "bold": _BOLD, "head": _REVERSE}
        drawn = []
        for text, style in lines[:height]:
            shown = fit(text, width)
            if style == "head":
                shown += " " * (width - sum(map(_columns, shown)))
            drawn.append(f"{styles[style]}{shown}{_PLAIN}{_CLEAR_LINE}")
        self._write(_HOME + "\r\n".join(drawn) + _CLEAR_BELOW)

    def _take(self) -> None:
        if self._input is not None:
            self._found = termios.tcgetattr(self._input)
            tty.setcbreak(self._input, termios.TCSANOW)
        self._write(_ENTER)

    def _give_back(self) -> None:
        try:
            self._write(_PLAIN + _LEAVE)
        finally:
            if self._input is not None and self._found is not None:
                termios.tcsetattr(self._input, termios.TCSADRAIN, self._found)

    def _pause(self) -> None:
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)  # stands here until SIGCONT
        self._take()
        self._wake()

    def _read(self, source: int) -> None:
        read = os.read(source, 1024)
        if not read:  # the terminal was closed
            self._loop.remove_reader(source)
            read = b"q"
        self.keys += read.decode(errors="replace")
        self._wake()

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
