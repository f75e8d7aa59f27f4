"""Where results of the Rust core meet event loops and threads.

One completion queue per running loop, found through a weak table; the loop's reader wakes once
per batch. Programs without a loop are served by one daemon thread, ``podlink-callbacks``. Rust
never runs Python code: it hands out what has arrived, and the code here delivers it, so that a
thread that dies with the interpreter never dies inside Rust.
"""

from __future__ import annotations

import asyncio
import math
import queue
import select
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar, TypeVarTuple

from . import _logs, _podlink, _process
from ._operations import AnyOperation, Operation
from .config import Duration, seconds
from .errors import PodlinkError, from_core

log = _logs.Log("podlink.callbacks")

A = TypeVarTuple("A")
T = TypeVar("T")

HookCall = tuple[Callable[..., Any], tuple[Any, ...], _podlink.Reply]
"""A Python function that the core calls, its arguments, and where its answer goes."""

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
            if not waiter.done():  # done: the caller has cancelled it
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
            return  # the loop has closed, and with it all that waited on it
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


def call(
    core: Any, operation: Operation[*A, T], *arguments: *A, timeout: Duration | None = None
) -> asyncio.Future[T]:
    """Starts an operation and returns the future of its answer, on the running loop.

    Cancelling the future abandons only the waiting: what was started goes on.
    """
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    limit = seconds(timeout)
    if _observer is None:
        start(core, operation, bridge_of(loop).queue, waiter, arguments, limit)
    else:
        _observer(core, operation, bridge_of(loop).queue, waiter, arguments, limit)
    return waiter


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


class CallbackThread:
    """The one thread that serves programs without a loop and hands the core's log records to
    ``logging``. Strategies that are Python functions have a thread beside it: a slow one must not
    hold up all results.
    """

    def __init__(self) -> None:
        self.queue = _podlink.CompletionQueue()
        self._stopping = False
        self._settled: deque[tuple[Any, object]] = deque()
        self._hooks: queue.SimpleQueue[HookCall] | None = None
        self._thread = threading.Thread(target=self._run, name="podlink-callbacks", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self.queue.fileno(), select.POLLIN)
        while not self._stopping:
            wait = _logs.seconds_until_due()
            poller.poll(None if wait is None else math.ceil(wait * 1000))
            self._deliver()

    def _deliver(self) -> None:
        waiters, values, failures, calls = self.queue.drain()
        while self._settled:
            waiter, value = self._settled.popleft()
            _settle(waiter, waiter.set_result, value)
        for waiter, value in zip(waiters, values, strict=True):
            _settle(waiter, waiter.set_result, value)
        for waiter, error in failures:
            _settle(waiter, waiter.set_exception, from_core(*error))
        for call in calls:
            self._hook_calls().put(call)
        try:
            _logs.forward()
            if _flush is not None:
                _flush()
        except Exception:  # noqa: BLE001 - a program's handler or exporter must not end this thread
            raised = threading.ExceptHookArgs((*sys.exc_info(), self._thread))
            threading.excepthook(raised)

    def settle(self, waiter: Any, value: object) -> None:
        """Settles ``waiter`` with a value that is there already, on this thread like any other."""
        self._settled.append((waiter, value))
        self.queue.wake()

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


def _settle(waiter: Any, settle: Callable[[Any], None], outcome: object) -> None:
    try:
        if not waiter.done():
            settle(outcome)
    except BaseException:  # noqa: BLE001 - not even sys.exit() may end the thread that serves all
        log.debug("what ended a callback ends here")


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
        _logs.report_repeats(all_of_them=True)


_process.at_exit.append(_stop_thread)


def _after_fork_in_child() -> None:
    # What the parent's threads and loops held belongs to the parent. The locks may have been
    # held by a thread that does not exist here.
    global _bridges, _bridges_lock, _last, _thread, _thread_lock
    _podlink.after_fork_in_child()
    _logs.reset()
    _bridges_lock, _thread_lock = threading.Lock(), threading.Lock()
    _inherited.append((_bridges, _thread))
    _bridges, _thread, _last = weakref.WeakKeyDictionary(), None, _Last()


_inherited: Final[list[object]] = []
"""What a forked child got from its parent: kept, so that nothing of it is ever finalised here."""

_process.in_forked_child.append(_after_fork_in_child)
