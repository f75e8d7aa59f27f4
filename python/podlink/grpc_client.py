"""The gRPC client: links of a namespace with a store that is out of reach."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal, TypeVar, overload

from . import _operations as ops, _podlink
from ._batches import joined, linked_pods
from ._bridge import call
from ._closeable import Closeable
from ._driver_hooks import DriverHooks, HookOwner
from ._hooks import Listener
from ._submit import Submittable, Submitter
from .callback import StatefulObjCallback, StatusCallback
from .config import Duration, GrpcClientConfig, check_type
from .errors import InvalidParameterTypeError
from .route import Route
from .state import StatefulServiceState, states_by_pod

__all__ = ["RouteGrpcClient"]

T = TypeVar("T")

Path = str | os.PathLike[str]
C = TypeVar("C", bound=StatusCallback)


class RouteGrpcClient(HookOwner, Closeable):
    """Every link operation on another namespace, through the servers of that namespace.

    Give it to a :class:`~podlink.ClientDriver` as a peer, which adds the cache, or call it itself.
    Making one does no I/O; it may be made before any server is up, and calls then wait for one
    until their deadline. It may be used from many event loops and threads at once.

    Each endpoint has one connection, which is made by the first call, kept alive while idle, and
    made again when it breaks; then the name is looked up and the files are read again. Calls go to
    endpoints that report that they can answer; one that fails three times in a row is ejected for
    a while and probed. An idempotent call is retried at another endpoint; any other one
    (``set_linked_pod``, the removes) only if it was certainly not sent, and its error has what is
    known (``outcome``).

    In every operation ``namespace=None`` or ``""`` means ``namespace`` of this client. Cancelling
    abandons only the waiting: the server finishes what it began. Every coroutine takes
    ``timeout=`` (seconds or ``timedelta``) and may raise ``InvalidParameterError``,
    ``PeerUnavailableError``, ``PermissionDeniedError``, ``OverloadedError``,
    ``NamespaceUnreachableError`` (the server serves another one), ``OperationTimeoutError``,
    ``ClosedError``, and the errors of the server's own store.

    Args:
        endpoint: ``grpc://host:port``, or ``grpcs://host:port`` with TLS; or several of them, for
            servers of the same namespace.
        namespace: the namespace of operations that name none.
        config: the settings.
        ca_file: the authorities to trust, PEM, instead of the system's.
        cert_file: this client's certificate, PEM, where the server requires one.
        key_file: its key.
        server_name: the name in the servers' certificates, where it is not the endpoint's host.
        token_file: a file with the bearer token; read again when it changes.
        insecure: send the token without TLS to other machines, too. The network in between can
            read and use it.
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
        self._submitter = Submitter(callbacks, _OPERATIONS)
        config = GrpcClientConfig() if config is None else config
        check_type("config", config, GrpcClientConfig)
        check_type("insecure", insecure, bool)
        self.namespace = namespace
        self.config = config
        self.endpoints: tuple[str, ...] = _endpoints(endpoint)
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
        self._hooks = DriverHooks("gRPC client", self._core)

    def __repr__(self) -> str:
        return f"RouteGrpcClient({list(self.endpoints)!r}, namespace={self.namespace!r})"

    @property
    def status(self) -> dict[str, str]:
        """The condition of each endpoint: ``READY``, ``CONNECTING`` (not known yet), ``EJECTED``
        (it failed several times), ``NOT_SERVING`` (it reports so) or ``DOWN``.
        """
        return self._core.status()

    def on_status_changed(self, callback: C) -> C:
        """Calls ``callback(endpoint, status)`` whenever an endpoint's status changes.

        The callback may be sync or async; it runs where it was registered (see
        ``RouteInfoDriver.register_routing_state_changed_event``). Usable as a decorator;
        ``remove_hook(callback)`` ends the calls.

        Raises:
            ClosedError: the client was closed.
        """
        listener = Listener("callback", callback, counted_as="condition")
        self._hooks.add(callback, listener, self._core.on_status_changed)
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
        """Returns a pod that may serve the user, its address, and the token by which it owns the
        user; see :meth:`podlink.ClientDriver.route`.

        ``address`` is the server's answer: the pod's own, or the server's
        ``ClientConfig.address_template`` filled in. A server of version 0.1 names neither owner nor
        metadata, and the address is then the template's default. ``from_cache`` is about this
        process, which has no cache here: it is ``False``.

        Raises:
            NoRoutablePodError: there is no link that can stand, and no pod takes new users.

        Example:
            >>> async def upstream(client: RouteGrpcClient, uid: str) -> str:
            ...     return (await client.route("prod", uid, "user-service")).address
        """
        return Route._from_core(
            await call(self._core, ops.route, namespace, uid, service_name, timeout=timeout)
        )

    async def get_linked_pod(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        *,
        timeout: Duration | None = None,
    ) -> int | None:
        """Returns the user's pod, from the server's cache or else its store; ``None``: no link."""
        return await call(
            self._core, ops.get_linked_pod, namespace, uid, service_name, timeout=timeout
        )

    async def get_linked_pod_not_cache(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        *,
        timeout: Duration | None = None,
    ) -> int | None:
        """Returns the user's pod as the server's store has it; ``None``: no link."""
        return await call(
            self._core, ops.get_linked_pod_not_cache, namespace, uid, service_name, timeout=timeout
        )

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
        return await call(
            self._core,
            ops.get_linked_pod_in_cache_or_if_persist,
            namespace,
            uid,
            service_name,
            timeout=timeout,
        )

    async def batch_get_linked_pod(
        self,
        namespace: str | None,
        uids: Iterable[str],
        service_name: str,
        *,
        timeout: Duration | None = None,
    ) -> dict[int, list[str]]:
        """Returns the pods of many users: pod → users in the order given, each once.

        Users without a link are left out, and users whose link another program spoilt: the peer
        logs and counts those. Any number of users: they travel in several requests.
        """
        return await linked_pods(
            self._core, namespace, uids, service_name, timeout, self.config.timeout
        )

    async def get_link_service(
        self, namespace: str | None, uid: str, *, timeout: Duration | None = None
    ) -> dict[str, int]:
        """Returns the services to which the user has persistent links, with the pods."""
        return await call(self._core, ops.get_link_service, namespace, uid, timeout=timeout)

    async def set_linked_pod_if_absent(
        self,
        namespace: str | None,
        uid: str,
        service_name: str,
        pod_index: int,
        *,
        timeout: Duration | None = None,
    ) -> int:
        """Links the user to the pod unless there is a link; returns the owner."""
        return await call(
            self._core,
            ops.set_linked_pod_if_absent,
            namespace,
            uid,
            service_name,
            pod_index,
            timeout=timeout,
        )

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
        """Links the user to the pod unless another pod owns the user.

        Returns:
            Whether the pod has the user now, and the owner.
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
        persist_seconds: int = 60,
        *,
        timeout: Duration | None = None,
    ) -> bool:
        """Removes the user's link, whichever pod owns it.

        Args:
            namespace: ``None`` or ``""`` is the client's own.
            uid: the user.
            service_name: the stateful service.
            persist_seconds: for how long the link stays as a hint; 0 and -1: it goes at once.
            timeout: seconds to wait at the most.

        Returns:
            Whether there was one.
        """
        return await call(
            self._core,
            ops.remove_any_linked_pod,
            namespace,
            uid,
            service_name,
            persist_seconds,
            timeout=timeout,
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
        """Removes the user's link if it names this pod; returns whether it did."""
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

    async def get_all_service_state(
        self, namespace: str | None, service_name: str, *, timeout: Duration | None = None
    ) -> dict[int, StatefulServiceState]:
        """Returns every alive pod of the service with its state, by pod index."""
        return states_by_pod(
            await call(
                self._core, ops.get_all_service_state, namespace, service_name, timeout=timeout
            )
        )

    async def get_service_name_by_tag(
        self, namespace: str | None, tag: str, *, timeout: Duration | None = None
    ) -> str | None:
        """Returns the service that the tag stands for; ``None``: it stands for none."""
        return await call(self._core, ops.get_service_name_by_tag, namespace, tag, timeout=timeout)

    async def check_health(self, *, timeout: Duration | None = None) -> bool:
        """Asks an endpoint whether it can answer.

        Raises:
            PeerUnavailableError: no endpoint can be reached.
        """
        return await call(self._core, ops.check_health, timeout=timeout)

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
            "set_linked_pod",
        ],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[int | None]: ...

    @overload
    def submit(
        self,
        operation: Literal["check_health", "remove_linked_pod", "remove_linked_pod_with_id"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[bool]: ...

    @overload
    def submit(
        self,
        operation: Literal["get_service_name_by_tag"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[str | None]: ...

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
        operation: Literal["try_set_linked_pod"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[tuple[bool, int]]: ...

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
        operation: Literal["get_all_service_state"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[dict[int, StatefulServiceState]]: ...

    def submit(
        self,
        operation: Callable[..., Coroutine[Any, Any, Any]] | str,
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
        return self._submitter.submit(self, operation, args, kwargs, callback, timeout)

    def poll_callbacks(self) -> int:
        """Runs the callbacks that wait; see ``ClientDriver.poll_callbacks``."""
        return self._submitter.poll()

    async def aclose(self) -> None:
        """Ends the connections and hooks. Later calls raise ``ClosedError``; a second close does
        nothing.
        """
        self._core.close()
        self._hooks.close()


_OPERATIONS = {
    "batch_get_linked_pod": Submittable(ops.batch_get_linked_pod, joined),
    "check_health": Submittable(ops.check_health),
    "compute_linked_pod": Submittable(ops.compute_linked_pod),
    "get_all_service_state": Submittable(ops.get_all_service_state, states_by_pod),
    "get_link_service": Submittable(ops.get_link_service),
    "get_linked_pod": Submittable(ops.get_linked_pod),
    "get_linked_pod_in_cache_or_if_persist": Submittable(ops.get_linked_pod_in_cache_or_if_persist),
    "get_linked_pod_not_cache": Submittable(ops.get_linked_pod_not_cache),
    "get_service_name_by_tag": Submittable(ops.get_service_name_by_tag),
    "remove_linked_pod": Submittable(ops.remove_any_linked_pod),
    "remove_linked_pod_with_id": Submittable(ops.remove_linked_pod_with_id),
    "route": Submittable(ops.route, Route._from_core),
    "set_linked_pod": Submittable(ops.set_linked_pod),
    "set_linked_pod_if_absent": Submittable(ops.set_linked_pod_if_absent),
    "try_set_linked_pod": Submittable(ops.try_set_linked_pod),
}


def _endpoints(given: object) -> tuple[str, ...]:
    """One endpoint, or several."""
    endpoints = (given,) if isinstance(given, str) else given
    wrong = given
    if isinstance(endpoints, Sequence):
        others = [each for each in endpoints if not isinstance(each, str)]
        if not others:
            return tuple(endpoints)
        wrong = others[0]
    name, allowed = type(wrong).__name__, "a str or a sequence of str"
    raise InvalidParameterTypeError(
        f"endpoint must be {allowed}, got {name}",
        details={"parameter": "endpoint", "given": name, "allowed": allowed},
    )


def peer_table(
    peers: Mapping[str, RouteGrpcClient] | None,
) -> list[tuple[str, _podlink.GrpcClientCore]]:
    """The peers by namespace, as a compiled driver takes them."""
    check_type("peers", {} if peers is None else peers, Mapping)
    for namespace, peer in (peers or {}).items():
        check_type("peers", namespace, str)
        check_type("peers", peer, RouteGrpcClient)
    return [(namespace, peer._core) for namespace, peer in (peers or {}).items()]
