"""Every panel: its numbers are the library's, its script gives them again, and what fails stays in it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import xarray as xr

import lensplorer as lp
from lensplorer.dashboard.asking import call
from lensplorer.dashboard.costs import Running
from lensplorer.dashboard.explorer import HERE
from lensplorer.dashboard.exports import FORMATS, exported, script_of
from lensplorer.dashboard.options import Options
from lensplorer.dashboard.panels import PANELS, panel_part
from lensplorer.dashboard.snapshot import later_parts
from lensplorer.errors import Cancelled, LensplorerError, SessionError
from tests.dashboard.conftest import Driver

PROMPT = "When Mary and John went to the shop, John gave the book to"
SAES = ("resid_1", "resid_2", "resid_3")


@pytest.fixture
def story(storyworld) -> Driver:
    """storyworld, three tokens into an answer, with its SAEs."""
    driver = Driver(Options(prompt=PROMPT, seed=1), storyworld)
    driver.wait_for_saes()
    for _ in range(3):
        driver("append")
    return driver


def part_of(driver: Driver, name: str, **settings: Any) -> dict[str, Any]:
    for control, value in settings.items():
        driver("set_control", panel=name, name=control, value=value)
        assert not driver.message, driver.message
    driver("run_panel", panel=name)
    part = panel_part(driver.explorer, name)
    json.dumps(part, allow_nan=False)
    return part


def figures(driver: Driver, name: str, **settings: Any) -> list[dict[str, Any]]:
    part = part_of(driver, name, **settings)
    assert "error" not in part, part["error"]
    assert part["figures"], part.get("note")
    return part["figures"]


def close(shown: Any, expected: Any) -> None:
    wanted = np.asarray(expected, dtype=float)
    np.testing.assert_allclose(np.array(shown, dtype=float), wanted, rtol=2e-4, atol=1e-5 * float(np.nanmax(np.abs(wanted), initial=0.0)))


def trace(driver: Driver, **options: Any) -> Any:
    return lp.run_trace(driver.session.model, list(driver.session.ids), **options)


def every_setting() -> list[tuple[str, str, str]]:
    fixed = [
        (panel.name, control.name, choice)
        for panel in PANELS.values()
        for control in panel.controls
        if not callable(control.choices)
        for choice in control.choices
    ]
    return [each for each in fixed if each[2] not in ("clusters", "deeplift", "lime", "kernel shap", "gradient shap", "feature ablation")]


@pytest.mark.parametrize(
    "name", ["timeline", "lens", "decomposition", "attention", "attribution", "matrix", "features", "contrast", "layers", "sampling"]
)
def test_a_script_gives_the_numbers_on_screen(story, name):
    figures(story, name)
    space: dict[str, Any] = {}
    exec(compile(script_of(story.explorer, name), name, "exec"), {"print": lambda *said: None}, space)
    asked = story.explorer.asked_by(name)[0]
    xr.testing.assert_allclose(space["result"], asked.value(story.explorer), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", [{"contribution": "total"}, {"contribution": "indirect", "unit": "head", "against": "best other"}])
def test_a_script_of_total_contributions(story, settings):
    figures(story, "decomposition", **settings)
    space: dict[str, Any] = {}
    exec(compile(script_of(story.explorer, "decomposition"), "script", "exec"), {"print": lambda *said: None}, space)
    xr.testing.assert_allclose(space["result"], story.explorer.asked_by("decomposition")[0].value(story.explorer), rtol=1e-3, atol=1e-4)


def test_a_script_under_interventions_gives_the_changed_numbers(story):
    story("set_control", panel="interventions", name="kind", value="ablate head")
    story("intervene")
    story("scale_feature", feature=3, factor=2.0)
    assert len(story.session.interventions) == 2, story.message
    for name in ("interventions", "decomposition"):
        figures(story, name)
        space: dict[str, Any] = {}
        exec(compile(script_of(story.explorer, name), name, "exec"), {"print": lambda *said: None}, space)
        xr.testing.assert_allclose(space["result"], story.explorer.asked_by(name)[0].value(story.explorer), rtol=1e-3, atol=1e-4)
    (in_force, both) = figures(story, "interventions")
    assert len(in_force["rows"]) == 2
    plain = lp.next_token_change(trace(story), trace(story, interventions=story.session.interventions), k=12)
    close([row[1] for row in both["rows"]], plain.probability_a)
    close([row[2] for row in both["rows"]], plain.probability_b)
    story("remove_intervention", index=0)
    story("clear_interventions")
    assert not story.session.interventions and not panel_part(story.explorer, "interventions")["figures"]


@pytest.mark.parametrize("name, control, choice", every_setting())
def test_every_choice_draws_or_says_why(story, name, control, choice):
    part = part_of(story, name, **{control: choice})
    assert "error" not in part, part["error"]
    assert part["figures"] or part["note"]


def test_what_is_kept_position_by_position_is_what_one_run_gives(story):
    story("branch")
    story("pop")
    story("append", token_id=77)
    story("append")
    run = trace(story)
    scores = story.explorer.answer(call(lp.token_scores, HERE))
    for name in ("probability", "entropy", "energy", "rank"):
        close(scores[name], lp.token_scores(run)[name])
    (grid,) = figures(story, "lens", colour="entropy")
    close(np.array(grid["values"])[::-1], lp.logit_lens(run).entropy.values[:, grid["first"] :])
    story("put_cursor", to=4)
    assert figures(story, "lens")[0]["mark"] + grid["first"] == 4


def test_decomposition_by_layer_head_and_source(story):
    target, run = story.explorer.selected_token(), trace(story)
    (bars,) = figures(story, "decomposition")
    close(bars["series"][0]["values"], lp.residual_decomposition(run, target).contribution)
    bars = figures(story, "decomposition", verify=True)[0]
    removed = dict(zip(bars["labels"], bars["series"][1]["values"]))
    measured = lp.verify_by_ablation(run, target)
    close([removed[str(name)] for name in measured.component.values], measured.measured)
    (grid,) = figures(story, "decomposition", unit="head")
    close(grid["values"], lp.residual_decomposition(run, target, unit="head").contribution)
    (grid,) = figures(story, "decomposition", unit="source")
    layer, head = map(int, grid["rows"][0].split("."))
    close(grid["values"][0], lp.residual_decomposition(run, target, unit="source").contribution.values[layer, head])


def test_what_parts_contribute_in_all_beside_their_direct_share_and_their_removal(story):
    story("put_cursor", to=14)
    target, run, options = story.explorer.selected_token(), trace(story), {"position": 14}
    parts = lp.component_attribution(run, target, **options)
    (bars,) = figures(story, "decomposition", contribution="total")
    assert bars["labels"] == [str(name) for name in parts.component.values]
    for series in bars["series"]:
        close(series["values"], parts[series["name"]].sum("position"))
    assert [series["name"] for series in bars["series"]] == ["total", "direct"]
    close(bars["overlay"]["values"], parts.total.values[:, :15])
    (bars,) = figures(story, "decomposition", verify=True)
    measured = lp.verify_by_ablation(run, target, contribution="total", **options)
    lost = dict(zip(bars["labels"], bars["series"][2]["values"]))
    close([lost[str(name)] for name in measured.component.values], measured.measured)
    assert f"correlate at {measured.attrs['correlation']:.2f}" in part_of(story, "decomposition")["note"]
    (bars,) = figures(story, "decomposition", contribution="indirect")
    close(bars["series"][0]["values"], parts.indirect.sum("position"))
    (grid,) = figures(story, "decomposition", unit="head")
    close(grid["values"], lp.component_attribution(run, target, unit="head", **options).indirect.sum("position"))
    (grid,) = figures(story, "decomposition", unit="source", contribution="total")
    layer, head = map(int, grid["rows"][0].split("."))
    close(grid["values"][0], lp.component_attribution(run, target, unit="source", **options).total.values[layer, head])
    assert part_of(story, "decomposition")["badge"]["level"] == "good"


def test_the_long_text_of_a_component_is_sent_in_part(story, monkeypatch):
    monkeypatch.setattr("lensplorer.dashboard.panels.residual._MOST_POSITIONS", 5)
    (bars,) = figures(story, "decomposition", contribution="total")
    n = len(story.session.ids)
    assert bars["overlay"]["first"] == n - 5
    close(bars["overlay"]["values"], lp.component_attribution(trace(story), story.explorer.selected_token()).total.values[:, n - 5 :])


def test_an_explanation_against_the_best_other_candidate_or_a_token(story):
    ids = story.picture["candidates"]["ids"]
    run = trace(story)
    story("select", index=2)
    assert story.explorer.selected_token() == ids[2]
    (bars,) = figures(story, "decomposition", against="best other")
    close(bars["series"][0]["values"], lp.residual_decomposition(run, ids[2], versus=ids[0]).contribution)
    story("aim", token_id=ids[0])
    (one,) = figures(story, "attribution", against="best other")
    close(one["values"], lp.attribute(run, ids[0], versus=ids[1], method="linear").attribution)
    (one,) = figures(story, "attribution", against="a token", versus=" the")
    close(one["values"], lp.attribute(run, ids[0], versus=" the", method="linear").attribution)
    assert part_of(story, "attribution")["title"].endswith(" − ␠the")
    (one,) = figures(story, "attribution", versus="")
    close(one["values"], lp.attribute(run, ids[0], method="linear").attribution)


def test_the_linear_attribution_is_the_first_and_shows_what_is_no_tokens(story, tiny_model):
    part = part_of(story, "attribution")
    result = lp.attribute(trace(story), story.explorer.aim, method="linear")
    close(part["figures"][0]["values"], result.attribution)
    assert part["badge"]["level"] == "good"
    for term in ("rest_positions", "rest_biases", "value"):
        assert f"{result.attrs[term]:+.4g}" in part["note"]
    story("go_to_view", index=list(story.explorer.views).index("attribution"))
    (colours,) = [each["colouring"] for each in later_parts(story.explorer) if "colouring" in each]
    close(colours["values"], result.attribution)
    gated = Driver(Options(prompt="the cat sat on"), tiny_model("llama"))
    for rule in ("gate", "half"):
        (one,) = figures(gated, "attribution", rule=rule)
        close(one["values"], lp.attribute(trace(gated), gated.explorer.aim, method="linear", rule=rule).attribution)
    names = [control["name"] for control in part_of(gated, "attribution", method="occlusion")["controls"]]
    assert "rule" not in names and "of" in names
    names = [control["name"] for control in part_of(gated, "attribution", second="linear")["controls"]]
    assert "rule" in names and "of" not in names  # both explain the logit


def test_attention_by_layer_and_one_head(story):
    (grid,) = figures(story, "attention")
    close(grid["values"][::-1], lp.attention_by_layer(trace(story)).weight)
    (grid,) = figures(story, "attention", show="one head", layer=2, head=1)
    close(grid["values"], lp.attention_patterns(trace(story)).weight.values[2, 1])
    (grid,) = figures(story, "attention", show="scores", score="induction")
    close(grid["values"], lp.head_scores(story.session.model).induction)


def test_why_a_head_reads_a_source_from_the_cursor(story):
    story("put_cursor", to=9)
    queries, keys, pairs = figures(story, "attention", show="why", layer=2, head=2, source=4)
    result = lp.qk_attribution(trace(story), layer=2, head=2, source=4, query=9)
    for shown, side in ((queries, "query"), (keys, "key")):
        close(shown["series"][0]["values"], [float(result[f"{side}_difference"].sel({f"{side}_term": name})) for name in shown["labels"]])
        assert abs(shown["series"][0]["values"][0]) == pytest.approx(float(abs(result[f"{side}_difference"]).max()), rel=1e-3)
    for query, key, above, whole in pairs["rows"]:
        pair = result.sel(query_term=query, key_term=key)
        close([above, whole], [pair.difference, pair.contribution])
    part = part_of(story, "attention")
    assert part["title"].startswith("Why head 2.2 reads") and part["badge"]["level"] == "good"
    assert part_of(story, "attention", source=30)["title"].endswith("(9)")  # no source after the cursor
    story("put_cursor", to=0)
    assert "other sources" not in part_of(story, "attention")["note"]


def test_attribution_of_the_candidate_pointed_at(story):
    run = trace(story, gradients=True)
    (one,) = figures(story, "attribution", method="input x gradient")
    close(one["values"], lp.attribute(run, story.explorer.selected_token(), method="input_x_gradient").attribution)
    story("aim", token_id=40)
    one, other = figures(story, "attribution", second="occlusion")
    close(one["values"], lp.attribute(run, 40, method="input_x_gradient").attribution)
    close(other["values"], lp.attribute(run, 40, method="occlusion").attribution)
    story("aim", token_id=None)
    assert story.explorer.aim == story.explorer.selected_token()
    story("aim", token_id=10**9)
    assert "vocabulary" in story.message


def test_the_matrix_leaves_out_what_is_weak_and_special(story):
    (grid,) = figures(story, "matrix", no_special=False)
    start = story.session.state.prompt.n_given
    whole = lp.attribution_matrix(trace(story), start, method="linear").attribution.values
    close(grid["values"], whole)
    assert grid["row_positions"] == list(range(start, len(story.session.ids)))
    (grid,) = figures(story, "matrix", no_special=True, least=50)
    assert 0 not in grid["positions"]
    values = np.array(grid["values"], dtype=float)
    assert np.isnan(values).any() and np.nanmin(np.abs(values)) >= 0.5 * np.abs(whole[:, 1:]).max() * 0.999


def test_features_and_their_view(story):
    table = figures(story, "features", count=4)[0]
    sae = lp.load_sae("storyworld", "resid_2")
    expected = lp.feature_activations(trace(story), sae, k=4).isel(position=-1)
    assert [row[0] for row in table["rows"]] == expected.feature.values.tolist()
    close([row[1] for row in table["rows"]], expected.activation)
    feature = table["rows"][1][0]
    story("choose_feature", feature=feature)
    assert story.explorer.state.view == "features"
    close(story.picture["colouring"]["values"], lp.feature_values(trace(story), sae, feature).activation.values[:, 0])
    story("choose_feature", feature=10**6)
    assert "expected 0 to 1023" in story.message
    before = story.explorer.saes.chosen
    story("next_display")
    assert story.explorer.saes.chosen != before
    assert figures(story, "features", show="path through layers")[0]["rows"]


def test_saes_are_searched_loaded_and_taken_off(story):
    story("search_saes", text="gpt2-small res-jb")
    story("search_saes", text="storyworld resid")
    story.wait_for_saes()
    saes = story.picture["model"]["saes"]
    assert {row["sae_id"] for row in saes["found"]} == set(SAES) and {row["fits"] for row in saes["found"]} == {"yes"}
    story("take_off_sae", name="storyworld/resid_2")
    assert "storyworld/resid_2" not in story.picture["model"]["saes"]["loaded"]
    story("take_off_sae", name="storyworld/resid_2")
    assert "No SAE" in story.message
    story("load_sae", release="storyworld", sae_id="resid_9")
    story.wait_for_saes()
    assert "resid_9" in story.picture["model"]["saes"]["error"]
    story("load_sae", release="storyworld", sae_id="resid_2")
    story.wait_for_saes()
    assert "storyworld/resid_2" in story.explorer.saes.loaded


def test_sampling_is_the_pipeline(story):
    story("set_decoding", name="preset", value="creative")
    story("set_decoding", name="top_k", value="5")
    assert story.session.decoding.top_k == 5 and story.session.decoding.seed == 1 and story.picture["settings"]["preset"] == "custom"
    candidates = story.picture["candidates"]
    expected = lp.sampling_distribution(trace(story), params=story.session.decoding, n_prompt=story.session.state.prompt.n_given)
    at = {int(token_id): i for i, token_id in enumerate(expected.token_id.values)}
    close(candidates["p_final"], [expected.p_final.values[at[token_id]] for token_id in candidates["ids"]])
    assert sum(candidates["kept"]) <= 5
    story("set_decoding", name="top_p", value="2")
    assert "top_p" in story.message and story.session.decoding.top_p <= 1
    story("set_decoding", name="temperature", value="warm")
    assert "number" in story.message


def test_a_constraint_from_here(story):
    story("constrain", kind="choice", text=" smile| friend")
    assert not story.message
    valid = story.picture["candidates"]["valid"]
    assert 0 < sum(valid) < len(valid)
    story("constrain", kind="regex", text="(")
    assert story.message and story.session.constraint is not None
    story("constrain", kind="regex", text="")
    assert story.session.constraint is None


def test_the_model_can_be_switched_off(story):
    story("toggle_model")
    picture = story.picture
    assert picture["strip"]["off"] and picture["strip"]["tokens"] and "switched off" in picture["candidates"]["error"]
    story("append", token_id=40)
    assert story.session.ids[-1] == 40
    story("toggle_model")
    assert story.picture["candidates"]["ids"]


def test_patching_and_comparison_of_two_prompts(story):
    story("branch")
    story("set_prompt", text="When Mary and John went to the shop, Mary gave the book to")
    other = story.session.state.prompts[0].ids
    story("go_to_prompt", index=0)
    for _ in range(3):
        story("pop")
    run, alien = trace(story), lp.run_trace(story.session.model, list(story.session.state.prompts[1].ids))
    (grid,) = figures(story, "patching")
    right, wrong = (int(each.logits[-1].argmax()) for each in (alien, run))
    close(grid["values"][::-1], lp.activation_patching(alien, run, "resid_pre", (right, wrong)).effect)
    name = next(iter(story.explorer.other_prompts()))
    kl, js = figures(story, "comparison", **{"with": name})
    both = lp.compare(run, alien)
    close(kl["values"], both.kl)
    close(js["values"], both.js)
    (grid,) = figures(story, "comparison", show="residual norms")
    close(grid["values"][::-1], lp.difference(lp.residual_norms(run), lp.residual_norms(alien)).norm)
    a, b = figures(story, "comparison", show="attention side by side")
    for shown, of in ((a, run), (b, alien)):
        close(shown["values"][::-1], lp.attention_by_layer(of).weight)
    metric = (right, wrong)
    estimate = lp.attribution_patching(alien, run, "z", metric)
    (grid,) = figures(story, "patching", hook="z", how="first-order estimate")
    close(grid["values"][::-1], estimate.estimate)
    grid, both = figures(story, "patching", how="estimate, the top confirmed")
    confirmed = lp.confirm_patching(estimate, alien, run, metric, top=10)
    close(both["series"][0]["values"], confirmed.predicted)
    close(both["series"][1]["values"], confirmed.measured)
    assert len(other) == len(alien.tokens) + 3


def test_comparison_with_another_model(story, tiny_model):
    part = part_of(story, "comparison", **{"with": "another model"})
    assert "Name a model" in part["note"]
    story.explorer.load = lambda name: lp.load_model(name)
    assert figures(story, "comparison", model="storyworld-mini")
    part = part_of(story, "comparison", model="storywrold")
    assert "storyworld" in part["error"]


def test_a_control_takes_only_what_it_can(story):
    for name, value, said in (
        ("layer", "many", "number"),
        ("layer", -1, "expected 0"),
        ("show", "nothing", "there is no"),
        ("colour", "red", "has no"),
    ):
        story("set_control", panel="attention", name=name, value=value)
        assert said in story.message, (name, story.message)
    story("set_control", panel="atention", name="show", value="by layer")
    assert "Did you mean 'attention'" in story.message


def test_a_failing_panel_says_so_and_the_others_draw(story, monkeypatch):
    part = part_of(story, "contrast", a="two tokens")
    assert "token" in part["error"] and "figures" not in part
    story("show_panels", names=["contrast", "lens"])
    contrast, lens = later_parts(story.explorer)
    assert "error" in contrast["panel.contrast"] and lens["panel.lens"]["figures"]


def test_a_long_panel_waits_for_a_word_tells_how_far_it_is_and_can_be_stopped(story):
    story.explorer.costs._per_token = 1.0
    part = panel_part(story.explorer, "attribution")
    assert part["cost"] > 10 and "figures" not in part
    story("show_panels", names=["attribution"])
    story("run_panel")
    told: list[Running | None] = []
    story.explorer.costs.tell = told.append
    story.explorer.costs.interrupted = lambda: True
    assert list(later_parts(story.explorer)) == []  # a command waits: the panel gives way
    story.explorer.costs.interrupted = lambda: False
    assert "cost" not in panel_part(story.explorer, "attribution")
    story.explorer.costs._measured.clear()
    story("append")
    assert panel_part(story.explorer, "attribution")["cost"] > 10  # another prompt, another question


def test_the_estimate_of_integrated_gradients_is_in_gradients_of_such_a_model(story, monkeypatch):
    """Learned positions hold the path together; without them a short prompt takes hundreds of gradients."""
    story("set_control", panel="attribution", name="method", value="integrated gradients")
    explorer = story.explorer
    explorer.costs._per_token = 1.0
    panel, settings = PANELS["attribution"], PANELS["attribution"].settings(explorer)
    learned = explorer.cost(panel, settings)
    monkeypatch.setattr(explorer.session.model.cfg, "positional_embedding_type", "rotary")
    assert explorer.cost(panel, settings) == pytest.approx(10 * learned)
    assert explorer.cost(panel, settings) >= 281 * len(explorer.ids)


@pytest.mark.parametrize("name", ["attribution", "matrix"])
def test_what_has_not_converged_is_said_and_not_drawn(story, monkeypatch, name):
    """Unasked it gets a few seconds; what the person agrees to, all that it needs."""
    story("set_control", panel=name, name="method", value="integrated gradients")
    monkeypatch.setattr("lensplorer.dashboard.panels.attribution._UNASKED", 1e-9)
    story.explorer.costs._per_token = 1e-9
    part = panel_part(story.explorer, name)
    assert part["figures"] == [] and "have not converged" in part["note"] and "max_seconds" in part["note"]
    assert part["badge"]["level"] == "bad"
    part = part_of(story, name)
    assert len(part["figures"]) == 1 and "converged" not in part["note"] and part["badge"]["level"] == "good"


def test_stop_ends_what_runs(story):
    with pytest.raises(Cancelled), story.explorer.costs.running("attribution", 1.0):
        story.explorer.costs.stop.set()
        lp.attribute(trace(story), " a", method="occlusion")
    assert lp.attribute(trace(story), " a", method="occlusion") is not None


def test_progress_is_told_and_ends(story, monkeypatch):
    monkeypatch.setattr("lensplorer.dashboard.costs._NEWS", 0.0)
    told: list[Running | None] = []
    story.explorer.costs.tell = told.append
    figures(story, "attribution", method="occlusion")
    assert told[0].panel == "attribution" and told[0].runs >= 1 and told[-1] is None


@pytest.mark.parametrize("kind", FORMATS)
def test_exports(story, kind):
    figures(story, "decomposition")
    made = exported(story.explorer, "decomposition", kind)
    assert made["name"] == f"lensplorer-decomposition.{kind}" and len(made["data"]) > 100
    story("export", panel="decomposition", format=kind)
    assert story.picture["status"]["download"]["type"] == FORMATS[kind]


def test_nothing_to_export(story):
    with pytest.raises(SessionError, match="nothing to copy"):
        script_of(story.explorer, "patching")
    with pytest.raises(LensplorerError, match="Unknown format"):
        exported(story.explorer, "lens", "docx")
    story("copy_python", panel="patching")
    assert "nothing to copy" in story.message


def test_answers_are_kept_for_a_prompt_and_its_interventions(story):
    question = call(lp.residual_norms, HERE)
    first = story.explorer.answer(question)
    assert story.explorer.answer(question) is first
    story("set_control", panel="interventions", name="kind", value="ablate MLP")
    story("intervene")
    assert float(abs(story.explorer.answer(question).norm - first.norm).max()) > 0.1
