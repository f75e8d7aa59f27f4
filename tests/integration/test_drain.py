"""Stopping a pod that owns users: they are saved, released or handed over, within the deadline."""

import asyncio
import time
from dataclasses import replace

import pytest

import podlink
from conftest import ServerFactory
from helpers.pods import FRESH, NAMESPACE, PATIENT, QUICK, SERVICE, STEADY, pod_info, running
from helpers.servers import Server
from helpers.wait import LATE, eventually, eventually_async

# Time to stop with ten thousand users, for a build without optimisations on a busy machine.
PATIENTLY = 300.0

# What keeps its connection while it has so many users: renewals that were not answered in time, and
# signs of life, would end it.
LARGE = replace(STEADY, renew=10)
UNHURRIED = "?connect_timeout=30"


async def owning(server: podlink.ServerDriver, users: int) -> list[str]:
    """Makes so many users the pod's own."""
    uids = [f"u{number}" for number in range(users)]
    for start in range(0, users, 500):
        batch = uids[start : start + 500]
        await asyncio.gather(*(server.claim(None, uid) for uid in batch))
    return uids


async def pods_of(store: podlink.Store, uids: list[str]) -> dict[int, int]:
    """Pod → how many of these users are linked to it."""
    client = podlink.ClientDriver(store, NAMESPACE, PATIENT)
    linked = await client.batch_get_linked_pod(None, uids, SERVICE)
    await client.aclose()
    return {pod: len(users) for pod, users in linked.items()}


async def persistent(store: podlink.Store, uids: list[str]) -> int:
    """How many of these users are linked for ever."""
    async with podlink.ClientDriver(store, NAMESPACE, PATIENT) as client:
        services = await asyncio.gather(*(client.get_link_service(None, uid) for uid in uids))
    return sum(SERVICE in each for each in services)


def not_given_away(report: podlink.DrainReport) -> list[str]:
    """The users that the report names; no user is named twice."""
    assert report.remaining == report.kept + len(report.failed) + len(report.unfinished)
    return sorted(report.failed + report.unfinished)


async def test_released_users_are_free_at_once(store_url: str) -> None:
    async with podlink.Store(store_url) as store, running(store, 0, 1) as [zero, one]:
        uids = await owning(zero, 20)
        report = await zero.stop()
        assert (report.released, report.handed_over, report.remaining) == (20, 0, 0)
        assert 0 < report.seconds < LATE
        # No hint: it would send them back to a pod that is gone.
        assert await pods_of(store, uids) == {}
        assert zero.stats()["owned_users"] == 0
        # The pod is gone: a client does not wait for its lease.
        async with podlink.ClientDriver(store) as client:
            assert await client.compute_linked_pod(None, uids[0], SERVICE) == 1
        assert (await one.claim(None, uids[1])).pod_index == 1


async def test_users_are_handed_to_those_who_take_them(store_url: str) -> None:
    async with podlink.Store(store_url) as store, running(store, 0, 1, 2, 3) as pods:
        await pods[1].set_routing_state("DENY_NEW_CALL")
        uids = await owning(pods[0], 60)
        report = await pods[0].stop(drain="handover")
        assert (report.released, report.handed_over, report.remaining) == (0, 60, 0)
        linked = await pods_of(store, uids)
        assert set(linked) == {2, 3}
        assert sum(linked.values()) == 60
        assert min(linked.values()) > 15, linked
        assert await persistent(store, uids) == 0


@pytest.mark.parametrize("link_grace", [0, 60])
async def test_users_that_nobody_takes_are_released(store_url: str, link_grace: float) -> None:
    config = replace(STEADY, link_grace=link_grace)
    async with podlink.Store(store_url) as store, running(store, 0, 1, config=config) as pods:
        uids = await owning(pods[0], 5)
        await pods[1].set_routing_state("SHUTDOWN")
        report = await pods[0].stop(drain="handover")
        assert (report.released, report.handed_over, report.remaining) == (5, 0, 0)
        assert await pods_of(store, uids) == {}


async def test_users_handed_over_without_a_grace_arrive_all_the_same(store_url: str) -> None:
    none = replace(STEADY, link_grace=0)
    async with podlink.Store(store_url) as store, running(store, 0, 1, config=none) as [zero, one]:
        uids = await owning(zero, 5)
        report = await zero.stop(drain="handover")
        assert (report.released, report.handed_over, report.remaining) == (0, 5, 0)
        assert await pods_of(store, uids) == {1: 5}
        # The new pod owns a user only when it has claimed it.
        assert one.owned_users() == []
        assert await owning(one, 5) == sorted(one.owned_users())


async def test_users_may_be_kept(store_url: str) -> None:
    async with podlink.Store(store_url) as store:
        async with running(store, 0) as [zero]:
            uids = await owning(zero, 5)
            report = await zero.stop(drain="keep")
            assert (report.released, report.handed_over, report.kept) == (0, 0, 5)
            assert not_given_away(report) == []
            assert await pods_of(store, uids) == {0: 5}
            assert await persistent(store, uids) == 5
        async with running(store, 1) as [other]:
            # The process that kept them is certainly dead: whoever claims a user has it.
            assert await other.try_set_linked_pod(None, uids[0], SERVICE, 1) == (True, 1)
            # They are there when the pod comes back, and its new process owns them by a claim.
            async with running(store, 0) as [again]:
                assert again.owned_users() == []
                assert await again.try_set_linked_pod(None, uids[0], SERVICE, 0) == (False, 1)
                assert await again.try_set_linked_pod(None, uids[1], SERVICE, 0) == (True, 0)
                assert again.owned_users() == [uids[1]]


async def test_what_the_configuration_says_is_the_default() -> None:
    keeps = podlink.ServerConfig(drain="keep")
    server = podlink.ServerDriver(podlink.Store(), pod_info(0), keeps)
    await server.start()
    await owning(server, 3)
    assert (await server.stop()).kept == 3


async def test_a_user_who_went_elsewhere_is_let_go(store_url: str) -> None:
    async with podlink.Store(store_url) as store, running(store, 0, 1) as [zero, one]:
        uids = await owning(zero, 4)
        lost: list[tuple[str, str]] = []
        zero.on_ownership_lost(lambda user, reason: lost.append((user.uid, reason)))
        # By force; pod 0 does not know.
        await one.set_linked_pod(None, uids[0], SERVICE, 1)
        report = await zero.stop()
        assert (report.released, report.remaining) == (3, 0)
        await eventually_async(lambda: lost)
        assert lost == [(uids[0], "taken")]
        assert await pods_of(store, uids) == {1: 1}
        assert await persistent(store, uids) == 1
        assert one.owned_users() == uids[:1]


async def test_while_a_pod_drains_it_keeps_its_lease_and_takes_nobody_new(store_url: str) -> None:
    store = podlink.Store(store_url)
    info = podlink.RouteInfoDriver(store, NAMESPACE, FRESH)
    await info.get_all_service_state(None, SERVICE)
    seen: list[str | None] = []
    info.register_routing_state_changed_event(
        None, lambda *change: seen.append(change[4] and change[4].routing_state)
    )
    async with running(store, 0) as [zero]:
        await eventually_async(lambda: seen == ["READY"])
        [uid] = await owning(zero, 1)
        go_on = asyncio.Event()
        saving = asyncio.Event()

        @zero.on_drain
        async def save(_user: podlink.Ownership) -> None:
            saving.set()
            await go_on.wait()

        stopping = asyncio.create_task(zero.stop())
        await saving.wait()
        await eventually_async(lambda: not info.is_pod_routable(None, SERVICE, 0))
        assert info.is_pod_available(None, SERVICE, 0)
        renewed = zero.stats()["published"]
        await eventually_async(lambda: zero.stats()["published"] > renewed + 1)
        assert zero.holds_lease
        with pytest.raises(podlink.IllegalStateError, match="being stopped"):
            await zero.set_routing_state("READY")
        with pytest.raises(podlink.IllegalStateError, match="being stopped"):
            await zero.start()
        # A user that was taken now would not be saved: nobody calls the hook for it any more.
        with pytest.raises(podlink.PodNotAvailableError, match="being stopped") as caught:
            await zero.try_set_linked_pod(None, "late", SERVICE, 0)
        assert (caught.value.retryable, caught.value.outcome) == (False, "not sent")
        with pytest.raises(podlink.PodNotAvailableError):
            await zero.claim(None, "late")
        with pytest.raises(podlink.PodNotAvailableError):
            await zero.set_linked_pod(None, "late", SERVICE, 0)
        # To ask again for what it owns is no new claim.
        assert await zero.try_set_linked_pod(None, uid, SERVICE, 0) == (True, 0)
        assert await zero.claim(None, uid) == zero.ownership(None, uid)
        assert zero.owned_users() == [uid]
        go_on.set()
        report = await stopping
        assert (report.released, report.remaining) == (1, 0)
        assert await pods_of(store, [uid, "late"]) == {}
        await eventually_async(lambda: seen[-1] is None)
        assert seen[:2] == ["READY", "DENY_NEW_CALL"]
    await info.aclose()
    await store.aclose()


async def test_ten_thousand_users(store_url: str) -> None:
    async with podlink.Store(store_url) as store, running(store, 0, 1, 2) as pods:
        server = podlink.ServerDriver(store, pod_info(7), LARGE)
        await server.start()
        uids = await owning(server, 10_000)
        report = await server.stop(deadline=PATIENTLY, drain="handover")
        print(f"{store_url[:6]}: 10,000 users handed over in {report.seconds:.2f} s")
        assert (report.released, report.handed_over, report.remaining) == (0, 10_000, 0)
        assert report.seconds < PATIENTLY
        linked = await pods_of(store, uids)
        assert sum(linked.values()) == 10_000
        assert set(linked) == {0, 1, 2}
        assert len(pods) == 3


async def test_ten_thousand_users_with_a_hook(valkey_server: Server) -> None:
    # A result that arrived after the loop had taken the results, but before it took the hook calls,
    # did not wake the loop. The queue missed every later wake-up, and every await hung.
    valkey_server.flush()
    async with podlink.Store(valkey_server.url + UNHURRIED) as store:
        server = podlink.ServerDriver(store, pod_info(0), LARGE)
        saved: set[str] = set()

        @server.on_drain
        async def save(user: podlink.Ownership) -> None:
            saved.add(user.uid)
            await user.release()

        await server.start()
        uids = await owning(server, 10_000)
        report = await server.stop(deadline=PATIENTLY)
        print(f"10,000 users saved by a hook in {report.seconds:.2f} s")
        assert saved == set(uids)
        assert (report.released, report.handed_over, report.remaining) == (10_000, 0, 0)
        assert await pods_of(store, uids[::100]) == {}


async def test_a_paused_store_does_not_hold_up_the_end(server_factory: ServerFactory) -> None:
    server = server_factory()
    store = podlink.Store(server.url)
    pod = podlink.ServerDriver(store, pod_info(0), STEADY)
    await pod.start()
    uids = await owning(pod, 300)
    server.pause()
    began = time.monotonic()
    report = await pod.stop(deadline=2.0)
    assert time.monotonic() - began < 2.0 + LATE
    assert (report.released, report.handed_over, report.kept) == (0, 0, 0)
    assert not_given_away(report) == sorted(uids)
    assert report.seconds < 2.0 + LATE
    assert not pod.holds_lease
    server.resume()
    # Nobody knows which releases the store still does. None of them harms a later owner, and who is
    # not released is free when the lease has run out.
    # Nothing renews it: the state that the store shows is never a newer one.
    info = podlink.RouteInfoDriver(store, NAMESPACE, FRESH)
    published = pod.stats()["published"]
    await info.get_all_service_state(None, SERVICE)
    assert pod.stats()["published"] == published
    await info.aclose()
    await store.aclose()


async def test_a_dead_store_does_not_hold_up_the_end(
    server_factory: ServerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    server = server_factory()
    store = podlink.Store(server.url)
    pod = podlink.ServerDriver(store, pod_info(0), STEADY)
    await pod.start()
    uids = await owning(pod, 300)
    server.kill()
    began = time.monotonic()
    report = await pod.stop(deadline=2.0, drain="handover")
    assert time.monotonic() - began < 2.0 + LATE
    assert (report.released, report.handed_over, report.kept) == (0, 0, 0)
    assert not_given_away(report) == sorted(uids)
    assert not pod.holds_lease
    eventually(lambda: "the lease runs out by itself" in caplog.text)
    await store.aclose()


async def test_a_store_that_pauses_in_the_middle_of_a_drain(server_factory: ServerFactory) -> None:
    server = server_factory()
    store = podlink.Store(server.url)
    pod = podlink.ServerDriver(store, pod_info(0), STEADY)
    await pod.start()
    uids = await owning(pod, 200)

    @pod.on_drain
    async def pause(_user: podlink.Ownership) -> None:
        server.pause()

    began = time.monotonic()
    report = await pod.stop(deadline=1.5)
    assert time.monotonic() - began < 1.5 + LATE
    assert (report.released, report.handed_over, report.kept) == (0, 0, 0)
    assert not_given_away(report) == sorted(uids)
    assert not pod.holds_lease
    server.resume()
    await store.aclose()


async def test_a_lapse_in_the_middle_of_a_drain_names_no_user_twice(
    server_factory: ServerFactory,
) -> None:
    # Whoever was not confirmed at the end was reported as unfinished, also who had been kept, had
    # failed, or was unfinished already.
    server = server_factory()
    store = podlink.Store(server.url)
    pod = podlink.ServerDriver(store, pod_info(0), QUICK)
    await pod.start()
    await owning(pod, 3)

    @pod.on_drain
    async def save(user: podlink.Ownership) -> None:
        if user.uid == "u0":
            raise RuntimeError("on purpose")
        if user.uid == "u1":
            server.pause()
            await asyncio.Event().wait()

    report = await pod.stop(deadline=8.0, drain="keep")
    assert pod.stats()["suspensions"] == 1
    assert (report.kept, report.failed, report.unfinished) == (1, ["u0"], ["u1"])
    assert report.remaining == 3
    server.resume()
    await store.aclose()
