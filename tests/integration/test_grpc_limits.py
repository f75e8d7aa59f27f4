"""What the gRPC server takes at once, and what it says to the rest."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import podlink
from conftest import ServerFactory
from helpers.grpc_clients import client_and_server, client_of, server_of
from helpers.wait import eventually_async
from helpers.wire import error_info, third_party

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")

LONG = 300.0


async def test_ten_thousand_calls_at_once() -> None:
    async with client_and_server({"request_timeout": LONG}, timeout=LONG) as client:
        calls = (
            client.set_linked_pod_if_absent(None, f"u{user}", "svc", user % 7)
            for user in range(10_000)
        )
        owners = await asyncio.gather(*calls)
        assert owners == [user % 7 for user in range(10_000)]
        users = [f"u{user}" for user in range(10_000)]
        found = await client.batch_get_linked_pod(None, users, "svc", timeout=LONG)
        assert sum(map(len, found.values())) == 10_000


@pytest.mark.parametrize("most", [512, 7])
async def test_a_batch_as_large_as_a_server_takes(most: int) -> None:
    async with (
        server_of(max_batch=most) as server,
        grpc.aio.insecure_channel(str(server.address)) as channel,
    ):
        wire = third_party()

        async def ask(number: int) -> Any:
            request = wire.messages.BatchGetLinkedPodRequest(
                namespace="prod", service_name="svc", uids=[f"u{n}" for n in range(number)]
            )
            return await wire.stub(channel).BatchGetLinkedPod(request)

        assert not (await ask(most)).pods
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(most + 1)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        told = error_info(caught.value).metadata
        assert (told["given"], told["allowed"]) == (str(most + 1), f"at most {most} users")


async def test_a_client_asks_for_more_in_several_requests() -> None:
    async with client_and_server(timeout=LONG) as client:
        users = [f"u{user}" for user in range(1_300)]
        # Rough on the server: each of them is a request of its own.
        await asyncio.gather(
            *(client.set_linked_pod_if_absent(None, user, "svc", 0) for user in users)
        )
        assert await client.batch_get_linked_pod(None, users, "svc") == {0: users}


async def test_a_client_that_asks_for_more_than_the_server_takes_is_told() -> None:
    async with client_and_server({"max_batch": 100}, max_batch=101) as client:
        with pytest.raises(podlink.InvalidParameterError, match="at most 100 users"):
            await client.batch_get_linked_pod(None, [f"u{n}" for n in range(101)], "svc")


async def test_a_request_for_which_there_is_no_room_is_refused_at_once(
    server_factory: ServerFactory,
) -> None:
    database, wire = server_factory("valkey"), third_party()
    async with (
        podlink.Store(database.url) as store,
        server_of(store, max_in_flight=2, request_timeout=LONG) as server,
        grpc.aio.insecure_channel(str(server.address)) as channel,
    ):
        stub, user = (
            wire.stub(channel),
            wire.messages.User(namespace="prod", uid="u1", service_name="svc"),
        )
        get = wire.messages.GetLinkedPodNotCacheRequest(user=user)
        await stub.GetLinkedPodNotCache(get)
        database.pause()
        held = [asyncio.ensure_future(stub.GetLinkedPodNotCache(get)) for _ in range(2)]

        async def refused() -> Any:
            # Until both of them have arrived, this one takes a place itself, and lets it go.
            try:
                await stub.GetLinkedPodNotCache(get, timeout=0.2)
            except grpc.aio.AioRpcError as error:
                return error if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED else None

        error = await eventually_async(refused, within=LONG)
        told = error_info(error)
        assert told.reason == "OVERLOADED"
        assert (told.metadata["retryable"], told.metadata["outcome"]) == ("true", "not sent")
        database.resume()
        await asyncio.gather(*held, return_exceptions=True)
        # There is room again.
        await stub.GetLinkedPodNotCache(get)


async def test_a_request_that_never_arrives_ends() -> None:
    async with (
        server_of(request_timeout=0.1) as server,
        grpc.aio.insecure_channel(str(server.address)) as channel,
    ):

        async def nothing() -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b""

        call = channel.stream_unary("/podlink.v1.RouteService/GetLinkedPod")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(nothing(), timeout=LONG)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert error_info(caught.value).metadata["outcome"] == "not sent"


async def test_more_than_there_is_room_for_is_tried_again() -> None:
    async with client_and_server({"max_in_flight": 2}, timeout=LONG, retry_ratio=1.0) as client:
        calls = [client.set_linked_pod(None, f"u{user}", "svc", 0) for user in range(64)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        failed: list[Any] = [error for error in ended if error is not None]
        assert all(isinstance(error, podlink.OverloadedError) for error in failed)
        assert all(error.outcome == "not sent" for error in failed)
        assert len(failed) < 64


async def test_who_asks_too_often_is_refused_and_nobody_else(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    names = {"hasty": "hasty-token-0123456789", "calm": "calm-token-0123456789"}
    tokens.write_text("".join(f"{name} {token}\n" for name, token in names.items()))
    for name, token in names.items():
        (tmp_path / name).write_text(token)
    limits = podlink.GrpcServerConfig(peer_rate=50)
    server = podlink.RouteGrpcServer(
        podlink.Store(),
        "prod",
        config=limits,
        tokens_file=tokens,
        authorize=[("*", "*", "prod")],
    )
    async with server:

        def client(name: str) -> podlink.RouteGrpcClient:
            figures = podlink.GrpcClientConfig(retry_ratio=0.0, timeout=LONG)
            return podlink.RouteGrpcClient(
                f"grpc://{server.address}",
                namespace="prod",
                config=figures,
                token_file=tmp_path / name,
            )

        async with client("hasty") as hasty, client("calm") as calm:

            async def refused() -> bool:
                calls = (hasty.get_linked_pod(None, "u", "svc") for _ in range(400))
                ended = await asyncio.gather(*calls, return_exceptions=True)
                return any(isinstance(error, podlink.OverloadedError) for error in ended)

            await eventually_async(refused, within=LONG)
            for _ in range(20):
                await calm.get_linked_pod(None, "u", "svc")


async def test_streams_of_events_have_places_of_their_own() -> None:
    wire = third_party()
    async with (
        server_of(max_in_flight=1, max_event_streams=2) as server,
        client_of(f"grpc://{server.address}") as client,
        grpc.aio.insecure_channel(str(server.address)) as channel,
    ):
        request = wire.messages.WatchRoutingStateRequest(namespace="prod", service_name="svc")
        streams = [wire.stub(channel).WatchRoutingState(request) for _ in range(2)]
        for stream in streams:
            await stream.read()
        # They take no place from calls.
        assert await client.set_linked_pod_if_absent(None, "u1", "svc", 3) == 3
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wire.stub(channel).WatchRoutingState(request).read()
        assert error_info(caught.value).reason == "OVERLOADED"
        streams[0].cancel()

        async def listens() -> bool:
            stream = wire.stub(channel).WatchRoutingState(request)
            try:
                await stream.read()
            except grpc.aio.AioRpcError:
                return False
            stream.cancel()
            return True

        await eventually_async(listens)
        streams[1].cancel()
