"""`podlink explain` as a program."""

import json

from conftest import ServerFactory
from helpers.commands import command
from helpers.grpc_servers import Serve
from helpers.pods import NAMESPACE, SERVICE
from helpers.raw_pods import publish
from helpers.servers import Server

LINK = f"sf:{{{NAMESPACE}:lk:u1}}{SERVICE}"


def explained(*arguments: str, url: str | None = None) -> str:
    """What the command prints; it must end well."""
    # A deadline that only a command that hangs reaches.
    env = {"PODLINK_TIMEOUT": "60"} | ({} if url is None else {"PODLINK_STORE": url})
    ended = command("explain", *arguments, env=env)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_a_user_is_explained_as_text_and_as_json(store_server: Server) -> None:
    publish(store_server, [0, 1], loads={1: 7})
    redis = store_server.client()
    redis.set(LINK, 1)
    lines = explained("u1", SERVICE, url=store_server.url).splitlines()
    assert lines[0] == "u1 of default/svc: compute answers pod 1, because the linked pod is READY"
    table = {line.split("  ")[0]: line for line in lines[2:7]}
    assert table["link"].endswith("pod 1, persistent")
    assert table["owner"].endswith("none: no process has claimed the user")
    assert "READY, load 7, lease " in table["pod 1"]
    assert table["cache"].endswith("nothing about this user in this process")
    assert "2 READY" in table["pods"]
    assert "candidates (p2c)" in lines
    answer = json.loads(explained("u1", SERVICE, "--json", url=store_server.url))
    assert (answer["namespace"], answer["service"], answer["uid"]) == (NAMESPACE, SERVICE, "u1")
    assert (answer["action"], answer["reason"]) == ("keep_link", "owner_ready")
    assert answer["answers"] == [1]
    assert answer["link"] == {"pod_id": 1, "kind": "persistent", "left": None}
    assert [pod["pod_id"] for pod in answer["pods"]] == [0, 1]
    assert redis.keys("*:lk:*") == [LINK]
    assert redis.ttl(LINK) == -1


def test_it_goes_by_the_figures_that_it_is_given(store_server: Server) -> None:
    publish(store_server, [0, 1], loads={0: 5, 1: 7})
    asked = ("u1", SERVICE, "--json", "--strategy", "least_load", "--overload-limit", "6")
    answer = json.loads(explained(*asked, url=store_server.url))
    assert (answer["action"], answer["answers"]) == ("make_link", [0])
    assert (answer["strategy"], answer["overload_limit"]) == ("least_load", 6)
    assert [each["pod_id"] for each in answer["candidates"]] == [0]


def test_another_namespace_is_asked_through_its_server(store_server: Server) -> None:
    publish(store_server, [0], namespace="prod")
    store_server.client().set(f"sf:{{prod:lk:u1}}{SERVICE}", 0)
    with Serve(store_server.url) as serving:
        asked = ("u1", SERVICE, "--namespace", "prod", "--peer", serving.url)
        lines = explained(*asked).splitlines()
        assert lines[0] == (
            "u1 of prod/svc: compute asks the peer of prod, because the namespace is not "
            "this driver's; as far as can be seen from here it answers pod 0"
        )
        answer = json.loads(explained(*asked, "--json"))
    assert (answer["action"], answer["foreign"]) == ("ask_peer", True)


def test_what_cannot_be_explained_is_an_error(server_factory: ServerFactory) -> None:
    ended = command("explain", "u1", SERVICE)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("podlink: INVALID_PARAMETER: --store is needed")
    server = server_factory()
    server.kill()
    env = {"PODLINK_STORE": server.url}
    ended = command("explain", "u1", SERVICE, "--timeout", "0.5", env=env)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(("podlink: STORE_UNAVAILABLE: ", "podlink: TIMEOUT: "))
    ended = command("explain", "u{1}", SERVICE, "--store", "memory://")
    assert (ended.returncode, ended.stderr.split(":")[1]) == (1, " INVALID_PARAMETER")
    ended = command("explain", "u1", SERVICE, "--peer", "nonsense")
    assert (ended.returncode, ended.stderr.split(":")[1]) == (1, " INVALID_PARAMETER")
