"""Every architecture of the table computes what Hugging Face computes, on the backend that says it does."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from lensplorer import products
from lensplorer.errors import ModelError
from lensplorer.layout import lay_out_weights
from lensplorer.models import load_model, model_info, resolve_device, resolve_dtype
from lensplorer.trace import run_trace
from tests import tiny

BRIDGED = {"llama-biases", "llama-linear-rope", "qwen2-window", "gemma", "gemma2", "gemma3", "olmo2"}
IDS = [0, 290, 302, 313, 306, 262, 305, 17, 40, 41, 42, 300, 7, 299, 310, 55]  # longer than the tiny sliding windows


def hugging_face_logits(name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with torch.no_grad():
        return tiny.hf_model(name).to(dtype)(torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize("processing", ["none", "default"])
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_logits_equal_hugging_face(name, processing, tiny_model):
    model = tiny_model(name, processing=processing)
    info = model_info(model)
    expected = hugging_face_logits(name)
    logits = run_trace(model, IDS).logits
    assert (logits - expected).abs().max() <= 5e-5 * expected.abs().max()
    assert (logits.log_softmax(-1) - expected.log_softmax(-1)).abs().max() <= 1e-4
    assert info.difference is not None and info.difference <= 5e-5
    assert info.log_prob_difference is not None and info.log_prob_difference <= 1e-4
    assert info.architecture == tiny.ARCHITECTURES[name][0]
    assert info.backend == ("bridge" if name in BRIDGED else "hooked")
    assert bool(info.reason) == (name in BRIDGED)  # the bridge always says why


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "gemma2"])
def test_bfloat16_stays_near_float32(name, tiny_model):
    expected = hugging_face_logits(name)
    logits = run_trace(tiny_model(name, dtype="bfloat16"), IDS).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).norm() <= 6e-2 * expected.norm()  # Gemma 2, with four norms a block, loses most


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox-parallel"])
def test_the_bridge_and_hooked_transformer_agree(name, tiny_model):
    hooked, bridge = (run_trace(tiny_model(name, backend=backend, processing="none"), IDS) for backend in ("hooked", "bridge"))
    torch.testing.assert_close(hooked.logits, bridge.logits, rtol=1e-5, atol=1e-5)
    for hook in ("blocks.1.hook_resid_post", "blocks.2.attn.hook_pattern", "blocks.0.hook_mlp_out", "blocks.1.attn.hook_z"):
        torch.testing.assert_close(hooked[hook], bridge[hook], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("word", ["llama", "bert", "gemma", "t5"])
def test_the_folder_name_does_not_matter(word, tmp_path):
    folder = tiny.save("gpt2", tmp_path / f"my-{word}-2-model")
    info = model_info(load_model(str(folder)))
    assert (info.architecture, info.backend) == ("GPT2LMHeadModel", "hooked")


def test_the_memory_layout_changes_no_bit(tiny_folder):
    from transformer_lens import HookedTransformer

    model = load_model(str(tiny_folder("llama")), processing="none")
    assert isinstance(model, HookedTransformer)
    with pytest.warns(DeprecationWarning):
        usual = HookedTransformer(model.cfg, move_to_device=False)
    usual.load_state_dict({key: value.contiguous() for key, value in model.state_dict().items()})
    tokens = torch.tensor([IDS])
    before = usual(tokens)
    lay_out_weights(usual)
    assert torch.equal(before, usual(tokens))
    with torch.no_grad():  # the unembedding of a few positions is another product, rounded otherwise
        assert torch.allclose(before, usual(tokens), rtol=1e-5, atol=1e-6)
        copied = copy.deepcopy(usual)
        copied.unembed.W_U.data.zero_()
        assert not copied(tokens).any() and usual(tokens).any()
    flat = usual.blocks[0].attn.W_Q.permute(0, 2, 1).reshape(-1, model.cfg.d_model)
    assert flat.data_ptr() == usual.blocks[0].attn.W_Q.data_ptr()  # what the product reads is a view


def test_one_position_takes_another_product_and_keeps_its_gradient(tiny_model, monkeypatch):
    model = tiny_model("gpt2")
    residual = torch.randn(1, 1, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    for module in (model.blocks[0].mlp, model.unembed):
        for large in (2**20, 1):
            monkeypatch.setattr(products, "_LARGE", large)
            with torch.no_grad():
                assert torch.allclose(module(residual), type(module).forward(module, residual), rtol=1e-5, atol=1e-6)
        gradients = []
        for forward in (module, partial(type(module).forward, module)):
            leaf = residual.clone().requires_grad_()
            forward(leaf).square().sum().backward()
            gradients.append(leaf.grad)
        assert torch.allclose(*gradients, rtol=1e-5, atol=1e-6)


def test_parameters_are_frozen_and_evaluating(tiny_model):
    model = tiny_model("gpt2")
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())


def test_a_model_of_ones_own_is_taken_as_it_is(tiny_folder):
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformers import AutoTokenizer

    cfg = HookedTransformerConfig(n_layers=1, d_model=8, n_ctx=8, d_head=4, n_heads=2, d_vocab=tiny.D_VOCAB, act_fn="gelu", seed=0)
    with pytest.warns(DeprecationWarning):
        model = HookedTransformer(cfg, tokenizer=AutoTokenizer.from_pretrained(tiny_folder("gpt2")))
    info = model_info(model)
    assert (info.backend, info.processing, info.difference) == ("hooked", "none", None)
    assert run_trace(model, "the").tokens.tolist()[0] == 0


def test_hooked_is_refused_where_it_would_be_wrong(tiny_folder):
    with pytest.raises(ModelError, match=r"disagrees with Hugging Face.*accepted up to"):
        load_model(str(tiny_folder("llama-biases")), backend="hooked")
    with pytest.raises(ModelError, match="sliding window"):
        load_model(str(tiny_folder("qwen2-window")), backend="hooked")


def test_a_long_window_is_found_in_the_configuration(tmp_path):
    """The probe does not run past a window of thousands of tokens: the configuration must show it."""
    folder = tiny.save("qwen2", tmp_path / "m", use_sliding_window=True, sliding_window=600, max_window_layers=1, max_position_embeddings=700)
    info = model_info(load_model(str(folder)))
    assert info.backend == "bridge" and "600" in info.reason


def test_what_no_backend_computes_is_refused_with_the_reason(tmp_path):
    folder = tiny.save("opt", tmp_path / "m", do_layer_norm_before=False)
    with pytest.raises(ModelError, match=r"is refused.*OPTForCausalLM"):
        load_model(str(folder))


def test_verify_off_keeps_no_difference(tiny_folder):
    assert model_info(load_model(str(tiny_folder("gpt2")), verify=False)).difference is None


@pytest.mark.parametrize(
    "options, message",
    [
        ({"backend": "hoked"}, "Did you mean 'hooked'"),
        ({"processing": "fold"}, "Choose from 'default', 'none'"),
        ({"dtype": "float31"}, "Did you mean 'float32'"),
        ({"device": "gpu"}, "Use 'auto', 'cpu', 'cuda'"),
    ],
)
def test_bad_options_name_the_choices(options, message, tiny_folder):
    with pytest.raises(ModelError, match=message):
        load_model(str(tiny_folder("gpt2")), **options)


def test_dtype_and_device_names():
    assert resolve_dtype("bf16") is torch.bfloat16 and resolve_dtype("torch.float16") is torch.float16
    assert resolve_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no CUDA device"):
            resolve_device("cuda")


def test_corrupt_weights_are_named(tmp_path):
    folder = tiny.save("gpt2", tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00garbage!")
    with pytest.raises(ModelError, match="corrupt or cut short"):
        load_model(str(folder))


def test_pickled_weights_are_not_read(tmp_path):
    folder = tiny.save("gpt2", tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(str(folder))


HUB_SCRIPT = """
import json, sys, warnings
import lensplorer as lp
from lensplorer.errors import ModelError
model = lp.load_model("gpt2")
info = lp.model_info(model)
answers = [info.backend, info.revision, info.architecture, lp.run_trace(model, "the cat").logits.shape[1]]
try:
    lp.load_model("gtp2")
except ModelError as error:
    answers.append(str(error))
print(json.dumps(answers))
"""


def test_a_hub_name_loads_from_the_cache_offline_and_is_not_shadowed(tmp_path):
    commit = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
    repository = tmp_path / "home" / "hub" / "models--gpt2"
    tiny.save("gpt2", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    shadow = tmp_path / "work" / "gpt2"
    shadow.mkdir(parents=True)
    (shadow / "config.json").write_text("{}")
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", HUB_SCRIPT], cwd=shadow.parent, env=environment, capture_output=True, text=True, check=True)
    backend, revision, architecture, d_vocab, unknown = json.loads(done.stdout.splitlines()[-1])
    assert (backend, revision, architecture, d_vocab) == ("hooked", commit, "GPT2LMHeadModel", tiny.D_VOCAB)
    assert "'gpt2'" in unknown and "storyworld" in unknown  # the nearest name, and what works without a network
