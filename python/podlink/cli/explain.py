"""``podlink explain``: why is this user on that pod, and what would a compute do?"""

from __future__ import annotations

import argparse
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any

from podlink import (
    ClientConfig,
    ClientDriver,
    InvalidParameterError,
    RouteGrpcClient,
    RouteInfoConfig,
    Store,
)
from podlink._options import add_settings, config_from
from podlink.errors import from_core

from ._verb import add_verb, say

__all__ = ["add_explain"]

# The client's own namespace, where the peer's is foreign; no lookup ever goes there.
_ELSEWHERE = "podlink-explain"


def add_explain(commands: Any) -> None:
    """Adds the verb."""
    about = "explain what compute would do with a user now, and why; nothing is changed"
    parser = add_verb(commands, explain, about, store=False)
    parser.add_argument("uid", help="the user")
    parser.add_argument("service", help="the stateful service")
    parser.add_argument(
        "--peer",
        metavar="URL",
        action="append",
        default=[],
        help="ask the gRPC server of the namespace, like grpcs://host:50051, instead of a store. "
        "Repeatable, for several servers of the namespace",
    )
    for name, about in (
        ("ca-file", "the authorities to trust instead of the system's, PEM"),
        ("cert-file", "this client's certificate, PEM"),
        ("key-file", "its key"),
        ("token-file", "a file with the bearer token"),
    ):
        parser.add_argument(f"--{name}", metavar="FILE", help=f"of a peer: {about}")
    add_settings(parser, ClientConfig(), RouteInfoConfig())


async def explain(options: argparse.Namespace) -> None:
    """Prints the explanation."""
    async with AsyncExitStack() as stack:
        client = await _client(options, stack)
        explained = await client.explain(options.namespace, options.uid, options.service)
    if explained.trouble is not None:
        raise from_core(explained.trouble.code, explained.trouble.message, False, {})
    facts = asdict(explained)
    del facts["namespace"], facts["service_name"]
    say(options, facts, str(explained).split("\n"))


async def _client(options: argparse.Namespace, stack: AsyncExitStack) -> ClientDriver:
    namespace, peers = options.namespace, {}
    if options.peer:
        peer = RouteGrpcClient(
            options.peer,
            ca_file=options.ca_file,
            cert_file=options.cert_file,
            key_file=options.key_file,
            token_file=options.token_file,
        )
        peers = {options.namespace: await stack.enter_async_context(peer)}
        namespace = _ELSEWHERE
    elif options.store is None:
        raise InvalidParameterError("--store is needed, or PODLINK_STORE, or --peer")
    # A peer's links are in no store of ours.
    store = Store("memory://" if options.peer else options.store)
    client = ClientDriver(
        await stack.enter_async_context(store),
        namespace,
        config_from(ClientConfig(), options),
        route_info=config_from(RouteInfoConfig(), options),
        peers=peers,
    )
    return await stack.enter_async_context(client)
