"""Features scaled, clamped and taken out, the error term kept."""

from __future__ import annotations

import json

import pytest
import torch

from lensplorer.errors import AnalysisError, LensplorerError, SessionError
from lensplorer.interventions import ablate_feature, clamp_feature, feature_direction, from_dict, scale_feature, steer, to_dict
from lensplorer.stepping import TokenTree
from lensplorer.trace import run_trace

CLEAN = [5, 17, 40, 100, 7, 61]
HOOK = "blocks.1.hook_resid_pre"


def make_sae(hook=HOOK, *, d_in=32, seed=0, normalise="none", transcoder_out=None):
    sae_lens = pytest.importorskip("sae_lens")
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name=hook, model_name=None, prepend_bos=False, model_from_pretrained_kwargs={})
    if transcoder_out:
        metadata.hook_name_out = transcoder_out
        config = sae_lens.TranscoderConfig(
            d_in=d_in, d_out=32, d_sae=64, dtype="float32", device="cpu", apply_b_dec_to_input=False, metadata=metadata
        )
        sae = sae_lens.Transcoder(config)
    else:
        config = sae_lens.StandardSAEConfig(
            d_in=d_in, d_sae=64, dtype="float32", device="cpu", apply_b_dec_to_input=False, normalize_activations=normalise, metadata=metadata
        )
        sae = sae_lens.StandardSAE(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return sae


def moved(model, intervention, hook=HOOK):
    return (run_trace(model, CLEAN, interventions=[intervention])[hook] - run_trace(model, CLEAN)[hook]).detach()


@pytest.mark.parametrize(("name", "backend"), [("gpt2", "hooked"), ("llama", "bridge")])
def test_an_edit_moves_along_the_decoder_by_the_change_of_the_feature(tiny_model, name, backend):
    model, sae = tiny_model(name, backend=backend, processing="none"), make_sae()
    features = sae.encode(run_trace(model, CLEAN)[HOOK]).detach()
    on = (features > 0).sum(0).topk(2).indices.tolist()
    f = features[:, on]  # [position, 2]
    assert f.any(0).all()
    for intervention, change in (
        (scale_feature(sae, on, 2.5), 1.5 * f),
        (clamp_feature(sae, on, 4.0), 4.0 - f),
        (ablate_feature(sae, on), -f),
        (scale_feature(sae, on, 1.0), 0 * f),
    ):
        assert torch.allclose(moved(model, intervention), change @ sae.W_dec[on], atol=1e-4), intervention
    some = moved(model, clamp_feature(sae, 3, 4.0, positions=[1, 4]))
    assert some[[1, 4]].any(-1).all() and not some[[0, 2, 3, 5]].any()


def test_a_normalised_input_is_edited_in_its_own_scale(tiny_model):
    model, sae = tiny_model("gpt2", processing="none"), make_sae(normalise="constant_norm_rescale")
    x = run_trace(model, CLEAN)[HOOK]
    f = sae.encode(x)
    scale = 32**0.5 / x.norm(dim=-1, keepdim=True)
    expected = ((4.0 - f[:, 3:4]) @ sae.W_dec[3:4] / scale).detach()
    assert torch.allclose(moved(model, clamp_feature(sae, 3, 4.0)), expected, atol=1e-4)


def test_a_transcoder_is_read_at_its_input_and_edited_at_its_output(tiny_model):
    model = tiny_model("gpt2", processing="none")
    sae = make_sae("blocks.1.ln2.hook_normalized", transcoder_out="blocks.1.hook_mlp_out")
    f = sae.encode(run_trace(model, CLEAN)["blocks.1.ln2.hook_normalized"])
    on = int((f > 0).sum(0).argmax())
    change = moved(model, ablate_feature(sae, on), "blocks.1.hook_mlp_out")
    assert f[:, on].any() and torch.allclose(change, (-f[:, [on]] @ sae.W_dec[[on]]).detach(), atol=1e-4)


def test_stepping_under_a_feature_edit_equals_a_whole_run(tiny_model):
    model, edit = tiny_model("gpt2", processing="none"), clamp_feature(make_sae(), 3, 4.0, positions=slice(2, None))
    tree = TokenTree(model, reads=[], interventions=[edit])
    node = tree.root
    for token_id in CLEAN:
        node = tree.extend(node, token_id)
    whole = run_trace(model, CLEAN, interventions=[edit]).logits
    assert torch.allclose(tree.trace(node).logits, whole, atol=1e-4)


def test_values_are_equal_for_equal_weights_and_survive_json_with_the_sae(tiny_model):
    one, same, other = make_sae(), make_sae(), make_sae(seed=1)
    assert scale_feature(one, [4, 3], 2) == scale_feature(same, (3, 4, 4), 2.0) != scale_feature(other, [3, 4], 2)
    assert ablate_feature(one, 3) == scale_feature(one, 3, 0) == clamp_feature(one, 3, 0) != clamp_feature(one, 3, 1)
    saved = json.loads(json.dumps(to_dict(scale_feature(one, 3, 2))))
    assert from_dict(saved, saes=[other, same]) == scale_feature(one, 3, 2)
    with pytest.raises(SessionError, match="load that SAE"):
        from_dict(saved, saes=[other])
    assert repr(scale_feature(one, 3, 2, positions=1)) == "scale_feature(sae('blocks.1.hook_resid_pre', 64), 3, 2, positions=1)"


def test_steering_with_a_feature_adds_its_decoder_row(tiny_model):
    model, sae = tiny_model("gpt2", processing="none"), make_sae()
    change = moved(model, steer(feature_direction(sae, 5), 1, 2.0))
    assert torch.allclose(change, (2 * sae.W_dec[5]).detach().expand(6, -1), atol=1e-4)


def test_an_sae_of_another_model_or_a_feature_it_lacks_is_refused(tiny_model):
    model = tiny_model("gpt2", processing="none")
    for sae in (make_sae(d_in=48), make_sae("blocks.7.hook_resid_pre"), make_sae("blocks.1.hook_nothing")):
        with pytest.raises(LensplorerError, match=r"does not fit|does not have"):
            run_trace(model, CLEAN, interventions=[ablate_feature(sae, 0)])
    elsewhere = make_sae()
    elsewhere.cfg.metadata.model_name = "pythia-70m"
    with pytest.raises(LensplorerError, match="pythia-70m"):
        run_trace(model, CLEAN, interventions=[ablate_feature(elsewhere, 0)])
    with pytest.raises(AnalysisError, match="features 0 to 63"):
        ablate_feature(make_sae(), 64)
    with pytest.raises(AnalysisError, match="hook_name"):
        ablate_feature(make_sae(None), 1)
