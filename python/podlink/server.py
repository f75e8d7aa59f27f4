"""The server driver: a pod's own side."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import warnings
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, Literal, Self, TypeVar, overload

from . import _operations as ops, _podlink
from ._bridge import call, log_queue
from ._closeable import Closeable
from ._driver_hooks import DriverHooks, HookOwner
from ._hooks import Question
from ._ownership_hooks import OwnershipHooks
from ._submit import Submittable, Submitter
from .callback import LoadFunction, StatefulObjCallback
from .config import Duration, ServerConfig, check_type, seconds
from .errors import PodlinkError
from .grpc_client import RouteGrpcClient, peer_table
from .ownership import Ownership, ownerships
from .server_info import ServerInfo
from .state import DrainReport, RoutingState
from .store import Store

__all__ = ["ServerDriver"]

T = TypeVar("T")


class ServerDriver(OwnershipHooks, HookOwner, Closeable):
    """Holds this pod's lease, publishes its state, owns its users' links.

    Between ``start`` and ``stop`` a task of podlink's own renews the lease and publishes the
    state every ``config.renew``, whatever the event loop does. Use it with ``async with``, or
    call ``start`` and ``stop``. podlink installs no signal handlers; this wires SIGTERM to a
    clean stop::

        loop.add_signal_handler(signal.SIGTERM, stopping.set)  # stopping = asyncio.Event()

    One driver is one life of one pod: after ``stop`` make a new one. It may be used from many
    event loops and threads. Cancelling an await abandons only the waiting.

    Keep it until it has stopped. A started driver that the program drops says so, by a
    ``ResourceWarning`` and a line in the log, and renews no more: its lease runs out, and the
    users that it owned go to other pods.

    Every coroutine takes ``timeout=`` (seconds or ``timedelta``; default ``config.timeout``) and
    may raise what :class:`~podlink.ClientDriver`'s may.

    Args:
        store: where links and states are.
        server_info: this pod's identity; see :meth:`ServerInfo.from_env`.
        config: its settings.
        load: a sync or async function that returns the load that this pod reports; called every
            ``config.renew`` from the start on. If it fails, or takes longer than that, the last
            value stays; that is counted and never delays a renewal. Its calls never overlap. Once
            the loop on which it was given has ended, it is called no more, which is logged once:
            the last value, or that of ``set_load_state``, is published from then on. So it is
            after ``remove_hook(load)``.
        callbacks: as for :class:`~podlink.ClientDriver`.
        peers: the clients of other namespaces, by name. Operations on links of one of them go
            there. Pod indexes are then that namespace's: this pod owns no user there. Peers are
            not closed with the driver.

    Raises:
        InvalidParameterError: an argument is wrong.

    Example:
        >>> import asyncio
        >>> async def serve(stopping: asyncio.Event) -> None:
        ...     info = ServerInfo("default", "user-service", 0)
        ...     async with ServerDriver(Store("memory://"), info) as server:
        ...         await server.set_load_state(3)
        ...         await stopping.wait()
    """

    def __init__(
        self,
        store: Store,
        server_info: ServerInfo,
        config: ServerConfig | None = None,
        load: LoadFunction | None = None,
        *,
        callbacks: Literal["thread", "poll"] = "thread",
        peers: Mapping[str, RouteGrpcClient] | None = None,
    ) -> None:
        check_type("store", store, Store)
        check_type("server_info", server_info, ServerInfo)
        config = ServerConfig() if config is None else config
        check_type("config", config, ServerConfig)
        self.server_info = server_info
        self.config = config
        load_hook = None if load is None else Question("load", load)
        self._core = _podlink.ServerCore(
            store._core,
            server_info.namespace,
            server_info.service_name,
            server_info.pod_index,
            server_info.pod_uid,
            server_info._published(),
            config._core(),
            log_queue(),
            peer_table(peers),
        )
        self._peers = dict(peers or {})  # the core does not keep their hooks
        self._hooks = DriverHooks("server driver", self._core)
        if load is not None and load_hook is not None:
            self._hooks.add(load, load_hook, functools.partial(self._core.on, "load"))
        self._made = ownerships(self._core)
        claim = Submittable(ops.claim, self._made)
        # A stop that no caller waits for keeps the hooks, although the core does not.
        stop = Submittable(ops.stop, functools.partial(_stopped, self._hooks))
        self._submitter = Submitter(callbacks, {**_OPERATIONS, "claim": claim, "stop": stop})

    def __repr__(self) -> str:
        info = self.server_info
        return f"ServerDriver({info.namespace}/{info.service_name} pod {info.pod_index})"

    async def start(self, *, timeout: Duration | None = None) -> None:
        """Takes the pod's index, publishes the first state, then returns and keeps renewing.

        Waits while an earlier process with the same index may be alive: after a crash for as
        long as its lease and grace last. A second start of a running driver does nothing; one
        that comes while the first runs waits for the same outcome. A cancelled start goes
        on; ``stop`` ends it. A failed one leaves nothing behind and may be retried.

        Args:
            timeout: seconds to wait at the most; by default long enough to outwait an earlier
                process that was killed.

        Raises:
            PodIndexBusyError: another live process holds the index.
            IllegalStateError: the driver was stopped.
        """
        await call(self._core, ops.start, timeout=timeout)

    async def stop(
        self,
        *,
        deadline: Duration | None = None,
        drain: Literal["release", "handover", "keep"] | None = None,
    ) -> DrainReport:
        """Drains the pod and withdraws it. A second stop waits for the first one's report.

        Publishes DENY_NEW_CALL at once: from then on this pod takes no user. Calls the ``on_drain``
        hook for every user that this process owns, and treats each whose hook has ended well by
        ``drain``; publishes SHUTDOWN; ends the lease, so that neither successors nor clients wait
        for it; ends the renewals. If a hook has not ended by the deadline, the lease is not ended
        but runs out, so that no pod takes a user whose save may still be under way. Cancelling it
        abandons only the waiting.

        Args:
            deadline: seconds that it may take, whatever hangs; then the tasks have ended in every
                case. ``None``: ``config.stop_deadline``. The last quarter, 2 s at the most, is
                kept for the withdrawal, and the quarter before it, 5 s at the most, for releasing
                users.
            drain: what becomes of a user whose hook has ended well: ``"release"`` deletes its
                link, ``"handover"`` links it to another pod, ``"keep"`` leaves it.
                ``None``: ``config.drain``.

        Returns:
            What was done. If the withdrawal could not be written to the store, that is logged as an
            error, and the lease ends by itself.
        """
        try:
            fields = await call(self._core, ops.stop, seconds(deadline), drain)
        except (asyncio.CancelledError, GeneratorExit):
            # The stop goes on, and needs its hooks even if the driver is dropped now.
            with contextlib.suppress(PodlinkError):
                self.submit("stop", deadline=deadline, drain=drain)
            raise
        return _stopped(self._hooks, fields)

    async def claim(
        self,
        namespace: str | None,
        uid: str,
        service_name: str | None = None,
        *,
        min_token: int = 0,
        timeout: Duration | None = None,
    ) -> Ownership:
        """Takes the user for this process: from now on no other pod owns it.

        Repeated, also after a time-out, it gives the same token. An owner that is dead is
        replaced: the driver asks the store for the certificate of its death. Concurrent claims of
        one user run one after the other. Cancelling abandons only the waiting: the user may be
        owned afterwards (:meth:`owns` says).

        Args:
            namespace: this pod's namespace; ``None`` or ``""`` means it, too.
            uid: the user.
            service_name: this pod's service; ``None`` means it, too.
            min_token: the token will be greater than this.
            timeout: seconds to wait at the most.

        Raises:
            NotOwnerError: another pod owns the user (``.owner``); ``.retry_after`` says when it
                may be dead, if it is silent.
            LeaseLostError: the lease is over, or ended before the answer came: then the outcome
                is unknown, and the user is not owned.
            PodNotAvailableError: this pod takes no users: it is being stopped, or published
                DENY_NEW_CALL or SHUTDOWN. What it owns already it may claim again.
            IllegalStateError: the driver was not started.

        Example:
            >>> async def login(server: ServerDriver, uid: str) -> Ownership:
            ...     user = await server.claim(None, uid)
            ...     # load the state, with user.token as the fence
            ...     return user
        """
        fields = await call(
            self._core, ops.claim, namespace, uid, service_name, min_token, timeout=timeout
        )
        return self._made(fields)

    def owns(self, namespace: str | None, uid: str, service_name: str | None = None) -> bool:
        """Whether this process owns the user at this moment. No I/O: a look-up, and a look at the
        machine's boot-time clock.

        ``False`` from ``config.guard`` before the lease's end, while the pod is suspended, after a
        release or a loss, and in a forked child.
        """
        return self._core.owns(namespace, uid, service_name)

    def ownership(
        self, namespace: str | None, uid: str, service_name: str | None = None
    ) -> Ownership | None:
        """Returns what this process holds of the user at this moment, or ``None``. No I/O."""
        fields = self._core.ownership(namespace, uid, service_name)
        return None if fields is None else self._made(fields)

    def owned_users(self, service_name: str | None = None) -> list[str]:
        """Returns the uids that this process owns at this moment. No I/O.

        Args:
            service_name: this pod's service, or ``None``; of another one it owns no user.
        """
        if service_name is not None and service_name != self.server_info.service_name:
            return []
        return self._core.owned_users()

    async def set_load_state(self, load_state: int) -> None:
        """Sets the load that this pod reports; lower is better. The next renewal publishes it.

        What is published is ``cpu_factor * CPU + (1 - cpu_factor) * reported load``, rounded,
        where CPU is the process's CPU time in percent of what the pod may use (cgroup v2).
        """
        self._core.set_load_state(load_state)

    async def get_load_state(self) -> int:
        """Returns the load that this pod reports."""
        return self._core.get_load_state()

    @property
    def weighted_load(self) -> int:
        """The load that is published: CPU and reported load, weighted."""
        return self._core.weighted_load()

    async def set_routing_state(
        self, routing_state: RoutingState | str, *, timeout: Duration | None = None
    ) -> None:
        """Sets the routing state and publishes it at once; returns when it is published.

        Before ``start`` it is the state to start with. If the store fails, the state stands and
        the next renewal publishes it.

        Raises:
            IllegalStateError: a move out of SHUTDOWN, or a driver that does not run.
        """
        await call(self._core, ops.set_routing_state, routing_state, timeout=timeout)

    async def get_routing_state(self) -> RoutingState:
        """Returns the routing state that was set. While ``config.watchdog`` finds that the program
        does not answer, other processes see DENY_NEW_CALL in the place of READY.
        """
        return RoutingState(self._core.get_routing_state())

    @property
    def incarnation(self) -> int | None:
        """The number of this process among all that had this index; ``None`` before ``start``."""
        return self._core.incarnation() or None

    @property
    def holds_lease(self) -> bool:
        """Whether the lease is valid at this moment, by this machine's boot-time clock, with
        ``config.guard`` taken off. No I/O.
        """
        return self._core.holds_lease()

    async def set_linked_pod(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        pod_index: int,
        persist_seconds: int = -1,
        *,
        timeout: Duration | None = None,
    ) -> int | None:
        """Links the user to ``pod_index``, whatever was there.

        Args:
            namespace: the user's namespace; ``None`` or ``""`` is the driver's own.
            uid: the user.
            service_name: the stateful service.
            pod_index: the new owner.
            persist_seconds: -1 for ever, or how long the link lasts.
            timeout: seconds to wait at the most.

        Returns:
            The previous owner, or ``None``.
        """
        return await call(
            self._core,
            ops.set_linked_pod,
            namespace,
            uid,
            service_name,
            pod_index,
            persist_seconds,
            timeout=timeout,
        )

    async def try_set_linked_pod(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        pod_index: int,
        persist_seconds: int = -1,
        *,
        timeout: Duration | None = None,
    ) -> tuple[bool, int]:
        """Links the user to ``pod_index`` unless another pod has a right to the user.

        Free to take are: no link, a link that names ``pod_index`` already, and a temporary link
        without an owner. Of two pods that try at once exactly one wins; a repeated call of the
        winner wins again.

        Returns:
            Whether ``pod_index`` has the user now, and the owner's pod index.
        """
        return await call(
            self._core,
            ops.try_set_linked_pod,
            namespace,
            uid,
            service_name,
            pod_index,
            persist_seconds,
            timeout=timeout,
        )

    async def remove_linked_pod(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        *,
        timeout: Duration | None = None,
    ) -> bool:
        """Releases the user if this pod owns it: the link stays as a hint for
        ``config.link_grace``, then it is gone.

        Returns:
            Whether this pod owned the user.

        Raises:
            InvalidParameterError: a user of another namespace, where this pod owns no user: name
                the owner, with ``remove_linked_pod_with_id``.
        """
        return await call(
            self._core, ops.remove_linked_pod, namespace, uid, service_name, timeout=timeout
        )

    async def remove_linked_pod_with_id(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        pod_index: int,
        persist_seconds: int,
        *,
        timeout: Duration | None = None,
    ) -> bool:
        """Removes the link if ``pod_index`` owns it.

        Args:
            namespace: the user's namespace; ``None`` or ``""`` is the driver's own.
            uid: the user.
            service_name: the stateful service.
            pod_index: the owner that is expected.
            persist_seconds: 0 or -1: at once; positive: how long the link stays as a hint.
            timeout: seconds to wait at the most.

        Returns:
            Whether ``pod_index`` owned the user.
        """
        return await call(
            self._core,
            ops.remove_linked_pod_with_id,
            namespace,
            uid,
            service_name,
            pod_index,
            persist_seconds,
            timeout=timeout,
        )

    @overload
    def submit(
        self,
        operation: Callable[..., Coroutine[Any, Any, T]],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[T]: ...

    @overload
    def submit(
        self,
        operation: Literal["set_load_state", "set_routing_state", "start"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[None]: ...

    @overload
    def submit(
        self,
        operation: Literal["remove_linked_pod", "remove_linked_pod_with_id"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[bool]: ...

    @overload
    def submit(
        self,
        operation: Literal["get_load_state"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[int]: ...

    @overload
    def submit(
        self,
        operation: Literal["set_linked_pod"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[int | None]: ...

    @overload
    def submit(
        self,
        operation: Literal["try_set_linked_pod"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[tuple[bool, int]]: ...

    @overload
    def submit(
        self,
        operation: Literal["claim"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[Ownership]: ...

    @overload
    def submit(
        self,
        operation: Literal["stop"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[DrainReport]: ...

    @overload
    def submit(
        self,
        operation: Literal["get_routing_state"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[RoutingState]: ...

    def submit(
        self,
        operation: Callable[..., Coroutine[Any, Any, Any]] | str,
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[Any]:
        """Starts a coroutine operation without ``await``; see ``ClientDriver.submit``.

        ``stop`` takes ``deadline=`` and no ``timeout=``.
        """
        return self._submitter.submit(self, operation, args, kwargs, callback, timeout)

    def poll_callbacks(self) -> int:
        """Runs the callbacks that wait; see ``ClientDriver.poll_callbacks``."""
        return self._submitter.poll()

    def stats(self) -> dict[str, int]:
        """Returns every counter of the driver by name, since it was made."""
        return {
            **self._core.stats(),
            "callback_failures": self._submitter.failures,
        }

    async def aclose(self) -> None:
        """The same as ``stop()``, within ``config.stop_deadline`` and without its report. It ends
        the hooks, as every stop does.
        """
        await self.stop()

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        core = vars(self).get("_core")  # there is none if an argument was refused
        if core is not None and core.abandon():
            what = f"{self!r} was dropped while it ran: its lease runs out; stop it instead"
            _warn(what, ResourceWarning, source=self)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except asyncio.CancelledError:
            # The start goes on, and there is no end of the block that would stop it.
            self.submit("stop")
            raise
        return self


def _stopped(
    hooks: DriverHooks, fields: tuple[int, int, int, list[str], list[str], float]
) -> DrainReport:
    hooks.close()
    return DrainReport(*fields)


_OPERATIONS = {
    "claim": Submittable(ops.claim),
    "get_load_state": Submittable(None),
    "get_routing_state": Submittable(None),
    "remove_linked_pod": Submittable(ops.remove_linked_pod),
    "remove_linked_pod_with_id": Submittable(ops.remove_linked_pod_with_id),
    "set_linked_pod": Submittable(ops.set_linked_pod),
    "set_load_state": Submittable(None),
    "set_routing_state": Submittable(ops.set_routing_state),
    "start": Submittable(ops.start),
    "stop": Submittable(ops.stop),
    "try_set_linked_pod": Submittable(ops.try_set_linked_pod),
}
