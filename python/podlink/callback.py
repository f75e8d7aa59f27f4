"""The program's own functions and objects, as podlink calls them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ._call_time import current_call

if TYPE_CHECKING:
    import weakref

    from ._driver_hooks import DriverHooks
    from ._hooks import Hook
    from .errors import PodlinkError
    from .ownership import Ownership
    from .state import StatefulServiceState

__all__ = [
    "DrainHook",
    "LeaseHook",
    "LoadFunction",
    "OwnershipLostHook",
    "OwnershipRenewedHook",
    "PodLostCallback",
    "Registration",
    "StateCallback",
    "StatefulObjCallback",
    "StatusCallback",
    "hook_deadline",
]


@runtime_checkable
class StatefulObjCallback(Protocol):
    """Receives the result of a ``submit``.

    Exactly one of the two is called, once; neither, if the future was cancelled first. What they
    raise is logged and counted. ``SystemExit`` and ``KeyboardInterrupt`` then go on: to the loop,
    or to the caller of ``poll_callbacks``. They must not be async. The arguments are passed by
    position, so a class may name them as it likes.

    Example:
        >>> class Print:
        ...     def on_success(self, result: object) -> None:
        ...         print("pod", result)
        ...
        ...     def on_error(self, error: PodlinkError) -> None:
        ...         print("failed", error.code)
        >>> isinstance(Print(), StatefulObjCallback)
        True
    """

    def on_success(self, result: Any, /) -> None:
        """The operation ended with this result."""
        ...

    def on_error(self, error: PodlinkError, /) -> None:
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
        a hook, and in hooks without a limit: load functions, and those that only get events.

    Example:
        >>> hook_deadline() is None
        True
        >>> @server.on_drain  # doctest: +SKIP
        ... def save(user):
        ...     database.save(user.uid, timeout=podlink.hook_deadline() - time.monotonic())
    """
    call = current_call.get()
    return None if call is None else call.deadline()


class StateCallback(Protocol):
    """A sync or async function that is called for each change of a service's pods."""

    def __call__(
        self,
        namespace: str,
        service_name: str,
        pod_index: int,
        previous: StatefulServiceState | None,
        now: StatefulServiceState | None,
        /,
    ) -> object:
        """``previous`` is ``None`` for a pod that came, ``now`` for one that is not alive."""
        ...


class PodLostCallback(Protocol):
    """A sync or async function that is called for each pod that is lost."""

    def __call__(self, pod_index: int, users_cached: int, /) -> object:
        """``users_cached`` is how many users the driver's cache remembers with the pod."""
        ...


class StatusCallback(Protocol):
    """A sync or async function that is called when the status of an endpoint changes."""

    def __call__(self, endpoint: str, status: str, /) -> object:
        """``status`` is one of those that ``RouteGrpcClient.status`` has."""
        ...


class LoadFunction(Protocol):
    """A sync or async function that returns the load which the pod reports; lower is better."""

    def __call__(self) -> int | Awaitable[int]:
        """Returns the load now."""
        ...


class DrainHook(Protocol):
    """A sync or async function that saves a user's state before the user is given away."""

    def __call__(self, ownership: Ownership, /) -> object:
        """``ownership`` is a user that this process owns while it stops."""
        ...


class LeaseHook(Protocol):
    """A sync or async function that is called when something happens to the pod's lease."""

    def __call__(self, reason: str, /) -> object:
        """``reason`` is one of those that the method which registers the hook names."""
        ...


class OwnershipLostHook(Protocol):
    """A sync or async function that is called when the pod has lost a user."""

    def __call__(self, ownership: Ownership, reason: str, /) -> object:
        """``reason`` is ``"taken"``, ``"removed"`` or ``"lease_lost"``."""
        ...


class OwnershipRenewedHook(Protocol):
    """A sync or async function that is called when a user was claimed again by a new token."""

    def __call__(self, new: Ownership, old: Ownership, /) -> object:
        """``old`` is what the store had forgotten."""
        ...


class CoreRegistration(Protocol):
    """A registration as the core has it."""

    def unregister(self) -> None:
        """Ends the calls."""
        ...


class Registration:
    """A function that is registered as a hook, until :meth:`unregister`, or until its driver is
    closed or dropped: this handle does not keep the driver alive.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        hook: Hook,
        core: CoreRegistration,
        hooks: weakref.ref[DriverHooks],
    ) -> None:
        self._function = function
        self._hook = hook
        self._core = core
        self._hooks = hooks

    @property
    def failures(self) -> int:
        """How often the function raised."""
        return self._hook.failures

    def unregister(self) -> None:
        """Ends the calls of the function, also for events that are queued already; a call that is
        under way goes on. A second time does nothing.
        """
        self._core.unregister()
        self._hook.close()
        hooks = self._hooks()
        if hooks is not None:
            hooks.forget(self)

    def _is_of(self, function: object) -> bool:
        """Whether it is this function's. Bound methods are equal, but not the same object."""
        return self._function is function or self._function == function
