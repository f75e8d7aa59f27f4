"""How users whose pod is gone come to another one."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .crowd import Crowd, Tally

__all__ = ["Healing", "heal", "shown_codes"]

# Users are asked for again and again, with this pause between the rounds.
_ROUND_SECONDS = 0.1


@dataclass
class Healing:
    """What was seen while users moved.

    Attributes:
        users: how many users had to move.
        moved: user → after how many seconds every client named a pod that runs.
        tally: all computes meanwhile.
        stale: how many of their answers named a pod that was gone.
        errors: how many of them failed, by code.
    """

    users: int
    moved: dict[str, float] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    stale: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def lines(self) -> tuple[str, str]:
        """The same in words."""
        times = sorted(self.moved.values())
        when = ""
        if times:
            when = f", the first after {times[0]:.2f} s, the last after {times[-1]:.2f} s"
        failed = f"{self.errors.total():,} of {self.tally.computes:,} computes failed"
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
    crowd: Crowd,
    uids: Sequence[str],
    gone: set[int],
    since: float,
    within: float,
    progress: Callable[[int], None],
) -> Healing:
    """Asks every client for users until none names a pod that is gone.

    Args:
        crowd: the users and the clients.
        uids: the users who have to move.
        gone: the pods that are gone.
        since: the moment of ``time.monotonic`` at which they went.
        within: after so many seconds it is given up.
        progress: told how many users have moved.
    """
    healing = Healing(len(uids))
    homes: dict[str, int] = {}
    while True:
        tallies = await crowd.ask(uids)
        now = time.monotonic() - since
        for tally in tallies:
            healing.tally.add(tally)
            healing.errors += tally.errors
            healing.stale += sum(pod in gone for pod in tally.answers.values())
        for uid in uids:
            answers = [tally.answers.get(uid) for tally in tallies]
            if uid not in homes and all(pod is not None and pod not in gone for pod in answers):
                homes[uid] = tallies[0].answers[uid]
                healing.moved[uid] = now
        progress(len(homes))
        if len(homes) == len(uids) or now > within:
            break
        await asyncio.sleep(_ROUND_SECONDS)
    await crowd.settle(homes)
    return healing
