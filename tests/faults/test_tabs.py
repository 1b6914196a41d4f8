"""Pages that have one tab's key: a duplicate goes its own way, a reload takes the key over, and no tokens are lost."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from lensplorer.dashboard import keeping
from lensplorer.dashboard.options import Options
from lensplorer.dashboard.page import Desk
from lensplorer.errors import ModelError
from tests.faults.children import ended_well, event, hold, in_a_child
from tests.faults.conftest import KEY, PROMPT


class Opened:
    """A page that a browser has opened, without the browser."""

    def __init__(self, model: Any, tab: str | None = KEY, *, arguments: dict[str, list[bytes]] | None = None, load: Any = None) -> None:
        self.desk = Desk(Options(prompt=PROMPT, seed=1), load=load or (lambda name: model))
        self.desk._arguments = arguments or {}
        self.sequence = 0
        self.desk._receive(SimpleNamespace(data={"do": "hello", "tab": tab}))
        self.until(lambda: self.desk.explorer.session is not None and self.ids)

    def until(self, holds: Callable[[], Any]) -> None:
        end = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < end, "the page does not answer"
            time.sleep(0.01)

    def send(self, *commands: str) -> None:
        for command in commands:
            self.sequence += 1
            self.desk._receive(SimpleNamespace(data={"do": command, "seq": self.sequence}))
        self.until(lambda: self.desk.explorer.state.acknowledged >= self.sequence)

    def rest(self) -> None:
        """Until what it shows is kept."""
        done = threading.Event()
        self.desk.worker.submit(lambda: (self.desk._autosave(), done.set()))
        assert done.wait(60)

    @property
    def ids(self) -> tuple[int, ...]:
        return self.desk.explorer.session.ids

    @property
    def message(self) -> str:
        return (self.desk.explorer.state.message or {"text": ""})["text"]

    def close(self) -> None:
        self.desk._stop()
        self.desk.worker.join(60)


@pytest.fixture
def opened(model: Any, home: Any) -> Iterator[Callable[..., Opened]]:
    pages: list[Opened] = []

    def open_page(tab: str | None = KEY, **options: Any) -> Opened:
        pages.append(Opened(model, tab, **options))
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()


def kept(key: str) -> tuple[int, ...]:
    path = keeping.autosaved(key)
    assert path is not None
    state = json.loads(path.read_text(encoding="utf-8"))["state"]
    return tuple(state["prompts"][state["current"]]["ids"])


def test_a_duplicated_tab_starts_from_a_copy_and_keeps_its_own(opened):
    first = opened()
    first.send(*["append"] * 8)
    second = opened()
    assert second.ids == first.ids, "what the first had not yet saved is lost"
    second.until(lambda: "tab" in second.desk.shell._shown)
    fresh = second.desk.shell._shown["tab"]
    assert fresh != KEY and "tab" not in first.desk.shell._shown
    second.send("append")
    first.send("append", "append")
    first.rest()
    second.rest()
    assert kept(KEY) == first.ids and kept(fresh) == second.ids and len(first.ids) == len(second.ids) + 1


def test_a_reloaded_tab_keeps_its_key_and_the_page_before_keeps_nothing_more(opened, monkeypatch):
    first = opened()
    first.send(*["append"] * 8)
    monkeypatch.setattr(first.desk, "_is_looked_at", lambda: False)
    second = opened()
    assert second.ids == first.ids and second.desk._tab == KEY
    second.send("append")
    second.rest()
    first.send("pop", "pop")
    first.rest()
    assert kept(KEY) == second.ids


def test_a_page_that_comes_back_after_its_key_was_taken_gets_another(opened, monkeypatch):
    first = opened()
    first.send("append", "append")
    monkeypatch.setattr(first.desk, "_is_looked_at", lambda: False)
    second = opened()
    second.rest()
    first.desk._receive(SimpleNamespace(data={"do": "hello", "tab": KEY}))
    first.send("append")
    first.rest()
    fresh = first.desk.shell._shown["tab"]
    assert fresh == first.desk._tab != KEY
    assert kept(fresh) == first.ids and kept(KEY) == second.ids


def test_a_closed_page_gives_its_key_up_with_all_that_was_typed(opened):
    first = opened()
    first.send(*["append"] * 3)
    first.close()
    second = opened()
    assert second.desk._tab == KEY and second.ids == first.ids


def test_the_key_of_a_page_in_another_process_is_not_taken(opened, tmp_path):
    first = opened()
    first.send("append")
    first.close()
    held = event()
    child = in_a_child(hold, tmp_path, KEY, held)
    assert held.wait(120)
    second = opened()
    assert second.desk._tab not in (KEY, "") and second.ids == first.ids == kept(second.desk._tab)
    second.send("append")
    second.rest()
    assert kept(KEY) == first.ids and kept(second.desk._tab) == second.ids
    child.kill()
    assert not ended_well(child)
    third = opened()
    assert third.desk._tab == KEY, "a process that was killed holds nothing"


def test_a_knob_that_was_turned_is_kept(opened):
    page = opened()
    page.rest()
    page.desk._receive(SimpleNamespace(data={"do": "set_decoding", "seq": 1, "name": "top_k", "value": 7}))
    page.rest()
    assert json.loads(keeping.autosaved(KEY).read_text(encoding="utf-8"))["sampling"]["decoding"]["top_k"] == 7


def test_a_page_whose_home_cannot_be_written_says_so_and_starts(opened, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file" / "home"))
    page = opened()
    page.until(lambda: page.ids)
    assert "is not kept" in page.message and page.desk._tab == ""
    page.send("append")
    assert page.message == ""


def test_an_autosave_that_cannot_be_written_is_told_and_tried_again(opened, monkeypatch):
    page = opened()
    page.rest()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("lensplorer.formats.files.os.fsync", full)
        page.send("append")
        page.rest()
        assert "No space left" in page.message
    page.rest()
    assert kept(KEY) == page.ids


@pytest.mark.parametrize("damage", ["", "{", '{"format": "lensplorer session", "version": 1}'])
def test_a_damaged_autosave_is_not_overwritten(damage, opened):
    (keeping.folder("autosave") / f"{KEY}.json").write_text(damage, encoding="utf-8")
    page = opened()
    page.until(lambda: page.ids)
    assert "Not resumed" in page.message
    page.send("append")
    page.rest()
    assert kept(KEY) == page.ids
    assert [path.read_text(encoding="utf-8") for path in keeping.folder("autosave").glob("*-damaged-*")] == [damage]


def test_a_link_to_a_model_that_does_not_load_costs_nothing(opened, model):
    first = opened()
    first.send("append")
    first.close()

    def load(name: str | None) -> Any:
        if name == "gone":
            raise ModelError("There is no model 'gone'.")
        return model

    page = Desk(Options(prompt=PROMPT), load=load)
    page._arguments = {"model": [b"gone"]}
    page.worker.submit(partial(page._begin, KEY))
    end = time.monotonic() + 60
    while not page.explorer.state.model_error:
        assert time.monotonic() < end
        time.sleep(0.01)
    page._stop()
    page.worker.join(60)
    assert len(list(keeping.folder("autosave").glob("*-damaged-*"))) == 1


def test_a_page_in_an_endless_loop_says_so_and_the_others_go_on(opened, monkeypatch, caplog):
    monkeypatch.setattr("lensplorer.dashboard.worker.LONGEST", 0.3)
    ends = threading.Event()
    stuck, other = opened(), opened("f" * 32)
    stuck.desk.worker.submit(partial(_loop, ends))
    time.sleep(0.05)
    other.send("append", "append")
    assert "is let go" in caplog.text and "_loop" in caplog.text and stuck.desk.worker._thread.name in caplog.text
    stuck.desk._receive(SimpleNamespace(data={"do": "append", "seq": 1}))
    stuck.until(lambda: "Reload it" in ((stuck.desk.shell._shown.get("status") or {}).get("message") or {}).get("text", ""))
    again = opened()
    assert again.desk._tab != KEY and again.ids
    ends.set()
    stuck.until(lambda: stuck.desk.explorer.state.acknowledged == 1)
    assert not stuck.desk.worker.is_stuck


def _loop(ends: threading.Event) -> None:
    while not ends.is_set():
        time.sleep(0.01)
