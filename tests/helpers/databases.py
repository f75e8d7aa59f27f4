"""Databases for the recipes of docs/fencing.md: on a unix socket, in a folder of their own.

    with postgres_server() as settings:
        psycopg.connect(**settings)

Both forget everything when they stop, so neither waits for a disk.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pymysql

from helpers import server_paths
from helpers.servers import spawn
from helpers.wait import eventually

Settings = dict[str, Any]

# PostgreSQL and MariaDB refuse to run as root. Every Unix has this user, and it owns nothing.
_UNPRIVILEGED = "nobody"

# Deadlines that only a broken machine reaches.
_READY_WITHIN = 240.0
_GONE_WITHIN = 60.0


@contextmanager
def postgres_server() -> Iterator[Settings]:
    """An empty PostgreSQL; yields what `psycopg.connect` needs."""
    programs = server_paths.postgres_programs()
    with _folder() as folder:
        options = ["--auth=trust", "--username=podlink", "--encoding=UTF8", "--locale=C"]
        _finish([str(programs / "initdb"), "--pgdata=data", "--no-sync", *options], folder)
        # /dev/shm is small in many containers, and a killed server would leave its part there.
        lines = [
            "listen_addresses=",
            f"unix_socket_directories={folder}",
            "fsync=off",
            "dynamic_shared_memory_type=mmap",
        ]
        settings: Settings = {"host": str(folder), "user": "podlink", "dbname": "postgres"}
        command = [str(programs / "postgres"), "-D", "data", *(f"--{line}" for line in lines)]
        # SIGKILL would leave a segment of shared memory behind, which only a reboot removes.
        with _running(command, folder, signal.SIGQUIT, lambda: _postgres_answers(settings)):
            yield settings


@contextmanager
def mariadb_server() -> Iterator[Settings]:
    """A MariaDB with the empty database `game`; yields what `pymysql.connect` needs."""
    install = str(server_paths.mariadb_program("mariadb-install-db"))
    server = str(server_paths.mariadb_program("mariadbd"))
    with _folder() as folder:
        data = f"--datadir={folder / 'data'}"
        accounts = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        _finish([install, "--no-defaults", data, *accounts], folder)
        socket_path = folder / "socket"
        options = [
            f"--socket={socket_path}",
            f"--pid-file={folder / 'pid'}",
            "--skip-networking",
            "--innodb-flush-log-at-trx-commit=0",
        ]
        command = [server, "--no-defaults", data, *options]
        with _running(command, folder, signal.SIGKILL, lambda: _listens(socket_path)):
            settings: Settings = {"unix_socket": str(socket_path), "user": "root"}
            with pymysql.connect(**settings) as connection, connection.cursor() as cursor:
                cursor.execute("CREATE DATABASE game")
            yield settings | {"database": "game"}


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder of the user that the database runs as; short, as a socket's path must be."""
    folder = Path(tempfile.mkdtemp(prefix="podlink-"))
    try:
        if user := _user():
            shutil.chown(folder, user)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _user() -> str | None:
    return _UNPRIVILEGED if os.geteuid() == 0 else None


def _finish(command: Sequence[str], folder: Path) -> None:
    """Run a program that prepares the database, to its end."""
    log = folder / "prepare.log"
    process = spawn(command, log, user=_user())
    try:
        status = process.wait(_READY_WITHIN)
    finally:
        process.kill()
        process.wait(_GONE_WITHIN)
    assert status == 0, f"{command[0]} ended with {status}:\n{log.read_text(errors='replace')}"


@contextmanager
def _running(
    command: Sequence[str], folder: Path, end: signal.Signals, answers: Callable[[], bool]
) -> Iterator[None]:
    """The server while it answers; `end` is the signal that ends it at once."""
    log = folder / "server.log"
    process = spawn(command, log, user=_user(), death=end)
    try:
        eventually(lambda: process.poll() is not None or answers(), within=_READY_WITHIN)
        assert process.poll() is None, f"it ended:\n{log.read_text(errors='replace')}"
        yield
    finally:
        process.send_signal(end)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GONE_WITHIN)
        process.kill()
        process.wait(_GONE_WITHIN)


def _postgres_answers(settings: Settings) -> bool:
    try:
        psycopg.connect(**settings).close()
    except psycopg.OperationalError:
        return False
    return True


def _listens(path: Path) -> bool:
    # Not with PyMySQL, which leaves its socket open when the server does not listen yet.
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
