"""Batches of many users: handed to the core in pieces, and their answer taken in pieces, so that no
event loop waits for a million users.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Sized
from itertools import islice
from typing import Any, Final

from . import _operations as ops, _podlink
from ._bridge import call
from .config import Duration, seconds
from .errors import InvalidParameterTypeError, PodlinkError

__all__ = ["all_uids", "joined", "linked_pods"]

PIECE: Final = 2_048
"""The most users that cross at once: a few milliseconds."""

UsersOfPods = dict[int, list[str]]


async def linked_pods(
    core: Any,
    namespace: str | None,
    uids: Iterable[str],
    service_name: str,
    timeout: Duration | None,
    default_timeout: Duration,
) -> UsersOfPods:
    """The pods of many users, by the core of a driver. The time counts from here."""
    if isinstance(uids, list | tuple) and len(uids) <= PIECE:
        given: list[str] | _podlink.UidBatch = list(uids)
    else:
        try:
            given = await _handed_over(uids, default_timeout if timeout is None else timeout)
        except PodlinkError as error:  # an argument is wrong
            error.details.setdefault("operation", ops.batch_get_linked_pod.name)
            raise
    answer = await call(
        core, ops.batch_get_linked_pod, namespace, given, service_name, timeout=timeout
    )
    if isinstance(answer, dict):
        return answer
    users: UsersOfPods = {}
    while _add_piece(users, answer):  # noqa: ASYNC110 - it waits for nothing: other tasks run
        await asyncio.sleep(0)
    return dict(sorted(users.items()))


async def _handed_over(uids: Iterable[str], timeout: Duration) -> _podlink.UidBatch:
    """All users. Once the time is over, those that were read: the core refuses the call then."""
    batch = _podlink.UidBatch(len(uids) if isinstance(uids, Sized) else 0)
    limit = seconds(timeout)
    _podlink.check_timeout(limit)
    for piece in _pieces(uids):
        batch.add(piece)
        if batch.age() >= limit:
            break
        await asyncio.sleep(0)
    return batch


def all_uids(uids: Iterable[str], timeout: Duration) -> list[str] | _podlink.UidBatch:
    """The users for a call without a loop. Between the pieces, other threads run. Once the time is
    over, those that were read: the core refuses the call then.
    """
    if isinstance(uids, list | tuple) and len(uids) <= PIECE:
        return list(uids)
    batch = _podlink.UidBatch(len(uids) if isinstance(uids, Sized) else 0)
    limit = seconds(timeout)
    _podlink.check_timeout(limit)
    for piece in _pieces(uids):
        batch.add(piece)
        if batch.age() >= limit:
            break
    return batch


def joined(answer: UsersOfPods | _podlink.UsersByPod) -> UsersOfPods:
    """The answer of a call without a loop."""
    if isinstance(answer, dict):
        return answer
    users: UsersOfPods = {}
    while _add_piece(users, answer):
        pass
    return dict(sorted(users.items()))


def _add_piece(users: UsersOfPods, answer: _podlink.UsersByPod) -> bool:
    piece = answer.take()
    for pod, uids in (piece or {}).items():
        users.setdefault(pod, []).extend(uids)
    return piece is not None


def _pieces(uids: Iterable[str]) -> Iterator[list[str]]:
    # A str is an iterable of one-letter users, which is never what the caller means.
    given = "a str" if isinstance(uids, str) else type(uids).__name__
    if isinstance(uids, str) or not hasattr(uids, "__iter__"):
        raise InvalidParameterTypeError(
            f"uids must be an iterable of str, got {given}",
            details={"parameter": "uids", "given": given, "allowed": "an iterable of str"},
        )
    # What has a length is copied at once, which is quick, so that it may change meanwhile.
    users = iter(list(uids) if isinstance(uids, Collection) else uids)
    while piece := list(islice(users, PIECE)):
        yield piece
