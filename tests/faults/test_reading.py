"""Files that are damaged, each in one way: said in a sentence, kept, and the page starts. Nothing that is read changes anything before all of it has
been checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lensplorer.dashboard import keeping
from lensplorer.dashboard.options import Options
from lensplorer.dashboard.snapshot import later_parts
from lensplorer.errors import SessionError
from lensplorer.session import Session
from tests.dashboard.conftest import Driver
from tests.faults.conftest import KEY, PROMPT
from tests.faults.damages import DAMAGES, PAGE_DAMAGES, damaged

ALL = DAMAGES | PAGE_DAMAGES


def autosave_of(data: bytes) -> Path:
    path = keeping.folder("autosave") / f"{KEY}.json"
    path.write_bytes(data)
    return path


def is_a_sentence(text: str) -> bool:
    return text.endswith((".", "?")) and "Traceback" not in text and len(text) < 2_000


@pytest.mark.parametrize("name", DAMAGES)
def test_a_session_refuses_it_and_stays_as_it_was(name, content, model, tmp_path):
    session, path = Session(model, PROMPT), tmp_path / "session.json"
    path.write_bytes(damaged(content, DAMAGES[name]))
    before = session.state, session.decoding, session.constraint
    with pytest.raises(SessionError) as refused:
        session.load(path)
    assert is_a_sentence(str(refused.value)), refused.value
    assert (session.state, session.decoding, session.constraint) == before


@pytest.mark.parametrize("name", ALL)
def test_a_page_that_opens_it_says_so_and_goes_on(name, content, page):
    path = keeping.folder("sessions") / "one.json"
    path.write_bytes(damaged(content, ALL[name]))
    data = path.read_bytes()
    page("append")
    before = page.session.state, page.explorer.state.view, page.explorer.state.open, dict(page.explorer.settings)
    page("open_session", kind="sessions", name="one")
    page.wait()
    assert is_a_sentence(page.message)
    assert (page.session.state, page.explorer.state.view, page.explorer.state.open, page.explorer.settings) == before
    assert path.read_bytes() == data
    assert "tokens" in page.picture["strip"]


@pytest.mark.parametrize("name", ALL)
def test_a_page_that_resumes_it_starts_and_keeps_it(name, content, model, home):
    data = damaged(content, ALL[name])
    path = autosave_of(data)
    fresh = Driver(Options(prompt=PROMPT), load=lambda name: model)
    keeping.resume(fresh.explorer, path)
    fresh.wait()
    assert is_a_sentence(fresh.message) and "Not resumed" in fresh.message
    assert fresh.session.text == PROMPT and "tokens" in fresh.picture["strip"]
    list(later_parts(fresh.explorer))
    keeping.autosave(fresh.explorer, KEY)
    kept = [each for each in path.parent.glob("*.json") if each.read_bytes() == data]
    assert len(kept) == 1 and str(kept[0]) in fresh.message


def test_the_whole_file_comes_back(content, model, page):
    """The tables above are about something: without a damage, all of it is there."""
    fresh = Driver(Options(prompt="the"), load=lambda name: model)
    path = autosave_of(damaged(content, lambda whole: whole))
    keeping.resume(fresh.explorer, path)
    fresh.wait()
    assert fresh.message == ""
    assert fresh.session.state == page.session.state
    assert fresh.session.decoding == page.session.decoding and fresh.session.constraint == page.session.constraint
    assert fresh.explorer.state.view == page.explorer.state.view and fresh.explorer.settings == page.explorer.settings
    assert fresh.explorer.state.open is page.explorer.state.open is None  # the browser's choice
    session = Session(model)
    session.load(path)
    assert session.state == page.session.state


def test_a_file_cut_short_at_every_tenth_byte(content, model, tmp_path):
    session, path = Session(model, PROMPT), tmp_path / "session.json"
    data, before = damaged(content, lambda whole: whole), session.state
    for end in range(0, len(data), 10):
        path.write_bytes(data[:end])
        with pytest.raises(SessionError, match="not valid JSON"):
            session.load(path)
    assert session.state is before


def test_a_file_that_is_too_large_is_not_read(content, model, tmp_path, monkeypatch):
    monkeypatch.setattr("lensplorer.sessionfile.MAX_BYTES", 100)
    path = tmp_path / "session.json"
    path.write_bytes(damaged(content, lambda whole: whole))
    with pytest.raises(SessionError, match="is larger than"):
        Session(model).load(path)
    with pytest.raises(SessionError, match="are the most"):
        Session(model, PROMPT).save(tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()


def test_damaged_files_do_not_keep_the_others_from_being_listed(content, page):
    for number, name in enumerate(DAMAGES):
        (keeping.folder("sessions") / f"{number}.json").write_bytes(damaged(content, DAMAGES[name]))
    (keeping.folder("sessions") / "a folder.json").mkdir()
    page("save")
    rows = page("list_sessions")["status"]["saved"]
    assert rows[0]["prompts"] == 2 and rows[0]["model"] == content["model"]["name"]


def test_a_page_kept_by_the_first_versions_is_read(content, model, home):
    page = content.pop("page")
    path = autosave_of(json.dumps(content).encode())
    path.with_suffix(".page.json").write_text(json.dumps(page), encoding="utf-8")
    fresh = Driver(Options(), load=lambda name: model)
    keeping.resume(fresh.explorer, path)
    fresh.wait()
    assert fresh.explorer.state.view == "entropy" and fresh.message == ""


def test_a_damaged_page_of_the_first_versions_is_kept_with_its_session(content, model, home):
    del content["page"]
    path = autosave_of(json.dumps(content).encode())
    path.with_suffix(".page.json").write_text("[" * 100_000, encoding="utf-8")
    fresh = Driver(Options(prompt=PROMPT), load=lambda name: model)
    keeping.resume(fresh.explorer, path)
    fresh.wait()
    assert "Not resumed" in fresh.message and fresh.session.text == PROMPT
    assert len(list(path.parent.glob(f"{KEY}-damaged-*.page.json"))) == 1 and len(list(path.parent.glob(f"{KEY}-damaged-*.json"))) == 2


def test_a_model_that_does_not_load_costs_nothing(content, model, home):
    content["model"]["name"] = "gone"

    def load(name: Any) -> Any:
        if name == "gone":
            raise SessionError("There is no model 'gone'.")
        return model

    path = autosave_of(json.dumps(content).encode())
    fresh = Driver(Options(prompt=PROMPT), load=load)
    keeping.resume(fresh.explorer, path)
    fresh.wait()
    assert "no model 'gone'" in fresh.message and fresh.session.text == PROMPT
    assert json.loads(next(path.parent.glob("*.json")).read_text(encoding="utf-8")) == content


@pytest.mark.parametrize(
    "query",
    [
        {"ids": "1,x"},
        {"ids": "9" * 5_001},
        {"ids": "-1"},
        {"ids": ",".join(["1"] * 10_000)},
        {"ids": "1,99999999"},
        {"prompt": PROMPT, "view": "nothing"},
        {"prompt": PROMPT, "cursor": "1e9"},
        {"prompt": PROMPT, "cursor": "999"},
        {"prompt": PROMPT, "cursor": "-7"},
        {"prompt": PROMPT, "cursor": "٣"},
    ],
    ids=str,
)
def test_a_damaged_link_is_told_and_costs_nothing(query, content, model, home):
    path = autosave_of(json.dumps(content).encode())
    fresh = Driver(Options(prompt=PROMPT), load=lambda name: model)
    keeping.follow_link(fresh.explorer, query, kept=path)
    fresh("load_model", model="tiny")
    fresh.wait()
    assert "link" in fresh.message and fresh.session.text == PROMPT and fresh.explorer.state.view == "probability"
    keeping.autosave(fresh.explorer, KEY)
    assert content in [json.loads(each.read_text(encoding="utf-8")) for each in path.parent.glob("*.json")]
