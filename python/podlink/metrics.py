"""What the drivers have counted, as values for a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import _podlink
from .errors import InvalidParameterError

__all__ = ["Sample", "Snapshot", "Window"]


@dataclass(frozen=True, slots=True)
class Window:
    """What happened lately on the drivers of a store.

    Attributes:
        name: ``"1m"``, ``"5m"`` or ``"15m"``.
        seconds: its real length: shorter than its name while the store is younger, and up to five
            seconds longer.
        cache_hits: computes and lookups that the cache answered.
        cache_misses: those that it could not answer.
        operations: link operations that ended.
        errors: those that ended with an error.
        links_made: new users that were given a pod.
        links_healed: users that were moved away from dead pods.
        store_calls: calls of the store that ended.
        store_errors: those that failed.
    """

    name: str
    seconds: float
    cache_hits: int
    cache_misses: int
    operations: int
    errors: int
    links_made: int
    links_healed: int
    store_calls: int
    store_errors: int

    @property
    def hit_ratio(self) -> float | None:
        """The share of computes and lookups that the cache answered; ``None`` without any."""
        asked = self.cache_hits + self.cache_misses
        return self.cache_hits / asked if asked else None

    @property
    def error_ratio(self) -> float | None:
        """The share of link operations that ended with an error; ``None`` without any."""
        return self.errors / self.operations if self.operations else None

    def per_second(self, count: int) -> float:
        """Returns how often a second something happened, as in
        ``window.per_second(window.links_made)``.
        """
        return count / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One series at one moment.

    Attributes:
        name: the metric's name; counters without ``_total``.
        labels: the labels with their values.
        value: the count or level; of a histogram how many were counted.
        sum: of a histogram the sum of all; otherwise ``None``.
    """

    name: str
    labels: dict[str, str]
    value: float
    sum: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that the drivers of a store have counted, at one moment.

    Attributes:
        windows: what happened in the last minute, five and fifteen minutes.
        samples: every series.
    """

    windows: tuple[Window, ...]
    samples: tuple[Sample, ...]

    @classmethod
    def _of(cls, stores: Sequence[_podlink.StoreCore]) -> Snapshot:
        windows = tuple(
            Window(name, seconds, *counts)
            for store in stores
            for name, seconds, counts in store.windows()
        )
        samples = tuple(
            _sample(name, dict(zip(labels, values, strict=True)), value)
            for name, _kind, _help, labels, series in _podlink.metrics_collect(stores)
            for values, value in series
        )
        return cls(windows, samples)

    def value(self, name: str, **labels: str) -> float:
        """Returns the sum of a metric's series that have these labels; of histograms, how many
        were counted.

        Args:
            name: the metric's name; of a counter with or without ``_total``.
            labels: only series with these values.

        Raises:
            InvalidParameterError: there is no such metric, or it has no such label.

        Example:
            >>> from podlink import Store
            >>> stats = Store("memory://").stats()
            >>> stats.value("podlink_operations_total", operation="compute_linked_pod")
            0.0
        """
        name = name.removesuffix("_total")
        known = {row[0]: {label for label, _ in row[3]} for row in _podlink.metrics_table()}
        _one_of("name", name, known)
        for label in labels:
            _one_of(f"a label of {name}", label, known[name])
        wanted = labels.items()
        return float(
            sum(
                sample.value
                for sample in self.samples
                if sample.name == name and wanted <= sample.labels.items()
            )
        )


def _sample(name: str, labels: dict[str, str], value: Any) -> Sample:
    if isinstance(value, tuple):
        buckets, total = value
        return Sample(name, labels, float(buckets[-1][1]), total)
    return Sample(name, labels, float(value))


def _one_of(parameter: str, given: str, known: Any) -> None:
    if given not in known:
        allowed = ", ".join(sorted(known)) or "nothing"
        raise InvalidParameterError(
            f"{parameter} must be one of {allowed}, got {given!r}",
            details={"parameter": parameter, "given": repr(given), "allowed": allowed},
        )
