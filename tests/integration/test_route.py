"""route and misrouted: tokens, addresses, pods that say "not mine", and other namespaces."""

import asyncio
import dataclasses
import inspect
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

import podlink
from helpers.grpc_clients import RULES, client_of
from helpers.pods import FRESH, NAMESPACE, PATIENT, SERVICE, STEADY, running
from helpers.servers import Server
from helpers.wait import eventually_async
from podlink.explain import Reason, StaleReason

USER = (None, "u1", SERVICE)


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[podlink.Store]:
    async with podlink.Store(store_url) as opened:
        yield opened


@pytest.fixture
async def client(store: podlink.Store) -> AsyncIterator[podlink.ClientDriver]:
    async with client_on(store) as driver:
        yield driver


def client_on(store: podlink.Store, **settings: Any) -> podlink.ClientDriver:
    config = dataclasses.replace(PATIENT, **settings)
    return podlink.ClientDriver(store, NAMESPACE, config, route_info=FRESH)


# --- Routes ---------------------------------------------------------------------------------------


async def test_a_hint_has_no_token(store: podlink.Store, client: podlink.ClientDriver) -> None:
    async with running(store, 0, metadata={0: {"version": "7"}}):
        first = await client.route(*USER)
        assert (first.pod_index, first.incarnation, first.token) == (0, None, None)
        assert first.address == "svc-0.svc.default.svc"
        assert first.metadata == {"version": "7"}
        assert not first.from_cache
        assert await client.route(*USER) == dataclasses.replace(first, from_cache=True)
        assert await client.compute_linked_pod(*USER) == 0
        assert client.stats()["cache_hits"] == 2


async def test_an_owner_has_its_token(store: podlink.Store, client: podlink.ClientDriver) -> None:
    async with running(store, 0, 1) as pods:
        owned = await pods[1].claim(*USER)
        for from_cache in (False, True):
            route = await client.route(*USER, timeout=30)
            assert (route.pod_index, route.incarnation, route.token, route.from_cache) == (
                1,
                owned.incarnation,
                owned.token,
                from_cache,
            )
        # A computed answer carries it, too.
        other = client_on(store)
        assert await other.compute_linked_pod(*USER) == 1
        assert (await other.route(*USER)).token == owned.token
        assert other.stats()["cache_hits"] == 1


async def test_addresses(store: podlink.Store) -> None:
    metadata = {0: {"address": "10.0.0.7:9000", "podName": "x"}, 1: {"podName": "blue-1"}}
    template = "{{{pod_name}}}.{service_name}.{namespace}:70{pod_index}"
    client = client_on(store, address_template=template)
    async with running(store, 0, 1, 2, metadata=metadata) as pods:
        addresses: list[str] = []
        for pod in pods:
            await pod.claim(None, f"u{len(addresses)}", SERVICE)
            addresses.append((await client.route(None, f"u{len(addresses)}", SERVICE)).address)
    assert addresses == ["10.0.0.7:9000", "{blue-1}.svc.default:701", "{svc-2}.svc.default:702"]


@pytest.mark.parametrize("template", ["", "{pod}", "{", "a}", "{pod_name", "{}", "x" * 513])
def test_a_wrong_template_is_refused(template: str) -> None:
    with pytest.raises(podlink.InvalidParameterError, match="address_template") as caught:
        podlink.ClientConfig(address_template=template)
    assert "{pod_index}" in caught.value.details["allowed"]


def test_the_template_comes_from_the_environment() -> None:
    environ = {"PODLINK_ADDRESS_TEMPLATE": "{pod_name}.games"}
    assert podlink.ClientConfig.from_env(environ).address_template == "{pod_name}.games"


def test_a_route_is_a_frozen_value() -> None:
    route = podlink.Route(0, None, None, "a", {}, False)
    assert route == podlink.Route(0, None, None, "a", {}, False)
    assert not hasattr(route, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        route.pod_index = 1  # type: ignore[misc]


async def test_the_handle_and_submit_route_too(
    store: podlink.Store, client: podlink.ClientDriver
) -> None:
    users = client.service(SERVICE)
    async with running(store, 0, 1) as pods:
        owned = await pods[0].claim(*USER)
        assert (await users.route("u1")).token == owned.token
        for operation in (client.route, "route"):
            submitted = client.submit(cast(Any, operation), *USER, timeout=30)
            route = await asyncio.wrap_future(submitted)
            assert isinstance(route, podlink.Route)
            assert (route.pod_index, route.token) == (0, owned.token)
        assert not inspect.iscoroutinefunction(users.misrouted)
        users.misrouted("u1", 0, owner=1, token=owned.token + 1)
        assert (await users.route("u1")).pod_index == 1


async def test_without_pods_there_is_no_route(client: podlink.ClientDriver) -> None:
    with pytest.raises(podlink.NoRoutablePodError) as caught:
        await client.route(*USER)
    assert caught.value.details["operation"] == "route"


@pytest.mark.parametrize("wrong", [(None, "", SERVICE), (None, "u{", SERVICE), (None, "u", "a:b")])
async def test_wrong_names_are_refused(
    client: podlink.ClientDriver, wrong: tuple[None, str, str]
) -> None:
    with pytest.raises(podlink.InvalidParameterError):
        await client.route(*wrong)
    with pytest.raises(podlink.InvalidParameterError):
        client.misrouted(*wrong, 0)
    with pytest.raises(podlink.InvalidParameterError):
        await client.route(*USER, timeout=-1)


# --- Not mine -------------------------------------------------------------------------------------


async def test_a_refused_hint_is_replaced(
    store: podlink.Store, client: podlink.ClientDriver
) -> None:
    async with running(store, 0, 1):
        assert await client.set_linked_pod_if_absent(*USER, 0) == 0
        assert await client.compute_linked_pod(*USER) == 0
        client.misrouted(*USER, 0)
        assert client.get_linked_in_cache(*USER) is None
        assert await client.compute_linked_pod(*USER) == 1
        assert await client.get_linked_pod_not_cache(*USER) == 1
        stats = client.stats()
        assert (stats["misrouted"], stats["hints_replaced"], stats["refusals"]) == (1, 1, 1)
        page = store.metrics_text()
        assert "podlink_misrouted_reports_total 1" in page
        assert "podlink_hints_replaced_total 1" in page
        assert "podlink_refusals 1" in page


async def test_an_owner_is_believed(store: podlink.Store, client: podlink.ClientDriver) -> None:
    async with running(store, 0, 1) as pods:
        owned = await pods[0].claim(*USER)
        for _ in range(3):
            client.misrouted(*USER, 0)
            assert (await client.route(*USER)).token == owned.token
        assert client.stats()["refusals"] == 0


async def test_the_last_pod_is_better_than_none(
    store: podlink.Store, client: podlink.ClientDriver
) -> None:
    async with running(store, 0):
        client.misrouted(*USER, 0)
        for _ in range(3):
            assert await client.compute_linked_pod(*USER) == 0
            assert client.get_linked_in_cache(*USER) is None


async def test_an_owner_that_is_named_is_learnt(
    store: podlink.Store, client: podlink.ClientDriver
) -> None:
    async with running(store, 0, 1, 2):
        assert await client.set_linked_pod_if_absent(*USER, 0) == 0
        client.misrouted(*USER, 0, owner=2, token=77)
        assert client.get_linked_in_cache(*USER) == 2
        route = await client.route(*USER)
        assert (route.pod_index, route.token, route.from_cache) == (2, 77, True)
        # It is older than what is known.
        client.misrouted(*USER, 2, token=76)
        client.misrouted(*USER, 0, owner=1, token=76)
        assert client.get_linked_in_cache(*USER) == 2
        client.misrouted(*USER, 2, token=77)
        assert client.get_linked_in_cache(*USER) is None


WRONG = [
    ({"pod_index": "0"}, podlink.InvalidParameterTypeError),
    ({"pod_index": True}, podlink.InvalidParameterTypeError),
    ({"pod_index": None}, podlink.InvalidParameterTypeError),
    ({"pod_index": -1}, podlink.InvalidParameterError),
    ({"pod_index": 2**31}, podlink.InvalidParameterError),
    ({"owner": "1"}, podlink.InvalidParameterTypeError),
    ({"owner": True}, podlink.InvalidParameterTypeError),
    ({"owner": -1}, podlink.InvalidParameterError),
    ({"owner": 2**70}, podlink.InvalidParameterError),
    ({"owner": 0}, podlink.InvalidParameterError),  # the pod itself
    ({"token": "1"}, podlink.InvalidParameterTypeError),
    ({"token": False}, podlink.InvalidParameterTypeError),
    ({"token": 1.5}, podlink.InvalidParameterTypeError),
    ({"token": -1}, podlink.InvalidParameterError),
    ({"token": 2**53}, podlink.InvalidParameterError),
    ({"token": 2**64}, podlink.InvalidParameterError),
]


@pytest.mark.parametrize(("wrong", "error"), WRONG, ids=[str(wrong) for wrong, _ in WRONG])
def test_a_wrong_report_is_refused(
    wrong: dict[str, Any], error: type[podlink.InvalidParameterError]
) -> None:
    client = podlink.ClientDriver(podlink.Store())
    given: dict[str, Any] = {"pod_index": 0, **wrong}
    (name,) = wrong
    for report in (client.misrouted, client.service(SERVICE, namespace="").misrouted):
        user = USER if report == client.misrouted else ("u1",)
        with pytest.raises(error) as caught:
            cast(Any, report)(*user, **given)
        assert caught.value.details["parameter"] == name
    assert client.stats()["misrouted"] == 0


async def test_a_closed_client_takes_no_report() -> None:
    client = podlink.ClientDriver(podlink.Store())
    await client.aclose()
    with pytest.raises(podlink.ClosedError):
        client.misrouted(*USER, 0)
    with pytest.raises(podlink.ClosedError):
        await client.route(*USER)


async def test_the_programs_own_strategy_does_not_see_who_refused(store: podlink.Store) -> None:
    seen: list[list[int]] = []

    def choose(_uid: str, pods: Any) -> int:
        seen.append([pod.pod_id for pod in pods])
        return int(pods[0].pod_id)

    client = client_on(store, strategy=choose)
    async with running(store, 0, 1, 2):
        client.misrouted(*USER, 0)
        assert await client.compute_linked_pod(*USER) == 1
        assert seen == [[1, 2]]


async def test_a_thousand_reports_are_one_call(
    store: podlink.Store, client: podlink.ClientDriver
) -> None:
    async with running(store, 0, 1):
        assert await client.set_linked_pod_if_absent(*USER, 0) == 0

        async def again() -> int:
            client.misrouted(*USER, 0)
            return await client.compute_linked_pod(*USER)

        assert await asyncio.gather(*(again() for _ in range(1_000))) == [1] * 1_000
        calls = store.stats()
        assert calls.value("podlink_store_calls", call="relink", outcome="ok") == 1
        assert client.stats()["misrouted"] == 1_000


async def test_the_record_protects_a_link_that_a_program_shortened(store_server: Server) -> None:
    # Another program has made the owner's link temporary: it looks like a hint, and is none.
    async with (
        podlink.Store(store_server.url) as store,
        client_on(store) as client,
        running(store, 0, 1) as pods,
    ):
        owned = await pods[0].claim(*USER)
        link = f"sf:{{{NAMESPACE}:lk:u1}}{SERVICE}"
        store_server.client().pexpire(link, 300_000)
        client.misrouted(*USER, 0)
        assert await client.compute_linked_pod(*USER) == 0
        told = await client.explain(*USER)
        assert told.overwritten
        assert told.refused_by == (0,)
        assert told.owner_record is not None
        record = told.owner_record
        assert (record.pod_id, record.incarnation, record.token) == (
            0,
            owned.incarnation,
            owned.token,
        )
        assert "another program changed the link" in str(told)
        assert 'pod 0 said "not mine"' in str(told)


# --- Drains ---------------------------------------------------------------------------------------


async def test_a_user_released_in_a_drain_is_not_computed_there(
    store: podlink.Store, client: podlink.ClientDriver
) -> None:
    """A pod saved and released its users one by one. Clients remembered where they had been, and
    computed them to the draining pod for as long as it drained.
    """
    async with running(store, 0, 1) as (zero, _):
        users = [f"u{number}" for number in range(20)]
        for user in users:
            await zero.claim(None, user, SERVICE)
            assert await client.compute_linked_pod(None, user, SERVICE) == 0
        released: list[str] = []
        go_on = asyncio.Semaphore(0)

        @zero.on_drain
        async def save(owned: Any) -> None:
            await go_on.acquire()
            released.append(owned.uid)

        stopping = asyncio.create_task(zero.stop(deadline=60))
        drains = client.route_info.alive_pods
        await eventually_async(
            lambda: drains(None, SERVICE)[0].routing_state == podlink.RoutingState.DENY_NEW_CALL
        )
        told = await client.explain(None, users[0], SERVICE)
        assert told.reason is Reason.OWNER_DRAINING
        assert told.cache.why is StaleReason.POD_DRAINING
        # The pod owns them as long as it saves them.
        for user in users:
            assert await client.compute_linked_pod(None, user, SERVICE) == 0
        go_on.release()
        go_on.release()

        async def gone() -> bool:
            stored = await client.batch_get_linked_pod(None, users, SERVICE)
            return len(stored.get(0, [])) <= len(users) - 2

        await eventually_async(gone)
        for user in users:
            answers = {await client.compute_linked_pod(None, user, SERVICE) for _ in range(20)}
            assert answers == ({1} if user in released else {0})
        for _ in users:
            go_on.release()
        report = await stopping
        assert report.failed == report.unfinished == []


# --- Explained ------------------------------------------------------------------------------------


async def test_explain_names_the_owner(store: podlink.Store, client: podlink.ClientDriver) -> None:
    async with running(store, 0, 1) as pods:
        told = await client.explain(*USER)
        assert (told.owner_record, told.overwritten, told.refused_by) == (None, False, ())
        assert "none: no process has claimed the user" in str(told)
        owned = await pods[0].claim(*USER)
        await client.compute_linked_pod(*USER)
        told = await client.explain(*USER)
        assert told.owner_record is not None
        assert told.owner_record.token == told.cache.token == owned.token
        assert f"pod 0, incarnation {owned.incarnation}, token {owned.token}" in str(told)
        assert not told.overwritten


async def test_explain_foresees_a_replacement(
    store: podlink.Store, client: podlink.ClientDriver
) -> None:
    async with running(store, 0, 1):
        assert await client.set_linked_pod_if_absent(*USER, 0) == 0
        client.misrouted(*USER, 0)
        told = await client.explain(*USER)
        assert (told.reason, told.answers) == (Reason.OWNER_REFUSED, (1,))
        assert 'the linked pod said "not mine"' in str(told)
        assert await client.compute_linked_pod(*USER) == 1


async def test_a_link_that_another_program_overwrote(store_server: Server) -> None:
    async with (
        podlink.Store(store_server.url) as store,
        client_on(store) as client,
        running(store, 0, 1) as pods,
    ):
        owned = await pods[0].claim(*USER)
        store_server.client().set(f"sf:{{{NAMESPACE}:lk:u1}}{SERVICE}", 1)
        told = await client.explain(*USER)
        assert told.link is not None
        assert told.owner_record is not None
        assert (told.link.pod_id, told.owner_record.pod_id) == (1, 0)
        assert told.owner_record.token == owned.token
        assert told.overwritten
        # Whom the link names is no owner.
        route = await client.route(*USER)
        assert (route.pod_index, route.token) == (1, None)


# --- Across namespaces ----------------------------------------------------------------------------


async def test_routes_and_refusals_cross_namespaces(store: podlink.Store) -> None:
    infos = [
        podlink.ServerInfo("prod", SERVICE, index, metadata={"version": str(index)})
        for index in (0, 1)
    ]
    address = podlink.ClientConfig(address_template="{pod_name}.prod.example")
    user = ("prod", "u1", SERVICE)
    async with (
        podlink.ServerDriver(store, infos[0], STEADY),
        podlink.ServerDriver(store, infos[1], STEADY) as one,
        podlink.ClientDriver(store, "prod", address, route_info=FRESH) as serving,
        podlink.RouteGrpcServer(store, "prod", authorize=RULES, client=serving) as server,
        client_of(f"grpc://{server.address}", timeout=60) as peer,
        podlink.ClientDriver(
            podlink.Store(), "test", PATIENT, peers={"prod": peer}, route_info=FRESH
        ) as client,
    ):
        assert await serving.set_linked_pod_if_absent(*user, 0) == 0
        direct = await peer.route(*user)
        assert direct == podlink.Route(
            0, None, None, f"{SERVICE}-0.prod.example", {"version": "0"}, False
        )
        far = await client.route(*user)
        assert (far.pod_index, far.token, far.from_cache) == (0, None, False)
        assert far.metadata == {"version": "0"}
        assert far.address == f"{SERVICE}-0.{SERVICE}.prod.svc"
        assert (await client.route(*user)).from_cache
        # The peer is told with the next compute, and replaces the hint.
        client.misrouted(*user, 0)
        assert await client.compute_linked_pod(*user) == 1
        assert await serving.get_linked_pod_not_cache(*user) == 1
        assert serving.stats()["hints_replaced"] == 1
        owned = await one.claim(*user)
        client.misrouted(*user, 1)
        for route in (await client.route(*user), await peer.route(*user)):
            assert (route.pod_index, route.incarnation, route.token) == (
                1,
                owned.incarnation,
                owned.token,
            )
        assert client.stats()["refusals"] == 0
        submitted = peer.submit("route", *user, timeout=30)
        assert (await asyncio.wrap_future(submitted)).token == owned.token
        told = await client.explain(*user)
        assert told.owner_record is not None
        assert told.owner_record.token == owned.token
        with pytest.raises(podlink.NamespaceUnreachableError):
            client.misrouted("staging", "u1", SERVICE, 0)
