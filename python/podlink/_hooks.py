"""Functions of the program's own that podlink calls: sync or async, where they were registered.

A hook that was registered while a loop ran is called on that loop, with the context variables of
its registration. One that was registered without a loop runs on threads of podlink's own, so that
a slow one delays neither routing nor other hooks.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from . import _podlink
from ._bridge import answer_thread, bridge_of
from ._call_time import CallTime, current_call
from ._logs import Log
from ._workers import ThreadPool
from .config import check_callable

_log = Log("podlink.hooks")

Arguments = tuple[Any, ...]

_AT_ONCE = 64
"""How many calls of one hook run at a time on threads: as many as the core makes."""


class Failures:
    """How often the hooks of a driver raised, for its ``stats()``."""

    count = 0


class Hook:
    """A function of the program's own, as the core calls it: ``hook(reply, *arguments)``.

    Attributes:
        failures: how often the function raised.
    """

    def __init__(self, what: str, function: Callable[..., Any]) -> None:
        check_callable(what, function)
        self._function = function
        self._context = contextvars.copy_context()
        self._context.run(current_call.set, None)  # registered in a hook, it is not that hook's
        self.failures: int = 0
        self._loop: Callable[[], asyncio.AbstractEventLoop | None] | None
        try:
            self._loop = weakref.ref(asyncio.get_running_loop())
        except RuntimeError:
            self._loop = None

    @property
    def home(self) -> _podlink.CompletionQueue:
        """The queue through which the core's calls come. Not kept: it ends with its loop, and
        then the core knows that no answer will come.
        """
        loop = None if self._loop is None else self._loop()
        return answer_thread().queue if loop is None else bridge_of(loop).queue

    def _context_of(self, reply: _podlink.Reply) -> contextvars.Context:
        """The context of a call: that of the registration, and whose call it is."""
        context = self._context.copy()
        context.run(current_call.set, CallTime(reply))
        return context

    def close(self) -> None:
        """Drops the calls that are queued, where a hook has a queue."""

    def _count_failure(self) -> None:
        self.failures += 1

    def _fail(self, reply: _podlink.Reply, error: BaseException) -> None:
        # The core counts and logs it, with the arguments of the call.
        self._count_failure()
        reply.fail(_described(error))


class Question(Hook):
    """A hook with an answer that the core waits for. Several calls may run at a time. A call that
    no caller waits for any more is not started; if it is a task already, it is cancelled.
    """

    def __init__(self, what: str, function: Callable[..., Any]) -> None:
        super().__init__(what, function)
        self._pool = ThreadPool(_AT_ONCE, "podlink-hook")
        # By the number of the call. The loop itself holds its tasks weakly.
        self._tasks: dict[int, asyncio.Task[Any]] = {}

    def __call__(self, reply: _podlink.Reply, *arguments: Any) -> None:
        """Runs the function on its loop or on a thread; the answer goes to ``reply``."""
        if reply.cancels:
            self._cancel(self._tasks.get(reply.number))
            return
        if self._loop is None:
            self._pool.run(lambda: self._on_thread(reply, arguments))
            return
        if reply.abandoned():
            return  # it waited behind other calls of its batch
        context = self._context_of(reply)
        try:
            answer = _called(context, self._function, arguments)
        except (Exception, asyncio.CancelledError) as error:
            self._fail(reply, error)
            return
        if inspect.isawaitable(answer):
            loop = asyncio.get_running_loop()
            task = _podlink.start_coroutine(loop, context, self._answering(reply, answer))
            self._tasks[reply.number] = task
            task.add_done_callback(lambda _task: self._ended(reply, answer))
        else:
            reply.answer(answer)

    async def _answering(self, reply: _podlink.Reply, answer: Any) -> None:
        """Answers when the function ends, not a step of the loop later: others may block it."""
        try:
            result = await _while_wanted(reply, answer)
        except (Exception, asyncio.CancelledError) as error:
            self._fail(reply, error)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            reply.answer(result)
        finally:
            self._tasks.pop(reply.number, None)

    def _ended(self, reply: _podlink.Reply, answer: Any) -> None:
        if self._tasks.pop(reply.number, None) is not None:  # cancelled before its first step
            self._fail(reply, asyncio.CancelledError("cancelled"))
        if inspect.iscoroutine(answer):
            answer.close()  # without a warning if it was not begun

    def _cancel(self, task: asyncio.Task[Any] | None) -> None:
        if task is None:
            return
        if self._loop is None:  # the task has a loop and a thread of its own
            with contextlib.suppress(RuntimeError):  # the loop has closed
                task.get_loop().call_soon_threadsafe(task.cancel)
        else:
            task.cancel()

    def _on_thread(self, reply: _podlink.Reply, arguments: Arguments) -> None:
        if reply.abandoned():
            return
        try:
            context = self._context_of(reply)
            answer = _called(context, self._function, arguments)
            if inspect.isawaitable(answer):
                answer = context.run(asyncio.run, self._cancellable(reply, answer))
            reply.answer(answer)
        except BaseException as error:  # not even sys.exit() may end the thread
            self._fail(reply, error)
        finally:
            self._tasks.pop(reply.number, None)

    async def _cancellable(self, reply: _podlink.Reply, answer: Any) -> Any:
        task = asyncio.current_task()
        if task is not None:
            self._tasks[reply.number] = task
        try:
            return await _while_wanted(reply, answer)
        finally:
            if inspect.iscoroutine(answer):
                answer.close()  # without a warning if it was not begun


class Listener(Hook):
    """A hook that is called with events, one after the other, in their order."""

    def __init__(
        self,
        what: str,
        function: Callable[..., Any],
        prepare: Callable[..., Arguments | None] = lambda *arguments: arguments,
        failures: Failures | None = None,
        *,
        counted_as: str,
    ) -> None:
        super().__init__(what, function)
        self._counted_as = counted_as
        self._began = 0.0
        self._prepare = prepare
        self._all_failures = failures or Failures()
        self._waiting: deque[Arguments] = deque()
        self._worker: asyncio.Task[Any] | None = None
        self._pool = ThreadPool(1, "podlink-hook")
        self._closed = False
        self._is_called = False

    def __call__(self, reply: _podlink.Reply, *arguments: Any) -> None:
        """Queues the event for the function, unless ``prepare`` filters it out."""
        prepared = None if self._closed else self._prepare(*arguments)
        if prepared is None:
            return
        _podlink.hook_called(self._counted_as)
        if self._loop is None:
            self._pool.run(lambda: self._on_thread(prepared))
            return
        self._waiting.append(prepared)
        if self._worker is None or self._worker.done():
            self._work()

    def failed(self, error: BaseException) -> None:
        """Counts and logs an exception of the function."""
        self._count_failure()
        self._all_failures.count += 1
        _log.error("a hook raised", error, hook=self._function)

    def _ended(self, began: float, *, well: bool) -> None:
        _podlink.hook_ended(self._counted_as, time.monotonic() - began, well)

    def close(self) -> None:
        """Ends the calls of the function; events that are queued already are dropped."""
        self._closed = True  # from any thread: only the loop's own takes what is queued

    def _work(self) -> None:
        """Calls the function with what is queued; hands over to a task when it is async."""
        # A function that runs its loop inside itself is not called again before it has returned.
        while self._waiting and not self._is_called:
            arguments = self._waiting.popleft()
            if self._closed:
                continue
            began = self._began = time.monotonic()
            self._is_called = True
            try:
                answer = _called(self._context.copy(), self._function, arguments)
            except (Exception, asyncio.CancelledError) as error:
                self.failed(error)
                self._ended(began, well=False)
                continue
            finally:
                self._is_called = False
            if not inspect.isawaitable(answer):
                self._ended(began, well=True)
            else:
                loop = asyncio.get_running_loop()
                context = self._context.copy()
                self._worker = loop.create_task(_coroutine(answer), context=context)
                self._worker.add_done_callback(self._worked)
                return

    def _worked(self, task: asyncio.Task[Any]) -> None:
        """Goes on with what was queued while the function ran."""
        if task.cancelled() and task.cancelling():
            return  # from outside: the loop is being ended
        # Otherwise something was cancelled that the function waited for.
        error = asyncio.CancelledError("cancelled") if task.cancelled() else task.exception()
        if error is not None:
            self.failed(error)
        self._ended(self._began, well=error is None)
        if self._worker is task:
            self._worker = None
            self._work()

    def _on_thread(self, arguments: Arguments) -> None:
        if self._closed:
            return
        began, well = time.monotonic(), True
        try:
            _run_to_end(self._context.copy(), self._function, arguments)
        except BaseException as error:  # not even sys.exit() may end the thread
            self.failed(error)
            well = False
        self._ended(began, well=well)


def _coroutine(answer: Any) -> Coroutine[Any, Any, Any]:
    """What a task can be made of. A coroutine is taken as it is: if its loop cancels the task
    before it has begun, the coroutine is closed; inside another one it would never be awaited.
    """
    return answer if inspect.iscoroutine(answer) else _await(answer)


def _called(
    context: contextvars.Context, function: Callable[..., Any], arguments: Arguments
) -> Any:
    """Calls a function. A generator would never run: its hook has failed."""
    answer = context.run(function, *arguments)
    if inspect.isgenerator(answer) or inspect.isasyncgen(answer):
        raise TypeError("a hook must not be a generator: nothing of it has run")
    return answer


async def _while_wanted(reply: _podlink.Reply, answer: Any) -> Any:
    """Does not begin what no caller waits for any more when the task's turn comes."""
    if reply.abandoned():
        raise asyncio.CancelledError
    return await answer


async def _await(answer: Any) -> Any:
    return await answer


def _run_to_end(
    context: contextvars.Context, function: Callable[..., Any], arguments: Arguments
) -> Any:
    """Calls a function on a thread without a loop; a coroutine runs to its end there."""
    answer = _called(context, function, arguments)
    if inspect.isawaitable(answer):
        return context.run(asyncio.run, _coroutine(answer))
    return answer


def _described(error: BaseException) -> str:
    """An exception in words, whatever its own methods raise."""
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:
        return type(error).__name__
