"""Command-line options: one for each setting of the configurations, under the same name.

An option wins over the environment variable of that name, the variable over the default.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import NoReturn, TypeVar

from ._show import hide_credentials
from .config import ClientConfig, GrpcServerConfig, RouteInfoConfig, ServerConfig

__all__ = [
    "HELP",
    "Parser",
    "add_settings",
    "add_store",
    "config_from",
    "whole_number",
]

_Config = TypeVar("_Config", ClientConfig, GrpcServerConfig, RouteInfoConfig, ServerConfig)

HELP = {
    "cache_capacity": "how many links the local cache holds",
    "cache_ttl": "how long an answer may come from the local cache",
    "connection_age": "after how long a connection is ended gracefully",
    "connection_grace": "how long its requests may go on after that",
    "cpu_factor": "the share of the CPU in a pod's load, 0 to 1",
    "drain": "what becomes of the users that a pod still owns when it stops",
    "gap": "a longer silence of all pods counts as an outage of the store",
    "grace": "how long after its lease a pod may not be declared dead",
    "guard": "a pod stops acting this much before its lease ends",
    "idle": "after this long without use a service is no longer read",
    "keepalive": "how often a connection is pinged",
    "keepalive_timeout": "how long the answer to that may take",
    "lease": "how long a renewal is proof of life",
    "link_cache_ttl": "how long clients may believe a link, as the driver answers them",
    "link_grace": "how long a removed link stays as a hint",
    "link_ttl": "how long a link made by compute lasts",
    "max_batch": "how many users one request may look up",
    "max_connections": "how many connections there may be",
    "max_event_streams": "how many streams of events there may be; more are refused",
    "max_in_flight": "how many requests may be in flight",
    "max_message_bytes": "the largest request",
    "max_streams": "how many requests of one connection may be in flight",
    "on_restart": "what happens to the users of a pod that came back as a new process",
    "overload_limit": "a pod above this load gets no new users while another one is below",
    "peer_rate": "how many requests of one caller are answered a second",
    "refresh": "how often the pods of a service are read",
    "renew": "how often a pod renews its lease",
    "request_timeout": "how long a request may take, whatever its caller allows",
    "serve_stale": "judge pods as they were last seen while the store cannot be read",
    "strategy": "how a new user's pod is chosen",
    "tag_ttl": "how long a service tag may come from the local cache",
    "timeout": "how long a call may take",
}
"""What each setting means; a test checks that none is missing."""

_CHOICES = {
    "drain": ("release", "handover", "keep"),
    "on_restart": ("same_pod", "best_pod"),
    "serve_stale": ("true", "false"),
    "strategy": ("p2c", "least_load", "round_robin", "weighted", "rendezvous"),
}


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that never shows a password in its messages."""

    def error(self, message: str) -> NoReturn:
        super().error(hide_credentials(message))


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A type of option: a whole number from ``least`` to ``most``."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(
                f"must be a whole number from {least} to {most}, got {text[:40]!r}"
            )
        return number

    return read


def add_store(
    parser: argparse.ArgumentParser, default: str | None, *, required: bool = True
) -> None:
    """Adds ``--store``; without a default either it or ``PODLINK_STORE`` must be given, unless
    the command can do without.
    """
    variable = os.environ.get("PODLINK_STORE")
    parser.add_argument(
        "--store",
        metavar="URL",
        default=variable or default,
        required=required and not (variable or default),
        help="the store, like redis://host:6379/0; without it the variable PODLINK_STORE"
        + (f", else {default}" if default else "")
        + ". All users of a machine can read its command lines: put passwords into the variable",
    )


def add_settings(
    parser: argparse.ArgumentParser,
    *defaults: ClientConfig | GrpcServerConfig | RouteInfoConfig | ServerConfig,
) -> None:
    """Adds an option for each setting of these configurations, their values being the defaults.

    Options are kept as text: ``config_from`` reads them as it reads the variables.
    """
    group = parser.add_argument_group("settings, in seconds where they are times")
    known: set[str] = set()
    for config in defaults:
        for each in fields(config):
            if each.name in known:
                continue  # `timeout`: one option, and one variable, for all of them
            known.add(each.name)
            default = getattr(config, each.name)
            shown = f"{default:g}" if isinstance(default, float) else _text(default)
            group.add_argument(
                "--" + each.name.replace("_", "-"),
                dest=each.name,
                metavar=None if each.name in _CHOICES else "X",
                choices=_CHOICES.get(each.name),
                type=str if each.name in _CHOICES else _number(type(default)),
                help=HELP[each.name] + (f" (default {shown})" if shown else ""),
            )


def _number(kind: type) -> Callable[[str], str]:
    def check(text: str) -> str:
        try:
            float(text) if kind is float else int(text)
        except ValueError:
            what = "a number" if kind is float else "a whole number"
            raise argparse.ArgumentTypeError(f"must be {what}, got {text[:40]!r}") from None
        return text

    return check


def config_from(
    default: _Config, options: argparse.Namespace, environ: Mapping[str, str] | None = None
) -> _Config:
    """A configuration from the options, else from ``PODLINK_*``, else from ``default``.

    Raises:
        InvalidParameterError: a setting is refused.
    """
    environ = os.environ if environ is None else environ
    texts: dict[str, str] = {}
    for each in fields(default):
        variable = f"PODLINK_{each.name.upper()}"
        option = getattr(options, each.name, None)
        text = environ.get(variable) if option is None else option
        value = getattr(default, each.name)
        if text is not None:
            texts[variable] = text
        elif value != each.default:
            texts[variable] = _text(value)
    # All at once: a setting may contradict another one's default, and fit the one given with it.
    return type(default).from_env(texts)


def _text(value: object) -> str:
    """A setting as ``from_env`` reads it; nothing if there is none."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
