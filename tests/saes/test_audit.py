"""An SAE on the wrong activation is refused with both sides named; what can be made right exactly is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lensplorer.analyses.features import feature_activations, splice_fidelity
from lensplorer.errors import SAEError
from lensplorer.models import load_model, model_info
from lensplorer.running import run_model
from lensplorer.saes import FeatureCache, audit_sae, check_sae, find_site, model_for_sae, sae_reads
from lensplorer.saes.audit import same_model
from lensplorer.trace import run_trace
from tests.saes import tiny_saes

PROMPT = "the cat sat on the mat and the dog ran"
CENTRED = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
RAW = {"model_from_pretrained_kwargs": {"fold_ln": False}}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("lensplorer.saes.cache._default", FeatureCache(tmp_path / "features"))


@pytest.fixture(scope="module")
def gpt2(tiny_model):
    return tiny_model("gpt2")


def test_a_matching_sae_passes_every_check(gpt2):
    trace = run_trace(gpt2, PROMPT, prepend_bos=True)
    checks = audit_sae(gpt2, tiny_saes.of(gpt2), trace=trace)
    assert [check.subject for check in checks] == [
        "model", "hook", "d_in", "weight processing", "normalisation", "architecture", "BOS", "context",
    ]  # fmt: skip
    assert all(check.agrees for check in checks)


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            dict(hook="blocks.7.hook_resid_post"),
            r"reads 'blocks.7.hook_resid_post', which .* does not have\. Did you mean 'blocks.\d.hook_resid_post'",
        ),
        (dict(d_in=48), r"D_in: the SAE has 48, here it is 32"),
        (dict(metadata={"model_name": "gpt2-xl"}), r"Model: the SAE has gpt2-xl, here it is .*model_name="),
        (dict(normalize_activations="expected_average_only_in"), r"Normalisation: the SAE has expected_average_only_in, here it is none folded"),
        (
            dict(hook="blocks.1.attn.hook_z", metadata={"model_from_pretrained_kwargs": {"fold_value_biases": True}}),
            "Weight processing: the SAE has fold_value_biases=True",
        ),
        (dict(metadata={"model_from_pretrained_kwargs": {"first_n_layers": 2}}), "Weight processing: the SAE has first_n_layers=2"),
    ],
)
def test_a_mismatch_with_the_model_is_refused(settings, message, gpt2):
    trace = run_trace(gpt2, PROMPT, prepend_bos=True)
    with pytest.raises(SAEError, match=message):
        feature_activations(trace, tiny_saes.of(gpt2, **settings))


def test_a_mismatch_with_the_prompt_is_refused(gpt2):
    with_bos, without = (run_trace(gpt2, PROMPT, prepend_bos=bos) for bos in (True, False))
    sae, bare = tiny_saes.of(gpt2), tiny_saes.of(gpt2, metadata={"prepend_bos": False})
    with pytest.raises(SAEError, match=r"BOS: the SAE has prompts that begin with BOS, here it is 't.*first.*prepend_bos=True"):
        feature_activations(without, sae)
    with pytest.raises(SAEError, match=r"BOS: the SAE has prompts without BOS.*prepend_bos=False"):
        feature_activations(with_bos, bare)
    assert feature_activations(without, bare).attrs["excluded"] == "none"
    short = tiny_saes.of(gpt2, metadata={"context_size": 4})
    with pytest.raises(SAEError, match=f"Context: the SAE has 4 tokens, here it is {len(with_bos)} tokens.*beyond_context"):
        feature_activations(with_bos, short)
    assert feature_activations(with_bos, short, beyond_context=True).feature.values[-1, 0] >= 0


def test_a_refusal_names_every_mismatch(gpt2):
    sae = tiny_saes.of(gpt2, d_in=48, metadata={"model_name": "gpt2-xl"})
    with pytest.raises(SAEError, match=r"(?s)Model: .*D_in: "):
        check_sae(gpt2, sae)


def test_names_of_one_model():
    assert same_model("gpt2-small", "gpt2") and same_model("google/gemma-2-2b", "gemma-2-2b") and same_model("qwen3-0.6b", "Qwen/Qwen3-0.6B")
    assert same_model("./copies/gpt2", "gpt2-small")
    assert not same_model("gpt2", "gpt2-medium") and not same_model("pythia-70m", "pythia-70m-deduped")


# -- centred writing weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def centred_gpt2(tiny_folder):
    """TransformerLens' own model with centred writing weights, of the same checkpoint."""
    centred = load_model(str(tiny_folder("gpt2")), processing="none")
    options = dict(fold_ln=False, center_writing_weights=True, center_unembed=False, fold_value_biases=False)
    centred.load_and_process_state_dict(dict(centred.state_dict()), **options)
    return centred


@pytest.mark.parametrize(
    "hook", ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_mid", "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out", "hook_embed"]
)
@pytest.mark.parametrize("processing", ["default", "none"])
def test_centring_the_activation_is_centring_the_weights(hook, processing, tiny_model, centred_gpt2):
    model = tiny_model("gpt2", processing=processing)
    trace = run_trace(model, PROMPT, prepend_bos=True)
    sae = tiny_saes.of(model, hook=hook, metadata=CENTRED)
    site = find_site(model, sae)
    with torch.no_grad():
        expected = centred_gpt2.run_with_cache(trace.tokens[None])[1][hook][0]
    assert not torch.allclose(trace[hook], expected, atol=1e-2), "the raw activation is another"
    assert torch.allclose(site.input(trace[hook]), expected, atol=1e-5)
    result = splice_fidelity(trace, sae, error_term=True, exclude=())
    assert result.attrs["max_logit_change"] <= 1e-5


def test_a_centred_sae_spliced_is_the_centred_model_spliced(tiny_model, centred_gpt2):
    model, hook = tiny_model("gpt2"), "blocks.1.hook_resid_pre"
    trace = run_trace(model, PROMPT, prepend_bos=True)
    sae = tiny_saes.of(model, hook=hook, metadata=CENTRED)
    with torch.no_grad():
        expected = centred_gpt2.run_with_hooks(trace.tokens[None], fwd_hooks=[(hook, lambda x, hook: sae(x))])[0].log_softmax(-1)
    ours = splice_fidelity(trace, sae, exclude=())
    clean = trace.logits.log_softmax(-1)
    assert np.allclose(ours.kl, (clean.exp() * (clean - expected)).sum(-1), atol=1e-4)


def test_rms_models_are_not_centred(tiny_model):
    model = tiny_model("llama")
    assert not find_site(model, tiny_saes.of(model, metadata=CENTRED)).centre_input


def test_only_the_stream_is_centred(gpt2):
    for hook in ("blocks.1.attn.hook_z", "blocks.1.ln2.hook_normalized"):
        assert not find_site(gpt2, tiny_saes.of(gpt2, hook=hook, metadata=CENTRED)).centre_input


# -- the MLP's input -----------------------------------------------------------------------------------------------------------------


def mlp_inputs(model, tokens, block=1):
    """What the MLP module itself is given."""
    seen = []
    handle = model.blocks[block].mlp.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        run_model(model, tokens[None])
    finally:
        handle.remove()
    return seen[0][0]


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "neox-parallel", "gemma2", "gemma"])
def test_mlp_hook_in_is_the_raw_models_mlp_input(name, tiny_model):
    model = tiny_model(name, processing="none")
    trace = run_trace(model, PROMPT, prepend_bos=True)
    sae = tiny_saes.of(model, "transcoder", hook="blocks.1.mlp.hook_in", metadata=RAW)
    site = check_sae(model, sae, trace=trace)
    assert torch.allclose(site.input(trace[site.read]), mlp_inputs(model, trace.tokens), atol=1e-6)
    assert splice_fidelity(trace, sae, error_term=True, exclude=()).attrs["max_logit_change"] <= 1e-5


def test_a_folded_model_is_refused_and_reloaded_when_asked(tiny_model):
    model = tiny_model("llama")
    sae = tiny_saes.of(model, "transcoder", hook="blocks.1.mlp.hook_in", metadata=RAW)
    with pytest.raises(SAEError, match=r"raw weights \(fold_ln=False\).*folded norms.*processing='none'"):
        check_sae(model, sae)
    reloaded = model_for_sae(sae, model=model)
    assert model_info(reloaded).processing == "none" and model_info(reloaded).name == model_info(model).name
    assert model_for_sae(sae, model=reloaded) is reloaded
    other = tiny_saes.of(model, "transcoder", d_in=48, metadata={"d_out": 48})
    with pytest.raises(SAEError, match="D_in"):
        model_for_sae(other, model=model)


def test_a_transcoder_trained_on_folded_weights_reads_the_normalised_input(tiny_model):
    model = tiny_model("llama")
    trace = run_trace(model, PROMPT, prepend_bos=True)
    sae = tiny_saes.of(model, "transcoder", hook="blocks.1.mlp.hook_in", metadata={"model_from_pretrained_kwargs": {"fold_ln": True}})
    site = check_sae(model, sae)
    assert torch.allclose(site.input(trace[site.read]), mlp_inputs(model, trace.tokens), atol=1e-6), "the folded model's own MLP input"


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_hook_normalized_is_the_same_raw_and_folded(name, tiny_model):
    default, raw = (run_trace(tiny_model(name, processing=processing), PROMPT, prepend_bos=True) for processing in ("default", "none"))
    assert torch.allclose(default["blocks.1.ln2.hook_normalized"], raw["blocks.1.ln2.hook_normalized"], atol=1e-5)


def test_other_names_of_the_mlps_ends(tiny_model):
    model = tiny_model("llama")
    sae = tiny_saes.of(model, "skip_transcoder", hook="blocks.1.hook_mlp_in", metadata={"hook_name_out": "blocks.1.mlp.hook_out"})
    assert sae_reads(model, sae) == ("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out")
    raw = tiny_model("gemma3")
    registered = tiny_saes.of(
        raw, "transcoder", hook="blocks.1.hook_mlp_in", metadata={"hf_hook_name": "model.layers.1.pre_feedforward_layernorm.output"}
    )
    assert sae_reads(raw, registered) == ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")


def test_an_sae_of_another_name_is_taken_at_its_word(gpt2, tmp_path):
    from lensplorer.saes import load_sae

    folder = tiny_saes.save(tiny_saes.make("standard", "gpt2-xl"), tmp_path / "sae")
    with pytest.raises(SAEError, match="Model: the SAE has gpt2-xl"):
        check_sae(gpt2, load_sae(folder=folder))
    assert check_sae(gpt2, load_sae(folder=folder, model_name=model_info(gpt2).name)).read == tiny_saes.RESIDUAL


def test_model_info_is_not_touched(gpt2):
    before = replace(model_info(gpt2))
    check_sae(gpt2, tiny_saes.of(gpt2))
    assert model_info(gpt2) == before
