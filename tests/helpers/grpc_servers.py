"""gRPC servers for tests: ours in a process that can be killed, and others that misbehave."""

import asyncio
import os
import signal
import socket
import subprocess
import threading
from types import TracebackType
from typing import Any, Self

from helpers.commands import PODLINK, environment

_GONE_WITHIN = 120.0


def free_address() -> str:
    """An address where nobody listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


class Serve:
    """`podlink serve` as a process; listening when the constructor returns."""

    def __init__(self, store: str, *options: str, listen: str = "127.0.0.1:0") -> None:
        self._process = subprocess.Popen(
            [
                *(PODLINK, "serve", "--store", store, "--listen", listen),
                *("--allow", "*:*:*", "--namespace", "prod", *options),
            ],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("serving prod on "), line
        self.address = line.split()[-1]

    @property
    def url(self) -> str:
        """The endpoint, for clients."""
        return f"grpc://{self.address}"

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def kill(self) -> None:
        """Kill -9."""
        self._process.kill()
        self._end()

    def pause(self) -> None:
        """Stop the process where it stands."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self._process.pid, signal.SIGCONT)

    def stop(self) -> int:
        """Ask it to stop; its exit code."""
        self._process.terminate()
        self._process.wait(_GONE_WITHIN)
        return self._end()

    def _end(self) -> int:
        code = self._process.wait(_GONE_WITHIN)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._end()


class BlackHole:
    """Accepts connections and says nothing."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"grpc://127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepted: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def _accept(self) -> None:
        while True:
            try:
                self._accepted.append(self._listener.accept()[0])
            except OSError:
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for each in self._accepted:
            each.close()


class Peer:
    """A server of grpcio's that answers set-if-absent, counts the calls, and can hold them."""

    def __init__(self, wire: Any) -> None:
        self._wire = wire
        self._free = asyncio.Event()
        self._free.set()
        self.calls = 0
        self.calls_held = 0
        self.deadlines: list[float] = []
        self.url = ""

    def hold(self) -> None:
        """Answer nothing until `let_go`."""
        self._free.clear()

    def let_go(self) -> None:
        """Answer what is held, and all that comes."""
        self._free.set()

    async def __aenter__(self) -> Self:
        import grpc

        messages = self._wire.messages

        class Servicer(self._wire.services.RouteServiceServicer):  # type: ignore[misc,name-defined]
            async def SetLinkedPodIfAbsent(servicer, request: Any, context: Any) -> Any:  # noqa: N802, N805
                self.calls += 1
                self.deadlines.append(context.time_remaining())
                self.calls_held += 1
                await self._free.wait()
                self.calls_held -= 1
                link = messages.Link(pod_index=request.pod_index)
                return messages.SetLinkedPodIfAbsentResponse(link=link)

        self._server = grpc.aio.server()
        self._wire.services.add_RouteServiceServicer_to_server(Servicer(), self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.url = f"grpc://127.0.0.1:{port}"
        await self._server.start()
        return self

    async def __aexit__(self, *_ended: object) -> None:
        self.let_go()
        await self._server.stop(0)
