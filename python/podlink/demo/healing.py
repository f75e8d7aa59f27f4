"""How users whose pod is gone are moved to another one."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .users import Users

__all__ = ["Healing", "heal", "shown_codes"]

# Users are asked for again and again, with this pause between the rounds.
_ROUND_SECONDS = 0.1


@dataclass
class Healing:
    """What was seen while users moved.

    Attributes:
        users: how many users had to move.
        moved: user → after how many seconds every client named a pod that runs.
        computes: how many computes there were meanwhile.
        stale: how many of their answers named a pod that was gone.
        errors: how many of them failed, by code.
    """

    users: int
    moved: dict[str, float] = field(default_factory=dict)
    computes: int = 0
    stale: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def lines(self) -> tuple[str, str]:
        """The same as text."""
        times = sorted(self.moved.values())
        when = ""
        if times:
            last = "time to heal" if len(times) == self.users else "the last after"
            when = f", the first after {times[0]:.2f} s, {last} {times[-1]:.2f} s"
        failed = f"{self.errors.total():,} of {self.computes:,} computes failed"
        stale = f"{self.stale:,} named a pod that was gone"
        return (
            f"{len(times):,} of {self.users:,} users moved{when}",
            f"meanwhile {failed}{shown_codes(self.errors)}, and {stale}",
        )


def shown_codes(errors: Counter[str]) -> str:
    """How often each code was seen, in parentheses; nothing if there was none."""
    codes = ", ".join(f"{code} {count:,}" for code, count in errors.most_common())
    return f" ({codes})" if codes else ""


async def heal(
    users: Users,
    uids: Sequence[str],
    gone: set[int],
    since: float,
    patience: float,
    progress: Callable[[int], None],
) -> Healing:
    """Asks every client for users until none names a pod that is gone.

    Args:
        users: the users and the clients.
        uids: the users that have to move.
        gone: the pods that are gone.
        since: the moment of ``time.monotonic`` at which they went.
        patience: after so many seconds without a move it is given up.
        progress: called with how many users have moved.
    """
    healing = Healing(len(uids))
    homes: dict[str, int] = {}
    convinced: defaultdict[str, set[int]] = defaultdict(set)

    def on_answer(client: int, uid: str, pod: int) -> None:
        if pod in gone:
            healing.stale += 1
            return
        convinced[uid].add(client)
        if len(convinced[uid]) == len(users.clients) and uid not in homes:
            homes[uid] = pod
            healing.moved[uid] = time.monotonic() - since
            progress(len(homes))

    while waiting := [uid for uid in uids if uid not in homes]:
        for tally in await users.ask(waiting, on_answer):
            healing.computes += tally.computes
            healing.errors += tally.errors
        last = since + max(healing.moved.values(), default=0.0)
        if time.monotonic() - last > patience:
            break
        progress(len(homes))
        await asyncio.sleep(_ROUND_SECONDS)
    await users.settle(homes)
    return healing
