"""podlink in the application's traces, through ``opentelemetry-api``.

``enable()`` once, and every operation that calls a store or a peer is a span below the caller's
own, with what it did below that. Over gRPC the trace goes on in the other namespace's server, if
that has called ``enable()``, too. What the cache answers makes no span: a span costs many times
what the answer does, and ``stats()`` counts it.

Needs the package ``opentelemetry-api`` (``pip install 'podlink[otel]'``), and, as for every
instrumentation, an SDK that the application has set up. Without one nothing happens.

    import podlink.otel
    podlink.otel.enable()
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
from typing import Any

try:
    from opentelemetry import context as otel_context, trace
    from opentelemetry.trace import (
        NonRecordingSpan,
        Span,
        SpanContext,
        SpanKind,
        Status,
        StatusCode,
        Tracer,
        TracerProvider,
        TraceState,
    )
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        "podlink.otel needs opentelemetry-api: pip install 'podlink[otel]'", name=_missing.name
    ) from _missing

from . import _bridge, _podlink
from ._logs import Log, hash_uid
from ._operations import AnyOperation
from .errors import InvalidParameterError, PodlinkError

__all__ = ["disable", "enable", "flush"]

_log = Log("podlink.otel")
_propagator = TraceContextTextMapPropagator()
_kinds = {"internal": SpanKind.INTERNAL, "client": SpanKind.CLIENT, "server": SpanKind.SERVER}
# One thread at a time hands spans over, so that `flush` leaves none behind.
_handing_over = threading.RLock()
_tracer: Tracer | None = None

_Traces = list[tuple["_podlink._TraceContext | None", list["_podlink._Span"]]]


def enable(tracer_provider: TracerProvider | None = None) -> None:
    """Makes spans of podlink's operations from now on.

    An operation's span is named ``podlink.compute_linked_pod`` and so on, and is a child of the
    span that is current where the operation is called. It ends when the caller gets the
    result; a caller that cancels ends it with the outcome ``cancelled``, while the operation goes
    on. Its attributes are ``podlink.namespace``, ``podlink.service``, ``podlink.uid_hash`` (see
    ``hash_uid``), ``podlink.outcome`` (``ok`` or the error's code) and ``podlink.pod``. Below it
    are the core's spans: placing the user, calls of the store, attempts of calls to peers. A gRPC
    server's request is a span of kind SERVER below the operation of its caller.

    Trace, parent and the decision to sample are the application's. What is not sampled costs
    little, and peers get it as not sampled. Spans wait, until one of podlink's threads hands
    them to the tracer, in a queue of 8192 that never blocks; what does not fit is dropped and
    logged. At exit those that wait are flushed, before a provider that was there by now shuts
    down.

    A second call replaces the provider. It may be called before or after drivers were made, from
    any thread, and again in a forked child if the provider there is another one.

    Args:
        tracer_provider: where the spans go; without it the global one.

    Raises:
        InvalidParameterError: ``tracer_provider`` has no ``get_tracer``.

    Example:
        >>> enable()
        >>> disable()
    """
    global _tracer
    if tracer_provider is not None and not callable(getattr(tracer_provider, "get_tracer", None)):
        raise InvalidParameterError(
            "tracer_provider must be an opentelemetry TracerProvider or None, got "
            f"{type(tracer_provider).__name__}",
            details={
                "parameter": "tracer_provider",
                "given": type(tracer_provider).__name__,
                "allowed": "an opentelemetry TracerProvider or None",
            },
        )
    _tracer = trace.get_tracer("podlink", _podlink.__version__, tracer_provider)
    # Behind the provider's own: what is registered last is called first.
    atexit.unregister(flush)
    atexit.register(flush)
    _podlink.collect_spans(True)
    _bridge.observe(_start, flush)


def disable() -> None:
    """Makes no spans any more. What waits is handed to the tracer first.

    Example:
        >>> disable()
    """
    global _tracer
    _bridge.observe(None, None)
    _podlink.collect_spans(False)
    flush()
    _tracer = None


def flush() -> None:
    """Hands the spans that wait to the tracer now, on this thread.

    It does not wait for operations in flight. It waits for another thread that hands spans over,
    for five seconds at the most. Call it before the provider's own ``force_flush``,
    for example where a process ends by other means than leaving its interpreter.

    Example:
        >>> flush()
    """
    if not _handing_over.acquire(timeout=_PATIENCE):
        return  # an exporter hangs; the program must not
    try:
        traces, dropped = _podlink.take_spans()
        if dropped:
            _log.warning("spans were dropped: too many, or not taken in time", dropped=dropped)
        if _tracer is not None:
            _hand_over(_tracer, traces)
    finally:
        _handing_over.release()


def _hand_over(tracer: Tracer, traces: _Traces) -> None:
    for context, spans in traces:
        parents = {0: _continued(context)}
        for number, parent, name, kind, started, lasted, attributes in spans:
            known = dict(attributes)
            # A span with a dropped parent becomes a child of the operation.
            above = parents.get(parent, parents[0])
            span = tracer.start_span(
                f"podlink.{name}",
                context=above,
                kind=_kinds[kind],
                attributes=known,
                start_time=started,
            )
            parents[number] = trace.set_span_in_context(span, above)
            _conclude(span, str(known.get("podlink.outcome", "abandoned")))
            span.end(end_time=started + lasted)


def _after_fork_in_child() -> None:
    # A thread of the parent's may have held it.
    global _handing_over
    _handing_over = threading.RLock()


_PATIENCE = 5.0
"""How long, in seconds, a thread waits for another one that hands spans over."""


os.register_at_fork(after_in_child=_after_fork_in_child)


def _continued(context: _podlink._TraceContext | None) -> otel_context.Context:
    """The context of the span that a trace continues; an empty one if it continues nothing."""
    if context is None:
        return otel_context.Context()
    trace_id, span_id, flags, state = context
    parent = SpanContext(
        trace_id,
        span_id,
        is_remote=True,
        trace_flags=trace.TraceFlags(flags),
        trace_state=TraceState.from_header([state]) if state else None,
    )
    return trace.set_span_in_context(NonRecordingSpan(parent), otel_context.Context())


def _conclude(span: Span, outcome: str) -> None:
    """Marks what failed. A caller that cancelled is no failure."""
    if outcome not in ("ok", "cancelled", "abandoned"):
        span.set_attribute("error.type", outcome)
        span.set_status(Status(StatusCode.ERROR, outcome))


def _start(
    core: Any,
    operation: AnyOperation,
    queue: _podlink.CompletionQueue,
    waiter: Any,
    arguments: tuple[Any, ...],
    timeout: Any,
) -> None:
    """Starts an operation within a span of its own, which ends with the waiter."""
    tracer = _tracer
    if tracer is None:
        _bridge.start(core, operation, queue, waiter, arguments, timeout)
        return
    given = dict(zip(operation.parameters, arguments, strict=True))
    span = tracer.start_span(
        f"podlink.{operation.name}", kind=_kind(core, given), attributes=_attributes(core, given)
    )
    headers: dict[str, str] = {}
    _propagator.inject(headers, trace.set_span_in_context(span))
    try:
        if "traceparent" in headers:
            _podlink.start_traced(
                _bridge.start,
                (core, operation, queue, waiter, arguments, timeout),
                headers["traceparent"],
                headers.get("tracestate", ""),
            )
        else:
            _bridge.start(core, operation, queue, waiter, arguments, timeout)
    except BaseException as error:
        _end(span, error, None)
        raise
    if span.is_recording():
        waiter.add_done_callback(functools.partial(_ended, span))


def _kind(core: object, given: dict[str, Any]) -> SpanKind:
    """CLIENT for calls of another namespace: its server's span is this one's child."""
    if isinstance(core, _podlink.GrpcClientCore):
        return SpanKind.CLIENT
    namespace = given.get("namespace")
    foreign = bool(namespace) and namespace != getattr(core, "namespace", namespace)
    return SpanKind.CLIENT if foreign else SpanKind.INTERNAL


def _attributes(core: object, given: dict[str, Any]) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    namespace = given.get("namespace") or getattr(core, "namespace", None)
    for name, value in (("namespace", namespace), ("service", given.get("service_name"))):
        if isinstance(value, str):
            attributes[f"podlink.{name}"] = value[:63]
    if isinstance(given.get("uids"), list | tuple | _podlink.UidBatch):
        attributes["podlink.users"] = len(given["uids"])
    try:
        if "uid" in given:
            attributes["podlink.uid_hash"] = hash_uid(given["uid"])
    except PodlinkError:
        pass  # the operation itself raises it
    return attributes


def _ended(span: Span, waiter: Any) -> None:
    if waiter.cancelled():
        span.set_attribute("podlink.outcome", "cancelled")
        span.end()
        return
    error = waiter.exception()
    _end(span, error, None if error is not None else waiter.result())


def _end(span: Span, error: BaseException | None, result: object) -> None:
    outcome = "ok"
    if error is not None:
        outcome = getattr(error, "code", type(error).__name__)
    elif isinstance(result, int) and not isinstance(result, bool):
        span.set_attribute("podlink.pod", result)
    span.set_attribute("podlink.outcome", outcome)
    _conclude(span, outcome)
    span.end()
