"""A batch of many users blocks no event loop, and its deadline counts from the call."""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import podlink

SERVICE = "svc"
MANY = 300_000
# So many users cross at once, so that between two of these the loop is free.
PIECE = 2_048


@pytest.fixture
def client() -> podlink.ClientDriver:
    return podlink.ClientDriver(podlink.Store(), "default")


class Heartbeat:
    beats = 0


@contextmanager
def heartbeat() -> Iterator[Heartbeat]:
    """Counts how often the loop got to another task."""
    heart = Heartbeat()

    async def beat() -> None:
        while True:
            heart.beats += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(beat())
    yield heart
    task.cancel()


def names(count: int) -> list[str]:
    return [f"user-{number}" for number in range(count)]


@pytest.mark.parametrize("kind", [list, tuple, iter, dict.fromkeys])
async def test_a_good_batch_lets_the_loop_run(client: podlink.ClientDriver, kind: Any) -> None:
    # A million users were read in one go: the loop stood still for half a second.
    users = kind(names(MANY))
    with heartbeat() as heart:
        assert await client.batch_get_linked_pod(None, users, SERVICE, timeout=60) == {}
    assert heart.beats >= MANY // PIECE


async def test_what_a_batch_says_of_its_length_makes_no_room(
    client: podlink.ClientDriver,
) -> None:
    # The core made room for so many users: it ended in a panic.
    class Boastful:
        def __len__(self) -> int:
            return 2**62

        def __iter__(self) -> Iterator[str]:
            return iter(names(3))

    boastful: Any = Boastful()
    assert await client.batch_get_linked_pod(None, boastful, SERVICE, timeout=60) == {}
    assert client.submit("batch_get_linked_pod", None, boastful, SERVICE).result(60) == {}


async def test_a_user_that_is_too_long_is_refused_before_it_is_copied(
    client: podlink.ClientDriver,
) -> None:
    users = ["x" * 1_000_000 for _ in range(PIECE + 1)]
    with pytest.raises(podlink.InvalidParameterError, match="uid"):
        await client.batch_get_linked_pod(None, users, SERVICE, timeout=60)


def test_users_without_an_end_end_with_the_deadline_of_a_submit(
    client: podlink.ClientDriver,
) -> None:
    endless = (f"user-{number}" for number in itertools.count())
    future = client.submit("batch_get_linked_pod", None, endless, SERVICE, timeout=0.2)
    with pytest.raises(podlink.OperationTimeoutError):
        future.result(60)


@pytest.mark.parametrize("wrong", ["wr{ng", 7, "\ud800", ""])
async def test_a_bad_batch_lets_the_loop_run(client: podlink.ClientDriver, wrong: Any) -> None:
    users = [*names(MANY), wrong]
    with heartbeat() as heart, pytest.raises(podlink.InvalidParameterError) as refused:
        await client.batch_get_linked_pod(None, users, SERVICE, timeout=60)
    assert heart.beats >= MANY // PIECE
    details = refused.value.details
    assert (details["operation"], details["parameter"]) == ("batch_get_linked_pod", "uid")


async def linked(client: podlink.ClientDriver) -> dict[int, list[str]]:
    """Three pieces of users on two pods."""
    users = names(2 * PIECE + 5)
    link = client.set_linked_pod_if_absent
    made = [client.submit(link, None, user, SERVICE, at % 2) for at, user in enumerate(users)]
    for future in made:
        future.result(60)
    return {0: users[::2], 1: users[1::2]}


@pytest.mark.parametrize("kind", [list, iter])
async def test_pieces_become_one_answer(client: podlink.ClientDriver, kind: Any) -> None:
    expected = await linked(client)
    users = names(2 * PIECE + 5)
    # Absent users, and each user once, though its second mention is in another piece.
    asked = [*users, "absent", *reversed(users)]
    with heartbeat() as heart:
        found = await client.batch_get_linked_pod(None, kind(asked), SERVICE, timeout=60)
    assert found == expected
    assert list(found) == [0, 1]
    assert heart.beats >= 3 + 3
    batch = client.batch_get_linked_pod
    assert client.submit(batch, None, kind(asked), SERVICE, timeout=60).result(60) == expected


async def test_the_deadline_counts_from_the_call(client: podlink.ClientDriver) -> None:
    # It counted from when all users had been read: of endless ones, never.
    endless = (f"user-{number}" for number in itertools.count())
    with pytest.raises(podlink.OperationTimeoutError) as late:
        await client.batch_get_linked_pod(None, endless, SERVICE, timeout=0.05)
    assert late.value.details["operation"] == "batch_get_linked_pod"
    assert late.value.details["waited_for"] == "the arguments of the call"
    assert next(endless)


async def test_the_deadline_of_submit_counts_from_the_call(client: podlink.ClientDriver) -> None:
    def slow() -> Iterator[str]:
        until = asyncio.get_running_loop().time() + 0.01
        yield from names(PIECE)
        while asyncio.get_running_loop().time() < until:
            pass

    batch = client.batch_get_linked_pod
    future = client.submit(batch, None, slow(), SERVICE, timeout=0.005)
    with pytest.raises(podlink.OperationTimeoutError):
        future.result(60)


@pytest.mark.parametrize("timeout", [0, -1, "1", float("nan")])
async def test_a_wrong_timeout_is_refused(client: podlink.ClientDriver, timeout: Any) -> None:
    with pytest.raises(podlink.InvalidParameterError, match="timeout") as refused:
        await client.batch_get_linked_pod(None, iter(names(5)), SERVICE, timeout=timeout)
    assert refused.value.details["operation"] == "batch_get_linked_pod"


async def test_a_batch_can_be_cancelled_while_it_is_read(client: podlink.ClientDriver) -> None:
    endless = (f"user-{number}" for number in itertools.count())
    batch = client.batch_get_linked_pod(None, endless, SERVICE, timeout=60)
    task = asyncio.create_task(batch)
    for _ in range(10):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
