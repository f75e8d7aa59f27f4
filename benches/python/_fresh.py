"""Measuring in processes of their own, which nobody has used before.

if __name__ == "__main__":
    child(measures) or main()        # `script.py child NAME ARGUMENTS` runs measures[NAME]

figures = in_fresh_process(__file__, "podlink", 1_000_000)
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

_WORD = "child"


def in_fresh_process(script: str, name: str, *arguments: object) -> dict[str, float]:
    """What the function of this name gives in a new process."""
    done = subprocess.run(
        [sys.executable, script, _WORD, name, json.dumps(arguments)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{Path(script).name}: {name}{arguments} ended with {done.returncode}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def child(measures: Mapping[str, Callable[..., dict[str, float]]]) -> bool:
    """Runs one function if this is a child, and says whether it is."""
    if sys.argv[1:2] != [_WORD]:
        return False
    name, arguments = sys.argv[2:]
    print(json.dumps(measures[name](*json.loads(arguments))))
    return True


def resident_bytes() -> int:
    """How much memory this process has."""
    return int(psutil.Process().memory_info().rss)


def threads() -> int:
    """How many threads this process has, those of Rust and C among them."""
    return psutil.Process().num_threads()
