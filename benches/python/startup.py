"""What a program pays before its first call: the import, and the size of the wheel.

    python benches/python/startup.py

Each import happens in an interpreter of its own; the threads are counted when it is done. All
packages are compiled to bytecode beforehand, as pip leaves them.

`import podlink` alone is not what a service pays: names are loaded when they are first used. A
service that uses the client and server drivers pays what "podlink, with the drivers' names" says,
at its import or later. Most of that is asyncio, which such a program has anyway: the lines with
"asyncio being there" leave it out.
"""

import os
import subprocess
import sys
import zipfile

from _harness import Contender, interleave
from _results import PROJECT, Results, rounds

ROUNDS = 15
WHEELS = PROJECT / "target" / "bench-wheel"
MILLISECONDS, THREADS, MEGABYTES = "ms", "threads", "MB"
PODLINK, AFTER_ASYNCIO = "podlink", "podlink, asyncio being there"
NAMES, NAMES_AFTER_ASYNCIO = (
    "podlink, with the drivers' names",
    "podlink, with the drivers' names, asyncio being there",
)
_WITH_NAMES = "from podlink import ClientDriver, ServerDriver, ServerInfo, connect"
IMPORTS = {
    PODLINK: "import podlink",
    AFTER_ASYNCIO: "import podlink",
    NAMES: _WITH_NAMES,
    NAMES_AFTER_ASYNCIO: _WITH_NAMES,
    "asyncio": "import asyncio",
    "redis-py": "import redis.asyncio",
    "valkey-glide": "import glide",
    "coredis": "import coredis",
    "grpc.aio": "import grpc.aio",
}
BEFORE = dict.fromkeys((AFTER_ASYNCIO, NAMES_AFTER_ASYNCIO), "import asyncio")

# podlink is measured where it was built; the round that warms up leaves bytecode there, too.
_ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}

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
            subprocess.run(
                [sys.executable, "-c", self._program], capture_output=True, env=_ENVIRONMENT
            ).returncode
            == 0
        )

    def measure(self) -> float:
        done = subprocess.run(
            [sys.executable, "-c", self._program],
            capture_output=True,
            text=True,
            check=True,
            env=_ENVIRONMENT,
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
