"""Functions of the program's own that podlink calls: sync or async, where they were registered.

A hook that was registered while a loop ran is called on that loop, with the context variables of
its registration. One that was registered without a loop runs on a thread of its own, so that a
slow one delays neither routing nor other hooks.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import _podlink
from ._bridge import bridge_of, callback_thread
from .config import check_callable

_log = logging.getLogger("podlink.hooks")

Arguments = tuple[Any, ...]


class Hook:
    """A function of the program's own, as the core calls it: ``hook(reply, *arguments)``.

    Attributes:
        home: the completion queue through which the core's calls come.
        failures: how often the function raised.
    """

    def __init__(self, what: str, function: Callable[..., Any]) -> None:
        check_callable(what, function)
        self._function = function
        self._context = contextvars.copy_context()
        self.failures = 0
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._loop: Callable[[], asyncio.AbstractEventLoop | None] | None = None
            self.home = callback_thread().queue
        else:
            self._loop = weakref.ref(loop)
            self.home = bridge_of(loop).queue

    def _fail(self, reply: _podlink.Reply, error: BaseException) -> None:
        # The core counts and logs it, with what it was asked for.
        self.failures += 1
        reply.fail(f"{type(error).__name__}: {error}")

    def failed(self, error: BaseException) -> None:
        """Counts and logs an exception of the function."""
        self.failures += 1
        _log.error("the hook %r raised", self._function, exc_info=error)


class Question(Hook):
    """A hook whose answer the core waits for. Several calls may run at a time."""

    _pool: ThreadPoolExecutor | None = None

    def __call__(self, reply: _podlink.Reply, *arguments: Any) -> None:
        """Runs the function where it belongs; the answer goes to ``reply``."""
        if self._loop is None:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(8, thread_name_prefix="podlink-hook")
            self._pool.submit(self._on_thread, reply, arguments)
            return
        try:
            answer = self._context.copy().run(self._function, *arguments)
        except Exception as error:
            self._fail(reply, error)
            return
        if inspect.isawaitable(answer):
            loop = asyncio.get_running_loop()
            _podlink.await_hook(loop, self._context, self._answering(reply, answer), reply)
        else:
            self._answer(reply, answer)

    async def _answering(self, reply: _podlink.Reply, answer: Any) -> None:
        try:
            self._answer(reply, await answer)
        except Exception as error:
            self._fail(reply, error)

    def _on_thread(self, reply: _podlink.Reply, arguments: Arguments) -> None:
        try:
            self._answer(reply, _run_to_end(self._context.copy(), self._function, arguments))
        except Exception as error:
            self._fail(reply, error)

    def _answer(self, reply: _podlink.Reply, answer: Any) -> None:
        reply.answer(answer)


class Quick(Hook):
    """A hook that runs on podlink's hook thread wherever it was registered, because the core needs
    its answer in the middle of a compute, and a loop may be busy.
    """

    def __init__(self, what: str, function: Callable[..., Any]) -> None:
        super().__init__(what, function)
        self.home = callback_thread().queue

    def __call__(self, reply: _podlink.Reply, *arguments: Any) -> None:
        """Runs the function at once; the answer goes to ``reply``."""
        try:
            reply.answer(self._context.copy().run(self._function, *arguments))
        except BaseException as error:  # not even sys.exit() may end the thread
            self._fail(reply, error)


class Listener(Hook):
    """A hook that is told of events, one after the other, in their order."""

    def __init__(
        self,
        what: str,
        function: Callable[..., Any],
        prepare: Callable[..., Arguments | None] = lambda *arguments: arguments,
    ) -> None:
        super().__init__(what, function)
        self._prepare = prepare
        self._waiting: deque[Arguments] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._inbox: queue.SimpleQueue[Arguments] | None = None

    def __call__(self, reply: _podlink.Reply, *arguments: Any) -> None:
        """Puts the event behind those that wait, if the function wants to hear of it."""
        prepared = self._prepare(*arguments)
        if prepared is None:
            return
        if self._loop is None:
            if self._inbox is None:
                self._inbox = queue.SimpleQueue()
                threading.Thread(target=self._on_thread, name="podlink-hook", daemon=True).start()
            self._inbox.put(prepared)
            return
        self._waiting.append(prepared)
        if self._worker is None or self._worker.done():
            self._work()

    def _work(self) -> None:
        """Tells what waits; hands over to a task when the function is async."""
        while self._waiting:
            arguments = self._waiting.popleft()
            try:
                told = self._context.copy().run(self._function, *arguments)
            except Exception as error:
                self.failed(error)
                continue
            if inspect.isawaitable(told):
                loop = asyncio.get_running_loop()
                self._worker = loop.create_task(self._await(told), context=self._context.copy())
                return

    async def _await(self, told: Any) -> None:
        while True:
            try:
                await told
            except Exception as error:
                self.failed(error)
            if not self._waiting:
                return
            arguments = self._waiting.popleft()
            try:
                told = self._function(*arguments)
            except Exception as error:
                self.failed(error)
                told = _nothing()

    def _on_thread(self) -> None:
        inbox = self._inbox
        while inbox is not None:
            arguments = inbox.get()
            try:
                _run_to_end(self._context.copy(), self._function, arguments)
            except Exception as error:
                self.failed(error)


async def _nothing() -> None:
    """What is awaited in the place of a call that raised before it could be."""


def _run_to_end(
    context: contextvars.Context, function: Callable[..., Any], arguments: Arguments
) -> Any:
    """Calls a function on a thread without a loop; a coroutine runs to its end there."""
    answer = context.run(function, *arguments)
    if inspect.iscoroutine(answer):
        return context.run(asyncio.run, answer)
    return answer
