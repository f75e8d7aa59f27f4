"""docs/cross-namespace.md does what it says: its blocks are run, one after the other."""

import re
import subprocess
from pathlib import Path
from typing import Any

from helpers.commands import PODLINK, environment
from helpers.grpc_servers import free_address

PAGE = Path(__file__).parents[2] / "docs" / "cross-namespace.md"
_BLOCK = re.compile(
    r"^<!-- (?P<what>run|prints|file: (?P<name>\S+)) -->\n```\w+\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def test_the_page_runs_as_it_stands(tmp_path: Path, valkey_server: Any) -> None:
    valkey_server.flush()
    page = PAGE.read_text("utf-8").replace("redis://localhost:6379", valkey_server.url)
    page = page.replace("50051", free_address().rpartition(":")[2])
    script, printed = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null' EXIT"], ""
    for block in _BLOCK.finditer(page):
        if block["name"]:
            (tmp_path / block["name"]).write_text(block["text"])
        elif block["what"] == "run":
            script.append(block["text"])
        else:
            printed = block["text"]
    environ = environment()
    environ["PATH"] = f"{PODLINK.parent}:{environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines(keepends=True)
    assert "".join(line for line in lines if not line.startswith("serving")) == printed
