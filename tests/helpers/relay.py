"""A wire between a client and a server, that counts what passes and can be cut without a word."""

import asyncio
import contextlib
import sys
from typing import Self


class Relay:
    """Passes bytes on to a server. Use it in an `async with`.

    What `swallow` does to the connections of that moment is what a lost route does: they stay
    open, and nothing passes any more in either direction.
    """

    def __init__(self, address: str) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._lost = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.address = ""
        self.connections = 0
        self.ended = 0
        self.bytes_up = 0

    @property
    def url(self) -> str:
        """The endpoint, for clients."""
        return f"grpc://{self.address}"

    def swallow(self) -> None:
        """From now on nothing passes on the connections that there are."""
        self._lost = self.connections

    def cut(self) -> None:
        """The same, also for the connections that are made until `mend`."""
        self._lost = sys.maxsize

    def mend(self) -> None:
        """New connections pass again."""
        self.swallow()

    async def _carry(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(answers)
        server, requests = await asyncio.open_connection(self._host, self._port)
        self._writers.add(requests)
        back = asyncio.create_task(self._pass(number, server, answers))
        try:
            await self._pass(number, client, requests, up=True)
            # The client has ended it.
            self.ended += 1
        finally:
            back.cancel()
            for each in (requests, answers):
                each.close()
            await asyncio.gather(back, return_exceptions=True)

    async def _pass(
        self,
        number: int,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        *,
        up: bool = False,
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65_536):
                if number <= self._lost:
                    continue
                sink.write(data)
                await sink.drain()
                self.bytes_up += len(data) * up
        if not up and number > self._lost:
            # The server has ended it, and the client is told.
            sink.close()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *_ended: object) -> None:
        self._server.close()
        # What was accepted just now has a task that has not begun yet.
        await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await self._server.wait_closed()
