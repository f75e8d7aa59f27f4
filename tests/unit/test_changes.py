"""`async for change in info.changes(…)`: every change once, or an error in its place."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import podlink
from helpers.pods import FRESH, NAMESPACE, SERVICE, STEADY, pod_info, running
from helpers.wait import eventually_async

Seen = tuple[int, str | None, str | None]


def seen(change: podlink.StateChange) -> Seen:
    before, after = change.previous, change.now
    return (
        change.pod_index,
        before.routing_state.value if before else None,
        after.routing_state.value if after else None,
    )


async def test_the_changes_of_a_pod() -> None:
    store = podlink.Store()
    info = podlink.RouteInfoDriver(store, config=FRESH)
    async with info.changes(None, SERVICE) as changes:
        server = podlink.ServerDriver(store, pod_info(0), STEADY)
        await server.start()
        assert seen(await anext(changes)) == (0, None, "READY")
        await server.set_routing_state("DENY_NEW_CALL")
        change = await anext(changes)
        assert seen(change) == (0, "READY", "DENY_NEW_CALL")
        assert (change.namespace, change.service_name) == (NAMESPACE, SERVICE)
        await server.stop(deadline=5)
        last = [seen(await anext(changes))]
        while last[-1][2] is not None:
            last.append(seen(await anext(changes)))
        assert last[-1][0] == 0
    # Ended by its block: a task that goes on reading ends, too.
    assert [each async for each in changes] == []
    await info.aclose()


async def test_the_close_of_the_driver_ends_it() -> None:
    store = podlink.Store()
    info = podlink.RouteInfoDriver(store, config=FRESH)
    read: list[Seen] = []
    slow, fast = info.changes(None, SERVICE), info.changes()

    async def reads() -> None:
        async for change in fast:
            read.append(seen(change))  # noqa: PERF401 - one by one, as a program does

    reader = asyncio.create_task(reads())
    async with running(store, 0, 1):
        await eventually_async(lambda: len(read) == 2)
        await info.aclose()
        await asyncio.wait_for(reader, 60)
    # What came before the close can be read still.
    assert sorted([seen(each) async for each in slow]) == sorted(read)
    assert sorted(read) == [(0, None, "READY"), (1, None, "READY")]
    with pytest.raises(podlink.ClosedError):
        info.changes()


def test_the_close_on_another_loop_ends_it() -> None:
    store = podlink.Store()
    info = podlink.RouteInfoDriver(store)

    async def reads() -> list[podlink.StateChange]:
        changes = info.changes()
        closing = asyncio.to_thread(asyncio.run, info.aclose())
        return (await asyncio.gather(_all(changes), closing))[0]

    async def _all(changes: podlink.StateChanges) -> list[podlink.StateChange]:
        return [each async for each in changes]

    assert asyncio.run(reads()) == []


async def test_a_slow_reader_gets_an_error() -> None:
    store = podlink.Store()
    info = podlink.RouteInfoDriver(store, config=FRESH)
    all_of_them = info.changes(None, SERVICE)
    slow = info.changes(None, SERVICE, limit=2)
    async with running(store, 0, 1, 2, 3, 4):
        everything = [seen(await anext(all_of_them)) for _ in range(5)]
        # The first two are there, then the gap, and after it what comes later.
        assert [seen(await anext(slow)) for _ in range(2)] == everything[:2]
        with pytest.raises(podlink.OverloadedError, match="was too slow: 3 changes") as caught:
            await anext(slow)
        assert caught.value.retryable
        assert caught.value.details == {"dropped": "3", "limit": "2"}
        async with running(store, 5):
            assert seen(await anext(slow)) == (5, None, "READY")
    await info.aclose()


async def test_a_cancelled_read_loses_nothing() -> None:
    store = podlink.Store()
    info = podlink.RouteInfoDriver(store, config=FRESH)
    changes = info.changes(None, SERVICE)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(changes), 0.001)
    async with running(store, 0):
        assert seen(await anext(changes)) == (0, None, "READY")
    await info.aclose()


async def test_one_task_reads() -> None:
    info = podlink.RouteInfoDriver(podlink.Store())
    changes = info.changes()
    first = asyncio.ensure_future(anext(changes, None))
    await eventually_async(lambda: changes._feed.reader is not None)
    with pytest.raises(podlink.IllegalStateError, match="one task"):
        await anext(changes)
    await info.aclose()
    assert await first is None


@pytest.mark.parametrize("limit", [0, -1, 10_001, True, 2.5, "9"])
async def test_a_limit_is_checked(limit: Any) -> None:
    info = podlink.RouteInfoDriver(podlink.Store())
    with pytest.raises(podlink.InvalidParameterError, match="limit must be") as caught:
        info.changes(limit=limit)
    assert caught.value.details["parameter"] == "limit"
    await info.aclose()


def test_changes_need_a_loop() -> None:
    with pytest.raises(
        podlink.IllegalStateError, match="needs asyncio, and found no running event loop"
    ):
        podlink.RouteInfoDriver(podlink.Store()).changes()


async def test_what_is_dropped_unsubscribes() -> None:
    # A reader keeps its driver, but no driver keeps its readers: a `break` ends the subscription.
    store = podlink.Store()
    info = podlink.RouteInfoDriver(store, config=FRESH)
    changes = info.changes(None, SERVICE)
    feed, driver = weakref.ref(changes._feed), weakref.ref(info)

    def collected(gone: Callable[[], object]) -> bool:
        gc.collect()
        return gone() is None

    del info
    async with running(store, 0):
        async for change in changes:
            assert seen(change) == (0, None, "READY")
            break
        assert not collected(driver)
        del changes
        await eventually_async(lambda: collected(feed))
        await eventually_async(lambda: collected(driver))
