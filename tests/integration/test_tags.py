"""Service tags: a name that stands for a service, for everybody in the namespace."""

import asyncio
import time
from typing import Any

import pytest

import podlink
from conftest import ServerFactory
from helpers.wait import LATE, eventually_async

# Absent tags are believed for a refresh period, those that are there for their own time.
SHORT = podlink.RouteInfoConfig(refresh=0.2, tag_ttl=0.4)
LONG = podlink.RouteInfoConfig(refresh=0.2, tag_ttl=60)
NO_CACHE = podlink.RouteInfoConfig(tag_ttl=0)


def driver(store: podlink.Store, config: podlink.RouteInfoConfig) -> podlink.RouteInfoDriver:
    return podlink.RouteInfoDriver(store, "default", config)


async def test_a_tag_is_set_and_found(store_url: str) -> None:
    async with podlink.Store(store_url) as store, driver(store, LONG) as info:
        assert await info.get_service_name_by_tag(None, "matches") is None
        assert await info.set_global_service_name_tag(None, "matches", "match-eu") is True
        # Who set it sees it at once, though it was absent a moment ago.
        assert await info.get_service_name_by_tag(None, "matches") == "match-eu"
        assert await info.set_global_service_name_tag("", "matches", "match-us") is True
        assert await info.get_service_name_by_tag("default", "matches") == "match-us"
        async with driver(store, LONG) as another:
            assert await another.get_service_name_by_tag(None, "matches") == "match-us"
            assert await another.get_service_name_by_tag(None, "match") is None


@pytest.mark.parametrize("kind", ["valkey", "redis7"])
async def test_what_the_store_holds(request: pytest.FixtureRequest, kind: str) -> None:
    server = request.getfixturevalue(f"{kind}_server")
    server.flush()
    raw = server.client()
    async with podlink.Store(server.url) as store, driver(store, NO_CACHE) as info:
        await info.set_global_service_name_tag(None, "t", "svc")
        assert (raw.get("sf:{default:tag:t}"), raw.pttl("sf:{default:tag:t}")) == ("svc", -1)
        # What another tool has written is found.
        raw.set("sf:{default:tag:other}", "game")
        assert await info.get_service_name_by_tag(None, "other") == "game"
        raw.delete("sf:{default:tag:t}")
        assert await info.get_service_name_by_tag(None, "t") is None
        raw.set("sf:{default:tag:broken}", "no service:name")
        with pytest.raises(podlink.StoreDataError):
            await info.get_service_name_by_tag(None, "broken")


async def test_namespaces_have_their_own_tags() -> None:
    store = podlink.Store()
    async with driver(store, LONG) as info, podlink.RouteInfoDriver(store, "other", LONG) as other:
        await info.set_global_service_name_tag(None, "t", "svc")
        assert await other.get_service_name_by_tag(None, "t") is None
        with pytest.raises(podlink.NamespaceUnreachableError):
            await info.get_service_name_by_tag("other", "t")


async def test_a_tag_is_believed_for_a_time_and_then_asked_again(store_url: str) -> None:
    async with (
        podlink.Store(store_url) as store,
        driver(store, SHORT) as info,
        driver(store, NO_CACHE) as another,
    ):
        await another.set_global_service_name_tag(None, "t", "old")
        assert await info.get_service_name_by_tag(None, "t") == "old"
        began = time.monotonic()
        await another.set_global_service_name_tag(None, "t", "new")
        assert await another.get_service_name_by_tag(None, "t") == "new"

        async def is_new() -> bool:
            return await info.get_service_name_by_tag(None, "t") == "new"

        await eventually_async(is_new)
        assert time.monotonic() - began > 0.2
        assert time.monotonic() - began < 0.4 + LATE


async def test_an_absent_tag_is_asked_for_sooner(store_url: str) -> None:
    # A tag that is absent is remembered for one refresh period, however long `tag_ttl` is.
    async with (
        podlink.Store(store_url) as store,
        driver(store, LONG) as info,
        driver(store, NO_CACHE) as another,
    ):
        assert await info.get_service_name_by_tag(None, "t") is None
        await another.set_global_service_name_tag(None, "t", "svc")

        async def is_there() -> bool:
            return await info.get_service_name_by_tag(None, "t") == "svc"

        began = time.monotonic()
        await eventually_async(is_there)
        assert time.monotonic() - began < 0.2 + LATE


async def test_cached_tags_need_no_store(server_factory: ServerFactory) -> None:
    server = server_factory()
    store = podlink.Store(server.url)
    async with driver(store, LONG) as info:
        await info.set_global_service_name_tag(None, "t", "svc")
        assert await info.get_service_name_by_tag(None, "t") == "svc"
        server.pause()
        assert await info.get_service_name_by_tag(None, "t", timeout=0.1) == "svc"
        with pytest.raises(podlink.OperationTimeoutError):
            await info.get_service_name_by_tag(None, "another", timeout=0.1)
        with pytest.raises(podlink.OperationTimeoutError) as caught:
            await info.set_global_service_name_tag(None, "t", "new", timeout=0.1)
        assert caught.value.outcome == "unknown"
        # What was known of the tag before is worth nothing now.
        with pytest.raises(podlink.OperationTimeoutError):
            await info.get_service_name_by_tag(None, "t", timeout=0.1)
        server.resume()
    await store.aclose()


async def test_the_last_one_wins(store_url: str) -> None:
    async with podlink.Store(store_url) as store, driver(store, NO_CACHE) as info:
        names = [f"svc-{n}" for n in range(20)]
        set_tag = info.set_global_service_name_tag
        assert all(await asyncio.gather(*(set_tag(None, "t", name) for name in names)))
        assert await info.get_service_name_by_tag(None, "t") in names


@pytest.mark.parametrize(
    ("tag", "service", "named"),
    [
        ("", "svc", "tag"),
        ("a:b", "svc", "tag"),
        (None, "svc", "tag"),
        ("x" * 64, "svc", "tag"),
        ("t", "", "service_name"),
        ("t", "a b", "service_name"),
        ("t", 5, "service_name"),
    ],
)
async def test_wrong_names_are_refused(tag: Any, service: Any, named: str) -> None:
    async with driver(podlink.Store(), LONG) as info:
        with pytest.raises(podlink.InvalidParameterError) as caught:
            await info.set_global_service_name_tag(None, tag, service)
        assert caught.value.details["parameter"] == named
        if named == "tag":
            with pytest.raises(podlink.InvalidParameterError):
                await info.get_service_name_by_tag(None, tag)
