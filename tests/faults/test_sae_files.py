"""SAE files that are damaged, cut short or say what cannot be: each ends in one sentence, when they are loaded or used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lensplorer as lp
from lensplorer.errors import SAEError
from tests.saes import tiny_saes

DEEP = b"[" * 100_000


def written(name: str, content: bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(content)


def settings(**values: Any) -> Any:
    def change(folder: Path) -> None:
        content = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
        (folder / "cfg.json").write_text(json.dumps({**content, **values}), encoding="utf-8")

    return change


def metadata(**values: Any) -> Any:
    def change(folder: Path) -> None:
        content = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
        settings(metadata={**content["metadata"], **values})(folder)

    return change


def weights(edit: Any) -> Any:
    def change(folder: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / "sae_weights.safetensors").items()}
        edit(tensors)
        save_file(tensors, folder / "sae_weights.safetensors")

    return change


def without_features(folder: Path) -> None:
    settings(d_sae=0)(folder)
    weights(lambda t: t.update(W_enc=t["W_enc"][:, :0].clone(), W_dec=t["W_dec"][:0].clone(), b_enc=t["b_enc"][:0].clone()))(folder)


def cut(folder: Path) -> None:
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def labels(features: Any) -> Any:
    return written("labels.json", json.dumps({"features": features}).encode())


#: what was done to the folder → (architecture, change, what the sentence says)
REFUSED: dict[str, tuple[str, Any, str]] = {
    "no feature": ("standard", without_features, "d_sae = 0: expected a whole number from 1"),
    **{
        f"k = {k!r}": ("topk", settings(k=k), f"expected a whole number from 1 to {tiny_saes.D_SAE}, its features")
        for k in (0, -1, 1_000_000, "eight", None, 2.5, float("nan"), [1], True)
    },
    **{
        f"cfg.json {name}": ("standard", written("cfg.json", content), "sae-lens cannot load")
        for name, content in {"list": b"[]", "cut": b'{"a":', "null": b"null", "empty": b"", "deep": DEEP, "binary": b"\xff\xfe"}.items()
    },
    **{
        f"cfg.json {values}": ("standard", settings(**values), "sae-lens cannot load")
        for values in (
            {"architecture": 5},
            {"architecture": "nonsense"},
            {"architecture": ["standard"]},
            {"d_in": "x"},
            {"d_in": -1},
            {"d_in": 64},
            {"d_sae": -1},
            {"d_sae": None},
            {"d_sae": 10**12},
            {"metadata": None},
            {"metadata": []},
            {"normalize_activations": 5},
        )
    },
    **{
        f"metadata {values}": ("standard", metadata(**values), said)
        for values, said in (
            ({"hook_name": 5}, "hook_name = 5: expected a text"),
            ({"hook_name": ["a"]}, "expected a text"),
            ({"hook_name": None}, "does not say which activation it reads"),
            ({"hook_name": "nonsense"}, "reads 'nonsense', which 'storyworld' does not have"),
            ({"model_name": 5}, "model_name = 5: expected a text"),
            ({"model_name": ["a"]}, "expected a text"),
            ({"model_from_pretrained_kwargs": 5}, "expected a table of options"),
            ({"context_size": "long"}, "expected a whole number"),
            ({"context_size": -1}, "the SAE has -1 tokens"),
            ({"prepend_bos": "maybe"}, "expected true or false"),
            ({"hook_head_index": "x"}, "expected a whole number"),
            ({"hook_head_index": 99}, "reads head 99, and 'storyworld' has heads 0 to 3"),
            ({"neuronpedia_id": 5}, "expected a text"),
        )
    },
    "transcoder to nowhere": ("transcoder", metadata(hook_name_out="nonsense"), "predicts 'nonsense', which 'storyworld' does not have"),
    "weights empty": ("standard", written("sae_weights.safetensors", b""), "sae-lens cannot load"),
    "weights cut": ("standard", cut, "sae-lens cannot load"),
    "no tensors": ("standard", weights(lambda t: t.clear()), "Missing key"),
    "a tensor missing": ("standard", weights(lambda t: t.pop("W_dec")), "Missing key"),
    "a tensor left over": ("standard", weights(lambda t: t.update(other=torch.zeros(2))), "Unexpected key"),
    "a tensor misshapen": ("standard", weights(lambda t: t.update(W_enc=torch.zeros(5))), "size mismatch"),
    "NaN": ("standard", weights(lambda t: t["W_enc"].fill_(torch.nan)), "W_enc of .* holds NaN or infinite numbers"),
    "infinity": ("jumprelu", weights(lambda t: t["threshold"].fill_(torch.inf)), "threshold of .* holds NaN or infinite numbers"),
    **{
        f"labels.json {name}": ("standard", written("labels.json", content), "labels.json' (cannot be read|are damaged)")
        for name, content in {"list": b"[]", "cut": b'{"a":', "deep": DEEP, "binary": b"\xff\xfe", "text": b'{"features": "ab"}'}.items()
    },
    **{
        f"label {entry!r}": ("standard", labels([entry] * tiny_saes.D_SAE), "damaged")
        for entry in (5, None, {"promotes": None}, {"promotes": 5}, {"examples": [["a"]]}, {"examples": [["a", "b"]]}, {"density": "x"})
    },
    "labels of few": ("standard", labels([{}]), "labels 1 features, and the SAE has 96"),
}


@pytest.fixture
def damage(tmp_path) -> Any:
    """The folder of a tiny SAE of storyworld, changed."""

    def damaged(architecture: str, change: Any) -> Path:
        options = {"d_in": 128, **({"d_out": 128} if "transcoder" in architecture else {})}
        folder = tiny_saes.save(tiny_saes.make(architecture, "storyworld", **options), tmp_path / "sae")
        change(folder)
        return folder

    return damaged


def used(model: Any, folder: Path) -> None:
    """Load an SAE and ask all of it."""
    sae = lp.load_sae(folder=folder)
    trace = lp.run_trace(model, "Once upon a time")
    lp.feature_activations(trace, sae, k=3, labels=True)
    lp.splice_fidelity(trace, sae)
    lp.feature_labels(model, sae, [0])


@pytest.mark.parametrize("case", REFUSED)
def test_a_damaged_sae_is_refused_in_a_sentence(case, damage, storyworld):
    architecture, change, said = REFUSED[case]
    with pytest.raises(SAEError, match=said) as raised:
        used(storyworld, damage(architecture, change))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "transcoder"])
def test_one_that_is_whole_is_used(architecture, damage, storyworld):
    used(storyworld, damage(architecture, lambda folder: None))


def test_the_settings_of_an_sae_from_elsewhere_are_checked_too(storyworld):
    sae = tiny_saes.make("topk", "storyworld", d_in=128)
    sae.cfg.k = 10**6
    with pytest.raises(SAEError, match="k = 1000000"):
        lp.audit_sae(storyworld, sae)


def test_an_sae_goes_on_without_its_folder(damage, storyworld):
    """Its labels, which nobody had asked for yet, are gone: then its features are told by the tokens that they promote."""
    folder = damage("standard", labels([{"label": "stored"}] * tiny_saes.D_SAE))
    sae = lp.load_sae(folder=folder)
    shutil.rmtree(folder)
    trace = lp.run_trace(storyworld, "Once upon a time")
    assert lp.feature_activations(trace, sae, labels=True).sizes["position"] == len(trace)
    assert lp.feature_labels(storyworld, sae, [0])[0].kind == "top tokens"
    with pytest.raises(SAEError, match="There is no such folder"):
        lp.load_sae(folder=folder)


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"PK\x03\x04 not a zip", b"{" * 100])
def test_a_damaged_raw_file_is_refused(kind, content, tmp_path):
    path = tmp_path / f"layer_2.{kind}"
    path.write_bytes(content)
    with pytest.raises(SAEError, match="cannot be read"):
        lp.load_sae(filename=str(path), hook="hook_resid_post", architecture="standard")


@pytest.mark.parametrize("name", ["cfg.json", "config.yaml"])
@pytest.mark.parametrize("content", [b"[]", b"{", b"", b"null", b"\xff\xfe", b"3", b"[" * 100_000, b'{"metadata": 5, "feature_input_hook": 5}'])
def test_damaged_words_beside_a_raw_file_are_refused(name, content, tmp_path):
    """Or, where they say nothing at all, left aside."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (128, 96), "W_dec": (96, 128), "b_enc": (96,), "b_dec": (128,)}
    save_file({key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}, tmp_path / "layer_2.safetensors")
    (tmp_path / name).write_bytes(content)
    try:
        sae = lp.load_sae(filename=str(tmp_path / "layer_2.safetensors"), hook="hook_resid_post", architecture="standard")
    except SAEError as error:
        assert name in str(error) or "expected" in str(error)
    else:
        assert lp.sae_info(sae).hook == "blocks.2.hook_resid_post" and content in (b"", b"null", b"[]", b"3")
