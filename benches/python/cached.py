"""What a cached `await compute_linked_pod` costs, beside what a program would write instead.

    python benches/python/cached.py

The peers know the answer beforehand and check nothing; podlink checks on each call that the link
is still valid, that its pod is available and that it is still the same process, and counts it.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from functools import partial

import _harness

import podlink

NAMESPACE, SERVICE = "bench", "user-service"
USERS = 100_000
CALLS = 100_000
ROUNDS = 9

Lookup = Callable[[str, str, str], Awaitable[int | None]]


async def nanoseconds(lookup: Lookup, uids: Sequence[str]) -> float:
    """Nanoseconds per await, the loop around it included."""
    began = time.perf_counter_ns()
    for uid in uids:
        await lookup(NAMESPACE, uid, SERVICE)
    return (time.perf_counter_ns() - began) / len(uids)


async def fill(client: podlink.ClientDriver, uids: Sequence[str]) -> dict[str, int]:
    """Places all users, a thousand at a time, and returns their pods."""
    pods: dict[str, int] = {}
    for start in range(0, len(uids), 1000):
        some = uids[start : start + 1000]
        answers = (client.compute_linked_pod(NAMESPACE, uid, SERVICE) for uid in some)
        pods.update(zip(some, await asyncio.gather(*answers), strict=True))
    return pods


def peers(pods: dict[str, int]) -> dict[str, Lookup]:
    """What a program without podlink would await."""
    links = {(NAMESPACE, uid, SERVICE): pod for uid, pod in pods.items()}

    async def dict_of_triples(namespace: str, uid: str, service: str) -> int | None:
        return links.get((namespace, uid, service))

    async def dict_of_uids(namespace: str, uid: str, service: str) -> int | None:
        return pods.get(uid)

    found: dict[str, Lookup] = {
        "dict, key (namespace, uid, service)": dict_of_triples,
        "dict, key uid": dict_of_uids,
    }
    try:
        from cachetools import TTLCache  # type: ignore[import-untyped]
    except ImportError:
        print("Without cachetools.TTLCache: `pip install cachetools` adds it.\n")
        return found
    cache: MutableMapping[tuple[str, str, str], int] = TTLCache(maxsize=1_000_000, ttl=240)
    cache.update(links)

    async def ttl_cache(namespace: str, uid: str, service: str) -> int | None:
        return cache.get((namespace, uid, service))

    return found | {"cachetools.TTLCache": ttl_cache}


def once(runner: asyncio.Runner, lookup: Lookup, uids: Sequence[str]) -> float:
    return runner.run(nanoseconds(lookup, uids))


def measure(runner: asyncio.Runner, lookups: dict[str, Lookup], uids: Sequence[str]) -> None:
    """Measures all lookups over these users and prints the table."""
    contenders = [
        _harness.Contender(name, partial(once, runner, lookup, uids))
        for name, lookup in lookups.items()
    ]
    different = len(set(uids))
    users = f"{different:,} users at random" if different > 1 else "one user"
    _harness.interleave(f"cached, {users}", contenders, ROUNDS)
    own = contenders[0].median
    rows = [
        [each.name, f"{each.median:,.0f}", each.spread, f"{own / each.median:.2f}"]
        for each in contenders
    ]
    print(f"Cached, {users}:\n")
    _harness.table(["await of", "ns per call", "spread", "podlink ÷ this"], rows)


def main() -> None:
    _harness.describe("podlink", "cachetools")
    everybody = [f"user-{number:08}" for number in range(USERS)]
    # No deterministic order: a cache that is read in the order of its making looks better.
    shuffled = random.Random(1).choices(everybody, k=CALLS)
    with asyncio.Runner() as runner:
        connection = podlink.connect("memory://", namespace=NAMESPACE)
        client = connection.client
        server = connection.server(podlink.ServerInfo(NAMESPACE, SERVICE, 0))
        runner.run(server.start())
        lookups = peers(runner.run(fill(client, everybody)))
        lookups = {"podlink compute_linked_pod": client.compute_linked_pod} | lookups
        asked = client.stats()
        measure(runner, lookups, [everybody[0]] * CALLS)
        measure(runner, lookups, shuffled)
        answered = client.stats()
        hits, misses = (answered[name] - asked[name] for name in ("cache_hits", "cache_misses"))
        print(f"podlink answered {hits:,} calls from its cache and {misses:,} from its store.")
        runner.run(connection.aclose())


if __name__ == "__main__":
    main()
