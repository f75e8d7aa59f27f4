"""Every operation that the core starts and answers later: its name, arguments and answer, one row
each.

A row is a signature. ``_bridge.call`` takes the arguments of the row and returns a future of its
answer, so the type checker compares each call with the row. Answers are as the core gives them: a
driver makes its own types of some, like :class:`~podlink.DrainReport`. Operations that two
drivers have under one name and with one signature are one row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, TypeVarTuple, cast

if TYPE_CHECKING:
    from ._podlink import UidBatch, UsersByPod
    from .route import RouteFields
    from .state import RoutingState, StateFields

__all__ = [
    "AnyOperation",
    "Operation",
    "batch_get_linked_pod",
    "check_health",
    "claim",
    "close",
    "compute_linked_pod",
    "explain",
    "get_all_service_state",
    "get_link_service",
    "get_linked_pod",
    "get_linked_pod_in_cache_or_if_persist",
    "get_linked_pod_not_cache",
    "get_pod_state",
    "get_ready_service_state",
    "get_service_best_pod",
    "get_service_name_by_tag",
    "is_workload_ready",
    "listen",
    "ping",
    "release",
    "remove_any_linked_pod",
    "remove_linked_pod",
    "remove_linked_pod_with_id",
    "route",
    "set_global_service_name_tag",
    "set_linked_pod",
    "set_linked_pod_if_absent",
    "set_routing_state",
    "start",
    "stop",
    "stop_listening",
    "try_set_linked_pod",
    "verify",
]

A = TypeVarTuple("A")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Operation(Generic[*A, T]):
    """One operation; ``A`` are the types of its arguments, ``T`` is that of its answer.

    Attributes:
        name: as the core knows it.
        parameters: the names of its arguments, in order.
        timed: whether it may be given a ``timeout``.
    """

    name: str
    parameters: tuple[str, ...]
    timed: bool


AnyOperation = Operation[*tuple[Any, ...], Any]
"""An operation of any types."""


def operation(row: Callable[[*A], T]) -> Operation[*A, T]:
    """The operation that a signature describes, under the name of the signature."""
    return Operation(row.__name__, _parameters(row), timed=True)


def named(name: str, *, timed: bool) -> Callable[[Callable[[*A], T]], Operation[*A, T]]:
    """The operation that a signature describes, under this name: where drivers have different
    operations of one name, and where the core takes no ``timeout``.
    """
    return lambda row: Operation(name, _parameters(row), timed=timed)


def _parameters(row: Callable[..., Any]) -> tuple[str, ...]:
    # A row has no local variables beside its parameters, and `inspect` takes 20 times as long.
    return cast(FunctionType, row).__code__.co_varnames


# --- Links ----------------------------------------------------------------------------------------


@operation
def compute_linked_pod(namespace: str | None, uid: str, service_name: str) -> int: ...


@operation
def route(namespace: str | None, uid: str, service_name: str) -> RouteFields: ...


@operation
def get_linked_pod(namespace: str | None, uid: str, service_name: str) -> int | None: ...


@operation
def get_linked_pod_in_cache_or_if_persist(
    namespace: str | None, uid: str, service_name: str
) -> int | None: ...


@operation
def get_linked_pod_not_cache(namespace: str | None, uid: str, service_name: str) -> int | None: ...


@operation
def batch_get_linked_pod(
    namespace: str | None, uids: list[str] | UidBatch, service_name: str
) -> dict[int, list[str]] | UsersByPod: ...


@operation
def get_link_service(namespace: str | None, uid: str) -> dict[str, int]: ...


@operation
def explain(namespace: str | None, uid: str, service_name: str) -> str: ...


@operation
def set_linked_pod_if_absent(
    namespace: str | None, uid: str, service_name: str, pod_index: int
) -> int: ...


@operation
def set_linked_pod(
    namespace: str | None, uid: str, service_name: str, pod_index: int, persist_seconds: int
) -> int | None: ...


@operation
def try_set_linked_pod(
    namespace: str | None, uid: str, service_name: str, pod_index: int, persist_seconds: int
) -> tuple[bool, int]: ...


@operation
def remove_linked_pod(namespace: str | None, uid: str, service_name: str) -> bool: ...


@named("remove_linked_pod", timed=True)
def remove_any_linked_pod(
    namespace: str | None, uid: str, service_name: str, persist_seconds: int
) -> bool: ...


@operation
def remove_linked_pod_with_id(
    namespace: str | None, uid: str, service_name: str, pod_index: int, persist_seconds: int
) -> bool: ...


# --- Ownership ------------------------------------------------------------------------------------


@operation
def claim(
    namespace: str | None, uid: str, service_name: str | None, min_token: int
) -> tuple[str, str, str, int, int, int, int]: ...


@operation
def verify(
    namespace: str,
    uid: str,
    service_name: str,
    pod_index: int,
    incarnation: int,
    token: int,
    previous_token: int,
) -> bool: ...


@operation
def release(
    namespace: str,
    uid: str,
    service_name: str,
    pod_index: int,
    incarnation: int,
    token: int,
    previous_token: int,
    grace: float | None,
) -> bool: ...


# --- Pods -----------------------------------------------------------------------------------------


@operation
def start() -> None: ...


@named("stop", timed=False)
def stop(
    deadline: float, drain: Literal["release", "handover", "keep"] | None
) -> tuple[int, int, int, list[str], list[str], float]: ...


@operation
def set_routing_state(routing_state: RoutingState | str) -> None: ...


@operation
def get_all_service_state(namespace: str | None, service_name: str) -> dict[int, StateFields]: ...


@operation
def get_ready_service_state(namespace: str | None, service_name: str) -> dict[int, StateFields]: ...


@operation
def get_pod_state(namespace: str | None, service_name: str, pod_index: int) -> StateFields: ...


@operation
def get_service_best_pod(namespace: str | None, service_name: str) -> int | None: ...


@operation
def is_workload_ready(namespace: str | None, service_name: str) -> bool: ...


@operation
def get_service_name_by_tag(namespace: str | None, tag: str) -> str | None: ...


@operation
def set_global_service_name_tag(namespace: str | None, tag: str, service_name: str) -> bool: ...


# --- Stores and servers ---------------------------------------------------------------------------


@operation
def ping() -> None: ...


@named("aclose", timed=False)
def close() -> None: ...


@operation
def check_health() -> bool: ...


@named("start", timed=False)
def listen() -> str: ...


@named("stop", timed=False)
def stop_listening(deadline: float) -> bool: ...
