"""What is kept of a page: saved sessions, autosaves, links."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest

import lensplorer as lp
from lensplorer.dashboard import keeping
from lensplorer.dashboard.options import Options
from lensplorer.errors import SessionError
from tests.dashboard.conftest import Driver

KEY = "0123456789abcdef" * 2


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def story(storyworld, home) -> Driver:
    driver = Driver(Options(prompt="Once upon a", seed=1), storyworld, load=lambda name: lp.load_model(name or "storyworld"))
    driver.wait_for_saes()
    return driver


def arranged(driver: Driver) -> None:
    driver("append")
    driver("branch")
    driver("append", token_id=40)
    driver("put_cursor", to=2)
    driver("set_control", panel="attention", name="show", value="one head")
    driver("arrange", names=["lens", "attention"])
    driver("go_to_view", index=2)
    driver("scale_feature", feature=3, factor=0.5)


def test_a_page_is_resumed_from_its_autosave(story, storyworld):
    arranged(story)
    keeping.autosave(story.explorer, KEY)
    fresh = Driver(Options(), load=lambda name: storyworld)
    keeping.resume(fresh.explorer, keeping.autosaved(KEY))
    fresh.wait()
    assert fresh.session.state == story.session.state
    assert fresh.explorer.state.view == story.explorer.state.view == "entropy"
    assert fresh.explorer.state.open == ["lens", "attention"]
    assert fresh.explorer.settings == story.explorer.settings
    assert fresh.explorer.saes.loaded.keys() == story.explorer.saes.loaded.keys()
    assert fresh.picture["candidates"]["ids"] == story.picture["candidates"]["ids"]


def test_saved_sessions_are_listed_and_opened(story):
    arranged(story)
    story("save")
    saved = story.session.state
    story("reset")
    story("clear_interventions")
    row = story("list_sessions")["status"]["saved"][0]
    assert row["model"] == "storyworld" and row["prompts"] == 2
    story("open_session", kind=row["kind"], name=row["name"])
    assert story.session.state == saved, story.message


@pytest.mark.parametrize("name", ["../../etc/passwd", "nothing", "a/b", ""])
def test_only_saved_sessions_are_opened(story, name):
    before = story.session.state
    story("open_session", kind="sessions", name=name)
    assert story.message and story.session.state == before
    story("open_session", kind="../sessions", name="x")
    assert "no saved session" in story.message


def test_a_damaged_autosave_is_told_and_the_page_starts(story, storyworld):
    keeping.autosave(story.explorer, KEY)
    path = keeping.autosaved(KEY)
    path.write_text(path.read_text(encoding="utf-8").replace('"prompts"', '"promts"'), encoding="utf-8")
    fresh = Driver(Options(prompt="Once"), load=lambda name: storyworld)
    keeping.resume(fresh.explorer, path)
    fresh.wait()
    assert "Not resumed" in fresh.message and fresh.session.ids


@pytest.mark.parametrize("key", ["", "../../x", "0" * 31, "G" * 32, "0" * 33])
def test_a_key_of_a_tab_is_checked(home, key):
    with pytest.raises(SessionError):
        keeping.autosaved(key)


def test_old_autosaves_go(story, monkeypatch):
    monkeypatch.setattr(keeping, "_MOST_AUTOSAVES", 2)
    for i in range(5):
        keeping.autosave(story.explorer, f"{i:032x}")
    keeping.forget_old()
    assert sorted(path.stem for path in keeping.folder("autosave").glob("*.json")) == [f"{i:032x}" for i in (3, 4)]


@pytest.mark.parametrize("tokens", [(), (40, 41)])
def test_a_link_brings_the_page_back(story, storyworld, tokens):
    for token_id in tokens:
        story("append", token_id=token_id)
    story("put_cursor", to=1)
    story("go_to_view", index=5)
    link = story("copy_link")["status"]["download"]["link"]
    query = dict(parse_qsl(link.removeprefix("?")))
    assert query["model"] == "storyworld"
    fresh = Driver(Options(), load=lambda name: storyworld)
    assert keeping.follow_link(fresh.explorer, query)
    fresh("load_model", model=query["model"])
    fresh.wait()
    assert fresh.session.ids == story.session.ids
    assert fresh.explorer.state.view == story.explorer.state.view and fresh.session.state.cursor == 1


@pytest.mark.parametrize("query", [{"ids": "1,x"}, {"ids": "99999999"}, {"prompt": "Once", "view": "nothing"}, {"prompt": "Once", "cursor": "99"}])
def test_a_damaged_link_is_told_and_the_page_starts(storyworld, query):
    driver = Driver(Options(prompt="Once upon"), load=lambda name: storyworld)
    keeping.follow_link(driver.explorer, query)
    driver("load_model", model="storyworld")
    driver.wait()
    assert "link" in driver.message and driver.session.ids


def test_a_full_disk_is_told(story, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lensplorer.formats.files.os.fsync", full)
    story("save")
    assert "No space left" in story.message and story.picture["strip"]["tokens"]
    assert not list(keeping.folder("sessions").iterdir())
