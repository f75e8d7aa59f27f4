"""Where results of the Rust core meet event loops and threads.

One completion queue per running loop, found through a weak table; the loop's reader wakes once
per batch. Programs without a loop are served by one daemon thread, ``podlink-callbacks``. Rust
never runs Python code: it hands out what has arrived, and the code here delivers it, so that a
thread that dies with the interpreter never dies inside Rust.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import queue
import select
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from . import _logs, _podlink, _process
from .callback import StatefulObjCallback
from .errors import InvalidParameterError, PodlinkError, from_core

_log = _logs.Log("podlink.callbacks")

HookCall = tuple[Callable[..., Any], tuple[Any, ...], _podlink.Reply]
"""A Python function that the core calls, its arguments, and where its answer goes."""

Start = Callable[..., None]
"""A method of the compiled module: (queue, waiter, *arguments) starts an operation."""


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
        except NotImplementedError:
            # Such a loop is woken from a thread instead, which ends with this bridge.
            thread = threading.Thread(
                target=_wake_from_thread,
                args=(self.loop, self.queue, weakref.WeakMethod(self.drain)),
                name="podlink-wake",
                daemon=True,
            )
            thread.start()
            weakref.finalize(self, self.queue.wake).atexit = False

    def drain(self) -> None:
        """Delivers everything that has arrived. Runs on the loop."""
        waiters, values, failures, calls = self.queue.drain()
        # One loop and no function in between: this is paid for each call that was awaited.
        for waiter, value in zip(waiters, values, strict=True):
            if not waiter.done():  # done: cancelled, whoever waited has left
                waiter.set_result(value)
        for waiter, error in failures:
            if not waiter.done():
                waiter.set_exception(from_core(*error))
        for hook, arguments, reply in calls:
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
        if bridge_drain is not None:
            bridge_drain()
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
            return  # the loop has closed, and nobody waits any more
        del running
        while not drained.wait(1.0):
            running = loop()
            if running is None or running.is_closed():
                return
            del running


_bridges: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopBridge]
_bridges = weakref.WeakKeyDictionary()
_bridges_lock = threading.Lock()


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


def call(start: Start, *arguments: object) -> asyncio.Future[Any]:
    """Starts an operation and returns the future of its result, on the running loop.

    Cancelling the future abandons only the waiting: what was started goes on.
    """
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    if _observer is None:
        start(bridge_of(loop).queue, waiter, *arguments)
    else:
        _observer(start, bridge_of(loop).queue, waiter, arguments)
    return waiter


Observer = Callable[[Start, _podlink.CompletionQueue, Any, tuple[object, ...]], None]
"""Starts an operation in the place of ``start(queue, waiter, *arguments)``."""

_observer: Observer | None = None
_flush: Callable[[], None] | None = None


def observe(observer: Observer | None, flush: Callable[[], None] | None) -> None:
    """Lets every operation be started by ``observer``, and ``flush`` take what the core tells of
    them, whenever it does.
    """
    global _observer, _flush
    _observer, _flush = observer, flush


class Submitted:
    """The waiter of a ``submit``: settles a ``concurrent.futures.Future``, tells the callback."""

    __slots__ = ("_callback", "_convert", "_deliver", "future")

    def __init__(
        self,
        callback: StatefulObjCallback | None,
        deliver: Callable[[Callable[[], None]], object],
        convert: Callable[[Any], Any] | None,
    ) -> None:
        self.future: Future[Any] = Future()
        self._callback = callback
        self._deliver = deliver
        self._convert = convert

    def add_done_callback(self, told: Callable[[Future[Any]], object]) -> None:
        self.future.add_done_callback(told)

    def done(self) -> bool:
        return self.future.cancelled()

    def set_result(self, value: object) -> None:
        if self._convert is not None:
            value = self._convert(value)
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(value)
            callback = self._callback
            if callback is not None:
                self._deliver(lambda: callback.on_success(value))

    def set_exception(self, error: PodlinkError) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)
            callback = self._callback
            if callback is not None:
                self._deliver(lambda: callback.on_error(error))


class Submitter:
    """The ``submit`` of one driver, and what its callbacks wait in if the program polls."""

    def __init__(self, mode: str) -> None:
        if mode not in ("thread", "poll"):
            raise from_core(
                "INVALID_PARAMETER",
                f"callbacks must be 'thread' or 'poll', got {mode!r}",
                False,
                {"parameter": "callbacks", "given": repr(mode), "allowed": "'thread' or 'poll'"},
            )
        self._polled: deque[Callable[[], None]] | None = deque() if mode == "poll" else None
        self.failures = 0

    def submit(
        self,
        start: Start,
        arguments: tuple[object, ...],
        callback: StatefulObjCallback | None,
        convert: Callable[[Any], Any] | None = None,
    ) -> Future[Any]:
        """Starts an operation from wherever the program is; ``convert`` makes of the core's
        answer what the operation returns.
        """
        try:
            deliver: Callable[[Callable[[], None]], object] = functools.partial(
                self._run_on, asyncio.get_running_loop()
            )
        except RuntimeError:
            deliver = self._run if self._polled is None else self._polled.append
        submitted = Submitted(callback, deliver, convert)
        # Never by way of the loop: the future must be settled even if the loop ends first, or is
        # blocked by somebody who waits for this very future.
        if _observer is None:
            start(callback_thread().queue, submitted, *arguments)
        else:
            _observer(start, callback_thread().queue, submitted, arguments)
        return submitted.future

    def poll(self) -> int:
        """Runs the callbacks that wait; returns how many."""
        count = 0
        while self._polled:
            self._run(self._polled.popleft())
            count += 1
        return count

    def _run_on(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        try:
            loop.call_soon_threadsafe(self._run, callback)
        except RuntimeError:
            _log.warning("a callback was not called: the loop that it belongs to has closed")
            self.failures += 1

    def _run(self, callback: Callable[[], None]) -> None:
        _podlink.hook_called("callback")
        began, well = time.monotonic(), False
        try:
            callback()
            well = True
        except BaseException as error:
            _log.error("a callback raised", error)
            self.failures += 1
            if not isinstance(error, Exception):
                raise
        finally:
            _podlink.hook_ended("callback", time.monotonic() - began, well)


def bound(
    driver: Any,
    operations: frozenset[str],
    operation: object,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Any, list[Any]]:
    """The compiled operation of that name, and its arguments in order, defaults filled in."""
    if not isinstance(operation, str) or operation not in operations:
        allowed = ", ".join(sorted(operations))
        raise InvalidParameterError(
            f"operation must be one of {allowed}, got {operation!r}",
            details={"parameter": "operation", "given": repr(operation), "allowed": allowed},
        )
    try:
        given = inspect.signature(getattr(driver, operation)).bind(*args, **kwargs)
    except TypeError as error:
        raise InvalidParameterError(
            f"{operation}: {error}", details={"parameter": "args", "operation": operation}
        ) from None
    given.apply_defaults()
    arguments = [value for name, value in given.arguments.items() if name != "timeout"]
    return getattr(driver._core, operation), arguments


class CallbackThread:
    """The one thread that serves programs without a loop and hands the core's log records to
    ``logging``. Strategies that are Python functions have a thread beside it: a slow one must not
    hold up everybody's results.
    """

    def __init__(self) -> None:
        self.queue = _podlink.CompletionQueue()
        self._stopping = False
        self._hooks: queue.SimpleQueue[HookCall] | None = None
        self._thread = threading.Thread(target=self._run, name="podlink-callbacks", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self.queue.fileno(), select.POLLIN)
        while not self._stopping:
            wait = _logs.seconds_to_tell()
            poller.poll(None if wait is None else math.ceil(wait * 1000))
            self._deliver()

    def _deliver(self) -> None:
        waiters, values, failures, calls = self.queue.drain()
        for waiter, value in zip(waiters, values, strict=True):
            _tell(waiter, waiter.set_result, value)
        for waiter, error in failures:
            _tell(waiter, waiter.set_exception, from_core(*error))
        for call in calls:
            self._hook_calls().put(call)
        try:
            _logs.forward()
            if _flush is not None:
                _flush()
        except Exception:  # noqa: BLE001 - a program's handler or exporter must not end this thread
            told = threading.ExceptHookArgs((*sys.exc_info(), self._thread))
            threading.excepthook(told)

    def _hook_calls(self) -> queue.SimpleQueue[HookCall]:
        if self._hooks is None:
            self._hooks = queue.SimpleQueue()
            threading.Thread(
                target=_run_hooks, args=(self._hooks,), name="podlink-hooks", daemon=True
            ).start()
        return self._hooks

    def stop(self) -> None:
        """Ends the thread, within a second."""
        self._stopping = True
        self.queue.wake()
        self._thread.join(timeout=1.0)


def _tell(waiter: Any, tell: Callable[[Any], None], outcome: object) -> None:
    try:
        if not waiter.done():
            tell(outcome)
    except BaseException:  # noqa: BLE001 - not even sys.exit() may end everybody's thread
        _log.debug("what ended a callback ends here")


def _run_hooks(calls: queue.SimpleQueue[HookCall]) -> None:
    while True:
        hook, arguments, reply = calls.get()
        hook(reply, *arguments)  # catches what the program's own function raises


_thread: CallbackThread | None = None
_thread_lock = threading.Lock()


def callback_thread() -> CallbackThread:
    """The callback thread of this process, started by the first driver."""
    global _thread
    with _thread_lock:
        if _thread is None:
            _logs.go_by_environment()
            _thread = CallbackThread()
        return _thread


def _stop_thread() -> None:
    if _thread is not None:
        _thread.stop()
        _logs.forward()
        _logs.tell_repeats(all_of_them=True)


_process.at_exit.append(_stop_thread)


def _after_fork_in_child() -> None:
    # What the parent's threads and loops held belongs to the parent. The locks may have been
    # held by a thread that does not exist here.
    global _bridges, _bridges_lock, _last, _thread, _thread_lock
    _podlink.after_fork_in_child()
    _logs.start_anew()
    _bridges_lock, _thread_lock = threading.Lock(), threading.Lock()
    _inherited.append((_bridges, _thread))
    _bridges, _thread, _last = weakref.WeakKeyDictionary(), None, _Last()


_inherited: Final[list[object]] = []
"""What a forked child got from its parent: kept, so that nothing of it is ever finalised here."""

_process.in_forked_child.append(_after_fork_in_child)
