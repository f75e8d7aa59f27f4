"""The ``podlink`` command: a demonstration, and the lookups that operators need.

``podlink demo`` shows podlink at work. ``compute``, ``get``, ``batch``, ``services``, ``pods`` and
``explain`` are the driver operations of those names; ``top`` keeps watching a service. Answers go
to stdout, as text or with ``--json`` as one JSON object. Exit status: 0; 1 with one line
``podlink: CODE: message`` on stderr; 2 if the command line is wrong; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

from podlink import (
    AdminServer,
    ClientConfig,
    ClientDriver,
    GrpcServerConfig,
    InvalidParameterError,
    PodlinkError,
    RouteGrpcServer,
    RouteInfoConfig,
    Store,
    __version__,
)
from podlink._options import (
    Parser,
    add_settings,
    add_store,
    config_from,
    whole_number,
)
from podlink._show import columns, one_line
from podlink.demo.stage import Settings
from podlink.demo.story import run

from ._verb import add_namespace, add_verb, connection, say
from .explain import add_explain
from .pods import add_pods
from .top import add_top

__all__ = ["main"]

_FAILED = 1
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    Args:
        argv: the command line without the program's name; by default the process's own.

    Raises:
        SystemExit: the command line is wrong (2), or asked only for help or the version (0).
    """
    if hasattr(sys.stdout, "reconfigure"):
        # A user's name that the terminal cannot show must not end the command.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        options = _parser().parse_args(argv)
        asyncio.run(options.run(options))
        sys.stdout.flush()
    except PodlinkError as error:
        return _fail(error.code, str(error))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough, as in `podlink demo | head`.
        _drop_output()
        return _FAILED
    except OSError as error:
        _drop_output()
        return _fail("OS_ERROR", str(error))
    return 0


def _drop_output() -> None:
    """Redirects stdout: what the buffer still holds must not fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(code: str, message: str) -> int:
    with suppress(OSError):
        print(f"podlink: {code}: {one_line(message)}", file=sys.stderr)
    return _FAILED


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="podlink",
        description="Which pod of a stateful service holds this player?",
        epilog="Errors are one line 'podlink: CODE: message' on stderr, and exit status 1. Every "
        "setting is also an environment variable: --link-ttl is PODLINK_LINK_TTL.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"podlink {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_demo(commands)
    for add in (
        _add_compute,
        _add_get,
        _add_batch,
        _add_services,
        add_pods,
        add_explain,
        add_top,
        _add_serve,
    ):
        add(commands)
    return parser


def _add_demo(commands: Any) -> None:
    settings = Settings()
    parser = commands.add_parser(
        "demo",
        help="watch users being routed while pods drain, stop and die",
        description="Starts pods and clients on the store, places users, drains and stops one "
        "pod, kills another, and prints what happens as it happens. Exit status 1 if a user ends "
        "without an alive pod. It uses a namespace of its own; what it leaves there are links, "
        "which expire, and two small keys with what its pods said last.",
        allow_abbrev=False,
    )
    add_store(parser, settings.store)
    for name, number, about in (
        ("pods", whole_number(2, 100), "how many pods"),
        ("users", whole_number(1, 1_000_000), "how many users come at first"),
        ("kill", whole_number(1, 100), "how many pods to kill; if it is all, users are lost"),
    ):
        parser.add_argument(
            f"--{name}",
            metavar="N",
            type=number,
            default=getattr(settings, name),
            help=f"{about} (default %(default)s)",
        )
    add_settings(parser, settings.client, settings.route_info, settings.server)
    parser.set_defaults(run=_demo)


async def _demo(options: argparse.Namespace) -> None:
    default = Settings()
    settings = Settings(
        store=options.store,
        pods=options.pods,
        users=options.users,
        kill=options.kill,
        client=config_from(default.client, options),
        route_info=config_from(default.route_info, options),
        server=config_from(default.server, options),
    )
    await run(settings, sys.stdout)


def _add_compute(commands: Any) -> None:
    about = "find a user's pod, or choose one and link the user to it"
    parser = add_verb(commands, _compute, about)
    parser.add_argument("uid", help="the user")
    parser.add_argument("service", help="the stateful service")
    add_settings(parser, ClientConfig(), RouteInfoConfig())


async def _compute(options: argparse.Namespace) -> None:
    async with connection(options) as opened:
        compute = opened.client.compute_linked_pod
        _say_pod(options, await compute(None, options.uid, options.service))


def _add_get(commands: Any) -> None:
    about = "read a user's link as the store has it; the pod may be dead"
    parser = add_verb(commands, _get, about)
    parser.add_argument("uid", help="the user")
    parser.add_argument("service", help="the stateful service")
    add_settings(parser, ClientConfig(), RouteInfoConfig())


async def _get(options: argparse.Namespace) -> None:
    async with connection(options) as opened:
        get = opened.client.get_linked_pod_not_cache
        _say_pod(options, await get(None, options.uid, options.service))


def _add_batch(commands: Any) -> None:
    parser = add_verb(commands, _batch, "read many users' links as the store has them")
    parser.add_argument("uids", metavar="uid", nargs="+", help="users; '-': stdin, one a line")
    parser.add_argument("service", help="the stateful service")
    add_settings(parser, ClientConfig(), RouteInfoConfig())


async def _batch(options: argparse.Namespace) -> None:
    uids = list(dict.fromkeys(uid for given in options.uids for uid in _users(given)))
    async with connection(options) as opened:
        pods = await opened.client.batch_get_linked_pod(None, uids, options.service)
    linked = {uid for users in pods.values() for uid in users}
    unlinked = [uid for uid in uids if uid not in linked]
    answer = {"pods": {str(pod): pods[pod] for pod in sorted(pods)}, "unlinked": unlinked}
    rows = [(f"pod {pod}", uid) for pod in sorted(pods) for uid in pods[pod]]
    rows += [("no link", uid) for uid in unlinked]
    say(options, answer, columns(rows))


def _users(given: str) -> list[str]:
    if given != "-":
        return [given]
    try:
        lines = sys.stdin.buffer.read().decode().split("\n")
    except UnicodeDecodeError:
        raise InvalidParameterError("stdin must be UTF-8, one user a line") from None
    return [uid for line in lines if (uid := line.removesuffix("\r"))]


def _add_services(commands: Any) -> None:
    about = "list the services to which a user has persistent links"
    parser = add_verb(commands, _services, about)
    parser.add_argument("uid", help="the user")
    add_settings(parser, ClientConfig(), RouteInfoConfig())


async def _services(options: argparse.Namespace) -> None:
    async with connection(options) as opened:
        services = await opened.client.get_link_service(None, options.uid)
    lines = columns([(service, f"pod {pod}") for service, pod in sorted(services.items())])
    say(
        options,
        {"uid": options.uid, "services": services},
        lines or [f"{options.uid} has no persistent links"],
    )


def _add_serve(commands: Any) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve the links of a namespace to callers in others, over gRPC",
        description="Serves the links of one namespace to callers in others, over gRPC, until "
        "SIGTERM or Ctrl-C. Who calls is what the bearer token says, else the client's "
        "certificate; what no --allow allows is denied. Files are read again when they change.",
        allow_abbrev=False,
    )
    add_store(parser, None)
    add_namespace(parser)
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default="127.0.0.1:50051",
        help="where to listen; other machines need TLS (default %(default)s)",
    )
    parser.add_argument(
        "--allow",
        metavar="CALLER:METHOD:NS",
        action="append",
        default=[],
        help="let this caller call this method on this namespace; * stands for all. Repeatable",
    )
    for name, about in (
        ("cert-file", "the server's certificate, PEM; with it connections are TLS"),
        ("key-file", "its key"),
        ("client-ca-file", "the authorities that clients' certificates must come from"),
        ("tokens-file", "bearer tokens, one 'caller token' a line"),
    ):
        parser.add_argument(f"--{name}", metavar="FILE", help=about)
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="let other machines connect without TLS; a machine between can read and change all",
    )
    parser.add_argument(
        "--stop-deadline",
        metavar="X",
        type=float,
        default=10.0,
        help="how long requests may go on after SIGTERM, in seconds (default 10)",
    )
    parser.add_argument(
        "--admin",
        metavar="HOST:PORT",
        help="serve /metrics, /healthz, /readyz and /pods there over HTTP, like 127.0.0.1:9464",
    )
    parser.add_argument(
        "--admin-insecure",
        action="store_true",
        help="let other machines read those; there is neither TLS nor a password",
    )
    add_settings(parser, GrpcServerConfig(), ClientConfig(), RouteInfoConfig())
    parser.set_defaults(run=_serve)


def _log_to_stderr() -> None:
    """Writes podlink's records to stderr, from INFO on or as ``PODLINK_LOG`` says."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if "PODLINK_LOG" not in os.environ:
        logging.getLogger("podlink").setLevel(logging.INFO)


async def _serve(options: argparse.Namespace) -> None:
    _log_to_stderr()
    store = Store(options.store)
    client = ClientDriver(
        store,
        options.namespace,
        config_from(ClientConfig(), options),
        route_info=config_from(RouteInfoConfig(), options),
    )
    server = RouteGrpcServer(
        store,
        options.namespace,
        options.listen,
        config_from(GrpcServerConfig(), options),
        client=client,
        authorize=[_rule(given) for given in options.allow],
        cert_file=options.cert_file,
        key_file=options.key_file,
        client_ca_file=options.client_ca_file,
        tokens_file=options.tokens_file,
        insecure=options.insecure,
    )
    where, insecure = options.admin, options.admin_insecure
    admin = AdminServer(store, where, insecure=insecure) if where else None
    async with store, client, AsyncExitStack() as stack:
        stopped = _stop_signals()
        address = await server.start()
        print(f"serving {options.namespace} on {address}", flush=True)
        if admin is not None:
            await stack.enter_async_context(admin)
            print(f"admin on {admin.address}", flush=True)
        if not options.allow:
            print("podlink: no caller is allowed anything: see --allow", file=sys.stderr)
        await stopped.wait()
        await server.stop(deadline=options.stop_deadline)


def _stop_signals() -> asyncio.Event:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    return stopped


def _rule(given: str) -> tuple[str, str, str]:
    # A caller may be a SPIFFE id, which has colons of its own.
    caller, method, namespace = ["", "", *given.rsplit(":", 2)][-3:]
    return caller, method, namespace


def _say_pod(options: argparse.Namespace, pod: int | None) -> None:
    place = "has no link" if pod is None else f"pod {pod}"
    answer = {"uid": options.uid, "pod": pod}
    say(options, answer, [f"{options.uid}  {place}"])
