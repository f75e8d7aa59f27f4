"""Scrapes read as Prometheus reads them, with prometheus_client's own parser."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from podlink import _podlink

Series = tuple[str, frozenset[tuple[str, str]]]

TABLE = {row[0]: row for row in _podlink.metrics_table()}


class Scrape:
    """One page, every series by its name and labels."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = list(families)
        self.values: dict[Series, float] = {}
        for family in self.families:
            for sample in family.samples:
                series = (sample.name, frozenset(sample.labels.items()))
                assert series not in self.values, f"{series} stands there twice"
                self.values[series] = sample.value

    @classmethod
    def of(cls, text: str) -> Scrape:
        """A page of text; the parser raises where it is not OpenMetrics."""
        return cls(text_string_to_metric_families(text))

    def value(self, name: str, **labels: str) -> float:
        """The value of one series; 0 if it is not there."""
        return self.values.get((name, frozenset(labels.items())), 0.0)

    def total(self, name: str, **labels: str) -> float:
        """The sum of all series with these labels."""
        wanted = labels.items()
        return sum(
            value
            for (known, found), value in self.values.items()
            if known == name and wanted <= set(found)
        )

    def names(self) -> set[str]:
        """The metric families of podlink's that say something."""
        return {family.name for family in self.families if family.name.startswith("podlink_")}

    def misfits(self) -> list[str]:
        """Labels that are not those of the table, and values that the table does not allow."""
        return [
            f"{sample.name} {sample.labels}"
            for family in self.families
            if family.name in TABLE
            for sample in family.samples
            if not _fits(sample.labels, TABLE[family.name][3])
        ]

    def counts(self) -> dict[Series, float]:
        """Everything that may only rise."""
        rising = ("_total", "_bucket", "_count", "_sum")
        return {key: value for key, value in self.values.items() if key[0].endswith(rising)}


def _fits(labels: dict[str, str], allowed: list[tuple[str, list[str] | None]]) -> bool:
    given = {name: value for name, value in labels.items() if name != "le"}
    return set(given) == {name for name, _ in allowed} and all(
        values is None or given[name] in values for name, values in allowed
    )
