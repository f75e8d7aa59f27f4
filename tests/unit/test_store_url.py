"""What a store URL may say, what is wrong with it otherwise, and what nobody ever gets to see."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import podlink

CANARY = "canary-s3cret"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory://", "memory://"),
        ("memory://lobby", "memory://lobby"),
        ("redis://localhost", "redis://localhost"),
        ("redis://localhost:7000/3", "redis://localhost:7000/3"),
        ("rediss://cache.prod:6380", "rediss://cache.prod:6380"),
        ("valkey://[::1]:7000", "valkey://[::1]:7000"),
        ("valkeys://cache", "valkeys://cache"),
        ("redis+unix:///run/redis.sock?db=2", "redis+unix:///run/redis.sock"),
        ("valkey+unix:///run/valkey.sock", "valkey+unix:///run/valkey.sock"),
        (f"redis://:{CANARY}@cache", "redis://***@cache"),
        (f"redis://game:{CANARY}@cache:1/2?db=3", "redis://***@cache:1/2"),
        (f"redis://cache?password={CANARY}", "redis://cache"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    store = podlink.Store(url)
    assert store.url == shown
    assert repr(store) == f"Store({shown!r})"
    connection = podlink.connect(url, namespace="ns")
    assert repr(connection) == f"Connection({shown!r}, namespace='ns')"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "redis://"),
        ("localhost:6379", "redis://"),
        ("http://localhost", "redis://"),
        ("redis:/localhost", "redis"),
        ("redis://", "host"),
        ("redis://h:99999", "redis://"),
        ("redis://h:port", "redis://"),
        ("redis://h/zero", "db"),
        ("redis://h/-1", "db"),
        ("redis://h?colour=red", "colour"),
        ("redis://h?db=x", "db"),
        ("redis://h?connect_timeout=soon", "connect_timeout"),
        ("redis://h?connect_timeout=0", "connect_timeout"),
        ("redis://h?ca_file=/ca.pem", "rediss://"),
        ("rediss://h?cert_file=/c.pem", "key_file"),
        ("redis+unix://", "path"),
        ("memory://x?db=1", "db"),
        ("memory://x/path", "memory://name"),
    ],
)
def test_a_wrong_url_is_refused_and_says_what_is_wrong(url: str, told: str) -> None:
    with pytest.raises(podlink.InvalidParameterError) as caught:
        podlink.Store(url)
    assert told in str(caught.value)
    assert caught.value.details["parameter"] in {"url", "db", "connect_timeout"}
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("url", [None, 5, b"redis://h", Path("redis://h")])
def test_a_url_is_text(url: Any) -> None:
    with pytest.raises(podlink.InvalidParameterTypeError, match="url must be a str"):
        podlink.Store(url)


@pytest.mark.parametrize(
    "options",
    [
        {"db": 3, "username": "game", "password": CANARY},
        {"db": "3", "connect_timeout": 0.5},
        {"connect_timeout": timedelta(seconds=2)},
        {"password": None, "db": None},
    ],
)
def test_options_may_stand_beside_the_url(options: dict[str, Any]) -> None:
    assert repr(podlink.Store("redis://h", **options)) == "Store('redis://h')"


def test_tls_files_may_be_paths() -> None:
    files = {name: Path("/etc/tls") / name for name in ("ca_file", "cert_file", "key_file")}
    assert podlink.Store("rediss://h", **files).url == "rediss://h"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"colour": "red"}, "colour"),
        ({"db": -1}, "db"),
        ({"db": True}, "db"),
        ({"db": 1.5}, "db"),
        ({"connect_timeout": -1}, "connect_timeout"),
        ({"connect_timeout": "soon"}, "connect_timeout"),
        ({"ca_file": "/ca.pem"}, "rediss://"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], told: str) -> None:
    with pytest.raises(podlink.InvalidParameterError, match=told):
        podlink.Store("redis://h", **options)


@pytest.mark.parametrize("value", [[], {}, b"1", object()])
def test_an_option_of_the_wrong_type_is_refused_by_name(value: Any) -> None:
    with pytest.raises(podlink.InvalidParameterTypeError, match="db must be") as caught:
        podlink.Store("redis://h", db=value)
    assert caught.value.details["parameter"] == "db"
    assert caught.value.details["given"] == type(value).__name__


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{CANARY}@host",
        f"redis://user:{CANARY}@host:port",
        f"redis://user:{CANARY}@host/zero",
        f"redis://user:{CANARY}@host?colour=red",
        f"redis://host?password={CANARY}&colour=red",
        f"user:{CANARY}@host",
        f"redis://user:{CANARY}@",
        f"memory://?password={CANARY}",
        f"redis://user:{CANARY}%zz@host?db=x",
        f"redis://h?ca_file=/x&password={CANARY}",
        f"redis:user:{CANARY}@host",
        f"redis//user:{CANARY}@host",
    ],
)
def test_a_refusal_shows_no_secret(url: str) -> None:
    with pytest.raises(podlink.InvalidParameterError) as caught:
        podlink.Store(url)
    assert CANARY not in f"{caught.value} {caught.value!r} {caught.value.details}"


def test_a_refused_option_shows_no_secret() -> None:
    with pytest.raises(podlink.InvalidParameterError) as caught:
        podlink.Store("redis://h", password=[CANARY])  # type: ignore[arg-type]
    assert CANARY not in f"{caught.value!r} {caught.value.details}"


async def test_memory_without_a_name_is_a_store_of_its_own() -> None:
    one, other = podlink.Store("memory://"), podlink.Store("memory://")
    await podlink.ClientDriver(one).set_linked_pod_if_absent(None, "u", "svc", 1)
    assert await podlink.ClientDriver(other).get_linked_pod(None, "u", "svc") is None


async def test_memory_with_a_name_is_shared_in_the_process() -> None:
    one, other = podlink.Store("memory://shared"), podlink.Store("memory://shared")
    third = podlink.Store("memory://another")
    await podlink.ClientDriver(one).set_linked_pod_if_absent(None, "u", "svc", 1)
    assert await podlink.ClientDriver(other).get_linked_pod(None, "u", "svc") == 1
    assert await podlink.ClientDriver(third).get_linked_pod(None, "u", "svc") is None
