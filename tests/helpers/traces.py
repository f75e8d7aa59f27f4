"""Spans as tests read them, in this process and in a server of its own.

    with TracedServer() as server:
        ...                       # calls to server.url
        server.spans()            # what it has exported so far

Run as a program, it is that server.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import podlink
import podlink.otel
from helpers.programs import environment

_GONE_WITHIN = 120.0

Told = dict[str, Any]


def provider_with_memory() -> tuple[TracerProvider, InMemorySpanExporter]:
    """The real SDK, and where its spans go."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def told(spans: Iterable[ReadableSpan]) -> list[Told]:
    """Spans as plain data."""
    return [
        {
            "name": span.name,
            "kind": span.kind.name,
            "trace": f"{span.context.trace_id:032x}",
            "id": f"{span.context.span_id:016x}",
            "parent": f"{span.parent.span_id:016x}" if span.parent else None,
            "status": span.status.status_code.name,
            "attributes": dict(span.attributes or {}),
            "started": span.start_time,
            "ended": span.end_time,
            "state": span.context.trace_state.to_header(),
        }
        for span in spans
    ]


def the(spans: Iterable[Told], name: str) -> Told:
    """The one span of this name."""
    [found] = [span for span in spans if span["name"] == name]
    return found


class TracedServer:
    """A gRPC server of the namespace `prod`, with one pod, in a process that exports its spans."""

    def __init__(self, *, tracing: bool = True) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "traced" if tracing else "untraced"],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = f"grpc://{self._read()}"

    def spans(self) -> list[Told]:
        """Every span that the server has exported."""
        assert self._process.stdin is not None
        self._process.stdin.write("spans\n")
        self._process.stdin.flush()
        spans: list[Told] = json.loads(self._read())
        return spans

    def with_all(self, *names: str) -> list[Told]:
        """The same, once there are spans of these names."""
        spans = self.spans()
        return spans if set(names) <= {span["name"] for span in spans} else []

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(_GONE_WITHIN)
        self._process.stdout.close()


async def _serve(exporter: InMemorySpanExporter) -> None:
    store = podlink.Store("memory://")
    pod = podlink.ServerInfo("prod", "svc", 0)
    server = podlink.RouteGrpcServer(store, "prod", authorize=[("*", "*", "prod")])
    async with store, podlink.ServerDriver(store, pod), server:
        podlink.otel.flush()
        exporter.clear()
        print(server.address, flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            podlink.otel.flush()
            print(json.dumps(told(exporter.get_finished_spans())), flush=True)


def _main() -> None:
    provider, exporter = provider_with_memory()
    if sys.argv[1] == "traced":
        podlink.otel.enable(provider)
    asyncio.run(_serve(exporter))


if __name__ == "__main__":
    _main()
