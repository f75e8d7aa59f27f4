"""An error names the operation that the program called, and the store's call beside it.

In the first versions the name depended on where the failure was noticed: `ping`, `services` or
`remove` of the store, the name of a sibling operation, or none. A program that counts failures by
`details["operation"]` counted wrongly.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

import podlink
from conftest import ServerFactory
from helpers.pods import NAMESPACE, QUICK, SERVICE, pod_info
from helpers.scrape import Scrape
from helpers.wait import eventually_async

TIMEOUT = 0.5

Call = Callable[[], Awaitable[object]]


def calls(
    store: podlink.Store, client: podlink.ClientDriver, server: podlink.ServerDriver
) -> dict[str, Call]:
    """Every operation that asks the store, by its name."""
    info = client.route_info
    user = (None, "u1", SERVICE)
    return {
        "compute_linked_pod": lambda: client.compute_linked_pod(*user, timeout=TIMEOUT),
        "get_linked_pod": lambda: client.get_linked_pod(*user, timeout=TIMEOUT),
        "get_linked_pod_in_cache_or_if_persist": lambda: (
            client.get_linked_pod_in_cache_or_if_persist(*user, timeout=TIMEOUT)
        ),
        "get_linked_pod_not_cache": lambda: client.get_linked_pod_not_cache(*user, timeout=TIMEOUT),
        "get_link_service": lambda: client.get_link_service(None, "u1", timeout=TIMEOUT),
        "batch_get_linked_pod": lambda: client.batch_get_linked_pod(
            None, ["u1"], SERVICE, timeout=TIMEOUT
        ),
        "set_linked_pod_if_absent": lambda: client.set_linked_pod_if_absent(
            *user, 0, timeout=TIMEOUT
        ),
        "set_linked_pod": lambda: server.set_linked_pod(*user, 1, timeout=TIMEOUT),
        "try_set_linked_pod": lambda: server.try_set_linked_pod(*user, 1, timeout=TIMEOUT),
        "claim": lambda: server.claim(*user, timeout=TIMEOUT),
        "remove_linked_pod": lambda: server.remove_linked_pod(*user, timeout=TIMEOUT),
        "remove_linked_pod_with_id": lambda: server.remove_linked_pod_with_id(
            *user, 1, 0, timeout=TIMEOUT
        ),
        "set_routing_state": lambda: server.set_routing_state("DENY_NEW_CALL", timeout=TIMEOUT),
        "start": lambda: podlink.ServerDriver(store, pod_info(3)).start(timeout=TIMEOUT),
        "get_all_service_state": lambda: info.get_all_service_state(None, SERVICE, timeout=TIMEOUT),
        "get_ready_service_state": lambda: info.get_ready_service_state(
            None, SERVICE, timeout=TIMEOUT
        ),
        "get_pod_state": lambda: info.get_pod_state(None, SERVICE, 0, timeout=TIMEOUT),
        "get_service_best_pod": lambda: info.get_service_best_pod(None, SERVICE, timeout=TIMEOUT),
        "is_workload_ready": lambda: info.is_workload_ready(None, SERVICE, timeout=TIMEOUT),
        "get_service_name_by_tag": lambda: info.get_service_name_by_tag(
            None, "tag", timeout=TIMEOUT
        ),
        "set_global_service_name_tag": lambda: info.set_global_service_name_tag(
            None, "tag", SERVICE, timeout=TIMEOUT
        ),
        "ping": lambda: store.ping(timeout=TIMEOUT),
    }


@pytest.fixture
async def store(server_factory: ServerFactory) -> AsyncIterator[podlink.Store]:
    """A store whose server is gone."""
    server = server_factory()
    async with podlink.Store(server.url) as opened:
        await opened.ping()
        server.kill()
        yield opened


async def test_the_public_name_whatever_fails_below(
    server_factory: ServerFactory,
) -> None:
    server = server_factory()
    async with (
        podlink.Store(server.url) as store,
        podlink.ClientDriver(store, NAMESPACE) as client,
    ):
        pod = podlink.ServerDriver(store, pod_info(1))
        await pod.start()
        owned = await pod.claim(None, "owned", SERVICE)
        server.kill()
        of_the_owner: dict[str, Call] = {
            "verify": lambda: owned.verify(timeout=TIMEOUT),
            "release": lambda: owned.release(timeout=TIMEOUT),
        }
        for name, call in (calls(store, client, pod) | of_the_owner).items():
            with pytest.raises(podlink.PodlinkError) as failure:
                await call()
            details = failure.value.details
            assert details["operation"] == name, name
            assert str(failure.value).startswith(f"{name}: "), name
        with pytest.raises(podlink.PodlinkError) as failure:
            await client.get_link_service(None, "u1", timeout=TIMEOUT)
        assert failure.value.details["store_call"] == "services"
        await pod.stop(deadline=0.1)


async def test_a_stopped_pod_names_what_was_called(store: podlink.Store) -> None:
    # `remove_linked_pod_with_id` of a stopped pod failed under the name `remove_linked_pod`.
    pod = podlink.ServerDriver(store, pod_info(1))
    await pod.stop(deadline=0.1)
    user = (None, "u1", SERVICE)
    refused: dict[str, Call] = {
        "set_linked_pod": lambda: pod.set_linked_pod(*user, 1),
        "try_set_linked_pod": lambda: pod.try_set_linked_pod(*user, 1),
        "claim": lambda: pod.claim(*user),
        "remove_linked_pod": lambda: pod.remove_linked_pod(*user),
        "remove_linked_pod_with_id": lambda: pod.remove_linked_pod_with_id(*user, 1, 0),
        "set_routing_state": lambda: pod.set_routing_state("READY"),
        "start": lambda: pod.start(),
    }
    for name, call in refused.items():
        with pytest.raises(podlink.PodlinkError) as failure:
            await call()
        assert failure.value.details["operation"] == name
        assert "store_call" not in failure.value.details


async def test_refused_calls_are_counted() -> None:
    # A refusal never reached the place where operations are counted.
    async with podlink.Store() as store:
        client = podlink.ClientDriver(store, NAMESPACE)
        pod = podlink.ServerDriver(store, pod_info(1))
        await pod.stop(deadline=0.1)
        await client.aclose()
        user = (None, "u1", SERVICE)
        for call in (
            lambda: pod.set_linked_pod(*user, 1),
            lambda: pod.try_set_linked_pod(*user, 1),
            lambda: pod.claim(*user),
            lambda: pod.remove_linked_pod(*user),
            lambda: pod.remove_linked_pod_with_id(*user, 1, 0),
            lambda: client.get_linked_pod(*user),
            lambda: client.get_linked_pod_in_cache_or_if_persist(*user),
        ):
            with pytest.raises(podlink.PodlinkError):
                await call()
        page = Scrape.of(store.metrics_text())
    for name in (
        "set_linked_pod",
        "try_set_linked_pod",
        "claim",
        "remove_linked_pod",
        "remove_linked_pod_with_id",
        "get_linked_pod",
        "get_linked_pod_in_cache_or_if_persist",
    ):
        assert page.value("podlink_operations_total", operation=name, outcome="CLOSED") == 1, name


async def test_a_pods_foreign_calls_are_counted() -> None:
    # Calls of a `ServerDriver` on links of another namespace were not counted.
    async with (
        podlink.Store() as here,
        podlink.Store() as there,
        podlink.RouteGrpcServer(
            there, "prod", listen="127.0.0.1:0", authorize=[("*", "*", "*")]
        ) as serving,
        podlink.RouteGrpcClient(f"grpc://{serving.address}") as peer,
    ):
        pod = podlink.ServerDriver(here, pod_info(1), peers={"prod": peer})
        async with pod:
            assert await pod.set_linked_pod("prod", "u1", SERVICE, 4) is None
            assert await pod.try_set_linked_pod("prod", "u1", SERVICE, 5) == (False, 4)
            assert await pod.remove_linked_pod_with_id("prod", "u1", SERVICE, 4, 0)
        page = Scrape.of(here.metrics_text())
    for name in ("set_linked_pod", "try_set_linked_pod", "remove_linked_pod_with_id"):
        assert page.value("podlink_operations_total", operation=name, outcome="ok") == 1, name


async def test_a_peer_that_is_gone_leaves_the_name() -> None:
    async with (
        podlink.Store() as store,
        podlink.RouteGrpcClient("grpc://127.0.0.1:1", namespace="prod") as peer,
        podlink.ClientDriver(store, NAMESPACE, peers={"prod": peer}) as client,
    ):
        for name, call in {
            "compute_linked_pod": client.compute_linked_pod("prod", "u", SERVICE, timeout=TIMEOUT),
            "get_linked_pod": client.get_linked_pod("prod", "u", SERVICE, timeout=TIMEOUT),
            "get_link_service": client.get_link_service("prod", "u", timeout=TIMEOUT),
            "set_linked_pod": peer.set_linked_pod("prod", "u", SERVICE, 1, timeout=TIMEOUT),
        }.items():
            with pytest.raises(podlink.PeerUnavailableError) as failure:
                await call
            assert failure.value.details["operation"] == name


async def test_one_pods_state_is_found_or_not(store_url: str) -> None:
    async with podlink.Store(store_url) as store, podlink.ClientDriver(store, NAMESPACE) as client:
        info = client.route_info
        with pytest.raises(podlink.ServiceNotFoundError, match=r"no pod of .*never") as none:
            await info.get_pod_state(None, "never", 0)
        assert none.value.code == "SERVICE_NOT_FOUND"
        async with podlink.ServerDriver(store, pod_info(0)):
            state = await info.get_pod_state(None, SERVICE, 0)
            assert (state.pod_id, state.routing_state) == (0, podlink.RoutingState.READY)
            with pytest.raises(podlink.PodNotFoundError, match="pod 7 of") as missing:
                await info.get_pod_state(None, SERVICE, 7)
            assert missing.value.code == "POD_NOT_FOUND"
            submitted = info.submit(info.get_pod_state, None, SERVICE, 0)
            assert await asyncio.wrap_future(submitted) == state


async def test_a_wrong_argument_leaves_the_name() -> None:
    async with podlink.Store() as store, podlink.ClientDriver(store, NAMESPACE) as client:
        with pytest.raises(podlink.InvalidParameterError) as failure:
            await client.get_link_service(None, "a{b")
        assert failure.value.details["operation"] == "get_link_service"
        assert failure.value.details["parameter"] == "uid"


async def test_explain_names_itself_and_not_the_call_of_the_store(store: podlink.Store) -> None:
    async with podlink.ClientDriver(store, NAMESPACE) as client:
        explained = await client.explain(None, "u1", SERVICE, timeout=TIMEOUT)
    assert explained.trouble is not None
    assert explained.trouble.message.startswith("explain: ")


async def test_a_store_that_cannot_be_read_is_not_the_death_of_a_pod(
    server_factory: ServerFactory,
) -> None:
    server = server_factory()
    store = podlink.Store(server.url)
    fresh = podlink.RouteInfoConfig(refresh=0.05)
    pod = podlink.ServerDriver(store, pod_info(0), QUICK)
    await pod.start()
    info = podlink.RouteInfoDriver(store, NAMESPACE, fresh)
    assert (await info.get_pod_state(None, SERVICE, 0)).pod_id == 0
    server.kill()
    failed: list[podlink.PodlinkError] = []

    async def fails() -> bool:
        try:
            await info.get_pod_state(None, SERVICE, 0, timeout=TIMEOUT)
        except podlink.PodlinkError as error:
            failed.append(error)
        return bool(failed)

    # Until its lease has ended, the pod is known.
    await eventually_async(fails)
    assert failed[0].code in ("STORE_UNAVAILABLE", "TIMEOUT")
    assert failed[0].details["operation"] == "get_pod_state"
    await info.aclose()
    await store.aclose()
