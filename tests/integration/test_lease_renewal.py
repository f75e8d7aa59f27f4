"""The lease while a pod lives: renewed, missed, nearly lost, lost, and had again."""

import logging
import time
from collections.abc import Awaitable, Callable

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


async def test_a_lapse_suspends_and_a_renewal_resumes(
    server_factory: ServerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    server = server_factory()
    store = podlink.Store(server.url)
    told: list[tuple[str, str, bool]] = []
    async with running(store, 0, config=QUICK) as [pod]:

        @pod.on_lease_suspended
        def suspended(reason: str) -> None:
            told.append(("suspended", reason, pod.holds_lease))

        @pod.on_lease_resumed
        def resumed(reason: str) -> None:
            told.append(("resumed", reason, True))

        @pod.on_lease_lost
        def lost(reason: str) -> None:
            told.append(("lost", reason, pod.holds_lease))

        @pod.on_ownership_lost
        def user_lost(user: podlink.Ownership, reason: str) -> None:
            told.append((user.uid, reason, pod.holds_lease))

        incarnation = pod.incarnation
        user = await pod.claim(None, "u")
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
        assert (caught.value.retryable, caught.value.outcome) == (True, "not sent")
        await eventually_async(lambda: told)
        # The user is in the table, and nobody may act for it.
        assert pod.stats()["owned_users"] == 1
        assert (pod.owns(None, "u"), user.is_valid(), pod.owned_users()) == (False, False, [])
        with pytest.raises(podlink.OwnershipLostError):
            user.check()
        server.resume()
        await eventually_async(lambda: pod.holds_lease)
        # Nobody had declared it dead: it is the same process, and nobody took its user.
        assert pod.incarnation == incarnation
        assert pod.ownership(None, "u") == user
        assert user.is_valid()
        stats = pod.stats()
        assert (stats["leases_lost"], stats["suspensions"], stats["owned_users"]) == (0, 1, 1)
        # Asked again for its user, the pod has the same token.
        assert await pod.claim(None, "u") == user
        assert not pod.owns(None, "u2")
        await eventually_async(lambda: len(told) == 2)
        assert told == [("suspended", "not_renewed", False), ("resumed", "renewed", True)]
        eventually(lambda: "this pod is suspended and owns nothing until it is" in caplog.text)
        eventually(lambda: "this pod acts again" in caplog.text)
    await store.aclose()


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_hooks_of_a_lost_lease_are_called_once_and_may_fail(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = podlink.Store()
    info = podlink.ServerInfo(NAMESPACE, SERVICE, 0, pod_uid="11-22")
    earlier = podlink.ServerDriver(store, info, QUICK)
    told: list[str] = []

    async def fail_later(_reason: str) -> None:
        raise RuntimeError("on purpose")

    def fail(_reason: str) -> None:
        raise RuntimeError("on purpose")

    async def later(reason: str) -> None:
        told.append(f"async {reason}")

    earlier.on_lease_lost(fail if kind == "sync" else fail_later)
    earlier.on_lease_lost(later)
    earlier.on_lease_lost(lambda reason: told.append(f"sync {reason}"))
    earlier.on_ownership_lost(lambda user, reason: told.append(f"{user.uid} {reason}"))
    await earlier.start()
    await earlier.claim(None, "u")
    async with podlink.ServerDriver(store, info, QUICK):
        await eventually_async(lambda: earlier.stats()["ownership_hook_failures"])
        await eventually_async(lambda: len(told) == 3)
        await earlier.stop()
    # In the order of their registration, and then those of each user.
    assert told == ["async superseded", "sync superseded", "u lease_lost"]
    stats = earlier.stats()
    assert (stats["ownership_hook_failures"], stats["leases_lost"]) == (1, 1)
    assert (stats["owned_users"], stats["suspensions"]) == (0, 0)
    eventually(lambda: "hooks of an ownership event failed or were late" in caplog.text)


@pytest.mark.parametrize("operation", ["release", "remove_linked_pod", "remove_linked_pod_with_id"])
async def test_a_lapsed_pod_gives_nobody_away(
    server_factory: ServerFactory, operation: str
) -> None:
    # A pod whose lease had ended could still remove links. By then they may have been those of the
    # process that had taken its place.
    server = server_factory()
    store = podlink.Store(server.url)
    pod = podlink.ServerDriver(store, pod_info(0), QUICK)
    await pod.start()
    user = await pod.claim(None, "u")
    server.pause()
    await eventually_async(lambda: not pod.holds_lease)
    calls: dict[str, Callable[[], Awaitable[bool]]] = {
        "release": user.release,
        "remove_linked_pod": lambda: pod.remove_linked_pod(None, "u", SERVICE),
        "remove_linked_pod_with_id": lambda: pod.remove_linked_pod_with_id(
            None, "u", SERVICE, 0, 0
        ),
    }
    with pytest.raises(podlink.LeaseLostError) as caught:
        await calls[operation]()
    assert (caught.value.retryable, caught.value.outcome) == (True, "not sent")
    server.resume()
    await eventually_async(lambda: pod.holds_lease)
    assert user.is_valid()
    assert await calls[operation]()
    assert not user.is_valid()
    await pod.stop()
    await store.aclose()


async def test_a_pod_dies_by_its_own_clock_when_its_store_does(
    server_factory: ServerFactory,
) -> None:
    server = server_factory()
    store = podlink.Store(server.url)
    pod = podlink.ServerDriver(store, pod_info(0), QUICK)
    await pod.start()
    await pod.claim(None, "u")
    saved: list[podlink.Ownership] = []
    pod.on_drain(saved.append)
    server.kill()
    await eventually_async(lambda: not pod.holds_lease)
    began = time.monotonic()
    report = await pod.stop(deadline=1.0)
    assert time.monotonic() - began < 1.0 + LATE
    # The user may be another pod's by now: to save it is no right of this pod's any more.
    assert (saved, report.unfinished, report.remaining) == ([], ["u"], 1)
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
