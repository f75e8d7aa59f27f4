"""What somebody else wrote at podlink's keys: skipped or refused, told once, never made worse."""

import json
import logging
from collections.abc import AsyncIterator

import pytest

import podlink
from helpers.faults import CALLS, failure
from helpers.pods import FRESH, NAMESPACE, SERVICE, pod_info, running
from helpers.servers import Server
from helpers.wait import eventually_async

USER = (None, "u1", SERVICE)
LINK, SERVICES = "sf:{default:lk:u1}svc", "sf:{default:lk:u1}"
STATES, LEASES = "sf:{default:state:svc}", "sf:{default:state:svc}#lease"
LIMIT = 2.0

# Pods that outlive everything in this file.
STEADY = podlink.ServerConfig(lease=30.0, renew=0.1, gap=10.0, grace=10.0, cpu_factor=0.0)

WHOLE = {
    "podId": 5,
    "state": "READY",
    "loadState": 0,
    "routingState": "READY",
    "incarnation": 7,
    "updateTime": 1,
}


@pytest.fixture
async def store(store_server: Server) -> AsyncIterator[podlink.Store]:
    async with podlink.Store(store_server.url) as opened:
        yield opened


@pytest.fixture
def client(store: podlink.Store) -> podlink.ClientDriver:
    return podlink.ClientDriver(store, NAMESPACE, route_info=FRESH)


CORRUPT = {
    "no JSON": "{not json",
    "empty": "",
    "not an object": "[1, 2]",
    "null": "null",
    "binary": "\udcff\udcc0\udcfe",
    "half of it": json.dumps(WHOLE)[:40],
    "no pod": json.dumps({**WHOLE, "podId": None}),
    "a negative pod": json.dumps({**WHOLE, "podId": -1}),
    "another pod's": json.dumps({**WHOLE, "podId": 6}),
    "an unknown state": json.dumps({**WHOLE, "routingState": "ready"}),
    "a load in words": json.dumps({**WHOLE, "loadState": "low"}),
    "metadata of numbers": json.dumps({**WHOLE, "metadata": {"a": 1}}),
    "deeply nested": "[" * 5000 + "]" * 5000,
}


@pytest.mark.parametrize("title", CORRUPT)
async def test_a_corrupt_state_is_skipped_counted_and_logged_once(
    store_server: Server,
    store: podlink.Store,
    client: podlink.ClientDriver,
    caplog: pytest.LogCaptureFixture,
    title: str,
) -> None:
    stored = CORRUPT[title].encode("utf-8", "surrogateescape")
    seen = store_server.client()
    with caplog.at_level(logging.INFO, "podlink"):
        async with running(store, 0, config=STEADY):
            seen.hset(STATES, "5", stored)
            seen.hset(LEASES, mapping={"i:5": "7", "d:5": "9999999999999999"})
            assert await client.compute_linked_pod(*USER) == 0
            # Counted each time the pods are read...
            await eventually_async(lambda: client.stats()["corrupt_states"] >= 5)
            assert await client.compute_linked_pod(None, "u2", SERVICE) == 0
            # ...and told once.
            records = [each for each in caplog.records if "cannot be read" in each.getMessage()]
    assert len(records) == 1
    assert records[0].name.startswith("podlink")
    assert records[0].levelno == logging.WARNING
    assert "default/svc" in records[0].getMessage()
    assert '"5"' in records[0].getMessage() or "pod=5" in records[0].getMessage()
    assert len(records[0].getMessage()) < 500
    client_for_raw = store_server.client(decode_responses=False)
    assert client_for_raw.hget(STATES, "5") == stored


async def test_a_pod_whose_state_was_overwritten_writes_it_again(
    store_server: Server, store: podlink.Store, client: podlink.ClientDriver
) -> None:
    seen = store_server.client()
    async with running(store, 0, config=STEADY):
        assert await client.compute_linked_pod(*USER) == 0
        seen.hset(STATES, "0", "rubbish")

        def whole() -> bool:
            return str(seen.hget(STATES, "0")).startswith("{")

        await eventually_async(whole)
        assert await client.compute_linked_pod(None, "u2", SERVICE) == 0


async def test_states_that_others_made_richer_are_understood(
    store_server: Server, store: podlink.Store, client: podlink.ClientDriver
) -> None:
    seen = store_server.client()
    richer = {**WHOLE, "podId": 5, "somethingNew": {"a": [1]}, "metadata": {"weight": "heavy"}}
    async with running(store, 0, config=STEADY, loads={0: 100}):
        seen.hset(STATES, "5", json.dumps(richer, indent=2))
        seen.hset(LEASES, mapping={"i:5": "7", "d:5": "9999999999999999"})
        assert await client.compute_linked_pod(*USER) == 5
        assert client.stats()["corrupt_states"] == 0


@pytest.mark.parametrize(
    ("field", "rubbish"),
    [
        ("d:0", "rubbish"),
        ("i:0", ""),
        ("i:0", "1e400"),
        ("x:0", "nan"),
        ("x:0", "rubbish"),
        ("clk", "rubbish"),
        ("clk", "1e400"),
        ("hold", "inf"),
        ("held", "-1"),
        ("t", "rubbish"),
        ("sweep", "rubbish"),
    ],
)
async def test_a_corrupt_lease_does_not_end_a_pod(
    store_server: Server,
    store: podlink.Store,
    client: podlink.ClientDriver,
    field: str,
    rubbish: str,
) -> None:
    # One lease field that cannot be parsed must not stop the renewals of all pods of the service.
    seen = store_server.client()
    async with running(store, 0, 1, config=STEADY) as pods:
        assert await client.compute_linked_pod(*USER) in {0, 1}
        seen.hset(LEASES, field, rubbish)
        before = [pod.stats()["published"] for pod in pods]
        await eventually_async(
            lambda: all(
                pod.stats()["published"] > count + 2
                for pod, count in zip(pods, before, strict=True)
            ),
            within=5,
        )
        fresh = podlink.ClientDriver(store, NAMESPACE, route_info=FRESH)
        assert await fresh.compute_linked_pod(*USER) in {0, 1}
        assert await fresh.compute_linked_pod(None, "new", SERVICE) in {0, 1}


@pytest.mark.parametrize(
    "stored", ["-1", "", "pod-3", "1.5", "+1", " 1", "99999999999", "9" * 5000]
)
@pytest.mark.parametrize(
    "operation", ["compute_linked_pod", "get_linked_pod", "batch_get_linked_pod"]
)
async def test_a_link_that_is_no_pod_is_refused_and_left_alone(
    store_server: Server,
    store: podlink.Store,
    client: podlink.ClientDriver,
    stored: str,
    operation: str,
) -> None:
    seen = store_server.client()
    async with running(store, 0, config=STEADY):
        seen.set(LINK, stored)
        error = await failure(CALLS[operation], client, timeout=LIMIT)
        assert isinstance(error, podlink.StoreDataError)
        assert isinstance(error, ValueError)
        assert not error.retryable
        assert error.details["key"] == LINK
        assert LINK in str(error)
        assert len(str(error)) < 300
        assert await client.compute_linked_pod(None, "another", SERVICE) == 0
        assert client.get_linked_in_cache(*USER) is None
        assert seen.get(LINK) == stored
        # The pod's own word mends it.
        pod = podlink.ServerDriver(store, pod_info(0))
        await pod.set_linked_pod(*USER, 0)
        assert await client.compute_linked_pod(*USER) == 0


async def test_a_list_of_services_with_rubbish_in_it_names_the_key(
    store_server: Server, client: podlink.ClientDriver
) -> None:
    seen = store_server.client()
    for rubbish in ({"svc": "-1"}, {"a:b": "1"}, {"": "0"}):
        seen.delete(SERVICES)
        seen.hset(SERVICES, mapping=rubbish)  # type: ignore[arg-type]
        error = await failure(CALLS["get_link_service"], client, timeout=LIMIT)
        assert isinstance(error, podlink.StoreDataError)
        assert error.details["key"] == SERVICES
