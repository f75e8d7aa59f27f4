"""`podlink top` on a terminal, and without one."""

import http.server
import os
import re
import signal
import subprocess
import termios
import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest

from conftest import ServerFactory
from helpers.commands import Terminal, command, start
from helpers.pods import SERVICE
from helpers.raw_pods import publish
from helpers.servers import Server
from helpers.wait import eventually

HOSTILE = "\x1b[2J\x1b]0;gone\x07\u202e"


@pytest.fixture
def store(valkey_server: Server) -> Server:
    """A store with three pods, one of which drains."""
    valkey_server.flush()
    publish(valkey_server, [0, 1, 2], loads={0: 4, 1: 40}, routing={2: "DENY_NEW_CALL"})
    return valkey_server


class Metrics(http.server.BaseHTTPRequestHandler):
    """Says what a service would, a little more each time."""

    scrapes: ClassVar[int] = 0

    def do_GET(self) -> None:
        """Answer a scrape."""
        type(self).scrapes += 1
        done = 100 * type(self).scrapes
        about = f'namespace="default",service="{SERVICE}"'
        text = f"""# TYPE podlink_links_made counter
podlink_links_made_total{{{about}}} {done}
podlink_links_made_total{{namespace="default",service="other"}} 9e9
podlink_links_healed_total{{{about},pod="1"}} {done}
podlink_cache_hits_total {9 * done}
podlink_cache_misses_total {done}
podlink_operations_total{{operation="compute_linked_pod",outcome="ok"}} {done}
podlink_operations_total{{operation="compute_linked_pod",outcome="TIMEOUT"}} 0
podlink_owned_users{{{about},pod="1"}} 17
podlink_stores 1
podlink_store_connected 1
something else
# EOF
"""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def metrics() -> Iterator[str]:
    """Where a service shows its metrics."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/metrics"
    server.shutdown()
    serving.join()
    server.server_close()


def once(store: Server, *arguments: str) -> list[str]:
    """One table."""
    ended = command("top", SERVICE, "--once", *arguments, env={"PODLINK_STORE": store.url})
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


# --- Without a terminal ---------------------------------------------------------------------------


def test_one_table_of_the_pods(store: Server) -> None:
    lines = once(store)
    assert re.fullmatch(r"podlink top  default/svc  \d\d:\d\d:\d\d", lines[0])
    assert lines[1] == "pods 2 READY, 1 DRAINING  routable 2"
    assert lines[2].startswith("rates: give --metrics URL")
    assert " ".join(lines[4].split()) == "POD STATE LOAD USERS LEASE AGE MOVED/S METADATA"
    rows = [line.split() for line in lines[5:]]
    assert [row[:3] for row in rows] == [
        ["0", "READY", "4"],
        ["1", "READY", "40"],
        ["2", "DRAINING", "0"],
    ]
    assert rows[1][3] == "########"


def test_rates_come_from_scrapes(store: Server, metrics: str) -> None:
    lines = once(store, "--metrics", metrics, "--interval", "0.2")
    figures = " ".join(lines[2:3])
    rate = re.search(r"links/s (\d+)", figures)
    assert rate
    assert int(rate[1]) > 0, "what another service counts is left out, what this one does is not"
    assert "hit rate 90.0%" in figures
    assert "errors/s 0.0" in figures
    assert figures.endswith("stores 1/1")
    row = next(line for line in lines if line.startswith("1 "))
    assert row.split()[4] == "17"


def test_a_service_that_cannot_be_scraped_is_named(store: Server) -> None:
    lines = once(store, "--metrics", "http://127.0.0.1:9/metrics", "--interval", "0.1")
    assert any(line.startswith("0 of 1 scraped; http://127.0.0.1:9/metrics: ") for line in lines)


def test_nothing_is_changed(store: Server) -> None:
    raw = store.client()
    before = {key: raw.hgetall(key) for key in raw.scan_iter()}
    once(store)
    assert {key: raw.hgetall(key) for key in raw.scan_iter()} == before


def test_a_table_each_interval_until_it_is_told_to_stop(store: Server) -> None:
    watching = start("top", SERVICE, "--interval", "0.1", env={"PODLINK_STORE": store.url})
    assert watching.stdout is not None
    tables = 0
    while tables < 3:
        tables += watching.stdout.readline().startswith("podlink top")
    watching.send_signal(signal.SIGTERM)
    _out, err = watching.communicate(timeout=30)
    assert (watching.returncode, err) == (143, "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--interval", "0"), "argument --interval: must be 0.1 to 3600 seconds"),
        (("--interval", "soon"), "argument --interval: must be 0.1 to 3600 seconds"),
        (("--metrics", "file:///etc/passwd"), "INVALID_PARAMETER: --metrics must be an http"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], complaint: str) -> None:
    ended = command("top", SERVICE, "--store", "memory://", "--once", *arguments)
    assert ended.returncode in (1, 2)
    assert complaint in ended.stderr


def test_a_store_that_is_away_is_an_error_once(server_factory: ServerFactory) -> None:
    server = server_factory()
    server.kill()
    ended = command("top", SERVICE, "--once", env={"PODLINK_STORE": server.url})
    assert ended.returncode == 1
    assert ended.stderr.startswith(("podlink: STORE_UNAVAILABLE: ", "podlink: TIMEOUT: "))


# --- On a terminal --------------------------------------------------------------------------------

_TAKEN, _LEFT = "\x1b[?1049h", "\x1b[?7h\x1b[?25h\x1b[?1049l"


def modes(terminal: Terminal) -> list[object]:
    """How the terminal treats keys."""
    return list(termios.tcgetattr(terminal.fileno()))


@pytest.mark.parametrize(("key", "status"), [("q", 0), ("Q", 0), ("\x03", 130)])
def test_a_terminal_is_left_as_it_was(store: Server, key: str, status: int) -> None:
    with Terminal("top", SERVICE, env={"PODLINK_STORE": store.url}) as terminal:
        before = modes(terminal)
        terminal.read_until("q ends it")
        assert modes(terminal) != before
        terminal.type(key)
        assert terminal.wait() == status
        assert modes(terminal) == before
    assert terminal.text.startswith(_TAKEN)
    assert terminal.text.endswith(_LEFT)
    assert "READY" in terminal.text


def test_a_terminal_is_left_as_it_was_by_sigterm_too(store: Server) -> None:
    with Terminal("top", SERVICE, env={"PODLINK_STORE": store.url}) as terminal:
        before = modes(terminal)
        terminal.read_until("q ends it")
        os.kill(terminal.pid, signal.SIGTERM)
        assert terminal.wait() == 143
        assert modes(terminal) == before
    assert terminal.text.endswith(_LEFT)


def test_ctrl_z_gives_the_terminal_back_and_takes_it_again(store: Server) -> None:
    with Terminal("top", SERVICE, env={"PODLINK_STORE": store.url}) as terminal:
        before = modes(terminal)
        terminal.read_until("q ends it")
        terminal.type("\x1a")
        terminal.read_until(_LEFT)
        eventually(lambda: modes(terminal) == before)
        eventually(lambda: _state(terminal.pid) == "T")
        terminal.text = ""
        os.kill(terminal.pid, signal.SIGCONT)
        terminal.read_until("q ends it")
        assert terminal.text.startswith(_TAKEN)
        terminal.type("q")
        assert terminal.wait() == 0


def _state(pid: int) -> str:
    """Of a process: R, S, T..."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, check=False)
    return shown.stdout.decode()[:1]


def test_a_size_that_changes_is_drawn_at_once(store: Server) -> None:
    arguments = ("top", SERVICE, "--interval", "3600")
    with Terminal(*arguments, env={"PODLINK_STORE": store.url}) as terminal:
        terminal.read_until("q ends it\x1b[0m\x1b[K\x1b[J")
        terminal.text = ""
        termios.tcsetwinsize(terminal.fileno(), (10, 30))
        terminal.read_until("\x1b[J")
        drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.text)
        lines = re.split(r"\r+\n", drawn)
        assert "METADATA" not in drawn
        assert max(map(len, lines)) <= 30
        assert len(lines) <= 10


def test_hostile_words_of_a_pod_are_shown_and_not_obeyed(store: Server) -> None:
    with store.client() as raw:
        key = f"sf:{{default:state:{SERVICE}}}"
        said = HOSTILE.encode("unicode_escape").decode().replace("\\x", "\\u00")
        stored = str(raw.hget(key, "0")).replace('"metadata": {}', f'"metadata": {{"a": "{said}"}}')
        raw.hset(key, "0", stored)
    with Terminal("top", SERVICE, env={"PODLINK_STORE": store.url}) as terminal:
        terminal.read_until("q ends it")
        terminal.type("q")
        assert terminal.wait() == 0
    assert r"a=\x1b[2J\x1b]0;gone\x07\u202e" in terminal.text
    assert "\x1b[2J" not in terminal.text
