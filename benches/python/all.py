"""Runs every benchmark, one after the other, and prints the table: this is `make bench`.

    python benches/python/all.py
    QUICK=1 python benches/python/all.py      a few minutes; proves nothing, is not published

Results go to benches/results, pictures beside them and the table into benches/README.md; those of a
quick run to target/bench-quick. A script that fails does not stop the others; it is named at the
end, and the command fails.
"""

import subprocess
import sys
import time
from pathlib import Path

from _results import QUICK, folder

HERE = Path(__file__).parent
SCRIPTS = (
    *("startup", "cached", "threads", "misses", "latency", "batch"),
    *("memory", "pods", "drivers", "grpc_calls"),
)


def run(name: str, *arguments: str) -> bool:
    """Runs one script; says whether it ended well."""
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
    return subprocess.run(command, check=False).returncode == 0


def main() -> None:
    began = time.monotonic()
    failed = []
    for number, name in enumerate(SCRIPTS, start=1):
        minutes = (time.monotonic() - began) / 60
        print(f"[{number}/{len(SCRIPTS)}, {minutes:.1f} min] {name}", file=sys.stderr, flush=True)
        if not run(name):
            failed.append(name)
    drawn = ["plots"] if QUICK else ["plots", "report"]
    failed += [name for name in drawn if not run(name)]
    print()
    run("report", "--print")
    minutes = (time.monotonic() - began) / 60
    print(f"\n{minutes:.1f} minutes. Every round: {folder()}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
