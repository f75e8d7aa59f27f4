"""The store dies and comes back with its data: no pod is declared dead for it, no user moves."""

import asyncio
import time

import pytest

import podlink
from conftest import ServerFactory
from helpers.pods import FRESH, GRACE, LEASE, NAMESPACE, QUICK, SERVICE, PodProcess, running
from helpers.raw_pods import lease_key
from helpers.servers import Server
from helpers.wait import eventually_async

USERS = [f"u{number}" for number in range(100)]
FASTER = podlink.ClientConfig(cache_ttl=0, timeout=0.3)


async def where(client: podlink.ClientDriver) -> dict[str, int]:
    compute = client.compute_linked_pod
    pods = await asyncio.gather(*(compute(None, uid, SERVICE, timeout=10) for uid in USERS))
    return dict(zip(USERS, pods, strict=True))


def certificates(server: Server) -> dict[str, int]:
    """The incarnations that somebody has declared dead."""
    with server.client() as raw:
        leases: dict[str, str] = raw.hgetall(lease_key())
    return {name: int(x) for name, x in leases.items() if name.startswith("x:") and int(x)}


async def insist(client: podlink.ClientDriver, homes: dict[str, int], till: float) -> int:
    """Asks for users while the store is away; every answer is the old one. Counts the errors."""
    errors = 0
    for uid in USERS * 1000:
        try:
            assert await client.compute_linked_pod(None, uid, SERVICE) == homes[uid]
        except (podlink.StoreUnavailableError, podlink.OperationTimeoutError):
            errors += 1
        if time.monotonic() > till:
            break
    return errors


@pytest.mark.parametrize(
    ("kind", "away"),
    [("valkey", 1.0), ("redis7", 1.0), ("valkey", LEASE + GRACE + 0.5)],
)
async def test_everybody_stays_where_he_was(
    server_factory: ServerFactory, kind: str, away: float
) -> None:
    server = server_factory(kind, durable=True)
    losses: list[object] = []
    async with (
        podlink.Store(server.url) as theirs,
        podlink.Store(server.url) as ours,
        running(theirs, 0, 1, 2, config=QUICK) as pods,
        podlink.ClientDriver(ours, NAMESPACE, FASTER, route_info=FRESH) as client,
    ):
        held = []
        for index, pod in enumerate(pods):
            pod.on_lease_lost(losses.append)
            pod.on_ownership_lost(lambda user, reason: losses.append((user, reason)))
            held.append(await pod.claim(None, f"held{index}"))
        incarnations = [pod.incarnation for pod in pods]
        homes = await where(client)
        assert set(homes.values()) == {0, 1, 2}
        server.kill()
        errors = await insist(client, homes, time.monotonic() + away)
        print(f"{kind}: {away} s away, {errors} computes failed meanwhile")
        published = [pod.stats()["published"] for pod in pods]
        server.restart()
        # A lease from before the outage may still run: only a publication says that a pod is back.
        await eventually_async(
            lambda: all(
                pod.holds_lease and pod.stats()["published"] > before
                for pod, before in zip(pods, published, strict=True)
            )
        )
        await eventually_async(lambda: len(client.route_info.alive_pods(None, SERVICE)) == 3)
        assert await where(client) == homes
        assert [pod.incarnation for pod in pods] == incarnations
        assert certificates(server) == {}
        assert client.stats()["links_healed"] == 0
        # No pod could have taken their users: they own them again. After a lapse the certificate
        # of a death might be forgotten, so they have claimed them by greater tokens.
        for pod, earlier in zip(pods, held, strict=True):
            now = await owned_again(pod, earlier.uid)
            assert now.incarnation == earlier.incarnation
            if away > LEASE:
                assert pod.stats()["suspensions"] >= 1
                assert now.token > earlier.token
                assert now.previous_token == earlier.token
            assert now.token >= earlier.token
            assert await now.verify()
        assert losses == []
        assert [pod.stats()["leases_lost"] for pod in pods] == [0, 0, 0]


async def owned_again(pod: podlink.ServerDriver, uid: str) -> podlink.Ownership:
    """What the pod holds of the user, as soon as it holds something."""
    user = await eventually_async(lambda: pod.ownership(None, uid))
    assert user is not None
    return user


async def test_who_dies_in_an_outage_is_declared_dead_after_it(
    server_factory: ServerFactory,
) -> None:
    server = server_factory(durable=True)
    async with (
        podlink.Store(server.url) as store,
        running(store, 0, config=QUICK) as [zero],
        podlink.ClientDriver(store, NAMESPACE, FASTER, route_info=FRESH) as client,
    ):
        with PodProcess(server.url, 1) as one:
            homes = await where(client)
            assert set(homes.values()) == {0, 1}
            server.kill()
            one.kill()
            await insist(client, homes, time.monotonic() + LEASE + GRACE)
        server.restart()
        back = time.monotonic()

        async def moved() -> bool:
            try:
                return set((await where(client)).values()) == {0}
            except podlink.PodlinkError:
                return False

        # Everybody gets a fresh lease and grace first.
        assert not await moved()
        await eventually_async(moved, within=15)
        assert time.monotonic() - back > GRACE
        assert list(certificates(server)) == ["x:1"]
        await eventually_async(lambda: zero.holds_lease)
        after = await where(client)
        assert all(after[uid] == 0 for uid in USERS)


async def test_a_store_that_lost_its_memory_learns_it_again(server_factory: ServerFactory) -> None:
    server = server_factory()
    async with podlink.Store(server.url) as store, running(store, 0, 1) as pods:
        incarnations = [pod.incarnation for pod in pods]
        info = podlink.RouteInfoDriver(store, NAMESPACE, FRESH)
        server.restart()
        await eventually_async(lambda: sorted(info.alive_pods(None, SERVICE)) == [0, 1])
        # They are who they were, and nobody else may take their indexes.
        assert [pod.incarnation for pod in pods] == incarnations
        assert [state.incarnation for state in info.alive_pods(None, SERVICE).values()] == (
            incarnations
        )
        second = podlink.ServerDriver(store, pods[0].server_info, pods[0].config)
        with pytest.raises(podlink.PodIndexBusyError):
            await second.start(timeout=0.3)
        await info.aclose()
