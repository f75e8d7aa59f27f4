"""Each link operation on each store: what it answers, and what it leaves behind."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

import podlink
from helpers.pods import FRESH, NAMESPACE, SERVICE, STEADY, running
from helpers.wait import eventually_async

USER = (None, "u1", SERVICE)


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[podlink.Store]:
    async with podlink.Store(store_url) as opened:
        yield opened


@pytest.fixture
def client(store: podlink.Store) -> podlink.ClientDriver:
    return client_on(store)


@pytest.fixture
async def pod(store: podlink.Store) -> AsyncIterator[podlink.ServerDriver]:
    """Pod 2: links are written by a pod that holds its lease."""
    async with running(store, 2) as [started]:
        yield started


def client_on(store: podlink.Store, **figures: Any) -> podlink.ClientDriver:
    config = podlink.ClientConfig(**figures)
    return podlink.ClientDriver(store, NAMESPACE, config, route_info=FRESH)


async def stored(client: podlink.ClientDriver) -> int | None:
    """The link as the store has it."""
    return await client.get_linked_pod_not_cache(*USER)


async def test_a_user_nobody_knows_has_no_pod(client: podlink.ClientDriver) -> None:
    assert await client.get_linked_pod(*USER) is None
    assert await client.get_linked_pod_not_cache(*USER) is None
    assert await client.get_linked_pod_in_cache_or_if_persist(*USER) is None
    assert client.get_linked_in_cache(*USER) is None
    assert await client.get_link_service(None, "u1") == {}
    assert await client.batch_get_linked_pod(None, ["u1"], SERVICE) == {}


@pytest.mark.parametrize("index", [0, 1, 2**31 - 1])
async def test_the_first_to_set_an_absent_link_wins(
    client: podlink.ClientDriver, index: int
) -> None:
    assert await client.set_linked_pod_if_absent(*USER, index) == index
    assert await client.set_linked_pod_if_absent(*USER, 5) == index
    assert await stored(client) == index
    # It is a hint, not the pod's own word.
    assert await client.get_link_service(None, "u1") == {}


async def test_a_temporary_link_ends_by_itself(store: podlink.Store) -> None:
    client = client_on(store, link_ttl=1, cache_ttl=0)
    await client.set_linked_pod_if_absent(*USER, 0)

    async def gone() -> bool:
        return await stored(client) is None

    await eventually_async(gone)
    assert await client.set_linked_pod_if_absent(*USER, 1) == 1


async def test_asking_again_prolongs_a_link_and_never_shortens_it(store: podlink.Store) -> None:
    long, short = client_on(store), client_on(store, link_ttl=1, cache_ttl=0)
    await long.set_linked_pod_if_absent(*USER, 0)
    await short.set_linked_pod_if_absent(*USER, 1)
    await short.set_linked_pod_if_absent(None, "u2", SERVICE, 0)
    await long.set_linked_pod_if_absent(None, "u2", SERVICE, 1)
    await short.set_linked_pod_if_absent(None, "u3", SERVICE, 0)

    async def third_is_gone() -> bool:
        return await long.get_linked_pod_not_cache(None, "u3", SERVICE) is None

    await eventually_async(third_is_gone)
    assert await long.batch_get_linked_pod(None, ["u1", "u2", "u3"], SERVICE) == {0: ["u1", "u2"]}


async def test_a_pods_own_link_is_for_ever_and_listed(
    client: podlink.ClientDriver, pod: podlink.ServerDriver
) -> None:
    assert await pod.set_linked_pod(*USER, 2) is None
    assert await pod.set_linked_pod(None, "u1", "chat", 2) is None
    assert await client.get_linked_pod_in_cache_or_if_persist(*USER) == 2
    assert await client.get_link_service("", "u1") == {SERVICE: 2, "chat": 2}
    assert await client.get_link_service("", "u2") == {}


async def test_setting_replaces_whatever_was_there(
    client: podlink.ClientDriver, pod: podlink.ServerDriver
) -> None:
    await client.set_linked_pod_if_absent(*USER, 0)
    assert await pod.set_linked_pod(*USER, 2) == 0
    assert await pod.set_linked_pod(*USER, 1, persist_seconds=60) == 2
    assert await stored(client) == 1
    # A link with an end is no longer one of the persistent ones.
    assert await client.get_link_service(None, "u1") == {}


async def test_trying_takes_hints_and_leaves_owners(
    client: podlink.ClientDriver, pod: podlink.ServerDriver
) -> None:
    assert await pod.try_set_linked_pod(*USER, 2) == (True, 2)
    assert await pod.try_set_linked_pod(*USER, 2) == (True, 2)
    assert await pod.try_set_linked_pod(*USER, 0) == (False, 2)
    assert await stored(client) == 2
    await client.set_linked_pod_if_absent(None, "u2", SERVICE, 0)
    assert await pod.try_set_linked_pod(None, "u2", SERVICE, 2) == (True, 2)
    assert await client.get_link_service(None, "u2") == {SERVICE: 2}


async def test_removing_leaves_a_hint_for_a_while(store: podlink.Store) -> None:
    client = client_on(store)
    config = replace(STEADY, link_grace=1)
    async with running(store, 2, config=config) as [pod]:
        await pod.set_linked_pod(*USER, 2)
        assert await pod.remove_linked_pod(*USER) is True
        assert await stored(client) == 2
        assert await client.get_link_service(None, "u1") == {}

        async def gone() -> bool:
            return await stored(client) is None

        await eventually_async(gone)
        assert await pod.remove_linked_pod(*USER) is False


async def test_only_the_owner_is_removed(
    client: podlink.ClientDriver, pod: podlink.ServerDriver
) -> None:
    await pod.set_linked_pod(*USER, 0)
    assert await pod.remove_linked_pod(*USER) is False
    assert await pod.remove_linked_pod_with_id(*USER, 1, 0) is False
    assert await client.get_link_service(None, "u1") == {SERVICE: 0}
    assert await pod.remove_linked_pod_with_id(*USER, 0, 60) is True
    assert await stored(client) == 0
    assert await pod.remove_linked_pod_with_id(*USER, 0, 0) is True
    assert await stored(client) is None
    assert await pod.remove_linked_pod_with_id(*USER, 0, -1) is False


@pytest.mark.parametrize("seconds", [0, -2, 2**40, True, 1.5, "1"])
async def test_a_wrong_lifetime_is_refused(
    client: podlink.ClientDriver, pod: podlink.ServerDriver, seconds: Any
) -> None:
    for call in (pod.set_linked_pod, pod.try_set_linked_pod):
        with pytest.raises(podlink.InvalidParameterError, match="persist_seconds"):
            await call(*USER, 2, persist_seconds=seconds)
    assert await stored(client) is None


@pytest.mark.parametrize("count", [1, 10_000])
async def test_many_users_at_once(client: podlink.ClientDriver, count: int) -> None:
    users = [f"user-{number}" for number in range(count)]
    linked = users[::7]
    operation = client.set_linked_pod_if_absent
    futures = [
        client.submit(operation, None, user, SERVICE, at % 5, timeout=30)
        for at, user in enumerate(linked)
    ]
    for future in futures:
        future.result(60)
    found = await client.batch_get_linked_pod(None, users, SERVICE, timeout=30)
    assert found == {pod: linked[pod::5] for pod in range(5) if linked[pod::5]}


async def test_a_batch_keeps_the_order_given_and_names_nobody_twice(
    client: podlink.ClientDriver,
) -> None:
    for user, index in [("b", 0), ("a", 0), ("c", 1)]:
        await client.set_linked_pod_if_absent(None, user, SERVICE, index)
    users = (user for user in ["c", "b", "nobody", "a", "b", "c"])
    found = await client.batch_get_linked_pod(None, users, SERVICE)
    assert found == {0: ["b", "a"], 1: ["c"]}
    assert list(found) == [0, 1]
    assert await client.batch_get_linked_pod(None, [], SERVICE) == {}


async def test_services_and_namespaces_do_not_mix(store: podlink.Store) -> None:
    here = client_on(store)
    there = podlink.ClientDriver(store, "another")
    await here.set_linked_pod_if_absent(*USER, 1)
    assert await here.set_linked_pod_if_absent(None, "u1", "chat", 2) == 2
    assert await there.set_linked_pod_if_absent("another", "u1", SERVICE, 3) == 3
    assert await stored(here) == 1
    assert await there.get_linked_pod_not_cache(None, "u1", SERVICE) == 3


async def test_uids_of_every_alphabet_survive(client: podlink.ClientDriver) -> None:
    users = ["日本語", "a b", "a:b", "😀" * 32, "ü" * 64, "#own", "x" * 128, "0", "-", "\u2028"]
    for at, user in enumerate(users):
        assert await client.set_linked_pod_if_absent(None, user, SERVICE, at) == at
    found = await client.batch_get_linked_pod(None, users, SERVICE)
    assert found == {at: [user] for at, user in enumerate(users)}


async def test_a_store_that_is_reachable_gives_a_sign_of_life(store: podlink.Store) -> None:
    await store.ping()
    await store.ping(timeout=5)


async def test_two_drivers_on_one_store_agree(store: podlink.Store) -> None:
    one, other = client_on(store), client_on(store)
    async with running(store, 0, 1, 2):
        for number in range(100):
            user = (None, f"u{number}", SERVICE)
            first, second = (one, other) if number % 2 else (other, one)
            assert await first.compute_linked_pod(*user) == await second.compute_linked_pod(*user)
