"""Contributions of components in all: cuts of the stream, direct parts against the decomposition, slow paths, ablation of the linear map."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lensplorer as lp
from lensplorer.errors import AnalysisError
from lensplorer.linear import RULES
from lensplorer.models import load_model
from tests import tiny
from tests.analyses.test_linear_attribution import IDS, readings
from tests.test_linear import CASES

TARGET, OTHER = 77, 40


@pytest.mark.parametrize(("name", "backend", "processing"), CASES)
def test_every_cut_carries_the_logit_and_direct_parts_are_the_decomposition(tiny_model, name, backend, processing):
    model = tiny_model(name, backend=backend, processing=processing)
    trace = lp.run_trace(model, IDS, reads=[lp.residual_decomposition])
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or 0
    for versus in (None, OTHER) if not cap else (None,):
        logit = trace.logits[-2, TARGET] - (0 if versus is None else trace.logits[-2, versus])
        options = {"versus": versus, "position": -2}
        for unit in ("layer", "head", "source", "neuron"):
            parts = lp.component_attribution(trace, TARGET, unit=unit, **options)
            assert parts.attrs["completeness"] <= 1e-5
            assert parts.attrs["value"] == pytest.approx(float(logit), rel=1e-4, abs=1e-6)
            scale = float(abs(parts.stream).max())
            np.testing.assert_allclose(parts.stream + parts.constants, float(logit), atol=2e-5 * scale)
            np.testing.assert_allclose(parts.indirect, parts.total - parts.direct, atol=1e-6)
            known = lp.residual_decomposition(trace, TARGET, unit=unit, **options)
            capped = float(logit) / known.attrs["total"] if cap else 1.0
            if unit == "layer":
                assert (parts.direct.values[:, np.arange(len(IDS)) != 8] == 0).all()  # it is read at one position
                for component in parts.component.values:
                    wanted = float(known.contribution.sel(component=component)) * capped
                    assert float(parts.direct.sel(component=component)[8]) == pytest.approx(wanted, rel=1e-3, abs=1e-4 * scale)
            else:
                found = parts.direct if unit == "source" else parts.direct.sel(position=8)
                np.testing.assert_allclose(found, known.contribution * capped, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "neox-parallel", "bloom"])
def test_sources_sum_to_heads_and_heads_and_neurons_to_their_block(tiny_model, name):
    trace = lp.run_trace(tiny_model(name, processing="none"), IDS)
    layers, heads, sources = (lp.component_attribution(trace, TARGET, unit=unit) for unit in ("layer", "head", "source"))
    scale = float(abs(layers.total).max())
    for kind in ("total", "direct"):
        np.testing.assert_allclose(sources[kind].sum("source"), heads[kind].sum("position"), atol=1e-4 * scale)
    if getattr(trace.model.blocks[0].attn, "b_O", None) is None and name != "gemma2":
        for block in range(3):
            np.testing.assert_allclose(heads.total.sel(layer=block).sum("head"), layers.total.sel(component=f"attn {block}"), atol=1e-4 * scale)
            neurons = lp.component_attribution(trace, TARGET, unit="neuron", layer=block)
            np.testing.assert_allclose(neurons.total.sum("neuron"), layers.total.sel(component=f"mlp {block}"), atol=1e-4 * scale)


@pytest.mark.parametrize("rule", RULES)
def test_embeddings_are_the_attribution_of_tokens(tiny_model, rule):
    trace = lp.run_trace(tiny_model("llama"), IDS, reads=[])
    parts = lp.component_attribution(trace, TARGET, rule=rule)
    np.testing.assert_allclose(parts.total.sel(component="embed"), lp.attribute(trace, TARGET, method="linear", rule=rule).attribution, rtol=1e-5)


def test_totals_are_direct_parts_and_what_each_later_block_makes_of_them(tmp_path):
    """Two layers, every path by hand: an output goes to the logit straight, through the second block's attention, its MLP, and both."""
    model = load_model(str(tiny.save("llama", tmp_path, num_hidden_layers=2)), dtype="float64", backend="hooked")
    trace = lp.run_trace(model, IDS)
    block = model.blocks[1]
    pattern = trace["blocks.1.attn.hook_pattern"]
    ov = torch.einsum("hqs,hde,hef->qsdf", pattern, block.attn.W_V, block.attn.W_O) / trace["blocks.1.ln1.hook_scale"][None, :, :, None]
    gate = torch.nn.functional.silu(trace["blocks.1.mlp.hook_pre"])  # [position, neuron]
    mlp = torch.einsum("dm,pm,mf->pdf", block.mlp.W_in, gate, block.mlp.W_out) / trace["blocks.1.ln2.hook_scale"][:, :, None]
    g = model.W_U[:, TARGET] / trace["ln_final.hook_scale"][-1]
    for name, hook, through_attention in (("mlp 0", "blocks.0.hook_mlp_out", True), ("attn 1", "blocks.1.hook_attn_out", False)):
        written = trace[hook]
        middle = written[-1] + (torch.einsum("sd,sdf->f", written, ov[-1]) if through_attention else 0)
        wanted = float((middle + middle @ mlp[-1]) @ g)
        parts = lp.component_attribution(trace, TARGET).sel(component=name)
        assert float(parts.total.sum()) == pytest.approx(wanted, rel=1e-5)
        assert float(parts.direct.sum()) == pytest.approx(float(written[-1] @ g), rel=1e-5)


@pytest.mark.parametrize("kind", ["head", "heads", "neuron", "probe"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "neox-parallel"])
def test_parts_of_another_target(tiny_model, name, kind):
    model = tiny_model(name)
    reading = readings(model)[kind]
    parts = lp.component_attribution(lp.run_trace(model, IDS, reads=[]), reading)
    block = int(reading.name.split(".")[1])
    below = block + 1 if kind == "probe" else block
    assert parts.attrs["completeness"] <= 1e-5
    assert np.isfinite(parts.stream[: below + 1]).all() and np.isnan(parts.stream[below + 1 :]).all()
    np.testing.assert_allclose((parts.stream + parts.constants)[: below + 1], parts.attrs["value"], atol=2e-5 * float(abs(parts.stream).max()))
    for component in parts.component.values:
        after = " " in component and int(component.split()[1]) > block
        assert bool((parts.total.sel(component=component) == 0).all()) or not after
    assert float(abs(parts.total.sel(component="mlp 0")).max()) > 0


def test_the_direct_part_of_a_neuron_is_read_behind_its_attention(tiny_model):
    """An MLP reads the stream in the middle of its block: attention of the block writes to it straight, earlier ones past it."""
    model = tiny_model("gpt2", processing="default")
    trace = lp.run_trace(model, IDS)
    reading = readings(model)["neuron"]
    parts = lp.component_attribution(trace, reading)
    ratio = trace["blocks.1.mlp.hook_post"][-1, 5] / trace["blocks.1.mlp.hook_pre"][-1, 5]
    column = model.blocks[1].mlp.W_in[:, 5]
    reader = (column - column.mean()) * ratio / trace["blocks.1.ln2.hook_scale"][-1]
    for name, hook in (("mlp 0", "blocks.0.hook_mlp_out"), ("attn 1", "blocks.1.hook_attn_out"), ("embed", "hook_embed")):
        assert float(parts.direct.sel(component=name)[-1]) == pytest.approx(float(trace[hook][-1] @ reader), rel=1e-3, abs=1e-5)
    assert float(parts.indirect.sel(component="attn 1").sum()) == 0


def test_interventions(tiny_model):
    trace = lp.run_trace(tiny_model("gpt2"), IDS, reads=[], interventions=[lp.ablate_head(1, 2), lp.steer(torch.ones(32), 2, 0.5)])
    for unit in ("layer", "head", "source", "neuron"):
        parts = lp.component_attribution(trace, TARGET, unit=unit)
        assert parts.attrs["completeness"] <= 1e-5
        if unit in ("head", "source"):
            assert (parts.total.sel(layer=1, head=2) == 0).all() and (parts.direct.sel(layer=1, head=2) == 0).all()


def test_a_planted_head_carries_the_answer_and_mlps_before_it_do_so_indirectly(storyworld):
    from lensplorer.storyworld import cases, ground_truth

    (planted,) = (finding for finding in ground_truth.findings("indirect_object") if finding.name == "direct")
    total = direct = 0
    for case in cases.cases("indirect_object", count=12, seed=11):
        parts = lp.component_attribution(lp.run_trace(storyworld, case.clean, reads=[]), case.right, versus=case.wrong, unit="head")
        total, direct = total + parts.total.sum("position").values, direct + parts.direct.sum("position").values
    assert np.unravel_index(int(np.argmax(direct)), direct.shape) == (planted.layer, planted.head)
    assert np.abs(total[:-1] - direct[:-1]).max() > 0 and np.allclose(total[-1], direct[-1] + (total - direct)[-1])


def test_refusals(tiny_model):
    model = tiny_model("gpt2")
    trace = lp.run_trace(model, IDS, reads=[])
    with pytest.raises(AnalysisError, match="Unknown unit 'heads'"):
        lp.component_attribution(trace, TARGET, unit="heads")
    with pytest.raises(AnalysisError, match="expected 0 to 2"):
        lp.component_attribution(trace, TARGET, layer=3)
    with pytest.raises(AnalysisError, match="Unknown rule"):
        lp.component_attribution(trace, TARGET, rule="x")


class Twice(torch.nn.Module):
    """Adds twice what the hook shows: still complete, and its parts wrong."""

    def __init__(self, point):
        super().__init__()
        self.point = point

    def forward(self, value):
        return 2 * self.point(value)


def test_outputs_that_are_not_what_is_added_are_refused(tiny_model, monkeypatch):
    model = tiny_model("gpt2")
    monkeypatch.setitem(model.blocks[1]._modules, "hook_mlp_out", Twice(model.blocks[1].hook_mlp_out))
    with pytest.raises(AnalysisError, match="misses the residual stream"):
        lp.component_attribution(lp.run_trace(model, IDS, reads=[]), TARGET)
