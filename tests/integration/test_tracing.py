"""podlink's operations in the application's traces, with the real OpenTelemetry SDK."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

import podlink
import podlink.otel
from helpers.traces import Told, TracedServer, provider_with_memory, the, told
from helpers.wait import eventually, eventually_async
from helpers.wire import third_party

UID = "player-4711"
HASH = podlink.hash_uid(UID)


class Traces:
    """The application of a test: its provider, and what came of its spans."""

    def __init__(self) -> None:
        self.provider, self._exporter = provider_with_memory()
        self.tracer = self.provider.get_tracer("application")

    def spans(self) -> list[Told]:
        """Everything that has ended so far."""
        podlink.otel.flush()
        return told(self._exporter.get_finished_spans())

    def with_all(self, *names: str) -> list[Told]:
        """The same, once there are spans of these names."""
        spans = self.spans()
        return spans if set(names) <= {span["name"] for span in spans} else []

    def forget(self) -> None:
        """Begin anew."""
        podlink.otel.flush()
        self._exporter.clear()


@pytest.fixture
def traces() -> Iterator[Traces]:
    """An application that has enabled tracing."""
    traces = Traces()
    podlink.otel.enable(traces.provider)
    yield traces
    podlink.otel.disable()


def below(spans: list[Told], parent: Told) -> list[Told]:
    return [span for span in spans if span["parent"] == parent["id"]]


async def test_a_compute_is_a_span_of_the_callers_trace(store_url: str, traces: Traces) -> None:
    pod = podlink.ServerInfo("default", "svc", 0)
    async with (
        podlink.connect(store_url, namespace="default") as connection,
        connection.server(pod),
    ):
        compute_linked_pod = connection.client.compute_linked_pod
        traces.forget()
        with traces.tracer.start_as_current_span("application"):
            assert await compute_linked_pod(None, UID, "svc") == 0
        spans = await eventually_async(lambda: traces.with_all("podlink.place"))
        # The cache answers: no span.
        assert await compute_linked_pod(None, UID, "svc") == 0
        assert len(traces.spans()) == len(spans)
    application, compute = the(spans, "application"), the(spans, "podlink.compute_linked_pod")
    assert compute["parent"] == application["id"]
    assert compute["kind"] == "INTERNAL"
    assert compute["attributes"] == {
        "podlink.namespace": "default",
        "podlink.service": "svc",
        "podlink.uid_hash": HASH,
        "podlink.outcome": "ok",
        "podlink.pod": 0,
    }
    place = the(spans, "podlink.place")
    assert below(spans, compute) == [place]
    assert place["attributes"] == {
        "podlink.namespace": "default",
        "podlink.service": "svc",
        "podlink.uid_hash": HASH,
        "podlink.cache": "miss",
        "podlink.outcome": "ok",
        "podlink.pod": 0,
    }
    made = the(spans, "podlink.set_if_absent")
    assert made in below(spans, place)
    assert made["kind"] == "CLIENT"
    assert made["attributes"]["db.operation.name"] == "set_if_absent"
    assert made["attributes"]["podlink.outcome"] == "ok"
    assert {span["trace"] for span in spans} == {application["trace"]}
    assert place["started"] <= made["started"] <= made["ended"] <= place["ended"]
    assert UID not in repr(spans)


async def test_two_processes_make_one_trace(traces: Traces) -> None:
    with TracedServer() as server:
        async with podlink.RouteGrpcClient(server.url) as peer:
            client = podlink.ClientDriver(podlink.Store(), "test", peers={"prod": peer})
            async with client:
                with traces.tracer.start_as_current_span("application"):
                    assert await client.compute_linked_pod("prod", UID, "svc") == 0
                    assert await peer.get_linked_pod("prod", UID, "svc") == 0
                attempts = ("podlink.ComputeLinkedPod", "podlink.GetLinkedPod")
                mine = await eventually_async(lambda: traces.with_all(*attempts))
        theirs = eventually(lambda: server.with_all(*attempts))
    application = the(mine, "application")
    assert {span["trace"] for span in mine + theirs} == {application["trace"]}
    for operation, method in (
        ("podlink.compute_linked_pod", "podlink.ComputeLinkedPod"),
        ("podlink.get_linked_pod", "podlink.GetLinkedPod"),
    ):
        called, request = the(mine, operation), the(theirs, method)
        assert called["parent"] == application["id"]
        assert called["kind"] == "CLIENT"
        assert request["parent"] == called["id"]
        assert request["kind"] == "SERVER"
        assert request["attributes"]["rpc.method"] == method.removeprefix("podlink.")
        assert request["attributes"]["podlink.outcome"] == "ok"
    attempt = the(below(mine, the(mine, "podlink.compute_linked_pod")), "podlink.place")
    attempt = the(below(mine, attempt), "podlink.ComputeLinkedPod")
    assert attempt["attributes"]["podlink.endpoint"] == server.url
    assert attempt["attributes"]["podlink.attempt"] == 1
    place = the(theirs, "podlink.place")
    assert place["parent"] == the(theirs, "podlink.ComputeLinkedPod")["id"]
    assert the(below(theirs, place), "podlink.set_if_absent")
    assert UID not in repr(mine + theirs)
    assert HASH in repr(theirs)


async def test_what_is_not_sampled_is_exported_nowhere(traces: Traces) -> None:
    off = TracerProvider(sampler=ParentBased(ALWAYS_OFF))
    podlink.otel.enable(off)
    with TracedServer() as server:
        async with podlink.RouteGrpcClient(server.url) as peer:
            with off.get_tracer("application").start_as_current_span("application"):
                assert await peer.compute_linked_pod("prod", UID, "svc") == 0
            assert server.spans() == []
            # A caller that says nothing of a trace begins one at the server.
            podlink.otel.disable()
            assert await peer.compute_linked_pod("prod", "another", "svc") == 0
            spans = eventually(server.spans)
    assert the(spans, "podlink.ComputeLinkedPod")["parent"] is None
    assert traces.spans() == []


async def test_a_compute_that_is_not_sampled_shares_its_exchange(traces: Traces) -> None:
    # As soon as traces were collected at all, every compute took the slow path: one request to the
    # store each. Only a sampled compute may do so.
    podlink.otel.enable(TracerProvider(sampler=ParentBased(ALWAYS_OFF)))
    async with (
        podlink.connect() as connection,
        connection.server(podlink.ServerInfo("default", "svc", 0)),
    ):
        compute = connection.client.compute_linked_pod
        await compute(None, "first", "svc")  # reads the pods, and so goes the long way

        def together() -> float:
            sizes = [
                sample.sum or 0.0
                for sample in connection.store.stats().samples
                if sample.name == "podlink_store_batch_size"
                and sample.labels["call"] == "set_if_absent"
            ]
            return sum(sizes)

        before = together()
        assert set(await asyncio.gather(*(compute(None, f"u{n}", "svc") for n in range(20)))) == {0}
        assert together() - before == 20
    assert traces.spans() == []


GOOD = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("headers", "followed"),
    [
        ([("traceparent", GOOD)], True),
        ([("traceparent", GOOD), ("tracestate", "vendor=7")], True),
        ([("traceparent", GOOD.upper())], False),
        ([("traceparent", GOOD.replace("00f067aa0ba902b7", "0" * 16))], False),
        ([("traceparent", GOOD + "-more")], False),
        ([("traceparent", "x" * 6000)], False),
        ([("traceparent", "00-what-ever-01")], False),
    ],
)
def test_only_a_whole_traceparent_is_followed(
    headers: list[tuple[str, str]], followed: bool
) -> None:
    import grpc

    wire = third_party()
    with TracedServer() as server, grpc.insecure_channel(server.url.removeprefix("grpc://")) as to:
        request = wire.messages.ComputeLinkedPodRequest(user=wire.user("prod", UID, "svc"))
        call = wire.stub(to).ComputeLinkedPod
        assert call(request, metadata=headers, timeout=10).link.pod_index == 0
        request_span = the(eventually(server.spans), "podlink.ComputeLinkedPod")
    assert (request_span["parent"] == "00f067aa0ba902b7") is followed
    assert (request_span["parent"] is None) is not followed
    if len(headers) == 2:
        assert request_span["state"] == "vendor=7"


async def test_errors_are_told_by_their_code(traces: Traces) -> None:
    async with podlink.connect("memory://", namespace="default") as connection:
        with pytest.raises(podlink.NoRoutablePodError):
            await connection.client.compute_linked_pod(None, UID, "svc", timeout=5)
        with pytest.raises(podlink.InvalidParameterError):
            await connection.client.get_linked_pod_not_cache(None, "a\nb", "svc")
        spans = await eventually_async(lambda: traces.with_all("podlink.place"))
    compute = the(spans, "podlink.compute_linked_pod")
    get = the(spans, "podlink.get_linked_pod_not_cache")
    for span, code in ((compute, "POD_NOT_ROUTABLE"), (get, "INVALID_PARAMETER")):
        assert span["status"] == "ERROR"
        assert span["attributes"]["podlink.outcome"] == code
        assert span["attributes"]["error.type"] == code
    assert "podlink.uid_hash" not in get["attributes"]


async def test_a_caller_who_cancels_ends_the_span(
    server_factory: Callable[..., object], traces: Traces
) -> None:
    server = server_factory()
    async with podlink.Store(server.url) as store:  # type: ignore[attr-defined]
        client = podlink.ClientDriver(store)
        await client.get_linked_pod_not_cache(None, UID, "svc")
        server.pause()  # type: ignore[attr-defined]
        traces.forget()
        task = asyncio.create_task(client.get_linked_pod_not_cache(None, UID, "svc"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        [span] = await eventually_async(traces.spans)
        server.resume()  # type: ignore[attr-defined]
        assert span["attributes"]["podlink.outcome"] == "cancelled"
        assert span["status"] == "UNSET"


def test_programs_without_a_loop_have_spans_too(traces: Traces) -> None:
    client = podlink.ClientDriver(podlink.Store())
    heard: Future[bool] = Future()

    class Callback:
        def on_success(self, result: object) -> None:
            heard.set_result(True)

        def on_error(self, error: Exception) -> None:
            heard.set_exception(error)

    with traces.tracer.start_as_current_span("application"):
        client.submit("set_linked_pod_if_absent", None, UID, "svc", 3, callback=Callback()).result(
            10
        )
        assert heard.result(60)
    spans = eventually(lambda: traces.with_all("podlink.set_if_absent"))
    operation = the(spans, "podlink.set_linked_pod_if_absent")
    assert operation["parent"] == the(spans, "application")["id"]
    assert operation["attributes"]["podlink.pod"] == 3
    assert the(below(spans, operation), "podlink.set_if_absent")


def test_on_uvloop_and_on_loops_in_threads(traces: Traces) -> None:
    import uvloop

    async def ask(at: int) -> None:
        client = podlink.ClientDriver(podlink.Store())
        with traces.tracer.start_as_current_span(f"application {at}"):
            await client.set_linked_pod_if_absent(None, UID, "svc", at)

    threads = [threading.Thread(target=uvloop.run, args=(ask(at),)) for at in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = eventually(lambda: found if len(found := traces.spans()) >= 9 else [])
    for at in range(3):
        [operation] = below(spans, the(spans, f"application {at}"))
        assert operation["attributes"]["podlink.pod"] == at


async def test_without_a_provider_nothing_happens() -> None:
    podlink.otel.enable()
    try:
        client = podlink.ClientDriver(podlink.Store())
        assert await client.set_linked_pod_if_absent(None, UID, "svc", 1) == 1
    finally:
        podlink.otel.disable()


def test_a_wrong_provider_is_refused() -> None:
    with pytest.raises(podlink.InvalidParameterError, match="tracer_provider must be"):
        podlink.otel.enable("jaeger")  # type: ignore[arg-type]


async def test_an_exporter_that_raises_hinders_nobody(
    traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_spans: object) -> None:
        raise OSError("the collector is away")

    monkeypatch.setattr(InMemorySpanExporter, "export", fail)
    client = podlink.ClientDriver(podlink.Store())
    for at in range(3):
        assert await client.set_linked_pod_if_absent(None, f"u{at}", "svc", 1) == 1
    assert client.submit("get_linked_pod_not_cache", None, "u1", "svc").result(60) == 1


async def test_a_flood_drops_spans_and_says_how_many(
    traces: Traces, caplog: pytest.LogCaptureFixture
) -> None:
    client = podlink.ClientDriver(podlink.Store())
    # Nobody takes the spans while this function keeps the interpreter's threads from it.
    podlink._bridge.observe(podlink._bridge._observer, None)
    link = client.set_linked_pod_if_absent
    for _ in range(100):
        await asyncio.gather(*(link(None, f"u{at}", "svc", 1) for at in range(100)))
    podlink.otel.flush()
    assert "spans were dropped" in caplog.text
    dropped = sum(each.__dict__["podlink"]["dropped"] for each in caplog.records)
    made = sum(span["name"] == "podlink.set_if_absent" for span in traces.spans())
    assert (made, dropped) == (8192, 10_000 - 8192)
