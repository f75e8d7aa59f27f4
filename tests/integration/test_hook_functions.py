"""How hooks are called: sync or async, with a loop or without, slow, failing, or left behind."""

import asyncio
import contextvars
import gc
import threading
import time
from typing import Any

import pytest

import podlink
from helpers.loops import LOOPS
from helpers.pods import FRESH, NAMESPACE, SERVICE, STEADY, pod_info, running
from helpers.wait import eventually, eventually_async

WHO = contextvars.ContextVar("WHO", default="nobody")
CHANGES = 30


async def change(server: podlink.ServerDriver, info: podlink.RouteInfoDriver, times: int) -> None:
    """So many changes of the routing state, each seen by the driver."""
    for number in range(times):
        state = ("DENY_NEW_CALL", "READY")[number % 2]
        await server.set_routing_state(state)
        await eventually_async(
            lambda state=state: info.alive_pods(None, SERVICE)[0].routing_state == state  # type: ignore[misc]
        )


@pytest.mark.parametrize("kind", ["sync", "async", "either"])
async def test_calls_come_in_order_never_overlap_and_stay_on_their_loop(kind: str) -> None:
    store = podlink.Store()
    told: list[str] = []
    threads: set[int] = set()
    under_way = 0

    def note(now: podlink.StatefulServiceState) -> None:
        threads.add(threading.get_ident())
        told.append(now.routing_state.value)

    def sync(*arguments: Any) -> None:
        note(arguments[4])

    async def later(*arguments: Any) -> None:
        nonlocal under_way
        under_way += 1
        assert under_way == 1
        await asyncio.sleep(0.001)
        note(arguments[4])
        under_way -= 1

    def either(*arguments: Any) -> Any:
        # A function may wait for one event and not for another.
        return later(*arguments) if len(told) % 3 == 0 else sync(*arguments)

    async with running(store, 0) as [server], podlink.RouteInfoDriver(store, NAMESPACE) as info:
        callback = {"sync": sync, "async": later, "either": either}[kind]
        handle = info.register_routing_state_changed_event(None, callback, SERVICE)
        await eventually_async(lambda: told)
        await change(server, info, CHANGES)
        await eventually_async(lambda: len(told) > CHANGES)
        assert told == ["READY", *["DENY_NEW_CALL", "READY"] * (CHANGES // 2)]
        assert threads == {threading.get_ident()}
        assert handle.failures == 0


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_without_a_loop_they_come_in_order_on_a_thread(kind: str) -> None:
    store = podlink.Store()
    server = podlink.ServerDriver(store, pod_info(0), STEADY)
    info = podlink.RouteInfoDriver(store, NAMESPACE)
    told: list[tuple[str, str, str]] = []

    def note(*arguments: Any) -> None:
        thread = threading.current_thread().name
        told.append((arguments[4].routing_state.value, thread, WHO.get()))

    async def later(*arguments: Any) -> None:
        await asyncio.sleep(0)
        note(*arguments)

    WHO.set("the registrant")
    info.register_routing_state_changed_event(None, note if kind == "sync" else later, SERVICE)
    WHO.set("another")
    server.submit("start").result(60)
    eventually(lambda: told)
    for number in range(6):
        server.submit("set_routing_state", ("DENY_NEW_CALL", "READY")[number % 2]).result(60)
        eventually(lambda number=number: len(told) == number + 2)  # type: ignore[misc]
    states = ["READY", *["DENY_NEW_CALL", "READY"] * 3]
    assert told == [(state, "podlink-hook", "the registrant") for state in states]
    asyncio.run(info.aclose())
    server.submit("stop").result(60)
    eventually(lambda: all(each.name != "podlink-hook" for each in threading.enumerate()))


async def test_context_variables_are_those_of_the_registration() -> None:
    store = podlink.Store()
    seen: list[str] = []

    def sync(*_arguments: Any) -> None:
        seen.append(WHO.get())
        WHO.set("sync hook")

    async def later(*_arguments: Any) -> None:
        await asyncio.sleep(0)
        seen.append(WHO.get())

    async with podlink.RouteInfoDriver(store, NAMESPACE) as info:
        WHO.set("the registrant")
        info.register_routing_state_changed_event(None, sync, SERVICE)
        info.register_routing_state_changed_event(None, later, SERVICE)
        WHO.set("another")
        async with running(store, 0) as [server]:
            await eventually_async(lambda: len(seen) == 2)
            await change(server, info, 4)
            await eventually_async(lambda: len(seen) == 10)
        assert set(seen) == {"the registrant"}
        assert WHO.get() == "another"


class OddError(Exception):
    pass


@pytest.mark.parametrize("kind", ["sync", "async", "cancelled", "arity"])
async def test_what_a_hook_raises_is_logged_counted_and_hinders_nobody(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = podlink.Store()
    told: list[Any] = []

    def fail(*_arguments: Any) -> None:
        raise OddError("on purpose")

    async def fail_later(*_arguments: Any) -> None:
        await asyncio.sleep(0)
        raise OddError("on purpose")

    async def be_cancelled(*_arguments: Any) -> None:
        # Something that the hook waits for is cancelled; the hook's task is not.
        waiter = asyncio.get_running_loop().create_future()
        waiter.cancel()
        await waiter

    hooks: dict[str, Any] = {
        "sync": fail,
        "async": fail_later,
        "cancelled": be_cancelled,
        "arity": lambda: None,
    }
    async with podlink.RouteInfoDriver(store, NAMESPACE) as info:
        failing = info.register_routing_state_changed_event(None, hooks[kind], SERVICE)
        info.register_routing_state_changed_event(None, lambda *a: told.append(a), SERVICE)
        async with running(store, 0) as [server]:
            await eventually_async(lambda: told)
            await change(server, info, 4)
            await eventually_async(lambda: failing.failures == 5)
            await eventually_async(lambda: len(told) == 5)
            assert info.stats()["hook_failures"] == 5
            records = [each for each in caplog.records if each.name == "podlink.hooks"]
            assert len(records) == 5
            assert all(each.exc_info for each in records)


async def test_a_slow_hook_delays_neither_routing_nor_other_hooks() -> None:
    store = podlink.Store()
    told: list[Any] = []
    go_on = asyncio.Event()
    slow: list[str] = []

    async def crawl(*arguments: Any) -> None:
        await go_on.wait()
        slow.append(arguments[4].routing_state.value)

    async with (
        podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info,
        podlink.ClientDriver(store, route_info=info) as client,
    ):
        info.register_routing_state_changed_event(None, crawl, SERVICE)
        info.register_routing_state_changed_event(None, lambda *a: told.append(a), SERVICE)
        async with running(store, 0, 1) as [server, _]:
            await eventually_async(lambda: len(told) == 2)
            await change(server, info, 10)
            await eventually_async(lambda: len(told) == 12)
            assert slow == []
            assert await client.compute_linked_pod(None, "u", SERVICE) in {0, 1}
            go_on.set()
            await eventually_async(lambda: len(slow) == 12)
            assert slow == ["READY", "READY", *["DENY_NEW_CALL", "READY"] * 5]


def test_a_hook_that_blocks_its_thread_delays_nobody_else() -> None:
    store = podlink.Store()
    server = podlink.ServerDriver(store, pod_info(0), STEADY)
    info = podlink.RouteInfoDriver(store, NAMESPACE, FRESH)
    go_on = threading.Event()
    told: list[Any] = []
    info.register_routing_state_changed_event(None, lambda *_: go_on.wait(), SERVICE)
    info.register_routing_state_changed_event(None, lambda *a: told.append(a), SERVICE)
    server.submit("start").result(60)
    eventually(lambda: told)
    assert info.submit("get_service_best_pod", None, SERVICE).result(60) == 0
    server.submit("stop").result(60)
    eventually(lambda: told[-1][4] is None)
    go_on.set()


@pytest.mark.parametrize("name", LOOPS)
def test_every_kind_of_loop_tells_its_hooks(name: str) -> None:
    store = podlink.Store()
    told: list[Any] = []

    async def play() -> None:
        async with podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info:
            info.register_routing_state_changed_event(None, lambda *a: told.append(a), SERVICE)

            async def later(*arguments: Any) -> None:
                await asyncio.sleep(0)
                told.append(arguments)

            info.register_routing_state_changed_event(None, later, SERVICE)
            async with running(store, 0):
                await eventually_async(lambda: len(told) == 2)

    # What has not begun when the loop ends leaves no coroutine behind that nobody awaited.
    with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
        runner.run(play())


def test_a_loop_that_has_ended_does_no_harm() -> None:
    store = podlink.Store()
    info = podlink.RouteInfoDriver(store, NAMESPACE, FRESH)
    told: list[Any] = []
    before = threading.active_count()

    async def register() -> None:
        async def forever(*arguments: Any) -> None:
            told.append(arguments)
            await asyncio.Event().wait()

        info.register_routing_state_changed_event(None, forever, SERVICE)
        async with running(store, 0):
            await eventually_async(lambda: told)

    asyncio.run(register())
    gc.collect()

    async def again() -> None:
        heard: list[Any] = []
        info.register_routing_state_changed_event(None, lambda *a: heard.append(a), SERVICE)
        async with running(store, 0, 1) as [server, _]:
            await eventually_async(lambda: len(heard) >= 2)
            await change(server, info, 4)
            await eventually_async(lambda: len(heard) >= 6)
        await info.aclose()

    asyncio.run(again())
    assert len(told) == 1
    assert threading.active_count() <= before + 1


def test_hooks_of_two_loops_in_two_threads() -> None:
    store = podlink.Store()
    info = podlink.RouteInfoDriver(store, NAMESPACE, FRESH)
    told: dict[str, list[tuple[str, str]]] = {"one": [], "two": []}
    begun = threading.Barrier(3)
    done = threading.Event()

    async def listen(name: str) -> None:
        def note(*arguments: Any) -> None:
            thread = threading.current_thread().name
            told[name].append((thread, arguments[4].routing_state.value))

        info.register_routing_state_changed_event(None, note, SERVICE)
        await asyncio.to_thread(begun.wait, 10)
        await eventually_async(done.is_set)

    threads = [
        threading.Thread(target=lambda name=name: asyncio.run(listen(name)), name=name)
        for name in told
    ]
    for thread in threads:
        thread.start()
    begun.wait(10)
    server = podlink.ServerDriver(store, pod_info(0), STEADY)
    server.submit("start").result(60)
    eventually(lambda: told["one"] and told["two"])
    server.submit("set_routing_state", "DENY_NEW_CALL").result(60)
    eventually(lambda: len(told["one"]) == len(told["two"]) == 2)
    done.set()
    for thread in threads:
        thread.join(10)
    for name, changes in told.items():
        assert changes == [(name, "READY"), (name, "DENY_NEW_CALL")]
    server.submit("stop").result(60)
    asyncio.run(info.aclose())


async def test_results_and_events_that_come_together_all_arrive() -> None:
    # Results and events share the queue of a loop. A result that came after the results were taken,
    # but before the events were, did not wake the loop. It was never delivered, nor was anything
    # after it, and the program hung.
    store = podlink.Store()
    told: list[int] = []
    async with (
        podlink.RouteInfoDriver(store, NAMESPACE, podlink.RouteInfoConfig(refresh=0.01)) as info,
        podlink.ClientDriver(store) as client,
        running(store, 0) as [server],
    ):
        info.register_routing_state_changed_event(None, lambda *a: told.append(a[2]), SERVICE)
        began = time.monotonic()
        calls = 0
        while time.monotonic() - began < 1.0:
            state = ("DENY_NEW_CALL", "READY")[calls % 2]
            await asyncio.gather(
                server.set_routing_state(state),
                *(client.get_linked_pod_not_cache(None, f"u{n}", SERVICE) for n in range(20)),
            )
            calls += 1
        print(f"{calls * 21} calls with {len(told)} events between them")
        assert calls > 10
        assert len(told) > 5
