"""What somebody else wrote at podlink's keys: skipped or refused, told once, never made worse."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

import podlink
from helpers.faults import CALLS, failure
from helpers.pods import FRESH, NAMESPACE, SERVICE, running
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
    "stored",
    ["007", "-1", "", "pod-3", "1.5", "1e3", "+1", " 1", "1 ", "99999999999", "9" * 5000],
)
@pytest.mark.parametrize("operation", ["compute_linked_pod", "get_linked_pod"])
async def test_a_link_that_is_no_pod_is_refused_and_left_alone(
    store_server: Server,
    store: podlink.Store,
    client: podlink.ClientDriver,
    stored: str,
    operation: str,
) -> None:
    seen = store_server.client()
    async with running(store, 0, config=STEADY) as [pod]:
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
        # What tries, claims or removes does not overwrite it...
        careful: list[Any] = [
            pod.claim(*USER),
            pod.try_set_linked_pod(*USER, 0),
            pod.remove_linked_pod(*USER),
            pod.remove_linked_pod_with_id(*USER, 1, 0),
        ]
        for call in careful:
            with pytest.raises(podlink.StoreDataError) as caught:
                await call
            assert caught.value.details["key"] == LINK
            assert seen.get(LINK) == stored
        assert not pod.owns(*USER)
        # ...but setting mends it.
        assert await pod.set_linked_pod(*USER, 0) is None
        assert pod.owns(*USER)
        assert await client.compute_linked_pod(*USER) == 0


async def test_a_link_of_the_wrong_type_is_named(
    store_server: Server, store: podlink.Store, client: podlink.ClientDriver
) -> None:
    async with running(store, 0, config=STEADY):
        store_server.client().rpush(LINK, "0")
        for operation in ("compute_linked_pod", "get_linked_pod"):
            error = await failure(CALLS[operation], client, timeout=LIMIT)
            assert error.details["key"] == LINK
            assert LINK in str(error)


# Each the value of one user's link; the last is a list.
SPOILT = ("007", "-1", "+1", " 1", "1 ", "", "x", "1e3", "4294967296", None)


def spoil(server: Server) -> dict[str, int | None]:
    """Users in turn with a link and with a spoilt one; what each one's pod is."""
    seen, expected = server.client(), dict[str, int | None]()
    for at, junk in enumerate(SPOILT):
        good, bad = f"good{at}", f"bad{at}"
        seen.set(f"sf:{{default:lk:{good}}}svc", "0")
        if junk is None:
            seen.rpush(f"sf:{{default:lk:{bad}}}svc", "0")
        else:
            seen.set(f"sf:{{default:lk:{bad}}}svc", junk)
        expected |= {good: 0, bad: None}
    return expected


async def test_spoilt_links_harm_their_users_only(
    store_server: Server,
    store: podlink.Store,
    client: podlink.ClientDriver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # One of these failed the whole batch, and "007" was pod 7.
    expected = spoil(store_server)
    good = [uid for uid, pod in expected.items() if pod == 0]
    async with running(store, 0, config=STEADY):
        with caplog.at_level(logging.INFO, "podlink"):
            assert await client.batch_get_linked_pod(None, expected, SERVICE) == {0: good}
        computed = await asyncio.gather(
            *(client.compute_linked_pod(None, uid, SERVICE, timeout=60) for uid in expected),
            return_exceptions=True,
        )
    for (uid, pod), answer in zip(expected.items(), computed, strict=True):
        if pod is None:
            assert isinstance(answer, podlink.StoreError)
            assert answer.details["key"] == f"sf:{{default:lk:{uid}}}svc"
        else:
            assert answer == pod
    await eventually_async(lambda: "cannot be read" in caplog.text)
    (record,) = [each for each in caplog.records if "cannot be read" in each.getMessage()]
    assert record.levelno == logging.WARNING
    assert f"links={len(SPOILT)}" in record.getMessage()
    assert podlink.hash_uid("bad0") in record.getMessage()
    assert "bad" not in record.getMessage()
    assert client.stats()["corrupt_links"] == len(SPOILT)
    assert f"podlink_link_corrupt_total {len(SPOILT)}" in store.metrics_text()


async def test_the_keys_of_spoilt_links_are_logged_at_debug(
    store_server: Server, client: podlink.ClientDriver, caplog: pytest.LogCaptureFixture
) -> None:
    expected = spoil(store_server)
    keys = [f"sf:{{default:lk:{uid}}}svc" for uid, pod in expected.items() if pod is None]
    with caplog.at_level(logging.DEBUG, "podlink"):
        podlink._podlink.set_log_filter("debug")
        try:
            await client.batch_get_linked_pod(None, expected, SERVICE)
            await eventually_async(lambda: all(key in caplog.text for key in keys))
        finally:
            podlink._podlink.set_log_filter("info")


async def test_a_peer_leaves_spoilt_links_out(store_server: Server) -> None:
    expected = spoil(store_server)
    store_server.client().hset(SERVICES, mapping={"svc": "007", "chat": "3"})
    good = [uid for uid, pod in expected.items() if pod == 0]
    async with (
        podlink.Store(store_server.url) as far,
        podlink.RouteGrpcServer(far, NAMESPACE, authorize=[("*", "*", NAMESPACE)]) as server,
        podlink.RouteGrpcClient(
            f"grpc://{server.address}", config=podlink.GrpcClientConfig(timeout=60)
        ) as peer,
        podlink.ClientDriver(podlink.Store(), "here", peers={NAMESPACE: peer}) as client,
    ):
        for asked in (peer, client):
            assert await asked.batch_get_linked_pod(NAMESPACE, expected, SERVICE) == {0: good}
            assert await asked.get_link_service(NAMESPACE, "u1") == {"chat": 3}
        with pytest.raises(podlink.StoreDataError):
            await client.get_linked_pod(NAMESPACE, "bad0", SERVICE)
        assert f"podlink_link_corrupt_total {2 * (len(SPOILT) + 1)}" in far.metrics_text()


async def test_a_spoilt_service_of_a_user_hides_no_other(
    store_server: Server, client: podlink.ClientDriver
) -> None:
    seen = store_server.client()
    for field, rubbish in (("svc", "-1"), ("svc", "007"), ("a:b", "1"), ("", "0")):
        seen.delete(SERVICES)
        seen.hset(SERVICES, mapping={field: rubbish, "chat": "4"})
        assert await client.get_link_service(None, "u1") == {"chat": 4}
    assert client.stats()["corrupt_links"] == 4
    seen.delete(SERVICES)
    seen.set(SERVICES, "4")
    error = await failure(CALLS["get_link_service"], client, timeout=LIMIT)
    assert error.details["key"] == SERVICES
