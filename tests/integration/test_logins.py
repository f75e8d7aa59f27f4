"""Passwords and users: refused at once, right again by themselves, and never to be seen."""

import asyncio
import logging
import traceback
from collections.abc import Iterator

import pytest

import podlink
from conftest import ServerFactory
from helpers.faults import CALLS, failure
from helpers.pods import FRESH, NAMESPACE, SERVICE, pod_info, running
from helpers.wait import eventually, eventually_async

USER = (None, "u1", SERVICE)
CANARY = "canary-s3cret"

# So long that a call that waited for it instead of failing at once would be noticed.
PATIENT = 30.0


@pytest.fixture(params=["valkey", "redis7"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG):
        yield caplog


def client_on(store: podlink.Store) -> podlink.ClientDriver:
    return podlink.ClientDriver(store, NAMESPACE, route_info=FRESH)


def told(error: BaseException) -> str:
    """Everything that an error shows to anybody."""
    shown = "".join(traceback.format_exception(error))
    details = getattr(error, "details", {})
    return f"{shown} {error!r} {details} {error.args}"


@pytest.mark.parametrize("operation", CALLS)
async def test_a_wrong_password_is_told_at_once(
    server_factory: ServerFactory, kind: str, operation: str
) -> None:
    server = server_factory(kind, password="right")
    async with podlink.Store(f"redis://:{CANARY}@127.0.0.1:{server.port}") as store:
        error = await failure(CALLS[operation], client_on(store), timeout=PATIENT)
    assert isinstance(error, podlink.StoreAuthenticationError)
    assert isinstance(error, PermissionError)
    assert not error.retryable
    assert error.details["server_code"] == "WRONGPASS"
    assert str(server.port) in error.details["store"]
    assert CANARY not in told(error)


async def test_no_password_where_one_is_wanted(server_factory: ServerFactory, kind: str) -> None:
    server = server_factory(kind, password="right")
    async with podlink.Store(f"redis://127.0.0.1:{server.port}") as store:
        error = await failure(CALLS["get_linked_pod"], client_on(store), timeout=PATIENT)
    assert isinstance(error, podlink.StoreAuthenticationError)
    assert error.details["server_code"] == "NOAUTH"


async def test_the_driver_works_when_the_password_has_become_right(
    server_factory: ServerFactory, kind: str
) -> None:
    server = server_factory(kind, password="old")
    async with podlink.Store(f"redis://:{CANARY}@127.0.0.1:{server.port}") as store:
        client = client_on(store)
        await failure(CALLS["get_linked_pod"], client, timeout=PATIENT)
        server.client().config_set("requirepass", CANARY)

        async def works() -> bool:
            try:
                return await client.set_linked_pod_if_absent(*USER, 0) == 0
            except podlink.StoreAuthenticationError:
                return False

        await eventually_async(works)


async def test_a_user_who_is_thrown_out_and_let_in_again(
    server_factory: ServerFactory, kind: str
) -> None:
    server = server_factory(kind, users={"game": CANARY})
    seen = server.client()
    async with podlink.Store(server.url_for("game")) as store:
        client = client_on(store)
        assert await client.set_linked_pod_if_absent(*USER, 0) == 0
        seen.acl_deluser("game")

        async def refused() -> bool:
            try:
                await client.get_linked_pod_not_cache(*USER)
            except podlink.StoreAuthenticationError as error:
                return CANARY not in told(error)
            return False

        await eventually_async(refused)
        seen.acl_setuser(
            "game",
            enabled=True,
            passwords=[f"+{CANARY}"],
            keys=["*"],
            channels=["*"],
            commands=["+@all"],
        )

        async def works() -> bool:
            try:
                return await client.get_linked_pod_not_cache(*USER) == 0
            except podlink.StoreAuthenticationError:
                return False

        await eventually_async(works)


async def test_a_user_of_the_servers_own(server_factory: ServerFactory, kind: str) -> None:
    server = server_factory(kind, password="other", users={"game": "pass/@:# é"})
    seen = server.client()
    for store in (
        podlink.Store(server.url_for("game")),
        podlink.Store(f"redis://127.0.0.1:{server.port}", username="game", password="pass/@:# é"),
    ):
        async with store:
            await store.ping()
            assert "game" in {each["user"] for each in seen.client_list()}
            assert "game" not in repr(store)
        eventually(lambda: "game" not in {each["user"] for each in seen.client_list()})


async def test_nobody_ever_sees_a_password(
    server_factory: ServerFactory, kind: str, everything_logged: pytest.LogCaptureFixture
) -> None:
    server = server_factory(kind, users={f"user-{CANARY}": CANARY})
    url = server.url_for(f"user-{CANARY}")
    store = podlink.Store(url, connect_timeout=0.2)
    client = client_on(store)
    pod = podlink.ServerDriver(store, pod_info(0))
    shown = [repr(store), store.url, repr(client), repr(pod), repr(podlink.connect(url))]
    errors: list[BaseException] = []

    async def all_calls() -> None:
        limit = 0.2
        answers = [call(client, limit) for call in CALLS.values()]
        found = await asyncio.gather(*answers, store.ping(timeout=limit), return_exceptions=True)
        errors.extend(each for each in found if isinstance(each, BaseException))

    async with running(store, 1):
        await all_calls()
        server.pause()
        await all_calls()
        server.resume()
        server.kill()
        await all_calls()
        server.restart()
        server.client().acl_deluser(f"user-{CANARY}")
        await all_calls()
        # The pod's own task has something to complain about, too.
        await eventually_async(lambda: "podlink" in everything_logged.text)
        server.restart()
    await store.aclose()
    await all_calls()
    assert len(errors) > 15
    shown += [told(error) for error in errors]
    shown += [record.getMessage() + str(record.__dict__) for record in everything_logged.records]
    assert not [text for text in shown if CANARY in text]
