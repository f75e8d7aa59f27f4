"""The links of one service, for programs that use it often."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .config import Duration

if TYPE_CHECKING:
    from . import _podlink
    from ._links import ClientLinks
    from .explain import Explanation
    from .route import Route

__all__ = ["ServiceLinks"]


class ServiceLinks:
    """The link operations of a client driver for one service; made by
    :meth:`ClientDriver.service`.

    A name is checked and looked up once, not on each call, so a cached answer costs less. Nothing
    else differs: the operations are the driver's, with its cache, its store, its settings and its
    counters, and with the same deadlines, cancelling, concurrency and errors. It may be
    used from every loop and thread, and as long as the driver is open.

    Attributes:
        namespace: the namespace of the service.
        service_name: the service.

    Example:
        >>> import asyncio
        >>> from podlink import ClientDriver, ServerDriver, ServerInfo, Store
        >>> async def main() -> int:
        ...     store = Store("memory://")
        ...     users = ClientDriver(store, "default").service("user-service")
        ...     async with ServerDriver(store, ServerInfo("default", "user-service", 0)):
        ...         return await users.compute_linked_pod("user123")
        >>> asyncio.run(main())
        0
    """

    __slots__ = ("_client", "_compute_cached", "_core", "namespace", "service_name")

    def __init__(
        self, client: ClientLinks, core: _podlink.ServiceCore, namespace: str, service_name: str
    ) -> None:
        self.namespace: str = namespace
        self.service_name: str = service_name
        self._client = client
        self._core = core
        self._compute_cached = core.compute_cached

    def __repr__(self) -> str:
        return f"ServiceLinks(namespace={self.namespace!r}, service_name={self.service_name!r})"

    # Not `*, timeout`: CPython calls what has no keyword-only arguments a tenth faster.
    async def compute_linked_pod(self, uid: str, timeout: Duration | None = None) -> int:
        """Returns a pod that may serve the user: see :meth:`ClientDriver.compute_linked_pod`.

        The fastest way to a cached answer: here ``timeout`` may be given without its name.

        Example:
            >>> async def route(users: ServiceLinks) -> int:
            ...     return await users.compute_linked_pod("user123")
        """
        if timeout is None:
            compute_cached = self._compute_cached  # quicker than a call where it is named
            pod = compute_cached(uid)
            if pod is not None:
                return pod
        return await self._client.compute_linked_pod(
            self.namespace, uid, self.service_name, timeout=timeout
        )

    async def route(self, uid: str, *, timeout: Duration | None = None) -> Route:
        """Returns the user's pod, its address, and the token by which it owns the user: see
        :meth:`ClientDriver.route`.

        Example:
            >>> async def upstream(users: ServiceLinks, uid: str) -> str:
            ...     return (await users.route(uid)).address
        """
        return await self._client.route(self.namespace, uid, self.service_name, timeout=timeout)

    def misrouted(
        self, uid: str, pod_index: int, *, owner: int | None = None, token: int | None = None
    ) -> None:
        """Reports that the pod answered "not mine": see :meth:`ClientDriver.misrouted`.

        Example:
            >>> ClientDriver(Store()).service("user-service").misrouted("user123", 0, owner=2)
        """
        self._client.misrouted(
            self.namespace, uid, self.service_name, pod_index, owner=owner, token=token
        )

    async def get_linked_pod(self, uid: str, *, timeout: Duration | None = None) -> int | None:
        """Returns the user's pod, from the cache or else from the store: see
        :meth:`ClientDriver.get_linked_pod`.
        """
        return await self._client.get_linked_pod(
            self.namespace, uid, self.service_name, timeout=timeout
        )

    async def get_linked_pod_in_cache_or_if_persist(
        self, uid: str, *, timeout: Duration | None = None
    ) -> int | None:
        """Returns the user's pod from the cache, else from the store if the link is persistent: see
        :meth:`ClientDriver.get_linked_pod_in_cache_or_if_persist`.
        """
        return await self._client.get_linked_pod_in_cache_or_if_persist(
            self.namespace, uid, self.service_name, timeout=timeout
        )

    async def get_linked_pod_not_cache(
        self, uid: str, *, timeout: Duration | None = None
    ) -> int | None:
        """Returns the user's pod from the store: see
        :meth:`ClientDriver.get_linked_pod_not_cache`.
        """
        return await self._client.get_linked_pod_not_cache(
            self.namespace, uid, self.service_name, timeout=timeout
        )

    def get_linked_in_cache(self, uid: str) -> int | None:
        """Returns the pod in the cache, or ``None``. Never waits, no I/O.

        Example:
            >>> ClientDriver(Store()).service("user-service").get_linked_in_cache("user123")
        """
        return self._client.get_linked_in_cache(self.namespace, uid, self.service_name)

    def cache_expired(self, uid: str) -> int | None:
        """Removes the user from the cache, returns what it held: see
        :meth:`ClientDriver.cache_expired`.
        """
        return self._client.cache_expired(self.namespace, uid, self.service_name)

    def set_cache(self, uid: str, pod_index: int) -> int | None:
        """Writes into the cache that the user is on ``pod_index``, returns what it held
        before: see :meth:`ClientDriver.set_cache`.
        """
        return self._client.set_cache(self.namespace, uid, self.service_name, pod_index)

    async def batch_get_linked_pod(
        self, uids: Iterable[str], *, timeout: Duration | None = None
    ) -> dict[int, list[str]]:
        """Returns pod index → users, from the store: see
        :meth:`ClientDriver.batch_get_linked_pod`.

        Example:
            >>> async def rooms(users: ServiceLinks) -> dict[int, list[str]]:
            ...     return await users.batch_get_linked_pod(["a", "b"])
        """
        return await self._client.batch_get_linked_pod(
            self.namespace, uids, self.service_name, timeout=timeout
        )

    async def explain(self, uid: str, *, timeout: Duration | None = None) -> Explanation:
        """Explains what a compute would do with the user now; nothing is changed:
        see :meth:`ClientDriver.explain`.
        """
        return await self._client.explain(self.namespace, uid, self.service_name, timeout=timeout)

    async def set_linked_pod_if_absent(
        self, uid: str, pod_index: int, *, timeout: Duration | None = None
    ) -> int:
        """Links the user to ``pod_index`` unless there is a link, returns the owner: see
        :meth:`ClientDriver.set_linked_pod_if_absent`.
        """
        return await self._client.set_linked_pod_if_absent(
            self.namespace, uid, self.service_name, pod_index, timeout=timeout
        )
