"""Real servers for the tests. What a test breaks it makes itself, with `server_factory`."""

import signal
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import Any, Protocol

import pytest

from helpers import server_paths
from helpers.canaries import MARK
from helpers.servers import Server
from podlink import _logs

# A shell's background job ignores Ctrl-C, and so would every program that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

_BINARIES = {"valkey": server_paths.valkey_server, "redis7": server_paths.redis_server}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fails a test whose output or log holds a secret of the tests."""
    report = yield
    leaking = [name for name, text in report.sections if MARK in text]
    if report.passed and leaking:
        report.outcome = "failed"
        report.longrepr = f"a secret of a test was printed: {', '.join(leaking)}"
    return report


class ServerFactory(Protocol):
    """Starts one more server: `server_factory("redis7", tls=True)`; options as in `Server`."""

    def __call__(self, kind: str = "valkey", /, **options: Any) -> Server: ...


@pytest.fixture(autouse=True)
def _repeats_of_this_test() -> None:
    """What earlier tests have logged often is no repeat in this one."""
    _logs.reset()


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Server]:
    """Valkey 9, shared by the whole run: never kill, pause or reconfigure it."""
    with Server(server_paths.valkey_server()) as server:
        yield server


@pytest.fixture(scope="session")
def redis7_server() -> Iterator[Server]:
    """Redis 7, shared by the whole run: never kill, pause or reconfigure it."""
    with Server(server_paths.redis_server()) as server:
        yield server


@pytest.fixture
def server_factory() -> Iterator[ServerFactory]:
    """Servers of the test's own, which it may kill; gone when it ends."""
    with ExitStack() as servers:

        def start(kind: str = "valkey", /, **options: Any) -> Server:
            return servers.enter_context(Server(_BINARIES[kind](), **options))

        yield start


@pytest.fixture(params=["valkey", "redis7"])
def store_server(request: pytest.FixtureRequest) -> Server:
    """Each shared server in turn, empty."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    # Before the test, not after it: a test that fails leaves its data to be looked at.
    server.flush()
    return server


@pytest.fixture(params=["memory", "valkey", "redis7"])
def store_url(request: pytest.FixtureRequest) -> str:
    """The address of each kind of store in turn, empty."""
    if request.param == "memory":
        return "memory://"
    server: Server = request.getfixturevalue(f"{request.param}_server")
    server.flush()
    return server.url
