"""Pods for tests: in this process, and in processes of their own that can be killed.

async with running(store, 0, 1, 2):          # three pods of "svc", until the block ends
    ...
async with running(store, 0, config=QUICK):  # a pod whose lease is soon over if it is not renewed
    ...
with PodProcess(server.url, 0) as pod:       # another process
    pod.kill()                               # kill -9
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import podlink
from helpers.programs import environment

NAMESPACE = "default"
SERVICE = "svc"

# Short enough to see a pod die within a test, long enough for a busy machine to renew in time.
LEASE, GRACE = 2.0, 0.8
QUICK = podlink.ServerConfig(
    lease=LEASE, renew=0.3, guard=0.2, gap=0.8, grace=GRACE, cpu_factor=0.0
)

# For tests in which no pod dies silently: no pause of a busy machine is as long as this lease.
STEADY = podlink.ServerConfig(
    lease=60, renew=1, guard=1, gap=20, grace=20, cpu_factor=0.0, timeout=30
)

# For calls that have to succeed: a deadline that only a client that hangs reaches.
PATIENT = podlink.ClientConfig(timeout=60)

# What a client knows of the pods is at most this old.
FRESH = podlink.RouteInfoConfig(refresh=0.05)

_GONE_WITHIN = 120.0


@asynccontextmanager
async def running(
    store: podlink.Store,
    *indexes: int,
    service: str = SERVICE,
    config: podlink.ServerConfig = STEADY,
    loads: Mapping[int, int] | None = None,
    metadata: Mapping[int, Mapping[str, str]] | None = None,
) -> AsyncIterator[list[podlink.ServerDriver]]:
    """Pods of `service` with these indexes, started one after the other and stopped at the end."""
    async with AsyncExitStack() as stack:
        pods = []
        for index in indexes:
            info = podlink.ServerInfo(
                NAMESPACE, service, index, metadata=(metadata or {}).get(index, {})
            )
            server = podlink.ServerDriver(store, info, config)
            await server.set_load_state((loads or {}).get(index, 0))
            pods.append(await stack.enter_async_context(server))
        yield pods


def pod_info(index: int, service: str = SERVICE) -> podlink.ServerInfo:
    """Who a pod of the tests' service is."""
    return podlink.ServerInfo(NAMESPACE, service, index)


class PodProcess:
    """A pod in another process, alive when the constructor returns."""

    def __init__(
        self,
        url: str,
        index: int,
        *,
        service: str = SERVICE,
        config: podlink.ServerConfig = QUICK,
    ) -> None:
        self.index = index
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "helpers.pod_program"),
                *(url, service, str(index), json.dumps(asdict(config))),
            ],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"pod {index} did not start"
        self.incarnation = int(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def ask(self, call: str, *arguments: object) -> Any:
        """Call a method of `pod_program.PodCalls`; what it returned."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([call, *arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"pod {self.index} ended in {call}"
        return json.loads(line)

    def kill(self) -> None:
        """Kill -9. Returns when the process is gone."""
        self._process.kill()
        self._end()

    def stop(self) -> None:
        """Ask it to stop in the regular way. Returns when the process is gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        code = self._process.wait(_GONE_WITHIN)
        self._end()
        assert code == 0, f"pod {self.index} ended with {code}"

    def pause(self) -> None:
        """Stop the process where it stands: its lease runs out and it does not know."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused pod go on."""
        os.kill(self._process.pid, signal.SIGCONT)

    def _end(self) -> None:
        self._process.wait(_GONE_WITHIN)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
