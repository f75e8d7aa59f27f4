"""``podlink top``: a service's pods, watched."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from podlink import ClientDriver, RouteInfoConfig, Store
from podlink._options import add_settings, add_store, config_from
from podlink._show import hide_credentials, one_line
from podlink.errors import from_core

from ._frame import Frame
from ._scrape import Scraper
from ._terminal import Terminal, is_live
from ._verb import add_namespace

__all__ = ["add_top"]

# The user whose explanation shows the pods. It has no link, and explaining makes none.
_UID = "podlink-top"
# So few lines are all for the pods.
_LOW = 12
_LEAST_SECONDS, _MOST_SECONDS = 0.1, 3600.0
_ENDED_BY_SIGTERM = 128 + signal.SIGTERM


def add_top(commands: Any) -> None:
    """Adds the verb."""
    parser = commands.add_parser(
        "top",
        help="watch a service's pods: states, loads, leases, and rates of what services count",
        description="Watches a service's pods as the store shows them, and changes nothing. With "
        "--metrics it also shows what the services at these addresses count: links made and moved "
        "a second, hit rate, errors. On a terminal q or Ctrl-C ends it; elsewhere it prints one "
        "table each interval.",
        allow_abbrev=False,
    )
    add_store(parser, None)
    add_namespace(parser)
    parser.add_argument("service", help="the stateful service")
    parser.add_argument(
        "--metrics",
        metavar="URL",
        action="append",
        default=[],
        help="where a service shows its metrics, like http://10.0.0.7:9464/metrics. Repeatable",
    )
    parser.add_argument(
        "--interval",
        metavar="X",
        type=_interval,
        default=2.0,
        help="how often to look, in seconds (default 2)",
    )
    parser.add_argument("--once", action="store_true", help="print one table and end")
    add_settings(parser, RouteInfoConfig())
    parser.set_defaults(run=top)


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not _LEAST_SECONDS <= seconds <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(
            f"must be {_LEAST_SECONDS} to {_MOST_SECONDS:g} seconds, got {text[:40]!r}"
        )
    return seconds


async def top(options: argparse.Namespace) -> None:
    """Watches, until it is ended."""
    scraper = Scraper(options.metrics, options.namespace, options.service)
    store, pods = Store(options.store), config_from(RouteInfoConfig(), options)
    client = ClientDriver(store, options.namespace, route_info=pods)
    async with store, client:
        watch = _Watch(client, scraper, options)
        if options.once:
            await watch.once()
        elif is_live():
            await watch.live()
        else:
            await watch.plain()


class _Watch:
    """One run of the command."""

    def __init__(self, client: ClientDriver, scraper: Scraper, options: argparse.Namespace) -> None:
        self._client = client
        self._scraper = scraper
        self._service = options.service
        self._interval = options.interval
        self._frame: Frame | None = None

    async def once(self) -> None:
        """Prints one table; rates need two scrapes, one interval apart."""
        if self._scraper.urls:
            await self._scraper.rates()
            await asyncio.sleep(self._interval)
        frame = await self._look()
        if frame.explained is None:
            message = frame.trouble.removeprefix(f"{frame.code}: ")
            raise from_core(frame.code, message, False, {})
        _print(frame)

    async def plain(self) -> None:
        """Prints a table each interval."""
        with _sigterm() as ended:
            while not ended.is_set():
                _print(await self._look())
                print(flush=True)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), self._interval)
        raise SystemExit(_ENDED_BY_SIGTERM)

    async def live(self) -> None:
        """Draws until q is pressed."""
        changed = asyncio.Event()
        with _sigterm(changed) as ended, Terminal(changed.set) as terminal:
            watching = asyncio.create_task(self._keep_looking(changed))
            try:
                while not ended.is_set() and "q" not in terminal.keys.lower():
                    changed.clear()
                    if watching.done():
                        watching.result()
                    size = terminal.size()
                    terminal.draw(self._lines(size.columns, size.lines))
                    await changed.wait()
            finally:
                watching.cancel()
        if ended.is_set():
            raise SystemExit(_ENDED_BY_SIGTERM)

    def _lines(self, width: int, height: int) -> list[tuple[str, str]]:
        if self._frame is None:
            return [(f"{self._about()}  looking...", "head")]
        if height < _LOW:
            return self._frame.lines(width, height)
        help_ = (f"every {self._interval:g} s; q ends it", "")
        return [*self._frame.lines(width, height - 2), ("", ""), help_]

    async def _keep_looking(self, changed: asyncio.Event) -> None:
        try:
            while True:
                self._frame = await self._look()
                changed.set()
                await asyncio.sleep(self._interval)
        finally:
            changed.set()

    def _about(self) -> str:
        return f"podlink top  {self._client.namespace}/{self._service}"

    async def _look(self) -> Frame:
        rates = await self._scraper.rates() if self._scraper.urls else None
        explained = await self._client.explain(None, _UID, self._service)
        trouble = explained.trouble
        asked, wrong = len(self._scraper.urls), self._scraper.troubles
        return Frame(
            service=self._about(),
            clock=datetime.now().astimezone().strftime("%H:%M:%S"),
            explained=None if trouble else explained,
            code=trouble.code if trouble else "",
            trouble=f"{trouble.code}: {trouble.message}" if trouble else "",
            rates=rates,
            users=dict(self._scraper.users),
            scrapes=(
                asked,
                asked - len(wrong),
                next((f"{hide_credentials(url)}: {why}" for url, why in wrong.items()), ""),
            ),
            stores=self._scraper.stores,
        )


def _print(frame: Frame) -> None:
    for text, _style in frame.lines():
        print(one_line(text))


@contextlib.contextmanager
def _sigterm(changed: asyncio.Event | None = None) -> Iterator[asyncio.Event]:
    """An event that SIGTERM sets, so that the terminal is restored."""
    ended = asyncio.Event()

    def end() -> None:
        ended.set()
        if changed is not None:
            changed.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end)
    try:
        yield ended
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)
