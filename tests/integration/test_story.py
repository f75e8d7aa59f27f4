"""The main job: three pods, two clients, ten thousand users, and one pod is killed.

Within lease, grace and one refresh every compute names a pod that is alive, no call fails, both
clients agree, and nobody is moved whose pod lives.
"""

import json
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import podlink
from conftest import ServerFactory
from helpers.pods import PodProcess
from helpers.programs import environment
from helpers.wait import eventually

USERS = 10_000
LEASE, GRACE, REFRESH = 5.0, 1.0, 1.0
CONFIG = podlink.ServerConfig(
    lease=LEASE, renew=0.4, guard=0.2, gap=0.8, grace=GRACE, cpu_factor=0.0
)

# How much longer a machine may take that compiles something at the same time; besides, users are
# routed again no faster than they were at first.
BUSY = 6.0


@dataclass(frozen=True)
class Round:
    """One client's answers for all users, once."""

    began: float
    pods: dict[str, int]
    named: dict[str, float]
    errors: list[str]

    @property
    def ended(self) -> float:
        """When its last answer came."""
        return max(self.named.values())


class ClientProcess:
    """A client in another process that routes all users again and again."""

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "helpers.client_program", url, str(USERS), str(REFRESH)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.rounds: list[Round] = []
        self._last: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def has_gone_round(self, times: int) -> bool:
        """Whether it has routed all users so often; it must not have died meanwhile."""
        assert self._process.poll() is None, f"a client ended with {self._process.returncode}"
        return len(self.rounds) >= times

    def stop(self) -> dict[str, Any]:
        """Ends it after its present round; returns where it has every user, and its counters."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        last = self._last.get(timeout=180)
        assert self._process.wait(180) == 0
        return last

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            if "users" in told:
                self._last.put(told)
            else:
                self.rounds.append(Round(**told))


def since(moment: float, client: ClientProcess) -> list[Round]:
    """The rounds that began after this moment."""
    return [each for each in client.rounds if each.began > moment]


def test_ten_thousand_users_and_a_pod_that_is_killed(server_factory: ServerFactory) -> None:
    server = server_factory()
    seen = server.client()
    users = [f"player-{number}" for number in range(USERS)]
    keys = [f"sf:{{default:lk:{user}}}svc" for user in users]

    def links() -> dict[str, int]:
        return {user: int(str(pod)) for user, pod in zip(users, seen.mget(keys), strict=True)}

    with (
        PodProcess(server.url, 0, config=CONFIG),
        PodProcess(server.url, 1, config=CONFIG) as victim,
        PodProcess(server.url, 2, config=CONFIG),
        ClientProcess(server.url) as one,
        ClientProcess(server.url) as other,
    ):
        began = time.monotonic()
        eventually(lambda: one.has_gone_round(3) and other.has_gone_round(3), within=180)
        placed = max(one.rounds[0].ended, other.rounds[0].ended) - began
        before = links()
        share = Counter(before.values())
        print(f"\n{USERS} users placed by 2 clients within {placed:.2f} s: {sorted(share.items())}")
        assert set(share) == {0, 1, 2}
        assert min(share.values()) > USERS / 6

        promise = LEASE + GRACE + REFRESH + BUSY + 2 * placed
        killed = time.monotonic()
        victim.kill()

        def nobody_names_the_dead() -> bool:
            return all(
                any("1" not in each.pods for each in since(killed, client))
                for client in (one, other)
            )

        eventually(nobody_names_the_dead, within=180)
        # Some more rounds, to see that it stays so.
        counts = [len(one.rounds) + 3, len(other.rounds) + 3]
        eventually(
            lambda: one.has_gone_round(counts[0]) and other.has_gone_round(counts[1]), within=180
        )
        ends = [one.stop(), other.stop()]

    named = [max(each.named.get("1", 0.0) for each in client.rounds) for client in (one, other)]
    print(f"the dead pod was named for {[f'{last - killed:.2f} s' for last in named]}")
    assert max(named) - killed < promise
    for client in (one, other):
        assert [error for each in client.rounds for error in each.errors] == []
        assert all(sum(each.pods.values()) == USERS for each in client.rounds)
    after_all = links()
    assert ends[0]["users"] == ends[1]["users"] == after_all
    moved = {user for user in users if before[user] != after_all[user]}
    assert moved == {user for user in users if before[user] == 1}
    stats = [end["stats"] for end in ends]
    assert sum(each["links_made"] for each in stats) == USERS
    assert sum(each["links_healed"] for each in stats) == len(moved)
    hits = [f"{each['cache_hits'] / each['computes']:.1%}" for each in stats]
    print(f"{len(moved)} users moved, nobody else; no call failed; cache hits {hits}")
    print(f"computes {[each['computes'] for each in stats]}")
