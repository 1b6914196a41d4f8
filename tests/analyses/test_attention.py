"""Attention against slow loops, on every architecture."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lensplorer.analyses.attention import (
    attention_by_layer,
    attention_influence,
    attention_patterns,
    attention_rollout,
    head_statistics,
    valid_sources,
)
from lensplorer.errors import AnalysisError, TraceError
from lensplorer.trace import make_trace, run_trace
from tests import tiny

IDS = [5, 9, 30, 31, 200, 17, 44, 60, 61, 62, 63, 64, 65]
EVERY = sorted(tiny.ARCHITECTURES)


@pytest.fixture(scope="module")
def traced(tiny_model):
    made = {}

    def trace(name, **options):
        key = (name, *sorted(options.items()))
        if key not in made:
            made[key] = run_trace(tiny_model(name, **options), IDS)
        return made[key]

    return trace


def slow_variance(trace, layer, head, first):
    pattern = trace[f"blocks.{layer}.attn.hook_pattern"][head].double()
    valid = valid_sources(trace.model, layer, len(trace))
    found = []
    for query in range(len(trace)):
        weights = [float(pattern[query, source]) for source in range(first, query + 1) if valid[query, source]]
        if len(weights) >= 2:
            mean = sum(weights) / len(weights)
            found.append(sum((weight - mean) ** 2 for weight in weights) / len(weights))
    return sum(found) / len(found)


@pytest.mark.parametrize("name", EVERY)
def test_patterns_sum_to_one_over_their_valid_sources(traced, name):
    trace = traced(name)
    weight = attention_patterns(trace).weight
    assert weight.dims == ("layer", "head", "query", "source")
    np.testing.assert_allclose(weight.sum("source"), 1, atol=1e-5)
    for layer in range(trace.n_layers):
        valid = valid_sources(trace.model, layer, len(trace)).numpy()
        values = weight.values[layer]
        assert (values[:, ~valid] == 0).all()
        assert (values[:, valid] > 0).all()  # a window derived too wide would show zeros here


@pytest.mark.parametrize("name", ["gpt2", "qwen2-window", "mistral", "gemma2"])
@pytest.mark.parametrize("exclude_first", [True, False])
def test_statistics_against_a_slow_loop(traced, name, exclude_first):
    trace = traced(name)
    statistics = head_statistics(trace, exclude_first=exclude_first)
    for layer in range(trace.n_layers):
        for head in range(trace.model.cfg.n_heads):
            pattern = trace[f"blocks.{layer}.attn.hook_pattern"][head].double()
            entropy = [-sum(float(p) * math.log(p) for p in row if p > 0) for row in pattern[1:]]
            here = statistics.sel(layer=layer, head=head)
            assert float(here.variance) == pytest.approx(slow_variance(trace, layer, head, int(exclude_first)), rel=1e-4)
            assert float(here.entropy) == pytest.approx(sum(entropy) / len(entropy), rel=1e-4)
            assert float(here.sink_share) == pytest.approx(float(pattern[1:, 0].mean()), rel=1e-4)


def test_uniform_attention_has_no_variance(traced):
    """Counting the masked zeros would give it some."""
    trace = traced("gpt2")
    uniform = torch.tril(torch.ones(len(trace), len(trace)))
    uniform = (uniform / uniform.sum(-1, keepdim=True)).expand(4, -1, -1)
    made = make_trace(trace.model, trace.tokens, trace.logits, {f"blocks.{layer}.attn.hook_pattern": uniform for layer in range(3)})
    assert float(head_statistics(made).variance.max()) < 1e-12


def slow_influence(trace, top_heads, position, weighted):
    heads = [(layer, head) for layer in range(trace.n_layers) for head in range(trace.model.cfg.n_heads)]
    heads.sort(key=lambda at: -slow_variance(trace, *at, 1))
    total = torch.zeros(len(trace), dtype=torch.float64)
    for layer, head in heads[:top_heads]:
        for source in range(position + 1):
            weight = trace[f"blocks.{layer}.attn.hook_pattern"][head, position, source].double()
            if weighted:
                values = trace[f"blocks.{layer}.attn.hook_v"]
                group = trace.model.cfg.n_heads // values.shape[1]
                moved = weight * (values[source, head // group].double() @ trace.model.blocks[layer].attn.W_O[head].double())
                weight = moved.norm()
            total[source] += weight
    return (total / total.max()).numpy()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama", "llama-biases", "gemma2", "bloom"])
def test_influence_against_a_slow_loop(traced, name, weighted):
    trace = traced(name)
    for top_heads, position in ((3, -1), (32, 7)):
        found = attention_influence(trace, top_heads=top_heads, value_weighted=weighted, position=position)
        expected = slow_influence(trace, top_heads, position % len(trace), weighted)
        np.testing.assert_allclose(found.influence, expected, rtol=1e-4, atol=1e-6)
        assert found.attrs["top_heads"] == min(top_heads, 12) == len(found.attrs["heads"].split())


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama-biases", "qwen2-window"])
def test_what_is_weighted_adds_up_to_the_blocks_attention(traced, name):
    """The vectors whose norms weigh the heads are the right ones: summed, with the bias, they are hook_attn_out."""
    trace = traced(name)
    attention = trace.model.blocks[1].attn
    pattern, values = trace["blocks.1.attn.hook_pattern"], trace["blocks.1.attn.hook_v"]
    values = values.repeat_interleave(pattern.shape[0] // values.shape[1], 1)
    total = torch.einsum("hqs,shd,hdm->qm", pattern, values, attention.W_O)
    bias = attention.b_O if getattr(attention, "b_O", None) is not None else 0
    torch.testing.assert_close(total + bias, trace["blocks.1.hook_attn_out"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_by_layer_and_rollout_against_slow_loops(traced, name):
    trace = traced(name)
    n = len(trace)
    means = [trace[f"blocks.{layer}.attn.hook_pattern"].double().numpy().mean(0) for layer in range(trace.n_layers)]
    np.testing.assert_allclose(attention_by_layer(trace, position=5).weight, [mean[5] for mean in means], atol=1e-6)
    rollout = np.eye(n)
    for mean in means:
        step = np.zeros((n, n))
        for query in range(n):
            for source in range(n):
                mixed = [(mean[query, between] + (query == between)) / 2 for between in range(n)]
                step[query, source] = sum(mixed[between] * rollout[between, source] for between in range(n)) / sum(mixed)
        rollout = step
    found = attention_rollout(trace).weight
    np.testing.assert_allclose(found, rollout, atol=1e-5)
    np.testing.assert_allclose(found.sum("source"), 1, atol=1e-5)


def test_one_token_and_bfloat16(tiny_model):
    one = run_trace(tiny_model("gpt2"), [5])
    assert attention_influence(one).influence.values.tolist() == [1.0]
    assert head_statistics(one).variance.isnull().all()
    half = run_trace(tiny_model("gpt2", dtype="bfloat16"), IDS)
    full = run_trace(tiny_model("gpt2"), IDS)
    np.testing.assert_allclose(attention_by_layer(half).weight, attention_by_layer(full).weight, atol=3e-2)
    assert float(attention_influence(half, value_weighted=True).influence.max()) == 1


def test_refusals(traced, tiny_model):
    trace = traced("gpt2")
    with pytest.raises(TraceError, match=r"outside the prompt of 13"):
        attention_by_layer(trace, position=13)
    with pytest.raises(AnalysisError, match="at least 1, got 0"):
        attention_influence(trace, top_heads=0)
    with pytest.raises(TraceError, match="did not read"):
        attention_patterns(run_trace(tiny_model("gpt2"), IDS, reads=[]))
    broken = {f"blocks.{layer}.attn.hook_pattern": trace[f"blocks.{layer}.attn.hook_pattern"].clone() for layer in range(3)}
    broken["blocks.1.attn.hook_pattern"][0, 3] = torch.nan
    with pytest.raises(AnalysisError, match="layer 1 is not finite"):
        attention_patterns(make_trace(trace.model, trace.tokens, trace.logits, broken))
