"""The server that everything is measured on, the pods in it, and what becomes of the links.

A Valkey of its own, without persistence. Its pods are written into it with a long lease, so that no
process has to renew them while somebody measures.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))  # the same servers as the tests

import redis
from _results import PROJECT

from helpers.pods import NAMESPACE, SERVICE
from helpers.raw_pods import publish
from helpers.server_paths import valkey_server
from helpers.servers import Server

__all__ = [
    "KEY_FORMAT",
    "METADATA",
    "NAMESPACE",
    "SERVICE",
    "SOURCE",
    "TTL_MS",
    "Server",
    "forget",
    "link_key",
    "names",
    "publish",
    "valkey",
]

SOURCE = (PROJECT / "src" / "store" / "lua" / "set_if_absent.lua").read_text("utf-8")
"""The script that a compute runs."""
TTL_MS = 300_000
_BEFORE, _AFTER = f"sf:{{{NAMESPACE}:lk:", f"}}{SERVICE}"
KEY_FORMAT = f"{_BEFORE}{{uid}}{_AFTER}"
"""The key of a link, with `{uid}` where the user's name goes."""

METADATA = {"address": "10.0.0.1:7000", "version": "1.0.0"}
"""What each pod says of itself besides its load."""
_LEASE = 36_000.0
_AT_ONCE = 1_000


def link_key(uid: str) -> str:
    """The key of a link, as podlink writes it."""
    return f"{_BEFORE}{uid}{_AFTER}"


def names(prefix: str, many: int) -> list[str]:
    """Users that nobody has seen, if nobody has used the prefix."""
    return [f"{prefix}-{number:07}" for number in range(many)]


@contextmanager
def valkey(pods: int = 1) -> Iterator[Server]:
    """A server with that many pods, until the block ends."""
    with Server(valkey_server()) as server:
        publish(server, range(pods), metadata=METADATA, lease=_LEASE)
        yield server


def forget(client: redis.Redis, uids: Sequence[str]) -> None:
    """Removes the links, so that the server is as empty in the last round as in the first.

    There have to be as many as calls were made, or something else was measured than was meant.
    """
    removed = 0
    for start in range(0, len(uids), _AT_ONCE):
        removed += client.unlink(*map(link_key, uids[start : start + _AT_ONCE]))
    if removed != len(uids):
        raise SystemExit(f"{len(uids)} calls made {removed} links: not every call was a miss")
