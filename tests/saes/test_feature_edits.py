"""Feature interventions on loaded SAEs: the edit is decode(edited) - decode(features), the error term kept."""

from __future__ import annotations

import pytest
import torch

from lensplorer.interventions import ablate_feature, clamp_feature, scale_feature
from lensplorer.running import run_model
from lensplorer.saes import encode_and_decode, find_site, load_sae
from lensplorer.trace import run_trace
from tests.saes import tiny_saes

PROMPT = "the cat sat on the mat"


@pytest.fixture(params=tiny_saes.ARCHITECTURES)
def loaded(request, tiny_model, tmp_path):
    """A tiny SAE of every architecture, through a folder and load_sae, with its model and trace."""
    model = tiny_model("gpt2")
    sae = load_sae(folder=tiny_saes.save(tiny_saes.of(model, request.param), tmp_path / "sae"))
    return model, sae, run_trace(model, PROMPT, prepend_bos=True)


def reference(model, sae, tokens, edit, adapt=lambda x: x):
    """x + decode(edited features) - decode(features), by hand."""
    metadata, seen = sae.cfg.metadata, []

    def keep(value, hook):
        seen[:] = [value]
        return value

    def change(value, hook):
        features = sae.encode(adapt(seen[0]))
        return value + sae.decode(edit(features)) - sae.decode(features)

    hooks = [(metadata.hook_name, keep), (metadata.hook_name_out or metadata.hook_name, change)]
    return run_model(model, tokens[None], hooks=hooks).logits[0]


def strongest(model, sae, trace):
    site = find_site(model, sae)
    return int(encode_and_decode(sae, site.input(trace[site.read]))[0][1:].sum(0).argmax())


def test_a_factor_of_one_changes_nothing(loaded):
    model, sae, trace = loaded
    same = run_trace(model, PROMPT, prepend_bos=True, interventions=[scale_feature(sae, 3, 1.0)])
    assert float((same.logits - trace.logits).abs().max()) <= 1e-5


def test_edits_are_the_difference_that_they_make_to_the_reconstruction(loaded):
    model, sae, trace = loaded
    feature = strongest(model, sae, trace)

    def scaled(features):
        features = features.clone()
        features[..., feature] *= 3
        return features

    def clamped(value):
        def edit(features):
            features = features.clone()
            features[..., feature] = value
            return features

        return edit

    for intervention, edit in (
        (scale_feature(sae, feature, 3.0), scaled),
        (clamp_feature(sae, feature, 2.0), clamped(2.0)),
        (ablate_feature(sae, feature), clamped(0.0)),
    ):
        ours = run_trace(model, PROMPT, prepend_bos=True, interventions=[intervention]).logits
        assert float((ours - trace.logits).abs().max()) > 1e-3, "the edit reaches the logits"
        assert torch.allclose(ours, reference(model, sae, trace.tokens, edit), atol=1e-4)


def test_the_sae_is_left_as_it_was(loaded):
    model, sae, trace = loaded
    before = {name: parameter.clone() for name, parameter in sae.named_parameters()}
    run_trace(model, PROMPT, prepend_bos=True, interventions=[ablate_feature(sae, 1)])
    assert all(torch.equal(parameter, before[name]) for name, parameter in sae.named_parameters())
    assert torch.equal(run_trace(model, PROMPT, prepend_bos=True).logits, trace.logits)


def test_an_sae_of_centred_weights_is_edited_as_it_was_trained(tiny_model):
    model = tiny_model("gpt2")
    sae = tiny_saes.of(model, hook="blocks.1.hook_resid_pre", metadata={"model_from_pretrained_kwargs": {"center_writing_weights": True}})
    trace = run_trace(model, PROMPT, prepend_bos=True)
    feature = strongest(model, sae, trace)

    def off(features):
        features = features.clone()
        features[..., feature] = 0
        return features

    ours = run_trace(model, PROMPT, prepend_bos=True, interventions=[ablate_feature(sae, feature)]).logits
    assert torch.allclose(ours, reference(model, sae, trace.tokens, off, adapt=lambda x: x - x.mean(-1, keepdim=True)), atol=1e-4)
