"""Strategies that are functions of the program's own: each driver's on a thread of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from . import _podlink
from ._bridge import answer_thread
from ._hooks import Arguments, Hook
from ._workers import ThreadPool
from .config import Strategy
from .state import StatefulServiceState

__all__ = ["chooser"]


class Chooser(Hook):
    """A strategy. It runs on a thread of its own wherever it was given, because the core needs its
    answer in the middle of a compute, and a loop may be busy. One call follows the other; the core
    sends no more calls than can begin in time.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__("strategy", function)
        self._pool = ThreadPool(1, "podlink-hook")

    @property
    def home(self) -> _podlink.CompletionQueue:
        """The queue of podlink's own thread."""
        return answer_thread().queue

    def __call__(self, reply: _podlink.Reply, *arguments: Any) -> None:
        """Has the function run; the answer goes to ``reply``."""
        if not reply.cancels:  # what is abandoned before its turn is skipped then
            self._pool.run(lambda: self._on_thread(reply, arguments))

    def _on_thread(self, reply: _podlink.Reply, arguments: Arguments) -> None:
        if reply.abandoned():
            return
        try:
            answer = self._context_of(reply).run(self._function, *arguments)
            if inspect.iscoroutine(answer):
                answer.close()  # without the warning that it was never awaited
                raise TypeError("the strategy returned a coroutine: it must not be async")
            reply.answer(answer)
        except BaseException as error:  # noqa: BLE001 - not even sys.exit() may end the thread
            self._fail(reply, error)


def chooser(strategy: Strategy) -> Chooser | None:
    """The hook of a strategy that is a function; ``None``: it is a name."""
    if not callable(strategy):
        return None

    def choose(uid: str, candidates: Sequence[Any]) -> Any:
        return strategy(uid, [StatefulServiceState._from_core(fields) for fields in candidates])

    return Chooser(choose)
