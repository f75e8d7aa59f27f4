"""The hooks of a driver: who owns them, how they are registered and how they end.

The driver owns its hooks; the core knows them by weak references. So a hook that refers to its
driver, which most do, does not keep it alive: both are ordinary Python objects that end together.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from .callback import CoreRegistration, Registration
from .errors import ClosedError

if TYPE_CHECKING:
    from ._hooks import Hook

__all__ = ["DriverHooks", "HookOwner"]


class Ends(Protocol):
    """What ends with its driver."""

    def driver_closed(self) -> None:
        """The driver was closed."""
        ...


class _Core(Protocol):
    def is_closed(self) -> bool: ...


class DriverHooks:
    """The hooks of one driver. Does not refer to the driver, so it adds no cycle of its own."""

    def __init__(self, driver: str, core: _Core) -> None:
        self._driver = driver
        self._core = core
        # Both in the order of registration, and changed by single steps: any thread may come.
        self._registrations: dict[Registration, None] = {}
        self._ends: dict[weakref.ref[Ends], None] = {}

    @property
    def is_closed(self) -> bool:
        """Whether the driver was closed."""
        return self._core.is_closed()

    def add(
        self,
        function: Callable[..., Any],
        hook: Hook,
        register: Callable[[Any, Any], CoreRegistration],
    ) -> Registration:
        """Registers ``hook``, which calls ``function``, and keeps it.

        Raises:
            ClosedError: the driver was closed, so the hook would never be called.
        """
        self.check_open()
        core = register(hook.home, hook)
        registration = Registration(function, hook, core, weakref.ref(self))
        self._registrations[registration] = None
        if self._core.is_closed():  # meanwhile, by another thread
            registration.unregister()
            self.check_open()
        return registration

    def add_end(self, ends: Ends) -> None:
        """Notifies ``ends`` when the driver is closed. It is not kept alive."""
        for other in list(self._ends):
            if other() is None:
                self._ends.pop(other, None)
        self._ends[weakref.ref(ends)] = None
        if self._core.is_closed():  # meanwhile, by another thread
            ends.driver_closed()

    def check_open(self) -> None:
        """Raises ``ClosedError`` if the driver was closed."""
        if self._core.is_closed():
            raise ClosedError(f"the {self._driver} was closed: no hook of it is called any more")

    def remove(self, function: object) -> int:
        """Ends every registration of ``function``; returns how many there were."""
        found = [each for each in list(self._registrations) if each._is_of(function)]
        for registration in found:
            registration.unregister()
        return len(found)

    def forget(self, registration: Registration) -> None:
        """Lets go of a hook that was unregistered."""
        self._registrations.pop(registration, None)

    def close(self) -> None:
        """Ends all hooks, and lets go of them."""
        for registration in list(self._registrations):
            registration.unregister()
        for other in list(self._ends):
            ends = other()
            if ends is not None:
                ends.driver_closed()


class HookOwner:
    """The methods that every driver with hooks has."""

    __slots__ = ()

    _hooks: DriverHooks

    @property
    def is_closed(self) -> bool:
        """Whether the driver was closed: then every operation raises ``ClosedError``. No I/O.

        Raises:
            ForkedProcessError: in a forked child of the process that made the driver.
        """
        return self._hooks.is_closed

    def remove_hook(self, hook: Callable[..., object]) -> int:
        """Ends the calls of a function that was registered with this driver, whatever for.

        Events that are queued already are dropped too; a call that is under way goes on. The
        function is found by equality, so ``remove_hook(self.save)`` finds a bound method. It may be
        called from any thread, also by the hook itself.

        Returns:
            How many registrations of the function there were; 0, if it was not registered, or the
            driver was closed, which ends all hooks.

        Example:
            >>> info = RouteInfoDriver(Store())
            >>> @info.on_routing_state_changed()
            ... def show(namespace, service, pod, previous, now):
            ...     print(service, pod, now)
            >>> info.remove_hook(show)
            1
        """
        return self._hooks.remove(hook)
