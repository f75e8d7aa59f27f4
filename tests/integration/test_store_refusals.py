"""A store that answers with an error: what the caller is told, and that it works again after."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import podlink
from conftest import ServerFactory
from helpers.faults import CALLS, READS, USER, WRITES, failure
from helpers.pods import FRESH, NAMESPACE, SERVICE, running
from helpers.servers import Server
from helpers.wait import eventually_async

LINK, SERVICES = "sf:{default:lk:u1}svc", "sf:{default:lk:u1}"
OWNERS = "sf:{default:lk:u1}#own"
STATES, LEASES = "sf:{default:state:svc}", "sf:{default:state:svc}#lease"
LIMIT = 2.0

# Pods that outlive every refusal in this file.
STEADY = podlink.ServerConfig(lease=30.0, renew=0.2, gap=10.0, grace=10.0, cpu_factor=0.0)


@pytest.fixture(params=["valkey", "redis7"])
def server(request: pytest.FixtureRequest, server_factory: ServerFactory) -> Server:
    return server_factory(str(request.param))


@pytest.fixture
async def store(server: Server) -> AsyncIterator[podlink.Store]:
    async with podlink.Store(server.url) as opened:
        yield opened


@pytest.fixture
def client(store: podlink.Store) -> podlink.ClientDriver:
    return client_on(store)


def client_on(store: podlink.Store) -> podlink.ClientDriver:
    return podlink.ClientDriver(store, NAMESPACE, route_info=FRESH)


async def test_a_full_store_serves_the_users_it_knows(
    server: Server, store: podlink.Store, client: podlink.ClientDriver
) -> None:
    seen = server.client()
    async with running(store, 0, config=STEADY):
        assert await client.compute_linked_pod(None, "old", SERVICE) == 0
        seen.config_set("maxmemory-policy", "noeviction")
        seen.config_set("maxmemory", 1)
        for operation in WRITES.values():
            error = await failure(operation, client, timeout=LIMIT)
            assert type(error) is podlink.StoreError
            assert error.details["server_code"] == "OOM"
            assert (error.retryable, error.outcome) == (True, "not sent")
        assert await client_on(store).compute_linked_pod(None, "old", SERVICE) == 0
        for operation in READS.values():
            await operation(client, LIMIT)
        assert seen.get(LINK) is None
        seen.config_set("maxmemory", 0)
        assert await client.compute_linked_pod(*USER) == 0


async def test_a_pod_that_cannot_renew_says_so_and_goes_on_when_it_can(
    server: Server, store: podlink.Store, caplog: pytest.LogCaptureFixture
) -> None:
    seen = server.client()
    async with running(store, 0, config=STEADY) as [pod]:
        seen.config_set("maxmemory", 1)
        await eventually_async(lambda: pod.stats()["renew_failures"] > 1)
        await eventually_async(lambda: "a renewal failed" in caplog.text)
        seen.config_set("maxmemory", 0)
        published = pod.stats()["published"]
        await eventually_async(lambda: pod.stats()["published"] > published)
        assert pod.holds_lease
        assert pod.stats()["leases_lost"] == 0


async def test_a_server_that_became_a_replica(
    server: Server, store: podlink.Store, client: podlink.ClientDriver
) -> None:
    seen = server.client()
    async with running(store, 0, config=STEADY):
        await client.set_linked_pod_if_absent(None, "old", SERVICE, 0)
        seen.replicaof("127.0.0.1", 1)
        error = await failure(WRITES["set_linked_pod_if_absent"], client, timeout=0.3)
        assert isinstance(error, podlink.StoreUnavailableError)
        assert error.details["server_code"] == "READONLY"
        assert (error.retryable, error.outcome) == (True, "not sent")
        # A replica that said so is not read either: it may not have heard of a link yet.
        for operation in READS.values():
            error = await failure(operation, client, timeout=0.3)
            assert isinstance(error, podlink.StoreUnavailableError)
            assert error.details["server_code"] == "READONLY"
        seen.replicaof("NO", "ONE")
        assert await client.compute_linked_pod(*USER, timeout=30) == 0
        assert await client.get_linked_pod_not_cache(None, "old", SERVICE) == 0


async def test_a_server_that_misses_its_replicas(
    server: Server, client: podlink.ClientDriver
) -> None:
    seen = server.client()
    await client.set_linked_pod_if_absent(None, "old", SERVICE, 0)
    seen.config_set("min-replicas-to-write", 1)
    error = await failure(WRITES["set_linked_pod_if_absent"], client, timeout=LIMIT)
    assert isinstance(error, podlink.StoreUnavailableError)
    assert error.details["server_code"] == "NOREPLICAS"
    assert (error.retryable, error.outcome) == (True, "not sent")
    assert await client.get_linked_pod_not_cache(None, "old", SERVICE) == 0
    seen.config_set("min-replicas-to-write", 0)
    assert await client.set_linked_pod_if_absent(*USER, 0) == 0


async def test_a_server_that_forgot_its_scripts(
    server: Server, client: podlink.ClientDriver
) -> None:
    seen = server.client()
    for at in range(3):
        seen.script_flush()
        users = [f"u{at}-{number}" for number in range(20)]
        link = client.set_linked_pod_if_absent
        assert set(await asyncio.gather(*(link(None, user, SERVICE, at) for user in users))) == {at}


@pytest.mark.parametrize("operation", ["compute_linked_pod", "get_linked_pod_not_cache"])
async def test_a_link_of_another_type_is_one_users_trouble_and_is_not_lost(
    server: Server, store: podlink.Store, client: podlink.ClientDriver, operation: str
) -> None:
    seen = server.client()
    async with running(store, 0, config=STEADY):
        seen.rpush(LINK, "something", "else")
        error = await failure(CALLS[operation], client, timeout=LIMIT)
        assert type(error) is podlink.StoreError
        assert error.details["server_code"] == "WRONGTYPE"
        assert not error.retryable
        assert await client.compute_linked_pod(None, "another", SERVICE) == 0
        assert seen.lrange(LINK, 0, -1) == ["something", "else"]
        seen.delete(LINK)
        assert await client.compute_linked_pod(*USER) == 0


async def test_a_list_of_services_of_another_type_leaves_no_half_written_link(
    server: Server, store: podlink.Store, client: podlink.ClientDriver
) -> None:
    seen = server.client()
    async with running(store, 2, config=STEADY) as [pod]:
        seen.set(SERVICES, "text")
        error = await failure(READS["get_link_service"], client, timeout=LIMIT)
        assert error.details["server_code"] == "WRONGTYPE"
        await refuse_to_own(pod)
        assert seen.get(LINK) is None
        assert seen.exists(OWNERS) == 0
        seen.delete(SERVICES)
        assert await pod.try_set_linked_pod(*USER, 2) == (True, 2)
        assert pod.owns(*USER)


async def refuse_to_own(pod: podlink.ServerDriver) -> None:
    """No way to make the user pod 2's own succeeds, and none leaves it half done."""
    calls: list[Any] = [
        pod.set_linked_pod(*USER, 2),
        pod.set_linked_pod(*USER, 3),
        pod.try_set_linked_pod(*USER, 2),
        pod.try_set_linked_pod(*USER, 3),
        pod.claim(*USER),
    ]
    for call in calls:
        with pytest.raises(podlink.StoreError) as caught:
            await call
        assert caught.value.details["server_code"] == "WRONGTYPE"
        assert caught.value.outcome == "not sent"
        assert not pod.owns(*USER)


async def test_owner_records_of_another_type_leave_no_half_written_link(
    server: Server, store: podlink.Store, client: podlink.ClientDriver
) -> None:
    seen = server.client()
    async with running(store, 2, config=STEADY) as [pod]:
        seen.set(OWNERS, "text")
        await refuse_to_own(pod)
        assert seen.get(LINK) is None
        assert seen.exists(SERVICES) == 0
        assert await client.compute_linked_pod(None, "another", SERVICE) == 2
        seen.delete(OWNERS)
        assert (await pod.claim(*USER)).is_valid()


@pytest.mark.parametrize("key", [STATES, LEASES])
async def test_states_of_another_type(
    server: Server, store: podlink.Store, client: podlink.ClientDriver, key: str
) -> None:
    seen = server.client()
    await client_on(store).set_linked_pod_if_absent(None, "old", SERVICE, 0)
    seen.set(key, "text")
    error = await failure(CALLS["compute_linked_pod"], client, timeout=LIMIT)
    assert type(error) is podlink.StoreError
    assert error.details["server_code"] == "WRONGTYPE"
    assert error.details["service"] == "default/svc"
    pod = podlink.ServerDriver(store, podlink.ServerInfo(NAMESPACE, SERVICE, 0), STEADY)
    with pytest.raises(podlink.StoreError):
        await pod.start(timeout=LIMIT)
    assert await client.get_linked_pod_not_cache(None, "old", SERVICE) == 0
    assert seen.get(key) == "text"
    seen.delete(key)
    async with pod:
        assert await client.compute_linked_pod(*USER, timeout=30) == 0


async def test_a_user_without_the_right_to_write(server: Server) -> None:
    seen = server.client()
    seen.acl_setuser(
        "reader", enabled=True, passwords=["+word"], keys=["sf:*"], commands=["+@all", "-set"]
    )
    async with podlink.Store(server.url, username="reader", password="word") as store:
        client = client_on(store)
        assert await client.get_linked_pod_not_cache(*USER) is None
        error = await failure(WRITES["set_linked_pod_if_absent"], client, timeout=LIMIT)
        assert isinstance(error, podlink.StoreAuthenticationError)
        assert isinstance(error, PermissionError)
        # With half a permission a script may come half way: nobody can be sure.
        assert (error.retryable, error.outcome) == (False, "unknown")
        seen.acl_setuser("reader", enabled=True, commands=["+set"])
        assert await client.set_linked_pod_if_absent(*USER, 1) == 1


async def test_what_podlink_refuses_leaves_no_trace_in_the_store(
    server: Server, store: podlink.Store, client: podlink.ClientDriver
) -> None:
    await client.set_linked_pod_if_absent(*USER, 3)
    seen = server.client()

    for uid in ("", "a{b}", "nul\0", "u" * 129):
        for call in (client.compute_linked_pod, client.get_linked_pod_not_cache):
            with pytest.raises(podlink.InvalidParameterError, match="uid"):
                await call(None, uid, "other")
    for pod in (-1, 2**31, 10**30):
        with pytest.raises(podlink.InvalidParameterError, match="pod_index"):
            await client.set_linked_pod_if_absent(*USER, pod)
    with pytest.raises(podlink.NamespaceUnreachableError):
        await client.compute_linked_pod("foreign", "u1", "other")
    # Nothing was lost, and nothing was written.
    assert await client.get_linked_pod_not_cache(*USER) == 3
    assert set(seen.keys()) == {LINK}


async def test_a_database_that_does_not_exist(server: Server) -> None:
    async with podlink.Store(server.url, db=9999) as store:
        with pytest.raises(podlink.InvalidParameterError, match="db") as caught:
            await store.ping()
        assert caught.value.details["given"] == "9999"
