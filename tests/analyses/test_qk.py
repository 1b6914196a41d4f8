"""Pairs of terms sum to the attention score on every architecture, and slow loops agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import lensplorer as lp
from lensplorer.analyses.attention import valid_sources
from lensplorer.analyses.qk import qk_attribution
from lensplorer.analyses.scoring import score_cap, score_scale
from lensplorer.errors import AnalysisError, TraceError
from lensplorer.stepping import TokenTree
from lensplorer.trace import make_trace, run_trace
from tests import tiny
from tests.test_paths import assert_same_result

IDS = [5, 9, 30, 31, 200, 17, 44, 60, 61, 62, 63, 64, 65]
SCORES = ("blocks.*.attn.hook_attn_scores", "blocks.*.attn.hook_pattern")
TOLERANCE = 1e-5


def changed(trace, interventions=(), **activations):
    cache = {**trace.cache.cache_dict, **{name.replace("__", "."): value for name, value in activations.items()}}
    return make_trace(trace.model, trace.tokens, trace.logits, cache, interventions)


@pytest.fixture(scope="module")
def trace(tiny_model):
    return run_trace(tiny_model("gpt2", processing="none"), IDS, reads=[qk_attribution])


def row_of_scores(trace, layer, head, query):
    """What the model gives to its softmax, as the hook shows it, or where that shows the pattern, as its logarithm; and whether up to a constant."""
    scores, pattern = (trace[f"blocks.{layer}.attn.hook_{name}"][head, query, : query + 1] for name in ("attn_scores", "pattern"))
    if torch.allclose(scores.softmax(-1), pattern, atol=1e-5):
        return scores.double(), trace.model.cfg.positional_embedding_type == "alibi"  # both backends add a constant of their own per query
    assert torch.equal(scores, pattern)  # Hugging Face's own module, of which nothing else is seen
    return pattern.double().log(), True


@pytest.mark.parametrize("processing", ["default", "none"])
@pytest.mark.parametrize("backend", ["auto", "bridge"])  # HookedTransformer where it is right
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_pairs_sum_to_the_score(tiny_model, name, backend, processing):
    model = tiny_model(name, backend=backend, processing=processing)
    trace = run_trace(model, IDS, reads=[qk_attribution, *SCORES])
    for layer in range(trace.n_layers):
        for head in range(model.cfg.n_heads):
            for query in (12, 4):
                wanted, up_to_constant = row_of_scores(trace, layer, head, query)
                seen = valid_sources(model, layer, query + 1, first=query)[0].nonzero()[:, 0].tolist()
                found, pairs = {}, []
                for source in (seen[0], seen[len(seen) // 2], seen[-1]):
                    result = qk_attribution(trace, layer=layer, head=head, source=source, query=query)
                    assert result.attrs["completeness"] <= TOLERANCE
                    assert float(result.pattern) == pytest.approx(float(trace[f"blocks.{layer}.attn.hook_pattern"][head, query, source]))
                    found[source] = float(result.contribution.sum(dtype=np.float64) + result.addition.sum(dtype=np.float64))
                    largest = max(float(abs(result.contribution).max()), float(wanted[seen].abs().max()))
                    pairs.append(abs(float(result.score) - found[source]) / largest)
                gaps = np.array([float(wanted[source]) - score for source, score in found.items()])
                gaps = gaps - gaps[-1] if up_to_constant else gaps
                assert max(abs(gaps)) / largest <= TOLERANCE, (layer, head, query)
                assert max(pairs) <= TOLERANCE


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gemma2", "bloom"])
def test_the_others_are_a_mean_over_each_of_them(tiny_model, name):
    trace = run_trace(tiny_model(name), IDS, reads=[qk_attribution])
    for layer, head, query in ((1, 2, 9), (2, 3, -1)):
        at = query % len(trace)
        seen = valid_sources(trace.model, layer, at + 1, first=at)[0].nonzero()[:, 0].tolist()
        each = {source: qk_attribution(trace, layer=layer, head=head, source=source, query=query) for source in seen}
        found = each[seen[1]]
        others = [result for source, result in each.items() if source != seen[1]]
        largest = float(abs(found.contribution).max())
        for one, whole in (("contribution", "mean_of_others"), ("score", "score_mean_of_others")):
            np.testing.assert_allclose(found[whole], np.mean([result[one] for result in others], axis=0), atol=1e-5 * largest)
        np.testing.assert_allclose(found.difference, found.contribution - found.mean_of_others, atol=1e-5 * largest)
        np.testing.assert_allclose(found.key_difference, found.difference.sum("query_term"), atol=1e-5 * largest)
        np.testing.assert_allclose(found.query_difference, found.difference.sum("key_term"), atol=1e-5 * largest)
        np.testing.assert_allclose(found.key_contribution, found.contribution.sum("query_term"), atol=1e-5 * largest)
        np.testing.assert_allclose(found.query_contribution, found.contribution.sum("key_term"), atol=1e-5 * largest)
        moved = float(found.difference.sum() + found.addition_difference.sum())
        assert moved == pytest.approx(float(found.score - found.score_mean_of_others), abs=1e-5 * largest)


def test_pairs_against_explicit_loops(trace):
    """(x_i - mean) γ / scale · W_Q and the same for the key, one pair of terms after the other, as the model's weights lie."""
    model, layer, head, query, source = trace.model, 2, 1, 11, 6
    block = model.blocks[layer]
    found = qk_attribution(trace, layer=layer, head=head, query=query, source=source)

    def terms(position):
        made = {"embed": trace["hook_embed"][position], "pos_embed": trace["hook_pos_embed"][position]}
        for before in range(layer):
            for other in range(model.cfg.n_heads):
                made[f"head {before}.{other}"] = trace[f"blocks.{before}.attn.hook_z"][position, other] @ model.blocks[before].attn.W_O[other]
            made[f"mlp {before}"] = trace[f"blocks.{before}.hook_mlp_out"][position]
        made["bias"] = sum(model.blocks[before].attn.b_O for before in range(layer))
        return {name: value.detach().double() for name, value in made.items()}

    def through(position, weight, bias):
        whole = trace[f"blocks.{layer}.hook_resid_pre"][position].double()
        scale = ((whole - whole.mean()).square().mean() + block.ln1.eps).sqrt()
        made = {}
        for name, value in terms(position).items():
            made[name] = ((value - value.mean()) / scale * block.ln1.w.detach().double()) @ weight.detach().double()
        made["bias"] = made["bias"] + block.ln1.b.detach().double() @ weight.detach().double() + bias.detach().double()
        return made

    queries = through(query, block.attn.W_Q[head], block.attn.b_Q[head])
    keys = through(source, block.attn.W_K[head], block.attn.b_K[head])
    assert list(found.query_term.values) == list(queries) and list(found.key_term.values) == list(keys)
    for one, q in queries.items():
        for other, k in keys.items():
            wanted = float(q @ k) / 8**0.5
            assert float(found.contribution.sel(query_term=one, key_term=other)) == pytest.approx(wanted, rel=1e-3, abs=1e-4), (one, other)


@pytest.mark.parametrize("name", ["gemma2", "bloom", "gpt2"])
def test_what_is_no_pair_is_named(tiny_model, name):
    trace = run_trace(tiny_model(name, **({"backend": "bridge"} if name == "gemma2" else {})), IDS, reads=[qk_attribution])
    found = qk_attribution(trace, layer=2, head=0, query=10, source=7)
    total = float(found.contribution.sum(dtype=np.float64))
    by_name = dict(zip(found.addition_term.values, found.addition.values))
    assert float(found.score) == pytest.approx(total + sum(by_name.values()), rel=1e-5)
    if name == "gemma2":
        cap = score_cap(trace, 2)
        assert cap == found.attrs["soft_cap"] == 50
        assert by_name["soft cap"] == pytest.approx(cap * np.tanh(total / cap) - total, rel=1e-4) and by_name["soft cap"] != 0
    elif name == "bloom":
        assert by_name["ALiBi"] == pytest.approx(-3 * 2**-2)  # the first of four heads, three tokens back
    else:
        assert by_name == {"soft cap": 0, "ALiBi": 0}


@pytest.mark.parametrize(
    ("model_class", "config_class", "options", "backends", "scales"),
    [
        (
            "GPTNeoForCausalLM",
            "GPTNeoConfig",
            dict(hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64, window_size=8, attention_types=[[["global", "local"], 1]]),
            ["bridge"],
            [1, 1],
        ),
        (
            "GPT2LMHeadModel",
            "GPT2Config",
            dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, scale_attn_by_inverse_layer_idx=True),
            ["hooked", "bridge"],
            [8**-0.5, 8**-0.5 / 2],
        ),
    ],
)
def test_the_scale_is_the_models_own(monkeypatch, tmp_path, model_class, config_class, options, backends, scales):
    """GPT-Neo's scores are not divided by √d, and GPT-2's may be divided by more."""
    monkeypatch.setitem(tiny.ARCHITECTURES, "scaled", (model_class, config_class, {**options, **tiny._COMMON}))
    folder = tiny.save("scaled", tmp_path)
    for backend in backends:
        trace = run_trace(lp.load_model(str(folder), backend=backend), IDS, reads=[qk_attribution])
        for layer, scale in enumerate(scales):
            found = qk_attribution(trace, layer=layer, head=1, source=8)
            assert found.attrs["completeness"] <= TOLERANCE
            row = trace[f"blocks.{layer}.attn.hook_pattern"][1, -1]
            assert torch.equal(row > 0, valid_sources(trace.model, layer, len(trace))[-1])  # GPT-Neo's second block has a window
            assert found.attrs["scale"] == score_scale(trace, layer) == pytest.approx(scale)


@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2"])
def test_bfloat16_stays_within_its_floor(tiny_model, name):
    trace = run_trace(tiny_model(name, dtype="bfloat16"), IDS, reads=[qk_attribution])
    assert qk_attribution(trace, layer=1, head=0, source=9).attrs["completeness"] <= 3e-2


# -- stepped traces ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_a_window_and_a_stepped_trace_are_the_whole_run(tiny_model, name):
    model = tiny_model(name)
    tree = TokenTree(model)
    node = tree.extend(tree.extend(tree.root, IDS[:9]), IDS[9:10])
    node = tree.extend(node, IDS[10:])
    fresh = qk_attribution(run_trace(model, IDS), layer=2, head=3, source=7)
    for stepped in (tree.trace(node), tree.window(node), tree.window(node, last=3)):
        assert_same_result(qk_attribution(stepped, layer=2, head=3, source=7), fresh, TOLERANCE)
    fresh = qk_attribution(run_trace(model, IDS), layer=1, head=0, query=10, source=10)
    assert_same_result(qk_attribution(tree.window(node, last=3), layer=1, head=0, query=0, source=10), fresh, TOLERANCE)


def test_many_sources_are_taken_some_at_a_time(tiny_model, monkeypatch):
    trace = run_trace(tiny_model("mistral"), IDS, reads=[qk_attribution])
    whole = qk_attribution(trace, layer=1, head=2, source=8)
    monkeypatch.setattr("lensplorer.analyses.qk._SOURCES", 3)
    assert_same_result(qk_attribution(trace, layer=1, head=2, source=8), whole, 1e-6)


# -- refusals ------------------------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_with_what_is_expected(trace, tiny_model):
    with pytest.raises(AnalysisError, match="There is no layer 3: expected 0 to 2"):
        qk_attribution(trace, layer=3, head=0, source=0)
    with pytest.raises(AnalysisError, match="There is no head -1: expected 0 to 3"):
        qk_attribution(trace, layer=0, head=-1, source=0)
    with pytest.raises(TraceError, match="Position 13 is outside the prompt"):
        qk_attribution(trace, layer=0, head=0, source=0, query=13)
    with pytest.raises(AnalysisError, match="Source 13 is outside the prompt of 13 tokens: expected -13 to 12"):
        qk_attribution(trace, layer=0, head=0, source=13)
    with pytest.raises(AnalysisError, match=r"Query 4 does not read source 5: a query reads nothing after itself. Expected 0 to 4\."):
        qk_attribution(trace, layer=0, head=0, source=5, query=4)
    windowed = run_trace(tiny_model("mistral"), IDS, reads=[qk_attribution])
    with pytest.raises(AnalysisError, match=r"Query 12 does not read source 4: block 1 has a sliding window of 8 tokens. Expected 5 to 12\."):
        qk_attribution(windowed, layer=1, head=0, source=4)
    with pytest.raises(TraceError, match="did not read"):
        qk_attribution(run_trace(trace.model, IDS, reads=["blocks.*.hook_resid_pre"]), layer=1, head=0, source=4)


def test_one_source_has_no_others(trace):
    found = qk_attribution(trace, layer=1, head=0, query=0, source=0)
    assert float(found.pattern) == 1
    assert np.isnan(found.score_mean_of_others) and np.isnan(found.difference).all() and np.isfinite(found.contribution).all()


@pytest.mark.parametrize("kind", ["q", "k"])
def test_queries_that_the_stream_does_not_make_are_refused(trace, kind):
    hook = f"blocks.1.attn.hook_{kind}"
    wrong = changed(trace, **{hook.replace(".", "__"): trace[hook] * 1.1})
    with pytest.raises(AnalysisError, match=f"The {'queries' if kind == 'q' else 'keys'} of head 1.2 of this GPT2LMHeadModel differ by .*Refused"):
        qk_attribution(wrong, layer=1, head=2, source=3)


def test_a_pattern_that_is_not_their_softmax_is_refused(trace):
    wrong = changed(trace, blocks__1__attn__hook_pattern=trace["blocks.1.attn.hook_pattern"].roll(1, -1))
    with pytest.raises(AnalysisError, match=r"The pattern of head 1\.2 differs from the softmax of its queries times its keys by .*Refused"):
        qk_attribution(wrong, layer=1, head=2, source=3)


def test_a_head_whose_queries_have_no_weight_of_their_own_is_refused(trace, monkeypatch):
    monkeypatch.setattr(type(trace.model.blocks[1].attn), "W_K", None, raising=False)
    monkeypatch.delitem(trace.model.blocks[1].attn._parameters, "W_K")
    with pytest.raises(AnalysisError, match="The attention of block 1 has no W_K of its own for each head"):
        qk_attribution(replace(trace, weights=None), layer=1, head=2, source=3)  # else it is refused for its changed weights


def test_activations_that_are_not_finite_are_reported(trace):
    broken = trace["blocks.1.hook_resid_pre"].clone()
    broken[4, 3] = torch.nan
    with pytest.raises(AnalysisError, match=r"NaN activations first appear at blocks\.1\.hook_resid_pre"):
        qk_attribution(changed(trace, blocks__1__hook_resid_pre=broken), layer=1, head=2, source=4)


# -- interventions -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.attn.hook_q", "blocks.1.attn.hook_k"])
def test_what_an_intervention_adds_is_a_term(tiny_model, hook):
    class Add:
        def hooks(self, model, positions):
            return [(hook, lambda value, point: value + 0.7)]

    trace = run_trace(tiny_model("llama"), IDS, reads=[qk_attribution], interventions=[Add()])
    found = qk_attribution(trace, layer=1, head=3, source=6)
    assert found.attrs["completeness"] <= TOLERANCE
    assert ("interventions" in found.query_term.values) is (hook != "blocks.1.attn.hook_k")
    assert ("interventions" in found.key_term.values) is (hook != "blocks.1.attn.hook_q")


def test_a_block_written_over_is_one_term(tiny_model):
    trace = run_trace(tiny_model("llama"), IDS, reads=[qk_attribution], interventions=[lp.ablate_attention(0)])
    found = qk_attribution(trace, layer=1, head=3, source=6)
    assert list(found.key_term.values) == ["embed", "attn 0", "mlp 0", "bias"]
    assert float(abs(found.contribution.sel(key_term="attn 0")).max()) == 0
    assert found.attrs["completeness"] <= TOLERANCE


def test_a_silenced_head_says_nothing(tiny_model):
    trace = run_trace(tiny_model("llama"), IDS, reads=[qk_attribution], interventions=[lp.ablate_head(0, 2)])
    found = qk_attribution(trace, layer=1, head=3, source=6)
    assert float(abs(found.contribution.sel(key_term="head 0.2")).max()) == 0 < float(abs(found.contribution.sel(key_term="head 0.1")).max())


@pytest.mark.parametrize("renormalise", [True, False])
def test_an_edited_pattern_is_said(tiny_model, renormalise):
    knocked = lp.knock_out_attention(1, 3, 6, 12, renormalise=renormalise)
    trace = run_trace(tiny_model("llama"), IDS, reads=[qk_attribution], interventions=[knocked])
    found = qk_attribution(trace, layer=1, head=3, source=6)
    assert found.attrs["pattern_edited"] == 1 and "completeness" not in found.attrs
    assert float(found.pattern) == 0 and np.isfinite(found.score)
    assert qk_attribution(trace, layer=1, head=2, source=6).attrs["completeness"] <= TOLERANCE  # the head beside it
