"""The admin endpoint: metrics, health and pods over HTTP."""

from __future__ import annotations

from typing import Self

from . import _operations as ops, _podlink
from ._bridge import call
from ._closeable import Closeable
from .config import check_type
from .connection import Connection, store_of
from .store import Store

__all__ = ["AdminServer"]


class AdminServer(Closeable):
    """Serves metrics, health and pods to operators, over HTTP, from podlink's own threads: it
    answers also while the program's event loop is stuck.

    - ``/metrics``: every metric of the drivers on the store, as OpenMetrics text.
    - ``/healthz``: 200 as long as the process can answer at all.
    - ``/readyz``: 200 if the store answers within a second and every started server driver on it
      holds its lease and is not being stopped; otherwise 503 with the reason.
    - ``/pods``: the pods of every service that is being read, as JSON.

    It only reads. There is neither TLS nor a password, so it listens on this machine alone, unless
    ``insecure``: a caller that reaches it learns the names of services, pods and their addresses,
    but never a uid, a credential or a token. Callers are limited: 32 connections, one request each,
    10 seconds, heads of 16 KiB.

    Args:
        source: the store, or a connection's.
        listen: ``host:port``; port 0 is any free one (see ``address``).
        insecure: listen for other machines, as a pod's own port for Prometheus needs.

    Raises:
        InvalidParameterError: an argument is wrong, or ``listen`` is open to other machines
            without ``insecure``.

    Example:
        >>> import asyncio, urllib.request
        >>> async def main() -> bytes:
        ...     async with AdminServer(Store(), "127.0.0.1:0") as admin:
        ...         url = f"http://{admin.address}/healthz"
        ...         return await asyncio.to_thread(lambda: urllib.request.urlopen(url).read())
        >>> asyncio.run(main())
        b'alive\\n'
    """

    def __init__(
        self,
        source: Store | Connection,
        listen: str = "127.0.0.1:9464",
        *,
        insecure: bool = False,
    ) -> None:
        check_type("insecure", insecure, bool)
        self._core = _podlink.AdminCore(store_of(source)._core, listen, insecure)

    def __repr__(self) -> str:
        return f"AdminServer(address={self.address!r})"

    @property
    def address(self) -> str | None:
        """``host:port``, once it listens."""
        return self._core.address()

    async def start(self) -> str:
        """Listens; returns the address.

        Raises:
            InvalidParameterError: the address is taken.
            IllegalStateError: it was started already.
            ClosedError: it was stopped.
        """
        return await call(self._core, ops.listen)

    async def aclose(self) -> None:
        """Stops listening and cuts every connection. A second close does nothing. The store stays
        open.
        """
        self._core.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self
