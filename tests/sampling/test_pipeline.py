"""Every stage against its definition: transformers' processors and OpenAI's formula, bit for bit; masses, sums, greedy, draws."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as theirs

from lensplorer.errors import SamplingError
from lensplorer.sampling.params import DecodingParams
from lensplorer.sampling.pipeline import STAGES, Stages, draw_for, mass_kept, pick, run_stages, summarise

NEUTRAL = DecodingParams(temperature=1.0, top_p=1.0, repetition_penalty=1.0)

# Coarse steps make many exact ties.
logit = st.one_of(st.integers(-6, 6).map(float), st.floats(-30, 30, width=32), st.just(-float("inf")))
logit_rows = st.lists(logit, min_size=1, max_size=120).filter(lambda row: max(row) > -np.inf).map(lambda row: torch.tensor(row, dtype=torch.float32))
probability = st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.8, 0.9, 0.99, 1.0]) | st.floats(0, 1)


def changed(**values) -> DecodingParams:
    return DecodingParams(**{**NEUTRAL.to_dict(), **values})


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.int32), other.view(torch.int32))


@st.composite
def rows_with_history(draw):
    z = draw(logit_rows)
    history = draw(st.lists(st.integers(0, len(z) - 1), min_size=1, max_size=30))
    return z, history, draw(st.integers(0, len(history)))


@settings(max_examples=60, deadline=None)
@given(rows_with_history(), st.floats(0.05, 8))
def test_repetition_is_transformers_and_counts_the_prompt(case, penalty):
    z, history, n_prompt = case
    expected = theirs.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([history]), z[None])[0]
    assert same_bits(run_stages(z, params=changed(repetition_penalty=penalty), history=history, n_prompt=n_prompt).final, expected)


@settings(max_examples=60, deadline=None)
@given(logit_rows, st.floats(0.01, 20))
def test_temperature_is_transformers(z, temperature):
    expected = theirs.TemperatureLogitsWarper(temperature)(torch.tensor([[0]]), z[None])[0]
    assert same_bits(run_stages(z, params=changed(temperature=temperature)).final, expected)


@settings(max_examples=60, deadline=None)
@given(logit_rows, st.integers(1, 150))
def test_top_k_is_transformers(z, top_k):
    expected = theirs.TopKLogitsWarper(top_k)(torch.tensor([[0]]), z[None])[0]
    assert same_bits(run_stages(z, params=changed(top_k=top_k)).final, expected)


@settings(max_examples=60, deadline=None)
@given(logit_rows, probability)
def test_min_p_is_transformers(z, min_p):
    expected = theirs.MinPLogitsWarper(min_p)(torch.tensor([[0]]), z[None])[0]
    assert same_bits(run_stages(z, params=changed(min_p=min_p)).final, expected)


def their_top_p(z: torch.Tensor, top_p: float) -> torch.Tensor:
    """transformers' warper, with the order of equals that its unstable sort leaves open settled: the lowest ids are sorted as the likeliest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "sort", functools.partial(torch.sort, stable=True))
        return theirs.TopPLogitsWarper(top_p)(torch.tensor([[0]]), z.flip(0)[None])[0].flip(0)


@settings(max_examples=200, deadline=None)
@given(logit_rows, probability)
def test_top_p_is_transformers_with_ties_settled(z, top_p):
    ours = run_stages(z, params=changed(top_p=top_p)).final
    if top_p == 1:  # transformers' generate leaves the warper out
        assert same_bits(ours, z)
        return
    assert same_bits(ours, their_top_p(z, top_p))
    plain = theirs.TopPLogitsWarper(top_p)(torch.tensor([[0]]), z[None])[0]
    assert torch.equal(ours.sort().values, plain.sort().values)  # whichever of equals it keeps, it keeps as many
    boundary = plain[plain > -torch.inf].min()
    if (z == boundary).sum() == (plain == boundary).sum():
        assert same_bits(ours, plain)


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_top_p_on_a_real_vocabulary(top_p):
    z = torch.randn(151_936, generator=torch.Generator().manual_seed(0)) * 3
    for values in (z, z.bfloat16().float()):  # bfloat16 has a thousand times as many ties
        assert same_bits(run_stages(values, params=changed(top_p=top_p)).final, their_top_p(values, top_p))


@settings(max_examples=60, deadline=None)
@given(rows_with_history(), st.floats(-2, 2), st.floats(-2, 2))
def test_frequency_and_presence_are_openais_over_the_completion(case, frequency, presence):
    z, history, n_prompt = case
    counts = torch.bincount(torch.tensor(history[n_prompt:], dtype=torch.long), minlength=len(z)).float()
    expected = z - counts * frequency - (counts > 0).float() * presence
    ours = run_stages(z, params=changed(frequency_penalty=frequency, presence_penalty=presence), history=history, n_prompt=n_prompt).final
    assert torch.equal(ours, expected)


@st.composite
def anything(draw):
    z, history, n_prompt = draw(rows_with_history())
    params = DecodingParams(
        temperature=draw(st.sampled_from([0.0, 0.01, 0.7, 1.0, 3.0])),
        top_k=draw(st.integers(0, 20)),
        top_p=draw(probability),
        min_p=draw(probability),
        repetition_penalty=draw(st.floats(0.1, 5)),
        presence_penalty=draw(st.floats(-2, 2)),
        frequency_penalty=draw(st.floats(-2, 2)),
    )
    allowed = draw(st.none() | st.lists(st.booleans(), min_size=len(z), max_size=len(z)).map(np.array))
    if allowed is not None and not (allowed & (z > -torch.inf).numpy()).any():
        allowed[int(z.argmax())] = True
    return z, params, history, n_prompt, allowed


@settings(max_examples=200, deadline=None)
@given(anything(), st.floats(0, 1, exclude_max=True))
def test_masses_add_up_and_only_what_is_kept_is_chosen(case, draw):
    z, params, history, n_prompt, allowed = case
    stages = run_stages(z, params=params, history=history, n_prompt=n_prompt, allowed=allowed)
    assert float(stages.p_final.sum(dtype=torch.float64)) == pytest.approx(1, abs=1e-6)
    assert float(stages.p_base.sum(dtype=torch.float64)) == pytest.approx(1, abs=1e-6)
    summaries = summarise(stages)
    assert tuple(s.stage for s in summaries) == STAGES
    assert sum(s.mass_removed for s in summaries) + mass_kept(stages) == pytest.approx(1, abs=1e-9)
    assert all(s.mass_removed >= -1e-12 and 0 <= s.mass_moved <= 1 + 1e-5 and s.kl >= 0 for s in summaries)
    assert summaries[-1].n_kept == int((stages.final > -torch.inf).sum()) >= 1
    assert [name for name in STAGES if name in stages.scores] == list(stages.scores)  # in the order of the method
    excluded = stages.p_final == 0
    if allowed is not None:
        assert bool(excluded[~torch.from_numpy(allowed)].all())
    token = pick(stages.p_final, draw)
    assert stages.p_final[token] > 0
    if params.is_greedy:
        assert stages.p_final[token] == 1 and "temperature" not in stages.scores


def slow_summary(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    moved = sum(max(0.0, b - a) for b, a in zip(before, after))
    return moved, sum(a * np.log(a / b) for b, a in zip(before, after) if a > 0)


def test_summaries_agree_with_a_slow_reference():
    z = torch.randn(200, generator=torch.Generator().manual_seed(3)) * 2
    params = DecodingParams(temperature=0.6, top_k=40, top_p=0.9, min_p=0.05, repetition_penalty=1.3, frequency_penalty=0.7, presence_penalty=-0.4)
    stages = run_stages(z, params=params, history=[1, 2, 3, 3, 3, 7], n_prompt=2, allowed=np.arange(200) % 3 > 0)
    before = stages.p_base.double().numpy()
    for summary in summarise(stages)[1:]:
        if summary.active:
            after = stages.scores[summary.stage].double().softmax(-1).numpy()
            moved, kl = slow_summary(before, after)
            assert (summary.mass_moved, summary.kl) == pytest.approx((moved, kl), abs=1e-6)
            assert summary.n_kept == int((after > 0).sum())
            before = after
        else:
            assert (summary.mass_removed, summary.mass_moved, summary.kl) == (0, 0, 0)


def test_greedy_is_the_first_of_the_most_likely_and_divides_nothing():
    z = torch.tensor([1.0, 5.0, 5.0, -torch.inf])
    for params in (changed(temperature=0), changed(temperature=0.5, greedy=True)):
        stages = run_stages(z, params=params)
        assert torch.equal(stages.p_final, torch.tensor([0.0, 1.0, 0.0, 0.0]))
        assert same_bits(stages.final[1:2], z[1:2])
    assert pick(run_stages(z, params=changed(temperature=0), allowed=np.array([True, False, True, True])).p_final, 0.0) == 2


@pytest.mark.parametrize(
    ("z", "allowed", "message"),
    [
        (torch.tensor([float("nan"), 1.0]), None, "NaN"),
        (torch.tensor([float("inf"), 1.0]), None, "infinity"),
        (torch.full((3,), -torch.inf), None, "no token"),
        (torch.tensor([1.0, -torch.inf]), np.array([False, True]), "'constraint'.*no token"),
        (torch.tensor([1.0, 2.0]), np.array([True]), "mask"),
        (torch.ones(1, 2), None, "shape"),
    ],
)
def test_no_distribution_is_made_up(z, allowed, message):
    with pytest.raises(SamplingError, match=message):
        run_stages(z, params=NEUTRAL, allowed=allowed)


def test_the_logits_given_are_left_alone():
    z = torch.randn(50)
    copy = z.clone()
    run_stages(z, params=DecodingParams(top_k=3, frequency_penalty=1), history=[1, 2], n_prompt=0)
    assert torch.equal(z, copy)


def test_tokens_come_as_often_as_they_are_likely():
    p = torch.tensor([0.1, 0.0, 0.2, 0.7])
    counts = np.bincount([pick(p, draw_for(0, branch, position)) for branch in range(4) for position in range(2500)], minlength=4)
    # four standard deviations of a binomial of 10,000
    assert np.all(np.abs(counts - 10_000 * p.numpy()) <= 4 * np.sqrt(10_000 * p.numpy() * (1 - p.numpy())) + 1e-9)


def test_a_draw_depends_on_seed_branch_and_position_alone():
    draws = {(s, b, p): draw_for(s, b, p) for s in range(3) for b in range(3) for p in range(30)}
    assert len(set(draws.values())) == len(draws)
    assert all(draw_for(*key) == value and 0 <= value < 1 for key, value in reversed(draws.items()))
    assert draw_for(0, 0, 5) == 0.5441487927933026  # the same on every machine and in every version


def test_without_a_seed_a_draw_is_fresh():
    assert len({draw_for(None, 0, 0) for _ in range(5)}) == 5


def test_stages_that_change_nothing_do_not_run():
    stages = run_stages(torch.randn(9), params=NEUTRAL, history=[1, 2, 3], n_prompt=1)
    assert isinstance(stages, Stages) and list(stages.scores) == ["base"] and same_bits(stages.p_final, stages.p_base)
