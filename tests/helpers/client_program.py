"""One client as a program: `python -m helpers.client_program URL USERS REFRESH`.

It routes all its users again and again, and says after each round, as one line of JSON, when the
round began, how many answers named each pod, when the last one did, and which calls failed. A
line on its standard input makes it end with a last line: every user and the pod.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass

import podlink

# As many as a busy gateway has under way at a time.
WORKERS = 64


@dataclass
class Round:
    """What one round of all users brought."""

    began: float
    pods: dict[str, int]
    named: dict[int, float]
    errors: list[str]


async def one_round(client: podlink.ClientDriver, users: list[str]) -> Round:
    """Routes every user once."""
    told = Round(time.monotonic(), {}, {}, [])
    left = iter(users)

    async def work() -> None:
        for user in left:
            try:
                pod = await client.compute_linked_pod("default", user, "svc")
            except podlink.PodlinkError as error:
                told.errors.append(repr(error))
            else:
                told.pods[user] = pod
                told.named[pod] = time.monotonic()

    await asyncio.gather(*(work() for _ in range(WORKERS)))
    return told


async def _main(url: str, count: str, refresh: str) -> None:
    loop = asyncio.get_running_loop()
    ending = loop.run_in_executor(None, sys.stdin.readline)
    users = [f"player-{number}" for number in range(int(count))]
    store = podlink.Store(url)
    client = podlink.ClientDriver(
        store,
        "default",
        podlink.ClientConfig(timeout=60),
        route_info=podlink.RouteInfoConfig(refresh=float(refresh)),
    )
    last: dict[str, int] = {}
    while not ending.done():
        told = await one_round(client, users)
        last = told.pods
        print(json.dumps(asdict(told) | {"pods": Counter(last.values())}), flush=True)
        await asyncio.sleep(0)
    print(json.dumps({"users": last, "stats": client.stats()}), flush=True)
    await client.aclose()
    await store.aclose()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
