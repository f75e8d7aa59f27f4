"""The route info driver: the pods that there are to route to."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, Literal, TypeVar, overload

from . import _operations as ops, _podlink
from ._bridge import bridge_of, call, log_queue, running_loop
from ._closeable import Closeable
from ._driver_hooks import DriverHooks, HookOwner
from ._hooks import Failures, Listener
from ._submit import Submittable, Submitter
from .callback import Registration, StateCallback, StatefulObjCallback
from .changes import StateChanges
from .config import Duration, RouteInfoConfig, check_type, seconds
from .errors import InvalidParameterTypeError
from .grpc_client import RouteGrpcClient, peer_table
from .state import StatefulServiceState, states_by_pod
from .store import Store

__all__ = ["RouteInfoDriver"]

T = TypeVar("T")

S = TypeVar("S", bound=StateCallback)


class RouteInfoDriver(HookOwner, Closeable):
    """Knows the pods of each service: their states, the best one, and when they change.

    The first question about a service reads all its pods; from then on a task of podlink's own
    reads them every ``config.refresh``, and at once when the store reports that a pod came, went or
    changed its routing state. No call waits for it: the sync methods answer from what was read
    last. A service that is not used for ``config.idle`` is dropped.

    A pod is *alive* while its lease is valid, *available* if it is also READY or DENY_NEW_CALL,
    *routable* if it is READY and not above ``config.overload_limit``. Where the store cannot be
    read, leases end on time all the same, unless ``config.serve_stale``.

    It may be used from many event loops and threads. Every coroutine takes ``timeout=`` and may
    raise what :class:`~podlink.ClientDriver`'s may. ``namespace=None`` or ``""`` is its own.

    Args:
        store: where the pods publish their states.
        namespace: the driver's own namespace.
        config: its settings.
        callbacks: as for :class:`~podlink.ClientDriver`.
        peers: the clients of other namespaces, by name. Lookups in one of them go there: pods,
            their changes, and tags, which can only be read. Peers are not closed with the driver.

    Raises:
        InvalidParameterError: an argument is wrong.

    Example:
        >>> async def loads(info: RouteInfoDriver) -> dict[int, int]:
        ...     pods = await info.get_ready_service_state("default", "user-service")
        ...     return {index: pod.load_state for index, pod in pods.items()}
    """

    def __init__(
        self,
        store: Store,
        namespace: str = "default",
        config: RouteInfoConfig | None = None,
        *,
        callbacks: Literal["thread", "poll"] = "thread",
        peers: Mapping[str, RouteGrpcClient] | None = None,
    ) -> None:
        check_type("store", store, Store)
        self._submitter = Submitter(callbacks, _OPERATIONS)
        self._hook_failures = Failures()
        config = RouteInfoConfig() if config is None else config
        check_type("config", config, RouteInfoConfig)
        self.config = config
        self.namespace = namespace
        self._core = _podlink.InfoCore(
            store._core, namespace, config._core(), log_queue(), peer_table(peers)
        )
        self._peers = dict(peers or {})  # the core does not keep their hooks
        self._hooks = DriverHooks("route info driver", self._core)

    def __repr__(self) -> str:
        return f"RouteInfoDriver(namespace={self.namespace!r})"

    def get_link_info_cache_time_secs(self) -> float:
        """Returns how long, in seconds, clients may cache a link: ``config.link_cache_ttl``."""
        return float(seconds(self.config.link_cache_ttl))

    async def get_all_service_state(
        self, namespace: str | None, service_name: str, *, timeout: Duration | None = None
    ) -> dict[int, StatefulServiceState]:
        """Returns every alive pod of a service, in the order of their indexes.

        Answers from what was read last; the first question reads.
        """
        return states_by_pod(
            await call(
                self._core, ops.get_all_service_state, namespace, service_name, timeout=timeout
            )
        )

    async def get_ready_service_state(
        self, namespace: str | None, service_name: str, *, timeout: Duration | None = None
    ) -> dict[int, StatefulServiceState]:
        """Returns every alive pod whose application is ready (``state == "READY"``).

        A draining pod is among them; one that was shut down is not.
        """
        return states_by_pod(
            await call(
                self._core, ops.get_ready_service_state, namespace, service_name, timeout=timeout
            )
        )

    async def get_pod_state(
        self,
        namespace: str | None,
        service_name: str,
        pod_index: int,
        *,
        timeout: Duration | None = None,
    ) -> StatefulServiceState:
        """Returns the state of one alive pod, as it published it last.

        Answers from what was read last; the first question reads.

        Args:
            namespace: the namespace; ``None`` or ``""`` is the driver's own.
            service_name: the stateful service.
            pod_index: the pod; 0 is a pod.
            timeout: seconds to wait at the most.

        Raises:
            ServiceNotFoundError: no pod of the service is known.
            PodNotFoundError: the service has pods, but this one is not alive.

        Example:
            >>> async def version(info: RouteInfoDriver) -> str:
            ...     state = await info.get_pod_state("default", "user-service", 0)
            ...     return state.metadata["version"]
        """
        return StatefulServiceState._from_core(
            await call(
                self._core, ops.get_pod_state, namespace, service_name, pod_index, timeout=timeout
            )
        )

    async def get_service_best_pod(
        self, namespace: str | None, service_name: str, *, timeout: Duration | None = None
    ) -> int | None:
        """Returns the pod that a new user should get, by ``p2c``, or ``None`` if there is none.

        The answer counts as a user sent there, until that pod publishes its load again.
        """
        return await call(
            self._core, ops.get_service_best_pod, namespace, service_name, timeout=timeout
        )

    async def is_workload_ready(
        self, namespace: str | None, service_name: str, *, timeout: Duration | None = None
    ) -> bool:
        """Returns whether the service as a whole is ready: at least one pod takes new users.

        The lowest-numbered alive pod publishes that in the store; an entry that is not renewed is
        not ready. In a peer's namespace this driver judges by the pods that the peer reports.
        """
        return await call(
            self._core, ops.is_workload_ready, namespace, service_name, timeout=timeout
        )

    def is_pod_routable(self, namespace: str | None, service_name: str, pod_index: int) -> bool:
        """Returns whether a pod takes new users, by the last reading. Never waits, no I/O.

        ``False`` for a service that was never read: this call starts the reading.
        """
        return self._core.is_pod_routable(namespace, service_name, pod_index)

    def is_pod_available(self, namespace: str | None, service_name: str, pod_index: int) -> bool:
        """Returns whether a pod may serve the users linked to it, by the last reading.

        Never waits, no I/O. ``False`` for a service that was never read: this call starts the
        reading.
        """
        return self._core.is_pod_available(namespace, service_name, pod_index)

    def pod(
        self, namespace: str | None, service_name: str, pod_index: int
    ) -> StatefulServiceState | None:
        """Returns one alive pod, by the last reading; ``None``: it is not known, or has left.

        Never waits, no I/O, and takes no longer where there are many pods: for the address of a pod
        with each request. ``None`` too for a service that was never read: this call starts the
        reading. The object is the same until the pod publishes its state again; its ``metadata``
        must not be changed.

        Args:
            namespace: the namespace; ``None`` or ``""`` is the driver's own.
            service_name: the stateful service.
            pod_index: the pod; 0 is a pod.

        Raises:
            InvalidParameterError: a name or the index is wrong.
            NamespaceUnreachableError: the driver has no peer for the namespace.
            ClosedError: the driver was closed.

        Example:
            >>> def address(info: RouteInfoDriver, index: int) -> str | None:
            ...     pod = info.pod("default", "user-service", index)
            ...     return None if pod is None else pod.metadata["address"]
        """
        return self._core.pod(namespace, service_name, pod_index, StatefulServiceState._from_core)

    def alive_pods(
        self, namespace: str | None, service_name: str
    ) -> dict[int, StatefulServiceState]:
        """Returns the alive pods, by the last reading. Never waits, no I/O."""
        return states_by_pod(self._core.alive_pods(namespace, service_name))

    def routable_pods(
        self, namespace: str | None, service_name: str
    ) -> dict[int, StatefulServiceState]:
        """Returns the pods that take new users, by the last reading. Never waits, no I/O.

        If every READY pod is above ``config.overload_limit``, that is the least loaded one.
        """
        return states_by_pod(self._core.routable_pods(namespace, service_name))

    def age(self, namespace: str | None, service_name: str) -> float | None:
        """Returns how long ago the pods of a service were read, in seconds; ``None``: never."""
        return self._core.age(namespace, service_name)

    async def get_service_name_by_tag(
        self, namespace: str | None, tag: str, *, timeout: Duration | None = None
    ) -> str | None:
        """Returns the service that a tag stands for, or ``None``.

        Believed for ``config.tag_ttl``; that there is none, for ``config.refresh`` at the most.
        """
        return await call(self._core, ops.get_service_name_by_tag, namespace, tag, timeout=timeout)

    async def set_global_service_name_tag(
        self,
        namespace: str | None,
        tag: str,
        service_name: str,
        *,
        timeout: Duration | None = None,
    ) -> bool:
        """Makes a tag stand for a service in the whole namespace; the last one wins.

        Other drivers may answer the earlier service for their ``config.tag_ttl``.

        Returns:
            Whether the tag stands for the service now.

        Raises:
            NamespaceUnreachableError: another namespace, also one with a peer: its tags can only
                be read.
        """
        return await call(
            self._core,
            ops.set_global_service_name_tag,
            namespace,
            tag,
            service_name,
            timeout=timeout,
        )

    def register_routing_state_changed_event(
        self,
        namespace: str | None,
        callback: StateCallback,
        service_name: str | None = None,
    ) -> Registration:
        """Calls ``callback(namespace, service_name, pod_index, previous, now)`` on every change.

        A change is a join (``previous is None``), a leave or a death (``now is None``), another
        process under the same index, another routing state, another readiness. Loads are not. Each
        change that this driver sees is published once, in order; two changes between two readings
        may be seen as one. The first reading of a service publishes its pods as joins; a callback
        that is registered later gets the changes from then on.

        Drivers on one store share what they read of another namespace. There each callback is
        first called with the pods that are alive, as joins, whenever it is registered; and one
        without ``service_name`` also gets the services that other drivers use.

        The callback may be sync or async. Registered while a loop runs, it is called on that loop
        with the context variables of the registration; otherwise on a thread of its own. Calls of
        one callback never overlap. What it raises is logged and counted. A slow callback delays
        neither routing nor other callbacks.

        Args:
            namespace: ``None`` or ``""`` is the driver's own.
            callback: what to call; any number may be registered.
            service_name: only for this service, which is then read even if it is not used;
                ``None``: for every service that this driver is used for.

        Returns:
            A handle whose ``unregister()`` ends the calls, as ``remove_hook(callback)`` does.

        Raises:
            ClosedError: the driver was closed.

        Example:
            >>> def show(namespace, service, pod, previous, now):
            ...     print(service, pod, "is gone" if now is None else now.routing_state)
            >>> info = RouteInfoDriver(Store())
            >>> handle = info.register_routing_state_changed_event(None, show)
            >>> handle.unregister()
        """

        def states(where: str, service: str, pod: int, previous: Any, now: Any) -> tuple[Any, ...]:
            return where, service, pod, _state(previous), _state(now)

        listener = Listener(
            "callback", callback, states, self._hook_failures, counted_as="routing_state"
        )
        return self._hooks.add(
            callback,
            listener,
            lambda home, hook: self._core.register(home, namespace, service_name, hook),
        )

    def on_routing_state_changed(
        self, namespace: str | None = None, service_name: str | None = None
    ) -> Callable[[S], S]:
        """The same as ``register_routing_state_changed_event``, as a decorator. It returns the
        function as it is; ``remove_hook(function)`` ends the calls.

        Raises:
            InvalidParameterTypeError: it was used without parentheses, so ``namespace`` is the
                function.

        Example:
            >>> info = RouteInfoDriver(Store())
            >>> @info.on_routing_state_changed("default")
            ... async def show(namespace, service, pod, previous, now):
            ...     print(service, pod, now)
        """

        if callable(namespace):
            raise InvalidParameterTypeError(
                "namespace must be a str or None, got a function: the decorator needs parentheses",
                details={
                    "parameter": "namespace",
                    "given": type(namespace).__name__,
                    "allowed": "a str or None",
                },
            )

        def register(callback: S) -> S:
            self.register_routing_state_changed_event(namespace, callback, service_name)
            return callback

        return register

    def changes(
        self,
        namespace: str | None = None,
        service_name: str | None = None,
        *,
        limit: int = 1000,
    ) -> StateChanges:
        """Returns the changes of pods from now on, to be read with ``async for``.

        They are those of ``register_routing_state_changed_event``, in the same order. The
        subscription begins with this call: the changes, and what ``alive_pods`` says after it,
        leave nothing out. It keeps this driver alive. ``aclose`` of the driver ends the ``async
        for``, once what came before has been read.

        **A slow reader**: at most ``limit`` changes wait. Those that come while so many wait are
        dropped, and at their place the reader gets an ``OverloadedError`` that says how many. It
        may go on reading: what comes after is complete again, so read ``alive_pods`` then.

        Args:
            namespace: ``None`` or ``""`` is the driver's own.
            service_name: only this service, which is then read even if it is not used; ``None``:
                every service that this driver is used for.
            limit: how many changes may wait, 1 to 10,000.

        Raises:
            ClosedError: the driver was closed.
            IllegalStateError: no event loop is running.

        Example:
            >>> async def show(info: RouteInfoDriver) -> None:
            ...     async for change in info.changes(None, "user-service"):
            ...         print(change.pod_index, "is gone" if change.now is None else "is there")
        """

        def register(feed: Any) -> _podlink.Registration:
            home = bridge_of(running_loop()).queue
            registration = self._core.register(home, namespace, service_name, feed)
            self._hooks.add_end(feed)
            return registration

        self._hooks.check_open()
        return StateChanges(self, limit, register)

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
        operation: Literal["is_workload_ready", "set_global_service_name_tag"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[bool]: ...

    @overload
    def submit(
        self,
        operation: Literal["get_pod_state"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[StatefulServiceState]: ...

    @overload
    def submit(
        self,
        operation: Literal["get_service_best_pod"],
        *args: Any,
        callback: StatefulObjCallback | None = None,
        timeout: Duration | None = None,
        **kwargs: Any,
    ) -> Future[int | None]: ...

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
        operation: Literal["get_all_service_state", "get_ready_service_state"],
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
        """Starts a coroutine operation without ``await``; see ``ClientDriver.submit``."""
        return self._submitter.submit(self, operation, args, kwargs, callback, timeout)

    def poll_callbacks(self) -> int:
        """Runs the callbacks that wait; see ``ClientDriver.poll_callbacks``."""
        return self._submitter.poll()

    def stats(self) -> dict[str, int]:
        """Returns every counter of the driver by name, since it was made."""
        return {
            **self._core.stats(),
            "callback_failures": self._submitter.failures,
            "hook_failures": self._hook_failures.count,
        }

    async def aclose(self) -> None:
        """Ends the driver's tasks and hooks. Later calls raise ``ClosedError``; a second close does
        nothing.

        The store stays open.
        """
        self._core.close()
        self._hooks.close()


_OPERATIONS = {
    "get_all_service_state": Submittable(ops.get_all_service_state, states_by_pod),
    "get_ready_service_state": Submittable(ops.get_ready_service_state, states_by_pod),
    "get_pod_state": Submittable(ops.get_pod_state, StatefulServiceState._from_core),
    "get_service_best_pod": Submittable(ops.get_service_best_pod),
    "get_service_name_by_tag": Submittable(ops.get_service_name_by_tag),
    "is_workload_ready": Submittable(ops.is_workload_ready),
    "set_global_service_name_tag": Submittable(ops.set_global_service_name_tag),
}


def _state(fields: Any) -> StatefulServiceState | None:
    return None if fields is None else StatefulServiceState._from_core(fields)
