"""The pods as the demo handles them: in this process, or in processes that can be killed."""

from __future__ import annotations

import asyncio
import json
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from podlink import PodlinkError, PodNotAvailableError, ServerConfig, ServerInfo, Store
from podlink.errors import from_core

from .pod import GamePod

__all__ = ["LocalPod", "Pod", "ProcessPod"]

# A child whose stdin has ended and that goes on is killed after so long.
_STOP_SECONDS = 5.0

# A child that does not answer for so long hangs: a start outwaits a lease, nothing takes longer.
_ANSWER_SECONDS = 60.0


class Pod(ABC):
    """One life of one pod, from ``start`` to ``stop`` or ``kill``."""

    def __init__(self, info: ServerInfo, config: ServerConfig) -> None:
        self.index: int = info.pod_index
        self._info = info
        self._config = config

    @abstractmethod
    async def start(self) -> int:
        """Takes the pod's index; returns its incarnation."""

    @abstractmethod
    async def ask(self, operation: str, *arguments: Any) -> Any:
        """Requests one of ``GamePod``'s operations."""

    @abstractmethod
    async def kill(self) -> str:
        """Ends the pod without a withdrawal; returns what was done to it."""

    @abstractmethod
    async def close(self) -> None:
        """Ends what is left of the pod, cleanly if it can; never fails."""

    async def admit(self, uids: Iterable[str]) -> None:
        """Lets users in."""
        await self.ask("admit", list(uids))

    async def dismiss(self, uids: Iterable[str]) -> None:
        """Lets users go."""
        await self.ask("dismiss", list(uids))

    async def deny_new_calls(self) -> None:
        """Keeps its users from now on, and takes no new ones."""
        await self.ask("deny_new_calls")

    async def stop(self) -> float:
        """Leaves the service cleanly; returns how many seconds that took."""
        seconds: float = await self.ask("stop", self._config.timeout)
        await self.close()
        return seconds

    async def is_alive(self) -> bool:
        """Whether the pod runs and may act for its users at this moment."""
        try:
            return bool(await self.ask("holds_lease"))
        except PodlinkError:
            return False

    def _gone(self, why: str) -> PodNotAvailableError:
        return PodNotAvailableError(f"pod {self.index} of the demo {why}")


class LocalPod(Pod):
    """A pod in this process, for a store that other processes cannot share."""

    def __init__(self, store: Store, info: ServerInfo, config: ServerConfig) -> None:
        super().__init__(info, config)
        # The only reference to the pod, so that dropping it is its death.
        self._pod: GamePod | None = GamePod(store, info, config)

    async def start(self) -> int:
        """See ``Pod``."""
        incarnation: int = await self.ask("start")
        return incarnation

    async def ask(self, operation: str, *arguments: Any) -> Any:
        """Calls the pod."""
        if self._pod is None:
            raise self._gone("is gone")
        return await getattr(self._pod, operation)(*arguments)

    async def kill(self) -> str:
        """Drops the pod."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it is dropped on purpose
            self._pod = None
        return "its driver was dropped without a stop, and its renewals ended"

    async def close(self) -> None:
        """Stops the pod."""
        if self._pod is not None:
            with suppress(PodlinkError):
                await self.ask("stop", self._config.timeout)
            self._pod = None


class ProcessPod(Pod):
    """A pod in a process of its own, with a connection of its own."""

    def __init__(self, store_url: str, info: ServerInfo, config: ServerConfig) -> None:
        super().__init__(info, config)
        self._store_url = store_url
        self._process: asyncio.subprocess.Process | None = None
        # One request at a time: answers come in the order of the requests.
        self._turn = asyncio.Lock()

    async def start(self) -> int:
        """Starts the process, and the pod in it."""
        # -P: a file in the present directory must not stand in for a module of Python's. A
        # session of its own: Ctrl-C is for the demo, which then ends its pods itself.
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "podlink.demo.pod_process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        settings = {
            "store": self._store_url,
            "info": {
                "namespace": self._info.namespace,
                "service_name": self._info.service_name,
                "pod_index": self._info.pod_index,
            },
            "config": asdict(self._config),
        }
        await self._send(settings)
        incarnation: int = await self.ask("start")
        return incarnation

    async def ask(self, operation: str, *arguments: Any) -> Any:
        """Sends a request and waits for its answer, which may be an error."""
        async with self._turn:
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    line = await self._request([operation, *arguments])
            except TimeoutError:
                raise self._gone(f"did not answer {operation}") from None
        reply = json.loads(line)
        if "error" in reply:
            raise from_core(*reply["error"])
        return reply["answer"]

    async def kill(self) -> str:
        """Kills the process and waits until it is gone."""
        process = self._running()
        process.kill()
        status = await process.wait()
        self._process = None
        return f"SIGKILL to process {process.pid}, which ended with status {status}"

    async def close(self) -> None:
        """Ends the process's stdin, upon which it stops its pod; kills it if it does not."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _request(self, request: list[Any]) -> bytes:
        await self._send(request)
        process = self._running()
        if process.stdout is None or not (line := await process.stdout.readline()):
            raise self._gone(f"ended by itself, with status {await process.wait()}")
        return line

    async def _send(self, message: object) -> None:
        process = self._running()
        if process.stdin is not None:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            # If the process has ended, reading its answer finds out why.
            with suppress(ConnectionError):
                await process.stdin.drain()

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise self._gone("is gone")
        return self._process
