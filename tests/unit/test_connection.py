"""A connection gives its drivers what it was given."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

import podlink
from helpers.pods import SERVICE, STEADY, pod_info
from helpers.wait import eventually, eventually_async

OTHER = ("other", "u1", SERVICE)


@pytest.fixture
async def peer() -> AsyncIterator[podlink.RouteGrpcClient]:
    """A client of the namespace `other`, where no server listens."""
    async with podlink.RouteGrpcClient("grpc://127.0.0.1:1", namespace="other") as client:
        yield client


async def test_every_driver_gets_the_peers(peer: podlink.RouteGrpcClient) -> None:
    async with podlink.connect(peers={"other": peer}) as connection:
        server = connection.server(pod_info(0), STEADY)
        await server.start()
        # No server answers there; without the peer each would be a NamespaceUnreachableError.
        for call in (
            connection.client.compute_linked_pod(*OTHER, timeout=0.1),
            connection.info.get_all_service_state("other", SERVICE, timeout=0.1),
            server.set_linked_pod(*OTHER, 0, timeout=0.1),
        ):
            with pytest.raises((podlink.PeerUnavailableError, podlink.OperationTimeoutError)):
                await call


async def test_a_servers_own_arguments_win(peer: podlink.RouteGrpcClient) -> None:
    async with podlink.connect(peers={"other": peer}, callbacks="poll") as connection:
        server = connection.server(pod_info(0), STEADY, lambda: 7, callbacks="thread", peers={})
        await server.start()
        await eventually_async(lambda: server._core.get_load_state() == 7)
        with pytest.raises(podlink.NamespaceUnreachableError):
            await server.set_linked_pod(*OTHER, 0)


def test_every_driver_polls_if_the_connection_does() -> None:
    class Told:
        def __init__(self) -> None:
            self.results: list[Any] = []

        def on_success(self, result: Any) -> None:
            self.results.append(result)

        on_error = on_success

    connection = podlink.connect(callbacks="poll")
    server = connection.server(pod_info(0), STEADY)
    told = Told()
    connection.client.submit("get_linked_pod", None, "u1", SERVICE, callback=told)
    connection.info.submit("get_service_best_pod", None, SERVICE, callback=told)
    server.submit("get_load_state", callback=told)
    for driver in (connection.client, connection.info, server):
        assert eventually(driver.poll_callbacks) == 1
    assert told.results == [None, None, 0]


@pytest.mark.parametrize("given", [{"callbacks": "later"}, {"peers": 5}, {"peers": {"other": 5}}])
def test_a_wrong_argument_is_named(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(podlink.InvalidParameterError, match=name) as caught:
        podlink.connect(**given)
    assert caught.value.details["parameter"] == name
    with pytest.raises(podlink.InvalidParameterError, match=name):
        podlink.connect().server(pod_info(0), **given)


@pytest.mark.parametrize("given", [5, None, {"grpc://h:1"}, ["grpc://h:1", 5], b"grpc://h:1"])
def test_an_endpoint_of_another_type_is_refused(given: Any) -> None:
    with pytest.raises(podlink.InvalidParameterTypeError, match="endpoint must be a str") as caught:
        podlink.RouteGrpcClient(given)
    assert caught.value.details["parameter"] == "endpoint"
