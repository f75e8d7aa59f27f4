"""Pods in processes of their own that are killed, paused and started again."""

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest

import podlink
from helpers.pods import FRESH, NAMESPACE, QUICK, SERVICE, PodProcess, pod_info
from helpers.servers import Server
from helpers.wait import eventually_async

USERS = [f"u{number}" for number in range(60)]


@pytest.fixture
def server(valkey_server: Server) -> Server:
    """One kind of server is enough for stories that take seconds."""
    valkey_server.flush()
    return valkey_server


@pytest.fixture
async def store(server: Server) -> AsyncIterator[podlink.Store]:
    async with podlink.Store(server.url) as opened:
        yield opened


@pytest.fixture
def client(store: podlink.Store) -> podlink.ClientDriver:
    return podlink.ClientDriver(store, NAMESPACE, route_info=FRESH)


async def placed(client: podlink.ClientDriver) -> list[int]:
    """Where the users are."""
    compute = client.compute_linked_pod
    return await asyncio.gather(*(compute(None, user, SERVICE) for user in USERS))


async def all_on(client: podlink.ClientDriver, *pods: int) -> None:
    """Ask until every user is on one of these pods. No answer on the way may be an error."""

    async def settled() -> bool:
        return set(await placed(client)) <= set(pods)

    await eventually_async(settled, within=30)


async def test_the_users_of_a_killed_pod_move_and_nobody_else(store_server: Server) -> None:
    server = store_server
    client = podlink.ClientDriver(podlink.Store(server.url), NAMESPACE, route_info=FRESH)
    with PodProcess(server.url, 0), PodProcess(server.url, 1) as killed:
        before = await placed(client)
        assert set(before) == {0, 1}
        killed.kill()
        await all_on(client, 0)
        assert client.stats()["links_healed"] == before.count(1)


async def test_a_pod_that_is_asked_to_stop_loses_its_users_at_once(
    server: Server, client: podlink.ClientDriver
) -> None:
    with PodProcess(server.url, 0), PodProcess(server.url, 1) as stopped:
        assert set(await placed(client)) == {0, 1}
        stopped.stop()
        fresh = podlink.ClientDriver(podlink.Store(server.url), NAMESPACE)
        assert set(await placed(fresh)) == {0}
        assert fresh.stats()["owners_unsure"] == 0
        await all_on(client, 0)


async def test_a_killed_pod_that_comes_back_in_time_keeps_its_users(
    server: Server, client: podlink.ClientDriver
) -> None:
    with PodProcess(server.url, 0), PodProcess(server.url, 1) as first:
        before = await placed(client)
        first.kill()
        # The new process waits until the old one's lease is surely over, then takes the index.
        with PodProcess(server.url, 1) as second:
            assert second.incarnation > first.incarnation
            of_the_first = [user for user, pod in zip(USERS, before, strict=True) if pod == 1]
            assert of_the_first

            async def back() -> bool:
                return await placed(client) == before

            await eventually_async(back)


async def test_a_pod_that_slept_through_its_death_comes_back_as_another(
    server: Server, store: podlink.Store, client: podlink.ClientDriver
) -> None:
    with PodProcess(server.url, 0), PodProcess(server.url, 1) as sleeper:
        assert set(await placed(client)) == {0, 1}
        sleeper.pause()
        try:
            await all_on(client, 0)
        finally:
            sleeper.resume()
        seen = server.client()

        def incarnation() -> int:
            return int(str(seen.hget("sf:{default:state:svc}#lease", "i:1")))

        # It was declared dead for good; what it held is not its own any more.
        await eventually_async(lambda: incarnation() > sleeper.incarnation)
        assert set(await placed(client)) == {0}

        names = (f"new{number}" for number in itertools.count())

        async def takes_new_users() -> bool:
            return await client.compute_linked_pod(None, next(names), SERVICE) == 1

        await eventually_async(takes_new_users)


async def test_two_processes_with_one_index_are_one_too_many(
    server: Server, store: podlink.Store
) -> None:
    with PodProcess(server.url, 0):
        rival = podlink.ServerDriver(store, pod_info(0), QUICK)
        with pytest.raises(podlink.PodIndexBusyError, match="pod 0 of default/svc") as caught:
            await rival.start(timeout=0.5)
        assert caught.value.retryable
        assert rival.incarnation is None
        assert not rival.holds_lease
