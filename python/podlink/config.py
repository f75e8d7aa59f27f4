"""Every setting: frozen, checked when built, seconds as ``float`` or
``timedelta``.

Each configuration can be read from the environment: ``ClientConfig.from_env()`` takes
``PODLINK_LINK_TTL``, ``PODLINK_CACHE_TTL`` and so on; the command line has the same names.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from datetime import timedelta
from typing import Any, Literal, NamedTuple, Self, SupportsIndex, get_args

from . import _podlink
from .errors import InvalidParameterError, InvalidParameterTypeError
from .state import StatefulServiceState

__all__ = [
    "ClientConfig",
    "Duration",
    "GrpcClientConfig",
    "GrpcServerConfig",
    "RouteInfoConfig",
    "ServerConfig",
    "Strategy",
]

Duration = float | timedelta
"""Seconds, or a ``timedelta``."""

StrategyName = Literal["p2c", "least_load", "round_robin", "weighted", "rendezvous"]
Strategy = StrategyName | Callable[[str, Sequence[StatefulServiceState]], SupportsIndex | None]
"""How a new user's pod is chosen: a name, or a function ``(uid, candidates) -> pod_index``."""


def seconds(value: Any) -> Any:
    """A ``timedelta`` as seconds; anything else as it is, for the core to check."""
    return value.total_seconds() if isinstance(value, timedelta) else value


class _Config:
    """What the configurations share.

    The core has a table of all settings: it reads the values, checks them and knows the defaults.
    A test compares these classes with it.
    """

    def __post_init__(self) -> None:
        self._core()

    def _core(self) -> object:
        """The settings as the core checked them."""
        raise NotImplementedError

    def _values(self) -> dict[str, Any]:
        """Each setting as the core takes it, by name."""
        values: dict[str, Any] = {}
        for each in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, each.name)
            is_time = str(each.type).startswith("Duration")
            values[each.name] = seconds(value) if is_time else value
        return values

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Reads each setting from ``PODLINK_<NAME>``; what is not set keeps its default. A setting
        that may be ``None`` is so by ``none``.

        Raises:
            InvalidParameterError: a variable does not hold a number, or its setting is refused.
        """
        environ = os.environ if environ is None else environ
        given: dict[str, Any] = {}
        for each in fields(cls):  # type: ignore[arg-type]  # every subclass is a dataclass
            variable = f"PODLINK_{each.name.upper()}"
            if variable in environ:
                text = environ[variable]
                absent = may_be_none(each) and text.lower() == "none"
                given[each.name] = None if absent else _from_text(variable, text, each.default)
        return cls(**given)


def may_be_none(setting: Field[Any]) -> bool:
    """Whether ``None`` is a value of this field of a configuration."""
    return str(setting.type).endswith("| None")


class Setting(NamedTuple):
    """A setting as the core defines it."""

    config: str
    """The class that has it."""
    name: str
    kind: str
    """``seconds``, ``seconds_or_none``, ``count``, ``ratio``, ``limit`` (or ``None``), ``flag``,
    ``choice``, ``text``
    """
    default: bool | float | str | None
    least: float | None
    most: float | None
    names: list[str]
    """What a choice is one of."""
    meaning: str


def settings_table() -> list[Setting]:
    """Every setting, in the core's order."""
    return [Setting(*row) for row in _podlink.config_table()]


_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def _from_text(variable: str, text: str, default: object) -> object:
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text.lower() not in _TRUTHS:
            raise InvalidParameterError(
                f"{variable} must be true, false, 1 or 0, got {text[:40]!r}",
                details={
                    "parameter": variable,
                    "given": text[:40],
                    "allowed": "true, false, 1 or 0",
                },
            )
        return _TRUTHS[text.lower()]
    kind = float if isinstance(default, float) else int
    try:
        return kind(text)
    except ValueError:
        raise InvalidParameterError(
            f"{variable} must be a number, got {text[:40]!r}",
            details={"parameter": variable, "given": text[:40], "allowed": "a number"},
        ) from None


@dataclass(frozen=True, slots=True)
class ClientConfig(_Config):
    """The settings of a :class:`~podlink.ClientDriver`.

    Attributes:
        link_ttl: how long a link made by ``compute_linked_pod`` lasts. At least 1 s.
        cache_ttl: how long an answer may come from the local cache; at most ``link_ttl``. 0 turns
            the cache off.
        cache_capacity: how many links the local cache holds.
        strategy: how a new user's pod is chosen. ``"p2c"``: the better of two random pods, by
            load. ``"least_load"``: the best of all. Both add the users that this driver has just
            sent to the load that a pod published. ``"round_robin"``, ``"weighted"`` (at random, in
            proportion to each pod's metadata ``weight``), ``"rendezvous"`` (by uid). Or a function
            ``(uid, candidates) -> pod_index | None``, not ``async``: the driver calls it on a
            thread of its own, for one user after the other. If it raises or names no candidate,
            ``p2c`` chooses; so it does, at once, for users whose turn would not come within an
            eighth of their timeout (``stats()["chooser_overloads"]``). A call that has begun may
            take half of the timeout. The index may be any integer, also one of NumPy's.
        timeout: the deadline of a call that names none.
        on_restart: ``"same_pod"``: a user stays with a pod that came back as a new process.
            ``"best_pod"``: a user that this driver remembers with the earlier process is placed
            like a new one.
        address_template: what ``route`` returns as the address of a pod whose metadata has no
            ``address``. The fields are ``{pod_name}`` (the metadata ``podName``, or else the
            service and the index with a ``-`` between), ``{service_name}``, ``{namespace}`` and
            ``{pod_index}``; ``{{`` and ``}}`` are braces.

    Raises:
        InvalidParameterError: a setting is out of its range or does not fit another; the text
            names both.

    Example:
        >>> ClientConfig(link_ttl=60, cache_ttl=timedelta(seconds=30)).link_ttl
        60
    """

    link_ttl: Duration = 300.0
    cache_ttl: Duration = 240.0
    cache_capacity: int = 1_000_000
    strategy: Strategy = "p2c"
    timeout: Duration = 2.0
    on_restart: Literal["same_pod", "best_pod"] = "same_pod"
    address_template: str = "{pod_name}.{service_name}.{namespace}.svc"

    def _core(self) -> _podlink.ClientSettings:
        strategy: object = self.strategy
        if strategy == "custom":
            # The core's name for a function, and this is none.
            allowed = f"{', '.join(get_args(StrategyName))} or a callable"
            raise InvalidParameterError(
                f"strategy must be {allowed}, got 'custom'",
                details={"parameter": "strategy", "given": "'custom'", "allowed": allowed},
            )
        if _is_async(strategy):
            allowed = "a name or a function that is not async"
            raise InvalidParameterTypeError(
                f"strategy must be {allowed}, got an async one",
                details={"parameter": "strategy", "given": "async def", "allowed": allowed},
            )
        values = self._values()
        if callable(strategy):
            values["strategy"] = "custom"
        return _podlink.ClientSettings(values)


@dataclass(frozen=True, slots=True)
class RouteInfoConfig(_Config):
    """The settings of the state cache: how a driver reads the pods.

    Attributes:
        refresh: how often the pods of a service in use are read, ±10 %.
        overload_limit: a READY pod above this load gets no new users while another one is below;
            if all are above, the least loaded one does. ``None``: no limit.
        idle: after this long without use a service is no longer read.
        serve_stale: while the store cannot be read, judge pods as they were when it last could;
            otherwise they stop counting as alive when their leases end. Counted in ``stats()``.
        tag_ttl: how long a service tag may come from the local cache; 0 turns that cache off.
        link_cache_ttl: how long clients may cache a link: what
            ``RouteInfoDriver.get_link_info_cache_time_secs()`` returns for them.
        timeout: the deadline of a call that names none.

    Raises:
        InvalidParameterError: a setting is out of its range or does not fit another.
    """

    refresh: Duration = 1.0
    overload_limit: int | None = None
    idle: Duration = 600.0
    serve_stale: bool = False
    tag_ttl: Duration = 60.0
    link_cache_ttl: Duration = 240.0
    timeout: Duration = 2.0

    def _core(self) -> _podlink.RouteInfoSettings:
        return _podlink.RouteInfoSettings(self._values())


@dataclass(frozen=True, slots=True)
class ServerConfig(_Config):
    """The settings of a :class:`~podlink.ServerDriver`.

    A pod that is killed is replaced after at most ``lease + grace`` and the next lookup that needs
    it; the defaults make that 16 s, ``ServerConfig.fast()`` 7 s.

    Attributes:
        lease: how long a renewal is proof of life.
        renew: how often the lease is renewed and the state published, ±10 %. Below
            ``lease - guard``.
        guard: the pod stops acting this much before its lease ends.
        gap: a longer silence of all pods counts as an outage of the store, and no user is moved.
            At least ``2 * renew``.
        grace: how long after its lease a pod may not be declared dead. At least ``gap``.
        cpu_factor: the share of the CPU in the published load, 0 to 1.
        link_grace: how long a removed link stays as a hint.
        drain: what becomes of a user whose ``on_drain`` hook has ended well when the pod stops.
            ``"release"``: its link is deleted. ``"handover"``: its link is handed to another pod.
            ``"keep"``: its link stays as it is.
        stop_deadline: how long ``stop()`` may take if it names no deadline, and the end of an
            ``async with`` block.
        watchdog: if the event loop where ``start`` was awaited has not answered for this long, the
            pod publishes DENY_NEW_CALL in the place of READY, and READY again when the loop
            answers. The loop is asked five times within this time, so a block is noticed up to a
            fifth later. After ``submit("start")`` podlink's own thread is asked. ``None``: off.
            docs/operations.md says why 5 s, and what it does not notice.
        timeout: the deadline of a call that names none.

    Raises:
        InvalidParameterError: a setting is out of its range or does not fit another; the text
            names both.
    """

    lease: Duration = 10.0
    renew: Duration = 2.0
    guard: Duration = 1.0
    gap: Duration = 4.0
    grace: Duration = 5.0
    cpu_factor: float = 0.7
    link_grace: Duration = 60.0
    drain: Literal["release", "handover", "keep"] = "release"
    stop_deadline: Duration = 25.0
    watchdog: Duration | None = 5.0
    timeout: Duration = 2.0

    @classmethod
    def fast(cls) -> ServerConfig:
        """Lease 4 s, renewed every 0.8 s: a killed pod is replaced within 7 s."""
        return cls(lease=4.0, renew=0.8, guard=0.5, gap=1.6, grace=2.0)

    def _core(self) -> _podlink.ServerSettings:
        return _podlink.ServerSettings(self._values())


@dataclass(frozen=True, slots=True)
class GrpcClientConfig(_Config):
    """The settings of a :class:`~podlink.RouteGrpcClient`.

    Attributes:
        timeout: the deadline of a call that names none; the server gets it too.
        connect_timeout: how long making a connection may take, TLS included.
        keepalive: how often a connection is pinged, also while it is idle.
        keepalive_timeout: how long the answer may take; then the client reconnects.
        balance: how an endpoint is chosen among those that report that they can answer: ``"p2c"``,
            of two at random the one with fewer calls in flight, or ``"round_robin"``.
        max_batch: how many users one request looks up; not more than the server takes.
        retry_ratio: what share of the calls may be repeated once a reserve of 100 is used up. Only
            calls are repeated that are idempotent, or that were certainly not sent.

    Raises:
        InvalidParameterError: a setting is out of its range.
    """

    timeout: Duration = 2.0
    connect_timeout: Duration = 1.0
    keepalive: Duration = 10.0
    keepalive_timeout: Duration = 5.0
    balance: Literal["p2c", "round_robin"] = "p2c"
    max_batch: int = 512
    retry_ratio: float = 0.1

    def _core(self) -> _podlink.GrpcClientSettings:
        return _podlink.GrpcClientSettings(self._values())


@dataclass(frozen=True, slots=True)
class GrpcServerConfig(_Config):
    """The limits of a :class:`~podlink.RouteGrpcServer`.

    Attributes:
        max_message_bytes: the largest request; a larger one is refused unread.
        max_batch: how many users one request may look up.
        max_streams: how many requests of one connection may be in flight; more wait.
        max_in_flight: how many requests may be in flight; more are refused at once with
            ``OVERLOADED``, and clients try again.
        max_event_streams: how many streams of events there may be; more are refused at once with
            ``OVERLOADED``, and the caller polls instead. They count here alone, not among the
            requests.
        max_connections: how many connections there may be; more wait.
        peer_rate: how many requests of one caller are answered a second; callers without a name
            are distinguished by their address.
        request_timeout: how long a request may take, whatever its caller allows.
        keepalive: how often a connection is pinged.
        keepalive_timeout: how long the answer may take, and how long a new connection may take
            until its first request; then the connection is ended.
        connection_age: after how long a connection is ended gracefully, so that callers spread over
            the servers again.
        connection_grace: how long its requests may go on after that.

    Raises:
        InvalidParameterError: a setting is out of its range.
    """

    max_message_bytes: int = 65_536
    max_batch: int = 512
    max_streams: int = 256
    max_in_flight: int = 4096
    max_event_streams: int = 1024
    max_connections: int = 1024
    peer_rate: int = 50_000
    request_timeout: Duration = 5.0
    keepalive: Duration = 30.0
    keepalive_timeout: Duration = 10.0
    connection_age: Duration = 3600.0
    connection_grace: Duration = 30.0

    def _core(self) -> _podlink.GrpcServerSettings:
        return _podlink.GrpcServerSettings(self._values())


def _is_async(function: object) -> bool:
    """Whether calling this makes a coroutine or an async generator."""
    while isinstance(function, functools.partial):
        function = function.func
    called = (function, getattr(type(function), "__call__", None))  # noqa: B004 - not whether, but how
    return any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in called
    )


def check_callable(what: str, given: object) -> None:
    """Refuses what cannot be called."""
    if not callable(given):
        name = type(given).__name__
        raise InvalidParameterTypeError(
            f"{what} must be callable, got {name}",
            details={"parameter": what, "given": name, "allowed": "a callable"},
        )


def check_type(what: str, given: object, allowed: type) -> None:
    """Refuses an argument of the wrong type, with the same text as every other refusal."""
    if not isinstance(given, allowed):
        name = type(given).__name__
        raise InvalidParameterTypeError(
            f"{what} must be a {allowed.__name__}, got {name}",
            details={"parameter": what, "given": name, "allowed": allowed.__name__},
        )
