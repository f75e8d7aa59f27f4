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
from .config import (
    ClientConfig,
    GrpcServerConfig,
    RouteInfoConfig,
    ServerConfig,
    may_be_none,
    settings_table,
)

__all__ = [
    "HELP",
    "Parser",
    "add_settings",
    "add_store",
    "config_from",
    "whole_number",
]

_Config = TypeVar("_Config", ClientConfig, GrpcServerConfig, RouteInfoConfig, ServerConfig)

_SHOWN = (ClientConfig, GrpcServerConfig, RouteInfoConfig, ServerConfig)
_TABLE = [
    setting
    for setting in settings_table()
    if setting.config in {config.__name__ for config in _SHOWN}
]


def _help(meaning: str) -> str:
    """A sentence of the table, as ``--help`` shows it."""
    text = meaning.removesuffix(".").replace("`", "")
    return text[:1].lower() + text[1:]


HELP = {setting.name: _help(setting.meaning) for setting in _TABLE}
"""What each setting means, as the core's table says it."""

_CHOICES = {setting.name: tuple(setting.names) for setting in _TABLE if setting.names} | {
    setting.name: ("true", "false") for setting in _TABLE if setting.kind == "flag"
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
            is_text = each.name in _CHOICES or isinstance(each.default, str)
            group.add_argument(
                "--" + each.name.replace("_", "-"),
                dest=each.name,
                metavar=None if each.name in _CHOICES else "X",
                choices=_CHOICES.get(each.name),
                type=str if is_text else _number(type(default), none=may_be_none(each)),
                help=HELP[each.name] + (f" (default {shown})" if shown else ""),
            )


def _number(kind: type, *, none: bool) -> Callable[[str], str]:
    def check(text: str) -> str:
        if none and text.lower() == "none":
            return text
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
            texts[variable] = "none" if value is None else _text(value)
    # All at once: a setting may contradict another one's default, and fit the one given with it.
    return type(default).from_env(texts)


def _text(value: object) -> str:
    """A setting as ``from_env`` reads it; nothing if there is none."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
