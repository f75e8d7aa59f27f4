"""Choosing a pod for a new user: by name, or by a function of the program's own."""

import asyncio
import itertools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import podlink
from helpers.pods import FRESH, NAMESPACE, SERVICE, running
from helpers.wait import eventually, eventually_async

Chooser = Callable[[str, Sequence[podlink.StatefulServiceState]], int | None]


def client_on(store: podlink.Store, strategy: Any, **figures: Any) -> podlink.ClientDriver:
    config = podlink.ClientConfig(strategy=strategy, **figures)
    return podlink.ClientDriver(store, NAMESPACE, config, route_info=FRESH)


async def placed(client: podlink.ClientDriver, users: int, prefix: str = "u") -> list[int]:
    """Where so many new users go, one after the other."""
    compute = client.compute_linked_pod
    return [await compute(None, f"{prefix}{number}", SERVICE) for number in range(users)]


async def test_the_least_loaded_pod_gets_everybody() -> None:
    store = podlink.Store()
    async with running(store, 0, 1, 2, loads={0: 50, 1: 3, 2: 40}):
        assert await placed(client_on(store, "least_load"), 20) == [1] * 20


async def test_of_equally_loaded_pods_the_first_is_taken() -> None:
    store = podlink.Store()
    async with running(store, 0, 1, 2, loads={0: 3, 1: 3, 2: 3}):
        assert await placed(client_on(store, "least_load"), 5) == [0, 1, 2, 0, 1]


async def test_least_load_counts_what_this_client_sent() -> None:
    # Until a pod published its load again, the client took it for as idle as before: of 1,000 users
    # at once on four idle pods, one pod got 650, another 350, and two got none.
    store = podlink.Store()
    async with running(store, 0, 1, 2, 3):
        client = client_on(store, "least_load")
        users = (client.compute_linked_pod(None, f"u{user}", SERVICE) for user in range(1_000))
        pods = Counter(await asyncio.gather(*users))
        assert all(abs(pods[pod] - 250) <= 25 for pod in range(4)), pods


async def test_one_after_the_other() -> None:
    store = podlink.Store()
    async with running(store, 0, 1, 2):
        pods = await placed(client_on(store, "round_robin"), 30)
        assert Counter(pods) == {0: 10, 1: 10, 2: 10}
        assert len(set(pods[:3])) == 3


async def test_weights_come_from_the_metadata() -> None:
    store = podlink.Store()
    heavy = {1: {"weight": "1000000000000"}}
    async with running(store, 0, 1, metadata=heavy):
        assert await placed(client_on(store, "weighted"), 30) == [1] * 30


async def test_rendezvous_places_a_user_alike_everywhere() -> None:
    one, other = podlink.Store(), podlink.Store()
    async with running(one, 0, 1, 2), running(other, 0, 1, 2):
        first = await placed(client_on(one, "rendezvous"), 60)
        assert first == await placed(client_on(other, "rendezvous"), 60)
        assert set(first) == {0, 1, 2}
    # A pod more takes its share from the others and moves nobody else.
    larger = podlink.Store()
    async with running(larger, 0, 1, 2, 3):
        after = await placed(client_on(larger, "rendezvous"), 60)
        assert {new for old, new in zip(first, after, strict=True) if old != new} == {3}


async def test_two_choices_spread_users_before_any_load_was_published() -> None:
    store = podlink.Store()
    async with running(store, 0, 1, 2, 3):
        users = Counter(await placed(client_on(store, "p2c"), 400))
        assert min(users[pod] for pod in range(4)) > 60, users


async def test_two_choices_avoid_the_busiest_pod() -> None:
    store = podlink.Store()
    async with running(store, 0, 1, 2, loads={2: 1_000_000}):
        assert 2 not in await placed(client_on(store, "p2c"), 100)


async def test_a_function_sees_the_user_and_the_candidates() -> None:
    seen: list[tuple[str, Sequence[podlink.StatefulServiceState]]] = []

    def choose(uid: str, candidates: Sequence[podlink.StatefulServiceState]) -> int:
        seen.append((uid, candidates))
        return candidates[-1].pod_id

    store = podlink.Store()
    async with running(store, 0, 1, 2, loads={1: 7}, metadata={1: {"zone": "b"}}) as pods:
        await pods[2].set_routing_state("DENY_NEW_CALL")
        client = client_on(store, choose)
        assert await client.compute_linked_pod(None, "user123", SERVICE) == 1
        [(uid, candidates)] = seen
        assert uid == "user123"
        assert [pod.pod_id for pod in candidates] == [0, 1]
        assert all(isinstance(pod, podlink.StatefulServiceState) for pod in candidates)
        chosen = candidates[1]
        assert (chosen.load_state, chosen.metadata["zone"]) == (7, "b")
        assert chosen.routing_state is podlink.RoutingState.READY
        assert chosen.incarnation == pods[1].incarnation
        # A cached answer asks nobody.
        assert await client.compute_linked_pod(None, "user123", SERVICE) == 1
        assert len(seen) == 1


async def test_a_function_that_has_no_wish_leaves_it_to_podlink() -> None:
    store = podlink.Store()
    async with running(store, 4):
        client = client_on(store, lambda _uid, _candidates: None)
        assert await client.compute_linked_pod(None, "u", SERVICE) == 4
        assert client.stats()["chooser_failures"] == 0


def fails(_uid: str, _candidates: object) -> int:
    raise RuntimeError("on purpose")


def exits(_uid: str, _candidates: object) -> int:
    raise SystemExit(1)


@pytest.mark.parametrize(
    "strategy",
    [
        fails,
        exits,
        lambda _uid, _candidates: 99,
        lambda _uid, _candidates: -1,
        lambda _uid, _candidates: "0",
        lambda _uid, _candidates: 10**30,
        lambda: 0,
    ],
    ids=["raises", "exits", "absent", "negative", "text", "huge", "arity"],
)
async def test_a_function_that_fails_is_counted_logged_and_replaced(
    caplog: pytest.LogCaptureFixture, strategy: Any
) -> None:
    store = podlink.Store()
    with caplog.at_level(logging.WARNING, "podlink"):
        async with running(store, 4):
            client = client_on(store, strategy)
            assert await placed(client, 2) == [4, 4]
            assert client.stats()["chooser_failures"] == 2
        eventually(lambda: "the strategy" in caplog.text)
    records = [record for record in caplog.records if "the strategy" in record.message]
    assert all(record.name.startswith("podlink") for record in records)
    assert all(record.levelno == logging.WARNING for record in records)


async def test_a_function_that_names_a_draining_pod_is_replaced() -> None:
    store = podlink.Store()
    async with running(store, 0, 1) as pods:
        await pods[0].set_routing_state(podlink.RoutingState.DENY_NEW_CALL)
        client = client_on(store, lambda _uid, _candidates: 0)
        assert await client.compute_linked_pod(None, "u", SERVICE) == 1
        assert client.stats()["chooser_failures"] == 1


async def test_a_slow_function_holds_up_nobody_else() -> None:
    # Strategies ran on the thread that settles futures. A strategy that slept stalled the futures
    # of all other calls.
    let_go = threading.Event()

    def choose(_uid: str, _candidates: object) -> int | None:
        let_go.wait(10.0)
        return None

    store = podlink.Store()
    async with running(store, 0):
        slow, other = client_on(store, choose), client_on(store, "p2c")
        future = slow.submit("compute_linked_pod", None, "u1", SERVICE, timeout=30)
        assert await other.compute_linked_pod(None, "u2", SERVICE) == 0
        assert other.submit("compute_linked_pod", None, "u3", SERVICE).result(10.0) == 0
        assert not future.done()
        let_go.set()
        assert future.result(10.0) == 0


async def test_a_function_that_never_answers_costs_time_and_not_the_user() -> None:
    # A slow hook must never stall routing: p2c chooses before the deadline.
    let_go = threading.Event()

    def choose(_uid: str, _candidates: object) -> int | None:
        let_go.wait(30.0)
        return None

    store = podlink.Store()
    async with running(store, 0):
        client = client_on(store, choose)
        try:
            assert await client.compute_linked_pod(None, "u1", SERVICE, timeout=0.1) == 0
            assert client.stats()["chooser_failures"] == 1
        finally:
            let_go.set()


async def test_above_the_limit_means_no_new_users() -> None:
    store = podlink.Store()
    limit = podlink.RouteInfoConfig(refresh=0.05, overload_limit=10)
    async with running(store, 0, 1, loads={0: 11, 1: 10}):
        client = podlink.ClientDriver(store, NAMESPACE, route_info=limit)
        assert await placed(client, 20) == [1] * 20
        assert client.stats()["degraded_choices"] == 0


async def test_if_all_are_above_the_limit_the_least_loaded_one_is_taken() -> None:
    store = podlink.Store()
    limit = podlink.RouteInfoConfig(refresh=0.05, overload_limit=10)
    async with running(store, 0, 1, 2, loads={0: 40, 1: 20, 2: 30}):
        client = podlink.ClientDriver(store, NAMESPACE, route_info=limit)
        assert await placed(client, 5) == [1] * 5
        assert client.stats()["degraded_choices"] == 5


async def test_a_user_of_an_overloaded_pod_stays() -> None:
    store = podlink.Store()
    limit = podlink.RouteInfoConfig(refresh=0.05, overload_limit=10)
    async with running(store, 0, 1) as pods:
        client = podlink.ClientDriver(
            store, NAMESPACE, podlink.ClientConfig(cache_ttl=0), route_info=limit
        )
        home = await client.compute_linked_pod(None, "u", SERVICE)
        await pods[home].set_load_state(1_000)
        await pods[home].set_routing_state("READY")  # publishes at once

        rounds = itertools.count()

        async def newcomers_go_elsewhere() -> bool:
            return home not in await placed(client, 5, prefix=f"new{next(rounds)}-")

        await eventually_async(newcomers_go_elsewhere)
        assert await client.compute_linked_pod(None, "u", SERVICE) == home
