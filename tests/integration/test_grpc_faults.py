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
from helpers.grpc_clients import RULES, client_and_server, client_of, server_of
from helpers.grpc_servers import BlackHole, Peer, Serve, free_address
from helpers.pods import running
from helpers.relay import Relay
from helpers.wait import LATE, eventually_async
from helpers.wire import third_party

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")

# What waits for a peer that is gone waits so long: longer than any test.
LONG = 60.0


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
    async with Peer(third_party()) as peer, client_of(peer.url) as client:
        await eventually_async(lambda: _answers(client))
        peer.hold()
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
        async with Relay(peer.address) as relay, client_of(relay.url) as client:
            await client.get_linked_pod(None, "u", "svc")
            store.pause()
            before = relay.bytes_up
            task = asyncio.create_task(
                timed(client.set_linked_pod(None, "u", "svc", 0, timeout=LONG))
            )
            # The question has arrived; the answer cannot come.
            await eventually_async(lambda: relay.bytes_up > before)
            peer.kill()
            error, took = await task
            store.resume()
            assert isinstance(error, podlink.PeerUnavailableError)
            assert error.outcome == "unknown"
            assert took < LATE


@asynccontextmanager
async def _load(
    client: podlink.RouteGrpcClient, failures: list[object]
) -> AsyncIterator[Callable[[], int]]:
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
    try:
        yield lambda: count
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_of_two_endpoints_is_killed(valkey_server: Any) -> None:
    valkey_server.flush()
    failures: list[object] = []
    with Serve(valkey_server.url) as first, Serve(valkey_server.url) as second:
        async with (
            client_of(first.url, second.url, timeout=LONG, connect_timeout=LONG) as client,
            _load(client, failures) as answered,
        ):
            await eventually_async(lambda: answered() > 200)
            await eventually_async(lambda: set(client.status.values()) == {"READY"})
            first.kill()
            before, began = answered(), time.monotonic()
            await eventually_async(lambda: answered() > before + 100)
            assert time.monotonic() - began < LATE
            await eventually_async(lambda: client.status[first.url] == "DOWN")
    assert failures == []


async def test_a_server_is_restarted(valkey_server: Any) -> None:
    failures: list[object] = []
    with Serve(valkey_server.url) as server:
        async with (
            client_of(server.url, timeout=LONG) as client,
            _load(client, failures) as answered,
        ):
            await eventually_async(lambda: answered() > 200)
            assert server.stop() == 0
            with Serve(valkey_server.url, listen=server.address):
                before = answered()
                await eventually_async(lambda: answered() > before + 200)
    assert failures == []


async def test_connections_that_grow_old_are_made_anew() -> None:
    failures: list[object] = []
    async with (
        server_of(connection_age=1.0) as server,
        Relay(str(server.address)) as relay,
        client_of(relay.url, timeout=LONG) as client,
        _load(client, failures) as answered,
    ):
        await eventually_async(lambda: relay.connections >= 3)
        before = answered()
        await eventually_async(lambda: answered() > before + 100)
    assert failures == []


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
