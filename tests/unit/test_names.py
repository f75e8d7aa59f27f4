"""What is not a name, a uid or a pod index is refused, and the refusal says what was wrong."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import podlink

LONG_NAME, LONG_UID = "n" * 64, "u" * 129

WRONG_NAMES = ["a:b", "a b", "{ns}", "ü", "a/b", "line\nbreak", "nul\0", "*", LONG_NAME]
WRONG_UIDS = ["", "a{b", "a}b", "tab\t", "nul\0", "del\x7f", "nel\x85", LONG_UID, "é" * 65]
WRONG_PODS = [-1, -100, 2**31, 2**63, -(2**63), 10**400]

RIGHT_NAMES = ["a", "default", "A-b_c.9", "n" * 63]
RIGHT_UIDS = ["0", "user123", "a:b", "a b", "日本", "u" * 128, "#own", "😀" * 32, "a-b", "\u00a0"]
RIGHT_PODS = [0, 1, 2**31 - 1]

Call = Callable[[podlink.ClientDriver, Any, Any, Any], Awaitable[object] | object]

CALLS: dict[str, Call] = {
    "compute_linked_pod": lambda d, ns, uid, svc: d.compute_linked_pod(ns, uid, svc),
    "get_linked_pod": lambda d, ns, uid, svc: d.get_linked_pod(ns, uid, svc),
    "get_linked_pod_in_cache_or_if_persist": lambda d, ns, uid, svc: (
        d.get_linked_pod_in_cache_or_if_persist(ns, uid, svc)
    ),
    "get_linked_pod_not_cache": lambda d, ns, uid, svc: d.get_linked_pod_not_cache(ns, uid, svc),
    "get_linked_in_cache": lambda d, ns, uid, svc: d.get_linked_in_cache(ns, uid, svc),
    "cache_expired": lambda d, ns, uid, svc: d.cache_expired(ns, uid, svc),
    "set_cache": lambda d, ns, uid, svc: d.set_cache(ns, uid, svc, 0),
    "batch_get_linked_pod": lambda d, ns, uid, svc: d.batch_get_linked_pod(ns, [uid], svc),
    "set_linked_pod_if_absent": lambda d, ns, uid, svc: d.set_linked_pod_if_absent(ns, uid, svc, 0),
}


@pytest.fixture
def client() -> podlink.ClientDriver:
    return podlink.ClientDriver(podlink.Store("memory://"), "ns")


async def made(answer: Awaitable[object] | object) -> None:
    """Awaits what has to be awaited."""
    if isinstance(answer, Awaitable):
        await answer


async def refusal(
    call: Call, client: podlink.ClientDriver, namespace: Any, uid: Any, service: Any
) -> podlink.InvalidParameterError:
    """The error with which the call is refused."""
    with pytest.raises(podlink.InvalidParameterError) as caught:
        await made(call(client, namespace, uid, service))
    assert not caught.value.retryable
    assert caught.value.code == "INVALID_PARAMETER"
    return caught.value


def tells(error: podlink.PodlinkError, parameter: str, given: str) -> None:
    """The error names the parameter and shows what was given, but never a novel of it."""
    assert error.details["parameter"] == parameter
    assert parameter in str(error)
    plain = re.match(r"[\w-]{0,40}", given, re.ASCII)
    assert plain is not None
    assert error.details["given"].startswith(f'"{plain[0]}')
    assert len(str(error)) < 300
    assert str(error).isprintable()


@pytest.mark.parametrize("operation", CALLS)
async def test_every_operation_refuses_a_wrong_uid(
    client: podlink.ClientDriver, operation: str
) -> None:
    for uid in WRONG_UIDS:
        tells(await refusal(CALLS[operation], client, "ns", uid, "svc"), "uid", uid)


@pytest.mark.parametrize("operation", CALLS)
async def test_every_operation_refuses_a_wrong_namespace(
    client: podlink.ClientDriver, operation: str
) -> None:
    for name in WRONG_NAMES:
        tells(await refusal(CALLS[operation], client, name, "u", "svc"), "namespace", name)


@pytest.mark.parametrize("operation", CALLS)
async def test_every_operation_refuses_a_wrong_service(
    client: podlink.ClientDriver, operation: str
) -> None:
    for name in ["", *WRONG_NAMES]:
        tells(await refusal(CALLS[operation], client, "ns", "u", name), "service_name", name)


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize("given", [5, 1.5, b"bytes", True, ["u"], {"u": 1}, object()])
async def test_every_operation_refuses_what_is_no_text(
    client: podlink.ClientDriver, operation: str, given: Any
) -> None:
    name = type(given).__name__
    for at, parameter in enumerate(["namespace", "uid", "service_name"]):
        arguments = ["ns", "u", "svc"]
        arguments[at] = given
        error = await refusal(CALLS[operation], client, *arguments)
        assert isinstance(error, podlink.InvalidParameterTypeError)
        assert isinstance(error, TypeError)
        assert (error.details["parameter"], error.details["given"]) == (parameter, name)


@pytest.mark.parametrize("operation", CALLS)
async def test_none_is_a_namespace_and_nothing_else(
    client: podlink.ClientDriver, operation: str
) -> None:
    for arguments in [("ns", None, "svc"), ("ns", "u", None)]:
        error = await refusal(CALLS[operation], client, *arguments)
        assert error.details["given"] == "NoneType"


@pytest.mark.parametrize("operation", CALLS)
async def test_text_that_is_no_unicode_is_refused(
    client: podlink.ClientDriver, operation: str
) -> None:
    error = await refusal(CALLS[operation], client, "ns", "u\ud800", "svc")
    assert "surrogate" in str(error)


@pytest.mark.parametrize("pod", WRONG_PODS)
async def test_a_wrong_pod_index_is_refused(client: podlink.ClientDriver, pod: int) -> None:
    with pytest.raises(podlink.InvalidParameterError, match="pod_index") as caught:
        await client.set_linked_pod_if_absent("ns", "u", "svc", pod)
    assert caught.value.details["parameter"] == "pod_index"
    assert len(str(caught.value)) < 300
    with pytest.raises(podlink.InvalidParameterError, match="pod_index"):
        client.set_cache("ns", "u", "svc", pod)
    assert await client.get_linked_pod("ns", "u", "svc") is None


@pytest.mark.parametrize("pod", [True, 1.0, "1", None, [1]])
async def test_a_pod_index_is_an_int(client: podlink.ClientDriver, pod: Any) -> None:
    with pytest.raises(podlink.InvalidParameterTypeError, match="pod_index must be an int"):
        await client.set_linked_pod_if_absent("ns", "u", "svc", pod)
    with pytest.raises(podlink.InvalidParameterTypeError, match="pod_index must be an int"):
        client.set_cache("ns", "u", "svc", pod)


@pytest.mark.parametrize("timeout", [0, -1, 0.0001, 3601, float("nan"), float("inf"), 10**400])
async def test_a_wrong_timeout_is_refused(client: podlink.ClientDriver, timeout: float) -> None:
    with pytest.raises(podlink.InvalidParameterError, match="timeout") as caught:
        await client.get_linked_pod("ns", "u", "svc", timeout=timeout)
    assert caught.value.details["parameter"] == "timeout"


@pytest.mark.parametrize("timeout", ["1", [], True])
async def test_a_timeout_is_a_number(client: podlink.ClientDriver, timeout: Any) -> None:
    with pytest.raises(podlink.InvalidParameterTypeError, match="timeout must be a number"):
        await client.get_linked_pod("ns", "u", "svc", timeout=timeout)


@pytest.mark.parametrize("uids", ["abc", 5, None, object()])
async def test_a_batch_wants_many_users(client: podlink.ClientDriver, uids: Any) -> None:
    with pytest.raises(podlink.InvalidParameterTypeError, match="uids must be an iterable of str"):
        await client.batch_get_linked_pod("ns", uids, "svc")


async def test_one_wrong_user_refuses_the_whole_batch(client: podlink.ClientDriver) -> None:
    with pytest.raises(podlink.InvalidParameterError, match="uid"):
        await client.batch_get_linked_pod("ns", ["right", "wr{ng"], "svc")


async def test_everything_else_is_taken_as_it_is(client: podlink.ClientDriver) -> None:
    for service in RIGHT_NAMES:
        for uid in RIGHT_UIDS:
            for pod in RIGHT_PODS:
                other = f"{service}-{pod}"[-63:]
                assert await client.set_linked_pod_if_absent("ns", uid, other, pod) == pod
                assert await client.get_linked_pod_not_cache("ns", uid, other) == pod
    for namespace in RIGHT_NAMES:
        assert repr(podlink.ClientDriver(podlink.Store(), namespace))


async def test_triples_that_look_alike_are_three_users(client: podlink.ClientDriver) -> None:
    triples = [("a", "b-c"), ("a-b", "c"), ("a-b-c", "c"), ("a:svc", "svc"), ("a", "svc")]
    for pod, (uid, service) in enumerate(triples):
        assert await client.set_linked_pod_if_absent("ns", uid, service, pod) == pod
    for pod, (uid, service) in enumerate(triples):
        assert client.get_linked_in_cache("ns", uid, service) == pod
        assert await client.get_linked_pod_not_cache("ns", uid, service) == pod


@pytest.mark.parametrize("operation", CALLS)
async def test_a_foreign_namespace_leads_nowhere(
    client: podlink.ClientDriver, operation: str
) -> None:
    with pytest.raises(podlink.NamespaceUnreachableError, match="other") as caught:
        await made(CALLS[operation](client, "other", "u", "svc"))
    assert caught.value.details["namespace"] == "other"
    assert "ns" in str(caught.value)


@pytest.mark.parametrize("own", [None, "", "ns"])
async def test_the_own_namespace_has_three_names(
    client: podlink.ClientDriver, own: str | None
) -> None:
    await client.set_linked_pod_if_absent("ns", "u", "svc", 4)
    assert await client.get_linked_pod(own, "u", "svc") == 4
    assert await client.get_linked_pod_not_cache(own, "u", "svc") == 4
    assert client.get_linked_in_cache(own, "u", "svc") == 4
    assert await client.batch_get_linked_pod(own, ["u"], "svc") == {4: ["u"]}
    assert await client.set_linked_pod_if_absent(own, "u", "svc", 5) == 4
    assert client.cache_expired(own, "u", "svc") == 4
    assert await client.get_link_service(own, "u") == {}


@pytest.mark.parametrize("namespace", ["", None, *WRONG_NAMES])
def test_a_driver_needs_a_namespace_of_its_own(namespace: Any) -> None:
    with pytest.raises(podlink.InvalidParameterError, match="namespace"):
        podlink.ClientDriver(podlink.Store(), namespace)
