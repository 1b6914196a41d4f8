"""Models that a person converts, moves or edits after loading: results follow the weights as they are, or the run is refused in a sentence."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

import lensplorer as lp
from lensplorer.errors import ModelError, TraceError
from lensplorer.weights import weights_of
from tests import tiny

IDS = [0, 290, 302, 313, 306, 262, 305]
BACKENDS = {"gpt2": "hooked", "llama": "hooked", "gemma2": "bridge"}


@pytest.fixture(params=BACKENDS)
def model(request, tiny_folder):
    """One of its own for each test: it is changed."""
    loaded = lp.load_model(str(tiny_folder(request.param)))
    assert lp.model_info(loaded).backend == BACKENDS[request.param]
    return loaded


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("by", ["method", "to"])
def test_a_converted_model_is_refused_everywhere(dtype, by, model):
    trace, session = lp.run_trace(model, IDS), lp.Session(model, IDS)
    session.trace()
    torch_dtype = getattr(torch, dtype)
    if by == "to":
        model.to(torch_dtype)
    else:
        {"float16": model.half, "bfloat16": model.bfloat16, "float64": model.double}[dtype]()
    said = f"weights are {dtype} now, and it was loaded in float32: load_model\\(name, dtype='{dtype}'\\) loads it so"
    for ask in (
        lambda: lp.run_trace(model, IDS),
        lambda: lp.token_scores(trace),
        lambda: lp.attribute(trace, 17),
        lambda: session.trace(),
        lambda: session.sample_step(),
        lambda: lp.head_scores(model, length=4),
        lambda: lp.TokenTree(model),
    ):
        with pytest.raises(ModelError, match=said):
            ask()


def test_a_part_converted_is_refused(model):
    if lp.model_info(model).backend == "hooked":
        model.blocks[1].half()
    else:
        model.original_model.model.layers[1].half()
    with pytest.raises(ModelError, match=r"Some of the model's weights are float16 now \('.*' and \d+ more\), and should be float32"):
        lp.run_trace(model, IDS)


def test_a_model_moved_away_is_refused(model):
    model.to("meta")
    with pytest.raises(ModelError, match=r"weights are on meta now, and it was loaded on cpu: load_model\(name\) loads it so"):
        lp.run_trace(model, IDS)


def test_rounded_weights_are_followed(model):
    """There and back again: the weights are float32, and others. Layout or not, the model's own are what runs."""
    before, tree = lp.run_trace(model, IDS), lp.TokenTree(model)
    node = tree.extend(tree.root, IDS)
    old = tree.trace(node)
    old_logits = old.logits
    other = tree.extend(tree.ancestor(node, 3), [11, 12])
    tree.along(node, lp.token_scores)
    model.half().float()
    now = lp.run_trace(model, IDS)
    assert not torch.equal(now.logits, before.logits)
    again = lp.run_trace(model, IDS)
    assert torch.equal(now.logits, again.logits)
    with pytest.raises(TraceError, match="weights were changed after this trace was made: run it again"):
        lp.logit_lens(before)
    with pytest.raises(TraceError, match="weights were changed"):
        old["blocks.1.attn.hook_pattern"]
    assert torch.equal(old.logits, old_logits)  # what was read of it stays
    for at, ids in ((node, IDS), (other, [*IDS[:3], 11, 12])):
        expected, found = lp.run_trace(model, ids), tree.trace(at)
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["blocks.1.hook_resid_post"], expected["blocks.1.hook_resid_post"], rtol=1e-4, atol=1e-4)
        surprisal = tree.along(at, lp.token_scores)["surprisal"]
        np.testing.assert_allclose(surprisal, lp.token_scores(expected).surprisal.values, rtol=1e-3, atol=1e-4)
    with pytest.raises(TraceError, match="ask the tree or session for it again"):
        old.read("blocks.0.hook_resid_pre")


def test_rounded_weights_give_what_hugging_face_gives(tiny_folder):
    model = lp.load_model(str(tiny_folder("llama")), processing="none")
    reference = tiny.hf_model("llama")
    for parameter in (*model.parameters(), *reference.parameters()):  # not the buffers: Hugging Face keeps others than TransformerLens
        parameter.data = parameter.data.half().float()
    with torch.no_grad():
        expected = reference(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(lp.run_trace(model, IDS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("edit", ["in place", "data", "optimizer", "load_state_dict"])
def test_edited_weights_are_followed(edit, tiny_folder):
    model = lp.load_model(str(tiny_folder("gpt2")))
    session = lp.Session(model, IDS)
    before, held = session.trace().logits.clone(), lp.run_trace(model, IDS)
    weight = model.blocks[1].mlp.W_out
    if edit == "in place":
        with torch.no_grad():
            weight.mul_(2)
    elif edit == "data":
        weight.data = weight.data * 2
    elif edit == "optimizer":
        weight.grad = torch.ones_like(weight)
        torch.optim.SGD([weight], lr=0.1).step()
        weight.grad = None
    else:
        model.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()})
    expected = lp.run_trace(model, IDS).logits
    assert not torch.equal(expected, before)
    torch.testing.assert_close(session.trace().logits, expected, rtol=1e-4, atol=1e-4)
    session.append(17)
    torch.testing.assert_close(session.trace().logits, lp.run_trace(model, [*IDS, 17]).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(TraceError, match="weights were changed"):
        lp.residual_decomposition(held, 17)


def test_borrowed_activations_are_of_the_weights_as_they_are(tiny_folder):
    model = lp.load_model(str(tiny_folder("gpt2")))
    source = lp.run_trace(model, IDS)
    patches = [lp.patch("blocks.1.hook_mlp_out", source), lp.patch("blocks.1.hook_mlp_out", "the cat sat on it")]
    for patch in patches:
        lp.run_trace(model, IDS[:3], interventions=[patch])
    model.half().float()
    sources = lp.run_trace(model, IDS), "the cat sat on it"
    for patch, fresh in zip(patches, [lp.patch("blocks.1.hook_mlp_out", each) for each in sources]):
        found, expected = (lp.run_trace(model, IDS[:3], interventions=[each]).logits for each in (patch, fresh))
        assert torch.equal(found, expected)


def test_weights_that_stay_are_the_same_and_hold_no_memory(tiny_folder):
    model = lp.load_model(str(tiny_folder("gpt2")))
    weights = weights_of(model)
    lp.run_trace(model, IDS)
    model.to(torch.float32)
    model.to("cpu")
    model.eval()
    assert weights_of(model) is weights
    for _ in range(20):  # freed memory is given out again: an address alone would not tell
        model.half().float()
        assert weights_of(model) is not weights
        weights = weights_of(model)
    old = model.blocks[0].mlp.W_in.untyped_storage()._weak_ref()
    model.half().float()
    gc.collect()
    assert torch.UntypedStorage._expired(old)
    torch.UntypedStorage._free_weak_ref(old)


def test_a_model_from_elsewhere_agrees_with_its_configuration(tiny_folder):
    from transformer_lens import HookedTransformer

    loaded = lp.load_model(str(tiny_folder("gpt2")))
    with pytest.warns(DeprecationWarning):
        model = HookedTransformer(loaded.cfg, tokenizer=loaded.tokenizer, move_to_device=False)
    assert len(lp.run_trace(model, IDS)) == len(IDS)
    model.half()
    with pytest.raises(ModelError, match="weights are float16, and its configuration says float32"):
        lp.run_trace(model, IDS)
    model.to(torch.float64)
    trace = lp.run_trace(model, IDS)
    assert trace.logits.dtype == torch.float64 and trace.info.dtype == "float64"


# -- gradients, whatever the caller has switched off ---------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_are_had_where_autograd_is_off(off, model):
    expected = lp.attribute(lp.run_trace(model, IDS, gradients=True), 17, method="input_x_gradient")
    clean, corrupt = lp.run_trace(model, IDS), lp.run_trace(model, [*IDS[:-1], 41])
    patching = lp.attribution_patching(clean, corrupt, "mlp_out", (17, 40))
    with off():
        trace = lp.run_trace(model, IDS, gradients=True)
        found = lp.attribute(trace, 17, method="input_x_gradient")
        inside = lp.run_trace(model, IDS), lp.run_trace(model, [*IDS[:-1], 41])
        torch.testing.assert_close(lp.attribute(inside[0], 17).attrs["value"], float(expected.attrs["value"]), rtol=1e-4, atol=1e-4)
        estimate = lp.attribution_patching(*inside, "mlp_out", (17, 40))
    outside = lp.attribute(trace, 17, method="input_x_gradient")
    for each in (found, outside):
        torch.testing.assert_close(torch.tensor(each.attribution.values), torch.tensor(expected.attribution.values), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.tensor(estimate.estimate.values), torch.tensor(patching.estimate.values), rtol=1e-3, atol=1e-4)
    assert trace.embeddings is not None and not trace.logits.is_inference() and not inside[0].logits.is_inference()


def test_a_session_begun_in_inference_mode_goes_on_outside(model):
    with torch.inference_mode():
        session = lp.Session(model, IDS)
        session.append(17)
        lp.token_scores(session.trace())
    session.append(40)
    expected = lp.run_trace(model, [*IDS, 17, 40])
    torch.testing.assert_close(session.trace().logits, expected.logits, rtol=1e-4, atol=1e-4)
    assert lp.attribute(session.trace(), 41).attrs["completeness"] <= 0.05


def test_a_model_loaded_in_inference_mode_has_gradients(tiny_folder):
    with torch.inference_mode():
        model = lp.load_model(str(tiny_folder("gpt2")))
    trace = lp.run_trace(model, IDS, gradients=True)
    assert lp.attribute(trace, 17, method="saliency").attribution.values.any()


def test_one_made_in_inference_mode_says_that_it_has_none(tiny_folder):
    from transformer_lens import HookedTransformer

    loaded = lp.load_model(str(tiny_folder("gpt2")))
    with torch.inference_mode(), pytest.warns(DeprecationWarning):
        model = HookedTransformer(loaded.cfg, tokenizer=loaded.tokenizer, move_to_device=False)
    assert len(lp.run_trace(model, IDS)) == len(IDS)
    with pytest.raises(TraceError, match=r"made inside torch.inference_mode\(\)"):
        lp.run_trace(model, IDS, gradients=True)
