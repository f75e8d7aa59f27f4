"""Where a user's requests go: what a gateway needs in one answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Route"]

RouteFields = tuple[int, int | None, int | None, str, dict[str, str], bool]
"""A :class:`Route` as the core gives it."""


@dataclass(frozen=True, slots=True)
class Route:
    """The pod of a user, who owns the user there, and how the pod is reached: what
    :meth:`ClientDriver.route` returns.

    Send ``token`` with the request, if there is one: a pod that knows a later one refuses what
    this client still believes, and a pod that knows only an earlier one asks the store.

    Attributes:
        pod_index: the pod; 0 is a pod.
        incarnation: the process of the pod that owns the user; ``None`` if the link is only a hint,
            which no process has claimed yet.
        token: the fencing token by which it does; ``None`` for a hint.
        address: where the pod is reached: its metadata ``address``, or else
            ``ClientConfig.address_template`` filled in.
        metadata: what the pod published last; empty if that is not known.
        from_cache: whether this client's cache had the answer.

    Example:
        >>> Route(0, None, None, "user-service-0.user-service.default.svc", {}, False).pod_index
        0
    """

    pod_index: int
    incarnation: int | None
    token: int | None
    address: str
    metadata: Mapping[str, str]
    from_cache: bool

    @classmethod
    def _from_core(cls, fields: RouteFields) -> Route:
        return cls(*fields)
