"""Five thousand pods of one service: read, chosen from, and told of."""

import asyncio
import time
from collections import Counter

import pytest

import podlink
from helpers.pods import NAMESPACE, SERVICE, pod_info
from helpers.raw_pods import publish
from helpers.wait import eventually_async

PODS = 5_000
# A reading of all of them is work; nobody does it all the time.
RELAXED = podlink.RouteInfoConfig(refresh=1, overload_limit=100)
STEADY = podlink.ServerConfig(lease=600, renew=200, guard=1, gap=400, grace=400, cpu_factor=0)


async def check(store: podlink.Store) -> None:
    """Everything that a driver does with them; pod 17 drains, pod 18 is overloaded."""
    info = podlink.RouteInfoDriver(store, NAMESPACE, RELAXED)
    told: list[int] = []
    info.register_routing_state_changed_event(None, lambda *change: told.append(change[2]))
    began = time.monotonic()

    async def read() -> dict[int, podlink.StatefulServiceState]:
        try:
            return await info.get_all_service_state(None, SERVICE, timeout=30)
        except podlink.OperationTimeoutError:
            return {}  # a reading has a second, however patient its caller is

    pods = await eventually_async(read)
    print(f"the first reading of {PODS} pods took {time.monotonic() - began:.2f} s")
    assert list(pods) == list(range(PODS))
    routable = info.routable_pods(None, SERVICE)
    assert set(pods) - set(routable) == {17, 18}
    assert info.is_pod_available(None, SERVICE, 17)
    assert not info.is_pod_routable(None, SERVICE, 17)
    assert not info.is_pod_routable(None, SERVICE, 18)
    assert not info.is_pod_available(None, SERVICE, PODS)
    await eventually_async(lambda: len(told) == PODS)
    assert told == list(range(PODS))
    client = podlink.ClientDriver(store, route_info=info)
    began = time.monotonic()
    placed: Counter[int] = Counter()
    for batch in range(20):
        compute = client.compute_linked_pod
        users = (compute(None, f"u{batch}-{n}", SERVICE, timeout=60) for n in range(100))
        placed.update(await asyncio.gather(*users))
    print(f"2,000 users were placed in {time.monotonic() - began:.2f} s")
    assert not {17, 18} & set(placed)
    # Fewer users than pods, and nobody herds.
    assert max(placed.values()) <= 5
    await client.aclose()
    await info.aclose()


@pytest.mark.parametrize("kind", ["valkey", "redis7"])
async def test_five_thousand_pods_on_a_server(request: pytest.FixtureRequest, kind: str) -> None:
    server = request.getfixturevalue(f"{kind}_server")
    server.flush()
    publish(server, range(PODS), loads={18: 101}, routing={17: "DENY_NEW_CALL"})
    async with podlink.Store(server.url) as store:
        await check(store)


async def test_five_thousand_pods_in_memory() -> None:
    store = podlink.Store()
    servers = []
    for index in range(PODS):
        servers.append(podlink.ServerDriver(store, pod_info(index), STEADY))
        await servers[-1].set_load_state(101 if index == 18 else 0)
        await servers[-1].start()
    await servers[17].set_routing_state("DENY_NEW_CALL")
    await check(store)
