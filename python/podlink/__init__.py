"""podlink: which pod of a stateful service holds this player?

Game servers on Kubernetes keep each player's state in the memory of one pod of a StatefulSet.
podlink knows which pod, chooses one for a new player, keeps that choice, and notices that a pod
drains or dies.

    >>> import asyncio, podlink
    >>> async def main() -> int:
    ...     async with podlink.connect("memory://", namespace="default") as connection:
    ...         pod = podlink.ServerInfo("default", "user-service", 0)
    ...         async with connection.server(pod):
    ...             compute = connection.client.compute_linked_pod
    ...             return await compute("default", "user123", "user-service")
    >>> asyncio.run(main())
    0
"""

from ._logs import hash_uid
from ._podlink import __version__
from .admin import AdminServer
from .callback import StatefulObjCallback
from .client import ClientDriver
from .config import (
    ClientConfig,
    GrpcClientConfig,
    GrpcServerConfig,
    RouteInfoConfig,
    ServerConfig,
)
from .connection import Connection, connect
from .errors import (
    ClosedError,
    ForkedProcessError,
    IllegalStateError,
    InternalError,
    InvalidParameterError,
    InvalidParameterTypeError,
    LeaseLostError,
    NamespaceUnreachableError,
    NoRoutablePodError,
    OperationTimeoutError,
    OverloadedError,
    PeerUnavailableError,
    PermissionDeniedError,
    PodIndexBusyError,
    PodlinkError,
    PodNotAvailableError,
    PodNotFoundError,
    ServiceNotFoundError,
    StoreAuthenticationError,
    StoreDataError,
    StoreError,
    StoreUnavailableError,
)
from .grpc_client import RouteGrpcClient
from .grpc_server import RouteGrpcServer
from .info import Registration, RouteInfoDriver
from .metrics import Sample, Snapshot, Window
from .server import ServerDriver, ServerInfo
from .service import ServiceLinks
from .state import DrainReport, RoutingState, StatefulServiceState
from .store import Store

__all__ = [
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
    "OperationTimeoutError",
    "OverloadedError",
    "PeerUnavailableError",
    "PermissionDeniedError",
    "PodIndexBusyError",
    "PodNotAvailableError",
    "PodNotFoundError",
    "PodlinkError",
    "Registration",
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
]
