"""The demo's users, and the clients that route them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from podlink import ClientDriver, PodlinkError

from .pods import Pod

__all__ = ["OnAnswer", "Tally", "Users"]

OnAnswer = Callable[[int, str, int], None]
"""Called with the number of a client, a user, and the pod that the client names."""

# How many computes of one client run at once.
_CALLERS = 16

# So many users come at a time; then the pods let them in, and report a new load.
_WAVE = 250


@dataclass
class Tally:
    """The outcome of computes for users by one client, or several.

    Attributes:
        answers: user → pod index.
        failures: user → what the compute raised.
        computes: how many computes the clients counted meanwhile.
        hits: how many of them they answered from their caches.
        seconds: how long the computes took together.
    """

    answers: dict[str, int] = field(default_factory=dict)
    failures: dict[str, PodlinkError] = field(default_factory=dict)
    computes: int = 0
    hits: int = 0
    seconds: float = 0.0

    def add(self, other: Tally) -> None:
        """Takes in another tally, of another time."""
        self.answers |= other.answers
        self.failures |= other.failures
        self.computes += other.computes
        self.hits += other.hits
        self.seconds += other.seconds

    @property
    def hit_rate(self) -> float:
        """The share of the computes that a cache answered."""
        return self.hits / self.computes if self.computes else 0.0

    @property
    def errors(self) -> Counter[str]:
        """How many computes failed, by code."""
        return Counter(error.code for error in self.failures.values())


class Users:
    """Users that arrive, are computed again, and live on the pods that the clients name.

    Attributes:
        clients: the client drivers, each with a cache of its own.
        homes: user → the pod that has let the user in.
    """

    def __init__(
        self, clients: Sequence[ClientDriver], pods: Mapping[int, Pod], service: str
    ) -> None:
        self.clients = clients
        self.homes: dict[str, int] = {}
        self._pods = pods
        self._service = service

    def living_on(self, pods: Iterable[int]) -> list[str]:
        """The users that these pods have let in, in the order in which they came."""
        pods = set(pods)
        return [uid for uid, pod in self.homes.items() if pod in pods]

    async def arrive(self, uids: Sequence[str], progress: Callable[[int], None]) -> Tally:
        """Routes new users, each through one client in turn, and lets them in.

        Raises:
            PodlinkError: a user could not be routed.
        """
        total = Tally()
        for start in range(0, len(uids), _WAVE):
            wave = uids[start : start + _WAVE]
            parts = [wave[at :: len(self.clients)] for at in range(len(self.clients))]
            begun = time.perf_counter()
            tallies = await self._ask(parts)
            total.seconds += time.perf_counter() - begun
            for tally in tallies:
                total.add(tally)
            for error in total.failures.values():
                raise error
            await self.settle({uid: total.answers[uid] for uid in wave})
            progress(start + len(wave))
        return total

    async def ask(self, uids: Sequence[str], on_answer: OnAnswer | None = None) -> list[Tally]:
        """Computes every user with every client, the clients at the same time.

        Args:
            uids: the users.
            on_answer: called with the client's number, the user and the pod for each answer.
        """
        return await self._ask([uids] * len(self.clients), on_answer)

    async def settle(self, answers: Mapping[str, int]) -> None:
        """Admits users to the pods that the clients name, and dismisses them from those before."""
        coming, going = defaultdict(list), defaultdict(list)
        for uid, pod in answers.items():
            before = self.homes.get(uid)
            if before != pod:
                coming[pod].append(uid)
                if before is not None:
                    going[before].append(uid)
                self.homes[uid] = pod
        for pod, uids in going.items():
            # A pod that is gone has no users to let out.
            if pod in self._pods:
                await self._pods[pod].dismiss(uids)
        for pod, uids in coming.items():
            if pod in self._pods:
                await self._pods[pod].admit(uids)

    async def _ask(
        self, parts: Sequence[Sequence[str]], on_answer: OnAnswer | None = None
    ) -> list[Tally]:
        tallies = [Tally() for _ in parts]
        before = [client.stats() for client in self.clients]
        async with asyncio.TaskGroup() as callers:
            for number, (uids, tally) in enumerate(zip(parts, tallies, strict=True)):
                waiting = iter(uids)
                for _ in range(min(_CALLERS, len(uids))):
                    callers.create_task(self._call(number, waiting, tally, on_answer))
        for client, stats, tally in zip(self.clients, before, tallies, strict=True):
            after = client.stats()
            tally.computes = after["computes"] - stats["computes"]
            tally.hits = after["cache_hits"] - stats["cache_hits"]
        return tallies

    async def _call(
        self, number: int, waiting: Iterable[str], tally: Tally, on_answer: OnAnswer | None
    ) -> None:
        compute = self.clients[number].compute_linked_pod
        for uid in waiting:
            try:
                pod = await compute(None, uid, self._service)
            except PodlinkError as error:
                tally.failures[uid] = error
                continue
            tally.answers[uid] = pod
            if on_answer is not None:
                on_answer(number, uid, pod)
