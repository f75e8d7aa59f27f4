"""The demo as a program: on memory and on real servers, on a terminal and off it, and failing."""

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

import psutil
import pytest

import podlink
from conftest import ServerFactory
from helpers.commands import Terminal, command, descendants, start
from helpers.pods import QUICK
from helpers.servers import Server
from helpers.wait import eventually

USERS = 400
NEWCOMERS = USERS // 4

# A lease that is over within a test and outlives the pauses of a busy machine. The demo gives loads
# two renewals until it has read them, which takes one renewal and one refresh, each up to a tenth
# longer; and clients a refresh and a quarter until they know that a pod drains.
LEASE, RENEW, REFRESH = 6.0, 1.5, 0.5
CONFIG = replace(QUICK, lease=LEASE, renew=RENEW, gap=3.0, grace=3.0, timeout=30.0)
FIGURES = [
    word
    for name, figure in asdict(CONFIG).items()
    for word in (f"--{name.replace('_', '-')}", str(figure))
]
QUICK_DEMO = ("demo", "--users", str(USERS), "--refresh", str(REFRESH), *FIGURES)

# Where calls have to fail: long enough for those before that, which have to succeed. The demo is
# patient for twice lease, grace and time-out.
FAILING = ("--timeout", "2", "--lease", "3", "--renew", "0.5", "--gap", "1", "--grace", "1")

# A deadline that only a demo that hangs reaches.
ENDS_WITHIN = 180.0


def table(text: str) -> list[dict[int, tuple[int, str, str]]]:
    """Every table that was printed: pod → users, load, state."""
    tables = []
    for found in re.finditer(r"pod +users +load +state\n((?: +\d.*\n)+)", text):
        rows = (line.split() for line in found[1].splitlines())
        tables.append({int(pod): (int(users), load, state) for pod, users, load, state in rows})
    return tables


def check_story(text: str, pods: int = 4) -> None:
    """What was printed hangs together: no figure contradicts another."""
    placed, drained, killed = table(text)
    assert [set(each) for each in (placed, drained, killed)] == [set(range(pods))] * 3
    totals = [sum(users for users, _, _ in each.values()) for each in (placed, drained, killed)]
    assert totals == [USERS, USERS + NEWCOMERS, USERS + NEWCOMERS]
    assert {state for _, _, state in placed.values()} == {"READY"}
    # Pods publish their users as their load.
    for each in (placed, drained, killed):
        assert all(load == str(users) for users, load, state in each.values() if state != "gone")

    assert f"\n1. {USERS} users come\n" in text
    assert re.search(rf"first time: {2 * USERS} computes in [\d.]+ s, cache hit rate 50\.0%", text)
    assert re.search(
        rf"second time: {2 * USERS} computes in [\d.]+ s, cache hit rate 100\.0%", text
    )
    assert f"the clients name the same pod for {USERS} of {USERS} users" in text

    stay = placed[0][0]
    assert f"{stay} of its {stay} users stay" in text
    assert f"{NEWCOMERS} new users come: 0 to pod 0, {NEWCOMERS} to other pods" in text
    assert drained[0] == (stay, str(stay), "DENY_NEW_CALL")

    moves = re.findall(
        r"(\d+) of (\d+) users moved, the first after ([\d.]+) s, time to heal", text
    )
    assert [moved for moved, _, _ in moves] == [of for _, of, _ in moves]
    assert int(moves[0][0]) == stay
    # Nobody may take a user from a pod whose lease is not over; its last renewal may be old, by
    # a period and by what a busy machine adds.
    assert float(moves[1][2]) > LEASE - 2 * RENEW
    assert killed[1] == (0, "-", "gone")
    assert killed[0][2] == "READY"
    everyone = USERS + NEWCOMERS
    assert f"{everyone} of {everyone} users do" in text
    assert f"{int(moves[0][0]) + int(moves[1][0])} users moved, 0 computes failed," in text


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command that ends."""
    out, err = process.communicate(timeout=ENDS_WITHIN)
    return process.returncode, out, err


@contextmanager
def demo(*arguments: str, url: str) -> Iterator["subprocess.Popen[str]"]:
    """A demo that runs; it and its pods are gone when the block ends."""
    with start(*arguments, env={"PODLINK_STORE": url}) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: "subprocess.Popen[str]", text: str) -> str:
    """Read lines up to one with this text."""
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if text in line:
            return read
    raise AssertionError(f"it ended without {text!r}:\n{read}")


def all_gone(processes: list[psutil.Process]) -> bool:
    return not any(
        process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes
    )


# --- A good end -----------------------------------------------------------------------------------


def test_in_memory_it_needs_nothing_else() -> None:
    done = command(*QUICK_DEMO)
    assert (done.returncode, done.stderr) == (0, "")
    about = f"podlink {podlink.__version__}: 4 pods of the service game and 2 clients on memory://,"
    assert done.stdout.startswith(about)
    assert "4 pods, all in this process, are up" in done.stdout
    assert "its driver was dropped without a stop" in done.stdout
    # No terminal, no bar: lines that a log can show.
    assert f"   placed: 250 of {USERS}\n" in done.stdout
    assert "\r" not in done.stdout
    check_story(done.stdout)


def test_on_a_server_pods_are_processes_and_one_is_killed(store_server: Server) -> None:
    with demo(*QUICK_DEMO, "--pods", "3", url=store_server.url) as process:
        read = read_until(process, "are up after")
        pods = {pod.pid: pod for pod in descendants(process.pid)}
        assert len(pods) == 3
        read += read_until(process, "SIGKILL")
        killed = re.search(r"pod 1: SIGKILL to process (\d+), which ended with status -9", read)
        assert killed
        assert int(killed[1]) in pods
        pods |= {pod.pid: pod for pod in descendants(process.pid)}
        status, out, err = ended(process)
        assert (status, err) == (0, "")
        assert all_gone(list(pods.values()))
    assert "3 pods, each in a process of its own, are up" in read
    check_story(read + out, pods=3)
    # What a guest leaves goes by itself, bar what its pods said last.
    redis = store_server.client()
    for key in redis.scan_iter():
        assert key.startswith("sf:{podlink-demo-")
        assert 0 < redis.ttl(key) <= 300 or ":state:game}" in key


def test_the_password_is_nowhere_to_be_seen(server_factory: ServerFactory) -> None:
    server = server_factory(password="s3cret")
    with demo(*QUICK_DEMO, url=server.url) as process:
        read = read_until(process, "are up after")
        for each in (psutil.Process(process.pid), *descendants(process.pid)):
            assert not any("s3cret" in word for word in each.cmdline())
        process.send_signal(signal.SIGINT)
        status, out, err = ended(process)
    assert (status, err) == (130, "")
    assert f"clients on redis://***@127.0.0.1:{server.port}," in read
    assert "s3cret" not in read + out


def test_variables_and_options_set_its_figures() -> None:
    done = command(
        *(*QUICK_DEMO, "--lease", "4.5", "--pods", "2", "--users", "1"),
        env={"PODLINK_LEASE": "6", "PODLINK_RENEW": "0.2"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "a lease lasts 4.5 s and is renewed every 1.5 s" in done.stdout
    assert "2 of 2 users do" in done.stdout


# --- On a terminal --------------------------------------------------------------------------------


def test_on_a_terminal_there_is_a_bar() -> None:
    with Terminal(*QUICK_DEMO) as terminal:
        assert terminal.wait() == 0
    assert re.search(rf"\r   placed \[#+\.*\] \d+ of {USERS}, \d+\.\d s", terminal.text)
    assert re.search(r"\r   moved \[\.+\] 0 of \d+, \d+\.\d s", terminal.text)
    assert "placed: " not in terminal.text
    # What is left when the bars are gone is the same story.
    lines = [line.rsplit("\r", 1)[-1] for line in terminal.text.replace("\r\n", "\n").split("\n")]
    check_story("\n".join(lines))


@pytest.mark.parametrize("moment", ["clients on", "1. ", "3. ", "SIGKILL"])
def test_ctrl_c_ends_it_and_its_pods(valkey_server: Server, moment: str) -> None:
    valkey_server.flush()
    with Terminal(*QUICK_DEMO, env={"PODLINK_STORE": valkey_server.url}) as terminal:
        terminal.read_until(moment)
        pods = descendants(terminal.pid)
        terminal.type("\x03")
        assert terminal.wait() == 130
    assert "Traceback" not in terminal.text
    assert "podlink:" not in terminal.text
    eventually(lambda: all_gone(pods))


def test_ctrl_c_in_memory() -> None:
    with Terminal(*QUICK_DEMO) as terminal:
        terminal.read_until("3. ")
        terminal.type("\x03")
        assert terminal.wait() == 130
    assert "Traceback" not in terminal.text


# --- A bad end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [True, False])
def test_users_without_a_pod_are_a_failure(valkey_server: Server, in_memory: bool) -> None:
    valkey_server.flush()
    url = "memory://" if in_memory else valkey_server.url
    done = command(*QUICK_DEMO, "--kill", "4", *FAILING, "--store", url)
    lost = USERS + NEWCOMERS
    assert done.returncode == 1
    assert done.stderr == (
        f"podlink: POD_NOT_AVAILABLE: {lost} of {lost} users ended without an alive pod\n"
    )
    assert f"0 of {lost} users do" in done.stdout
    assert re.search(r"computes failed \(POD_NOT_ROUTABLE \d", done.stdout)


@pytest.mark.parametrize("moment", ["1. ", "3. ", "SIGKILL"])
def test_a_store_that_dies_is_a_failure(server_factory: ServerFactory, moment: str) -> None:
    server = server_factory()
    with demo(*QUICK_DEMO, *FAILING, url=server.url) as process:
        read_until(process, moment)
        pods = descendants(process.pid)
        server.kill()
        status, out, err = ended(process)
    assert status == 1
    assert "users do" not in out
    assert re.fullmatch(r"podlink: (STORE_UNAVAILABLE|TIMEOUT): .*\n", err)
    eventually(lambda: all_gone(pods))


def test_pods_do_not_outlive_a_demo_that_was_killed(valkey_server: Server) -> None:
    valkey_server.flush()
    with demo(*QUICK_DEMO, url=valkey_server.url) as process:
        read_until(process, "are up after")
        pods = descendants(process.pid)
        assert len(pods) == 4
        read_until(process, "3. ")
        process.send_signal(signal.SIGKILL)
        process.wait()
        eventually(lambda: all_gone(pods))


def test_a_pod_that_dies_by_itself_is_a_failure(valkey_server: Server) -> None:
    valkey_server.flush()
    with demo(*QUICK_DEMO, url=valkey_server.url) as process:
        read_until(process, "3. ")
        for pod in descendants(process.pid):
            pod.kill()
        status, _, err = ended(process)
    assert status == 1
    assert re.fullmatch(r"podlink: POD_NOT_AVAILABLE: pod \d of the demo ended by itself.*\n", err)
