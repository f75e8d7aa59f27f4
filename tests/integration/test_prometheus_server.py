"""A Prometheus server scrapes a game, and the rules and the dashboard find what they ask for."""

import asyncio
import contextlib
import json
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import ServerFactory
from helpers.busy_game import Game, busy_game
from helpers.commands import command
from helpers.pods import SERVICE
from helpers.prometheus import PrometheusServer, series_of
from helpers.wait import eventually_async

DEPLOY = Path(__file__).parents[2] / "deploy" / "observability"


def rules() -> list[dict[str, Any]]:
    """Every rule."""
    groups = yaml.safe_load((DEPLOY / "rules.yml").read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def asked_for() -> set[str]:
    """Every series that a rule or a panel names."""
    panels = json.loads((DEPLOY / "dashboard.json").read_text("utf-8"))["panels"]
    targets = [target for panel in panels for target in panel.get("targets", [])]
    expressions = [rule["expr"] for rule in rules()] + [target["expr"] for target in targets]
    return set().union(*map(series_of, expressions))


@pytest.fixture
async def game(server_factory: ServerFactory) -> AsyncIterator[Game]:
    """A game in which everything has happened."""
    async with busy_game(server_factory()) as playing:
        await playing.everything()
        yield playing


@contextlib.asynccontextmanager
async def going_on(game: Game) -> AsyncIterator[None]:
    """The game goes on meanwhile."""

    async def play() -> None:
        while True:
            await game.play()

    playing = asyncio.create_task(play())
    yield
    assert not playing.done(), playing
    playing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await playing


async def test_every_series_that_a_rule_or_panel_names_is_in_a_scrape(game: Game) -> None:
    scraped = await asyncio.to_thread(_scraped, game.address)
    there = {line.split("{")[0].split(" ")[0] for line in scraped.splitlines()}
    assert len(asked_for()) > 40
    assert asked_for() - there == set()


def _scraped(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


async def test_a_prometheus_server_scrapes_it_and_every_rule_evaluates(
    game: Game, tmp_path: Path
) -> None:
    async with going_on(game):
        with PrometheusServer(tmp_path, [game.address], DEPLOY / "rules.yml") as prometheus:
            recorded = [rule["record"] for rule in rules() if "record" in rule]

            async def missing() -> list[str]:
                there = await asyncio.to_thread(prometheus.query, '{__name__=~".+:podlink_.+"}')
                names = {series["metric"]["__name__"] for series in there}
                return [name for name in recorded if name not in names]

            async def complete() -> bool:
                return await missing() == []

            try:
                await eventually_async(complete, within=60)
            except AssertionError:
                raise AssertionError(f"never recorded: {await missing()}") from None
            evaluated = await asyncio.to_thread(prometheus.rules)
            (target,) = await asyncio.to_thread(prometheus.targets)
    assert (target["health"], target["lastError"]) == ("up", "")
    assert len(evaluated) == len(rules())
    for rule in evaluated:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule
    # Nobody is called at night because of a game that is well.
    loud = {rule["name"] for rule in evaluated if rule.get("state") == "firing"}
    expected = {"UsersMoving", "LeaseLost", "LeaseSuspended", "CorruptState"}
    assert not loud - {f"Podlink{name}" for name in expected}


async def test_top_reads_the_same_scrape(game: Game) -> None:
    async with going_on(game):
        ended = await asyncio.to_thread(
            command,
            *("top", SERVICE, "--once", "--interval", "1"),
            *("--metrics", f"http://{game.address}/metrics"),
            env={"PODLINK_STORE": game.server.url},
        )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "stores 1/1" in ended.stdout
    figures = ended.stdout.splitlines()[2]
    assert float(figures.split("links/s ")[1].split()[0]) > 0
    assert float(figures.split("computes/s ")[1].split()[0]) > 0
