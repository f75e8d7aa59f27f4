"""What the verbs of the command share: options, the connection to the store, and their output."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any

from podlink import ClientConfig, Connection, RouteInfoConfig, connect
from podlink._options import add_store, config_from
from podlink._show import one_line

__all__ = ["add_namespace", "add_verb", "connection", "say"]


def add_verb(commands: Any, run: Any, about: str, *, store: bool = True) -> argparse.ArgumentParser:
    """Adds a verb named like its function, with ``--store``, ``--namespace`` and ``--json``."""
    name = run.__name__.removeprefix("_")
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=about[0].upper() + about[1:], allow_abbrev=False
    )
    add_store(parser, None, required=store)
    add_namespace(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)
    return parser


def add_namespace(parser: argparse.ArgumentParser) -> None:
    """Adds ``--namespace``."""
    parser.add_argument(
        "--namespace",
        metavar="NS",
        default=os.environ.get("PODLINK_NAMESPACE") or "default",
        help="the namespace; without it the variable PODLINK_NAMESPACE, else 'default'",
    )


def connection(options: argparse.Namespace) -> Connection:
    """The drivers on the store that the options name."""
    return connect(
        options.store,
        namespace=options.namespace,
        config=config_from(ClientConfig(), options),
        route_info=config_from(RouteInfoConfig(), options),
    )


def say(options: argparse.Namespace, answer: dict[str, Any], lines: Sequence[str]) -> None:
    """Prints the answer as an object that includes the arguments, or as lines."""
    if options.json:
        asked = {"namespace": options.namespace}
        if hasattr(options, "service"):
            asked["service"] = options.service
        print(json.dumps(asked | answer))
    else:
        for line in lines:
            print(one_line(line))
