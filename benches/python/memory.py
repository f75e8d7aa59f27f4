"""What remembering a link costs, in memory and in time, from a thousand links to ten million.

    python benches/python/memory.py

Each figure comes from a process of its own: its resident memory before and after it remembers the
links, and then `await`s of users at random among them. The names are made on the way and given up
by the caller; what keeps them, pays for them. A dict and cachetools keep (namespace, user,
service).
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial

from _fresh import child, in_fresh_process, resident_bytes
from _harness import Progress
from _ids import realistic, some
from _results import QUICK, Results, rounds

import podlink

NAMESPACE, SERVICE = "bench", "user-service"
CALLS, WARMING = 100_000, 10_000
LINKS = [1_000, 10_000, 100_000, 1_000_000, *([] if QUICK else [10_000_000])]
BOUND = 1_000_000
SPARE = 4
"""A cache that is to keep all links gets room for a quarter more."""
ROUNDS = 3
SEVERAL = {100_000, 1_000_000}
"""How many links are measured in several processes; for the rest of the curve one is enough."""
MOST_FOR_CACHETOOLS = 1_000_000
PODLINK, BOUNDED = "podlink", "podlink, at most 1,000,000"
DICT, TTLCACHE = "dict", "cachetools.TTLCache"
MB, EACH, NS, ENTRIES = "MB", "bytes/link", "ns", "links kept"

Lookup = Callable[[str, str, str], Awaitable[int | None]]
Links = MutableMapping[tuple[str, str, str], int]


async def nanoseconds(lookup: Lookup, links: int) -> float:
    """What an await costs, of users at random out of so many. Names are fresh strings."""
    draw = random.Random(2)
    uids = some([draw.randrange(links) for _ in range(CALLS)])
    for uid in uids[:WARMING]:
        await lookup(NAMESPACE, uid, SERVICE)
    began = time.perf_counter()
    for uid in uids:
        await lookup(NAMESPACE, uid, SERVICE)
    return (time.perf_counter() - began) / CALLS * 1e9


def costs(before: int, kept: int) -> dict[str, float]:
    grown = resident_bytes() - before
    return {MB: grown / 1e6, EACH: grown / kept, ENTRIES: kept}


def of_podlink(links: int, bound: int) -> dict[str, float]:
    async def measure() -> dict[str, float]:
        config = podlink.ClientConfig(cache_capacity=bound)
        async with podlink.connect("memory://", namespace=NAMESPACE, config=config) as connection:
            client = connection.client
            async with connection.server(podlink.ServerInfo(NAMESPACE, SERVICE, 0)):
                await client.compute_linked_pod(NAMESPACE, "somebody", SERVICE)
                before = resident_bytes()
                for uid in realistic(links):
                    client.set_cache(NAMESPACE, uid, SERVICE, 0)
                found = costs(before, client.stats()["cache_entries"])
                if bound > links:
                    known = client.stats()["cache_hits"]
                    found[NS] = await nanoseconds(client.compute_linked_pod, links)
                    known = client.stats()["cache_hits"] - known
                    if known != WARMING + CALLS:
                        raise SystemExit(f"of {WARMING + CALLS} users the cache knew {known}")
                return found

    return asyncio.run(measure())


def of_mapping(links: int, make: Callable[[], Links]) -> dict[str, float]:
    before = resident_bytes()
    known = make()
    for uid in realistic(links):
        known[NAMESPACE, uid, SERVICE] = 0
    found = costs(before, len(known))

    async def look_up(namespace: str, uid: str, service: str) -> int | None:
        return known.get((namespace, uid, service))

    found[NS] = asyncio.run(nanoseconds(look_up, links))
    return found


def of_cachetools(links: int) -> dict[str, float]:
    from cachetools import TTLCache

    return of_mapping(links, lambda: TTLCache(maxsize=2 * links, ttl=3600))


MEASURES: dict[str, Callable[..., dict[str, float]]] = {
    PODLINK: lambda links: of_podlink(links, max(links + links // SPARE, BOUND)),
    BOUNDED: partial(of_podlink, bound=BOUND),
    DICT: lambda links: of_mapping(links, dict),
    TTLCACHE: of_cachetools,
}


def main() -> None:
    results = Results("memory", "podlink", "cachetools")
    runs = [
        (who, links)
        for links in LINKS
        for who in MEASURES
        if not (who == TTLCACHE and links > MOST_FOR_CACHETOOLS)
        if not (who == BOUNDED and links < BOUND)
        for _ in range(rounds(ROUNDS) if links in SEVERAL else 1)
    ]
    progress = Progress("memory", len(runs))
    found: dict[tuple[str, int, str], list[float]] = {}
    for who, links in runs:
        for unit, figure in in_fresh_process(__file__, who, links).items():
            found.setdefault((who, links, unit), []).append(figure)
        progress.step(f"{who}, {links:,}")
    for (who, links, unit), figures in found.items():
        results.add(who, unit, figures, links=links)
    results.note(f"cachetools was not measured above {MOST_FOR_CACHETOOLS:,} links.")
    results.write()


if __name__ == "__main__":
    child(MEASURES) or main()
