"""For tests of a service that uses podlink: pods and clients without a server or Kubernetes.

A :class:`World` is what the service lives in. By default its store is in memory, and everything
that podlink does there is the real thing: leases, links, owners, hooks, draining.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ._closeable import Closeable
from .callback import LoadFunction
from .client import ClientDriver
from .config import ClientConfig, RouteInfoConfig, ServerConfig
from .errors import IllegalStateError
from .info import RouteInfoDriver
from .server import ServerDriver
from .server_info import ServerInfo
from .state import DrainReport
from .store import Store

__all__ = ["World", "WorldPod"]

_SOON = RouteInfoConfig(refresh=0.05)
"""A client knows of a new pod at once."""

_PATIENT = ClientConfig(timeout=30)
"""A machine that is busy with other tests fails no call."""

_STEADY = ServerConfig(lease=60, renew=1, guard=1, gap=20, grace=20, cpu_factor=0, watchdog=None)
"""No lease ends because a test is slow, and the load is what the program says."""

_START = 5.0
"""How long a pod may take to start. A pod whose index is taken waits for as long."""


@dataclass(frozen=True, eq=False)
class WorldPod:
    """A pod that runs in a world.

    Attributes:
        server: its driver: hooks are registered here, and users are claimed.
    """

    server: ServerDriver

    async def stop(self, deadline: float = 30) -> DrainReport:
        """Stops the pod as a rolling restart does: drains it and withdraws it.

        Args:
            deadline: how long its hooks may take, in seconds.
        """
        return await self.server.stop(deadline=deadline)


class World(Closeable):
    """A store, and pods and clients of one namespace, closed together.

    Its settings are those that tests need: leases that no slow machine lets lapse, clients that
    know of a new pod within a twentieth of a second. Any call may name others.

    Args:
        url: the store; in memory, unless the test is to run on a server.
        namespace: that of the service.

    Example:
        >>> import asyncio
        >>> async def test_a_user_stays_on_its_pod() -> None:
        ...     async with World() as world:
        ...         for index in range(3):
        ...             await world.start_pod("user-service", index)
        ...         client = world.client()
        ...         first = await client.compute_linked_pod(None, "ann", "user-service")
        ...         assert await client.compute_linked_pod(None, "ann", "user-service") == first
        >>> asyncio.run(test_a_user_stays_on_its_pod())
    """

    def __init__(self, url: str = "memory://", *, namespace: str = "default") -> None:
        self.namespace: str = namespace
        self.store: Store = Store(url)
        self._pods: list[WorldPod] = []
        self._drivers: list[ClientDriver | RouteInfoDriver] = []
        self._closed = False

    def __repr__(self) -> str:
        return f"World(namespace={self.namespace!r}, pods={len(self._pods)})"

    async def start_pod(
        self,
        service_name: str,
        pod_index: int,
        *,
        config: ServerConfig | None = None,
        load: LoadFunction | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> WorldPod:
        """Starts a pod, and returns it when it takes users.

        Args:
            service_name: the stateful service.
            pod_index: the index of the pod; one that is stopped may be started again.
            config: settings in the place of the world's.
            load: what reports the pod's load, as for :class:`~podlink.ServerDriver`.
            metadata: what the pod says of itself, such as its ``address``.

        Raises:
            IllegalStateError: the world was closed.
            PodIndexBusyError: a pod with this index runs already.
        """
        self._check_open()
        info = ServerInfo(self.namespace, service_name, pod_index, metadata=metadata or {})
        pod = WorldPod(ServerDriver(self.store, info, config or _STEADY, load=load))
        await pod.server.start(timeout=_START)
        self._pods.append(pod)
        return pod

    def client(self, config: ClientConfig | None = None) -> ClientDriver:
        """Returns a new client driver with a cache of its own, as another gateway would have.

        Args:
            config: settings in the place of the world's.

        Raises:
            IllegalStateError: the world was closed.
        """
        self._check_open()
        client = ClientDriver(self.store, self.namespace, config or _PATIENT, route_info=_SOON)
        self._drivers.append(client)
        return client

    def info(self, config: RouteInfoConfig | None = None) -> RouteInfoDriver:
        """Returns a new route info driver.

        Args:
            config: settings in the place of the world's.

        Raises:
            IllegalStateError: the world was closed.
        """
        self._check_open()
        info = RouteInfoDriver(self.store, self.namespace, config or _SOON)
        self._drivers.append(info)
        return info

    async def aclose(self) -> None:
        """Stops the pods, closes all drivers, then the store. A second close does nothing. All are
        closed even if one fails; the first failure is raised then.
        """
        self._closed = True
        pods, self._pods = self._pods, []
        drivers, self._drivers = self._drivers, []
        failures: list[Exception] = []
        for close in (
            *(pod.server.aclose for pod in pods),
            *(driver.aclose for driver in drivers),
            self.store.aclose,
        ):
            try:
                await close()
            except Exception as error:  # noqa: BLE001 - kept, and raised below
                failures.append(error)
        if failures:
            raise failures[0]

    def _check_open(self) -> None:
        if self._closed:
            raise IllegalStateError("the world was closed")
