"""The ``/metrics`` of services: scrapes, and rates between two of them."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from podlink import InvalidParameterError
from podlink._show import hide_credentials

__all__ = ["Sample", "Scraper", "Totals", "read_samples"]

_TIMEOUT_SECONDS = 2.0
# More than podlink ever shows; a stream without end must not fill the memory.
_BYTES_MAX = 8 * 1024 * 1024

_LINE = re.compile(r"(podlink_\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

# The outcomes in `podlink_operations_total` that are no errors.
_WELL = ("cached", "ok")


_Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One series of a scrape."""

    name: str
    labels: Mapping[str, str]
    value: float


def read_samples(text: str) -> Iterator[Sample]:
    """podlink's series in a scrape; other lines are skipped."""
    for line in text.splitlines():
        read = _LINE.match(line)
        if read is None:
            continue
        try:
            value = float(read[3])
        except ValueError:
            continue
        labels = {name: _unescaped(value) for name, value in _LABEL.findall(read[2] or "")}
        yield Sample(read[1], labels, value)


def _unescaped(value: str) -> str:
    return re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], value)


@dataclass(slots=True)
class Totals:
    """The sums of one service's counters, or their rates per second."""

    made: float = 0.0
    moved: float = 0.0
    refused: float = 0.0
    hits: float = 0.0
    misses: float = 0.0
    errors: float = 0.0
    store_errors: float = 0.0
    moved_from: dict[int, float] = field(default_factory=dict)
    """By pod."""

    @property
    def hit_rate(self) -> float | None:
        """The share of computes that the cache answered; ``None`` if there were none."""
        asked = self.hits + self.misses
        return self.hits / asked if asked > 0 else None


class Scraper:
    """Scrapes some addresses and remembers the last scrape of each."""

    def __init__(self, urls: Sequence[str], namespace: str, service: str) -> None:
        for url in urls:
            if urlsplit(url).scheme not in ("http", "https"):
                raise InvalidParameterError(
                    f"--metrics must be an http or https URL, got {hide_credentials(url)[:80]!r}"
                )
        self._urls = tuple(dict.fromkeys(urls))
        self._about = {"namespace": namespace, "service": service}
        self._last: dict[str, tuple[float, dict[_Key, Sample]]] = {}
        self.troubles: dict[str, str] = {}
        self.users: dict[int, int] = {}
        self.stores = (0, 0)

    @property
    def urls(self) -> tuple[str, ...]:
        """What is scraped."""
        return self._urls

    async def rates(self) -> Totals | None:
        """Scrapes all; what happened a second since the last time, ``None`` after the first."""
        texts = await asyncio.gather(*(asyncio.to_thread(_fetch, url) for url in self._urls))
        rates, known = Totals(), False
        self.troubles, self.users, self.stores = {}, {}, (0, 0)
        for url, (text, trouble) in zip(self._urls, texts, strict=True):
            if text is None:
                self.troubles[url] = trouble
                self._last.pop(url, None)
                continue
            samples = list(read_samples(text))
            self._look(samples)
            known |= self._add(url, samples, rates)
        return rates if known else None

    def _look(self, samples: Sequence[Sample]) -> None:
        connected, stores = self.stores
        for sample in samples:
            match sample.name:
                case "podlink_store_connected":
                    connected += int(sample.value)
                case "podlink_stores":
                    stores += int(sample.value)
                case "podlink_owned_users" if self._is_ours(sample):
                    pod = _pod(sample)
                    if pod is not None:
                        self.users[pod] = self.users.get(pod, 0) + int(sample.value)
        self.stores = (connected, stores)

    def _add(self, url: str, samples: Sequence[Sample], rates: Totals) -> bool:
        now = time.monotonic()
        counted: dict[_Key, Sample] = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample for sample in samples
        }
        before = self._last.get(url)
        self._last[url] = now, counted
        if before is None:
            return False
        since, earlier = before
        seconds = max(now - since, 0.001)
        for key, sample in counted.items():
            if not sample.name.endswith("_total"):
                continue
            last = earlier[key].value if key in earlier else 0.0
            # A counter that fell began again from 0: its process restarted.
            rose = sample.value - last if sample.value >= last else sample.value
            self._count(sample, rose / seconds, rates)
        return True

    def _count(self, sample: Sample, rate: float, rates: Totals) -> None:
        match sample.name:
            case "podlink_links_made_total" if self._is_ours(sample):
                rates.made += rate
            case "podlink_links_refused_total" if self._is_ours(sample):
                rates.refused += rate
            case "podlink_links_healed_total" if self._is_ours(sample):
                rates.moved += rate
                pod = _pod(sample)
                if pod is not None:
                    rates.moved_from[pod] = rates.moved_from.get(pod, 0.0) + rate
            case "podlink_cache_hits_total":
                rates.hits += rate
            case "podlink_cache_misses_total":
                rates.misses += rate
            case "podlink_operations_total" if sample.labels.get("outcome") not in _WELL:
                rates.errors += rate
            case "podlink_store_calls_total" if sample.labels.get("outcome") != "ok":
                rates.store_errors += rate

    def _is_ours(self, sample: Sample) -> bool:
        return all(sample.labels.get(name) == value for name, value in self._about.items())


def _pod(sample: Sample) -> int | None:
    pod = sample.labels.get("pod", "")
    return int(pod) if pod.isdecimal() else None


def _fetch(url: str) -> tuple[str | None, str]:
    """The text there, or why there is none."""
    request = urllib.request.Request(url, headers={"Accept": "application/openmetrics-text"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
            return answer.read(_BYTES_MAX).decode(errors="replace"), ""
    except urllib.error.HTTPError as error:
        return None, f"answers {error.code}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return None, hide_credentials(str(reason) or type(error).__name__)
