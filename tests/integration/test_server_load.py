"""What a pod publishes of itself: its load, weighted with its CPU, and its routing state."""

import asyncio
import itertools
import logging
import threading
import time
from typing import Any

import pytest

import podlink
from conftest import ServerFactory
from helpers.pods import FRESH, NAMESPACE, SERVICE, pod_info, running
from helpers.wait import LATE, eventually, eventually_async

# Renews often, so that a load is published soon.
OFTEN = podlink.ServerConfig(
    lease=5, renew=0.05, guard=0.2, gap=1, grace=1, cpu_factor=0.0, timeout=2
)
CPU_ONLY = podlink.ServerConfig(lease=5, renew=0.05, guard=0.2, gap=1, grace=1, cpu_factor=1.0)


async def published(info: podlink.RouteInfoDriver) -> int:
    return (await info.get_all_service_state(None, SERVICE))[0].load_state


async def test_a_load_is_published_with_the_next_renewal(store_url: str) -> None:
    async with (
        podlink.Store(store_url) as store,
        running(store, 0, config=OFTEN) as [server],
        podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info,
    ):
        for load in (7, -3, 2**53, 0):
            await server.set_load_state(load)
            assert await server.get_load_state() == load
            assert server.weighted_load == load

            async def arrived(load: int = load) -> bool:
                return await published(info) == load

            await eventually_async(arrived)


async def test_a_huge_load_is_published_as_it_is(store_url: str) -> None:
    async with (
        podlink.Store(store_url) as store,
        running(store, 0, loads={0: 2**63 - 1}),
        podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info,
    ):
        assert await published(info) == 2**63 - 1


@pytest.mark.parametrize("given", ["5", 1.5, None, True, 2**63])
async def test_a_load_is_a_whole_number(given: Any) -> None:
    server = podlink.ServerDriver(podlink.Store(), pod_info(0))
    with pytest.raises(podlink.InvalidParameterError, match="load_state"):
        await server.set_load_state(given)


async def test_the_cpu_is_all_of_the_load_if_the_program_says_so() -> None:
    store = podlink.Store()
    async with running(store, 0, config=CPU_ONLY) as [server]:
        await server.set_load_state(1_000_000)
        busy = threading.Event()

        def burn() -> None:
            while not busy.is_set():
                sum(range(1000))

        burner = threading.Thread(target=burn)
        burner.start()
        try:
            # One thread of a machine with at most 16 cores: more than 3 %.
            await eventually_async(lambda: server.weighted_load > 3)
        finally:
            busy.set()
            burner.join()
        # Reported load does not count at all.
        assert server.weighted_load <= 100


async def test_cpu_and_reported_load_are_weighted() -> None:
    half = podlink.ServerConfig(lease=5, renew=0.05, guard=0.2, gap=1, grace=1, cpu_factor=0.5)
    store = podlink.Store()
    async with running(store, 0, config=half, loads={0: 1000}) as [server]:
        assert 500 <= server.weighted_load <= 550


async def asked_of(
    load: Any, config: podlink.ServerConfig = OFTEN
) -> tuple[podlink.ServerDriver, podlink.Store]:
    store = podlink.Store()
    server = podlink.ServerDriver(store, pod_info(0), config, load)
    await server.start()
    return server, store


async def test_a_sync_load_function_is_asked_on_the_loop() -> None:
    loads = itertools.count(10)
    threads: set[str] = set()

    def load() -> int:
        threads.add(threading.current_thread().name)
        return next(loads)

    server, store = await asked_of(load)
    await eventually_async(lambda: server.weighted_load > 13)
    async with podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info:
        assert await published(info) >= 10
    assert threads == {threading.current_thread().name}
    await server.stop()
    asked = next(loads)
    # The stop has ended the load task, and no call was left on its way.
    await asyncio.sleep(0)
    assert next(loads) == asked + 1


async def test_an_async_load_function_may_wait() -> None:
    async def load() -> int:
        await asyncio.sleep(0)
        return 42

    server, _ = await asked_of(load)
    await eventually_async(lambda: server.weighted_load == 42)
    await server.stop()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_without_a_loop_the_load_function_runs_on_a_thread(kind: str) -> None:
    names: list[str] = []

    def load() -> int:
        names.append(threading.current_thread().name)
        return 9

    async def async_load() -> int:
        return load()

    function = load if kind == "sync" else async_load
    server = podlink.ServerDriver(podlink.Store(), pod_info(0), OFTEN, function)
    server.submit("start").result(60)
    eventually(lambda: server.weighted_load == 9)
    server.submit("stop").result(60)
    assert set(names) == {"podlink-hook"}
    # Neither does the thread outlive its work for long.
    eventually(lambda: all(each.name != "podlink-hook" for each in threading.enumerate()))


def failing() -> int:
    raise RuntimeError("on purpose")


async def failing_async() -> int:
    raise RuntimeError("on purpose")


@pytest.mark.parametrize(
    "then",
    [failing, failing_async, lambda: "5", lambda: 1.5, lambda: None, lambda: 2**63, lambda: True],
    ids=["raises", "raises async", "text", "float", "none", "huge", "bool"],
)
async def test_a_load_function_that_fails_keeps_the_last_value(
    then: Any, caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter([lambda: 8])
    server, _ = await asked_of(lambda: next(answers, then)())
    await eventually_async(lambda: server.stats()["load_failures"] > 2)
    assert server.weighted_load == 8
    assert server.holds_lease
    eventually(lambda: "the load function failed; the last value stays" in caplog.text)
    await server.stop()
    assert {each.levelno for each in caplog.records} == {logging.WARNING}


async def test_a_slow_load_function_delays_no_renewal_and_is_asked_once_at_a_time() -> None:
    # A slow load function was called again in every period while earlier calls still ran. The calls
    # piled up without a limit.
    under_way = 0
    most = 0
    go_on = asyncio.Event()

    async def load() -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await go_on.wait()
        under_way -= 1
        return 5

    server, _ = await asked_of(load)
    await server.set_load_state(3)
    renewed = server.stats()["published"]
    await eventually_async(lambda: server.stats()["load_failures"] > 3)
    assert server.stats()["published"] > renewed + 1
    assert server.weighted_load == 3
    assert (under_way, most) == (1, 1)
    go_on.set()
    # Late, but it is the newest that there is.
    await eventually_async(lambda: server.weighted_load == 5)
    assert most == 1
    await server.stop()


async def test_a_load_function_that_never_returns_does_not_hinder_the_stop() -> None:
    never = asyncio.Event()

    async def load() -> int:
        await never.wait()
        return 1

    server, store = await asked_of(load)
    began = time.monotonic()
    await server.stop()
    assert time.monotonic() - began < LATE
    async with podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info:
        assert await info.get_all_service_state(None, SERVICE) == {}
    never.set()


async def test_a_routing_state_is_seen_at_once_by_others(store_url: str) -> None:
    # Neither looks again for a minute, and the pod renews every 20 s: only the event brings it.
    slow = podlink.ServerConfig(lease=90, renew=20, guard=1, gap=40, grace=40, cpu_factor=0)
    rarely = podlink.RouteInfoConfig(refresh=60)
    memory = store_url == "memory://"
    async with (
        podlink.Store(store_url) as store,
        podlink.Store(store_url) as another,
        running(store, 0, 1, config=slow) as [server, _],
    ):
        theirs = store if memory else another
        async with podlink.RouteInfoDriver(theirs, NAMESPACE, rarely) as info:
            assert len(await info.get_all_service_state(None, SERVICE)) == 2
            assert info.is_pod_routable(None, SERVICE, 0)
            for state in ("DENY_NEW_CALL", "READY", "SHUTDOWN"):
                began = time.monotonic()
                await server.set_routing_state(state)
                assert await server.get_routing_state() == state
                await eventually_async(
                    lambda state=state: info.alive_pods(None, SERVICE)[0].routing_state == state  # type: ignore[misc]
                )
                print(f"{state} seen after {(time.monotonic() - began) * 1000:.0f} ms")
                assert time.monotonic() - began < LATE
                assert info.is_pod_routable(None, SERVICE, 0) == (state == "READY")
                assert info.is_pod_available(None, SERVICE, 0) == (state != "SHUTDOWN")
            assert info.alive_pods(None, SERVICE)[0].state == "NOT_READY"
            ready = await info.get_ready_service_state(None, SERVICE)
            assert list(ready) == [1]


MOVES = [
    (before, after, before != "SHUTDOWN" or after == "SHUTDOWN")
    for before in podlink.RoutingState
    for after in podlink.RoutingState
]


@pytest.mark.parametrize(("before", "after", "legal"), MOVES)
async def test_only_legal_moves_are_made(before: str, after: str, legal: bool) -> None:
    async with running(podlink.Store(), 0) as [server]:
        await server.set_routing_state(before)
        if legal:
            await server.set_routing_state(after)
            assert await server.get_routing_state() == after
            return
        with pytest.raises(podlink.IllegalStateError, match=f"{before} to {after}"):
            await server.set_routing_state(after)
        assert await server.get_routing_state() == before


@pytest.mark.parametrize("given", ["ready", "", "DENY", None, 1])
async def test_an_unknown_routing_state_is_refused(given: Any) -> None:
    server = podlink.ServerDriver(podlink.Store(), pod_info(0))
    with pytest.raises(podlink.InvalidParameterError, match="routing_state") as caught:
        await server.set_routing_state(given)
    if isinstance(given, str):
        assert "DENY_NEW_CALL" in str(caught.value)


async def test_a_state_that_could_not_be_published_stands_and_follows(
    server_factory: ServerFactory,
) -> None:
    server = server_factory()
    store, theirs = podlink.Store(server.url), podlink.Store(server.url)
    async with (
        running(store, 0, config=OFTEN) as [pod],
        podlink.RouteInfoDriver(theirs, NAMESPACE, FRESH) as info,
    ):
        await info.get_all_service_state(None, SERVICE)
        server.pause()
        with pytest.raises(podlink.OperationTimeoutError):
            await pod.set_routing_state("DENY_NEW_CALL", timeout=0.2)
        assert await pod.get_routing_state() is podlink.RoutingState.DENY_NEW_CALL
        server.resume()
        await eventually_async(
            lambda: info.alive_pods(None, SERVICE)[0].routing_state == "DENY_NEW_CALL"
        )
    await theirs.aclose()
    await store.aclose()


def test_a_program_without_a_loop_sets_and_reads_its_states() -> None:
    # `submit` did not accept these operations, so a program without an event loop could neither set
    # nor read its states.
    server = podlink.ServerDriver(podlink.Store(), pod_info(0))
    assert server.submit("set_load_state", 4).result(60) is None
    assert server.submit("get_load_state").result(60) == 4
    server.submit("set_routing_state", "DENY_NEW_CALL").result(60)
    state = server.submit("get_routing_state").result(60)
    assert state is podlink.RoutingState.DENY_NEW_CALL
    with pytest.raises(podlink.InvalidParameterError, match="deadline"):
        server.submit("stop", timeout=1)
