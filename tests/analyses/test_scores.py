"""Token scores and next tokens against a slow loop in float64, and what they must refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lensplorer.analyses import scores as module
from lensplorer.analyses.scores import next_token, token_scores
from lensplorer.errors import AnalysisError, TraceError
from lensplorer.trace import make_trace, run_trace

TEXT = "the cat sat on the mat"


def with_logits(trace, logits):
    return make_trace(trace.model, trace.tokens, logits, {})


@pytest.fixture(scope="module")
def trace(tiny_model):
    return run_trace(tiny_model("gpt2"), TEXT, reads=[])


def reference(trace, temperature=1.0):
    """Each quantity by its definition, one position and one token of the vocabulary at a time."""
    rows = []
    for i in range(1, len(trace)):
        z = [float(value) for value in trace.logits[i - 1].double()]
        highest = max(z)
        total = sum(math.exp(value - highest) for value in z)
        p = [math.exp(value - highest) / total for value in z]
        token = int(trace.tokens[i])
        hot = sum(math.exp((value - highest) / temperature) for value in z)
        rows.append(
            {
                "probability": p[token],
                "surprisal": -math.log2(p[token]),
                "rank": 1 + sum(value > z[token] for value in z),
                "entropy": -sum(value * math.log(value) for value in p if value > 0),
                "energy": -(highest + temperature * math.log(hot)),
            }
        )
    return rows


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_are_their_definitions(trace, temperature):
    found = token_scores(trace, temperature=temperature)
    for i, row in enumerate(reference(trace, temperature), start=1):
        for name, value in row.items():
            assert float(found[name][i]) == pytest.approx(value, rel=1e-5, abs=1e-6), (name, i)
        assert float(found.normalised_entropy[i]) == pytest.approx(row["entropy"] / math.log(trace.logits.shape[1]), rel=1e-5)


def test_the_first_token_has_no_prediction(trace):
    first = token_scores(trace).isel(position=0)
    assert all(np.isnan(first[name]) for name in ("probability", "surprisal", "rank", "entropy", "normalised_entropy", "energy"))
    assert int(first.token_id) == int(trace.tokens[0])


def test_one_token_has_no_scores_at_all(tiny_model):
    assert token_scores(run_trace(tiny_model("llama"), [5], reads=[])).probability.isnull().all()


def test_chunks_change_nothing(trace, monkeypatch):
    whole = token_scores(trace)
    monkeypatch.setattr(module, "_CHUNK", 2 * trace.logits.shape[1])
    assert whole.broadcast_equals(token_scores(trace))


def test_energy_moves_with_a_constant_and_nothing_else_does(trace):
    plain, moved = token_scores(trace), token_scores(with_logits(trace, trace.logits + 50))
    np.testing.assert_allclose(moved.energy[1:], plain.energy[1:] - 50, rtol=1e-5)
    for name in ("probability", "entropy", "rank"):
        np.testing.assert_allclose(moved[name][1:], plain[name][1:], rtol=2e-4, atol=1e-6)


def test_masked_logits_count_as_impossible(trace):
    logits = trace.logits.clone()
    logits[:, 200:] = -torch.inf
    found, cut = token_scores(with_logits(trace, logits)), torch.log_softmax(trace.logits[:, :200].double(), -1)
    np.testing.assert_allclose(found.entropy[1:], (-(cut.exp() * cut).sum(-1))[:-1], rtol=1e-5)


def test_bfloat16_is_reduced_in_float32(trace):
    rounded = trace.logits.bfloat16()
    found, wanted = token_scores(with_logits(trace, rounded)), token_scores(with_logits(trace, rounded.float()))
    assert found.probability.dtype == np.float32
    assert found.broadcast_equals(wanted)


@pytest.mark.parametrize("temperature", [0, -1, math.inf, math.nan])
def test_temperature_must_be_above_zero(trace, temperature):
    with pytest.raises(AnalysisError, match="temperature must be above 0"):
        token_scores(trace, temperature=temperature)


def test_next_tokens_are_the_largest_logits(trace):
    found = next_token(trace, k=7)
    z = trace.logits[-1].double()
    order = z.argsort(descending=True)[:7]
    assert found.token_id.values.tolist() == order.tolist()
    assert found["rank"].values.tolist() == [1, 2, 3, 4, 5, 6, 7]
    np.testing.assert_allclose(found.probability, z.softmax(-1)[order], rtol=1e-5)
    np.testing.assert_allclose(found.z_score, ((z - z.mean()) / z.std(correction=0))[order], rtol=1e-4)
    assert found.attrs["total_probability"] == pytest.approx(float(z.softmax(-1)[order].sum()), rel=1e-5)


def test_search_keeps_the_rank_in_the_whole_vocabulary(trace):
    found = next_token(trace, k=5, search="T")
    everything = next_token(trace, k=10_000)
    assert len(found["rank"]) and all("t" in str(text).lower() for text in found.token.values)
    for row in found["rank"].values:
        assert int(found.token_id.sel(rank=row)) == int(everything.token_id.sel(rank=row))


def test_next_token_refuses_what_it_cannot_do(trace):
    with pytest.raises(AnalysisError, match="k must be at least 1"):
        next_token(trace, k=0)
    with pytest.raises(TraceError, match="outside the prompt"):
        next_token(trace, position=len(trace))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_reported(trace, value):
    logits = trace.logits.clone()
    logits[2, 3] = value
    broken = with_logits(trace, logits)
    with pytest.raises(AnalysisError, match=r"first appear at the logits.*position 2"):
        token_scores(broken)
    with pytest.raises(AnalysisError, match="first appear at the logits"):
        next_token(broken, position=2)
