"""A label is what is stored, else the tokens that the direction promotes by the model's own unembedding."""

from __future__ import annotations

import json

import pytest
import torch

from lensplorer.errors import SAEError
from lensplorer.running import run_model
from lensplorer.saes import feature_labels, load_sae, neuronpedia_url, sae_info
from lensplorer.tokens import token_texts
from tests.saes import tiny_saes


@pytest.mark.filterwarnings("ignore:A forward hook edited hook_scale")
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "bloom"])
@pytest.mark.parametrize("processing", ["default", "none"])
def test_top_tokens_are_those_whose_logits_the_direction_raises(name, processing, tiny_model):
    """Adding a little of the direction to the final residual, with the norm's scale frozen, raises just these logits."""
    model = tiny_model(name, processing=processing)
    sae = tiny_saes.of(model)
    direction = sae.W_dec[7]
    tokens = torch.tensor([[0, 40, 50]])
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    seen = {}

    def raised(amount):
        def add(value, hook):
            return value + amount * direction

        def freeze(value, hook):
            return seen.setdefault("scale", value)

        # float64 differences would be better still; a large step is exact because the map is linear with the scale frozen
        return run_model(model, tokens, hooks=[(last, add), ("ln_final.hook_scale", freeze)]).logits[0, -1]

    change = raised(0.0)
    change = raised(10.0) - change
    expected = token_texts(model.tokenizer, change.topk(3).indices.tolist())
    [label] = feature_labels(model, sae, [7], tokens=3)
    assert list(label.promotes) == expected and label.kind == "top tokens" and label.text


def test_directions_of_heads_go_through_their_output(tiny_model):
    model = tiny_model("gpt2")
    sae = tiny_saes.of(model, hook="blocks.1.attn.hook_z")
    written = sae.W_dec[3] @ model.blocks[1].attn.W_O.flatten(0, 1)
    plain = tiny_saes.of(model)
    with torch.no_grad():
        plain.W_dec[3] = written
    assert feature_labels(model, sae, [3])[0].promotes == feature_labels(model, plain, [3])[0].promotes


def test_hidden_neurons_have_no_top_tokens(tiny_model):
    model = tiny_model("gpt2")
    with pytest.raises(SAEError, match="does not reach the logits directly"):
        feature_labels(model, tiny_saes.of(model, hook="blocks.1.mlp.hook_post", d_in=128), [0])


def test_stored_labels_are_read(tiny_model, tmp_path, monkeypatch):
    from dataclasses import replace

    model = tiny_model("gpt2")
    entries = [{"promotes": [f" t{i}", "x"], "examples": [["a «b» c", 2.5]], "density": 0.01} for i in range(96)]
    entries[5] = {"label": "names after and", "promotes": [], "examples": [], "density": 0.0}
    entries[6] = {"promotes": [], "examples": [], "density": 0.0}
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"features": entries}))
    sae = load_sae(folder=tiny_saes.save(tiny_saes.of(model), tmp_path))
    assert sae_info(sae).labels_path == path
    third, named, dead = feature_labels(model, sae, [3, 5, 6])
    assert (third.text, third.kind, third.density, third.examples) == ("␠t3 x", "stored", 0.01, (("a «b» c", 2.5),))
    assert named.text == "names after and" and dead.text == "never fires"
    short = tmp_path / "short.json"
    short.write_text(json.dumps({"features": entries[:10]}))
    sae.lensplorer_info = replace(sae_info(sae), labels_path=short)
    with pytest.raises(SAEError, match="labels 10 features, and the SAE has 96"):
        feature_labels(model, sae, [3])


def test_a_feature_outside_is_refused_and_no_features_have_no_labels(tiny_model):
    model = tiny_model("gpt2")
    sae = tiny_saes.of(model)
    with pytest.raises(SAEError, match=r"Feature 96 is outside .* expected 0 to 95"):
        feature_labels(model, sae, [96])
    assert feature_labels(model, sae, []) == []


def test_neuronpedia(tiny_model):
    model = tiny_model("gpt2")
    sae = tiny_saes.of(model, metadata={"neuronpedia_id": "gpt2-small/8-res-jb"})
    assert feature_labels(model, sae, [4])[0].url == "https://www.neuronpedia.org/gpt2-small/8-res-jb/4"
    assert neuronpedia_url(None, 4) is None
