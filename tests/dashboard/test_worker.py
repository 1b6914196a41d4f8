"""The worker: every command in order, pictures only of the newest state, and a thread that survives what fails."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import lensplorer.watching
from lensplorer.dashboard.options import Options
from lensplorer.dashboard.page import Desk
from lensplorer.dashboard.worker import Worker


def test_all_commands_in_order_and_pictures_conflated():
    done, pictures = [], []
    drawing, go_on, all_drawn = threading.Event(), threading.Event(), threading.Event()

    def draw(started):
        pictures.append(len(done))
        drawing.set()
        go_on.wait(10)  # the first picture takes until every command has come
        if len(done) == 200:
            all_drawn.set()

    worker = Worker(draw)
    worker.submit(lambda: done.append(0))
    assert drawing.wait(10)
    for i in range(1, 200):
        worker.submit(lambda i=i: done.append(i))
    go_on.set()
    assert all_drawn.wait(10)
    worker.stop()
    worker.join(10)
    assert done == list(range(200))
    assert len(pictures) < 10


def test_the_last_picture_shows_the_last_command():
    state, pictures = [], []
    drawn = threading.Event()

    def draw(started):
        pictures.append(list(state))
        if len(state) == 50:
            drawn.set()

    worker = Worker(draw)
    for i in range(50):
        worker.submit(lambda i=i: state.append(i))
    assert drawn.wait(10)
    worker.stop()
    worker.join(10)
    assert pictures[-1] == list(range(50))


def test_later_parts_come_when_nothing_waits():
    order = []
    finished = threading.Event()

    def finish():
        order.append("finish")
        finished.set()

    worker = Worker(lambda started: order.append("draw"), finish)
    worker.submit(lambda: order.append("command"))
    assert finished.wait(10)
    worker.stop()
    worker.join(10)
    assert order == ["command", "draw", "finish"]


def test_a_failing_command_does_not_end_the_thread(caplog):
    done = threading.Event()
    worker = Worker(lambda started: None)
    with caplog.at_level(logging.CRITICAL):
        worker.submit(lambda: 1 / 0)
        worker.submit(done.set)
        assert done.wait(10)
    worker.stop()
    worker.join(10)


def test_what_nobody_waits_for_is_done_once_at_rest_and_at_the_end():
    order: list[str] = []
    rested = threading.Event()

    def rest():
        order.append("rest")
        rested.set()

    worker = Worker(lambda started: None, lambda: order.append("finish"), rest)
    for _ in range(2):
        rested.clear()
        worker.submit(lambda: order.append("command"))
        assert rested.wait(10)
    worker.stop()
    worker.join(10)
    assert order == ["command", "finish", "rest", "command", "finish", "rest", "rest"]


def test_keys_that_never_rest_do_not_put_it_off_for_ever(monkeypatch):
    monkeypatch.setattr("lensplorer.dashboard.worker.OVERDUE", 0.0)
    order: list[str] = []
    finished = threading.Event()
    worker = Worker(lambda started: None, finished.set, lambda: order.append("rest"))
    for step in range(3):
        finished.clear()
        worker.submit(lambda: order.append("command"))
        assert finished.wait(10), step
    worker.stop()
    worker.join(10)
    assert order == ["command", "rest"] * 3 + ["rest"]


def test_a_page_that_is_closed_stops_what_it_runs(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the next run of the model, and its thread ends."""
    monkeypatch.setattr("lensplorer.stepping.piece_length", lambda model, n: 7)
    desk = Desk(Options(prompt="the cat sat on the mat and the dog ran to the shop " * 4), load=lambda name: tiny_model("llama"))
    monkeypatch.setattr(desk.explorer.costs, "forward", lambda tokens: 0.1 * tokens)  # it seems slow, so that the text runs after it is shown
    runs: list[bool] = []  # whether each was watched
    watched = lensplorer.watching.tick

    def close_at_the_second() -> None:
        runs.append(lensplorer.watching._watcher.get() is not None)
        if sum(runs) == 2:
            desk._stop()
        watched()

    monkeypatch.setattr("lensplorer.running.tick", close_at_the_second)
    desk.worker.submit(lambda: desk.explorer.use(tiny_model("llama")))
    desk.worker.join(60)
    assert not desk.worker._thread.is_alive() and runs[-2:] == [True, True] and sum(runs) == 2


def test_an_endless_command_is_let_go_and_gives_its_turn_back_once(monkeypatch, caplog):
    monkeypatch.setattr("lensplorer.dashboard.worker.LONGEST", 0.2)
    ends, begun, done = threading.Event(), threading.Event(), threading.Event()
    at_work, most = [0], [0]

    def endless() -> None:
        begun.set()
        ends.wait(60)

    def work() -> None:
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        time.sleep(0.01)
        at_work[0] -= 1

    stuck, *others = [Worker(lambda started: None) for _ in range(4)]
    stuck.submit(endless)
    assert begun.wait(10)
    others[0].submit(done.set)
    assert done.wait(10) and stuck.is_stuck
    assert stuck._thread.name in caplog.text and "in endless" in caplog.text
    for other in others:
        for _ in range(10):
            other.submit(work)
    ends.set()
    for worker in (stuck, *others):
        worker.submit(work)
        worker.stop()
    for worker in (stuck, *others):
        worker.join(30)
    assert most == [1] and not stuck.is_stuck


def test_a_page_that_waits_for_many_short_turns_lets_none_go(monkeypatch, caplog):
    monkeypatch.setattr("lensplorer.dashboard.worker.LONGEST", 0.5)
    workers = [Worker(lambda started: None) for _ in range(12)]
    for worker in workers:
        worker.submit(lambda: time.sleep(0.1))
        worker.stop()
    for worker in workers:
        worker.join(30)
    assert "let go" not in caplog.text
