"""Cancelling is instant and abandons only the waiter: the work goes on, and so do the others."""

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import podlink
from conftest import ServerFactory
from helpers.loops import LOOPS
from helpers.pods import FRESH, NAMESPACE, SERVICE, running
from helpers.servers import Server
from helpers.wait import eventually_async

USER = (None, "u1", SERVICE)

# Longer than any test: nothing here ends by podlink's own deadline.
PATIENT = podlink.ClientConfig(timeout=60)


@pytest.fixture
def server(server_factory: ServerFactory) -> Server:
    return server_factory()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[podlink.ClientDriver]:
    async with podlink.Store(server.url) as store:
        client = podlink.ClientDriver(store, NAMESPACE, PATIENT, route_info=FRESH)
        await store.ping()  # connected before anybody pauses the server
        yield client


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancels the task and sees it end, though what it waits for does not."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)


async def test_the_cancelled_caller_leaves_and_the_work_goes_on(
    server: Server, client: podlink.ClientDriver
) -> None:
    server.pause()
    task = asyncio.create_task(client.set_linked_pod_if_absent(*USER, 4))
    await asyncio.sleep(0)
    await cancelled(task)
    server.resume()

    async def linked() -> bool:
        return await client.get_linked_pod_not_cache(*USER) == 4

    await eventually_async(linked)


async def test_others_who_wait_for_the_same_answer_get_it(
    server: Server, client: podlink.ClientDriver
) -> None:
    store = podlink.Store(server.url)
    async with running(store, 0):
        await client.compute_linked_pod(None, "warm", SERVICE)
        server.pause()
        tasks = [asyncio.create_task(client.compute_linked_pod(*USER)) for _ in range(6)]
        await eventually_async(lambda: client.stats()["flights_joined"] == 5)
        # Whoever came first and started the question may leave like anybody else.
        await cancelled(tasks[0])
        await cancelled(tasks[3])
        server.resume()
        assert [await task for task in (*tasks[1:3], *tasks[4:])] == [0] * 4
        assert client.stats()["links_made"] == 2


async def test_wait_for_ends_when_it_says(server: Server, client: podlink.ClientDriver) -> None:
    server.pause()
    with pytest.raises(TimeoutError) as caught:
        await asyncio.wait_for(client.get_linked_pod(*USER), 0.05)
    # asyncio's, not podlink's: podlink's deadline is far away.
    assert not isinstance(caught.value, podlink.PodlinkError)
    server.resume()
    assert await client.get_linked_pod(*USER) is None


async def test_a_group_that_fails_takes_its_calls_along(
    server: Server, client: podlink.ClientDriver
) -> None:
    server.pause()

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            for at in range(20):
                tasks.create_task(client.get_linked_pod(None, f"u{at}", SERVICE))
            tasks.create_task(client.get_linked_pod(None, "", SERVICE))

    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(group(), 5)
    assert caught.group_contains(podlink.InvalidParameterError)
    server.resume()
    assert await client.get_linked_pod(*USER) is None


async def test_cancelled_before_it_began_it_never_began(client: podlink.ClientDriver) -> None:
    task = asyncio.create_task(client.set_linked_pod_if_absent(*USER, 4))
    await cancelled(task)
    assert await client.get_linked_pod_not_cache(*USER) is None


async def test_a_cancelled_start_is_ended_by_stop(server: Server) -> None:
    async with podlink.Store(server.url) as store:
        await store.ping()
        pod = podlink.ServerDriver(store, podlink.ServerInfo(NAMESPACE, SERVICE, 0))
        server.pause()
        task = asyncio.create_task(pod.start())
        await asyncio.sleep(0)
        await cancelled(task)
        server.resume()
        await pod.stop()
        assert not pod.holds_lease
        seen = server.client()
        await eventually_async(lambda: seen.hkeys("sf:{default:state:svc}") == [])


@pytest.mark.parametrize("name", LOOPS)
def test_cancelling_at_any_moment_leaves_no_mess(server: Server, name: str) -> None:
    # Also when the answer, or the error, has arrived already and is about to be delivered.
    chance = random.Random(7)
    complaints: list[dict[str, Any]] = []

    async def call(client: podlink.ClientDriver, at: int) -> int | None:
        if at % 3:
            return await client.set_linked_pod_if_absent(None, f"u{at % 50}", SERVICE, 1)
        return await client.compute_linked_pod(None, f"nobody{at % 5}", "no-service")

    async def main(client: podlink.ClientDriver) -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: complaints.append(context)
        )
        for _ in range(20):
            tasks = [asyncio.create_task(call(client, at)) for at in range(100)]
            for task in chance.sample(tasks, k=len(tasks)):
                await asyncio.sleep(chance.choice([0, 0, 0.0005]))
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            expected = (int, asyncio.CancelledError, podlink.NoRoutablePodError)
            assert all(isinstance(each, expected) for each in ended), ended

    store = podlink.Store(server.url)
    client = podlink.ClientDriver(store, NAMESPACE, PATIENT)
    factory: Callable[[], asyncio.AbstractEventLoop] = LOOPS[name]
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(client))
    gc.collect()
    assert complaints == []
