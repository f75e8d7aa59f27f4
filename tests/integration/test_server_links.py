"""A pod's links: made its own, offered, released; who owns a user decides what may be done."""

import asyncio
from typing import Any

import pytest

import podlink
from conftest import ServerFactory
from helpers.pods import NAMESPACE, QUICK, SERVICE, STEADY, pod_info, running
from helpers.wait import eventually_async

KEY = f"sf:{{{NAMESPACE}:lk:u}}{SERVICE}"
USER = (None, "u", SERVICE)


async def test_set_writes_whatever_was_there(store_url: str) -> None:
    async with podlink.Store(store_url) as store, running(store, 0, 1) as [zero, one]:
        client = podlink.ClientDriver(store)
        assert await zero.set_linked_pod(*USER, 0) is None
        assert await client.get_linked_pod_not_cache(*USER) == 0
        assert await client.get_link_service(None, "u") == {SERVICE: 0}
        # 0 is a pod, and not nobody.
        assert await one.set_linked_pod(*USER, 1) == 0
        assert await zero.set_linked_pod(*USER, 5, 60) == 1
        assert await client.get_linked_pod_not_cache(*USER) == 5
        assert await client.get_link_service(None, "u") == {}
        assert (zero.stats()["owned_users"], one.stats()["owned_users"]) == (0, 1)


async def test_try_set_takes_what_is_free_and_nothing_else(store_url: str) -> None:
    async with podlink.Store(store_url) as store, running(store, 0, 1) as [zero, one]:
        client = podlink.ClientDriver(store)
        assert await zero.try_set_linked_pod(*USER, 0) == (True, 0)
        # Again: it is the pod's already.
        assert await zero.try_set_linked_pod(*USER, 0) == (True, 0)
        assert await one.try_set_linked_pod(*USER, 1) == (False, 0)
        assert (zero.stats()["owned_users"], one.stats()["owned_users"]) == (1, 0)
        assert await zero.remove_linked_pod(*USER)
        # What stays is a hint, and free to take.
        assert await client.get_linked_pod_not_cache(*USER) == 0
        assert await one.try_set_linked_pod(*USER, 1) == (True, 1)
        assert await client.get_linked_pod_not_cache(*USER) == 1


async def test_a_users_first_pod_is_claimed_from_the_clients_hint(store_url: str) -> None:
    async with podlink.Store(store_url) as store, running(store, 0) as [zero]:
        client = podlink.ClientDriver(store)
        assert await client.compute_linked_pod(*USER) == 0
        assert await client.get_linked_pod_in_cache_or_if_persist(*USER) == 0
        assert await client.get_link_service(None, "u") == {}
        assert await zero.try_set_linked_pod(*USER, 0) == (True, 0)
        assert await client.get_link_service(None, "u") == {SERVICE: 0}


async def test_of_many_that_try_at_once_one_wins(store_url: str) -> None:
    async with podlink.Store(store_url) as store, running(store, 0, 1, 2, 3) as pods:
        for user in range(20):
            tries = (
                pod.try_set_linked_pod(None, f"u{user}", SERVICE, index)
                for index, pod in enumerate(pods)
            )
            answers = await asyncio.gather(*tries)
            assert sum(won for won, _ in answers) == 1
            assert len({owner for _, owner in answers}) == 1
        assert sum(pod.stats()["owned_users"] for pod in pods) == 20


async def test_a_link_may_have_an_end(store_url: str) -> None:
    async with podlink.Store(store_url) as store, running(store, 0) as [zero]:
        client = podlink.ClientDriver(store)
        assert await zero.set_linked_pod(*USER, 0, 1) is None
        assert await client.get_linked_pod_not_cache(*USER) == 0
        # It is a hint: nobody owns the user.
        assert zero.stats()["owned_users"] == 0

        async def is_gone() -> bool:
            return await client.get_linked_pod_not_cache(*USER) is None

        await eventually_async(is_gone, within=3)


async def test_remove_releases_only_what_is_the_pods_own(store_url: str) -> None:
    async with podlink.Store(store_url) as store, running(store, 0, 1) as [zero, one]:
        client = podlink.ClientDriver(store)
        assert await zero.remove_linked_pod(*USER) is False
        await zero.set_linked_pod(*USER, 0)
        assert await one.remove_linked_pod(*USER) is False
        assert await client.get_link_service(None, "u") == {SERVICE: 0}
        assert await zero.remove_linked_pod(*USER) is True
        assert await client.get_link_service(None, "u") == {}
        assert await client.get_linked_pod_not_cache(*USER) == 0
        assert zero.stats()["owned_users"] == 0


@pytest.mark.parametrize("at_once", [0, -1])
async def test_remove_with_id_asks_for_the_owner(store_url: str, at_once: int) -> None:
    async with podlink.Store(store_url) as store, running(store, 0) as [zero]:
        client = podlink.ClientDriver(store)
        remove = zero.remove_linked_pod_with_id
        assert await remove(*USER, 0, at_once) is False
        await zero.set_linked_pod(*USER, 7)
        assert await remove(*USER, 0, at_once) is False
        assert await client.get_linked_pod_not_cache(*USER) == 7
        assert await remove(*USER, 7, 60) is True
        assert await client.get_linked_pod_not_cache(*USER) == 7
        assert await client.get_link_service(None, "u") == {}
        assert await remove(*USER, 7, at_once) is True
        assert await client.get_linked_pod_not_cache(*USER) is None


async def test_how_long_a_released_link_stays_is_the_programs_choice(store_url: str) -> None:
    none = podlink.ServerConfig(lease=5, renew=1, guard=0.2, gap=2, grace=2, link_grace=0)
    async with podlink.Store(store_url) as store, running(store, 0, config=none) as [zero]:
        await zero.set_linked_pod(*USER, 0)
        assert await zero.remove_linked_pod(*USER)
        assert await podlink.ClientDriver(store).get_linked_pod_not_cache(*USER) is None


@pytest.mark.parametrize("kind", ["valkey", "redis7"])
async def test_what_the_store_holds(request: pytest.FixtureRequest, kind: str) -> None:
    server = request.getfixturevalue(f"{kind}_server")
    server.flush()
    raw = server.client()
    async with podlink.Store(server.url) as store, running(store, 3) as [pod]:
        await pod.set_linked_pod(*USER, 3)
        assert (raw.get(KEY), raw.pttl(KEY)) == ("3", -1)
        assert raw.hgetall(f"sf:{{{NAMESPACE}:lk:u}}") == {SERVICE: "3"}
        await pod.remove_linked_pod(*USER)
        assert raw.get(KEY) == "3"
        assert 59_000 < raw.pttl(KEY) <= 60_000
        assert raw.hgetall(f"sf:{{{NAMESPACE}:lk:u}}") == {}


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("namespace", "a:b"),
        ("namespace", 5),
        ("uid", ""),
        ("uid", "{u}"),
        ("service_name", "x y"),
        ("pod_index", -1),
        ("pod_index", True),
        ("pod_index", "0"),
        ("persist_seconds", 0),
        ("persist_seconds", -2),
        ("persist_seconds", 1.5),
        ("persist_seconds", None),
    ],
)
async def test_a_wrong_argument_is_refused_by_its_name(argument: str, given: Any) -> None:
    arguments: dict[str, Any] = {
        "namespace": None,
        "uid": "u",
        "service_name": SERVICE,
        "pod_index": 0,
        "persist_seconds": -1,
    }
    arguments[argument] = given
    async with running(podlink.Store(), 0) as [zero]:
        for operation in (zero.set_linked_pod, zero.try_set_linked_pod):
            with pytest.raises(podlink.InvalidParameterError) as caught:
                await operation(**arguments)
            assert caught.value.details["parameter"] == argument
        if (argument, given) != ("persist_seconds", 0):
            with pytest.raises(podlink.InvalidParameterError):
                await zero.remove_linked_pod_with_id(**arguments)
        assert zero.stats()["owned_users"] == 0


async def test_a_foreign_namespace_has_no_way() -> None:
    async with running(podlink.Store(), 0) as [zero]:
        with pytest.raises(podlink.NamespaceUnreachableError):
            await zero.set_linked_pod("elsewhere", "u", SERVICE, 0)
        assert await zero.set_linked_pod("", "u", SERVICE, 0) is None
        assert await zero.set_linked_pod(NAMESPACE, "u", SERVICE, 0) == 0


async def test_users_of_another_service_are_not_the_pods_own() -> None:
    async with running(podlink.Store(), 0) as [zero]:
        await zero.set_linked_pod(None, "u", "other", 0)
        assert zero.stats()["owned_users"] == 0
        assert (await zero.stop()).released == 0


async def test_a_pod_that_was_taken_over_owns_nobody_and_may_do_nothing(store_url: str) -> None:
    store = podlink.Store(store_url)
    uid = podlink.ServerInfo(NAMESPACE, SERVICE, 0, pod_uid="11-22")
    earlier = podlink.ServerDriver(store, uid, STEADY)
    await earlier.start()
    await earlier.set_linked_pod(*USER, 0)
    losses: list[int] = []
    earlier.on_lease_lost(lambda: losses.append(earlier.stats()["owned_users"]))
    # The same Kubernetes pod: the later process does not wait, and supersedes the earlier one.
    async with podlink.ServerDriver(store, uid, STEADY) as later:
        await eventually_async(lambda: losses)
        assert losses == [0]
        assert not earlier.holds_lease
        operations: list[Any] = [
            earlier.set_linked_pod(*USER, 0),
            earlier.set_linked_pod(*USER, 1),
            earlier.try_set_linked_pod(*USER, 0),
            earlier.remove_linked_pod(*USER),
            earlier.remove_linked_pod_with_id(*USER, 0, 0),
            earlier.set_routing_state("READY"),
            earlier.start(),
        ]
        for operation in operations:
            with pytest.raises(podlink.LeaseLostError, match="another process") as caught:
                await operation
            # For good: repeating it is of no use.
            assert not caught.value.retryable
        renewals = later.stats()["published"]
        await eventually_async(lambda: later.stats()["published"] > renewals + 2)
        assert later.holds_lease
        assert (earlier.stats()["leases_lost"], later.stats()["leases_lost"]) == (1, 0)
        report = await earlier.stop()
        assert (report.released, report.handed_over, report.remaining) == (0, 0, 0)
        # The earlier one's stop takes nothing from the later one.
        assert later.holds_lease
        info = podlink.RouteInfoDriver(store)
        pods = await info.get_all_service_state(None, SERVICE)
        assert pods[0].incarnation == later.incarnation
        await info.aclose()
    await store.aclose()


async def test_a_pod_without_a_lease_takes_no_users(server_factory: ServerFactory) -> None:
    server = server_factory()
    store = podlink.Store(server.url)
    async with running(store, 0, config=QUICK) as [zero]:
        server.pause()
        await eventually_async(lambda: not zero.holds_lease)
        for operation in (zero.set_linked_pod, zero.try_set_linked_pod):
            with pytest.raises(podlink.LeaseLostError, match="lease is over") as caught:
                await operation(*USER, 0)
            assert caught.value.retryable
        server.resume()
        await eventually_async(lambda: zero.holds_lease)
        assert await zero.try_set_linked_pod(*USER, 0) == (True, 0)
    await store.aclose()


async def test_a_driver_that_was_not_started_makes_links_but_owns_nobody_for_long() -> None:
    store = podlink.Store()
    tool = podlink.ServerDriver(store, pod_info(0))
    assert await tool.set_linked_pod(*USER, 0) is None
    assert await tool.try_set_linked_pod(*USER, 1) == (False, 0)
    assert await tool.remove_linked_pod(*USER)
    await tool.stop()
    with pytest.raises(podlink.ClosedError):
        await tool.remove_linked_pod(*USER)
