"""What a program does for its users while their pod stops: save, release, fail, or never return."""

import asyncio
import contextvars
import logging
import threading
import time
from collections import Counter
from typing import Any

import pytest

import podlink
from helpers.pods import FRESH, NAMESPACE, SERVICE, STEADY, pod_info
from helpers.programs import run_program
from helpers.wait import LATE, eventually

WHO = contextvars.ContextVar("WHO", default="nobody")


async def pod_with(
    users: int, config: podlink.ServerConfig = STEADY
) -> tuple[podlink.Store, podlink.ServerDriver]:
    """A pod that runs and owns so many users."""
    store = podlink.Store()
    server = podlink.ServerDriver(store, pod_info(0), config)
    await server.start()
    await asyncio.gather(
        *(server.set_linked_pod(None, f"u{number}", SERVICE, 0) for number in range(users))
    )
    return store, server


def summary(report: podlink.DrainReport) -> tuple[int, int, int]:
    return report.released, report.handed_over, report.remaining


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_every_hook_is_called_once_for_every_user(kind: str) -> None:
    _, server = await pod_with(200)
    asked: Counter[tuple[str, str]] = Counter()
    threads: set[int] = set()

    def hook(name: str) -> Any:
        def save(uid: str) -> None:
            asked[name, uid] += 1
            threads.add(threading.get_ident())

        async def save_later(uid: str) -> None:
            await asyncio.sleep(0)
            save(uid)

        return save if kind == "sync" else save_later

    for name in ("first", "second", "third"):
        server.on_drain(hook(name))
    assert summary(await server.stop()) == (200, 0, 0)
    assert set(asked.values()) == {1}
    assert len(asked) == 600
    assert threads == {threading.get_ident()}


async def test_the_hooks_of_a_user_come_one_after_the_other() -> None:
    _, server = await pod_with(10)
    order: list[str] = []

    @server.on_drain
    async def first(uid: str) -> None:
        await asyncio.sleep(0)  # lets the second one go first, if it may
        order.append(f"first {uid}")

    @server.on_drain
    def second(uid: str) -> None:
        order.append(f"second {uid}")

    await server.stop()
    for number in range(10):
        assert order.index(f"first u{number}") < order.index(f"second u{number}")


async def test_some_hooks_run_at_a_time_and_not_all() -> None:
    _, server = await pod_with(300)
    under_way = most = 0

    @server.on_drain
    async def save(_uid: str) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1

    await server.stop()
    assert 1 < most <= 64


async def test_hooks_release_and_hand_over_as_they_like() -> None:
    store, server = await pod_with(10)

    @server.on_drain
    async def decide(uid: str) -> None:
        if uid in {"u0", "u1"}:
            await server.remove_linked_pod_with_id(None, uid, SERVICE, 0, 0)
        elif uid == "u2":
            await server.set_linked_pod(None, uid, SERVICE, 5)

    assert summary(await server.stop(drain="keep")) == (3, 0, 7)
    client = podlink.ClientDriver(store)
    users = await client.batch_get_linked_pod(None, [f"u{n}" for n in range(10)], SERVICE)
    assert {pod: len(uids) for pod, uids in users.items()} == {0: 7, 5: 1}


async def test_context_variables_are_those_of_the_registration() -> None:
    _, server = await pod_with(3)
    seen: list[str] = []
    WHO.set("the registrant")

    @server.on_drain
    async def later(_uid: str) -> None:
        await asyncio.sleep(0)
        seen.append(WHO.get())
        WHO.set("a hook")

    @server.on_drain
    def at_once(_uid: str) -> None:
        seen.append(WHO.get())
        WHO.set("a hook")

    WHO.set("the stopper")
    await server.stop()
    assert seen == ["the registrant"] * 6
    assert WHO.get() == "the stopper"


@pytest.mark.parametrize("kind", ["sync", "async", "cancelled", "arity"])
async def test_a_hook_that_fails_is_counted_logged_and_hinders_nobody(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, server = await pod_with(30)
    saved: set[str] = set()

    def fail(_uid: str) -> None:
        raise RuntimeError("on purpose")

    async def fail_later(uid: str) -> None:
        fail(uid)

    async def be_cancelled(_uid: str) -> None:
        raise asyncio.CancelledError

    hooks: dict[str, Any] = {
        "sync": fail,
        "async": fail_later,
        "cancelled": be_cancelled,
        "arity": lambda: None,
    }
    server.on_drain(hooks[kind])
    server.on_drain(saved.add)
    with caplog.at_level(logging.WARNING, "podlink"):
        assert summary(await server.stop()) == (30, 0, 0)
        eventually(lambda: "drain hooks failed" in caplog.text)
    assert len(saved) == 30
    assert server.stats()["drain_hook_failures"] == 30
    # One line for all of them.
    [told] = [each.message for each in caplog.records if "drain hooks failed" in each.message]
    assert "failures=30" in told
    assert "Error" in told


async def test_a_hook_that_never_returns_costs_its_share_and_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # A drain hook that hung used up the whole deadline. No time was left to release the users, so
    # their links stayed on a pod that was gone.
    _, server = await pod_with(100)
    saved: set[str] = set()
    never = asyncio.Event()

    @server.on_drain
    async def save(uid: str) -> None:
        if uid == "u7":
            await never.wait()
        saved.add(uid)

    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "podlink"):
        report = await server.stop(deadline=4.0)
        eventually(lambda: "not every drain hook has ended" in caplog.text)
    assert time.monotonic() - began < 4.0 + LATE
    assert summary(report) == (100, 0, 0)
    assert len(saved) == 99
    never.set()


async def test_hooks_that_all_hang_are_bounded_too() -> None:
    store, server = await pod_with(500)
    never = asyncio.Event()
    server.on_drain(lambda _uid: never.wait())
    began = time.monotonic()
    assert summary(await server.stop(deadline=4.0)) == (500, 0, 0)
    assert time.monotonic() - began < 4.0 + LATE
    async with podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info:
        assert await info.get_all_service_state(None, SERVICE) == {}
    never.set()


async def test_a_hook_that_blocks_the_loop_does_not_hold_up_the_withdrawal() -> None:
    store, server = await pod_with(5)
    info = podlink.RouteInfoDriver(store, NAMESPACE, FRESH)
    assert len(await info.get_all_service_state(None, SERVICE)) == 1

    @server.on_drain
    def block(_uid: str) -> None:
        # Nothing else runs on the loop meanwhile.
        eventually(lambda: info.alive_pods(None, SERVICE) == {})

    began = time.monotonic()
    assert summary(await server.stop(deadline=4.0)) == (5, 0, 0)
    assert time.monotonic() - began < 4.0 + LATE
    await info.aclose()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_without_a_loop_hooks_run_on_threads(kind: str) -> None:
    server = podlink.ServerDriver(podlink.Store(), pod_info(0), STEADY)
    names: Counter[str] = Counter()
    seen: list[str] = []
    WHO.set("the registrant")

    def save(_uid: str) -> None:
        names[threading.current_thread().name] += 1
        seen.append(WHO.get())

    async def save_later(uid: str) -> None:
        await asyncio.sleep(0)
        save(uid)

    server.on_drain(save if kind == "sync" else save_later)
    WHO.set("another")
    server.submit("start").result(60)
    for number in range(50):
        server.submit("set_linked_pod", None, f"u{number}", SERVICE, 0).result(60)
    assert server.submit("stop").result(60).released == 50
    assert names == {"podlink-hook": 50}
    assert set(seen) == {"the registrant"}
    eventually(lambda: all(each.name != "podlink-hook" for each in threading.enumerate()))


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_whatever_a_hook_raises_on_a_thread_hinders_nobody(error: type[BaseException]) -> None:
    server = podlink.ServerDriver(podlink.Store(), pod_info(0), STEADY)

    def fail(_uid: str) -> None:
        raise error("on purpose")

    server.on_drain(fail)
    server.submit("start").result(60)
    for number in range(20):
        server.submit("set_linked_pod", None, f"u{number}", SERVICE, 0).result(60)
    assert server.submit("stop").result(60).released == 20
    assert server.stats()["drain_hook_failures"] == 20


def test_hooks_of_a_loop_that_has_ended_do_no_harm() -> None:
    # A registered hook kept the queue of its loop alive after the loop had ended. The stop called
    # the hook through that queue and waited until its deadline for answers that could not come.
    store = podlink.Store()
    saved: list[str] = []

    async def play() -> podlink.ServerDriver:
        server = podlink.ServerDriver(store, pod_info(0), STEADY)
        server.on_drain(saved.append)
        server.on_lease_lost(lambda: None)
        await server.start()
        await server.set_linked_pod(None, "u", SERVICE, 0)
        return server

    server = asyncio.run(play())
    assert server.holds_lease
    began = time.monotonic()
    report = asyncio.run(server.stop(deadline=60))
    assert time.monotonic() - began < LATE
    assert summary(report) == (1, 0, 0)
    assert saved == []
    assert server.stats()["drain_hook_failures"] == 1


def test_a_hook_that_hangs_does_not_keep_the_program_from_ending() -> None:
    # Hooks ran on a thread pool that the interpreter joins at exit. A hook that hung kept the
    # program from ending.
    run_program(
        """
        import threading, podlink
        server = podlink.ServerDriver(podlink.Store(), podlink.ServerInfo("default", "svc", 0))
        server.on_drain(lambda uid: threading.Event().wait())
        server.submit("start").result(60)
        server.submit("set_linked_pod", None, "u", "svc", 0).result(60)
        report = server.submit("stop", deadline=0.4).result(60)
        assert report.released == 1, report
        """,
        within=20.0,
    )


@pytest.mark.parametrize("given", [None, 5, "save"])
def test_a_hook_is_something_that_can_be_called(given: Any) -> None:
    server = podlink.ServerDriver(podlink.Store(), pod_info(0))
    for register in (server.on_drain, server.on_lease_lost):
        with pytest.raises(podlink.InvalidParameterTypeError, match="callback"):
            register(given)
    if given is not None:
        with pytest.raises(podlink.InvalidParameterTypeError, match="load"):
            podlink.ServerDriver(podlink.Store(), pod_info(0), load=given)
