"""A database that checks tokens, as docs/fencing.md says, and judges what pods do to it.

Every user has a row: fence, version, value. A pod loads a row and raises its fence, then writes the
value that it computed from what it loaded. The database records the steps in the order in which it
ran them; `judge` finds in this history the updates that were lost, and pods that acted too late.

A token that is always the same turns the check off.
"""

import time
from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import redis

# A save that took longer may have been interrupted between its check and the write.
UNINTERRUPTED = 0.05

_LOAD = """
local row = redis.call('HMGET', KEYS[1], 'fence', 'version', 'value')
local version = row[2] or '0'
local allowed = not row[1] or tonumber(row[1]) <= tonumber(ARGV[1])
redis.call('RPUSH', KEYS[2], ARGV[2] .. ' ' .. version .. ' ' .. (allowed and 1 or 0))
if not allowed then
    return false
end
redis.call('HSET', KEYS[1], 'fence', ARGV[1])
return {version, row[3] or '0'}
"""

_SAVE = """
local row = redis.call('HMGET', KEYS[1], 'fence', 'version')
local version = row[2] or '0'
local allowed = row[1] == ARGV[1]
redis.call('RPUSH', KEYS[2], ARGV[3] .. ' ' .. version .. ' ' .. (allowed and 1 or 0))
if not allowed then
    return 0
end
redis.call('HSET', KEYS[1], 'value', ARGV[2])
return redis.call('HINCRBY', KEYS[1], 'version', 1)
"""

_HISTORY = "history"
_OUTCOMES = "outcomes"


def boot_time() -> float:
    """The machine's clock that no one sets, and that every process reads the same."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Fenced(Exception):  # noqa: N818 (the name that the page gives it)
    """The database has seen a newer token."""


class Load(NamedTuple):
    """A row was loaded, or refused to a token below its fence."""

    uid: str
    token: int
    holder: str
    """The process: pod index and a number."""
    claimed: float
    """The boot time at which the claim had returned."""
    version: int
    """What the row had."""
    allowed: bool


class Save(NamedTuple):
    """A row was written, or refused to a token that is not its fence."""

    uid: str
    token: int
    holder: str
    checked: float
    """The boot time just before the pod asked whether it owned the user."""
    base: int
    """The version that the value was computed from."""
    value: int
    previous_took: float | None
    """How long the previous save of this process took, from its check to the answer."""
    version: int
    """What the row had."""
    allowed: bool


class Database:
    """A connection to the database, for one process."""

    def __init__(self, url: str, holder: str = "") -> None:
        self.client = redis.Redis.from_url(url, decode_responses=True)
        self._holder = holder
        self._load = self.client.register_script(_LOAD)
        self._save = self.client.register_script(_SAVE)
        self._took: float | None = None

    def load(self, uid: str, token: int, claimed: float) -> tuple[int, int]:
        """Raises the fence; returns version and value."""
        text = f"load {uid} {token} {self._holder} {claimed}"
        answer = self._load(keys=[f"player:{uid}", _HISTORY], args=[token, text])
        if answer is None:
            raise Fenced(uid)
        version, value = answer
        return int(version), int(value)

    def save(self, uid: str, token: int, base: int, value: int, checked: float) -> int:
        """Writes the value if the fence is the token; returns the new version."""
        text = f"save {uid} {token} {self._holder} {checked} {base} {value} {self._took}"
        version = self._save(keys=[f"player:{uid}", _HISTORY], args=[token, value, text])
        self._took = boot_time() - checked
        if not version:
            raise Fenced(uid)
        return int(version)

    def count(self, outcome: str) -> None:
        """Counts what else happened, to be shown."""
        self.client.hincrby(_OUTCOMES, outcome, 1)

    def outcomes(self) -> dict[str, int]:
        """What was counted."""
        counted = cast("dict[str, str]", self.client.hgetall(_OUTCOMES))
        return {name: int(number) for name, number in sorted(counted.items())}

    def history(self, start: int = 0) -> list[Load | Save]:
        """The steps from number `start` on, in the order in which the database ran them."""
        lines = cast("list[str]", self.client.lrange(_HISTORY, start, -1))
        return [_step(*line.split()) for line in lines]

    def value(self, uid: str) -> int:
        """The value of a row, without raising its fence."""
        return int(cast("str | None", self.client.hget(f"player:{uid}", "value")) or 0)


def _step(kind: str, uid: str, token: str, holder: str, at: str, *rest: str) -> Load | Save:
    *saved, version, allowed = rest
    who, found = (uid, int(token), holder, float(at)), (int(version), allowed == "1")
    if kind == "load":
        return Load(*who, *found)
    base, value, took = saved
    return Save(*who, int(base), int(value), None if took == "None" else float(took), *found)


def erases(step: Load | Save) -> bool:
    """Whether it is a save that was accepted and not computed from what the row had."""
    return isinstance(step, Save) and step.allowed and step.base != step.version


@dataclass
class Verdict:
    """What a history holds."""

    saves: Counter[str] = field(default_factory=Counter)
    """Accepted saves of each user."""
    corrupt: list[str] = field(default_factory=list)
    """Accepted saves that erased another one: not computed from what the row had."""
    late: list[str] = field(default_factory=list)
    """Refused saves: a newer owner had loaded the user."""
    late_at_once: list[str] = field(default_factory=list)
    """Those among them that nothing interrupted between check and write."""
    believers: list[str] = field(default_factory=list)
    """Checks that said yes although a claim with a newer token had returned before they began."""
    at_once: int = 0
    """Saves that nothing interrupted."""
    owners: Counter[int] = field(default_factory=Counter)
    """How many users had how many tokens."""

    def __str__(self) -> str:
        return (
            f"{self.saves.total()} saves of {len(self.saves)} users, {len(self.corrupt)} corrupt; "
            f"{self.at_once} uninterrupted; {len(self.late)} refused, {len(self.late_at_once)} of "
            f"them uninterrupted; {len(self.believers)} after a newer claim; "
            f"tokens: {sum(n * users for n, users in self.owners.items())}"
        )


def judge(history: list[Load | Save]) -> Verdict:
    """What the history holds."""
    verdict = Verdict()
    grants = _grants(history)
    took = _durations(history)
    for at, step in enumerate(history):
        if isinstance(step, Load):
            continue
        at_once = (took.get(at) or UNINTERRUPTED) < UNINTERRUPTED
        verdict.at_once += at_once
        if grants[step.uid].newest(step.checked) > step.token:
            verdict.believers.append(story(history, at))
        if not step.allowed:
            verdict.late.append(story(history, at))
            if at_once:
                verdict.late_at_once.append(story(history, at))
            continue
        verdict.saves[step.uid] += 1
        if erases(step):
            verdict.corrupt.append(story(history, at))
    verdict.owners.update(len(grant.tokens) for grant in grants.values())
    return verdict


def story(history: list[Load | Save], at: int) -> str:
    """What happened to a user up to a step: each first and last step of a process in turn."""
    uid = history[at].uid
    steps = [step for step in history[: at + 1] if step.uid == uid]
    turns = [
        step
        for before, step, after in zip([None, *steps], steps, [*steps[1:], None], strict=False)
        if before is None
        or after is None
        or (before.holder, type(before)) != (step.holder, type(step))
        or (after.holder, type(after)) != (step.holder, type(step))
    ]
    return "\n".join(str(step) for step in turns[-12:])


class _Grants:
    """The tokens of a user, and when each was known to be given."""

    def __init__(self, loads: list[Load]) -> None:
        self.tokens = {load.token for load in loads}
        self._times: list[float] = []
        self._newest: list[int] = []
        newest = 0
        for load in sorted(loads, key=lambda load: load.claimed):
            newest = max(newest, load.token)
            self._times.append(load.claimed)
            self._newest.append(newest)

    def newest(self, moment: float) -> int:
        """The newest token whose claim had returned by then."""
        before = bisect_right(self._times, moment)
        return self._newest[before - 1] if before else 0


def _grants(history: list[Load | Save]) -> dict[str, _Grants]:
    loads: defaultdict[str, list[Load]] = defaultdict(list)
    for step in history:
        if isinstance(step, Load):
            loads[step.uid].append(step)
    return {uid: _Grants(each) for uid, each in loads.items()}


def _durations(history: list[Load | Save]) -> dict[int, float | None]:
    """How long each save took, by its place; the last one of a killed process said nothing."""
    took: dict[int, float | None] = {}
    last: dict[str, int] = {}
    for at, step in enumerate(history):
        if isinstance(step, Save):
            if step.holder in last:
                took[last[step.holder]] = step.previous_took
            last[step.holder] = at
    return took
