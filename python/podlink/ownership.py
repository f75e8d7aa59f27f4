"""What a pod holds when it owns a user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from . import _operations as ops
from ._bridge import call
from ._logs import Log
from .config import Duration, seconds
from .errors import OwnershipLostError, PodlinkError

if TYPE_CHECKING:
    from . import _podlink

__all__ = ["Ownership"]

_log = Log("podlink.ownership")

Fields = tuple[str, str, str, int, int, int, int]
"""An :class:`Ownership` as the core gives it."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """The ownership of a user by one process of a pod: what :meth:`ServerDriver.claim` returns.

    Give ``token`` to the database with every read for writing and with every write: a database
    that refuses smaller tokens is safe even from a process that was paused and has not noticed.

    It is a value: immutable, hashable, compared by its fields. With ``async with`` the user is
    released at the end of the block.

    Attributes:
        namespace: the user's namespace.
        uid: the user.
        service_name: the stateful service.
        pod_index: this pod.
        incarnation: this process of the pod.
        token: the fencing token; it rises with every change of the owner. Below 2**53.
        previous_token: the last token before this one, or 0 if the store knew of none, or the claim
            only repeated an earlier one whose answer was lost.

    Example:
        >>> async def play(server: ServerDriver, uid: str) -> None:
        ...     async with await server.claim("default", uid) as user:
        ...         user.check()  # before each act
    """

    namespace: str
    uid: str
    service_name: str
    pod_index: int
    incarnation: int
    token: int
    previous_token: int
    _core: _podlink.ServerCore = field(repr=False, compare=False)

    def is_valid(self) -> bool:
        """Whether this process owns the user by this token at this moment. No I/O.

        ``False`` from ``config.guard`` before the lease's end, while the pod is suspended, after a
        release or a loss, and in a forked child.
        """
        return self._core.owns_by(self.uid, self.token)

    def check(self) -> None:
        """Raises unless :meth:`is_valid`.

        Raises:
            OwnershipLostError: this process does not own the user by this token now.
        """
        if not self.is_valid():
            what = f"pod {self.pod_index} does not own the user by this token now"
            details = {"namespace": self.namespace, "service": self.service_name}
            raise OwnershipLostError(what, details=details)

    async def verify(self, *, timeout: Duration | None = None) -> bool:
        """Asks the store whether the ownership stands: one round trip.

        If it does not, the user is dropped and the ``on_ownership_lost`` hooks are called.

        Returns:
            Whether record, link and this process's table agree with the token.

        Raises:
            LeaseLostError: the lease is over at this moment, so nothing was asked.
        """
        return await call(self._core, ops.verify, *self._fields(), timeout=timeout)

    async def release(
        self, grace: Duration | None = None, *, timeout: Duration | None = None
    ) -> bool:
        """Gives the user back, if this process still owns it by this very token.

        From the first step on :meth:`is_valid` is ``False``; if the request was certainly not sent,
        it is ``True`` again. Cancelling abandons only the waiting.

        Args:
            grace: how long the link stays as a hint that sends the user back here; 0 deletes it;
                ``None`` is ``config.link_grace``. A pod that takes no users leaves no hint.
            timeout: seconds to wait at the most.

        Returns:
            Whether this process owned the user by this token.

        Raises:
            LeaseLostError: the lease is over at this moment, so nothing was sent.
        """
        given = None if grace is None else seconds(grace)
        return await call(self._core, ops.release, *self._fields(), given, timeout=timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A release that was sent goes on even if this wait is cancelled.
        try:
            await self.release()
        except PodlinkError as failure:
            if error is None:
                raise
            _log.error("a user was not released", failure)

    def _fields(self) -> Fields:
        return (
            self.namespace,
            self.uid,
            self.service_name,
            self.pod_index,
            self.incarnation,
            self.token,
            self.previous_token,
        )


def ownerships(core: _podlink.ServerCore) -> Callable[[Fields], Ownership]:
    """Makes an :class:`Ownership` of what this core gives."""

    def made(fields: Fields) -> Ownership:
        return Ownership(*fields, core)

    return made
