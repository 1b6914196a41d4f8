"""The shipped SAEs: figures, format, metadata, labels; and that they read what TransformerLens calls by the same names."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from lensplorer.storyworld import DATA, activations, evaluate, model_path

pytest.importorskip("sae_lens")
from lensplorer.storyworld import sae_training

FOLDER = DATA / "saes"


@pytest.fixture(scope="module")
def model_and_tokenizer() -> tuple[Any, Any]:
    return evaluate.load(model_path("storyworld"))


@pytest.mark.parametrize("name", sae_training.SITES)
def test_figures(name: str, model_and_tokenizer: tuple[Any, Any]) -> None:
    recorded = json.loads((FOLDER / "measured.json").read_text())[name]
    assert recorded["explained_variance"] >= 0.90 and recorded["l0"] <= 32 and recorded["loss_recovered"] >= 0.95 and recorded["dead"] <= 0.10
    assert name in (FOLDER / "README.md").read_text()
    sae = sae_training.load_exported(FOLDER / name)
    found = sae_training.measure(*model_and_tokenizer, sae, sae_training.SITES[name], tokens=6000)
    assert found["explained_variance"] >= max(0.90, recorded["explained_variance"] - 0.03)
    assert found["l0"] == pytest.approx(recorded["l0"], rel=0.1)
    assert found["loss_recovered"] >= 0.95


@pytest.mark.parametrize("name", sae_training.SITES)
def test_format_and_metadata(name: str) -> None:
    site, sae = sae_training.SITES[name], sae_training.load_exported(FOLDER / name)
    metadata = sae.cfg.metadata
    assert sae.cfg.architecture() == ("jumprelu_transcoder" if site.hook_out else "jumprelu")
    assert (metadata.model_name, metadata.hook_name, metadata.prepend_bos, metadata.context_size) == ("storyworld", site.hook, True, 512)
    assert metadata.hook_name_out == site.hook_out
    assert metadata.model_from_pretrained_kwargs["fold_ln"] is False
    assert sae.cfg.d_in == 128 and 8 <= sae.cfg.d_sae / sae.cfg.d_in <= 16
    assert (sae.threshold > 0).all()


@pytest.mark.parametrize("name", sae_training.SITES)
def test_labels(name: str) -> None:
    sae = sae_training.load_exported(FOLDER / name)
    labels = json.loads((FOLDER / name / "labels.json").read_text())["features"]
    assert len(labels) == sae.cfg.d_sae
    lively = [i for i, label in enumerate(labels) if label["examples"]]
    assert len(lively) >= 0.8 * len(labels)
    feature = lively[len(lively) // 2]
    text, value = labels[feature]["examples"][0]
    assert "»" in text.partition("«")[2] and value > 0
    assert all(len(label["promotes"]) == 8 for label in labels)


def test_thresholds_are_what_the_activations_ask_for(model_and_tokenizer: tuple[Any, Any]) -> None:
    """On documents apart, as many features fire as intended: the threshold that training left would give another number."""
    site = sae_training.SITES["resid_2"]
    found, _ = activations.collect(*model_and_tokenizer, [site.hook], seed=123, tokens=8000)
    features = sae_training.load_exported(FOLDER / "resid_2").encode(found[site.hook].float())
    assert (features > 0).float().sum(-1).mean().item() == pytest.approx(sae_training.TARGET_L0, rel=0.12)


@pytest.mark.parametrize("processing", ["default", "none"])
def test_the_places_are_those_of_transformer_lens(processing: str, model_and_tokenizer: tuple[Any, Any]) -> None:
    from lensplorer.models import load_model
    from lensplorer.trace import run_trace

    model, tok = model_and_tokenizer
    names = sorted({name for site in sae_training.SITES.values() for name in (site.hook, site.target)})
    text = "When Mary and John went to the shop, John gave the book to"
    with activations.watching(model, names) as found, torch.no_grad():
        model(torch.tensor([tok(text)["input_ids"]]))
    trace = run_trace(load_model("storyworld", processing=processing, verify=False), text, reads=names)
    for name in names:
        assert torch.allclose(trace[name], found[name][0], atol=2e-4, rtol=1e-3), name


def test_splicing_the_activation_itself_changes_nothing_and_zero_does(model_and_tokenizer: tuple[Any, Any]) -> None:
    model, tok = model_and_tokenizer
    ids = torch.tensor([tok("The capital of France is")["input_ids"]])
    with torch.no_grad():
        clean = model(ids).logits
        for name in ("blocks.2.hook_resid_pre", "blocks.1.hook_mlp_out"):
            with activations.splicing(model, name, lambda x: x):
                assert torch.equal(model(ids).logits, clean)
            with activations.splicing(model, name, torch.zeros_like):
                assert not torch.allclose(model(ids).logits, clean, atol=0.1)
        assert torch.equal(model(ids).logits, clean)


def test_an_unknown_place_is_refused(model_and_tokenizer: tuple[Any, Any]) -> None:
    wrong = activations.watching(model_and_tokenizer[0], ["blocks.1.hook_q"])
    with pytest.raises(ValueError, match=r"no activation 'blocks.1.hook_q' is known here"), wrong:
        pass


def test_the_training_transcoder_learns_a_map() -> None:
    generator = torch.Generator().manual_seed(0)
    source = 2 * torch.randn(300_000, 6, generator=generator) + 5.0
    target = source @ torch.randn(6, 6, generator=generator) + 3.0
    transcoder = sae_training.train_sae(sae_training.Site("a", "b"), source, target)
    source, target = source[:2000], target[:2000]
    features = transcoder.encode(source)
    error = (target - transcoder.decode(features)).pow(2).sum() / (target - target.mean(0)).pow(2).sum()
    assert error < 0.1
