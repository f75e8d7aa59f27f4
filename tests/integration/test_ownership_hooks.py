"""What a program hears of its lease and its users: suspended, resumed, lost, and owned again."""

import asyncio
import contextvars
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

import podlink
from conftest import ServerFactory
from helpers.pods import LEASE, NAMESPACE, QUICK, SERVICE, pod_info, running
from helpers.relay import Relay
from helpers.servers import Server
from helpers.wait import LATE, eventually, eventually_async

WHO = contextvars.ContextVar("WHO", default="nobody")


class Told:
    """What the hooks of a pod were told, in order."""

    def __init__(self, server: podlink.ServerDriver) -> None:
        self.events: list[tuple[str, str]] = []
        self.users: list[podlink.Ownership] = []
        server.on_lease_suspended(lambda why: self.events.append(("suspended", why)))
        server.on_lease_resumed(lambda why: self.events.append(("resumed", why)))
        server.on_lease_lost(lambda why: self.events.append(("lost", why)))
        server.on_ownership_lost(self.lost)
        server.on_ownership_renewed(self.renewed)

    def lost(self, user: podlink.Ownership, why: str) -> None:
        self.events.append((user.uid, why))
        self.users.append(user)

    def renewed(self, new: podlink.Ownership, old: podlink.Ownership) -> None:
        self.events.append((new.uid, "renewed"))
        self.users += [new, old]


async def linked(store: podlink.Store, uid: str) -> int | None:
    """The pod that the link names."""
    async with podlink.ClientDriver(store) as client:
        return await client.get_linked_pod_not_cache(None, uid, SERVICE)


def earlier_and_later(store: podlink.Store) -> list[podlink.ServerDriver]:
    """Two processes of one pod: the start of the second is the end of the first."""
    info = podlink.ServerInfo(NAMESPACE, SERVICE, 0, pod_uid="11-22")
    return [podlink.ServerDriver(store, info, QUICK) for _ in range(2)]


async def test_who_was_taken_meanwhile_is_lost_before_the_lease_resumes(
    valkey_server: Server,
) -> None:
    valkey_server.flush()
    async with (
        Relay(valkey_server.url.removeprefix("redis://")) as relay,
        podlink.Store(f"redis://{relay.address}") as far,
        podlink.Store(valkey_server.url) as near,
        running(near, 1) as [one],
    ):
        zero = podlink.ServerDriver(far, pod_info(0), QUICK)
        told = Told(zero)
        await zero.start()
        users = [await zero.claim(None, f"u{number}") for number in range(4)]
        relay.cut()
        await eventually_async(lambda: told.events == [("suspended", "not_renewed")])
        assert (zero.owned_users(), zero.stats()["owned_users"]) == ([], 4)
        with pytest.raises(podlink.LeaseLostError) as caught:
            await users[0].verify()
        assert caught.value.retryable
        # An operator moves one user by force, and removes another's link. (No pod declares this one
        # dead: nobody asks.)
        await one.set_linked_pod(None, "u1", SERVICE, 1)
        assert await one.remove_linked_pod_with_id(None, "u2", SERVICE, 0, 0)
        relay.mend()
        await eventually_async(lambda: zero.holds_lease)
        await eventually_async(lambda: told.events[-1] == ("resumed", "renewed"))
        assert told.events[0] == ("suspended", "not_renewed")
        assert sorted(told.events[1:-1]) == [("u1", "taken"), ("u2", "removed")]
        assert sorted(zero.owned_users()) == ["u0", "u3"]
        # By the same tokens.
        assert [user.is_valid() for user in users] == [True, False, False, True]
        assert one.owned_users() == ["u1"]
        stats = zero.stats()
        assert (stats["suspensions"], stats["leases_lost"], stats["owned_users"]) == (1, 0, 2)
        await zero.stop()


async def test_who_was_declared_dead_begins_anew_without_its_users(valkey_server: Server) -> None:
    valkey_server.flush()
    async with (
        Relay(valkey_server.url.removeprefix("redis://")) as relay,
        podlink.Store(f"redis://{relay.address}") as far,
        podlink.Store(valkey_server.url) as near,
        running(near, 1) as [one],
    ):
        zero = podlink.ServerDriver(far, pod_info(0), QUICK)
        told = Told(zero)
        go_on = asyncio.Event()

        @zero.on_lease_lost
        async def forget(_reason: str) -> None:
            told.events.append(("forgets", str(zero.holds_lease)))
            await go_on.wait()

        await zero.start()
        before = zero.incarnation or 0
        old, gone = await zero.claim(None, "u"), await zero.claim(None, "gone")
        relay.cut()

        async def taken() -> podlink.Ownership | None:
            try:
                return await one.claim(None, "u")
            except podlink.NotOwnerError:
                return None

        new = await eventually_async(taken)
        assert new is not None
        assert new.token > old.token
        assert new.previous_token == old.token
        relay.mend()
        await eventually_async(lambda: ("forgets", "False") in told.events)
        # A new process is alive in the store, and may not act before the program has forgotten
        # what it held, or a lease's length has passed.
        assert not zero.holds_lease
        go_on.set()
        await eventually_async(lambda: zero.holds_lease)
        assert (zero.incarnation or 0) > before
        assert told.events[:2] == [("suspended", "not_renewed"), ("lost", "declared_dead")]
        assert told.events[2] == ("forgets", "False")
        assert sorted(told.events[3:]) == [("gone", "lease_lost"), ("u", "lease_lost")]
        assert zero.owned_users() == []
        # Every old token is void, also where nobody has taken the user.
        assert (old.is_valid(), gone.is_valid()) == (False, False)
        assert not await old.verify()
        assert not await gone.release()
        again = await zero.claim(None, "gone")
        assert again.token > gone.token
        assert (again.previous_token, again.incarnation) == (gone.token, zero.incarnation)
        assert await new.verify()
        stats = zero.stats()
        assert (stats["suspensions"], stats["leases_lost"], stats["owned_users"]) == (1, 1, 1)
        await zero.stop()


async def test_who_was_forgotten_by_the_store_is_owned_again(store_server: Server) -> None:
    async with podlink.Store(store_server.url) as store, running(store, 0) as [zero]:
        told = Told(zero)
        old = await zero.claim(None, "u")
        store_server.client().flushall()
        await eventually_async(lambda: told.events)
        assert told.events == [("u", "renewed")]
        [new, was] = told.users
        assert was == old
        assert new.token > old.token
        # The store knows of no owner before: somebody may have had the user meanwhile.
        assert new.previous_token == 0
        assert (old.is_valid(), new.is_valid()) == (False, True)
        assert zero.ownership(None, "u") == new
        assert await new.verify()
        stats = zero.stats()
        assert (stats["suspensions"], stats["leases_lost"], stats["owned_users"]) == (0, 0, 1)


async def test_after_a_restart_without_a_memory_users_are_where_they_were(
    server_factory: ServerFactory,
) -> None:
    server = server_factory()
    async with podlink.Store(server.url) as store, running(store, 0) as [zero]:
        told = Told(zero)
        users = {uid: await zero.claim(None, uid) for uid in map(str, range(300))}
        server.kill()
        server.restart()
        await eventually_async(lambda: len(told.events) == 300)
        assert {event for _, event in told.events} == {"renewed"}
        pairs = zip(told.users[::2], told.users[1::2], strict=True)
        assert all(new.token > old.token and users[old.uid] == old for new, old in pairs)
        await eventually_async(lambda: len(zero.owned_users()) == 300)
        assert not any(user.is_valid() for user in users.values())


# How hooks are called.


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_hooks_run_on_their_loop_in_the_order_of_the_events(kind: str) -> None:
    async with podlink.Store() as store:
        earlier, later = earlier_and_later(store)
        seen: list[tuple[str, str, int]] = []

        def note(what: str) -> None:
            seen.append((what, WHO.get(), threading.get_ident()))

        async def note_later(what: str) -> None:
            await asyncio.sleep(0)
            note(what)

        call: Any = note if kind == "sync" else note_later
        WHO.set("the registrant")
        earlier.on_lease_lost(lambda why: call(why))
        earlier.on_ownership_lost(lambda user, why: call(f"{user.uid} {why}"))
        WHO.set("another")
        await earlier.start()
        for number in range(3):
            await earlier.claim(None, f"u{number}")
        async with later:
            await eventually_async(lambda: len(seen) == 4)
        here = ("the registrant", threading.get_ident())
        assert seen[0] == ("superseded", *here)
        assert sorted(seen[1:]) == [(f"u{number} lease_lost", *here) for number in range(3)]
        await earlier.stop()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_without_a_loop_hooks_run_on_threads(kind: str) -> None:
    earlier, later = earlier_and_later(podlink.Store())
    seen: list[tuple[str, str, str]] = []

    def note(what: str) -> None:
        seen.append((what, WHO.get(), threading.current_thread().name))

    async def note_later(what: str) -> None:
        await asyncio.sleep(0)
        note(what)

    call: Any = note if kind == "sync" else note_later
    WHO.set("the registrant")
    assert earlier.on_lease_lost(call) is call  # a decorator leaves the function as it is
    earlier.on_ownership_lost(lambda user, why: call(f"{user.uid} {why}"))
    WHO.set("another")
    earlier.submit("start").result(60)
    earlier.submit("claim", None, "u").result(60)
    later.submit("start").result(60)
    eventually(lambda: len(seen) == 2)
    here = ("the registrant", "podlink-hook")
    assert seen == [("superseded", *here), ("u lease_lost", *here)]
    for server in (earlier, later):
        server.submit("stop").result(60)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_hook_that_fails_keeps_no_other_from_its_call(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with podlink.Store() as store, running(store, 0, 1) as [zero, one]:
        heard: list[str] = []

        def fail(_user: podlink.Ownership, _why: str) -> None:
            raise RuntimeError("on purpose")

        async def fail_later(user: podlink.Ownership, why: str) -> None:
            fail(user, why)

        zero.on_ownership_lost(fail if kind == "sync" else fail_later)
        zero.on_ownership_lost(lambda user, _why: heard.append(user.uid))
        users = [await zero.claim(None, f"u{number}") for number in range(3)]
        for user in users:
            await one.set_linked_pod(None, user.uid, SERVICE, 1)
            assert not await user.verify()
        await eventually_async(lambda: heard == ["u0", "u1", "u2"])
        await eventually_async(lambda: zero.stats()["ownership_hook_failures"] == 3)
        eventually(lambda: "hooks of an ownership event failed or were late" in caplog.text)
        assert zero.stats()["drain_hook_failures"] == 0


async def test_until_the_program_has_heard_of_a_lapse_nothing_is_owned_again(
    server_factory: ServerFactory,
) -> None:
    server = server_factory()
    async with podlink.Store(server.url) as store:
        # Long enough that the hook below ends by itself, not by its limit.
        config = replace(QUICK, lease=10, guard=8.5)
        async with running(store, 0, config=config) as [zero]:
            go_on, begun = asyncio.Event(), asyncio.Event()
            seen: list[bool] = []

            @zero.on_lease_suspended
            async def stop_playing(_reason: str) -> None:
                begun.set()
                await go_on.wait()
                seen.append(zero.holds_lease)

            user = await zero.claim(None, "u")
            server.pause()
            await begun.wait()
            server.resume()
            published = zero.stats()["published"]
            await eventually_async(lambda: zero.stats()["published"] > published + 2)
            assert (zero.holds_lease, user.is_valid()) == (False, False)
            go_on.set()
            await eventually_async(user.is_valid)
            assert seen == [False]


async def test_a_hook_that_hangs_is_waited_for_no_longer_than_a_lease(
    server_factory: ServerFactory,
) -> None:
    server = server_factory()
    async with podlink.Store(server.url) as store, running(store, 0, config=QUICK) as [zero]:
        cancelled: list[str] = []

        @zero.on_lease_suspended
        async def hang(reason: str) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(reason)
                raise

        user = await zero.claim(None, "u")
        server.pause()
        await eventually_async(lambda: zero.stats()["suspensions"] == 1)
        server.resume()
        began = time.monotonic()
        await eventually_async(user.is_valid)
        assert time.monotonic() - began < LEASE + LATE
        await eventually_async(lambda: cancelled == ["not_renewed"])
        assert zero.stats()["ownership_hook_failures"] == 1


def test_hooks_of_a_loop_that_has_ended_hold_nobody_up() -> None:
    earlier, later = earlier_and_later(podlink.Store())
    heard: list[str] = []

    async def register() -> None:
        earlier.on_lease_lost(heard.append)
        earlier.on_ownership_lost(lambda _user, why: heard.append(why))
        await earlier.start()
        await earlier.claim(None, "u")

    async def supersede() -> None:
        async with later:
            await eventually_async(lambda: earlier.stats()["leases_lost"])
            await eventually_async(lambda: earlier.stats()["ownership_hook_failures"] == 2)
            assert (await later.claim(None, "u")).pod_index == 0

    asyncio.run(register())
    asyncio.run(supersede())
    assert heard == []
    assert asyncio.run(earlier.stop()).remaining == 0


async def test_a_claim_that_is_answered_too_late_is_no_ownership(
    server_factory: ServerFactory,
) -> None:
    # The answer came after the lease had ended, and the user was believed to be owned. Another pod
    # could have it by then: two believed that it was theirs.
    server = server_factory()
    # A connection that waits for its answers for longer than the lease: few calls are unanswered.
    rare = replace(QUICK, lease=2.5, guard=0.5, renew=1, gap=2, grace=2)
    async with (
        podlink.Store(f"{server.url}?connect_timeout=30") as store,
        running(store, 0, config=rare) as [zero],
    ):
        known = await zero.claim(None, "known")
        server.pause()
        with pytest.raises(podlink.LeaseLostError) as caught:
            await zero.claim(None, "u", timeout=30)
        assert (caught.value.retryable, caught.value.outcome) == (True, "unknown")
        assert not zero.owns(None, "u")
        server.resume()
        await eventually_async(lambda: zero.holds_lease)
        # The store has done it meanwhile. It does not count.
        assert zero.owned_users() == ["known"]
        assert known.is_valid()
        user = await zero.claim(None, "u")
        assert user.is_valid()
        assert await user.verify()
        assert await user.release(0)
        assert await linked(store, "u") is None
