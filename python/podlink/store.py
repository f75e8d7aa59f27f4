"""The shared state: where links and pods are kept."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

from . import _operations as ops, _podlink
from ._bridge import call
from ._closeable import Closeable
from ._logs import Log
from .config import Duration, seconds
from .errors import InvalidParameterTypeError

if TYPE_CHECKING:
    from .metrics import Snapshot

__all__ = ["Store", "StoreOption"]

StoreOption = str | float | timedelta | os.PathLike[str] | None
"""A store's option: text, a number, seconds, a path; ``None`` is an option that is not given."""


class Store(Closeable):
    """Where links and pods' states are kept. Drivers share one store and its one connection.

    URLs:

    - ``memory://``: in this process, a store of its own. ``memory://name``: the same store for
      every ``Store`` of that name in this process. Other processes do not see it: in a pod of
      Kubernetes (``POD_NAME`` is set) the first one is logged as a warning.
    - ``redis://[[user]:password@]host[:port][/db]``, ``valkey://…``: one server.
    - ``rediss://…``, ``valkeys://…``: the same with TLS.
    - ``redis+unix:///path/to/socket?db=0``, ``valkey+unix://…``: a Unix domain socket.

    Options, as keyword arguments or in the URL's query: ``db``, ``username``, ``password``,
    ``connect_timeout`` (seconds, default 1), and with TLS ``ca_file``, ``cert_file``,
    ``key_file`` (PEM files, read whenever a connection is made).

    Making a store does no I/O; the first call connects. A connection that breaks is made again,
    with backoff, and calls wait for it until their deadline. Safe to use from
    many event loops and threads. Credentials never appear in ``repr``, logs or errors.

    Raises:
        InvalidParameterError: the URL or an option is wrong; the text names it.

    Example:
        >>> Store("redis://game:secret@cache:6379/2")
        Store('redis://***@cache:6379/2')
    """

    def __init__(self, url: str = "memory://", **options: StoreOption) -> None:
        given = {name: _text(name, value) for name, value in options.items() if value is not None}
        self._core = _podlink.StoreCore(url, given)
        if self.url.startswith("memory:"):
            _warn_in_kubernetes(self.url)

    @property
    def url(self) -> str:
        """The URL without its credentials and options."""
        return self._core.shown

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def is_closed(self) -> bool:
        """Whether the store was closed: then every call raises ``ClosedError``. No I/O.

        Raises:
            ForkedProcessError: in a forked child of the process that made the store.
        """
        return self._core.is_closed()

    async def ping(self, *, timeout: Duration | None = None) -> None:
        """Pings the store.

        Args:
            timeout: seconds to wait at the most; 2 by default.

        Raises:
            StoreUnavailableError: it cannot be reached.
            StoreAuthenticationError: it refuses the credentials.
            OperationTimeoutError: it did not answer in time.
            ClosedError: the store was closed.
        """
        await call(self._core, ops.ping, timeout=timeout)

    def metrics_text(self) -> str:
        """Returns the metrics of every driver on this store as a page in the OpenMetrics format,
        for programs that serve ``/metrics`` without ``podlink.prometheus`` and
        :class:`~podlink.AdminServer`.

        The content type is ``application/openmetrics-text; version=1.0.0; charset=utf-8``. Counts
        of drivers that were closed stay, so no counter ever falls; those of the bridge to Python
        and of hooks are the whole process's. It waits for nothing, and may be called from any
        thread, also while drivers are closed and after ``aclose``.

        Raises:
            ForkedProcessError: in a forked child of the process that made the store.

        Example:
            >>> "podlink_build_info" in Store("memory://").metrics_text()
            True
        """
        return _podlink.metrics_text([self._core])

    def stats(self) -> Snapshot:
        """Returns what every driver on this store has counted so far, and how much of it lately:
        the same as ``metrics_text()``, to be used in a program.

        Raises:
            ForkedProcessError: in a forked child of the process that made the store.

        Example:
            >>> Store("memory://").stats().value("podlink_links_made")
            0.0
        """
        from .metrics import Snapshot

        return Snapshot._of([self._core])

    async def aclose(self) -> None:
        """Ends the connection. Later calls raise ``ClosedError``; a second close does nothing.

        Drivers that use the store are not closed by it: close them first.
        """
        await call(self._core, ops.close)


_log = Log("podlink.store")
_warned = False


def _warn_in_kubernetes(url: str) -> None:
    """Says once in a process that what is in its memory is seen by no other pod."""
    global _warned
    pod = os.environ.get("POD_NAME")
    if pod and not _warned:
        _warned = True
        _log.warning("a store in memory is seen by no other pod", store=url, POD_NAME=pod)


def _text(name: str, value: StoreOption) -> str:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, str | int | float | timedelta):
        return str(seconds(value))
    given, allowed = type(value).__name__, "a str, a number, a timedelta or a path"
    raise InvalidParameterTypeError(
        f"{name} must be {allowed}, got {given}",
        details={"parameter": name, "given": given, "allowed": allowed},
    )
