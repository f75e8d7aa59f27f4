"""Threads of podlink's own for the program's functions, so that a slow one delays no answer."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable

from ._logs import Log

__all__ = ["ThreadPool"]

_log = Log("podlink.hooks")

_starving: weakref.WeakSet[ThreadPool] = weakref.WeakSet()
"""The pools whose work waits because the system refused a thread."""


def starving() -> bool:
    """Whether any work waits for a thread that the system refused."""
    return bool(_starving)


def feed() -> None:
    """Tries again to start the threads that the system refused."""
    for pool in list(_starving):
        _starving.discard(pool)
        pool.feed()


class ThreadPool:
    """Threads for functions that may be slow: at most ``size``, each ended by a second without
    work. One that hangs blocks neither the others nor the exit of the program.
    """

    _LINGER_SECONDS = 1.0

    def __init__(self, size: int, name: str) -> None:
        self._size, self._name = size, name
        self._changed = threading.Condition()
        self._work: deque[Callable[[], None]] = deque()
        self._threads = 0
        self._idle = 0

    def run(self, work: Callable[[], None]) -> None:
        """Queues the work, which must not raise.

        If the system refuses a thread and the pool has none, the work waits until one is free.
        """
        with self._changed:
            self._work.append(work)
            self._changed.notify()
            if len(self._work) > self._idle and self._threads < self._size:
                self._start_thread()

    def _start_thread(self) -> None:
        try:
            threading.Thread(target=self._serve, name=self._name, daemon=True).start()
        except RuntimeError as error:  # the system's limit of threads
            if self._threads == 0:
                _starving.add(self)
                _log.error("no thread for the program's function: it waits", error)
        else:
            self._threads += 1

    def feed(self) -> None:
        """Tries again to start a thread for work that waits for one."""
        with self._changed:
            if self._work and self._threads == 0:
                self._start_thread()

    def _serve(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - the thread is the next call's as well
                _log.error("a call ended with an exception of its own", error)
            del work  # or this thread would keep the hook, and its driver, until it ends

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._work, self._LINGER_SECONDS)
            self._idle -= 1
            if self._work:
                return self._work.popleft()
            self._threads -= 1
            return None
