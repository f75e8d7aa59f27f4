"""set-if-absent over gRPC: podlink's client beside grpc.aio, both calling the same podlink server.

    python benches/python/grpc_calls.py

The server is a process of its own, `podlink serve`, on the in-memory store, so that what is
measured is the way there and back. On few cores it takes its share of them, from both clients
alike; so beside the calls a second there is what the calls cost the client's own process in CPU
time, and the server's. Build with `maturin develop --release` first.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import grpc
import psutil
from _harness import Contender, interleave
from _results import CPU, QUICK, Results, rounds

import podlink
from helpers.grpc_servers import Serve
from helpers.wire import third_party

SECONDS = 0.3 if QUICK else 1.0
ROUNDS = 11
TASKS = (1, 64, 256)

UNIT = "calls/s"

Call = Callable[[str], Awaitable[object]]


class Client:
    """One way to call the server, and what the server spent on it."""

    def __init__(self, name: str, call: Call, runner: asyncio.Runner, server: int) -> None:
        self.name, self._call, self._runner = name, call, runner
        self._server = psutil.Process(server)
        self.server_cpu: list[float] = []

    def measure(self, tasks: int) -> tuple[float, float]:
        """Calls a second, and CPU seconds of a million calls, made by so many tasks one after the
        other each.
        """
        served, worked, began = self._served(), time.process_time(), time.perf_counter()
        calls = self._runner.run(self._calls(tasks, began + SECONDS))
        took, worked = time.perf_counter() - began, time.process_time() - worked
        self.server_cpu.append((self._served() - served) / calls * 1e6)
        return calls / took, worked / calls * 1e6

    async def _calls(self, tasks: int, until: float) -> int:
        calls = 0

        async def work(task: int) -> None:
            nonlocal calls
            number = 0
            while time.perf_counter() < until:
                await self._call(f"u{task}-{number % 1000}")
                calls, number = calls + 1, number + 1

        await asyncio.gather(*(work(task) for task in range(tasks)))
        return calls

    def _served(self) -> float:
        times = self._server.cpu_times()
        return float(times.user + times.system)


def compare(tasks: int, clients: list[Client], results: Results) -> None:
    """Measures all clients in turn with so many tasks."""
    contenders = [
        Contender(each.name, partial(each.measure, tasks), {"tasks": tasks}, UNIT)
        for each in clients
    ]
    for client in clients:
        client.server_cpu.clear()
    interleave(f"gRPC, {tasks} tasks", contenders, rounds(ROUNDS))
    results.add_all(contenders)
    for client in clients:
        # The first round warmed up.
        results.add("podlink serve", CPU, client.server_cpu[1:], tasks=tasks, called_by=client.name)


def main() -> None:
    results = Results("grpc_calls", "podlink", "grpcio")
    wire = third_party()
    messages = wire.messages
    with Serve("memory://", "--peer-rate", "1000000") as server, asyncio.Runner() as runner:
        ours = podlink.RouteGrpcClient(server.url, namespace="prod")

        async def connect() -> grpc.aio.Channel:
            return grpc.aio.insecure_channel(server.address)

        channel = runner.run(connect())
        stub = wire.stub(channel)

        async def podlink_call(uid: str) -> object:
            return await ours.set_linked_pod_if_absent(None, uid, "svc", 0)

        async def grpc_call(uid: str) -> object:
            user = messages.User(namespace="prod", uid=uid, service_name="svc")
            request = messages.SetLinkedPodIfAbsentRequest(user=user, pod_index=0)
            return await stub.SetLinkedPodIfAbsent(request, timeout=2)

        clients = [
            Client("podlink", podlink_call, runner, server.pid),
            Client("grpc.aio", grpc_call, runner, server.pid),
        ]
        for tasks in TASKS:
            compare(tasks, clients, results)
        runner.run(ours.aclose())
        runner.run(channel.close())
    results.write()


if __name__ == "__main__":
    main()
