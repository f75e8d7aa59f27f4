"""The parts of the demo: what it prints, where users live, and that it does not flatter."""

import io
from collections.abc import Sequence

import pytest

import podlink
from helpers.pods import FRESH, NAMESPACE, SERVICE, STEADY, pod_info
from podlink.demo.healing import Healing, heal
from podlink.demo.pods import LocalPod, Pod
from podlink.demo.screen import Screen
from podlink.demo.users import Tally, Users


class FakeTerminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def on_screen(written: str) -> list[str]:
    """What a terminal shows after these characters."""
    lines = [""]
    at = 0
    for character in written:
        if character == "\n":
            lines.append("")
            at = 0
        elif character == "\r":
            at = 0
        else:
            lines[-1] = lines[-1][:at] + character + lines[-1][at + 1 :]
            at += 1
    return [line.rstrip() for line in lines]


# --- Screen ---------------------------------------------------------------------------------------


def test_without_a_terminal_progress_is_a_line_for_each_quarter() -> None:
    stream = io.StringIO()
    screen = Screen(stream)
    with screen.progress("placed", 2000) as show:
        for done in range(0, 2001, 100):
            show(done)
    screen.say("done")
    assert stream.getvalue().splitlines() == [
        "   placed: 500 of 2,000",
        "   placed: 1,000 of 2,000",
        "   placed: 1,500 of 2,000",
        "done",
    ]


@pytest.mark.parametrize("steps", [[0, 3], [0, 0, 0], [3, 3]])
def test_lines_of_progress_do_not_repeat_themselves(steps: Sequence[int]) -> None:
    stream = io.StringIO()
    with Screen(stream).progress("moved", 4) as show:
        for done in steps:
            show(done)
    assert stream.getvalue() == ("   moved: 3 of 4\n" if 3 in steps else "")


def test_on_a_terminal_progress_is_a_bar_that_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = FakeTerminal()
    screen = Screen(stream)
    with screen.progress("placed", 10) as show:
        assert on_screen(stream.getvalue())[-1].startswith("   placed [" + "." * 30 + "] 0 of 10,")
        show(10)
        assert on_screen(stream.getvalue())[-1].startswith("   placed [" + "#" * 30 + "] 10 of 10,")
    assert on_screen(stream.getvalue()) == [""]
    screen.say("done")
    assert on_screen(stream.getvalue()) == ["done", ""]


def test_a_line_that_comes_while_a_bar_is_drawn_takes_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TERM", raising=False)
    stream = FakeTerminal()
    screen = Screen(stream)
    with screen.progress("placed", 10):
        screen.say("by the way")
    assert on_screen(stream.getvalue()) == ["by the way", ""]


def test_a_bar_never_fills_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    stream = FakeTerminal()
    with Screen(stream).progress("placed", 1_000_000):
        assert len(on_screen(stream.getvalue())[-1]) <= 19


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = FakeTerminal()
    with Screen(stream).progress("placed", 4) as show:
        show(2)
    assert stream.getvalue() == "   placed: 2 of 4\n"


def test_nothing_to_do_is_done() -> None:
    stream = io.StringIO()
    with Screen(stream).progress("moved", 0) as show:
        show(0)
    assert stream.getvalue() == ""


def test_tables_are_aligned() -> None:
    stream = io.StringIO()
    Screen(stream).table(("pod", "users"), [("0", "1,000"), ("10", "7")])
    assert stream.getvalue() == "   pod  users\n     0  1,000\n    10      7\n"


# --- Users ----------------------------------------------------------------------------------------


@pytest.fixture
async def store() -> podlink.Store:
    return podlink.Store("memory://")


def clients(store: podlink.Store, count: int = 2) -> list[podlink.ClientDriver]:
    patient = podlink.ClientConfig(timeout=60)
    return [podlink.ClientDriver(store, NAMESPACE, patient, route_info=FRESH) for _ in range(count)]


async def started(store: podlink.Store, *indexes: int) -> dict[int, Pod]:
    pods: dict[int, Pod] = {index: LocalPod(store, pod_info(index), STEADY) for index in indexes}
    for pod in pods.values():
        await pod.start()
    return pods


async def test_users_live_where_they_were_routed(store: podlink.Store) -> None:
    pods = await started(store, 0, 1)
    users = Users(clients(store), pods, SERVICE)
    uids = [f"u{number}" for number in range(600)]
    steps: list[int] = []
    tally = await users.arrive(uids, steps.append)
    assert steps == [250, 500, 600]
    assert (tally.computes, tally.hits, tally.failures) == (600, 0, {})
    assert users.homes == tally.answers
    assert sorted(users.living_on([0, 1])) == sorted(uids)
    for index, pod in pods.items():
        # What the pod itself says: it lets in whom it is told to, and counts them.
        assert await pod.ask("admit", []) == len(users.living_on([index]))

    mover = users.living_on([0])[0]
    await users.settle({mover: 1})
    assert await pods[0].ask("dismiss", []) == len(users.living_on([0]))
    assert await pods[1].ask("admit", []) == len(users.living_on([1]))
    assert users.homes[mover] == 1


async def test_what_comes_from_a_cache_is_counted_by_the_drivers(store: podlink.Store) -> None:
    users = Users(clients(store), await started(store, 0, 1), SERVICE)
    uids = [f"u{number}" for number in range(100)]
    await users.arrive(uids, lambda _done: None)
    first, second = await users.ask(uids), await users.ask(uids)
    assert [(tally.computes, tally.hits) for tally in first] == [(100, 50), (100, 50)]
    assert [(tally.computes, tally.hits) for tally in second] == [(100, 100), (100, 100)]
    assert (first[0].hit_rate, Tally().hit_rate) == (0.5, 0.0)


async def test_users_who_cannot_be_placed_are_an_error(store: podlink.Store) -> None:
    users = Users(clients(store), {}, SERVICE)
    with pytest.raises(podlink.NoRoutablePodError):
        await users.arrive(["u1", "u2"], lambda _done: None)
    (tally, _) = await users.ask(["u1"])
    assert (tally.answers, tally.errors) == ({}, {"POD_NOT_ROUTABLE": 1})


async def test_users_move_when_their_pod_is_gone(store: podlink.Store) -> None:
    pods = await started(store, 0, 1)
    users = Users(clients(store), pods, SERVICE)
    await users.arrive([f"u{number}" for number in range(50)], lambda _done: None)
    uids = users.living_on([0])
    await pods.pop(0).stop()
    steps: list[int] = []
    healing = await heal(users, uids, {0}, since=0.0, patience=1e9, progress=steps.append)
    assert set(healing.moved) == set(uids)
    assert steps[-1] == len(uids)
    assert users.living_on([0]) == []
    assert healing.lines()[0].startswith(f"{len(uids)} of {len(uids)} users moved, the first after")


async def test_users_who_do_not_move_are_not_said_to(store: podlink.Store) -> None:
    pods = await started(store, 0)
    users = Users(clients(store), pods, SERVICE)
    await users.arrive(["u1", "u2"], lambda _done: None)
    await pods.pop(0).kill()
    steps: list[int] = []
    healing = await heal(users, ["u1", "u2"], {0}, since=0.0, patience=0.0, progress=steps.append)
    assert steps == []
    assert healing.moved == {}
    assert healing.stale + healing.errors.total() == healing.computes == 4
    assert healing.lines()[0] == "0 of 2 users moved"


def test_a_time_to_heal_is_claimed_only_when_all_have_moved() -> None:
    healing = Healing(2, moved={"u1": 0.5})
    assert healing.lines()[0] == (
        "1 of 2 users moved, the first after 0.50 s, the last after 0.50 s"
    )
    healing.moved["u2"] = 1.25
    assert healing.lines()[0] == ("2 of 2 users moved, the first after 0.50 s, time to heal 1.25 s")


def test_failures_are_named_with_their_codes() -> None:
    healing = Healing(3, computes=1200, stale=7)
    healing.errors.update({"TIMEOUT": 1000, "POD_NOT_ROUTABLE": 2})
    assert healing.lines()[1] == (
        "meanwhile 1,002 of 1,200 computes failed (TIMEOUT 1,000, POD_NOT_ROUTABLE 2), "
        "and 7 named a pod that was gone"
    )


# --- Pods -----------------------------------------------------------------------------------------


async def test_a_pod_that_was_let_go_of_renews_no_more(store: podlink.Store) -> None:
    pod = (await started(store, 0))[0]
    assert await pod.is_alive()
    await pod.kill()
    assert not await pod.is_alive()
    with pytest.raises(podlink.PodNotAvailableError, match="pod 0 of the demo is gone"):
        await pod.admit(["u1"])
    await pod.close()

    # On a store of its own, where no other pod has asked for a longer grace.
    store = podlink.Store("memory://")
    config = podlink.ServerConfig(lease=0.1, renew=0.03, guard=0.02, gap=0.06, grace=0.06)
    brief = LocalPod(store, pod_info(0), config)
    await brief.start()
    await brief.kill()
    # Its index is free once its lease is over; a pod that renewed would hold it for ever.
    async with podlink.ServerDriver(store, pod_info(0), config) as successor:
        assert successor.incarnation is not None
