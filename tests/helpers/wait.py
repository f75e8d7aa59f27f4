"""Wait for a condition, never for a time.

A fixed sleep is too short on a busy machine and too long on every other one. These two ask again
and again until the condition holds, and give up at a deadline that only a broken program reaches.
"""

import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, overload

T = TypeVar("T")

# What a busy machine may add to a deadline, or to what happens at once. Where a test must see that
# something did not wait, what it would have waited for is far longer.
LATE = 10.0

# Short enough that nobody notices the wait, long enough not to occupy a core.
_PAUSE_SECONDS = 0.01


def eventually(predicate: Callable[[], T], *, within: float = 60.0) -> T:
    """Ask `predicate` until its answer is truthy, and return that answer.

    Raises AssertionError after `within` seconds. An exception from `predicate` is a failure at
    once: a predicate that may fail for a while catches what it expects and answers False.
    """
    deadline = time.monotonic() + within
    while not (answer := predicate()):
        if time.monotonic() >= deadline:
            raise AssertionError(_too_late(predicate, answer, within))
        time.sleep(_PAUSE_SECONDS)
    return answer


@overload
async def eventually_async(
    predicate: Callable[[], Coroutine[Any, Any, T]], *, within: float = 60.0
) -> T: ...


@overload
async def eventually_async(predicate: Callable[[], T], *, within: float = 60.0) -> T: ...


async def eventually_async(predicate: Callable[[], Any], *, within: float = 60.0) -> Any:
    """The same for a running event loop; `predicate` may be sync or async.

    A call of an async `predicate` that has not returned at the deadline is cancelled.
    """
    answer = None
    deadline = asyncio.timeout(within)
    try:
        async with deadline:
            while not (answer := await _ask(predicate)):  # noqa: ASYNC110 (no event to wait for)
                await asyncio.sleep(_PAUSE_SECONDS)
    except TimeoutError as error:
        if not deadline.expired():
            raise  # it is the predicate's own
        raise AssertionError(_too_late(predicate, answer, within)) from error
    return answer


async def _ask(predicate: Callable[[], Any]) -> Any:
    answer = predicate()
    return await answer if inspect.isawaitable(answer) else answer


def _too_late(predicate: Callable[[], object], answer: object, within: float) -> str:
    name = getattr(predicate, "__qualname__", repr(predicate))
    return f"{name} did not hold within {within:g} s; its last answer was {answer!r}"
