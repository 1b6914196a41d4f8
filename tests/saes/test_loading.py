"""Every way of naming an SAE gives sae-lens' own object; what cannot be trusted is refused with what to do."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lensplorer.analyses.features import splice_fidelity
from lensplorer.errors import SAEError
from lensplorer.models import model_info
from lensplorer.saes import load_sae, load_sae_config, sae_info, sae_reads
from lensplorer.saes.info import sae_lens
from lensplorer.trace import run_trace
from tests.saes import tiny_saes

LLAMA_REPO = "mntss/skip-transcoder-Llama-3.2-1B-131k-nobos"


# -- folders -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", tiny_saes.ARCHITECTURES)
def test_a_saved_folder_comes_back(architecture, tmp_path):
    made = tiny_saes.make(architecture, "gpt2")
    loaded = load_sae(folder=tiny_saes.save(made, tmp_path / "sae"))
    assert type(loaded) is type(made) and not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    x = torch.randn(5, 32)
    assert torch.equal(loaded.encode(x), made.encode(x)) and torch.equal(loaded(x), made(x))
    info = sae_info(loaded)
    assert (info.architecture, info.d_in, info.d_sae, info.model_name) == (architecture, 32, 96, "gpt2")
    assert info.layer == 1 and info.name == str(tmp_path / "sae")


def test_a_broken_folder_is_refused(tmp_path):
    with pytest.raises(SAEError, match=r"no cfg.json and no sae_weights.safetensors.*There is no such folder"):
        load_sae(folder=tmp_path / "none")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "readme.txt").write_text("hello")
    with pytest.raises(SAEError, match=r"It holds readme.txt"):
        load_sae(folder=tmp_path / "other")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("W_dec"), "W_dec"),
        (lambda w: w.update(W_enc=w["W_enc"][:, :-1].contiguous()), "W_enc"),
        (lambda w: w.update(b_dec=torch.zeros(7)), "b_dec"),
        (lambda w: w.update(W_dec=w["W_dec"] * float("nan")), "W_dec .* NaN or infinite"),
    ],
)
def test_missing_and_misshapen_tensors_are_named(change, message, tmp_path):
    folder = tiny_saes.save(tiny_saes.make("standard", "gpt2"), tmp_path / "sae")
    weights = load_file(folder / "sae_weights.safetensors")
    change(weights)
    save_file(weights, folder / "sae_weights.safetensors")
    with pytest.raises(SAEError, match=message):
        load_sae(folder=folder)


def test_a_truncated_file_is_refused(tmp_path):
    folder = tiny_saes.save(tiny_saes.make("standard", "gpt2"), tmp_path / "sae")
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SAEError, match="sae-lens cannot load"):
        load_sae(folder=folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(SAEError, match="sae-lens cannot load"):
        load_sae(folder=folder)


# -- raw files -----------------------------------------------------------------------------------------------------------------------


def circuit_tracer_file(path, sae, *, old=True):
    """A transcoder as circuit-tracer stores it: W_enc [d_sae, d_in], and in older files W_dec [d_out, d_sae]."""
    tensors = {name: parameter.detach().clone() for name, parameter in sae.named_parameters()}
    tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    if old:
        tensors["W_dec"] = tensors["W_dec"].T.contiguous()
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("architecture", ["skip_transcoder", "transcoder", "jumprelu_skip_transcoder"])
def test_a_circuit_tracer_file_is_turned_and_keeps_its_skip_connection(architecture, old, tmp_path):
    made = tiny_saes.make(architecture, "gpt2")
    path = circuit_tracer_file(tmp_path / "layer_1.safetensors", made, old=old)
    (tmp_path / "config.yaml").write_text("model_name: gpt2\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: mlp.hook_out\n")
    loaded = load_sae(filename=str(path))
    assert type(loaded) is type(made)
    x = torch.randn(5, 32)
    assert torch.allclose(loaded.encode(x), made.encode(x), atol=1e-6) and torch.allclose(loaded(x), made(x), atol=1e-6)
    info = sae_info(loaded)
    assert (info.hook, info.hook_out, info.model_name) == ("blocks.1.mlp.hook_in", "blocks.1.mlp.hook_out", "gpt2")


def test_gemma_scope_2s_skip_connection_is_turned(tmp_path):
    """circuit-tracer 0.5.0 and sae-lens read ``affine_skip_connection`` as x · affine, where ``W_skip`` is x · W_skip.T."""
    made = tiny_saes.make("jumprelu_skip_transcoder", "gpt2")
    tensors = {"w_enc": made.W_enc, "w_dec": made.W_dec, "b_enc": made.b_enc, "b_dec": made.b_dec, "threshold": made.threshold}
    tensors["affine_skip_connection"] = made.W_skip.T
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "params.safetensors")
    loaded = load_sae(filename=str(tmp_path / "params.safetensors"), layer=1, hook="mlp.hook_in", hook_out="hook_mlp_out")
    x = torch.randn(5, 32)
    assert torch.allclose(loaded(x), made(x), atol=1e-6)


def test_circuit_tracers_configuration_may_lie_beside_the_file_on_the_hub(tmp_path):
    """As in repositories with a folder for each width."""
    path = circuit_tracer_file(tmp_path / "file.safetensors", tiny_saes.make("transcoder", "gpt2"))
    home = tmp_path / "hf"
    config = b"model_name: gpt2\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: mlp.hook_out\n"
    tiny_saes.hub_cache(home, "some/transcoders", {"width_1k/layer_2.safetensors": path, "width_1k/config.yaml": config})
    out = run_offline(
        home,
        """
        info = lp.sae_info(lp.load_sae(repo_id="some/transcoders", filename="width_1k/layer_2.safetensors"))
        print(info.hook, info.hook_out)
        """,
    )
    assert out.split() == ["blocks.2.mlp.hook_in", "blocks.2.mlp.hook_out"]


def test_the_seeds_llama_table_loads_from_the_cache_at_its_revision(tmp_path):
    made = tiny_saes.make("skip_transcoder", None)
    path = circuit_tracer_file(tmp_path / "file.safetensors", made)
    home = tmp_path / "hf"
    tiny_saes.hub_cache(home, LLAMA_REPO, {"layer_1.safetensors": path}, revision="new-training")
    (tmp_path / "config.toml").write_text(
        f'[[sae]]\nlayer = 1\nrepo_id = "{LLAMA_REPO}"\nfilename = "layer_1.safetensors"\nrevision = "new-training"\n'
    )
    out = run_offline(
        home,
        f"""
        [sae] = lp.load_sae_config({str(tmp_path / "config.toml")!r})
        info = lp.sae_info(sae)
        print(type(sae).__name__, info.hook, info.hook_out, info.model_name, info.layer, float(sae.W_skip.abs().sum()))
        try:
            lp.load_sae(repo_id={LLAMA_REPO!r}, filename="layer_2.safetensors", revision="new-training")
        except lp.LensplorerError as error:
            print(error)
        """,
    )
    first, second = out.strip().splitlines()
    *words, skip = first.split()
    assert words == ["SkipTranscoder", "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out", "meta-llama/Llama-3.2-1B", "1"]
    assert float(skip) == pytest.approx(float(made.W_skip.abs().sum()), rel=1e-6)
    assert "layer_2.safetensors' is not in the local Hugging Face cache and the hub cannot be reached" in second


def test_a_known_skip_transcoder_works_in_a_model(tiny_model, tmp_path):
    model = tiny_model("llama")
    path = circuit_tracer_file(tmp_path / "layer_1.safetensors", tiny_saes.make("skip_transcoder", None))
    options = dict(hook="hook_resid_mid", hook_out="hook_mlp_out", architecture="skip_transcoder", model_name=model_info(model).name)
    sae = load_sae(filename=str(path), **options)
    assert sae_reads(model, sae) == ("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out")
    trace = run_trace(model, "the cat sat", prepend_bos=True)
    assert splice_fidelity(trace, sae, error_term=True, exclude=()).attrs["max_logit_change"] <= 1e-5


def test_a_raw_sae_with_and_without_a_configuration(tmp_path):
    made = tiny_saes.make("topk", "gpt2")
    path = tmp_path / "sae.safetensors"
    tensors = {"encoder.weight": made.W_enc.T, "encoder.bias": made.b_enc, "decoder.weight": made.W_dec.T, "decoder.bias": made.b_dec}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    with pytest.raises(SAEError, match=r"Nothing says which activation function .* architecture='topk', k=32"):
        load_sae(filename=str(path), layer=1, hook="hook_resid_post")
    with pytest.raises(SAEError, match=r"Nothing says which activation '.*' reads"):
        load_sae(filename=str(path), layer=1, architecture="standard")
    with pytest.raises(SAEError, match="Nothing says which block"):
        load_sae(filename=str(path), hook="hook_resid_post", architecture="standard")
    loaded = load_sae(filename=str(path), layer=1, hook="hook_resid_post", architecture="topk", k=8)
    x = torch.randn(5, 32)
    assert int((loaded.encode(x) > 0).sum(-1).max()) <= 8 and sae_info(loaded).hook == "blocks.1.hook_resid_post"
    (tmp_path / "cfg.json").write_text('{"k": 8, "num_latents": 96, "d_in": 32, "hook_name": "blocks.2.hook_resid_pre", "model_name": "gpt2"}')
    assert load_sae(filename=str(path)).cfg.architecture() == "topk", "a file with a k is never read as ReLU"
    assert sae_info(load_sae(filename=str(path))).hook == "blocks.2.hook_resid_pre"


def test_gemma_scopes_npz(tmp_path):
    made = tiny_saes.make("jumprelu", "gemma", apply_b_dec_to_input=False)
    np.savez(tmp_path / "params.npz", **{name: parameter.numpy() for name, parameter in made.named_parameters()})
    loaded = load_sae(filename=str(tmp_path / "params.npz"), hook="blocks.1.hook_resid_post")
    x = torch.randn(5, 32)
    assert torch.equal(loaded.encode(x), made.encode(x)) and loaded.cfg.architecture() == "jumprelu"


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"W_enc": (96, 32), "W_dec": (96, 32), "b_enc": (96,)}, "has no b_dec: it holds W_dec, W_enc, b_enc"),
        ({"W_enc": (90, 32), "W_dec": (96, 32), "b_enc": (96,), "b_dec": (32,)}, r"do not belong together: W_enc \[90, 32\]"),
        ({"W_enc": (96, 31), "W_dec": (96, 30), "b_enc": (96,), "b_dec": (32,)}, r"do not belong together"),
        ({"W_enc": (32, 32), "W_dec": (32, 32), "b_enc": (32,), "b_dec": (32,)}, "as many features as dimensions"),
    ],
)
def test_raw_shapes_that_cannot_be_are_refused(tensors, message, tmp_path):
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "sae.safetensors")
    with pytest.raises(SAEError, match=message):
        load_sae(filename=str(tmp_path / "sae.safetensors"), hook="blocks.1.hook_resid_post", architecture="standard")


def test_pickles_are_never_read(tmp_path):
    (tmp_path / "sae.pt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(SAEError, match="pickled weights"):
        load_sae(filename=str(tmp_path / "sae.pt"), hook="blocks.1.hook_resid_post", architecture="standard")
    with pytest.raises(SAEError, match="cannot be read"):
        load_sae(filename=str(tmp_path / "none.safetensors"), hook="blocks.1.hook_resid_post", architecture="standard")


# -- releases ------------------------------------------------------------------------------------------------------------------------


def run_offline(home, script):
    """Run a script in a process whose hub cache is ``home`` and whose hub is out of reach; its standard output."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("HF_HUB_CACHE", None)
    prelude = "import warnings\nimport lensplorer as lp\nwarnings.simplefilter('ignore', DeprecationWarning)\n"
    done = subprocess.run([sys.executable, "-c", prelude + textwrap.dedent(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_registered_names_load_offline_through_sae_lens(tmp_path):
    residual = tiny_saes.make("standard", "gpt2-small", hook="blocks.8.hook_resid_pre")
    old = {  # as sae-lens 2 wrote it
        "hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8, "d_in": 32, "d_sae": 96, "dtype": "torch.float32", "device": "cpu",
        "model_name": "gpt2-small", "activation_fn_str": "relu", "prepend_bos": True, "context_size": 128, "normalize_activations": "none",
    }  # fmt: skip
    save_file({name: parameter.detach() for name, parameter in residual.named_parameters()}, tmp_path / "res.safetensors")
    tiny_saes.hub_cache(
        tmp_path / "hf",
        "jbloom/GPT2-Small-SAEs-Reformatted",
        {
            "blocks.8.hook_resid_pre/cfg.json": {**old, "dtype": "float32"},
            "blocks.8.hook_resid_pre/sae_weights.safetensors": tmp_path / "res.safetensors",
        },
    )
    transcoder = tiny_saes.make("transcoder", "qwen3-0.6b")
    circuit_tracer_file(tmp_path / "layer_1.safetensors", transcoder, old=False)
    tiny_saes.hub_cache(
        tmp_path / "hf",
        "mwhanna/qwen3-0.6b-transcoders-lowl0",
        {
            "layer_1.safetensors": tmp_path / "layer_1.safetensors",
            "config.yaml": b"model_name: Qwen/Qwen3-0.6B\n",
            "wandb-config.yaml": b"d_model: {value: 32}\nd_feature: {value: 96}\nbatch_size: {value: 64}\n",
        },
    )
    out = run_offline(
        tmp_path / "hf",
        """
        import torch
        x = torch.arange(64.0).reshape(2, 32).sin()
        for release, sae_id in (("gpt2-small-res-jb", "blocks.8.hook_resid_pre"), ("mwhanna-qwen3-0.6b-transcoders-lowl0", "layer_1")):
            sae = lp.load_sae(release, sae_id)
            info = lp.sae_info(sae)
            print(info.name, info.hook, info.hook_out, info.model_name, info.expected_l0, info.neuronpedia_id,
                  sae.cfg.metadata.model_from_pretrained_kwargs, float(sae.encode(x).sum()))
        for release, sae_id in (("gpt2-small-res-jb", "blocks.3.hook_resid_pre"), ("gpt2-small-res-jp", "x"), ("gpt2-small-res-jb", "blocks.12.x")):
            try:
                lp.load_sae(release, sae_id)
            except lp.LensplorerError as error:
                print(type(error).__name__, str(error)[:300])
        """,
    )
    lines = out.strip().splitlines()
    x = torch.arange(64.0).reshape(2, 32).sin()
    first, second = lines[0].rsplit(" ", 1), lines[1].rsplit(" ", 1)
    assert first[0] == (
        "gpt2-small-res-jb/blocks.8.hook_resid_pre blocks.8.hook_resid_pre None gpt2-small 60.0 gpt2-small/8-res-jb {'center_writing_weights': True}"
    )
    assert float(first[1]) == pytest.approx(float(residual.encode(x).sum()), rel=1e-5)
    assert second[0].endswith("blocks.1.mlp.hook_in blocks.1.hook_mlp_out Qwen/Qwen3-0.6B None qwen3-0.6b/1-transcoder-hp-lowl0 {'fold_ln': False}")
    assert float(second[1]) == pytest.approx(float(transcoder.encode(x).sum()), rel=1e-5)
    assert lines[2].startswith("SAEError") and "not in the local Hugging Face cache and the hub cannot be reached" in lines[2]
    assert "no SAE release 'gpt2-small-res-jp'. Did you mean 'gpt2-small-res-jb'" in lines[3]
    assert "no SAE 'blocks.12.x'" in lines[4] and "'blocks.0.hook_resid_pre'" in lines[4]


def test_a_release_at_a_revision(tmp_path):
    made = tiny_saes.make("standard", "gpt2-small", hook="blocks.8.hook_resid_pre")
    folder = tiny_saes.save(made, tmp_path / "sae")
    files = {f"blocks.8.hook_resid_pre/{name}": folder / name for name in ("cfg.json", "sae_weights.safetensors")}
    tiny_saes.hub_cache(tmp_path / "hf", "jbloom/GPT2-Small-SAEs-Reformatted", files, revision="old")
    out = run_offline(
        tmp_path / "hf",
        """
        sae = lp.load_sae("gpt2-small-res-jb", "blocks.8.hook_resid_pre", revision="old")
        print(lp.sae_info(sae).revision, float(sae.W_dec.sum()))
        """,
    )
    assert out.split()[0] == "old" and float(out.split()[1]) == pytest.approx(float(made.W_dec.sum()), rel=1e-5)


# -- naming --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "got none of them"),
        (dict(release="gpt2-small-res-jb", folder="x"), "got release and folder"),
        (dict(release="gpt2-small-res-jb", sae_id="blocks.8.hook_resid_pre", hook="x"), "hook describe a raw file"),
        (dict(release="gpt2-small-res-jb"), r"no SAE ''.*It has 'blocks.0.hook_resid_pre'"),
    ],
)
def test_one_way_of_naming(arguments, message):
    with pytest.raises(SAEError, match=message):
        load_sae(**arguments)


def test_the_layer_of_a_table_must_be_the_files(tmp_path):
    folder = tiny_saes.save(tiny_saes.make("standard", "gpt2"), tmp_path / "sae")
    with pytest.raises(SAEError, match=r"reads 'blocks.1.hook_resid_post', and layer=3 was asked for"):
        load_sae(folder=folder, layer=3)


def test_a_configuration_loads_in_order_and_names_what_fails(tmp_path):
    for seed, layer in enumerate((0, 2)):
        tiny_saes.save(tiny_saes.make("standard", "gpt2", hook=f"blocks.{layer}.hook_resid_post", seed=seed), tmp_path / f"sae{layer}")
    config = tmp_path / "c.toml"
    config.write_text("".join(f'[[sae]]\nfolder = "{tmp_path}/sae{layer}"\nlayer = {layer}\n' for layer in (2, 0)))
    assert [sae_info(sae).layer for sae in load_sae_config(config)] == [2, 0]
    config.write_text(config.read_text() + '[[sae]]\nfolder = "/nowhere"\n')
    with pytest.raises(SAEError, match=r"SAE 3 of 3: The folder '/nowhere'"):
        load_sae_config(config)
    config.write_text("")
    with pytest.raises(SAEError, match=r"lists no SAE: add a \[\[sae\]\]"):
        load_sae_config(config)


def test_without_sae_lens_the_message_says_how_to_get_it():
    script = """
import sys
sys.modules["sae_lens"] = None
import lensplorer as lp
try:
    lp.load_sae(folder="x")
except lp.LensplorerError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'SAE features need sae-lens: pip install "lensplorer[sae]".'


def test_a_cross_layer_transcoder_cut_into_layers_has_no_reconstruction(tiny_model):
    from dataclasses import replace

    model = tiny_model("gpt2")
    sae = tiny_saes.of(model, "transcoder")
    sae.lensplorer_info = replace(sae_info(sae), reconstructs=False)
    trace = run_trace(model, "the cat", prepend_bos=True)
    with pytest.raises(SAEError, match="has features, and no reconstruction"):
        splice_fidelity(trace, sae)


def test_sae_lens_is_what_is_handed_out(tmp_path):
    assert isinstance(load_sae(folder=tiny_saes.save(tiny_saes.make("gated", "gpt2"), tmp_path / "sae")), sae_lens().SAE)
