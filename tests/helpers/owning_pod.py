"""A pod that claims users, acts for them and gives them back, until SIGTERM, as a program.

`python -m helpers.owning_pod ORDER`, where ORDER is an `Order` in JSON. It requests users at random
as a gateway would send them to it, and every act is a save in the database of `ownership_judge`.

With `indexes_alone` ownership is what it was before there were tokens: the link names a pod index,
and a lease that the pod renews says that its index is alive.
"""

import asyncio
import json
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, cast

import redis
import redis.asyncio

import podlink
from helpers.ownership_judge import Database, Fenced, boot_time
from helpers.pods import NAMESPACE, SERVICE

CONFIG = podlink.ServerConfig.fast()
assert isinstance(CONFIG.lease, float)
LEASE = CONFIG.lease

# Requests at a time, and the longest pause between two of one task: what a busy machine can carry.
_TASKS = 6
_PAUSE = 0.06

# How often a request gives its user back, comes to a pod that no client named, and thinks between
# the check and the save: that is where a paused process acts too late.
_RELEASES = 0.03
_ASTRAY = 0.3
_THINKS = 0.15
_THOUGHT = 0.02

_STOP_WITHIN = 10.0

_RENEW, _GUARD, _TIMEOUT = 0.8, 0.5, 2.0
"""Of `indexes_alone`, as of the fast profile."""

Drain = Literal["release", "handover", "keep"]
_DRAINS: list[Drain] = ["release", "handover", "keep"]


@dataclass(frozen=True)
class Order:
    """Which pod to be."""

    store: str
    database: str
    index: int
    holder: str
    seed: int
    users: list[str]
    indexes_alone: bool = False

    def __str__(self) -> str:
        return json.dumps(asdict(self))


class Owned(Protocol):
    """A user that this process owns: podlink's `Ownership`, or the index's."""

    @property
    def uid(self) -> str: ...
    @property
    def token(self) -> int: ...
    def is_valid(self) -> bool: ...
    async def release(self) -> bool: ...


@dataclass
class Player:
    """A user's state as this process knows it."""

    owned: Owned
    version: int
    value: int


class Table:
    """The users that this process plays, and the database that they come from."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.players: dict[str, Player] = {}
        self.busy: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.stopping = asyncio.Event()

    def load(self, owned: Owned, claimed: float) -> Player:
        """Loads a user's state, with the token as the fence."""
        version, value = self.database.load(owned.uid, owned.token, claimed)
        self.players[owned.uid] = player = Player(owned, version, value)
        return player

    def act(self, player: Player, thought: float) -> bool:
        """One act: check, compute, save. Nothing else of this process runs meanwhile."""
        checked = boot_time()
        if not player.owned.is_valid():
            return False
        if thought:
            time.sleep(thought)
        owned, value = player.owned, player.value + 1
        player.version = self.database.save(owned.uid, owned.token, player.version, value, checked)
        player.value = value
        return True

    def drop(self, uid: str, token: int) -> None:
        """Forgets a user, unless it was claimed again."""
        if (player := self.players.get(uid)) is not None and player.owned.token == token:
            del self.players[uid]


class Way(Protocol):
    """How users are owned."""

    async def start(self) -> None: ...
    async def stop(self, drain: Drain) -> None: ...
    async def routed_here(self, uid: str) -> bool:
        """Whether a gateway would send the user's requests to this pod."""

    async def claim(self, uid: str) -> Owned | None: ...
    async def refused(self, owned: Owned) -> None:
        """The database has refused a save."""


class Podlink:
    """By podlink's claims and tokens."""

    def __init__(self, order: Order, table: Table) -> None:
        self._table = table
        self._store = podlink.Store(order.store)
        self._client = podlink.ClientDriver(self._store, NAMESPACE)
        self._index = order.index
        info = podlink.ServerInfo(NAMESPACE, SERVICE, order.index)
        self._server = podlink.ServerDriver(self._store, info, CONFIG)
        self._server.on_drain(self._drained)
        self._server.on_ownership_lost(lambda owned, reason: self._lost(owned, reason))
        self._server.on_ownership_renewed(self._renewed)
        self._server.on_lease_suspended(lambda reason: table.database.count("lease suspended"))
        self._server.on_lease_resumed(lambda reason: table.database.count("lease resumed"))
        self._server.on_lease_lost(lambda reason: table.database.count(f"lease {reason}"))

    async def start(self) -> None:
        while not self._table.stopping.is_set():
            try:
                await self._server.start()
            except podlink.PodlinkError as error:
                # The store is away, or the index is still held: by a process that is paused.
                self._table.database.count(f"start {type(error).__name__}")
            else:
                return

    async def stop(self, drain: Drain) -> None:
        report = await self._server.stop(deadline=_STOP_WITHIN, drain=drain)
        self._table.database.count(f"drained, {drain}")
        for what in ("failed", "unfinished"):
            for _ in getattr(report, what):
                self._table.database.count(f"drain {what}")
        await self._client.aclose()
        await self._store.aclose()

    async def routed_here(self, uid: str) -> bool:
        return await self._client.compute_linked_pod(None, uid, SERVICE) == self._index

    async def claim(self, uid: str) -> Owned | None:
        return await self._server.claim(None, uid)

    async def refused(self, owned: Owned) -> None:
        if await cast("podlink.Ownership", owned).verify():
            self._table.database.count("refused and yet verified")

    async def _drained(self, owned: podlink.Ownership) -> None:
        # After the hook the user is given away, so no act may be under way.
        async with self._table.busy[owned.uid]:
            self._table.drop(owned.uid, owned.token)

    def _lost(self, owned: podlink.Ownership, reason: str) -> None:
        self._table.database.count(f"ownership {reason}")
        self._table.drop(owned.uid, owned.token)

    def _renewed(self, new: podlink.Ownership, old: podlink.Ownership) -> None:
        self._table.database.count("ownership renewed")
        self._table.drop(old.uid, old.token)
        with suppress(Fenced):
            self._table.load(new, boot_time())


@dataclass(frozen=True)
class IndexOwned:
    """A user whose link names this pod's index."""

    uid: str
    valid: Callable[[], bool]
    give_back: Callable[[str], object]
    token: int = 0

    def is_valid(self) -> bool:
        return self.valid()

    async def release(self) -> bool:
        await cast("asyncio.Future[None]", self.give_back(self.uid))
        return True


class IndexesAlone:
    """By pod indexes alone."""

    def __init__(self, order: Order, table: Table) -> None:
        self._table = table
        self._index = str(order.index)
        self._redis = redis.asyncio.Redis.from_url(
            order.store, decode_responses=True, socket_timeout=_TIMEOUT
        )
        self._valid_until = 0.0
        self._renewing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._renewing = asyncio.create_task(self._renew())

    async def stop(self, drain: Drain) -> None:
        for uid in list(self._table.players):
            del self._table.players[uid]
            await self._release(uid)
        await self._redis.aclose()

    async def routed_here(self, uid: str) -> bool:
        return True

    async def claim(self, uid: str) -> Owned | None:
        if boot_time() >= self._valid_until:
            return None
        link = f"link:{uid}"
        await self._redis.set(link, self._index, nx=True)
        owner = str(await self._redis.get(link))
        if owner != self._index:
            if await self._redis.exists(f"lease:{owner}"):
                return None
            await self._redis.set(link, self._index)
        return IndexOwned(uid, lambda: boot_time() < self._valid_until, self._release)

    async def refused(self, owned: Owned) -> None:
        raise AssertionError("nothing refuses this token")

    async def _release(self, uid: str) -> None:
        if await self._redis.get(f"link:{uid}") == self._index:
            await self._redis.delete(f"link:{uid}")

    async def _renew(self) -> None:
        while True:
            sent = boot_time()
            with suppress(redis.RedisError):
                await self._redis.set(f"lease:{self._index}", "", px=int(LEASE * 1000))
                self._valid_until = sent + LEASE - _GUARD
            await asyncio.sleep(_RENEW)


async def _request(way: Way, table: Table, uid: str, rng: random.Random) -> None:
    """One request for the user comes in, perhaps."""
    player = table.players.get(uid)
    if player is None or not player.owned.is_valid():
        if rng.random() >= _ASTRAY and not await way.routed_here(uid):
            return
        owned = await way.claim(uid)
        if owned is None:
            table.players.pop(uid, None)
            return
        claimed = boot_time()
        # After a suspension the same token stands again, and what is in memory with it.
        if player is None or player.owned.token != owned.token:
            player = table.load(owned, claimed)
    try:
        acted = table.act(player, _THOUGHT if rng.random() < _THINKS else 0)
    except Fenced:
        table.drop(uid, player.owned.token)
        await way.refused(player.owned)
        return
    if acted and rng.random() < _RELEASES:
        table.drop(uid, player.owned.token)
        await player.owned.release()


async def _requests(way: Way, table: Table, users: list[str], rng: random.Random) -> None:
    while not table.stopping.is_set():
        uid = rng.choice(users)
        async with table.busy[uid]:
            try:
                await _request(way, table, uid, rng)
            except (podlink.PodlinkError, redis.RedisError, Fenced) as error:
                table.database.count(type(error).__name__)
        await asyncio.sleep(rng.uniform(0, _PAUSE))


async def _main(order: Order) -> None:
    table = Table(Database(order.database, order.holder))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, table.stopping.set)
    rng = random.Random(order.seed)
    way: Way = (IndexesAlone if order.indexes_alone else Podlink)(order, table)
    await way.start()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(_TASKS):
            tasks.create_task(_requests(way, table, order.users, random.Random(rng.random())))
    await way.stop(rng.choice(_DRAINS))


if __name__ == "__main__":
    asyncio.run(_main(Order(**json.loads(sys.argv[1]))))
