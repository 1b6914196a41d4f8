"""The same grids as TransformerLens' ``patching`` module on the same model."""

from __future__ import annotations

import pytest
import torch

from lensplorer.analyses.patching import activation_patching
from lensplorer.trace import run_trace

CLEAN, CORRUPT = [5, 17, 40, 100, 7, 61], [5, 17, 41, 100, 9, 61]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("hook", "peer"),
    [
        ("resid_pre", "get_act_patch_resid_pre"),
        ("resid_mid", "get_act_patch_resid_mid"),
        ("attn_out", "get_act_patch_attn_out"),
        ("mlp_out", "get_act_patch_mlp_out"),
        ("z", "get_act_patch_attn_head_out_all_pos"),
        ("pattern", "get_act_patch_attn_head_pattern_all_pos"),
    ],
)
def test_grid_equals_transformer_lens(tiny_model, name, hook, peer):
    from transformer_lens import patching

    model = tiny_model(name, backend="hooked")
    _, cache = model.run_with_cache(torch.tensor([CLEAN]))
    theirs = getattr(patching, peer)(model, torch.tensor([CORRUPT]), cache, lambda z: z[0, -1, 20] - z[0, -1, 30])
    ours = activation_patching(run_trace(model, CLEAN), run_trace(model, CORRUPT), hook, (20, 30))
    clean, corrupt = ours.attrs["metric_clean"], ours.attrs["metric_corrupt"]
    assert torch.allclose(torch.tensor(ours.metric.values), theirs, atol=1e-5)
    assert torch.allclose(torch.tensor(ours.effect.values), (theirs - corrupt) / (clean - corrupt), atol=1e-5 * max(1, 1 / abs(clean - corrupt)))
