"""examples/game_pod.py, the program of docs/kubernetes.md, as Kubernetes would run it."""

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.servers import Server
from helpers.wait import eventually

PROGRAM = Path(__file__).parents[2] / "examples" / "game_pod.py"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def status(port: int, path: str) -> int | None:
    """What a probe sees; None while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


class Pod:
    """The program, started with what the downward API would give it."""

    def __init__(self, store_url: str) -> None:
        self.port = free_port()
        environment = {
            **os.environ,
            "POD_NAME": "game-7",
            "POD_NAMESPACE": "prod",
            "PODLINK_STORE": store_url,
            "PROBE_PORT": str(self.port),
        }
        self.process = subprocess.Popen(
            [sys.executable, PROGRAM], env=environment, stderr=subprocess.PIPE, text=True
        )


@pytest.fixture
def pod(store_server: Server) -> Iterator[Pod]:
    pod = Pod(store_server.url)
    yield pod
    pod.process.kill()
    pod.process.communicate()


def test_a_pod_starts_serves_its_probes_and_stops_on_sigterm(
    pod: Pod, store_server: Server
) -> None:
    eventually(lambda: status(pod.port, "/readyz") == 200)
    assert status(pod.port, "/livez") == 200
    store = store_server.client()
    assert store.hexists("sf:{prod:state:game}", "7")
    pod.process.send_signal(signal.SIGTERM)
    _, log = pod.process.communicate(timeout=30)
    assert pod.process.returncode == 0, log
    assert "drained: DrainReport(" in log
    assert not store.hexists("sf:{prod:state:game}", "7")


def test_an_outage_of_the_store_fails_no_liveness_probe(pod: Pod, store_server: Server) -> None:
    eventually(lambda: status(pod.port, "/readyz") == 200)
    # The server accepts calls and says nothing for a second.
    store_server.client().client_pause(1000)
    assert status(pod.port, "/livez") == 200
    assert status(pod.port, "/readyz") == 200
