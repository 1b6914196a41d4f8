"""The one table of commands: whole, without double keys, and each command does to the session what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lensplorer.dashboard
from lensplorer.analyses.scores import next_token
from lensplorer.dashboard.actions import COMMANDS, command_table
from lensplorer.dashboard.options import Options
from lensplorer.trace import run_trace
from tests.dashboard.conftest import Driver

SCRIPTS = Path(lensplorer.dashboard.__file__).parent / "js"


def test_no_key_has_two_commands_and_no_name_comes_twice():
    keys = [key for command in COMMANDS for key in command.keys]
    assert len(keys) == len(set(keys))
    assert len({command.name for command in COMMANDS}) == len(COMMANDS)


def test_every_command_with_a_key_is_in_the_help_sheet():
    assert all(command.group and command.label for command in COMMANDS if command.keys)


def test_what_the_server_does_not_do_the_browser_does():
    shell = (SCRIPTS / "shell.js").read_text(encoding="utf-8")
    table = shell[shell.index("const inBrowser = {") : shell.index("/** Do a command;")]
    for command in command_table():
        assert command["remote"] != (f"    {command['name']}:" in table), command["name"]


def test_every_button_has_an_icon():
    base = (SCRIPTS / "base.js").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert bool(command.place) == bool(command.icon)
        assert not command.icon or f"  {command.icon}: " in base or f'  "{command.icon}": ' in base, command.name


def test_append_takes_the_selected_candidate_and_the_selection_returns_to_the_top(drive):
    before = drive.session.ids
    expected = next_token(run_trace(drive.session.model, list(before)), k=3).token_id.values
    drive("select_next")
    drive("select_next")
    picture = drive("append")
    assert drive.session.ids == (*before, int(expected[2]))
    assert picture["candidates"]["selected"] == 0


def test_appends_ahead_of_the_page_follow_the_prompt_not_the_old_list(drive):
    start = drive.session.ids
    for _ in range(5):
        drive.explorer.perform({"do": "append", "seq": 1})
    ids = list(start)
    for _ in range(5):
        ids.append(int(run_trace(drive.session.model, ids).logits[-1].argmax()))
    assert drive.session.ids == tuple(ids)


def test_append_of_a_clicked_token_takes_that_token(drive):
    before = drive.session.ids
    drive("append", token_id=17)
    assert drive.session.ids == (*before, 17)


def test_selection_stops_at_the_ends(drive):
    assert drive("select_previous")["candidates"]["selected"] == 0
    n = len(drive.picture["candidates"]["ids"])
    for _ in range(n + 3):
        picture = drive("select_next")
    assert picture["candidates"]["selected"] == n - 1


def test_at_the_cursor_the_same_token_walks_on_and_another_one_branches(drive):
    ids = drive.session.ids
    drive("put_cursor", to=1)
    picture = drive("append", token_id=ids[2])
    assert (drive.session.ids, drive.session.state.cursor) == (ids, 2)
    other = next(token for token in picture["candidates"]["ids"] if token != ids[3])
    picture = drive("append", token_id=other)
    assert drive.session.ids == (*ids[:3], other)
    assert [row["depth"] for row in picture["prompts"]["rows"]] == [0, 1]
    assert drive.session.state.prompts[0].ids == ids


def test_a_cursor_on_the_last_token_follows_what_is_appended(drive):
    drive("cursor_last")
    drive("append")
    assert drive.session.state.cursor == len(drive.session.ids) - 1


def test_cursor_commands(drive):
    last = len(drive.session.ids) - 1
    assert drive("toggle_cursor")["status"]["cursor"] == last
    assert drive("cursor_previous")["status"]["cursor"] == last - 1
    assert drive("cursor_first")["status"]["cursor"] == 0
    assert drive("cursor_previous")["status"]["cursor"] == 0
    assert drive("cursor_next")["status"]["cursor"] == 1
    word = drive("cursor_next_word")["status"]["cursor"]
    assert word > 1
    assert drive("cursor_previous_word")["status"]["cursor"] < word
    assert drive("cursor_last")["status"]["cursor"] == last
    assert drive("put_cursor", to=10_000)["status"]["cursor"] == last
    assert drive("toggle_cursor")["status"]["cursor"] is None


def test_prompts_branches_undo(drive):
    ids = drive.session.ids
    drive("branch")
    drive("append")
    assert drive("previous_prompt")["status"]["n"] == len(ids)
    assert drive("next_prompt")["status"]["n"] == len(ids) + 1
    assert drive("reset")["status"]["n"] == len(ids)
    assert drive("undo")["status"]["n"] == len(ids) + 1
    assert drive("redo")["status"]["n"] == len(ids)
    assert len(drive("remove")["prompts"]["rows"]) == 1
    drive("remove")
    assert "only prompt" in drive.message


def test_views_go_round_and_by_number(drive):
    names = list(drive.explorer.views)
    assert names[:2] == ["prompt", "probability"]
    seen = [drive("next_view")["status"]["view"] for _ in names]
    assert sorted(seen) == sorted(names)
    assert drive("previous_view")["status"]["view"] == names[0]
    assert drive("go_to_view", key="3")["status"]["view"] == names[2]
    drive("go_to_view", index=99)
    assert "no view 100" in drive.message


def test_layers_stop_at_the_ends(drive):
    drive.explorer.state.view = "residual"
    assert drive("next_layer")["colouring"]["layer"] == 3
    for layer in (2, 1, 0, 0):
        assert drive("previous_layer")["colouring"]["layer"] == layer


def test_search_keeps_only_what_contains_it(drive):
    found = drive("search", text="at")["candidates"]
    assert found["ids"] and all("at" in token.lower() for token in found["tokens"])
    assert np.all(np.diff(found["ranks"]) > 0)
    nothing = drive("search", text="zzzzzz")["candidates"]
    assert nothing["ids"] == []
    before = drive.session.ids
    drive("append")
    assert "zzzzzz" in drive.message and drive.session.ids == before


def test_save_writes_a_session_file(drive, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    drive("save")
    drive("save")
    files = [path for path in (tmp_path / "lensplorer" / "sessions").glob("*.json") if not path.name.endswith(".page.json")]
    assert len(files) == 2 and any(str(file) in drive.message for file in files)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("append", {"token_id": "<script>"}),
        ("append", {"token_id": 10**9}),
        ("append", {"token_id": True}),
        ("put_cursor", {}),
        ("put_cursor", {"to": -1}),
        ("select", {"index": 1.5}),
        ("go_to_prompt", {"index": 7}),
        ("search", {"text": 3}),
        ("set_prompt", {}),
        ("set_theme", {"theme": "pink"}),
        ("go_to_view", {"key": "0"}),
        ("help", {}),
        ("__class__", {}),
    ],
)
def test_a_bad_command_is_told_and_changes_nothing(drive, command, arguments):
    before = drive.session.state
    picture = drive(command, **arguments)
    assert picture["status"]["message"]["kind"] == "error" and len(drive.message) > 10
    assert drive.session.state == before
    assert picture["status"]["acknowledged"] == drive.seq


def test_sampled_steps_follow_the_seed(tiny_model):
    pages = [Driver(Options(prompt="the cat", seed=5), tiny_model("gpt2")) for _ in range(2)]
    for page in pages:
        for _ in range(6):
            page("sample")
    assert pages[0].session.ids == pages[1].session.ids and len(pages[0].session.ids) > 6
    assert page("undo")["status"]["n"] == len(pages[0].session.ids) - 1


def test_play_goes_on_until_paused_or_stopped(drive):
    drive("play")
    for _ in range(3):
        drive.explorer.play_on()
    n = len(drive.session.ids)
    assert drive.picture["status"]["playing"] and n > 5
    drive("play")
    drive.explorer.play_on()
    assert len(drive.session.ids) == n
    drive("play")
    for _ in range(80):
        drive.explorer.play_on()
    assert not drive.picture["status"]["playing"] and drive.message.startswith("Stopped: ")


def test_a_message_stays_until_the_person_does_something(drive):
    drive("put_cursor", to="nowhere")
    said = drive.message
    assert said
    drive("show_panels", names=["lens"])
    assert drive.message == said
    drive("append")
    assert not drive.message
