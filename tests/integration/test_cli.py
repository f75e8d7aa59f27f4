"""The operators' commands as programs, against real servers and against broken ones."""

import json
import subprocess
from dataclasses import replace
from urllib.parse import quote

import pytest

import podlink
from conftest import ServerFactory
from helpers.commands import PODLINK, command, environment, start
from helpers.pods import FRESH, NAMESPACE, QUICK, SERVICE, pod_info, running
from helpers.programs import run_program
from helpers.servers import Server
from helpers.wait import eventually_async
from podlink import RoutingState


def asked(url: str, *arguments: str) -> str:
    """What the command prints; it must end well."""
    ended = command(*arguments, env={"PODLINK_STORE": url})
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def failed(*arguments: str, url: str) -> str:
    """The one line that the command ends with."""
    ended = command(*arguments, env={"PODLINK_STORE": url})
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.count("\n") == 1
    return ended.stderr.removesuffix("\n")


# --- Answers --------------------------------------------------------------------------------------


async def test_a_user_is_linked_and_found(store_server: Server) -> None:
    url, redis = store_server.url, store_server.client()
    async with podlink.Store(url) as store, running(store, 3):
        assert asked(url, "compute", "u1", SERVICE) == "u1  pod 3\n"
        assert asked(url, "get", "u1", SERVICE) == "u1  pod 3\n"
        answer = json.loads(asked(url, "compute", "u2", SERVICE, "--json", "--link-ttl", "900"))
    assert answer == {"namespace": NAMESPACE, "service": SERVICE, "uid": "u2", "pod": 3}
    assert redis.get(f"sf:{{{NAMESPACE}:lk:u1}}{SERVICE}") == "3"
    assert 0 < redis.ttl(f"sf:{{{NAMESPACE}:lk:u1}}{SERVICE}") <= 300
    assert 300 < redis.ttl(f"sf:{{{NAMESPACE}:lk:u2}}{SERVICE}") <= 900


async def test_get_reads_and_makes_nothing(store_server: Server) -> None:
    async with podlink.Store(store_server.url) as store, running(store, 0):
        assert asked(store_server.url, "get", "u1", SERVICE) == "u1  has no link\n"
    assert store_server.client().keys("*:lk:*") == []


async def test_many_users_at_once(store_server: Server) -> None:
    url, redis = store_server.url, store_server.client()
    for uid, pod in {"a": 1, "b": 0, "c": 1, "d e": 10}.items():
        redis.set(f"sf:{{{NAMESPACE}:lk:{uid}}}{SERVICE}", pod)
    uids = ("c", "b", "nobody", "a", "d e")
    assert asked(url, "batch", *uids, SERVICE) == (
        "pod 0    b\npod 1    c\npod 1    a\npod 10   d e\nno link  nobody\n"
    )
    answer = json.loads(asked(url, "batch", *uids, SERVICE, "--json"))
    assert answer["pods"] == {"0": ["b"], "1": ["c", "a"], "10": ["d e"]}
    assert answer["unlinked"] == ["nobody"]


async def test_users_from_stdin(valkey_server: Server) -> None:
    valkey_server.flush()
    valkey_server.client().set(f"sf:{{{NAMESPACE}:lk:d e}}{SERVICE}", 1)
    env = {"PODLINK_STORE": valkey_server.url}
    lines = b"first\r\n\nd e\nfirst"
    ended = command("batch", "-", "last", SERVICE, env=env, stdin=lines)
    assert ended.stdout == "pod 1    d e\nno link  first\nno link  last\n"
    ended = command("batch", "-", SERVICE, env=env, stdin=b"\xff\n")
    assert ended.returncode == 1
    assert ended.stderr == "podlink: INVALID_PARAMETER: stdin must be UTF-8, one user a line\n"


async def test_services_are_those_with_persistent_links(store_server: Server) -> None:
    async with podlink.Store(store_server.url) as store, running(store, 0) as (pod,):
        await pod.set_linked_pod(None, "u1", "rooms", 4)
        await pod.set_linked_pod(None, "u1", "chat", 0)
        await pod.set_linked_pod(None, "u1", "hint", 2, persist_seconds=60)
    assert asked(store_server.url, "services", "u1") == "chat   pod 0\nrooms  pod 4\n"
    answer = json.loads(asked(store_server.url, "services", "u1", "--json"))
    assert answer == {"namespace": NAMESPACE, "uid": "u1", "services": {"chat": 0, "rooms": 4}}


async def test_the_pods_of_a_service(store_server: Server) -> None:
    url = store_server.url
    plain = replace(QUICK, cpu_factor=0.0)
    metadata = {0: {"address": "10.0.0.1:7000", "note": "two\nlines"}}
    async with (
        podlink.Store(url) as store,
        running(store, 0, 2, config=plain, metadata=metadata) as (pod, full),
    ):
        await full.set_load_state(900)
        await full.set_routing_state(RoutingState.DENY_NEW_CALL)
        lines = asked(url, "pods", SERVICE).splitlines()
        first, second = json.loads(asked(url, "pods", SERVICE, "--json"))["pods"]
    assert [line.split()[:5] for line in lines] == [
        ["POD", "ROUTING", "LOAD", "AVAILABLE", "ROUTABLE"],
        ["0", "READY", "0", "yes", "yes"],
        ["2", "DENY_NEW_CALL", "900", "yes", "no"],
    ]
    # On one line each, whatever a pod says of itself.
    assert lines[1].endswith(r'{"address": "10.0.0.1:7000", "note": "two\nlines"}')
    assert (first["pod_id"], first["available"], first["routable"]) == (0, True, True)
    assert (second["pod_id"], second["available"], second["routable"]) == (2, True, False)
    assert (first["incarnation"], second["incarnation"]) == (pod.incarnation, full.incarnation)
    assert (first["metadata"], second["load_state"]) == (metadata[0], 900)
    assert second["routing_state"] == "DENY_NEW_CALL"


async def test_a_pod_whose_lease_is_over_is_not_shown(valkey_server: Server) -> None:
    valkey_server.flush()
    config = podlink.ServerConfig(lease=0.2, renew=0.05, guard=0.02, gap=0.1, grace=0.1)
    async with (
        podlink.Store(valkey_server.url) as store,
        podlink.RouteInfoDriver(store, NAMESPACE, FRESH) as onlooker,
    ):
        pod = podlink.ServerDriver(store, pod_info(1), config)
        await pod.start()
        # Somebody must look all the time: a store that nobody speaks to for longer than the gap
        # is taken for one that was down, and then every pod gets another lease.
        assert await onlooker.get_all_service_state(None, SERVICE)
        del pod  # without a stop: nobody renews any more
        nobody = f"{SERVICE} has no alive pods\n"
        await eventually_async(lambda: asked(valkey_server.url, "pods", SERVICE) == nobody)


# --- Connections ----------------------------------------------------------------------------------


def test_every_kind_of_login(server_factory: ServerFactory) -> None:
    password = "s3cret/@:# é"
    server = server_factory(password=password, users={"pod": "other word"}, unix_socket=True)
    unix = f"redis+unix://{server.unix_path}?password={quote(password)}"
    for url in (server.url, server.url_for("pod"), unix):
        assert asked(url, "get", "u1", SERVICE) == "u1  has no link\n"


def test_the_option_wins_over_the_variable(valkey_server: Server) -> None:
    valkey_server.flush()
    ended = command(
        *("get", "u1", SERVICE, "--store", valkey_server.url),
        env={"PODLINK_STORE": "redis://127.0.0.1:1"},
    )
    assert ended.returncode == 0


def test_a_wrong_password_is_said_and_not_shown(server_factory: ServerFactory) -> None:
    server = server_factory(password="right")
    url = server.url.replace("right", "mistaken")
    for arguments in (("get", "u1", SERVICE), ("pods", SERVICE), ("demo",)):
        line = failed(*arguments, url=url)
        assert line.startswith("podlink: STORE_AUTHENTICATION: ")
        assert "mistaken" not in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("compute", "u1", SERVICE),
        ("get", "u1", SERVICE),
        ("batch", "u1", SERVICE),
        ("services", "u1"),
        ("pods", SERVICE),
        ("demo",),
    ],
)
def test_a_store_that_is_down_is_one_line(
    server_factory: ServerFactory, arguments: tuple[str, ...]
) -> None:
    server = server_factory(password="hidden")
    server.kill()
    line = failed(*arguments, "--timeout", "0.3", url=server.url)
    assert line.startswith(("podlink: STORE_UNAVAILABLE: ", "podlink: TIMEOUT: "))
    assert "hidden" not in line


@pytest.mark.parametrize("arguments", [("get", "u1", SERVICE), ("pods", SERVICE), ("demo",)])
def test_a_store_that_hangs_is_waited_for_as_long_as_was_asked(
    server_factory: ServerFactory, arguments: tuple[str, ...]
) -> None:
    server = server_factory()
    server.pause()
    line = failed(*arguments, "--timeout", "0.3", url=server.url)
    assert line.startswith(("podlink: STORE_UNAVAILABLE: ", "podlink: TIMEOUT: "))


# --- The rest of the world ------------------------------------------------------------------------


def test_usage_goes_to_stderr_and_exits_2() -> None:
    ended = command("get", "--store", "redis://:secret@host", "--wrong", "redis://:secret@host")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("usage: podlink get")
    assert "secret" not in ended.stderr


def test_the_version_without_a_store() -> None:
    ended = command("--version")
    assert (ended.returncode, ended.stdout) == (0, f"podlink {podlink.__version__}\n")


def test_python_runs_it_as_a_module() -> None:
    printed = run_program("""
        import runpy, sys

        sys.argv = ["podlink", "get", "u1", "svc", "--store", "memory://"]
        runpy.run_module("podlink", run_name="__main__")
    """)
    assert printed == "u1  has no link\n"


def test_a_user_that_the_terminal_cannot_show(valkey_server: Server) -> None:
    valkey_server.flush()
    env = {"PODLINK_STORE": valkey_server.url, "PYTHONIOENCODING": "ascii"}
    ended = command("get", "Jürgen", SERVICE, env=env)
    assert (ended.returncode, ended.stdout) == (0, "J\\xfcrgen  has no link\n")


def test_a_full_disk_is_an_error() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 (a device, not a path to play with)
        ended = subprocess.run(
            [PODLINK, "get", "u1", SERVICE, "--store", "memory://"],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith(b"podlink: OS_ERROR: ")
    assert ended.stderr.count(b"\n") == 1


def test_a_reader_who_has_seen_enough_is_no_error_worth_a_word() -> None:
    process = start("demo")
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        assert process.stdout.readline().startswith("podlink ")
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
