"""A pod's life: it begins once, ends once, and leaves nothing behind, whatever comes between."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import podlink
from conftest import ServerFactory
from helpers.pods import (
    FRESH,
    GRACE,
    NAMESPACE,
    QUICK,
    SERVICE,
    STEADY,
    PodProcess,
    pod_info,
    running,
)
from helpers.servers import Server
from helpers.wait import LATE, eventually, eventually_async

# How long a killed process holds its index: its lease, its grace, and one look.
TAKEOVER = 2.0 + 0.8 + 0.4


def driver(
    store: podlink.Store, index: int = 0, pod_uid: str = "", config: podlink.ServerConfig = STEADY
) -> podlink.ServerDriver:
    info = podlink.ServerInfo(NAMESPACE, SERVICE, index, pod_uid=pod_uid)
    return podlink.ServerDriver(store, info, config)


def acts_of(server: podlink.ServerDriver) -> list[Callable[[], Coroutine[Any, Any, object]]]:
    """All that changes who has a user."""
    return [
        lambda: server.claim(None, "u"),
        lambda: server.set_linked_pod(None, "u", SERVICE, 0),
        lambda: server.set_linked_pod(None, "u", SERVICE, 5),
        lambda: server.set_linked_pod(None, "u", "other", 0, 60),
        lambda: server.try_set_linked_pod(None, "u", SERVICE, 0),
        lambda: server.try_set_linked_pod(None, "u", SERVICE, 5),
        lambda: server.remove_linked_pod(None, "u", SERVICE),
        lambda: server.remove_linked_pod_with_id(None, "u", SERVICE, 0, 0),
        lambda: server.remove_linked_pod_with_id(None, "u", SERVICE, 5, 60),
    ]


async def alive(store: podlink.Store) -> dict[int, podlink.StatefulServiceState]:
    """The pods, as somebody sees them who looks for the first time."""
    async with podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info:
        return await info.get_all_service_state(None, SERVICE)


@pytest.mark.parametrize("index", [0, 7, 2**31 - 1])
async def test_a_pod_is_known_when_start_returns_and_gone_when_stop_does(
    store_url: str, index: int
) -> None:
    async with podlink.Store(store_url) as store:
        info = podlink.ServerInfo(NAMESPACE, SERVICE, index, "svc-x", {"zone": "b"})
        server = podlink.ServerDriver(store, info, STEADY)
        assert (server.incarnation, server.holds_lease) == (None, False)
        await server.set_load_state(5)
        await server.start()
        pods = await alive(store)
        assert list(pods) == [index]
        assert (pods[index].state, pods[index].routing_state) == ("READY", "READY")
        assert pods[index].metadata == {"zone": "b", "podName": "svc-x"}
        assert pods[index].load_state == 5
        assert pods[index].incarnation == server.incarnation
        assert server.holds_lease
        report = await server.stop()
        assert (report.released, report.handed_over, report.remaining) == (0, 0, 0)
        assert await alive(store) == {}
        assert not server.holds_lease


async def test_the_first_state_may_be_a_closed_one() -> None:
    store = podlink.Store()
    server = driver(store)
    await server.set_routing_state("DENY_NEW_CALL")
    await server.start()
    assert (await alive(store))[0].routing_state is podlink.RoutingState.DENY_NEW_CALL
    await server.set_routing_state("READY")
    assert (await alive(store))[0].routing_state is podlink.RoutingState.READY
    await server.stop()


async def test_a_second_start_does_nothing() -> None:
    store = podlink.Store()
    server = driver(store)
    await server.start()
    incarnation = server.incarnation
    await server.start()
    assert server.incarnation == incarnation
    await server.stop()


async def test_starts_at_once_are_one_start(valkey_server: Server) -> None:
    # While one `start` was under way, a second one failed with IllegalStateError. It has to wait
    # for the first one and return with it.
    valkey_server.flush()
    async with podlink.Store(valkey_server.url) as store:
        server = driver(store)
        await asyncio.gather(*(server.start() for _ in range(10)))
        assert (await alive(store))[0].incarnation == server.incarnation
        assert server.stats()["published"] == 1
        await server.stop()


async def test_a_stop_is_the_end_and_a_second_one_says_the_same() -> None:
    store = podlink.Store()
    server = driver(store)
    await server.start()
    for user in range(3):
        await server.claim(None, f"u{user}")
    reports = await asyncio.gather(*(server.stop() for _ in range(5)))
    assert reports[0].released == 3
    assert [*reports, await server.stop(drain="keep", deadline=1)] == [reports[0]] * 6
    with pytest.raises(podlink.ClosedError, match="new driver") as caught:
        await server.start()
    assert isinstance(caught.value, podlink.IllegalStateError)
    with pytest.raises(podlink.ClosedError):
        await server.set_routing_state("READY")
    for operation in acts_of(server):
        with pytest.raises(podlink.ClosedError) as refused:
            await operation()
        assert refused.value.outcome == "not sent"


async def test_who_was_not_started_acts_for_nobody() -> None:
    # A driver that held no lease could write links. What it removed or overwrote may have been
    # those of the process that held its index. (No store answers there: nothing is sent.)
    server = driver(podlink.Store("redis://127.0.0.1:1"))
    for operation in acts_of(server):
        with pytest.raises(podlink.IllegalStateError, match="not started") as refused:
            await operation()
        assert type(refused.value) is podlink.IllegalStateError
        assert (refused.value.retryable, refused.value.outcome) == (False, "not sent")
    assert (server.owns(None, "u"), server.ownership(None, "u")) == (False, None)
    assert server.owned_users() == []


async def test_a_stop_without_a_start_reports_nothing() -> None:
    server = driver(podlink.Store("redis://127.0.0.1:1"))
    assert await server.stop() == podlink.DrainReport(0, 0, 0, [], [], 0.0)


async def test_a_start_without_a_store_fails_in_time_and_leaves_nothing_behind(
    server_factory: ServerFactory,
) -> None:
    server = server_factory()
    store = podlink.Store(server.url)
    pod = driver(store)
    server.kill()
    began = time.monotonic()
    with pytest.raises(podlink.PodlinkError) as caught:
        await pod.start(timeout=0.5)
    assert isinstance(caught.value, podlink.StoreUnavailableError | podlink.OperationTimeoutError)
    assert time.monotonic() - began < 0.5 + LATE
    assert (pod.incarnation, pod.holds_lease) == (None, False)
    server.restart()
    # The same driver may try again.
    await pod.start()
    assert list(await alive(store)) == [0]
    await pod.stop()
    await store.aclose()


async def test_a_start_whose_answer_was_lost_does_not_wait_for_itself(
    server_factory: ServerFactory,
) -> None:
    # Every attempt used a new nonce. A start that was tried again after a time-out did not
    # recognise its own first attempt, and waited for the lease and grace of that one.
    server = server_factory()
    store = podlink.Store(server.url)
    async with running(store, 1):
        pass  # the server knows the scripts now
    pod = driver(store)
    server.pause()
    with pytest.raises(podlink.OperationTimeoutError):
        await pod.start(timeout=0.3)
    server.resume()
    await eventually_async(
        lambda: server.client().hlen(f"sf:{{{NAMESPACE}:state:{SERVICE}}}#lease")
    )
    began = time.monotonic()
    await pod.start()
    assert time.monotonic() - began < LATE
    await pod.stop()
    await store.aclose()


async def test_an_index_that_is_taken_stays_taken(store_url: str) -> None:
    store = podlink.Store(store_url)
    async with running(store, 0) as [first]:
        second = driver(store)
        with pytest.raises(podlink.PodIndexBusyError, match="pod 0") as caught:
            await second.start(timeout=0.5)
        assert caught.value.code == "POD_INDEX_BUSY"
        assert caught.value.details["incarnation"] == str(first.incarnation)
        assert (second.incarnation, second.holds_lease) == (None, False)
        assert first.holds_lease
        assert (await alive(store))[0].incarnation == first.incarnation
        await first.stop()
        began = time.monotonic()
        await second.start()
        assert time.monotonic() - began < LATE
        assert (second.incarnation or 0) > (first.incarnation or 0)
        await second.stop()
    await store.aclose()


@pytest.mark.parametrize("pod_uid", ["", "other"])
async def test_a_start_outwaits_a_predecessor_that_was_killed(
    valkey_server: Server, pod_uid: str
) -> None:
    valkey_server.flush()
    async with podlink.Store(valkey_server.url) as store:
        with PodProcess(valkey_server.url, 0) as earlier:
            lease = f"sf:{{{NAMESPACE}:state:{SERVICE}}}#lease"
            until = int(str(valkey_server.client().hget(lease, "d:0"))) / 1e6
            earlier.kill()
        began = time.monotonic()
        server = driver(store, pod_uid=pod_uid, config=QUICK)
        await server.start()
        # The store's clock is this machine's; a renewal before the kill makes it later.
        assert time.time() > until + GRACE
        assert time.monotonic() - began < TAKEOVER + LATE
        assert (server.incarnation or 0) > earlier.incarnation
        await server.stop()


async def test_a_container_restarted_in_its_pod_does_not_wait(store_url: str) -> None:
    store = podlink.Store(store_url)
    crashed = driver(store, pod_uid="11-22")
    await crashed.start()
    incarnation = crashed.incarnation or 0
    # Dropped without a farewell: its tasks end, its lease does not.
    del crashed
    began = time.monotonic()
    server = driver(store, pod_uid="11-22")
    await server.start()
    assert time.monotonic() - began < LATE
    assert (server.incarnation or 0) > incarnation
    await server.stop()
    await store.aclose()


async def test_a_stop_ends_a_start_that_waits(store_url: str) -> None:
    # After a stop, a start that waited for the index went on waiting in the background. It got the
    # index in the end and published READY for a pod that had been stopped.
    store = podlink.Store(store_url)
    async with running(store, 0) as [first]:
        second = driver(store)
        starting = asyncio.create_task(second.start())
        await eventually_async(lambda: second.stats()["index_busy"])
        began = time.monotonic()
        await second.stop()
        with pytest.raises(podlink.ClosedError):
            await starting
        assert time.monotonic() - began < LATE
        await first.stop()
        third = driver(store)
        await third.start(timeout=LATE)
        assert (await alive(store))[0].incarnation == third.incarnation
        await third.stop()
    await store.aclose()


async def test_a_start_that_waits_says_for_whom(caplog: pytest.LogCaptureFixture) -> None:
    # A pod whose index was taken hung in its start for as long as its deadline, and said nothing.
    def waits() -> list[dict[str, Any]]:
        said = [record for record in caplog.records if "a starting pod waits" in record.message]
        return [vars(record)["podlink"] for record in said]

    store = podlink.Store()
    with caplog.at_level(logging.WARNING, "podlink"):
        async with running(store, 0) as [first]:
            second = driver(store)
            starting = asyncio.create_task(second.start(timeout=600))
            # At once, and again some seconds later.
            await eventually_async(lambda: len(waits()) >= 2)
            incarnation = first.incarnation
        await starting
    told, again = waits()[:2]
    assert (told["service"], told["pod"]) == (f"{NAMESPACE}/{SERVICE}", 0)
    assert told["earlier"] == again["earlier"] == incarnation
    assert told["waited_seconds"] < again["waited_seconds"] < LATE
    assert told["left_seconds"] > 0
    eventually(lambda: "the pod has its index" in caplog.text)
    await second.stop()


async def test_a_stop_right_behind_a_start_leaves_no_pod(store_url: str) -> None:
    store = podlink.Store(store_url)
    for _ in range(20):
        server = driver(store)
        starting = asyncio.create_task(server.start())
        await asyncio.sleep(0)
        await server.stop()
        assert await alive(store) == {}
        assert not server.holds_lease
        await asyncio.gather(starting, return_exceptions=True)
    # Nor does anybody hold the index.
    server = driver(store)
    await server.start(timeout=LATE)
    await server.stop()
    await store.aclose()


async def test_a_cancelled_start_goes_on_and_can_be_joined() -> None:
    store = podlink.Store()
    async with running(store, 0) as [first]:
        second = driver(store)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(second.start(), 0.05)
        await first.stop()
        await second.start()
        assert (await alive(store))[0].incarnation == second.incarnation
        await second.stop()
        assert await alive(store) == {}


async def test_a_block_that_is_cancelled_while_it_starts_leaves_no_pod() -> None:
    # Python does not call `__aexit__` if `__aenter__` is cancelled. The pod had started all the
    # same, and its lease was renewed for ever.
    store = podlink.Store()
    server = driver(store)
    async with running(store, 0) as [first]:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), server:
                raise AssertionError("it cannot have started")
        await first.stop()
    with pytest.raises(podlink.ClosedError):
        await server.start()
    assert await alive(store) == {}


async def test_a_cancelled_stop_goes_on() -> None:
    store = podlink.Store()
    server = driver(store)
    await server.start()
    await server.claim(None, "u")
    go_on = asyncio.Event()

    @server.on_drain
    async def wait(_user: podlink.Ownership) -> None:
        await go_on.wait()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(server.stop(), 0.05)
    # A second stop with less time than the first gives up earlier.
    with pytest.raises(podlink.OperationTimeoutError):
        await server.stop(deadline=0.05)
    go_on.set()
    assert (await server.stop()).released == 1
    assert await alive(store) == {}


@pytest.mark.parametrize("given", [0, -1, float("nan"), 3601, "25", True])
async def test_a_stop_wants_a_deadline_that_can_pass(given: object) -> None:
    server = driver(podlink.Store())
    await server.start()
    with pytest.raises(podlink.InvalidParameterError, match="deadline"):
        await server.stop(deadline=given)  # type: ignore[arg-type]
    with pytest.raises(podlink.InvalidParameterError, match="drain"):
        await server.stop(drain="away")  # type: ignore[arg-type]
    # Refused, it has not begun.
    assert server.holds_lease
    await server.stop()


async def test_starting_and_stopping_without_a_loop() -> None:
    # `submit` had `start` but not `stop`: a program without an event loop could start a pod and
    # could not stop it.
    store = podlink.Store()
    server = driver(store)
    server.submit("start").result(60)
    server.submit("set_linked_pod", None, "u", SERVICE, 0).result(60)
    report = server.submit("stop", deadline=5.0, drain="keep").result(60)
    assert isinstance(report, podlink.DrainReport)
    assert (report.released, report.kept, report.remaining) == (0, 1, 1)
    assert await alive(store) == {}


async def test_the_same_index_of_another_service_or_namespace_is_another_pod() -> None:
    store = podlink.Store()
    async with (
        running(store, 0) as [one],
        running(store, 0, service="other") as [other],
        podlink.ServerDriver(store, podlink.ServerInfo("elsewhere", SERVICE, 0), STEADY) as far,
    ):
        assert one.holds_lease
        assert other.holds_lease
        assert far.holds_lease
        assert pod_info(0) == one.server_info
