"""The changes of pods, read one after the other with ``async for``."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

from ._bridge import running_loop
from ._closeable import Closeable
from .errors import IllegalStateError, InvalidParameterError, OverloadedError
from .state import StatefulServiceState

__all__ = ["StateChange", "StateChanges"]

LIMIT_MAX = 10_000
"""Well below what may wait for a loop: a reader learns of the gap before the loop drops calls."""


@dataclass(frozen=True, slots=True)
class StateChange:
    """One change of a pod, as ``RouteInfoDriver.changes`` gives it.

    Attributes:
        namespace: of the pod's service.
        service_name: the pod's service.
        pod_index: the pod.
        previous: what was known of it before; ``None``: it came.
        now: what it publishes now; ``None``: it is not alive any more.
    """

    namespace: str
    service_name: str
    pod_index: int
    previous: StatefulServiceState | None
    now: StatefulServiceState | None


class _Registration(Protocol):
    def unregister(self) -> None: ...


class _Feed:
    """What the core calls with each change, on the loop that reads them. A driver holds it weakly,
    so it ends with its reader.
    """

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        self.limit = limit
        self.loop = weakref.ref(loop)
        self.waiting: deque[StateChange] = deque()
        # Changes that came while the queue was full. They belong behind all that waits.
        self.dropped = 0
        self.ended = False
        self.reader: asyncio.Future[None] | None = None

    def __call__(
        self, _reply: object, namespace: str, service_name: str, pod: int, previous: Any, now: Any
    ) -> None:
        if self.ended:
            return
        if self.dropped or len(self.waiting) >= self.limit:
            self.dropped += 1
            return
        before, after = _state(previous), _state(now)
        self.waiting.append(StateChange(namespace, service_name, pod, before, after))
        self.wake()

    def wake(self) -> None:
        """Lets the reader look again."""
        if self.reader is not None and not self.reader.done():
            self.reader.set_result(None)

    def end(self) -> None:
        """Takes no more changes; what waits can still be read."""
        self.ended = True
        self.wake()

    def driver_closed(self) -> None:
        """Ends, from any thread."""
        loop = self.loop()
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: no task reads any more
                loop.call_soon_threadsafe(self.end)


class StateChanges(Closeable):
    """The changes of pods, in their order, for one task: see ``RouteInfoDriver.changes``.

    Read it with ``async for``, on the loop on which it was made. It ends when the driver is closed,
    after the changes that came before. It subscribes when it is made, and unsubscribes at the end
    of its ``async with``, by ``aclose()``, or when it is dropped.
    """

    def __init__(
        self,
        driver: object,
        limit: int,
        register: Callable[[_Feed], _Registration],
    ) -> None:
        self._driver = driver  # while it is read, it is used
        self._feed = _feed(limit)
        self._registration = register(self._feed)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StateChange:
        """Returns the next change; waits for it. Cancelling it loses none.

        Raises:
            OverloadedError: the reader was too slow: ``details["dropped"]`` changes are missing
                here. Those before were read; those after can be read by going on.
            IllegalStateError: another task waits for the next change already.
        """
        feed = self._feed
        while not feed.waiting:
            if feed.dropped:
                raise _overflow(feed)
            if feed.ended:
                raise StopAsyncIteration
            if feed.reader is not None:
                raise IllegalStateError("changes are read by one task, and another one waits")
            feed.reader = asyncio.get_running_loop().create_future()
            try:
                await feed.reader
            finally:
                feed.reader = None
        return feed.waiting.popleft()

    async def aclose(self) -> None:
        """Unsubscribes, and drops what was not read. A task that waits for a change ends."""
        self._registration.unregister()
        self._feed.waiting.clear()
        self._feed.dropped = 0
        self._feed.end()


def _feed(limit: object) -> _Feed:
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= LIMIT_MAX:
        allowed = f"an integer from 1 to {LIMIT_MAX}"
        raise InvalidParameterError(
            f"limit must be {allowed}, got {limit!r}",
            details={"parameter": "limit", "given": repr(limit), "allowed": allowed},
        )
    return _Feed(limit, running_loop())


def _overflow(feed: _Feed) -> OverloadedError:
    dropped, feed.dropped = feed.dropped, 0
    return OverloadedError(
        f"the reader of changes was too slow: {dropped} changes after the {feed.limit} that "
        "waited were dropped",
        retryable=True,
        details={"dropped": str(dropped), "limit": str(feed.limit)},
    )


def _state(fields: Any) -> StatefulServiceState | None:
    return None if fields is None else StatefulServiceState._from_core(fields)
