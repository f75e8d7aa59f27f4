"""Pods and their store are stopped and killed at random, and no user loses an update.

Five pods own sixty users by turns. A database that checks tokens records each of their acts, and
its history is judged. The same pods and faults with pod indexes alone must be found out.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from conftest import ServerFactory
from helpers.ownership_judge import Database, Load, Save, erases, judge
from helpers.owning_pod import Order
from helpers.programs import environment
from helpers.servers import Server, spawn
from helpers.wait import LATE, eventually_async

PODS = 5
USERS = [f"u{number}" for number in range(60)]
SEED = int(os.environ.get("PODLINK_TEST_SEED", "0")) or random.randrange(1, 2**31)

FAULTS_FOR = 42.0
TAKEOVER = 6.0
"""Lease and grace of the fast profile: after a kill, and after a pause of the store."""

# Deadlines that only a broken machine, or a pod that hangs, reaches.
_ENDS_WITHIN = 240.0


class Pod:
    """One place among the pods: the processes that have its index, one after the other."""

    def __init__(self, order: Order, folder: Path) -> None:
        self.order = order
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        holder = f"{self.order.index}.{len(self._processes)}"
        self.order = replace(self.order, holder=holder, seed=self.order.seed + 1000)
        command = [sys.executable, "-m", "helpers.owning_pod", str(self.order)]
        self._processes.append(spawn(command, self._folder / f"pod-{holder}.log"))
        return self._processes[-1]

    async def stopped_for(self, seconds: float) -> None:
        """Stops the process where it stands for a while."""
        self.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self.process.send_signal(signal.SIGCONT)

    async def killed(self, away: float = 0) -> None:
        """Kill -9, and a new process with the same index."""
        self.kill()
        await asyncio.sleep(away)
        self.process = self._start()

    async def replaced(self, seconds: float) -> None:
        """A new process has the index while the old one is stopped, and still when it wakes up."""
        old = self.process
        old.send_signal(signal.SIGSTOP)
        self.process = self._start()
        await asyncio.sleep(seconds)
        old.send_signal(signal.SIGCONT)
        await asyncio.sleep(seconds / 4)
        await self._ended(old)

    async def terminated(self) -> None:
        """SIGTERM: the pod drains; then a new process with the same index."""
        await self._ended(self.process)
        self.process = self._start()

    def kill(self) -> None:
        """Kill -9 to all its processes. Returns when they are gone."""
        for process in self._processes:
            process.kill()
            process.wait(_ENDS_WITHIN)

    def check(self) -> None:
        """No process has ended by itself."""
        assert self.process.poll() is None, self.log()

    def log(self) -> str:
        """What its processes have printed."""
        logs = sorted(self._folder.glob(f"pod-{self.order.index}.*.log"))
        return "\n".join(f"{log.name}: {log.read_text()}" for log in logs)

    async def end(self) -> None:
        """SIGTERM, and no new process."""
        await self._ended(self.process)

    async def _ended(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        code = await asyncio.to_thread(process.wait, _ENDS_WITHIN)
        # A process that is still being imported has no handler yet.
        assert code in {0, -signal.SIGTERM}, self.log()


@dataclass
class World:
    """Pods, their store, and the database that judges them."""

    store: Server
    database: Database
    pods: list[Pod]
    rng: random.Random
    killed: Pod | None = None
    thrown: Counter[str] = field(default_factory=Counter)
    _history: list[Load | Save] = field(default_factory=list)

    async def throw_faults(self) -> None:
        """Faults in every pod and in the store, until it is cancelled or the time is over."""
        until = time.monotonic() + FAULTS_FOR
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._fault_store(until))
            for pod in self.pods:
                tasks.create_task(self._fault_pod(pod, until))

    async def _fault_pod(self, pod: Pod, until: float) -> None:
        rng = random.Random(self.rng.random())
        while time.monotonic() < until:
            await asyncio.sleep(rng.uniform(0.5, 8))
            pod.check()
            (kind,) = rng.choices(["stop", "kill", "terminate", "replace"], [6, 2, 2, 2])
            self.thrown[kind] += 1
            match kind:
                case "stop":
                    await pod.stopped_for(rng.uniform(0.5, 15))
                case "kill":
                    await pod.killed(rng.uniform(0, 8))
                case "terminate":
                    await pod.terminated()
                case "replace":
                    await pod.replaced(rng.uniform(2, 15))

    async def _fault_store(self, until: float) -> None:
        rng = random.Random(self.rng.random())
        while time.monotonic() < until:
            await asyncio.sleep(rng.uniform(5, 15))
            (kind,) = rng.choices(["pause of the store", "restart of the store"], [2, 1])
            self.thrown[kind] += 1
            if kind == "pause of the store":
                self.store.pause()
            else:
                self.store.kill()
            await asyncio.sleep(rng.uniform(0.3, 6))
            if kind == "pause of the store":
                self.store.resume()
            else:
                # It has its data again: what it acknowledged was on disk.
                await asyncio.to_thread(self.store.restart)

    async def each_user_acted_for(self) -> None:
        """Waits until every user has had an act from now on."""
        await self._each(set(USERS), lambda step: isinstance(step, Save))

    async def takeover(self) -> float:
        """Kills the pod with the most users for good; returns after how long others have them."""
        last = {step.uid: step.holder for step in self.history() if step.allowed}
        owned = Counter(last.values())
        self.killed = max(self.pods, key=lambda pod: owned[pod.order.holder])
        self.killed.kill()
        killed = time.monotonic()
        last = {step.uid: step.holder for step in self.history() if step.allowed}
        left = {uid for uid, holder in last.items() if holder == self.killed.order.holder}
        assert left, self.killed.log()
        await self._each(left, lambda step: isinstance(step, Load))
        return time.monotonic() - killed

    async def _each(self, uids: set[str], counts: Callable[[Load | Save], bool]) -> None:
        """Waits until each of the users has had an accepted step that counts, from now on."""
        start, missing = len(self.history()), set(uids)

        def none_is_missing() -> bool:
            nonlocal start
            new = self.history()[start:]
            start += len(new)
            missing.difference_update(step.uid for step in new if step.allowed and counts(step))
            return not missing

        await eventually_async(none_is_missing, within=_ENDS_WITHIN)

    def history(self) -> list[Load | Save]:
        """What the database has seen so far."""
        self._history += self.database.history(len(self._history))
        return self._history


@asynccontextmanager
async def world(
    server_factory: ServerFactory,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    indexes_alone: bool = False,
) -> AsyncIterator[World]:
    """Five pods; at the end they are gone."""
    print(f"PODLINK_TEST_SEED={SEED}")
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    store, rows = server_factory(durable=True), server_factory()
    database = Database(rows.url)
    pods = [
        Pod(Order(store.url, rows.url, index, "", SEED + index, USERS, indexes_alone), folder)
        for index in range(PODS)
    ]
    try:
        yield World(store, database, pods, random.Random(SEED))
    finally:
        for pod in pods:
            pod.kill()
        database.client.close()


async def test_no_update_is_lost(
    server_factory: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(server_factory, tmp_path, monkeypatch) as it:
        await it.each_user_acted_for()
        await it.throw_faults()
        await it.each_user_acted_for()
        took = await it.takeover()
        verdict = judge(it.history())
        print(dict(it.thrown), f"takeover {took:.1f} s", it.database.outcomes(), verdict, sep="\n")
        rest = [pod for pod in it.pods if pod is not it.killed]
        for pod in rest:
            pod.check()
        assert not verdict.corrupt, verdict.corrupt[0]
        assert not verdict.believers, verdict.believers[0]
        assert not verdict.late_at_once, verdict.late_at_once[0]
        assert verdict.at_once > 0
        assert took < 2 * TAKEOVER + 6 * LATE
        assert "refused and yet verified" not in it.database.outcomes()
        for pod in rest:
            await pod.end()
        saves = judge(it.history()).saves
        assert {uid: it.database.value(uid) for uid in USERS} == saves


async def test_pod_indexes_alone_are_not_enough(
    server_factory: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(server_factory, tmp_path, monkeypatch, indexes_alone=True) as it:
        await it.each_user_acted_for()
        faults = asyncio.create_task(it.throw_faults())
        try:
            await eventually_async(lambda: any(map(erases, it.history())), within=_ENDS_WITHIN)
        finally:
            faults.cancel()
            await asyncio.wait([faults])
        verdict = judge(it.history())
        print(dict(it.thrown), verdict, verdict.corrupt[0], sep="\n")
