"""The client driver: find or make the link user → pod."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from . import _operations as ops, _podlink
from ._batches import joined
from ._bridge import log_queue
from ._driver_hooks import DriverHooks, HookOwner
from ._hooks import Failures, Listener
from ._links import ClientLinks, explanation
from ._strategy import chooser
from ._submit import Submittable, Submitter
from .callback import PodLostCallback, Registration, StatefulObjCallback
from .config import (
    ClientConfig,
    Duration,
    RouteInfoConfig,
    check_type,
)
from .grpc_client import RouteGrpcClient, peer_table
from .info import RouteInfoDriver
from .route import Route
from .service import ServiceLinks
from .store import Store

if TYPE_CHECKING:
    from .explain import Explanation

__all__ = ["ClientDriver"]

T = TypeVar("T")


class ClientDriver(ClientLinks, HookOwner):
    """Finds out which pod holds a user, and gives a new user to a pod.

    One driver serves a process: it may be used from many event loops and threads at once, and
    goes on after ``asyncio.run`` has ended. Making one does no I/O.

    In every operation ``namespace=None`` or ``""`` means the driver's own namespace. Names are 1
    to 63 characters ``[A-Za-z0-9._-]``; a uid is 1 to 128 bytes of UTF-8 without control
    characters and braces.

    **Cancelling** an await is instant and abandons only that waiting: an operation that was
    started goes on, and the next call finds what it did. **Concurrent** computes for one user are
    a single flight: they share one store operation, and one caller's cancellation does not affect
    the others.
    **Deadlines**: every coroutine takes ``timeout=`` (seconds or ``timedelta``, 1 ms to 1 h); the
    default is ``config.timeout``.

    Every coroutine may raise ``InvalidParameterError``, ``NamespaceUnreachableError``,
    ``StoreUnavailableError``, ``StoreAuthenticationError``, ``StoreDataError``, ``StoreError``,
    ``OperationTimeoutError``, ``ClosedError`` and, in a forked child, ``ForkedProcessError``.

    Args:
        store: where the links are.
        namespace: the driver's own namespace.
        config: its settings.
        route_info: what reads the pods: a route info driver to share, or the settings of its own.
        callbacks: what runs the callbacks of ``submit`` when there is no event loop:
            ``"thread"``, threads of this driver's own, up to 4 at a time, so that callbacks may
            overtake one another; or ``"poll"``, the thread that calls ``poll_callbacks()``.
        peers: the clients of other namespaces, by namespace. Every operation that names one goes
            there, and shares this driver's cache: a peer's answer is remembered for as long as the
            peer allows, at most ``cache_ttl``, and valid only while the peer reports its pod as
            available. Peers are not closed with the driver.

    Raises:
        InvalidParameterError: an argument is wrong.

    Example:
        >>> import asyncio
        >>> from podlink import ClientDriver, ServerDriver, ServerInfo, Store
        >>> async def main() -> int:
        ...     store = Store("memory://")
        ...     client = ClientDriver(store, "default")
        ...     async with ServerDriver(store, ServerInfo("default", "user-service", 0)):
        ...         return await client.compute_linked_pod("default", "user123", "user-service")
        >>> asyncio.run(main())
        0
    """

    def __init__(
        self,
        store: Store,
        namespace: str = "default",
        config: ClientConfig | None = None,
        *,
        route_info: RouteInfoDriver | RouteInfoConfig | None = None,
        callbacks: Literal["thread", "poll"] = "thread",
        peers: Mapping[str, RouteGrpcClient] | None = None,
    ) -> None:
        check_type("store", store, Store)
        config = ClientConfig() if config is None else config
        check_type("config", config, ClientConfig)
        self._owns_route_info = not isinstance(route_info, RouteInfoDriver)
        if not isinstance(route_info, RouteInfoDriver):
            route_info = RouteInfoDriver(store, namespace, route_info)
        self.route_info = route_info
        self._submitter = Submitter(callbacks, _OPERATIONS)
        self._hook_failures = Failures()
        self.config = config
        self.namespace = namespace
        # The core holds the strategy and the peers' hooks weakly.
        self._chooser = choose = chooser(config.strategy)
        self._core = _podlink.ClientCore(
            store._core,
            namespace,
            config._core(),
            self.route_info._core,
            log_queue(),
            None if choose is None else (choose, choose.home),
            peer_table(peers),
        )
        self._peers = dict(peers or {})
        self._hooks = DriverHooks("client driver", self._core)
        self._compute_cached = self._core.compute_cached

    def __repr__(self) -> str:
        return f"ClientDriver(namespace={self.namespace!r})"

    def service(self, service_name: str, *, namespace: str | None = None) -> ServiceLinks:
        """Returns the link operations of one service: without namespace and service in each call,
        and quicker where the cache has the answer.

        Args:
            service_name: the stateful service.
            namespace: its namespace; ``None`` or ``""`` is the driver's own.

        Raises:
            InvalidParameterError: a name is wrong.
            NamespaceUnreachableError: the driver has no peer for the namespace.

        Example:
            >>> users = ClientDriver(Store(), "default").service("user-service")
            >>> users
            ServiceLinks(namespace='default', service_name='user-service')
        """
        core, found = self._core.service(namespace, service_name)
        return ServiceLinks(self, core, found, service_name)

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
        operation: Literal["compute_linked_pod", "set_linked_pod_if_absent"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[int]: ...

    @overload
    def submit(
        self,
        operation: Literal[
            "get_linked_pod",
            "get_linked_pod_in_cache_or_if_persist",
            "get_linked_pod_not_cache",
        ],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[int | None]: ...

    @overload
    def submit(
        self,
        operation: Literal["get_link_service"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[dict[str, int]]: ...

    @overload
    def submit(
        self,
        operation: Literal["batch_get_linked_pod"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[dict[int, list[str]]]: ...

    @overload
    def submit(
        self,
        operation: Literal["route"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[Route]: ...

    @overload
    def submit(
        self,
        operation: Literal["explain"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[Explanation]: ...

    def submit(
        self,
        operation: Callable[..., Coroutine[Any, Any, Any]] | str,
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[Any]:
        """Starts a coroutine operation without ``await``, from any thread, with or without a loop.

        Args:
            operation: a coroutine method of this driver, like ``client.compute_linked_pod``, or
                its name. Type checkers infer the type of the result from either. A subclass's
                override is not called: the operation starts in the core.
            args: its arguments.
            callback: called with the result, and with the context variables of this call: on the
                running loop if there is one, else on a thread of the driver's, or by
                ``poll_callbacks()`` for a driver made with ``callbacks="poll"``.
            timeout: seconds to wait at the most.
            kwargs: its arguments, by name.

        Returns:
            A future of the result. Cancelling it abandons only the waiting; the callback is then
            not called. Its done callbacks run on threads of the driver's.

        Raises:
            InvalidParameterError: there is no such operation, or an argument is wrong. Other
                errors come through the future and the callback.

        Example:
            >>> client = ClientDriver(Store())
            >>> client.submit(client.get_linked_pod, None, "user123", "user-service").result(5)
        """
        return self._submitter.submit(self, operation, args, kwargs, callback, timeout)

    def poll_callbacks(self) -> int:
        """Runs the callbacks that wait, on the calling thread; returns how many.

        Only for drivers made with ``callbacks="poll"``; on others there is never one waiting.
        """
        return self._submitter.poll()

    def on_pod_lost(
        self,
        callback: PodLostCallback,
        service_name: str | None = None,
    ) -> Registration:
        """Calls ``callback(pod, users_cached)`` whenever a pod is lost: dead or withdrawn.

        ``users_cached`` is how many users this driver's cache remembers with the pod. The
        callback may be sync or async; it runs where it was registered (see
        ``RouteInfoDriver.register_routing_state_changed_event``).

        Args:
            callback: what to call.
            service_name: only for this service; ``None``: for every service that this driver
                computes for.

        Returns:
            A handle whose ``unregister()`` ends the calls, as ``remove_hook(callback)`` does.

        Raises:
            ClosedError: the driver was closed.
        """

        def wanted(service: str, pod: int, users_cached: int) -> tuple[Any, ...] | None:
            return (pod, users_cached) if service_name in (None, service) else None

        listener = Listener(
            "callback", callback, wanted, self._hook_failures, counted_as="pod_lost"
        )
        return self._hooks.add(callback, listener, self._core.on_pod_lost)

    def stats(self) -> dict[str, int]:
        """Returns every counter of the driver by name, since it was made, and those of its route
        info driver.
        """
        of_pods = self.route_info.stats()
        return {
            **of_pods,
            **self._core.stats(),
            "callback_failures": self._submitter.failures,
            "hook_failures": self._hook_failures.count + of_pods["hook_failures"],
        }

    async def aclose(self) -> None:
        """Ends the driver's tasks and hooks. Later calls raise ``ClosedError``; a second close does
        nothing.

        The store stays open, and so does a route info driver that was given.
        """
        self._core.close()
        self._hooks.close()
        if self._owns_route_info:
            await self.route_info.aclose()


_OPERATIONS = {
    "batch_get_linked_pod": Submittable(ops.batch_get_linked_pod, joined),
    "compute_linked_pod": Submittable(ops.compute_linked_pod),
    "explain": Submittable(ops.explain, explanation),
    "get_link_service": Submittable(ops.get_link_service),
    "get_linked_pod": Submittable(ops.get_linked_pod),
    "get_linked_pod_in_cache_or_if_persist": Submittable(ops.get_linked_pod_in_cache_or_if_persist),
    "get_linked_pod_not_cache": Submittable(ops.get_linked_pod_not_cache),
    "route": Submittable(ops.route, Route._from_core),
    "set_linked_pod_if_absent": Submittable(ops.set_linked_pod_if_absent),
}
