# What `__init__.py` loads on first use, for type checkers and editors.

from . import (
    admin as admin,
    callback as callback,
    changes as changes,
    client as client,
    config as config,
    connection as connection,
    errors as errors,
    grpc_client as grpc_client,
    grpc_server as grpc_server,
    info as info,
    metrics as metrics,
    otel as otel,
    ownership as ownership,
    prometheus as prometheus,
    route as route,
    server as server,
    server_info as server_info,
    service as service,
    state as state,
    store as store,
    testing as testing,
)
from ._logs import hash_uid as hash_uid
from ._podlink import __version__ as __version__
from .admin import AdminServer as AdminServer
from .callback import (
    Registration as Registration,
    StatefulObjCallback as StatefulObjCallback,
    hook_deadline as hook_deadline,
)
from .changes import StateChange as StateChange, StateChanges as StateChanges
from .client import ClientDriver as ClientDriver
from .config import (
    ClientConfig as ClientConfig,
    GrpcClientConfig as GrpcClientConfig,
    GrpcServerConfig as GrpcServerConfig,
    RouteInfoConfig as RouteInfoConfig,
    ServerConfig as ServerConfig,
)
from .connection import Connection as Connection, connect as connect
from .errors import (
    ClosedError as ClosedError,
    ForkedProcessError as ForkedProcessError,
    IllegalStateError as IllegalStateError,
    InternalError as InternalError,
    InvalidParameterError as InvalidParameterError,
    InvalidParameterTypeError as InvalidParameterTypeError,
    LeaseLostError as LeaseLostError,
    NamespaceUnreachableError as NamespaceUnreachableError,
    NoRoutablePodError as NoRoutablePodError,
    NotOwnerError as NotOwnerError,
    OperationTimeoutError as OperationTimeoutError,
    OutOfResourcesError as OutOfResourcesError,
    OverloadedError as OverloadedError,
    OwnershipLostError as OwnershipLostError,
    PeerUnavailableError as PeerUnavailableError,
    PermissionDeniedError as PermissionDeniedError,
    PodIndexBusyError as PodIndexBusyError,
    PodlinkError as PodlinkError,
    PodNotAvailableError as PodNotAvailableError,
    PodNotFoundError as PodNotFoundError,
    ServiceNotFoundError as ServiceNotFoundError,
    StoreAuthenticationError as StoreAuthenticationError,
    StoreDataError as StoreDataError,
    StoreError as StoreError,
    StoreUnavailableError as StoreUnavailableError,
)
from .grpc_client import RouteGrpcClient as RouteGrpcClient
from .grpc_server import RouteGrpcServer as RouteGrpcServer
from .info import RouteInfoDriver as RouteInfoDriver
from .metrics import Sample as Sample, Snapshot as Snapshot, Window as Window
from .ownership import Ownership as Ownership
from .route import Route as Route
from .server import ServerDriver as ServerDriver
from .server_info import ServerInfo as ServerInfo
from .service import ServiceLinks as ServiceLinks
from .state import (
    DrainReport as DrainReport,
    RoutingState as RoutingState,
    StatefulServiceState as StatefulServiceState,
)
from .store import Store as Store
