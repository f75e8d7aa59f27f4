"""The client driver: find or make the link user → pod."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from . import _operations as ops, _podlink
from ._bridge import call, callback_thread
from ._closeable import Closeable
from ._hooks import Failures, Listener, chooser
from ._submit import Submittable, Submitter
from .callback import StatefulObjCallback
from .config import (
    ClientConfig,
    Duration,
    RouteInfoConfig,
    check_type,
    seconds,
    uid_list,
)
from .grpc_client import RouteGrpcClient, peer_table
from .info import Registration, RouteInfoDriver
from .service import ServiceLinks
from .store import Store

if TYPE_CHECKING:
    from .explain import Explanation

__all__ = ["ClientDriver"]

T = TypeVar("T")


class ClientDriver(Closeable):
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
            ``"thread"``, podlink's callback thread, or ``"poll"``, the thread that calls
            ``poll_callbacks()``.
        peers: the clients of other namespaces, by namespace. Every operation that names one goes
            there, and shares this driver's cache: a peer's answer is remembered for as long as the
            peer allows, at most ``cache_ttl``, and believed only while the peer reports its pod as
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
        self._core = _podlink.ClientCore(
            store._core,
            namespace,
            config._core(),
            self.route_info._core,
            callback_thread().queue,
            chooser(config.strategy),
            peer_table(peers),
        )
        self._compute_cached = self._core.compute_cached

    def __repr__(self) -> str:
        return f"ClientDriver(namespace={self.namespace!r})"

    async def compute_linked_pod(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        *,
        timeout: Duration | None = None,
    ) -> int:
        """Returns a pod that may serve the user: the linked one, or a new link's.

        A cached answer is given without I/O if it is still valid, its pod available and still
        the same process. Otherwise the store decides: an existing link stays where it is, also on
        a draining pod (``DENY_NEW_CALL``); a user whose pod is dead or shut down is moved to the
        best routable pod, by compare-and-set, so that all clients agree; a new user gets the best
        routable pod. While a pod's lease is over but its death is not certain yet (at most
        ``grace``), its users stay with it, and the answer is not cached.

        Args:
            namespace: the user's namespace; ``None`` or ``""`` is the driver's own.
            uid: the user.
            service_name: the stateful service.
            timeout: seconds to wait at the most.

        Returns:
            The pod index; 0 is a pod.

        Raises:
            NoRoutablePodError: there is no link that can stand, and no pod takes new users.

        Example:
            >>> async def route(client: ClientDriver) -> int:
            ...     return await client.compute_linked_pod("default", "user123", "user-service")
        """
        if timeout is not None:
            _podlink.check_timeout(seconds(timeout))
        # Two lines: CPython 3.11 has no fast path for `self.x()` where `x` is in the instance: it
        # looks the name up in the class first.
        compute_cached = self._compute_cached
        pod = compute_cached(namespace, uid, service_name)
        if pod is not None:
            return pod
        return await call(
            self._core, ops.compute_linked_pod, namespace, uid, service_name, timeout=timeout
        )

    async def get_linked_pod(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        *,
        timeout: Duration | None = None,
    ) -> int | None:
        """Returns the user's pod, from the cache or else from the store; the cache keeps it.

        Never makes or moves a link: the pod may be dead. A cached link whose pod is known to be
        gone, or to be another process now, is looked up again.

        Returns:
            The pod index, or ``None`` if the user has no link.

        Example:
            >>> async def where(client: ClientDriver) -> int | None:
            ...     return await client.get_linked_pod("default", "user123", "user-service")
        """
        if timeout is not None:
            _podlink.check_timeout(seconds(timeout))
        pod = self._core.cached_link(namespace, uid, service_name)
        if pod is not None:
            return pod
        return await call(
            self._core, ops.get_linked_pod, namespace, uid, service_name, timeout=timeout
        )

    async def get_linked_pod_in_cache_or_if_persist(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        *,
        timeout: Duration | None = None,
    ) -> int | None:
        """Returns the user's pod from the cache, else from the store if the link is persistent.

        A persistent link was made by the owning pod; a temporary one is only a hint.

        Returns:
            The pod index, or ``None`` if the cache has no link and the store no persistent one.

        Example:
            >>> async def owner(client: ClientDriver) -> int | None:
            ...     find = client.get_linked_pod_in_cache_or_if_persist
            ...     return await find("default", "user123", "user-service")
        """
        if timeout is not None:
            _podlink.check_timeout(seconds(timeout))
        pod = self._core.cached_link(namespace, uid, service_name)
        if pod is not None:
            return pod
        return await call(
            self._core,
            ops.get_linked_pod_in_cache_or_if_persist,
            namespace,
            uid,
            service_name,
            timeout=timeout,
        )

    async def get_linked_pod_not_cache(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        *,
        timeout: Duration | None = None,
    ) -> int | None:
        """Returns the user's pod from the store; the cache is neither read nor changed.

        Returns:
            The pod index, or ``None`` if the user has no link.

        Example:
            >>> async def truth(client: ClientDriver) -> int | None:
            ...     return await client.get_linked_pod_not_cache(None, "user123", "user-service")
        """
        return await call(
            self._core, ops.get_linked_pod_not_cache, namespace, uid, service_name, timeout=timeout
        )

    def get_linked_in_cache(self, namespace: str | None, uid: str, service_name: str) -> int | None:
        """Returns the pod that the cache believes in, or ``None``. Never waits, no I/O.

        Example:
            >>> ClientDriver(Store()).get_linked_in_cache("default", "user123", "user-service")
        """
        return self._core.get_linked_in_cache(namespace, uid, service_name)

    def cache_expired(self, namespace: str | None, uid: str, service_name: str) -> int | None:
        """Removes the user from the cache: for when a pod answers that the user is not there.

        Answers of requests that run already are not stored, so the next compute asks the store.

        Returns:
            What the cache believed, or ``None``.

        Example:
            >>> ClientDriver(Store()).cache_expired("default", "user123", "user-service")
        """
        return self._core.cache_expired(namespace, uid, service_name)

    def set_cache(
        self, namespace: str | None, uid: str, service_name: str, pod_index: int
    ) -> int | None:
        """Makes the cache believe that the user is on ``pod_index``, for ``config.cache_ttl``.

        For programs that learn of links in another way. The store is not changed.

        Returns:
            What the cache believed before, or ``None``.

        Example:
            >>> client = ClientDriver(Store())
            >>> client.set_cache("default", "user123", "user-service", 0)
            >>> client.get_linked_in_cache("default", "user123", "user-service")
            0
        """
        return self._core.set_cache(namespace, uid, service_name, pod_index)

    async def get_link_service(
        self, namespace: str | None, uid: str, *, timeout: Duration | None = None
    ) -> dict[str, int]:
        """Returns the services to which the user has persistent links, with the pods.

        Returns:
            service name → pod index; empty if there are none.

        Example:
            >>> async def services(client: ClientDriver) -> dict[str, int]:
            ...     return await client.get_link_service("default", "user123")
        """
        return await call(self._core, ops.get_link_service, namespace, uid, timeout=timeout)

    async def batch_get_linked_pod(
        self,
        namespace: str | None,
        uids: Iterable[str],
        service_name: str,
        *,
        timeout: Duration | None = None,
    ) -> dict[int, list[str]]:
        """Returns the pods of many users, from the store; the cache is neither read nor changed.

        Not one snapshot: a link that changes meanwhile may be seen before or after.

        Returns:
            pod index → users in the order given, each once. Users without a link are left out.

        Example:
            >>> async def rooms(client: ClientDriver) -> dict[int, list[str]]:
            ...     return await client.batch_get_linked_pod(None, ["a", "b"], "user-service")
        """
        return await call(
            self._core,
            ops.batch_get_linked_pod,
            namespace,
            uid_list(uids),
            service_name,
            timeout=timeout,
        )

    async def set_linked_pod_if_absent(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        pod_index: int,
        *,
        timeout: Duration | None = None,
    ) -> int:
        """Links the user to ``pod_index`` for ``config.link_ttl`` unless there is a link.

        An existing link stays; a temporary one lives at least ``link_ttl`` from now on. The cache
        keeps the answer. Idempotent: a call that failed with an unknown outcome may be retried.

        Returns:
            The owner's pod index.

        Example:
            >>> async def offer(client: ClientDriver) -> int:
            ...     return await client.set_linked_pod_if_absent(None, "u1", "user-service", 0)
        """
        return await call(
            self._core,
            ops.set_linked_pod_if_absent,
            namespace,
            uid,
            service_name,
            pod_index,
            timeout=timeout,
        )

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

    async def explain(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        *,
        timeout: Duration | None = None,
    ) -> Explanation:
        """Explains what ``compute_linked_pod`` would do with the user now.

        The link, its pod's state and lease, what the cache holds, the candidates with their loads,
        and the verdict, as a :class:`podlink.explain.Explanation`; ``str()`` of it is readable
        text. **Nothing changes**: nothing is written to the store, no time to live raised, nothing
        put into the cache, no choice counted, no function of the program's called. So another
        explanation, or a compute, finds the same. Cancelling leaves nothing behind.

        The answer holds for its moment: it does not see what other processes do meanwhile. Of
        another namespace it has only what the peer answers. A store or a peer that does not answer
        is part of the explanation, not an error.

        Args:
            namespace: the user's namespace; ``None`` or ``""`` is the driver's own.
            uid: the user.
            service_name: the stateful service.
            timeout: seconds to wait at the most.

        Raises:
            InvalidParameterError: a name is wrong.
            NamespaceUnreachableError: no peer leads to the namespace.
            ClosedError: the driver, or its store, was closed.

        Example:
            >>> async def why(client: ClientDriver) -> None:
            ...     print(await client.explain("default", "user123", "user-service"))
        """
        return _explanation(
            await call(self._core, ops.explain, namespace, uid, service_name, timeout=timeout)
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
                its name. Type checkers infer the type of the result from either.
            args: its arguments.
            callback: called with the result: on the running loop if there is one, else on
                podlink's callback thread, or by ``poll_callbacks()`` for a driver made with
                ``callbacks="poll"``.
            timeout: seconds to wait at the most.
            kwargs: its arguments, by name.

        Returns:
            A future of the result. Cancelling it abandons only the waiting; the callback is then
            not called.

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
        callback: Callable[[int, int], object],
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
            A handle whose ``unregister()`` ends the calls.
        """

        def wanted(service: str, pod: int, users_cached: int) -> tuple[Any, ...] | None:
            return (pod, users_cached) if service_name in (None, service) else None

        listener = Listener(
            "callback", callback, wanted, self._hook_failures, counted_as="pod_lost"
        )
        return Registration(self._core.on_pod_lost(listener.home, listener), listener)

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
        """Ends the driver's tasks. Later calls raise ``ClosedError``; a second close does nothing.

        The store stays open, and so does a route info driver that was given.
        """
        self._core.close()
        if self._owns_route_info:
            await self.route_info.aclose()


def _explanation(answer: str) -> Explanation:
    # Here, because a program that only routes should not pay for it when importing podlink.
    from .explain import Explanation

    return Explanation._from_core(answer)


_OPERATIONS = {
    "batch_get_linked_pod": Submittable(ops.batch_get_linked_pod),
    "compute_linked_pod": Submittable(ops.compute_linked_pod),
    "explain": Submittable(ops.explain, _explanation),
    "get_link_service": Submittable(ops.get_link_service),
    "get_linked_pod": Submittable(ops.get_linked_pod),
    "get_linked_pod_in_cache_or_if_persist": Submittable(ops.get_linked_pod_in_cache_or_if_persist),
    "get_linked_pod_not_cache": Submittable(ops.get_linked_pod_not_cache),
    "set_linked_pod_if_absent": Submittable(ops.set_linked_pod_if_absent),
}
