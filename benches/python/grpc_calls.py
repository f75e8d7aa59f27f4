"""set-if-absent over gRPC: podlink's client beside grpc.aio, both calling the same podlink server.

    python benches/python/grpc_calls.py

The server is a process of its own, `podlink serve`, on the in-memory store, so that what is
measured is the way there and back. Build with `maturin develop --release` first.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import grpc

import podlink
from helpers.grpc_servers import Serve
from helpers.wire import third_party

SECONDS = 2.0
TASKS = (1, 64, 256)

Call = Callable[[str], Awaitable[object]]


async def rate(call: Call, tasks: int) -> float:
    """Calls a second, made by so many tasks one after the other each."""
    calls, until = 0, time.perf_counter() + SECONDS

    async def work(task: int) -> None:
        nonlocal calls
        number = 0
        while time.perf_counter() < until:
            await call(f"u{task}-{number % 1000}")
            calls, number = calls + 1, number + 1

    await asyncio.gather(*(work(task) for task in range(min(tasks, 8))))  # warm
    calls, until = 0, time.perf_counter() + SECONDS
    began = time.perf_counter()
    await asyncio.gather(*(work(task) for task in range(tasks)))
    return calls / (time.perf_counter() - began)


async def main() -> None:
    wire = third_party()
    messages = wire.messages
    with Serve("memory://", "--peer-rate", "1000000") as server:
        async with (
            podlink.RouteGrpcClient(server.url, namespace="prod") as client,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            stub = wire.stub(channel)

            async def ours(uid: str) -> object:
                return await client.set_linked_pod_if_absent(None, uid, "svc", 0)

            async def theirs(uid: str) -> object:
                user = messages.User(namespace="prod", uid=uid, service_name="svc")
                request = messages.SetLinkedPodIfAbsentRequest(user=user, pod_index=0)
                return await stub.SetLinkedPodIfAbsent(request, timeout=2)

            print(f"{'tasks':>6} {'podlink':>10} {'grpc.aio':>10} {'times':>6}")
            for tasks in TASKS:
                a, b = await rate(ours, tasks), await rate(theirs, tasks)
                print(f"{tasks:>6} {a:>10.0f} {b:>10.0f} {a / b:>6.1f}")


if __name__ == "__main__":
    asyncio.run(main())
