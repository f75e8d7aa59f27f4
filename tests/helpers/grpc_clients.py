"""gRPC clients for tests: ours, of servers that serve the namespace `prod`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import podlink

RULES = [("*", "*", "prod")]
"""Everybody may do everything there."""


def client_of(*endpoints: str, **figures: Any) -> podlink.RouteGrpcClient:
    """A client of these endpoints, with these figures."""
    config = podlink.GrpcClientConfig(**figures)
    return podlink.RouteGrpcClient(endpoints, namespace="prod", config=config)


def server_of(store: podlink.Store | None = None, **limits: Any) -> podlink.RouteGrpcServer:
    """A server of the store, or of one of its own, with these limits."""
    store = podlink.Store() if store is None else store
    config = podlink.GrpcServerConfig(**limits)
    return podlink.RouteGrpcServer(store, "prod", config=config, authorize=RULES)


@asynccontextmanager
async def client_and_server(
    limits: dict[str, Any] | None = None, **figures: Any
) -> AsyncIterator[podlink.RouteGrpcClient]:
    """A server on a store of its own, and a client of it."""
    async with (
        server_of(**(limits or {})) as server,
        client_of(f"grpc://{server.address}", **figures) as client,
    ):
        yield client
