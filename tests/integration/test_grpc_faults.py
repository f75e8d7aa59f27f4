"""Faults between two namespaces: every call ends by its deadline and says what is known."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import podlink
from conftest import ServerFactory
from helpers.grpc_servers import BlackHole, Serve, Slow, free_address
from helpers.pods import running
from helpers.wait import eventually_async
from helpers.wire import third_party

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")

# What a busy machine may add to a deadline.
LATE = 1.0


def client_of(*endpoints: str, **figures: Any) -> podlink.RouteGrpcClient:
    config = podlink.GrpcClientConfig(**figures)
    return podlink.RouteGrpcClient(endpoints, namespace="prod", config=config)


RULES = [("*", "*", "prod")]


@asynccontextmanager
async def client_and_server(
    limits: podlink.GrpcServerConfig | None = None, **figures: Any
) -> AsyncIterator[podlink.RouteGrpcClient]:
    """A server on a store of its own, and a client of it."""
    async with (
        podlink.RouteGrpcServer(podlink.Store(), "prod", config=limits, authorize=RULES) as server,
        client_of(f"grpc://{server.address}", **figures) as client,
    ):
        yield client


async def timed(call: Any) -> tuple[BaseException, float]:
    """What a call failed with, and how long that took."""
    began = time.monotonic()
    with pytest.raises(podlink.PodlinkError) as caught:
        await call
    return caught.value, time.monotonic() - began


async def test_a_peer_that_is_down() -> None:
    async with client_of(f"grpc://{free_address()}") as client:
        for call, outcome in (
            (client.get_linked_pod(None, "u", "svc", timeout=0.5), None),
            (client.set_linked_pod(None, "u", "svc", 0, timeout=0.5), "not sent"),
        ):
            error, took = await timed(call)
            assert isinstance(error, podlink.PeerUnavailableError)
            assert error.retryable
            assert error.outcome == outcome
            assert took < 0.5 + LATE
        assert list(client.status.values()) == ["DOWN"]


async def test_a_client_works_before_its_server_is_up() -> None:
    address = free_address()
    async with client_of(f"grpc://{address}", timeout=20) as client:
        told: list[tuple[str, str]] = []
        client.on_status_changed(lambda endpoint, status: told.append((endpoint, status)))
        asked = asyncio.create_task(client.set_linked_pod_if_absent(None, "u", "svc", 3))
        await eventually_async(lambda: "DOWN" in client.status.values())
        assert not asked.done()
        async with podlink.RouteGrpcServer(podlink.Store(), "prod", address, authorize=RULES):
            assert await asked == 3
            assert await client.check_health()
            await eventually_async(lambda: told and told[-1][1] == "READY")
    with pytest.raises(podlink.ClosedError):
        await client.get_linked_pod(None, "u", "svc")


async def test_a_peer_that_accepts_and_says_nothing() -> None:
    with BlackHole() as hole:
        async with client_of(hole.url) as client:
            for timeout in (0.3, 1.5):
                error, took = await timed(
                    client.set_linked_pod(None, "u", "svc", 0, timeout=timeout)
                )
                assert isinstance(
                    error, podlink.OperationTimeoutError | podlink.PeerUnavailableError
                )
                assert error.outcome in ("unknown", "not sent")
                assert took < timeout + LATE


async def test_a_second_endpoint_answers_for_one_that_says_nothing() -> None:
    with BlackHole() as hole:
        async with (
            podlink.RouteGrpcServer(podlink.Store(), "prod", authorize=RULES) as server,
            client_of(hole.url, f"grpc://{server.address}") as client,
        ):
            for user in range(20):
                assert await client.set_linked_pod_if_absent(None, f"u{user}", "svc", 0) == 0


async def test_a_slow_peer_and_the_deadline_that_it_is_told() -> None:
    async with Slow(third_party(), pause=5.0) as peer, client_of(peer.url) as client:
        await eventually_async(lambda: _answers(client))
        error, took = await timed(client.set_linked_pod_if_absent(None, "u", "svc", 0, timeout=0.5))
        assert isinstance(error, podlink.OperationTimeoutError)
        assert error.outcome == "unknown"
        assert took < 0.5 + LATE
        assert 0 < peer.deadlines[0] <= 0.5


async def _answers(client: podlink.RouteGrpcClient) -> bool:
    try:
        await client.check_health(timeout=1)
    except podlink.PodlinkError as error:
        # A server without a health service is one all the same.
        return "grpc_code" in error.details
    return True


async def test_a_cancelled_call_goes_on_at_the_server() -> None:
    async with client_and_server() as client:
        await client.get_linked_pod(None, "u", "svc")
        for user in range(50):
            task = asyncio.create_task(client.set_linked_pod(None, f"u{user}", "svc", 1))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        async def all_there() -> bool:
            users = [f"u{user}" for user in range(50)]
            found = await client.batch_get_linked_pod(None, users, "svc")
            return len(found.get(1, [])) == 50

        await eventually_async(all_there)
        # Both halves of each change are there: the link and its entry in the user's table.
        for user in range(50):
            assert await client.get_link_service(None, f"u{user}") == {"svc": 1}


async def test_a_peer_killed_in_the_middle_of_a_call(server_factory: ServerFactory) -> None:
    store = server_factory("valkey")
    with Serve(store.url) as peer:
        async with client_of(peer.url) as client:
            await client.get_linked_pod(None, "u", "svc")
            store.pause()
            task = asyncio.create_task(timed(client.set_linked_pod(None, "u", "svc", 0, timeout=5)))
            await asyncio.sleep(0.3)
            peer.kill()
            error, took = await task
            store.resume()
            assert isinstance(error, podlink.PeerUnavailableError)
            assert error.outcome == "unknown"
            assert took < 2


async def test_ten_thousand_calls_at_once() -> None:
    async with client_and_server(timeout=60) as client:
        calls = (
            client.set_linked_pod_if_absent(None, f"u{user}", "svc", user % 7)
            for user in range(10_000)
        )
        owners = await asyncio.gather(*calls)
        assert owners == [user % 7 for user in range(10_000)]
        users = [f"u{user}" for user in range(10_000)]
        found = await client.batch_get_linked_pod(None, users, "svc", timeout=30)
        assert sum(map(len, found.values())) == 10_000


async def test_more_than_there_is_room_for_is_refused_and_tried_again() -> None:
    limits = podlink.GrpcServerConfig(max_in_flight=2)
    async with (
        podlink.RouteGrpcServer(podlink.Store(), "prod", config=limits, authorize=RULES) as server,
        client_of(f"grpc://{server.address}", timeout=20, retry_ratio=1.0) as client,
    ):
        calls = [client.set_linked_pod(None, f"u{user}", "svc", 0) for user in range(64)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        failed: list[Any] = [error for error in ended if error is not None]
        assert all(isinstance(error, podlink.OverloadedError) for error in failed)
        assert all(error.outcome == "not sent" for error in failed)
        assert len(failed) < 64


async def test_who_asks_too_often_is_refused() -> None:
    limits = podlink.GrpcServerConfig(peer_rate=5)
    async with (
        podlink.RouteGrpcServer(podlink.Store(), "prod", config=limits, authorize=RULES) as server,
        client_of(f"grpc://{server.address}", retry_ratio=0.0, timeout=0.3) as client,
    ):
        calls = (client.get_linked_pod(None, "u", "svc") for _ in range(400))
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert any(isinstance(error, podlink.OverloadedError) for error in ended)


async def _load(client: podlink.RouteGrpcClient, failures: list[object]) -> Callable[[], int]:
    """Calls without end, one after the other in each of eight tasks; counts the answers."""
    count = 0

    async def work(worker: int) -> None:
        nonlocal count
        while True:
            try:
                await client.set_linked_pod_if_absent(None, f"u{worker}", "svc", worker)
                count += 1
            except podlink.PodlinkError as error:
                failures.append(error)
                await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(work(worker)) for worker in range(8)]
    _TASKS.extend(tasks)
    return lambda: count


_TASKS: list[asyncio.Task[None]] = []


async def _end_load() -> None:
    for task in _TASKS:
        task.cancel()
    await asyncio.gather(*_TASKS, return_exceptions=True)
    _TASKS.clear()


async def test_one_of_two_endpoints_is_killed(valkey_server: Any) -> None:
    valkey_server.flush()
    failures: list[object] = []
    with Serve(valkey_server.url) as first, Serve(valkey_server.url) as second:
        async with client_of(first.url, second.url) as client:
            answered = await _load(client, failures)
            await eventually_async(lambda: answered() > 200)
            await eventually_async(lambda: set(client.status.values()) == {"READY"})
            first.kill()
            before, began = answered(), time.monotonic()
            await eventually_async(lambda: answered() > before + 100)
            assert time.monotonic() - began < 1.0
            await eventually_async(lambda: client.status[first.url] == "DOWN")
            await _end_load()
    assert failures == []


async def test_a_server_is_restarted(valkey_server: Any) -> None:
    failures: list[object] = []
    with Serve(valkey_server.url) as server:
        async with client_of(server.url, timeout=30) as client:
            answered = await _load(client, failures)
            await eventually_async(lambda: answered() > 200)
            assert server.stop() == 0
            with Serve(valkey_server.url, listen=server.address):
                before = answered()
                await eventually_async(lambda: answered() > before + 200, within=30)
                await _end_load()
    assert failures == []


async def test_connections_that_grow_old_are_made_anew() -> None:
    limits = podlink.GrpcServerConfig(connection_age=1.0)
    failures: list[object] = []
    async with (
        podlink.RouteGrpcServer(podlink.Store(), "prod", config=limits, authorize=RULES) as server,
        client_of(f"grpc://{server.address}") as client,
    ):
        answered = await _load(client, failures)
        await asyncio.sleep(3)
        assert answered() > 100
        await _end_load()
    assert failures == []


# --- Through the drivers -----------------------------------------------------------------------


async def test_a_foreign_namespace_shares_cache_flights_and_errors() -> None:
    prod = podlink.Store()
    config = podlink.ServerConfig(lease=2.0, renew=0.3, guard=0.2, gap=0.8, grace=0.8)
    pods = [
        podlink.ServerDriver(prod, podlink.ServerInfo("prod", "svc", index), config)
        for index in (0, 1)
    ]
    for pod in pods:
        await pod.start()
    fresh = podlink.RouteInfoConfig(refresh=0.1)
    async with (
        podlink.RouteGrpcServer(
            prod,
            "prod",
            authorize=RULES,
            client=podlink.ClientDriver(prod, "prod", route_info=fresh),
        ) as server,
        client_of(f"grpc://{server.address}") as peer,
    ):
        client = podlink.ClientDriver(
            podlink.Store(), "test", peers={"prod": peer}, route_info=fresh
        )
        asked = [client.compute_linked_pod("prod", "u1", "svc") for _ in range(100)]
        pods_told = set(await asyncio.gather(*asked))
        assert len(pods_told) == 1
        assert client.stats()["flights_joined"] > 50
        [owner] = pods_told
        assert client.get_linked_in_cache("prod", "u1", "svc") == owner
        assert await client.get_linked_pod("prod", "u1", "svc") == owner
        assert await client.get_linked_pod_not_cache("prod", "u1", "svc") == owner
        assert await client.batch_get_linked_pod("prod", ["u1"], "svc") == {owner: ["u1"]}
        assert client.get_linked_in_cache("test", "u1", "svc") is None
        assert await client.set_linked_pod_if_absent("prod", "u1", "svc", 5) == owner
        with pytest.raises(podlink.NoRoutablePodError):
            await client.compute_linked_pod("prod", "u1", "none")
        with pytest.raises(podlink.NamespaceUnreachableError, match="prod"):
            await client.compute_linked_pod("staging", "u1", "svc")
        # Its pod stops: the remembered answer is believed no more, and the user moves.
        await pods[owner].stop(drain="keep")
        await eventually_async(lambda: client.get_linked_in_cache("prod", "u1", "svc") is None)
        assert await client.compute_linked_pod("prod", "u1", "svc") == 1 - owner
        await client.aclose()
    await pods[1 - owner].stop()


async def test_a_remembered_answer_ends_when_the_peer_is_gone() -> None:
    prod = podlink.Store()
    config = podlink.ServerConfig(lease=2.0, renew=0.3, guard=0.2, gap=0.8, grace=0.8)
    fresh = podlink.RouteInfoConfig(refresh=0.1)
    async with podlink.ServerDriver(prod, podlink.ServerInfo("prod", "svc", 0), config):
        server = podlink.RouteGrpcServer(prod, "prod", authorize=RULES)
        await server.start()
        async with (
            client_of(f"grpc://{server.address}", timeout=0.5) as peer,
            podlink.ClientDriver(
                podlink.Store(), "test", peers={"prod": peer}, route_info=fresh
            ) as client,
        ):
            assert await client.compute_linked_pod("prod", "u1", "svc") == 0
            await server.stop()
            assert client.get_linked_in_cache("prod", "u1", "svc") == 0
            # No longer than the lease of its pod, as the peer told it last.
            await eventually_async(lambda: client.get_linked_in_cache("prod", "u1", "svc") is None)
            with pytest.raises(podlink.PeerUnavailableError):
                await client.compute_linked_pod("prod", "u1", "svc", timeout=0.5)


def test_uvloop_carries_it_too(tmp_path: Path) -> None:
    import uvloop

    async def main() -> int:
        store, rules = podlink.Store(), [("*", "*", "default")]
        async with (
            running(store, 0),
            podlink.RouteGrpcServer(store, authorize=rules) as server,
            podlink.RouteGrpcClient(f"grpc://{server.address}", namespace="default") as client,
        ):
            return await client.compute_linked_pod(None, "u1", "svc")

    assert uvloop.run(main()) == 0
