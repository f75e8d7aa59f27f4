"""The lease while a pod lives: renewed, missed, nearly lost, lost, and had again."""

import logging
import time

import pytest

import podlink
from conftest import ServerFactory
from helpers.pods import FRESH, NAMESPACE, QUICK, SERVICE, pod_info, running
from helpers.servers import Server
from helpers.wait import LATE, eventually, eventually_async

# Misses are seen at once, and the lease outlives every pause of the machine.
LONG = podlink.ServerConfig(lease=30, renew=0.1, guard=0.2, gap=0.2, grace=0.2, timeout=0.1)


async def looked(store: podlink.Store) -> dict[int, podlink.StatefulServiceState]:
    async with podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info:
        return await info.get_all_service_state(None, SERVICE)


async def test_a_pod_renews_for_as_long_as_it_lives(store_url: str) -> None:
    config = podlink.ServerConfig(lease=3, renew=1, guard=0.2, gap=3, grace=3, cpu_factor=0.0)
    async with podlink.Store(store_url) as store, running(store, 0, config=config) as [server]:
        began = time.monotonic()
        first = (await looked(store))[0].update_time
        # Longer than the lease: without renewals it would have ended.
        await eventually_async(lambda: server.stats()["published"] > 4)
        assert time.monotonic() - began > 4 * 1.0 * 0.9 > 3
        assert server.holds_lease
        stats = server.stats()
        assert (stats["renew_failures"], stats["leases_lost"]) == (0, 0)
        assert (await looked(store))[0].update_time > first


async def test_a_loop_that_is_busy_does_not_keep_a_pod_from_renewing(valkey_server: Server) -> None:
    valkey_server.flush()
    async with podlink.Store(valkey_server.url) as store, running(store, 0) as [server]:
        renewed = server.stats()["published"]
        # The loop stands still: nothing of Python's helps the pod now.
        eventually(lambda: server.stats()["published"] > renewed + 2)
        assert server.holds_lease


async def test_missed_renewals_are_tried_again_and_counted(
    server_factory: ServerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    server = server_factory()
    store = podlink.Store(server.url)
    async with running(store, 0, config=LONG) as [pod]:
        incarnation = pod.incarnation
        server.pause()
        await eventually_async(lambda: pod.stats()["renew_failures"] >= 3)
        assert pod.holds_lease
        server.resume()
        renewed = pod.stats()["published"]
        await eventually_async(lambda: pod.stats()["published"] > renewed + 2)
        assert pod.stats()["leases_lost"] == 0
        assert pod.incarnation == incarnation
        eventually(lambda: "a renewal failed" in caplog.text)
        eventually(lambda: "renewals succeed again" in caplog.text)
    told = [each for each in caplog.records if "a renewal failed" in each.message]
    # The lease is far from its end.
    assert {each.levelno for each in told} == {logging.WARNING}
    assert all(f"service={NAMESPACE}/{SERVICE}" in each.message for each in told)
    await store.aclose()


async def test_a_renewal_that_fails_when_the_lease_is_close_is_an_error(
    server_factory: ServerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    server = server_factory()
    store = podlink.Store(server.url)
    async with running(store, 0, config=QUICK) as [pod]:
        server.pause()
        eventually(lambda: "a renewal failed and the lease" in caplog.text)
        server.resume()
        assert pod.stats()["renew_failures"] > 1
    told = [each for each in caplog.records if "a renewal failed" in each.message]
    assert [each.levelno for each in told] == sorted(each.levelno for each in told)
    assert told[0].levelno == logging.WARNING
    assert told[-1].levelno == logging.ERROR
    await store.aclose()


async def test_a_lapse_voids_what_was_held_and_is_told_once(
    server_factory: ServerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    server = server_factory()
    store = podlink.Store(server.url)
    losses: list[bool] = []
    async with running(store, 0, config=QUICK) as [pod]:

        @pod.on_lease_lost
        def lost() -> None:
            losses.append(pod.holds_lease)

        incarnation = pod.incarnation
        await pod.set_linked_pod(None, "u", SERVICE, 0)
        assert pod.stats()["owned_users"] == 1
        before, published = time.monotonic(), pod.stats()["published"]
        # The first may have been under way, the second was sent after `before`.
        await eventually_async(lambda: pod.stats()["published"] >= published + 2)
        server.pause()
        paused = held = time.monotonic()

        def lapsed() -> bool:
            nonlocal held
            asked = time.monotonic()
            if pod.holds_lease:
                held = asked
                return False
            return True

        await eventually_async(lapsed)
        # Lease less guard, from when the last renewal was sent.
        assert time.monotonic() - before > 1.8
        assert held - paused < 1.8
        with pytest.raises(podlink.LeaseLostError) as caught:
            await pod.try_set_linked_pod(None, "u2", SERVICE, 0)
        assert caught.value.retryable
        await eventually_async(lambda: losses)
        assert pod.stats()["owned_users"] == 0
        server.resume()
        await eventually_async(lambda: pod.holds_lease)
        # Nobody had declared it dead: it is the same process, but it owns nobody.
        assert pod.incarnation == incarnation
        assert pod.stats()["leases_lost"] == 1
        assert losses == [False]
        assert pod.stats()["owned_users"] == 0
        assert await pod.try_set_linked_pod(None, "u", SERVICE, 0) == (True, 0)
        assert pod.stats()["owned_users"] == 1
        eventually(lambda: "users of this pod must be claimed again" in caplog.text)
    await store.aclose()


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_hooks_of_a_lost_lease_are_called_once_and_may_fail(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = podlink.Store()
    info = podlink.ServerInfo(NAMESPACE, SERVICE, 0, pod_uid="11-22")
    earlier = podlink.ServerDriver(store, info, QUICK)
    told: list[str] = []

    async def fail_later() -> None:
        raise RuntimeError("on purpose")

    def fail() -> None:
        raise RuntimeError("on purpose")

    async def later() -> None:
        told.append("async")

    earlier.on_lease_lost(fail if kind == "sync" else fail_later)
    earlier.on_lease_lost(later)
    earlier.on_lease_lost(lambda: told.append("sync"))
    await earlier.start()
    async with podlink.ServerDriver(store, info, QUICK):
        await eventually_async(lambda: earlier.stats()["hook_failures"])
        await eventually_async(lambda: sorted(told) == ["async", "sync"])
        await earlier.stop()
    assert sorted(told) == ["async", "sync"]
    assert earlier.stats()["hook_failures"] == 1
    [record] = [each for each in caplog.records if each.name == "podlink.hooks"]
    assert record.exc_info


async def test_a_lapsed_pod_may_still_give_users_away(server_factory: ServerFactory) -> None:
    server = server_factory()
    store = podlink.Store(server.url)
    slow = podlink.ServerConfig(lease=0.5, renew=0.2, guard=0.2, gap=0.4, grace=0.4, timeout=5)
    pod = podlink.ServerDriver(store, pod_info(0), slow)
    await pod.start()
    await pod.set_linked_pod(None, "u", SERVICE, 0)
    server.pause()
    await eventually_async(lambda: not pod.holds_lease)
    # It is sent while the lease is over.
    removing = pod.submit("remove_linked_pod", None, "u", SERVICE, timeout=10)
    server.resume()
    assert removing.result(60)
    await pod.stop()
    await store.aclose()


async def test_a_pod_dies_by_its_own_clock_when_its_store_does(
    server_factory: ServerFactory,
) -> None:
    server = server_factory()
    store = podlink.Store(server.url)
    pod = podlink.ServerDriver(store, pod_info(0), QUICK)
    await pod.start()
    server.kill()
    await eventually_async(lambda: not pod.holds_lease)
    began = time.monotonic()
    report = await pod.stop(deadline=1.0)
    assert time.monotonic() - began < 1.0 + LATE
    assert report.remaining == 0
    await store.aclose()


async def test_a_driver_that_is_dropped_renews_no_more(store_url: str) -> None:
    store = podlink.Store(store_url)
    pod = podlink.ServerDriver(store, pod_info(0), QUICK)
    await pod.start()
    del pod
    stamp = (await looked(store))[0].update_time

    async def is_gone() -> bool:
        pods = await looked(store)
        # One renewal may have been on its way.
        assert all(each.update_time - stamp < 500 for each in pods.values())
        return pods == {}

    await eventually_async(is_gone)
    await store.aclose()
