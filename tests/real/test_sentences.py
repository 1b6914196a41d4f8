"""The sentences that people know, on a model that was trained on real text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lensplorer as lp
from lensplorer.running import run_model

STORE = "When Mary and John went to the store, {} gave a drink to"


def first(model, prompt, **options):
    """The most likely next token, and its probability."""
    likely = lp.next_token(lp.run_trace(model, prompt, reads=[], **options), k=1)
    return str(likely.token.values[0]), float(likely.probability[0])


@pytest.mark.parametrize(
    ("prompt", "answer", "least"),
    [
        ("The capital of France is", " Paris", 0.6),
        ("The capital of Germany is", " Berlin", 0.6),
        ("The capital of Japan is", " Tokyo", 0.5),
        ("The opposite of hot is", " cold", 0.5),
        (STORE.format("John"), " Mary", 0.8),
        (STORE.format("Mary"), " John", 0.6),
    ],
)
def test_what_it_says_next(real, prompt, answer, least):
    token, probability = first(real, prompt)
    assert token == answer and probability >= least


def test_with_the_token_that_opens_a_turn_in_front(real):
    """TransformerLens' habit; this model's own tokenizer puts nothing in front of a text."""
    assert not lp.model_info(real).default_prepend_bos
    token, probability = first(real, STORE.format("John"), prepend_bos=True)
    assert token == " Mary" and probability == pytest.approx(0.836, abs=0.005)


def test_heads_that_carry_the_name_are_estimated_and_measured(real):
    """Patching heads into the run with the names exchanged: what the gradient foresees of the best is what patching them really does."""
    clean, corrupt = (lp.run_trace(real, STORE.format(name), reads=[]) for name in ("John", "Mary"))
    metric = (" Mary", " John")
    estimate = lp.attribution_patching(clean, corrupt, "z", metric)
    assert estimate.attrs["metric_clean"] > 2 and estimate.attrs["metric_corrupt"] < -2
    confirmed = lp.confirm_patching(estimate, clean, corrupt, metric, top=4)
    assert float(abs(confirmed.measured).max()) > 0.3
    assert confirmed.attrs["correlation"] > 0.9


def test_the_answer_moves_from_the_country_to_the_end(real):
    clean, corrupt = (lp.run_trace(real, f"The capital of {country} is", reads=[]) for country in ("France", "Germany"))
    effect = lp.activation_patching(clean, corrupt, "resid_pre", (" Paris", " Berlin")).effect.values  # [layer, position]
    assert effect[0].argmax() == 3 and effect[0, 3] == pytest.approx(1, abs=1e-3)
    assert effect[-1].argmax() == 4 and effect[-1, 4] > 0.9 and abs(effect[-1, 3]) < 0.1


def repeated(model, length=40, count=4):
    """Random ordinary tokens, twice. [batch, position]"""
    special = set(model.tokenizer.all_special_ids)
    ordinary = torch.tensor([token for token in range(model.cfg.d_vocab) if token not in special])
    picks = torch.randint(len(ordinary), (count, length), generator=torch.Generator().manual_seed(0))
    return ordinary[picks].repeat(1, 2)


def surprise(model, tokens, interventions=()):
    """Mean -log p of each copy's tokens but the first, nats."""
    length = tokens.shape[1] // 2
    logits = run_model(model, tokens, interventions=interventions).logits
    losses = -logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]  # of tokens 1 …
    return float(losses[:, : length - 1].mean()), float(losses[:, length:].mean())


def test_induction_on_repeated_tokens(real):
    """The second copy is foreseen, by heads that look at what followed last time: without the best of them it is foreseen worse."""
    tokens = repeated(real)
    before, after = surprise(real, tokens)
    assert before > np.log(real.cfg.d_vocab)  # random tokens: worse than not knowing anything
    assert after < before / 3

    scores = lp.head_scores(real, batch=2)
    induction, n_heads = scores.induction.values, scores.sizes["head"]
    assert induction.max() > 0.8
    best = np.argsort(induction.ravel())[-8:].tolist()
    busy = np.maximum.reduce([scores[name].values for name in ("induction", "previous_token", "duplicate_token")]).ravel()
    others: list[int] = []  # as many of the same blocks, which look at nothing in particular
    for head in best:
        block = set(range(head // n_heads * n_heads, (head // n_heads + 1) * n_heads))
        others.append(min(block - set(best) - set(others), key=lambda index: busy[index]))

    def without(heads):
        return surprise(real, tokens, [lp.ablate_head(*divmod(head, n_heads)) for head in heads])[1]

    assert without(best) > after + 6  # nats
    assert without(others) < after + 1


def test_a_chat_turn(real):
    """Through the file's own template: who it is, the question, the answer, the end of the turn."""
    session = lp.Session(real)
    session.set_prompt([{"role": "user", "content": "What is the capital of France?"}])
    asked = real.tokenizer.decode(session.ids)
    assert asked.startswith("<|im_start|>system\n") and asked.endswith(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    n_prompt = len(session.ids)
    for _ in range(16):
        session.append(int(lp.next_token(session.trace(), k=1).token_id[0]))
        if session.ids[-1] == real.tokenizer.eos_token_id:
            break
    assert real.tokenizer.decode(session.ids[n_prompt:]) == "The capital of France is Paris.<|im_end|>"
