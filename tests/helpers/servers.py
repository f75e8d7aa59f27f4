"""Real servers for tests: on a free port, with data of their own, gone when the test is.

    with Server(valkey_server(), password="secret") as server:
        server.client().set("a", "1")
        server.kill()        # kill -9: no farewell to anybody
        server.restart()     # on the same port

Tests get them from the fixtures in conftest.py.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import psutil
import redis
import trustme
from redis.backoff import NoBackoff
from redis.retry import Retry

from helpers.wait import eventually

_HOST = "127.0.0.1"

# Below the range from which the kernel numbers outgoing connections (32768 and up on Linux). A
# client that keeps dialling a dead server on a port of that range can connect to itself, and then
# the server cannot come back. A cluster bus listens at port + 10000, which stays below as well.
_PORTS = range(10_000, 22_000)
_PORT_ATTEMPTS = 20

# Deadlines that only a broken machine reaches.
_READY_WITHIN = 120.0
_GONE_WITHIN = 60.0
_PING_TIMEOUT = 5.0

_LAUNCHER = Path(__file__).with_name("die_with_parent.py")

# "Dies with its parent" means, to the kernel, with the *thread* that started it. Servers are
# therefore started from a thread that lives as long as the test run, whichever thread asks.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-spawner")


@dataclass(frozen=True)
class TlsFiles:
    """A certificate authority, and what it issued to the server and to its clients."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path

    @classmethod
    def create(cls, folder: Path) -> Self:
        """Make a fresh authority, valid for `localhost` and 127.0.0.1, and write it to `folder`."""
        files = cls(
            ca=folder / "ca.pem",
            server_cert=folder / "server.pem",
            server_key=folder / "server.key",
            client_cert=folder / "client.pem",
            client_key=folder / "client.key",
        )
        authority = trustme.CA()
        authority.cert_pem.write_to_path(files.ca)
        server = authority.issue_cert("localhost", _HOST)
        server.cert_chain_pems[0].write_to_path(files.server_cert)
        server.private_key_pem.write_to_path(files.server_key)
        client = authority.issue_cert("podlink@example.org")
        client.cert_chain_pems[0].write_to_path(files.client_cert)
        client.private_key_pem.write_to_path(files.client_key)
        return files


class Server:
    """One server process, ready to answer when `start` returns. Use it in a `with`."""

    def __init__(
        self,
        binary: Path,
        *,
        password: str | None = None,
        users: Mapping[str, str] | None = None,
        unix_socket: bool = False,
        tls: bool = False,
        client_certificate: bool = False,
        maxmemory: str | None = None,
        durable: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Say what the server is to be.

        password: of the default user.
        users: ACL users, name to password; each may do everything.
        unix_socket: listen at `unix_path`, too.
        tls: speak nothing but TLS; `client_certificate` also asks the client for one.
        maxmemory: as the server spells it, such as "4mb"; writes beyond it are refused.
        durable: what was acknowledged survives `kill` and `restart`.
        settings: further lines of the configuration file.
        """
        if client_certificate and not tls:
            raise ValueError("client_certificate needs tls")
        # Not pytest's tmp_path: a unix socket's path may have 107 characters and no more.
        self._folder = Path(tempfile.mkdtemp(prefix="podlink-"))
        self._binary = binary
        self._password = password
        self._users = dict(users or {})
        self._client_certificate = client_certificate
        self._maxmemory = maxmemory
        self._durable = durable
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []
        self.port = 0
        self.unix_path = self._folder / "socket" if unix_socket else None
        self.tls = TlsFiles.create(self._folder) if tls else None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The address, with the default user's password if it has one."""
        return self.url_for(None)

    def url_for(self, user: str | None) -> str:
        """The address for `user`; None is the default user."""
        scheme = "rediss" if self.tls else "redis"
        return f"{scheme}://{self._credentials(user)}{_HOST}:{self.port}"

    @property
    def unix_url(self) -> str:
        """The address of the unix socket."""
        if self.unix_path is None:
            raise ValueError("this server was made without unix_socket=True")
        return f"unix://{self._credentials(None)}{self.unix_path}"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self._running().pid

    @property
    def log(self) -> str:
        """What the server has printed so far."""
        path = self._folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def client(self, user: str | None = None, **options: Any) -> redis.Redis:
        """A redis-py client that gives up at once when the server is away; closed by `stop`."""
        client = self._client(user, **options)
        self._clients.append(client)
        return client

    def start(self) -> None:
        """Start on a free port."""
        if self._process is not None:
            raise RuntimeError("the server is running")
        for _ in range(_PORT_ATTEMPTS):
            self.port = _free_port()
            if self._launch():
                return
        raise RuntimeError(f"no free port in {_PORT_ATTEMPTS} attempts; the last log:\n{self.log}")

    def kill(self) -> None:
        """Kill -9. Returns when the process is gone and its port is closed."""
        process = self._running()
        process.kill()
        process.wait(_GONE_WITHIN)
        self._process = None

    def restart(self) -> None:
        """Start again on the same port, after a `kill` if the server still runs."""
        if self._process is not None:
            self.kill()
        if not self._launch():
            raise RuntimeError(f"port {self.port} was taken meanwhile; the log:\n{self.log}")

    def pause(self) -> None:
        """Stop the process where it stands: connections stay open and nobody answers."""
        self._signal_until(signal.SIGSTOP, lambda status: status == psutil.STATUS_STOPPED)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._signal_until(signal.SIGCONT, lambda status: status != psutil.STATUS_STOPPED)

    def flush(self) -> None:
        """Forget all data."""
        with self._client(None) as client:
            client.flushall()

    def stop(self) -> None:
        """Kill the server and remove its data. May be called again."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _launch(self) -> bool:
        """Start the process and wait until it answers; False if somebody else has the port."""
        (self._folder / "server.conf").write_text(self._configuration())
        command = [str(self._binary), str(self._folder / "server.conf")]
        self._process = process = spawn(command, self._folder / "log")
        try:
            eventually(lambda: process.poll() is not None or self._answers(), within=_READY_WITHIN)
        except BaseException:
            self.kill()
            raise
        if process.poll() is None:
            return True
        self._process = None
        if "already in use" in self.log:
            return False
        raise RuntimeError(f"{self._binary} exited with {process.returncode}:\n{self.log}")

    def _answers(self) -> bool:
        try:
            with self._client(None) as client:
                # Another run's server may have won the port while ours is still on its way out.
                return bool(client.info("server")["process_id"] == self.pid)
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def _client(self, user: str | None, **options: Any) -> redis.Redis:
        settings: dict[str, Any] = {
            "host": _HOST,
            "port": self.port,
            "username": user,
            "password": self._password_of(user),
            "decode_responses": True,
            "socket_timeout": _PING_TIMEOUT,
            "socket_connect_timeout": _PING_TIMEOUT,
            "retry": Retry(NoBackoff(), 0),
        }
        if self.tls:
            settings |= {"ssl": True, "ssl_ca_certs": str(self.tls.ca)}
        if self.tls and self._client_certificate:
            settings["ssl_certfile"] = str(self.tls.client_cert)
            settings["ssl_keyfile"] = str(self.tls.client_key)
        return redis.Redis(**(settings | options))

    def _configuration(self) -> str:
        lines = {
            "bind": _HOST,
            "port": "0" if self.tls else str(self.port),
            "dir": str(self._folder),
            "save": '""',
            "appendonly": "yes" if self._durable else "no",
            "appendfsync": "always",
            # A test may ask a server to be slow or to fail.
            "enable-debug-command": "local",
        }
        if self._password is not None:
            lines["requirepass"] = f'"{self._password}"'
        if self.unix_path:
            lines["unixsocket"] = str(self.unix_path)
        if self._maxmemory:
            lines["maxmemory"] = self._maxmemory
            lines["maxmemory-policy"] = "noeviction"
        if self.tls:
            lines["tls-port"] = str(self.port)
            lines["tls-ca-cert-file"] = str(self.tls.ca)
            lines["tls-cert-file"] = str(self.tls.server_cert)
            lines["tls-key-file"] = str(self.tls.server_key)
            lines["tls-auth-clients"] = "yes" if self._client_certificate else "no"
        lines |= self._settings
        users = [f'user {name} on ">{word}" ~* &* +@all' for name, word in self._users.items()]
        return "\n".join([*(f"{key} {value}" for key, value in lines.items()), *users, ""])

    def _password_of(self, user: str | None) -> str | None:
        return self._password if user is None else self._users[user]

    def _credentials(self, user: str | None) -> str:
        password = self._password_of(user)
        return "" if password is None else f"{quote(user or '')}:{quote(password, safe='')}@"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process

    def _signal_until(self, number: signal.Signals, reached: Callable[[str], bool]) -> None:
        process = self._running()
        process.send_signal(number)
        status = psutil.Process(process.pid).status
        eventually(lambda: reached(status()), within=_GONE_WITHIN)


def spawn(
    command: Sequence[str],
    log: Path,
    *,
    user: str | None = None,
    death: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start a program to which the kernel sends `death` when this test run ends.

    user: whom root runs it as.
    log: gets what it prints; the program runs in that folder.
    """
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), "--signal", str(int(death))]
    identity = [] if user is None else ["--as", user]
    with log.open("wb") as out:
        return _SPAWNER.submit(
            subprocess.Popen[bytes],
            [*launcher, *identity, str(os.getpid()), *command],
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        ).result()


def _free_port() -> int:
    """A port that is free now. Whoever binds it must be ready to find it taken after all."""
    for port in random.sample(_PORTS, k=100):
        with socket.socket() as probe:
            # As the servers do; else a port with remains of old connections would look taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"100 ports of {_PORTS} are taken")
