"""Curves and agreement against slow loops and known orders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from lensplorer.analyses.attribution import attribute
from lensplorer.analyses.faithfulness import attribution_agreement, faithfulness_curves, rank_correlation
from lensplorer.errors import AnalysisError
from lensplorer.running import run_model
from lensplorer.trace import run_trace

IDS = [5, 9, 30, 31, 200, 17, 44]


def test_curves_against_a_slow_loop(tiny_model):
    model = tiny_model("gpt2")
    trace = run_trace(model, IDS, reads=[])
    attribution = attribute(trace, 3, method="occlusion", position=4)
    curves = faithfulness_curves(trace, attribution, n_random=2)
    order = sorted(range(5), key=lambda s: -float(attribution.attribution[s]))
    assert curves.token_position.values.tolist() == [-1, *order]

    def value(removed):
        def remove(embeddings, hook):
            embeddings = embeddings.clone()
            embeddings[:, removed] = 0
            return embeddings

        return float(run_model(model, torch.tensor([IDS]), hooks=[("hook_embed", remove)]).logits[0, 4, 3])

    np.testing.assert_allclose(curves.deletion, [value(order[:k]) for k in range(6)], atol=1e-4)
    np.testing.assert_allclose(curves.insertion, [value(order[k:]) for k in range(6)], atol=1e-4)
    values = curves.deletion.values
    assert curves.attrs["deletion_area"] == pytest.approx(sum((values[k] + values[k + 1]) / 2 for k in range(5)) / 5)


def test_agreement(tiny_model):
    trace = run_trace(tiny_model("gpt2"), IDS, reads=[], gradients=True)
    methods = ["occlusion", "input_x_gradient", "saliency"]
    found = attribution_agreement(trace, [attribute(trace, 3, method=method) for method in methods], top_k=3)
    scores = {method: attribute(trace, 3, method=method).attribution.values for method in methods}
    assert float(found.rank_correlation.sel(attribution="occlusion", other="occlusion")) == pytest.approx(1)
    signed = spearmanr(scores["occlusion"], scores["input_x_gradient"]).statistic
    assert float(found.rank_correlation.sel(attribution="occlusion", other="input_x_gradient")) == pytest.approx(signed)
    unsigned = spearmanr(abs(scores["occlusion"]), scores["saliency"]).statistic
    assert float(found.rank_correlation.sel(attribution="occlusion", other="saliency")) == pytest.approx(unsigned)
    tops = [set(np.argsort(-abs(scores[method]))[:3]) for method in methods[:2]]
    assert float(found.top_k_overlap[0, 1]) == pytest.approx(len(tops[0] & tops[1]) / 3)


def test_rank_correlation_with_ties_and_constants():
    a, b = np.array([1.0, 2, 2, 4]), np.array([3.0, 1, 1, 0])
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert np.isnan(rank_correlation(a, np.zeros(4)))


def test_refusals(tiny_model):
    trace = run_trace(tiny_model("gpt2"), IDS, reads=[])
    one = attribute(trace, 3, method="occlusion")
    with pytest.raises(AnalysisError, match="two attributions or more, got 1"):
        attribution_agreement(trace, [one])
    with pytest.raises(AnalysisError, match="different predictions"):
        attribution_agreement(trace, [one, attribute(trace, 4, method="occlusion")])
    with pytest.raises(AnalysisError, match="another prompt"):
        faithfulness_curves(run_trace(tiny_model("gpt2"), IDS[:-1], reads=[]), one)
