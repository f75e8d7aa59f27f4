"""What other tools find in the store: exactly the keys and values of the reference layout."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

import podlink
from helpers.pods import FRESH, LEASE, NAMESPACE, QUICK, SERVICE, pod_info, running
from helpers.servers import Server
from helpers.wait import eventually

USER = (None, "user123", SERVICE)
LINK = "sf:{default:lk:user123}svc"
SERVICES = "sf:{default:lk:user123}"
STATES = "sf:{default:state:svc}"
LEASES = "sf:{default:state:svc}#lease"


@pytest.fixture
async def store(store_server: Server) -> AsyncIterator[podlink.Store]:
    async with podlink.Store(store_server.url) as opened:
        yield opened


@pytest.fixture
def seen(store_server: Server) -> redis.Redis:
    """The store as redis-py sees it."""
    return store_server.client()


@pytest.fixture
def client(store: podlink.Store) -> podlink.ClientDriver:
    return podlink.ClientDriver(store, NAMESPACE, route_info=FRESH)


@pytest.fixture
def pod(store: podlink.Store) -> podlink.ServerDriver:
    return podlink.ServerDriver(store, pod_info(2))


def keys(seen: redis.Redis) -> set[Any]:
    return set(seen.keys())


async def test_a_temporary_link_is_a_decimal_with_an_end(
    client: podlink.ClientDriver, seen: redis.Redis
) -> None:
    await client.set_linked_pod_if_absent(*USER, 0)
    assert keys(seen) == {LINK}
    assert seen.type(LINK) == "string"
    assert seen.get(LINK) == "0"
    assert 299_000 < seen.pttl(LINK) <= 300_000


async def test_a_persistent_link_has_no_end_and_is_listed(
    pod: podlink.ServerDriver, seen: redis.Redis
) -> None:
    await pod.set_linked_pod(*USER, 2)
    await pod.set_linked_pod(None, "user123", "chat-service", 0)
    assert keys(seen) == {LINK, SERVICES, "sf:{default:lk:user123}chat-service"}
    assert (seen.get(LINK), seen.ttl(LINK)) == ("2", -1)
    assert seen.hgetall(SERVICES) == {SERVICE: "2", "chat-service": "0"}


async def test_a_link_with_a_lifetime_is_not_listed(
    pod: podlink.ServerDriver, seen: redis.Redis
) -> None:
    await pod.set_linked_pod(*USER, 2)
    await pod.set_linked_pod(*USER, 2, persist_seconds=30)
    assert keys(seen) == {LINK}
    assert 29_000 < seen.pttl(LINK) <= 30_000


async def test_a_removed_link_stays_as_a_hint(pod: podlink.ServerDriver, seen: redis.Redis) -> None:
    await pod.set_linked_pod(*USER, 2)
    await pod.remove_linked_pod(*USER)
    assert keys(seen) == {LINK}
    assert seen.get(LINK) == "2"
    assert 59_000 < seen.pttl(LINK) <= 60_000
    await pod.remove_linked_pod_with_id(*USER, 2, 0)
    assert keys(seen) == set()


async def test_a_computed_link_is_a_temporary_one(
    store: podlink.Store, client: podlink.ClientDriver, seen: redis.Redis
) -> None:
    async with running(store, 0):
        assert await client.compute_linked_pod(*USER) == 0
        assert {LINK, STATES, LEASES} <= keys(seen)
        assert seen.get(LINK) == "0"
        assert 299_000 < seen.pttl(LINK) <= 300_000


async def test_a_pods_state_is_one_compact_object(store: podlink.Store, seen: redis.Redis) -> None:
    about = {7: {"address": "10.0.0.7:9000", "note": 'a "quoted" ü'}}
    async with running(store, 7, loads={7: 42}, metadata=about) as [server]:
        text = str(seen.hget(STATES, "7"))
        state = json.loads(text)
        clock = seen.time()
        assert state.pop("updateTime") / 1000 == pytest.approx(float(clock[0]), abs=5)
        assert state == {
            "podId": 7,
            "state": "READY",
            "loadState": 42,
            "routingState": "READY",
            "incarnation": server.incarnation,
            "metadata": about[7],
        }
        assert not re.search(r'[,:{] (?=["{\d])', re.sub(r'"(\\.|[^"\\])*"', '""', text))
        await server.set_routing_state("DENY_NEW_CALL")
        assert json.loads(str(seen.hget(STATES, "7")))["routingState"] == "DENY_NEW_CALL"


async def test_a_pod_that_stops_takes_its_state_along(
    store: podlink.Store, seen: redis.Redis
) -> None:
    async with running(store, 0, 1):
        assert set(seen.hkeys(STATES)) == {"0", "1"}
    assert seen.hkeys(STATES) == []


async def test_a_lease_is_renewed(store: podlink.Store, seen: redis.Redis) -> None:
    async with running(store, 0, config=QUICK) as [server]:
        first = int(str(seen.hget(LEASES, "d:0")))
        assert int(str(seen.hget(LEASES, "i:0"))) == server.incarnation
        now = seen.time()
        left = first / 1e6 - float(now[0]) - float(now[1]) / 1e6
        assert 0 < left <= LEASE
        eventually(lambda: int(str(seen.hget(LEASES, "d:0"))) > first)


@pytest.mark.parametrize(
    ("namespace", "uid", "service", "key"),
    [
        ("prod", "u", "game", "sf:{prod:lk:u}game"),
        ("a-b", "c", "d", "sf:{a-b:lk:c}d"),
        ("a", "b-c", "d", "sf:{a:lk:b-c}d"),
        ("default", "a:b", "svc", "sf:{default:lk:a:b}svc"),
        ("default", "日本 語", "svc", "sf:{default:lk:日本 語}svc"),
        ("n" * 63, "u" * 128, "s" * 63, "sf:{" + "n" * 63 + ":lk:" + "u" * 128 + "}" + "s" * 63),
    ],
)
async def test_names_go_into_the_key_as_they_are(
    store: podlink.Store, seen: redis.Redis, namespace: str, uid: str, service: str, key: str
) -> None:
    client = podlink.ClientDriver(store, namespace)
    await client.set_linked_pod_if_absent(None, uid, service, 3)
    assert keys(seen) == {key}


async def test_links_of_other_tools_are_understood(
    store: podlink.Store, client: podlink.ClientDriver, seen: redis.Redis
) -> None:
    seen.set(LINK, "4")
    seen.hset(SERVICES, mapping={SERVICE: "4", "chat": "0"})
    seen.set("sf:{default:lk:u2}svc", "0", ex=100)
    assert await client.get_linked_pod_in_cache_or_if_persist(*USER) == 4
    assert await client.get_link_service(None, "user123") == {SERVICE: 4, "chat": 0}
    assert await client.batch_get_linked_pod(None, ["user123", "u2"], SERVICE) == {
        0: ["u2"],
        4: ["user123"],
    }
    assert await client.get_linked_pod_in_cache_or_if_persist(None, "u2", SERVICE) is None


async def test_looking_leaves_nothing_behind(
    client: podlink.ClientDriver, seen: redis.Redis
) -> None:
    await client.get_linked_pod(*USER)
    await client.get_linked_pod_not_cache(*USER)
    await client.get_linked_pod_in_cache_or_if_persist(*USER)
    await client.get_link_service(None, "user123")
    await client.batch_get_linked_pod(None, ["a", "b"], SERVICE)
    client.set_cache(*USER, 1)
    with pytest.raises(podlink.NoRoutablePodError):
        await client.compute_linked_pod(None, "nobody", SERVICE)
    assert keys(seen) == set()


async def test_another_database_is_another_world(store_server: Server, seen: redis.Redis) -> None:
    async with podlink.Store(store_server.url, db=3) as store:
        await podlink.ClientDriver(store).set_linked_pod_if_absent(*USER, 1)
    assert keys(seen) == set()
    assert store_server.client(db=3).get(LINK) == "1"
    async with podlink.Store(f"{store_server.url}/3") as store:
        assert await podlink.ClientDriver(store).get_linked_pod(*USER) == 1
