"""A user has one owner: pods that are paused, killed, cut off and stopped, on a real server."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import podlink
from conftest import ServerFactory
from helpers.pods import (
    FRESH,
    GRACE,
    NAMESPACE,
    PATIENT,
    QUICK,
    SERVICE,
    PodProcess,
    pod_info,
    running,
)
from helpers.servers import Server
from helpers.wait import eventually_async

USERS = [f"u{number}" for number in range(20)]

# A lease that lasts for some calls after its pod has lost the connection.
SLOWER = podlink.ServerConfig(lease=10, renew=0.5, guard=0.3, gap=3, grace=3, cpu_factor=0.0)


@pytest.fixture
def server(server_factory: ServerFactory) -> Server:
    return server_factory()


@pytest.fixture
async def store(server: Server) -> AsyncIterator[podlink.Store]:
    async with podlink.Store(server.url) as opened:
        yield opened


def link_of(uid: str) -> str:
    return f"sf:{{{NAMESPACE}:lk:{uid}}}{SERVICE}"


def owners(server: Server, uids: list[str] = USERS) -> dict[str, str]:
    """Each user's link and ownership record, as the store has them."""
    seen = server.client()

    def both(uid: str) -> str:
        record = seen.hget(f"sf:{{{NAMESPACE}:lk:{uid}}}#own", SERVICE)
        return f"{seen.get(link_of(uid))!s} {record!s}"

    return {uid: both(uid) for uid in uids}


def expected(users: list[podlink.Ownership]) -> dict[str, str]:
    """The same, if these are the users' owners."""
    return {
        user.uid: f"{user.pod_index} {user.pod_index}:{user.incarnation}:{user.token}"
        for user in users
    }


async def claim_all(pod: podlink.ServerDriver, uids: list[str]) -> list[podlink.Ownership]:
    return list(await asyncio.gather(*(pod.claim(None, uid, timeout=30) for uid in uids)))


async def test_a_drain_that_was_paused_removes_nothing_of_its_successors(server: Server) -> None:
    # Pod 0 was stopped in the middle of its drain until its lease and grace were over. A new
    # process of pod 0 had claimed its 20 users when it went on: it removed 20 of 20 links, and a
    # third pod took the users of a pod that held its lease.
    with PodProcess(server.url, 0) as old:
        mine = await asyncio.to_thread(old.ask, "claim", *USERS)
        await asyncio.to_thread(old.ask, "drain")
        old.pause()
        async with (
            podlink.Store(server.url) as store,
            running(store, 1, 0, config=QUICK) as [third, new],
        ):
            yours = await claim_all(new, USERS)
            assert all(user.incarnation > old.incarnation for user in yours)
            assert all(user.token > token for user, token in zip(yours, mine, strict=True))
            old.resume()
            end = await asyncio.to_thread(old.ask, "saved")
            assert end == {"removals": ["LEASE_LOST"] * 20, "released": 0, "remaining": 20}
            await refused_to_others(server, new, third, yours)


async def refused_to_others(
    server: Server,
    owner: podlink.ServerDriver,
    third: podlink.ServerDriver,
    users: list[podlink.Ownership],
) -> None:
    """The owner has all its users, in its own table and in the store, and no other pod gets one."""
    assert owners(server) == expected(users)
    for uid in USERS:
        with pytest.raises(podlink.NotOwnerError) as caught:
            await third.claim(None, uid, timeout=30)
        assert caught.value.owner == owner.server_info.pod_index
    await eventually_async(lambda: all(user.is_valid() for user in users))
    assert owners(server) == expected(users)


async def test_a_pod_that_was_paused_changes_nothing_of_its_successors(server: Server) -> None:
    # Outside a drain, too, and what it set overwrote the successor's links.
    with PodProcess(server.url, 0) as old:
        await asyncio.to_thread(old.ask, "claim", *USERS)
        old.pause()
        async with (
            podlink.Store(server.url) as store,
            running(store, 1, 0, config=QUICK) as [third, new],
        ):
            yours = await claim_all(new, USERS)
            old.resume()
            for call in (["set", 0], ["set", 7], ["remove"]):
                ends = await asyncio.to_thread(old.ask, *call, *USERS)
                assert ends == ["LEASE_LOST"] * 20, call
            assert await asyncio.to_thread(old.ask, "owned_users") == []
            await refused_to_others(server, new, third, yours)


async def test_a_claim_that_waited_for_the_store_makes_no_second_believer(server: Server) -> None:
    # `try_set_linked_pod(timeout=30)` waited for a connection, longer than the lease lasted, and
    # was answered `(True, 0)`: a lasting second believer in 5 of 5 tries. `set_linked_pod` that
    # waited was done after another pod had claimed the user.
    async with (
        podlink.Store(server.url) as store,
        podlink.Store(server.url) as other,
        running(store, 0, config=SLOWER) as [zero],
        running(other, 1, config=SLOWER) as [one],
    ):
        before = await one.claim(None, "u6")
        server.pause()
        # The connection is lost, and what was sent on it is done when the server goes on...
        sent = await asyncio.gather(
            zero.try_set_linked_pod(None, "u0", SERVICE, 0, timeout=30),
            zero.claim(None, "u1", timeout=30),
            return_exceptions=True,
        )
        for error in sent:
            assert isinstance(error, podlink.StoreUnavailableError), error
            assert error.outcome == "unknown"
        # ...and these calls wait for another connection.
        held = zero.holds_lease
        unsent = await asyncio.gather(
            refused(lambda: zero.try_set_linked_pod(None, "u2", SERVICE, 0, timeout=30)),
            refused(lambda: zero.claim(None, "u3", timeout=30)),
            refused(lambda: zero.set_linked_pod(None, "u4", SERVICE, 0, timeout=30)),
            refused(lambda: zero.set_linked_pod(None, "u5", SERVICE, 7, timeout=30)),
            refused(lambda: zero.remove_linked_pod_with_id(None, "u6", SERVICE, 1, 0, timeout=30)),
        )
        assert (held, zero.holds_lease) == (True, False)
        for refusal in unsent:
            assert refusal.retryable
            assert refusal.outcome == "not sent"
        server.resume()
        # The first answers are to renewals of before: their lease is nearly over.
        for _ in range(3):
            await renewed(one)
        await eventually_async(lambda: one.holds_lease)
        theirs = await claim_all(one, USERS[2:7])
        assert theirs[-1] == before
        await eventually_async(lambda: zero.holds_lease)
        assert zero.owned_users() == []
        # One of the two owns each user, also if the store did what pod 0 had asked for.
        users = [await first_owner(one, zero, uid) for uid in USERS[:2]] + theirs
        for _ in range(3):
            await renewed(zero, one)
            for user in users:
                assert not (zero.owns(None, user.uid) and one.owns(None, user.uid))
        await eventually_async(lambda: all(user.is_valid() for user in users))
        assert owners(server, USERS[:7]) == expected(users)


async def refused(call: Callable[[], Awaitable[object]]) -> podlink.LeaseLostError:
    """The refusal of a call that is made again for as long as only the connection is missing."""
    while True:
        try:
            answer = await call()
        except podlink.StoreUnavailableError as error:
            if error.outcome != "not sent":
                raise
        except podlink.LeaseLostError as error:
            return error
        else:
            raise AssertionError(answer)


async def renewed(*pods: podlink.ServerDriver) -> None:
    """Each pod renews its lease once more."""
    before = [pod.stats()["published"] for pod in pods]

    def all_renewed() -> bool:
        now = [pod.stats()["published"] for pod in pods]
        return all(count > earlier for count, earlier in zip(now, before, strict=True))

    await eventually_async(all_renewed)


async def first_owner(
    first: podlink.ServerDriver, second: podlink.ServerDriver, uid: str
) -> podlink.Ownership:
    """The first pod makes the user its own, unless the second one has it."""
    try:
        return await first.claim(None, uid, timeout=30)
    except podlink.NotOwnerError:
        return await second.claim(None, uid, timeout=30)


async def refused_to_take(pod: podlink.ServerDriver, uid: str) -> None:
    """No way to take a user succeeds, and nothing is sent."""
    calls: list[Any] = [
        pod.claim(None, uid),
        pod.try_set_linked_pod(None, uid, SERVICE, 0),
        pod.set_linked_pod(None, uid, SERVICE, 0),
    ]
    for call in calls:
        with pytest.raises(podlink.PodNotAvailableError) as caught:
            await call
        assert caught.value.outcome == "not sent"
        assert not caught.value.retryable
        assert not pod.owns(None, uid)


async def test_a_pod_that_is_being_stopped_takes_no_user(
    server: Server, store: podlink.Store
) -> None:
    # Claims that came while `stop` ran won. Their users were never saved, the report did not
    # mention them, and other pods could take them from a pod that still played with them.
    async with running(store, 0, 1) as [zero, one]:
        mine = await claim_all(zero, USERS)
        begun, saved = asyncio.Event(), asyncio.Event()
        drained: list[str] = []

        @zero.on_drain
        async def save(user: podlink.Ownership) -> None:
            drained.append(user.uid)
            begun.set()
            await saved.wait()

        stopping = asyncio.create_task(zero.stop(deadline=60))
        await begun.wait()
        await refused_to_take(zero, "new")
        assert server.client().get(link_of("new")) is None
        # What it owns it may claim again, but by no new token.
        assert await zero.claim(None, "u0") == mine[0]
        with pytest.raises(podlink.PodNotAvailableError):
            await zero.claim(None, "u0", min_token=mine[0].token)
        assert owners(server) == expected(mine)
        # Others may take the user, and are not disturbed.
        theirs = await one.claim(None, "new")
        await refused_to_take(zero, "new")
        saved.set()
        report = await stopping
        assert sorted(drained) == sorted(USERS)
        assert (report.released, report.remaining) == (20, 0)
        with pytest.raises(podlink.ClosedError):
            await zero.claim(None, "new")
        assert await theirs.verify()
        # They were released: another pod takes them at once.
        assert len(await claim_all(one, USERS)) == 20


@pytest.mark.parametrize("routing", ["DENY_NEW_CALL", "SHUTDOWN"])
async def test_a_pod_that_publishes_that_it_takes_nobody_takes_nobody(
    server: Server, store: podlink.Store, routing: str
) -> None:
    async with running(store, 0, 1) as [zero, one]:
        mine = await zero.claim(None, "u0")
        await zero.set_routing_state(routing)
        await refused_to_take(zero, "new")
        assert server.client().get(link_of("new")) is None
        assert await zero.claim(None, "u0") == mine
        assert await mine.verify()
        assert await mine.release()
        # Without a hint, which would send the user back here.
        assert server.client().get(link_of("u0")) is None
        await refused_to_take(zero, "u0")
        assert (await one.claim(None, "u0")).token > mine.token


async def test_every_user_that_was_claimed_before_the_stop_is_saved(store: podlink.Store) -> None:
    # Claims that were answered while the stop began were neither refused nor drained.
    drained: set[str] = set()
    async with running(store, 0) as [zero]:

        @zero.on_drain
        async def save(user: podlink.Ownership) -> None:
            drained.add(user.uid)

        names = (f"user-{number}" for number in itertools.count())
        claimed: set[str] = set()

        async def claim() -> None:
            for uid in names:
                try:
                    await zero.claim(None, uid, timeout=30)
                except (podlink.PodNotAvailableError, podlink.ClosedError):
                    return
                claimed.add(uid)

        claiming = [asyncio.create_task(claim()) for _ in range(20)]
        await eventually_async(lambda: len(claimed) >= 50)
        report = await zero.stop(deadline=60)
        await asyncio.gather(*claiming)
    # None that a caller believes to have was left out, and none was saved that no caller has.
    assert claimed == drained
    assert (report.released, report.remaining) == (len(drained), 0)


async def test_a_saved_user_is_not_sent_back_to_the_draining_pod(
    server: Server, store: podlink.Store
) -> None:
    # A released link was a hint to the pod that drained: for as long as it drained, up to 9.6 s,
    # 25,235 of 25,235 computes sent saved users back to it.
    saved = [uid for number, uid in enumerate(USERS) if number % 2]
    async with (
        running(store, 0, 1) as [zero, _one],
        podlink.Store(server.url) as ours,
        podlink.ClientDriver(ours, NAMESPACE, PATIENT, route_info=FRESH) as warm,
        podlink.ClientDriver(ours, NAMESPACE, PATIENT, route_info=FRESH) as cold,
    ):
        await claim_all(zero, USERS)
        compute = warm.compute_linked_pod
        assert {await compute(None, uid, SERVICE) for uid in USERS} == {0}
        go, last = asyncio.Event(), asyncio.Event()

        @zero.on_drain
        async def save(user: podlink.Ownership) -> None:
            await (go if user.uid in saved else last).wait()

        stopping = asyncio.create_task(zero.stop(deadline=300))

        def seen_by(client: podlink.ClientDriver) -> bool:
            pods = client.route_info.alive_pods(None, SERVICE)
            return 0 in pods and pods[0].routing_state == "DENY_NEW_CALL"

        await eventually_async(lambda: seen_by(warm) and seen_by(cold))
        # What is not saved yet stays.
        assert {await compute(None, uid, SERVICE) for uid in USERS} == {0}
        go.set()
        seen = server.client()
        await eventually_async(lambda: not any(seen.get(link_of(uid)) for uid in saved))
        answers = [await cold.compute_linked_pod(None, uid, SERVICE) for uid in saved * 50]
        assert set(answers) == {1}
        # Also by a client that had cached the old links.
        answers = [await compute(None, uid, SERVICE) for uid in saved * 50]
        assert set(answers) == {1}
        unsaved = set(USERS) - set(saved)
        assert {await compute(None, uid, SERVICE) for uid in unsaved} == {0}
        assert not stopping.done()
        last.set()
        report = await stopping
        assert (report.released, report.remaining) == (20, 0)


@pytest.mark.parametrize("way", ["claim", "try_set"])
async def test_another_pod_takes_the_users_of_a_killed_one(
    server: Server, store: podlink.Store, way: str
) -> None:
    # A killed pod's users were refused to every other pod for ever: only a client's compute moved
    # them.
    refusals: list[podlink.NotOwnerError] = []
    async with running(store, 0, config=QUICK) as [zero]:

        async def takes(uid: str) -> bool:
            if way == "try_set":
                won, owner = await zero.try_set_linked_pod(None, uid, SERVICE, 0, timeout=30)
                assert owner == (0 if won else 1)
                return won
            try:
                return (await zero.claim(None, uid, timeout=30)).is_valid()
            except podlink.NotOwnerError as error:
                refusals.append(error)
                return False

        with PodProcess(server.url, 1) as killed:
            tokens = await asyncio.to_thread(killed.ask, "claim", *USERS)
            # As version 0.1 wrote it: a link without an owner.
            server.client().set(link_of("old"), "1")
            assert not await takes("u0")
            assert not await takes("old")
            # Its owner is alive.
            assert all(error.owner == 1 for error in refusals)
            assert all(error.retry_after is None and not error.retryable for error in refusals)
            killed.kill()
        await eventually_async(lambda: takes("u0"))
        for uid in [*USERS, "old"]:
            assert await takes(uid)
        users = [zero.ownership(None, uid) for uid in USERS]
        for user, token in zip(users, tokens, strict=True):
            assert user is not None
            assert user.token > user.previous_token == token
        if way == "claim":
            assert {error.owner for error in refusals} == {1}
            silent = [error for error in refusals if error.retryable]
            assert silent
            for error in silent:
                assert error.retry_after is not None
                assert 0 <= error.retry_after <= GRACE


def events_of(pod: podlink.ServerDriver) -> list[object]:
    """What the pod's hooks are called with, in order; grows with each call."""
    events: list[object] = []
    pod.on_lease_suspended(events.append)
    pod.on_lease_resumed(events.append)
    pod.on_lease_lost(lambda reason: events.append(("lost", reason)))
    pod.on_ownership_lost(lambda user, reason: events.append((user, reason)))
    pod.on_ownership_renewed(lambda new, old: events.append((new, old)))
    return events


async def test_an_outage_longer_than_the_lease_costs_no_user(
    server: Server, store: podlink.Store
) -> None:
    # Every user of every pod was void after it, although no pod could have taken one.
    async with (
        podlink.Store(server.url) as other,
        running(store, 0, config=QUICK) as [zero],
        running(other, 1, config=QUICK) as [one],
    ):
        events = {0: events_of(zero), 1: events_of(one)}
        mine, yours = await claim_all(zero, USERS), await claim_all(one, ["a", "b", "c"])
        server.pause()
        await eventually_async(lambda: all(seen for seen in events.values()))
        # Suspended: nothing is owned, and nothing is forgotten.
        assert not any(user.is_valid() for user in mine + yours)
        assert zero.owned_users() == one.owned_users() == []
        assert (zero.stats()["owned_users"], one.stats()["owned_users"]) == (20, 3)
        with pytest.raises(podlink.OwnershipLostError):
            mine[0].check()
        server.resume()
        await eventually_async(lambda: all(user.is_valid() for user in mine + yours))
        assert [zero.ownership(None, uid) for uid in USERS] == mine
        assert [one.ownership(None, user.uid) for user in yours] == yours
        assert owners(server) == expected(mine)
        await eventually_async(lambda: all(len(seen) % 2 == 0 for seen in events.values()))
        for pod in (zero, one):
            lapses = pod.stats()["suspensions"]
            assert lapses >= 1
            assert pod.stats()["leases_lost"] == 0
            assert events[pod.server_info.pod_index] == ["not_renewed", "renewed"] * lapses


@pytest.mark.parametrize("stopped", ["in the outage", "after it"])
async def test_a_stop_after_an_outage_saves_every_user(
    server: Server, store: podlink.Store, stopped: str
) -> None:
    # After a pause of the store that was longer than the lease, `on_drain` was called for none of
    # ten users, who had links to the pod for ever, and the report said that none remained.
    drained: list[str] = []
    async with podlink.Store(server.url) as other, running(other, 1, config=QUICK) as [one]:
        zero = podlink.ServerDriver(store, pod_info(0), QUICK)
        zero.on_drain(lambda user: drained.append(user.uid))
        await zero.start()
        mine = await claim_all(zero, USERS[:10])
        server.pause()
        await eventually_async(lambda: zero.stats()["suspensions"] > 0)
        if stopped == "after it":
            server.resume()
            report = await zero.stop(deadline=60)
        else:
            stopping = asyncio.create_task(zero.stop(deadline=60))

            async def begun() -> bool:
                return await zero.get_routing_state() == "DENY_NEW_CALL"

            await eventually_async(begun)
            server.resume()
            report = await stopping
        assert sorted(drained) == sorted(user.uid for user in mine)
        assert (report.released, report.remaining) == (10, 0)
        assert not any(server.client().get(link_of(user.uid)) for user in mine)
        await eventually_async(lambda: one.holds_lease)
        assert len(await claim_all(one, USERS[:10])) == 10
