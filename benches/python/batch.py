"""`batch_get_linked_pod` of 10,000 users, beside one MGET of the same keys by other clients.

    python benches/python/batch.py

The others are handed the keys; podlink makes them of the users' names, and sorts the answers by
pod. All read the same links on the same Valkey.
"""

import time
from collections.abc import Sequence
from functools import partial

from _clients import PACKAGES, REDIS_PY_FEW, Client, Course
from _harness import Contender, interleave
from _ids import some
from _results import QUICK, Results, rounds
from _store import TTL_MS, link_key, valkey

USERS = 10_000
PODS = 16
ROUNDS = 15
REPEATS = 2 if QUICK else 8
UNIT = "ms"


async def milliseconds(client: Client, asked: Sequence[str]) -> float:
    """What one batch takes, out of a few one after the other."""
    began = time.perf_counter()
    for _ in range(REPEATS):
        found = await client.read(asked)
        if found != len(asked):
            raise SystemExit(f"{client.name} found {found} of {len(asked)} links")
    return (time.perf_counter() - began) / REPEATS * 1e3


def main() -> None:
    results = Results("batch", *PACKAGES)
    uids = some(range(USERS))
    keys = [link_key(uid) for uid in uids]
    with (
        valkey(PODS) as server,
        server.client(socket_timeout=30) as store,
        Course("asyncio", server) as plain,
        Course("uvloop", server) as fast,
    ):
        with store.pipeline(transaction=False) as pipeline:
            for number, key in enumerate(keys):
                pipeline.set(key, number % PODS, px=TTL_MS * 10)
            pipeline.execute()
        for sentence in plain.absent:
            results.note(sentence)

        def measure(course: Course, client: str) -> float:
            asked = uids if client == "podlink" else keys
            took: float = course.run(milliseconds, client, asked)
            return took

        contenders = [
            Contender(client, partial(measure, course, client), {"loop": course.loop}, UNIT)
            for course in (plain, fast)
            for client in course.clients
            if client != REDIS_PY_FEW  # one call at a time needs one connection
        ]
        interleave(f"batches of {USERS:,}", contenders, rounds(ROUNDS))
        results.add_all(contenders)
    results.write()


if __name__ == "__main__":
    main()
