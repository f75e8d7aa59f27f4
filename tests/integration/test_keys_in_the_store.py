"""What other tools find in the store: exactly the keys and values of the reference layout."""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import redis

import podlink
from helpers.pods import FRESH, LEASE, NAMESPACE, QUICK, SERVICE, running
from helpers.servers import Server
from helpers.wait import eventually

USER = (None, "user123", SERVICE)
LINK = "sf:{default:lk:user123}svc"
SERVICES = "sf:{default:lk:user123}"
OWNERS = "sf:{default:lk:user123}#own"
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
async def pod(store: podlink.Store) -> AsyncIterator[podlink.ServerDriver]:
    """Pod 2, which holds its lease: no other writes links."""
    async with running(store, 2) as [started]:
        yield started


def keys(seen: redis.Redis) -> set[Any]:
    return set(seen.keys())


def link_keys(seen: redis.Redis) -> set[Any]:
    """What is kept of users, beside the pods' states and leases."""
    return set(seen.keys("sf:{*:lk:*"))


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
    # Links of another pod, and of another service: there is no owner.
    await pod.set_linked_pod(*USER, 3)
    await pod.set_linked_pod(None, "user123", "chat-service", 0)
    assert link_keys(seen) == {LINK, SERVICES, "sf:{default:lk:user123}chat-service"}
    assert (seen.get(LINK), seen.ttl(LINK)) == ("3", -1)
    assert seen.hgetall(SERVICES) == {SERVICE: "3", "chat-service": "0"}


async def test_a_link_with_a_lifetime_is_not_listed(
    pod: podlink.ServerDriver, seen: redis.Redis
) -> None:
    await pod.set_linked_pod(*USER, 3)
    await pod.set_linked_pod(*USER, 3, persist_seconds=30)
    assert link_keys(seen) == {LINK}
    assert 29_000 < seen.pttl(LINK) <= 30_000


def claims(pod: podlink.ServerDriver) -> dict[str, Callable[[], Awaitable[object]]]:
    """Every way in which pod 2 makes a user its own."""
    return {
        "claim": lambda: pod.claim(*USER),
        "set": lambda: pod.set_linked_pod(*USER, 2),
        "try_set": lambda: pod.try_set_linked_pod(*USER, 2),
    }


@pytest.mark.parametrize("way", ["claim", "set", "try_set"])
async def test_an_owner_is_a_pod_an_incarnation_and_a_token(
    pod: podlink.ServerDriver, seen: redis.Redis, way: str
) -> None:
    before = seen.time()
    await claims(pod)[way]()
    user = pod.ownership(*USER)
    assert user is not None
    assert link_keys(seen) == {LINK, SERVICES, OWNERS}
    assert (seen.get(LINK), seen.ttl(LINK)) == ("2", -1)
    assert seen.hgetall(SERVICES) == {SERVICE: "2"}
    record = f"2:{pod.incarnation}:{user.token}"
    assert seen.hgetall(OWNERS) == {SERVICE: record, "#": str(user.token)}
    assert seen.ttl(OWNERS) == -1
    # A token is the time in microseconds, if that is more than the last one.
    assert int(str(before[0])) <= user.token / 1e6 <= int(str(seen.time()[0])) + 1
    # Again: nothing changes.
    await claims(pod)[way]()
    assert seen.hgetall(OWNERS) == {SERVICE: record, "#": str(user.token)}


async def test_a_token_exceeds_every_earlier_one(
    pod: podlink.ServerDriver, seen: redis.Redis
) -> None:
    last = 2**51
    seen.hset(OWNERS, mapping={"#": str(last)})
    first = await pod.claim(*USER)
    assert first.token == last + 1
    # Its last owner was of another service: it may say "somebody between" without need.
    assert first.previous_token == last
    second = await pod.claim(*USER, min_token=2**51 + 10)
    assert (second.token, second.previous_token) == (2**51 + 11, first.token)
    assert not first.is_valid()
    assert seen.hgetall(OWNERS) == {
        SERVICE: f"2:{pod.incarnation}:{second.token}",
        "#": str(second.token),
    }


async def test_a_removed_link_stays_as_a_hint(pod: podlink.ServerDriver, seen: redis.Redis) -> None:
    user = await pod.claim(*USER)
    assert await pod.remove_linked_pod(*USER) is True
    # The last token is remembered for a day.
    assert link_keys(seen) == {LINK, OWNERS}
    assert seen.get(LINK) == "2"
    assert 59_000 < seen.pttl(LINK) <= 60_000
    assert seen.hgetall(OWNERS) == {"#": str(user.token)}
    assert 86_399_000 < seen.pttl(OWNERS) <= 86_400_000
    await pod.remove_linked_pod_with_id(*USER, 2, 0)
    assert link_keys(seen) == {OWNERS}
    assert (await pod.claim(*USER)).token > user.token
    assert seen.ttl(OWNERS) == -1


@pytest.mark.parametrize("persist_seconds", [-1, 30])
async def test_a_link_set_for_another_pod_ends_the_ownership(
    pod: podlink.ServerDriver, seen: redis.Redis, persist_seconds: int
) -> None:
    user = await pod.claim(*USER)
    assert await pod.set_linked_pod(*USER, 3, persist_seconds) == 2
    assert not user.is_valid()
    assert pod.stats()["owned_users"] == 0
    assert seen.get(LINK) == "3"
    assert seen.hgetall(SERVICES) == ({SERVICE: "3"} if persist_seconds == -1 else {})
    assert seen.hgetall(OWNERS) == {"#": str(user.token)}


async def test_a_user_released_by_a_pod_that_stops_has_no_link(
    pod: podlink.ServerDriver, seen: redis.Redis
) -> None:
    user = await pod.claim(*USER)
    report = await pod.stop()
    assert (report.released, report.remaining) == (1, 0)
    assert link_keys(seen) == {OWNERS}
    assert seen.hgetall(OWNERS) == {"#": str(user.token)}


async def test_owners_of_two_services_do_not_mix(
    store: podlink.Store, pod: podlink.ServerDriver, seen: redis.Redis
) -> None:
    async with running(store, 0, service="chat") as [chat]:
        user = await pod.claim(*USER)
        other = await chat.claim(None, "user123")
        assert other.token > user.token
        assert seen.hgetall(OWNERS) == {
            SERVICE: f"2:{pod.incarnation}:{user.token}",
            "chat": f"0:{chat.incarnation}:{other.token}",
            "#": str(other.token),
        }
        assert await user.release(0)
        assert seen.hgetall(OWNERS) == {
            "chat": f"0:{chat.incarnation}:{other.token}",
            "#": str(other.token),
        }
        # It still has an owner.
        assert seen.ttl(OWNERS) == -1
        assert await other.verify()
        assert seen.hgetall(SERVICES) == {"chat": "0"}


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
