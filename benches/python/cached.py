"""What a cached `await compute_linked_pod` costs, beside what a program would write instead.

    python benches/python/cached.py

The peers know the answer beforehand and check nothing; podlink checks on each call that the link
is still valid, that its pod is available and that it is still the same process, and counts it.
Each contender is asked for one user again and again, which flatters everybody's memory, and for
users at random out of 100,000 and out of 1,000,000. In one case more the names are fresh strings,
as they come off a socket: a dict then has to hash them, and compare them, as podlink always does.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from functools import partial
from typing import Any

from _harness import Contender, interleave
from _ids import some
from _results import QUICK, Results, rounds

import podlink

NAMESPACE, SERVICE = "bench", "user-service"
CALLS = 20_000 if QUICK else 100_000
ROUNDS = 9
POD = 0
USERS = 1_000_000
SLOW = 10
"""aiocache is asked this many times less often, or it would take most of the time."""
AIOCACHE_USERS = 100_000
"""aiocache keeps a timer for each entry: a million would measure the event loop's heap."""
UNIT = "ns"

PODLINK, HANDLE = "podlink compute_linked_pod", "podlink service handle"
TRIPLES, UIDS = "dict, key (namespace, uid, service)", "dict, key uid"
NOTHING = "nothing, called as compute_linked_pod is"
TTLCACHE, AIOCACHE = "cachetools.TTLCache", "aiocache.SimpleMemoryCache"

Lookup = Callable[[str, str, str], Awaitable[int | None]]
ShortLookup = Callable[[str], Awaitable[int | None]]


async def ask(lookup: Lookup, uids: Sequence[str]) -> None:
    """Asks with all three names."""
    for uid in uids:
        await lookup(NAMESPACE, uid, SERVICE)


async def ask_briefly(lookup: ShortLookup, uids: Sequence[str]) -> None:
    """Asks for the user alone."""
    for uid in uids:
        await lookup(uid)


Ask = Callable[[Any, Sequence[str]], Awaitable[None]]


def measure(
    runner: asyncio.Runner, ask: Ask, lookup: object, uids: Callable[[], list[str]], calls: int
) -> tuple[float, float]:
    """Nanoseconds per await, the loop around it included, and CPU seconds of a million."""
    asking = uids()[:calls]

    async def spent() -> tuple[float, float]:
        began, worked = time.perf_counter(), time.process_time()
        await ask(lookup, asking)
        return time.perf_counter() - began, time.process_time() - worked

    seconds, cpu = runner.run(spent())
    return seconds / len(asking) * 1e9, cpu / len(asking) * 1e6


async def check(ask: Ask, lookup: Any, uids: Sequence[str]) -> None:
    """Whether every answer is the pod: or something else would be measured than is meant."""
    answers = []

    async def noted(*names: str) -> None:
        answers.append(await lookup(*names))

    await ask(noted, uids)
    if answers != [POD] * len(uids):
        raise SystemExit(f"{len(uids) - answers.count(POD)} of {len(uids)} answers are wrong")


Ways = dict[str, tuple[Ask, Any]]


def own_ways(client: podlink.ClientDriver) -> Ways:
    """podlink, in full and for one service."""
    return {
        PODLINK: (ask, client.compute_linked_pod),
        HANDLE: (ask_briefly, client.service(SERVICE).compute_linked_pod),
    }


class Nothing:
    """The least that a public coroutine of these arguments takes: it looks nothing up."""

    async def compute_linked_pod(
        self, namespace: str, uid: str, service: str, *, timeout: float | None = None
    ) -> int:
        return POD


def dicts(pods: dict[str, int]) -> Ways:
    """What a program without podlink would await."""
    links = {(NAMESPACE, uid, SERVICE): pod for uid, pod in pods.items()}

    async def dict_of_triples(namespace: str, uid: str, service: str) -> int | None:
        return links.get((namespace, uid, service))

    async def dict_of_uids(uid: str) -> int | None:
        return pods.get(uid)

    return {TRIPLES: (ask, dict_of_triples), UIDS: (ask_briefly, dict_of_uids)}


def ttl_cache(pods: dict[str, int], results: Results) -> Ways:
    try:
        from cachetools import TTLCache
    except ImportError as error:
        results.note(f"{TTLCACHE} was not measured: {error}")
        return {}
    cache: MutableMapping[tuple[str, str, str], int] = TTLCache(maxsize=2 * USERS, ttl=3600)
    cache.update({(NAMESPACE, uid, SERVICE): pod for uid, pod in pods.items()})

    async def look_up(namespace: str, uid: str, service: str) -> int | None:
        return cache.get((namespace, uid, service))

    return {TTLCACHE: (ask, look_up)}


def aio_cache(pods: dict[str, int], runner: asyncio.Runner, results: Results) -> Ways:
    try:
        from aiocache import SimpleMemoryCache
    except ImportError as error:
        results.note(f"{AIOCACHE} was not measured: {error}")
        return {}
    cache = SimpleMemoryCache()

    async def fill() -> None:
        await cache.multi_set([((NAMESPACE, uid, SERVICE), pod) for uid, pod in pods.items()])

    runner.run(fill())

    async def look_up(namespace: str, uid: str, service: str) -> int | None:
        found: int | None = await cache.get((namespace, uid, service))
        return found

    return {AIOCACHE: (ask, look_up)}


def race(
    runner: asyncio.Runner, ways: Ways, case: str, uids: Callable[[], list[str]], results: Results
) -> None:
    """Measures all ways over these users."""
    contenders = []
    for name, (ask, lookup) in ways.items():
        calls = CALLS // SLOW if name == AIOCACHE else CALLS
        runner.run(check(ask, lookup, uids()[:calls]))
        run = partial(measure, runner, ask, lookup, uids, calls)
        contenders.append(Contender(name, run, {"users": case}, UNIT))
    interleave(f"cached, {case}", contenders, rounds(ROUNDS))
    results.add_all(contenders)


def main() -> None:
    results = Results("cached", "podlink", "cachetools", "aiocache")
    everybody = some(range(USERS))
    draw = random.Random(1)  # whoever is asked in the order of its making looks better
    few = draw.choices(everybody[:AIOCACHE_USERS], k=CALLS)
    many = draw.choices(everybody, k=CALLS)
    with asyncio.Runner() as runner:
        # A cache that is exactly full would drop some of them.
        config = podlink.ClientConfig(cache_capacity=USERS + USERS // 4)
        connection = podlink.connect("memory://", namespace=NAMESPACE, config=config)
        client = connection.client
        server = connection.server(podlink.ServerInfo(NAMESPACE, SERVICE, 0))
        runner.run(server.start())
        runner.run(client.compute_linked_pod(NAMESPACE, "somebody", SERVICE))
        for uid in everybody:
            client.set_cache(NAMESPACE, uid, SERVICE, POD)
        pods = dict.fromkeys(everybody, POD)
        ways = own_ways(client) | dicts(pods) | ttl_cache(pods, results)
        first = dict.fromkeys(everybody[:AIOCACHE_USERS], POD)
        more = ways | aio_cache(first, runner, results)
        asked_before = client.stats()
        least: Ways = {NOTHING: (ask, Nothing().compute_linked_pod)}
        race(runner, more | least, "one", lambda: [everybody[0]] * CALLS, results)
        race(runner, more, "100,000", lambda: few, results)
        race(runner, ways, "1,000,000", lambda: many, results)
        race(runner, ways, "1,000,000, fresh strings", lambda: fresh(many), results)
        answered = client.stats()
        if misses := answered["cache_misses"] - asked_before["cache_misses"]:
            raise SystemExit(f"podlink answered {misses:,} calls from its store, not its cache")
        runner.run(connection.aclose())
    results.write()


def fresh(uids: list[str]) -> list[str]:
    """Equal names that are other objects, and were never hashed."""
    return [uid.encode().decode() for uid in uids]


if __name__ == "__main__":
    main()
