"""What the demo runs on: the pods, the clients, and what the store has of both."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from podlink import (
    ClientConfig,
    ClientDriver,
    RouteInfoConfig,
    RouteInfoDriver,
    ServerConfig,
    ServerInfo,
    StatefulServiceState,
    Store,
)
from podlink.config import seconds

from .pods import LocalPod, Pod, ProcessPod
from .users import Users

__all__ = ["CLIENTS", "SERVICE", "Settings", "Stage"]

SERVICE = "game"
CLIENTS = 2

# So many links are read from the store at a time.
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Settings:
    """What is to be shown.

    Attributes:
        store: the store's URL.
        pods: how many pods; at least 2, for the users of a drained one need another.
        users: how many users come at first.
        kill: how many pods are killed, from pod 1 on and pod 0 last. If none is left the users
            cannot be saved, and the demo must say so.
        client: the clients' settings.
        route_info: the settings of the clients' route info.
        server: the pods' settings.
    """

    store: str = "memory://"
    pods: int = 4
    users: int = 2000
    kill: int = 1
    client: ClientConfig = field(default_factory=ClientConfig)
    route_info: RouteInfoConfig = field(default_factory=lambda: RouteInfoConfig(refresh=0.5))
    server: ServerConfig = field(
        # Nothing but the users counts as load, so that loads and users can be compared.
        default_factory=lambda: replace(ServerConfig.fast(), cpu_factor=0.0)
    )


class Stage:
    """The pods and clients of one demo, in a namespace of their own.

    Attributes:
        namespace: the namespace.
        pods: the pods that run, by index.
        users: the users, and the clients that route them.
        in_processes: whether each pod has a process of its own; a memory store allows none.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self.namespace: str = f"podlink-demo-{secrets.token_hex(4)}"
        self.in_processes: bool = not store.url.startswith("memory:")
        self.pods: dict[int, Pod] = {}
        self._settings = settings
        self._store = store
        clients = [
            ClientDriver(store, self.namespace, settings.client, route_info=settings.route_info)
            for _ in range(CLIENTS)
        ]
        self.users: Users = Users(clients, self.pods, SERVICE)
        self._info = RouteInfoDriver(store, self.namespace, settings.route_info)

    async def start_pods(self) -> None:
        """Starts every pod, all at once.

        Raises:
            PodlinkError: a pod could not start.
        """
        starts = [self.start_pod(index) for index in range(self._settings.pods)]
        for outcome in await asyncio.gather(*starts, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def start_pod(self, index: int) -> int:
        """Starts one pod; returns its incarnation."""
        info = ServerInfo(self.namespace, SERVICE, index)
        pod: Pod
        if self.in_processes:
            pod = ProcessPod(self._settings.store, info, self._settings.server)
        else:
            pod = LocalPod(self._store, info, self._settings.server)
        self.pods[index] = pod
        return await pod.start()

    async def alive(self) -> set[int]:
        """The pods that run and may act for their users, by their own answer."""
        return {index for index, pod in self.pods.items() if await pod.is_alive()}

    async def links(self, uids: Sequence[str]) -> dict[str, int]:
        """The users' pods as the store has them; users without a link are left out."""
        found: dict[str, int] = {}
        batch = self.users.clients[0].batch_get_linked_pod
        for start in range(0, len(uids), _BATCH):
            users = await batch(None, uids[start : start + _BATCH], SERVICE)
            found |= {uid: pod for pod, linked in users.items() for uid in linked}
        return found

    async def published(self) -> dict[int, StatefulServiceState]:
        """The pods' states as the store has them, once all loads are published.

        A load is published with the next renewal; after two periods what is there is taken.
        """
        loop = asyncio.get_running_loop()
        limit = loop.time() + 2 * seconds(self._settings.server.renew)
        loads = {index: len(self.users.living_on([index])) for index in self.pods}
        while True:
            states = await self._info.get_all_service_state(None, SERVICE)
            known = {index: state.load_state for index, state in states.items()}
            if loads.items() <= known.items() or loop.time() > limit:
                return states
            await asyncio.sleep(seconds(self._settings.route_info.refresh) / 4)

    async def close(self) -> None:
        """Ends the pods, cleanly where they can, and the drivers."""
        await asyncio.gather(*(pod.close() for pod in self.pods.values()))
        for client in self.users.clients:
            await client.aclose()
        await self._info.aclose()
