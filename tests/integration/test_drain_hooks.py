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
from helpers.pods import FRESH, NAMESPACE, SERVICE, STEADY, pod_info, running
from helpers.programs import run_program
from helpers.wait import LATE, eventually, eventually_async

WHO = contextvars.ContextVar("WHO", default="nobody")


async def pod_with(
    users: int, config: podlink.ServerConfig = STEADY
) -> tuple[podlink.Store, podlink.ServerDriver]:
    """A pod that runs and owns so many users."""
    store = podlink.Store()
    server = podlink.ServerDriver(store, pod_info(0), config)
    await server.start()
    await asyncio.gather(*(server.claim(None, f"u{number}") for number in range(users)))
    return store, server


def summary(report: podlink.DrainReport) -> tuple[int, int, int]:
    return report.released, report.handed_over, report.remaining


async def owner_of(store: podlink.Store, uid: str) -> int | None:
    """The pod that a pod which wants the user hears of; `None`: it may have the user."""
    async with running(store, 9) as [other]:
        try:
            await other.claim(None, uid)
        except podlink.NotOwnerError as error:
            return error.owner
        return None


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_every_hook_is_called_once_for_every_user(kind: str) -> None:
    _, server = await pod_with(200)
    asked: Counter[tuple[str, str]] = Counter()
    threads: set[int] = set()

    def hook(name: str) -> Any:
        def save(user: podlink.Ownership) -> None:
            assert user == server.ownership(None, user.uid)
            asked[name, user.uid] += 1
            threads.add(threading.get_ident())

        async def save_later(user: podlink.Ownership) -> None:
            await asyncio.sleep(0)
            save(user)

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
    async def first(user: podlink.Ownership) -> None:
        await asyncio.sleep(0)  # lets the second one go first, if it may
        order.append(f"first {user.uid}")

    @server.on_drain
    def second(user: podlink.Ownership) -> None:
        order.append(f"second {user.uid}")

    await server.stop()
    for number in range(10):
        assert order.index(f"first u{number}") < order.index(f"second u{number}")


async def test_some_hooks_run_at_a_time_and_not_all() -> None:
    _, server = await pod_with(300)
    under_way = most = 0

    @server.on_drain
    async def save(_user: podlink.Ownership) -> None:
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
    async def decide(user: podlink.Ownership) -> None:
        if user.uid == "u0":
            assert await server.remove_linked_pod_with_id(None, user.uid, SERVICE, 0, 0)
        elif user.uid == "u1":
            # A pod that is being stopped leaves no hint, whatever grace is asked for.
            assert await user.release(60)
        elif user.uid == "u2":
            assert await server.set_linked_pod(None, user.uid, SERVICE, 5) == 0

    report = await server.stop(drain="keep")
    assert (summary(report), report.kept) == ((3, 0, 7), 7)
    client = podlink.ClientDriver(store)
    users = await client.batch_get_linked_pod(None, [f"u{n}" for n in range(10)], SERVICE)
    assert {pod: len(uids) for pod, uids in users.items()} == {0: 7, 5: 1}


async def test_context_variables_are_those_of_the_registration() -> None:
    _, server = await pod_with(3)
    seen: list[str] = []
    WHO.set("the registrant")

    @server.on_drain
    async def later(_user: podlink.Ownership) -> None:
        await asyncio.sleep(0)
        seen.append(WHO.get())
        WHO.set("a hook")

    @server.on_drain
    def at_once(_user: podlink.Ownership) -> None:
        seen.append(WHO.get())
        WHO.set("a hook")

    WHO.set("the stopper")
    await server.stop()
    assert seen == ["the registrant"] * 6
    assert WHO.get() == "the stopper"


@pytest.mark.parametrize("kind", ["sync", "async", "cancelled", "arity"])
async def test_a_user_whose_hook_fails_is_not_released(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    # A user whose state had not been saved was released like any other: the next pod loaded what
    # was saved before, and the user lost what came after.
    store, server = await pod_with(30)
    saved: set[str] = set()

    def fail(user: podlink.Ownership) -> None:
        if user.uid != "u7":
            raise RuntimeError("on purpose")

    async def fail_later(user: podlink.Ownership) -> None:
        fail(user)

    async def be_cancelled(user: podlink.Ownership) -> None:
        if user.uid != "u7":
            raise asyncio.CancelledError

    hooks: dict[str, Any] = {
        "sync": fail,
        "async": fail_later,
        "cancelled": be_cancelled,
        "arity": lambda: None,
    }
    server.on_drain(hooks[kind])
    server.on_drain(lambda user: saved.add(user.uid))
    failing = {f"u{number}" for number in range(30)}
    if kind != "arity":  # which fails for every user
        failing.remove("u7")
    with caplog.at_level(logging.WARNING, "podlink"):
        report = await server.stop()
        eventually(lambda: "drain hooks failed" in caplog.text)
    assert (report.released, report.handed_over, report.kept) == (30 - len(failing), 0, 0)
    assert (sorted(report.failed), report.unfinished) == (sorted(failing), [])
    # The hooks behind it are called all the same.
    assert len(saved) == 30
    assert server.stats()["drain_hook_failures"] == len(failing)
    assert server.stats()["owned_users"] == len(failing)
    # One line for all of them.
    [told] = [each.message for each in caplog.records if "drain hooks failed" in each.message]
    assert f"failures={len(failing)}" in told
    assert "Error" in told
    # Their links are where they were. No hook is running any more, so the lease has ended, and
    # whoever claims them may have them.
    async with podlink.ClientDriver(store) as client:
        linked = await client.batch_get_linked_pod(None, sorted(failing), SERVICE)
        assert linked == {0: sorted(failing)}
    assert await owner_of(store, "u3") is None


async def test_a_hook_that_never_returns_costs_its_share_and_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # A drain hook that hung used up the whole deadline. No time was left to release the users, so
    # their links stayed on a pod that was gone.
    store, server = await pod_with(100)
    saved: set[str] = set()
    cancelled: list[str] = []

    @server.on_drain
    async def save(user: podlink.Ownership) -> None:
        if user.uid == "u7":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(user.uid)
                raise
        saved.add(user.uid)

    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "podlink"):
        report = await server.stop(deadline=4.0)
        eventually(lambda: "not every user was saved in time" in caplog.text)
    assert time.monotonic() - began < 4.0 + LATE
    assert (report.released, report.failed, report.unfinished) == (99, [], ["u7"])
    assert len(saved) == 99
    # It is told to end.
    await eventually_async(lambda: cancelled == ["u7"])
    assert server.stats()["drain_hook_failures"] == 1
    # Its user may be in the middle of a save: until the lease has run out nobody takes it.
    assert not server.holds_lease
    assert await owner_of(store, "u7") == 0
    assert await owner_of(store, "u8") is None


async def test_hooks_that_all_hang_are_bounded_too() -> None:
    store, server = await pod_with(500)
    begun: list[str] = []
    ended: list[str] = []

    @server.on_drain
    async def hang(user: podlink.Ownership) -> None:
        begun.append(user.uid)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(user.uid)

    began = time.monotonic()
    report = await server.stop(deadline=8.0)
    assert time.monotonic() - began < 8.0 + LATE
    assert (summary(report), report.failed) == ((0, 0, 500), [])
    assert sorted(report.unfinished) == sorted(f"u{number}" for number in range(500))
    # For the others there was no time left. Their hooks are not started, neither now nor later.
    await eventually_async(lambda: sorted(ended) == sorted(begun))
    assert len(begun) == 64
    # The pod takes nothing any more; its lease runs out by itself.
    async with podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info:
        [state] = (await info.get_all_service_state(None, SERVICE)).values()
        assert state.routing_state is podlink.RoutingState.SHUTDOWN
    assert not server.holds_lease


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_hook_that_blocks_the_loop_does_not_hold_up_the_withdrawal(kind: str) -> None:
    store, server = await pod_with(5)
    info = podlink.RouteInfoDriver(store, NAMESPACE, FRESH)
    assert len(await info.get_all_service_state(None, SERVICE)) == 1
    begun: list[str] = []

    def block(user: podlink.Ownership) -> None:
        begun.append(user.uid)
        # Nothing else runs on the loop meanwhile.
        eventually(lambda: info.alive_pods(None, SERVICE)[0].routing_state == "SHUTDOWN")

    async def block_later(user: podlink.Ownership) -> None:
        block(user)

    server.on_drain(block if kind == "sync" else block_later)
    began = time.monotonic()
    report = await server.stop(deadline=4.0)
    assert time.monotonic() - began < 4.0 + LATE
    # That the one hook came to an end is known too late, and the others could not begin in time.
    assert (summary(report), report.failed) == ((0, 0, 5), [])
    assert sorted(report.unfinished) == [f"u{number}" for number in range(5)]
    assert len(begun) == 1
    await info.aclose()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_without_a_loop_hooks_run_on_threads(kind: str) -> None:
    server = podlink.ServerDriver(podlink.Store(), pod_info(0), STEADY)
    names: Counter[str] = Counter()
    seen: list[str] = []
    WHO.set("the registrant")

    def save(_user: podlink.Ownership) -> None:
        names[threading.current_thread().name] += 1
        seen.append(WHO.get())

    async def save_later(user: podlink.Ownership) -> None:
        await asyncio.sleep(0)
        save(user)

    server.on_drain(save if kind == "sync" else save_later)
    WHO.set("another")
    server.submit("start").result(60)
    for number in range(50):
        server.submit("claim", None, f"u{number}").result(60)
    assert server.submit("stop").result(60).released == 50
    assert names == {"podlink-hook": 50}
    assert set(seen) == {"the registrant"}
    eventually(lambda: all(each.name != "podlink-hook" for each in threading.enumerate()))


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_whatever_a_hook_raises_on_a_thread_is_a_failure(error: type[BaseException]) -> None:
    server = podlink.ServerDriver(podlink.Store(), pod_info(0), STEADY)

    def fail(user: podlink.Ownership) -> None:
        if user.uid != "u7":
            raise error("on purpose")

    server.on_drain(fail)
    server.submit("start").result(60)
    for number in range(20):
        server.submit("claim", None, f"u{number}").result(60)
    report = server.submit("stop").result(60)
    assert report.released == 1
    assert sorted(report.failed) == sorted(f"u{number}" for number in range(20) if number != 7)
    assert server.stats()["drain_hook_failures"] == 19


def test_a_hook_of_a_loop_that_has_ended_has_failed() -> None:
    # A registered hook kept the queue of its loop alive after the loop had ended. The stop called
    # the hook through that queue and waited until its deadline for answers that could not come.
    # Later it did not wait, and released the users that nobody had saved.
    store = podlink.Store()
    saved: list[str] = []

    async def play() -> podlink.ServerDriver:
        server = podlink.ServerDriver(store, pod_info(0), STEADY)
        server.on_drain(lambda user: saved.append(user.uid))
        server.on_lease_lost(saved.append)
        await server.start()
        await server.claim(None, "u")
        return server

    server = asyncio.run(play())
    assert server.holds_lease
    began = time.monotonic()
    report = asyncio.run(server.stop(deadline=60))
    assert time.monotonic() - began < LATE
    assert (report.released, report.handed_over, report.kept) == (0, 0, 0)
    assert (report.failed, report.unfinished) == (["u"], [])
    assert saved == []
    assert server.stats()["drain_hook_failures"] == 1


def test_a_hook_that_hangs_does_not_keep_the_program_from_ending() -> None:
    # Hooks ran on a thread pool that the interpreter joins at exit. A hook that hung kept the
    # program from ending.
    run_program(
        """
        import threading, podlink
        server = podlink.ServerDriver(podlink.Store(), podlink.ServerInfo("default", "svc", 0))
        server.on_drain(lambda user: threading.Event().wait())
        server.submit("start").result(60)
        server.submit("claim", None, "u").result(60)
        report = server.submit("stop", deadline=0.4).result(60)
        assert (report.released, report.unfinished) == (0, ["u"]), report
        """,
        within=20.0,
    )


@pytest.mark.parametrize("given", [None, 5, "save"])
def test_a_hook_is_something_that_can_be_called(given: Any) -> None:
    server = podlink.ServerDriver(podlink.Store(), pod_info(0))
    for register in (
        server.on_drain,
        server.on_lease_suspended,
        server.on_lease_resumed,
        server.on_lease_lost,
        server.on_ownership_lost,
        server.on_ownership_renewed,
    ):
        with pytest.raises(podlink.InvalidParameterTypeError, match="hook"):
            register(given)
    if given is not None:
        with pytest.raises(podlink.InvalidParameterTypeError, match="load"):
            podlink.ServerDriver(podlink.Store(), pod_info(0), load=given)
