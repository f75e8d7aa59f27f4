"""A game in which everything happens that metrics count, and an address where they can be scraped.

async with busy_game(server) as game:       # a server of its own: the game pauses it once
    await game.everything()
    urlopen(game.url)
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import podlink
from helpers.metrics_page import metrics_at
from helpers.pods import FRESH, NAMESPACE, QUICK, SERVICE, PodProcess, pod_info
from helpers.servers import Server
from helpers.wait import eventually_async

FAR = "prod"


@dataclass
class Game:
    """Pods, clients and another namespace."""

    server: Server
    store: podlink.Store
    client: podlink.ClientDriver
    pods: list[podlink.ServerDriver]
    address: str
    users: int = 0

    async def everything(self) -> None:
        """Let everything happen once."""
        await self.play()
        await self._a_pod_dies()
        await self._pods_stop()
        await self._nobody_is_there()
        await self._the_store_hangs()
        await self.play()

    async def play(self) -> None:
        """Users come, and come again."""
        names = [f"u{self.users + number}" for number in range(20)]
        self.users += len(names)
        compute = self.client.compute_linked_pod
        for _ in range(2):
            await asyncio.gather(*(compute(None, name, SERVICE) for name in names))
            await compute(FAR, names[0], SERVICE)

    async def _a_pod_dies(self) -> None:
        with PodProcess(self.server.url, 7) as killed:
            await self.pods[0].set_linked_pod(None, "orphan", SERVICE, 7)
            assert await self.client.compute_linked_pod(None, "orphan", SERVICE) == 7
            killed.kill()

            async def moved() -> bool:
                return await self.client.compute_linked_pod(None, "orphan", SERVICE) != 7

            await eventually_async(moved, within=30)

    async def _pods_stop(self) -> None:
        for pod, drain in zip(self.pods[1:], ("release", "handover"), strict=True):
            index = self.pods.index(pod)
            won, _ = await pod.try_set_linked_pod(None, f"owned{index}", SERVICE, index)
            assert won
            await pod.stop(drain=drain)  # type: ignore[arg-type]

    async def _nobody_is_there(self) -> None:
        with contextlib.suppress(podlink.NoRoutablePodError):
            await self.client.compute_linked_pod(None, "u0", "empty")

    async def _the_store_hangs(self) -> None:
        self.server.pause()
        try:
            with contextlib.suppress(podlink.PodlinkError):
                await self.pods[0].set_linked_pod(None, "late", SERVICE, 0, timeout=0.3)
        finally:
            self.server.resume()


@asynccontextmanager
async def busy_game(server: Server) -> AsyncIterator[Game]:
    """A game on this server, which must be the test's own."""
    chosen: list[str] = []

    def strategy(uid: str, candidates: Sequence[Any]) -> int:
        chosen.append(uid)
        if len(chosen) == 1:
            raise ValueError("the first time goes wrong")
        return int(candidates[len(chosen) % len(candidates)].pod_id)

    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        store = await enter(podlink.Store(server.url))
        far = await enter(podlink.Store("memory://"))
        await enter(podlink.ServerDriver(far, podlink.ServerInfo(FAR, SERVICE, 0), QUICK))
        serving = await enter(podlink.RouteGrpcServer(far, FAR, authorize=[("*", "*", FAR)]))
        peer = await enter(podlink.RouteGrpcClient(f"grpc://{serving.address}"))
        # Misses go on: answers are soon forgotten.
        config = podlink.ClientConfig(strategy=strategy, cache_ttl=0.5, timeout=5)
        pods = [
            await enter(podlink.ServerDriver(store, pod_info(index), QUICK, load=lambda: 3))
            for index in range(3)
        ]
        client = podlink.ClientDriver(store, NAMESPACE, config, route_info=FRESH, peers={FAR: peer})
        await enter(client)
        for pod in pods:
            pod.on_drain(lambda uid: None)
        address = stack.enter_context(metrics_at(store.metrics_text))
        yield Game(server, store, client, pods, address)
