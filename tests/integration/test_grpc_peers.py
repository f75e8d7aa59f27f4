"""Other namespaces through the drivers, and the client without asyncio."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

import podlink
from helpers.grpc_clients import RULES, client_of, server_of
from helpers.pods import STEADY
from helpers.wait import eventually, eventually_async

FRESH = podlink.RouteInfoConfig(refresh=0.1)


async def test_a_foreign_namespace_shares_cache_flights_and_errors() -> None:
    prod = podlink.Store()
    pods = [
        podlink.ServerDriver(prod, podlink.ServerInfo("prod", "svc", index), STEADY)
        for index in (0, 1)
    ]
    for pod in pods:
        await pod.start()
    async with (
        podlink.RouteGrpcServer(
            prod,
            "prod",
            authorize=RULES,
            client=podlink.ClientDriver(prod, "prod", route_info=FRESH),
        ) as server,
        client_of(f"grpc://{server.address}") as peer,
    ):
        client = podlink.ClientDriver(
            podlink.Store(), "test", peers={"prod": peer}, route_info=FRESH
        )
        asked = [client.compute_linked_pod("prod", "u1", "svc") for _ in range(100)]
        pods_told = set(await asyncio.gather(*asked))
        assert len(pods_told) == 1
        # Whoever found no answer yet joined the question that was under way.
        stats = client.stats()
        assert stats["cache_misses"] - stats["flights_joined"] < 5
        [owner] = pods_told
        assert client.get_linked_in_cache("prod", "u1", "svc") == owner
        assert await client.get_linked_pod("prod", "u1", "svc") == owner
        assert await client.get_linked_pod_not_cache("prod", "u1", "svc") == owner
        assert await client.batch_get_linked_pod("prod", ["u1"], "svc") == {owner: ["u1"]}
        assert client.get_linked_in_cache("test", "u1", "svc") is None
        assert await client.set_linked_pod_if_absent("prod", "u1", "svc", 5) == owner
        with pytest.raises(podlink.NoRoutablePodError):
            await client.compute_linked_pod("prod", "u1", "none")
        with pytest.raises(podlink.NamespaceUnreachableError, match="prod"):
            await client.compute_linked_pod("staging", "u1", "svc")
        # Its pod stops: the remembered answer is believed no more, and the user moves.
        await pods[owner].stop(drain="keep")
        await eventually_async(lambda: client.get_linked_in_cache("prod", "u1", "svc") is None)
        assert await client.compute_linked_pod("prod", "u1", "svc") == 1 - owner
        await client.aclose()
    await pods[1 - owner].stop()


async def test_a_remembered_answer_ends_when_the_peer_is_gone() -> None:
    prod = podlink.Store()
    # Over within the test, and not before the peer is gone.
    config = replace(STEADY, lease=5)
    async with podlink.ServerDriver(prod, podlink.ServerInfo("prod", "svc", 0), config):
        server = podlink.RouteGrpcServer(prod, "prod", authorize=RULES)
        await server.start()
        async with (
            client_of(f"grpc://{server.address}", timeout=0.5) as peer,
            podlink.ClientDriver(
                podlink.Store(), "test", peers={"prod": peer}, route_info=FRESH
            ) as client,
        ):
            assert await client.compute_linked_pod("prod", "u1", "svc", timeout=60) == 0
            await server.stop()
            assert client.get_linked_in_cache("prod", "u1", "svc") == 0
            # No longer than the lease of its pod, as the peer told it last.
            await eventually_async(lambda: client.get_linked_in_cache("prod", "u1", "svc") is None)
            with pytest.raises(podlink.PeerUnavailableError):
                await client.compute_linked_pod("prod", "u1", "svc", timeout=0.5)


# --- Pods, changes and tags of another namespace -----------------------------------------------


def prod_pod(store: podlink.Store, index: int) -> podlink.ServerDriver:
    return podlink.ServerDriver(store, podlink.ServerInfo("prod", "svc", index), STEADY)


async def test_pods_changes_and_tags_of_another_namespace() -> None:
    prod, own = podlink.Store(), podlink.Store()
    async with (
        prod_pod(prod, 0),
        server_of(prod) as server,
        client_of(f"grpc://{server.address}") as peer,
        podlink.RouteInfoDriver(own, "test", FRESH, peers={"prod": peer}) as info,
    ):
        told: list[tuple[str, str, int, bool, bool]] = []

        def hear(namespace: str, service: str, pod: int, previous: Any, now: Any) -> None:
            told.append((namespace, service, pod, previous is not None, now is not None))

        info.register_routing_state_changed_event("prod", hear, "svc")
        assert list(await info.get_all_service_state("prod", "svc")) == [0]
        assert list(await info.get_ready_service_state("prod", "svc")) == [0]
        assert await info.get_service_best_pod("prod", "svc") == 0
        assert await info.is_workload_ready("prod", "svc")
        assert not await info.is_workload_ready("prod", "nobody")
        assert info.is_pod_routable("prod", "svc", 0)
        assert info.is_pod_available("prod", "svc", 0)
        assert list(info.alive_pods("prod", "svc")) == list(info.routable_pods("prod", "svc"))
        assert info.age("prod", "svc") is not None
        # Its own namespace is another one.
        assert await info.get_all_service_state(None, "svc") == {}
        await eventually_async(lambda: ("prod", "svc", 0, False, True) in told)
        async with prod_pod(prod, 1):
            await eventually_async(lambda: ("prod", "svc", 1, False, True) in told)
            await eventually_async(lambda: info.is_pod_routable("prod", "svc", 1))
        await eventually_async(lambda: ("prod", "svc", 1, True, False) in told)
        # Drivers on one store share what they read there; a later one sees the pods join, too.
        joined: list[int] = []
        async with podlink.RouteInfoDriver(own, "test", FRESH, peers={"prod": peer}) as late:
            late.register_routing_state_changed_event(
                "prod", lambda *change: joined.append(change[2]), "svc"
            )
            await eventually_async(lambda: 0 in joined)
        async with podlink.RouteInfoDriver(prod, "prod") as there:
            await there.set_global_service_name_tag(None, "rooms", "svc")
        assert await info.get_service_name_by_tag("prod", "rooms") == "svc"
        assert await info.get_service_name_by_tag(None, "rooms") is None
        with pytest.raises(podlink.NamespaceUnreachableError, match="only be read"):
            await info.set_global_service_name_tag("prod", "rooms", "other")
        with pytest.raises(podlink.NamespaceUnreachableError, match="has peers for prod"):
            await info.get_all_service_state("staging", "svc")


async def test_a_peer_for_the_drivers_own_namespace_is_a_mistake() -> None:
    peer = client_of("grpc://127.0.0.1:1")
    store, pod = podlink.Store(), podlink.ServerInfo("prod", "svc", 0)
    for make in (
        lambda: podlink.ClientDriver(store, "prod", peers={"prod": peer}),
        lambda: podlink.RouteInfoDriver(store, "prod", peers={"prod": peer}),
        lambda: podlink.ServerDriver(store, pod, peers={"prod": peer}),
    ):
        with pytest.raises(podlink.InvalidParameterError, match="other namespaces"):
            make()
    with pytest.raises(podlink.InvalidParameterError, match="peers"):
        podlink.RouteInfoDriver(store, peers={"prod": "grpc://127.0.0.1:1"})  # type: ignore[dict-item]


# --- A pod that links users of another namespace -----------------------------------------------


async def test_a_pod_links_and_releases_users_of_another_namespace() -> None:
    prod = podlink.Store()
    mine = podlink.ServerInfo("test", "matchmaker", 3)
    async with (
        server_of(prod) as server,
        client_of(f"grpc://{server.address}") as peer,
        podlink.ServerDriver(podlink.Store(), mine, STEADY, peers={"prod": peer}) as pod,
        podlink.ClientDriver(prod, "prod") as there,
    ):
        user = ("prod", "u1", "svc")
        assert await pod.set_linked_pod(*user, 3) is None
        assert await there.get_linked_pod_not_cache(*user) == 3
        assert await pod.try_set_linked_pod(*user, 5) == (False, 3)
        assert await pod.set_linked_pod(*user, 5) == 3
        assert not await pod.remove_linked_pod_with_id(*user, 3, 0)
        # Pod 3 of this namespace owns nobody there, whatever is called pod 3.
        with pytest.raises(podlink.InvalidParameterError, match="remove_linked_pod_with_id"):
            await pod.remove_linked_pod(*user)
        assert await pod.remove_linked_pod_with_id(*user, 5, 0)
        assert await there.get_linked_pod_not_cache(*user) is None
        with pytest.raises(podlink.NamespaceUnreachableError, match="has peers for prod"):
            await pod.set_linked_pod("staging", "u1", "svc", 0)
        # What it owns in its own namespace it gives back when it stops; that was not among it.
        await pod.set_linked_pod(*user, 3)
        assert (await pod.stop()).released == 0
        assert await there.get_linked_pod_not_cache(*user) == 3
        with pytest.raises(podlink.ClosedError):
            await pod.set_linked_pod(*user, 4)


# --- Without asyncio ---------------------------------------------------------------------------

OPERATIONS: dict[str, tuple[tuple[Any, ...], object]] = {
    "set_linked_pod_if_absent": ((None, "u1", "svc", 3), 3),
    "get_linked_pod": ((None, "u1", "svc"), 3),
    "get_linked_pod_not_cache": ((None, "u1", "svc"), 3),
    "get_linked_pod_in_cache_or_if_persist": ((None, "u1", "svc"), 3),
    "set_linked_pod": ((None, "u1", "svc", 4), 3),
    "try_set_linked_pod": ((None, "u1", "svc", 5), (False, 4)),
    "batch_get_linked_pod": ((None, iter(["u1", "u2"]), "svc"), {4: ["u1"]}),
    "get_link_service": ((None, "u1"), {"svc": 4}),
    "remove_linked_pod_with_id": ((None, "u1", "svc", 3, 0), False),
    "remove_linked_pod": ((None, "u1", "svc", 0), True),
    "get_all_service_state": ((None, "svc"), {}),
    "get_service_name_by_tag": ((None, "rooms"), None),
    "check_health": ((), True),
}


class Told:
    """A callback that remembers what it was told."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.errors: list[Exception] = []

    def on_success(self, result: Any) -> None:
        self.results.append(result)

    def on_error(self, error: Exception) -> None:
        self.errors.append(error)


def test_every_operation_can_be_submitted() -> None:
    server = server_of()
    address = asyncio.run(server.start())
    config = podlink.GrpcClientConfig(timeout=10)
    client = podlink.RouteGrpcClient(
        f"grpc://{address}", namespace="prod", config=config, callbacks="poll"
    )

    def ready() -> object:
        return client.submit("check_health").result(60)

    eventually(ready)
    told = Told()
    operation: Any
    for operation, (arguments, answer) in OPERATIONS.items():
        assert client.submit(operation, *arguments, callback=told).result(60) == answer, operation
    assert told.results == []
    eventually(lambda: client.poll_callbacks() > 0 and len(told.results) == len(OPERATIONS))
    assert told.results == [answer for _, answer in OPERATIONS.values()]
    future = client.submit("compute_linked_pod", None, "u9", "nobody", callback=told)
    with pytest.raises(podlink.NoRoutablePodError):
        future.result(60)
    eventually(lambda: client.poll_callbacks() > 0)
    assert isinstance(told.errors[0], podlink.NoRoutablePodError)
    with pytest.raises(podlink.InvalidParameterError, match="operation"):
        client.submit(client.aclose)
    asyncio.run(client.aclose())
    asyncio.run(server.aclose())
