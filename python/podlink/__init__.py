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

``import podlink`` is nearly free: each name is loaded when it is first used, and with it what it
needs, asyncio among it. To keep that off a running event loop, use the names before the loop runs,
as ``from podlink import connect`` does.
"""

from . import _process as _process

_MODULES = {
    "_bridge": (),
    "_hooks": (),
    "_logs": ("hash_uid",),
    "_podlink": ("__version__",),
    "admin": ("AdminServer",),
    "callback": ("Registration", "StatefulObjCallback", "hook_deadline"),
    "changes": ("StateChange", "StateChanges"),
    "client": ("ClientDriver",),
    "config": (
        "ClientConfig",
        "GrpcClientConfig",
        "GrpcServerConfig",
        "RouteInfoConfig",
        "ServerConfig",
    ),
    "connection": ("Connection", "connect"),
    "errors": (
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
    ),
    "grpc_client": ("RouteGrpcClient",),
    "grpc_server": ("RouteGrpcServer",),
    "info": ("RouteInfoDriver",),
    "metrics": ("Sample", "Snapshot", "Window"),
    "otel": (),
    "ownership": ("Ownership",),
    "prometheus": (),
    "route": ("Route",),
    "server": ("ServerDriver",),
    "server_info": ("ServerInfo",),
    "service": ("ServiceLinks",),
    "state": ("DrainReport", "RoutingState", "StatefulServiceState"),
    "store": ("Store",),
    "testing": (),
}
"""The modules that are there without being imported by name, and the public names of each. The one
list of public names; ``__init__.pyi`` is the same for type checkers and editors. ``otel`` and
``prometheus`` need an extra: where it is missing, they raise an ``ImportError`` that names it.
"""

__all__ = sorted(name for names in _MODULES.values() for name in names)

_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Loads a name that is used for the first time, and keeps it for the next."""
    # Whole, before any module of ours: `dataclasses` looks into a `typing` that another thread is
    # still importing.
    import typing  # noqa: F401
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"{__name__}.{name}")  # which keeps it
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
