"""The metrics after a story: every counter has the value that the story implies."""

import asyncio
from collections.abc import AsyncIterator

import pytest

import podlink
from helpers.pods import FRESH, NAMESPACE, SERVICE, pod_info, running
from helpers.scrape import TABLE, Scrape
from helpers.wait import eventually_async

# What a story with one namespace, one store and no failures does not bring forth, and why.
NOT_IN_THE_STORY = {
    "podlink_peer_calls": "no other namespace",
    "podlink_peer_call_duration_seconds": "no other namespace",
    "podlink_peer_endpoints": "no other namespace",
    "podlink_links_moved": "no pod hands its users over",
    "podlink_links_healed": "no pod dies",
}


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[podlink.Store]:
    async with podlink.Store(store_url) as opened:
        yield opened


def client_on(store: podlink.Store) -> podlink.ClientDriver:
    return podlink.ClientDriver(store, NAMESPACE, route_info=FRESH)


def scrape(store: podlink.Store) -> Scrape:
    return Scrape.of(store.metrics_text())


async def test_a_story_is_told_number_by_number(store: podlink.Store) -> None:
    client = client_on(store)
    lost: list[int] = []
    async with client, running(store, 0, 1) as (zero, one):
        client.on_pod_lost(lambda pod, users: lost.append(pod))
        # Ten new users, each asked for three times.
        for _ in range(3):
            for number in range(10):
                await client.compute_linked_pod(None, f"u{number}", SERVICE)
        await client.get_linked_pod(None, "u0", SERVICE)
        await client.get_linked_pod(None, "nobody", SERVICE)
        await client.get_linked_pod_not_cache(None, "u0", SERVICE)
        await client.batch_get_linked_pod(None, ["u0", "u1", "u2"], SERVICE)
        await client.get_link_service(None, "u0")
        client.cache_expired(None, "u0", SERVICE)
        client.set_cache(None, "u1", SERVICE, 0)
        await client.set_linked_pod_if_absent(None, "new", SERVICE, 1)
        # Pod 1 makes three users its own, gives one up itself, and two when it stops.
        for user in ("a", "b"):
            await one.set_linked_pod(None, user, SERVICE, 1)
        owned = await one.claim(None, "c")
        assert await one.try_set_linked_pod(None, "a", SERVICE, 1) == (True, 1)
        with pytest.raises(podlink.NotOwnerError):
            await zero.claim(None, "a")
        assert await owned.verify()
        assert await one.remove_linked_pod(None, "c", SERVICE)
        assert not await owned.release()
        page = scrape(store)
        labels = {"namespace": NAMESPACE, "service": SERVICE}
        assert page.value("podlink_owned_users", pod="1", **labels) == 2
        assert page.value("podlink_draining", pod="1", **labels) == 0
        assert 0 < page.value("podlink_lease_left_seconds", pod="1", **labels) <= 60
        report = await one.stop(drain="release")
        assert report.released == 2
        await eventually_async(lambda: lost)
        assert zero.stats()["published"] > 0

        page = scrape(store)
        assert page.misfits() == []
        ended = "podlink_operations_total"
        assert page.value(ended, operation="compute_linked_pod", outcome="cached") == 20
        assert page.value(ended, operation="compute_linked_pod", outcome="ok") == 10
        assert page.value(ended, operation="get_linked_in_cache", outcome="cached") == 1
        once = (
            "get_linked_pod",
            "get_linked_pod_not_cache",
            "batch_get_linked_pod",
            "get_link_service",
            "set_linked_pod_if_absent",
            "try_set_linked_pod",
            "remove_linked_pod",
            "claim",
            "verify",
            "release",
        )
        for operation in once:
            assert page.value(ended, operation=operation, outcome="ok") == 1, operation
            took = "podlink_operation_duration_seconds_count"
            assert page.value(took, operation=operation, result="ok") == 1
        assert page.value(ended, operation="set_linked_pod", outcome="ok") == 2
        assert page.value(ended, operation="claim", outcome="NOT_OWNER") == 1
        assert page.value("podlink_cache_hits_total") == 21
        assert page.value("podlink_cache_misses_total") == 11
        assert page.value("podlink_cache_invalidations_total") == 2
        assert page.value("podlink_cache_hit_ratio", window="1m") == pytest.approx(21 / 32)
        assert page.value("podlink_links_made_total", **labels) == 10
        assert page.value("podlink_links_refused_total", **labels) == 0
        assert page.value("podlink_links_released_total", pod="1", **labels) == 2
        fates = "podlink_drain_users"
        assert page.value(fates, pod="1", state="released", **labels) == 2
        assert page.value(fates, pod="1", state="remaining", **labels) == 0
        assert page.value("podlink_drain_duration_seconds_count") == 1
        calls = "podlink_store_calls_total"
        # A set is a read and a swap; the pod gives away what it holds by a swap alone.
        assert page.value(calls, call="read", outcome="ok") == 2 + 1
        assert page.value(calls, call="swap", outcome="ok") == 2 + 1 + 2
        assert page.value(calls, call="claim", outcome="ok") == 3
        assert page.value(calls, call="pod_certify", outcome="ok") == 1
        claims = "podlink_claims_total"
        assert page.value(claims, outcome="made") == 1
        assert page.value(claims, outcome="repeated") == 1
        assert page.value(claims, outcome="not_owner") == 1
        assert page.value(claims, outcome="failed") == 0
        assert page.value("podlink_ownerships_verified_total") == 1
        assert page.total("podlink_ownerships_lost_total") == 0
        assert page.value("podlink_ownerships_reasserted_total") == 0
        assert page.value("podlink_late_answers_refused_total") == 0
        assert page.value("podlink_lease_suspensions_total") == 0
        assert page.value("podlink_leases_lost_total") == 0
        assert page.value(calls, call="pod_begin", outcome="ok") == 2
        assert page.value(calls, call="pod_end", outcome="ok") == 1
        assert page.value("podlink_store_batch_size_sum", call="batch_get") == 3
        assert page.value("podlink_store_unknown_outcomes_total", call="set_if_absent") == 0
        assert page.value("podlink_stores") == page.value("podlink_store_connected") == 1
        assert page.value("podlink_hook_calls_total", hook="pod_lost") >= 1
        published = page.value("podlink_publications_total", outcome="ok")
        assert published == page.value("podlink_publication_duration_seconds_count") > 2
        assert page.value("podlink_publications_total", outcome="failed") == 0
        # The first of each pod renews nothing, and neither does the last word of a pod that stops.
        assert page.value("podlink_lease_margin_seconds_count") == published - 2
        seen = "podlink_pods"
        await eventually_async(lambda: scrape(store).value(seen, state="ready", **labels) == 1)
        assert scrape(store).value("podlink_routable_pods", **labels) == 1


async def test_every_metric_of_the_table_can_be_seen(store: podlink.Store) -> None:
    client = client_on(store)
    async with client, running(store, 0, 1) as (zero, one):
        client.on_pod_lost(lambda pod, users: None)
        await client.compute_linked_pod(None, "u", SERVICE)
        await client.batch_get_linked_pod(None, ["u"], SERVICE)
        await one.set_linked_pod(None, "a", SERVICE, 1)
        await one.stop()
        name = "podlink_hook_duration_seconds"
        await eventually_async(lambda: name in scrape(store).names())
        page = scrape(store)
        assert page.names() | set(NOT_IN_THE_STORY) == set(TABLE)
        assert page.misfits() == []
        assert zero.stats()["published"]


async def test_failures_are_counted_by_their_codes(store: podlink.Store) -> None:
    client = client_on(store)
    with pytest.raises(podlink.NoRoutablePodError):
        await client.compute_linked_pod(None, "u", SERVICE)
    page = scrape(store)
    labels = {"namespace": NAMESPACE, "service": SERVICE}
    assert page.value("podlink_links_refused_total", **labels) == 1
    ended = "podlink_operations_total"
    assert page.value(ended, operation="compute_linked_pod", outcome="POD_NOT_ROUTABLE") == 1
    took = "podlink_operation_duration_seconds_count"
    assert page.value(took, operation="compute_linked_pod", result="error") == 1
    window = store.stats().windows[0]
    assert (window.operations, window.errors, window.error_ratio) == (1, 1, 1.0)


async def test_a_full_cache_and_answers_that_are_no_good(store: podlink.Store) -> None:
    config = podlink.ClientConfig(cache_capacity=20)
    client = podlink.ClientDriver(store, NAMESPACE, config, route_info=FRESH)
    async with running(store, 0):
        for number in range(50):
            await client.compute_linked_pod(None, f"u{number}", SERVICE)
        page = scrape(store)
        assert page.value("podlink_cache_evictions_total") == 30
        assert page.value("podlink_cache_entries") == 20
        assert page.value("podlink_cache_stale_total") == 0
        # The cache believes in a pod that nobody has seen: a compute does not.
        client.set_cache(None, "new", SERVICE, 7)
        assert await client.compute_linked_pod(None, "new", SERVICE) == 0
        assert scrape(store).value("podlink_cache_stale_total") == 1


async def test_no_counter_falls_when_drivers_are_closed_and_dropped(store: podlink.Store) -> None:
    async with running(store, 0):
        before = scrape(store).counts()
        for number in range(5):
            client = client_on(store)
            for _ in range(2):
                await client.compute_linked_pod(None, f"u{number}", SERVICE)
            during = scrape(store).counts()
            await client.aclose()
            del client
            after = scrape(store).counts()
            for earlier, later in ((before, during), (during, after)):
                assert {key for key in earlier if later.get(key, -1) < earlier[key]} == set()
            before = after
        hits = store.stats().value("podlink_cache_hits_total")
        assert hits == 5
        assert store.stats().value("podlink_links_made") == 5
    await store.aclose()
    assert scrape(store).value("podlink_cache_hits_total") == 5
    assert "podlink_stores" not in scrape(store).names()


async def test_scrapes_while_everything_is_going_on(store: podlink.Store) -> None:
    """Drivers come, work, close and go while several threads scrape."""
    done = asyncio.Event()
    pages: list[Scrape] = []

    async def watch() -> None:
        while not done.is_set():
            pages.append(Scrape.of(await asyncio.to_thread(store.metrics_text)))

    async def work(number: int) -> None:
        for turn in range(5):
            async with client_on(store) as client:
                for _ in range(3):
                    await client.compute_linked_pod(None, f"u{number}-{turn}", SERVICE)

    async with running(store, 0):
        watchers = [asyncio.create_task(watch()) for _ in range(3)]
        await asyncio.gather(*(work(number) for number in range(8)))
        done.set()
        await asyncio.gather(*watchers)
    assert pages
    page = scrape(store)
    asked = page.value("podlink_cache_hits_total") + page.value("podlink_cache_misses_total")
    assert asked == 8 * 5 * 3
    assert page.value("podlink_links_made_total", namespace=NAMESPACE, service=SERVICE) == 40


async def test_more_services_than_fit_share_one_name() -> None:
    store = podlink.Store("memory://")
    client = client_on(store)
    for number in range(80):
        with pytest.raises(podlink.NoRoutablePodError):
            await client.compute_linked_pod(None, "u", f"svc{number}", timeout=5)
    page = scrape(store)
    assert page.value("podlink_links_refused_total", namespace="other", service="other") == 16
    assert page.total("podlink_links_refused_total") == 80


async def test_calls_of_a_peer_are_counted() -> None:
    there, here = podlink.Store("memory://"), podlink.Store("memory://")
    rules = [("*", "*", NAMESPACE)]
    async with (
        running(there, 0),
        podlink.RouteGrpcServer(there, NAMESPACE, authorize=rules) as server,
        podlink.RouteGrpcClient(f"grpc://{server.address}") as peer,
        podlink.ClientDriver(here, "elsewhere", peers={NAMESPACE: peer}) as client,
    ):
        for _ in range(3):
            assert await client.compute_linked_pod(NAMESPACE, "u", SERVICE) == 0
        with pytest.raises(podlink.InvalidParameterError):
            await client.set_linked_pod_if_absent(NAMESPACE, "u", SERVICE, -1)
        page = scrape(here)
        assert page.misfits() == []
        calls = "podlink_peer_calls_total"
        assert page.value(calls, peer=NAMESPACE, method="compute", code="ok") == 1
        took = "podlink_peer_call_duration_seconds_count"
        assert page.value(took, peer=NAMESPACE, method="compute", result="ok") == 1
        endpoint = {"peer": NAMESPACE, "endpoint": f"grpc://{server.address}"}

        def condition(name: str) -> float:
            return scrape(here).value("podlink_peer_endpoints", condition=name, **endpoint)

        await eventually_async(lambda: condition("READY") == 1)
        assert condition("DOWN") == 0
        assert page.value("podlink_cache_hits_total") == 2
        await server.stop()
        with pytest.raises(podlink.PodlinkError):
            await client.compute_linked_pod(NAMESPACE, "other", SERVICE, timeout=1)
        page = scrape(here)
        failed = page.total(calls, method="compute") - 1
        assert failed == 1
        await eventually_async(lambda: condition("READY") == 0)


async def test_a_uid_is_never_a_label(store: podlink.Store) -> None:
    client = client_on(store)
    async with running(store, 0) as (zero,):
        await zero.set_linked_pod(None, "secret-user", SERVICE, 0)
        await client.compute_linked_pod(None, "secret-user", SERVICE)
        assert "secret-user" not in store.metrics_text()


def test_a_snapshot_refuses_names_that_there_are_not() -> None:
    stats = podlink.Store("memory://").stats()
    with pytest.raises(podlink.InvalidParameterError, match="podlink_links_made"):
        stats.value("podlink_links")
    with pytest.raises(podlink.InvalidParameterError, match="namespace, service"):
        stats.value("podlink_links_made_total", uid="u")
    assert [window.name for window in stats.windows] == ["1m", "5m", "15m"]
    assert stats.windows[0].hit_ratio is None
    assert stats.windows[0].per_second(0) == 0.0


async def test_hooks_are_counted_with_their_failures(store: podlink.Store) -> None:
    def strategy(uid: str, candidates: object) -> int:
        raise RuntimeError("no")

    before = store.stats()
    config = podlink.ClientConfig(strategy=strategy)
    client = podlink.ClientDriver(store, NAMESPACE, config, route_info=FRESH)
    drained: list[str] = []

    def save(user: podlink.Ownership) -> None:
        drained.append(user.uid)

    async with running(store, 0):
        await client.compute_linked_pod(None, "u", SERVICE)
        server = podlink.ServerDriver(store, pod_info(1))
        server.on_drain(save)
        await server.start()
        await server.set_linked_pod(None, "a", SERVICE, 1)
        await server.stop()
    assert drained == ["a"]
    after = store.stats()

    def more(name: str, hook: str) -> float:
        return after.value(name, hook=hook) - before.value(name, hook=hook)

    assert more("podlink_hook_calls_total", "strategy") == 1
    assert more("podlink_hook_failures_total", "strategy") == 1
    assert more("podlink_hook_calls_total", "drain") == 1
    assert more("podlink_hook_failures_total", "drain") == 0
    assert more("podlink_hook_duration_seconds", "drain") == 1
