"""What programs are told of pods: every change once, in its order, on the loop that asked."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

import podlink
from helpers.pods import FRESH, NAMESPACE, QUICK, SERVICE, STEADY, PodProcess, pod_info, running
from helpers.servers import Server
from helpers.wait import eventually_async

Seen = tuple[str, str, int, str | None, str | None]


class Told:
    """A callback that notes what it is told: routing states, and who published them."""

    def __init__(self) -> None:
        self.changes: list[Seen] = []
        self.incarnations: list[tuple[int | None, int | None]] = []

    def __call__(
        self,
        namespace: str,
        service: str,
        pod: int,
        previous: podlink.StatefulServiceState | None,
        now: podlink.StatefulServiceState | None,
    ) -> None:
        for state in (previous, now):
            assert state is None or (type(state), state.pod_id) == (
                podlink.StatefulServiceState,
                pod,
            )
        before = previous.routing_state.value if previous else None
        after = now.routing_state.value if now else None
        self.changes.append((namespace, service, pod, before, after))
        self.incarnations.append(
            (previous.incarnation if previous else None, now.incarnation if now else None)
        )

    def of(self, pod: int) -> list[tuple[str | None, str | None]]:
        return [(before, after) for _, _, told, before, after in self.changes if told == pod]

    def has(self, count: int) -> Callable[[], bool]:
        return lambda: len(self.changes) >= count


READY, DENY, SHUT = "READY", "DENY_NEW_CALL", "SHUTDOWN"


@pytest.mark.parametrize("refresh", [0.05, 60.0], ids=["polling too", "events only"])
async def test_the_whole_life_of_a_pod(store_url: str, refresh: float) -> None:
    told, later = Told(), Told()
    config = podlink.RouteInfoConfig(refresh=refresh)
    async with (
        podlink.Store(store_url) as store,
        podlink.RouteInfoDriver(store, NAMESPACE, config) as info,
    ):
        info.register_routing_state_changed_event(None, told, SERVICE)
        await info.get_all_service_state(None, SERVICE)
        # Each step waits to be seen: two changes between two readings may be seen as one.
        server = podlink.ServerDriver(store, pod_info(3), STEADY)
        await server.start()
        await eventually_async(told.has(1))
        for count, state in enumerate((DENY, READY, DENY), 2):
            await server.set_routing_state(state)
            await eventually_async(told.has(count))
        info.register_routing_state_changed_event("", later)
        await server.set_routing_state(SHUT)
        await eventually_async(told.has(5))
        await server.stop()
        await eventually_async(told.has(6))
        again = podlink.ServerDriver(store, pod_info(3), STEADY)
        await again.start()
        await eventually_async(told.has(7))
        await again.stop()
        # Called one after the other: the first may have heard of it before the second.
        await eventually_async(lambda: told.changes[-1][-1] is later.changes[-1][-1] is None)
    assert {change[:3] for change in told.changes} == {(NAMESPACE, SERVICE, 3)}
    life = [(None, READY), (READY, DENY), (DENY, READY), (READY, DENY), (DENY, SHUT), (SHUT, None)]
    assert told.of(3)[:6] == life
    # Its stop may be seen in one, two or three steps; each begins where the last one ended.
    rest = told.of(3)[6:]
    assert rest[0] == (None, READY)
    assert all(one[1] == next_[0] for one, next_ in itertools.pairwise(rest))
    assert later.of(3) == told.of(3)[4:]
    first, second = told.incarnations[0][1], told.incarnations[6][1]
    assert first
    assert second
    assert second > first
    assert set(told.incarnations[1:5]) == {(first, first)}


async def test_a_death_and_a_restart_are_told_once_each(valkey_server: Server) -> None:
    valkey_server.flush()
    told = Told()
    async with (
        podlink.Store(valkey_server.url) as store,
        running(store, 0, config=QUICK),
        podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info,
    ):
        info.register_routing_state_changed_event(None, told, SERVICE)
        await eventually_async(told.has(1))
        with PodProcess(valkey_server.url, 1) as pod:
            await eventually_async(told.has(2))
            pod.kill()
            await eventually_async(told.has(3))
            with PodProcess(valkey_server.url, 1) as again:
                await eventually_async(told.has(4))
                assert told.of(1) == [(None, READY), (READY, None), (None, READY)]
                assert told.incarnations[1:] == [
                    (None, pod.incarnation),
                    (pod.incarnation, None),
                    (None, again.incarnation),
                ]
        refreshes = info.stats()["refreshes"]
        await eventually_async(lambda: info.stats()["refreshes"] > refreshes + 5)
        assert told.of(0) == [(None, READY)]


async def test_a_container_that_restarts_in_its_pod_is_one_change(store_url: str) -> None:
    told = Told()
    uid = podlink.ServerInfo(NAMESPACE, SERVICE, 0, pod_uid="11-22")
    async with (
        podlink.Store(store_url) as store,
        podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info,
    ):
        info.register_routing_state_changed_event(None, told, SERVICE)
        earlier = podlink.ServerDriver(store, uid, STEADY)
        await earlier.start()
        await eventually_async(told.has(1))
        old = earlier.incarnation
        del earlier
        async with podlink.ServerDriver(store, uid, STEADY) as later:
            await eventually_async(told.has(2))
            assert told.of(0) == [(None, READY), (READY, READY)]
            assert told.incarnations == [(None, old), (old, later.incarnation)]


async def test_any_number_of_callbacks_each_with_its_own_service(store_url: str) -> None:
    async with (
        podlink.Store(store_url) as store,
        podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info,
    ):
        everything, one, other = Told(), Told(), Told()
        many = [Told() for _ in range(20)]
        info.register_routing_state_changed_event(None, everything)
        info.register_routing_state_changed_event(None, one, SERVICE)
        info.register_routing_state_changed_event(None, other, "other")
        for told in many:
            info.on_routing_state_changed(None, SERVICE)(told)
        async with running(store, 0, 1), running(store, 0, service="other"):
            await eventually_async(everything.has(3))
            for told in (one, *many):
                await eventually_async(told.has(2))
                assert [change[:3] for change in told.changes] == [
                    (NAMESPACE, SERVICE, 0),
                    (NAMESPACE, SERVICE, 1),
                ]
            await eventually_async(other.has(1))
            assert [change[:3] for change in other.changes] == [(NAMESPACE, "other", 0)]


async def test_a_named_service_is_read_though_nobody_asks() -> None:
    store, told = podlink.Store(), Told()
    async with (
        running(store, 0),
        podlink.RouteInfoDriver(
            store, NAMESPACE, podlink.RouteInfoConfig(refresh=0.05, idle=1)
        ) as info,
    ):
        handle = info.register_routing_state_changed_event(None, told, SERVICE)
        await eventually_async(lambda: info.stats()["refreshes"] > 30)
        assert told.of(0) == [(None, READY)]
        handle.unregister()
        handle.unregister()
        refreshes = -1
        looks = itertools.count()

        def is_idle() -> bool:
            nonlocal refreshes
            before, refreshes = refreshes, info.stats()["refreshes"]
            return next(looks) % 20 == 0 and before == refreshes

        await eventually_async(is_idle)


async def test_unregistered_means_not_called_any_more() -> None:
    # An event that already waited in the queue of the loop was still delivered after its hook had
    # been unregistered.
    store = podlink.Store()
    async with podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info:
        told, witness = Told(), Told()
        handle = info.register_routing_state_changed_event(None, told, SERVICE)
        info.register_routing_state_changed_event(None, witness, SERVICE)
        async with running(store, 0) as [server]:
            await eventually_async(witness.has(1))
            seen = info.stats()["refreshes"]
            server.submit("set_routing_state", DENY).result(60)
            # The loop stands still until the change has been read, and waits in its queue.
            while info.stats()["refreshes"] < seen + 3:
                pass
            handle.unregister()
            await eventually_async(witness.has(2))
            await server.set_routing_state(READY)
            await eventually_async(witness.has(3))
        assert told.of(0) == [(None, READY)]
        assert handle.failures == 0


@pytest.mark.parametrize(
    ("callback", "service", "named"),
    [(None, None, "callback"), (5, None, "callback"), (print, "a b", "service_name")],
)
async def test_wrong_registrations_are_refused(callback: Any, service: Any, named: str) -> None:
    async with podlink.RouteInfoDriver(podlink.Store()) as info:
        with pytest.raises(podlink.InvalidParameterError, match=named):
            info.register_routing_state_changed_event(None, callback, service)
        with pytest.raises(podlink.NamespaceUnreachableError):
            info.register_routing_state_changed_event("elsewhere", print)


async def test_a_lost_pod_is_told_with_its_users(store_url: str) -> None:
    async with (
        podlink.Store(store_url) as store,
        podlink.ClientDriver(store, route_info=FRESH) as client,
    ):
        lost: list[tuple[int, int]] = []
        later: list[tuple[int, int]] = []
        other: list[tuple[int, int]] = []
        client.on_pod_lost(lambda *told: lost.append(told))

        async def wait(pod: int, users: int) -> None:
            await asyncio.sleep(0)
            later.append((pod, users))

        handle = client.on_pod_lost(wait, SERVICE)
        client.on_pod_lost(lambda *told: other.append(told), "other")
        async with running(store, 0, 1) as [zero, one]:
            compute = client.compute_linked_pod
            users = [await compute(None, f"u{number}", SERVICE) for number in range(40)]
            await zero.stop()
            await eventually_async(lambda: lost)
            await eventually_async(lambda: later)
            assert lost == later == [(0, users.count(0))]
            handle.unregister()
            # A state that changes is no loss.
            await one.set_routing_state(DENY)
        await eventually_async(lambda: len(lost) == 2)
        assert lost[1] == (1, users.count(1))
        assert len(later) == 1
        assert other == []
