"""What a `compute_linked_pod` costs that its cache cannot answer, beside other clients.

    python benches/python/misses.py

Every call is a user whom nobody has seen before, so each is one run of set_if_absent.lua on a
real Valkey. All clients run the same script with the same keys and arguments on the same server.
redis-py has a connection for each task, and in a second way 32 that the tasks share. Two limits
are measured with them: redis-rs and tokio alone (benches/core.rs), which is what a client in
another language than Python carries, and redis-benchmark, which is what the server carries.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import redis
from _clients import FEW, PACKAGES, REDIS_PY_FEW, Client, Course
from _harness import Contender, interleave
from _limits import RustLoop, ServerLimit
from _results import QUICK, Results, rounds
from _store import forget, names, valkey

ROUNDS = {1: 7, 4: 3, 16: 3, 64: 7, 256: 7, 1024: 3}
"""How many tasks ask at once, and how many rounds that is measured."""
SECONDS = 0.15 if QUICK else 0.3
"""About how long a round of one contender lasts, whatever its rate."""
FIRST = 1_000
"""How many calls the warming round has, which finds out the rate."""

UNIT = "calls/s"


async def spent(client: Client, uids: Sequence[str], tasks: int) -> tuple[float, float]:
    """The seconds, and the seconds of CPU, in which tasks with one call each at a time get through
    all users.
    """
    place = client.place

    async def work(waiting: Iterator[str]) -> None:
        for uid in waiting:
            await place(uid)

    waiting = iter(uids)
    began, worked = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work(waiting) for _ in range(tasks)))
    return time.perf_counter() - began, time.process_time() - worked


class Paced:
    """Rounds of about `SECONDS` each: the warming round finds out how many calls that is."""

    _numbers = itertools.count()

    def __init__(self, store: redis.Redis) -> None:
        self._store = store
        self._calls = FIRST

    def measure(self, run: Callable[[list[str]], tuple[float, float]]) -> tuple[float, float]:
        """Calls a second, and CPU seconds of a million calls, of one round."""
        uids = names(f"miss-{next(self._numbers):05}", self._calls)
        seconds, cpu = run(uids)
        forget(self._store, uids)
        rate = len(uids) / seconds
        self._calls = max(FIRST, round(rate * SECONDS))
        return rate, cpu / len(uids) * 1e6


def contender(course: Course, client: str, tasks: int, store: redis.Redis) -> Contender:
    def run(uids: list[str]) -> tuple[float, float]:
        found: tuple[float, float] = course.run(spent, client, uids, tasks)
        return found

    measure = partial(Paced(store).measure, run)
    return Contender(client, measure, {"loop": course.loop, "tasks": tasks}, UNIT)


def main() -> None:
    results = Results("misses", *PACKAGES)
    with (
        valkey() as server,
        server.client(socket_timeout=30) as store,
        Course("asyncio", server) as plain,
        Course("uvloop", server) as fast,
        RustLoop.build(server, results) as rust,
    ):
        for sentence in plain.absent:
            results.note(sentence)
        limit = ServerLimit.find(server, results)
        for tasks, many in ROUNDS.items():
            contenders = [
                contender(course, client, tasks, store)
                for course in (plain, fast)
                for client in course.clients
                if client != REDIS_PY_FEW or tasks > FEW
            ]
            for way in rust.ways:
                run = partial(rust.run, way, tasks)
                measure = partial(Paced(store).measure, run)
                contenders.append(Contender(way, measure, {"tasks": tasks}, UNIT))
            for way in limit.ways:
                measure = partial(limit.measure, way, tasks, SECONDS)
                contenders.append(Contender(way, measure, {"tasks": tasks}, UNIT))
            interleave(f"misses, {tasks} tasks", contenders, rounds(many))
            results.add_all(contenders)
    results.write()


if __name__ == "__main__":
    main()
