"""Interventions and patching on the built-in model, against what was measured there by other code (``storyworld.ground_truth``)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lensplorer.analyses.heads import head_scores
from lensplorer.analyses.patching import activation_patching, attribution_patching, confirm_patching
from lensplorer.interventions import ablate_head, knock_out_attention, steer
from lensplorer.running import run_model
from lensplorer.storyworld.cases import cases
from lensplorer.storyworld.ground_truth import findings
from lensplorer.trace import run_trace

COUNT = 24  # as many cases as the ground truth was measured on


def finding(phenomenon, name):
    return next(found for found in findings(phenomenon) if found.name == name)


def summed_effect(model, phenomenon, hook, *, count=COUNT):
    """Effects over all cases: Σ (m(patched) - m(corrupt)) / Σ (m(clean) - m(corrupt)). [layer, position or head]"""
    above, below = 0.0, 0.0
    for case in cases(phenomenon, count=count):
        clean, corrupt = (run_trace(model, text, reads=[]) for text in (case.clean, case.corrupt))
        grid = activation_patching(clean, corrupt, hook, (case.right, case.wrong))
        above = above + (grid.metric.values - grid.attrs["metric_corrupt"])
        below += grid.attrs["metric_clean"] - grid.attrs["metric_corrupt"]
    return above / below


@pytest.mark.parametrize("phenomenon", ["indirect_object", "repeat"])
def test_patching_heads_finds_the_head_that_carries_the_answer(storyworld, phenomenon):
    truth, effect = finding(phenomenon, "mover"), summed_effect(storyworld, phenomenon, "z")
    assert np.unravel_index(effect.argmax(), effect.shape) == (truth.layer, truth.head)
    assert truth.holds(float(effect[truth.layer, truth.head])) and effect.max() == pytest.approx(truth.measured, abs=1e-3)


@pytest.mark.parametrize("phenomenon", ["indirect_object", "repeat"])
def test_patching_the_stream_recovers_the_planted_positions(storyworld, phenomenon):
    """The answer starts at the token that differs and arrives at the last position in the block that the ground truth names."""
    truth, effect = finding(phenomenon, "arrives"), summed_effect(storyworld, phenomenon, "resid_pre")
    case = cases(phenomenon, count=1)[0]
    clean, corrupt = (run_trace(storyworld, text, reads=[]).tokens for text in (case.clean, case.corrupt))
    (planted,) = (clean != corrupt).nonzero()[:, 0].tolist()
    assert effect[0].argmax() == planted and effect[0, planted] == pytest.approx(1, abs=1e-3)
    assert np.abs(np.delete(effect[0], planted)).max() <= 1e-3
    assert truth.holds(float(effect[truth.layer, -1])) and effect[truth.layer, -1] == pytest.approx(truth.measured, abs=1e-3)
    assert truth.layer + 1 == len(effect) or effect[truth.layer + 1, -1] > 0.5


def test_the_estimate_finds_the_same_head_and_is_confirmed(storyworld):
    case = cases("indirect_object", count=1)[0]
    clean, corrupt = (run_trace(storyworld, text) for text in (case.clean, case.corrupt))
    metric = (case.right, case.wrong)
    confirmed = confirm_patching(attribution_patching(clean, corrupt, "z", metric), clean, corrupt, metric, top=8)
    measured = activation_patching(clean, corrupt, "z", metric).effect.values
    best = np.unravel_index(measured.argmax(), measured.shape)
    assert best in set(zip(confirmed.layer.values.tolist(), confirmed["head"].values.tolist()))
    assert confirmed.attrs["correlation"] > 0.5


def repeat_accuracy(model, interventions=(), *, length=30, count=16):
    """Share of the second copy of random tokens that is predicted, its first token aside."""
    first = torch.randint(5, int(model.cfg.d_vocab), (count, length), generator=torch.Generator().manual_seed(5))
    tokens = torch.cat([torch.zeros(count, 1, dtype=torch.long), first, first], 1)
    predicted = run_model(model, tokens, interventions=interventions).logits.argmax(-1)
    return float((predicted[:, length + 1 : -1] == tokens[:, length + 2 :]).float().mean())


def test_without_the_induction_heads_the_repeat_is_lost(storyworld):
    scores = torch.tensor(head_scores(storyworld).induction.values)
    strong = [(int(layer), int(head)) for layer, head in (scores > 0.3).nonzero()]
    best = finding("repeat", "induction_head")
    assert (best.layer, best.head) in strong
    whole = repeat_accuracy(storyworld)
    assert finding("repeat", "second_copy").holds(whole)
    assert finding("repeat", "without_induction").holds(repeat_accuracy(storyworld, [ablate_head(layer, head) for layer, head in strong]))
    other = finding("repeat", "without_another")
    assert other.holds(repeat_accuracy(storyworld, [ablate_head(other.layer, other.head)]))


def test_knocking_out_what_the_best_induction_head_reads_costs_the_repeat(storyworld):
    """In a repeat case the answer stands at one position, and the best induction head reads it from the last."""
    best = finding("repeat", "induction_head")
    lost = {"answer": 0.0, "another": 0.0}
    for case in cases("repeat", count=12):
        plain = run_trace(storyworld, case.clean, reads=[])
        right, last = plain.token_id(case.right), len(plain) - 1
        answer = plain.tokens.tolist().index(right)
        for name, source in (("answer", answer), ("another", answer + 2)):
            changed = run_trace(storyworld, case.clean, reads=[], interventions=[knock_out_attention(best.layer, best.head, source, last)])
            lost[name] += float((plain.logits[-1].log_softmax(-1) - changed.logits[-1].log_softmax(-1))[right])
    assert lost["answer"] > 0.1 and lost["answer"] > 5 * abs(lost["another"])


def test_steering_to_a_fact_raises_it_on_held_out_prompts(storyworld):
    layer = int(storyworld.cfg.n_layers) - 1
    direction = ("The capital of France is", ["The capital of Norway is", "The capital of Cuba is", "The capital of Turkey is"])
    for country in ("Chile", "Morocco", "Spain", "Japan"):
        prompt = f"The capital of {country} is"
        plain = run_trace(storyworld, prompt, reads=[])
        steered = run_trace(storyworld, prompt, reads=[], interventions=[steer(direction, layer, 2.0, positions=plain.position(-1))])
        paris = plain.token_id(" Paris")
        before, after = (float(trace.logits[-1].softmax(-1)[paris]) for trace in (plain, steered))
        assert after > max(0.01, 20 * before), country


def test_steering_to_a_name_raises_it_on_held_out_prompts(storyworld):
    layer = int(storyworld.cfg.n_layers) - 1  # earlier, what stands at the last position is which of the two names, not the name
    positive = ["When Lucy and Paul went to the park, Paul gave the key to", "When Mark and Lucy went to the shop, Mark gave the map to"]
    negative = ["When Anna and Paul went to the park, Paul gave the key to", "When Mark and Rosa went to the shop, Mark gave the map to"]
    for other, giver in (("Emma", "Jack"), ("Henry", "Clara"), ("Grace", "Tom")):
        prompt = f"When {other} and {giver} went to the museum, {giver} gave the coin to"
        plain = run_trace(storyworld, prompt, reads=[])
        steered = run_trace(storyworld, prompt, reads=[], interventions=[steer((positive, negative), layer, 2.0, positions=plain.position(-1))])
        lucy = plain.token_id(" Lucy")
        before, after = (float(trace.logits[-1].softmax(-1)[lucy]) for trace in (plain, steered))
        assert after > max(0.01, 20 * before), other
