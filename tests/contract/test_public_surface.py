"""The names that users import and the arguments they call them with.

An addition to the surface adds a line here; changing or removing one breaks users.
"""

import dataclasses
import inspect
import types
from typing import Any

import pytest

import podlink
from helpers.members import own_members

# `__init__.pyi` has the names, and no list of them.
ALL: list[str] = vars(podlink)["__all__"]

EXPORTED = [
    "AdminServer",
    "ClientConfig",
    "ClientDriver",
    "ClosedError",
    "Connection",
    "DrainReport",
    "ForkedProcessError",
    "GrpcClientConfig",
    "GrpcServerConfig",
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
    "Ownership",
    "OwnershipLostError",
    "PeerUnavailableError",
    "PermissionDeniedError",
    "PodIndexBusyError",
    "PodNotAvailableError",
    "PodNotFoundError",
    "PodlinkError",
    "Registration",
    "Route",
    "RouteGrpcClient",
    "RouteGrpcServer",
    "RouteInfoConfig",
    "RouteInfoDriver",
    "RoutingState",
    "Sample",
    "ServerConfig",
    "ServerDriver",
    "ServerInfo",
    "ServiceLinks",
    "ServiceNotFoundError",
    "Snapshot",
    "StateChange",
    "StateChanges",
    "StatefulObjCallback",
    "StatefulServiceState",
    "Store",
    "StoreAuthenticationError",
    "StoreDataError",
    "StoreError",
    "StoreUnavailableError",
    "Window",
    "__version__",
    "connect",
    "hash_uid",
    "hook_deadline",
]

# `self` left out; `async` where the call has to be awaited.
_USER = "namespace: str | None, uid: str, service_name: str"
_USER_OF_POD = f"{_USER} | None = None"
_LIMIT = "*, timeout: Duration | None = None"
_SUBMIT = (
    "(operation: Callable[..., Coroutine[Any, Any, Any]] | str, *args: Any, "
    "callback: StatefulObjCallback | None = None, timeout: Duration | None = None, "
    "**kwargs: Any) -> Future[Any]"
)
_SERVICE = "namespace: str | None, service_name: str"
_REMOVE_HOOK = "(hook: Callable[..., object]) -> int"
_STATES = "dict[int, StatefulServiceState]"
_CALLBACKS = (
    "*, callbacks: Literal['thread', 'poll'] = 'thread'"
    ", peers: Mapping[str, RouteGrpcClient] | None = None"
)

SIGNATURES = {
    "AdminServer": "(source: Store | Connection, listen: str = '127.0.0.1:9464', *, "
    "insecure: bool = False) -> None",
    "AdminServer.aclose": "async () -> None",
    "AdminServer.start": "async () -> str",
    "ClientDriver": "(store: Store, namespace: str = 'default', config: ClientConfig | None = None"
    ", *, route_info: RouteInfoDriver | RouteInfoConfig | None = None"
    ", callbacks: Literal['thread', 'poll'] = 'thread'"
    ", peers: Mapping[str, RouteGrpcClient] | None = None) -> None",
    "ClientDriver.aclose": "async () -> None",
    "ClientDriver.batch_get_linked_pod": "async (namespace: str | None, uids: Iterable[str], "
    f"service_name: str, {_LIMIT}) -> dict[int, list[str]]",
    "ClientDriver.cache_expired": f"({_USER}) -> int | None",
    "ClientDriver.compute_linked_pod": f"async ({_USER}, {_LIMIT}) -> int",
    "ClientDriver.explain": f"async ({_USER}, {_LIMIT}) -> Explanation",
    "ClientDriver.get_link_service": f"async (namespace: str | None, uid: str, {_LIMIT})"
    " -> dict[str, int]",
    "ClientDriver.get_linked_in_cache": f"({_USER}) -> int | None",
    "ClientDriver.get_linked_pod": f"async ({_USER}, {_LIMIT}) -> int | None",
    "ClientDriver.get_linked_pod_in_cache_or_if_persist": f"async ({_USER}, {_LIMIT})"
    " -> int | None",
    "ClientDriver.get_linked_pod_not_cache": f"async ({_USER}, {_LIMIT}) -> int | None",
    "ClientDriver.misrouted": f"({_USER}, pod_index: int, *, owner: int | None = None"
    ", token: int | None = None) -> None",
    "ClientDriver.on_pod_lost": "(callback: PodLostCallback, service_name: str | None = None)"
    " -> Registration",
    "ClientDriver.poll_callbacks": "() -> int",
    "ClientDriver.remove_hook": _REMOVE_HOOK,
    "ClientDriver.route": f"async ({_USER}, {_LIMIT}) -> Route",
    "ClientDriver.service": "(service_name: str, *, namespace: str | None = None) -> ServiceLinks",
    "ClientDriver.set_cache": f"({_USER}, pod_index: int) -> int | None",
    "ClientDriver.set_linked_pod_if_absent": f"async ({_USER}, pod_index: int, {_LIMIT}) -> int",
    "ClientDriver.stats": "() -> dict[str, int]",
    "ClientDriver.submit": _SUBMIT,
    "ServerDriver": "(store: Store, server_info: ServerInfo, config: ServerConfig | None = None"
    f", load: LoadFunction | None = None, {_CALLBACKS}) -> None",
    "ServerDriver.aclose": "async () -> None",
    "ServerDriver.claim": f"async ({_USER_OF_POD}, *, min_token: int = 0"
    ", timeout: Duration | None = None) -> Ownership",
    "ServerDriver.get_load_state": "async () -> int",
    "ServerDriver.get_routing_state": "async () -> RoutingState",
    "ServerDriver.on_drain": "(hook: D) -> D",
    "ServerDriver.on_lease_lost": "(hook: L) -> L",
    "ServerDriver.on_lease_resumed": "(hook: L) -> L",
    "ServerDriver.on_lease_suspended": "(hook: L) -> L",
    "ServerDriver.on_ownership_lost": "(hook: O) -> O",
    "ServerDriver.on_ownership_renewed": "(hook: R) -> R",
    "ServerDriver.owned_users": "(service_name: str | None = None) -> list[str]",
    "ServerDriver.ownership": f"({_USER_OF_POD}) -> Ownership | None",
    "ServerDriver.owns": f"({_USER_OF_POD}) -> bool",
    "ServerDriver.poll_callbacks": "() -> int",
    "ServerDriver.remove_hook": _REMOVE_HOOK,
    "ServerDriver.remove_linked_pod": f"async ({_USER}, {_LIMIT}) -> bool",
    "ServerDriver.remove_linked_pod_with_id": f"async ({_USER}, pod_index: int, "
    f"persist_seconds: int, {_LIMIT}) -> bool",
    "ServerDriver.set_linked_pod": f"async ({_USER}, pod_index: int, persist_seconds: int = -1"
    f", {_LIMIT}) -> int | None",
    "ServerDriver.set_load_state": "async (load_state: int) -> None",
    "ServerDriver.set_routing_state": f"async (routing_state: RoutingState | str, {_LIMIT})"
    " -> None",
    "ServerDriver.start": f"async ({_LIMIT}) -> None",
    "ServerDriver.stats": "() -> dict[str, int]",
    "ServerDriver.stop": "async (*, deadline: Duration | None = None"
    ", drain: Literal['release', 'handover', 'keep'] | None = None) -> DrainReport",
    "ServerDriver.submit": _SUBMIT,
    "ServerDriver.try_set_linked_pod": f"async ({_USER}, pod_index: int, "
    f"persist_seconds: int = -1, {_LIMIT}) -> tuple[bool, int]",
    "Registration.unregister": "() -> None",
    "Ownership.check": "() -> None",
    "Ownership.is_valid": "() -> bool",
    "Ownership.release": f"async (grace: Duration | None = None, {_LIMIT}) -> bool",
    "Ownership.verify": f"async ({_LIMIT}) -> bool",
    "RouteInfoDriver": "(store: Store, namespace: str = 'default'"
    f", config: RouteInfoConfig | None = None, {_CALLBACKS}) -> None",
    "RouteInfoDriver.aclose": "async () -> None",
    "RouteInfoDriver.age": f"({_SERVICE}) -> float | None",
    "RouteInfoDriver.alive_pods": f"({_SERVICE}) -> {_STATES}",
    "RouteInfoDriver.get_all_service_state": f"async ({_SERVICE}, {_LIMIT}) -> {_STATES}",
    "RouteInfoDriver.get_link_info_cache_time_secs": "() -> float",
    "RouteInfoDriver.get_ready_service_state": f"async ({_SERVICE}, {_LIMIT}) -> {_STATES}",
    "RouteInfoDriver.get_pod_state": f"async ({_SERVICE}, pod_index: int, {_LIMIT})"
    " -> StatefulServiceState",
    "RouteInfoDriver.get_service_best_pod": f"async ({_SERVICE}, {_LIMIT}) -> int | None",
    "RouteInfoDriver.get_service_name_by_tag": "async (namespace: str | None, tag: str"
    f", {_LIMIT}) -> str | None",
    "RouteInfoDriver.is_pod_available": f"({_SERVICE}, pod_index: int) -> bool",
    "RouteInfoDriver.is_pod_routable": f"({_SERVICE}, pod_index: int) -> bool",
    "RouteInfoDriver.is_workload_ready": f"async ({_SERVICE}, {_LIMIT}) -> bool",
    "RouteInfoDriver.changes": "(namespace: str | None = None, service_name: str | None = None"
    ", *, limit: int = 1000) -> StateChanges",
    "StateChanges.aclose": "async () -> None",
    "RouteInfoDriver.on_routing_state_changed": "(namespace: str | None = None"
    ", service_name: str | None = None) -> Callable[[S], S]",
    "RouteInfoDriver.pod": f"({_SERVICE}, pod_index: int) -> StatefulServiceState | None",
    "RouteInfoDriver.poll_callbacks": "() -> int",
    "RouteInfoDriver.remove_hook": _REMOVE_HOOK,
    "RouteInfoDriver.register_routing_state_changed_event": "(namespace: str | None"
    ", callback: StateCallback, service_name: str | None = None) -> Registration",
    "RouteInfoDriver.routable_pods": f"({_SERVICE}) -> {_STATES}",
    "RouteInfoDriver.set_global_service_name_tag": "async (namespace: str | None, tag: str"
    f", service_name: str, {_LIMIT}) -> bool",
    "RouteInfoDriver.stats": "() -> dict[str, int]",
    "RouteInfoDriver.submit": _SUBMIT,
    "ServerInfo.from_env": "(service_name: str | None = None, *, pod_index: int | None = None"
    ", namespace: str | None = None, metadata: Mapping[str, str] | None = None"
    ", environ: Mapping[str, str] | None = None) -> ServerInfo",
    "RouteGrpcClient": "(endpoint: str | Sequence[str], *, namespace: str | None = None"
    ", config: GrpcClientConfig | None = None, ca_file: Path | None = None"
    ", cert_file: Path | None = None, key_file: Path | None = None"
    ", server_name: str | None = None, token_file: Path | None = None"
    ", insecure: bool = False, callbacks: Literal['thread', 'poll'] = 'thread') -> None",
    "RouteGrpcClient.aclose": "async () -> None",
    "RouteGrpcClient.batch_get_linked_pod": "async (namespace: str | None, uids: Iterable[str], "
    f"service_name: str, {_LIMIT}) -> dict[int, list[str]]",
    "RouteGrpcClient.check_health": f"async ({_LIMIT}) -> bool",
    "RouteGrpcClient.compute_linked_pod": f"async ({_USER}, {_LIMIT}) -> int",
    "RouteGrpcClient.get_all_service_state": f"async ({_SERVICE}, {_LIMIT}) -> {_STATES}",
    "RouteGrpcClient.get_link_service": f"async (namespace: str | None, uid: str, {_LIMIT})"
    " -> dict[str, int]",
    "RouteGrpcClient.get_linked_pod": f"async ({_USER}, {_LIMIT}) -> int | None",
    "RouteGrpcClient.get_linked_pod_in_cache_or_if_persist": f"async ({_USER}, {_LIMIT})"
    " -> int | None",
    "RouteGrpcClient.get_linked_pod_not_cache": f"async ({_USER}, {_LIMIT}) -> int | None",
    "RouteGrpcClient.get_service_name_by_tag": "async (namespace: str | None, tag: str"
    f", {_LIMIT}) -> str | None",
    "RouteGrpcClient.on_status_changed": "(callback: C) -> C",
    "RouteGrpcClient.poll_callbacks": "() -> int",
    "RouteGrpcClient.remove_hook": _REMOVE_HOOK,
    "RouteGrpcClient.remove_linked_pod": f"async ({_USER}, persist_seconds: int = 60, {_LIMIT})"
    " -> bool",
    "RouteGrpcClient.remove_linked_pod_with_id": f"async ({_USER}, pod_index: int, "
    f"persist_seconds: int, {_LIMIT}) -> bool",
    "RouteGrpcClient.route": f"async ({_USER}, {_LIMIT}) -> Route",
    "RouteGrpcClient.set_linked_pod": f"async ({_USER}, pod_index: int, "
    f"persist_seconds: int = -1, {_LIMIT}) -> int | None",
    "RouteGrpcClient.set_linked_pod_if_absent": f"async ({_USER}, pod_index: int, {_LIMIT}) -> int",
    "RouteGrpcClient.submit": _SUBMIT,
    "RouteGrpcClient.try_set_linked_pod": f"async ({_USER}, pod_index: int, "
    f"persist_seconds: int = -1, {_LIMIT}) -> tuple[bool, int]",
    "RouteGrpcServer": "(store: Store, namespace: str = 'default', listen: str = '127.0.0.1:0'"
    ", config: GrpcServerConfig | None = None"
    ", *, client: ClientDriver | ClientConfig | None = None, authorize: Iterable[Rule] = ()"
    ", cert_file: Path | None = None, key_file: Path | None = None"
    ", client_ca_file: Path | None = None, tokens_file: Path | None = None"
    ", insecure: bool = False, reflection: bool = True) -> None",
    "RouteGrpcServer.aclose": "async () -> None",
    "RouteGrpcServer.start": "async () -> str",
    "RouteGrpcServer.stop": "async (*, deadline: Duration = 10.0) -> bool",
    "ServiceLinks.batch_get_linked_pod": f"async (uids: Iterable[str], {_LIMIT})"
    " -> dict[int, list[str]]",
    "ServiceLinks.cache_expired": "(uid: str) -> int | None",
    "ServiceLinks.compute_linked_pod": "async (uid: str, timeout: Duration | None = None) -> int",
    "ServiceLinks.explain": f"async (uid: str, {_LIMIT}) -> Explanation",
    "ServiceLinks.get_linked_in_cache": "(uid: str) -> int | None",
    "ServiceLinks.get_linked_pod": f"async (uid: str, {_LIMIT}) -> int | None",
    "ServiceLinks.get_linked_pod_in_cache_or_if_persist": f"async (uid: str, {_LIMIT})"
    " -> int | None",
    "ServiceLinks.get_linked_pod_not_cache": f"async (uid: str, {_LIMIT}) -> int | None",
    "ServiceLinks.misrouted": "(uid: str, pod_index: int, *, owner: int | None = None"
    ", token: int | None = None) -> None",
    "ServiceLinks.route": f"async (uid: str, {_LIMIT}) -> Route",
    "ServiceLinks.set_cache": "(uid: str, pod_index: int) -> int | None",
    "ServiceLinks.set_linked_pod_if_absent": f"async (uid: str, pod_index: int, {_LIMIT}) -> int",
    "StatefulObjCallback.on_error": "(error: PodlinkError, /) -> None",
    "StatefulObjCallback.on_success": "(result: Any, /) -> None",
    "Store": "(url: str = 'memory://', **options: StoreOption) -> None",
    "Store.aclose": "async () -> None",
    "Store.ping": f"async ({_LIMIT}) -> None",
    "Store.metrics_text": "() -> str",
    "Store.stats": "() -> Snapshot",
    "Snapshot.value": "(name: str, **labels: str) -> float",
    "Window.per_second": "(count: int) -> float",
    "Connection.metrics_text": "() -> str",
    "Connection.stats": "() -> Snapshot",
    "Connection.aclose": "async () -> None",
    "Connection.server": "(server_info: ServerInfo, config: ServerConfig | None = None"
    ", load: Callable[[], int | Awaitable[int]] | None = None"
    ", *, callbacks: Literal['thread', 'poll'] | None = None"
    ", peers: Mapping[str, RouteGrpcClient] | None = None) -> ServerDriver",
    "ClientConfig.from_env": "(environ: Mapping[str, str] | None = None) -> Self",
    "ServerConfig.fast": "() -> ServerConfig",
    "connect": "(url: str = 'memory://', *, namespace: str = 'default'"
    ", config: ClientConfig | None = None, route_info: RouteInfoConfig | None = None"
    ", callbacks: Literal['thread', 'poll'] = 'thread'"
    ", peers: Mapping[str, RouteGrpcClient] | None = None, **options: StoreOption) -> Connection",
    "hash_uid": "(uid: str) -> str",
    "hook_deadline": "() -> float | None",
}

WITH_METHODS = [
    "AdminServer",
    "RouteGrpcClient",
    "RouteGrpcServer",
    "ClientDriver",
    "Connection",
    "Ownership",
    "Registration",
    "RouteInfoDriver",
    "ServerDriver",
    "ServiceLinks",
    "Snapshot",
    "StateChanges",
    "Store",
    "Window",
]

DEFAULTS: dict[str, dict[str, object]] = {
    "ClientConfig": {
        "link_ttl": 300.0,
        "cache_ttl": 240.0,
        "cache_capacity": 1_000_000,
        "strategy": "p2c",
        "timeout": 2.0,
        "on_restart": "same_pod",
        "address_template": "{pod_name}.{service_name}.{namespace}.svc",
    },
    "GrpcClientConfig": {
        "timeout": 2.0,
        "connect_timeout": 1.0,
        "keepalive": 10.0,
        "keepalive_timeout": 5.0,
        "balance": "p2c",
        "max_batch": 512,
        "retry_ratio": 0.1,
    },
    "GrpcServerConfig": {
        "max_message_bytes": 65_536,
        "max_batch": 512,
        "max_streams": 256,
        "max_in_flight": 4096,
        "max_event_streams": 1024,
        "max_connections": 1024,
        "peer_rate": 50_000,
        "request_timeout": 5.0,
        "keepalive": 30.0,
        "keepalive_timeout": 10.0,
        "connection_age": 3600.0,
        "connection_grace": 30.0,
    },
    "RouteInfoConfig": {
        "refresh": 1.0,
        "overload_limit": None,
        "idle": 600.0,
        "serve_stale": False,
        "tag_ttl": 60.0,
        "link_cache_ttl": 240.0,
        "timeout": 2.0,
    },
    "ServerConfig": {
        "lease": 10.0,
        "renew": 2.0,
        "guard": 1.0,
        "gap": 4.0,
        "grace": 5.0,
        "cpu_factor": 0.7,
        "link_grace": 60.0,
        "drain": "release",
        "stop_deadline": 25.0,
        "watchdog": 5.0,
        "timeout": 2.0,
    },
}

# What podlink makes and a program reads.
VALUES = {
    "StateChange": ["namespace", "service_name", "pod_index", "previous", "now"],
    "DrainReport": ["released", "handed_over", "kept", "failed", "unfinished", "seconds"],
    "Ownership": [
        "namespace",
        "uid",
        "service_name",
        "pod_index",
        "incarnation",
        "token",
        "previous_token",
    ],
}


class AsWritten(str):
    """An annotation that is shown as it stands in the source, without quotes around it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def shown_signature(name: str) -> str:
    """The signature of `Class.method` as a user reads it, without `self` and `cls`."""
    found: Any = podlink
    for part in name.split("."):
        found = getattr(found, part)
    called = getattr(found, "__init__") if isinstance(found, type) else found  # noqa: B009
    signature = inspect.signature(called)
    parameters = [
        each.replace(annotation=AsWritten(each.annotation))
        for each in signature.parameters.values()
        if each.name != "self"
    ]
    returned = AsWritten(signature.return_annotation)
    shown = str(signature.replace(parameters=parameters, return_annotation=returned))
    return f"async {shown}" if inspect.iscoroutinefunction(called) else shown


def test_the_exported_names_are_these() -> None:
    assert ALL == EXPORTED
    assert sorted(ALL) == ALL
    for name in ALL:
        getattr(podlink, name)  # they are loaded when they are used
    public = {
        name
        for name, value in vars(podlink).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public | {"__version__"} == set(ALL)


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_stays(name: str) -> None:
    assert shown_signature(name) == SIGNATURES[name]


@pytest.mark.parametrize("name", WITH_METHODS)
def test_no_public_method_is_missing_here(name: str) -> None:
    methods = {
        f"{name}.{method}"
        for method, value in own_members(getattr(podlink, name)).items()
        if not method.startswith("_") and inspect.isfunction(value)
    }
    assert methods == {row for row in SIGNATURES if row.startswith(f"{name}.")}


@pytest.mark.parametrize("name", DEFAULTS)
def test_configurations_are_frozen_and_have_these_defaults(name: str) -> None:
    config = getattr(podlink, name)()
    assert dataclasses.asdict(config) == DEFAULTS[name]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, next(iter(DEFAULTS[name])), 5)
    assert config == getattr(podlink, name)()


@pytest.mark.parametrize("name", VALUES)
def test_values_have_these_fields(name: str) -> None:
    public = [each.name for each in dataclasses.fields(getattr(podlink, name)) if each.repr]
    assert public == VALUES[name]


def test_routing_states_are_plain_text_too() -> None:
    assert [str(state) for state in podlink.RoutingState] == ["READY", "DENY_NEW_CALL", "SHUTDOWN"]
    assert podlink.RoutingState("READY") == "READY"


def test_a_callback_is_recognised_by_its_two_methods() -> None:
    class Complete:
        def on_success(self, result: object) -> None: ...

        def on_error(self, error: Exception) -> None: ...

    assert isinstance(Complete(), podlink.StatefulObjCallback)
    assert not isinstance(object(), podlink.StatefulObjCallback)


def test_the_package_says_that_it_is_typed() -> None:
    from importlib.resources import files

    assert files("podlink").joinpath("py.typed").is_file()
