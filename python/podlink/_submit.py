"""Operations for programs without ``await``: futures of ``concurrent.futures``, and callbacks."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

from . import _bridge, _podlink
from ._batches import all_uids
from ._operations import AnyOperation
from ._workers import ThreadPool
from .callback import StatefulObjCallback
from .config import Duration, seconds
from .errors import (
    IllegalStateError,
    InternalError,
    InvalidParameterError,
    InvalidParameterTypeError,
    PodlinkError,
    from_core,
)

__all__ = ["Submittable", "Submitter"]

_CALLBACK_THREADS = 4
"""How many callbacks of one driver run at a time, if no loop runs them."""


class Submittable(NamedTuple):
    """How a coroutine method of a driver is submitted.

    Attributes:
        operation: what the core starts; ``None``: the method never waits, so it is run at once.
        convert: makes what the method returns of the core's answer, if that is not the same.
    """

    operation: AnyOperation | None
    convert: Callable[[Any], Any] | None = None


class SubmittedFuture(Future[Any]):
    """The future of a ``submit``. Its done callbacks run on threads of podlink's own, not on the
    thread that settles every future; those that come when it is done already, where they come.
    """

    def __init__(self, pool: ThreadPool) -> None:
        super().__init__()
        self._pool = pool
        self._lock = threading.RLock()  # a signal handler may come in the middle
        self._after: list[Callable[[Future[Any]], object]] | None = None
        self._settled = False

    def result(self, timeout: float | None = None) -> Any:
        """As in ``concurrent.futures``.

        Raises:
            IllegalStateError: on the thread that would have to settle it: it would wait for ever.
        """
        self._check_thread()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As in ``concurrent.futures``.

        Raises:
            IllegalStateError: on the thread that would have to settle it: it would wait for ever.
        """
        self._check_thread()
        return super().exception(timeout)

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """As in ``concurrent.futures``: in the order in which they were added."""
        with self._lock:
            late = self._settled or (self._after is None and self.done())
            first = self._after is None
            if not late:
                self._after = [*(self._after or ()), fn]
        if late:
            super().add_done_callback(fn)
        elif first:
            super().add_done_callback(lambda _future: self._pool.run(self._call_callbacks))

    def _call_callbacks(self) -> None:
        with self._lock:
            self._settled = True
            callbacks = self._after or []
        for callback in callbacks:
            try:
                callback(self)
            except BaseException as error:  # noqa: BLE001 - not even sys.exit() may end the thread
                _bridge.log.error("a done callback raised", error)

    def _check_thread(self) -> None:
        if not self.done() and _bridge.is_delivering():
            raise IllegalStateError(
                "the result of submit was asked for on the thread that settles it, in a finaliser",
                details={},
            )


class _Waiter:
    """Settles the future, then has the callback called."""

    __slots__ = ("_callback", "_convert", "_deliver", "future")

    def __init__(
        self,
        future: SubmittedFuture,
        callback: StatefulObjCallback | None,
        deliver: Callable[[Callable[[], object]], object] | None,
        convert: Callable[[Any], Any] | None,
    ) -> None:
        self.future = future
        self._callback = callback
        self._deliver = deliver
        self._convert = convert

    def add_done_callback(self, done: Callable[[Future[Any]], object]) -> None:
        self.future.add_done_callback(done)

    def done(self) -> bool:
        return self.future.cancelled()

    def set_result(self, value: object) -> None:
        if self._convert is not None:
            try:
                value = self._convert(value)
            except Exception as error:  # noqa: BLE001 - the future must be settled
                failed = InternalError(f"the answer could not be converted: {error}")
                failed.__cause__ = error
                self.set_exception(failed)
                return
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(value)
            callback = self._callback
            if callback is not None and self._deliver is not None:
                self._deliver(lambda: callback.on_success(value))

    def set_exception(self, error: PodlinkError) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)
            callback = self._callback
            if callback is not None and self._deliver is not None:
                self._deliver(lambda: callback.on_error(error))


class Submitter:
    """The ``submit`` of one driver, and the callbacks that wait if the program polls.

    Args:
        mode: ``"thread"`` or ``"poll"``.
        operations: the driver's coroutine methods that can be submitted.
    """

    def __init__(self, mode: str, operations: Mapping[str, Submittable]) -> None:
        if mode not in ("thread", "poll"):
            raise from_core(
                "INVALID_PARAMETER",
                f"callbacks must be 'thread' or 'poll', got {mode!r}",
                False,
                {"parameter": "callbacks", "given": repr(mode), "allowed": "'thread' or 'poll'"},
            )
        self._polled: deque[Callable[[], object]] | None = deque() if mode == "poll" else None
        self._operations = operations
        self._pool = ThreadPool(_CALLBACK_THREADS, "podlink-callback")
        self.failures = 0

    def submit(
        self,
        driver: Any,
        operation: Callable[..., Coroutine[Any, Any, Any]] | str,
        arguments: tuple[Any, ...],
        named: dict[str, Any],
        callback: StatefulObjCallback | None,
        timeout: Duration | None,
    ) -> Future[Any]:
        """Starts an operation of ``driver``, from any thread, with or without a loop.

        The driver is an argument, not an attribute: a cycle would delay its end when it is dropped.
        """
        name = self._name(driver, operation)
        try:
            return self._start(driver, name, arguments, named, callback, timeout)
        except PodlinkError as error:  # an argument is wrong
            error.details.setdefault("operation", name)
            raise

    def _start(
        self,
        driver: Any,
        name: str,
        arguments: tuple[Any, ...],
        named: dict[str, Any],
        callback: StatefulObjCallback | None,
        timeout: Duration | None,
    ) -> Future[Any]:
        core_operation, convert = self._operations[name]
        given = _given(_declared(driver, name), name, arguments, named, timeout)
        if timeout is not None and (core_operation is None or not core_operation.timed):
            instead = "no timeout=" if core_operation is None else "deadline=, not timeout="
            raise InvalidParameterError(
                f"{name} takes {instead}",
                details={"parameter": "timeout", "given": repr(timeout), "allowed": "None"},
            )
        # A class has the methods as well, but no object to call them on.
        usable = isinstance(callback, StatefulObjCallback) and not isinstance(callback, type)
        if callback is not None and not usable:
            raise InvalidParameterTypeError(
                f"callback must have on_success and on_error, got {type(callback).__name__}",
                details={
                    "parameter": "callback",
                    "given": type(callback).__name__,
                    "allowed": "StatefulObjCallback",
                },
            )
        deliver = None if callback is None else self._deliver()
        waiter = _Waiter(SubmittedFuture(self._pool), callback, deliver, convert)
        thread = _bridge.answer_thread()
        # Not through the loop: the future must be settled even if the loop ends first, or is
        # blocked by a caller that waits for this very future.
        if core_operation is None:
            thread.settle(waiter, _run_at_once(_declared(driver, name)(*given)))
            return waiter.future
        start = _bridge.start if _bridge._observer is None else _bridge._observer
        start(driver._core, core_operation, thread.queue, waiter, given, seconds(timeout))
        return waiter.future

    def poll(self) -> int:
        """Runs the callbacks that wait; returns how many."""
        count = 0
        while self._polled:
            try:
                callback = self._polled.popleft()
            except IndexError:
                break  # another thread polls too, and has taken the last one
            callback()
            count += 1
        return count

    def _name(self, driver: object, operation: object) -> str:
        """The name of the operation, given by its name or as the driver's bound method."""
        name = operation
        if callable(operation) and getattr(operation, "__self__", None) is driver:
            name = getattr(operation, "__name__", None)
        if isinstance(name, str) and name in self._operations:
            return name
        allowed = ", ".join(sorted(self._operations))
        raise InvalidParameterError(
            f"operation must be one of {allowed}, by name or as a method of this driver, "
            f"got {operation!r}",
            details={"parameter": "operation", "given": repr(operation), "allowed": allowed},
        )

    def _deliver(self) -> Callable[[Callable[[], object]], object]:
        """What runs the callback, with the context variables of the caller: the running loop, else
        threads of the driver or ``poll``.
        """
        context = contextvars.copy_context()
        try:
            return functools.partial(self._run_on, asyncio.get_running_loop(), context)
        except RuntimeError:
            polled = self._polled
        if polled is None:
            return lambda callback: self._pool.run(lambda: self._run_here(context, callback))
        return lambda callback: polled.append(lambda: context.run(self._run, callback))

    def _run_on(
        self,
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context,
        callback: Callable[[], object],
    ) -> None:
        try:
            loop.call_soon_threadsafe(self._run, callback, context=context)
        except RuntimeError:
            _bridge.log.warning("a callback was not called: the loop that it belongs to has closed")
            self.failures += 1

    def _run_here(self, context: contextvars.Context, callback: Callable[[], object]) -> None:
        try:
            context.run(self._run, callback)
        except BaseException:  # noqa: BLE001 - not even sys.exit() may end the thread
            _bridge.log.debug("what ended a callback ends here")

    def _run(self, callback: Callable[[], object]) -> None:
        _podlink.hook_called("callback")
        began, well = time.monotonic(), False
        try:
            answer = callback()
            if inspect.iscoroutine(answer):
                answer.close()
                raise TypeError("a callback of submit must not be async: nothing of it has run")
            well = True
        except BaseException as error:
            _bridge.log.error("a callback raised", error)
            self.failures += 1
            if not isinstance(error, Exception):
                raise
        finally:
            _podlink.hook_ended("callback", time.monotonic() - began, well)


def _declared(driver: object, name: str) -> functools.partial[Any]:
    """The driver's own method. A program's override, which may take other arguments, is not
    submitted: what is submitted starts in the core.
    """
    for cls in type(driver).__mro__:
        method = vars(cls).get(name)
        if method is not None and cls.__module__.startswith("podlink."):
            return functools.partial(method, driver)
    raise AssertionError(f"{name} is no method of podlink's")


def _given(
    method: functools.partial[Any],
    name: str,
    arguments: tuple[Any, ...],
    named: dict[str, Any],
    timeout: Duration | None,
) -> tuple[Any, ...]:
    """The arguments of a method in order, defaults filled in, without its ``timeout``."""
    try:
        given = inspect.signature(method).bind(*arguments, **named)
    except TypeError as error:
        raise InvalidParameterError(
            f"{name}: {error}", details={"parameter": "args", "operation": name}
        ) from None
    given.apply_defaults()
    prepare: dict[str, Callable[[Any], Any]] = {"deadline": seconds}
    if "uids" in given.arguments:
        limit = method.args[0].config.timeout if timeout is None else timeout
        prepare["uids"] = functools.partial(all_uids, timeout=limit)
    return tuple(
        prepare[each](value) if each in prepare else value
        for each, value in given.arguments.items()
        if each != "timeout"
    )


def _run_at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as returned:
        return returned.value
    raise AssertionError("the coroutine waits")
