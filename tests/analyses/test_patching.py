"""Patching grids against one run per cell, the first-order estimate against a gradient by hand, and both beside what was measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lensplorer.analyses.components import component_attribution
from lensplorer.analyses.metrics import Reading, log_prob, logit_difference
from lensplorer.analyses.patching import (
    SITES,
    activation_patching,
    attribution_patching,
    confirm_patching,
    verify_by_ablation,
)
from lensplorer.analyses.residual import residual_decomposition
from lensplorer.errors import AnalysisError, Cancelled, PromptError, TokenError, TraceError
from lensplorer.interventions import ablate_attention, ablate_head, ablate_mlp, patch, steer
from lensplorer.running import run_model
from lensplorer.trace import run_trace

CLEAN, CORRUPT = [5, 17, 40, 100, 7, 61], [5, 17, 41, 100, 7, 61]
METRIC = (20, 30)
MODELS = [("gpt2", "hooked"), ("llama", "bridge"), ("gemma2", "bridge"), ("neox-parallel", "hooked")]


def runs(model, clean=CLEAN, corrupt=CORRUPT, **options):
    return run_trace(model, clean, **options), run_trace(model, corrupt, **options)


def difference(trace):
    return float(trace.logits[-1, 20] - trace.logits[-1, 30])


def hook_count(model):
    return sum(len(point._forward_hooks) for point in model.hook_dict.values())


@pytest.mark.parametrize(("name", "backend"), MODELS)
@pytest.mark.parametrize("hook", ["resid_pre", "attn_out", "mlp_out", "z", "pattern"])
def test_each_cell_is_a_patched_run(tiny_model, name, backend, hook):
    model = tiny_model(name, backend=backend)
    clean, corrupt = runs(model)
    grid = activation_patching(clean, corrupt, hook, METRIC, batch_size=4)
    full, (m_clean, m_corrupt) = SITES[hook][0], (difference(clean), difference(corrupt))
    assert grid.attrs["metric_clean"] == pytest.approx(m_clean, abs=1e-5) and grid.attrs["metric_corrupt"] == pytest.approx(m_corrupt, abs=1e-5)
    for layer in range(3):
        for unit in range(grid.effect.shape[1]):
            where = {"positions": unit} if SITES[hook][1] == "position" else {"heads": unit}
            patched = run_trace(model, CORRUPT, interventions=[patch(full.format(layer), clean, **where)])
            expected = (difference(patched) - m_corrupt) / (m_clean - m_corrupt)
            assert float(grid.effect[layer, unit]) == pytest.approx(expected, abs=1e-4 / abs(m_clean - m_corrupt)), (layer, unit)


@pytest.mark.parametrize(("name", "backend"), MODELS)
def test_the_embedding_of_all_that_differs_restores_everything(tiny_model, name, backend):
    clean, corrupt = runs(tiny_model(name, backend=backend))
    grid = activation_patching(clean, corrupt, "resid_pre", METRIC)
    assert float(grid.effect[0, 2]) == pytest.approx(1, abs=1e-3)
    assert not grid.effect[:, :2].any() and np.abs(grid.effect[0, 3:]).max() <= 1e-3
    last = activation_patching(clean, corrupt, "resid_post", METRIC)
    assert float(last.effect[2, 5]) == pytest.approx(1, abs=1e-3)
    assert grid.attrs["runs"] == 3 * 4


def test_a_changed_prefix_is_not_skipped(tiny_model):
    """Under unequal interventions, what precedes the first token that differs is not the same in both runs."""
    model = tiny_model("gpt2")
    clean = run_trace(model, CORRUPT, interventions=[steer(torch.linspace(-3, 3, 32), 0, positions=0)])
    corrupt = run_trace(model, CORRUPT)
    grid = activation_patching(clean, corrupt, "resid_pre", METRIC)
    assert grid.attrs["runs"] == 18 and float(grid.effect[0, 0]) == pytest.approx(1, abs=1e-3)


def test_interventions_of_the_corrupt_run_hold_in_every_run(tiny_model):
    model = tiny_model("gpt2")
    clean, corrupt = runs(model, interventions=[ablate_mlp(1)])
    grid = activation_patching(clean, corrupt, "z", METRIC)
    patched = run_trace(model, CORRUPT, interventions=[ablate_mlp(1), patch("blocks.2.attn.hook_z", clean, heads=3)])
    expected = (difference(patched) - difference(corrupt)) / (difference(clean) - difference(corrupt))
    assert float(grid.effect[2, 3]) == pytest.approx(expected, abs=1e-3)


def test_activations_that_the_clean_trace_did_not_read_are_run_again(tiny_model):
    model = tiny_model("gpt2")
    clean, corrupt = runs(model)
    bare = runs(model, reads=[])
    assert np.allclose(activation_patching(*bare, "z", METRIC).effect, activation_patching(clean, corrupt, "z", METRIC).effect, atol=1e-5)


def test_metrics_mean_what_they_say(tiny_model):
    model = tiny_model("gpt2")
    clean, corrupt = runs(model)
    for metric, by_hand in (
        (20, lambda z: z[:, -1, 20]),
        (log_prob(20), lambda z: z.log_softmax(-1)[:, -1, 20]),
        (logit_difference(20, 30, position=3), lambda z: z[:, 3, 20] - z[:, 3, 30]),
        (METRIC, lambda z: z[:, -1, 20] - z[:, -1, 30]),
    ):
        ours, theirs = (activation_patching(clean, corrupt, "resid_pre", m) for m in (metric, by_hand))
        assert np.allclose(ours.effect, theirs.effect, atol=1e-4) and ours.attrs["metric_clean"] == pytest.approx(
            theirs.attrs["metric_clean"], abs=1e-5
        )
    assert not activation_patching(clean, corrupt, "resid_pre", logit_difference(20, 30, position=3)).effect[:, 4:].any()


# -- attribution patching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "backend"), MODELS)
@pytest.mark.parametrize("hook", ["resid_pre", "mlp_out", "z", "pattern"])
def test_the_estimate_is_the_slope_of_the_patch(tiny_model, name, backend, hook):
    """The derivative at 0 of the metric, as the activation goes a share of the way to the clean one: by central differences, in float64."""
    model = tiny_model(name, backend=backend, dtype="float64", verify=False)
    clean, corrupt = runs(model)
    estimate = attribution_patching(clean, corrupt, hook, METRIC)
    full, step = SITES[hook][0], 1e-3
    for layer, unit in ((0, 2), (1, 3), (2, 1)):
        name = full.format(layer)
        index = (slice(None), unit) if hook == "z" else unit
        values = []
        for share in (step, -step):

            def move(value, hook, name=name, index=index, share=share):
                moved = value.clone()
                moved[0][index] += share * (clean[name][index] - moved[0][index])
                return moved

            z = run_model(model, torch.tensor([CORRUPT]), hooks=[(name, move)]).logits[0, -1]
            values.append(float(z[20] - z[30]))
        slope = (values[0] - values[1]) / (2 * step) / (difference(clean) - difference(corrupt))
        assert float(estimate.estimate[layer, unit]) == pytest.approx(slope, abs=1e-3, rel=1e-3)
    assert "estimate" in estimate.attrs["method"] and "effect" not in estimate


def test_confirming_measures_the_top_cells(tiny_model):
    clean, corrupt = runs(tiny_model("gpt2"))
    estimate = attribution_patching(clean, corrupt, "resid_pre", METRIC)
    measured = activation_patching(clean, corrupt, "resid_pre", METRIC)
    confirmed = confirm_patching(estimate, clean, corrupt, METRIC, top=5)
    assert confirmed.sizes["component"] == 5
    for i in range(5):
        cell = int(confirmed.layer[i]), int(confirmed.position[i])
        assert float(confirmed.predicted[i]) == float(estimate.estimate[cell])
        assert float(confirmed.measured[i]) == pytest.approx(float(measured.effect[cell]), abs=1e-4)
    sizes = np.abs(confirmed.predicted.values)
    assert (np.diff(sizes) <= 0).all() and sizes[-1] >= np.sort(np.abs(estimate.estimate.values), axis=None)[-5] - 1e-9
    with pytest.raises(AnalysisError, match="another metric"):
        confirm_patching(estimate, clean, corrupt, (20, 31))
    with pytest.raises(AnalysisError, match="takes a result of attribution_patching"):
        confirm_patching(measured, clean, corrupt, METRIC)


# -- verify by ablation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "backend"), MODELS)
@pytest.mark.parametrize("unit", ["layer", "head"])
@pytest.mark.parametrize("contribution", ["direct", "total"])
def test_both_sides_are_what_they_say(tiny_model, name, backend, unit, contribution):
    model = tiny_model(name, backend=backend)
    trace = run_trace(model, CLEAN)
    result = verify_by_ablation(trace, 20, versus=30, unit=unit, contribution=contribution, batch_size=5)
    credit = residual_decomposition(trace, 20, versus=30, unit=unit).contribution
    if contribution == "total":
        credit = component_attribution(trace, 20, versus=30, unit=unit).total.sum("position")
    for i, component in enumerate(result.component.values):
        layer = int(result.layer[i])
        if unit == "head":
            removed, expected = ablate_head(layer, int(result["head"][i])), float(credit[layer, int(result["head"][i])])
        else:
            removed, expected = (ablate_attention if component.startswith("attn") else ablate_mlp)(layer), float(credit.sel(component=component))
        effect = difference(trace) - difference(run_trace(model, CLEAN, interventions=[removed]))
        assert float(result.predicted[i]) == pytest.approx(expected, abs=1e-5)
        assert float(result.measured[i]) == pytest.approx(effect, abs=1e-4)
    assert result.sizes["component"] == (6 if unit == "layer" else 12)
    assert result.attrs["correlation"] == pytest.approx(np.corrcoef(result.predicted, result.measured)[0, 1], abs=1e-5)


# -- progress, cancellation, refusals --------------------------------------------------------------------------------------------


def test_progress_counts_to_the_end_and_can_cancel(tiny_model):
    model = tiny_model("gpt2")
    clean, corrupt = runs(model)
    seen = []
    activation_patching(clean, corrupt, "resid_pre", METRIC, batch_size=5, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(5, 12), (10, 12), (12, 12)]
    before = hook_count(model)

    def cancel(done, total):
        if done >= 10:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        activation_patching(clean, corrupt, "resid_pre", METRIC, batch_size=5, progress=cancel)
    assert hook_count(model) == before

    def broken(z):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        activation_patching(clean, corrupt, "resid_pre", broken)
    assert hook_count(model) == before


def test_prompts_that_do_not_align_are_refused_with_the_first_mismatch(tiny_model):
    model = tiny_model("gpt2")
    clean, corrupt = run_trace(model, "the cat sat"), run_trace(model, "the dog sat on")
    with pytest.raises(PromptError, match=r"first differ at position 2: '␠cat'.*against.*as many tokens"):
        activation_patching(clean, corrupt, "resid_pre", METRIC)


def test_bad_input_is_refused(tiny_model):
    model = tiny_model("gpt2")
    clean, corrupt = runs(model)
    with pytest.raises(AnalysisError, match="Did you mean 'resid_pre'"):
        activation_patching(clean, corrupt, "resid_per", METRIC)
    with pytest.raises(AnalysisError, match="no difference"):
        activation_patching(clean, clean, "resid_pre", METRIC)
    with pytest.raises(TokenError):
        activation_patching(clean, corrupt, "resid_pre", "two tokens at least")
    with pytest.raises(TraceError, match="outside the prompt"):
        activation_patching(clean, corrupt, "resid_pre", log_prob(3, position=9))
    with pytest.raises(AnalysisError, match="one number per run"):
        activation_patching(clean, corrupt, "resid_pre", lambda z: z[:, -1])
    with pytest.raises(AnalysisError, match="not finite"):
        activation_patching(clean, corrupt, "resid_pre", lambda z: z[:, -1, 0] * float("nan"))
    with pytest.raises(AnalysisError, match="within one model"):
        activation_patching(run_trace(tiny_model("llama"), CLEAN), corrupt, "resid_pre", METRIC)
    with pytest.raises(AnalysisError, match="batch_size"):
        activation_patching(clean, corrupt, "resid_pre", METRIC, batch_size=0)
    with pytest.raises(AnalysisError, match="no gradient"):
        attribution_patching(clean, corrupt, "resid_pre", lambda z: z[:, -1, 20].detach())
    with pytest.raises(TraceError, match="parallel"):
        activation_patching(*runs(tiny_model("neox-parallel")), "resid_mid", METRIC)
    with pytest.raises(AnalysisError, match="read-only"):
        activation_patching(*runs(tiny_model("opt", backend="bridge")), "pattern", METRIC)


# -- relevance patching ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["gate", "half"])
@pytest.mark.parametrize("hook", ["resid_pre", "mlp_out", "z"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_relevance_patching_against_a_slow_loop(tiny_model, name, hook, rule):
    """The same sum, one cell at a time, from a linear run's gradients."""
    model = tiny_model(name)
    clean, corrupt = (run_trace(model, ids, reads=[]) for ids in ([5, 9, 30, 31, 200], [5, 9, 44, 31, 200]))
    found = attribution_patching(clean, corrupt, hook, (3, 77), gradients="linear", rule=rule)
    names = [SITES[hook][0].format(layer) for layer in range(3)]
    linear = run_trace(model, corrupt.tokens.tolist(), reads=names, gradients="linear", rule=rule)
    source = run_trace(model, clean.tokens.tolist(), reads=names)
    slopes = linear.linear.gradients(linear.logits[-1, 3] - linear.logits[-1, 77], names).at
    scale = found.attrs["metric_clean"] - found.attrs["metric_corrupt"]
    for layer, at in enumerate(names):
        moved = (source[at] - linear[at].detach()) * slopes[at]
        wanted = (moved.sum((0, 2)) if hook == "z" else moved.sum(-1)) / scale
        np.testing.assert_allclose(found.estimate[layer], wanted, rtol=1e-3, atol=1e-5 * float(abs(found.estimate).max()))
    assert found.attrs["method"] == "relevance patching" and found.attrs["rule"] == rule


def test_relevance_patching_of_patterns_is_refused(tiny_model):
    clean, corrupt = (run_trace(tiny_model("gpt2"), ids, reads=[]) for ids in ([5, 9, 30], [5, 9, 44]))
    with pytest.raises(AnalysisError, match="holds attention patterns"):
        attribution_patching(clean, corrupt, "pattern", (3, 77), gradients="linear")


def test_the_metric_may_be_an_activation_along_a_direction(tiny_model):
    """Patching and both estimates of what reaches a probe: the stream at its own place is all of it, and what comes later none."""
    model = tiny_model("gpt2")
    clean, corrupt = (run_trace(model, ids, reads=[]) for ids in ([5, 9, 30, 31, 200], [5, 9, 44, 31, 200]))
    probe = Reading("blocks.1.hook_resid_post", torch.linspace(-1, 1, 32), position=3)
    grid = activation_patching(clean, corrupt, "resid_pre", probe)
    row = "blocks.1.hook_resid_post"
    values = [float(run_trace(model, trace.tokens.tolist(), reads=[row])[row][3] @ probe.vector) for trace in (clean, corrupt)]
    assert [grid.attrs["metric_clean"], grid.attrs["metric_corrupt"]] == pytest.approx(values, rel=1e-4)
    assert float(grid.effect.sel(layer=0, position=2)) == pytest.approx(1, abs=1e-4)
    assert (grid.effect.sel(layer=2) == 0).all() and float(grid.effect.sel(layer=1, position=3)) != 0
    for gradients in (True, "linear"):
        estimate = attribution_patching(clean, corrupt, "resid_post", probe, gradients=gradients).estimate
        assert float(estimate.sel(layer=1, position=3)) == pytest.approx(1, abs=1e-4)
        assert (estimate.sel(layer=2) == 0).all()
