"""What a program pays before its first call: the import, and the size of the wheel.

    python benches/python/startup.py

Each import happens in an interpreter of its own; the threads are counted when it is done. Most of
what podlink imports is the standard library's: a program that has imported asyncio already pays
what the second line says.
"""

import subprocess
import sys
import zipfile

from _harness import Contender, interleave
from _results import PROJECT, Results, rounds

ROUNDS = 15
WHEELS = PROJECT / "target" / "bench-wheel"
MILLISECONDS, THREADS, MEGABYTES = "ms", "threads", "MB"
PODLINK, AFTER_ASYNCIO = "podlink", "podlink, asyncio being there"
IMPORTS = {
    PODLINK: "import podlink",
    AFTER_ASYNCIO: "import podlink",
    "asyncio": "import asyncio",
    "redis-py": "import redis.asyncio",
    "valkey-glide": "import glide",
    "coredis": "import coredis",
    "grpc.aio": "import grpc.aio",
}
BEFORE = {AFTER_ASYNCIO: "import asyncio"}

_PROGRAM = """
import os, time
{before}
began = time.perf_counter()
{imports}
took = time.perf_counter() - began
print(took * 1e3, len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 0)
"""


class Import:
    """The import of one package, again and again."""

    def __init__(self, who: str) -> None:
        self._program = _PROGRAM.format(before=BEFORE.get(who, ""), imports=IMPORTS[who])
        self.threads: list[float] = []

    def works(self) -> bool:
        """Whether the package is here."""
        return (
            subprocess.run([sys.executable, "-c", self._program], capture_output=True).returncode
            == 0
        )

    def measure(self) -> float:
        done = subprocess.run(
            [sys.executable, "-c", self._program], capture_output=True, text=True, check=True
        )
        milliseconds, threads = done.stdout.split()
        self.threads.append(float(threads))
        return float(milliseconds)


def wheel_sizes(results: Results) -> None:
    """The size of the wheel that `make bench` has built, packed and unpacked."""
    wheels = sorted(WHEELS.glob("podlink-*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        results.note("there is no wheel to weigh: `make bench` builds it")
        return
    with zipfile.ZipFile(wheels[-1]) as wheel:
        unpacked = sum(entry.file_size for entry in wheel.infolist())
    results.add("wheel", MEGABYTES, [wheels[-1].stat().st_size / 1e6])
    results.add("wheel, unpacked", MEGABYTES, [unpacked / 1e6])


def main() -> None:
    packages = ("podlink", "redis", "valkey-glide", "coredis", "grpcio")
    results = Results("startup", *packages)
    imports = {}
    for who in IMPORTS:
        if (each := Import(who)).works():
            imports[who] = each
        else:
            results.note(f"the import of {who} was not measured: it is not installed")
    contenders = [Contender(who, each.measure, unit=MILLISECONDS) for who, each in imports.items()]
    interleave("imports", contenders, rounds(ROUNDS))
    results.add_all(contenders)
    for who, each in imports.items():
        results.add(who, THREADS, each.threads[1:])
    wheel_sizes(results)
    results.write()


if __name__ == "__main__":
    main()
