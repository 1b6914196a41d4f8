"""Every identity that the library rests on, on a model of thirty blocks with grouped queries."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lensplorer as lp

PROMPT = "When Mary and John went to the store, John gave a drink to"
LONGER = PROMPT + " Mary, and then they both went home to cook dinner for their friends"


@pytest.fixture(scope="module")
def trace(real):
    return lp.run_trace(real, PROMPT)


def relative(a, b):
    """max |Δ| / max |b|"""
    return float((a.float() - b.float()).abs().max() / b.float().abs().max())


def test_it_is_what_hugging_face_computes(real, real_bridge):
    info = lp.model_info(real)
    assert (info.architecture, info.backend, info.processing, info.n_ctx) == ("LlamaForCausalLM", "hooked", "default", 8192)
    assert info.difference is not None and info.difference < 5e-5
    assert lp.model_info(real_bridge).backend == "bridge" and lp.model_info(real_bridge).difference < 5e-5


def test_both_backends_agree(real, real_bridge):
    one, other = (lp.run_trace(model, LONGER) for model in (real, real_bridge))
    assert one.tokens.tolist() == other.tokens.tolist()
    assert relative(one.logits, other.logits) < 5e-5
    for hook in (
        "blocks.0.hook_resid_post",
        "blocks.14.hook_resid_post",
        "blocks.29.hook_resid_post",
        "blocks.14.hook_mlp_out",
        "blocks.29.hook_attn_out",
    ):
        assert relative(one[hook], other[hook]) < 1e-4, hook
    for layer in (0, 14, 29):
        hook = f"blocks.{layer}.attn.hook_pattern"
        assert float((one[hook] - other[hook]).abs().max()) < 1e-4, hook


@pytest.mark.parametrize("unit", ["layer", "head", "neuron", "source"])
@pytest.mark.parametrize("position", [-1, 4])
def test_the_parts_sum_to_the_logit(trace, unit, position):
    parts = lp.residual_decomposition(trace, " Mary", unit=unit, position=position)
    token = lp.next_token(trace, k=1).token_id.values[0]
    logit = float(trace.logits[position, int(token)])  # " Mary"
    total = float(parts.contribution.sum()) + (float(parts["rest"]) if "rest" in parts else 0.0)
    assert abs(total - logit) <= 1e-4 * float(trace.logits[position].abs().max())
    assert parts.attrs["completeness"] <= 1e-4


def test_the_last_row_of_the_lens_is_the_model(trace):
    lens = lp.logit_lens(trace, tokens=[" Mary"], top_k=1)
    assert lens.attrs["completeness"] <= 1e-3
    assert float(np.abs(lens.kl_to_final.values[-1]).max()) < 1e-5
    expected = trace.logits.float().softmax(-1)
    assert np.allclose(lens.top_probability.values[-1, :, 0], expected.max(-1).values, atol=1e-4)
    assert lens.top_token.values[-1, -1, 0] == " Mary" != lens.top_token.values[5, -1, 0]


def test_what_each_query_reads_sums_to_one(trace):
    weight = lp.attention_patterns(trace).weight
    assert weight.shape == (30, 9, len(trace), len(trace))
    assert float(abs(weight.sum("source") - 1).max()) < 1e-5
    assert not np.triu(weight.values, 1).any()  # nothing is read from the future


def test_a_stepped_run_is_a_fresh_one(real):
    """Token by token, with a branch taken and left on the way."""
    ids = lp.run_trace(real, LONGER).tokens.tolist()
    tree = lp.TokenTree(real)
    node = tree.extend(tree.root, ids[:9])
    tree.extend(node, [500, 600])
    for token in ids[9:]:
        node = tree.extend(node, token)
    stepped, fresh = tree.trace(node), lp.run_trace(real, ids)
    assert stepped.tokens.tolist() == ids
    assert relative(stepped.logits, fresh.logits) < 1e-4
    for hook in ("blocks.0.hook_resid_post", "blocks.29.hook_resid_post", "blocks.14.attn.hook_z", "blocks.29.hook_mlp_out"):
        assert relative(stepped[hook], fresh[hook]) < 1e-4, hook
    assert float((stepped["blocks.20.attn.hook_pattern"] - fresh["blocks.20.attn.hook_pattern"]).abs().max()) < 1e-4


def test_a_run_patched_into_itself_is_the_same(real, trace):
    hooks = ("blocks.3.hook_resid_pre", "blocks.14.attn.hook_pattern", "blocks.14.attn.hook_z", "blocks.20.hook_mlp_out", "blocks.29.hook_resid_post")
    same = lp.run_trace(real, PROMPT, interventions=[lp.patch(hook, trace) for hook in hooks])
    assert relative(same.logits, trace.logits) < 1e-5
    other = lp.run_trace(real, PROMPT.replace("John gave", "Mary gave"))
    changed = lp.run_trace(real, PROMPT, interventions=[lp.patch("blocks.29.hook_resid_post", other)])
    assert relative(changed.logits, other.logits) < 1e-5 < relative(changed.logits, trace.logits)


def test_what_a_removal_costs_is_what_it_costs(real):
    """``verify_by_ablation`` against single runs, and against the direct contributions that it stands beside."""
    prompt = "The capital of France is"
    trace = lp.run_trace(real, prompt)
    verified = lp.verify_by_ablation(trace, " Paris", versus=" Berlin")
    parts = lp.residual_decomposition(trace, " Paris", versus=" Berlin")
    paris, berlin = (real.tokenizer.encode(name, add_special_tokens=False)[0] for name in (" Paris", " Berlin"))

    def difference(run):
        return float(run.logits[-1, paris] - run.logits[-1, berlin])

    for name, hook in [("mlp 5", "blocks.5.hook_mlp_out"), ("attn 18", "blocks.18.hook_attn_out"), ("mlp 29", "blocks.29.hook_mlp_out")]:
        without = lp.run_trace(real, prompt, reads=[], interventions=[lp.ablate(hook, method="zero")])
        (row,) = np.flatnonzero(verified.component.values == name)
        assert float(verified.measured[row]) == pytest.approx(difference(trace) - difference(without), abs=1e-3)
        assert float(verified.predicted[row]) == pytest.approx(float(parts.contribution.sel(component=name)), abs=1e-4)
    assert abs(verified.measured).max() > 0.5


def test_every_stage_of_sampling_is_a_distribution(trace):
    """All that is left after top-k is among the candidates shown, so that they sum to one; what was taken away makes up the rest."""
    shown = lp.sampling_distribution(trace, params=lp.DecodingParams(temperature=0.8, top_k=40, top_p=0.9, min_p=0.01), k=200)
    sums, stages = shown.p.sum("candidate").values, shown.stage.values.tolist()
    assert np.allclose(sums[stages.index("top_k") :], 1, atol=1e-5)
    base = trace.logits[-1].float().softmax(-1)
    assert sums[0] == pytest.approx(float(base.topk(len(shown.candidate)).values.sum()), abs=1e-5) and sums[0] < 1 - 1e-4
    assert torch.allclose(torch.tensor(shown.p_base.values), base[torch.tensor(shown.token_id.values)], atol=1e-6)
    assert float(shown.p_final.sum()) == pytest.approx(1, abs=1e-5) and shown.attrs["total_probability"] == pytest.approx(1, abs=1e-5)
    assert shown.attrs["completeness"] < 1e-5
    assert 1 <= int((shown.p_final > 0).sum()) <= 40


def test_a_session_goes_back_to_the_same_numbers(real):
    session = lp.Session(real)
    session.set_prompt(PROMPT)
    before = session.trace().logits[-1].clone()
    session.append(" Mary")
    assert session.trace().logits.shape[0] == len(session.ids)
    session.pop()
    assert torch.equal(session.trace().logits[-1], before)


def test_an_induction_head_reads_what_a_previous_token_head_wrote(real):
    """Of the strongest induction head's key, what sets it apart was written most by a head that attends to the token before."""
    scores = lp.head_scores(real)
    layer, head = np.unravel_index(int(np.nanargmax(scores.induction.values)), scores.induction.shape)
    ids = torch.randint(1000, 40_000, (12,), generator=torch.Generator().manual_seed(0)).tolist()
    ids = [real.tokenizer.bos_token_id, *ids, *ids]
    trace = lp.run_trace(real, ids, reads=[lp.qk_attribution])
    query = len(ids) - 3
    pairs = lp.qk_attribution(trace, layer=int(layer), head=int(head), source=query - 11, query=query)
    assert pairs.attrs["completeness"] <= 1e-5
    assert float(pairs.pattern) > 0.5 and float(pairs.score - pairs.score_mean_of_others) > 5
    by_head = {name: float(value) for name, value in pairs.key_difference.to_series().items() if name.startswith("head")}
    strongest = max(by_head, key=by_head.__getitem__)
    block, number = map(int, strongest.removeprefix("head ").split("."))
    assert by_head[strongest] > 0.5 * float(pairs.key_difference.sum())
    assert float(scores.previous_token[block, number]) > 0.5
