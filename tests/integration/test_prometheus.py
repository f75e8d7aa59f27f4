"""podlink's metrics in prometheus_client's registry, of one process and of several."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families

import podlink
from helpers.pods import FRESH, NAMESPACE, SERVICE, running
from helpers.programs import environment
from helpers.scrape import TABLE, Scrape
from helpers.wait import eventually
from podlink import prometheus


def scrape(registry: CollectorRegistry) -> Scrape:
    """The page as OpenMetrics; the older format has the same series."""
    plain = Scrape(text_string_to_metric_families(generate_latest(registry).decode()))
    page = Scrape.of(generate_openmetrics(registry).decode())
    assert page.counts().keys() >= plain.counts().keys()
    return page


async def test_a_service_sees_podlink_beside_its_own() -> None:
    registry = CollectorRegistry()
    Counter("games_played", "The service's own.", registry=registry).inc()
    async with podlink.connect("memory://", namespace=NAMESPACE, route_info=FRESH) as connection:
        prometheus.register(connection, registry)
        async with running(connection.store, 0):
            for _ in range(3):
                await connection.client.compute_linked_pod(None, "u1", SERVICE)
            text = Scrape.of(connection.metrics_text())
            page = scrape(registry)
            assert page.value("games_played_total") == 1
            assert page.value("podlink_cache_hits_total") == 2
            assert page.misfits() == []
            assert page.names() == text.names()
            # The text is the older one, and the pod has gone on renewing.
            assert {key for key, old in text.counts().items() if page.values[key] < old} == set()
    assert scrape(registry).value("podlink_cache_hits_total") == 2
    prometheus.unregister(connection, registry)
    assert scrape(registry).names() == set()


def test_registering_twice_changes_nothing() -> None:
    registry, store = CollectorRegistry(), podlink.Store("memory://")
    for _ in range(3):
        prometheus.register(store, registry)
    assert scrape(registry).value("podlink_build_info", version=podlink.__version__) == 1
    prometheus.unregister(store, registry)
    prometheus.unregister(store, registry)
    prometheus.register(store, registry)
    assert "podlink_build_info" in scrape(registry).names()


async def test_two_stores_in_one_registry_are_added_up() -> None:
    registry = CollectorRegistry()
    stores = [podlink.Store("memory://") for _ in range(2)]
    for store in stores:
        prometheus.register(store, registry)
    for store in stores:
        async with running(store, 0):
            client = podlink.ClientDriver(store, NAMESPACE)
            for _ in range(3):
                await client.compute_linked_pod(None, "u1", SERVICE)
    page = scrape(registry)
    assert page.value("podlink_cache_hits_total") == 4
    assert page.value("podlink_stores") == 2
    prometheus.unregister(stores[0], registry)
    assert scrape(registry).value("podlink_cache_hits_total") == 2


def test_a_name_that_is_taken_is_told() -> None:
    registry = CollectorRegistry()
    Counter("podlink_cache_hits", "Somebody else's.", registry=registry)
    with pytest.raises(ValueError, match="podlink_cache_hits"):
        prometheus.register(podlink.Store("memory://"), registry)
    assert scrape(registry).names() == {"podlink_cache_hits"}


@pytest.mark.parametrize(("source", "registry"), [("memory://", None), (None, "registry")])
def test_what_is_no_store_or_registry_is_told(source: Any, registry: Any) -> None:
    store = source or podlink.Store("memory://")
    with pytest.raises(podlink.InvalidParameterTypeError, match="must be a"):
        prometheus.register(store, registry or CollectorRegistry())


def test_a_forked_child_shows_nothing_of_its_parents() -> None:
    registry, store = CollectorRegistry(), podlink.Store("memory://")
    prometheus.register(store, registry)

    async def compute() -> None:
        async with running(store, 0):
            await podlink.ClientDriver(store, NAMESPACE).compute_linked_pod(None, "u1", SERVICE)

    asyncio.run(compute())
    assert scrape(registry).value("podlink_cache_misses_total") == 1
    child = os.fork()
    if child == 0:
        code = 1
        try:
            page = scrape(registry)
            own = podlink.Store("memory://")
            prometheus.register(own, registry)
            if "podlink_cache_misses" not in page.names() and not page.value(
                "podlink_bridge_wake_ups_total"
            ):
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Worker:
    """A process of the service."""

    def __init__(self, url: str, directory: Path, user: str, count: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "helpers.metered_worker", url, user, str(count)],
            env={**environment(), "PROMETHEUS_MULTIPROC_DIR": str(directory)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> None:
        """The regular end."""
        self.process.communicate(timeout=30)
        assert self.process.returncode == 0


async def test_the_workers_of_one_service_are_added_up(valkey_server, tmp_path: Path) -> None:
    """As gunicorn runs it: each worker registers its own store, one of them is scraped."""
    valkey_server.flush()
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))

    def value(name: str, **labels: str) -> float:
        return Scrape(registry.collect()).value(name, **labels)

    async with podlink.Store(valkey_server.url) as store, running(store, 0):
        workers = [Worker(valkey_server.url, tmp_path, f"u{at}", 5) for at in range(3)]
        await asyncio.gather(*(asyncio.to_thread(worker.ready) for worker in workers))
        took = "podlink_store_call_duration_seconds"
        made = {"call": "set_if_absent", "result": "ok"}

        def complete() -> Scrape | None:
            # A worker copies one figure after the other: a page may show half of a copy.
            page = Scrape(registry.collect())
            copied = page.value("podlink_cache_hits_total") == 12
            copied &= page.value(f"{took}_count", **made) == 3
            return page if copied and page.misfits() == [] else None

        # While they run.
        page = await asyncio.to_thread(eventually, complete)
        assert page is not None
        assert page.names() <= set(TABLE)
        labels = {"namespace": NAMESPACE, "service": SERVICE}
        assert page.value("podlink_links_made_total", **labels) == 3
        assert page.value("podlink_store_connected") == page.value("podlink_stores") == 3
        assert page.value("podlink_pods", state="ready", **labels) == 1
        assert page.value(f"{took}_bucket", le="+Inf", **made) == 3
        assert page.value(f"{took}_sum", **made) > 0
        # One ends, in the regular way: what it counted stays, what it was goes.
        await asyncio.to_thread(workers[0].end)
        mark_process_dead(workers[0].process.pid, str(tmp_path))
        assert value("podlink_cache_hits_total") == 12
        assert value("podlink_stores") == 2
        # One is killed. Its figures were copied while it lived.
        workers[1].process.kill()
        await asyncio.to_thread(workers[1].process.communicate)
        mark_process_dead(workers[1].process.pid, str(tmp_path))
        assert value("podlink_cache_hits_total") == 12
        assert value("podlink_stores") == 1
        await asyncio.to_thread(workers[2].end)


async def test_a_worker_that_ends_at_once_has_told_everything(
    valkey_server, tmp_path: Path
) -> None:
    valkey_server.flush()
    async with podlink.Store(valkey_server.url) as store, running(store, 0):
        worker = Worker(valkey_server.url, tmp_path, "u", 40)
        await asyncio.to_thread(worker.end)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))
    assert Scrape(registry.collect()).value("podlink_cache_hits_total") == 39
