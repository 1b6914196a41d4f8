"""A prompt's row of a padded pass is the trace it would have alone, on every architecture."""

from __future__ import annotations

import pytest
import torch

from lensplorer.batch import forward
from lensplorer.batch.forward import forward_all, groups, padding_is_safe, run_padded, trace_of_row
from lensplorer.errors import TraceError
from lensplorer.running import Run, resolve_reads
from lensplorer.trace import run_trace
from tests import tiny

PROMPTS = [[5, 9, 12, 7, 31, 40, 8, 9, 5, 12, 77], [5, 9, 3], [100], [44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55]]


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_padding_has_no_effect(tiny_model, name):
    """Every activation that is read by default, and the logits, within rounding."""
    model = tiny_model(name)
    reads = resolve_reads(model, None)
    seen = set()
    for at, trace in forward_all(model, PROMPTS, reads, pad=True, tokens=10_000):
        alone = run_trace(model, PROMPTS[at])
        assert trace.tokens.tolist() == PROMPTS[at] and trace.token_texts == alone.token_texts
        assert set(trace.cache.cache_dict) == set(alone.cache.cache_dict)
        torch.testing.assert_close(trace.logits, alone.logits, rtol=1e-5, atol=1e-5 * float(alone.logits.abs().max()))
        for hook, expected in alone.cache.cache_dict.items():
            scale = max(1.0, float(expected[expected.isfinite()].abs().max()))
            torch.testing.assert_close(trace[hook], expected, rtol=1e-5, atol=1e-5 * scale, msg=lambda said, hook=hook: f"{hook}: {said}")
        seen.add(at)
    assert seen == set(range(len(PROMPTS)))
    assert padding_is_safe(model)


def test_a_model_that_looks_ahead_is_not_padded(tiny_model, monkeypatch):
    """The probe sees it: here the prediction at each position depends on how long the run is."""
    model, run_model = tiny_model("gpt2"), forward.run_model

    def looks_ahead(model, tokens, **options):
        run = run_model(model, tokens, **options)
        return Run(run.logits + 0.1 * tokens.shape[1], run.activations)

    monkeypatch.setattr(forward, "run_model", looks_ahead)
    assert not padding_is_safe(model)


@pytest.mark.parametrize("rope", [{"rope_type": "dynamic"}, {"full_attention": {"rope_type": "longrope"}}])
def test_frequencies_that_depend_on_the_length_are_not_padded(tiny_model, monkeypatch, rope):
    model = tiny_model("llama", backend="bridge")
    assert padding_is_safe(model)
    monkeypatch.setattr(model.original_model.config, "rope_parameters", rope)
    assert not padding_is_safe(model)


def test_groups_hold_every_prompt_once_and_keep_to_the_bound():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 90, (200,), generator=generator).tolist()
    for pad in (True, False):
        found = groups(lengths, pad=pad, tokens=300)
        assert sorted(at for group in found for at in group) == list(range(200))
        for group in found:
            longest = max(lengths[at] for at in group)
            assert longest * len(group) <= 300 or len(group) == 1
            assert pad or len({lengths[at] for at in group}) == 1
    assert len(groups(lengths, pad=True, tokens=300)) < len(groups(lengths, pad=False, tokens=300))
    assert groups([500], pad=True, tokens=300) == [[0]]  # a long prompt runs alone


def test_an_activation_that_is_not_per_position_is_refused(tiny_model):
    model = tiny_model("gpt2")
    run = run_padded(model, PROMPTS[:2], frozenset())
    with pytest.raises(TraceError, match="not one value per position"):
        trace_of_row(model, PROMPTS[1], Run(run.logits, {"blocks.0.hook_odd": torch.zeros(2, 7, 3)}), 1)
