"""The gRPC server: links of this namespace for callers in others."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Self

from . import _operations as ops, _podlink
from ._bridge import call
from ._closeable import Closeable
from .client import ClientDriver
from .config import ClientConfig, Duration, GrpcServerConfig, check_type, seconds
from .errors import InvalidParameterError
from .store import Store

__all__ = ["RouteGrpcServer"]

Path = str | os.PathLike[str]
Rule = tuple[str, str, str]


class RouteGrpcServer(Closeable):
    """Serves the links of one namespace to callers in others, over gRPC.

    It offers ``podlink.v1.RouteService`` (proto/podlink/v1/route.proto), ``grpc.health.v1`` and
    server reflection. Of the health services ``liveness`` is serving while the server runs,
    whatever the store does; ``readiness``, ``podlink.v1.RouteService`` and ``""`` are serving while
    the store answers. Every caller may check health.

    **The caller's name** comes from the channel. With ``tokens_file`` it is that of the bearer
    token; otherwise the names in the client's certificate: those of its subject alternative name,
    and the namespace in ``spiffe://…/ns/NAMESPACE/…`` or in ``name.NAMESPACE.svc…``; the common
    name only where there are no others. Without both, callers have no name.

    **What a caller may do** is in ``authorize``, as tuples ``(caller, method, namespace)``, such as
    ``("game", "GetLinkedPod", "prod")``; ``"*"`` stands for all, also for callers without a name.
    What no tuple allows is denied.

    An operation that was begun is finished, also when its caller cancels or goes away. Files are
    read again within a second when they change; files that cannot be used change nothing.

    Args:
        store: where the links are.
        namespace: the namespace to serve.
        listen: ``host:port``; port 0 is any free one (see ``address``).
        config: the limits.
        client: the driver that finds and makes the links, or the settings of its own.
        authorize: which caller may do what; by default none may do anything.
        cert_file: the server's certificate, PEM; with it and ``key_file`` connections are TLS.
        key_file: its key.
        client_ca_file: the authorities that clients' certificates must come from.
        tokens_file: bearer tokens, one ``caller token`` a line, each of 16 characters or more.
            Several of one caller are good at once, for rotation.
        insecure: listen for other machines without TLS. The network in between can read and
            change everything.
        reflection: whether callers may read the schema.

    Raises:
        InvalidParameterError: an argument is wrong, or ``listen`` is open to other machines
            without TLS.

    Example:
        >>> import asyncio
        >>> async def main() -> int:
        ...     store, rules = Store("memory://"), [("*", "*", "prod")]
        ...     async with RouteGrpcServer(store, "prod", authorize=rules) as server:
        ...         async with RouteGrpcClient(f"grpc://{server.address}") as client:
        ...             return await client.set_linked_pod_if_absent("prod", "u1", "svc", 0)
        >>> asyncio.run(main())
        0
    """

    def __init__(
        self,
        store: Store,
        namespace: str = "default",
        listen: str = "127.0.0.1:0",
        config: GrpcServerConfig | None = None,
        *,
        client: ClientDriver | ClientConfig | None = None,
        authorize: Iterable[Rule] = (),
        cert_file: Path | None = None,
        key_file: Path | None = None,
        client_ca_file: Path | None = None,
        tokens_file: Path | None = None,
        insecure: bool = False,
        reflection: bool = True,
    ) -> None:
        check_type("store", store, Store)
        config = GrpcServerConfig() if config is None else config
        check_type("config", config, GrpcServerConfig)
        check_type("insecure", insecure, bool)
        check_type("reflection", reflection, bool)
        self._owns_client = not isinstance(client, ClientDriver)
        if not isinstance(client, ClientDriver):
            client = ClientDriver(store, namespace, client)
        self._client = client
        self.config = config
        self.namespace = namespace
        self._core = _podlink.GrpcServerCore(
            store._core,
            namespace,
            client._core,
            client.route_info._core,
            client.config._core(),
            config._core(),
            listen,
            cert_file,
            key_file,
            client_ca_file,
            tokens_file,
            _rules(authorize),
            insecure,
            reflection,
        )

    def __repr__(self) -> str:
        return f"RouteGrpcServer(namespace={self.namespace!r}, address={self.address!r})"

    @property
    def address(self) -> str | None:
        """``host:port``, once the server listens."""
        return self._core.address()

    async def start(self) -> str:
        """Reads the files and listens; returns the address.

        Raises:
            InvalidParameterError: a file cannot be used, or the address is taken.
            IllegalStateError: it was started already.
            ClosedError: it was stopped.
        """
        return await call(self._core, ops.listen)

    async def stop(self, *, deadline: Duration = 10.0) -> bool:
        """Stops: no new connections and requests; requests in flight may end until the deadline.

        The health services report at once that it does not serve any more. At the deadline every
        connection is cut; what the server began is finished all the same. A second stop does
        nothing more.

        Args:
            deadline: seconds to wait at the most.

        Returns:
            Whether every request ended in time.
        """
        ended = await call(self._core, ops.stop_listening, seconds(deadline))
        if self._owns_client:
            await self._client.aclose()
        return ended

    async def aclose(self) -> None:
        """Stops with the default deadline. The store stays open, and so does a driver that was
        given.
        """
        await self.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self


def _rules(authorize: Iterable[Any]) -> list[Rule]:
    rules: list[Rule] = []
    for rule in authorize:
        parts = () if isinstance(rule, str) else tuple(rule)
        if len(parts) != 3 or not all(isinstance(part, str) for part in parts):
            raise InvalidParameterError(
                f"authorize must be tuples (caller, method, namespace), got {rule!r}",
                details={
                    "parameter": "authorize",
                    "given": repr(rule),
                    "allowed": "(caller, method, namespace)",
                },
            )
        rules.append(parts)
    return rules
