"""A pod whose event loop is blocked takes no new users, and takes them again when it answers.

The renewals are podlink's own: such a pod stayed READY for ever, and half of the new users were
sent to a program that did not answer.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import podlink
from helpers.loops import LOOPS
from helpers.pods import FRESH, SERVICE, STEADY, PodProcess, pod_info
from helpers.servers import Server
from helpers.wait import eventually, eventually_async

# Short enough for a test, long enough for a loop of a busy machine.
WATCHED = replace(STEADY, renew=0.2, watchdog=1.0)

READY, DENY = podlink.RoutingState.READY, podlink.RoutingState.DENY_NEW_CALL


async def seen(info: podlink.RouteInfoDriver, index: int = 0) -> podlink.RoutingState:
    """The state of a pod as this process sees it."""
    return (await info.get_all_service_state(None, SERVICE))[index].routing_state


async def test_a_blocked_loop_takes_no_new_users(store_server: Server, tmp_path: Path) -> None:
    async with podlink.connect(store_server.url, route_info=FRESH) as connection:
        info, client = connection.info, connection.client
        with (
            PodProcess(store_server.url, 0, config=WATCHED) as blocked,
            PodProcess(store_server.url, 1, config=WATCHED),
        ):
            await eventually_async(lambda: seen(info))
            old = await asyncio.to_thread(blocked.ask, "claim", "old")
            go_on = tmp_path / "go on"
            call = asyncio.create_task(asyncio.to_thread(blocked.ask, "block", str(go_on)))

            async def denied() -> bool:
                return await seen(info) == DENY

            async def ready() -> bool:
                return await seen(info) == READY

            await eventually_async(denied)
            await eventually_async(lambda: not info.is_pod_routable(None, SERVICE, 0))
            chosen = {await client.compute_linked_pod(None, f"u{at}", SERVICE) for at in range(50)}
            assert chosen == {1}
            # Its users stay: the pod is alive.
            assert await client.compute_linked_pod(None, "old", SERVICE) == 0
            go_on.touch()
            await call
            await eventually_async(ready)
            stats = await asyncio.to_thread(blocked.ask, "stats")
            assert stats["program_stalls"] == 1
            assert await asyncio.to_thread(blocked.ask, "claim", "old") == old


async def test_a_stopped_process_is_no_stalled_program(valkey_server: Server) -> None:
    valkey_server.flush()
    config = replace(STEADY, renew=0.2, watchdog=2.0)
    with PodProcess(valkey_server.url, 0, config=config) as pod:
        began = time.monotonic()
        pod.pause()
        await eventually_async(lambda: time.monotonic() > began + 5)
        pod.resume()
        published = (await asyncio.to_thread(pod.ask, "stats"))["published"]

        async def published_more() -> bool:
            stats = await asyncio.to_thread(pod.ask, "stats")
            assert stats["program_stalls"] == 0
            return bool(stats["published"] > published + 20)

        await eventually_async(published_more)


class Program:
    """A program whose loop runs on a thread of its own, so that a test may block it."""

    def __init__(self, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._loop = new_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, coroutine: object) -> object:
        """What the coroutine returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)  # type: ignore[arg-type]

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """Blocks the loop."""
        begun, go_on = threading.Event(), threading.Event()

        def block() -> None:
            begun.set()
            go_on.wait()

        self._loop.call_soon_threadsafe(block)
        assert begun.wait(60)
        try:
            yield
        finally:
            go_on.set()

    def close(self) -> None:
        """Ends the loop, and closes it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def stalls(server: podlink.ServerDriver) -> int:
    """How often the program has stalled."""
    return server.stats()["program_stalls"]


@pytest.mark.parametrize("kind", LOOPS)
def test_a_stall_is_counted_and_logged(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    store, program = podlink.Store(), Program(LOOPS[kind])
    server = podlink.ServerDriver(store, pod_info(0), WATCHED)
    with caplog.at_level(logging.WARNING, logger="podlink"):
        program.run(server.start())
        with program.blocked():
            eventually(lambda: stalls(server) == 1)
            eventually(lambda: "takes no new users until it does" in caplog.text)
            assert store.stats().value("podlink_program_stalls_total") == 1
        eventually(lambda: "the program answers again" in caplog.text)
    assert program.run(server.get_routing_state()) == READY
    program.run(server.stop())
    program.close()


def test_a_loop_that_is_closed_does_not_answer() -> None:
    # The main task has failed, and other threads keep the process alive.
    store, program = podlink.Store(), Program(asyncio.new_event_loop)
    server = podlink.ServerDriver(store, pod_info(0), WATCHED)
    program.run(server.start())
    program.close()
    del program
    eventually(lambda: stalls(server) == 1)

    async def another_loop() -> None:
        # The next loop that calls the driver takes the place of the closed one.
        async with podlink.RouteInfoDriver(store, config=FRESH) as info:

            async def ready() -> bool:
                await server.set_linked_pod(None, "u1", SERVICE, 0)
                return await seen(info) == READY

            assert await seen(info) == DENY
            await eventually_async(ready)
            await server.stop()

    asyncio.run(another_loop())


def test_a_program_without_a_loop_is_not_asked_on_its_own_threads() -> None:
    # podlink's own thread answers for it: nothing can be asked of a thread that runs no loop.
    server = podlink.ServerDriver(podlink.Store(), pod_info(0), WATCHED)
    server.submit("start").result(60)
    published = server.stats()["published"]
    eventually(lambda: server.stats()["published"] > published + 15)
    assert stalls(server) == 0
    server.submit("stop").result(60)


def test_a_stop_takes_the_configured_deadline() -> None:
    async def main() -> float:
        config = replace(STEADY, stop_deadline=1.0)
        hanging = asyncio.Event()
        async with podlink.connect() as connection:
            began = time.monotonic()
            async with connection.server(pod_info(0), config) as server:
                await server.claim(None, "u1")
                server.on_drain(lambda _user: hanging.wait())
            return time.monotonic() - began

    # Hooks may take 18 s of a stop that lasts 25 s.
    assert asyncio.run(main()) < 15
