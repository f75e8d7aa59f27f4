"""Connections between namespaces: kept alive, limited, given up, spread over the endpoints."""

import asyncio
from contextlib import AsyncExitStack

import pytest

import podlink
from helpers.grpc_clients import client_of, server_of
from helpers.grpc_servers import Peer
from helpers.relay import Relay
from helpers.wait import eventually_async
from helpers.wire import third_party

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")

USER = (None, "u1", "svc")
# Much longer than what the tests wait for: whatever returns earlier was not waiting for this.
LONG = 60.0


# --- Signs of life -----------------------------------------------------------------------------


async def test_an_idle_connection_that_falls_silent_is_ended_and_made_anew() -> None:
    async with (
        server_of() as server,
        Relay(str(server.address)) as relay,
        client_of(relay.url, keepalive=0.2, keepalive_timeout=0.2, timeout=LONG) as client,
    ):
        assert await client.set_linked_pod_if_absent(*USER, 3) == 3
        assert (relay.connections, relay.ended) == (1, 0)
        relay.swallow()
        await eventually_async(lambda: relay.ended == 1)
        assert await client.get_linked_pod(*USER) == 3
        assert relay.connections == 2


async def test_a_call_on_a_connection_that_falls_silent_does_not_wait_for_its_deadline() -> None:
    async with (
        server_of() as server,
        Relay(str(server.address)) as relay,
        client_of(relay.url, keepalive=0.2, keepalive_timeout=0.2, timeout=LONG) as client,
    ):
        assert await client.set_linked_pod_if_absent(*USER, 3) == 3
        relay.swallow()
        # Harmless twice: it is answered on the next connection.
        assert await asyncio.wait_for(client.get_linked_pod(*USER), LONG / 2) == 3
        relay.swallow()
        # Harmful twice: what is known of it is told.
        with pytest.raises(podlink.PeerUnavailableError) as caught:
            await asyncio.wait_for(client.set_linked_pod(*USER, 4), LONG / 2)
        assert caught.value.outcome == "unknown"


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"


@pytest.mark.parametrize("said", [PREFACE + SETTINGS, PREFACE[:10], b""], ids=len)
async def test_the_server_ends_a_connection_that_says_no_more(said: bytes) -> None:
    async with server_of(keepalive=0.2, keepalive_timeout=0.2) as server:
        host, port = str(server.address).split(":")
        answers, requests = await asyncio.open_connection(host, int(port))
        requests.write(said)
        async with asyncio.timeout(30):
            # Whatever it says, it ends.
            while await answers.read(65_536):
                pass
        requests.close()


# --- Limits ------------------------------------------------------------------------------------


async def test_more_connections_than_there_may_be_wait() -> None:
    async with server_of(max_connections=1) as server:
        url = f"grpc://{server.address}"
        first, second = client_of(url), client_of(url, timeout=LONG)
        assert await first.set_linked_pod_if_absent(*USER, 3) == 3
        with pytest.raises(podlink.PodlinkError) as caught:
            await second.get_linked_pod(*USER, timeout=0.3)
        assert caught.value.retryable
        assert await first.get_linked_pod(*USER) == 3
        await first.aclose()
        assert await second.get_linked_pod(*USER) == 3
        await second.aclose()


async def test_more_requests_on_one_connection_than_there_may_be_wait() -> None:
    async with (
        server_of(max_streams=3) as server,
        client_of(f"grpc://{server.address}", timeout=LONG) as client,
    ):
        calls = (client.set_linked_pod_if_absent(None, f"u{n}", "svc", 0) for n in range(200))
        assert set(await asyncio.gather(*calls)) == {0}


# --- Endpoints ---------------------------------------------------------------------------------


async def peers(stack: AsyncExitStack, number: int) -> list[Peer]:
    """So many servers of grpcio's, which count the calls."""
    wire = third_party()
    return [await stack.enter_async_context(Peer(wire)) for _ in range(number)]


async def all_ready(client: podlink.RouteGrpcClient) -> None:
    """Until every endpoint gets calls."""

    async def asked() -> bool:
        await client.set_linked_pod_if_absent(*USER, 0)
        return set(client.status.values()) == {"READY"}

    await eventually_async(asked)


@pytest.mark.parametrize("number", [2, 3])
async def test_round_robin_is_even(number: int) -> None:
    async with AsyncExitStack() as stack:
        servers = await peers(stack, number)
        urls = [server.url for server in servers]
        async with client_of(*urls, balance="round_robin") as client:
            await all_ready(client)
            before = [server.calls for server in servers]
            for user in range(30 * number):
                await client.set_linked_pod_if_absent(None, f"u{user}", "svc", 0)
            made = [server.calls - was for server, was in zip(servers, before, strict=True)]
            assert made == [30] * number


async def test_power_of_two_goes_where_less_is_under_way() -> None:
    async with AsyncExitStack() as stack:
        servers = await peers(stack, 3)
        async with client_of(*(server.url for server in servers), timeout=LONG) as client:
            await all_ready(client)
            # One holds on to its calls; the others get nearly all of those that come then.
            held, *free = servers
            held.hold()
            calls = [
                asyncio.create_task(client.set_linked_pod_if_absent(None, f"u{n}", "svc", 0))
                for n in range(30)
            ]

            def settled() -> bool:
                return 0 < held.calls_held == sum(not each.done() for each in calls)

            await eventually_async(settled)
            waiting = held.calls_held
            before = [server.calls for server in free]
            for user in range(100):
                await asyncio.wait_for(
                    client.set_linked_pod_if_absent(None, f"v{user}", "svc", 0), LONG / 2
                )
            assert held.calls_held == waiting
            made = [server.calls - was for server, was in zip(free, before, strict=True)]
            # All of them, and neither is left out: by chance that happens once in 10^16 runs.
            assert sum(made) >= 100
            assert min(made) >= 10
            held.let_go()
            await asyncio.gather(*calls)


async def test_an_endpoint_is_ejected_probed_and_used_again() -> None:
    async with AsyncExitStack() as stack:
        [server] = await peers(stack, 1)
        client = await stack.enter_async_context(client_of(server.url, timeout=LONG))
        told: list[str] = []
        client.on_status_changed(lambda _endpoint, status: told.append(status))
        await all_ready(client)
        server.hold()
        for _ in range(3):
            with pytest.raises(podlink.OperationTimeoutError):
                await client.set_linked_pod_if_absent(*USER, 0, timeout=0.1)
        assert client.status == {server.url: "EJECTED"}
        server.let_go()
        # Nobody calls: it is the client that asks.
        await eventually_async(lambda: client.status == {server.url: "READY"})
        before = server.calls
        assert await client.set_linked_pod_if_absent(*USER, 0) == 0
        assert server.calls == before + 1
        await eventually_async(lambda: told[-2:] == ["EJECTED", "READY"])


async def test_an_endpoint_that_is_ejected_gets_no_calls_while_there_is_another() -> None:
    async with AsyncExitStack() as stack:
        bad, good = await peers(stack, 2)
        client = client_of(bad.url, good.url, balance="round_robin", timeout=1.0)
        await stack.enter_async_context(client)
        await all_ready(client)
        bad.hold()

        async def aside() -> bool:
            # Half of the time is kept for the other endpoint, so each of them is answered.
            await client.set_linked_pod_if_absent(*USER, 0)
            return client.status[bad.url] == "EJECTED"

        await eventually_async(aside, within=30)
        held = bad.calls
        for user in range(20):
            await client.set_linked_pod_if_absent(None, f"u{user}", "svc", 0)
        # It was asked for its health meanwhile, perhaps, and was given one call to prove itself.
        assert bad.calls <= held + 1
        bad.let_go()
        await all_ready(client)
