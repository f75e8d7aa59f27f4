"""One lifecycle: what is closed says so, and closing twice is closing once."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import podlink
from helpers.pods import NAMESPACE, SERVICE, STEADY, pod_info, running

USER = (None, "u1", SERVICE)

CLIENT_CALLS: dict[str, Callable[[podlink.ClientDriver], Any]] = {
    "compute_linked_pod": lambda client: client.compute_linked_pod(*USER),
    "get_linked_pod": lambda client: client.get_linked_pod(*USER),
    "get_linked_pod_in_cache_or_if_persist": lambda client: (
        client.get_linked_pod_in_cache_or_if_persist(*USER)
    ),
    "get_linked_pod_not_cache": lambda client: client.get_linked_pod_not_cache(*USER),
    "get_linked_in_cache": lambda client: client.get_linked_in_cache(*USER),
    "cache_expired": lambda client: client.cache_expired(*USER),
    "set_cache": lambda client: client.set_cache(*USER, 0),
    "get_link_service": lambda client: client.get_link_service(*USER[:2]),
    "batch_get_linked_pod": lambda client: client.batch_get_linked_pod(None, ["u1"], SERVICE),
    "set_linked_pod_if_absent": lambda client: client.set_linked_pod_if_absent(*USER, 0),
}


async def made(answer: Awaitable[object] | object) -> None:
    """Awaits what has to be awaited."""
    if isinstance(answer, Awaitable):
        await answer


@pytest.mark.parametrize("operation", CLIENT_CALLS)
async def test_a_closed_client_refuses(operation: str) -> None:
    store = podlink.Store()
    async with running(store, 0):
        client = podlink.ClientDriver(store)
        # A cached answer must not slip through either.
        assert await client.compute_linked_pod(*USER) == 0
        await client.aclose()
        await client.aclose()
        with pytest.raises(podlink.ClosedError) as caught:
            await made(CLIENT_CALLS[operation](client))
    assert (caught.value.code, caught.value.retryable) == ("CLOSED", False)


# The store has no part in these.
LOCAL = {"cache_expired", "get_linked_in_cache", "set_cache"}


@pytest.mark.parametrize("operation", sorted(CLIENT_CALLS.keys() - LOCAL))
async def test_a_closed_store_refuses_what_needs_it(operation: str) -> None:
    store = podlink.Store()
    client = podlink.ClientDriver(store)
    await store.aclose()
    await store.aclose()
    with pytest.raises(podlink.ClosedError):
        await made(CLIENT_CALLS[operation](client))
    with pytest.raises(podlink.ClosedError):
        await store.ping()


async def test_a_client_is_closed_by_its_block() -> None:
    async with podlink.Store() as store, podlink.ClientDriver(store) as client:
        assert await client.get_linked_pod(*USER) is None
    with pytest.raises(podlink.ClosedError):
        await client.get_linked_pod(*USER)
    with pytest.raises(podlink.ClosedError):
        await store.ping()


async def test_a_submit_to_a_closed_driver_brings_the_error() -> None:
    client = podlink.ClientDriver(podlink.Store())
    await client.aclose()
    with pytest.raises(podlink.ClosedError):
        client.submit("get_linked_pod", *USER).result(60)


async def test_a_connection_ends_everything_it_made() -> None:
    async with podlink.connect("memory://", namespace=NAMESPACE) as connection:
        server = connection.server(pod_info(0), STEADY)
        await server.start()
        assert await connection.client.compute_linked_pod(*USER) == 0
    await connection.aclose()
    with pytest.raises(podlink.ClosedError):
        await connection.client.compute_linked_pod(*USER)
    with pytest.raises(podlink.ClosedError):
        await connection.store.ping()
    assert not server.holds_lease
    with pytest.raises(podlink.IllegalStateError):
        await server.start()


async def test_a_connection_withdraws_its_pods_before_it_closes_the_store() -> None:
    url = "memory://withdrawn"
    outlives = podlink.Store(url)
    async with podlink.connect(url) as connection:
        await connection.server(pod_info(0), STEADY).start()
        client = podlink.ClientDriver(outlives)
        assert await client.compute_linked_pod(*USER) == 0
    # The pod has left in the regular way: nobody waits for a lease to run out.
    with pytest.raises(podlink.NoRoutablePodError):
        await podlink.ClientDriver(outlives).compute_linked_pod(*USER)


async def test_a_server_that_was_never_started_stops_in_silence() -> None:
    server = podlink.ServerDriver(podlink.Store(), pod_info(0))
    await server.aclose()
    await server.aclose()
    with pytest.raises(podlink.IllegalStateError):
        await server.start()


async def test_a_driver_lives_on_when_another_one_is_closed() -> None:
    store = podlink.Store()
    one, other = podlink.ClientDriver(store), podlink.ClientDriver(store)
    await one.aclose()
    assert await other.set_linked_pod_if_absent(*USER, 2) == 2


def test_dropping_drivers_without_closing_them_is_fine() -> None:
    for _ in range(50):
        client = podlink.ClientDriver(podlink.Store())
        client.submit("get_linked_pod", *USER).result(60)
        del client
