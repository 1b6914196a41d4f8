"""Norms, similarities and the exact decomposition: parts sum to the logit on every architecture, and slow loops agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lensplorer.analyses.residual import hidden_similarity, residual_decomposition, residual_norms, residual_rows, token_similarity
from lensplorer.errors import AnalysisError, TokenError, TraceError
from lensplorer.trace import make_trace, run_trace
from tests.tiny import ARCHITECTURES

TEXT = "the cat sat on the mat"
TARGET, OTHER = 77, 40
ANALYSES = [residual_decomposition]


def changed(trace, interventions=(), **activations):
    cache = {**trace.cache.cache_dict, **{name.replace("__", "."): value for name, value in activations.items()}}
    return make_trace(trace.model, trace.tokens, trace.logits, cache, interventions)


@pytest.fixture(scope="module")
def trace(tiny_model):
    return run_trace(tiny_model("gpt2", processing="none"), TEXT, reads=ANALYSES)


def total_of(parts):
    return float(parts.contribution.sum()) + float(parts.get("rest", 0))


@pytest.mark.parametrize("processing", ["default", "none"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parts_sum_to_the_logit(tiny_model, name, processing):
    model = tiny_model(name, processing=processing)
    trace = run_trace(model, TEXT, reads=ANALYSES)
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or -1
    for position in (-1, 2):
        logit = trace.logits[position].double()
        before_cap = cap * torch.atanh(logit / cap) if cap > 0 else logit
        for versus, wanted in ((None, before_cap[TARGET]), (OTHER, before_cap[TARGET] - before_cap[OTHER])):
            layers = residual_decomposition(trace, TARGET, versus=versus, position=position)
            scale = max(abs(float(wanted)), float(abs(layers.contribution).max()))
            for unit in ("layer", "head", "neuron", "source"):
                parts = residual_decomposition(trace, TARGET, versus=versus, unit=unit, position=position)
                assert abs(total_of(parts) - float(wanted)) / scale <= 1e-4, (unit, versus)
                assert parts.attrs["completeness"] <= 1e-4
                assert parts.attrs["total"] == pytest.approx(total_of(parts), abs=1e-4 * scale)


@pytest.mark.parametrize("processing", ["default", "none"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sources_sum_to_heads_and_heads_to_layers(tiny_model, name, processing):
    trace = run_trace(tiny_model(name, processing=processing), TEXT, reads=ANALYSES)
    by_layer, by_head, by_source = (residual_decomposition(trace, TARGET, unit=unit) for unit in ("layer", "head", "source"))
    np.testing.assert_allclose(by_source.contribution.sum("source"), by_head.contribution, atol=1e-4 * float(abs(by_head.contribution).max()))
    constants = {}
    for block in range(trace.n_layers):
        constants[block] = float(by_layer.contribution.sel(component=f"attn {block}")) - float(by_head.contribution.sel(layer=block).sum())
    if getattr(trace.model.blocks[0].attn, "b_O", None) is None:  # without an output bias, a layer is its heads and nothing else
        assert max(map(abs, constants.values())) <= 1e-4 * float(abs(by_layer.contribution).max())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_components_against_the_norm_written_out(tiny_model, name):
    """Each component through the final norm by hand: centred where the mean is, divided by the cached scale, times gain and column."""
    trace = run_trace(tiny_model(name, processing="none"), TEXT, reads=ANALYSES)
    model, final = trace.model, residual_rows(trace)[-1][-1].double()
    parts = residual_decomposition(trace, TARGET)
    is_layer_norm = "LN" in model.cfg.normalization_type
    scale = trace["ln_final.hook_scale"][-1].double()
    column = model.W_U[:, TARGET].double()

    def through(component):
        component = component.double()
        return float((component - component.mean() if is_layer_norm else component) / scale @ gain_column)

    # The gain, measured from the module itself: the norm of a residual, over that residual centred and scaled.
    centred = final - final.mean() if is_layer_norm else final
    at_zero = model.ln_final.b.detach().double() if is_layer_norm else torch.zeros_like(final)
    gain = (model.ln_final(final.float()[None, None])[0, 0].double() - at_zero) / (centred / scale)
    gain_column = gain * column
    for block in range(trace.n_layers):
        for part in ("attn", "mlp"):
            wanted = through(trace[f"blocks.{block}.hook_{part}_out"][-1])
            assert float(parts.contribution.sel(component=f"{part} {block}")) == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    assert float(parts.contribution.sel(component="embed")) == pytest.approx(through(trace["hook_embed"][-1]), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "neox-parallel"])
def test_heads_and_sources_against_a_slow_loop(tiny_model, name):
    """pattern[h, q, s] · v[h, s] · W_O[h] · u, one head and one source at a time; grouped heads take their group's value."""
    trace = run_trace(tiny_model(name, processing="default"), TEXT, reads=ANALYSES)  # folded: the gain is one
    model, q = trace.model, 4
    found = residual_decomposition(trace, TARGET, unit="source", position=q).contribution
    u = model.W_U[:, TARGET].double()
    if "LN" in model.cfg.normalization_type:
        u = u - u.mean()
    u = u / trace["ln_final.hook_scale"][q].double()
    for block in range(trace.n_layers):
        pattern, v = trace[f"blocks.{block}.attn.hook_pattern"].double(), trace[f"blocks.{block}.attn.hook_v"].double()
        group = pattern.shape[0] // v.shape[1]
        for head in range(pattern.shape[0]):
            for source in range(len(trace)):
                written = pattern[head, q, source] * (v[source, head // group] @ model.W_O[block, head].double())
                assert float(found[block, head, source]) == pytest.approx(float(written @ u), rel=1e-3, abs=1e-5)
    assert (found.values[:, :, q + 1 :] == 0).all()  # causal


def test_neurons_against_a_slow_loop(tiny_model):
    trace = run_trace(tiny_model("gpt2", processing="default"), TEXT, reads=ANALYSES)
    found = residual_decomposition(trace, TARGET, unit="neuron", layer=1)
    u = trace.model.W_U[:, TARGET].double()
    u = (u - u.mean()) / trace["ln_final.hook_scale"][-1].double()
    for neuron, activation in enumerate(trace["blocks.1.mlp.hook_post"][-1].double()):
        wanted = float(activation * (trace.model.W_out[1, neuron].double() @ u))
        assert float(found.contribution[neuron]) == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    assert found.attrs["layer"] == 1


@pytest.mark.parametrize("name", ["gpt2", "bloom", "neox-parallel", "phi3"])
def test_the_bridge_gives_what_hooked_transformer_gives(tiny_model, name):
    for unit in ("layer", "head", "source", "neuron"):
        both = [
            residual_decomposition(
                run_trace(tiny_model(name, backend=backend, processing="none"), TEXT, reads=ANALYSES), TARGET, versus=OTHER, unit=unit
            )
            for backend in ("bridge", "hooked")
        ]
        np.testing.assert_allclose(both[0].contribution, both[1].contribution, atol=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "olmo2"])
def test_bfloat16_stays_within_its_floor(tiny_model, name):
    trace = run_trace(tiny_model(name, dtype="bfloat16"), TEXT, reads=ANALYSES)
    for unit in ("layer", "head", "neuron", "source"):
        assert residual_decomposition(trace, TARGET, unit=unit).attrs["completeness"] <= 3e-2


def test_versus_is_a_difference_and_antisymmetric(trace):
    one, other, both = (residual_decomposition(trace, *args) for args in ((TARGET,), (OTHER,), (TARGET,)))
    both = residual_decomposition(trace, TARGET, versus=OTHER)
    np.testing.assert_allclose(both.contribution, one.contribution - other.contribution, atol=1e-5)
    np.testing.assert_allclose(both.contribution, -residual_decomposition(trace, OTHER, versus=TARGET).contribution, atol=1e-6)
    assert both.attrs["versus"] and both.attrs["target"] != both.attrs["versus"]


def test_a_direction_is_a_column_of_the_unembedding(trace):
    by_token = residual_decomposition(trace, TARGET)
    by_direction = residual_decomposition(trace, trace.model.W_U[:, TARGET])
    np.testing.assert_allclose(by_direction.contribution, by_token.contribution, atol=1e-5)
    assert by_direction.attrs["target"] == "direction"
    assert by_direction.attrs["logit"] == pytest.approx(by_token.attrs["logit"], abs=1e-4)


def test_components_have_plain_names(trace, tiny_model):
    names = residual_decomposition(trace, TARGET).component.values.tolist()
    assert names == ["embed", "pos_embed", "attn 0", "mlp 0", "attn 1", "mlp 1", "attn 2", "mlp 2", "bias"]
    rotary = run_trace(tiny_model("llama"), TEXT, reads=ANALYSES)
    assert "pos_embed" not in residual_decomposition(rotary, TARGET).component.values


def test_the_soft_cap_is_applied_to_the_total_alone(tiny_model):
    found = residual_decomposition(run_trace(tiny_model("gemma2"), TEXT, reads=ANALYSES), TARGET)
    assert found.attrs["soft_cap"] == 30
    assert 30 * np.tanh(found.attrs["total"] / 30) == pytest.approx(found.attrs["logit"], rel=1e-4)
    assert abs(found.attrs["total"]) > abs(found.attrs["logit"])


# -- refusals ----------------------------------------------------------------------------------------------------------------------


def test_hooks_that_do_not_add_up_are_refused_with_the_gap(trace):
    wrong = changed(trace, blocks__1__hook_attn_out=trace["blocks.1.hook_attn_out"] * 1.01)
    with pytest.raises(AnalysisError, match=r"Block 1 of this GPT2LMHeadModel does not add up: .*differs from the one after it by \d.*refused"):
        residual_decomposition(wrong, TARGET)


def test_heads_that_do_not_make_their_block_are_refused(trace):
    wrong = changed(trace, blocks__1__attn__hook_z=trace["blocks.1.attn.hook_z"] * 1.1)
    with pytest.raises(AnalysisError, match="heads sum to something else than its attn output"):
        residual_decomposition(wrong, TARGET, unit="head")
    assert residual_decomposition(wrong, TARGET).attrs["completeness"] <= 1e-4  # layers do not need them


def test_patterns_that_do_not_make_their_heads_are_refused(trace):
    wrong = changed(trace, blocks__1__attn__hook_pattern=trace["blocks.1.attn.hook_pattern"].roll(1, -1))
    with pytest.raises(AnalysisError, match="which token each head read cannot be told"):
        residual_decomposition(wrong, TARGET, unit="source")


def test_neurons_that_do_not_make_their_block_are_refused(trace):
    wrong = changed(trace, blocks__2__mlp__hook_post=trace["blocks.2.mlp.hook_post"] * 1.1)
    with pytest.raises(AnalysisError, match="neurons sum to something else than its mlp output"):
        residual_decomposition(wrong, TARGET, unit="neuron", layer=2)


def test_a_logit_that_is_not_the_sum_is_refused(trace):
    scaled = make_trace(trace.model, trace.tokens, trace.logits * 0.5, trace.cache.cache_dict)
    with pytest.raises(AnalysisError, match="but the model's is"):
        residual_decomposition(scaled, TARGET)


def test_bad_input_is_refused_with_the_alternatives(trace):
    with pytest.raises(AnalysisError, match=r"Unknown unit 'layers'.*'layer'"):
        residual_decomposition(trace, TARGET, unit="layers")
    with pytest.raises(AnalysisError, match="Block 3 does not exist: expected 0 to 2"):
        residual_decomposition(trace, TARGET, unit="neuron", layer=3)
    with pytest.raises(TokenError, match="exactly one is expected"):
        residual_decomposition(trace, "the cat")
    with pytest.raises(TokenError, match="exactly one is expected"):
        residual_decomposition(trace, "")
    with pytest.raises(TraceError, match="outside the prompt"):
        residual_decomposition(trace, TARGET, position=7)
    with pytest.raises(AnalysisError, match=r"shape \[d_model\] = \[32\], got \[31\]"):
        residual_decomposition(trace, torch.zeros(31))
    with pytest.raises(AnalysisError, match="target is a direction"):
        residual_decomposition(trace, torch.zeros(32), versus=3)
    with pytest.raises(TraceError, match="did not read 'hook_pos_embed'"):
        residual_decomposition(
            make_trace(
                trace.model, trace.tokens, trace.logits, {name: value for name, value in trace.cache.cache_dict.items() if name != "hook_pos_embed"}
            ),
            TARGET,
        )


@pytest.mark.parametrize(
    "analysis", [residual_norms, hidden_similarity, token_similarity, lambda trace: residual_decomposition(trace, TARGET, position=3)]
)
def test_activations_that_are_not_finite_are_reported_with_the_first_layer(trace, analysis):
    broken = {f"blocks__{layer}__hook_resid_post": trace[f"blocks.{layer}.hook_resid_post"].clone() for layer in (1, 2)}
    for value in broken.values():
        value[3, 5] = torch.nan
    with pytest.raises(AnalysisError, match=r"NaN activations first appear at blocks\.1\.hook_resid_post \(block 1 of 0 to 2\), position 3"):
        analysis(changed(trace, **broken))


# -- interventions -----------------------------------------------------------------------------------------------------------------


class Add:
    """Adds a constant to one activation."""

    def __init__(self, name):
        self.name = name

    def hooks(self, model, positions):
        return [(self.name, lambda value, hook: value + 0.7)]


@pytest.mark.parametrize("name", ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"])
def test_what_steering_adds_to_the_stream_is_a_component(tiny_model, name):
    model = tiny_model("llama")
    steered = run_trace(model, TEXT, reads=ANALYSES, interventions=[Add(name)])
    found = residual_decomposition(steered, TARGET)
    u = model.W_U[:, TARGET] / steered["ln_final.hook_scale"][-1]
    assert float(found.contribution.sel(component="interventions")) == pytest.approx(0.7 * float(u.sum()), rel=1e-3)
    for unit in ("layer", "head", "source"):
        assert residual_decomposition(steered, TARGET, unit=unit).attrs["completeness"] <= 1e-4


@pytest.mark.parametrize("name", ["blocks.1.attn.hook_z", "blocks.1.hook_attn_out", "blocks.1.attn.hook_v", "blocks.1.hook_mlp_out", "hook_embed"])
def test_edits_inside_blocks_keep_the_sum(tiny_model, name):
    edited = run_trace(tiny_model("gpt2"), TEXT, reads=ANALYSES, interventions=[Add(name)])
    for unit in ("layer", "head", "neuron", "source"):
        assert residual_decomposition(edited, TARGET, unit=unit, layer=1).attrs["completeness"] <= 1e-4
    assert "interventions" not in residual_decomposition(edited, TARGET).component.values


def test_an_overwritten_head_read_no_token(tiny_model):
    edited = run_trace(tiny_model("gpt2"), TEXT, reads=ANALYSES, interventions=[Add("blocks.1.attn.hook_z")])
    by_source = residual_decomposition(edited, TARGET, unit="source").contribution
    assert float(abs(by_source.sel(layer=1)).max()) == 0 and float(abs(by_source.sel(layer=0)).max()) > 0


# -- norms and similarities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "neox-parallel", "gemma2"])
def test_norms_and_similarities_are_their_definitions(tiny_model, name):
    trace = run_trace(tiny_model(name), TEXT, reads=[residual_norms])
    rows = [row.double() for row in residual_rows(trace)]
    norms, hidden, token = residual_norms(trace).norm, hidden_similarity(trace).cosine, token_similarity(trace, position=2).cosine
    assert norms.shape == hidden.shape == (trace.n_layers + 1, len(trace))
    for i in range(len(trace)):
        for layer, row in enumerate(rows):
            assert float(norms[layer, i]) == pytest.approx(float(row[i].square().sum().sqrt()), rel=1e-5)
            wanted = float(row[i] @ rows[-1][i] / (row[i].norm() * rows[-1][i].norm()))
            assert float(hidden[layer, i]) == pytest.approx(wanted, abs=1e-5)
        wanted = float(rows[-1][i] @ rows[-1][2] / (rows[-1][i].norm() * rows[-1][2].norm()))
        assert float(token[i]) == pytest.approx(wanted, abs=1e-5)


def test_layer_zero_is_the_embedding_with_positions(trace):
    embedded = (trace["hook_embed"] + trace["hook_pos_embed"]).norm(dim=-1)
    np.testing.assert_allclose(residual_norms(trace).norm[0], embedded, rtol=1e-5)


def test_norms_of_half_precision_do_not_overflow(trace):
    huge = changed(trace, **{f"blocks__{layer}__hook_resid_post": torch.full((len(trace), 32), 3e4).half() for layer in range(3)})
    np.testing.assert_allclose(residual_norms(huge).norm[1:], 3e4 * np.sqrt(32), rtol=1e-3)
