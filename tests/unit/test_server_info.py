"""Who this pod is: from arguments, from what Kubernetes tells it, or a clear error."""

import socket
from typing import Any

import pytest

import podlink
from podlink import server_info as server_info_module

ORDINALS = [("game-0", 0), ("game-17", 17), ("user-service-3", 3), ("a-1-2", 2)]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A machine that is no pod."""
    monkeypatch.setattr(socket, "gethostname", lambda: "laptop")
    absent = tmp_path_factory.mktemp("account") / "namespace"
    monkeypatch.setattr(server_info_module, "_NAMESPACE_FILE", absent)


@pytest.mark.parametrize(("name", "ordinal"), ORDINALS)
def test_the_pods_name_says_everything(name: str, ordinal: int) -> None:
    info = podlink.ServerInfo.from_env(environ={"POD_NAME": name, "POD_NAMESPACE": "prod"})
    assert (info.pod_index, info.service_name) == (ordinal, name.rpartition("-")[0])
    assert (info.pod_name, info.namespace, info.pod_uid) == (name, "prod", "")


def test_the_host_name_is_asked_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "game-5.game.prod.svc.cluster.local")
    info = podlink.ServerInfo.from_env(environ={"POD_NAMESPACE": "prod"})
    assert (info.service_name, info.pod_index) == ("game", 5)


def test_what_is_said_more_plainly_wins() -> None:
    environ = {
        "POD_NAME": "game-3",
        "POD_INDEX": "4",
        "POD_NAMESPACE": "prod",
        "SERVICE_NAME": "lobby",
        "POD_UID": "11-22",
    }
    info = podlink.ServerInfo.from_env(environ=environ)
    assert (info.pod_index, info.service_name, info.pod_uid) == (4, "lobby", "11-22")
    info = podlink.ServerInfo.from_env("chat", pod_index=0, namespace="test", environ=environ)
    assert (info.pod_index, info.service_name, info.namespace) == (0, "chat", "test")


def test_the_namespace_may_come_from_the_service_account(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("account") / "namespace"
    file.write_text("staging\n")
    monkeypatch.setattr(server_info_module, "_NAMESPACE_FILE", file)
    assert podlink.ServerInfo.from_env(environ={"POD_NAME": "game-0"}).namespace == "staging"


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({}, "POD_NAMESPACE"),
        ({"POD_NAMESPACE": "prod"}, "SERVICE_NAME"),
        ({"POD_NAMESPACE": "prod", "SERVICE_NAME": "game"}, "POD_INDEX"),
        ({"POD_NAMESPACE": "prod", "POD_NAME": "game"}, "SERVICE_NAME"),
        ({"POD_NAMESPACE": "prod", "POD_NAME": "game-x"}, "SERVICE_NAME"),
        ({"POD_NAMESPACE": "prod", "POD_NAME": "game-0", "POD_INDEX": "one"}, "POD_INDEX"),
        ({"POD_NAMESPACE": "prod", "POD_NAME": "game-0", "POD_INDEX": "-1"}, "POD_INDEX"),
        ({"POD_NAMESPACE": "prod", "POD_NAME": "game-0", "POD_INDEX": "\uff11"}, "POD_INDEX"),
        ({"POD_NAME": "game-0"}, "POD_NAMESPACE"),
    ],
)
def test_what_is_not_to_be_found_is_named_with_where_it_was_looked_for(
    environ: dict[str, str], told: str
) -> None:
    with pytest.raises(podlink.InvalidParameterError, match=told) as caught:
        podlink.ServerInfo.from_env(environ=environ)
    assert caught.value.details["parameter"]


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("namespace", ""),
        ("namespace", "a:b"),
        ("namespace", None),
        ("service_name", ""),
        ("service_name", "a b"),
        ("service_name", 5),
        ("pod_index", -1),
        ("pod_index", 2**31),
        ("pod_index", "0"),
        ("pod_index", True),
        ("pod_index", None),
        ("pod_name", 5),
        ("pod_uid", 5),
        ("metadata", 5),
        ("metadata", {"zone": 5}),
        ("metadata", {5: "zone"}),
    ],
)
def test_a_wrong_identity_is_refused_by_the_fields_name(field: str, given: Any) -> None:
    identity: dict[str, Any] = {"namespace": "ns", "service_name": "svc", "pod_index": 0}
    with pytest.raises(podlink.InvalidParameterError, match=field) as caught:
        podlink.ServerInfo(**(identity | {field: given}))
    assert caught.value.details["parameter"] == field


def test_an_error_of_metadata_names_the_key() -> None:
    with pytest.raises(podlink.InvalidParameterTypeError) as caught:
        podlink.ServerInfo("ns", "svc", 0, metadata={"zone": "a", "weight": 3})  # type: ignore[dict-item]
    assert str(caught.value) == "metadata['weight'] must be a str, got int"


def test_metadata_that_was_changed_is_checked_again() -> None:
    metadata: dict[str, Any] = {"zone": "a"}
    info = podlink.ServerInfo("ns", "svc", 0, metadata=metadata)
    metadata["zone"] = 5
    with pytest.raises(podlink.InvalidParameterTypeError, match="zone"):
        podlink.ServerDriver(podlink.Store(), info)


def test_a_driver_wants_an_identity() -> None:
    with pytest.raises(podlink.InvalidParameterTypeError, match="server_info"):
        podlink.ServerDriver(podlink.Store(), "game-0")  # type: ignore[arg-type]
    with pytest.raises(podlink.InvalidParameterTypeError, match="store"):
        podlink.ServerDriver("memory://", podlink.ServerInfo("a", "b", 0))  # type: ignore[arg-type]
