"""Programs in interpreters of their own: what happens at import, at exit and after a fork.

    answer = run_program("import podlink; print(podlink.__version__)")

A program has to end with exit code 0 and an empty stderr, or the test fails with what it printed.
"""

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

_TESTS = Path(__file__).parents[1]

# A deadline that only a program that hangs reaches.
_ENDS_WITHIN = 180.0


def run_program(
    source: str,
    *arguments: str,
    within: float = _ENDS_WITHIN,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run the program, which may import from `helpers`, and return what it printed.

    env: variables that it has beside those of this process.
    """
    ended = subprocess.run(
        [sys.executable, *_FLAGS, "-c", textwrap.dedent(source), *arguments],
        env=environment() | dict(env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
    )
    told = f"exit code {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
    assert ended.returncode == 0, told
    assert ended.stderr == "", told
    return ended.stdout


def environment() -> dict[str, str]:
    """The environment of a program that may import from `helpers`."""
    paths = [str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


# Python 3.12 and later warn of every fork in a process with threads; that is podlink's business.
_FLAGS = ("-W", "error", "-W", "ignore:This process:DeprecationWarning")
