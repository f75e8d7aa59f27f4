"""A pod as a program that ends as one does in Kubernetes: SIGTERM, drain, gone.

with SigtermPod(server.url, 0, users=["user1"]) as pod:
    pod.terminate()
    report = pod.end()

The program: `python -m helpers.sigterm_pod URL SERVICE INDEX CONFIG SAVING USER...`. It makes the
users its own and prints its incarnation. SIGTERM, wired as the documentation of ServerDriver says,
ends it: saving a user takes SAVING seconds, then it prints its drain report.
"""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import podlink
from helpers.pods import NAMESPACE, QUICK, SERVICE
from helpers.programs import environment

_ENDS_WITHIN = 180.0


class SigtermPod:
    """A pod in another process, alive when the constructor returns."""

    def __init__(
        self,
        url: str,
        index: int,
        *,
        users: Sequence[str] = (),
        saving: float = 0.0,
        config: podlink.ServerConfig = QUICK,
    ) -> None:
        self.index = index
        figures = json.dumps(asdict(config))
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "helpers.sigterm_pod"),
                *(url, SERVICE, str(index), figures, str(saving), *users),
            ],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.incarnation = int(self._read())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait(_ENDS_WITHIN)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def terminate(self) -> None:
        """SIGTERM. Returns at once."""
        self._process.terminate()

    def end(self) -> dict[str, Any]:
        """Waits until the process has ended by itself; returns the drain report."""
        report: dict[str, Any] = self._read()
        code = self._process.wait(_ENDS_WITHIN)
        assert code == 0, f"pod {self.index} ended with {code}"
        return report

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"pod {self.index} says nothing"
        return json.loads(line)


async def _main(url: str, service: str, index: str, config: str, saving: str, *users: str) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    store = podlink.Store(url)
    info = podlink.ServerInfo(NAMESPACE, service, int(index))
    server = podlink.ServerDriver(store, info, podlink.ServerConfig(**json.loads(config)))

    @server.on_drain
    async def save(user: podlink.Ownership) -> None:
        await asyncio.sleep(float(saving))
        await user.release()

    await server.start()
    for uid in users:
        await server.claim(None, uid)
    print(server.incarnation, flush=True)
    await stopping.wait()
    report = await server.stop()
    print(json.dumps(asdict(report)), flush=True)
    await store.aclose()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
