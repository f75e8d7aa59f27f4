"""The lines of the table: what was asked for, what was measured, and whether that is enough."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from _results import CPU, Figure, Measured, shown

LOOPS = ("asyncio", "uvloop")
ABSENT = "not measured"

_RUST = ("redis-rs and tokio, 1 thread", "redis-rs and tokio, 2 threads")
_REDIS_PY = ("redis-py", "redis-py, 32 connections")
_DICT, _DICT_UID = "dict, key (namespace, uid, service)", "dict, key uid"
_TTLCACHE = "cachetools.TTLCache"
_NOTHING = "nothing, called as compute_linked_pod is"
_OWN, _HANDLE = "podlink compute_linked_pod", "podlink service handle"

Subjects = dict[str, Measured]


@dataclass(frozen=True)
class Value:
    """A figure with the lowest and the highest of its rounds."""

    middle: float
    low: float
    high: float
    unit: str = ""

    @classmethod
    def of(cls, figure: Figure | None, unit: str = "") -> "Value | None":
        if figure is None:
            return None
        return cls(figure.median, min(figure.rounds), max(figure.rounds), unit)

    @classmethod
    def ratio(cls, one: Figure | None, other: Figure | None) -> "Value | None":
        """Of rounds that followed each other; their median and their range."""
        if one is None or other is None:
            return None
        each = [a / b for a, b in zip(one.rounds, other.rounds, strict=True)]
        return cls(statistics.median(each), min(each), max(each))

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        if self.low == self.high:
            return f"**{shown(self.middle)}**{unit}"
        return f"**{shown(self.middle)}**{unit} ({shown(self.low)} to {shown(self.high)})"


@dataclass(frozen=True)
class Limit:
    """A figure that is to be reached, from below or from above."""

    sign: str
    figure: float
    unit: str = ""

    def met(self, value: Value) -> bool:
        return value.middle <= self.figure if self.sign == "≤" else value.middle >= self.figure

    def __str__(self) -> str:
        return f"{self.sign} {shown_plainly(self.figure)}{' ' if self.unit else ''}{self.unit}"


def shown_plainly(figure: float) -> str:
    """As a person writes it: 4, 0.5, 200."""
    return f"{figure:,.0f}" if figure == round(figure) else f"{figure:g}"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    least: Limit | None
    aim: Limit | None
    value: Value | None

    @property
    def verdict(self) -> str:
        """Whether the least that was asked for is there, and the aim."""
        if self.value is None or self.least is None:
            return ""
        if not self.least.met(self.value):
            return "**no**"
        return "yes" if self.aim is None or not self.aim.met(self.value) else "yes, and the aim"

    def cells(self) -> list[str]:
        limits = ["" if each is None else str(each) for each in (self.least, self.aim)]
        return [self.what, *limits, ABSENT if self.value is None else str(self.value), self.verdict]


def at_most(least: float, aim: float | None = None, unit: str = "") -> tuple[Limit, Limit | None]:
    return Limit("≤", least, unit), None if aim is None else Limit("≤", aim, unit)


def at_least(least: float, aim: float | None = None) -> tuple[Limit, Limit | None]:
    return Limit("≥", least), None if aim is None else Limit("≥", aim)


def best(figures: Sequence[Figure | None]) -> Figure | None:
    """The highest of those that were measured."""
    return max(filter(None, figures), key=lambda figure: figure.median, default=None)


def rows(of: Subjects) -> Iterator[Row]:
    """The whole table."""
    yield from _cached(of["cached"], of["threads"])
    yield from _misses(of["misses"])
    yield from _waiting(of["misses"], of["latency"], of["batch"])
    yield from _sizes(of["memory"], of["pods"])
    yield from _started(of["startup"])
    yield from _further(of["grpc_calls"])


def _cached(cached: Measured, threads: Measured) -> Iterator[Row]:
    def ratio(one: str, other: str, users: str) -> Value | None:
        return Value.ratio(
            cached.find("ns", one, users=users), cached.find("ns", other, users=users)
        )

    what = "cached `await compute_linked_pod`, one user"
    yield Row(
        f"{what} ÷ dict by (namespace, uid, service)",
        *at_most(1.5, 1.0),
        ratio(_OWN, _DICT, "one"),
    )
    yield Row(
        "its limit: a method of the same arguments that looks nothing up, one user ÷ that dict",
        None,
        None,
        ratio(_NOTHING, _DICT, "one"),
    )
    yield Row(f"{what} ÷ dict by uid alone", None, None, ratio(_OWN, _DICT_UID, "one"))
    yield Row(
        "cached, service-bound handle, one user ÷ dict by uid alone",
        None,
        None,
        ratio(_HANDLE, _DICT_UID, "one"),
    )
    yield Row(
        f"{what} ÷ cachetools TTLCache",
        *at_most(0.5, 0.3),
        ratio(_OWN, "cachetools.TTLCache", "one"),
    )
    what = "cached, 1,000,000 links in random order ÷ dict"
    yield Row(what, *at_most(1.5, 1.0), ratio(_OWN, _DICT, "1,000,000"))
    fresh = "1,000,000, fresh strings"
    yield Row(f"{what}, names fresh off the wire", None, None, ratio(_OWN, _DICT, fresh))
    for crowd in ("8 threads", "4 loops"):
        alone = threads.find("calls/s", _OWN, **{"at once": "one"})
        together = threads.find("calls/s", _OWN, **{"at once": crowd})
        value = Value.ratio(together, alone)
        yield Row(f"cached, {crowd} at once ÷ one thread, calls/s of all", *at_least(0.8), value)


def _misses(misses: Measured) -> Iterator[Row]:
    def rate(who: str, tasks: int, **loop: str) -> Figure | None:
        return misses.find("calls/s", who, tasks=tasks, **loop)

    def against(
        peer: str,
        names: Sequence[str],
        limits: dict[str, tuple[Limit, Limit | None]],
        *,
        on_a_loop: bool = True,
    ) -> Iterator[Row]:
        for loop in LOOPS:
            for tasks in (64, 256):
                where = {"loop": loop} if on_a_loop else {}
                other = best([rate(name, tasks, **where) for name in names])
                value = Value.ratio(rate("podlink", tasks, loop=loop), other)
                what = f"cache-missing compute, calls/s, {tasks} tasks, {loop} ÷ {peer}"
                yield Row(what, *limits[loop], value)

    beside_redis_py = {"asyncio": at_least(4, 8), "uvloop": at_least(6, 8)}
    beside_glide = {"asyncio": at_least(2, 4), "uvloop": at_least(3, 4)}
    beside_rust = dict.fromkeys(LOOPS, at_least(0.4, 0.7))
    yield from against("redis-py", _REDIS_PY, beside_redis_py)
    yield from against("valkey-glide", ["valkey-glide"], beside_glide)
    yield from against("pure Rust", _RUST, beside_rust, on_a_loop=False)


def _waiting(misses: Measured, latency: Measured, batch: Measured) -> Iterator[Row]:
    for loop in LOOPS:
        ours = misses.find("calls/s", "podlink", tasks=1, loop=loop)
        theirs = misses.find("calls/s", "redis-py", tasks=1, loop=loop)
        value = Value.ratio(theirs, ours)
        yield Row(f"one task at a time, latency, {loop} ÷ redis-py", *at_most(1.0, 0.7), value)
    for loop in LOOPS:
        case = {"loop": loop, "at": "half of redis-py's peak"}
        ours = latency.find("µs, p99", "podlink", **case)
        value = Value.ratio(ours, latency.find("µs, p99", "redis-py", **case))
        yield Row(
            f"p99 of a miss at half of redis-py's peak rate, {loop} ÷ redis-py",
            *at_most(0.5),
            value,
        )
    for loop in LOOPS:
        ours = batch.find("ms", "podlink", loop=loop)
        value = Value.ratio(ours, batch.find("ms", "redis-py", loop=loop))
        what = f"`batch_get_linked_pod` of 10,000 uids, time, {loop} ÷ redis-py `MGET`"
        yield Row(what, *at_most(1.0, 0.5), value)


def _sizes(memory: Measured, pods: Measured) -> Iterator[Row]:
    million = {"links": 1_000_000}
    ours = Value.of(memory.find("bytes/link", "podlink", **million), "bytes")
    yield Row(
        "resident memory per cached link, at 1,000,000 links", *at_most(200, 120, "bytes"), ours
    )
    for who in ("dict", _TTLCACHE):
        value = Value.of(memory.find("bytes/link", who, **million), "bytes")
        yield Row(f"the same in a {who}", None, None, value)
    yield Row("best-pod choice, 10 to 5,000 pods, slowest ÷ quickest", *at_most(2), _flatness(pods))
    for news in ("nothing new", "all new"):
        figure = pods.find(f"ms of CPU/refresh, {news}", "podlink", pods=1_000)
        what = f"one state refresh of 1,000 pods, CPU time, {news}"
        yield Row(what, *at_most(2, 0.5, "ms"), Value.of(figure, "ms"))


def _flatness(pods: Measured) -> Value | None:
    figures = [each for each in pods.select("µs/choice") if each.case["pods"] != 1]
    if not figures:
        return None
    figures.sort(key=lambda figure: figure.median)
    return Value.ratio(figures[-1], figures[0])


def _started(startup: Measured) -> Iterator[Row]:
    value = Value.of(startup.find("ms", "podlink"), "ms")
    yield Row("`import podlink` in a fresh interpreter", *at_most(30, 10, "ms"), value)
    value = Value.of(startup.find("ms", "podlink, asyncio being there"), "ms")
    yield Row("the same where asyncio is imported already", None, None, value)
    # Names are loaded when they are first used: a service pays this, then or at the import.
    names = "podlink, with the drivers' names"
    for who, what in (
        (names, "`import podlink` and use of `connect` and the drivers' names"),
        (f"{names}, asyncio being there", "the same where asyncio is imported already"),
    ):
        if (figure := startup.find("ms", who)) is not None:  # an earlier version has none
            yield Row(what, None, None, Value.of(figure, "ms"))
    threads = Value.of(startup.find("threads", "podlink"))
    yield Row("threads after it, the interpreter's own among them", *at_most(1), threads)
    yield Row("wheel", *at_most(10, 6, "MB"), Value.of(startup.find("MB", "wheel"), "MB"))


def _further(grpc: Measured) -> Iterator[Row]:
    for tasks in (1, 64, 256):
        ours = grpc.find("calls/s", "podlink", tasks=tasks)
        value = Value.ratio(ours, grpc.find("calls/s", "grpc.aio", tasks=tasks))
        limits = at_least(5) if tasks == 64 else (None, None)
        what = (
            f"set-if-absent over gRPC, calls/s, {tasks} task{'s' if tasks > 1 else ''} ÷ grpc.aio"
        )
        yield Row(what, *limits, value)


def cpu_table(of: Subjects) -> list[list[str]]:
    """CPU seconds of the client's process for a million calls."""
    cached, misses = of["cached"], of["misses"]
    groups = {"cached, 1,000,000 links in random order": cached.select(CPU, users="1,000,000")}
    for loop in LOOPS:
        groups[f"misses, 64 tasks, {loop}"] = misses.select(CPU, tasks=64, loop=loop)
    for name in _RUST:
        groups[f"misses, 64 tasks, {name}"] = misses.select(CPU, name, tasks=64)
    return [
        [what, figure.who, figure.shown, figure.spread]
        for what, figures in groups.items()
        for figure in figures
    ]
