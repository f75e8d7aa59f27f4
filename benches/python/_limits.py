"""What nobody can beat on this machine: a client without Python, and the server by itself."""

import csv
import json
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psutil
from _results import PROJECT, Results
from _store import KEY_FORMAT, SOURCE, TTL_MS, Server

SERVER_MANY = "redis-benchmark, a connection for each"
SERVER_PIPELINED = "redis-benchmark, one pipelined connection"

_THREADS = (1, 2)
_CRATES = {"redis": "redis-rs", "tokio": "tokio"}
_BUILD = [
    *("cargo", "bench", "--locked", "--no-default-features", "--bench", "core"),
    *("--no-run", "--message-format", "json-render-diagnostics"),
]


class RustLoop:
    """benches/core.rs as processes that wait for rounds: one thread of tokio's each, and two."""

    def __init__(self, program: Path | None, server: Server) -> None:
        self._processes: dict[str, subprocess.Popen[str]] = {}
        if program is None:
            return
        for threads in _THREADS:
            command = [str(program), "127.0.0.1", str(server.port), str(threads), KEY_FORMAT]
            self._processes[rust(threads)] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )

    @classmethod
    @contextmanager
    def build(cls, server: Server, results: Results) -> Iterator[Self]:
        """The loop, built if need be; without processes where it cannot be built."""
        program = _built()
        if program is None:
            results.note("redis-rs alone was not measured: `cargo bench --no-run` failed")
        locked = tomllib.loads((PROJECT / "Cargo.lock").read_text("utf-8"))
        for crate in locked["package"]:
            if crate["name"] in _CRATES:
                results.version(_CRATES[crate["name"]], crate["version"])
        loop = cls(program, server)
        try:
            yield loop
        finally:
            for process in loop._processes.values():
                process.kill()
                process.communicate()

    @property
    def ways(self) -> list[str]:
        return list(self._processes)

    def run(self, way: str, tasks: int, uids: list[str]) -> tuple[float, float]:
        """The seconds, and the seconds of CPU, that it takes to get through all users."""
        process = self._processes[way]
        assert process.stdin is not None
        assert process.stdout is not None
        worked = _cpu_seconds(process.pid)
        process.stdin.write(f"{tasks} {len(uids)} {uids[0].rpartition('-')[0]}\n")
        process.stdin.flush()
        seconds, made = process.stdout.readline().split()
        if int(made) != len(uids):
            raise SystemExit(f"redis-rs made {made} links in {len(uids)} calls")
        return float(seconds), _cpu_seconds(process.pid) - worked


def rust(threads: int) -> str:
    """What the loop with that many threads is called."""
    return f"redis-rs and tokio, {threads} thread{'s' if threads > 1 else ''}"


def _built() -> Path | None:
    """The program, as cargo says where it is."""
    done = subprocess.run(_BUILD, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=False)
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "core":
            return Path(message["executable"])
    return None


def _cpu_seconds(pid: int) -> float:
    """What the threads of a process have computed so far; to the nanosecond where Linux says."""
    tasks = Path(f"/proc/{pid}/task")
    try:
        spent = [int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()]
    except OSError:
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return sum(spent) / 1e9


class ServerLimit:
    """redis-benchmark, which hardly computes anything: what the server carries of this script."""

    _KEYS = 2_000_000_000
    """Out of how many names it draws at random: few are drawn twice."""
    _DATABASE = 1
    """Not the one that the pods are in: it is emptied after each round."""

    def __init__(self, program: str | None, server: Server) -> None:
        self._program = program
        self._server = server
        self._calls: dict[tuple[str, int], int] = {}
        self.ways = [SERVER_MANY, SERVER_PIPELINED] if program else []
        if program:
            with server.client() as client:
                self._hash = str(client.script_load(SOURCE))

    @classmethod
    def find(cls, server: Server, results: Results) -> Self:
        """The program that comes with redis or valkey, if it is on the PATH."""
        found = shutil.which("valkey-benchmark") or shutil.which("redis-benchmark")
        if found is None:
            results.note("the server's limit was not measured: no redis-benchmark on the PATH")
        else:
            said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
            results.version(Path(found).name, said.stdout.split()[1])
        return cls(found, server)

    def measure(self, way: str, tasks: int, seconds: float) -> float:
        """Calls a second, of a round that lasts about so long; the first one finds out how many."""
        calls = self._calls.get((way, tasks), 5_000)
        connections, pipeline = (tasks, 1) if way == SERVER_MANY else (1, tasks)
        command = [
            *(str(self._program), "-h", "127.0.0.1", "-p", str(self._server.port), "--csv"),
            *("-n", str(calls), "-c", str(connections), "-P", str(pipeline)),
            *("-r", str(self._KEYS), "--dbnum", str(self._DATABASE)),
            *("EVALSHA", self._hash, "1", KEY_FORMAT.replace("{uid}", "__rand_int__")),
            *("0", str(TTL_MS)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rate = float(list(csv.reader(done.stdout.splitlines()))[-1][1])
        self._empty(calls)
        self._calls[way, tasks] = max(5_000, round(rate * seconds))
        return rate

    def _empty(self, calls: int) -> None:
        with self._server.client(db=self._DATABASE, socket_timeout=30) as client:
            links = client.dbsize()
            client.flushdb()
        if not calls * 0.99 <= links <= calls * 1.01 + 1_024:
            raise SystemExit(f"redis-benchmark made {links} links in {calls} calls")
