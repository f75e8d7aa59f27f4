"""Hooks, strategies, submits, cancels and signals for an hour: what a process holds stays the same.

    python benches/python/soak.py --minutes 60

One process on a real Valkey, with everything that podlink calls in a program. It writes a row a
minute and, in the end, whether the last third of the time differs from the second: a leak of one
object for each call would be seen. Not part of `all.py`; the figures are for benches/logs/soak.md.
"""

import argparse
import asyncio
import contextlib
import gc
import os
import random
import signal
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import psutil
from _store import NAMESPACE, SERVICE, Server, valkey

import podlink

USERS, PODS, TASKS = 2_000, 3, 16
FAST = podlink.ServerConfig.fast()
EVERY = 60.0
"""Seconds between two rows."""


class SoftLimit(Exception):  # noqa: N818 - what a task queue's is called
    """What the signal handler raises, wherever the main thread is."""


@dataclass(frozen=True)
class Row:
    """What the process has at a moment."""

    minutes: float
    resident_mb: float
    descriptors: int
    threads: int
    objects: int

    @classmethod
    def now(cls, began: float) -> "Row":
        """Measured after a collection, so that garbage is not taken for a leak."""
        gc.collect()
        process = psutil.Process()
        return cls(
            round((time.monotonic() - began) / 60, 2),
            round(process.memory_info().rss / 1e6, 2),
            process.num_fds(),
            threading.active_count(),
            len(gc.get_objects()),
        )


class Told:
    """The callback of a `submit`; now and then a slow one."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts

    def on_success(self, result: object, /) -> None:
        if random.random() < 0.01:
            time.sleep(0.05)
        self.counts["callbacks"] += 1

    def on_error(self, error: podlink.PodlinkError, /) -> None:
        self.counts["callback errors"] += 1


class Soak:
    """The program: pods with hooks, clients with strategies, and what goes wrong around them."""

    def __init__(self, server: Server, seconds: float) -> None:
        self.store = podlink.Store(server.url)
        self.counts: Counter[str] = Counter()
        self.until = time.monotonic() + seconds
        config = podlink.ClientConfig(strategy=self.choose, cache_ttl=5)
        self.client = podlink.ClientDriver(self.store, NAMESPACE, config)
        self.polled = podlink.ClientDriver(self.store, NAMESPACE, callbacks="poll")
        self.client.on_pod_lost(lambda *_: self.note("pod lost"))
        self.armed = False

    def note(self, what: str) -> None:
        self.counts[what] += 1

    def goes_on(self) -> bool:
        return time.monotonic() < self.until

    def choose(self, uid: str, candidates: Any) -> int:
        self.note("strategies")
        if random.random() < 0.02:
            time.sleep(0.02)
        return cast("int", candidates[hash(uid) % len(candidates)].pod_id)

    async def pod(self, index: int) -> None:
        """A pod that starts, owns users for some seconds, and stops; now and then it is dropped."""
        info = podlink.ServerInfo(NAMESPACE, SERVICE, index)
        server = podlink.ServerDriver(self.store, info, FAST, load=lambda: random.randrange(100))

        async def save(_user: podlink.Ownership) -> None:
            await asyncio.sleep(random.random() / 100)
            self.note("saved")
            if random.random() < 0.01:
                raise ValueError("on purpose")

        server.on_drain(save)
        server.on_lease_lost(lambda _why: self.note("lease lost"))
        server.on_ownership_lost(lambda *_: self.note("ownership lost"))
        await server.start(timeout=30)
        for _ in range(random.randrange(20, 60)):
            with contextlib.suppress(podlink.PodlinkError):
                await server.claim(None, f"u{random.randrange(USERS)}")
            await asyncio.sleep(0.02)
        await server.stop(deadline=random.choice((0.05, 5)))
        self.note("stops")

    async def compute(self) -> None:
        """Computes, some of which are cancelled at any moment."""
        for _ in range(200):
            uid = f"u{random.randrange(USERS)}"
            with contextlib.suppress(podlink.PodlinkError, TimeoutError):
                limit = random.choice((0.0005, 0.005, None, None))
                async with asyncio.timeout(limit or 30):
                    await self.client.compute_linked_pod(None, uid, SERVICE)
                    await self.client.get_linked_pod_not_cache(None, uid, SERVICE)
            self.note("computes")
            await asyncio.sleep(0.01)

    async def watch(self) -> None:
        """A route info driver with hooks and a reader, for some seconds."""
        async with podlink.RouteInfoDriver(self.store, NAMESPACE) as info:
            info.on_routing_state_changed(None, SERVICE)(self.changed)
            info.on_routing_state_changed(None, SERVICE)(lambda *_: self.note("changes"))
            read = info.changes(None, SERVICE, limit=5)
            with contextlib.suppress(podlink.OverloadedError, TimeoutError):
                async with asyncio.timeout(2):
                    async for _change in read:
                        self.note("changes read")
            info.remove_hook(self.changed)

    async def changed(self, *_arguments: object) -> None:
        await asyncio.sleep(0)
        self.note("updates")

    def submits(self) -> None:
        """The thread without a loop."""
        told = Told(self.counts)
        while self.goes_on():
            futures = []
            for driver in (self.client, self.polled):
                for _ in range(20):
                    uid = f"u{random.randrange(USERS)}"
                    future = driver.submit("compute_linked_pod", None, uid, SERVICE, callback=told)
                    future.add_done_callback(lambda _future: self.note("done callbacks"))
                    futures.append(future)
            for future in futures[::7]:
                future.cancel()
            self.polled.poll_callbacks()
            time.sleep(0.05)

    def fill(self, running: dict[str, asyncio.Task[None]]) -> None:
        """Replaces what has ended, or was ended by a signal."""
        for index in range(PODS):
            self.keep(running, f"pod {index}", lambda index=index: self.pod(index))  # type: ignore[misc]
        for number in range(TASKS):
            self.keep(running, f"compute {number}", self.compute)
        self.keep(running, "watch", self.watch)

    def keep(self, running: dict[str, asyncio.Task[None]], name: str, make: Any) -> None:
        task = running.get(name)
        if task is not None and not task.done():
            return
        if task is not None and not task.cancelled() and (error := task.exception()) is not None:
            self.note(f"ended by {type(error).__name__}")
        running[name] = asyncio.get_running_loop().create_task(make())

    async def supervise(self, running: dict[str, asyncio.Task[None]]) -> None:
        while self.goes_on():
            self.fill(running)
            await asyncio.sleep(0.1)

    def turn(self, loop: asyncio.AbstractEventLoop, running: dict[str, asyncio.Task[None]]) -> None:
        """Runs the loop for a while, with signals at random moments.

        A signal may hit asyncio itself, which then loses one callback, perhaps the timeout's.
        So the signals go on until the loop has ended.
        """
        try:
            self.armed = True
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.01, 0.5), 0.5)
            with contextlib.suppress(TimeoutError):
                loop.run_until_complete(asyncio.wait_for(self.supervise(running), 0.4))
        finally:
            self.armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def run(self) -> list[Row]:
        """Runs it all on this thread, which the signals interrupt; returns the rows."""
        began, rows = time.monotonic(), list[Row]()
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_context: self.note("interrupted callbacks"))
        thread = threading.Thread(target=self.submits, name="submits")
        running: dict[str, asyncio.Task[None]] = {}
        thread.start()

        def interrupt(*_frame: object) -> None:
            if self.armed:
                self.note("signals")
                raise SoftLimit

        signal.signal(signal.SIGALRM, interrupt)
        due = began + EVERY
        while self.goes_on():
            try:
                self.turn(loop, running)
            except SoftLimit:
                self.note("interrupted loops")
            if time.monotonic() >= due:
                due += EVERY
                rows.append(Row.now(began))
                print(rows[-1], flush=True)
        thread.join()
        for task in running.values():
            task.cancel()
        loop.run_until_complete(asyncio.wait(running.values(), timeout=30))
        loop.run_until_complete(self.client.aclose())
        loop.run_until_complete(self.polled.aclose())
        loop.run_until_complete(self.store.aclose())
        loop.close()
        return rows


def judge(rows: list[Row]) -> None:
    """Compares the last third of the time with the second."""
    third = len(rows) // 3
    if third == 0:
        return  # too short to compare
    for name in ("resident_mb", "descriptors", "threads", "objects"):
        parts = (rows[third : 2 * third], rows[-third:])
        middle, last = (statistics.median(getattr(row, name) for row in part) for part in parts)
        highest = max(getattr(row, name) for row in rows)
        print(f"{name}: {middle:g} -> {last:g} ({last / middle:.3f}), highest {highest:g}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--minutes", type=float, default=60)
    minutes = arguments.parse_args().minutes
    random.seed(14)
    with valkey() as server:
        soak = Soak(server, minutes * 60)
        rows = soak.run()
    judge(rows)
    for name, count in sorted(soak.counts.items()):
        print(f"{name}: {count}")
    print(f"ended, process {os.getpid()}: {Row.now(time.monotonic())}")


if __name__ == "__main__":
    main()
