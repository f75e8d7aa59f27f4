"""What counting costs: a cached compute with metrics, and with all counting compiled out.

Builds podlink twice, for release, each into a virtual environment of its own under `--work`, and
measures both in turn in fresh processes. Wheels that were built before are used again; `--wheels
WITH WITHOUT` names others. Prints both medians, their spread, and the difference.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from _harness import Progress
from _results import Results, rounds

PROJECT = Path(__file__).parents[2]

CALLS = 200_000
ROUNDS = 15

PROGRAM = f"""
import asyncio, json, time
import podlink

async def main():
    async with podlink.connect("memory://") as connection:
        async with connection.server(podlink.ServerInfo("default", "user-service", 0)):
            compute = connection.client.compute_linked_pod
            async def turn(calls):
                began = time.perf_counter()
                for _ in range(calls):
                    await compute("default", "user123", "user-service")
                return (time.perf_counter() - began) / calls * 1e9
            await turn({CALLS} // 4)
            figures = [await turn({CALLS}) for _ in range(3)]
            counted = connection.store.stats().value("podlink_cache_hits_total")
            print(json.dumps({{"ns": min(figures), "counted": counted}}))

asyncio.run(main())
"""


def main() -> None:
    """Builds what is missing, then measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=PROJECT / "target" / "metrics_cost")
    parser.add_argument("--wheels", type=Path, nargs=2, metavar=("WITH", "WITHOUT"))
    parser.add_argument("--rounds", type=int, default=rounds(ROUNDS))
    options = parser.parse_args()
    wheels = options.wheels or [
        build(options.work / "with", []),
        build(options.work / "without", ["--features", "unmetered"]),
    ]
    pythons = [
        environment(options.work / name, wheel)
        for name, wheel in zip(("with-venv", "without-venv"), wheels, strict=True)
    ]
    figures: list[list[float]] = [[], []]
    progress = Progress("cost of metrics", options.rounds * 2)
    for number in range(options.rounds):
        # In turn, in another order each round: what happens to the machine happens to both.
        for which in (0, 1) if number % 2 else (1, 0):
            took, counted = measure(pythons[which])
            if (counted > 0) is (which == 1):
                sys.exit(f"wheel {which + 1} counted {counted:g}: it is not what it should be")
            figures[which].append(took)
            progress.step(("with", "without")[which])
    results = Results("metrics", "podlink")
    for name, each in zip(("metrics on", "metrics compiled out"), figures, strict=True):
        results.add(name, "ns", each)
    results.write()
    report(*figures)


def build(folder: Path, features: list[str]) -> Path:
    """A wheel for release."""
    if not (found := list(folder.glob("podlink-*.whl"))):
        maturin = Path(sys.executable).with_name("maturin")
        command = [str(maturin), "build", "--release", "--locked", "--out", str(folder), *features]
        subprocess.run(command, check=True, cwd=PROJECT)
        found = list(folder.glob("podlink-*.whl"))
    return found[0]


def environment(folder: Path, wheel: Path) -> Path:
    """The Python of an environment that has this wheel and nothing else."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps"]
    subprocess.run([*command, str(wheel)], check=True)
    return python


def measure(python: Path) -> tuple[float, float]:
    """Nanoseconds of a cached compute in a fresh process, and what was counted."""
    ended = subprocess.run(
        [str(python), "-c", PROGRAM], check=True, capture_output=True, text=True, cwd="/"
    )
    answer = json.loads(ended.stdout)
    return answer["ns"], answer["counted"]


def report(counting: list[float], silent: list[float]) -> None:
    """Prints the medians, the quartiles, and how much slower counting is."""
    for name, figures in (("with metrics", counting), ("compiled out", silent)):
        first, median, third = statistics.quantiles(figures, n=4)
        print(f"{name:>14}: {median:6.1f} ns a cached compute ({first:.1f} to {third:.1f})")
    pairs = [mine / other for mine, other in zip(counting, silent, strict=True)]
    first, median, third = statistics.quantiles(pairs, n=4)
    shown = " to ".join(f"{(each - 1) * 100:+.1f} %" for each in (first, third))
    print(f"{'difference':>14}: {(median - 1) * 100:+.1f} % ({shown}); at most 5 % is wanted")


if __name__ == "__main__":
    main()
