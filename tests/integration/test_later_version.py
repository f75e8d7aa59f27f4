"""Pods that a later version of podlink writes, read by this one: used as far as it knows them."""

import json
import logging

import pytest

import podlink
from helpers.pods import FRESH, NAMESPACE, SERVICE, running
from helpers.servers import Server
from helpers.wait import eventually_async

STATES, LEASES = "sf:{default:state:svc}", "sf:{default:state:svc}#lease"
STEADY = podlink.ServerConfig(lease=30.0, renew=0.1, gap=10.0, grace=10.0, cpu_factor=0.0)

LATER = {
    "podId": 5,
    "state": "READY",
    "loadState": -1,
    "routingState": "PAUSED",
    "incarnation": 7,
    "updateTime": 1,
    "shards": [1, 2],
}


async def test_a_later_pod_keeps_its_users_and_is_told_once(
    store_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    seen = store_server.client()
    with caplog.at_level(logging.INFO, "podlink"):
        async with podlink.Store(store_server.url) as store, running(store, 0, config=STEADY):
            seen.hset(STATES, "5", json.dumps(LATER))
            seen.hset(LEASES, mapping={"i:5": "7", "d:5": "9999999999999999", "format": "2"})
            seen.set("sf:{default:lk:old}svc", "5")
            client = podlink.ClientDriver(store, NAMESPACE, route_info=FRESH)
            assert await client.compute_linked_pod(None, "new", SERVICE) == 0
            assert await client.compute_linked_pod(None, "old", SERVICE) == 5
            await client.explain(None, "old", SERVICE)
            refreshes = client.stats()["refreshes"]
            await eventually_async(lambda: client.stats()["refreshes"] > refreshes + 3)
            assert client.stats()["corrupt_states"] == 0
    told = [each.getMessage() for each in caplog.records if "later version" in each.getMessage()]
    assert len(told) == 2, told
    layout = next(each for each in told if "layout" in each)
    assert "default/svc" in layout
    assert "2" in layout
    state = next(each for each in told if "PAUSED" in each)
    assert "default/svc" in state
    assert "5" in state
