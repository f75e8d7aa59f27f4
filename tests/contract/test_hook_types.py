"""What a type checker sees of hooks and callbacks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

PROGRAM = """
from typing import assert_type

import podlink

store = podlink.Store()
client = podlink.ClientDriver(store)
info = podlink.RouteInfoDriver(store)
grpc = podlink.RouteGrpcClient("grpc://localhost:1")


def load() -> int:
    return 1


server = podlink.ServerDriver(store, podlink.ServerInfo("default", "svc", 0), load=load)


@server.on_drain
def save(user: podlink.Ownership) -> int:
    return user.token


@server.on_lease_lost
def lease_lost(reason: str) -> str:
    return reason


@server.on_ownership_lost
def lost(user: podlink.Ownership, reason: str) -> bytes:
    return reason.encode()


@server.on_ownership_renewed
def renewed(new: podlink.Ownership, old: podlink.Ownership) -> bool:
    return new == old


@grpc.on_status_changed
def changed(endpoint: str, status: str) -> float:
    return 1.0


@info.on_routing_state_changed()
def pods(
    namespace: str,
    service: str,
    pod: int,
    previous: podlink.StatefulServiceState | None,
    now: podlink.StatefulServiceState | None,
) -> complex:
    return 1j


# A decorator keeps the type of the function: its own result, not just "object".
def kept(user: podlink.Ownership) -> None:
    assert_type(save(user), int)
    assert_type(lease_lost("x"), str)
    assert_type(lost(user, "x"), bytes)
    assert_type(renewed(user, user), bool)
    assert_type(changed("x", "y"), float)
    assert_type(pods("", "", 0, None, None), complex)
    assert_type(client.on_pod_lost(lambda pod, users: pod + users), podlink.Registration)


def text(given: str) -> str:
    return given


def number(given: int) -> int:
    return given


def texts(one: str, two: str) -> str:
    return one + two
"""

# A type checker refuses each of these lines.
WRONG = """
server.on_drain(text)
server.on_lease_lost(number)
server.on_ownership_lost(texts)
server.on_ownership_renewed(text)
info.register_routing_state_changed_event(None, number)
info.on_routing_state_changed()(number)
podlink.ServerDriver(store, server.server_info, load=lambda: "")
grpc.on_status_changed(text)
client.on_pod_lost(texts)
"""


def checked(checker: str, file: Path) -> tuple[int, str]:
    """The exit code and the output of a type checker."""
    tools = Path(sys.executable).parent
    command = {
        "mypy": [sys.executable, "-m", "mypy", "--strict", "--config-file=", str(file)],
        "pyright": [str(tools / "pyright"), str(file)],
    }[checker]
    ended = subprocess.run(
        command,
        cwd=file.parent,
        env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "MYPY_CACHE_DIR": ".mypy_cache"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


CHECKERS = pytest.mark.parametrize("checker", ["mypy", "pyright"])


@CHECKERS
def test_the_types_of_hooks(checker: str, tmp_path: Path) -> None:
    right = tmp_path / "right.py"
    right.write_text(PROGRAM)
    code, printed = checked(checker, right)
    assert code == 0, printed
    wrong = tmp_path / "wrong.py"
    wrong.write_text(PROGRAM + WRONG)
    code, printed = checked(checker, wrong)
    first = (PROGRAM + "\n").count("\n") + 1
    lines = {int(line) for line in re.findall(r"wrong\.py:(\d+):.* error: ", printed)}
    assert (code, lines) == (1, set(range(first, first + 9))), printed


@CHECKERS
def test_the_callback_of_the_page(checker: str, tmp_path: Path) -> None:
    # README's own class was refused where mypy or pyright are strict: it has `on_error` with the
    # error that podlink raises, and the protocol wanted it to take every exception.
    page = (PROJECT / "README.md").read_text("utf-8")
    block = next(each for each in page.split("```python\n") if "class Answer" in each)
    program = tmp_path / "program.py"
    program.write_text("# pyright: strict\n" + block.split("```")[0])
    code, printed = checked(checker, program)
    assert code == 0, printed
