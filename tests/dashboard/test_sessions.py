"""Many pages over one model: each is right, none sees another, and one that is closed leaves nothing behind."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lensplorer.analyses.scores import next_token
from lensplorer.dashboard.options import Options
from lensplorer.dashboard.page import Desk
from lensplorer.heap import freeze_imports
from lensplorer.trace import run_trace
from tests.dashboard.conftest import Driver

COMMANDS = ("append", "append", "pop", "branch", "select_next", "cursor_previous", "cursor_last", "view_next")


class Page:
    """A page without a browser: commands go in as messages, what it would draw is read from its shell."""

    def __init__(self, model: Any, prompt: str) -> None:
        self.settled = threading.Event()
        self.on_settled: Callable[[], None] = lambda: None
        self.desk = Desk(Options(prompt=prompt), load=lambda name: model)
        self.n_sent = 0
        show = self.desk.shell.show

        def heard(parts: dict[str, Any]) -> set[str]:
            changed = show(parts)
            if parts.get("settled", {}).get("seq", -1) >= self.n_sent:
                self.on_settled()
                self.settled.set()
            return changed

        self.desk.shell.show = heard  # type: ignore[method-assign]
        self.desk.worker.submit(lambda: self.desk.explorer.use(model))

    def send(self, command: str, **arguments: Any) -> None:
        self.n_sent += 1
        self.settled.clear()
        self.desk._receive(SimpleNamespace(data={"do": command, "seq": self.n_sent, **arguments}))

    def wait(self) -> None:
        assert self.settled.wait(120), "the page does not answer"

    @property
    def shown(self) -> dict[str, Any]:
        return self.desk.shell._shown

    def close(self) -> None:
        self.desk._stop()
        self.desk.worker.join(60)
        for thread in threading.enumerate():
            if thread.name.startswith("lensplorer-load"):
                thread.join(60)


def walk(number: int) -> list[str]:
    return random.Random(number).choices(COMMANDS, k=25)


@pytest.fixture
def pages(tiny_model):
    made = [Page(tiny_model("gpt2"), "the cat sat on " + "the mat " * (number % 3)) for number in range(20)]
    yield made
    for page in made:
        page.close()


def test_twenty_pages_at_once_are_as_twenty_alone(pages, tiny_model):
    for step in range(25):  # turn by turn, so that each page's commands fall between the others'
        for number, page in enumerate(pages):
            page.send(walk(number)[step])
    model = tiny_model("gpt2")
    for number, page in enumerate(pages):
        page.wait()
        alone = Driver(Options(prompt=page.desk.explorer.options.prompt), model)
        for command in walk(number):
            picture = alone(command)
        ids = page.shown["strip"]["ids"]
        assert ids == picture["strip"]["ids"] and page.shown["prompts"] == picture["prompts"]
        assert page.shown["candidates"]["ids"] == picture["candidates"]["ids"]
        fresh = next_token(run_trace(model, ids), k=30, position=picture["candidates"]["position"])
        np.testing.assert_allclose(page.shown["candidates"]["probabilities"], fresh.probability.values, rtol=1e-3)


def test_a_closed_page_leaves_nothing_behind(tiny_model):
    freeze_imports()  # as a server does before it loads a model
    page = Page(tiny_model("gpt2"), "the cat sat on")
    page.send("append")
    page.wait()
    tree, desk = weakref.ref(page.desk.explorer.session.tree), weakref.ref(page.desk)
    page.close()
    del page
    gc.collect()
    assert tree() is None and desk() is None
