"""A store that is down, dies, comes back, or stops in the middle: errors in time, no link lost."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

import podlink
from conftest import ServerFactory
from helpers.faults import CALLS, READS, USER, failure
from helpers.pods import FRESH, NAMESPACE, SERVICE, running
from helpers.servers import Server
from helpers.wait import eventually_async

KINDS = ["valkey", "redis7"]
LIMIT = 0.4

# Pods that outlive every outage in this file.
STEADY = podlink.ServerConfig(cpu_factor=0.0)


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, server_factory: ServerFactory) -> Server:
    return server_factory(str(request.param), durable=True)


@pytest.fixture
async def store(server: Server) -> AsyncIterator[podlink.Store]:
    async with podlink.Store(server.url, connect_timeout=0.3) as opened:
        yield opened


@pytest.fixture
def client(store: podlink.Store) -> podlink.ClientDriver:
    return podlink.ClientDriver(store, NAMESPACE, route_info=FRESH)


async def linked(client: podlink.ClientDriver, users: int) -> None:
    """So many users with links."""
    link = client.set_linked_pod_if_absent
    await asyncio.gather(*(link(None, f"u{at}", SERVICE, 0, timeout=30) for at in range(users)))


async def failures(client: podlink.ClientDriver) -> dict[str, podlink.PodlinkError]:
    """How each operation fails; all at once, because each takes its whole time."""
    calls = (failure(call, client, timeout=LIMIT) for call in CALLS.values())
    return dict(zip(CALLS, await asyncio.gather(*calls), strict=True))


async def test_a_store_that_is_down_at_first_use(
    server: Server, client: podlink.ClientDriver
) -> None:
    server.kill()
    for operation, error in (await failures(client)).items():
        assert isinstance(error, podlink.StoreUnavailableError), operation
        assert isinstance(error, ConnectionError)
        assert error.retryable
        assert f"127.0.0.1:{server.port}" in str(error)
        # Only of a write it has to be said what became of it.
        if operation == "set_linked_pod_if_absent":
            assert error.outcome == "not sent"
        if operation in READS:
            assert error.outcome is None
    server.restart()
    # The same driver, and nobody told it.
    assert await client.set_linked_pod_if_absent(*USER, 3, timeout=30) == 3


async def test_a_call_waits_for_a_store_that_comes_up_in_time(
    server: Server, client: podlink.ClientDriver
) -> None:
    server.kill()
    task = asyncio.create_task(client.set_linked_pod_if_absent(*USER, 3, timeout=60))
    error = await failure(READS["get_linked_pod"], client, timeout=LIMIT)
    assert isinstance(error, podlink.StoreUnavailableError)
    assert not task.done()
    await asyncio.to_thread(server.restart)
    assert await task == 3


async def test_a_store_that_is_nowhere() -> None:
    async with podlink.Store("redis://no-such-host.invalid:6379") as store:
        with pytest.raises(podlink.StoreUnavailableError, match="no-such-host"):
            await store.ping(timeout=LIMIT)


async def test_a_store_that_is_no_store() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        async with podlink.Store(f"redis://127.0.0.1:{port}") as store:
            with pytest.raises(podlink.StoreUnavailableError, match=str(port)):
                await store.ping(timeout=LIMIT)


async def test_a_store_that_listens_and_never_answers() -> None:
    silent = asyncio.Event()

    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()
        writer.close()

    listener = await asyncio.start_server(ignore, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        async with podlink.Store(f"redis://127.0.0.1:{port}", connect_timeout=0.1) as store:
            with pytest.raises(podlink.StoreUnavailableError, match=str(port)):
                await store.ping(timeout=LIMIT)
        silent.set()


async def test_a_store_that_is_killed_and_comes_back_has_lost_nothing(
    server: Server, client: podlink.ClientDriver
) -> None:
    await linked(client, 300)
    server.kill()
    fresh = podlink.ClientDriver(podlink.Store(server.url), NAMESPACE)
    for error in (await failures(fresh)).values():
        assert isinstance(error, podlink.StoreUnavailableError)
    server.restart()
    users = [f"u{at}" for at in range(300)]
    assert await client.batch_get_linked_pod(None, users, SERVICE, timeout=30) == {0: users}


async def test_an_outage_is_two_lines_in_the_log(
    server: Server, client: podlink.ClientDriver, caplog: pytest.LogCaptureFixture
) -> None:
    # The store was lost and found again in silence: only the calls that failed said so.
    def lines(text: str) -> list[logging.LogRecord]:
        return [record for record in caplog.records if text in record.message]

    with caplog.at_level(logging.WARNING, "podlink"):
        await linked(client, 1)
        assert lines("store") == []
        server.kill()
        await failures(client)
        await eventually_async(lambda: lines("the store is away"))
        await failures(client)
        server.restart()
        await client.get_linked_pod_not_cache(*USER, timeout=30)
        await eventually_async(lambda: lines("the store is back"))
    [lost], [found] = lines("the store is away"), lines("the store is back")
    assert lost.name == found.name == "podlink.store.redis.supervisor"
    port = server.url.rpartition(":")[2]
    assert port in lost.message
    facts = vars(found)["podlink"]
    assert port in facts["store"]
    assert float(facts["away_seconds"]) > 0


async def test_calls_under_way_when_the_store_is_killed(
    server: Server, client: podlink.ClientDriver
) -> None:
    await linked(client, 10)
    made: set[str] = set()
    failed: list[podlink.PodlinkError] = []

    async def work(worker: int) -> None:
        for at in range(100_000):
            user = f"w{worker}-{at}"
            try:
                assert await client.set_linked_pod_if_absent(None, user, SERVICE, 1, timeout=1) == 1
            except podlink.PodlinkError as error:
                failed.append(error)
                return
            made.add(user)

    workers = [asyncio.create_task(work(worker)) for worker in range(20)]
    await eventually_async(lambda: len(made) > 200)
    await asyncio.to_thread(server.kill)
    await asyncio.wait_for(asyncio.gather(*workers), 30)
    expected = (podlink.StoreUnavailableError, podlink.OperationTimeoutError)
    assert len(failed) == 20
    assert all(isinstance(error, expected) for error in failed), failed
    assert {error.outcome for error in failed} <= {"not sent", "unknown"}
    server.restart()
    # What was acknowledged is there; what is unknown may be there or not.
    found = await client.batch_get_linked_pod(None, sorted(made), SERVICE, timeout=30)
    assert found == {1: sorted(made)}


async def test_cached_users_are_served_while_the_store_is_away(
    server: Server, store: podlink.Store, client: podlink.ClientDriver
) -> None:
    async with running(store, 0, 1, config=STEADY):
        home = await client.compute_linked_pod(*USER)
        server.kill()
        # As long as the pod's lease, as far as this client knows it.
        for _ in range(100):
            assert await client.compute_linked_pod(*USER) == home
        error = await failure(
            lambda d, limit: d.compute_linked_pod(None, "new", SERVICE, timeout=limit),
            client,
            timeout=LIMIT,
        )
        assert isinstance(error, (podlink.StoreUnavailableError, podlink.OperationTimeoutError))
        server.restart()
        assert await client.compute_linked_pod(None, "new", SERVICE, timeout=30) in {0, 1}
        assert await client.compute_linked_pod(*USER) == home


async def test_a_store_that_stopped_where_it_stood(
    server: Server, store: podlink.Store, client: podlink.ClientDriver
) -> None:
    async with running(store, 0, config=STEADY):
        assert await client.compute_linked_pod(None, "another", SERVICE) == 0
        server.pause()
        for operation, error in (await failures(client)).items():
            expected = (podlink.OperationTimeoutError, podlink.StoreUnavailableError)
            assert isinstance(error, expected), operation
            assert error.retryable
            outcomes = {None} if operation in READS else {"unknown", "not sent", None}
            assert error.outcome in outcomes
        server.resume()
        assert await client.set_linked_pod_if_absent(*USER, 0, timeout=30) == 0
        assert await client.compute_linked_pod(*USER) == 0


async def test_a_call_with_time_outwaits_a_store_that_stopped_for_a_moment(
    server: Server, store: podlink.Store, client: podlink.ClientDriver
) -> None:
    await store.ping()
    server.pause()
    tasks = [
        asyncio.create_task(client.get_linked_pod_not_cache(None, f"u{at}", SERVICE, timeout=60))
        for at in range(50)
    ]
    error = await failure(READS["get_linked_pod"], client, timeout=LIMIT)
    assert isinstance(error, podlink.OperationTimeoutError)
    server.resume()
    assert await asyncio.wait_for(asyncio.gather(*tasks), 30) == [None] * 50


async def test_a_long_stop_is_survived_too(
    server: Server, store: podlink.Store, client: podlink.ClientDriver
) -> None:
    # Long enough for the connection to be given up and dialled again in vain.
    await linked(client, 10)
    server.pause()
    for _ in range(6):
        await failure(READS["get_linked_pod_not_cache"], client, timeout=LIMIT)
    server.resume()
    users = [f"u{at}" for at in range(10)]
    assert await client.batch_get_linked_pod(None, users, SERVICE, timeout=30) == {0: users}


async def test_connections_that_are_cut_again_and_again(
    server: Server, client: podlink.ClientDriver
) -> None:
    await linked(client, 10)
    seen = server.client()
    users = [f"n{at}" for at in range(5)]
    link = client.set_linked_pod_if_absent
    for user in users:
        task = asyncio.create_task(link(None, user, SERVICE, 1, timeout=30))
        seen.client_kill_filter(_type="normal", skipme=True)
        # A read is sent again by itself; a write may have happened, so its caller is told.
        assert await client.get_linked_pod_not_cache(None, "u1", SERVICE, timeout=30) == 0
        [answer] = await asyncio.gather(task, return_exceptions=True)
        if isinstance(answer, podlink.StoreUnavailableError):
            assert answer.outcome in {"unknown", "not sent"}
            answer = await link(None, user, SERVICE, 1, timeout=30)
        assert answer == 1
    assert await client.batch_get_linked_pod(None, users, SERVICE, timeout=30) == {1: users}


async def test_pods_outlive_a_short_outage_and_nobody_is_moved(
    server: Server, store: podlink.Store, client: podlink.ClientDriver
) -> None:
    async with running(store, 0, 1, config=STEADY) as pods:
        users = [f"u{at}" for at in range(30)]
        compute = client.compute_linked_pod
        before = [await compute(None, user, SERVICE) for user in users]
        server.kill()
        await asyncio.to_thread(server.restart)
        fresh = podlink.ClientDriver(store, NAMESPACE, route_info=FRESH)
        for pod in pods:
            await pod.set_routing_state("READY", timeout=30)
        after = [await fresh.compute_linked_pod(None, user, SERVICE, timeout=30) for user in users]
        assert after == before
        assert all(pod.holds_lease for pod in pods)
