"""Every operation that needs the store, and what a call may cost when the store fails it."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import podlink
from helpers.pods import SERVICE
from helpers.wait import LATE

USER = (None, "u1", SERVICE)

Call = Callable[[podlink.ClientDriver, float], Awaitable[Any]]

# Name → how to call it with a deadline. `compute` needs a pod, the others need nothing.
READS: dict[str, Call] = {
    "get_linked_pod": lambda d, limit: d.get_linked_pod(*USER, timeout=limit),
    "get_linked_pod_in_cache_or_if_persist": lambda d, limit: (
        d.get_linked_pod_in_cache_or_if_persist(*USER, timeout=limit)
    ),
    "get_linked_pod_not_cache": lambda d, limit: d.get_linked_pod_not_cache(*USER, timeout=limit),
    "get_link_service": lambda d, limit: d.get_link_service(None, "u1", timeout=limit),
    "batch_get_linked_pod": lambda d, limit: d.batch_get_linked_pod(
        None, ["u1", "u2"], SERVICE, timeout=limit
    ),
}
WRITES: dict[str, Call] = {
    "set_linked_pod_if_absent": lambda d, limit: d.set_linked_pod_if_absent(
        *USER, 0, timeout=limit
    ),
    "compute_linked_pod": lambda d, limit: d.compute_linked_pod(*USER, timeout=limit),
}
CALLS = READS | WRITES


async def failure(
    call: Call, client: podlink.ClientDriver, *, timeout: float
) -> podlink.PodlinkError:
    """The error of a call that has to fail by its deadline."""
    began = time.monotonic()
    with pytest.raises(podlink.PodlinkError) as caught:
        await call(client, timeout)
    took = time.monotonic() - began
    assert took < timeout + LATE, f"{caught.value!r} came after {took:.1f} s of {timeout} s"
    return caught.value
