"""Threads of podlink's own for the program's functions."""

import logging
import threading

import pytest

from helpers.wait import eventually
from podlink._workers import ThreadPool


def test_work_waits_if_the_system_refuses_a_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool, done = ThreadPool(2, "podlink-test"), list[int]()

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, "podlink.hooks"):
        patch.setattr(threading.Thread, "start", refuse)
        for number in range(5):
            pool.run(lambda number=number: done.append(number))  # type: ignore[misc]
    assert done == []
    assert "no thread for the program's function" in caplog.text
    pool.run(lambda: done.append(5))
    eventually(lambda: sorted(done) == [0, 1, 2, 3, 4, 5])


def test_at_most_so_many_run_at_a_time() -> None:
    pool, let_go, running = ThreadPool(3, "podlink-test"), threading.Event(), list[int]()

    def work() -> None:
        running.append(threading.get_ident())
        let_go.wait(60)

    for _ in range(10):
        pool.run(work)
    eventually(lambda: len(running) == 3)
    let_go.set()
    eventually(lambda: len(running) == 10)
    assert len(set(running)) == 3
    eventually(lambda: all(each.name != "podlink-test" for each in threading.enumerate()))
