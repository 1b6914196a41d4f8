"""Saving that is interrupted or refused: the file is the old one or the new one, what cannot be written is said, and nothing is left behind."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lensplorer.dashboard import keeping
from lensplorer.errors import AnalysisError, LensplorerError, SamplingError, SessionError
from lensplorer.interventions import clamp_feature, patch, scale, steer
from lensplorer.sampling.grammars import Constraint
from lensplorer.sampling.params import DecodingParams
from lensplorer.session import Session
from lensplorer.sessionfile import write_session
from tests.faults.children import ended_well, go_on_with_a_full_disk, in_a_child, keep_saving, save_forty_times, save_on_a_full_disk
from tests.faults.conftest import KEY, PROMPT
from tests.tiny import D_VOCAB

HALF = "\ud800"


def whole(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


# -- killed ----------------------------------------------------------------------------------------------------------------------


def test_twenty_kills_while_saving_leave_a_whole_file(tmp_path):
    path, moments = tmp_path / "session.json", random.Random(17)
    number = 0
    write_session(path, {"number": number})
    for _ in range(20):
        child = in_a_child(keep_saving, path, number)
        time.sleep(moments.uniform(0.0, 0.2))
        child.kill()
        assert not ended_well(child)
        found = whole(path)
        assert found["number"] >= number
        assert found["number"] == 0 or len(found["text"]) == 200_000
        number = found["number"]
    assert number > 0, "the kills came before anything was saved"


def test_what_a_killed_page_left_is_taken_away(page):
    keeping.autosave(page.explorer, KEY)
    half = keeping.folder("autosave") / f".{KEY}.json.0123456789abcdef.tmp"
    half.write_bytes(b"{")
    held = keeping.hold(KEY)
    keeping.forget_old()
    assert half.exists(), "a page holds the key and may be writing"
    held.close()
    keeping.forget_old()
    assert not half.exists() and keeping.autosaved(KEY) is not None


# -- no room, no right -----------------------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_old_file(tmp_path):
    path = tmp_path / "session.json"
    write_session(path, {"number": 1})
    assert ended_well(in_a_child(save_on_a_full_disk, path))
    assert whole(path) == {"number": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_on_a_full_disk_says_so_and_goes_on(page, home, tiny_folder):
    keeping.autosave(page.explorer, KEY)
    before = whole(keeping.autosaved(KEY))
    assert ended_well(in_a_child(go_on_with_a_full_disk, tiny_folder("gpt2"), home, KEY, fresh=True))
    assert whole(keeping.autosaved(KEY)) == before
    assert not list(keeping.folder("sessions").iterdir())


def test_a_home_that_cannot_be_written_is_told(page, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file" / "home"))
    for command in ("save", "list_sessions"):
        page(command)
        assert "cannot be made" in page.message
    page("pop")
    assert page.message == ""


# -- at once ---------------------------------------------------------------------------------------------------------------------


def test_eight_saves_at_once_are_eight_files(page):
    saved: list[Path] = []
    threads = [threading.Thread(target=lambda: saved.append(keeping.save(page.explorer))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({*saved}) == 8
    for path in saved:
        Session(page.session.model).load(path)


def test_two_processes_that_write_one_file_leave_it_whole(tmp_path):
    path = tmp_path / "session.json"
    write_session(path, {"who": "nobody", "text": "nobody" * 30_000})

    children = [in_a_child(save_forty_times, path, who) for who in ("one", "other")]
    for _ in range(200):
        found = whole(path)
        assert found["text"] == found["who"] * 30_000
    assert all(map(ended_well, children))
    assert list(tmp_path.iterdir()) == [path]


# -- clocks ----------------------------------------------------------------------------------------------------------------------


def test_a_clock_that_goes_back_does_not_cost_the_newest(page, monkeypatch):
    monkeypatch.setattr(keeping, "_MOST_AUTOSAVES", 2)
    for number in range(4):
        keeping.autosave(page.explorer, f"{number:032x}")
        path = keeping.autosaved(f"{number:032x}")
        os.utime(path, (4e9 + number, 4e9 + number))  # in 2096
    keeping.autosave(page.explorer, KEY)
    keeping.forget_old()
    assert keeping.autosaved(KEY) is not None
    assert len(list(keeping.folder("autosave").glob("*.json"))) == 2
    assert page("list_sessions")["status"]["saved"][0]["name"] == KEY


def test_those_set_aside_are_bounded_and_the_newest_stay(page, monkeypatch):
    monkeypatch.setattr(keeping, "_MOST_ASIDE", 3)
    for number in range(6):
        keeping.autosave(page.explorer, KEY)
        path = keeping.autosaved(KEY)
        path.write_text(str(number), encoding="utf-8")
        keeping.set_aside(path)
    keeping.forget_old()
    assert {path.read_text(encoding="utf-8") for path in keeping.folder("autosave").glob("*.json")} == {"3", "4", "5"}


# -- what no file can hold -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("set_decoding", {"name": "stop_sequences", "value": "\\ud800"}),
        ("constrain", {"kind": "choice", "text": HALF}),
        ("constrain", {"kind": "regex", "text": f"a{HALF}"}),
        ("set_control", {"panel": "interventions", "name": "towards", "value": HALF}),
        ("set_control", {"panel": "interventions", "name": "factor", "value": float("inf")}),
        ("scale_feature", {"feature": 1, "factor": float("nan")}),
    ],
)
def test_a_page_refuses_what_could_not_be_saved(command, arguments, page):
    page(command, **arguments)
    assert page.message.endswith((".", "?"))
    page("save")
    assert page.message.startswith("Saved to ")
    Session(page.session.model).load(next(keeping.folder("sessions").glob("*.json")))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: DecodingParams(stop_sequences=(HALF,)), SamplingError),
        (lambda: DecodingParams(stop_sequences=("x",) * 101), SamplingError),
        (lambda: DecodingParams(top_k=2**63), SamplingError),
        (lambda: Constraint("multiple_choice", HALF), SamplingError),
        (lambda: Constraint.json_schema({"const": HALF}), SamplingError),
        (lambda: Constraint.regex("x" * 200_001), SamplingError),
        (lambda: patch("blocks.0.hook_resid_pre", HALF), AnalysisError),
        (lambda: steer((HALF, "b"), 1), AnalysisError),
        (lambda: steer(("a", "b"), 1, float("inf")), AnalysisError),
        (lambda: scale("blocks.0.hook_mlp_out", float("nan")), AnalysisError),
    ],
)
def test_a_library_refuses_what_could_not_be_saved(make, error):
    with pytest.raises(error):
        make()


@pytest.mark.parametrize("content", [{"text": HALF}, {HALF: 1}, {"number": float("nan")}])
def test_a_writer_that_is_given_it_leaves_nothing(content, tmp_path):
    with pytest.raises(SessionError, match="what no file can"):
        write_session(tmp_path / "session.json", content)
    assert not list(tmp_path.iterdir())


def test_interventions_deeper_than_a_file_are_not_written(model, tmp_path):
    from dataclasses import replace

    from lensplorer.interventions.values import Reference

    intervention = patch("blocks.0.hook_resid_pre", "the cat")
    for _ in range(40):
        intervention = replace(intervention, reference=Reference("the cat", "", (intervention,)))
    session = Session(model, PROMPT)
    session.state = replace(session.state, interventions=(intervention,))
    with pytest.raises(SessionError, match="too many times over"):
        session.save(tmp_path / "session.json")
    assert not list(tmp_path.iterdir())


# -- whatever a session can become comes back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_every_walk_comes_back(seed, model, tmp_path):
    draw = random.Random(seed)
    session = Session(model, PROMPT, max_prompts=4)
    actions: list[Callable[[], Any]] = [
        lambda: session.append(draw.randrange(D_VOCAB)),
        lambda: session.sample_step(3),
        lambda: session.pop(draw.randrange(1, 4)),
        session.branch,
        session.remove,
        session.next_prompt,
        session.reset,
        session.undo,
        lambda: session.choose(draw.randrange(1, 9), draw.randrange(D_VOCAB)),
        lambda: session.move_cursor(draw.randrange(-3, 4)),
        lambda: session.constrain(Constraint.regex("(.|\n)*"), from_here=True),
        lambda: session.constrain(None),
        lambda: session.set_prompt("the dog"),
    ]
    for step in range(60):
        try:
            draw.choice(actions)()
        except LensplorerError:
            continue
        if step % 4 == 0:
            session.save(tmp_path / "session.json")
            other = Session(model)
            other.load(tmp_path / "session.json")
            assert (other.state, other.decoding, other.constraint) == (session.state, session.decoding, session.constraint)


def test_a_feature_of_an_sae_that_was_taken_off_comes_back(storyworld, home):
    from lensplorer.dashboard.options import Options
    from tests.dashboard.conftest import Driver

    page = Driver(Options(prompt="Once upon a"), storyworld)
    page.wait_for_saes()
    name = page.explorer.saes.chosen
    page.session.intervene(clamp_feature(page.explorer.saes.loaded[name], 3, 2.0))
    page("take_off_sae", name=name)
    assert page.message == "" and name not in page.explorer.saes.loaded
    keeping.autosave(page.explorer, KEY)
    fresh = Driver(Options(), load=lambda name: storyworld)
    keeping.resume(fresh.explorer, keeping.autosaved(KEY))
    fresh.wait()
    assert fresh.message == "" and fresh.session.interventions == page.session.interventions


def test_an_sae_that_does_not_load_costs_neither_the_session_nor_itself(storyworld, home, monkeypatch):
    from lensplorer.dashboard.options import Options
    from tests.dashboard.conftest import Driver

    page = Driver(Options(prompt="Once upon a"), storyworld)
    page.wait_for_saes()
    page("append")
    keeping.autosave(page.explorer, KEY)
    monkeypatch.setattr("lensplorer.dashboard.saes._load", lambda table: (None, "The hub cannot be reached."))
    fresh = Driver(Options(prompt="The"), load=lambda name: storyworld)
    keeping.resume(fresh.explorer, keeping.autosaved(KEY))
    fresh.wait()
    assert fresh.session.ids == page.session.ids and "hub cannot be reached" in fresh.message
    keeping.autosave(fresh.explorer, KEY)
    aside = next(keeping.folder("autosave").glob("*-damaged-*.json"))
    assert str(aside) in fresh.message and whole(aside)["page"]["saes"]
