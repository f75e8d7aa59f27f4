"""The link operations of a client driver."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from . import _operations as ops, _podlink
from ._batches import linked_pods
from ._bridge import call
from ._closeable import Closeable
from ._operations import AnyOperation
from .config import ClientConfig, Duration, seconds
from .errors import PodlinkError
from .route import Route

if TYPE_CHECKING:
    from .explain import Explanation

__all__ = ["ClientLinks", "explanation"]


class ClientLinks(Closeable):
    """What :class:`podlink.ClientDriver` does with links; the driver itself adds its settings,
    hooks and ``submit``.
    """

    _core: _podlink.ClientCore
    config: ClientConfig
    _compute_cached: Callable[[str | None, str, str], int | None]

    async def compute_linked_pod(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        *,
        timeout: Duration | None = None,
    ) -> int:
        """Returns a pod that may serve the user: the linked one, or a new link's.

        A cached answer is given without I/O if it is still valid, its pod ``READY`` and still
        the same process. Otherwise the store decides: an existing link stays where it is, also on
        a draining pod (``DENY_NEW_CALL``), unless that pod said "not mine" (:meth:`misrouted`). A
        draining pod gives up its users one by one, so what is remembered of it is not answered. A
        user whose pod is dead or shut down is moved to the
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
            _check_timeout(ops.compute_linked_pod, timeout)
        # Two lines: CPython 3.11 has no fast path for `self.x()` where `x` is in the instance: it
        # looks the name up in the class first.
        compute_cached = self._compute_cached
        pod = compute_cached(namespace, uid, service_name)
        if pod is not None:
            return pod
        return await call(
            self._core, ops.compute_linked_pod, namespace, uid, service_name, timeout=timeout
        )

    async def route(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        *,
        timeout: Duration | None = None,
    ) -> Route:
        """Returns what a gateway needs to send the user's request: the pod, its address, and the
        token by which it owns the user.

        Finds or makes the link as :meth:`compute_linked_pod` does, with the same cache, errors and
        deadlines. That method is quicker where the pod index is enough.

        Args:
            namespace: the user's namespace; ``None`` or ``""`` is the driver's own.
            uid: the user.
            service_name: the stateful service.
            timeout: seconds to wait at the most.

        Returns:
            The :class:`podlink.Route`. Its ``token`` and ``incarnation`` are ``None`` as long as
            no process of the pod has claimed the user.

        Raises:
            NoRoutablePodError: there is no link that can stand, and no pod takes new users.

        Example:
            >>> async def upstream(client: ClientDriver, uid: str) -> tuple[str, int | None]:
            ...     route = await client.route("default", uid, "user-service")
            ...     return route.address, route.token
        """
        if timeout is not None:
            _check_timeout(ops.route, timeout)
        fields = self._core.route_cached(namespace, uid, service_name)
        if fields is None:
            fields = await call(
                self._core, ops.route, namespace, uid, service_name, timeout=timeout
            )
        return Route._from_core(fields)

    def misrouted(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        pod_index: int,
        *,
        owner: int | None = None,
        token: int | None = None,
    ) -> None:
        """Reports that a pod answered "not mine" to a request for this user. Never waits, no I/O.

        The cache forgets the user if it names ``pod_index``, or learns ``owner``. For
        ``config.link_ttl`` the next computes do not answer that pod on the strength of a hint, a
        link that no process has claimed: they replace it, by compare-and-set. A link whose owner
        the store knows is believed over the report, which may be older; that also ends its effect.
        If no other pod takes new users, the pod is answered all the same, and nothing is
        remembered.

        Cheap to call for every such answer: however many reports there are of a user, one
        operation on the store is in flight. Another namespace's peer is notified with the next
        compute.

        Args:
            namespace: the user's namespace; ``None`` or ``""`` is the driver's own.
            uid: the user.
            service_name: the stateful service.
            pod_index: the pod that said "not mine".
            owner: the pod that owns the user, if the answer named it. The cache keeps it for
                ``config.cache_ttl``, unless it knows of a later owner.
            token: the owner's token, or the last one that the pod knew of. If the cache knows a
                later one, the report is ignored.

        Raises:
            InvalidParameterError: a name is wrong, a number out of its range, or ``owner`` the
                pod itself.
            NamespaceUnreachableError: no peer leads to the namespace.
            ClosedError: the driver was closed.

        Example:
            >>> ClientDriver(Store()).misrouted("default", "user123", "user-service", 0, owner=2)
        """
        self._core.misrouted(namespace, uid, service_name, pod_index, owner, token)

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
            _check_timeout(ops.get_linked_pod, timeout)
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
            _check_timeout(ops.get_linked_pod_in_cache_or_if_persist, timeout)
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
        """Returns the pod in the cache, or ``None``. Never waits, no I/O.

        Example:
            >>> ClientDriver(Store()).get_linked_in_cache("default", "user123", "user-service")
        """
        return self._core.get_linked_in_cache(namespace, uid, service_name)

    def cache_expired(self, namespace: str | None, uid: str, service_name: str) -> int | None:
        """Removes the user from the cache: for when a pod answers that the user is not there.

        Answers of requests that run already are not stored, so the next compute asks the store.

        Returns:
            What the cache held, or ``None``.

        Example:
            >>> ClientDriver(Store()).cache_expired("default", "user123", "user-service")
        """
        return self._core.cache_expired(namespace, uid, service_name)

    def set_cache(
        self, namespace: str | None, uid: str, service_name: str, pod_index: int
    ) -> int | None:
        """Writes into the cache that the user is on ``pod_index``, for ``config.cache_ttl``.

        For programs that learn of links in another way. The store is not changed.

        Returns:
            What the cache held before, or ``None``.

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
            service name → pod index; empty if there are none. A service whose stored value is no
            pod index, because another program wrote it, is left out, logged and counted.

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

        Not one snapshot: a link that changes meanwhile may be seen before or after. Any number of
        users: many are handed over in pieces, between which other tasks of the loop run, and their
        time counts from the call. ``submit`` reads all of them on the calling thread.

        Returns:
            pod index → users in the order given, each once. Users without a link are left out. So
            are users whose link another program spoilt: they are logged and counted, and the
            others do not suffer. A call for such a user alone raises an error that names the key.

        Example:
            >>> async def rooms(client: ClientDriver) -> dict[int, list[str]]:
            ...     return await client.batch_get_linked_pod(None, ["a", "b"], "user-service")
        """
        return await linked_pods(
            self._core, namespace, uids, service_name, timeout, self.config.timeout
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
        return explanation(
            await call(self._core, ops.explain, namespace, uid, service_name, timeout=timeout)
        )


def _check_timeout(operation: AnyOperation, timeout: Duration) -> None:
    """Raises for a wrong ``timeout``, also where the cache would answer."""
    try:
        _podlink.check_timeout(seconds(timeout))
    except PodlinkError as error:
        error.details.setdefault("operation", operation.name)
        raise


def explanation(answer: str) -> Explanation:
    # Here, because a program that only routes should not pay for it when importing podlink.
    from .explain import Explanation

    return Explanation._from_core(answer)
