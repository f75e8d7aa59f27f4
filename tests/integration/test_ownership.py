"""A user has one owner: claimed, checked before each act, verified, released, and lost."""

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from datetime import timedelta
from typing import Any

import pytest

import podlink
from helpers.pods import GRACE, NAMESPACE, QUICK, SERVICE, STEADY, pod_info, running
from helpers.programs import run_program
from helpers.wait import eventually_async

FIELDS = [
    *("namespace", "uid", "service_name", "pod_index"),
    *("incarnation", "token", "previous_token"),
]


async def linked(store: podlink.Store, uid: str) -> tuple[int | None, bool]:
    """The pod that the link names, and whether the link is there for ever."""
    async with podlink.ClientDriver(store) as client:
        pod = await client.get_linked_pod_not_cache(None, uid, SERVICE)
        return pod, SERVICE in await client.get_link_service(None, uid)


class Told:
    """What the hooks of a pod were told, in order."""

    def __init__(self, server: podlink.ServerDriver) -> None:
        self.server = server
        self.events: list[tuple[str, ...]] = []
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


# Claims.


async def test_a_claim_makes_the_user_this_process_s_own(store_url: str) -> None:
    async with podlink.Store(store_url) as store, running(store, 0, 1) as [zero, one]:
        assert (zero.owns(None, "u"), zero.ownership(None, "u")) == (False, None)
        user = await zero.claim(NAMESPACE, "u", SERVICE)
        assert (user.namespace, user.uid, user.service_name) == (NAMESPACE, "u", SERVICE)
        assert (user.pod_index, user.incarnation) == (0, zero.incarnation)
        assert 0 < user.token < 2**53
        assert user.previous_token == 0
        assert await linked(store, "u") == (0, True)
        # Asked again, in whichever form, it is the same ownership.
        assert await zero.claim(None, "u") == user
        assert await zero.claim("", "u", timeout=timedelta(seconds=30)) == user
        assert await zero.try_set_linked_pod(None, "u", SERVICE, 0) == (True, 0)
        assert await zero.set_linked_pod(None, "u", SERVICE, 0) == 0
        for namespace, service in [(None, None), ("", SERVICE), (NAMESPACE, SERVICE)]:
            assert zero.owns(namespace, "u", service)
            assert zero.ownership(namespace, "u", service) == user
        for namespace, service in [("elsewhere", None), (None, "other")]:
            assert not zero.owns(namespace, "u", service)
            assert zero.ownership(namespace, "u", service) is None
        await zero.claim(None, "v")
        assert sorted(zero.owned_users()) == ["u", "v"]
        assert sorted(zero.owned_users(SERVICE)) == ["u", "v"]
        assert zero.owned_users("other") == []
        assert zero.stats()["owned_users"] == 2
        assert (one.owns(None, "u"), one.owned_users()) == (False, [])


async def test_of_many_claims_at_once_exactly_one_pod_wins(store_url: str) -> None:
    async with podlink.Store(store_url) as store, running(store, 0, 1, 2) as pods:
        for number in range(10):
            claims = [pod.claim(None, f"u{number}") for pod in pods for _ in range(4)]
            ended = await asyncio.gather(*claims, return_exceptions=True)
            users = {each for each in ended if isinstance(each, podlink.Ownership)}
            refused = [each for each in ended if isinstance(each, podlink.NotOwnerError)]
            [user] = users
            assert len(refused) == 8
            assert {error.owner for error in refused} == {user.pod_index}
            owners = [pod for pod in pods if pod.owns(None, user.uid)]
            assert owners == [pods[user.pod_index]]


async def test_another_pod_is_told_whose_the_user_is(store_url: str) -> None:
    async with podlink.Store(store_url) as store, running(store, 0, 7) as [zero, seven]:
        await seven.claim(None, "u")
        with pytest.raises(podlink.NotOwnerError, match="pod 7") as caught:
            await zero.claim(None, "u")
        error = caught.value
        assert (error.code, error.owner, error.retry_after) == ("NOT_OWNER", 7, None)
        # That pod is alive: no later try would succeed.
        assert (error.retryable, error.outcome) == (False, "not sent")
        assert error.details["operation"] == "claim"
        assert await zero.try_set_linked_pod(None, "u", SERVICE, 0) == (False, 7)
        assert not await zero.remove_linked_pod(None, "u", SERVICE)
        assert not await zero.remove_linked_pod_with_id(None, "u", SERVICE, 0, 0)
        assert zero.owned_users() == []


async def test_a_silent_owner_is_replaced_when_it_is_dead(store_url: str) -> None:
    # A pod that was killed kept its users for ever: no other pod could make one its own.
    async with podlink.Store(store_url) as store:
        dead = podlink.ServerDriver(store, pod_info(1), QUICK)
        await dead.start()
        token = (await dead.claim(None, "u")).token
        async with running(store, 0, config=QUICK) as [zero]:
            del dead  # its tasks end, and nothing is said to the store
            refusals: list[podlink.NotOwnerError] = []

            async def claimed() -> podlink.Ownership | None:
                try:
                    return await zero.claim(None, "u")
                except podlink.NotOwnerError as error:
                    refusals.append(error)
                    return None
                except podlink.LeaseLostError:
                    return None  # a busy machine

            user = await eventually_async(claimed)
            assert user is not None
            assert user.token > token
            assert user.previous_token == token
            assert {error.owner for error in refusals} == {1}
            waits = [error.retry_after for error in refusals]
            assert waits[0] is None
            assert [error.retryable for error in refusals] == [wait is not None for wait in waits]
            # Silent for longer than its lease, it may be dead once the grace is over.
            assert all(wait is None or 0 <= wait <= GRACE for wait in waits)
            assert waits[-1] is not None


async def test_a_token_is_greater_than_what_the_caller_knows(store_url: str) -> None:
    # The database has seen a greater token: the store has lost its memory, or its clock is behind.
    async with podlink.Store(store_url) as store, running(store, 0) as [zero]:
        known = 2**52
        user = await zero.claim(None, "u", min_token=known)
        assert user.token > known
        assert await zero.claim(None, "u", min_token=known) == user
        assert await zero.claim(None, "u") == user
        raised = await zero.claim(None, "u", min_token=user.token)
        assert raised.token > user.token
        assert raised.previous_token == user.token
        assert (user.is_valid(), raised.is_valid()) == (False, True)
        # What is given back by the old token harms nobody.
        assert not await user.release()
        assert await raised.verify()


async def test_tokens_rise_from_owner_to_owner(store_url: str) -> None:
    async with podlink.Store(store_url) as store, running(store, 0, 1) as pods:
        tokens: list[int] = []
        for number in range(6):
            user = await pods[number % 2].claim(None, "u")
            assert user.previous_token == (tokens[-1] if tokens else 0)
            tokens.append(user.token)
            assert await user.release(0)
        assert tokens == sorted(set(tokens))


@pytest.mark.parametrize(
    ("wrong", "parameter"),
    [
        ({"service_name": "other"}, "service_name"),
        ({"uid": ""}, "uid"),
        ({"uid": 5}, "uid"),
        ({"min_token": -1}, "min_token"),
        ({"min_token": 2**53}, "min_token"),
        ({"min_token": "5"}, "min_token"),
        ({"min_token": True}, "min_token"),
        ({"timeout": -1}, "timeout"),
    ],
)
async def test_a_claim_wants_a_user_of_its_own_service(wrong: Any, parameter: str) -> None:
    async with podlink.Store() as store, running(store, 0) as [zero]:
        arguments = {"namespace": None, "uid": "u", **wrong}
        with pytest.raises(podlink.InvalidParameterError, match=parameter) as caught:
            await zero.claim(**arguments)
        assert caught.value.details["parameter"] == parameter
        with pytest.raises(podlink.NamespaceUnreachableError):
            await zero.claim("elsewhere", "u")
        assert zero.stats()["owned_users"] == 0


@pytest.mark.parametrize("grace", [-1, float("nan"), "5", True])
async def test_a_release_wants_a_grace_that_can_pass(grace: Any) -> None:
    async with podlink.Store() as store, running(store, 0) as [zero]:
        user = await zero.claim(None, "u")
        with pytest.raises(podlink.InvalidParameterError, match="grace"):
            await user.release(grace)
        assert user.is_valid()


@pytest.mark.parametrize("state", ["DENY_NEW_CALL", "SHUTDOWN"])
async def test_a_closed_pod_takes_nobody_and_keeps_its_own(store_url: str, state: str) -> None:
    async with podlink.Store(store_url) as store, running(store, 0) as [zero]:
        user = await zero.claim(None, "u")
        await zero.set_routing_state(state)
        takes: list[Callable[[], Any]] = [
            lambda: zero.claim(None, "new"),
            lambda: zero.try_set_linked_pod(None, "new", SERVICE, 0),
            lambda: zero.set_linked_pod(None, "new", SERVICE, 0),
            # A greater token is a new claim.
            lambda: zero.claim(None, "u", min_token=user.token),
        ]
        for take in takes:
            with pytest.raises(podlink.PodNotAvailableError, match=state) as caught:
                await take()
            assert (caught.value.retryable, caught.value.outcome) == (False, "not sent")
        assert await linked(store, "new") == (None, False)
        assert await zero.claim(None, "u") == user
        assert await zero.try_set_linked_pod(None, "u", SERVICE, 0) == (True, 0)
        # No hint: it would send the user back to a pod that takes nobody.
        assert await user.release(60)
        assert await linked(store, "u") == (None, False)


def test_a_claim_without_a_loop() -> None:
    store = podlink.Store()
    server = podlink.ServerDriver(store, pod_info(0), STEADY)
    server.submit("start").result(60)
    user = server.submit("claim", None, "u").result(60)
    assert isinstance(user, podlink.Ownership)
    assert user == server.ownership(None, "u")
    assert server.submit(server.claim, None, "u", min_token=user.token).result(60) != user
    done = threading.Event()
    seen: list[Any] = []

    class Callback:
        def on_success(self, result: Any) -> None:
            seen.append(result)
            done.set()

        def on_error(self, error: Exception) -> None:
            seen.append(error)
            done.set()

    server.submit("claim", None, "v", SERVICE, callback=Callback())
    assert done.wait(60)
    assert seen == [server.ownership(None, "v")]
    assert server.submit("stop").result(60).released == 2


# What a claim returns.


async def test_an_ownership_is_a_value() -> None:
    async with podlink.Store() as store, running(store, 0) as [zero]:
        user, other = await zero.claim(None, "u"), await zero.claim(None, "v")
        same = zero.ownership(None, "u")
        assert same is not user
        assert (same == user, hash(same) == hash(user), len({user, same, other})) == (True, True, 2)
        assert user not in (other, replace(user, token=user.token + 1), user.uid)
        assert copy.copy(user) == user
        for name in FIELDS:
            assert f"{name}={getattr(user, name)!r}" in repr(user)
            with pytest.raises(FrozenInstanceError):
                setattr(user, name, 5)
        assert "_core" not in repr(user)
        assert not replace(user, token=user.token + 1).is_valid()


async def test_a_release_leaves_a_hint_or_nothing(store_url: str) -> None:
    config = replace(STEADY, link_grace=60)
    async with (
        podlink.Store(store_url) as store,
        running(store, 0, 1, config=config) as [zero, one],
    ):
        graces: list[Any] = [None, 30, timedelta(seconds=30), 0]
        for number, grace in enumerate(graces):
            uid = f"u{number}"
            user = await zero.claim(None, uid)
            assert await user.release(grace)
            assert (user.is_valid(), zero.owns(None, uid)) == (False, False)
            assert await linked(store, uid) == (None if grace == 0 else 0, False)
            # A second time there is nothing to release.
            assert not await user.release(grace)
            # A hint is no owner: another pod may have the user.
            assert (await one.claim(None, uid)).previous_token == user.token
        assert zero.stats()["owned_users"] == 0


async def test_a_late_release_takes_nothing_from_the_next_owner(store_url: str) -> None:
    # A release compared pod indexes: one that came late removed what the same pod, or the process
    # that had taken its place, had claimed again meanwhile.
    async with podlink.Store(store_url) as store, running(store, 0, 1) as [zero, one]:
        first = await zero.claim(None, "u")
        assert await first.release()
        second = await zero.claim(None, "u")
        assert not await first.release()
        assert await second.verify()
        await one.set_linked_pod(None, "u", SERVICE, 1)
        assert not await second.release()
        assert not second.is_valid()
        assert await linked(store, "u") == (1, True)
        assert one.owns(None, "u")


@pytest.mark.parametrize("raised", [None, RuntimeError, asyncio.CancelledError])
async def test_a_block_releases_the_user_at_its_end(raised: type[BaseException] | None) -> None:
    async with podlink.Store() as store, running(store, 0) as [zero]:

        async def play() -> None:
            async with await zero.claim(None, "u") as user:
                assert user.is_valid()
                user.check()
                if raised is not None:
                    raise raised

        [ended] = await asyncio.gather(play(), return_exceptions=True)
        assert type(ended) is (type(None) if raised is None else raised)
        assert not zero.owns(None, "u")
        assert not (await linked(store, "u"))[1]


async def test_a_check_says_what_is_lost() -> None:
    async with podlink.Store() as store, running(store, 0) as [zero]:
        user = await zero.claim(None, "u")
        user.check()
        await user.release()
        with pytest.raises(podlink.OwnershipLostError, match="pod 0") as caught:
            user.check()
        assert (caught.value.code, caught.value.retryable) == ("OWNERSHIP_LOST", False)
        assert caught.value.details == {"namespace": NAMESPACE, "service": SERVICE}
        assert "u" not in str(caught.value).split()  # the user's name is nobody's business


@pytest.mark.parametrize("way", ["taken", "removed"])
async def test_a_verification_finds_what_others_did(store_url: str, way: str) -> None:
    async with podlink.Store(store_url) as store, running(store, 0, 1) as [zero, one]:
        told = Told(zero)
        user, other = await zero.claim(None, "u"), await zero.claim(None, "v")
        assert await user.verify()
        if way == "taken":
            assert await one.set_linked_pod(None, "u", SERVICE, 1) == 0
        else:
            assert await one.remove_linked_pod_with_id(None, "u", SERVICE, 0, 0)
        # Nobody has told it, so it goes on: the database refuses what it writes with its token.
        assert user.is_valid()
        assert not await user.verify()
        assert (user.is_valid(), zero.owns(None, "u")) == (False, False)
        await eventually_async(lambda: told.events)
        assert told.events == [("u", way)]
        assert told.users == [user]
        # Asked again, it is not told again.
        assert not await user.verify()
        assert await other.verify()
        assert zero.owned_users() == ["v"]
        assert told.events == [("u", way)]


def test_a_forked_child_owns_nothing() -> None:
    printed = run_program("""
        import asyncio, os, podlink

        async def claim():
            await server.start()
            return await server.claim(None, "u")

        def in_child():
            print(user.is_valid(), server.owns(None, "u"), server.ownership(None, "u"))
            print(server.owned_users(), flush=True)
            try:
                user.check()
            except podlink.OwnershipLostError:
                print("lost", flush=True)
            for what in (user.verify, user.release, lambda: server.claim(None, "u")):
                try:
                    asyncio.run(what())
                except podlink.ForkedProcessError:
                    print("refused", flush=True)

        info = podlink.ServerInfo("default", "svc", 0)
        server = podlink.ServerDriver(podlink.Store(), info, podlink.ServerConfig(lease=60))
        user = asyncio.run(claim())
        if (pid := os.fork()) == 0:
            in_child()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        print(user.is_valid(), server.owns(None, "u"))
        asyncio.run(server.stop())
    """)
    assert printed.splitlines() == [
        "False False None",
        "[]",
        "lost",
        *["refused"] * 3,
        "True True",
    ]


# Errors on their way to another process.


@pytest.mark.parametrize("way", ["pickle", "copy"])
def test_an_error_keeps_its_owner(way: str) -> None:
    details = {"owner": "7", "retry_after": "2.5"}
    error = podlink.NotOwnerError("pod 7 owns the user", retryable=True, details=details)
    back = pickle.loads(pickle.dumps(error)) if way == "pickle" else copy.copy(error)
    assert type(back) is podlink.NotOwnerError
    assert (back.owner, back.retry_after, back.retryable) == (7, 2.5, True)
    assert (podlink.NotOwnerError().owner, podlink.NotOwnerError().retry_after) == (None, None)


async def test_what_was_raised_can_be_pickled() -> None:
    async with podlink.Store() as store, running(store, 0, 1) as [zero, one]:
        user = await zero.claim(None, "u")
        with pytest.raises(podlink.NotOwnerError) as refused:
            await one.claim(None, "u")
        await user.release()
        with pytest.raises(podlink.OwnershipLostError) as lost:
            user.check()
        for error in (refused.value, lost.value):
            back = pickle.loads(pickle.dumps(error))
            assert (type(back), str(back), back.details) == (type(error), str(error), error.details)
        assert pickle.loads(pickle.dumps(refused.value)).owner == 0


async def test_an_ownership_stays_in_its_process() -> None:
    # Another process has no lease: what it owned there would be valid for ever.
    async with podlink.Store() as store, running(store, 0) as [zero]:
        user = await zero.claim(None, "u")
        with pytest.raises(TypeError):
            pickle.dumps(user)
        assert user.token == json_of(user)["token"]


def json_of(user: podlink.Ownership) -> dict[str, Any]:
    """What a program writes into a log or a message."""
    return {name: getattr(user, name) for name in FIELDS}
