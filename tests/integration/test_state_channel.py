"""The channel of events: what it brings at once, and that polling bridges its loss."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

import podlink
from helpers.pods import FRESH, NAMESPACE, SERVICE, STEADY, running
from helpers.raw_pods import state_key
from helpers.servers import Server
from helpers.wait import LATE, eventually_async

# Polling would take a minute: what is seen sooner was brought by the channel.
RARELY = podlink.RouteInfoConfig(refresh=60)


@pytest.fixture(params=["valkey", "redis7"])
def server(request: pytest.FixtureRequest) -> Server:
    shared: Server = request.getfixturevalue(f"{request.param}_server")
    shared.flush()
    return shared


def listeners(server: Server) -> int:
    """How many connections listen to the service's events."""
    with server.client() as client:
        [(_, count)] = client.pubsub_numsub(state_key())
    return int(count)


def cut(server: Server) -> int:
    """Ends every connection that listens."""
    with server.client() as client:
        return int(str(client.execute_command("CLIENT", "KILL", "TYPE", "PUBSUB")))


async def test_joins_and_leaves_are_seen_at_once(store_url: str) -> None:
    async with (
        podlink.Store(store_url) as store,
        podlink.RouteInfoDriver(store, NAMESPACE, RARELY) as info,
    ):
        assert await info.get_all_service_state(None, SERVICE) == {}
        began = time.monotonic()
        async with running(store, 0):
            await eventually_async(lambda: info.is_pod_routable(None, SERVICE, 0))
        await eventually_async(lambda: not info.alive_pods(None, SERVICE))
        assert time.monotonic() - began < 3 * LATE
        assert info.stats()["events"] >= 2
        assert info.stats()["channel_losses"] == 0


async def test_loads_travel_by_polling_only(store_url: str) -> None:
    async with (
        podlink.Store(store_url) as store,
        running(store, 0) as [pod],
        podlink.RouteInfoDriver(store, NAMESPACE, RARELY) as info,
    ):
        await info.get_all_service_state(None, SERVICE)
        events = info.stats()["events"]
        published = pod.stats()["published"]
        await pod.set_load_state(5)
        await eventually_async(lambda: pod.stats()["published"] > published + 2)
        assert info.alive_pods(None, SERVICE)[0].load_state == 0
        assert info.stats()["events"] == events


async def test_the_loss_of_the_channel_is_counted_and_it_comes_back(server: Server) -> None:
    async with (
        podlink.Store(server.url) as store,
        running(store, 0) as [pod],
        podlink.RouteInfoDriver(store, NAMESPACE, RARELY) as info,
    ):
        await info.get_all_service_state(None, SERVICE)
        for round_ in range(1, 4):
            await eventually_async(lambda: listeners(server) == 1)
            assert cut(server) == 1
            await eventually_async(lambda: info.stats()["channel_losses"])
            # It listens again by itself, and looks at what it has missed.
            await eventually_async(lambda: listeners(server) == 1)
            state = ["READY", "DENY_NEW_CALL"][round_ % 2]
            began = time.monotonic()
            await pod.set_routing_state(state)
            await eventually_async(
                lambda state=state: info.alive_pods(None, SERVICE)[0].routing_state == state  # type: ignore[misc]
            )
            assert time.monotonic() - began < LATE
            assert info.stats()["channel_losses"] == round_


async def test_while_the_channel_is_lost_nothing_is_missed(server: Server) -> None:
    told: list[Any] = []

    def last_told(state: str) -> Callable[[], bool]:
        return lambda: told[-1:] == [(0, state)]

    async with (
        podlink.Store(server.url) as store,
        podlink.Store(server.url) as theirs,
        running(theirs, 0) as [pod],
        podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info,
    ):
        info.register_routing_state_changed_event(
            None,
            lambda _ns, _svc, pod, _before, now: told.append((pod, now and now.routing_state)),
        )
        await info.get_all_service_state(None, SERVICE)
        for state in ("DENY_NEW_CALL", "READY", "DENY_NEW_CALL", "READY"):
            cut(server)
            await pod.set_routing_state(state)
            cut(server)
            await eventually_async(last_told(state))
        assert [state for _, state in told] == ["READY", "DENY_NEW_CALL"] * 2 + ["READY"]
        assert info.stats()["channel_losses"] > 0


async def test_who_may_not_listen_polls(server: Server) -> None:
    with server.client() as admin:
        admin.acl_setuser(
            "poller",
            enabled=True,
            passwords=["+secret"],
            keys=["*"],
            channels=[],
            reset=True,
            categories=["+@all"],
            commands=["-subscribe"],
        )
    url = server.url.replace("redis://", "redis://poller:secret@")
    try:
        async with (
            podlink.Store(server.url) as theirs,
            podlink.Store(url) as store,
            running(theirs, 0) as [pod],
            podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info,
        ):
            await info.get_all_service_state(None, SERVICE)
            await pod.set_routing_state("DENY_NEW_CALL")
            await eventually_async(lambda: not info.is_pod_routable(None, SERVICE, 0))
            stats = info.stats()
            assert stats["listen_failures"] > 0
            assert stats["events"] == 0
    finally:
        with server.client() as admin:
            admin.acl_deluser("poller")


async def test_listening_ends_with_the_driver(server: Server) -> None:
    async with podlink.Store(server.url) as store:
        one = podlink.RouteInfoDriver(store, NAMESPACE, RARELY)
        another = podlink.RouteInfoDriver(store, NAMESPACE, RARELY)
        await asyncio.gather(
            *(each.get_all_service_state(None, SERVICE) for each in (one, another))
        )
        # All drivers of a store share one connection.
        assert listeners(server) == 1
        await one.aclose()
        assert listeners(server) == 1
        await another.aclose()
        await eventually_async(lambda: listeners(server) == 0)


async def test_a_driver_that_is_dropped_listens_no_more(server: Server) -> None:
    async with podlink.Store(server.url) as store:
        info = podlink.RouteInfoDriver(store, NAMESPACE, RARELY)
        await info.get_all_service_state(None, SERVICE)
        assert listeners(server) == 1
        del info
        await eventually_async(lambda: listeners(server) == 0)
        server_driver = podlink.ServerDriver(
            store, podlink.ServerInfo(NAMESPACE, SERVICE, 0), STEADY
        )
        await server_driver.start()
        await server_driver.stop()
