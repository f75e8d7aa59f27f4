"""One snapshot of a service, as the lines of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from podlink._show import columns, one_line
from podlink.explain import Death, Explanation, PodFacts, Standing, silence

from ._scrape import Totals

__all__ = ["Frame"]

_NONE = "-"
_BAR_WIDTH = 8
_METADATA_MAX = 60


@dataclass(frozen=True, slots=True)
class Frame:
    """What was seen at one moment.

    Attributes:
        service: the service, with its namespace.
        clock: the time of day.
        explained: the pods as the store shows them; ``None`` if it does not answer.
        code: of the error, if it does not answer.
        trouble: why it does not answer.
        rates: what services have counted a second, if they were scraped twice.
        users: by pod, the users that it owns, if it was scraped.
        scrapes: how many addresses were scraped, how many answered, and what is wrong with one of
            those that did not.
        stores: of the scraped, how many stores are connected, and how many there are.
    """

    service: str
    clock: str
    explained: Explanation | None
    code: str
    trouble: str
    rates: Totals | None
    users: dict[int, int]
    scrapes: tuple[int, int, str]
    stores: tuple[int, int]

    def lines(self, width: int | None = None, height: int | None = None) -> list[tuple[str, str]]:
        """The lines, each with a style, for so wide and so high a screen, or for as long as they
        are.
        """
        head = [(one_line(f"{self.service}  {self.clock}"), "head"), *self._summary(width)]
        table = self._table(width)
        if table:
            room = len(table) if height is None else max(height - len(head) - 2, 1)
            shown = table[:1] + _most_urgent(table[1:], room)
            head += [("", ""), *shown]
            left_out = len(table) - len(shown)
            if left_out:
                head.append((f"and {left_out} more pods", ""))
        return head

    def _summary(self, width: int | None) -> list[tuple[str, str]]:
        if self.explained is None:
            return [(one_line(self.trouble), "bold")]
        pods = self.explained.pods
        counts = [
            f"{count} {standing}"
            for standing in Standing
            if (count := sum(pod.standing is standing for pod in pods))
        ]
        silent = {pod.pod_id for pod in pods if pod.silent is not None}
        routable = [each for each in self.explained.candidates if each.pod_id not in silent]
        parts = [f"pods {', '.join(counts) or 'none'}", f"routable {len(routable)}"]
        lines = [("  ".join(parts), "")]
        if self.explained.degraded:
            lines.append(("every READY pod is above the overload limit", "bold"))
        return [*lines, *self._scraped(width)]

    def _scraped(self, width: int | None) -> list[tuple[str, str]]:
        asked, answered, trouble = self.scrapes
        if not asked:
            return [("rates: give --metrics URL of services that podlink runs in", "")]
        lines = [(line, "") for line in _wrapped(self._rates(), width)]
        if trouble:
            lines.append((one_line(f"{answered} of {asked} scraped; {trouble}"), "bold"))
        return lines

    def _rates(self) -> list[str]:
        connected, stores = self.stores
        store = f"stores {connected}/{stores}"
        if self.rates is None:
            return ["rates: after the next scrape", store]
        hit_rate = self.rates.hit_rate
        return [
            f"links/s {_rate(self.rates.made)}",
            f"moved/s {_rate(self.rates.moved)}",
            f"refused/s {_rate(self.rates.refused)}",
            f"computes/s {_rate(self.rates.hits + self.rates.misses)}",
            f"hit rate {_NONE if hit_rate is None else f'{hit_rate:.1%}'}",
            f"errors/s {_rate(self.rates.errors)}",
            f"store errors/s {_rate(self.rates.store_errors)}",
            store,
        ]

    def _table(self, width: int | None) -> list[tuple[str, str]]:
        if self.explained is None or not self.explained.pods:
            return []
        pods = sorted(self.explained.pods, key=lambda pod: pod.pod_id)
        heaviest = max((pod.load_state or 0 for pod in pods), default=0)
        shown = [_SHORT, _LONG][width is None or width >= _LONG_WIDTH]
        cells = [self._cells(pod, heaviest) for pod in pods]
        rows = columns([shown, *([row[name] for name in shown] for row in cells)])
        styles = ["bold", *("bold" if _is_urgent(pod) else "" for pod in pods)]
        return list(zip(rows, styles, strict=True))

    def _cells(self, pod: PodFacts, heaviest: int) -> dict[str, str]:
        moved = None if self.rates is None else self.rates.moved_from.get(pod.pod_id, 0.0)
        load = pod.load_state
        return {
            "POD": str(pod.pod_id),
            "STATE": pod.standing,
            "LOAD": _NONE if load is None else str(load),
            "": "" if load is None or heaviest <= 0 else _bar(load, heaviest),
            "USERS": str(self.users.get(pod.pod_id, _NONE)),
            "LEASE": _lease(pod),
            "AGE": _NONE if pod.age is None else f"{pod.age:.1f} s",
            "MOVED/S": _NONE if moved is None else _rate(moved),
            "METADATA": one_line(
                " ".join(f"{name}={text}" for name, text in sorted(pod.metadata.items()))
            )[:_METADATA_MAX],
        }


_LONG = ["POD", "STATE", "LOAD", "", "USERS", "LEASE", "AGE", "MOVED/S", "METADATA"]
_SHORT = ["POD", "STATE", "LOAD", "LEASE"]
_LONG_WIDTH = 72


def _lease(pod: PodFacts) -> str:
    if pod.silent is not None:
        return silence(pod.silent)
    if pod.lease_left > 0:
        return f"{pod.lease_left:.1f} s"
    match pod.death:
        case Death.CERTIFIED:
            return "dead"
        case Death.DUE:
            return "dead?"
        case Death.NOT_YET if pod.certain_in is not None:
            return f"over, {pod.certain_in:.1f} s"
        case _:
            return "over"


def _is_urgent(pod: PodFacts) -> bool:
    """Whether an operator should look at this pod."""
    return pod.standing not in (Standing.READY, Standing.DRAINING)


def _most_urgent(rows: Sequence[tuple[str, str]], room: int) -> list[tuple[str, str]]:
    """As many rows as there is room for; urgent rows first, in the order of the table."""
    if len(rows) <= room:
        return list(rows)
    by_need = sorted(range(len(rows)), key=lambda at: (rows[at][1] != "bold", at))
    return [rows[at] for at in sorted(by_need[:room])]


def _bar(load: int, heaviest: int) -> str:
    return "#" * max(0, min(_BAR_WIDTH, round(load * _BAR_WIDTH / heaviest)))


def _rate(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}"


def _wrapped(parts: Sequence[str], width: int | None) -> list[str]:
    """The parts on as many lines as they need, none of them broken."""
    lines = [""]
    for part in parts:
        joined = f"{lines[-1]}  {part}" if lines[-1] else part
        if width is not None and len(joined) > width and lines[-1]:
            lines.append(part)
        else:
            lines[-1] = joined
    return lines
