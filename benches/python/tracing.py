"""What tracing costs, off, on but not sampled, and on: a call of the store, a cached compute.

    python benches/python/tracing.py

The store is in memory, so that the share of tracing is as large as it can be. Not part of
`all.py`: it needs opentelemetry-sdk, and stands for no line of the table.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

from _harness import Contender, interleave
from _results import QUICK
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler

import podlink
import podlink.otel

CALLS = 500 if QUICK else 2_000
ROUNDS = 7

Call = Callable[[int], Awaitable[object]]


def measure(runner: asyncio.Runner, sampler: Sampler | None, call: Call) -> float:
    """Nanoseconds per call, one at a time, until the spans are made, too."""
    if sampler is None:
        podlink.otel.disable()
    else:
        podlink.otel.enable(TracerProvider(sampler=ParentBased(sampler)))

    async def ask() -> None:
        for at in range(CALLS):
            await call(at)

    began = time.perf_counter()
    runner.run(ask())
    podlink.otel.flush()
    return (time.perf_counter() - began) / CALLS * 1e9


async def stand(connection: podlink.Connection) -> None:
    """Starts a pod, and waits until a user is cached."""
    await connection.server(podlink.ServerInfo("default", "svc", 0)).start()
    await connection.client.compute_linked_pod(None, "u0", "svc")


def main() -> None:
    """Measures and prints."""
    with asyncio.Runner() as runner:
        connection = podlink.connect(namespace="default")
        runner.run(stand(connection))
        client = connection.client
        calls: dict[str, Call] = {
            "get_linked_pod_not_cache": lambda at: client.get_linked_pod_not_cache(
                None, f"u{at}", "svc"
            ),
            "cached compute_linked_pod": lambda at: client.compute_linked_pod(None, "u0", "svc"),
        }
        samplers = {"off": None, "on, not sampled": ALWAYS_OFF, "on, sampled": ALWAYS_ON}
        contenders = [
            Contender(f"{what}, {how}", partial(measure, runner, sampler, call))
            for what, call in calls.items()
            for how, sampler in samplers.items()
        ]
        interleave("tracing", contenders, ROUNDS)
        for each in contenders:
            figures = sorted(each.figures)
            middle = figures[len(figures) // 2]
            print(f"{each.name:48} {middle:10.0f} ns ({figures[0]:.0f} to {figures[-1]:.0f})")
        runner.run(connection.aclose())


if __name__ == "__main__":
    main()
