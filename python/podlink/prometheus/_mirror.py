"""podlink's metrics as those of ``prometheus_client``, for its multiprocess mode."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from podlink import _podlink
from podlink.store import Store

_log = logging.getLogger("podlink.prometheus")

_EVERY_SECONDS = 1.0

# How the workers' gauges are merged; all of them only while the worker lives.
_MODES = {"sum": "livesum", "most": "livemax", "least": "livemin"}

Series = tuple[str, tuple[str, ...]]


class Mirror:
    """Copies what stores' drivers have counted, every second and at exit. Its thread ends with the
    process.
    """

    def __init__(self, families: Callable[[Iterable[Store]], list[Any]]) -> None:
        self.pid = os.getpid()
        self.stores: list[Store] = []
        self._families = families
        self._metrics = {row[0]: _metric(*row) for row in _podlink.metrics_table()}
        self._copied: dict[Series, Any] = {}
        self._copying = threading.Lock()
        atexit.register(self._last_copy)
        threading.Thread(target=self._run, name="podlink-metrics", daemon=True).start()

    def leave(self, store: Store) -> None:
        """Copies once more what a store has counted, then forgets the store."""
        if store in self.stores:
            self.copy()
            self.stores.remove(store)

    def copy(self) -> None:
        """Brings the copies up to date."""
        with self._copying:
            seen = set()
            for name, kind, _text, _labels, series in self._families(list(self.stores)):
                for values, value in series:
                    seen.add((name, values))
                    self._put(kind, (name, values), value)
            # A gauge that is gone becomes 0: series cannot be removed in this mode.
            for key in self._copied.keys() - seen:
                if isinstance(self._metrics[key[0]], Gauge):
                    self._put("gauge", key, 0.0)

    def _put(self, kind: str, key: Series, value: Any) -> None:
        name, values = key
        metric = self._metrics[name]
        child = metric.labels(*values) if values else metric
        if kind == "gauge":
            child.set(value)
        elif kind == "counter":
            child.inc(max(value - self._copied.get(key, 0), 0))
        else:
            _add_spread(child, value, self._copied.get(key))
        self._copied[key] = value

    def _run(self) -> None:
        stop = threading.Event()
        while not stop.wait(_EVERY_SECONDS):
            try:
                self.copy()
            except Exception:  # noqa: BLE001 - logged, and tried again
                # The files may be gone, the disk full: the next copy may succeed again.
                _log.exception("the metrics were not copied")

    def _last_copy(self) -> None:
        if self.pid == os.getpid():
            self.copy()


def _metric(
    name: str, kind: str, text: str, labels: list[tuple[str, Any]], merge: str, bounds: list[float]
) -> Any:
    names = tuple(label for label, _ in labels)
    # In no registry: this mode reads files, and the service's registry keeps its names.
    if kind == "counter":
        return Counter(name, text, names, registry=None)
    if kind == "gauge":
        mode: Any = _MODES[merge]
        return Gauge(name, text, names, registry=None, multiprocess_mode=mode)
    return Histogram(name, text, names, registry=None, buckets=bounds)


def _add_spread(child: Any, value: Any, copied: Any) -> None:
    """Adds to a histogram what was counted since. ``prometheus_client`` can only observe values
    one by one, and these are counted already: so its buckets are added to.
    """
    buckets, total = value
    before = copied[0] if copied else [(bound, 0) for bound, _ in buckets]
    so_far = 0
    for bucket, (_, count), (_, earlier) in zip(child._buckets, buckets, before, strict=True):
        more = count - earlier
        bucket.inc(max(more - so_far, 0))
        so_far = more
    child._sum.inc(max(total - (copied[1] if copied else 0.0), 0.0))
