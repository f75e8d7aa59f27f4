"""Where results of the Rust core meet event loops and threads.

One completion queue per running loop, found through a weak table; the loop's reader wakes once
per batch. Programs without a loop are served by one daemon thread, ``podlink-answers``. It only
delivers: the program's own functions run on a loop or on threads of their own. Rust never runs
Python code: it hands out what has arrived, and the code here delivers it, so that a thread that
dies with the interpreter never dies inside Rust.
"""

from __future__ import annotations

import asyncio
import math
import select
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar, TypeVarTuple

from . import _logs, _podlink, _process, _workers
from ._operations import AnyOperation, Operation
from .config import Duration, seconds
from .errors import (
    ClosedError,
    IllegalStateError,
    OutOfResourcesError,
    PodlinkError,
    from_core,
)

log = _logs.Log("podlink.callbacks")

A = TypeVarTuple("A")
T = TypeVar("T")

Observer = Callable[[Any, AnyOperation, _podlink.CompletionQueue, Any, tuple[Any, ...], Any], None]
"""Starts an operation: ``(core, operation, queue, waiter, arguments, timeout)``."""


class LoopBridge:
    """The completion queue of one event loop. Holds the loop weakly: the loop owns the bridge,
    as the callback of a reader, and both end together.
    """

    __slots__ = ("__weakref__", "loop", "queue")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.queue = _podlink.CompletionQueue()
        self.loop = weakref.ref(loop)
        try:
            loop.add_reader(self.queue.fileno(), self.drain)
        except OSError as error:
            raise OutOfResourcesError(
                f"the system lets no loop watch podlink's descriptor: {error}",
                retryable=True,
                details={"cause": str(error)},
            ) from error
        except NotImplementedError:
            # Such a loop is woken from a thread instead, which ends with this bridge.
            _start_thread(
                threading.Thread(
                    target=_wake_from_thread,
                    args=(self.loop, self.queue, weakref.WeakMethod(self.drain)),
                    name="podlink-wake",
                    daemon=True,
                )
            )
            weakref.finalize(self, self.queue.wake).atexit = False

    def drain(self) -> None:
        """Delivers everything that has arrived. Runs on the loop.

        A signal handler may raise between any two lines. Then the loop calls this again at once,
        with the same batch: what is delivered already is recognised.
        """
        waiters, values, failures, calls = self.queue.drain()
        # One loop and no function in between: this is paid for each call that was awaited.
        for waiter, value in zip(waiters, values, strict=True):
            if not waiter.done():  # done: the caller has cancelled it
                waiter.set_result(value)
        for waiter, error in failures:
            if not waiter.done():
                waiter.set_exception(from_core(*error))
        if calls:
            loop = asyncio.get_running_loop()
            # Not in here: a function may run the loop itself (nested loops), and this callback
            # cannot be entered twice.
            for call in calls:
                loop.call_soon(_begin, *call)
        self.queue.delivered()


def _begin(hook: Callable[..., Any], arguments: tuple[Any, ...], reply: _podlink.Reply) -> None:
    """Calls a hook, unless an interrupted delivery has called it already."""
    if reply.begin():
        hook(reply, *arguments)


def _wake_from_thread(
    loop: weakref.ref[asyncio.AbstractEventLoop],
    arrivals: _podlink.CompletionQueue,
    drain: weakref.WeakMethod[Callable[[], None]],
) -> None:
    poller = select.poll()
    poller.register(arrivals.fileno(), select.POLLIN)
    drained = threading.Event()

    def drain_on_loop() -> None:
        bridge_drain = drain()
        try:
            if bridge_drain is not None:
                bridge_drain()
        finally:
            drained.set()

    while True:
        poller.poll()
        running = loop()
        if running is None or drain() is None:
            return
        drained.clear()
        try:
            running.call_soon_threadsafe(drain_on_loop)
        except RuntimeError:
            return  # the loop has closed, and with it all that waited on it
        del running
        while not drained.wait(1.0):
            running = loop()
            if running is None or running.is_closed():
                return
            del running


_bridges: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopBridge]
_bridges = weakref.WeakKeyDictionary()
_bridges_lock = threading.RLock()


class _Last(threading.local):
    """The bridge that this thread used last: nearly always the one it needs next."""

    loop: Callable[[], asyncio.AbstractEventLoop | None] = staticmethod(lambda: None)
    bridge: Callable[[], LoopBridge | None] = staticmethod(lambda: None)


_last = _Last()


def bridge_of(loop: asyncio.AbstractEventLoop) -> LoopBridge:
    """The bridge of this loop, made by the first call."""
    if _last.loop() is loop:
        bridge = _last.bridge()
        if bridge is not None:
            return bridge
    with _bridges_lock:
        bridge = _bridges.get(loop)
        if bridge is None:
            # Loops that were closed but not collected yet need no descriptors any more.
            for other in [other for other in _bridges if other.is_closed()]:
                del _bridges[other]
            bridge = _bridges[loop] = LoopBridge(loop)
    _last.loop = weakref.ref(loop)
    _last.bridge = weakref.ref(bridge)
    return bridge


def call(
    core: Any, operation: Operation[*A, T], *arguments: *A, timeout: Duration | None = None
) -> asyncio.Future[T]:
    """Starts an operation and returns the future of its answer, on the running loop.

    Cancelling the future abandons only the waiting: what was started goes on.
    """
    loop = running_loop()
    waiter = loop.create_future()
    limit = seconds(timeout)
    if _observer is None:
        start(core, operation, bridge_of(loop).queue, waiter, arguments, limit)
    else:
        _observer(core, operation, bridge_of(loop).queue, waiter, arguments, limit)
    return waiter


def running_loop() -> asyncio.AbstractEventLoop:
    """The loop that runs here.

    Raises:
        IllegalStateError: there is none; it names what was found instead.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise _no_loop() from None


def _no_loop() -> IllegalStateError:
    """Why an operation cannot be awaited here."""
    trio = sys.modules.get("trio")
    trio_runs = trio is not None and bool(trio.lowlevel.in_trio_run())
    found = "trio" if trio_runs else "no running event loop"
    return IllegalStateError(
        f"podlink needs asyncio, and found {found}",
        details={"given": found, "allowed": "a running event loop of asyncio, or submit()"},
    )


def _refuse_eventlet() -> None:
    """podlink's threads wait in the system: as green threads they would stop all the others."""
    patcher: Any = sys.modules.get("eventlet.patcher")
    if patcher is None:
        return
    patched = [name for name in ("thread", "select") if patcher.is_monkey_patched(name)]
    if patched:
        given = " and ".join(patched)
        raise IllegalStateError(
            f"podlink needs threads of the system, and eventlet has patched {given}",
            details={"given": f"patched by eventlet: {given}", "allowed": "asyncio or threads"},
        )


def _start_thread(thread: threading.Thread) -> None:
    try:
        thread.start()
    except RuntimeError as error:  # "can't start new thread"
        raise OutOfResourcesError(
            f"the system gives podlink no thread: {error}",
            retryable=True,
            details={"cause": str(error)},
        ) from error


def start(
    core: Any,
    operation: AnyOperation,
    queue: _podlink.CompletionQueue,
    waiter: Any,
    arguments: tuple[Any, ...],
    timeout: Any,
) -> None:
    """Starts an operation; its outcome comes to ``waiter`` through ``queue``."""
    try:
        core.start(queue, waiter, operation.name, arguments, timeout)
    except PodlinkError as error:  # an argument is wrong
        error.details.setdefault("operation", operation.name)
        raise


_observer: Observer | None = None
_flush: Callable[[], None] | None = None


def observe(observer: Observer | None, flush: Callable[[], None] | None) -> None:
    """Lets ``observer`` start every operation in the place of :func:`start`; ``flush`` is called
    whenever the core may have spans to take.
    """
    global _observer, _flush
    _observer, _flush = observer, flush


_RETRY_SECONDS = 0.1
"""How often a thread is tried again that the system has refused."""


class _Reader:
    """A daemon thread that sleeps until its queue has something for it."""

    def __init__(self, name: str) -> None:
        _refuse_eventlet()
        self.queue = _podlink.CompletionQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        _start_thread(self._thread)

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self.queue.fileno(), select.POLLIN)
        while not self._stopping:
            wait = self._seconds()
            poller.poll(None if wait is None else math.ceil(wait * 1000))
            self._read()

    def _seconds(self) -> float | None:
        """How long it sleeps at most."""
        return None

    def _read(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        """Ends the thread, within a second."""
        self._stopping = True
        self.queue.wake()
        self._thread.join(timeout=1.0)


class AnswerThread(_Reader):
    """The one thread that settles the futures of ``submit`` and hands on the calls of hooks that
    have no loop. It runs no function of the program's.
    """

    def __init__(self) -> None:
        self._settled: deque[tuple[Any, object]] = deque()
        super().__init__("podlink-answers")

    def _seconds(self) -> float | None:
        return _RETRY_SECONDS if _workers.starving() else None

    def is_current(self) -> bool:
        """Whether the caller runs on this thread (a finaliser may)."""
        return threading.current_thread() is self._thread

    def _read(self) -> None:
        waiters, values, failures, calls = self.queue.drain()
        for waiter, value in zip(waiters, values, strict=True):
            _settle(waiter, waiter.set_result, value)
        for waiter, error in failures:
            _settle(waiter, waiter.set_exception, from_core(*error))
        for call in calls:
            _hand_on(*call)
        self.queue.delivered()
        # After it: from there on a wake-up is not cleared before it is seen.
        while self._settled:
            waiter, value = self._settled.popleft()
            _settle(waiter, waiter.set_result, value)
        _workers.feed()

    def settle(self, waiter: Any, value: object) -> None:
        """Settles ``waiter`` with a value that is there already, on this thread like any other."""
        self._settled.append((waiter, value))
        self.queue.wake()


class LogThread(_Reader):
    """The one thread that hands the core's records to ``logging`` and its spans to the exporter.
    Both run code of the program's, which may be slow.
    """

    def __init__(self) -> None:
        super().__init__("podlink-logs")

    def _seconds(self) -> float | None:
        return _logs.seconds_until_due()

    def _read(self) -> None:
        self.queue.drain()
        self.queue.delivered()
        try:
            _logs.forward()
            if _flush is not None:
                _flush()
        except Exception:  # noqa: BLE001 - a program's handler or exporter must not end this thread
            raised = threading.ExceptHookArgs((*sys.exc_info(), self._thread))
            threading.excepthook(raised)


def _hand_on(hook: Callable[..., Any], arguments: tuple[Any, ...], reply: _podlink.Reply) -> None:
    """Has a hook run on a thread of its own, which catches what the function raises."""
    try:
        _begin(hook, arguments, reply)
    except BaseException as error:  # noqa: BLE001 - nothing may end the thread that serves all
        log.error("a hook was not called", error)


def _settle(waiter: Any, settle: Callable[[Any], None], outcome: object) -> None:
    try:
        if not waiter.done():
            settle(outcome)
    except BaseException:  # noqa: BLE001 - not even sys.exit() may end the thread that serves all
        log.debug("what ended a callback ends here")


class _Threads:
    """The threads of this process, each started by the first that needs it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may call `submit` in the middle
        self._callbacks: AnswerThread | None = None
        self._logs: LogThread | None = None
        self._ended = False

    def callbacks(self) -> AnswerThread:
        with self._lock:
            self._check()
            if self._callbacks is None:
                made = AnswerThread()
                if self._callbacks is None:  # no signal handler has made it meanwhile
                    self._callbacks = made
            return self._callbacks

    def is_delivering(self) -> bool:
        return self._callbacks is not None and self._callbacks.is_current()

    def logs(self) -> LogThread:
        with self._lock:
            self._check()
            if self._logs is None:
                _logs.go_by_environment()
                self._logs = LogThread()
            return self._logs

    def _check(self) -> None:
        if self._ended:
            raise ClosedError(
                "podlink has ended with the interpreter; an atexit handler that uses it must be "
                "registered after `import podlink`",
                details={},
            )

    def end(self) -> None:
        with self._lock:
            self._ended = True
        for thread in (self._callbacks, self._logs):
            if thread is not None:
                thread.stop()
        if self._logs is not None:
            _logs.forward()
            _logs.report_repeats(all_of_them=True)


_threads = _Threads()


def answer_thread() -> AnswerThread:
    """The thread of this process that settles futures.

    Raises:
        ClosedError: the interpreter is ending, and podlink has ended.
    """
    return _threads.callbacks()


def is_delivering() -> bool:
    """Whether the caller runs on the thread that settles futures: only a finaliser can."""
    return _threads.is_delivering()


def log_queue() -> _podlink.CompletionQueue:
    """The queue of the thread that takes log records and spans.

    Raises:
        ClosedError: the interpreter is ending, and podlink has ended.
    """
    return _threads.logs().queue


_process.at_exit.append(lambda: _threads.end())


def _after_fork_in_child() -> None:
    # What the parent's threads and loops held belongs to the parent. The locks may have been
    # held by a thread that does not exist here.
    global _bridges, _bridges_lock, _last, _threads
    _podlink.after_fork_in_child()
    _logs.reset()
    _bridges_lock = threading.RLock()
    _inherited.append((_bridges, _threads))
    _bridges, _threads, _last = weakref.WeakKeyDictionary(), _Threads(), _Last()


_inherited: Final[list[object]] = []
"""What a forked child got from its parent: kept, so that nothing of it is ever finalised here."""

_process.in_forked_child.append(_after_fork_in_child)
