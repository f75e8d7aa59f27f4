"""What the local cache believes, for how long, and who may tell it otherwise."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

import podlink
from helpers.pods import FRESH, NAMESPACE, SERVICE, STEADY, running
from helpers.wait import eventually, eventually_async

USER = (None, "u1", SERVICE)


def client_on(store: podlink.Store, **figures: Any) -> podlink.ClientDriver:
    return podlink.ClientDriver(
        store, NAMESPACE, podlink.ClientConfig(timeout=60, **figures), route_info=FRESH
    )


@pytest.fixture
def client() -> podlink.ClientDriver:
    return client_on(podlink.Store())


def test_it_starts_knowing_nobody(client: podlink.ClientDriver) -> None:
    assert client.get_linked_in_cache(*USER) is None
    assert client.cache_expired(*USER) is None
    assert client.stats()["cache_entries"] == 0


def test_it_believes_what_it_is_told_and_says_what_it_believed(
    client: podlink.ClientDriver,
) -> None:
    assert client.set_cache(*USER, 0) is None
    assert client.get_linked_in_cache(*USER) == 0
    assert client.set_cache(*USER, 7) == 0
    assert client.get_linked_in_cache(*USER) == 7
    assert client.cache_expired(*USER) == 7
    assert client.get_linked_in_cache(*USER) is None
    assert client.set_cache(*USER, 0) is None


async def test_the_store_is_not_told(client: podlink.ClientDriver) -> None:
    client.set_cache(*USER, 3)
    assert await client.get_linked_pod_not_cache(*USER) is None
    assert await client.get_linked_pod(*USER) == 3
    assert await client.get_linked_pod_in_cache_or_if_persist(*USER) == 3
    client.cache_expired(*USER)
    assert await client.get_linked_pod(*USER) is None


async def test_a_look_into_the_store_is_remembered(client: podlink.ClientDriver) -> None:
    await client.set_linked_pod_if_absent(*USER, 4)
    assert client.get_linked_in_cache(*USER) == 4
    client.cache_expired(*USER)
    assert await client.get_linked_pod_not_cache(*USER) == 4
    assert client.get_linked_in_cache(*USER) is None
    assert await client.get_linked_pod(*USER) == 4
    assert client.get_linked_in_cache(*USER) == 4


async def test_only_persistent_links_answer_the_owners_question(
    client: podlink.ClientDriver,
) -> None:
    await client.set_linked_pod_if_absent(*USER, 4)
    assert await client.get_linked_pod_in_cache_or_if_persist(*USER) == 4
    client.cache_expired(*USER)
    assert await client.get_linked_pod_in_cache_or_if_persist(*USER) is None
    # A hint that was not the answer is not remembered as one.
    assert client.get_linked_in_cache(*USER) is None


async def test_users_that_have_no_link_are_looked_up_again(client: podlink.ClientDriver) -> None:
    assert await client.get_linked_pod(*USER) is None
    await podlink_elsewhere(client)
    assert await client.get_linked_pod(*USER) == 2


async def podlink_elsewhere(client: podlink.ClientDriver) -> None:
    """Somebody else makes the link; this client's cache hears nothing of it."""
    await client.set_linked_pod_if_absent(*USER, 2)
    client.cache_expired(*USER)


def test_an_entry_ends_by_itself() -> None:
    client = client_on(podlink.Store(), cache_ttl=timedelta(milliseconds=50))

    def is_believed() -> bool:
        client.set_cache(*USER, 0)
        return client.get_linked_in_cache(*USER) == 0

    # Again if the machine paused for longer than the entry lasts.
    eventually(is_believed)
    eventually(lambda: client.get_linked_in_cache(*USER) is None)
    assert client.set_cache(*USER, 1) is None


async def test_an_entry_never_outlives_its_link() -> None:
    store = podlink.Store()
    client = client_on(store)
    believed = None
    async with running(store, 0, config=replace(STEADY, link_grace=0.2)) as [pod]:

        async def is_remembered() -> bool:
            # A link that its pod has removed stays as a hint for `link_grace`.
            await pod.set_linked_pod(*USER, 0)
            await pod.remove_linked_pod(*USER)
            client.cache_expired(*USER)
            return await client.get_linked_pod(*USER) == client.get_linked_in_cache(*USER) == 0

        # Again if the machine paused for longer than the link lasts.
        await eventually_async(is_remembered)

        async def link_is_over() -> bool:
            nonlocal believed
            # In this order: if the link is gone, what the cache says afterwards must not name it.
            stored = await client.get_linked_pod_not_cache(*USER)
            believed = client.get_linked_in_cache(*USER)
            assert not (stored is None and believed is not None)
            return stored is None

        await eventually_async(link_is_over)
    assert believed is None


async def test_a_lifetime_of_zero_turns_the_cache_off() -> None:
    store = podlink.Store()
    client = client_on(store, cache_ttl=0)
    assert client.set_cache(*USER, 3) is None
    assert client.get_linked_in_cache(*USER) is None
    async with running(store, 5):
        for _ in range(3):
            assert await client.compute_linked_pod(*USER) == 5
            assert await client.get_linked_pod(*USER) == 5
        stats = client.stats()
    assert (stats["cache_hits"], stats["cache_entries"]) == (0, 0)
    assert stats["cache_misses"] == stats["computes"] == 3


async def test_its_size_is_bounded() -> None:
    client = client_on(podlink.Store(), cache_capacity=50)
    for number in range(500):
        client.set_cache(None, f"u{number}", SERVICE, 1)
    assert client.stats()["cache_entries"] <= 50


async def test_hits_and_misses_are_counted() -> None:
    store = podlink.Store()
    client = client_on(store)
    async with running(store, 0):
        for _ in range(10):
            assert await client.compute_linked_pod(*USER) == 0
        stats = client.stats()
    assert (stats["computes"], stats["cache_misses"], stats["cache_hits"]) == (10, 1, 9)
    assert stats["links_made"] == 1


async def test_a_dropped_entry_makes_compute_ask_the_store() -> None:
    store = podlink.Store()
    client = client_on(store)
    async with running(store, 0, 1) as pods:
        home = await client.compute_linked_pod(*USER)
        other = 1 - home
        await pods[other].set_linked_pod(*USER, other)
        assert await client.compute_linked_pod(*USER) == home
        assert client.cache_expired(*USER) == home
        assert await client.compute_linked_pod(*USER) == other


async def test_what_the_program_says_of_a_live_pod_is_believed_by_compute() -> None:
    store = podlink.Store()
    client = client_on(store)
    async with running(store, 0, 1):
        home = await client.compute_linked_pod(*USER)
        assert client.set_cache(*USER, 1 - home) == home
        assert await client.compute_linked_pod(*USER) == 1 - home
        assert await client.get_linked_pod_not_cache(*USER) == home


async def test_what_a_new_driver_is_told_first_is_believed_as_long_as_anything() -> None:
    # `set_cache` before the first reading of the pods stored an entry without an incarnation. The
    # first reading then made the entry look stale, and the client forgot the user.
    store = podlink.Store()
    async with running(store, 0):
        clients = [client_on(store) for _ in range(20)]
        for client in clients:
            client.set_cache(*USER, 0)
            await client.compute_linked_pod(None, "another", SERVICE)
        assert [client.get_linked_in_cache(*USER) for client in clients] == [0] * 20


async def test_an_entry_whose_pod_has_gone_is_not_believed() -> None:
    store = podlink.Store()
    client = client_on(store)
    async with running(store, 0):
        async with running(store, 1) as pods:
            client.set_cache(*USER, 1)
            await client.set_linked_pod_if_absent(*USER, 1)
            assert await client.compute_linked_pod(*USER) == 1
            assert client.get_linked_in_cache(*USER) == 1
            assert pods
        await eventually_async(lambda: client.get_linked_in_cache(*USER) is None)
        assert await client.compute_linked_pod(*USER) == 0


async def test_drivers_do_not_share_a_cache() -> None:
    store = podlink.Store()
    one, other = client_on(store), client_on(store)
    one.set_cache(*USER, 1)
    assert other.get_linked_in_cache(*USER) is None
