"""The admin endpoint: what it shows, to whom, and that nothing holds it up."""

import asyncio
import http.client
import json
import socket
import subprocess
import threading
from contextlib import closing

import pytest

import podlink
from helpers.commands import PODLINK, environment
from helpers.pods import FRESH, NAMESPACE, SERVICE, running
from helpers.scrape import Scrape
from helpers.wait import eventually


def get(address: str | None, path: str, method: str = "GET") -> tuple[int, str, dict[str, str]]:
    """Status, body and headers."""
    assert address is not None
    with closing(http.client.HTTPConnection(address, timeout=10)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())


async def test_metrics_health_and_pods(store_url: str) -> None:
    async with podlink.connect(store_url, namespace=NAMESPACE, route_info=FRESH) as connection:
        async with (
            running(connection.store, 0, 1, metadata={0: {"address": "10.0.0.1:1"}}),
            podlink.AdminServer(connection, "127.0.0.1:0") as admin,
        ):
            await connection.client.compute_linked_pod(None, "u1", SERVICE)
            status, text, headers = await asyncio.to_thread(get, admin.address, "/metrics")
            assert status == 200
            assert headers["content-type"].startswith("application/openmetrics-text")
            page = Scrape.of(text)
            assert page.value("podlink_cache_misses_total") == 1
            assert (await asyncio.to_thread(get, admin.address, "/healthz"))[:2] == (200, "alive\n")
            assert (await asyncio.to_thread(get, admin.address, "/readyz"))[:2] == (200, "ready\n")
            status, text, headers = await asyncio.to_thread(get, admin.address, "/pods?x=1")
            assert (status, headers["content-type"]) == (200, "application/json")
            (service,) = json.loads(text)
            assert (service["namespace"], service["service"]) == (NAMESPACE, SERVICE)
            assert [pod["pod"] for pod in service["pods"]] == [0, 1]
            assert service["pods"][0]["state"] == "ready"
            assert service["pods"][0]["metadata"] == {"address": "10.0.0.1:1"}
            assert 0 < service["pods"][0]["lease_left_seconds"] <= 60
            status, _, headers = await asyncio.to_thread(get, admin.address, "/metrics", "POST")
            assert (status, headers["allow"]) == (405, "GET, HEAD")
            assert (await asyncio.to_thread(get, admin.address, "/metrics", "HEAD"))[:2] == (
                200,
                "",
            )
            assert (await asyncio.to_thread(get, admin.address, "/"))[0] == 404
        with pytest.raises(OSError, match="refused"):
            get(admin.address, "/healthz")
        await admin.aclose()
        with pytest.raises(podlink.ClosedError):
            await admin.start()


async def test_a_second_start_and_an_address_that_is_taken_are_told() -> None:
    store = podlink.Store()
    async with podlink.AdminServer(store, "127.0.0.1:0") as admin:
        with pytest.raises(podlink.IllegalStateError, match="started already"):
            await admin.start()
        assert admin.address is not None
        with pytest.raises(podlink.InvalidParameterError, match="cannot listen"):
            await podlink.AdminServer(store, admin.address).start()


def test_other_machines_are_let_in_only_on_request() -> None:
    store = podlink.Store()
    with pytest.raises(podlink.InvalidParameterError, match="insecure=True"):
        podlink.AdminServer(store, "0.0.0.0:0")
    podlink.AdminServer(store, "0.0.0.0:0", insecure=True)
    podlink.AdminServer(store, "[::1]:0")
    with pytest.raises(podlink.InvalidParameterError, match="listen"):
        podlink.AdminServer(store, "nonsense")
    with pytest.raises(TypeError, match="source must be a Store or a Connection, got str"):
        podlink.AdminServer("memory://")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="insecure"):
        podlink.AdminServer(store, insecure="yes")  # type: ignore[arg-type]


async def test_it_answers_while_the_loop_is_stuck() -> None:
    """Kubernetes must not hear silence from a game server that computes for a minute."""
    admin = podlink.AdminServer(podlink.Store(), "127.0.0.1:0")
    address = await admin.start()
    answers: list[tuple[int, str, dict[str, str]]] = []
    thread = threading.Thread(target=lambda: answers.append(get(address, "/metrics")))
    thread.start()
    thread.join(20)  # and the loop does nothing else meanwhile
    assert answers
    assert answers[0][0] == 200
    await admin.aclose()


async def test_a_lost_store_and_a_draining_pod_are_not_ready(server_factory) -> None:
    server = server_factory()
    async with (
        podlink.Store(server.url) as store,
        running(store, 0) as (zero,),
        podlink.AdminServer(store, "127.0.0.1:0") as admin,
    ):
        assert (await asyncio.to_thread(get, admin.address, "/readyz"))[0] == 200
        release = asyncio.Event()

        async def save(user: podlink.Ownership) -> None:
            await release.wait()

        zero.on_drain(save)
        await zero.set_linked_pod(None, "u", SERVICE, 0)
        stopping = asyncio.create_task(zero.stop())
        status, text = 0, ""
        while status != 503:
            status, text, _ = await asyncio.to_thread(get, admin.address, "/readyz")
        assert text.startswith("ILLEGAL_STATE: ready: ")
        assert "being stopped" in text
        release.set()
        await stopping
        assert (await asyncio.to_thread(get, admin.address, "/readyz"))[0] == 200
        server.kill()
        status, text, _ = await asyncio.to_thread(get, admin.address, "/readyz")
        assert status == 503
        assert text.split(":")[0] in {"STORE_UNAVAILABLE", "TIMEOUT"}
        assert (await asyncio.to_thread(get, admin.address, "/healthz"))[0] == 200


async def test_callers_that_send_nonsense_or_nothing_hold_nobody_up() -> None:
    async with podlink.AdminServer(podlink.Store(), "127.0.0.1:0") as admin:
        assert admin.address is not None
        host, port = admin.address.split(":")

        def send(text: bytes) -> bytes:
            with socket.create_connection((host, int(port)), timeout=20) as connection:
                connection.sendall(text)
                return connection.recv(4096)

        def sent_and_gone() -> int:
            silent = [socket.create_connection((host, int(port))) for _ in range(20)]
            try:
                assert send(b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 20_000).startswith(
                    b"HTTP/1.1 431"
                )
                many = b"".join(b"X%d: a\r\n" % number for number in range(100))
                assert send(b"GET / HTTP/1.1\r\n" + many + b"\r\n").startswith(b"HTTP/1.1 431")
                assert send(b"\x16\x03\x01nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
                return get(admin.address, "/healthz")[0]
            finally:
                for each in silent:
                    each.close()

        assert await asyncio.to_thread(sent_and_gone) == 200


async def test_more_callers_than_places_wait_their_turn() -> None:
    async with podlink.AdminServer(podlink.Store(), "127.0.0.1:0") as admin:
        answers = await asyncio.gather(
            *(asyncio.to_thread(get, admin.address, "/metrics") for _ in range(100))
        )
        assert {answer[0] for answer in answers} == {200}


def test_a_dropped_server_listens_no_more() -> None:
    async def listen() -> str:
        admin = podlink.AdminServer(podlink.Store(), "127.0.0.1:0")
        return await admin.start()

    address = asyncio.run(listen())

    def gone() -> bool:
        try:
            get(address, "/healthz")
        except OSError:
            return True
        return False

    assert eventually(gone)


def test_podlink_serve_logs_to_stderr() -> None:
    # It wrote no log at all, and a program of ours has no place to configure one.
    options = ("--store", "memory://", "--listen", "127.0.0.1:0")
    pipe = subprocess.PIPE
    for level, said in [(None, True), ("error", False)]:
        env = environment() | ({} if level is None else {"PODLINK_LOG": level})
        with subprocess.Popen(
            [PODLINK, "serve", *options], stdout=pipe, stderr=pipe, text=True, env=env
        ) as serving:
            assert serving.stdout is not None
            address = serving.stdout.readline().split()[-1]
            serving.terminate()
            _, log = serving.communicate()
        served = f"INFO podlink.rpc.server: the gRPC server listens address={address}"
        assert (served in log) is said, log


def test_podlink_serve_has_one_on_request() -> None:
    options = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    with subprocess.Popen(
        [PODLINK, "serve", "--store", "memory://", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as serving:
        try:
            assert serving.stdout is not None
            assert serving.stdout.readline().startswith("serving default on ")
            address = serving.stdout.readline().removeprefix("admin on ").strip()
            assert get(address, "/readyz")[:2] == (200, "ready\n")
            assert "podlink_stores 1.0" in get(address, "/metrics")[1]
        finally:
            serving.terminate()
    assert serving.returncode == 0
