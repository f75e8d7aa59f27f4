"""What pods publish: their states, and the report of a drain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["DrainReport", "RoutingState", "StatefulServiceState"]

StateFields = tuple[int, str, int, str, int, int, dict[str, str]]
"""A :class:`StatefulServiceState` as the core gives it."""


class RoutingState(StrEnum):
    """Which users a pod takes.

    A pod may go from ``READY`` to ``DENY_NEW_CALL`` and back, and from both to ``SHUTDOWN``, which
    is the end: a pod that comes back is a new :class:`~podlink.ServerDriver`.
    """

    READY = "READY"
    """Takes new users."""
    DENY_NEW_CALL = "DENY_NEW_CALL"
    """Keeps its users, takes no new ones."""
    SHUTDOWN = "SHUTDOWN"
    """Takes nothing."""


@dataclass(frozen=True, slots=True)
class StatefulServiceState:
    """One pod's state, as it published it last.

    Attributes:
        pod_id: the pod index; 0 is a pod.
        state: ``"READY"`` or ``"NOT_READY"``: whether the application in the pod is ready.
        load_state: lower is better.
        routing_state: which users the pod takes.
        update_time: when it was published, in milliseconds since 1970 by the store's clock.
        incarnation: rises every time a process of this pod starts.
        metadata: address, version, labels: what the service published.
    """

    pod_id: int
    state: str
    load_state: int
    routing_state: RoutingState
    update_time: int
    incarnation: int
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def _from_core(cls, fields: StateFields) -> StatefulServiceState:
        pod_id, state, load_state, routing_state, update_time, incarnation, metadata = fields
        routing = RoutingState(routing_state)
        return cls(pod_id, state, load_state, routing, update_time, incarnation, metadata)


def states_by_pod(states: dict[int, StateFields]) -> dict[int, StatefulServiceState]:
    """The states that the core gives, by pod index."""
    return {pod: StatefulServiceState._from_core(fields) for pod, fields in states.items()}


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What :meth:`podlink.ServerDriver.stop` did.

    Attributes:
        released: users that were released, by their hook or after it.
        handed_over: users that were moved to another pod.
        kept: users with links that were left as they are on purpose (``drain="keep"``).
        failed: the uids of users whose hook failed, or whom the store did not release. They are
            still this pod's, and once its lease has ended they are free to be claimed.
        unfinished: the uids of users whose hook had not ended by the deadline, or was never
            started. Their pod's lease is not ended, but runs out: until then no pod takes them.
        seconds: how long it took.
    """

    released: int
    handed_over: int
    kept: int
    failed: list[str]
    unfinished: list[str]
    seconds: float

    @property
    def remaining(self) -> int:
        """Users with links that were left as they are: kept, failed and unfinished."""
        return self.kept + len(self.failed) + len(self.unfinished)
