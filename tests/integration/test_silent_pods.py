"""One look at a service that was silent: how long its pods have been silent, and no judgement.

Each look by itself took the silence for an outage of the store, and showed pods that had died long
before as READY with a whole lease.
"""

import asyncio
import json
import re
import time

import pytest

import podlink
from helpers.pods import (
    FRESH,
    GRACE,
    LEASE,
    NAMESPACE,
    PATIENT,
    QUICK,
    SERVICE,
    PodProcess,
    pod_info,
)
from helpers.raw_pods import lease_key, publish
from helpers.servers import Server
from helpers.wait import eventually_async
from podlink.cli import main
from podlink.explain import Action, Explanation, Reason, Standing

UID = "user1"
LINK = f"sf:{{{NAMESPACE}:lk:{UID}}}{SERVICE}"


@pytest.fixture
def silent(store_server: Server) -> Server:
    """A store whose three pods renewed for the last time 61 s ago, and no client since."""
    publish(store_server, [0, 1, 2], routing={1: "DENY_NEW_CALL", 2: "SHUTDOWN"}, ago=61, lease=10)
    return store_server


async def explained(url: str, namespace: str = NAMESPACE) -> Explanation:
    """One look of a driver that did nothing before."""
    async with (
        podlink.Store(url) as store,
        podlink.ClientDriver(store, namespace, PATIENT, route_info=FRESH) as client,
    ):
        return await client.explain(NAMESPACE, UID, SERVICE)


async def command(url: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command prints that runs in this process, so that it may use a store in memory."""
    capsys.readouterr()
    asked = [*arguments, "--store", url]
    assert await asyncio.to_thread(main, asked) == 0
    return capsys.readouterr().out


async def test_explain_judges_no_silent_pod(silent: Server) -> None:
    silent.client().set(LINK, 0)
    told = await explained(silent.url)
    assert (told.action, told.reason) == (Action.KEEP_LINK, Reason.OWNER_SILENT)
    assert [pod.standing for pod in told.pods] == [Standing.SILENT] * 3
    assert [pod.silent for pod in told.pods] == pytest.approx([61] * 3, abs=30)
    assert [pod.lease_left for pod in told.pods] == [0] * 3
    text = str(told)
    assert re.search(
        r"compute answers pod 0, because the linked pod has been silent for \d+ s, not judged$",
        text.splitlines()[0],
    )
    assert re.search(r"pod 0 +SILENT, load 0, silent for \d+ s, not judged", text)
    assert re.search(r"pods +3 SILENT;", text)
    assert re.search(r"silent +pod 0 for \d+ s, pod 1 for \d+ s, pod 2 for \d+ s;", text)
    assert "READY" not in text


async def test_what_explain_foresees_is_what_compute_does(silent: Server) -> None:
    silent.client().set(LINK, 0)
    told = await explained(silent.url)
    async with (
        podlink.Store(silent.url) as store,
        podlink.ClientDriver(store, NAMESPACE, PATIENT, route_info=FRESH) as client,
    ):
        assert (await client.compute_linked_pod(None, UID, SERVICE),) == told.answers == (0,)


async def test_a_lease_that_is_not_over_is_not_lengthened(store_server: Server) -> None:
    # Silent for longer than `gap`, and for less than the lease.
    publish(store_server, [0], ago=40, lease=60, gap=4)
    told = await explained(store_server.url)
    (pod,) = told.pods
    assert (pod.standing, pod.silent) == (Standing.READY, None)
    assert pod.lease_left < 30


async def test_a_pod_that_was_judged_before_is_not_silent(store_server: Server) -> None:
    publish(store_server, [0, 1], ago=61, lease=10)
    # Its lease was over long before the rest of the service fell silent.
    store_server.client().hset(lease_key(), "d:1", int((time.time() - 90) * 1_000_000))
    told = await explained(store_server.url)
    assert [pod.standing for pod in told.pods] == [Standing.SILENT, Standing.LAPSED]


async def test_the_commands_judge_no_silent_pod(
    silent: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = silent.client()
    raw.set(LINK, 1)
    before = raw.hgetall(lease_key())
    top = await command(silent.url, capsys, "top", SERVICE, "--once")
    assert "pods 3 SILENT  routable 0" in top
    shown = await command(silent.url, capsys, "pods", SERVICE)
    asked = ("explain", UID, SERVICE)
    told = await command(silent.url, capsys, *asked)
    for text in (top, shown, told):
        assert re.search(r"silent for [6-9]\d s, not judged", text)
        assert "lease 10" not in text
        assert "10.0 s" not in text
    assert "READY" not in top + told
    for pod in json.loads(await command(silent.url, capsys, "pods", SERVICE, "--json"))["pods"]:
        assert pod["silent"] == pytest.approx(61, abs=30)
        assert pod["available"] is pod["routable"] is None
    assert raw.hgetall(lease_key()) == before, "a look begins no hold"


async def test_a_new_user_is_warned(silent: Server) -> None:
    told = await explained(silent.url)
    assert (told.action, told.answers) == (Action.MAKE_LINK, (0,))
    assert re.search(r"silent +pod 0 for \d+ s", str(told))


async def test_a_peer_passes_the_silence_on(silent: Server) -> None:
    silent.client().set(LINK, 0)
    async with (
        podlink.Store(silent.url) as far,
        podlink.RouteGrpcServer(far, NAMESPACE, authorize=[("*", "*", NAMESPACE)]) as server,
        podlink.RouteGrpcClient(
            f"grpc://{server.address}", config=podlink.GrpcClientConfig(timeout=60)
        ) as peer,
        podlink.ClientDriver(podlink.Store(), "here", PATIENT, peers={NAMESPACE: peer}) as client,
    ):
        told = await client.explain(NAMESPACE, UID, SERVICE)
    assert [pod.standing for pod in told.pods] == [Standing.SILENT] * 3
    assert [pod.silent for pod in told.pods] == pytest.approx([61] * 3, abs=30)


async def test_a_killed_pod_is_looked_at_once_on_a_server(
    store_server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    with PodProcess(store_server.url, 0, config=QUICK) as pod:
        pod.kill()
        await silence(store_server.url, capsys)


async def test_a_killed_pod_is_looked_at_once_in_memory(
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = "memory://silent-pods"
    async with podlink.Store(url) as store:
        pod = podlink.ServerDriver(store, pod_info(0), QUICK)
        await pod.start()
        del pod  # Without a stop: no process renews any more.
        await silence(url, capsys)


async def silence(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing asks the store for longer than lease, grace and gap; then each tool looks once."""
    killed, least = time.monotonic(), LEASE + 2 * GRACE
    await eventually_async(lambda: time.monotonic() - killed > least)
    told = await explained(url)
    (pod,) = told.pods
    assert (pod.standing, pod.lease_left) == (Standing.SILENT, 0)
    assert pod.silent is not None
    assert least - 1 <= pod.silent <= time.monotonic() - killed + 5
    assert "1 SILENT" in await command(url, capsys, "top", SERVICE, "--once")
    assert "not judged" in await command(url, capsys, "explain", UID, SERVICE)
    (shown,) = json.loads(await command(url, capsys, "pods", SERVICE, "--json"))["pods"]
    assert shown["silent"] >= least - 1
