"""How long the hook that runs may take."""

from __future__ import annotations

import contextvars
import time
from typing import Protocol

__all__ = ["CallTime", "current_call"]


class _Reply(Protocol):
    """Where the result of a call goes, as far as its time is concerned."""

    def seconds_left(self) -> float | None: ...
    def abandoned(self) -> bool: ...


class CallTime:
    """How long the result of a call is waited for, on the clock of ``time.monotonic()``."""

    __slots__ = ("_began", "_deadline", "_reply")

    def __init__(self, reply: _Reply) -> None:
        left = reply.seconds_left()
        self._reply, self._began = reply, time.monotonic()
        self._deadline = None if left is None else self._began + left

    def deadline(self) -> float | None:
        """When the wait ends. If it has ended early, that is in the past."""
        return self._began if self._reply.abandoned() else self._deadline


current_call: contextvars.ContextVar[CallTime | None] = contextvars.ContextVar(
    "podlink_hook", default=None
)
"""The call of the hook that runs."""
