"""The wire, proved by code that is not ours: grpcio and stubs made of the .proto file."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

import podlink
from helpers.pods import running
from helpers.wait import eventually_async
from helpers.wire import error_info, third_party

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")


class Stage(NamedTuple):
    """A server, and somebody else's client of it."""

    server: podlink.RouteGrpcServer
    store: podlink.Store
    channel: Any
    stub: Any
    messages: Any

    def user(self, uid: str, namespace: str = "default") -> Any:
        return self.messages.User(namespace=namespace, uid=uid, service_name="svc")


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    wire, store = third_party(), podlink.Store()
    rules = [("*", "*", "default"), ("*", "*", "elsewhere")]
    async with (
        running(store, 0, 1),
        podlink.RouteGrpcServer(store, "default", authorize=rules) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield Stage(server, store, channel, wire.stub(channel), wire.messages)


async def failure(call: Any) -> Any:
    """The status that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_every_operation(stage: Stage) -> None:
    stub, messages = stage.stub, stage.messages
    user = stage.user("u1")
    found = await stub.GetLinkedPod(messages.GetLinkedPodRequest(user=user))
    assert not found.HasField("link")
    computed = await stub.ComputeLinkedPod(messages.ComputeLinkedPodRequest(user=user))
    assert computed.link.pod_index in (0, 1)
    assert 0 < computed.link.valid_for_ms <= 300_000
    for method, request in (
        (stub.GetLinkedPod, messages.GetLinkedPodRequest(user=user)),
        (stub.GetLinkedPodNotCache, messages.GetLinkedPodNotCacheRequest(user=user)),
    ):
        found = await method(request)
        assert found.link.pod_index == computed.link.pod_index
    absent = await stub.SetLinkedPodIfAbsent(
        messages.SetLinkedPodIfAbsentRequest(user=stage.user("u2"), pod_index=0)
    )
    assert absent.link.HasField("valid_for_ms")
    assert absent.link.pod_index == 0
    before = await stub.SetLinkedPod(
        messages.SetLinkedPodRequest(user=stage.user("u2"), pod_index=1)
    )
    assert before.HasField("previous_pod_index")
    assert before.previous_pod_index == 0
    persistent = await stub.GetLinkedPodInCacheOrIfPersist(
        messages.GetLinkedPodInCacheOrIfPersistRequest(user=stage.user("u2"))
    )
    assert persistent.link.pod_index == 1
    tried = await stub.TrySetLinkedPod(
        messages.TrySetLinkedPodRequest(user=stage.user("u2"), pod_index=0)
    )
    assert (tried.won, tried.owner_pod_index) == (False, 1)
    services = await stub.GetLinkService(
        messages.GetLinkServiceRequest(namespace="default", uid="u2")
    )
    assert dict(services.services) == {"svc": 1}
    batch = await stub.BatchGetLinkedPod(
        messages.BatchGetLinkedPodRequest(
            namespace="default", service_name="svc", uids=["u2", "nobody"]
        )
    )
    assert [(pod.pod_index, list(pod.uids)) for pod in batch.pods] == [(1, ["u2"])]
    removed = await stub.RemoveLinkedPodWithId(
        messages.RemoveLinkedPodWithIdRequest(user=stage.user("u2"), pod_index=0)
    )
    assert not removed.removed
    removed = await stub.RemoveLinkedPod(messages.RemoveLinkedPodRequest(user=stage.user("u2")))
    assert removed.removed
    found = await stub.GetLinkedPod(messages.GetLinkedPodRequest(user=stage.user("u2")))
    assert not found.HasField("link")


async def test_pods_tags_and_events(stage: Stage) -> None:
    stub, messages = stage.stub, stage.messages
    service = {"namespace": "default", "service_name": "svc"}
    states = await stub.GetServiceState(messages.GetServiceStateRequest(**service))
    assert [pod.state.pod_index for pod in states.pods] == [0, 1]
    assert all(pod.lease_left_ms > 0 for pod in states.pods)
    tag = messages.GetServiceNameByTagRequest(namespace="default", tag="room")
    assert not (await stub.GetServiceNameByTag(tag)).HasField("service_name")
    async with podlink.RouteInfoDriver(stage.store) as info:
        await info.set_global_service_name_tag(None, "rooms", "svc")
    tag = messages.GetServiceNameByTagRequest(namespace="default", tag="rooms")
    assert (await stub.GetServiceNameByTag(tag)).service_name == "svc"
    watching = stub.WatchRoutingState(messages.WatchRoutingStateRequest(**service))
    first = await watching.read()
    assert not first.changes
    async with running(stage.store, 2):
        async with asyncio.timeout(10):
            while not any(
                change.pod_index == 2 and not change.HasField("previous")
                for change in (await watching.read()).changes
            ):
                pass
    watching.cancel()


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({"uid": ""}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMETER"),
        ({"uid": "a{b"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMETER"),
        ({"uid": "x" * 129}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMETER"),
        ({"namespace": "a:b"}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMETER"),
        ({"namespace": ""}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMETER"),
        ({"namespace": "elsewhere"}, grpc.StatusCode.NOT_FOUND, "NAMESPACE_UNREACHABLE"),
        ({"namespace": "denied"}, grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
        ({"service_name": "none"}, grpc.StatusCode.FAILED_PRECONDITION, "POD_NOT_ROUTABLE"),
    ],
)
async def test_errors_say_what_and_whether_to_retry(
    stage: Stage, change: dict[str, str], code: grpc.StatusCode, reason: str
) -> None:
    given = {"namespace": "default", "uid": "u1", "service_name": "svc"} | change
    request = stage.messages.ComputeLinkedPodRequest(user=stage.messages.User(**given))
    error = await failure(stage.stub.ComputeLinkedPod(request))
    assert error.code() == code
    info = error_info(error)
    assert (info.domain, info.reason) == ("podlink", reason)
    assert info.metadata["retryable"] == str(reason == "POD_NOT_ROUTABLE").lower()


async def test_a_missing_pod_is_not_pod_zero(stage: Stage) -> None:
    request = stage.messages.SetLinkedPodRequest(user=stage.user("u1"))
    error = await failure(stage.stub.SetLinkedPod(request))
    assert error_info(error).metadata["parameter"] == "pod_index"
    assert error_info(error).metadata["outcome"] == "not sent"


async def test_malformed_oversized_unknown_and_too_many(stage: Stage) -> None:
    def raw(method: str) -> Any:
        return stage.channel.unary_unary(f"/podlink.v1.RouteService/{method}")

    error = await failure(raw("GetLinkedPod")(b"\xff\xff\xff\xff"))
    assert error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT)
    error = await failure(raw("GetLinkedPod")(b""))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    error = await failure(raw("GetLinkedPod")(b"\x0a" + b"\x00" * 70_000))
    assert error.code() in (grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.RESOURCE_EXHAUSTED)
    error = await failure(raw("NoSuchMethod")(b""))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED
    many = stage.messages.BatchGetLinkedPodRequest(
        namespace="default", service_name="svc", uids=[str(n) for n in range(513)]
    )
    error = await failure(stage.stub.BatchGetLinkedPod(many))
    assert error_info(error).metadata["given"] == "513"
    assert stage.server.address is not None
    again = stage.messages.ComputeLinkedPodRequest(user=stage.user("u1"))
    await stage.stub.ComputeLinkedPod(again)


async def test_health_by_service(stage: Stage) -> None:
    health = health_pb2_grpc.HealthStub(stage.channel)

    async def status(service: str) -> Any:
        return (await health.Check(health_pb2.HealthCheckRequest(service=service))).status

    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ("", "liveness", "readiness", "podlink.v1.RouteService"):

        async def is_serving(service: str = service) -> bool:
            return bool(await status(service) == serving)

        await eventually_async(is_serving)
    error = await failure(status("nothing"))
    assert error.code() == grpc.StatusCode.NOT_FOUND


async def test_liveness_does_not_depend_on_the_store() -> None:
    store = podlink.Store("redis://127.0.0.1:1")
    async with (
        store,
        podlink.RouteGrpcServer(store) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        answers = [
            (await health.Check(health_pb2.HealthCheckRequest(service=service))).status
            for service in ("liveness", "readiness")
        ]
    assert answers == [
        health_pb2.HealthCheckResponse.SERVING,
        health_pb2.HealthCheckResponse.NOT_SERVING,
    ]


async def test_reflection_tells_the_schema(stage: Stage) -> None:
    def described() -> list[str]:
        with grpc.insecure_channel(str(stage.server.address)) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            services = list(database.get_services())
            file = database.FindFileContainingSymbol("podlink.v1.RouteService")
            assert any(message.name == "User" for message in file.message_type)
            return services

    services = await asyncio.to_thread(described)
    assert {"podlink.v1.RouteService", "grpc.health.v1.Health"} <= set(services)


async def test_a_stop_ends_streams_and_refuses_the_rest(stage: Stage) -> None:
    watching = stage.stub.WatchRoutingState(
        stage.messages.WatchRoutingStateRequest(namespace="default", service_name="svc")
    )
    await watching.read()
    async with asyncio.timeout(5):
        assert await stage.server.stop(deadline=3)
        while await watching.read() is not grpc.aio.EOF:
            pass
    request = stage.messages.GetLinkedPodRequest(user=stage.user("u1"))
    error = await failure(stage.stub.GetLinkedPod(request))
    assert error.code() == grpc.StatusCode.UNAVAILABLE
