"""TransformerLens' own direct logit attribution, on the weights for which it is right: folded norms, no norms after blocks.

On raw weights its ``logit_attrs`` leaves the final norm's gain out, and under post-norms its heads are not what is added to the stream; there
the identities of ``tests/analyses/test_residual.py`` are the proof.
"""

from __future__ import annotations

import numpy as np
import pytest

from lensplorer.analyses.residual import residual_decomposition
from lensplorer.trace import run_trace

TEXT = "the cat sat on the mat"
TARGET, OTHER = 77, 40
FOLDED = ("gpt2", "neox", "opt", "llama", "qwen2", "qwen3", "mistral", "phi3", "bloom")


@pytest.mark.parametrize("versus", [None, OTHER])
@pytest.mark.parametrize("name", FOLDED)
def test_layers(tiny_model, name, versus):
    trace = run_trace(tiny_model(name), TEXT)
    parts, labels = trace.cache.decompose_resid(layer=-1, mode="all", pos_slice=-1, return_labels=True)
    theirs = trace.cache.logit_attrs(parts, tokens=TARGET, incorrect_tokens=versus, pos_slice=-1, has_batch_dim=False)
    ours = residual_decomposition(trace, TARGET, versus=versus)
    names = {"embed": "embed", "pos_embed": "pos_embed"} | {
        f"{layer}_{part}_out": f"{part} {layer}" for layer in range(3) for part in ("attn", "mlp")
    }
    compared = [(names[label], float(value)) for label, value in zip(labels, theirs) if label in names]
    assert len(compared) >= 7
    for component, value in compared:
        assert float(ours.contribution.sel(component=component)) == pytest.approx(value, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", FOLDED)
def test_heads(tiny_model, name):
    trace = run_trace(tiny_model(name), TEXT)
    heads = trace.cache.stack_head_results(layer=-1, pos_slice=-1)
    theirs = trace.cache.logit_attrs(heads, tokens=TARGET, pos_slice=-1, has_batch_dim=False)
    ours = residual_decomposition(trace, TARGET, unit="head").contribution
    np.testing.assert_allclose(ours, theirs.reshape(ours.shape), rtol=1e-3, atol=1e-4)


def test_raw_weights_are_where_it_is_wrong(tiny_model):
    """Should this fail, TransformerLens applies the gain now, and the table above can take raw weights in."""
    trace = run_trace(tiny_model("llama", processing="none"), TEXT)
    parts = trace.cache.decompose_resid(layer=-1, mode="all", pos_slice=-1)
    theirs = float(trace.cache.logit_attrs(parts, tokens=TARGET, pos_slice=-1, has_batch_dim=False).sum())
    ours = residual_decomposition(trace, TARGET)
    assert abs(float(ours.contribution.sum()) - float(trace.logits[-1, TARGET])) < 1e-3
    assert abs(theirs - float(trace.logits[-1, TARGET])) > 1e-2
