"""The hooks of a pod: for what happens to its lease and to the users that it owns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ._hooks import Question
from .config import check_callable
from .ownership import Ownership

if TYPE_CHECKING:
    from . import _podlink

__all__ = ["OwnershipHooks"]

H = TypeVar("H", bound=Callable[..., object])


class OwnershipHooks:
    """The methods of a server driver that register hooks."""

    _core: _podlink.ServerCore
    _made: Callable[[Any], Ownership]

    def on_drain(self, hook: Callable[[Ownership], object]) -> Callable[[Ownership], object]:
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
        return self._on("drain", hook, lambda fields: hook(self._made(fields)))

    def on_lease_suspended(self, hook: Callable[[str], object]) -> Callable[[str], object]:
        """Calls ``hook(reason)`` when the lease was not renewed in time (``"not_renewed"``).

        Until it is renewed ``owns`` and ``holds_lease`` are ``False``. Nothing is lost yet: to take
        a user, another pod needs a certificate of this one's death. Keep the users' state, and
        wait for ``on_lease_resumed`` or ``on_lease_lost``. Hooks of the lease are called one after
        the other, in the order of the events, each at most for the length of a lease. Usable as a
        decorator.
        """
        return self._on("lease_suspended", hook, hook)

    def on_lease_resumed(self, hook: Callable[[str], object]) -> Callable[[str], object]:
        """Calls ``hook(reason)`` when a suspended lease was renewed (``"renewed"``).

        The users that still stand are owned again, by the same tokens; for the others
        ``on_ownership_lost`` was called before. Usable as a decorator.
        """
        return self._on("lease_resumed", hook, hook)

    def on_lease_lost(self, hook: Callable[[str], object]) -> Callable[[str], object]:
        """Calls ``hook(reason)`` when the lease was lost for good: ``"declared_dead"``, or
        ``"superseded"`` by a later process with this pod index.

        Every token is void; ``on_ownership_lost`` is called for every user after this hook. Until
        these hooks have ended, or the length of a lease has passed, the pod owns nothing, although
        it may have begun a new incarnation. Each user has to be claimed again, and its state
        loaded again. Usable as a decorator.
        """
        return self._on("lease_lost", hook, hook)

    def on_ownership_lost(
        self, hook: Callable[[Ownership, str], object]
    ) -> Callable[[Ownership, str], object]:
        """Calls ``hook(ownership, reason)`` when this process owns a user no more, although it did
        not release it: ``"taken"`` by another process, ``"removed"`` or overwritten by another
        program, or ``"lease_lost"``. Drop the user's state. Usable as a decorator.
        """
        return self._on(
            "ownership_lost", hook, lambda fields, reason: hook(self._made(fields), reason)
        )

    def on_ownership_renewed(
        self, hook: Callable[[Ownership, Ownership], object]
    ) -> Callable[[Ownership, Ownership], object]:
        """Calls ``hook(new, old)`` when the store had forgotten a user of this pod's (a fail-over,
        a restart without persistence), and the driver has claimed it again.

        The user has stayed here. If ``new.previous_token != old.token``, another process may have
        owned it in between: load the state again. Usable as a decorator.
        """
        return self._on(
            "ownership_renewed", hook, lambda new, old: hook(self._made(new), self._made(old))
        )

    def _on(self, name: str, hook: H, calls: Callable[..., object]) -> H:
        check_callable("hook", hook)
        question = Question("hook", calls)
        self._core.on(name, question.home, question)
        return hook
