"""Every exception that podlink raises: one root, one class per code.

::

    PodlinkError
    ├── InvalidParameterError        INVALID_PARAMETER      ValueError
    │   └── InvalidParameterTypeError                       TypeError
    ├── ServiceNotFoundError         SERVICE_NOT_FOUND      LookupError
    ├── PodNotFoundError             POD_NOT_FOUND          LookupError
    ├── PodNotAvailableError         POD_NOT_AVAILABLE
    ├── NoRoutablePodError           POD_NOT_ROUTABLE       LookupError
    ├── PodIndexBusyError            POD_INDEX_BUSY
    ├── LeaseLostError               LEASE_LOST
    ├── NotOwnerError                NOT_OWNER
    ├── OwnershipLostError           OWNERSHIP_LOST
    ├── IllegalStateError            ILLEGAL_STATE          RuntimeError
    │   ├── ClosedError              CLOSED
    │   └── ForkedProcessError       FORKED_PROCESS
    ├── NamespaceUnreachableError    NAMESPACE_UNREACHABLE  LookupError
    ├── PeerUnavailableError         PEER_UNAVAILABLE       ConnectionError
    ├── PermissionDeniedError        PERMISSION_DENIED      PermissionError
    ├── OverloadedError              OVERLOADED
    ├── OutOfResourcesError          OUT_OF_RESOURCES       OSError
    ├── StoreError                   REDIS_ERROR
    │   ├── StoreUnavailableError    STORE_UNAVAILABLE      ConnectionError
    │   ├── StoreAuthenticationError STORE_AUTHENTICATION   PermissionError
    │   └── StoreDataError           STORE_DATA             ValueError
    ├── OperationTimeoutError        TIMEOUT                TimeoutError
    └── InternalError                INTERNAL_ERROR

Classes are written here and raised from Rust by import, so they carry attributes and survive
pickling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

__all__ = [
    "ClosedError",
    "ForkedProcessError",
    "IllegalStateError",
    "InternalError",
    "InvalidParameterError",
    "InvalidParameterTypeError",
    "LeaseLostError",
    "NamespaceUnreachableError",
    "NoRoutablePodError",
    "NotOwnerError",
    "OperationTimeoutError",
    "OutOfResourcesError",
    "OverloadedError",
    "OwnershipLostError",
    "PeerUnavailableError",
    "PermissionDeniedError",
    "PodIndexBusyError",
    "PodNotAvailableError",
    "PodNotFoundError",
    "PodlinkError",
    "ServiceNotFoundError",
    "StoreAuthenticationError",
    "StoreDataError",
    "StoreError",
    "StoreUnavailableError",
]


class PodlinkError(Exception):
    """The root of everything that podlink raises.

    Attributes:
        code: the stable code of the class; the same over gRPC and in logs.
        retryable: whether the same call may succeed later without being changed.
        details: facts by name, all text: ``operation``, ``parameter``, ``given``, ``allowed``,
            ``outcome``, ``cause`` and others, as far as they apply. Never a credential.
        outcome: for a write that failed, ``"not sent"`` (nothing changed) or ``"unknown"`` (it
            may have happened: repeat it, or read, to find out); otherwise ``None``.
    """

    code: ClassVar[str] = "INTERNAL_ERROR"

    retryable: bool
    details: dict[str, str]

    def __init__(
        self,
        message: str = "",
        *,
        retryable: bool = False,
        details: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.details = dict(details or {})

    @property
    def outcome(self) -> str | None:
        """What is known about the write that failed, if it was one."""
        return self.details.get("outcome")

    def __reduce__(self) -> tuple[object, ...]:
        # Notes, and what else the program has attached.
        attached = {name: value for name, value in vars(self).items() if name not in _FACTS}
        rebuilt = (type(self), str(self), self.retryable, self.details)
        return _rebuild, rebuilt, attached or None


_FACTS = ("retryable", "details")


def _rebuild(
    cls: type[PodlinkError], message: str, retryable: bool, details: dict[str, str]
) -> PodlinkError:
    return cls(message, retryable=retryable, details=details)


class InvalidParameterError(PodlinkError, ValueError):
    """An argument is not of the allowed form; the text names the argument and the form."""

    code = "INVALID_PARAMETER"


class InvalidParameterTypeError(InvalidParameterError, TypeError):
    """An argument is of the wrong type."""


class ServiceNotFoundError(PodlinkError, LookupError):
    """No pod of this service is known."""

    code = "SERVICE_NOT_FOUND"


class PodNotFoundError(PodlinkError, LookupError):
    """The service has pods, but this one is not alive."""

    code = "POD_NOT_FOUND"


class PodNotAvailableError(PodlinkError):
    """The pod exists, but may not serve users now."""

    code = "POD_NOT_AVAILABLE"


class NoRoutablePodError(PodlinkError, LookupError):
    """No pod of the service takes new users now. Retryable: a pod may come."""

    code = "POD_NOT_ROUTABLE"


class PodIndexBusyError(PodlinkError):
    """The pod index is held by another live process. Retryable: it may end."""

    code = "POD_INDEX_BUSY"


class LeaseLostError(PodlinkError):
    """This pod's lease is over: it was not renewed in time (retryable: it may be again), it was
    declared dead, or another process took its index.
    """

    code = "LEASE_LOST"


class NotOwnerError(PodlinkError):
    """Another pod owns the user. Retryable if that pod has been silent for longer than its lease:
    then it may be dead.
    """

    code = "NOT_OWNER"

    @property
    def owner(self) -> int | None:
        """The pod that owns the user."""
        owner = self.details.get("owner")
        return None if owner is None else int(owner)

    @property
    def retry_after(self) -> float | None:
        """How many seconds until the owner may be dead; ``None``: it is alive."""
        wait = self.details.get("retry_after")
        return None if wait is None else float(wait)


class OwnershipLostError(PodlinkError):
    """This process owned the user by a token, and does not any more."""

    code = "OWNERSHIP_LOST"


class IllegalStateError(PodlinkError, RuntimeError):
    """The driver is not in a state that allows this call."""

    code = "ILLEGAL_STATE"


class ClosedError(IllegalStateError):
    """The driver or the store was closed."""

    code = "CLOSED"


class ForkedProcessError(IllegalStateError):
    """The object was made before ``os.fork`` and is used in the child."""

    code = "FORKED_PROCESS"


class NamespaceUnreachableError(PodlinkError, LookupError):
    """The namespace is not the driver's own, and no peer leads there."""

    code = "NAMESPACE_UNREACHABLE"


class PeerUnavailableError(PodlinkError, ConnectionError):
    """The peer in another namespace cannot be reached, or the connection broke. Retryable."""

    code = "PEER_UNAVAILABLE"


class PermissionDeniedError(PodlinkError, PermissionError):
    """The peer does not know the caller, or does not allow the call; nothing was changed."""

    code = "PERMISSION_DENIED"


class OverloadedError(PodlinkError):
    """The peer is at its limit, and did not begin this; or a reader of ``changes`` was too slow.
    Retryable.
    """

    code = "OVERLOADED"


class OutOfResourcesError(PodlinkError, OSError):
    """The system gives this process no descriptor or thread that podlink needs. Retryable: once
    the process has released some, or its limit was raised (``ulimit -n``, ``ulimit -u``).
    """

    code = "OUT_OF_RESOURCES"


class StoreError(PodlinkError):
    """The store answered with an error of its own; ``details["server_code"]`` names it."""

    code = "REDIS_ERROR"


class StoreUnavailableError(StoreError, ConnectionError):
    """The store cannot be reached, or the connection broke. Retryable."""

    code = "STORE_UNAVAILABLE"


class StoreAuthenticationError(StoreError, PermissionError):
    """The store refused the user name, the password or the permission."""

    code = "STORE_AUTHENTICATION"


class StoreDataError(StoreError, ValueError):
    """The store holds something at one of podlink's keys that podlink did not write."""

    code = "STORE_DATA"


class OperationTimeoutError(PodlinkError, TimeoutError):
    """The deadline passed first. Retryable; see ``outcome`` where it was a write."""

    code = "TIMEOUT"


class InternalError(PodlinkError):
    """A mistake in podlink itself. Please report it with its details."""


def _classes(root: type[PodlinkError]) -> dict[str, type[PodlinkError]]:
    table = {root.code: root} if "code" in vars(root) and root is not PodlinkError else {}
    for cls in root.__subclasses__():
        table.update(_classes(cls))
    return table


_BY_CODE = _classes(PodlinkError) | {InternalError.code: InternalError}


def from_core(code: str, message: str, retryable: bool, details: Mapping[str, str]) -> PodlinkError:
    """The exception for an error of the Rust core. A code without a class would be a mistake in
    podlink; a contract test looks for one.
    """
    cls = _BY_CODE.get(code, InternalError)
    if cls is InvalidParameterError and "wrong_type" in details:
        cls = InvalidParameterTypeError
    return cls(message, retryable=retryable, details=details)
