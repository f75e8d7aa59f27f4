"""The hooks of a pod: for what happens to its lease and to the users that it owns."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ._hooks import Question
from .callback import DrainHook, LeaseHook, OwnershipLostHook, OwnershipRenewedHook
from .config import check_callable
from .ownership import Ownership

if TYPE_CHECKING:
    from . import _podlink
    from ._driver_hooks import DriverHooks

__all__ = ["OwnershipHooks"]

D = TypeVar("D", bound=DrainHook)
L = TypeVar("L", bound=LeaseHook)
O = TypeVar("O", bound=OwnershipLostHook)  # noqa: E741 - one letter, like the others
R = TypeVar("R", bound=OwnershipRenewedHook)
H = TypeVar("H", bound=Callable[..., object])


class OwnershipHooks:
    """The methods of a server driver that register hooks.

    Each returns the function as it is, so each is usable as a decorator. ``remove_hook(function)``
    ends the calls, and so does the end of a stop; after that they raise ``ClosedError``.
    """

    _core: _podlink.ServerCore
    _hooks: DriverHooks
    _made: Callable[[Any], Ownership]

    def on_drain(self, hook: D) -> D:
        """Calls ``hook(ownership)`` for every user that this process owns when it stops.

        The place to save the user's state. After a hook that has ended well the user is released,
        or handed over; the hook may also release it itself, with ``ownership.release()``. A hook
        that raises leaves the user owned, and its uid comes in the report. One that has not ended
        by the deadline is cancelled (a sync one cannot be), and its user is not given away.

        The hook may be sync or async and runs where it was registered: on the running loop with
        the context variables of the registration, else on threads of podlink's own. Up to 64 run
        at a time. What it raises is logged and counted. Usable as a decorator.

        Example:
            >>> server = ServerDriver(Store(), ServerInfo("default", "user-service", 0))
            >>> @server.on_drain
            ... async def save(user: Ownership) -> None:
            ...     print("save", user.uid, "with the token", user.token)
        """
        made = self._made
        return self._on("drain", hook, lambda fields: hook(made(fields)))

    def on_lease_suspended(self, hook: L) -> L:
        """Calls ``hook(reason)`` when the lease was not renewed in time (``"not_renewed"``).

        Until it is renewed ``owns`` and ``holds_lease`` are ``False``. Nothing is lost yet: to take
        a user, another pod needs a certificate of this one's death. Keep the users' state, and
        wait for ``on_lease_resumed`` or ``on_lease_lost``. Hooks of the lease are called one after
        the other, in the order of the events, each at most for the length of a lease. Usable as a
        decorator.
        """
        return self._on("lease_suspended", hook, hook)

    def on_lease_resumed(self, hook: L) -> L:
        """Calls ``hook(reason)`` when a suspended lease was renewed (``"renewed"``).

        The users that still stand are owned again, by the same tokens; for the others
        ``on_ownership_lost`` was called before. Usable as a decorator.
        """
        return self._on("lease_resumed", hook, hook)

    def on_lease_lost(self, hook: L) -> L:
        """Calls ``hook(reason)`` when the lease was lost for good: ``"declared_dead"``, or
        ``"superseded"`` by a later process with this pod index.

        Every token is void; ``on_ownership_lost`` is called for every user after this hook. Until
        these hooks have ended, or the length of a lease has passed, the pod owns nothing, although
        it may have begun a new incarnation. Each user has to be claimed again, and its state
        loaded again. Usable as a decorator.
        """
        return self._on("lease_lost", hook, hook)

    def on_ownership_lost(self, hook: O) -> O:
        """Calls ``hook(ownership, reason)`` when this process owns a user no more, although it did
        not release it: ``"taken"`` by another process, ``"removed"`` or overwritten by another
        program, or ``"lease_lost"``. Drop the user's state. Usable as a decorator.
        """
        made = self._made
        return self._on("ownership_lost", hook, lambda fields, reason: hook(made(fields), reason))

    def on_ownership_renewed(self, hook: R) -> R:
        """Calls ``hook(new, old)`` when the store had forgotten a user of this pod's (a fail-over,
        a restart without persistence), and the driver has claimed it again.

        The user has stayed here. If ``new.previous_token != old.token``, another process may have
        owned it in between: load the state again. Usable as a decorator.
        """
        made = self._made
        return self._on("ownership_renewed", hook, lambda new, old: hook(made(new), made(old)))

    def _on(self, name: str, hook: H, calls: Callable[..., object]) -> H:
        check_callable("hook", hook)
        self._hooks.add(hook, Question("hook", calls), functools.partial(self._core.on, name))
        return hook
