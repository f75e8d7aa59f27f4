"""What there is to route to: every question about the pods of a service, on every store."""

import asyncio
import dataclasses
import functools
import gc
from collections import Counter
from typing import Any

import pytest

import podlink
from conftest import ServerFactory
from helpers.pods import FRESH, NAMESPACE, QUICK, SERVICE, PodProcess, running
from helpers.servers import Server
from helpers.wait import eventually_async

LIMITED = podlink.RouteInfoConfig(refresh=0.05, overload_limit=10)


async def best(info: podlink.RouteInfoDriver, times: int) -> Counter[int | None]:
    """Which pods are the best for so many users in a row."""
    return Counter([await info.get_service_best_pod(None, SERVICE) for _ in range(times)])


async def test_every_question_about_healthy_pods(store_url: str) -> None:
    metadata = {1: {"address": "10.0.0.1:7000", "weight": "2"}}
    async with (
        podlink.Store(store_url) as store,
        running(store, 0, 1, 2, loads={2: 9}, metadata=metadata) as servers,
        podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info,
    ):
        pods = await info.get_all_service_state(None, SERVICE)
        assert list(pods) == [0, 1, 2]
        assert await info.get_ready_service_state("", SERVICE) == pods
        assert list(info.alive_pods(NAMESPACE, SERVICE)) == [0, 1, 2]
        assert list(info.routable_pods(None, SERVICE)) == [0, 1, 2]
        for index, server in enumerate(servers):
            assert pods[index].pod_id == index
            assert pods[index].incarnation == server.incarnation
            assert info.is_pod_routable(None, SERVICE, index)
            assert info.is_pod_available(None, SERVICE, index)
        assert not info.is_pod_routable(None, SERVICE, 3)
        assert not info.is_pod_available(None, SERVICE, 3)
        assert [pods[index].load_state for index in pods] == [0, 0, 9]
        assert pods[1].metadata == metadata[1]
        assert pods[0].routing_state is podlink.RoutingState.READY
        with pytest.raises(dataclasses.FrozenInstanceError):
            pods[0].load_state = 1  # type: ignore[misc]
        assert set(await best(info, 40)) <= {0, 1, 2}
        assert info.get_link_info_cache_time_secs() == 240.0


async def test_one_pod_by_its_index(store_url: str) -> None:
    # To look up one pod's address, a program had to make a dictionary of all pods: 183 µs for 100
    # of them; and while the pod left, the dictionary raised KeyError.
    metadata = {3: {"address": "10.0.0.3:7000"}}
    async with (
        podlink.Store(store_url) as store,
        podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info,
    ):
        async with running(store, 0, 3, metadata=metadata) as servers:
            # The first question may come before the first reading.
            await eventually_async(lambda: _is_known(info, 3))
            pod = info.pod("", SERVICE, 3)
            assert pod is not None
            assert pod == await info.get_pod_state(None, SERVICE, 3)
            assert pod == info.alive_pods(None, SERVICE)[3]
            assert pod.metadata == metadata[3]
            assert info.pod(NAMESPACE, SERVICE, 1) is None
            assert info.pod(NAMESPACE, "other", 0) is None
            with pytest.raises(podlink.InvalidParameterError, match="pod_index"):
                info.pod(None, SERVICE, -1)
            with pytest.raises(podlink.NamespaceUnreachableError):
                info.pod("elsewhere", SERVICE, 0)
            # What the pod publishes later is another object.
            await servers[1].set_routing_state("DENY_NEW_CALL")
            await eventually_async(lambda: _is_known(info, 3, "DENY_NEW_CALL"))
            assert pod.routing_state == "READY"
        await eventually_async(lambda: _has_left(info, 3))
    with pytest.raises(podlink.ClosedError):
        info.pod(None, SERVICE, 3)


async def _is_known(info: podlink.RouteInfoDriver, index: int, routing: str = "READY") -> bool:
    pod = info.pod(None, SERVICE, index)
    return pod is not None and pod.routing_state == routing


async def _has_left(info: podlink.RouteInfoDriver, index: int) -> bool:
    return info.pod(None, SERVICE, index) is None


async def test_replaced_states_are_let_go() -> None:
    # Each state that is asked for has an object, kept until the pod has published another one.
    store = podlink.Store()
    async with running(store, 0) as [server], podlink.RouteInfoDriver(store, NAMESPACE) as info:
        for turn in range(300):
            routing = "DENY_NEW_CALL" if turn % 2 else "READY"
            await server.set_routing_state(routing)
            await eventually_async(functools.partial(_is_known, info, 0, routing))
            assert info.pod(None, SERVICE, 0) is info.pod(None, SERVICE, 0)
    kept = sum(isinstance(each, podlink.StatefulServiceState) for each in gc.get_objects())
    assert kept < 200


async def test_a_service_that_nobody_runs(store_url: str) -> None:
    async with (
        podlink.Store(store_url) as store,
        podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info,
    ):
        assert await info.get_all_service_state(None, SERVICE) == {}
        assert await info.get_ready_service_state(None, SERVICE) == {}
        assert await info.get_service_best_pod(None, SERVICE) is None
        assert await info.is_workload_ready(None, SERVICE) is False
        assert info.alive_pods(None, SERVICE) == {}
        assert info.routable_pods(None, SERVICE) == {}
        assert not info.is_pod_routable(None, SERVICE, 0)
        assert not info.is_pod_available(None, SERVICE, 0)


@pytest.mark.parametrize("indexes", [[0], [7, 8, 9], [2**31 - 1]], ids=["0", "7..9", "last"])
async def test_any_ordinals_will_do(store_url: str, indexes: list[int]) -> None:
    async with (
        podlink.Store(store_url) as store,
        running(store, *indexes),
        podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info,
        podlink.ClientDriver(store, route_info=info) as client,
    ):
        assert list(await info.get_all_service_state(None, SERVICE)) == indexes
        found = await best(info, 60)
        assert set(found) == set(indexes)
        users = [await client.compute_linked_pod(None, f"u{n}", SERVICE) for n in range(60)]
        assert set(users) == set(indexes)


async def test_draining_and_shut_down_pods(store_url: str) -> None:
    async with (
        podlink.Store(store_url) as store,
        running(store, 0, 1, 2) as servers,
        podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info,
    ):
        await servers[0].set_routing_state("DENY_NEW_CALL")
        await servers[1].set_routing_state("SHUTDOWN")
        assert list(await info.get_all_service_state(None, SERVICE)) == [0, 1, 2]
        assert list(await info.get_ready_service_state(None, SERVICE)) == [0, 2]
        assert list(info.routable_pods(None, SERVICE)) == [2]
        available = [info.is_pod_available(None, SERVICE, index) for index in range(3)]
        assert available == [True, False, True]
        assert await best(info, 10) == {2: 10}
        await servers[2].set_routing_state("DENY_NEW_CALL")
        await eventually_async(lambda: info.routable_pods(None, SERVICE) == {})
        assert await info.get_service_best_pod(None, SERVICE) is None


async def test_an_overloaded_pod_gets_nobody_new(store_url: str) -> None:
    async with (
        podlink.Store(store_url) as store,
        running(store, 0, 1, 2, loads={0: 11, 1: 10, 2: 99}),
        podlink.RouteInfoDriver(store, NAMESPACE, LIMITED) as info,
    ):
        assert await best(info, 20) == {1: 20}
        assert list(info.routable_pods(None, SERVICE)) == [1]
        assert not info.is_pod_routable(None, SERVICE, 0)
        # It keeps its users.
        assert info.is_pod_available(None, SERVICE, 0)


async def test_if_all_are_overloaded_the_least_loaded_one_takes_them(store_url: str) -> None:
    async with (
        podlink.Store(store_url) as store,
        running(store, 0, 1, 2, loads={0: 30, 1: 20, 2: 20}),
        podlink.RouteInfoDriver(store, NAMESPACE, LIMITED) as info,
    ):
        # Ties go to the lower index.
        assert await best(info, 20) == {1: 20}
        assert list(info.routable_pods(None, SERVICE)) == [1]
        assert info.is_pod_routable(None, SERVICE, 1)
        assert not info.is_pod_routable(None, SERVICE, 0)


async def test_a_killed_pod_is_gone_when_its_lease_is(valkey_server: Server) -> None:
    valkey_server.flush()
    with PodProcess(valkey_server.url, 1) as pod:
        async with (
            podlink.Store(valkey_server.url) as store,
            running(store, 0, config=QUICK),
            podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info,
        ):
            assert list(await info.get_all_service_state(None, SERVICE)) == [0, 1]
            pod.kill()
            assert info.is_pod_available(None, SERVICE, 1)
            await eventually_async(lambda: not info.is_pod_available(None, SERVICE, 1))
            assert list(await info.get_all_service_state(None, SERVICE)) == [0]
            assert await best(info, 5) == {0: 5}


async def test_what_is_known_has_an_age(store_url: str) -> None:
    rarely = podlink.RouteInfoConfig(refresh=60)
    async with podlink.Store(store_url) as store:
        async with podlink.RouteInfoDriver(store, NAMESPACE, rarely) as info:
            # Never read; this question starts the reading.
            assert (info.age(None, SERVICE) or 0) < 1
            await info.get_all_service_state(None, SERVICE)
            first = info.age(None, SERVICE)
            assert first is not None
            assert 0 <= first < 1
            await eventually_async(lambda: (info.age(None, SERVICE) or 0) > first + 0.05)
        async with podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info:
            await info.get_all_service_state(None, SERVICE)
            # It is read again and again though nobody asks.
            await eventually_async(lambda: info.stats()["refreshes"] > 5)
            assert (info.age(None, SERVICE) or 9) < 1


@pytest.mark.parametrize("serve_stale", [False, True])
async def test_staleness_ends_with_the_lease_unless_told_otherwise(
    server_factory: ServerFactory, serve_stale: bool
) -> None:
    server = server_factory()
    store = podlink.Store(server.url)
    config = podlink.RouteInfoConfig(refresh=0.1, serve_stale=serve_stale)
    info = podlink.RouteInfoDriver(store, NAMESPACE, config)
    async with running(store, 0, config=QUICK):
        await info.get_all_service_state(None, SERVICE)
        server.pause()
        # Nobody can renew: by the store's clock the lease ends within 2 s.
        await eventually_async(lambda: (info.age(None, SERVICE) or 0) > 2.5)
        assert info.is_pod_available(None, SERVICE, 0) is serve_stale
        assert info.is_pod_routable(None, SERVICE, 0) is serve_stale
        assert list(await info.get_all_service_state(None, SERVICE)) == [0] * serve_stale
        assert await info.get_service_best_pod(None, SERVICE) == (0 if serve_stale else None)
        stats = info.stats()
        assert (stats["stale_periods"] > 0) is serve_stale
        assert stats["refresh_failures"] > 0
        server.resume()
        await eventually_async(lambda: (info.age(None, SERVICE) or 9) < 0.5)
        await eventually_async(lambda: info.is_pod_routable(None, SERVICE, 0))
    await info.aclose()
    await store.aclose()


async def test_without_a_store_the_first_question_fails_and_the_sync_ones_do_not() -> None:
    store = podlink.Store("redis://127.0.0.1:1")
    async with podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info:
        with pytest.raises(podlink.PodlinkError) as caught:
            await info.get_all_service_state(None, SERVICE, timeout=0.3)
        assert caught.value.retryable
        assert info.alive_pods(None, SERVICE) == {}
        assert info.age(None, SERVICE) is None
        assert not info.is_pod_available(None, SERVICE, 0)
        with pytest.raises(podlink.PodlinkError):
            await info.is_workload_ready(None, SERVICE, timeout=0.3)
    await store.aclose()


async def test_a_service_is_read_once_for_all_who_ask() -> None:
    store = podlink.Store()
    rarely = podlink.RouteInfoConfig(refresh=60)
    async with running(store, 0), podlink.RouteInfoDriver(store, NAMESPACE, rarely) as info:
        questions = (info.get_all_service_state(None, SERVICE) for _ in range(50))
        answers = await asyncio.gather(*questions)
        assert all(list(answer) == [0] for answer in answers)
        assert info.stats()["refreshes"] <= 3


async def no_longer_read(info: podlink.RouteInfoDriver) -> None:
    """Returns after ten times the refresh period without a reading."""
    refreshes = 0

    def is_idle() -> bool:
        nonlocal refreshes
        before, refreshes = refreshes, info.stats()["refreshes"]
        return before == refreshes

    idle_looks = 0

    def stays_idle() -> bool:
        nonlocal idle_looks
        idle_looks = idle_looks + 1 if is_idle() else 0
        return idle_looks > 50

    await eventually_async(stays_idle)


async def test_a_service_that_nobody_asked_for_is_found_again_by_its_handle() -> None:
    # A handle holds the view of its service. The view of an idle service is no longer kept up, so
    # the handle has to look the service up again.
    store = podlink.Store()
    brief = podlink.RouteInfoConfig(refresh=0.05, idle=1)
    async with running(store, 0), podlink.RouteInfoDriver(store, NAMESPACE, brief) as info:
        client = podlink.ClientDriver(store, NAMESPACE, route_info=info)
        users = client.service(SERVICE)
        assert await users.compute_linked_pod("u1") == 0
        await no_longer_read(info)
        assert await users.compute_linked_pod("u1") == 0
        hits = client.stats()["cache_hits"]
        assert await users.compute_linked_pod("u1") == 0
        assert client.stats()["cache_hits"] == hits + 1


async def test_services_that_nobody_asks_for_are_not_read_any_more() -> None:
    store = podlink.Store()
    brief = podlink.RouteInfoConfig(refresh=0.05, idle=1)
    async with running(store, 0), podlink.RouteInfoDriver(store, NAMESPACE, brief) as info:
        await info.get_all_service_state(None, SERVICE)
        await no_longer_read(info)
        # Who asks again gets what is true now, and it is read on.
        assert list(await info.get_all_service_state(None, SERVICE)) == [0]
        read = info.stats()["refreshes"]
        await eventually_async(lambda: info.stats()["refreshes"] > read + 1)


OPERATIONS: dict[str, Any] = {
    "get_all_service_state": (SERVICE,),
    "get_ready_service_state": (SERVICE,),
    "get_service_best_pod": (SERVICE,),
    "is_workload_ready": (SERVICE,),
    "get_service_name_by_tag": ("tag",),
    "set_global_service_name_tag": ("tag", SERVICE),
    "alive_pods": (SERVICE,),
    "routable_pods": (SERVICE,),
    "is_pod_routable": (SERVICE, 0),
    "is_pod_available": (SERVICE, 0),
    "age": (SERVICE,),
}


async def asked(info: podlink.RouteInfoDriver, operation: str, namespace: str | None) -> Any:
    answer = getattr(info, operation)(namespace, *OPERATIONS[operation])
    return await answer if asyncio.iscoroutine(answer) else answer


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_what_is_closed_says_so_and_a_foreign_namespace_has_no_way(operation: str) -> None:
    info = podlink.RouteInfoDriver(podlink.Store())
    with pytest.raises(podlink.NamespaceUnreachableError):
        await asked(info, operation, "elsewhere")
    with pytest.raises(podlink.InvalidParameterError):
        await asked(info, operation, "a:b")
    await asked(info, operation, None)
    await info.aclose()
    await info.aclose()
    with pytest.raises(podlink.ClosedError):
        await asked(info, operation, None)
    with pytest.raises(podlink.ClosedError):
        info.register_routing_state_changed_event(None, print, SERVICE)


async def test_a_client_that_shares_a_closed_route_info_driver_says_so() -> None:
    # The client started to read the pods again through a driver that had been closed. Nothing ended
    # that task.
    store = podlink.Store()
    async with running(store, 0):
        info = podlink.RouteInfoDriver(store, NAMESPACE, FRESH)
        client = podlink.ClientDriver(store, route_info=info)
        assert await client.compute_linked_pod(None, "u", SERVICE) == 0
        await info.aclose()
        for user in ("u", "u2"):
            with pytest.raises(podlink.ClosedError):
                await client.compute_linked_pod(None, user, SERVICE)
        refreshes = info.stats()["refreshes"]
        # The links themselves need no pods.
        assert await client.get_linked_pod_not_cache(None, "u", SERVICE) == 0
        assert info.stats()["refreshes"] == refreshes


def test_without_a_loop() -> None:
    # The route info driver once had no `submit`, so a program without an event loop could not use
    # it.
    store = podlink.Store()
    server = podlink.ServerDriver(store, podlink.ServerInfo(NAMESPACE, SERVICE, 0), QUICK)
    info = podlink.RouteInfoDriver(store, NAMESPACE, FRESH)
    server.submit("start").result(60)
    pods = info.submit("get_all_service_state", None, SERVICE).result(60)
    assert isinstance(pods[0], podlink.StatefulServiceState)
    assert info.submit("get_ready_service_state", None, SERVICE).result(60) == pods
    assert info.submit("get_service_best_pod", None, service_name=SERVICE).result(60) == 0
    assert info.submit("is_workload_ready", None, SERVICE).result(60) is True
    assert info.submit("set_global_service_name_tag", None, "t", SERVICE).result(60) is True
    assert info.submit("get_service_name_by_tag", None, "t").result(60) == SERVICE
    with pytest.raises(podlink.InvalidParameterError, match="operation"):
        info.submit("alive_pods", None, SERVICE)  # type: ignore[call-overload]
    server.submit("stop").result(60)
