"""Where podlink's log records are made: its own, and those of the core.

Every record also has its facts as fields: ``record.podlink``, a dictionary. A message that repeats
is written ten times in ten seconds, then only counted (a rate limit).
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from . import _podlink
from .errors import InvalidParameterError

__all__ = [
    "Log",
    "Repeats",
    "forward",
    "go_by_environment",
    "hash_uid",
    "report_repeats",
    "reset",
    "seconds_until_due",
]

# A library does not decide where its records go, nor that they go to stderr.
_root = logging.getLogger("podlink")
_root.addHandler(logging.NullHandler())

_SHOWN_MAX = 500
"""How long a part of a message may be, in characters."""


class _Message:
    """A message in its present interval."""

    __slots__ = ("left_out", "level", "since", "times")

    def __init__(self, level: int, since: float) -> None:
        self.level, self.since = level, since
        self.times = self.left_out = 0


class Repeats:
    """Counts messages that repeat, so that not each of them is written.

    Args:
        most: how often a message is written in an interval.
        interval: its length in seconds, from the first time.
        now: the clock, in seconds.
    """

    def __init__(
        self, most: int = 10, interval: float = 10.0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.interval = interval
        self._most, self._now = most, now
        self._messages: dict[tuple[str, str], _Message] = {}
        self._lock = threading.RLock()  # a signal handler may log in the middle

    def admit(self, logger: str, level: int, message: str) -> bool:
        """Whether this message is to be written now, or only counted."""
        with self._lock:
            known = self._messages.setdefault((logger, message), _Message(level, self._now()))
            known.times += 1
            if known.times <= self._most:
                return True
            known.left_out += 1
            return False

    def over(self, *, all_of_them: bool = False) -> list[tuple[str, int, str, int]]:
        """Ends the intervals that are over: logger, level, message, and how often it was left out
        if it was.
        """
        with self._lock:
            until = self._now() - self.interval
            ended = {
                key: known
                for key, known in self._messages.items()
                if all_of_them or known.since <= until
            }
            for key in ended:
                del self._messages[key]
        return [
            (logger, known.level, message, known.left_out)
            for (logger, message), known in ended.items()
            if known.left_out
        ]

    def seconds(self) -> float | None:
        """How long until the next report of left-out messages is due; ``None``: there is none."""
        with self._lock:
            waiting = [known.since for known in self._messages.values() if known.left_out]
        return max(0.0, min(waiting) + self.interval - self._now()) if waiting else None


_repeats = Repeats()


def _write(
    logger: logging.Logger,
    level: int,
    message: str,
    text: str,
    fields: Mapping[str, Any],
    **options: Any,
) -> None:
    """Writes a record, unless the same message was written too often in this interval."""
    if not logger.isEnabledFor(level):
        return
    report_repeats()
    # A program that enables DEBUG wants to see everything.
    if level <= logging.DEBUG or _repeats.admit(logger.name, level, message):
        logger.log(level, "%s", text, extra={"podlink": dict(fields)}, **options)


class Log:
    """A logger of podlink's Python half."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, message: str, **fields: Any) -> None:
        """Writes a record with the exception that is being handled."""
        self._say(logging.DEBUG, message, fields, exc_info=True)

    def warning(self, message: str, **fields: Any) -> None:
        """Writes a record."""
        self._say(logging.WARNING, message, fields)

    def error(self, message: str, error: BaseException, **fields: Any) -> None:
        """Writes a record with the exception."""
        self._say(logging.ERROR, message, fields, exc_info=error)

    def _say(self, level: int, message: str, fields: Mapping[str, Any], **options: Any) -> None:
        shown = {name: _shown(value) for name, value in fields.items()}
        text = message + "".join(f" {name}={value}" for name, value in shown.items())
        # Two hooks that raise are two messages, so the fields are part of the message.
        _write(self._logger, level, text, text, shown, stacklevel=4, **options)


def _shown(value: object) -> object:
    """A value as a record shows it: numbers as they are, texts on one line and not too long."""
    if isinstance(value, bool | int | float):
        return value
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:  # noqa: BLE001 - a program's own `__repr__`
        text = f"<{type(value).__name__}, whose repr raises>"
    shown = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text[:_SHOWN_MAX])
    return shown if len(text) <= _SHOWN_MAX else f"{shown}… ({len(text)} characters)"


def hash_uid(uid: str) -> str:
    """Returns what stands for a uid in log records from INFO on, and in traces.

    It is the beginning of the uid's SHA-256, and the same everywhere: ``printf %s "$UID" |
    sha256sum | cut -c1-12`` makes it, too. It keeps uids out of records that many people read; a
    reader that guesses a uid can check the guess.

    Args:
        uid: 1 to 128 bytes of UTF-8 without control characters and braces.

    Raises:
        InvalidParameterError: it is not a uid.

    Example:
        >>> hash_uid("user123")
        'e606e38b0d8c'
    """
    return _podlink.hash_uid(uid)


_log = Log("podlink.log")


def forward() -> None:
    """Hands the core's records to ``logging``, and reports what was left out for too long."""
    records, dropped = _podlink.take_logs()
    for level, logger, message, text, fields in records:
        _write(logging.getLogger(logger), level, message, text, dict(fields))
    if dropped:
        _log.warning("log records were dropped: they were not taken in time", dropped=dropped)
    report_repeats()


def report_repeats(*, all_of_them: bool = False) -> None:
    """Writes how often messages were left out in the intervals that are over."""
    for logger, level, message, count in _repeats.over(all_of_them=all_of_them):
        logging.getLogger(logger).log(
            level,
            "%s",
            f"{message} (and {count} times more, not shown)",
            extra={"podlink": {"not_shown": count}},
        )


@atexit.register
def _flush_at_exit() -> None:
    # Runs before logging's own, which closes the handlers: that was registered earlier.
    forward()
    report_repeats(all_of_them=True)


def reset() -> None:
    """Counts from scratch. In a forked child the counts are the parent's; the lock may be held."""
    global _repeats
    _repeats = Repeats()


def seconds_until_due() -> float | None:
    """How long until ``forward`` has something to report, though nothing arrives."""
    return _repeats.seconds()


def go_by_environment() -> None:
    """Reads ``PODLINK_LOG``. A wrong value is logged, and changes nothing.

    Records that the variable enables must pass ``logging`` too: where the program has not set a
    level for ``podlink``, it becomes that of the most verbose logger.
    """
    wanted = os.environ.get("PODLINK_LOG")
    if wanted is None:
        return
    try:
        level = _podlink.set_log_filter(wanted)
    except InvalidParameterError as error:
        _log.warning("a variable cannot be used, and INFO counts", why=str(error))
        return
    if level is not None and _root.level == logging.NOTSET:
        _root.setLevel(level)
