"""Computes that the cache cannot answer and that come together: one exchange for many users, and
yet an answer, a deadline and an error for each.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import podlink
from conftest import ServerFactory
from helpers.pods import FRESH, NAMESPACE, SERVICE, running
from helpers.servers import Server
from helpers.wait import eventually_async

# Longer than any test: nothing here ends by podlink's own deadline, unless a call names one.
PATIENT = podlink.ClientConfig(timeout=60)

# What keeps its lease, and its connection, while a test holds the server up.
STEADY = podlink.ServerConfig(lease=60.0, renew=1.0, guard=1.0, cpu_factor=0.0)
UNHURRIED = "?connect_timeout=30"

Outcomes = list[int | BaseException]


@pytest.fixture
def server(server_factory: ServerFactory) -> Server:
    return server_factory()


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[podlink.Store]:
    unhurried = store_url if store_url == "memory://" else store_url + UNHURRIED
    async with podlink.Store(unhurried) as opened:
        yield opened


def client_on(store: podlink.Store) -> podlink.ClientDriver:
    return podlink.ClientDriver(store, NAMESPACE, PATIENT, route_info=FRESH)


@asynccontextmanager
async def paused_later(server: Server) -> AsyncIterator[podlink.ClientDriver]:
    """A client that has seen the pods, on a store that will not answer for a while."""
    async with (
        podlink.Store(server.url + UNHURRIED) as store,
        running(store, 0, config=STEADY),
    ):
        client = client_on(store)
        await client.compute_linked_pod(None, "warm", SERVICE)
        yield client
        server.resume()


async def computed(
    client: podlink.ClientDriver, users: list[str], service: str = SERVICE
) -> Outcomes:
    calls = (client.compute_linked_pod(None, user, service) for user in users)
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_ten_thousand_at_once(store: podlink.Store) -> None:
    users = [f"u{number}" for number in range(10_000)]
    async with running(store, 0, 1, 2, config=STEADY):
        client = client_on(store)
        await client.compute_linked_pod(None, "warm", SERVICE)
        pods = await computed(client, users)
        assert set(pods) == {0, 1, 2}
        assert client.stats()["links_made"] == 10_001
        # What was answered is what is stored, user by user.
        stored = await client.batch_get_linked_pod(None, users, SERVICE)
        found = {user: pod for pod, linked in stored.items() for user in linked}
        assert [found[user] for user in users] == pods


async def test_one_question_for_each_user(store: podlink.Store) -> None:
    async with running(store, 0):
        client = client_on(store)
        await client.compute_linked_pod(None, "warm", SERVICE)
        before = client.stats()
        users = ["same"] * 100 + [f"u{number}" for number in range(100)]
        assert await computed(client, users) == [0] * 200
        after = client.stats()
        assert after["links_made"] - before["links_made"] == 101
        shared = after["flights_joined"] - before["flights_joined"]
        cached = after["cache_hits"] - before["cache_hits"]
        assert shared + cached == 99


async def test_services_and_namespaces_mixed(store: podlink.Store) -> None:
    async with running(store, 0), running(store, 7, service="other"):
        client = client_on(store)
        for service in (SERVICE, "other"):
            await client.compute_linked_pod(None, "warm", service)
        ways = [(None, SERVICE), ("", "other"), (NAMESPACE, SERVICE), ("elsewhere", SERVICE)]
        calls = [
            client.compute_linked_pod(namespace, f"u{at}", service)
            for at in range(50)
            for namespace, service in ways
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        for at in range(0, len(outcomes), len(ways)):
            *pods, error = outcomes[at : at + len(ways)]
            assert pods == [0, 7, 0]
            assert isinstance(error, podlink.NamespaceUnreachableError)


async def test_each_caller_has_its_own_deadline(server: Server) -> None:
    async with paused_later(server) as client:
        server.pause()
        users = [f"u{number}" for number in range(300)]
        compute = client.compute_linked_pod
        patient = asyncio.gather(*(compute(None, user, SERVICE) for user in users))
        hasty = [
            asyncio.ensure_future(compute(None, user, SERVICE, timeout=timeout))
            # Users of their own, and users for whom a patient caller waits already.
            for user, timeout in [("h1", 0.05), ("h2", 0.3), ("u0", 0.05), ("u299", 0.1)]
        ]
        began = time.monotonic()
        for call in hasty:
            with pytest.raises(podlink.OperationTimeoutError) as caught:
                await call
            assert caught.value.details["outcome"] in ("not sent", "unknown")
        assert time.monotonic() - began < 30, "they waited for the patient ones"
        assert not patient.done()
        server.resume()
        assert await patient == [0] * 300


async def test_a_store_that_dies_is_told_to_everybody(server: Server) -> None:
    async with paused_later(server) as client:
        server.pause()
        users = [f"u{number}" for number in range(2_000)]
        compute = client.compute_linked_pod
        calls = [asyncio.ensure_future(compute(None, user, SERVICE, timeout=3)) for user in users]
        await eventually_async(lambda: client.stats()["cache_misses"] == 2_001)
        server.kill()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        for outcome in outcomes:
            assert isinstance(outcome, podlink.PodlinkError), outcome
            assert outcome.code in ("STORE_UNAVAILABLE", "TIMEOUT")
            assert outcome.retryable
            assert outcome.details["outcome"] in ("not sent", "unknown")
        server.restart()


async def test_scripts_that_are_forgotten_in_between(server: Server) -> None:
    async with podlink.Store(server.url) as store, running(store, 0):
        client = client_on(store)
        await client.compute_linked_pod(None, "warm", SERVICE)
        for turn in range(5):
            server.client().script_flush()
            users = [f"u{turn}-{number}" for number in range(500)]
            assert await computed(client, users) == [0] * 500


async def test_who_leaves_takes_nobody_along(server: Server) -> None:
    async with paused_later(server) as client:
        server.pause()
        users = [f"u{number}" for number in range(100)]
        compute = client.compute_linked_pod
        calls = [asyncio.ensure_future(compute(None, user, SERVICE)) for user in users]
        await eventually_async(lambda: client.stats()["cache_misses"] == 101)
        for call in calls[::2]:
            call.cancel()
        server.resume()
        assert await asyncio.gather(*calls[1::2]) == [0] * 50
        assert all(call.cancelled() for call in calls[::2])

        # What was asked for is done, whoever waited for it.
        async def all_linked() -> bool:
            return await client.batch_get_linked_pod(None, users, SERVICE) == {0: users}

        await eventually_async(all_linked)


async def test_a_driver_that_closes_answers_those_who_wait(server: Server) -> None:
    async with paused_later(server) as client:
        server.pause()
        users = [f"u{number}" for number in range(100)]
        compute = client.compute_linked_pod
        calls = [asyncio.ensure_future(compute(None, user, SERVICE)) for user in users]
        await eventually_async(lambda: client.stats()["cache_misses"] == 101)
        await client.aclose()
        with pytest.raises(podlink.ClosedError):
            await compute(None, "late", SERVICE)
        server.resume()
        assert await asyncio.gather(*calls) == [0] * 100
