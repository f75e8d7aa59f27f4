"""The gRPC client: links of a namespace whose store is out of reach."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Literal, Self

from . import _podlink
from ._bridge import Submitter, bound, call
from ._hooks import Listener
from .callback import StatefulObjCallback
from .config import Duration, GrpcClientConfig, check_type, seconds, uid_list
from .state import StatefulServiceState

__all__ = ["RouteGrpcClient"]

Path = str | os.PathLike[str]
StatusCallback = Callable[[str, str], object | Awaitable[object]]


class RouteGrpcClient:
    """Every link operation on another namespace, through the servers that serve it.

    Give it to a :class:`~podlink.ClientDriver` as a peer, which adds the cache, or call it itself.
    Making one does no I/O; it may be made before any server is up, and calls then wait for one
    until their deadline. It may be used from many event loops and threads at once.

    Each endpoint has one connection, which is made by the first call, kept alive while idle, and
    made anew when it breaks, whereby the name is looked up and the files are read again. Endpoints
    that say that they can answer get the calls; one that fails three times in a row is ejected
    for a while and probed. A call that does no harm twice is tried at another endpoint; one that
    does harm (``set_linked_pod``, the removes) only if it was surely not sent, and its error says
    what is known (``outcome``).

    In every operation ``namespace=None`` or ``""`` means ``namespace`` of this client. Cancelling
    abandons only the waiting: the server finishes what it began. Every coroutine takes
    ``timeout=`` (seconds or ``timedelta``) and may raise ``InvalidParameterError``,
    ``PeerUnavailableError``, ``PermissionDeniedError``, ``OverloadedError``,
    ``NamespaceUnreachableError`` (the server serves another one), ``OperationTimeoutError``,
    ``ClosedError``, and whatever the server's own store failed with.

    Args:
        endpoint: ``grpc://host:port``, or ``grpcs://host:port`` with TLS; or several of them, for
            servers of the same namespace.
        namespace: the namespace of operations that name none.
        config: the figures.
        ca_file: the authorities to trust, PEM, instead of the system's.
        cert_file: this client's certificate, PEM, where the server asks for one.
        key_file: its key.
        server_name: the name in the servers' certificates, where it is not the endpoint's host.
        token_file: a file with the bearer token; read again when it changes.
        insecure: send the token without TLS to other machines, too. Anybody on the way can read
            and use it.
        callbacks: as for :class:`~podlink.ClientDriver`.

    Raises:
        InvalidParameterError: an argument is wrong.

    Example:
        >>> client = RouteGrpcClient("grpcs://podlink.prod.svc:50051", namespace="prod")
        >>> client.status
        {'grpcs://podlink.prod.svc:50051': 'CONNECTING'}
    """

    def __init__(
        self,
        endpoint: str | Sequence[str],
        *,
        namespace: str | None = None,
        config: GrpcClientConfig | None = None,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
        server_name: str | None = None,
        token_file: Path | None = None,
        insecure: bool = False,
        callbacks: Literal["thread", "poll"] = "thread",
    ) -> None:
        self._submitter = Submitter(callbacks)
        config = GrpcClientConfig() if config is None else config
        check_type("config", config, GrpcClientConfig)
        check_type("insecure", insecure, bool)
        self.namespace = namespace
        self.config = config
        self.endpoints = (endpoint,) if isinstance(endpoint, str) else tuple(endpoint)
        self._core = _podlink.GrpcClientCore(
            list(self.endpoints),
            namespace,
            config._core(),
            ca_file,
            cert_file,
            key_file,
            server_name,
            token_file,
            insecure,
        )

    def __repr__(self) -> str:
        return f"RouteGrpcClient({list(self.endpoints)!r}, namespace={self.namespace!r})"

    @property
    def status(self) -> dict[str, str]:
        """How each endpoint is: ``READY``, ``CONNECTING`` (nobody knows yet), ``EJECTED`` (it
        failed several times), ``NOT_SERVING`` (it says so itself) or ``DOWN``.
        """
        return self._core.status()

    def on_status_changed(self, callback: StatusCallback) -> StatusCallback:
        """Calls ``callback(endpoint, status)`` whenever an endpoint's status changes.

        The callback may be sync or async; it runs where it was registered (see
        ``RouteInfoDriver.register_routing_state_changed_event``). Usable as a decorator.
        """
        listener = Listener("callback", callback, counted_as="condition")
        self._core.on_status_changed(listener.home, listener)
        return callback

    async def compute_linked_pod(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        *,
        timeout: Duration | None = None,
    ) -> int:
        """Returns a pod that may serve the user: the linked one, or a new link's.

        Raises:
            NoRoutablePodError: there is no link that can stand, and no pod takes new users.
        """
        pod: int = await call(
            self._core.compute_linked_pod, namespace, uid, service_name, seconds(timeout)
        )
        return pod

    async def get_linked_pod(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        *,
        timeout: Duration | None = None,
    ) -> int | None:
        """Returns the user's pod, from the server's cache or else its store; ``None``: no link."""
        pod: int | None = await call(
            self._core.get_linked_pod, namespace, uid, service_name, seconds(timeout)
        )
        return pod

    async def get_linked_pod_not_cache(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        *,
        timeout: Duration | None = None,
    ) -> int | None:
        """Returns the user's pod as the server's store has it; ``None``: no link."""
        pod: int | None = await call(
            self._core.get_linked_pod_not_cache, namespace, uid, service_name, seconds(timeout)
        )
        return pod

    async def get_linked_pod_in_cache_or_if_persist(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        *,
        timeout: Duration | None = None,
    ) -> int | None:
        """Returns the user's pod from the server's cache, else from its store if the link is
        persistent.
        """
        pod: int | None = await call(
            self._core.get_linked_pod_in_cache_or_if_persist,
            namespace,
            uid,
            service_name,
            seconds(timeout),
        )
        return pod

    async def batch_get_linked_pod(
        self,
        namespace: str | None,
        uids: Iterable[str],
        service_name: str,
        *,
        timeout: Duration | None = None,
    ) -> dict[int, list[str]]:
        """Returns the pods of many users: pod → users in the order given, each once.

        Users without a link are left out. Any number of users: they travel in several requests.
        """
        users: dict[int, list[str]] = await call(
            self._core.batch_get_linked_pod,
            namespace,
            uid_list(uids),
            service_name,
            seconds(timeout),
        )
        return users

    async def get_link_service(
        self, namespace: str | None, uid: str, *, timeout: Duration | None = None
    ) -> dict[str, int]:
        """Returns the services to which the user has persistent links, with the pods."""
        services: dict[str, int] = await call(
            self._core.get_link_service, namespace, uid, seconds(timeout)
        )
        return services

    async def set_linked_pod_if_absent(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        pod_index: int,
        *,
        timeout: Duration | None = None,
    ) -> int:
        """Links the user to the pod unless there is a link; returns the owner, whoever that is."""
        owner: int = await call(
            self._core.set_linked_pod_if_absent,
            namespace,
            uid,
            service_name,
            pod_index,
            seconds(timeout),
        )
        return owner

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
        """Links the user to the pod, whatever was there; returns the previous owner.

        Args:
            namespace: ``None`` or ``""`` is the client's own.
            uid: the user.
            service_name: the stateful service.
            pod_index: the pod.
            persist_seconds: how long the link lasts; -1 is for ever.
            timeout: seconds to wait at the most.
        """
        previous: int | None = await call(
            self._core.set_linked_pod,
            namespace,
            uid,
            service_name,
            pod_index,
            persist_seconds,
            seconds(timeout),
        )
        return previous

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
        """Links the user to the pod unless somebody else owns the user.

        Returns:
            Whether the pod has the user now, and the owner.
        """
        tried: tuple[bool, int] = await call(
            self._core.try_set_linked_pod,
            namespace,
            uid,
            service_name,
            pod_index,
            persist_seconds,
            seconds(timeout),
        )
        return tried

    async def remove_linked_pod(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        persist_seconds: int = 60,
        *,
        timeout: Duration | None = None,
    ) -> bool:
        """Removes the user's link, whoever owns it.

        Args:
            namespace: ``None`` or ``""`` is the client's own.
            uid: the user.
            service_name: the stateful service.
            persist_seconds: for how long the link stays as a hint; 0 and -1: it goes at once.
            timeout: seconds to wait at the most.

        Returns:
            Whether there was one.
        """
        removed: bool = await call(
            self._core.remove_linked_pod,
            namespace,
            uid,
            service_name,
            persist_seconds,
            seconds(timeout),
        )
        return removed

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
        """Removes the user's link if it names this pod; says whether it did."""
        removed: bool = await call(
            self._core.remove_linked_pod_with_id,
            namespace,
            uid,
            service_name,
            pod_index,
            persist_seconds,
            seconds(timeout),
        )
        return removed

    async def get_all_service_state(
        self, namespace: str | None, service_name: str, *, timeout: Duration | None = None
    ) -> dict[int, StatefulServiceState]:
        """Returns every alive pod of the service with its state, by pod index."""
        states: dict[int, Any] = await call(
            self._core.get_all_service_state, namespace, service_name, seconds(timeout)
        )
        return _states(states)

    async def get_service_name_by_tag(
        self, namespace: str | None, tag: str, *, timeout: Duration | None = None
    ) -> str | None:
        """Returns the service that the tag stands for; ``None``: it stands for none."""
        name: str | None = await call(
            self._core.get_service_name_by_tag, namespace, tag, seconds(timeout)
        )
        return name

    async def check_health(self, *, timeout: Duration | None = None) -> bool:
        """Asks an endpoint whether it can answer: ``True`` if it says so.

        Raises:
            PeerUnavailableError: no endpoint can be reached.
        """
        healthy: bool = await call(self._core.check_health, seconds(timeout))
        return healthy

    def submit(
        self,
        operation: str,
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[Any]:
        """Starts a coroutine operation without ``await``; see ``ClientDriver.submit``.

        Example:
            >>> client = RouteGrpcClient("grpc://localhost:50051", namespace="prod")
            >>> future = client.submit("get_linked_pod", None, "user123", "user-service")
        """
        start, arguments = bound(self, _OPERATIONS, operation, args, kwargs)
        if operation == "batch_get_linked_pod":
            arguments[1] = uid_list(arguments[1])
        convert = _states if operation == "get_all_service_state" else None
        return self._submitter.submit(start, (*arguments, seconds(timeout)), callback, convert)

    def poll_callbacks(self) -> int:
        """Runs the callbacks that wait; see ``ClientDriver.poll_callbacks``."""
        return self._submitter.poll()

    async def aclose(self) -> None:
        """Ends the connections. Later calls raise ``ClosedError``; a second close does nothing."""
        self._core.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


_OPERATIONS = frozenset(
    {
        "batch_get_linked_pod",
        "check_health",
        "compute_linked_pod",
        "get_all_service_state",
        "get_link_service",
        "get_linked_pod",
        "get_linked_pod_in_cache_or_if_persist",
        "get_linked_pod_not_cache",
        "get_service_name_by_tag",
        "remove_linked_pod",
        "remove_linked_pod_with_id",
        "set_linked_pod",
        "set_linked_pod_if_absent",
        "try_set_linked_pod",
    }
)


def _states(states: dict[int, Any]) -> dict[int, StatefulServiceState]:
    return {pod: StatefulServiceState._from_core(fields) for pod, fields in states.items()}


def peer_table(
    peers: Mapping[str, RouteGrpcClient] | None,
) -> list[tuple[str, _podlink.GrpcClientCore]]:
    """The ways to other namespaces, as a driver takes them."""
    check_type("peers", {} if peers is None else peers, Mapping)
    for namespace, peer in (peers or {}).items():
        check_type("peers", namespace, str)
        check_type("peers", peer, RouteGrpcClient)
    return [(namespace, peer._core) for namespace, peer in (peers or {}).items()]
