"""What becomes of a pod that sleeps, of two with one index, and of all when the store is away.

Real processes on a real server; SIGSTOP is how a process sleeps without knowing it.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import podlink
from conftest import ServerFactory
from helpers.pods import FRESH, GRACE, LEASE, NAMESPACE, QUICK, SERVICE, running
from helpers.programs import environment
from helpers.servers import Server
from helpers.wait import eventually_async

PROGRAM = ("-m", "helpers.talking_pod")

# The same for a process that believes that it is the year 2001.
_PROGRAM_IN_2001 = """
import runpy, time
time.time = lambda: 1e9
time.time_ns = lambda: 10**18
runpy.run_module("helpers.talking_pod", run_name="__main__")
"""
IN_2001 = ("-c", _PROGRAM_IN_2001)


class TalkingPod:
    """A pod in another process that can be asked how it is."""

    def __init__(
        self, url: str, index: int, pod_uid: str = "", run: tuple[str, str] = PROGRAM
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *run, url, str(index), pod_uid],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *question: str) -> Any:
        """The answer to a question."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> Any:
        """The next line that it prints: its incarnation first."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def sleep(self) -> None:
        """Stops it in the middle of whatever it does."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def wake(self) -> None:
        """Lets it go on as if nothing had happened."""
        os.kill(self.process.pid, signal.SIGCONT)


@contextmanager
def talking_pod(
    url: str, index: int, pod_uid: str = "", run: tuple[str, str] = PROGRAM
) -> Iterator[TalkingPod]:
    pod = TalkingPod(url, index, pod_uid, run)
    try:
        yield pod
    finally:
        pod.process.kill()
        pod.process.communicate()


def client_of(store: podlink.Store) -> podlink.ClientDriver:
    return podlink.ClientDriver(store, NAMESPACE, route_info=FRESH)


async def test_a_short_sleep_moves_nobody(store_server: Server) -> None:
    with talking_pod(store_server.url, 0) as pod:
        incarnation = await asyncio.to_thread(pod.read)
        token = pod.ask("own", "u")
        async with podlink.Store(store_server.url) as store, client_of(store) as client:
            info = client.route_info
            assert await client.compute_linked_pod(None, "u", SERVICE) == 0
            published = store_server.client()
            pod.sleep()
            before = published.hget("sf:{default:state:svc}", "0")
            # Longer than two renewals, shorter than the lease: nothing may have come of it.
            with pytest.raises(AssertionError):
                await eventually_async(
                    lambda: published.hget("sf:{default:state:svc}", "0") != before,
                    within=LEASE / 2,
                )
            assert info.is_pod_available(None, SERVICE, 0)
            assert await client.compute_linked_pod(None, "u", SERVICE) == 0
            pod.wake()
            await eventually_async(lambda: published.hget("sf:{default:state:svc}", "0") != before)
            status = pod.ask("status")
            assert status == {
                "holds_lease": True,
                "incarnation": incarnation,
                "owned": ["u"],
                "told": [],
            }
            assert pod.ask("token", "u") == token


async def test_a_pod_that_slept_too_long_comes_back_as_another(store_server: Server) -> None:
    async with podlink.Store(store_server.url) as store, client_of(store) as client:
        with talking_pod(store_server.url, 1) as pod:
            incarnation = await asyncio.to_thread(pod.read)
            token = pod.ask("own", "u")
            assert await client.compute_linked_pod(None, "u", SERVICE) == 1
            async with running(store, 0, config=QUICK) as [successor]:
                pod.sleep()
                # Nobody sees an error while the user moves.
                answers: list[int] = []

                async def moved() -> bool:
                    answers.append(await client.compute_linked_pod(None, "u", SERVICE))
                    return answers[-1] == 0

                await eventually_async(moved, within=LEASE + GRACE + 10)
                claimed = await successor.claim(None, "u")
                assert claimed.token > token
                assert claimed.previous_token == token
                pod.wake()
                # The first thing that it says: by its own clock the lease is over, or it has
                # begun anew and owns nobody. It never believes that the user is still its own.
                assert pod.ask("token", "u") is None
                status = pod.ask("status")
                assert not status["holds_lease"] or status["incarnation"] > incarnation
                await eventually_async(lambda: pod.ask("status")["incarnation"] > incarnation)
                await eventually_async(lambda: pod.ask("status")["holds_lease"])
                status = pod.ask("status")
                assert status["owned"] == []
                # It may have been woken by its first renewal, which says at once that it is dead.
                told = [each for each in status["told"] if each != "suspended"]
                assert told == ["declared_dead", "u lease_lost"]
                # What it asks for as the process that it is now harms nobody.
                assert pod.ask("own", "u") == {"error": "NOT_OWNER"}
                assert pod.ask("release", "u") is False
                assert await claimed.verify()
                # What moved stays where it is.
                assert await client.compute_linked_pod(None, "u", SERVICE) == 0


async def test_two_processes_with_one_index(store_server: Server) -> None:
    async with podlink.Store(store_server.url) as store:
        with talking_pod(store_server.url, 0) as pod:
            first = await asyncio.to_thread(pod.read)
            info = podlink.ServerInfo(NAMESPACE, SERVICE, 0)
            second = podlink.ServerDriver(store, info)
            with pytest.raises(podlink.PodIndexBusyError):
                await second.start(timeout=LEASE)
            status = pod.ask("status")
            assert status["holds_lease"]
            assert status["incarnation"] == first


async def test_a_container_restarted_in_its_pod_ends_its_predecessor(store_server: Server) -> None:
    with talking_pod(store_server.url, 0, "uid-1") as earlier:
        first = await asyncio.to_thread(earlier.read)
        with talking_pod(store_server.url, 0, "uid-1") as later:
            second = await asyncio.to_thread(later.read)
            assert second > first
            await eventually_async(lambda: not earlier.ask("status")["holds_lease"])
            assert earlier.ask("own", "u") == {"error": "LEASE_LOST"}
            # For good: it does not take the index back.
            token = later.ask("own", "u")
            assert earlier.ask("release", "u") == {"error": "LEASE_LOST"}
            assert later.ask("token", "u") == token
            assert later.ask("status")["holds_lease"]
            assert not earlier.ask("status")["holds_lease"]


@pytest.mark.parametrize("away", [1.0, LEASE + GRACE + 1.0])
async def test_an_outage_of_the_store_moves_nobody(
    server_factory: ServerFactory, away: float
) -> None:
    server = server_factory("valkey", durable=True)
    users = [f"u{number}" for number in range(200)]
    with talking_pod(server.url, 0) as zero, talking_pod(server.url, 1) as one:
        before = [await asyncio.to_thread(pod.read) for pod in (zero, one)]
        token = zero.ask("own", "owned")
        async with podlink.Store(server.url) as store, client_of(store) as client:
            compute = client.compute_linked_pod
            placed = [await compute(None, uid, SERVICE, timeout=10) for uid in users]
            assert set(placed) == {0, 1}
            server.pause()
            clock = asyncio.get_running_loop().time
            until = clock() + away
            await eventually_async(lambda: clock() >= until, within=away + 10)
            server.resume()

            async def answered() -> bool:
                try:
                    await compute(None, users[0], SERVICE, timeout=1)
                except podlink.PodlinkError:
                    return False
                return True

            await eventually_async(answered, within=20)
            again = [await compute(None, uid, SERVICE, timeout=10) for uid in users]
            assert again == placed
            await eventually_async(
                lambda: all(pod.ask("status")["holds_lease"] for pod in (zero, one))
            )
            # No pod was declared dead: both are the processes they were, and what they own is
            # theirs by the same token.
            assert [pod.ask("status")["incarnation"] for pod in (zero, one)] == before
            assert zero.ask("token", "owned") == token
            told = zero.ask("status")["told"]
            assert told == ["suspended", "resumed"] or (told == [] and away < LEASE)


async def test_the_pods_calendar_means_nothing(store_server: Server) -> None:
    # A lease is measured by the machine's boot-time clock and by the store's own, and the store
    # stamps the state. (clippy.toml sees to it that the core reads no clock but these.)
    with talking_pod(store_server.url, 0, run=IN_2001) as pod:
        await asyncio.to_thread(pod.read)
        async with podlink.Store(store_server.url) as store, client_of(store) as client:
            assert await client.compute_linked_pod(None, "u", SERVICE) == 0
            (state,) = (await client.route_info.get_all_service_state(None, SERVICE)).values()
            seconds, _ = store_server.client().time()
            assert abs(state.update_time / 1000 - seconds) < LEASE + 5
        assert pod.ask("status")["holds_lease"]
