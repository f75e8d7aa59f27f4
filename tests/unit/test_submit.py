"""Programs without `await`: futures, and callbacks that are called once and may fail."""

import asyncio
import inspect
import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, assert_type, cast

import pytest

import podlink
from helpers.programs import run_program
from helpers.wait import eventually, eventually_async
from podlink import _bridge

USER = (None, "u1", "svc")

OfPods = Future[dict[int, list[str]]]

# Only a podlink that hangs makes a test wait this long.
SOON = 60.0


class Told:
    """A callback that remembers its calls, and on which thread they came."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.errors: list[Exception] = []
        self.threads: list[str] = []

    def on_success(self, result: Any) -> None:
        self.threads.append(threading.current_thread().name)
        self.results.append(result)

    def on_error(self, error: Exception) -> None:
        self.threads.append(threading.current_thread().name)
        self.errors.append(error)


class Raising:
    """A callback that raises whatever happens."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def on_success(self, result: Any) -> None:
        raise self._error

    def on_error(self, error: Exception) -> None:
        raise self._error


@pytest.fixture
def client() -> podlink.ClientDriver:
    return podlink.ClientDriver(podlink.Store("memory://"))


@pytest.fixture
def polled() -> podlink.ClientDriver:
    return podlink.ClientDriver(podlink.Store("memory://"), callbacks="poll")


def test_a_future_brings_the_result(client: podlink.ClientDriver) -> None:
    assert client.submit("set_linked_pod_if_absent", *USER, 0).result(SOON) == 0
    assert client.submit("get_linked_pod", *USER).result(SOON) == 0


def test_a_future_brings_the_error(client: podlink.ClientDriver) -> None:
    with pytest.raises(podlink.NoRoutablePodError):
        client.submit("compute_linked_pod", *USER).result(SOON)


@pytest.mark.parametrize(
    ("operation", "arguments", "result"),
    [
        ("get_linked_pod", USER, None),
        ("get_linked_pod_in_cache_or_if_persist", USER, None),
        ("get_linked_pod_not_cache", USER, None),
        ("set_linked_pod_if_absent", (*USER, 3), 3),
        ("get_link_service", USER[:2], {}),
        ("batch_get_linked_pod", (None, ["u1", "u2"], "svc"), {}),
    ],
)
def test_every_coroutine_can_be_submitted(
    client: podlink.ClientDriver, operation: Any, arguments: tuple[Any, ...], result: Any
) -> None:
    assert client.submit(operation, *arguments, timeout=SOON).result(SOON) == result


def test_arguments_may_have_names(client: podlink.ClientDriver) -> None:
    future = client.submit("get_linked_pod", namespace="", uid="u1", service_name="svc")
    assert future.result(SOON) is None


def test_a_bound_method_names_its_operation(client: podlink.ClientDriver) -> None:
    linked = client.submit(client.set_linked_pod_if_absent, *USER, pod_index=3)
    assert linked.result(SOON) == 3
    computed = assert_type(client.submit(client.compute_linked_pod, *USER), Future[int])
    assert isinstance(computed.exception(SOON), podlink.NoRoutablePodError)
    found = assert_type(client.submit("get_linked_pod", *USER), Future[int | None])
    assert found.result(SOON) == 3
    batch = assert_type(
        client.submit(client.batch_get_linked_pod, None, iter(["u1"]), "svc"), OfPods
    )
    assert batch.result(SOON) == {3: ["u1"]}


def test_a_method_of_another_object_is_refused(
    client: podlink.ClientDriver, polled: podlink.ClientDriver
) -> None:
    methods = (
        polled.get_linked_pod,
        client.service("svc").get_linked_pod,
        client.aclose,
        client.get_linked_in_cache,
        podlink.ClientDriver.get_linked_pod,
    )
    for method in methods:
        with pytest.raises(podlink.InvalidParameterError, match="method of this driver") as caught:
            client.submit(cast(Any, method), *USER)
        assert caught.value.details["parameter"] == "operation"


@pytest.mark.parametrize("driver", ["client", "info", "peer", "server"])
def test_rows_match_their_methods(driver: str) -> None:
    store = podlink.Store()
    drivers: dict[str, Any] = {
        "client": podlink.ClientDriver(store),
        "info": podlink.RouteInfoDriver(store),
        "peer": podlink.RouteGrpcClient("grpc://localhost:1"),
        "server": podlink.ServerDriver(store, podlink.ServerInfo("default", "svc", 0)),
    }
    found = drivers[driver]
    coroutines = {
        name
        for name, _ in inspect.getmembers(type(found), inspect.iscoroutinefunction)
        if not name.startswith("_") and name != "aclose"
    }
    assert coroutines == found._submitter._operations.keys()
    for name, (operation, _) in found._submitter._operations.items():
        if operation is not None:
            parameters = [*inspect.signature(getattr(found, name)).parameters]
            assert operation.name == name
            assert parameters == [*operation.parameters, *["timeout"] * operation.timed]


@pytest.mark.parametrize("operation", ["get_linked_in_cache", "stats", "aclose", "", 5, []])
def test_only_coroutine_operations_can_be_submitted(
    client: podlink.ClientDriver, operation: Any
) -> None:
    with pytest.raises(podlink.InvalidParameterError, match="compute_linked_pod") as caught:
        client.submit(operation)
    assert caught.value.details["parameter"] == "operation"


class Decorated(podlink.ClientDriver):
    async def get_linked_pod(self, *args: Any, **named: Any) -> int | None:
        return await super().get_linked_pod(*args, **named)


def test_an_override_with_another_signature_can_be_submitted() -> None:
    driver = Decorated(podlink.Store())
    assert driver.submit("get_linked_pod", *USER).result(SOON) is None


def test_an_argument_that_no_operation_takes_is_refused(client: podlink.ClientDriver) -> None:
    server = podlink.ServerDriver(podlink.Store(), podlink.ServerInfo("default", "svc", 0))
    submit: Any = server.submit
    with pytest.raises(podlink.InvalidParameterError, match="set_load_state takes no timeout="):
        submit("set_load_state", 5, timeout=1)
    with pytest.raises(podlink.InvalidParameterTypeError, match="callback must have on_success"):
        client.submit("get_linked_pod", *USER, callback=cast(Any, 5))


@pytest.mark.parametrize(
    ("operation", "arguments", "timeout"),
    [
        ("batch_get_linked_pod", (None, "u1", "svc"), None),
        ("get_linked_pod", USER, "soon"),
        ("get_linked_pod", (None, "", "svc"), None),
        ("get_linked_pod", (None, "u1"), None),
    ],
)
async def test_a_refused_argument_names_the_operation(
    client: podlink.ClientDriver, operation: Any, arguments: tuple[Any, ...], timeout: Any
) -> None:
    with pytest.raises(podlink.InvalidParameterError) as caught:
        client.submit(operation, *arguments, timeout=timeout)
    assert caught.value.details["operation"] == operation
    if len(arguments) == len(USER):
        with pytest.raises(podlink.InvalidParameterError) as caught:
            await getattr(client, operation)(*arguments, timeout=timeout)
        assert caught.value.details["operation"] == operation


def test_wrong_arguments_are_refused_at_once(client: podlink.ClientDriver) -> None:
    with pytest.raises(podlink.InvalidParameterError, match="service_name"):
        client.submit("get_linked_pod", None, "u1")
    with pytest.raises(podlink.InvalidParameterError, match="uid"):
        client.submit("get_linked_pod", None, "", "svc")
    with pytest.raises(podlink.InvalidParameterError, match="timeout"):
        client.submit("get_linked_pod", *USER, timeout=-1)


def test_a_thread_tells_a_program_without_a_loop(client: podlink.ClientDriver) -> None:
    told = Told()
    client.submit("set_linked_pod_if_absent", *USER, 0, callback=told)
    client.submit("get_linked_pod_not_cache", None, "u2", "svc", callback=told)
    client.submit("compute_linked_pod", None, "u2", "svc", callback=told)
    eventually(lambda: len(told.results) == 2 and told.errors)
    assert set(told.results) == {0, None}
    assert [type(error) for error in told.errors] == [podlink.NoRoutablePodError]
    assert set(told.threads) == {"podlink-callback"}
    assert client.poll_callbacks() == 0


def test_a_program_that_polls_is_told_when_it_polls(polled: podlink.ClientDriver) -> None:
    told = Told()
    assert polled.submit("set_linked_pod_if_absent", *USER, 7, callback=told).result(SOON) == 7
    # The future is settled first, and the callback is put into the queue right after.
    assert eventually(polled.poll_callbacks) == 1
    assert told.results == [7]
    assert told.threads == [threading.current_thread().name]
    assert polled.poll_callbacks() == 0


def test_a_thread_that_polls_too_late_runs_nothing(polled: podlink.ClientDriver) -> None:
    # Two threads found one callback waiting; the one that did not get it raised IndexError. Which
    # one waits between look and take cannot be chosen, so the other thread's take is simulated.
    class Contended(deque[Any]):
        def __bool__(self) -> bool:
            waits = len(self) > 0
            if waits:
                self.popleft()  # the other thread
            return waits

    waiting: Any = polled._submitter
    waiting._polled = Contended()
    polled.submit("get_linked_pod", *USER, callback=Told()).result(SOON)
    eventually(lambda: len(waiting._polled) == 1)
    assert polled.poll_callbacks() == 0


async def test_on_a_loop_the_callback_runs_on_the_loop(client: podlink.ClientDriver) -> None:
    told = Told()
    future = client.submit("set_linked_pod_if_absent", *USER, 0, callback=told)
    assert await asyncio.wrap_future(future) == 0
    await eventually_async(lambda: told.results)
    assert told.threads == [threading.current_thread().name]


async def test_a_polling_driver_on_a_loop_is_told_by_the_loop(
    polled: podlink.ClientDriver,
) -> None:
    told = Told()
    polled.submit("set_linked_pod_if_absent", *USER, 0, callback=told)
    await eventually_async(lambda: told.results)
    assert polled.poll_callbacks() == 0


async def test_waiting_on_the_loop_for_the_future_is_no_deadlock(
    client: podlink.ClientDriver,
) -> None:
    # Not a good idea, but the loop that stands still must not be the one that settles it.
    assert client.submit("set_linked_pod_if_absent", *USER, 0).result(SOON) == 0


def test_a_future_is_settled_even_if_its_loop_ended_first(client: podlink.ClientDriver) -> None:
    # Only the loop that was running at `submit` could settle the future. Futures of calls under way
    # when asyncio.run ended stayed pending for ever.
    told = Told()

    async def submit() -> list[Future[Any]]:
        users = (f"u{number}" for number in range(200))
        operation = client.set_linked_pod_if_absent
        return [client.submit(operation, None, user, "svc", 1, callback=told) for user in users]

    futures = asyncio.run(submit())
    assert [future.result(SOON) for future in futures] == [1] * 200


def test_a_callback_whose_loop_has_closed_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    # A strategy that takes its time, so that the loop surely ends first.
    let_go = threading.Event()

    def choose(uid: str, candidates: object) -> int | None:
        let_go.wait(SOON)
        return None

    store, told = podlink.Store("memory://"), Told()
    server = podlink.ServerDriver(store, podlink.ServerInfo("default", "svc", 0))
    server.submit("start").result(SOON)
    client = podlink.ClientDriver(store, config=podlink.ClientConfig(strategy=choose))

    async def submit() -> Future[Any]:
        return client.submit("compute_linked_pod", *USER, callback=told, timeout=SOON)

    future = asyncio.run(submit())
    let_go.set()
    assert future.result(SOON) == 0
    eventually(lambda: client.stats()["callback_failures"] == 1)
    assert told.results == []
    assert "the loop that it belongs to has closed" in caplog.text


def test_a_cancelled_future_tells_nobody(
    client: podlink.ClientDriver, polled: podlink.ClientDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One thread settles futures: while it is held, nothing is quicker than cancelling.
    held, let_go = threading.Event(), threading.Event()
    settle = _bridge._settle

    def hold(*arguments: Any) -> None:
        held.set()
        let_go.wait(SOON)
        settle(*arguments)

    monkeypatch.setattr(_bridge, "_settle", hold)
    client.submit("get_linked_pod", *USER)
    assert held.wait(SOON)
    told = Told()
    futures = [
        polled.submit("get_linked_pod_not_cache", None, f"u{number}", "svc", callback=told)
        for number in range(500)
    ]
    assert all(future.cancel() for future in futures[100:])
    let_go.set()
    polled.submit("get_linked_pod", *USER).result(SOON)
    eventually(lambda: polled.poll_callbacks() or len(told.results) == 100)
    assert len(told.results) == 100


def test_a_finaliser_may_start_an_operation_while_results_are_taken() -> None:
    # The table of waiters was locked while results were made into Python objects. A finaliser, or
    # another thread, that started an operation at that moment waited for the lock with the GIL
    # held. The process stood still for ever.
    printed = run_program("""
        import gc, threading
        import podlink
        from podlink import _bridge

        client = podlink.ClientDriver(podlink.Store("memory://"))
        held, started, settle = threading.Event(), [], _bridge._settle

        def hold(*arguments):
            held.wait(60)
            settle(*arguments)

        _bridge._settle = hold

        class Asks:  # for something when it is collected as garbage, and leaves more of its kind
            def __init__(self):
                self.me = self
            def __del__(self):
                if len(started) < 500:
                    started.append(client.submit("get_link_service", None, "u1"))
                    Asks()

        client.submit("get_linked_pod", None, "u1", "svc")
        futures = [client.submit("get_link_service", None, f"u{n}") for n in range(3000)]
        gc.set_threshold(20)
        Asks()
        held.set()
        assert all(future.result(60) == {} for future in futures)
        gc.set_threshold(700)
        print(len(started) > 50, all(future.result(60) == {} for future in started))
        Asks.__del__ = lambda self: None
    """)
    assert printed == "True True\n"


@pytest.mark.parametrize("mode", ["thread", "poll"])
def test_a_callback_that_raises_is_logged_and_counted(
    caplog: pytest.LogCaptureFixture, mode: Any
) -> None:
    client = podlink.ClientDriver(podlink.Store("memory://"), callbacks=mode)
    with caplog.at_level(logging.ERROR, "podlink"):
        future = client.submit("get_linked_pod", *USER, callback=Raising(OSError("on purpose")))
        assert future.result(SOON) is None
        eventually(lambda: client.poll_callbacks() + client.stats()["callback_failures"])
    assert client.stats()["callback_failures"] == 1
    records = [record for record in caplog.records if record.name == "podlink.callbacks"]
    assert len(records) == 1
    assert records[0].exc_info is not None
    assert "on purpose" in str(records[0].exc_info[1])
    told = Told()
    client.submit("get_linked_pod", *USER, callback=told).result(SOON)
    eventually(lambda: client.poll_callbacks() or told.results == [None])


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_callback_cannot_end_the_thread_that_serves_all(
    client: podlink.ClientDriver, error: BaseException
) -> None:
    # sys.exit() in a callback ended the thread that settles all futures. Every later future stayed
    # pending for ever.
    client.submit("get_linked_pod", *USER, callback=Raising(error)).result(SOON)
    assert client.submit("get_linked_pod", *USER).result(SOON) is None
    eventually(lambda: client.stats()["callback_failures"] == 1)


def test_callbacks_on_a_loop_that_raise_take_no_other_down(client: podlink.ClientDriver) -> None:
    told = Told()

    async def main() -> None:
        for number in range(50):
            callback = told if number % 2 else Raising(ValueError("on purpose"))
            client.submit("get_linked_pod_not_cache", *USER, callback=callback)
        await eventually_async(lambda: len(told.results) == 25)
        await eventually_async(lambda: client.stats()["callback_failures"] == 25)

    asyncio.run(main())


def test_futures_may_be_waited_for_on_many_threads(client: podlink.ClientDriver) -> None:
    answers: list[int] = []

    def play(player: int) -> None:
        for turn in range(20):
            user = (None, f"u{player}-{turn}", "svc")
            answers.append(client.submit("set_linked_pod_if_absent", *user, player).result(SOON))

    threads = [threading.Thread(target=play, args=(player,)) for player in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert sorted(answers) == sorted(list(range(8)) * 20)


def test_results_and_calls_of_strategies_do_not_lose_each_other() -> None:
    # Results and calls of strategies share one queue. A result that came after the one kind was
    # taken, but before the other was, did not wake the thread. Its future was never settled.
    def choose(_uid: str, candidates: Sequence[podlink.StatefulServiceState]) -> int:
        return candidates[0].pod_id

    store = podlink.Store("memory://")
    server = podlink.ServerDriver(store, podlink.ServerInfo("default", "svc", 0))
    server.submit("start").result(SOON)
    client = podlink.ClientDriver(store, config=podlink.ClientConfig(strategy=choose))

    def play(player: int) -> list[int]:
        compute = client.compute_linked_pod
        return [
            client.submit(compute, None, f"u{player}-{turn}", "svc", timeout=SOON).result(SOON)
            for turn in range(150)
        ]

    with ThreadPoolExecutor(max_workers=4) as pool:
        assert list(pool.map(play, range(4))) == [[0] * 150] * 4
    server.submit("set_routing_state", "SHUTDOWN").result(SOON)


def test_a_server_driver_can_be_driven_without_a_loop() -> None:
    store = podlink.Store("memory://")
    server = podlink.ServerDriver(store, podlink.ServerInfo("default", "svc", 0))
    client = podlink.ClientDriver(store)
    server.submit("start").result(SOON)
    assert client.submit("compute_linked_pod", *USER).result(SOON) == 0
    assert server.submit("try_set_linked_pod", *USER, 0).result(SOON) == (True, 0)
    assert server.submit("remove_linked_pod", *USER).result(SOON) is True
