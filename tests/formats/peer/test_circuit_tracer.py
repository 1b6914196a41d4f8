"""The real circuit-tracer 0.5.0 and this library make the same of a transcoder's file, whichever of them wrote it; and of a feature's.

It needs other versions of transformers and of huggingface-hub, so it gets an environment of its own, without its dependencies.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lensplorer.saes import load_sae
from lensplorer.saes.feature_files import read_feature_notes
from tests.saes import tiny_saes
from tests.saes.test_feature_files import circuit_tracer
from tests.saes.test_loading import circuit_tracer_file

SCRIPT = Path(__file__).parent / "in_circuit_tracer.py"
HOOKS = "model_name: gpt2\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: mlp.hook_out\n"


@pytest.fixture(scope="module")
def in_circuit_tracer(other_python):
    return other_python("circuit-tracer", ["circuit-tracer==0.5.0"], SCRIPT)


def assert_same(path, said):
    path.with_name("config.yaml").write_text(HOOKS)
    ours = load_sae(filename=str(path), layer=1)
    given = torch.sin(torch.arange(5 * tiny_saes.D_MODEL, dtype=torch.float32)).reshape(5, -1)
    features = ours.encode(given)
    assert features.count_nonzero() > 0
    np.testing.assert_allclose(features.numpy(), np.array(said["features"]), atol=1e-5, err_msg=str(path))
    np.testing.assert_allclose(ours(given).numpy(), np.array(said["output"]), atol=1e-5, err_msg=str(path))


def test_transcoders(in_circuit_tracer, tmp_path):
    files = []
    for architecture in ("transcoder", "skip_transcoder", "jumprelu_skip_transcoder"):
        (tmp_path / architecture).mkdir()
        files.append(circuit_tracer_file(tmp_path / architecture / "layer_1.safetensors", renamed(tiny_saes.make(architecture, None)), old=False))
    gemma = {name: parameter.detach() for name, parameter in tiny_saes.make("jumprelu_transcoder", None).named_parameters()}
    (tmp_path / "gemma_scope").mkdir()
    np.savez(tmp_path / "gemma_scope" / "layer_1.npz", **{name: tensor.numpy() for name, tensor in gemma.items()})
    second = tiny_saes.make("jumprelu_skip_transcoder", None)
    tensors = {"w_enc": second.W_enc, "w_dec": second.W_dec, "b_enc": second.b_enc, "b_dec": second.b_dec, "threshold": second.threshold}
    tensors["affine_skip_connection"] = second.W_skip.T
    (tmp_path / "gemma_scope_2").mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "gemma_scope_2" / "layer_1.safetensors")
    files += [tmp_path / "gemma_scope" / "layer_1.npz", tmp_path / "gemma_scope_2" / "layer_1.safetensors"]
    (tmp_path / "theirs").mkdir()
    in_circuit_tracer("write", tmp_path / "theirs")
    theirs = sorted((tmp_path / "theirs").glob("*/*.safetensors"))
    assert len(theirs) == 3
    said = in_circuit_tracer("read", *files, *theirs)
    for path in (*files, *theirs):
        assert_same(path, said[str(path)])


def renamed(transcoder):
    """Its threshold under circuit-tracer's name."""
    parameters = {name.replace("threshold", "activation_function.threshold"): value for name, value in transcoder.named_parameters()}
    return type("Named", (), {"named_parameters": lambda self: parameters.items()})()


def test_features(in_circuit_tracer, tmp_path):
    for index in (3, 7):
        (tmp_path / f"{index}.json").write_text(json.dumps(circuit_tracer(index)))
    said = in_circuit_tracer("features", *sorted(tmp_path.glob("*.json")))
    assert sorted(said.values()) == sorted(read_feature_notes(tmp_path).features) == [3, 7]
