"""The explorer: prompts that are refused, models that do not load, and panels that fail alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lensplorer.analyses.scores import next_token, token_scores
from lensplorer.config import Config, ModelConfig
from lensplorer.dashboard.options import Options
from lensplorer.dashboard.panels.base import plain
from lensplorer.dashboard.snapshot import later_parts
from lensplorer.errors import AnalysisError, ModelError
from lensplorer.trace import run_trace
from tests.dashboard.conftest import Driver


def test_the_page_shows_the_library_s_numbers(drive):
    picture = drive.picture
    trace = run_trace(drive.session.model, list(drive.session.ids))
    np.testing.assert_allclose(picture["colouring"]["values"][1:], token_scores(trace).probability.values[1:], rtol=5e-5)
    assert picture["colouring"]["values"][0] is None
    expected = next_token(trace, k=30)
    assert picture["candidates"]["ids"] == expected.token_id.values.tolist()
    np.testing.assert_allclose(picture["candidates"]["probabilities"], expected.probability.values, rtol=1e-4)


def test_every_view_gives_a_number_per_token_within_its_scale(drive):
    for view in drive.explorer.views.values():
        drive.explorer.state.view = view.name
        strip = next(later_parts(drive.explorer), {}).get("colouring") or drive.picture["colouring"]
        if view.name == "features":
            assert "No SAE is loaded" in strip["error"]
            continue
        assert "error" not in strip, (view.name, strip.get("error"))
        if view.colour is None:
            assert "values" not in strip
            continue
        assert len(strip["values"]) == len(drive.session.ids)
        known = np.array([value for value in strip["values"] if value is not None])
        slack = 1e-4 * (strip["high"] - strip["low"])  # what is sent is rounded
        assert known.size and strip["low"] - slack <= known.min() and known.max() <= strip["high"] + slack, view.name


def test_the_lens_ends_in_the_candidates(drive):
    drive("put_cursor", to=2)
    drive("show_panels", names=["lens"])
    (part,) = later_parts(drive.explorer)
    lens = part["panel.lens"]
    (grid,) = lens["figures"]
    assert grid["texts"][0][grid["mark"]] == drive.picture["candidates"]["tokens"][0]
    assert len(grid["rows"]) == drive.explorer.n_layers + 1
    assert lens["badge"]["level"] == "good"


def test_an_empty_prompt_is_refused_and_the_old_one_stays(drive):
    before = drive.session.ids
    picture = drive("set_prompt", text="")
    assert "empty" in picture["status"]["editor"]["error"] and not picture["status"]["editor"]["can_truncate"]
    assert drive.session.ids == before
    assert drive("forget_editor")["status"]["editor"] is None


def test_a_long_prompt_is_refused_with_the_count_and_truncated_only_when_asked(drive):
    text = "the cat sat " * 60
    editor = drive("set_prompt", text=text)["status"]["editor"]
    assert "64" in editor["error"] and "truncate=True" not in editor["error"] and editor["can_truncate"]
    picture = drive("set_prompt", text=text, truncate=True)
    assert picture["status"]["editor"] is None and picture["status"]["n"] == 64
    drive("append")
    assert "64" in drive.message and len(drive.session.ids) == 64


def test_a_first_prompt_that_is_too_long_leaves_an_empty_page_that_says_so(tiny_model):
    drive = Driver(Options(prompt="the cat " * 100), tiny_model("gpt2"))
    picture = drive.picture
    assert picture["strip"] == {"empty": "no prompt"} and picture["status"]["editor"]["can_truncate"]
    assert "cursor" in drive("cursor_next")["status"]["message"]["text"]
    assert drive("set_prompt", text="the cat")["strip"]["tokens"]


def test_a_model_that_does_not_load_is_told_and_the_old_one_serves(drive):
    def load(name):
        raise ModelError(f"There is no model {name!r}.")

    drive.explorer.load = load
    assert drive("load_model", model="gtp2")["model"]["loading"] == "gtp2"
    drive("load_model", model="other")
    assert "still being loaded" in drive.message
    drive.wait()
    picture = drive.picture
    assert picture["model"]["error"] == "There is no model 'gtp2'." and not picture["model"]["loading"]
    assert drive("append")["model"]["name"]


def test_a_loader_that_breaks_is_told(drive):
    def load(name):
        raise MemoryError("no room")

    drive.explorer.load = load
    drive("load_model", model="huge")
    drive.wait()
    assert "no room" in drive.picture["model"]["error"]


def test_another_model_takes_the_text_along(drive, tiny_model):
    drive.explorer.load = lambda name: tiny_model("llama")
    text = drive.session.text
    drive("load_model", model="llama")
    drive.wait()
    assert drive.session.model is tiny_model("llama") and drive.session.text == text


def test_without_a_model_every_command_is_answered():
    def load(name):
        raise ModelError("no")

    drive = Driver(Options(), load=load)
    assert drive.picture["strip"] == {"empty": "no model"}
    drive("append")
    assert "No model is loaded" in drive.message


def test_what_fails_in_one_panel_stays_in_it(drive, monkeypatch):
    def fail(*args, **options):
        raise AnalysisError("refused on purpose")

    monkeypatch.setattr("lensplorer.dashboard.explorer.next_token", fail)
    picture = drive.picture
    assert picture["candidates"] == {"error": "refused on purpose"}
    assert picture["colouring"]["values"]


def test_a_view_that_fails_leaves_the_text_readable(drive, monkeypatch):
    def fail(*args, **options):
        raise AnalysisError("refused on purpose")

    monkeypatch.setattr("lensplorer.analyses.residual.residual_norms", fail)
    drive.explorer.state.view = "residual"
    picture = drive.picture
    assert picture["colouring"]["error"] == "refused on purpose" and "values" not in picture["colouring"] and picture["strip"]["tokens"]


def test_one_answer_is_computed_once_per_prompt(drive):
    first = drive.explorer.candidates()
    assert drive.explorer.candidates() is first
    drive("append")
    assert drive.explorer.candidates() is not first


@pytest.mark.parametrize("text", ["<b>bold</b>", "$$x$$", "🙂 日本", "a\n\tb", "\u202eright", "x" * 60])
def test_any_text_is_sent_as_text(drive, text):
    strip = drive("set_prompt", text=text)["strip"]
    assert len(strip["tokens"]) == len(strip["ids"]) and not any("\n" in token or "\t" in token for token in strip["tokens"])


def test_the_options_of_the_first_page_have_their_effect(tiny_model):
    drive = Driver(Options(layer_prob=True, cross_layer=True, seed=3), tiny_model("gpt2"))
    assert drive.explorer.settings["features"]["show"] == "path through layers"
    layers = drive.picture["candidates"]["layers"]
    assert len(layers) == 30 and len(layers[0]) == drive.explorer.n_layers + 1
    assert layers[0][-1] == pytest.approx(drive.picture["candidates"]["probabilities"][0], rel=1e-3)


def test_numbers_for_the_browser_have_five_significant_digits():
    values = np.concatenate([10.0 ** np.linspace(-30, 20, 301), -(np.arange(1, 200) / 7.0), [0.0, 1.0, 123456.0, 99999.6, 5e-324]])
    assert plain(values) == pytest.approx([float(f"{value:.5g}") for value in values], rel=1e-15)
    assert plain([[1.0, np.nan], [np.inf, -np.inf]]) == [[1.0, None], [None, None]]
    assert len(json.dumps(plain([1 / 3e7, 2 / 3, 1e5 / 7]))) < 40


def test_saes_may_be_switched_off(storyworld):
    quiet = Driver(Options(config=Config(model=ModelConfig(enable_sae=False))), storyworld)
    assert not quiet.explorer.saes.loading and not quiet.explorer.saes.loaded
    loud = Driver(Options(), storyworld)
    assert loud.explorer.saes.loading
    loud.wait_for_saes()
