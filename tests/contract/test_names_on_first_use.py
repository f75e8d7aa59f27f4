"""`import podlink` loads next to nothing; names come when they are used, and all else is as if
they had been there from the beginning.
"""

import ast
import importlib
import pickle
from collections import Counter
from pathlib import Path

import pytest

import podlink
from helpers.programs import run_program

SOURCE = Path(podlink.__file__)
# `__init__.pyi` has the names, and no list of them.
ALL: list[str] = vars(podlink)["__all__"]
MODULES: dict[str, tuple[str, ...]] = vars(podlink)["_MODULES"]
NAMES = {module: names for module, names in MODULES.items() if names}
SUBMODULES = [module for module in MODULES if not module.startswith("_")]


def loaded_after(statements: str) -> set[str]:
    """What a fresh interpreter has loaded more, when it has run these statements."""
    printed = run_program(f"""
        import os, sys

        before = set(sys.modules)
        {statements}
        assert len(os.listdir("/proc/self/task")) == 1
        print(*set(sys.modules) - before)
    """)
    return set(printed.split())


def test_the_import_loads_next_to_nothing() -> None:
    # Neither asyncio nor a driver, nor the compiled module, nor even `typing`.
    assert loaded_after("import podlink") <= {"podlink", "podlink._process", "atexit"}


def test_a_driver_loads_what_it_needs_and_no_more() -> None:
    loaded = loaded_after("import podlink; podlink.connect, podlink.ServerInfo")
    assert {"asyncio", "podlink.client", "podlink.server", "podlink.store"} <= loaded
    unneeded = {"admin", "explain", "grpc_server", "metrics", "otel", "prometheus", "cli", "demo"}
    assert not loaded & {f"podlink.{name}" for name in unneeded}
    assert not loaded & {"pathlib", "json", "argparse"}


def test_an_exception_does_not_load_a_driver() -> None:
    loaded = loaded_after("import podlink; podlink.PodlinkError, podlink.RoutingState")
    assert "podlink.errors" in loaded
    assert not loaded & {"asyncio", "podlink.client", "podlink._podlink"}


@pytest.mark.parametrize("module", NAMES)
def test_a_name_is_what_its_module_defines(module: str) -> None:
    home = importlib.import_module(f"podlink.{module}")
    for name in NAMES[module]:
        found = getattr(podlink, name)
        assert found is getattr(home, name)
        assert vars(podlink)[name] is found  # kept, so a later use calls nothing
        if name != "__version__":
            assert found.__module__ == home.__name__


def test_every_public_name_is_in_the_table_once() -> None:
    names = [name for each in NAMES.values() for name in each]
    assert Counter(names) == Counter(ALL)


def test_the_stub_names_the_same() -> None:
    # `__init__.pyi` is what type checkers and editors read.
    stubbed: dict[str, list[str]] = {}
    others: list[str] = []
    for node in ast.parse(SOURCE.with_suffix(".pyi").read_text("utf-8")).body:
        match node:
            case ast.ImportFrom(module=module, names=names, level=1):
                assert all(alias.asname == alias.name for alias in names), "not exported"
                stubbed[module or "."] = sorted(alias.name for alias in names)
            case _:
                others.append(ast.unparse(node))
    assert stubbed.pop(".") == sorted(SUBMODULES)
    assert stubbed == {module: sorted(names) for module, names in NAMES.items()}
    # No __getattr__: a type checker that sees one lets every name pass.
    assert others == []


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'podlink' has no attribute 'ClientDrivr'"):
        getattr(podlink, "ClientDrivr")  # noqa: B009 - a type checker finds it, too
    with pytest.raises(ImportError, match="cannot import name 'ClientDrivr' from 'podlink'"):
        exec("from podlink import ClientDrivr", {})


def test_all_names_are_listed_before_they_are_loaded() -> None:
    printed = run_program("""
        import sys, podlink

        print(*dir(podlink))
        assert "podlink.client" not in sys.modules
    """)
    assert set(printed.split()) >= {*ALL, *SUBMODULES, "__doc__", "__file__"}
    assert dir(podlink) == sorted(dir(podlink))


@pytest.mark.parametrize("module", SUBMODULES)
def test_a_submodule_is_reachable(module: str) -> None:
    assert run_program(f"import podlink; print(podlink.{module}.__name__)") == f"podlink.{module}\n"


EXTRAS = {"otel": "opentelemetry", "prometheus": "prometheus_client"}


@pytest.mark.parametrize(("module", "needed"), EXTRAS.items())
def test_a_missing_extra_is_named(module: str, needed: str) -> None:
    printed = run_program(f"""
        import sys, podlink

        sys.modules[{needed!r}] = None  # as if it was not installed
        assert {module!r} in dir(podlink)
        try:
            podlink.{module}
        except ImportError as error:
            print(error)
    """)
    assert printed.endswith(f"pip install 'podlink[{module}]'\n")
    assert printed.startswith(f"podlink.{module} needs ")


def test_a_star_brings_every_name() -> None:
    printed = run_program("""
        from podlink import *
        import podlink

        print(*sorted(set(globals()) & set(podlink.__all__)))
    """)
    assert printed.split() == ALL


def test_many_threads_may_be_the_first_at_once() -> None:
    run_program("""
        import sys, threading, podlink

        sys.setswitchinterval(1e-5)
        together, seen, lock = threading.Barrier(8), {}, threading.Lock()

        def use(at):
            together.wait()
            # Each begins with another name, so that modules are loaded from several ends.
            for name in podlink.__all__[at * 5:] + podlink.__all__[:at * 5]:
                found = getattr(podlink, name)
                with lock:
                    assert seen.setdefault(name, found) is found, name

        threads = [threading.Thread(target=use, args=(at,)) for at in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(seen) == set(podlink.__all__)
    """)


def test_what_was_pickled_is_read_where_podlink_was_not_imported() -> None:
    error = podlink.StoreError("why", retryable=True, details={"operation": "get"})
    state = podlink.StatefulServiceState(1, "READY", 2, podlink.RoutingState.READY, 3, 4)
    content = pickle.dumps([error, podlink.ClientConfig(link_ttl=250), state, podlink.connect])
    printed = run_program(
        "import pickle, sys\nprint(*pickle.loads(bytes.fromhex(sys.argv[1]))[:2])\n", content.hex()
    )
    assert printed.startswith("why ClientConfig(link_ttl=250, ")


# What the import registers although its module is loaded later.


def test_nothing_reaches_stderr_of_a_program_that_knows_no_logging() -> None:
    run_program("""
        import podlink, time

        class Wrong:
            def on_success(self, result): raise ValueError("the program's own")
            on_error = on_success

        client = podlink.ClientDriver(podlink.Store(), callbacks="poll")
        client.submit("get_linked_pod", None, "u1", "svc", callback=Wrong())
        while not client.poll_callbacks():
            time.sleep(0.01)
        assert client.stats()["callback_failures"] == 1
    """)


def test_podlink_still_works_in_what_the_program_does_at_exit() -> None:
    printed = run_program("""
        import atexit, podlink

        @atexit.register
        def last():
            print(client.submit("get_linked_pod", None, "u1", "svc").result(30))

        client = podlink.ClientDriver(podlink.Store())
    """)
    assert printed == "None\n"


def test_what_is_told_at_exit_is_told_before_logging_closes_its_files(tmp_path: Path) -> None:
    # The program knows of logging only after podlink; a handler with "w" writes no more after it
    # was closed.
    log = tmp_path / "log"
    run_program(
        """
        import sys, podlink
        import logging

        logging.basicConfig(filename=sys.argv[1], filemode="w")

        class Wrong:
            def on_success(self, result): raise ValueError("the program's own")
            on_error = on_success

        client = podlink.ClientDriver(podlink.Store(), callbacks="poll")
        for at in range(13):
            client.submit("get_linked_pod", None, "u1", "svc", callback=Wrong()).result(30)
        done = 0
        while done < 13:
            done += client.poll_callbacks()
        """,
        str(log),
    )
    assert "a callback raised (and 3 times more, not shown)" in log.read_text("utf-8")


def test_podlink_knows_of_a_fork_before_the_program_does() -> None:
    printed = run_program("""
        import asyncio, os, podlink

        async def ask():
            async with podlink.Store() as store, podlink.ClientDriver(store) as own:
                return await own.get_linked_pod(None, "u1", "svc")

        def in_child():
            print("a new driver says", asyncio.run(ask()), flush=True)
            try:
                client.get_linked_in_cache(None, "u1", "svc")
            except podlink.ForkedProcessError:
                print("the old one is refused", flush=True)

        os.register_at_fork(after_in_child=in_child)
        client = podlink.ClientDriver(podlink.Store())
        client.submit("get_linked_pod", None, "u1", "svc").result(30)
        if (pid := os.fork()) == 0:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    """)
    assert printed == "a new driver says None\nthe old one is refused\n"
