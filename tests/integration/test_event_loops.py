"""One driver on every kind of event loop, on several at once, and after they have ended."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

import podlink
from helpers.loops import LOOPS
from helpers.pods import FRESH, NAMESPACE, PATIENT, SERVICE, running
from helpers.programs import run_program
from helpers.servers import Server

T = TypeVar("T")
Factory = Callable[[], asyncio.AbstractEventLoop]

SOON = 60.0


@pytest.fixture(params=LOOPS)
def factory(request: pytest.FixtureRequest) -> Factory:
    return LOOPS[str(request.param)]


@pytest.fixture
def client(valkey_server: Server) -> podlink.ClientDriver:
    valkey_server.flush()
    store = podlink.Store(valkey_server.url)
    return podlink.ClientDriver(store, NAMESPACE, PATIENT, route_info=FRESH)


def run(factory: Factory, main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, on such a loop."""
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def user(name: object) -> tuple[None, str, str]:
    return None, f"u{name}", SERVICE


async def linked(client: podlink.ClientDriver, name: object, pod: int) -> int:
    """One call that has to go to the store."""
    return await client.set_linked_pod_if_absent(*user(name), pod)


def test_await_and_gather(factory: Factory, client: podlink.ClientDriver) -> None:
    async def main() -> None:
        assert await linked(client, "first", 0) == 0
        pods = await asyncio.gather(*(linked(client, at, at % 7) for at in range(500)))
        assert pods == [at % 7 for at in range(500)]

    run(factory, main())


def test_tasks_and_groups(factory: Factory, client: podlink.ClientDriver) -> None:
    async def main() -> None:
        task = asyncio.create_task(client.set_linked_pod_if_absent(*user("task"), 3))
        assert await task == 3
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(linked(client, at, 1)) for at in range(50)]
        assert [task.result() for task in tasks] == [1] * 50

        async def one_fails() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(client.compute_linked_pod(*user("nobody")))
                group.create_task(asyncio.sleep(SOON))

        with pytest.raises(ExceptionGroup) as caught:
            await one_fails()
        assert caught.group_contains(podlink.NoRoutablePodError)

    run(factory, main())


def test_timeouts_of_asyncio(factory: Factory, client: podlink.ClientDriver) -> None:
    async def main() -> None:
        assert await asyncio.wait_for(linked(client, 1, 4), SOON) == 4
        async with asyncio.timeout(SOON):
            assert await linked(client, 1, 5) == 4
        assert await asyncio.shield(linked(client, 2, 6)) == 6
        for done in asyncio.as_completed([linked(client, at, 9) for at in range(10, 20)]):
            assert await done == 9

    run(factory, main())


def test_from_another_thread(factory: Factory, client: podlink.ClientDriver) -> None:
    loop = factory()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        calls = (client.set_linked_pod_if_absent(*user(at), 2) for at in range(100))
        futures = [asyncio.run_coroutine_threadsafe(call, loop) for call in calls]
        assert [future.result(SOON) for future in futures] == [2] * 100
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_one_driver_after_another_loop_has_ended(
    factory: Factory, client: podlink.ClientDriver
) -> None:
    for at in range(20):
        assert run(factory, linked(client, at, at)) == at
    # The store's connection was made on none of them.
    assert run(asyncio.new_event_loop, linked(client, 0, 9)) == 0


def test_several_loops_on_several_threads_at_once(
    factory: Factory, client: podlink.ClientDriver
) -> None:
    async def play(player: int) -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(linked(client, f"{player}-{at}", player)) for at in range(200)
            ]
        return [task.result() for task in tasks]

    with ThreadPoolExecutor(max_workers=8) as pool:
        futures = [pool.submit(run, factory, play(player)) for player in range(8)]
        for player, future in enumerate(futures):
            assert future.result(SOON) == [player] * 200


def test_loops_of_all_kinds_share_one_flight(valkey_server: Server) -> None:
    valkey_server.flush()
    store = podlink.Store(valkey_server.url)
    client = podlink.ClientDriver(store, NAMESPACE, PATIENT, route_info=FRESH)
    begin = threading.Barrier(len(LOOPS))

    async def computed() -> set[int]:
        await asyncio.to_thread(begin.wait)
        calls = (client.compute_linked_pod(*user("shared")) for _ in range(50))
        return set(await asyncio.gather(*calls))

    async def main() -> None:
        async with running(store, 0, 1, 2):
            threads = (asyncio.to_thread(run, loop, computed()) for loop in LOOPS.values())
            answers: list[set[int]] = await asyncio.gather(*threads)
            assert len(set.union(*answers)) == 1
            assert client.stats()["links_made"] == 1

    asyncio.run(main())


async def test_a_pod_lives_on_when_the_loop_that_started_it_has_ended() -> None:
    store = podlink.Store("memory://")
    server = podlink.ServerDriver(store, podlink.ServerInfo(NAMESPACE, SERVICE, 0))
    await asyncio.to_thread(asyncio.run, server.start())
    client = podlink.ClientDriver(store, NAMESPACE)
    assert await client.compute_linked_pod(*user(1)) == 0
    assert server.holds_lease
    await server.stop()


@pytest.mark.parametrize("name", LOOPS)
def test_a_thousand_loops_that_ended_with_calls_in_flight(valkey_server: Server, name: str) -> None:
    valkey_server.flush()
    printed = run_program(
        """
        import asyncio, gc, os, sys, threading
        import podlink
        from helpers.loops import LOOPS
        from helpers.wait import eventually

        url, name = sys.argv[1:]
        unraisable = []
        sys.unraisablehook = unraisable.append
        threading.excepthook = unraisable.append
        store = podlink.Store(url)
        client = podlink.ClientDriver(store)

        async def leave(round):
            link = client.set_linked_pod_if_absent
            calls = [asyncio.create_task(link(None, f"u{round}-{at}", "svc", 1)) for at in range(5)]
            await asyncio.sleep(0)
            if round % 2:
                await calls[0]
            # asyncio.run cancels the others, if they are not done, and closes the loop.

        def resources():
            gc.collect()
            return len(os.listdir("/proc/self/fd")), threading.active_count()

        def rounds(numbers):
            for round in numbers:
                with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
                    runner.run(leave(round))

        rounds(range(20))
        first = resources()
        rounds(range(1000))
        # What is left of the last loop goes with the next one, and threads take a moment to end.
        LEFT = 10
        eventually(lambda: resources()[0] <= first[0] + LEFT and resources()[1] <= first[1] + 1)
        assert not unraisable, unraisable
        assert asyncio.run(client.get_linked_pod(None, "u999-0", "svc")) == 1
        print("clean")
        """,
        valkey_server.url,
        name,
    )
    assert printed == "clean\n"
