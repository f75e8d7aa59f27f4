"""The state of a whole service: said by its lowest pod, kept up by the next, gone with the last."""

import json
from typing import Any

import pytest

import podlink
from helpers.pods import FRESH, NAMESPACE, QUICK, SERVICE, PodProcess, running
from helpers.servers import Server
from helpers.wait import eventually_async

KEY = f"sf:{{{NAMESPACE}:workload:{SERVICE}}}"


def workload(server: Server) -> dict[str, Any]:
    """What the store holds; empty if nothing."""
    with server.client() as client:
        stored = client.get(KEY)
    return json.loads(str(stored)) if stored else {}


async def test_a_service_is_ready_when_one_of_its_pods_takes_users(store_url: str) -> None:
    async with (
        podlink.Store(store_url) as store,
        podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info,
    ):
        assert not await info.is_workload_ready(None, SERVICE)

        async def ready() -> bool:
            return await info.is_workload_ready(None, SERVICE)

        async def not_ready() -> bool:
            return not await info.is_workload_ready(None, SERVICE)

        async with running(store, 4, 5) as [low, high]:
            assert await ready()
            await low.set_routing_state("DENY_NEW_CALL")
            await high.set_routing_state("DENY_NEW_CALL")
            await eventually_async(not_ready)
            await high.set_routing_state("READY")
            await eventually_async(ready)
            await low.stop()
            assert await ready()
            # The next one keeps it up: longer than it lasts by itself.
            written = high.stats()["workloads_written"]
            await eventually_async(lambda: high.stats()["workloads_written"] > written + 9)
            assert await ready()
        # At once: nobody waits until it has disappeared.
        assert await not_ready()


@pytest.mark.parametrize("kind", ["valkey", "redis7"])
async def test_what_the_store_holds(request: pytest.FixtureRequest, kind: str) -> None:
    server = request.getfixturevalue(f"{kind}_server")
    server.flush()
    async with podlink.Store(server.url) as store:
        async with running(store, 7, 8, 9, config=QUICK) as pods:
            await pods[1].set_routing_state("DENY_NEW_CALL")

            def counted() -> bool:
                said = workload(server)
                return (said["replicas"], said["readyReplicas"]) == (3, 2)

            await eventually_async(counted)
            said = workload(server)
            assert set(said) == {"state", "replicas", "readyReplicas", "updateTime"}
            assert said["state"] == "READY"
            assert abs(said["updateTime"] / 1000 - server.client().time()[0]) < 5
            # Lease and grace: a service whose last pod died does not stay ready.
            assert 0 < server.client().pttl(KEY) <= 2800
            assert pods[0].stats()["workloads_written"] > 1
            assert pods[2].stats()["workloads_written"] == 0
        said = workload(server)
        assert (said["state"], said["replicas"], said["readyReplicas"]) == ("NOT_READY", 0, 0)
        await eventually_async(lambda: workload(server) == {})


async def test_the_death_of_the_lowest_pod_does_not_freeze_it(valkey_server: Server) -> None:
    valkey_server.flush()
    with PodProcess(valkey_server.url, 0) as zero:
        async with (
            podlink.Store(valkey_server.url) as store,
            running(store, 1, 2, config=QUICK) as [one, two],
        ):
            await eventually_async(lambda: workload(valkey_server)["replicas"] == 3)
            assert one.stats()["workloads_written"] == 0
            zero.kill()
            await eventually_async(lambda: workload(valkey_server)["replicas"] == 2)
            await eventually_async(lambda: one.stats()["workloads_written"])
            # The higher one may have spoken first; now it leaves it to the lower one.
            wrote = two.stats()["workloads_written"]
            published = two.stats()["published"]
            await eventually_async(lambda: two.stats()["published"] > published + 2)
            assert two.stats()["workloads_written"] == wrote <= 1
            before = workload(valkey_server)["updateTime"]
            await eventually_async(lambda: workload(valkey_server)["updateTime"] > before)
            # The lowest one leads again when it is back.
            with PodProcess(valkey_server.url, 0):
                await eventually_async(lambda: workload(valkey_server)["replicas"] == 3)
                written = one.stats()["workloads_written"]
                published = one.stats()["published"]
                await eventually_async(lambda: one.stats()["published"] > published + 3)
                assert one.stats()["workloads_written"] <= written + 1


async def test_a_service_whose_pods_all_die_is_not_ready_for_long(valkey_server: Server) -> None:
    valkey_server.flush()
    with PodProcess(valkey_server.url, 0) as zero, PodProcess(valkey_server.url, 1) as one:
        async with (
            podlink.Store(valkey_server.url) as store,
            podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as info,
        ):
            assert await info.is_workload_ready(None, SERVICE)
            zero.kill()
            one.kill()

            async def not_ready() -> bool:
                return not await info.is_workload_ready(None, SERVICE)

            await eventually_async(not_ready)
            assert workload(valkey_server) == {}
