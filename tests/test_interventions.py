"""Interventions: what they do to a run, on both backends, whole and stepped; what they leave behind; what they refuse."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from lensplorer.errors import AnalysisError, LensplorerError, SessionError, TraceError
from lensplorer.interventions import (
    Positions,
    ablate,
    ablate_attention,
    ablate_head,
    ablate_layer,
    ablate_mlp,
    ablate_position,
    from_dict,
    knock_out_attention,
    patch,
    scale,
    steer,
    to_dict,
)
from lensplorer.interventions.features import Dictionary
from lensplorer.interventions.values import Reference
from lensplorer.models import model_info
from lensplorer.running import run_model
from lensplorer.stepping import TokenTree
from lensplorer.trace import run_trace
from tests import tiny

CLEAN = [5, 17, 40, 100, 7, 61]
CORRUPT = [5, 17, 41, 100, 7, 61]
#: both backends, grouped queries, parallel blocks, norms after attention and MLP, a sliding window
MODELS = ["gpt2", "llama", "neox-parallel", "bloom", "llama-biases", "gemma2", "olmo2", "qwen2-window"]
BACKENDS = [("gpt2", "hooked"), ("gpt2", "bridge"), ("llama", "hooked"), ("llama", "bridge")]


def logits_of(model, *interventions, prompt=CORRUPT, reads=()):
    return run_trace(model, prompt, reads=reads, interventions=interventions).logits


def gap(a, b):
    return float((a - b).abs().max() / b.abs().max())


def hook_count(model):
    return sum(len(point._forward_hooks) + len(point._backward_hooks) for point in model.hook_dict.values())


def some_of_each(model):
    clean = run_trace(model, CLEAN)
    return [
        ablate_head(1, [0, 2]),
        ablate_head(1, 0, method="mean", reference=clean),
        ablate_mlp(0, method="resample", reference=[clean, "the cat"], seed=3),
        ablate_layer(1, positions=[1, 3]),
        ablate_attention(2, positions=slice(2, None)),
        ablate_position(2),
        patch("blocks.1.hook_resid_pre", clean, positions=[2, 4]),
        patch("blocks.1.attn.hook_pattern", clean, heads=1),
        scale("blocks.0.hook_mlp_out", 1.5),
        steer((" cat", " dog"), 2, 3.0, positions=slice(1, None)),
        steer(torch.linspace(-1, 1, 32), 3),
        knock_out_attention(1, [0, 3], 1, [3, 5]),
    ]


# -- identities ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_patching_everything_gives_the_clean_run_and_nothing_the_corrupt_one(tiny_model, name):
    model = tiny_model(name)
    clean, corrupt = run_trace(model, CLEAN), run_trace(model, CORRUPT)
    assert gap(clean.logits, corrupt.logits) > 1e-3
    assert gap(logits_of(model, patch("blocks.0.hook_resid_pre", clean)), clean.logits) <= 1e-5
    everywhere = [patch(f"blocks.{layer}.hook_{part}", clean) for layer in range(3) for part in ("resid_pre", "attn_out", "mlp_out")]
    assert gap(logits_of(model, *everywhere), clean.logits) <= 1e-5
    assert torch.equal(logits_of(model, patch("blocks.0.hook_resid_pre", clean, positions=())), corrupt.logits)


@pytest.mark.parametrize("name", MODELS)
def test_ablating_a_head_removes_what_it_wrote(tiny_model, name):
    """The output of attention loses z[head] @ W_O[head], by hand, through the norm after it where there is one."""
    model = tiny_model(name)
    plain = run_trace(model, CLEAN)
    changed = run_trace(model, CLEAN, interventions=[ablate_head(1, 2)])
    attention = model.blocks[1].attn
    z, bias = plain["blocks.1.attn.hook_z"], getattr(attention, "b_O", None)
    heads = torch.einsum("phd,hdm->phm", z, attention.W_O)  # [position, head, d_model]
    expected = heads[:, [0, 1, 3]].sum(1) + (0 if bias is None else bias)
    whole = heads.sum(1) + (0 if bias is None else bias)
    post_norm = (
        getattr(model.blocks[1], "ln1_post", None) if name in ("gemma2",) else getattr(model.blocks[1], "ln1", None) if name == "olmo2" else None
    )
    if post_norm is not None:
        expected, whole = post_norm(expected[None])[0], post_norm(whole[None])[0]
    assert gap(plain["blocks.1.hook_attn_out"], whole) <= 1e-5
    assert gap(changed["blocks.1.hook_attn_out"], expected) <= 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_a_layer_ablated_lets_the_stream_through(tiny_model, name):
    trace = run_trace(tiny_model(name), CLEAN, interventions=[ablate_layer(1)])
    assert torch.equal(trace["blocks.1.hook_resid_post"], trace["blocks.1.hook_resid_pre"])
    part = run_trace(tiny_model(name), CLEAN, interventions=[ablate_layer(1, positions=[2])])
    same = (part["blocks.1.hook_resid_post"] == part["blocks.1.hook_resid_pre"]).all(-1)
    assert same.tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize(("name", "backend"), BACKENDS)
def test_steering_adds_the_vector_to_the_stream(tiny_model, name, backend):
    model = tiny_model(name, backend=backend)
    vector = torch.linspace(-1, 1, 32)
    for row, hook in ((0, "blocks.0.hook_resid_pre"), (2, "blocks.2.hook_resid_pre"), (3, "blocks.2.hook_resid_post")):
        plain, changed = run_trace(model, CLEAN), run_trace(model, CLEAN, interventions=[steer(vector, row, 2.0, positions=slice(3, None))])
        moved = changed[hook] - plain[hook]
        assert torch.allclose(moved[3:], (2 * vector).expand(3, -1), atol=1e-5)
        assert not moved[:3].any()


def test_a_contrast_is_the_difference_of_means(tiny_model):
    model = tiny_model("gpt2")
    pairs = [run_trace(model, text) for text in ("the cat", "the dog", "a shop", "the mat ran")]
    hook = "blocks.1.hook_resid_pre"
    expected = (pairs[0][hook][-1] + pairs[1][hook][-1]) / 2 - (pairs[2][hook][-1] + pairs[3][hook][-1]) / 2
    by_trace, by_text = steer((pairs[:2], pairs[2:]), 1), steer((["the cat", "the dog"], ["a shop", "the mat ran"]), 1)
    for intervention in (by_trace, by_text):
        moved = run_trace(model, CLEAN, interventions=[intervention])[hook] - run_trace(model, CLEAN)[hook]
        assert torch.allclose(moved, expected.expand_as(moved), atol=1e-5)


@pytest.mark.parametrize(("name", "backend"), BACKENDS)
@pytest.mark.parametrize("renormalise", [True, False])
def test_knocking_out_moves_or_removes_the_weight(tiny_model, name, backend, renormalise):
    model = tiny_model(name, backend=backend)
    hook = "blocks.0.attn.hook_pattern"
    plain = run_trace(model, CLEAN)[hook]
    changed = run_trace(model, CLEAN, interventions=[knock_out_attention(0, 1, 2, [3, 5], renormalise=renormalise)])[hook]
    expected = plain.clone()
    expected[1, [3, 5], 2] = 0
    if renormalise:
        expected[1] = expected[1] / expected[1].sum(-1, keepdim=True)
    assert torch.allclose(changed, expected, atol=1e-6)
    only_itself = run_trace(model, CLEAN, interventions=[knock_out_attention(0, None, 0, 0)])
    assert only_itself.logits.isfinite().all() and not only_itself[hook][:, 0].any()


@pytest.mark.parametrize(("name", "backend"), BACKENDS)
def test_mean_and_resample_take_the_reference_without_its_first_position(tiny_model, name, backend):
    model = tiny_model(name, backend=backend)
    hook = "blocks.1.attn.hook_z"
    reference = [run_trace(model, CLEAN), run_trace(model, "the dog ran")]
    rows = torch.cat([trace[hook][1:] for trace in reference])
    mean = run_trace(model, CORRUPT, interventions=[ablate_head(1, [1, 3], method="mean", reference=reference)])[hook]
    assert torch.allclose(mean[:, [1, 3]], rows[:, [1, 3]].mean(0).expand(6, -1, -1), atol=1e-5)
    assert gap(mean[:, [0, 2]], run_trace(model, CORRUPT)[hook][:, [0, 2]]) <= 1e-5
    drawn = run_trace(model, CORRUPT, interventions=[ablate(hook, method="resample", reference=reference, seed=5)])[hook]
    for row in drawn:
        assert (rows - row).flatten(1).abs().amax(1).min() <= 1e-6
    other = run_trace(model, CORRUPT, interventions=[ablate(hook, method="resample", reference=reference, seed=6)])[hook]
    assert not torch.equal(drawn, other)


def test_scaling_scales_and_by_zero_ablates(tiny_model):
    model = tiny_model("llama")
    plain = run_trace(model, CLEAN)
    changed = run_trace(model, CLEAN, interventions=[scale("blocks.1.attn.hook_v", 2.0, heads=1, positions=[0, 4])])
    expected = plain["blocks.1.attn.hook_v"].clone()
    expected[[0, 4], 1] *= 2
    assert torch.equal(changed["blocks.1.attn.hook_v"], expected)
    assert scale("blocks.1.hook_mlp_out", 0) == ablate_mlp(1)


def test_interventions_apply_in_order(tiny_model):
    model = tiny_model("gpt2")
    vector = torch.ones(32)
    hook = "blocks.1.hook_resid_pre"
    plain = run_trace(model, CLEAN)[hook]
    first = run_trace(model, CLEAN, interventions=[steer(vector, 1), scale(hook, 2)])[hook]
    then = run_trace(model, CLEAN, interventions=[scale(hook, 2), steer(vector, 1)])[hook]
    assert torch.allclose(first, 2 * plain + 2, atol=1e-5) and torch.allclose(then, 2 * plain + 1, atol=1e-5)


@pytest.mark.parametrize(("name", "backend"), [*BACKENDS, ("qwen2-window", "bridge"), ("gemma3", "bridge")])
def test_stepping_under_interventions_equals_a_whole_run(tiny_model, name, backend):
    """Positions are absolute: a step with a KV cache runs the last one alone."""
    model = tiny_model(name, backend=backend)
    for intervention in some_of_each(model):
        tree = TokenTree(model, reads=[], interventions=[intervention])
        node = tree.extend(tree.root, CORRUPT[:2])
        for token_id in CORRUPT[2:]:
            node = tree.extend(node, token_id)
        assert gap(tree.trace(node).logits, logits_of(model, intervention)) <= 2e-5, intervention


def test_a_batch_is_changed_like_each_of_its_rows(tiny_model):
    model = tiny_model("gpt2")
    for intervention in some_of_each(model):
        both = run_model(model, torch.tensor([CLEAN, CORRUPT]), interventions=[intervention]).logits
        assert gap(both[0], logits_of(model, intervention, prompt=CLEAN)) <= 1e-5
        assert gap(both[1], logits_of(model, intervention)) <= 1e-5


def test_gradients_flow_through_interventions(tiny_model):
    model = tiny_model("gpt2")
    trace = run_trace(model, CLEAN, interventions=[scale("blocks.0.hook_mlp_out", 0.5), ablate_position(2)], gradients=True)
    gradient = torch.autograd.grad(trace.logits[-1, 7], trace.embeddings)[0][0]
    assert not gradient[2].any() and all(row.any() for i, row in enumerate(gradient) if i != 2)


# -- values ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "backend"), [("gpt2", "hooked"), ("gpt2", "bridge")])
def test_values_are_equal_when_they_mean_the_same_and_survive_json(tiny_model, name, backend):
    model = tiny_model(name, backend=backend)
    once, again = some_of_each(model), some_of_each(model)
    assert once == again and len({*once, *again}) == len(once)
    assert all(a != b for i, a in enumerate(once) for b in once[:i])
    for intervention in once:
        restored = from_dict(json.loads(json.dumps(to_dict(intervention))))
        assert restored == intervention and hash(restored) == hash(intervention) and repr(restored) == repr(intervention)
        assert gap(logits_of(model, restored), logits_of(model, intervention)) <= 1e-5


def test_ways_of_saying_the_same_positions_are_equal():
    assert ablate_mlp(0, positions=range(2, 5)) == ablate_mlp(0, positions=[4, 2, 3, 3]) == ablate_mlp(0, positions=slice(2, 5))
    assert ablate_mlp(0, positions=slice(0, None)) == ablate_mlp(0) != ablate_mlp(0, positions=slice(1, None))
    assert ablate_mlp(0, positions=3) == ablate_mlp(0, positions=[3]) != ablate_mlp(0, positions=slice(3, None))
    assert Positions.of(slice(4, None)).within(range(6, 8)) == [6, 7] and Positions.of([1, 7]).within(range(6, 8)) == [7]


def test_a_patch_equals_one_from_the_same_run_only(tiny_model):
    model = tiny_model("gpt2")
    hook = "blocks.1.hook_resid_pre"
    clean = run_trace(model, CLEAN)
    assert patch(hook, clean) == patch(hook, run_trace(model, CLEAN, reads=[hook])) == patch(hook, run_trace(model, CLEAN, reads=[]))
    assert patch(hook, clean) != patch(hook, run_trace(model, CORRUPT))
    assert patch(hook, clean) != patch(hook, run_trace(model, CLEAN, interventions=[ablate_mlp(0)]))
    assert patch(hook, clean) != patch(hook, run_trace(tiny_model("gpt2", processing="none"), CLEAN))


def test_a_patch_from_a_changed_run_is_restored_with_its_changes(tiny_model):
    model = tiny_model("gpt2")
    source = run_trace(model, CLEAN, interventions=[ablate_mlp(0)])
    made = patch("blocks.1.hook_resid_pre", source)
    restored = from_dict(json.loads(json.dumps(to_dict(made))))
    seen = run_trace(model, CORRUPT, interventions=[restored])["blocks.1.hook_resid_pre"]
    assert torch.allclose(seen, source["blocks.1.hook_resid_pre"], atol=1e-5)


def test_what_is_no_intervention_of_ours_is_not_saved(tiny_model):
    class Other:
        def hooks(self, model, positions):
            return []

    with pytest.raises(SessionError, match="cannot be saved"):
        to_dict(Other())
    source = run_trace(tiny_model("gpt2"), CLEAN, interventions=[Other()])
    with pytest.raises(SessionError, match="cannot be saved"):
        to_dict(patch("blocks.0.hook_resid_pre", source))
    for damaged in ({"kind": "Ablatoin"}, {"kind": "Ablation", "nonsense": 1}, {"kind": "Positions"}, {}):
        with pytest.raises(SessionError):
            from_dict(damaged)


# -- nothing is left behind ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "backend"), BACKENDS)
def test_no_hook_is_left_behind_also_after_an_exception(tiny_model, name, backend):
    model = tiny_model(name, backend=backend)
    plain, before = logits_of(model), hook_count(model)
    logits_of(model, *some_of_each(model))
    assert hook_count(model) == before

    class Failing:
        def hooks(self, model, positions):
            def fail(value, hook):
                raise ZeroDivisionError

            return [("blocks.1.hook_mlp_out", fail)]

    with pytest.raises(ZeroDivisionError):
        logits_of(model, ablate_mlp(0), Failing())
    with pytest.raises(AnalysisError, match="cannot steer"):
        logits_of(model, ablate_mlp(0), steer(torch.ones(5), 1))
    assert hook_count(model) == before
    assert torch.equal(logits_of(model), plain)


# -- refusals --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("intervention", "error", "words"),
    [
        (ablate("blocks.1.hook_mlp_uot"), TraceError, "Did you mean 'blocks.1.hook_mlp_out'"),
        (scale("blocks.1.attn.hook_zz", 2), TraceError, "Did you mean"),
        (ablate_mlp(3), AnalysisError, "Layer 3 .* expected 0 to 2"),
        (ablate_head(1, 4), AnalysisError, "Head 4 .* expected 0 to 3"),
        (scale("blocks.0.hook_mlp_out", 2, heads=1), AnalysisError, "no heads to choose"),
        (knock_out_attention(7, 0, 0), AnalysisError, "Layer 7"),
        (knock_out_attention(0, 9, 0), AnalysisError, "Head 9"),
        (steer(torch.ones(32), 4), AnalysisError, "Layer 4 .* expected 0 to 3"),
        (ablate("blocks.0.attn.hook_pattern", method="mean", reference="the cat"), AnalysisError, "method='zero' alone"),
        (ablate("blocks.0.hook_mlp_in"), AnalysisError, "cannot be edited"),
        (steer((["the cat"], ["the dog"]), 1, contrast_position=9), AnalysisError, "Position 9"),
    ],
)
@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_what_the_model_does_not_have_is_refused(tiny_model, backend, intervention, error, words):
    with pytest.raises(error, match=words):
        logits_of(tiny_model("gpt2", backend=backend), intervention)


def test_grouped_queries_have_fewer_heads_of_keys_and_values(tiny_model):
    with pytest.raises(AnalysisError, match=r"Head 2 .* expected 0 to 1"):
        logits_of(tiny_model("llama"), scale("blocks.0.attn.hook_v", 2, heads=2))


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_parallel_blocks_have_no_stream_between_attention_and_mlp(tiny_model, backend):
    with pytest.raises(TraceError, match="parallel"):
        logits_of(tiny_model("neox-parallel", backend=backend), scale("blocks.1.hook_resid_mid", 2))


def test_patterns_that_are_only_shown_are_refused(tiny_model):
    """The bridge's OPT computes with another tensor than its pattern hook gives back."""
    bridge, hooked = tiny_model("opt", backend="bridge"), tiny_model("opt", backend="hooked")
    intervention = knock_out_attention(1, 0, 1)
    with pytest.raises(AnalysisError, match=r"read-only.*backend='hooked'"):
        logits_of(bridge, intervention)
    assert gap(logits_of(hooked, intervention), logits_of(hooked)) > 1e-4
    assert gap(logits_of(bridge, ablate_head(1, 0)), logits_of(hooked, ablate_head(1, 0))) <= 1e-4


def test_a_patch_needs_a_run_of_its_length_and_model(tiny_model):
    model, other = tiny_model("gpt2"), tiny_model("llama")
    short = run_trace(model, CLEAN[:3])
    with pytest.raises(AnalysisError, match=r"Position 4 .* 3 tokens"):
        logits_of(model, patch("blocks.0.hook_resid_pre", short, positions=4))
    partly = run_trace(model, CORRUPT, interventions=[patch("blocks.1.hook_resid_pre", short)])["blocks.1.hook_resid_pre"]
    plain = run_trace(model, CORRUPT)["blocks.1.hook_resid_pre"]
    assert torch.equal(partly[:3], short["blocks.1.hook_resid_pre"]) and torch.equal(partly[3:], plain[3:])
    restored = from_dict(to_dict(patch("blocks.0.hook_resid_pre", short)))
    with pytest.raises(AnalysisError, match="load that one"):
        logits_of(other, restored)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ablate_mlp(-1), "from 0"),
        (lambda: ablate_mlp(0, positions=-1), "absolute"),
        (lambda: ablate_mlp(0, positions=slice(0, 9, 2)), "no step"),
        (lambda: ablate_mlp(0, method="median"), "Unknown method"),
        (lambda: ablate_mlp(0, method="mean"), "needs reference"),
        (lambda: ablate_mlp(0, reference="the cat"), "takes no reference"),
        (lambda: ablate_mlp(0, method="mean", reference=[]), "at least one"),
        (lambda: ablate_head(0, []), "at least one"),
        (lambda: ablate_head(0, None), "needs a head"),
        (lambda: ablate(), "at least one hook"),
        (lambda: patch("blocks.0.hook_resid_pre", 3), "trace or a text"),
        (lambda: steer(torch.ones(2, 3), 0), "finite vector"),
        (lambda: steer([1.0, float("nan")], 0), "finite vector"),
        (lambda: Dictionary.of(SimpleNamespace()), "encode, decode"),
    ],
)
def test_what_cannot_mean_anything_is_refused_at_once(make, words):
    with pytest.raises(LensplorerError, match=words):
        make()


def test_a_text_is_encoded_by_whichever_model_asks(tiny_model):
    reference = Reference.of("the cat")
    for name in ("gpt2", "llama"):
        model = tiny_model(name)
        assert torch.equal(reference.activation(model, "blocks.1.hook_resid_pre"), run_trace(model, "the cat")["blocks.1.hook_resid_pre"])


def test_the_fixtures_cover_both_backends(tiny_model):
    assert {model_info(tiny_model(name)).backend for name in MODELS} == {"hooked", "bridge"}
    assert set(MODELS) <= set(tiny.ARCHITECTURES)
