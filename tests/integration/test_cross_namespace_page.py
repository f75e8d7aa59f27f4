"""docs/cross-namespace.md does what it says: its blocks are run, one after the other."""

import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from helpers.commands import PODLINK, environment
from helpers.grpc_servers import free_address

PAGE = Path(__file__).parents[2] / "docs" / "cross-namespace.md"
_BLOCK = re.compile(
    r"^<!-- (?P<what>run|prints|file: (?P<name>\S+)) -->\n```\w+\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

# Blocks run without the pause that a reader makes between them, so the server may not listen yet.
_LISTENS = "until (exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null; do sleep 0.05; done"

# The client of the page has the default deadlines, which a busy machine does not always keep.
_PATIENT = {
    'key_file="lobby.key"': (
        'key_file="lobby.key", config=podlink.GrpcClientConfig(timeout=60, connect_timeout=60)'
    ),
    'ClientDriver(store, "test",': 'ClientDriver(store, "test", podlink.ClientConfig(timeout=60),',
}

# A deadline that only a page that hangs reaches.
_ENDS_WITHIN = 300.0


def run(script: str, folder: Path) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a script of bash; nothing that it started outlives it."""
    environ = environment()
    environ["PATH"] = f"{PODLINK.parent}:{environ['PATH']}"
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=_ENDS_WITHIN)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode, out, err


def test_the_page_runs_as_it_stands(tmp_path: Path, valkey_server: Any) -> None:
    valkey_server.flush()
    page = PAGE.read_text("utf-8").replace("redis://localhost:6379", valkey_server.url)
    port = free_address().rpartition(":")[2]
    page = page.replace("50051", port)
    for brief, patient in _PATIENT.items():
        page = page.replace(brief, patient)
    script, printed = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null' EXIT"], ""
    for block in _BLOCK.finditer(page):
        if block["name"]:
            (tmp_path / block["name"]).write_text(block["text"])
        elif block["what"] == "run":
            script.append(block["text"])
            if "podlink serve" in block["text"]:
                script.append(_LISTENS.format(port=port))
        else:
            printed = block["text"]
    status, out, err = run("\n".join(script), tmp_path)
    assert status == 0, out + err
    lines = out.splitlines(keepends=True)
    assert "".join(line for line in lines if not line.startswith("serving")) == printed
