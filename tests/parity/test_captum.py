"""Captum, used by itself on the same weights, gives the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lensplorer.analyses.attribution import attribute
from lensplorer.trace import run_trace

captum_attr = pytest.importorskip("captum.attr")
IDS = [5, 9, 30, 31, 200, 17, 44, 60]


@pytest.mark.parametrize("name", ["gpt2", "neox"])
def test_integrated_gradients(tiny_model, name):
    """Captum's LayerIntegratedGradients at the embedding hook, from the padding token, at many steps."""
    model = tiny_model(name)
    explainer = captum_attr.LayerIntegratedGradients(lambda ids: model(ids, return_type="logits")[:, -1], model.hook_embed)
    tokens = torch.tensor([IDS])
    expected = explainer.attribute(tokens, baselines=torch.full_like(tokens, 1), target=3, n_steps=256)[0].sum(-1)
    found = attribute(run_trace(model, IDS, reads=[]), 3, baseline="pad", tolerance=1e-3).attribution
    np.testing.assert_allclose(found, expected.detach(), atol=5e-3 * float(expected.abs().max()))


def test_feature_ablation_is_occlusion(tiny_model):
    for name in ("gpt2", "llama-biases"):
        trace = run_trace(tiny_model(name), IDS, reads=[])
        ablation = attribute(trace, 3, method="feature_ablation", position=5).attribution
        np.testing.assert_allclose(ablation, attribute(trace, 3, method="occlusion", position=5).attribution, atol=1e-5)


def test_shapley_values(tiny_model):
    """Kernel SHAP on three tokens, with every subset drawn, gives the Shapley values of the definition."""
    from itertools import permutations

    from lensplorer.analyses.attribution import make_question

    trace = run_trace(tiny_model("gpt2"), IDS[:3], reads=[])
    question = make_question(trace, [2], [3], None, method="kernel_shap", objective="logit", baseline="zero")
    subsets = torch.tensor([[bool(index >> s & 1) for s in range(3)] for index in range(8)])
    value = question.without(subsets)[:, 0].numpy()
    expected = np.zeros(3)
    for order in permutations(range(3)):
        present = 0
        for source in order:
            expected[source] += (value[present | 1 << source] - value[present]) / 6
            present |= 1 << source
    found = attribute(trace, 3, method="kernel_shap", n_samples=400)
    np.testing.assert_allclose(found.attribution, expected, atol=0.05 * abs(expected).max())
    assert found.attrs["completeness"] < 1e-3


def test_samples_approach_and_repeat(tiny_model):
    trace = run_trace(tiny_model("gpt2"), IDS, reads=[])
    integrated = attribute(trace, 3).attribution.values
    before = np.random.get_state()[1].tolist()
    sampled = attribute(trace, 3, method="gradient_shap", n_samples=400)
    again = attribute(trace, 3, method="gradient_shap", n_samples=400)
    np.testing.assert_array_equal(sampled.attribution, again.attribution)  # the seed is all there is to it
    assert np.random.get_state()[1].tolist() == before
    assert np.corrcoef(integrated, sampled.attribution)[0, 1] > 0.95
    few = {"method": "lime", "n_samples": 40, "seed": 2}
    np.testing.assert_array_equal(attribute(trace, 3, **few).attribution, attribute(trace, 3, **few).attribution)
    assert np.abs(attribute(trace, 3, **few).attribution).max() > 0
