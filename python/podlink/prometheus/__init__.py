"""podlink's metrics in a service's own ``prometheus_client`` registry; needs the extra
``prometheus``.

    >>> from prometheus_client import CollectorRegistry, generate_latest
    >>> from podlink import Store
    >>> registry = CollectorRegistry()
    >>> store = Store("memory://")
    >>> register(store, registry)
    >>> b"podlink_build_info" in generate_latest(registry)
    True

**Several processes.** In the multiprocess mode of ``prometheus_client`` (gunicorn and the like:
``PROMETHEUS_MULTIPROC_DIR`` is set) a scrape reads files and ignores collectors. ``register`` does
the right thing there by itself: it copies podlink's metrics into those of ``prometheus_client``
every second, and at exit, so that the usual ``MultiProcessCollector`` shows them with the
service's own. Call it in each worker, after the fork, with a store that the worker has made.
Gauges are added up, or the largest or smallest of the workers is shown, as each one needs; those
of workers that are gone disappear when the service calls ``mark_process_dead``, as always.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable
from typing import Any

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
    from prometheus_client.utils import floatToGoString
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        "podlink.prometheus needs prometheus-client: pip install 'podlink[prometheus]'",
        name=_missing.name,
    ) from _missing

from podlink import _podlink
from podlink.config import check_type
from podlink.connection import Connection, store_of
from podlink.errors import ForkedProcessError
from podlink.store import Store

from ._mirror import Mirror

__all__ = ["register", "unregister"]


class _Collector(Collector):
    """The one collector of podlink's in a registry. Several stores are added up in it, so that no
    series can stand there twice.
    """

    def __init__(self) -> None:
        self.stores: list[Store] = []

    def describe(self) -> Iterable[Metric]:
        """Every name that may ever be collected: the registry refuses others of the same name."""
        for name, kind, text, labels, _merge, _bounds in _podlink.metrics_table():
            yield _family(name, kind, text, tuple(label for label, _ in labels))

    def collect(self) -> Iterable[Metric]:
        """Everything that the stores' drivers have counted."""
        for name, kind, text, labels, series in families(self.stores):
            family: Any = _family(name, kind, text, labels)
            for values, value in series:
                if isinstance(value, tuple):
                    buckets, total = value
                    shown = [(floatToGoString(bound), count) for bound, count in buckets]
                    family.add_metric(values, shown, total)
                else:
                    family.add_metric(values, value)
            yield family


def _family(name: str, kind: str, text: str, labels: tuple[str, ...]) -> Metric:
    if kind == "counter":
        return CounterMetricFamily(name, text, labels=labels)
    if kind == "histogram":
        return HistogramMetricFamily(name, text, labels=labels)
    return GaugeMetricFamily(name, text, labels=labels)


def families(stores: Iterable[Store]) -> list[Any]:
    """What the stores' drivers have counted; stores of a parent process are left out."""
    return _podlink.metrics_collect([store._core for store in stores if _is_ours(store)])


def _is_ours(store: Store) -> bool:
    try:
        store._core.windows()
    except ForkedProcessError:
        return False
    return True


_collectors: weakref.WeakKeyDictionary[CollectorRegistry, _Collector]
_collectors = weakref.WeakKeyDictionary()
_mirror: Mirror | None = None
_lock = threading.Lock()


def register(source: Store | Connection, registry: CollectorRegistry = REGISTRY) -> None:
    """Shows what the drivers on a store have counted, and will count, in this registry.

    The counts stay when drivers or the store are closed, until ``unregister``; the registry holds
    the store for that long. Registering a store twice changes nothing. Several stores in one
    registry are added up: for series per store, use a registry for each. A scrape
    waits for nothing, and may come at any time: while drivers are closed, and in a forked child,
    where nothing of the parent's is shown.

    In multiprocess mode ``registry`` is of no importance; see above.

    Args:
        source: the store, or a connection's.
        registry: where to show it; by default where ``prometheus_client`` shows everything.

    Raises:
        InvalidParameterTypeError: ``source`` or ``registry`` is none.
        ValueError: the registry has a metric of the same name already that is not podlink's.

    Example:
        >>> from prometheus_client import CollectorRegistry
        >>> from podlink import Store
        >>> register(Store("memory://"), CollectorRegistry())
    """
    store = store_of(source)
    check_type("registry", registry, CollectorRegistry)
    with _lock:
        stores = _mirrored() if _multiprocess() else _collected(registry)
        if store not in stores:
            stores.append(store)


def unregister(source: Store | Connection, registry: CollectorRegistry = REGISTRY) -> None:
    """Takes a store's metrics out of the registry. One that is not in it is no error. In
    multiprocess mode, what was counted stays.

    Example:
        >>> from podlink import Store
        >>> unregister(Store("memory://"))
    """
    store = store_of(source)
    with _lock:
        collector = _collectors.get(registry)
        if collector is not None and store in collector.stores:
            collector.stores.remove(store)
            if not collector.stores:
                registry.unregister(collector)
                del _collectors[registry]
        if _mirror is not None:
            _mirror.leave(store)


def _multiprocess() -> bool:
    return any(
        name in os.environ for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
    )


def _collected(registry: CollectorRegistry) -> list[Store]:
    collector = _collectors.get(registry)
    if collector is None:
        collector = _Collector()
        registry.register(collector)
        _collectors[registry] = collector
    return collector.stores


def _mirrored() -> list[Store]:
    global _mirror
    if _mirror is None or _mirror.pid != os.getpid():
        _mirror = Mirror(families)
    return _mirror.stores


def _after_fork_in_child() -> None:
    global _lock
    # A thread that does not exist here may have held it.
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
