"""The servers that other tests rely on do what helpers/servers.py says they do."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import redis

from conftest import ServerFactory
from helpers.servers import Server
from helpers.wait import eventually, eventually_async

KINDS = ["valkey", "redis7"]
HELPERS_PARENT = Path(__file__).parents[1]


def test_the_shared_servers_are_what_their_names_say(
    valkey_server: Server, redis7_server: Server
) -> None:
    assert valkey_server.client().info("server")["server_name"] == "valkey"
    about = redis7_server.client().info("server")
    assert "server_name" not in about
    assert int(about["redis_version"].split(".")[0]) >= 7


@pytest.mark.parametrize("_round", [1, 2])
def test_a_shared_server_is_empty_for_each_test(store_server: Server, _round: int) -> None:
    client = store_server.client()
    assert client.dbsize() == 0
    client.set("left", "behind")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("durable", [False, True])
def test_a_killed_server_comes_back_on_its_port(
    server_factory: ServerFactory, kind: str, durable: bool
) -> None:
    server = server_factory(kind, durable=durable)
    client, port, pid = server.client(), server.port, server.pid
    client.set("a", "1")
    server.kill()
    with pytest.raises(redis.ConnectionError):
        client.ping()
    server.restart()
    assert (server.port, server.pid == pid) == (port, False)
    assert client.get("a") == ("1" if durable else None)


def test_a_paused_server_keeps_connections_and_does_not_answer(
    server_factory: ServerFactory,
) -> None:
    server = server_factory()
    client = server.client(socket_timeout=0.05)
    client.set("a", "1")
    server.pause()
    with pytest.raises(redis.TimeoutError):
        client.get("a")
    server.resume()
    assert server.client().get("a") == "1"


@pytest.mark.parametrize("kind", KINDS)
def test_passwords_and_users(server_factory: ServerFactory, kind: str) -> None:
    server = server_factory(kind, password="s3cret/@:# é", users={"pod": "other word"})
    for address in (server.url, server.url_for("pod")):
        with redis.Redis.from_url(address) as client:
            assert client.ping()
    assert server.client("pod").acl_whoami() == "pod"
    with pytest.raises(redis.AuthenticationError):
        server.client(password=None).ping()


@pytest.mark.parametrize("kind", KINDS)
def test_a_unix_socket(server_factory: ServerFactory, kind: str) -> None:
    server = server_factory(kind, unix_socket=True, password="word")
    with redis.Redis.from_url(server.unix_url) as client:
        assert client.ping()


@pytest.mark.parametrize("client_certificate", [False, True])
def test_tls(server_factory: ServerFactory, client_certificate: bool) -> None:
    server = server_factory("redis7", tls=True, client_certificate=client_certificate)
    assert server.url.startswith("rediss://")
    assert server.client().ping()
    assert server.tls is not None
    with redis.Redis.from_url(server.url, ssl_ca_certs=str(server.tls.ca)) as without:
        if client_certificate:
            with pytest.raises(redis.ConnectionError):
                without.ping()
        else:
            assert without.ping()
    with (
        redis.Redis.from_url(server.url) as distrustful,
        pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        distrustful.ping()


def test_a_full_server_refuses_writes(server_factory: ServerFactory) -> None:
    client = server_factory(maxmemory="1kb").client()
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        client.set("a", "1")


def test_a_server_that_cannot_start_says_why(server_factory: ServerFactory) -> None:
    with pytest.raises(RuntimeError, match="no-such-setting"):
        server_factory(settings={"no-such-setting": "1"})


async def test_a_server_outlives_the_thread_that_started_it(
    server_factory: ServerFactory,
) -> None:
    # The kernel's "dies with its parent" is about threads; see helpers/servers.py.
    started: list[Server] = []
    thread = threading.Thread(target=lambda: started.append(server_factory()))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert started[0].client().ping()


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a child of its parent's death"
)
def test_no_server_survives_a_killed_test_run() -> None:
    program = (
        "import signal, sys; from helpers.servers import Server; from helpers import server_paths\n"
        "server = Server(server_paths.valkey_server()); server.start()\n"
        "print(server.pid, server._folder, flush=True); signal.pause()"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program], cwd=HELPERS_PARENT, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    with run, run.stdout:
        pid, folder = run.stdout.readline().split()
        assert psutil.pid_exists(int(pid))
        os.kill(run.pid, signal.SIGKILL)
    eventually(lambda: _is_gone(int(pid)))
    for file in Path(folder).iterdir():
        file.unlink()
    Path(folder).rmdir()


def _is_gone(pid: int) -> bool:
    # Who inherits an orphan may be slow to bury it, or never do it, as in a bare container.
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


async def test_waiting_gives_the_answer_or_says_what_it_waited_for() -> None:
    answers = iter([0, None, "", 7])
    assert eventually(lambda: next(answers)) == 7

    async def never() -> bool:
        return False

    with pytest.raises(AssertionError, match=r"never did not hold within 0\.05 s"):
        await eventually_async(never, within=0.05)
    assert await eventually_async(lambda: "at once", within=0) == "at once"
