"""A pod of the demo's game: users in memory, and their number as its load."""

from __future__ import annotations

import time
from collections.abc import Iterable

from podlink import RoutingState, ServerConfig, ServerDriver, ServerInfo, Store

__all__ = ["GamePod"]


class GamePod:
    """One life of one pod. Dropping it without ``stop`` ends its renewals without a withdrawal."""

    def __init__(self, store: Store, info: ServerInfo, config: ServerConfig) -> None:
        self._server = ServerDriver(store, info, config)
        self._users: set[str] = set()

    async def start(self) -> int:
        """Takes the pod's index; returns the number of this process among those that had it."""
        await self._server.start()
        return self._server.incarnation or 0

    async def admit(self, uids: Iterable[str]) -> int:
        """Lets users in and reports the load; returns how many users there are now."""
        return await self._change(self._users | set(uids))

    async def dismiss(self, uids: Iterable[str]) -> int:
        """Lets users go and reports the load; returns how many users there are now."""
        return await self._change(self._users - set(uids))

    async def _change(self, users: set[str]) -> int:
        self._users = users
        await self._server.set_load_state(len(users))
        return len(users)

    async def deny_new_calls(self) -> None:
        """Keeps its users from now on, and takes no new ones."""
        await self._server.set_routing_state(RoutingState.DENY_NEW_CALL)

    async def stop(self, deadline: float) -> float:
        """Leaves the service cleanly; returns how many seconds that took."""
        started = time.perf_counter()
        await self._server.stop(deadline=deadline)
        return time.perf_counter() - started

    async def holds_lease(self) -> bool:
        """Whether the pod may act for its users at this moment."""
        return self._server.holds_lease
