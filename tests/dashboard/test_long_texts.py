"""A text that takes long is shown before it is run; the run can be stopped and taken up again; what does not fit is refused before it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lensplorer.dashboard.options import Options
from lensplorer.dashboard.snapshot import later_parts
from tests.dashboard.conftest import Driver

TEXT = "the cat sat on the mat and the dog ran to the shop " * 4


@pytest.fixture
def driver(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Driver:
    """A page on a model that seems slow, with its text run seven tokens at a time."""
    monkeypatch.setattr("lensplorer.stepping.piece_length", lambda model, n: 7)
    made = Driver(Options(), tiny_model("llama"))
    monkeypatch.setattr(made.explorer.costs, "forward", lambda tokens: 0.1 * tokens)
    return made


def test_text_first_numbers_later(driver: Driver) -> None:
    picture = driver("set_prompt", text=TEXT)
    n = len(driver.session.ids)
    assert n > 32 and driver.session.tree.n_runs <= 1
    waiting = {"tokens": n, "of": n, "seconds": pytest.approx(0.1 * n), "held": False}
    assert picture["strip"]["waiting"] == picture["candidates"]["waiting"] == waiting
    assert len(picture["strip"]["tokens"]) == n and picture["strip"]["scores"] == [] and picture["colouring"] == {}
    first, *_ = later_parts(driver.explorer)
    assert len(first["strip"]["scores"][0]["values"]) == n and first["candidates"]["ids"] and first["colouring"]["values"]
    assert "waiting" not in driver.picture["strip"] and driver.picture["strip"] == first["strip"]


def test_a_candidate_cannot_be_taken_before_there_is_one(driver: Driver) -> None:
    driver("set_prompt", text=TEXT)
    before = driver.session.ids
    driver("append")
    assert driver.session.ids == before and driver.message == "The text is still being run: . stops it."
    assert driver.session.tree.n_runs <= 1


def test_stopped_and_taken_up(driver: Driver) -> None:
    driver("set_prompt", text=TEXT)
    explorer = driver.explorer
    told = []
    explorer.costs.tell = told.append
    runs = driver.session.tree.n_runs
    explorer.costs.interrupted = lambda: driver.session.tree.n_runs == runs + 2 and bool(explorer.costs.stop.set() or True)
    assert list(later_parts(explorer)) == []
    assert driver.session.tree.n_runs == runs + 2
    held = driver("stop")
    assert held["strip"]["waiting"]["held"] and held["strip"]["waiting"]["tokens"] == len(driver.session.ids) - 14
    explorer.costs.interrupted = lambda: False
    assert list(later_parts(explorer)) == [] and driver.session.tree.n_runs == runs + 2  # it waits for a word
    driver("append")
    assert driver.message == "The run of this text was stopped: press r to go on."
    assert not driver("run_panel")["strip"]["waiting"]["held"]
    first, *_ = later_parts(explorer)
    assert first["candidates"]["ids"] and "waiting" not in driver.picture["strip"]


def test_a_command_in_between_loses_nothing(driver: Driver) -> None:
    driver("set_prompt", text=TEXT)
    explorer = driver.explorer
    runs = driver.session.tree.n_runs
    explorer.costs.interrupted = lambda: driver.session.tree.n_runs == runs + 3
    assert list(later_parts(explorer)) == []
    explorer.costs.interrupted = lambda: False
    assert driver.picture["strip"]["waiting"]["tokens"] == len(driver.session.ids) - 21
    next(iter(later_parts(explorer)))
    assert driver.session.tree.n_runs == runs + -(-len(driver.session.ids) // 7)


def test_what_does_not_fit_the_memory_is_refused_and_the_session_stays(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver("set_prompt", text="the cat sat")
    before, runs = driver.session.state, driver.session.tree.n_runs
    monkeypatch.setattr("lensplorer.stepping.free_bytes", lambda device: 30_000)
    driver("set_prompt", text=TEXT)
    assert driver.session.state is before and driver.session.tree.n_runs == runs
    assert "of memory, and 0 MB are free. Shorten the text" in driver.picture["status"]["editor"]["error"]
