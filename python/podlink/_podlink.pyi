"""The compiled module, as the modules beside it use it. Nothing here is public."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, final

_T = TypeVar("_T")

__all__ = [
    "AdminCore",
    "ClientCore",
    "ClientSettings",
    "CompletionQueue",
    "GrpcClientCore",
    "GrpcClientSettings",
    "GrpcServerCore",
    "GrpcServerSettings",
    "InfoCore",
    "Registration",
    "Reply",
    "RouteInfoSettings",
    "ServerCore",
    "ServerSettings",
    "ServiceCore",
    "StoreCore",
    "UidBatch",
    "UsersByPod",
    "__version__",
    "after_fork_in_child",
    "check_pod",
    "check_timeout",
    "collect_spans",
    "config_table",
    "error_codes",
    "hash_uid",
    "hook_called",
    "hook_ended",
    "link_operation_names",
    "metrics_collect",
    "metrics_table",
    "metrics_text",
    "operation_names",
    "set_log_filter",
    "start_coroutine",
    "start_traced",
    "take_logs",
    "take_spans",
]

__version__: str

_StateFields = tuple[int, str, int, str, int, int, dict[str, str]]
_RouteFields = tuple[int, int | None, int | None, str, dict[str, str], bool]
_Path = str | os.PathLike[str]
# Of a histogram: ([(upper bound, how many up to it)], sum).
_Value = float | tuple[list[tuple[float, int]], float]
# Name, kind, help, label names, [(label values, value)].
_Family = tuple[str, str, str, tuple[str, ...], list[tuple[tuple[str, ...], _Value]]]
# Name, kind, help, [(label, its allowed values)], how gauges are merged, bounds of a histogram.
_TableRow = tuple[str, str, str, list[tuple[str, list[str] | None]], str, list[float]]
# Class, name, kind, default, least, most, names of a choice, meaning.
_SettingRow = tuple[
    str, str, str, bool | float | str | None, float | None, float | None, list[str], str
]
# Window, its seconds, what happened in it.
_Window = tuple[str, float, tuple[int, int, int, int, int, int, int, int]]
_ErrorParts = tuple[str, str, bool, dict[str, str]]
_Field = tuple[str, bool | int | float | str]
_Record = tuple[int, str, str, str, list[_Field]]
_TraceContext = tuple[int, int, int, str]
_Span = tuple[int, int, str, str, int, int, list[_Field]]

def after_fork_in_child() -> None: ...
def check_pod(namespace: Any, service_name: Any, index: Any) -> None: ...
def check_timeout(timeout: Any) -> None: ...
def collect_spans(on: bool) -> None: ...
def config_table() -> list[_SettingRow]: ...
def error_codes() -> list[tuple[str, bool]]: ...
def hook_called(hook: str) -> None: ...
def hook_ended(hook: str, seconds: float, well: bool) -> None: ...
def metrics_collect(stores: Sequence[StoreCore]) -> list[_Family]: ...
def metrics_table() -> list[_TableRow]: ...
def metrics_text(stores: Sequence[StoreCore]) -> str: ...
def link_operation_names() -> list[str]: ...
def operation_names() -> list[str]: ...
def hash_uid(uid: Any) -> str: ...
def set_log_filter(text: Any) -> int | None: ...
def start_coroutine(event_loop: Any, context: Any, answering: Any) -> Any: ...
def start_traced(
    start: Callable[..., None], arguments: tuple[Any, ...], traceparent: str, tracestate: str
) -> None: ...
def take_logs() -> tuple[list[_Record], int]: ...
def take_spans() -> tuple[list[tuple[_TraceContext | None, list[_Span]]], int]: ...

@final
class AdminCore:
    def __new__(cls, store: StoreCore, listen: str, insecure: bool) -> AdminCore: ...
    def address(self) -> str | None: ...
    def start(
        self,
        queue: CompletionQueue,
        waiter: Any,
        operation: str,
        arguments: tuple[Any, ...],
        timeout: Any,
    ) -> None: ...
    def stop(self) -> None: ...

@final
class CompletionQueue:
    def __new__(cls) -> CompletionQueue: ...
    def __len__(self) -> int: ...
    def drain(
        self,
    ) -> tuple[
        list[Any],
        list[Any],
        list[tuple[Any, _ErrorParts]],
        list[tuple[Callable[..., Any], tuple[Any, ...], Reply]],
    ]: ...
    def delivered(self) -> None: ...
    def fileno(self) -> int: ...
    def wake(self) -> None: ...

@final
class Reply:
    number: int
    cancels: bool
    def begin(self) -> bool: ...
    def abandoned(self) -> bool: ...
    def seconds_left(self) -> float | None: ...
    def answer(self, value: Any) -> None: ...
    def fail(self, why: str) -> None: ...

@final
class ClientSettings:
    def __new__(cls, values: dict[str, Any]) -> ClientSettings: ...

@final
class RouteInfoSettings:
    def __new__(cls, values: dict[str, Any]) -> RouteInfoSettings: ...

@final
class ServerSettings:
    def __new__(cls, values: dict[str, Any]) -> ServerSettings: ...

@final
class ServiceCore:
    def compute_cached(self, uid: Any) -> int | None: ...

@final
class StoreCore:
    @property
    def shown(self) -> str: ...
    def __new__(cls, url: Any, options: Mapping[str, str]) -> StoreCore: ...
    def start(
        self,
        queue: CompletionQueue,
        waiter: Any,
        operation: str,
        arguments: tuple[Any, ...],
        timeout: Any,
    ) -> None: ...
    def is_closed(self) -> bool: ...
    def windows(self) -> list[_Window]: ...

@final
class ClientCore:
    @property
    def namespace(self) -> str: ...
    def __new__(
        cls,
        store: StoreCore,
        namespace: Any,
        config: ClientSettings,
        info: InfoCore,
        logs: CompletionQueue,
        chooser: Any,
        peers: list[tuple[str, GrpcClientCore]],
    ) -> ClientCore: ...
    def start(
        self,
        queue: CompletionQueue,
        waiter: Any,
        operation: str,
        arguments: tuple[Any, ...],
        timeout: Any,
    ) -> None: ...
    def cache_expired(self, namespace: Any, uid: Any, service_name: Any) -> int | None: ...
    def close(self) -> None: ...
    def compute_cached(self, namespace: Any, uid: Any, service_name: Any) -> int | None: ...
    def cached_link(self, namespace: Any, uid: Any, service_name: Any) -> int | None: ...
    def get_linked_in_cache(self, namespace: Any, uid: Any, service_name: Any) -> int | None: ...
    def is_closed(self) -> bool: ...
    def misrouted(
        self,
        namespace: Any,
        uid: Any,
        service_name: Any,
        pod_index: Any,
        owner: Any,
        token: Any,
    ) -> None: ...
    def on_pod_lost(self, queue: CompletionQueue, hook: Any) -> Registration: ...
    def route_cached(self, namespace: Any, uid: Any, service_name: Any) -> _RouteFields | None: ...
    def service(self, namespace: Any, service_name: Any) -> tuple[ServiceCore, str]: ...
    def set_cache(
        self, namespace: Any, uid: Any, service_name: Any, pod_index: Any
    ) -> int | None: ...
    def stats(self) -> dict[str, int]: ...

@final
class ServerCore:
    def __new__(
        cls,
        store: StoreCore,
        namespace: Any,
        service_name: Any,
        pod_index: Any,
        pod_uid: str,
        metadata: Mapping[str, str],
        config: ServerSettings,
        logs: CompletionQueue,
        peers: list[tuple[str, GrpcClientCore]],
    ) -> ServerCore: ...
    def abandon(self) -> bool: ...
    def get_load_state(self) -> int: ...
    def get_routing_state(self) -> str: ...
    def holds_lease(self) -> bool: ...
    def incarnation(self) -> int: ...
    def is_closed(self) -> bool: ...
    def on(self, name: str, queue: CompletionQueue, hook: Any) -> Registration: ...
    def owned_users(self) -> list[str]: ...
    def ownership(
        self, namespace: Any, uid: Any, service_name: Any
    ) -> tuple[str, str, str, int, int, int, int] | None: ...
    def owns(self, namespace: Any, uid: Any, service_name: Any) -> bool: ...
    def owns_by(self, uid: str, token: int) -> bool: ...
    def start(
        self,
        queue: CompletionQueue,
        waiter: Any,
        operation: str,
        arguments: tuple[Any, ...],
        timeout: Any,
    ) -> None: ...
    def set_load_state(self, load_state: Any) -> None: ...
    def stats(self) -> dict[str, int]: ...
    def weighted_load(self) -> int: ...

@final
class Registration:
    def unregister(self) -> None: ...

@final
class InfoCore:
    def __new__(
        cls,
        store: StoreCore,
        namespace: Any,
        config: RouteInfoSettings,
        logs: CompletionQueue,
        peers: list[tuple[str, GrpcClientCore]],
    ) -> InfoCore: ...
    def age(self, namespace: Any, service_name: Any) -> float | None: ...
    def alive_pods(self, namespace: Any, service_name: Any) -> dict[int, _StateFields]: ...
    def close(self) -> None: ...
    def start(
        self,
        queue: CompletionQueue,
        waiter: Any,
        operation: str,
        arguments: tuple[Any, ...],
        timeout: Any,
    ) -> None: ...
    def is_closed(self) -> bool: ...
    def is_pod_available(self, namespace: Any, service_name: Any, pod_index: Any) -> bool: ...
    def is_pod_routable(self, namespace: Any, service_name: Any, pod_index: Any) -> bool: ...
    def pod(
        self, namespace: Any, service_name: Any, pod_index: Any, make: Callable[[_StateFields], _T]
    ) -> _T | None: ...
    def register(
        self, queue: CompletionQueue, namespace: Any, service_name: Any, hook: Any
    ) -> Registration: ...
    def routable_pods(self, namespace: Any, service_name: Any) -> dict[int, _StateFields]: ...
    def stats(self) -> dict[str, int]: ...

@final
class UidBatch:
    def __new__(cls, expected: int) -> UidBatch: ...
    def __len__(self) -> int: ...
    def add(self, piece: list[str]) -> None: ...
    def age(self) -> float: ...

@final
class UsersByPod:
    def take(self) -> dict[int, list[str]] | None: ...

@final
class GrpcClientSettings:
    def __new__(cls, values: dict[str, Any]) -> GrpcClientSettings: ...

@final
class GrpcServerSettings:
    def __new__(cls, values: dict[str, Any]) -> GrpcServerSettings: ...

@final
class GrpcClientCore:
    def __new__(
        cls,
        endpoints: list[str],
        namespace: Any,
        config: GrpcClientSettings,
        ca_file: _Path | None,
        cert_file: _Path | None,
        key_file: _Path | None,
        server_name: str | None,
        token_file: _Path | None,
        insecure: bool,
    ) -> GrpcClientCore: ...
    def start(
        self,
        queue: CompletionQueue,
        waiter: Any,
        operation: str,
        arguments: tuple[Any, ...],
        timeout: Any,
    ) -> None: ...
    def close(self) -> None: ...
    def is_closed(self) -> bool: ...
    def on_status_changed(self, queue: CompletionQueue, hook: Any) -> Registration: ...
    def status(self) -> dict[str, str]: ...

@final
class GrpcServerCore:
    def __new__(
        cls,
        store: StoreCore,
        namespace: Any,
        client: ClientCore,
        info: InfoCore,
        client_config: ClientSettings,
        config: GrpcServerSettings,
        listen: Any,
        cert_file: _Path | None,
        key_file: _Path | None,
        client_ca_file: _Path | None,
        tokens_file: _Path | None,
        authorize: list[tuple[str, str, str]],
        insecure: bool,
        reflection: bool,
    ) -> GrpcServerCore: ...
    def address(self) -> str | None: ...
    def start(
        self,
        queue: CompletionQueue,
        waiter: Any,
        operation: str,
        arguments: tuple[Any, ...],
        timeout: Any,
    ) -> None: ...
