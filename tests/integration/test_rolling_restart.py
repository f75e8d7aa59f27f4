"""A rolling restart under load: nobody is refused, nobody is sent to a pod that leaves."""

import asyncio
import itertools
import json
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self

import podlink
from helpers.pods import NAMESPACE, SERVICE
from helpers.raw_pods import state_key
from helpers.servers import Server
from helpers.sigterm_pod import SigtermPod
from helpers.wait import eventually_async

PODS = 3
# As a StatefulSet does it, from the last to the first; twice.
ORDER = [2, 1, 0, 2, 1, 0]
# How old what a client knows may be, if no event comes; "one propagation interval".
INTERVAL = 0.25
# How long a pod drains: long enough to see whether anybody still comes.
SAVING = 0.6
RATE = 2_000
TICK = 0.01
# Of the computes, so many are of users who are new.
NEWCOMERS_A_TICK = 4
REGULARS = 500


@dataclass
class Calls:
    """What the clients have asked and were told."""

    count: int = 0
    failures: list[str] = field(default_factory=list)
    # Of new users: when the call was made, and where the user went.
    placed: list[tuple[float, int]] = field(default_factory=list)
    moved: int = 0
    longest: float = 0.0


class Publications:
    """When each pod said what, heard on the store's own channel."""

    def __init__(self, server: Server) -> None:
        self.said: list[tuple[float, int, str]] = []
        self._server = server
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _listen(self) -> None:
        with self._server.client() as client, client.pubsub() as subscription:
            subscription.subscribe(state_key())
            while not self._ended.is_set():
                message = subscription.get_message(timeout=0.1)
                if message and message["type"] == "message":
                    event = json.loads(message["data"])
                    self.said.append((time.monotonic(), event["podId"], event["event"]))

    def closures(self) -> list[tuple[int, float]]:
        """(pod, when): a pod said that it takes nobody new."""
        return [(pod, at) for at, pod, event in self.said if event == "DENY_NEW_CALL"]


async def compute(client: podlink.ClientDriver, uid: str, new: bool, calls: Calls) -> None:
    asked = time.monotonic()
    try:
        pod = await client.compute_linked_pod(None, uid, SERVICE)
    except podlink.PodlinkError as error:
        calls.failures.append(str(error))
        return
    finally:
        calls.count += 1
        calls.longest = max(calls.longest, time.monotonic() - asked)
    if new:
        calls.placed.append((asked, pod))


async def load(clients: list[podlink.ClientDriver], calls: Calls, done: asyncio.Event) -> float:
    """Computes at a steady rate until it is done; returns how long that was."""
    began = time.monotonic()
    regulars = itertools.cycle(range(REGULARS))
    client = itertools.cycle(clients)
    for tick in itertools.count():
        batch = [
            compute(next(client), f"new{tick}-{n}", True, calls) for n in range(NEWCOMERS_A_TICK)
        ]
        batch += [
            compute(next(client), f"u{next(regulars)}", False, calls)
            for _ in range(int(RATE * TICK) - NEWCOMERS_A_TICK)
        ]
        await asyncio.gather(*batch)
        if done.is_set():
            return time.monotonic() - began
        await asyncio.sleep(max(0.0, began + (tick + 1) * TICK - time.monotonic()))
    raise AssertionError("unreachable")


def held(index: int) -> list[str]:
    """The users that a pod has made its own."""
    return [f"held{index}-{number}" for number in range(20)]


def a_pod(url: str, index: int) -> SigtermPod:
    return SigtermPod(url, index, users=held(index), saving=SAVING)


async def test_three_pods_are_restarted_one_after_the_other(valkey_server: Server) -> None:
    valkey_server.flush()
    url = valkey_server.url
    calls, done = Calls(), asyncio.Event()
    config = podlink.RouteInfoConfig(refresh=INTERVAL)
    stores = [podlink.Store(url), podlink.Store(url)]
    clients = [podlink.ClientDriver(store, NAMESPACE, route_info=config) for store in stores]
    with ExitStack() as stack:
        publications = stack.enter_context(Publications(valkey_server))
        pods = [stack.enter_context(a_pod(url, index)) for index in range(PODS)]
        first = Calls()
        await asyncio.gather(*(compute(clients[0], f"u{n}", False, first) for n in range(REGULARS)))
        ends: list[float] = []
        loading = asyncio.create_task(load(clients, calls, done))
        for index in ORDER:
            began = time.monotonic()
            pods[index].terminate()
            report = await asyncio.to_thread(pods[index].end)
            gone = time.monotonic()
            ends.append(gone)
            assert report["released"] == len(held(index))
            assert (report["kept"], report["failed"], report["unfinished"]) == (0, [], [])
            pods[index] = await asyncio.to_thread(a_pod, url, index)
            stack.enter_context(pods[index])
            back = time.monotonic()
            print(
                f"pod {index}: drained in {report['seconds']:.3f} s,"
                f" gone after {gone - began:.2f} s, back after {back - began:.2f} s"
            )

            def is_back(index: int = index, back: float = back) -> bool:
                return any(at > back and pod == index for at, pod in calls.placed[-200:])

            # The next one goes when new users come to this one again.
            await eventually_async(is_back)
        done.set()
        seconds = await loading
        info = podlink.RouteInfoDriver(stores[0], NAMESPACE)
        alive = set(await info.get_all_service_state(None, SERVICE))
        # Everybody, through a client that has no cache and has seen nothing.
        fresh = podlink.ClientDriver(stores[0], NAMESPACE)
        uids = [f"u{n}" for n in range(REGULARS)]
        uids += [uid for index in range(PODS) for uid in held(index)]
        where = await fresh.batch_get_linked_pod(None, uids, SERVICE)
        for client in (fresh, *clients):
            await client.aclose()
        await info.aclose()
    for store in stores:
        await store.aclose()
    stats = [client.stats() for client in clients]
    healed = sum(each["links_healed"] for each in stats)
    closures = publications.closures()
    late = [
        asked - closed
        for (pod, closed), gone in zip(closures, ends, strict=True)
        for asked, placed in calls.placed
        if placed == pod and closed < asked < gone
    ]
    print(
        f"{calls.count} computes in {seconds:.1f} s, {calls.count / seconds:.0f}/s,"
        f" {len(calls.failures)} failed, the longest took {calls.longest * 1000:.0f} ms;"
        f" {healed} users moved"
    )
    placed = Counter(pod for _, pod in calls.placed)
    print(f"new users {dict(sorted(placed.items()))}; where all are {_counts(where)}")
    print(
        f"new links on a draining pod: {len(late)}, the last one"
        f" {max(late, default=0) * 1000:.0f} ms after the publication"
    )
    assert calls.failures == []
    assert [pod for pod, _ in closures] == ORDER
    assert all(end - closed > 2 * INTERVAL for (_, closed), end in zip(closures, ends, strict=True))
    assert max(late, default=0) < INTERVAL
    assert alive == {0, 1, 2}
    assert set(where) <= alive
    assert sum(len(users) for users in where.values()) == len(uids)
    assert healed > 0
    # A tenth of what was asked for, on a machine that does something else as well.
    assert calls.count / seconds > RATE / 10


def _counts(users: dict[int, list[str]]) -> dict[int, int]:
    return {pod: len(uids) for pod, uids in sorted(users.items())}
