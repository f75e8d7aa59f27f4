"""Figures are checked when they are given: each by itself, and against each other."""

from datetime import timedelta
from typing import Any

import pytest

import podlink

CLIENT, ROUTE, SERVER = podlink.ClientConfig, podlink.RouteInfoConfig, podlink.ServerConfig


@pytest.mark.parametrize(
    ("config", "figure", "given"),
    [
        (CLIENT, "link_ttl", 0.5),
        (CLIENT, "link_ttl", -1),
        (CLIENT, "link_ttl", float("nan")),
        (CLIENT, "link_ttl", float("inf")),
        (CLIENT, "link_ttl", 10**400),
        (CLIENT, "cache_ttl", -0.1),
        (CLIENT, "cache_capacity", 0),
        (CLIENT, "cache_capacity", -1),
        (CLIENT, "cache_capacity", 10**30),
        (CLIENT, "strategy", "best"),
        (CLIENT, "strategy", "custom"),
        (CLIENT, "strategy", ""),
        (CLIENT, "timeout", 0),
        (CLIENT, "timeout", 3601),
        (CLIENT, "on_restart", "any_pod"),
        (ROUTE, "refresh", 0),
        (ROUTE, "refresh", 7200),
        (ROUTE, "overload_limit", 10**30),
        (ROUTE, "idle", 0.5),
        (SERVER, "lease", 0),
        (SERVER, "lease", 4000),
        (SERVER, "renew", 0),
        (SERVER, "guard", -1),
        (SERVER, "gap", 0),
        (SERVER, "grace", -1),
        (SERVER, "cpu_factor", 1.1),
        (SERVER, "cpu_factor", -0.1),
        (SERVER, "cpu_factor", float("nan")),
        (SERVER, "link_grace", -1),
        (SERVER, "timeout", 0),
    ],
)
def test_a_figure_out_of_its_range_is_refused(config: Any, figure: str, given: Any) -> None:
    with pytest.raises(podlink.InvalidParameterError, match=figure) as caught:
        config(**{figure: given})
    assert isinstance(caught.value, ValueError)
    assert caught.value.details["parameter"] == figure
    assert str(given)[:5].lower() in caught.value.details["given"].lower()


@pytest.mark.parametrize(
    ("config", "figure", "given"),
    [
        (CLIENT, "link_ttl", "60"),
        (CLIENT, "link_ttl", None),
        (CLIENT, "cache_ttl", True),
        (CLIENT, "cache_capacity", 1.5),
        (CLIENT, "cache_capacity", True),
        (CLIENT, "strategy", 5),
        (CLIENT, "strategy", None),
        (CLIENT, "on_restart", 1),
        (CLIENT, "timeout", []),
        (ROUTE, "refresh", "1"),
        (ROUTE, "overload_limit", 1.5),
        (ROUTE, "idle", None),
        (SERVER, "lease", "10"),
        (SERVER, "cpu_factor", "0.5"),
        (SERVER, "grace", None),
    ],
)
def test_a_figure_of_the_wrong_type_is_refused(config: Any, figure: str, given: Any) -> None:
    with pytest.raises(podlink.InvalidParameterTypeError, match=figure) as caught:
        config(**{figure: given})
    assert caught.value.details["given"] == type(given).__name__


@pytest.mark.parametrize(
    ("config", "figures", "named"),
    [
        (CLIENT, {"link_ttl": 60}, ("cache_ttl", "link_ttl")),
        (ROUTE, {"refresh": 700}, ("idle", "refresh")),
        (SERVER, {"grace": 3}, ("grace", "gap")),
        (SERVER, {"gap": 3}, ("gap", "renew")),
        (SERVER, {"renew": 9, "gap": 18, "grace": 18}, ("renew", "lease")),
        (SERVER, {"guard": 10}, ("guard", "lease")),
    ],
)
def test_figures_that_do_not_fit_together_are_refused_with_both_names(
    config: Any, figures: dict[str, float], named: tuple[str, str]
) -> None:
    with pytest.raises(podlink.InvalidParameterError) as caught:
        config(**figures)
    for name in named:
        assert name in str(caught.value)


def test_a_figure_that_does_not_exist_is_pythons_to_refuse() -> None:
    with pytest.raises(TypeError, match="link_tll"):
        CLIENT(link_tll=60)  # type: ignore[call-arg]


def test_seconds_may_be_a_timedelta() -> None:
    minute = timedelta(minutes=1)
    config = CLIENT(link_ttl=minute, cache_ttl=minute, timeout=timedelta(milliseconds=500))
    assert config.link_ttl == minute
    assert SERVER(lease=timedelta(seconds=20)).lease == timedelta(seconds=20)
    with pytest.raises(podlink.InvalidParameterError, match="link_ttl"):
        CLIENT(link_ttl=timedelta(milliseconds=1), cache_ttl=0)


def test_the_fast_profile_fits_together() -> None:
    fast = SERVER.fast()
    assert (fast.lease, fast.renew, fast.guard, fast.gap, fast.grace) == (4, 0.8, 0.5, 1.6, 2)


def test_figures_come_from_the_environment() -> None:
    environ = {
        "PODLINK_LINK_TTL": "60",
        "PODLINK_CACHE_TTL": "1.5",
        "PODLINK_CACHE_CAPACITY": "10",
        "PODLINK_STRATEGY": "rendezvous",
        "PODLINK_ON_RESTART": "best_pod",
        "PODLINK_OVERLOAD_LIMIT": "100",
        "PODLINK_LEASE": "4",
        "PODLINK_RENEW": "1",
        "PODLINK_CPU_FACTOR": "0",
        "ANOTHER_LINK_TTL": "1",
    }
    client = CLIENT.from_env(environ)
    assert (client.link_ttl, client.cache_ttl, client.cache_capacity) == (60, 1.5, 10)
    assert (client.strategy, client.on_restart, client.timeout) == ("rendezvous", "best_pod", 2)
    assert ROUTE.from_env(environ) == ROUTE(overload_limit=100)
    assert SERVER.from_env(environ) == SERVER(lease=4, renew=1, cpu_factor=0)
    assert CLIENT.from_env({}) == CLIENT()


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PODLINK_TIMEOUT", "0.25")
    assert CLIENT.from_env().timeout == 0.25
    assert SERVER.from_env().timeout == 0.25


@pytest.mark.parametrize("text", ["", "a minute", "1s", "0x10", "1,5"])
def test_a_variable_that_is_no_number_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(podlink.InvalidParameterError, match="PODLINK_LINK_TTL") as caught:
        CLIENT.from_env({"PODLINK_LINK_TTL": text})
    assert caught.value.details["parameter"] == "PODLINK_LINK_TTL"
    with pytest.raises(podlink.InvalidParameterError, match="PODLINK_CACHE_CAPACITY"):
        CLIENT.from_env({"PODLINK_CACHE_CAPACITY": text})


def test_a_variable_out_of_range_is_refused_as_the_figure_is() -> None:
    with pytest.raises(podlink.InvalidParameterError, match="link_ttl"):
        CLIENT.from_env({"PODLINK_LINK_TTL": "0"})


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ({"store": "redis://h"}, "store"),
        ({"config": {"link_ttl": 5}}, "config"),
        ({"config": podlink.ServerConfig()}, "config"),
        ({"route_info": podlink.ClientConfig()}, "RouteInfoConfig"),
    ],
)
def test_a_client_driver_takes_the_right_objects(argument: dict[str, Any], given: str) -> None:
    with pytest.raises(podlink.InvalidParameterTypeError, match=given):
        podlink.ClientDriver(**({"store": podlink.Store()} | argument))


@pytest.mark.parametrize("callbacks", ["threads", "", None, 1])
def test_callbacks_are_run_by_a_thread_or_by_the_program(callbacks: Any) -> None:
    with pytest.raises(podlink.InvalidParameterError, match="callbacks"):
        podlink.ClientDriver(podlink.Store(), callbacks=callbacks)
