"""A pod in a process of its own: ``python -m podlink.demo.pod_process``, started by the demo.

It speaks JSON lines: the first line of stdin has its identity and the URL of its store (a command
line would show the password to all users of the machine), every further one is a request
``[operation, argument, …]``, and every request gets one line on stdout, ``{"answer": …}`` or
``{"error": [code, message, retryable, details]}``. At the end of stdin the pod stops cleanly, so
it never outlives the demo.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from typing import Any

from podlink import PodlinkError, ServerConfig, ServerInfo, Store

from .pod import GamePod

__all__ = ["LINE_LIMIT", "OPERATIONS"]

OPERATIONS = frozenset({"admit", "deny_new_calls", "dismiss", "holds_lease", "start", "stop"})
"""The operations that the demo may request."""

LINE_LIMIT = 1 << 24
"""The longest request, in bytes."""


async def _serve() -> None:
    requests = asyncio.StreamReader(limit=LINE_LIMIT)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    first = await requests.readline()
    if not first:
        return
    settings = json.loads(first)
    store = Store(settings["store"])
    pod = GamePod(store, ServerInfo(**settings["info"]), ServerConfig(**settings["config"]))
    try:
        while line := await requests.readline():
            reply = await _answer(pod, json.loads(line))
            sys.stdout.write(json.dumps(reply) + "\n")
            sys.stdout.flush()
    finally:
        with suppress(PodlinkError):
            await pod.stop(settings["config"]["timeout"])
        with suppress(PodlinkError):
            await store.aclose()


async def _answer(pod: GamePod, request: list[Any]) -> dict[str, Any]:
    operation, *arguments = request
    if operation not in OPERATIONS:
        raise ValueError(f"the demo asked for {operation!r}")
    try:
        return {"answer": await getattr(pod, operation)(*arguments)}
    except PodlinkError as error:
        return {"error": [error.code, str(error), error.retryable, error.details]}


if __name__ == "__main__":
    # The demo may be gone before it has read the answer; then there is no reader.
    with suppress(BrokenPipeError):
        asyncio.run(_serve())
