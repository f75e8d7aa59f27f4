"""compute_linked_pod: new users, users who have a pod, and pods that come, drain, stop and die."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

import podlink
from helpers.pods import FRESH, GRACE, NAMESPACE, QUICK, SERVICE, pod_info, running
from helpers.wait import eventually_async

USER = (None, "u1", SERVICE)

# "Quickly" on a machine that does something else at the same time.
QUICKLY = 20.0


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[podlink.Store]:
    async with podlink.Store(store_url) as opened:
        yield opened


@pytest.fixture
def client(store: podlink.Store) -> podlink.ClientDriver:
    return client_on(store)


def client_on(store: podlink.Store, **figures: Any) -> podlink.ClientDriver:
    config = podlink.ClientConfig(**figures)
    return podlink.ClientDriver(store, NAMESPACE, config, route_info=FRESH)


async def placed(client: podlink.ClientDriver, count: int, prefix: str = "u") -> dict[str, int]:
    """Where so many users are, new or not."""
    users = [f"{prefix}{number}" for number in range(count)]
    compute = client.compute_linked_pod
    pods = await asyncio.gather(*(compute(None, user, SERVICE) for user in users))
    return dict(zip(users, pods, strict=True))


async def crashed(store: podlink.Store, index: int) -> podlink.ServerDriver:
    """A pod whose driver is dropped without stopping: as the store sees it, it was killed."""
    server = podlink.ServerDriver(store, pod_info(index), QUICK)
    await server.start()
    return server


async def test_a_new_user_gets_a_pod_and_keeps_it(
    store: podlink.Store, client: podlink.ClientDriver
) -> None:
    async with running(store, 0, 1, 2):
        pod = await client.compute_linked_pod(*USER)
        assert pod in {0, 1, 2}
        for _ in range(10):
            assert await client.compute_linked_pod(*USER) == pod
        assert await client_on(store).compute_linked_pod(*USER) == pod
        assert await client.get_linked_pod_not_cache(*USER) == pod


async def test_pod_zero_is_a_pod(store: podlink.Store, client: podlink.ClientDriver) -> None:
    async with running(store, 0):
        assert await client.compute_linked_pod(*USER) == 0
        assert await client.compute_linked_pod(*USER) == 0
        assert client.get_linked_in_cache(*USER) == 0
        assert client.stats()["cache_hits"] == 1


async def test_a_service_need_not_begin_at_zero(
    store: podlink.Store, client: podlink.ClientDriver
) -> None:
    async with running(store, 7, 2**31 - 1):
        assert set((await placed(client, 40)).values()) == {7, 2**31 - 1}


async def test_a_user_who_has_a_link_goes_there(
    store: podlink.Store, client: podlink.ClientDriver
) -> None:
    async with running(store, 0, 1, 2) as pods:
        await pods[2].set_linked_pod(*USER, 2)
        assert await client.compute_linked_pod(*USER) == 2
        # A computed answer does not turn the pod's own link into a hint.
        assert await client.get_link_service(None, "u1") == {SERVICE: 2}


async def test_without_pods_the_answer_comes_quickly(client: podlink.ClientDriver) -> None:
    began = time.monotonic()
    with pytest.raises(podlink.NoRoutablePodError, match="default/svc") as caught:
        await client.compute_linked_pod(*USER, timeout=60)
    assert time.monotonic() - began < QUICKLY
    assert caught.value.retryable
    assert caught.value.details["pods_known"] == "0"
    assert client.stats()["no_routable_pod"] == 1
    assert await client.get_linked_pod_not_cache(*USER) is None


async def test_a_pod_that_has_just_come_is_found_at_once(
    store: podlink.Store, client: podlink.ClientDriver
) -> None:
    slow = podlink.RouteInfoConfig(refresh=60)
    lazy = podlink.ClientDriver(store, NAMESPACE, route_info=slow)
    for each in (client, lazy):
        with pytest.raises(podlink.NoRoutablePodError):
            await each.compute_linked_pod(*USER)
    async with running(store, 3):
        assert await lazy.compute_linked_pod(*USER) == 3
        assert await client.compute_linked_pod(*USER) == 3


async def test_a_draining_pod_keeps_its_users_and_gets_no_new_ones(
    store: podlink.Store, client: podlink.ClientDriver
) -> None:
    async with running(store, 0, 1) as pods:
        before = await placed(client, 40)
        assert set(before.values()) == {0, 1}
        await pods[0].set_routing_state(podlink.RoutingState.DENY_NEW_CALL)
        newcomer = client_on(store)
        assert await placed(newcomer, 40) == before
        assert set((await placed(newcomer, 40, prefix="new")).values()) == {1}
        # And it may change its mind.
        await pods[0].set_routing_state(podlink.RoutingState.READY)
        assert set((await placed(client_on(store), 40, prefix="later")).values()) == {0, 1}


async def test_if_all_pods_drain_old_users_are_served_and_new_ones_are_not(
    store: podlink.Store, client: podlink.ClientDriver
) -> None:
    async with running(store, 0) as pods:
        assert await client.compute_linked_pod(*USER) == 0
        await pods[0].set_routing_state("DENY_NEW_CALL")
        assert await client_on(store).compute_linked_pod(*USER) == 0
        with pytest.raises(podlink.NoRoutablePodError, match="1 known, 1 alive"):
            await client_on(store).compute_linked_pod(None, "new", SERVICE)


async def test_the_users_of_a_pod_that_stops_move_at_once_and_nobody_else(
    store: podlink.Store, client: podlink.ClientDriver
) -> None:
    async with running(store, 0, 1):
        async with running(store, 2):
            before = await placed(client, 60)
            assert set(before.values()) == {0, 1, 2}
        fresh = await placed(client_on(store), 60)
        assert set(fresh.values()) == {0, 1}
        assert {user for user in before if before[user] != fresh[user]} == {
            user for user, pod in before.items() if pod == 2
        }

        # The client that remembers the old pod forgets it with its next look at the pods.
        async def agrees() -> bool:
            return await placed(client, 60) == fresh

        await eventually_async(agrees)


async def test_a_pod_that_says_shutdown_loses_its_users_before_it_ends(
    store: podlink.Store, client: podlink.ClientDriver
) -> None:
    async with running(store, 0, 1) as pods:
        home = await client.compute_linked_pod(*USER)
        await pods[home].set_routing_state("SHUTDOWN")
        assert await client_on(store).compute_linked_pod(*USER) == 1 - home
        with pytest.raises(podlink.IllegalStateError, match="SHUTDOWN"):
            await pods[home].set_routing_state("READY")


@pytest.mark.parametrize("persistent", [False, True])
async def test_a_link_to_a_pod_that_never_was_is_healed(
    store: podlink.Store, client: podlink.ClientDriver, persistent: bool
) -> None:
    async with running(store, 0) as pods:
        if persistent:
            await pods[0].set_linked_pod(*USER, 99)
        else:
            await client.set_linked_pod_if_absent(*USER, 99)
        assert await client.get_linked_pod_not_cache(*USER) == 99
        assert await client_on(store).compute_linked_pod(*USER) == 0
        assert await client.compute_linked_pod(*USER) == 0
        assert await client.get_linked_pod_not_cache(*USER) == 0
        assert await client.get_link_service(None, "u1") == {}


async def test_a_link_to_nobody_and_no_pod_to_heal_it_with(client: podlink.ClientDriver) -> None:
    await client.set_linked_pod_if_absent(*USER, 99)
    with pytest.raises(podlink.NoRoutablePodError):
        await client.compute_linked_pod(*USER)
    # The link is not lost: its pod may come.
    assert await client.get_linked_pod_not_cache(*USER) == 99


async def test_the_users_of_a_pod_that_died_move_when_its_death_is_certain(
    store: podlink.Store, client: podlink.ClientDriver
) -> None:
    # One client believes its cache, the other asks the store for every user every time.
    asking = client_on(store, cache_ttl=0)
    async with running(store, 0, config=QUICK):
        doomed = await crashed(store, 1)
        before = await placed(client, 40)
        of_the_dead = [user for user, pod in before.items() if pod == 1]
        assert of_the_dead
        del doomed
        died = time.monotonic()
        answers = []

        async def nobody_there() -> bool:
            answers.append(await asking.compute_linked_pod(None, of_the_dead[0], SERVICE))
            return set((await placed(client, 40)).values()) == {0}

        await eventually_async(nobody_there, within=30)
        # Not earlier than its lease allows: until then it may still have served them.
        assert time.monotonic() - died > GRACE
        # While the death was not certain the user stayed, and no call failed.
        assert set(answers) <= {0, 1}
        assert answers == sorted(answers, reverse=True)
        assert answers[0] == 1
        assert asking.stats()["owners_unsure"] > 0
        healed = [each.stats()["links_healed"] for each in (client, asking)]
        assert sum(healed) == len(of_the_dead)
        assert set((await placed(asking, 40)).values()) == {0}


@pytest.mark.parametrize(("rule", "expected"), [("same_pod", 1), ("best_pod", 0)])
async def test_the_users_of_a_pod_that_came_back(
    store: podlink.Store, rule: str, expected: int
) -> None:
    client = client_on(store, on_restart=rule)
    async with running(store, 0, loads={0: 1_000}):
        for life in range(10):
            user = (None, f"u{life}", SERVICE)
            async with running(store, 1) as [first]:
                await client_on(store).set_linked_pod_if_absent(*user, 1)
                assert await client.compute_linked_pod(*user) == 1
                incarnation = first.incarnation
                await first.stop(drain="keep")

            async def knows_that_it_left(user: tuple[None, str, str] = user) -> bool:
                return client.get_linked_in_cache(*user) is None

            await eventually_async(knows_that_it_left)
            async with running(store, 1, loads={1: 2_000}) as [second]:
                assert second.incarnation != incarnation

                async def placed_by_the_rule(user: tuple[None, str, str] = user) -> bool:
                    return await client.compute_linked_pod(*user) == expected

                # The client may not have heard yet that the pod is back: then it answers what
                # the store says, and must not remember it.
                await eventually_async(placed_by_the_rule)
                assert await client_on(store).compute_linked_pod(*user) == expected


async def test_two_clients_that_heal_agree(store: podlink.Store) -> None:
    clients = [client_on(store) for _ in range(4)]
    async with running(store, 0, 1, 2) as pods:
        for number in range(50):
            await pods[0].set_linked_pod(None, f"u{number}", SERVICE, 77)
        answers = await asyncio.gather(*(placed(client, 50) for client in clients))
        assert all(answer == answers[0] for answer in answers)
        assert set(answers[0].values()) <= {0, 1, 2}
        assert sum(client.stats()["links_healed"] for client in clients) == 50


async def test_many_callers_for_one_user_ask_the_store_once(
    store: podlink.Store, client: podlink.ClientDriver
) -> None:
    async with running(store, 0, 1, 2):
        await client.compute_linked_pod(None, "warm", SERVICE)
        pods = await asyncio.gather(*(client.compute_linked_pod(*USER) for _ in range(200)))
        assert len(set(pods)) == 1
        stats = client.stats()
        assert stats["links_made"] == 2
        # Who comes between the end of a flight and its answer in the cache starts another one.
        assert stats["flights_joined"] + stats["cache_hits"] > 150
