"""A driver owns its hooks: they end with it, they can be removed, and they keep nothing alive."""

import asyncio
import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import podlink
from helpers.pods import FRESH, NAMESPACE, QUICK, SERVICE, STEADY, pod_info, running
from helpers.programs import run_program
from helpers.wait import eventually, eventually_async

Driver = Any
Make = Callable[[Callable[..., Any], podlink.Store], Driver]


def client_driver(hook: Callable[..., Any], store: podlink.Store) -> Driver:
    driver = podlink.ClientDriver(store)
    driver.on_pod_lost(hook)
    return driver


def strategy(hook: Callable[..., Any], store: podlink.Store) -> Driver:
    return podlink.ClientDriver(store, config=podlink.ClientConfig(strategy=hook))


def info_driver(hook: Callable[..., Any], store: podlink.Store) -> Driver:
    driver = podlink.RouteInfoDriver(store)
    driver.on_routing_state_changed()(hook)
    return driver


def grpc_client(hook: Callable[..., Any], _store: podlink.Store) -> Driver:
    driver = podlink.RouteGrpcClient("grpc://localhost:1", namespace="other")
    driver.on_status_changed(hook)
    return driver


def load(hook: Callable[..., Any], store: podlink.Store) -> Driver:
    return podlink.ServerDriver(store, pod_info(0), load=hook)


def server_hook(name: str) -> Make:
    def make(hook: Callable[..., Any], store: podlink.Store) -> Driver:
        driver = podlink.ServerDriver(store, pod_info(0))
        getattr(driver, name)(hook)
        return driver

    return make


SERVER_HOOKS = [
    "on_drain",
    "on_lease_suspended",
    "on_lease_resumed",
    "on_lease_lost",
    "on_ownership_lost",
    "on_ownership_renewed",
]

# Every kind of hook that a program can register and remove.
REMOVABLE: dict[str, Make] = {
    "client": client_driver,
    "info": info_driver,
    "grpc_client": grpc_client,
    "load": load,
} | {name: server_hook(name) for name in SERVER_HOOKS}

# And those that stay as long as the driver.
KINDS = REMOVABLE | {"strategy": strategy}


class Holder:
    """What a program has: an object with a driver, whose methods are the hooks."""

    def __init__(self, make: Make, store: podlink.Store) -> None:
        self.driver = make(self.hook, store)

    def hook(self, *_: object) -> int:
        return 0


@pytest.mark.parametrize("closed", [False, True], ids=["dropped", "closed"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_does_not_keep_its_driver(kind: str, closed: bool) -> None:
    # The core held each hook strongly, out of the garbage collector's sight. A hook that referred
    # to its driver kept it alive for ever: 500 of 500 for each kind, even when closed.
    store = podlink.Store()
    gone: list[weakref.ref[Any]] = []

    async def on_a_loop() -> None:
        holder = Holder(KINDS[kind], store)
        gone.append(weakref.ref(holder.driver))
        if closed:
            await holder.driver.aclose()

    for _ in range(25):
        asyncio.run(on_a_loop())
        # Without a loop the hooks are called by threads of podlink's own.
        gone.append(weakref.ref(Holder(KINDS[kind], store).driver))
    gc.collect()
    assert [alive for each in gone if (alive := each()) is not None] == []


def test_a_hook_that_was_called_keeps_no_driver() -> None:
    # A thread that waits for the next call still had the last one in a local variable.
    store, gone, called = podlink.Store(), [], []

    def chosen() -> None:
        holder = Holder(strategy, store)
        gone.append(weakref.ref(holder.driver))
        called.append(holder.driver.submit("compute_linked_pod", None, "u1", SERVICE).result(60))

    server = podlink.ServerDriver(store, pod_info(0), STEADY)
    server.submit("start").result(60)
    chosen()
    assert called == [0]
    server.submit("stop", deadline=5).result(60)

    def collected() -> bool:
        gc.collect()
        return gone[0]() is None

    eventually(collected)


def test_a_driver_and_its_hooks_end_without_the_collector() -> None:
    # A driver whose hooks do not refer to it is no cycle: it ends when the last reference does.
    gc.disable()
    try:
        for kind, make in KINDS.items():
            driver = make(lambda *_: 0, podlink.Store())
            gone = weakref.ref(driver)
            del driver
            assert gone() is None, kind
    finally:
        gc.enable()


def test_many_loops_leak_no_descriptor() -> None:
    # Each loop left a descriptor behind, with the hook that was registered on it: the 1,013th
    # asyncio.run of a small pod failed, because there were no more.
    printed = run_program("""
        import asyncio, os, resource
        import podlink

        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        kept = podlink.ClientDriver(podlink.Store("memory://"))

        async def main() -> None:
            store = podlink.Store("memory://")
            pod = podlink.ServerInfo("default", "svc", 0)
            async with podlink.ServerDriver(store, pod, load=lambda: 1) as server:

                @server.on_drain
                async def save(user: podlink.Ownership) -> None:
                    server.owns(None, user.uid)

                client = podlink.ClientDriver(store)
                client.on_pod_lost(lambda pod, users: client)
                kept.on_pod_lost(lambda pod, users: kept)  # it outlives the loop
                assert await client.compute_linked_pod(None, "u1", "svc") == 0

        counts = []
        for _ in range(1100):
            asyncio.run(main())
            counts.append(len(os.listdir("/proc/self/fd")))
        print(max(counts[100:]) - max(counts[:100]))
    """)
    assert int(printed) <= 8


async def test_a_dropped_pod_says_so(caplog: pytest.LogCaptureFixture) -> None:
    # A started driver that an exception had dropped renewed for ever, if one of its hooks referred
    # to it, and no program could stop it.
    store = podlink.Store()
    info = podlink.RouteInfoDriver(store, config=FRESH)
    owned: list[podlink.Ownership] = []

    async def fails() -> None:
        server = podlink.ServerDriver(store, pod_info(0), QUICK)

        @server.on_drain
        def save(_user: podlink.Ownership) -> None:
            server.owned_users()

        await server.start()
        owned.append(await server.claim(None, "u1"))
        raise ValueError("a program's own error")

    with pytest.raises(ValueError, match="own error"):
        await fails()
    with pytest.warns(ResourceWarning, match=r"ServerDriver\(default/svc pod 0\) was dropped"):
        gc.collect()
    # An ownership that the program still has is none any more, and does not renew.
    assert not owned[0].is_valid()
    await eventually_async(lambda: "dropped while it ran; its lease runs out" in caplog.text)
    record = next(each for each in caplog.records if "dropped while it ran" in each.getMessage())
    assert record.levelno == logging.WARNING

    async def gone() -> bool:
        return not await info.get_all_service_state(NAMESPACE, SERVICE)

    await eventually_async(gone)
    await info.aclose()


async def test_a_stopped_pod_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    store = podlink.Store()
    for started in (False, True):
        server = podlink.ServerDriver(store, pod_info(0), STEADY)
        if started:
            await server.start()
        await server.stop(deadline=5)
        del server
    server = podlink.ServerDriver(store, pod_info(0), STEADY)  # never started
    del server
    gc.collect()
    assert [each for each in recwarn if each.category is ResourceWarning] == []


async def test_a_stop_left_behind_calls_its_hooks(recwarn: pytest.WarningsRecorder) -> None:
    # A cancelled stop goes on. If its driver is dropped then, the users are saved all the same.
    store, saved = podlink.Store(), list[str]()
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def left_behind() -> None:
        server = podlink.ServerDriver(store, pod_info(0), STEADY)
        await server.start()
        await server.claim(None, "u1")
        await server.claim(None, "u2")

        @server.on_drain
        async def save(user: podlink.Ownership) -> None:
            begun.set()
            await go_on.wait()
            saved.append(user.uid)

        stopping = asyncio.create_task(server.stop(deadline=60))
        await begun.wait()
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping

    await left_behind()
    gc.collect()
    go_on.set()
    await eventually_async(lambda: sorted(saved) == ["u1", "u2"])
    assert [each for each in recwarn if each.category is ResourceWarning] == []


@pytest.mark.parametrize("kind", REMOVABLE)
async def test_a_hook_can_be_removed(kind: str) -> None:
    class Hooks:
        def hook(self, *_: object) -> int:
            return 0

    mine, others = Hooks(), Hooks()
    driver = REMOVABLE[kind](mine.hook, podlink.Store())
    gone = weakref.ref(mine)
    assert driver.remove_hook(others.hook) == 0
    # Each access to a bound method makes another object: they are equal, not the same.
    assert driver.remove_hook(mine.hook) == 1
    assert driver.remove_hook(mine.hook) == 0
    del mine
    gc.collect()
    assert gone() is None
    await driver.aclose()


async def test_a_removed_hook_is_not_called() -> None:
    store, removed, stays = podlink.Store(), list[int](), list[int]()
    info = podlink.RouteInfoDriver(store, config=FRESH)

    async def first(*event: Any) -> None:
        removed.append(event[2])

    @info.on_routing_state_changed()
    async def second(*event: Any) -> None:
        stays.append(event[2])

    # Twice, for two things: one removal ends both.
    info.register_routing_state_changed_event(None, first)
    info.register_routing_state_changed_event(None, first, SERVICE)
    async with running(store, 0):
        await info.get_all_service_state(None, SERVICE)
        await eventually_async(lambda: (removed, stays) == ([0, 0], [0]))
        assert info.remove_hook(first) == 2
        async with running(store, 1):
            await eventually_async(lambda: stays == [0, 1])
    assert removed == [0, 0]
    await info.aclose()


async def test_a_hook_may_remove_itself() -> None:
    store, seen = podlink.Store(), list[int]()
    info = podlink.RouteInfoDriver(store, config=FRESH)

    @info.on_routing_state_changed()
    def once(*event: Any) -> None:
        seen.append(event[2])
        info.remove_hook(once)

    async with running(store, 0, 1, 2):
        # One reading of three pods: the other two changes are queued when the first is delivered.
        await info.get_all_service_state(None, SERVICE)
        await eventually_async(lambda: len(seen) == 1)
        changes = info.changes(None, SERVICE)
        async with running(store, 3):
            assert (await anext(changes)).pod_index == 3
    assert len(seen) == 1
    await info.aclose()


async def test_removed_pod_hooks_are_not_called() -> None:
    store, called, loads = podlink.Store(), list[str](), list[int]()

    def load() -> int:
        loads.append(1)
        return 5

    server = podlink.ServerDriver(store, pod_info(0), QUICK, load=load)

    @server.on_drain
    def removed(user: podlink.Ownership) -> None:
        called.append(f"removed {user.uid}")

    @server.on_drain
    def stays(user: podlink.Ownership) -> None:
        called.append(f"stays {user.uid}")

    await server.start()
    await server.claim(None, "u1")
    assert server.remove_hook(removed) == 1
    await eventually_async(lambda: len(loads) > 1)
    assert server.remove_hook(load) == 1
    await server.set_load_state(9)
    before = len(loads)
    published = server.stats()["published"]
    await eventually_async(lambda: server.stats()["published"] > published + 3)
    assert len(loads) <= before + 1  # one call may have been under way
    assert await server.get_load_state() == 9
    assert server.stats()["load_failures"] == 0
    report = await server.stop(deadline=5)
    assert (report.released, called) == (1, ["stays u1"])


async def test_a_closed_client_is_silent() -> None:
    # The route info driver is shared and goes on; the closed client's callbacks were called still.
    store, mine, others = podlink.Store(), list[int](), list[int]()
    info = podlink.RouteInfoDriver(store, config=FRESH)
    closing = podlink.ClientDriver(store, route_info=info)
    closing.on_pod_lost(lambda pod, _users: mine.append(pod))
    stays = podlink.ClientDriver(store, route_info=info)
    stays.on_pod_lost(lambda pod, _users: others.append(pod))
    async with running(store, 0):
        assert await closing.compute_linked_pod(None, "u1", SERVICE) == 0
        assert await stays.compute_linked_pod(None, "u1", SERVICE) == 0
        await closing.aclose()
    await eventually_async(lambda: others == [0])
    assert mine == []
    await stays.aclose()
    await info.aclose()


@pytest.mark.parametrize("kind", sorted(REMOVABLE.keys() - {"load"}))
async def test_a_closed_driver_refuses_hooks(kind: str) -> None:
    # It accepted them in silence, and never called them.
    driver = REMOVABLE[kind](lambda *_: None, podlink.Store())
    await driver.aclose()
    method = {
        "client": "on_pod_lost",
        "info": "on_routing_state_changed",
        "grpc_client": "on_status_changed",
    }.get(kind, kind)
    register = getattr(driver, method)
    register = register() if kind == "info" else register
    with pytest.raises(podlink.ClosedError, match="was closed"):
        register(lambda *_: None)
    assert driver.remove_hook(print) == 0


async def test_is_closed_is_true_after_the_close() -> None:
    connection = podlink.connect("memory://")
    server = connection.server(pod_info(0), STEADY)
    grpc = podlink.RouteGrpcClient("grpc://localhost:1", namespace="other")
    everything: list[Any] = [
        connection,
        connection.store,
        connection.client,
        connection.info,
        server,
        grpc,
    ]
    assert [each.is_closed for each in everything] == [False] * 6
    await server.start()
    assert not server.is_closed
    await connection.aclose()
    await grpc.aclose()
    assert [each.is_closed for each in everything] == [True] * 6


async def test_is_closed_waits_for_the_stop() -> None:
    store, begun, go_on = podlink.Store(), asyncio.Event(), asyncio.Event()
    server = podlink.ServerDriver(store, pod_info(0), STEADY)

    @server.on_drain
    async def save(_user: podlink.Ownership) -> None:
        begun.set()
        await go_on.wait()

    await server.start()
    await server.claim(None, "u1")
    stopping = asyncio.create_task(server.stop(deadline=60))
    await begun.wait()
    assert not server.is_closed
    go_on.set()
    await stopping
    assert server.is_closed


def test_the_load_of_an_ended_loop_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    # Each renewal called the load function, of which no loop was left to run it, and warned.
    store = podlink.Store()
    made: list[podlink.ServerDriver] = []

    async def main() -> None:
        made.append(podlink.ServerDriver(store, pod_info(0), QUICK, load=lambda: 7))
        await made[0].start()
        await eventually_async(lambda: made[0].submit("get_load_state").result(60) == 7)

    asyncio.run(main())
    server = made[0]
    eventually(lambda: "the load function is called no more" in caplog.text)
    published = server.stats()["published"]
    eventually(lambda: server.stats()["published"] > published + 3)
    assert caplog.text.count("load function") == 1
    # What it said last is published still, until the program says something else.
    assert server.submit("get_load_state").result(60) == 7
    server.submit("set_load_state", 3).result(60)
    assert server.weighted_load == 3
    server.submit("stop", deadline=5).result(60)
