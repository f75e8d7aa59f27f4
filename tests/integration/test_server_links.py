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
    async with podlink.Store() as store, running(store, 0) as [zero]:
        user = (None, "u", "other")
        assert await zero.set_linked_pod(*user, 0) is None
        assert await zero.try_set_linked_pod(*user, 0) == (True, 0)
        assert zero.stats()["owned_users"] == 0
        assert not zero.owns(*user)
        refused: list[Any] = [zero.remove_linked_pod(*user), zero.claim(*user)]
        for operation in refused:
            with pytest.raises(podlink.InvalidParameterError) as caught:
                await operation
            assert caught.value.details["parameter"] == "service_name"
        assert (await zero.stop()).released == 0
        assert await podlink.ClientDriver(store).get_linked_pod_not_cache(*user) == 0


async def test_a_pod_that_was_taken_over_owns_nobody_and_may_do_nothing(store_url: str) -> None:
    store = podlink.Store(store_url)
    uid = podlink.ServerInfo(NAMESPACE, SERVICE, 0, pod_uid="11-22")
    earlier = podlink.ServerDriver(store, uid, STEADY)
    await earlier.start()
    await earlier.set_linked_pod(*USER, 0)
    losses: list[tuple[str, int, bool]] = []
    lost_users: list[tuple[str, int, str]] = []

    @earlier.on_lease_lost
    def lease_lost(reason: str) -> None:
        losses.append((reason, earlier.stats()["owned_users"], earlier.owns(*USER)))

    @earlier.on_ownership_lost
    def user_lost(user: podlink.Ownership, reason: str) -> None:
        assert not user.is_valid()
        lost_users.append((user.uid, user.incarnation, reason))

    # The same Kubernetes pod: the later process does not wait, and supersedes the earlier one.
    async with podlink.ServerDriver(store, uid, STEADY) as later:
        await eventually_async(lambda: lost_users)
        assert losses == [("superseded", 0, False)]
        assert lost_users == [("u", earlier.incarnation, "lease_lost")]
        assert not earlier.holds_lease
        assert earlier.owned_users() == []
        operations: list[Any] = [
            earlier.set_linked_pod(*USER, 0),
            earlier.set_linked_pod(*USER, 1),
            earlier.try_set_linked_pod(*USER, 0),
            earlier.claim(*USER),
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
        client = podlink.ClientDriver(store)
        assert await client.get_link_service(None, "u") == {SERVICE: 0}
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
        operations: list[Any] = [
            zero.set_linked_pod(*USER, 0),
            zero.set_linked_pod(*USER, 1),
            zero.try_set_linked_pod(*USER, 0),
            zero.try_set_linked_pod(*USER, 1),
            zero.claim(*USER),
            zero.remove_linked_pod(*USER),
            zero.remove_linked_pod_with_id(*USER, 1, 0),
        ]
        for operation in operations:
            with pytest.raises(podlink.LeaseLostError, match="lease is over") as caught:
                await operation
            assert caught.value.retryable
            assert caught.value.outcome == "not sent"
        server.resume()
        await eventually_async(lambda: zero.holds_lease)
        assert await zero.try_set_linked_pod(*USER, 0) == (True, 0)
    await store.aclose()


def every_write(pod: podlink.ServerDriver, *users: tuple[str | None, str, str]) -> list[Any]:
    """All that a driver may write to these users' links."""
    return [
        operation
        for user in users
        for operation in (
            pod.set_linked_pod(*user, 0),
            pod.set_linked_pod(*user, 1, 60),
            pod.try_set_linked_pod(*user, 0),
            pod.try_set_linked_pod(*user, 1),
            pod.remove_linked_pod_with_id(*user, 0, 0),
        )
    ]


async def test_a_driver_that_does_not_run_writes_no_link(store_url: str) -> None:
    # A driver without a lease set links and removed them: nobody could say when it was dead.
    async with podlink.Store(store_url) as store, running(store, 1) as [one]:
        client = podlink.ClientDriver(store)
        await one.set_linked_pod(*USER, 0)
        await one.set_linked_pod(None, "u", "other", 0)
        tool = podlink.ServerDriver(store, pod_info(0))
        users = (USER, (None, "u", "other"), (None, "free", SERVICE))
        own: list[Any] = [tool.claim(*USER), tool.remove_linked_pod(*USER)]
        for operation in every_write(tool, *users) + own:
            with pytest.raises(podlink.IllegalStateError, match="not started") as caught:
                await operation
            assert not isinstance(caught.value, podlink.ClosedError)
            assert caught.value.outcome == "not sent"
        await tool.stop()
        own = [tool.claim(*USER), tool.remove_linked_pod(*USER)]
        for operation in every_write(tool, *users) + own:
            with pytest.raises(podlink.ClosedError) as caught:
                await operation
            assert caught.value.outcome == "not sent"
        assert await client.get_link_service(None, "u") == {SERVICE: 0, "other": 0}
        assert await client.get_linked_pod_not_cache(None, "free", SERVICE) is None


async def test_without_a_lease_no_other_namespace_is_asked(server_factory: ServerFactory) -> None:
    server = server_factory()
    far = podlink.Store()
    async with (
        podlink.RouteGrpcServer(far, "far", authorize=[("*", "*", "far")]) as route,
        podlink.RouteGrpcClient(f"grpc://{route.address}") as peer,
        podlink.Store(server.url) as store,
    ):
        there = podlink.ClientDriver(far, "far")
        pod = podlink.ServerDriver(store, pod_info(0), QUICK, peers={"far": peer})
        user = ("far", "u", SERVICE)
        for operation in every_write(pod, user):
            with pytest.raises(podlink.IllegalStateError, match="not started"):
                await operation
        async with pod:
            assert await pod.try_set_linked_pod(*user, 0) == (True, 0)
            assert not pod.owns(*user)
            own: list[Any] = [pod.claim(*user), pod.remove_linked_pod(*user)]
            for operation in own:
                with pytest.raises(podlink.InvalidParameterError) as refused:
                    await operation
                assert refused.value.details["parameter"] == "namespace"
            server.pause()
            await eventually_async(lambda: not pod.holds_lease)
            for operation in every_write(pod, user):
                with pytest.raises(podlink.LeaseLostError) as caught:
                    await operation
                assert caught.value.outcome == "not sent"
            assert await there.get_link_service("far", "u") == {SERVICE: 0}
            server.resume()
            await eventually_async(lambda: pod.holds_lease)
            assert await pod.remove_linked_pod_with_id(*user, 0, 0)
            assert await there.get_linked_pod_not_cache(*user) is None
        for operation in every_write(pod, user):
            with pytest.raises(podlink.ClosedError):
                await operation
        assert await there.get_linked_pod_not_cache(*user) is None
    await far.aclose()
