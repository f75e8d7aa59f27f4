"""How long a cache-missing compute takes at a steady rate, beside other clients.

    python benches/python/latency.py

Open loop: calls are due at fixed times, a bunch each millisecond, whether earlier ones have been
answered or not, and each is timed from the moment at which it was due. So a client that falls
behind is charged for all who wait, as users are. The rate is half of what redis-py reaches at 64
tasks on this machine just now, which all of them can carry; and once more half of what podlink
reaches, which only some can.
"""

import asyncio
import ctypes
import itertools
import os
import statistics
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import redis
from _clients import PACKAGES, REDIS_PY, REDIS_PY_FEW, Client, Course
from _harness import Contender, interleave
from _results import QUICK, Results, rounds
from _store import forget, names, valkey
from misses import spent

ROUNDS, FEW_ROUNDS = 7, 3
SECONDS = 0.4 if QUICK else 1.0
WARMING = SECONDS / 10
"""What is due this early in a round is called but not timed."""
PERIOD = 0.001
"""A bunch of calls is due this often, in seconds."""
TASKS = 64
PEAK_CALLS, PEAK_ROUNDS = 6_000, 3
PATIENCE = 10.0
"""How much longer than the round may take what was started in it."""
HEADROOM = 1.1
"""A client whose own peak is not this much above the rate is not asked to carry it."""
P50, P99, RATE = "µs, median", "µs, p99", "calls/s"
STEADY, HIGH = "half of redis-py's peak", "half of podlink's peak"

_CLOCK_MONOTONIC = 1
_numbers = itertools.count()


class Beat:
    """Calls a function each period: the kernel's timer, because an event loop's own timers are
    rounded up to a millisecond, and that would be most of what is measured.
    """

    def __init__(self, tick: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._tick = tick
        self._timer = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        asyncio.get_running_loop().add_reader(self._timer, self._ring)

    def start(self, first: float) -> None:
        """Begins at this moment of `time.monotonic`."""
        whole = int(first)
        when = struct.pack("qqqq", 0, round(PERIOD * 1e9), whole, round((first - whole) * 1e9))
        absolute = 1
        if self._libc.timerfd_settime(self._timer, absolute, when, None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def _ring(self) -> None:
        os.read(self._timer, 8)
        self._tick()

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._timer)
        os.close(self._timer)


@dataclass
class Steady:
    """One round of one client at a fixed rate."""

    place: Callable[[str], Awaitable[object]]
    uids: list[str]
    each_time: int
    latencies: list[float] = field(default_factory=list)
    _answered: int = 0
    _beats: int = 0
    _first: float = 0.0
    _running: set[asyncio.Task[None]] = field(default_factory=set)
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> list[float]:
        """How long each timed call took, in seconds. Gives up when calls pile up for too long."""
        beat = Beat(self._start_due)
        self._first = time.monotonic() + 0.005
        beat.start(self._first)
        try:
            async with asyncio.timeout(SECONDS + PATIENCE):
                await self._over.wait()
        finally:
            beat.stop()
        return self.latencies

    def _start_due(self) -> None:
        now = time.monotonic()
        while (due := self._first + self._beats * PERIOD) <= now:
            start = self._beats * self.each_time
            some = self.uids[start : start + self.each_time]
            if not some:
                return
            self._beats += 1
            for uid in some:
                task = asyncio.create_task(self._call(uid, due))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def _call(self, uid: str, due: float) -> None:
        await self.place(uid)
        answered = time.monotonic()
        self._answered += 1
        if due >= self._first + WARMING:
            self.latencies.append(answered - due)
        if self._answered == len(self.uids):
            self._over.set()


async def steady(client: Client, uids: list[str], each_time: int) -> list[float]:
    """How long each call took, in seconds, with so many due each period."""
    return await Steady(client.place, uids, each_time).run()


class Runner:
    """Rounds at a fixed rate, and what they gave."""

    def __init__(self, store: redis.Redis, rate: float) -> None:
        self._store = store
        self._each_time = max(1, round(rate * PERIOD))
        self.rate = self._each_time / PERIOD
        self.medians: dict[tuple[str, str], list[float]] = {}

    def contender(self, course: Course, client: str, what: str) -> Contender:
        case: dict[str, str | int | float] = {"loop": course.loop, "at": what}
        return Contender(client, partial(self._measure, course, client), case, P99)

    def _measure(self, course: Course, client: str) -> float:
        uids = names(f"late-{next(_numbers):05}", round(self.rate * SECONDS))
        latencies: list[float] = course.run(steady, client, uids, self._each_time)
        forget(self._store, uids)
        cuts = statistics.quantiles(latencies, n=100)
        self.medians.setdefault((client, course.loop), []).append(cuts[49] * 1e6)
        return cuts[98] * 1e6


def peak(course: Course, client: str, store: redis.Redis) -> float:
    """Calls a second at 64 tasks, the median of a few rounds."""
    rates = []
    for _ in range(PEAK_ROUNDS):
        uids = names(f"peak-{next(_numbers):05}", PEAK_CALLS)
        seconds, _cpu = course.run(spent, client, uids, TASKS)
        forget(store, uids)
        rates.append(len(uids) / seconds)
    return statistics.median(rates)


Peaks = dict[tuple[str, str], float]


def at_rate(
    what: str, courses: tuple[Course, ...], peaks: Peaks, store: redis.Redis, results: Results
) -> None:
    """Measures everybody who can carry it at half the lower of one client's two peaks."""
    measured = REDIS_PY if what == STEADY else "podlink"
    runner = Runner(store, min(peaks[measured, course.loop] for course in courses) / 2)
    contenders = []
    for course in courses:
        for client in course.clients:
            if client == REDIS_PY_FEW:
                continue
            if peaks[client, course.loop] < runner.rate * HEADROOM:
                results.note(f"{client} ({course.loop}) cannot carry {runner.rate:,.0f}/s.")
                continue
            contenders.append(runner.contender(course, client, what))
    interleave(
        f"p99 at {runner.rate:,.0f}/s", contenders, rounds(ROUNDS if what == STEADY else FEW_ROUNDS)
    )
    results.add("everybody", RATE, [runner.rate], at=what)
    results.add_all(contenders)
    for each in contenders:
        medians = runner.medians[each.name, str(each.case["loop"])][1:]
        results.add(each.name, P50, medians, **each.case)


def main() -> None:
    results = Results("latency", *PACKAGES)
    with (
        valkey() as server,
        server.client(socket_timeout=30) as store,
        Course("asyncio", server) as plain,
        Course("uvloop", server) as fast,
    ):
        for sentence in plain.absent:
            results.note(sentence)
        courses = (plain, fast)
        peaks = {
            (name, course.loop): peak(course, name, store)
            for course in courses
            for name in course.clients
        }
        at_rate(STEADY, courses, peaks, store, results)
        at_rate(HIGH, courses, peaks, store, results)
    results.write()


if __name__ == "__main__":
    main()
