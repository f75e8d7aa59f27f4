"""What podlink calls: results for programs without ``await``, and how long a hook may take."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from ._call_time import current_call

__all__ = ["StatefulObjCallback", "hook_deadline"]


@runtime_checkable
class StatefulObjCallback(Protocol):
    """Receives the result of a ``submit``.

    Exactly one of the two is called, once; neither, if the future was cancelled first. What they
    raise is logged and counted, never fatal.

    Example:
        >>> class Print:
        ...     def on_success(self, result: object) -> None:
        ...         print("pod", result)
        ...
        ...     def on_error(self, error: Exception) -> None:
        ...         print("failed", error)
        >>> isinstance(Print(), StatefulObjCallback)
        True
    """

    def on_success(self, result: Any) -> None:
        """The operation ended with this result."""
        ...

    def on_error(self, error: Exception) -> None:
        """The operation failed with this error."""
        ...


def hook_deadline() -> float | None:
    """Returns when podlink stops waiting for the hook that calls this, on the clock of
    ``time.monotonic()``.

    After it the answer has no effect: of a drain hook, the user is not given away. An async hook is
    cancelled then. A sync one cannot be; it can ask before it does what takes long, or give the
    time that is left to its database.

    Returns:
        The deadline. It is in the past if podlink has stopped waiting earlier. ``None`` outside of
        a hook, and in hooks without a limit: load functions, and those that are only told
        something.

    Example:
        >>> hook_deadline() is None
        True
        >>> @server.on_drain  # doctest: +SKIP
        ... def save(user):
        ...     database.save(user.uid, timeout=podlink.hook_deadline() - time.monotonic())
    """
    call = current_call.get()
    return None if call is None else call.deadline()
