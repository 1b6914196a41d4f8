"""The shipped weights do what their cards say, on a small sample from a seed that training never saw."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

from lensplorer.storyworld import DATA, MODEL_NAMES, card, evaluate, grammar, model_path
from lensplorer.storyworld.corpus import CONTEXT, encode

# What the built-in model must reach; a sample of SAMPLE documents may fall short of it by chance as far as SLACK.
APART = {f"{name}, {words}": 0.90 for words in ("development wordings", "held-out wordings") for name in (
    "indirect_object", "capital", "colour", "young", "sum", "double", "half",
)}  # fmt: skip
REQUIRED = {
    "indirect_object": 0.95, "pronoun": 0.95, "repeat": 0.95, "quote": 0.95, "bracket": 0.95, "double": 0.90, "half": 0.90, "sum": 0.80, **APART,
}  # fmt: skip
SAMPLE, SLACK = 60, 0.06


@pytest.fixture(scope="module", params=MODEL_NAMES)
def built_in(request: pytest.FixtureRequest) -> tuple[str, Any, Any, dict[str, Any]]:
    """Name, Hugging Face model, tokenizer and the figures of the card."""
    folder = model_path(request.param)
    return (request.param, *evaluate.load(folder), json.loads((folder / "measured.json").read_text()))


def test_the_card_is_what_was_measured(built_in: tuple[str, Any, Any, dict[str, Any]]) -> None:
    name, _, _, measured = built_in
    folder = model_path(name)
    text = (folder / "README.md").read_text()
    assert text == card.card(name, json.loads((folder / "training.json").read_text()), measured)
    assert "toy world" in text.lower()
    assert set(measured["table"]) == set(evaluate.ROWS)


def test_the_recorded_figures_are_enough() -> None:
    measured = json.loads((model_path("storyworld") / "measured.json").read_text())
    short = {row: measured["table"][row]["accuracy"] for row, least in REQUIRED.items() if measured["table"][row]["accuracy"] < least}
    assert not short
    assert measured["corpus_loss_ratio"] <= 1.10
    assert measured["random_token_repeat"] >= 0.95
    assert measured["heads"]["induction"]["best"] >= 0.9
    assert measured["heads"]["previous_token"]["best"] >= 0.85


def test_the_weights_do_what_the_card_says(built_in: tuple[str, Any, Any, dict[str, Any]]) -> None:
    name, model, tok, measured = built_in
    rows = list(REQUIRED) if name == "storyworld" else ["indirect_object", "capital", "sum", "quote"]
    found = evaluate.table(model, tok, count=SAMPLE, rows_=rows)
    for row in rows:
        assert found[row]["accuracy"] >= measured["table"][row]["accuracy"] - SLACK, row


def test_heads_and_context_as_recorded(built_in: tuple[str, Any, Any, dict[str, Any]]) -> None:
    _, model, _, measured = built_in
    for kind, scores in evaluate.head_scores(model, count=4).items():
        assert scores.max().item() == pytest.approx(measured["heads"][kind]["best"], abs=0.05)
        assert scores.shape == (model.config.num_hidden_layers, model.config.num_attention_heads)


def test_any_text_is_handled_up_to_the_context(built_in: tuple[str, Any, Any, dict[str, Any]]) -> None:
    _, model, tok, _ = built_in
    ids = tok("東京 \x00 зима 😀 " * 60)["input_ids"][:CONTEXT]
    assert len(ids) == CONTEXT
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([ids])).logits).all()


def test_measuring_agrees_with_a_slow_reading() -> None:
    model, tok = evaluate.load(model_path("storyworld"))
    examples = [grammar.write(name, seed=f"slow:{i}") for name in ("capital", "json", "sum") for i in range(3)]
    right, total, loss = 0, 0, 0.0
    for example in examples:
        ids, tested = encode(tok, example)
        ids.append(0)
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        loss -= sum(scores[i, ids[i + 1]].item() for i in range(len(ids) - 1))
        for start, end in evaluate.spans_in_tokens(tok, example):
            assert all(tested[start:end])
            right += all(scores[i - 1].argmax().item() == ids[i] for i in range(start, end))
            total += 1
    found = evaluate.measure(model, tok, examples)
    assert found["tested"] == total and found["accuracy"] == pytest.approx(right / total)
    assert found["loss_per_document"] == pytest.approx(loss / len(examples), rel=1e-4)


def test_the_weights_are_half_precision_and_small() -> None:
    from safetensors.torch import load_file

    for name in MODEL_NAMES:
        state = load_file(model_path(name) / "model.safetensors")
        assert {value.dtype for value in state.values()} == {torch.float16}
    total = sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file())
    assert total <= 23 * 2**20


def test_an_unknown_name_offers_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no built-in model is called 'storyland'; there are storyworld and storyworld-mini"):
        model_path("storyland")


def test_importing_is_light() -> None:
    code = "import sys, lensplorer.storyworld.grammar; assert not {'torch', 'numpy', 'transformers', 'sae_lens', 'panel'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
