"""Attribution by the local linear model: complete, any target, the same from any trace; on the built-in model it finds the name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lensplorer as lp
from lensplorer.errors import AnalysisError, TraceError
from lensplorer.linear import RULES
from lensplorer.storyworld import cases
from tests import tiny

IDS = [5, 9, 30, 31, 200, 17, 44, 60, 61, 62]


def rest(result):
    return sum(float(result.attrs[f"rest_{name}"]) for name in ("positions", "biases", "interventions"))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_tokens_and_rest_sum_to_the_target(tiny_model, name, rule):
    trace = lp.run_trace(tiny_model(name), IDS, reads=[])
    for position in (-1, 4):
        for versus in (None, 40):
            result = lp.attribute(trace, 77, versus=versus, method="linear", rule=rule, position=position)
            logits = trace.logits[position].double()
            wanted = float(logits[77] - (0 if versus is None else logits[versus]))
            largest = max(abs(wanted), float(abs(result.attribution).max()), *(abs(result.attrs[f"rest_{of}"]) for of in ("positions", "biases")))
            assert abs(float(result.attribution.astype(float).sum()) + rest(result) - wanted) <= 1e-5 * largest
            assert result.attrs["completeness"] <= 1e-5 and abs(result.attrs["value"] - wanted) <= 1e-5 * largest
            assert (result.attribution[5:] == 0).all() or position == -1
            assert result.attrs["signed"] == 1 and result.attrs["baseline"] == "none" and result.attrs["rule"] == rule


@pytest.mark.parametrize("rule", RULES)
def test_any_trace_gives_the_same(tiny_model, rule):
    """A plain one, one with the graph of the other rule, and one that has what is needed."""
    model = tiny_model("llama")
    plain = lp.attribute(lp.run_trace(model, IDS, reads=[]), 77, method="linear", rule=rule)
    for other in RULES:
        trace = lp.run_trace(model, IDS, reads=[], gradients="linear", rule=other)
        for _ in range(2):  # the graph is kept
            np.testing.assert_allclose(lp.attribute(trace, 77, method="linear", rule=rule).attribution, plain.attribution, rtol=1e-4, atol=1e-6)
    tree = lp.TokenTree(model)
    stepped = tree.trace(tree.extend(tree.root, IDS))
    np.testing.assert_allclose(lp.attribute(stepped, 77, method="linear", rule=rule).attribution, plain.attribution, rtol=1e-4, atol=1e-6)


def test_the_graph_of_a_trace_serves(tiny_model, monkeypatch):
    trace = lp.run_trace(tiny_model("gpt2"), IDS, reads=[], gradients="linear")
    monkeypatch.setattr("lensplorer.analyses.metrics.run_model", None)
    assert lp.attribute(trace, 77, method="linear").attrs["completeness"] <= 1e-5


def test_matrix_rows_are_attributions(tiny_model):
    trace = lp.run_trace(tiny_model("qwen3"), IDS, reads=[])
    matrix = lp.attribution_matrix(trace, -3, method="linear", rule="half")
    assert matrix.attrs["completeness"] <= 1e-5 and matrix.attrs["rule"] == "half"
    for t in (7, 8, 9):
        row = lp.attribute(trace, IDS[t], method="linear", rule="half", position=t - 1)
        np.testing.assert_allclose(matrix.attribution.sel(generated=t), row.attribution, rtol=1e-4, atol=1e-6)
        for name in ("value", "completeness", "rest_biases"):
            assert float(matrix[name].sel(generated=t)) == pytest.approx(row.attrs[name], abs=1e-6)


def readings(model):
    """A head's output, a neuron, a probe, what a head is asked by, and a normed stream."""
    generator = torch.Generator().manual_seed(3)
    return {
        "head": lp.Reading("blocks.1.attn.hook_z", torch.randn(8, generator=generator), head=2),
        "heads": lp.Reading("blocks.2.attn.hook_z", torch.randn(32, generator=generator), position=6),
        "neuron": lp.Reading("blocks.1.mlp.hook_post", torch.nn.functional.one_hot(torch.tensor(5), int(model.cfg.d_mlp)).float()),
        "probe": lp.Reading("blocks.1.hook_resid_post", torch.randn(32, generator=generator), position=-2),
        "before the MLP": lp.Reading("blocks.2.ln2.hook_normalized", torch.randn(32, generator=generator)),
    }


@pytest.mark.parametrize("kind", ["head", "heads", "neuron", "probe"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "neox-parallel"])
def test_any_activation_is_a_target(tiny_model, name, kind):
    model = tiny_model(name)
    reading = readings(model)[kind]
    trace = lp.run_trace(model, IDS)
    result = lp.attribute(trace, reading, method="linear")
    row = trace.at(reading.name, trace.position(reading.position)).double()
    wanted = float((row.flatten() if reading.head is None else row[reading.head]) @ reading.vector.double())
    assert result.attrs["value"] == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert result.attrs["completeness"] <= 1e-5
    assert float(result.attribution.astype(float).sum()) + rest(result) == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert result.attrs["position"] == trace.position(reading.position)
    assert result.attribution[result.attrs["position"] + 1 :].sum() == 0


def test_an_sae_feature_is_a_target(storyworld):
    """Its pre-activation, but for the constant: what the tokens make of it adds up to the feature's value and its bias."""
    sae = lp.load_sae("storyworld", "resid_2")
    trace = lp.run_trace(storyworld, "The capital of France is")
    name = sae.cfg.metadata.hook_name
    feature = int(lp.feature_activations(trace, sae, k=1).feature[-1, 0])
    result = lp.attribute(trace, lp.Reading(name, sae.W_enc[:, feature]), method="linear")
    wanted = float(trace[name][-1] @ sae.W_enc[:, feature])
    assert float(result.attribution.sum()) + rest(result) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("seed", [1, 2, 11])
def test_the_indirect_object_ranks_first_in_every_prompt(storyworld, seed):
    first = 0
    for case in cases.cases("indirect_object", count=100, seed=seed):
        trace = lp.run_trace(storyworld, case.clean, reads=[])
        result = lp.attribute(trace, case.right, versus=case.wrong, method="linear")
        assert result.attrs["completeness"] <= 1e-5
        first += trace.token_texts[int(result.attribution.values.argmax())] == case.right
    assert first == 100


def test_bfloat16(tiny_model):
    half = lp.attribute(lp.run_trace(tiny_model("gpt2", dtype="bfloat16"), IDS, reads=[]), 77, method="linear")
    full = lp.attribute(lp.run_trace(tiny_model("gpt2"), IDS, reads=[]), 77, method="linear")
    np.testing.assert_allclose(half.attribution, full.attribution, atol=0.1 * float(abs(full.attribution).max()))
    assert half.attrs["completeness"] <= 0.02


class Squares:
    """An edit that is not linear."""

    def hooks(self, model, positions):
        return [("blocks.1.hook_resid_pre", lambda value, hook: value * value.abs())]


def test_an_edit_that_is_not_linear_is_a_term_too(tiny_model):
    """What it adds beyond its slope counts as the intervention's."""
    result = lp.attribute(lp.run_trace(tiny_model("gpt2"), IDS, reads=[], interventions=[Squares()]), 77, method="linear")
    assert result.attrs["completeness"] <= 1e-5 and abs(result.attrs["rest_interventions"]) > 0.01


def test_what_is_not_linear_is_refused(tiny_model, monkeypatch):
    """A constant that nobody told of, in a module's own arithmetic."""
    model = tiny_model("gpt2")
    mlp = model.blocks[1].mlp
    forward = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: forward(x) + 1.0 * torch.arange(32))
    with pytest.raises(AnalysisError, match=r"miss the value .* this GPT2LMHeadModel does something that is not linear"):
        lp.attribute(lp.run_trace(model, IDS, reads=[]), 77, method="linear")


def test_refusals(tiny_model):
    model = tiny_model("gpt2")
    trace = lp.run_trace(model, IDS, reads=[])
    with pytest.raises(AnalysisError, match="sum to logits and their differences, not to 'prob'"):
        lp.attribute(trace, 77, method="linear", objective="prob")
    with pytest.raises(AnalysisError, match="Unknown rule 'gates'"):
        lp.attribute(trace, 77, method="linear", rule="gates")
    probe = lp.Reading("blocks.1.hook_resid_post", torch.ones(32))
    with pytest.raises(AnalysisError, match="a Reading takes method='linear'"):
        lp.attribute(trace, probe)
    with pytest.raises(AnalysisError, match="versus names a token"):
        lp.attribute(trace, probe, versus=3, method="linear")
    with pytest.raises(AnalysisError, match=r"A direction in 'blocks.1.hook_resid_post' has shape \[32\], got \[31\]"):
        lp.attribute(trace, lp.Reading("blocks.1.hook_resid_post", torch.ones(31)), method="linear")
    with pytest.raises(TraceError, match="no activation"):
        lp.attribute(trace, lp.Reading("blocks.1.hook_resid", torch.ones(32)), method="linear")
    linear = lp.run_trace(model, IDS, reads=[], gradients="linear")
    with pytest.raises(TraceError, match="gradients=True"):
        lp.attribute(linear, 77, method="saliency")
