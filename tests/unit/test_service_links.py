"""The links of one service: the driver's operations, without naming the service in each call."""

import inspect
from datetime import timedelta

import pytest

import podlink
from helpers.members import own_members
from helpers.pods import FRESH, NAMESPACE, SERVICE, running
from helpers.wait import eventually, eventually_async


def client_on(store: podlink.Store) -> podlink.ClientDriver:
    return podlink.ClientDriver(store, NAMESPACE, route_info=FRESH)


@pytest.fixture
def client() -> podlink.ClientDriver:
    return client_on(podlink.Store())


async def test_it_computes_and_its_cache_and_counters_are_the_drivers() -> None:
    store = podlink.Store()
    client = client_on(store)
    users = client.service(SERVICE)
    async with running(store, 0):
        for _ in range(3):
            assert await users.compute_linked_pod("u1") == 0
        assert await client.compute_linked_pod(None, "u1", SERVICE) == 0
        assert await users.compute_linked_pod("u1", timeout=timedelta(seconds=1)) == 0
        stats = client.stats()
    assert (stats["computes"], stats["cache_misses"], stats["cache_hits"]) == (5, 1, 4)


async def test_a_link_that_the_driver_made_first_is_answered_from_the_cache() -> None:
    store = podlink.Store()
    client = client_on(store)
    async with running(store, 0):
        assert await client.compute_linked_pod(None, "u1", SERVICE) == 0
        users = client.service(SERVICE)
        assert await users.compute_linked_pod("u1") == 0
        assert client.stats()["cache_misses"] == 1


async def test_a_pod_that_has_gone_is_not_answered_from_the_cache() -> None:
    store = podlink.Store()
    users = client_on(store).service(SERVICE)
    async with running(store, 0):
        async with running(store, 1):
            users.set_cache("u1", 1)
            await users.set_linked_pod_if_absent("u1", 1)
            assert await users.compute_linked_pod("u1") == 1

        async def has_moved() -> bool:
            return await users.compute_linked_pod("u1") == 0

        # The client hears of it in its own time.
        await eventually_async(has_moved)


async def test_every_operation_is_that_of_the_driver_for_this_service(
    client: podlink.ClientDriver,
) -> None:
    users, others = client.service(SERVICE), client.service("another")
    assert await users.set_linked_pod_if_absent("u1", 4) == 4
    assert await users.get_linked_pod("u1") == 4
    assert await users.get_linked_pod_not_cache("u1") == 4
    assert await users.batch_get_linked_pod(["u1", "u2"]) == {4: ["u1"]}
    assert users.get_linked_in_cache("u1") == 4
    assert client.get_linked_in_cache(None, "u1", SERVICE) == 4
    assert others.get_linked_in_cache("u1") is None
    assert users.set_cache("u1", 7) == 4
    assert users.cache_expired("u1") == 7
    assert await users.get_linked_pod_in_cache_or_if_persist("u1") is None


def test_it_has_the_link_operations_of_the_driver() -> None:
    def about_one_service(owner: type) -> set[str]:
        return {
            name
            for name, value in own_members(owner).items()
            if inspect.isfunction(value)
            and not name.startswith("_")
            and any(word in inspect.signature(value).parameters for word in ("uid", "uids"))
        }

    # The services of a user are not one service's.
    expected = about_one_service(podlink.ClientDriver) - {"get_link_service"}
    assert about_one_service(podlink.ServiceLinks) == expected


def test_making_one_checks_the_names(client: podlink.ClientDriver) -> None:
    assert client.service(SERVICE).namespace == NAMESPACE
    assert client.service(SERVICE, namespace="").namespace == NAMESPACE
    assert client.service(SERVICE, namespace=NAMESPACE).service_name == SERVICE
    with pytest.raises(podlink.InvalidParameterError, match="service_name"):
        client.service("a:b")
    with pytest.raises(podlink.InvalidParameterError, match="namespace"):
        client.service(SERVICE, namespace="a b")
    with pytest.raises(podlink.NamespaceUnreachableError, match="elsewhere"):
        client.service(SERVICE, namespace="elsewhere")
    with pytest.raises(podlink.InvalidParameterTypeError, match="service_name"):
        client.service(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("uid", ["", "a{b", "a\ud800", 3, None])
async def test_a_wrong_uid_is_refused(client: podlink.ClientDriver, uid: object) -> None:
    users = client.service(SERVICE)
    with pytest.raises(podlink.InvalidParameterError, match="uid"):
        await users.compute_linked_pod(uid)  # type: ignore[arg-type]


async def test_a_wrong_timeout_is_refused_though_the_cache_has_the_answer() -> None:
    store = podlink.Store()
    users = client_on(store).service(SERVICE)
    async with running(store, 0):
        assert await users.compute_linked_pod("u1") == 0
        with pytest.raises(podlink.InvalidParameterError, match="timeout"):
            await users.compute_linked_pod("u1", timeout=-1)


async def test_after_the_driver_was_closed_it_is_closed() -> None:
    store = podlink.Store()
    client = client_on(store)
    users = client.service(SERVICE)
    async with running(store, 0):
        assert await users.compute_linked_pod("u1") == 0
        await client.aclose()
        with pytest.raises(podlink.ClosedError):
            await users.compute_linked_pod("u1")


def test_links_that_have_ended_leave_the_cache_though_nobody_asks() -> None:
    config = podlink.ClientConfig(cache_ttl=0.05)
    client = podlink.ClientDriver(podlink.Store(), NAMESPACE, config)
    for number in range(100):
        client.set_cache(None, f"u{number}", SERVICE, 0)
    eventually(lambda: client.stats()["cache_entries"] == 0)
