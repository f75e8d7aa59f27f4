"""The `podlink` command as people start it: as a program, with or without a terminal.

ended = command("get", "user1", "svc", "--store", url)
with Terminal("demo") as terminal:
    terminal.read_until("users come")
    terminal.type("\x03")             # Ctrl-C
"""

import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

PODLINK = Path(sys.executable).with_name("podlink")

# A deadline that only a command that hangs reaches.
_ENDS_WITHIN = 180.0

# Makes the terminal at stdin the one whose Ctrl-C the command gets, then becomes the command.
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def command(
    *arguments: str, env: Mapping[str, str] | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; its stdout and stderr are no terminals."""
    ended = subprocess.run(
        [PODLINK, *arguments],
        env=environment(env),
        input=stdin,
        capture_output=True,
        timeout=_ENDS_WITHIN,
        check=False,
    )
    return subprocess.CompletedProcess(
        ended.args, ended.returncode, ended.stdout.decode(), ended.stderr.decode()
    )


def start(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start the command and return at once; its stdout and stderr are pipes."""
    return subprocess.Popen(
        [PODLINK, *arguments],
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment without variables that the command reads, and with `more`."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("PODLINK_")}
    # Warnings are errors here, too; a command that warns its users is not ready.
    return kept | {"PYTHONWARNINGS": "error"} | dict(more or {})


def descendants(pid: int) -> list[psutil.Process]:
    """The processes that a process has started, and those that they have."""
    found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    return found


class Terminal:
    """The command on a terminal of its own, which it gets Ctrl-C from. Use it in a `with`."""

    def __init__(
        self, *arguments: str, env: Mapping[str, str] | None = None, columns: int = 100
    ) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, columns))
        self.text = ""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, PODLINK, *arguments],
            env=environment({"TERM": "xterm"} | dict(env or {})),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    @property
    def pid(self) -> int:
        """The process id of the command."""
        return self._process.pid

    def fileno(self) -> int:
        """The terminal, to look at its modes or to change its size."""
        return self._master

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def read_until(self, text: str) -> None:
        """Read until this text was written."""
        deadline = time.monotonic() + _ENDS_WITHIN
        while text not in self.text:
            assert self._read(deadline), f"it ended without {text!r}:\n{self.text}"

    def wait(self) -> int:
        """Read to the end; returns the exit status."""
        deadline = time.monotonic() + _ENDS_WITHIN
        while self._read(deadline):
            pass
        return self._process.wait(_ENDS_WITHIN)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing more within {_ENDS_WITHIN:g} s:\n{self.text}"
        try:
            read = os.read(self._master, 65536)
        except OSError:  # Linux says so when the last user of a terminal has closed it
            return False
        self.text += read.decode(errors="replace")
        return bool(read)
