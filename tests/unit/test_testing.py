"""podlink.testing: what users write their own tests with."""

import pytest

import podlink
from helpers.servers import Server
from podlink.testing import World

SERVICE = "svc"


@pytest.fixture(params=["memory", "valkey"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return "memory://"
    server: Server = request.getfixturevalue("valkey_server")
    server.flush()
    return server.url


async def test_a_user_is_owned_drained_and_moved(url: str) -> None:
    saved: list[str] = []
    async with World(url) as world:
        pods = [await world.start_pod(SERVICE, index) for index in range(2)]
        client, info = world.client(), world.info()
        first = await client.compute_linked_pod(None, "ann", SERVICE)
        ann = await pods[first].server.claim(None, "ann")
        assert ann.is_valid()
        pods[first].server.on_drain(lambda user: saved.append(user.uid))
        report = await pods[first].stop()
        assert (report.released, saved) == (1, ["ann"])
        assert await client.compute_linked_pod(None, "ann", SERVICE) == 1 - first
        assert set(await info.get_all_service_state(None, SERVICE)) == {1 - first}
        again = await world.start_pod(SERVICE, first, metadata={"version": "2"}, load=lambda: 3)
        assert again.server.server_info.metadata == {"version": "2"}


async def test_two_pods_of_one_index_are_refused() -> None:
    async with World() as world:
        await world.start_pod(SERVICE, 0)
        with pytest.raises(podlink.PodIndexBusyError):
            await world.start_pod(SERVICE, 0)


async def test_worlds_share_nothing_and_end_as_a_whole() -> None:
    async with World() as one, World(namespace="other") as other:
        await one.start_pod(SERVICE, 0)
        with pytest.raises(podlink.NoRoutablePodError):
            await other.client().compute_linked_pod(None, "ann", SERVICE)
        pod, client, info = await one.start_pod(SERVICE, 1), one.client(), one.info()
        assert repr(one) == "World(namespace='default', pods=2)"
    await one.aclose()
    assert pod.server.is_closed
    assert client.is_closed
    assert info.is_closed
    assert one.store.is_closed
    for use in (one.client, one.info):
        with pytest.raises(podlink.IllegalStateError, match="closed"):
            use()
    with pytest.raises(podlink.IllegalStateError, match="closed"):
        await one.start_pod(SERVICE, 0)


async def test_all_is_closed_even_if_a_pod_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    pod, client = await world.start_pod(SERVICE, 0), world.client()

    async def fails() -> None:
        raise podlink.StoreUnavailableError("on purpose")

    monkeypatch.setattr(pod.server, "aclose", fails)
    with pytest.raises(podlink.StoreUnavailableError):
        await world.aclose()
    assert client.is_closed
    assert world.store.is_closed
