"""Functions of the program's: a slow one delays nobody, a late one is not begun."""

import asyncio
import contextvars
import logging
import select
import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest

import podlink
from helpers.pods import FRESH, NAMESPACE, SERVICE, STEADY, pod_info
from helpers.programs import run_program
from helpers.wait import eventually, eventually_async
from podlink import _bridge, _operations as ops, _podlink

SOON = 60.0
WHO = contextvars.ContextVar("WHO", default="nobody")


class Gate:
    """Holds the threads that come until it is opened."""

    def __init__(self) -> None:
        self.reached, self._open = threading.Event(), threading.Event()
        self.held: set[int] = set()

    def wait(self) -> None:
        self.held.add(threading.get_ident())
        self.reached.set()
        assert self._open.wait(SOON)

    def open(self) -> None:
        self._open.set()


class Callback:
    """Holds at its gate, then notes the result."""

    def __init__(self, gate: Gate | None = None) -> None:
        self.gate, self.results = gate, list[Any]()

    def on_success(self, result: Any) -> None:
        if self.gate is not None:
            self.gate.wait()
        self.results.append((result, WHO.get()))

    def on_error(self, error: Exception) -> None:
        raise error


def all_of_podlink_works(client: podlink.ClientDriver) -> None:
    """Results, callbacks and hooks of this driver and of others."""
    store = podlink.Store()
    told = Callback()
    assert client.submit("get_linked_pod", None, "u1", SERVICE, callback=told).result(SOON) is None
    eventually(lambda: told.results)
    server = podlink.ServerDriver(store, pod_info(0), STEADY)
    saved: list[str] = []
    server.on_drain(lambda user: saved.append(user.uid))
    server.submit("start").result(SOON)
    chooses = podlink.ClientConfig(strategy=lambda _uid, candidates: candidates[0].pod_id)
    other = podlink.ClientDriver(store, NAMESPACE, chooses, route_info=FRESH)
    assert other.submit("compute_linked_pod", None, "u1", SERVICE).result(SOON) == 0
    assert other.stats()["chooser_failures"] == 0
    server.submit("claim", None, "u1").result(SOON)
    report = server.submit("stop", deadline=SOON).result(SOON)
    assert (saved, report.released) == (["u1"], 1)


def test_a_slow_callback_delays_nobody() -> None:
    # Callbacks ran on the thread that settles all futures. One that slept for 10 s delayed every
    # other result: a pod that stopped meanwhile gave its users away before their hooks were called.
    client, gate = podlink.ClientDriver(podlink.Store()), Gate()
    slow = Callback(gate)
    client.submit("get_linked_pod", None, "u1", SERVICE, callback=slow)
    assert gate.reached.wait(SOON)
    all_of_podlink_works(client)
    assert slow.results == []
    gate.open()
    eventually(lambda: slow.results)


def test_callbacks_of_one_driver_leave_threads_to_another() -> None:
    client, gate = podlink.ClientDriver(podlink.Store()), Gate()
    told = Callback(gate)
    for _ in range(50):
        client.submit("get_linked_pod", None, "u1", SERVICE, callback=told)
    assert gate.reached.wait(SOON)
    all_of_podlink_works(podlink.ClientDriver(podlink.Store()))
    eventually(lambda: len(gate.held) == 4)
    gate.open()
    eventually(lambda: len(told.results) == 50)
    assert len(gate.held) == 4


def test_a_slow_done_callback_delays_nobody() -> None:
    client, gate = podlink.ClientDriver(podlink.Store(), config=podlink.ClientConfig()), Gate()
    held, order = Gate(), list[object]()
    future = client.submit("get_linked_pod", None, "u1", SERVICE, callback=Callback(held))
    future.add_done_callback(lambda _future: gate.wait())
    future.add_done_callback(lambda done: order.append(done.result()))
    future.add_done_callback(lambda _future: order.append("second"))
    assert future.result(SOON) is None
    all_of_podlink_works(client)
    held.open()
    gate.open()
    eventually(lambda: order == [None, "second"])
    future.add_done_callback(lambda _future: order.append(threading.current_thread()))
    eventually(lambda: len(order) == 3)


@pytest.mark.parametrize("error", [ValueError("on purpose"), SystemExit(3)])
def test_a_done_callback_that_raises_is_logged(
    caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    client, told = podlink.ClientDriver(podlink.Store()), threading.Event()

    def fail(_future: Future[Any]) -> None:
        raise error

    with caplog.at_level(logging.ERROR, "podlink.callbacks"):
        future: Future[Any] = _bridge_future(client)
        future.add_done_callback(fail)
        future.add_done_callback(lambda _future: told.set())
        future.set_result(1)
        assert told.wait(SOON)
    assert [record.message for record in caplog.records] == ["a done callback raised"]


def _bridge_future(client: podlink.ClientDriver) -> Future[Any]:
    """A future of `submit` that nothing settles."""
    future: Future[Any] = type(client.submit("get_linked_pod", None, "u1", SERVICE))(
        client._submitter._pool  # type: ignore[call-arg]
    )
    return future


def test_a_slow_handler_of_log_records_delays_nobody() -> None:
    gate = Gate()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            gate.wait()

    handler, logger = Handler(), logging.getLogger("podlink")
    logger.addHandler(handler)
    try:
        # The core writes a record: the load function failed.
        server = podlink.ServerDriver(podlink.Store(), pod_info(0), STEADY, load=lambda: 1 // 0)
        server.submit("start").result(SOON)
        assert gate.reached.wait(SOON)
        assert threading.current_thread().name != "podlink-logs"
        all_of_podlink_works(podlink.ClientDriver(podlink.Store()))
    finally:
        gate.open()
        logger.removeHandler(handler)
    server.submit("stop").result(SOON)


def test_a_result_is_not_waited_for_on_the_thread_that_settles_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A finaliser may run on any thread.
    client, told = podlink.ClientDriver(podlink.Store()), list[object]()
    settle = _bridge._settle

    def asks(*arguments: Any) -> None:
        monkeypatch.setattr(_bridge, "_settle", settle)
        future = client.submit("get_linked_pod_not_cache", None, "u2", SERVICE)
        for wait in (future.result, future.exception):
            try:
                wait()
            except podlink.IllegalStateError as error:
                told.append(str(error))
        settle(*arguments)

    monkeypatch.setattr(_bridge, "_settle", asks)
    assert client.submit("get_linked_pod", None, "u1", SERVICE).result(SOON) is None
    assert len(told) == 2
    assert "thread that settles it" in str(told[0])


def test_submit_after_podlink_has_ended_raises() -> None:
    # It waited for ever: the thread that would have settled the future had ended.
    printed = run_program("""
        import atexit

        def late():
            try:
                client.submit("get_linked_pod", None, "u1", "svc").result(60)
            except podlink.ClosedError as error:
                print("late:", error)

        atexit.register(late)  # before the import: it is called after podlink's own
        import podlink

        client = podlink.ClientDriver(podlink.Store())
        atexit.register(
            lambda: print("early:", client.submit("get_linked_pod", None, "u1", "svc").result(60))
        )
    """)
    early, late = printed.splitlines()
    assert early == "early: None"
    assert late.startswith("late: podlink has ended with the interpreter")


@pytest.mark.parametrize("mode", ["thread", "poll", "loop"])
def test_a_callback_has_the_context_of_its_submit(mode: str) -> None:
    callbacks: Any = "poll" if mode == "poll" else "thread"
    client, told = podlink.ClientDriver(podlink.Store(), callbacks=callbacks), Callback()

    def submit() -> None:
        for caller in ("a", "b"):
            WHO.set(caller)
            client.submit("get_linked_pod", None, "u1", SERVICE, callback=told)
        WHO.set("somebody else")

    async def main() -> None:
        submit()
        await eventually_async(lambda: len(told.results) == 2)

    if mode == "loop":
        contextvars.copy_context().run(asyncio.run, main())
    else:
        contextvars.copy_context().run(submit)
        eventually(lambda: client.poll_callbacks() * 0 + (len(told.results) == 2))
    assert sorted(told.results) == [(None, "a"), (None, "b")]


def test_a_sync_hook_can_ask_how_long_it_may_take() -> None:
    limits: list[object] = []

    def loads() -> int:
        limits.append(podlink.hook_deadline())
        return 1

    server = podlink.ServerDriver(podlink.Store(), pod_info(0), STEADY, load=loads)
    left: dict[str, float] = {}
    ended = threading.Event()

    @server.on_drain
    def save(user: podlink.Ownership) -> None:
        deadline = podlink.hook_deadline()
        assert deadline is not None
        began = time.monotonic()
        left[user.uid] = deadline - began
        if user.uid == "slow":
            eventually(lambda: (podlink.hook_deadline() or 0) <= began)  # it is not waited for
            ended.set()

    server.submit("start").result(SOON)
    for uid in ("quick", "slow"):
        server.submit("claim", None, uid).result(SOON)
    report = server.submit("stop", deadline=3).result(SOON)
    assert ended.wait(SOON)
    assert report.unfinished == ["slow"]
    assert report.released == 1
    assert 0 < left["slow"] < 3
    assert 0 < left["quick"] < 3
    assert podlink.hook_deadline() is None
    assert limits
    assert set(limits) == {None}


async def test_an_async_hook_knows_its_deadline_too() -> None:
    server = podlink.ServerDriver(podlink.Store(), pod_info(0), STEADY)
    left: list[float] = []

    @server.on_drain
    async def save(_user: podlink.Ownership) -> None:
        await asyncio.sleep(0)
        left.append((podlink.hook_deadline() or 0) - time.monotonic())

    await server.start()
    await server.claim(None, "u1")
    assert (await server.stop(deadline=SOON)).released == 1
    assert 0 < left[0] < SOON


def test_a_hook_may_run_its_loop_inside_itself() -> None:
    # Hooks were called inside the delivery, which cannot be entered twice: the loop that such a
    # hook ran called it again and again ("cannot enter context").
    printed = run_program("""
        import asyncio
        import nest_asyncio
        import podlink
        from helpers.pods import FRESH, NAMESPACE, SERVICE, running
        from helpers.wait import eventually_async

        nest_asyncio.apply()
        store, seen = podlink.Store(), []

        async def look(name):
            await asyncio.sleep(0.01)
            client = podlink.ClientDriver(store)
            seen.append((name, await client.get_linked_pod_not_cache(None, "u1", SERVICE)))

        async def main():
            loop = asyncio.get_running_loop()
            nests = lambda name: loop.run_until_complete(look(name))
            info = podlink.RouteInfoDriver(store, NAMESPACE)
            async with running(store, 0) as [server], info:
                server.on_drain(lambda _user: nests("drain"))
                changed = lambda *_arguments: nests("change")
                info.register_routing_state_changed_event(None, changed, SERVICE)
                await eventually_async(lambda: ("change", None) in seen)
                await server.claim(None, "u2")
                print((await server.stop()).released, ("drain", None) in seen)

        asyncio.run(main())
    """)
    assert printed == "1 True\n"


def test_no_answer_is_lost_when_a_signal_interrupts_a_delivery() -> None:
    # A handler that raises (a task queue's soft time limit, a second Ctrl-C) in the middle of a
    # batch lost the rest of it: 6 to 321 awaits never ended. One may be lost, that of the callback
    # that asyncio itself was in.
    printed = run_program("""
        import asyncio, random, signal, sys, warnings
        import podlink
        from podlink import _bridge

        class SoftLimit(Exception):
            pass

        warnings.simplefilter("ignore", RuntimeWarning)  # a task was interrupted when it began
        sys.unraisablehook = lambda _raised: None  # a callback of a weak reference was interrupted

        def interrupt(*_frame):
            raise SoftLimit

        signal.signal(signal.SIGALRM, interrupt)
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_context: armed and loop.stop())  # it was interrupted
        client = podlink.ClientDriver(podlink.Store())
        interrupted, lost, armed = 0, [], []

        async def settled(tasks):
            waiting = _bridge.bridge_of(loop).queue
            while len(waiting):
                await asyncio.sleep(0)
            for _ in range(50):  # what was handed out is delivered, and tasks have gone on
                await asyncio.sleep(0)
            return sum(not task.done() for task in tasks)

        async def work():
            operations = (client.get_linked_pod_not_cache(None, f"u{n}", "svc") for n in range(100))
            return [asyncio.ensure_future(each) for each in operations]

        def run(work):
            return loop.run_until_complete(loop.create_task(work))

        def interrupted_once(tasks):
            try:
                armed.append(tasks)
                signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.003))
                run(settled(tasks))
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                armed.clear()

        random.seed(4)
        for trial in range(1000):
            tasks = run(work())
            try:
                interrupted_once(tasks)
            except (SoftLimit, RuntimeError):  # the latter: stopped by the handler
                interrupted += 1
            armed.clear()
            loop.call_soon(loop.stop)
            loop.run_forever()  # a stop that is left over ends this one
            open_ones = run(settled(tasks))
            lost.append(open_ones)
            for task in tasks:
                task.cancel()
        loop.close()
        print(max(lost) <= 1, sum(lost), interrupted)
    """)
    within, _lost, interrupted = printed.split()
    assert (within, int(interrupted) > 0) == ("True", True), printed


def test_a_batch_comes_again_until_it_is_delivered() -> None:
    client, queue = podlink.ClientDriver(podlink.Store()), _podlink.CompletionQueue()
    waiter, user = object(), (None, "u1", SERVICE)
    _bridge.start(client._core, ops.get_linked_pod_not_cache, queue, waiter, user, None)

    def arrived() -> bool:
        if queue.drain()[0] == [waiter]:
            return True
        queue.delivered()
        return False

    eventually(arrived)
    batch = queue.drain()
    assert queue.drain() is batch
    assert queue.drain()[0] == [waiter]
    readable = select.poll()
    readable.register(queue.fileno(), select.POLLIN)
    assert readable.poll(0)
    queue.delivered()
    assert not readable.poll(0)
    assert queue.drain()[0] == []


def test_an_interrupted_batch_calls_no_hook_twice() -> None:
    calls, reply = list[object](), Reply()
    for _ in range(2):
        _bridge._begin(lambda *arguments: calls.append(arguments), (1,), reply)  # type: ignore[arg-type]
    assert calls == [(reply, 1)]


class Reply:
    """Where the answer of a hook goes: begun once."""

    begun = False

    def begin(self) -> bool:
        first, self.begun = not self.begun, True
        return first
