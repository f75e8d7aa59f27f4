"""`explain`: what it says is what compute then does, and saying it leaves the store as it was."""

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

import podlink
from conftest import ServerFactory
from helpers.pods import FRESH, NAMESPACE, PATIENT, SERVICE, STEADY, pod_info, running
from helpers.raw_pods import lease_key, publish, state_key
from helpers.servers import Server
from helpers.wait import eventually_async
from podlink.explain import (
    Action,
    CacheState,
    Death,
    Explanation,
    LinkKind,
    Reason,
    StaleReason,
    Standing,
)

UID = "user1"
LINK = f"sf:{{{NAMESPACE}:lk:{UID}}}{SERVICE}"

# Nobody reads the pods while a test looks at the store.
SELDOM = podlink.RouteInfoConfig(refresh=3600, idle=3600)


def everything(server: Server) -> dict[str, tuple[object, object]]:
    """Every key with its value, byte by byte, and the moment when it expires."""
    with server.client() as raw:
        return {
            str(key): (raw.execute_command("DUMP", key, NEVER_DECODE=True), raw.pexpiretime(key))
            for key in raw.scan_iter()
        }


@contextmanager
def unchanged(server: Server, client: podlink.ClientDriver) -> Iterator[None]:
    """The store holds afterwards what it held before, and the driver has counted nothing."""
    held, counted = everything(server), dict(client.stats())
    yield
    assert everything(server) == held
    assert dict(client.stats()) == counted


@pytest.fixture
async def client(store_server: Server) -> AsyncIterator[podlink.ClientDriver]:
    async with (
        podlink.Store(store_server.url) as store,
        podlink.ClientDriver(store, NAMESPACE, PATIENT, route_info=SELDOM) as driver,
    ):
        yield driver


async def explained(server: Server, client: podlink.ClientDriver) -> Explanation:
    """What the driver says, twice, and changes nothing."""
    with unchanged(server, client):
        told = await client.explain(None, UID, SERVICE)
        again = await client.service(SERVICE).explain(UID)
    assert (told.action, told.reason, told.answers) == (again.action, again.reason, again.answers)
    assert (told.namespace, told.uid, told.service_name) == (NAMESPACE, UID, SERVICE)
    return told


async def computed(client: podlink.ClientDriver, told: Explanation) -> None:
    """Compute answers one of the pods that the explanation names."""
    assert await client.compute_linked_pod(None, UID, SERVICE) in told.answers


def lapse(server: Server, index: int, *, seconds: float, grace: float) -> None:
    """A pod's lease ended so long ago, with so much grace."""
    ended = int((time.time() - seconds) * 1_000_000)
    figures = {f"d:{index}": ended, "t": f"60000000:{int(grace * 1_000_000)}:60000000"}
    with server.client() as raw:
        raw.hset(lease_key(), mapping=figures)


# --- One by one -----------------------------------------------------------------------------------


async def test_a_new_user(store_server: Server, client: podlink.ClientDriver) -> None:
    publish(store_server, [0, 1, 2], loads={0: 9, 1: 3, 2: 5})
    told = await explained(store_server, client)
    assert (told.action, told.reason) == (Action.MAKE_LINK, Reason.NO_LINK)
    assert told.link is None
    assert told.owner is None
    assert told.cache.state is CacheState.ABSENT
    assert told.strategy == "p2c"
    # The better of two: never the most loaded one, and the best of the three twice in three.
    assert [(each.pod_id, each.load_state) for each in told.candidates] == [(0, 9), (1, 3), (2, 5)]
    assert [each.chance for each in told.candidates] == pytest.approx([0.0, 2 / 3, 1 / 3])
    assert told.answers == (1, 2)
    assert told.pods_age is None
    assert f"{UID} of default/svc: compute links the user to pod 1 or pod 2" in str(told)
    await computed(client, told)


async def test_a_cached_user(store_server: Server, client: podlink.ClientDriver) -> None:
    publish(store_server, [0])
    assert await client.compute_linked_pod(None, UID, SERVICE) == 0
    # Compute waits for the first reading of the pods and has asked for another one, which follows.
    await eventually_async(lambda: client.stats()["refreshes"] == 2)
    told = await explained(store_server, client)
    assert (told.action, told.reason) == (Action.ANSWER_FROM_CACHE, Reason.CACHED)
    assert told.answers == (0,)
    assert (told.cache.state, told.cache.pod_id) == (CacheState.VALID, 0)
    assert told.cache.left == pytest.approx(240, abs=30)
    assert told.link is not None
    assert told.link.kind is LinkKind.TEMPORARY
    assert told.link.left == pytest.approx(300, abs=30)
    assert told.pods_age is not None
    assert told.owner is not None
    assert told.owner.standing is Standing.READY
    assert told.owner.lease_left == pytest.approx(60, abs=30)
    assert told.owner.age == pytest.approx(0, abs=30)
    assert (told.owner.incarnation, told.owner.death) == (1, Death.NOT_YET)
    assert "compute answers pod 0 from the cache" in str(told)
    await computed(client, told)


@pytest.mark.parametrize(
    ("ttl", "kind"), [(120_000, LinkKind.TEMPORARY), (None, LinkKind.PERSISTENT)]
)
async def test_a_linked_user(
    store_server: Server, client: podlink.ClientDriver, ttl: int | None, kind: LinkKind
) -> None:
    publish(store_server, [0, 1])
    store_server.client().set(LINK, 1, px=ttl)
    told = await explained(store_server, client)
    assert (told.action, told.reason, told.answers) == (Action.KEEP_LINK, Reason.OWNER_READY, (1,))
    assert told.link is not None
    assert (told.link.pod_id, told.link.kind) == (1, kind)
    assert (told.link.left is None) == (ttl is None)
    await computed(client, told)


@pytest.mark.parametrize(
    ("routing", "action", "reason", "answers"),
    [
        ("DENY_NEW_CALL", Action.KEEP_LINK, Reason.OWNER_DRAINING, (1,)),
        ("SHUTDOWN", Action.MOVE_USER, Reason.OWNER_SHUTDOWN, (0,)),
    ],
)
async def test_a_pod_that_leaves(
    store_server: Server,
    client: podlink.ClientDriver,
    routing: str,
    action: Action,
    reason: Reason,
    answers: Sequence[int],
) -> None:
    publish(store_server, [0, 1], routing={1: routing})
    store_server.client().set(LINK, 1)
    told = await explained(store_server, client)
    assert (told.action, told.reason, told.answers) == (action, reason, answers)
    assert [each.pod_id for each in told.candidates] == [0]
    await computed(client, told)


async def test_a_dead_pod(store_server: Server, client: podlink.ClientDriver) -> None:
    raw = store_server.client()
    publish(store_server, [0, 1])
    raw.set(LINK, 1)
    lapse(store_server, 1, seconds=5, grace=60)
    told = await explained(store_server, client)
    assert told.action is Action.KEEP_UNTIL_CERTAIN
    assert (told.reason, told.answers) == (Reason.DEATH_NOT_CERTAIN, (1,))
    assert told.certain_in == pytest.approx(55, abs=30)
    assert told.owner is not None
    assert (told.owner.standing, told.owner.death) == (Standing.LAPSED, Death.NOT_YET)
    assert "it may still be alive" in str(told)
    # Another driver computes: this one would go on to read the pods while it explains.
    async with (
        podlink.Store(store_server.url) as store,
        podlink.ClientDriver(store, NAMESPACE, PATIENT, route_info=SELDOM) as other,
    ):
        await computed(other, told)

    lapse(store_server, 1, seconds=5, grace=1)
    told = await explained(store_server, client)
    assert (told.action, told.reason) == (Action.CERTIFY_THEN_MOVE, Reason.OWNER_LAPSED)
    assert told.answers == (0,)
    assert told.owner is not None
    assert told.owner.death is Death.DUE
    assert raw.hget(lease_key(), "x:1") == "0"

    raw.hset(lease_key(), "x:1", 1)
    told = await explained(store_server, client)
    assert (told.action, told.reason) == (Action.MOVE_USER, Reason.OWNER_DEAD)
    assert told.owner is not None
    assert told.owner.death is Death.CERTIFIED
    assert "dead for good" in str(told)
    await computed(client, told)


async def test_a_pod_that_nobody_ever_saw(
    store_server: Server, client: podlink.ClientDriver
) -> None:
    publish(store_server, [0])
    store_server.client().set(LINK, 7)
    told = await explained(store_server, client)
    assert (told.action, told.reason) == (Action.MOVE_USER, Reason.OWNER_NEVER_SEEN)
    assert told.owner is not None
    assert (told.owner.standing, told.owner.death) == (Standing.UNKNOWN, Death.UNKNOWN)
    await computed(client, told)


async def test_no_pods_at_all(store_server: Server, client: podlink.ClientDriver) -> None:
    for pods in range(2):
        if pods:
            publish(store_server, [0], routing={0: "DENY_NEW_CALL"})
        told = await explained(store_server, client)
        assert told.action is Action.NO_ROUTABLE_POD
        assert (told.reason, told.answers) == (Reason.NO_ROUTABLE_POD, ())
        assert told.candidates == ()
        assert len(told.pods) == pods
        assert "POD_NOT_ROUTABLE" in str(told)
    with pytest.raises(podlink.NoRoutablePodError):
        await client.compute_linked_pod(None, UID, SERVICE)


async def test_overloaded_pods(store_server: Server) -> None:
    config = podlink.RouteInfoConfig(refresh=3600, idle=3600, overload_limit=10)
    async with (
        podlink.Store(store_server.url) as store,
        podlink.ClientDriver(store, NAMESPACE, PATIENT, route_info=config) as client,
    ):
        publish(store_server, [0, 1], loads={0: 50, 1: 5})
        told = await explained(store_server, client)
        assert (told.answers, told.degraded, told.overload_limit) == ((1,), False, 10)
        publish(store_server, [0, 1], loads={0: 50, 1: 40})
        told = await explained(store_server, client)
        assert (told.answers, told.degraded) == ((1,), True)
        assert "all are above overload_limit 10" in str(told)
        await computed(client, told)


@pytest.mark.parametrize(
    ("on_restart", "action", "reason"),
    [
        ("same_pod", Action.KEEP_LINK, Reason.OWNER_READY),
        ("best_pod", Action.MOVE_USER, Reason.OWNER_RESTARTED),
    ],
)
async def test_a_restarted_pod(
    store_server: Server, on_restart: Any, action: Action, reason: Reason
) -> None:
    config = podlink.ClientConfig(on_restart=on_restart, strategy="least_load", timeout=60)
    async with (
        podlink.Store(store_server.url) as store,
        podlink.ClientDriver(store, NAMESPACE, config, route_info=FRESH) as client,
    ):
        publish(store_server, [0, 1], loads={1: 9})
        assert await client.compute_linked_pod(None, UID, SERVICE) == 0
        raw = store_server.client()
        state = str(raw.hget(state_key(), "0")).replace('"incarnation": 1', '"incarnation": 2')
        state = state.replace('"loadState": 0', '"loadState": 20')
        # At once, as a pod does: between the two, the state is of a process that has no lease.
        with raw.pipeline() as pipeline:
            pipeline.hset(state_key(), "0", state)
            pipeline.hset(lease_key(), "i:0", 2)
            pipeline.execute()

        async def told() -> Explanation | None:
            told = await client.explain(None, UID, SERVICE)
            return None if told.cache.why is None else told

        # As soon as this process has read that.
        seen = await eventually_async(told)
        assert seen is not None
        assert seen.cache.why is StaleReason.POD_RESTARTED
        assert (seen.action, seen.reason) == (action, reason)
        assert "another process now" in str(seen)
        await computed(client, seen)


async def test_what_the_program_told_the_cache(
    store_server: Server, client: podlink.ClientDriver
) -> None:
    publish(store_server, [0, 1])
    client.set_cache(None, UID, SERVICE, 1)
    # From now on the pods are read in the background, where compute waits for the first reading.
    await eventually_async(lambda: client.stats()["refreshes"] == 1)
    told = await explained(store_server, client)
    assert told.action is Action.ANSWER_FROM_CACHE
    assert told.answers == (1,)
    await computed(client, told)
    client.cache_expired(None, UID, SERVICE)
    told = await explained(store_server, client)
    assert told.cache.state is CacheState.ABSENT


async def test_a_cached_pod_that_is_gone(store_server: Server) -> None:
    async with (
        podlink.Store(store_server.url) as store,
        podlink.ClientDriver(store, NAMESPACE, PATIENT, route_info=FRESH) as client,
    ):
        publish(store_server, [0])
        assert await client.compute_linked_pod(None, UID, SERVICE) == 0
        publish(store_server, [0, 1], routing={0: "SHUTDOWN"})

        async def stale() -> bool:
            told = await client.explain(None, UID, SERVICE)
            return told.cache.why is StaleReason.POD_NOT_AVAILABLE

        await eventually_async(stale)
        told = await client.explain(None, UID, SERVICE)
        assert (told.action, told.reason) == (Action.MOVE_USER, Reason.OWNER_SHUTDOWN)
        await computed(client, told)


async def test_a_strategy_of_the_programs_own_is_not_asked(store_server: Server) -> None:
    asked = []

    def choose(uid: str, _pods: object) -> int:
        asked.append(uid)
        return 1

    async with (
        podlink.Store(store_server.url) as store,
        podlink.ClientDriver(
            store, NAMESPACE, podlink.ClientConfig(strategy=choose, timeout=60), route_info=SELDOM
        ) as client,
    ):
        publish(store_server, [0, 1])
        told = await explained(store_server, client)
        assert asked == []
        assert told.strategy == "custom"
        assert told.answers == (0, 1)
        assert [each.chance for each in told.candidates] == [None, None]
        await computed(client, told)
        assert asked == [UID]


# --- Whatever the store ---------------------------------------------------------------------------


async def test_living_pods_on_every_store(store_url: str) -> None:
    async with (
        podlink.Store(store_url) as store,
        podlink.ClientDriver(store, NAMESPACE, PATIENT, route_info=FRESH) as client,
    ):
        assert (await client.explain(None, UID, SERVICE)).action is Action.NO_ROUTABLE_POD
        async with running(store, 0, 1, loads={0: 1, 1: 2}, config=STEADY) as (first, second):
            told = await client.explain(None, UID, SERVICE)
            assert (told.action, told.answers) == (Action.MAKE_LINK, (0,))
            await first.set_linked_pod(None, UID, SERVICE, 1)
            told = await client.explain(None, UID, SERVICE)
            assert (told.action, told.answers) == (Action.KEEP_LINK, (1,))
            assert told.link is not None
            assert told.link.kind is LinkKind.PERSISTENT
            assert await client.compute_linked_pod(None, UID, SERVICE) == 1
            await second.set_routing_state("DENY_NEW_CALL")
            pods = client.route_info.alive_pods
            await eventually_async(lambda: pods(None, SERVICE)[1].routing_state == "DENY_NEW_CALL")
            # A pod that drains gives up its users one by one: what is remembered is not answered.
            told = await client.explain(None, UID, SERVICE)
            assert (told.action, told.answers) == (Action.KEEP_LINK, (1,))
            assert told.reason is Reason.OWNER_DRAINING
            assert told.cache.why is StaleReason.POD_DRAINING
            assert told.owner is not None
            assert told.owner.standing is Standing.DRAINING
            assert told.owner.routing_state is podlink.RoutingState.DENY_NEW_CALL


async def test_without_asyncio(store_url: str) -> None:
    client = podlink.ClientDriver(podlink.Store(store_url), NAMESPACE, PATIENT)
    told = client.submit("explain", None, UID, SERVICE).result(60)
    assert isinstance(told, Explanation)
    assert told.action is Action.NO_ROUTABLE_POD


# --- Another namespace ----------------------------------------------------------------------------


async def test_another_namespaces_user(store_server: Server) -> None:
    publish(store_server, [0, 1], routing={1: "SHUTDOWN"})
    async with (
        podlink.Store(store_server.url) as far,
        podlink.RouteGrpcServer(far, NAMESPACE, authorize=[("*", "*", NAMESPACE)]) as server,
        podlink.RouteGrpcClient(
            f"grpc://{server.address}", config=podlink.GrpcClientConfig(timeout=60)
        ) as peer,
        podlink.ClientDriver(podlink.Store(), "here", PATIENT, peers={NAMESPACE: peer}) as client,
    ):
        told = await client.explain(NAMESPACE, UID, SERVICE)
        assert (told.action, told.reason) == (Action.ASK_PEER, Reason.FOREIGN_NAMESPACE)
        assert told.foreign
        assert told.link is None
        assert told.answers == (0,)
        assert await client.compute_linked_pod(NAMESPACE, UID, SERVICE) == 0

        told = await client.explain(NAMESPACE, UID, SERVICE)
        assert told.action is Action.ANSWER_FROM_CACHE
        assert told.link is not None
        assert (told.link.pod_id, told.link.kind) == (0, LinkKind.UNKNOWN)
        assert {pod.pod_id: pod.standing for pod in told.pods} == {
            0: Standing.READY,
            1: Standing.SHUTDOWN,
        }
        assert "does not tell" in str(told)
        with pytest.raises(podlink.NamespaceUnreachableError):
            await client.explain("elsewhere", UID, SERVICE)

        await server.stop()
        client.cache_expired(NAMESPACE, UID, SERVICE)
        told = await client.explain(NAMESPACE, UID, SERVICE, timeout=0.5)
        assert (told.action, told.reason) == (Action.FAIL, Reason.PEER_TROUBLE)
        assert told.trouble is not None


# --- What is wrong --------------------------------------------------------------------------------


async def test_a_store_that_is_away(server_factory: ServerFactory) -> None:
    server = server_factory()
    async with (
        podlink.Store(server.url) as store,
        podlink.ClientDriver(store, NAMESPACE, PATIENT, route_info=FRESH) as client,
    ):
        publish(server, [0])
        assert await client.compute_linked_pod(None, UID, SERVICE) == 0
        server.kill()
        told = await client.explain(None, UID, SERVICE, timeout=1)
        assert (told.action, told.answers) == (Action.ANSWER_FROM_CACHE, (0,))
        assert told.trouble is not None
        assert told.owner is not None, "what was read last is still known"
        told = await client.explain(None, "somebody-else", SERVICE, timeout=1)
        assert (told.action, told.reason) == (Action.FAIL, Reason.STORE_TROUBLE)
        assert told.trouble is not None
        assert told.trouble.code in {"STORE_UNAVAILABLE", "TIMEOUT"}
        assert f"compute fails with {told.trouble.code}" in str(told)


async def test_a_link_that_nobody_can_read(
    store_server: Server, client: podlink.ClientDriver
) -> None:
    publish(store_server, [0])
    store_server.client().set(LINK, "pod-three")
    told = await explained(store_server, client)
    assert (told.action, told.trouble and told.trouble.code) == (Action.FAIL, "STORE_DATA")
    assert LINK in str(told)
    with pytest.raises(podlink.StoreDataError):
        await client.compute_linked_pod(None, UID, SERVICE)


async def test_wrong_names_and_closed_drivers() -> None:
    store = podlink.Store()
    client = podlink.ClientDriver(store)
    for arguments, parameter in [
        (("a b", UID, SERVICE), "namespace"),
        ((None, "", SERVICE), "uid"),
        ((None, UID, "s:v"), "service_name"),
        ((None, 5, SERVICE), "uid"),
    ]:
        with pytest.raises(podlink.InvalidParameterError) as caught:
            await client.explain(*arguments)  # type: ignore[arg-type]
        assert caught.value.details["parameter"] == parameter
    with pytest.raises(podlink.InvalidParameterError):
        await client.explain(None, UID, SERVICE, timeout=-1)
    await client.aclose()
    with pytest.raises(podlink.ClosedError):
        await client.explain(None, UID, SERVICE)
    await store.aclose()


async def test_hostile_names_do_not_drive_a_terminal() -> None:
    uid = "\u202e\U000e0041x"
    async with podlink.Store() as store, podlink.ClientDriver(store, NAMESPACE) as client:
        pod = podlink.ServerDriver(store, pod_info(0), STEADY)
        async with pod:
            told = await client.explain(None, uid, SERVICE)
    assert told.uid == uid
    assert all(line.isprintable() for line in str(told).split("\n"))
