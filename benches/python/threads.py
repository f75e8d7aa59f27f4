"""Cached computes from many threads and many event loops at once, through one client driver.

    python benches/python/threads.py

CPython runs one thread at a time, so more threads cannot answer more. What is asked here is that
they do not answer less: the calls a second of all together, beside those of one alone. A plain
dict in the same coroutines shows what the threads cost without podlink.
"""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from _harness import Contender, interleave
from _ids import some
from _results import QUICK, Results, rounds

import podlink

NAMESPACE, SERVICE = "bench", "user-service"
USERS = 100_000
CALLS = 80_000 if QUICK else 480_000
"""How many calls all threads of a round make together."""
ROUNDS = 7
UNIT = "calls/s"
PODLINK, SYNC, DICT = "podlink compute_linked_pod", "podlink get_linked_in_cache", "dict"
ONE, LOOPS, THREADS = "one", "4 loops", "8 threads"
CROWDS = {ONE: 1, LOOPS: 4, THREADS: 8}

Work = Callable[[Sequence[str]], int]
"""Looks all users up and says how many it found."""


def at_once(work: Work, threads: int, uids: Sequence[str]) -> float:
    """Calls a second of so many threads, from the moment on which all have started."""
    share = len(uids) // threads
    gate = threading.Barrier(threads + 1)
    found = [0] * threads

    def run(number: int) -> None:
        gate.wait()
        found[number] = work(uids[number * share : (number + 1) * share])

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    gate.wait()
    began = time.perf_counter()
    for thread in running:
        thread.join()
    seconds = time.perf_counter() - began
    if sum(found) != share * threads:
        raise SystemExit(f"{share * threads} calls found {sum(found)} users")
    return share * threads / seconds


def works(client: podlink.ClientDriver, pods: dict[str, int]) -> dict[str, Work]:
    """podlink on an event loop of each thread's own, podlink without one, and a dict."""

    async def computed(uids: Sequence[str]) -> int:
        found = 0
        for uid in uids:
            found += await client.compute_linked_pod(NAMESPACE, uid, SERVICE) == 0
        return found

    async def look_up(uid: str) -> int | None:
        return pods.get(uid)

    async def looked_up(uids: Sequence[str]) -> int:
        found = 0
        for uid in uids:
            found += await look_up(uid) == 0
        return found

    def read(uids: Sequence[str]) -> int:
        found = 0
        for uid in uids:
            found += client.get_linked_in_cache(NAMESPACE, uid, SERVICE) == 0
        return found

    return {
        PODLINK: lambda uids: asyncio.run(computed(uids)),
        SYNC: read,
        DICT: lambda uids: asyncio.run(looked_up(uids)),
    }


def main() -> None:
    results = Results("threads", "podlink")
    everybody = some(range(USERS))
    uids = random.Random(1).choices(everybody, k=CALLS)
    with asyncio.Runner() as runner:
        connection = podlink.connect("memory://", namespace=NAMESPACE)
        client = connection.client
        runner.run(connection.server(podlink.ServerInfo(NAMESPACE, SERVICE, 0)).start())
        runner.run(client.compute_linked_pod(NAMESPACE, "somebody", SERVICE))
        for uid in everybody:
            client.set_cache(NAMESPACE, uid, SERVICE, 0)
        contenders = [
            Contender(who, partial(at_once, work, threads, uids), {"at once": crowd}, UNIT)
            for who, work in works(client, dict.fromkeys(everybody, 0)).items()
            for crowd, threads in CROWDS.items()
        ]
        interleave("threads", contenders, rounds(ROUNDS))
        results.add_all(contenders)
        runner.run(connection.aclose())
    results.write()


if __name__ == "__main__":
    main()
