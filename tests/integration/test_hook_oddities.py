"""Hooks that behave in ways that programs have: odd results, odd errors, odd moments."""

import asyncio
import signal
import threading
import time
from collections.abc import Generator
from typing import Any

import pytest

import podlink
from helpers.pods import FRESH, NAMESPACE, SERVICE, STEADY, pod_info, running
from helpers.programs import run_program
from helpers.wait import eventually, eventually_async

SOON = 60.0


class Awaitable:
    """Not a coroutine, and may be awaited."""

    def __init__(self, saved: list[str], uid: str) -> None:
        self.saved, self.uid = saved, uid

    def __await__(self) -> Generator[Any, None, None]:
        yield from asyncio.sleep(0).__await__()
        self.saved.append(self.uid)


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even a text")


def stopped(server: podlink.ServerDriver, *users: str, deadline: float = SOON) -> Any:
    """The report of a pod that had these users, of a program without a loop."""
    server.submit("start").result(SOON)
    for uid in users:
        server.submit("claim", None, uid).result(SOON)
    return server.submit("stop", deadline=deadline).result(SOON)


def drained(
    server: podlink.ServerDriver, hook: Any, users: list[str], *, on_loop: bool
) -> podlink.DrainReport:
    """The report of a pod whose hook was registered on a loop, or without one."""

    async def main() -> podlink.DrainReport:
        server.on_drain(hook)
        await server.start()
        for uid in users:
            await server.claim(None, uid)
        return await server.stop(deadline=SOON)

    if on_loop:
        return asyncio.run(main())
    server.on_drain(hook)
    report: podlink.DrainReport = stopped(server, *users)
    return report


def test_an_awaitable_that_is_no_coroutine_is_awaited_without_a_loop() -> None:
    # It was taken for an answer: the user was released unsaved.
    server, saved = podlink.ServerDriver(podlink.Store(), pod_info(0), STEADY), list[str]()
    server.on_drain(lambda user: Awaitable(saved, user.uid))
    assert stopped(server, "u1").released == 1
    assert saved == ["u1"]


@pytest.mark.parametrize("on_loop", [True, False])
def test_a_drain_hook_that_is_removed_meanwhile_releases_nobody_unsaved(on_loop: bool) -> None:
    server, saved = podlink.ServerDriver(podlink.Store(), pod_info(0), STEADY), list[str]()

    def save(user: podlink.Ownership) -> None:
        saved.append(user.uid)
        server.remove_hook(save)

    users = [f"u{number}" for number in range(200)]

    report = drained(server, save, users, on_loop=on_loop)
    assert report.released == len(saved) < 200
    assert len(report.failed) == 200 - len(saved)


@pytest.mark.parametrize("on_loop", [True, False])
def test_an_exception_without_a_text_is_a_failure_like_any_other(on_loop: bool) -> None:
    # It ended the thread: eight of them, and no hook of the pod was called any more.
    server = podlink.ServerDriver(podlink.Store(), pod_info(0), STEADY)

    def fail(user: podlink.Ownership) -> None:
        if user.uid != "u19":
            raise UnspeakableError

    users = [f"u{number}" for number in range(20)]

    report = drained(server, fail, users, on_loop=on_loop)
    assert (report.released, sorted(report.failed)) == (1, sorted(users[:-1]))


async def test_a_hook_whose_repr_raises_goes_on() -> None:
    told = list[object]()

    class Hook:
        def __call__(self, *arguments: object) -> None:
            told.append(arguments)
            raise ValueError("on purpose")

        def __repr__(self) -> str:
            raise RuntimeError("not even a name")

    store = podlink.Store()
    async with running(store, 0) as [server], podlink.RouteInfoDriver(store, NAMESPACE) as info:
        info.register_routing_state_changed_event(None, Hook(), SERVICE)
        await eventually_async(lambda: len(told) == 1)
        await server.set_routing_state("DENY_NEW_CALL")
        await eventually_async(lambda: len(told) == 2)


def test_as_many_hooks_run_on_threads_as_on_a_loop() -> None:
    server = podlink.ServerDriver(podlink.Store(), pod_info(0), STEADY)
    all_here = threading.Barrier(64)
    server.on_drain(lambda _user: all_here.wait(SOON) and None)
    assert stopped(server, *(f"u{number}" for number in range(64))).released == 64


def test_an_async_hook_on_a_thread_is_cancelled_at_its_deadline() -> None:
    # It went on, and saved the user after the report.
    server = podlink.ServerDriver(podlink.Store(), pod_info(0), STEADY)
    ended = list[str]()

    @server.on_drain
    async def save(_user: podlink.Ownership) -> None:
        try:
            await asyncio.sleep(SOON)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    assert stopped(server, "u1", deadline=1).unfinished == ["u1"]
    eventually(lambda: ended == ["cancelled"])


async def test_a_listener_that_is_a_generator_or_is_cancelled_is_a_failure() -> None:
    told = list[object]()

    def generator(*arguments: object) -> Generator[object, None, None]:
        yield arguments

    def cancelled(*arguments: object) -> None:
        told.append(arguments)
        raise asyncio.CancelledError

    store = podlink.Store()
    async with podlink.RouteInfoDriver(store, NAMESPACE) as info:
        # Before there is a pod: one that is registered later gets the changes from then on.
        first = info.register_routing_state_changed_event(None, generator, SERVICE)
        second = info.register_routing_state_changed_event(None, cancelled, SERVICE)
        async with running(store, 0) as [server]:
            await eventually_async(lambda: len(told) >= 1)
            for count, state in enumerate(("DENY_NEW_CALL", "READY"), 2):
                await server.set_routing_state(state)
                await eventually_async(lambda count=count: len(told) >= count)  # type: ignore[misc]
            await eventually_async(lambda: first.failures == second.failures == len(told) >= 3)


def test_calls_of_a_listener_never_overlap_not_even_in_a_nested_loop() -> None:
    printed = run_program("""
        import asyncio
        import nest_asyncio
        import podlink
        from helpers.pods import NAMESPACE, SERVICE, running
        from helpers.wait import eventually_async

        nest_asyncio.apply()
        store, inside, told, most = podlink.Store(), 0, 0, 0

        async def main():
            loop = asyncio.get_running_loop()

            def listen(*_arguments):
                global inside, told, most
                inside += 1
                most = max(most, inside)
                loop.run_until_complete(asyncio.sleep(0.05))
                inside -= 1
                told += 1

            async with running(store, 0) as [server]:
                async with podlink.RouteInfoDriver(store, NAMESPACE) as info:
                    info.register_routing_state_changed_event(None, listen, SERVICE)
                    for state in ("DENY_NEW_CALL", "READY") * 3:
                        await server.set_routing_state(state)
                        await asyncio.sleep(0.02)
                    await eventually_async(lambda: told >= 3)
            print(most)

        asyncio.run(main())
    """)
    assert printed == "1\n"


async def test_a_listener_that_a_hook_registers_has_no_deadline() -> None:
    store, deadlines = podlink.Store(), list[object]()
    async with podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info:
        server = podlink.ServerDriver(store, pod_info(0), STEADY)

        @server.on_drain
        async def save(_user: podlink.Ownership) -> None:
            assert podlink.hook_deadline() is not None
            info.register_routing_state_changed_event(
                None, lambda *_: deadlines.append(podlink.hook_deadline()), SERVICE
            )

        await info.get_all_service_state(None, SERVICE)
        await server.start()
        await server.claim(None, "u1")
        await server.stop(deadline=SOON)
        async with running(store, 1):
            await eventually_async(lambda: deadlines)
    assert set(deadlines) == {None}


def test_a_signal_handler_may_submit_in_the_middle_of_a_submit() -> None:
    # The lock around the first thread was not re-entrant: the main thread waited for itself.
    client, futures = podlink.ClientDriver(podlink.Store()), list[Any]()

    def handler(*_frame: object) -> None:
        futures.append(client.submit("get_linked_pod", None, "u1", SERVICE))

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for _ in range(3000):
            futures.append(client.submit("get_linked_pod", None, "u2", SERVICE))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert {future.result(SOON) for future in futures} == {None}
    assert len(futures) > 3000


class AsyncCallback:
    async def on_success(self, _result: object) -> None: ...

    async def on_error(self, _error: podlink.PodlinkError) -> None: ...


def test_an_async_callback_is_a_failure_and_a_class_is_refused() -> None:
    client = podlink.ClientDriver(podlink.Store())
    asynchronous: Any = AsyncCallback()
    client.submit("get_linked_pod", None, "u1", SERVICE, callback=asynchronous).result(SOON)
    eventually(lambda: client.stats()["callback_failures"] == 1)
    without_an_object: Any = AsyncCallback
    with pytest.raises(podlink.InvalidParameterTypeError, match="callback"):
        client.submit("get_linked_pod", None, "u1", SERVICE, callback=without_an_object)


def test_a_decorator_without_its_parentheses_is_refused() -> None:
    info: Any = podlink.RouteInfoDriver(podlink.Store())
    with pytest.raises(podlink.InvalidParameterTypeError, match="parentheses"):

        @info.on_routing_state_changed
        def told(*_arguments: object) -> None: ...


def test_hooks_that_block_their_loop_briefly_are_reported_when_they_end() -> None:
    # Each answered one step of the loop after it had ended, which was after all others had run: 49
    # had saved their users in time, and the report said that none had.
    server = podlink.ServerDriver(podlink.Store(), pod_info(0), STEADY)
    saved = list[str]()

    @server.on_drain
    async def save(user: podlink.Ownership) -> None:
        time.sleep(0.02)  # noqa: ASYNC251 - on purpose
        deadline = podlink.hook_deadline()
        assert deadline is not None
        if time.monotonic() < deadline:
            saved.append(user.uid)

    async def main() -> podlink.DrainReport:
        await server.start()
        for number in range(64):
            await server.claim(None, f"u{number}")
        server.remove_hook(save)
        server.on_drain(save)
        return await server.stop(deadline=2)

    report = asyncio.run(main())
    assert report.released >= len(saved) - 1
