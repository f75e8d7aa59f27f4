"""The demo from its beginning to its verdict."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import TextIO

from podlink import PodNotAvailableError, Store, __version__
from podlink.config import seconds

from .healing import heal, shown_codes
from .screen import Screen
from .stage import CLIENTS, SERVICE, Settings, Stage
from .users import Tally

__all__ = ["run"]

# The verdict asks for so many users and reads their links before it goes on to the next ones.
_BATCH = 1000


async def run(settings: Settings, stream: TextIO) -> None:
    """Plays the demo on the store and prints what happens while it happens.

    It keeps to a namespace of its own, and ends every pod that it started.

    Raises:
        PodNotAvailableError: users ended without an alive pod.
        PodlinkError: the store cannot be reached, or failed when it mattered.
    """
    async with Store(settings.store) as store:
        await store.ping(timeout=settings.client.timeout)
        stage = Stage(settings, store)
        try:
            await _Story(settings, store, stage, Screen(stream)).play()
        finally:
            await stage.close()


class _Story:
    def __init__(self, settings: Settings, store: Store, stage: Stage, screen: Screen) -> None:
        self._settings = settings
        self._store = store
        self._stage = stage
        self._users = stage.users
        self._screen = screen
        self._step = 0
        self._begun = time.monotonic()
        self._errors: Counter[str] = Counter()

    async def play(self) -> None:
        """All steps; see ``run``."""
        await self._pods_start()
        await self._users_come()
        await self._users_are_asked_for_again()
        await self._a_pod_drains(0)
        await self._a_pod_stops(0)
        await self._pods_are_killed()
        await self._verdict()

    def _heading(self, text: str) -> None:
        self._step += 1
        self._screen.say()
        self._screen.say(f"{self._step}. {text}")

    async def _pods_start(self) -> None:
        settings, server, stage = self._settings, self._settings.server, self._stage
        self._screen.say(
            f"podlink {__version__}: {settings.pods} pods of the service {SERVICE} and "
            f"{CLIENTS} clients on {self._store.url}, namespace {stage.namespace}"
        )
        begun = time.perf_counter()
        await stage.start_pods()
        took = time.perf_counter() - begun
        where = "each in a process of its own" if stage.in_processes else "all in this process"
        self._screen.say(
            f"{settings.pods} pods, {where}, are up after {took:.2f} s; a lease lasts "
            f"{seconds(server.lease):g} s and is renewed every {seconds(server.renew):g} s"
        )

    async def _users_come(self) -> None:
        self._heading(f"{self._settings.users:,} users come")
        tally = await self._arrive(self._settings.users)
        rate = len(tally.answers) / tally.seconds if tally.seconds else 0.0
        self._screen.say(f"placed in {tally.seconds:.2f} s, {rate:,.0f} a second")
        await self._table()

    async def _arrive(self, users: int) -> Tally:
        first = len(self._users.homes) + 1
        uids = [f"user-{number}" for number in range(first, first + users)]
        with self._screen.progress("placed", users) as show:
            return await self._users.arrive(uids, show)

    async def _users_are_asked_for_again(self) -> None:
        self._heading("Every client asks for every user, twice")
        uids = list(self._users.homes)
        tallies: list[Tally] = []
        for turn in ("first", "second"):
            begun = time.perf_counter()
            tallies = await self._ask(uids)
            took = time.perf_counter() - begun
            total = Tally()
            for tally in tallies:
                total.add(tally)
            self._screen.say(
                f"{turn} time: {total.computes:,} computes in {took:.3f} s, cache hit rate "
                f"{total.hit_rate:.1%}"
            )
        agreed = sum(len({tally.answers.get(uid) for tally in tallies}) == 1 for uid in uids)
        self._screen.say(f"the clients name the same pod for {agreed:,} of {len(uids):,} users")

    async def _ask(self, uids: Sequence[str]) -> list[Tally]:
        tallies = await self._users.ask(uids)
        for tally in tallies:
            self._errors += tally.errors
        return tallies

    async def _a_pod_drains(self, index: int) -> None:
        self._heading(f"Pod {index} drains: DENY_NEW_CALL")
        await self._stage.pods[index].deny_new_calls()
        # Clients read the pods every `refresh` seconds, ±10 %; then they have seen it.
        await asyncio.sleep(1.25 * seconds(self._settings.route_info.refresh))
        uids = self._users.living_on([index])
        tallies = await self._ask(uids)
        stayed = sum(all(tally.answers.get(uid) == index for tally in tallies) for uid in uids)
        self._screen.say(f"{stayed:,} of its {len(uids):,} users stay")
        arrived = (await self._arrive(max(1, self._settings.users // 4))).answers.values()
        there = sum(pod == index for pod in arrived)
        self._screen.say(
            f"{len(arrived):,} new users come: {there:,} to pod {index}, "
            f"{len(arrived) - there:,} to other pods"
        )
        await self._table()

    async def _a_pod_stops(self, index: int) -> None:
        self._heading(f"Pod {index} stops, and comes back")
        uids = self._users.living_on([index])
        since = time.monotonic()
        took = await self._stage.pods.pop(index).stop()
        self._screen.say(f"stopped in {took:.3f} s")
        await self._heal(uids, {index}, since)
        incarnation = await self._stage.start_pod(index)
        self._screen.say(f"pod {index} is back, incarnation {incarnation}")

    async def _pods_are_killed(self) -> None:
        victims = [*range(1, self._settings.pods), 0][: self._settings.kill]
        self._heading(f"Killed without a withdrawal: pod {', '.join(map(str, victims))}")
        uids = self._users.living_on(victims)
        since = time.monotonic()
        for index in victims:
            self._screen.say(f"pod {index}: {await self._stage.pods.pop(index).kill()}")
        await self._heal(uids, set(victims), since)
        await self._table()

    async def _heal(self, uids: Sequence[str], gone: set[int], since: float) -> None:
        server, client = self._settings.server, self._settings.client
        # Twice the promise: what takes longer than that will not come.
        patience = 2 * sum(map(seconds, (server.lease, server.grace, client.timeout)))
        with self._screen.progress("moved", len(uids)) as show:
            healing = await heal(self._users, uids, gone, since, patience, show)
        self._errors += healing.errors
        for line in healing.lines():
            self._screen.say(line)

    async def _table(self) -> None:
        """The pods as the store has them: their users by the links, their load as published."""
        users = Counter((await self._stage.links(list(self._users.homes))).values())
        states = await self._stage.published()
        rows = []
        for index in range(self._settings.pods):
            state = states.get(index) if index in self._stage.pods else None
            said = (
                ("gone", "-") if state is None else (state.routing_state, f"{state.load_state:,}")
            )
            rows.append((str(index), f"{users[index]:,}", said[1], said[0]))
        self._screen.table(("pod", "users", "load", "state"), rows)

    async def _verdict(self) -> None:
        """Every user must have a pod that runs, by the store and by every client.

        Raises:
            PodNotAvailableError: that is not so.
        """
        self._heading("Has every user an alive pod?")
        uids = list(self._users.homes)
        alive = await self._stage.alive()
        homeless = torn = 0
        for start in range(0, len(uids), _BATCH):
            batch = uids[start : start + _BATCH]
            tallies = await self._ask(batch)
            links = await self._stage.links(batch)
            for uid in batch:
                named = {links.get(uid), *(tally.answers.get(uid) for tally in tallies)}
                homeless += not named <= alive
                torn += named <= alive and len(named) > 1
        well = len(uids) - homeless - torn
        self._screen.say(
            f"{well:,} of {len(uids):,} users do, by the store's links and both clients' answers"
        )
        self._screen.say(self._summary())
        if homeless:
            raise PodNotAvailableError(
                f"{homeless:,} of {len(uids):,} users ended without an alive pod"
            )
        if torn:
            raise PodNotAvailableError(f"{torn:,} of {len(uids):,} users were given to two pods")

    def _summary(self) -> str:
        stats = [client.stats() for client in self._users.clients]
        computes, hits, moved = (
            sum(each[name] for each in stats) for name in ("computes", "cache_hits", "links_healed")
        )
        return (
            f"in all: {computes:,} computes, cache hit rate {hits / computes:.1%}, {moved:,} users "
            f"moved, {self._errors.total():,} computes failed{shown_codes(self._errors)}, "
            f"{time.monotonic() - self._begun:.1f} s"
        )
