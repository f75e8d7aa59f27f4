"""``podlink pods``: a service's pods, at one look."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from typing import Any

from podlink import ClientConfig, RouteInfoConfig
from podlink._options import add_settings
from podlink._show import columns
from podlink.errors import from_core
from podlink.explain import PodFacts, Standing, silence

from ._verb import add_verb, connection, say

__all__ = ["add_pods"]

# The user whose explanation shows the pods. It has no link, and explaining makes none.
_UID = "podlink-pods"


def add_pods(commands: Any) -> None:
    """Adds the verb."""
    about = "list a service's pods that are not known to be dead, and what they publish"
    parser = add_verb(commands, pods, about)
    parser.add_argument("service", help="the stateful service")
    add_settings(parser, ClientConfig(), RouteInfoConfig())


async def pods(options: argparse.Namespace) -> None:
    """Prints the pods.

    By an explanation: a driver that reads the pods would take a silence of the whole service for an
    outage of the store, and show pods that died long ago as alive.
    """
    async with connection(options) as opened:
        explained = await opened.client.explain(None, _UID, options.service)
    if explained.trouble is not None:
        raise from_core(explained.trouble.code, explained.trouble.message, False, {})
    routable = {candidate.pod_id for candidate in explained.candidates}
    shown = [
        _facts(pod, pod.pod_id in routable)
        for pod in explained.pods
        if pod.standing not in (Standing.LAPSED, Standing.UNKNOWN)
    ]
    rows = [("POD", "ROUTING", "LOAD", "AVAILABLE", "ROUTABLE", "PUBLISHED (UTC)", "METADATA")]
    rows += [
        (
            str(pod["pod_id"]),
            pod["routing_state"],
            str(pod["load_state"]),
            _yes(pod["available"]) if pod["silent"] is None else silence(pod["silent"]),
            _yes(pod["routable"]),
            datetime.fromtimestamp(pod["update_time"] / 1000, UTC).strftime("%F %T"),
            json.dumps(pod["metadata"], ensure_ascii=False),
        )
        for pod in shown
    ]
    lines = columns(rows) if shown else [f"{options.service} has no alive pods"]
    say(options, {"pods": shown}, lines)


def _facts(pod: PodFacts, routable: bool) -> dict[str, Any]:
    judged = pod.silent is None
    return {
        "pod_id": pod.pod_id,
        "state": pod.state,
        "load_state": pod.load_state,
        "routing_state": pod.routing_state,
        "update_time": pod.update_time,
        "incarnation": pod.incarnation,
        "metadata": pod.metadata,
        "silent": pod.silent,
        "available": pod.standing in (Standing.READY, Standing.DRAINING) if judged else None,
        "routable": routable if judged else None,
    }


def _yes(judged: bool | None) -> str:
    return "?" if judged is None else "yes" if judged else "no"
