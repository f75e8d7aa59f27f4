"""A store and its drivers with one lifecycle."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Literal

from ._closeable import Closeable
from .client import ClientDriver
from .config import ClientConfig, RouteInfoConfig, ServerConfig
from .errors import InvalidParameterTypeError
from .grpc_client import RouteGrpcClient
from .info import RouteInfoDriver
from .server import ServerDriver
from .server_info import ServerInfo
from .store import Store, StoreOption

if TYPE_CHECKING:
    from .metrics import Snapshot

__all__ = ["Connection", "connect"]


class Connection(Closeable):
    """A store, a client driver, a route info driver and any number of server drivers; made by
    :func:`connect`.

    Attributes:
        store: the store.
        info: a route info driver, shared with the client.
        client: a client driver.
    """

    def __init__(
        self,
        store: Store,
        info: RouteInfoDriver,
        client: ClientDriver,
        *,
        callbacks: Literal["thread", "poll"] = "thread",
        peers: Mapping[str, RouteGrpcClient] | None = None,
    ) -> None:
        self.store = store
        self.info = info
        self.client = client
        self._callbacks = callbacks
        self._peers = peers
        self._servers: list[ServerDriver] = []

    def __repr__(self) -> str:
        return f"Connection({self.store.url!r}, namespace={self.client.namespace!r})"

    @property
    def is_closed(self) -> bool:
        """Whether the connection was closed: its store is the last that ``aclose`` closes."""
        return self.store.is_closed

    def server(
        self,
        server_info: ServerInfo,
        config: ServerConfig | None = None,
        load: Callable[[], int | Awaitable[int]] | None = None,
        *,
        callbacks: Literal["thread", "poll"] | None = None,
        peers: Mapping[str, RouteGrpcClient] | None = None,
    ) -> ServerDriver:
        """A server driver on this store, stopped by ``aclose`` at the latest. Not started yet.

        Args:
            server_info: the pod's identity.
            config: the driver's settings.
            load: returns the load that the pod reports; see :class:`~podlink.ServerDriver`.
            callbacks: ``None``: as :func:`connect` was called with.
            peers: ``None``: those that :func:`connect` was called with.

        Raises:
            InvalidParameterError: an argument is wrong.
        """
        server = ServerDriver(
            self.store,
            server_info,
            config,
            load,
            callbacks=self._callbacks if callbacks is None else callbacks,
            peers=self._peers if peers is None else peers,
        )
        self._servers.append(server)
        return server

    def metrics_text(self) -> str:
        """Returns the metrics of all drivers as OpenMetrics text; see ``Store.metrics_text``."""
        return self.store.metrics_text()

    def stats(self) -> Snapshot:
        """Returns what all drivers have counted, and how much of it lately; see ``Store.stats``."""
        return self.store.stats()

    async def aclose(self) -> None:
        """Stops the servers, closes the client, the route info driver, then the store.

        A second close does nothing. All are closed even if one fails; the first failure is
        raised then.
        """
        failures: list[BaseException] = []
        servers, self._servers = self._servers, []
        for close in (
            *(server.aclose for server in servers),
            self.client.aclose,
            self.info.aclose,
            self.store.aclose,
        ):
            try:
                await close()
            except Exception as error:  # noqa: BLE001 - kept, and raised below
                failures.append(error)
        if failures:
            raise failures[0]


def store_of(source: object) -> Store:
    """The store of an object that has one: a store, or a connection."""
    store = source.store if isinstance(source, Connection) else source
    if isinstance(store, Store):
        return store
    given, allowed = type(source).__name__, "a Store or a Connection"
    raise InvalidParameterTypeError(
        f"source must be {allowed}, got {given}",
        details={"parameter": "source", "given": given, "allowed": allowed},
    )


def connect(
    url: str = "memory://",
    *,
    namespace: str = "default",
    config: ClientConfig | None = None,
    route_info: RouteInfoConfig | None = None,
    callbacks: Literal["thread", "poll"] = "thread",
    peers: Mapping[str, RouteGrpcClient] | None = None,
    **options: StoreOption,
) -> Connection:
    """Bundles a store and the drivers on it. No I/O: the first call connects.

    Args:
        url: where the store is; see :class:`~podlink.Store`.
        namespace: the drivers' namespace.
        config: the client driver's settings.
        route_info: the route info driver's settings.
        callbacks: what runs the callbacks of every driver's ``submit``; see
            :class:`~podlink.ClientDriver`.
        peers: the clients of other namespaces, by name, for every driver. They are not closed with
            the connection.
        options: the store's options.

    Raises:
        InvalidParameterError: an argument is wrong.

    Example:
        >>> async def route() -> int:
        ...     async with connect("redis://cache", namespace="prod") as connection:
        ...         compute = connection.client.compute_linked_pod
        ...         return await compute("prod", "user123", "user-service")
    """
    store = Store(url, **options)
    info = RouteInfoDriver(store, namespace, route_info, callbacks=callbacks, peers=peers)
    client = ClientDriver(
        store, namespace, config, route_info=info, callbacks=callbacks, peers=peers
    )
    return Connection(store, info, client, callbacks=callbacks, peers=peers)
