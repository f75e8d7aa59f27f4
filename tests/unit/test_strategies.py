"""Choosing a pod for a new user: by name, or by a function of the program's own."""

import asyncio
import functools
import itertools
import logging
import threading
import time
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


async def test_an_overloaded_function_chooses_what_it_can(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Calls waited in one plain queue: with 1,000 computes at a time each took a second, half of the
    # choices came too late, and calls that no compute waited for ran for seconds after.
    calls = 0

    def choose(_uid: str, candidates: Sequence[podlink.StatefulServiceState]) -> int:
        nonlocal calls
        calls += 1
        time.sleep(0.002)
        return candidates[-1].pod_id

    store = podlink.Store()
    with caplog.at_level(logging.WARNING, "podlink"):
        async with running(store, 0, 1):
            client = client_on(store, choose, timeout=10)
            for burst in range(3):
                users = (
                    client.compute_linked_pod(None, f"{burst}-{user}", SERVICE)
                    for user in range(1_000)
                )
                assert set(await asyncio.gather(*users)) == {0, 1}
            stats = client.stats()
            assert stats["chooser_failures"] == 0
            assert stats["links_made"] == 3_000
            chosen = 3_000 - stats["chooser_overloads"]
            assert 3 * 20 < chosen <= calls < 3_000
            assert f"podlink_strategy_overloads_total {3_000 - chosen}" in store.metrics_text()
            # No call is left over that would run before that of the next user.
            last = calls
            await client.compute_linked_pod(None, "next", SERVICE)
            assert calls <= last + 2
        eventually(lambda: "the strategy is too slow" in caplog.text)
    warned = [record for record in caplog.records if "too slow" in record.message]
    assert len(warned) <= 1 + stats["chooser_overloads"] // 100


async def test_a_quick_function_chooses_for_a_burst_of_users() -> None:
    # How long the first call takes to reach the thread says nothing of how quick the function is.
    store = podlink.Store()
    async with running(store, 0, 1):
        client = client_on(store, lambda _uid, candidates: candidates[-1].pod_id, timeout=60)
        compute = client.compute_linked_pod
        users = (compute(None, f"u{user}", SERVICE) for user in range(1_000))
        assert await asyncio.gather(*users) == [1] * 1_000
        assert client.stats()["chooser_overloads"] == 0


async def test_one_driver_s_strategy_does_not_delay_another_s() -> None:
    # All strategies ran on one thread: one that hung made every other one time out.
    let_go = threading.Event()

    def hangs(_uid: str, _candidates: object) -> None:
        let_go.wait(60.0)

    def last(_uid: str, candidates: Sequence[podlink.StatefulServiceState]) -> int:
        return candidates[-1].pod_id

    store = podlink.Store()
    async with running(store, 0, 1, 2):
        slow, quick = client_on(store, hangs), client_on(store, last)
        waiting = slow.submit("compute_linked_pod", None, "slow", SERVICE, timeout=60)
        try:
            assert await placed(quick, 20) == [2] * 20
            assert quick.stats()["chooser_failures"] == quick.stats()["chooser_overloads"] == 0
            assert not waiting.done()
        finally:
            let_go.set()
        waiting.result(60)


async def test_behind_a_function_that_hangs_podlink_chooses_at_once() -> None:
    let_go, seen = threading.Event(), []

    def choose(uid: str, _candidates: object) -> None:
        seen.append(uid)
        let_go.wait(60.0)

    store = podlink.Store()
    async with running(store, 0):
        client = client_on(store, choose)
        compute = client.compute_linked_pod
        try:
            assert await compute(None, "u1", SERVICE, timeout=0.2) == 0
            assert client.stats()["chooser_failures"] == 1
            # The function is still at the first user. No other one waits half of its time.
            began = time.monotonic()
            users = (compute(None, f"u{user}", SERVICE, timeout=2) for user in range(2, 102))
            assert await asyncio.gather(*users) == [0] * 100
            assert time.monotonic() - began < 1.0
            assert client.stats()["chooser_overloads"] == 100
        finally:
            let_go.set()
        # It has ended at last, and is asked again.
        await eventually_async(lambda: asked_again(client, seen))
    assert not {f"u{user}" for user in range(2, 102)} & set(seen)


_later = itertools.count()


async def asked_again(client: podlink.ClientDriver, seen: Sequence[str]) -> bool:
    uid = f"later{next(_later)}"
    await client.compute_linked_pod(None, uid, SERVICE)
    return uid in seen


class Indexed:
    """An integer of another library, like NumPy's: not an int."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __index__(self) -> int:
        return self._number


async def test_a_strategy_can_ask_how_long_it_may_take() -> None:
    left: list[float] = []

    def choose(_uid: str, _candidates: object) -> None:
        deadline = podlink.hook_deadline()
        assert deadline is not None
        left.append(deadline - time.monotonic())

    store = podlink.Store()
    async with running(store, 0):
        client = client_on(store, choose)
        await client.compute_linked_pod(None, "u", SERVICE, timeout=60)
        assert client.stats()["chooser_failures"] == 0
    assert 0 < left[0] <= 30


async def test_any_integer_is_an_index() -> None:
    # A strategy that computed with NumPy returned an ``int64``, which was refused.
    store = podlink.Store()
    async with running(store, 0, 1):
        client = client_on(store, lambda _uid, _candidates: Indexed(1))
        assert await placed(client, 3) == [1] * 3
        assert client.stats()["chooser_failures"] == 0
        truth = client_on(store, lambda _uid, _candidates: True)
        await placed(truth, 2, prefix="t")
        assert truth.stats()["chooser_failures"] == 2


async def choose_later(_uid: str, _candidates: object) -> int:
    return 0


class ChoosesLater:
    async def __call__(self, _uid: str, _candidates: object) -> int:
        return 0

    async def choose(self, _uid: str, _candidates: object) -> int:
        return 0


@pytest.mark.parametrize(
    "strategy",
    [
        choose_later,
        ChoosesLater(),
        ChoosesLater().choose,
        functools.partial(choose_later, "u"),
        functools.partial(ChoosesLater(), "u"),
    ],
    ids=["function", "object", "method", "partial", "partial of an object"],
)
def test_an_async_strategy_is_refused_when_given(strategy: Any) -> None:
    # It was called, returned a coroutine, and each choice failed.
    with pytest.raises(podlink.InvalidParameterTypeError, match="strategy must be") as refused:
        podlink.ClientConfig(strategy=strategy)
    assert refused.value.details["parameter"] == "strategy"


async def test_a_strategy_that_returns_a_coroutine_has_failed() -> None:
    store = podlink.Store()
    async with running(store, 4):
        client = client_on(store, lambda uid, candidates: choose_later(uid, candidates))
        assert await placed(client, 2) == [4, 4]
        assert client.stats()["chooser_failures"] == 2


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
