"""One pod as a program: `python -m helpers.pod_program URL SERVICE INDEX CONFIG`.

It prints its incarnation once it is alive. Each line of its standard input is a call of a method of
`PodCalls`, which it answers by a line; both are JSON. It stops when its standard input ends: also
when the test that started it has died.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import podlink


class PodCalls:
    """What a test may ask of the pod."""

    def __init__(self, server: podlink.ServerDriver) -> None:
        self._server = server
        self._hooks = 0
        self._saved = asyncio.Event()
        self._removals: list[str] = []
        self._stop: asyncio.Task[podlink.DrainReport] | None = None

    async def claim(self, *uids: str) -> list[int]:
        """Makes the users the pod's own; their tokens."""
        return [(await self._server.claim(None, uid)).token for uid in uids]

    async def owned_users(self) -> list[str]:
        """The users that the pod owns at this moment."""
        return sorted(self._server.owned_users())

    async def drain(self) -> None:
        """Begins to stop; returns when the hooks of all users have begun. They wait for `saved`."""
        users = len(self._server.owned_users())
        self._server.on_drain(self._save)
        self._stop = asyncio.create_task(self._server.stop(deadline=600))
        while self._hooks < users:  # noqa: ASYNC110 (no event to wait for)
            await asyncio.sleep(0.01)

    async def saved(self) -> dict[str, Any]:
        """Lets the hooks go on; how each removal of a link ended, and the report of the stop."""
        assert self._stop is not None
        self._saved.set()
        report = await self._stop
        return {
            "removals": self._removals,
            "released": report.released,
            "remaining": report.remaining,
        }

    async def remove(self, *uids: str) -> list[str]:
        """Tries to remove the users' links; how each removal ended."""
        return [await self._remove(uid) for uid in uids]

    async def set(self, pod: int, *uids: str) -> list[str]:
        """Tries to link the users to a pod; how each try ended."""
        service = self._server.server_info.service_name
        ends = []
        for uid in uids:
            try:
                await self._server.set_linked_pod(None, uid, service, pod)
                ends.append("ok")
            except podlink.PodlinkError as error:
                ends.append(error.code)
        return ends

    async def block(self, path: str) -> None:
        """Blocks the event loop until the file is there."""
        while not Path(path).exists():  # noqa: ASYNC240 (a blocked loop is the point)
            time.sleep(0.01)  # noqa: ASYNC251

    async def stats(self) -> dict[str, int]:
        """What the driver has counted."""
        return self._server.stats()

    async def _save(self, user: podlink.Ownership) -> None:
        self._hooks += 1
        await self._saved.wait()
        self._removals.append(await self._remove(user.uid))

    async def _remove(self, uid: str) -> str:
        service = self._server.server_info.service_name
        try:
            return str(await self._server.remove_linked_pod(None, uid, service))
        except podlink.PodlinkError as error:
            return error.code


async def _lines() -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        yield line


async def _main(url: str, service: str, index: str, config: str) -> None:
    store = podlink.Store(url)
    pod = podlink.ServerInfo("default", service, int(index))
    figures = podlink.ServerConfig(**json.loads(config))
    async with podlink.ServerDriver(store, pod, figures) as server:
        print(server.incarnation, flush=True)
        calls = PodCalls(server)
        async for line in _lines():
            name, *arguments = json.loads(line)
            answer = await getattr(calls, name)(*arguments)
            print(json.dumps(answer), flush=True)
    await store.aclose()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
