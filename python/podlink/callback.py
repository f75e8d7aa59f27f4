"""Results for programs without ``await``."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

__all__ = ["StatefulObjCallback"]


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
