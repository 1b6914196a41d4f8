"""Attribution: identities, slow references, finite differences, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad_vec

from lensplorer.analyses.attribution import CAPTUM_METHODS, METHODS, UNSIGNED, attribute, attribution_matrix
from lensplorer.analyses.question import baseline_embedding
from lensplorer.errors import AnalysisError, TokenError, TraceError
from lensplorer.running import run_model
from lensplorer.trace import run_trace
from tests import tiny

IDS = [5, 9, 30, 31, 200, 17, 44, 60, 61, 62]
EVERY = sorted(tiny.ARCHITECTURES)


class Halve:
    """Halves what block 1 adds through attention."""

    def __repr__(self):
        return "Halve()"

    def hooks(self, model, positions):
        return [("blocks.1.hook_attn_out", lambda value, hook: value / 2)]


@pytest.fixture(scope="module")
def traced(tiny_model):
    made = {}

    def trace(name, **options):
        key = (name, *sorted(options.items()))
        if key not in made:
            made[key] = run_trace(tiny_model(name, **options), IDS, reads=[], gradients=True)
        return made[key]

    return trace


def value_at(model, embeddings, target, position, objective="logit", interventions=()):
    """F with the embeddings replaced, by the plainest route."""
    run = run_model(model, torch.tensor([IDS]), interventions=interventions, hooks=[("hook_embed", lambda value, hook: embeddings.to(value))])
    z = run.logits[0, position].double()
    return float({"logit": z, "log_prob": z.log_softmax(-1), "prob": z.softmax(-1)}[objective][target])


@pytest.mark.parametrize("processing", ["default", "none"])
@pytest.mark.parametrize("name", EVERY)
def test_integrated_gradients_are_complete(traced, name, processing):
    trace = traced(name, processing=processing)
    result = attribute(trace, 3, position=-2)
    start = baseline_embedding(trace, result.attrs["baseline"]).expand(1, len(IDS), -1)
    value, start_value = float(trace.logits[-2, 3].detach()), value_at(trace.model, start, 3, -2)
    assert result.attrs["completeness"] <= 0.01
    assert abs(float(result.attribution.sum()) - (value - start_value)) <= 0.011 * abs(value - start_value)
    assert result.attrs["value"] == pytest.approx(value, abs=1e-4)
    assert float(result.attribution[-1]) == 0  # the token after the position


@pytest.mark.parametrize("name", ["gpt2", "llama-biases"])
def test_integrated_gradients_against_a_slow_loop(traced, name):
    """A midpoint sum of a thousand separate gradients."""
    trace = traced(name)
    embeddings = trace.embeddings.detach()
    total = torch.zeros_like(embeddings)
    start = baseline_embedding(trace, "mean")
    for piece in ((torch.arange(400) + 0.5) / 400).split(50):
        points = start + piece[:, None, None] * (embeddings - start)
        hooks = [("hook_embed", lambda value, hook, points=points: points)]
        run = run_model(trace.model, torch.tensor([IDS]).expand(50, -1), hooks=hooks, gradients=True)
        total += torch.autograd.grad(run.logits[:, -1, 3].sum(), run.embeddings)[0].sum(0) / 400
    expected = ((embeddings - start) * total).sum(-1)[0]
    found = attribute(trace, 3, baseline="mean", tolerance=1e-3).attribution
    np.testing.assert_allclose(found, expected, atol=2e-2 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["gpt2", "llama-biases", "gemma2", "bloom"])
def test_integrated_gradients_against_an_adaptive_quadrature(traced, name):
    """Every score, not their sum alone, against scipy's, which takes the gradients one by one."""
    trace = traced(name)
    result = attribute(trace, 3)
    embeddings = trace.embeddings.detach()
    change = embeddings - baseline_embedding(trace, result.attrs["baseline"])

    def slope(share):
        hooks = [("hook_embed", lambda value, hook: embeddings - (1 - share) * change)]
        run = run_model(trace.model, torch.tensor([IDS]), hooks=hooks, gradients=True)
        return (torch.autograd.grad(run.logits[0, -1, 3], run.embeddings)[0] * change).sum(-1)[0].double().numpy()

    expected, error = quad_vec(slope, 0, 1, epsrel=1e-4, limit=300)
    assert error <= 1e-3 * abs(expected).max()
    assert "note" not in result.attrs and result.attrs["error"] <= 0.01
    np.testing.assert_allclose(result.attribution, expected, atol=4e-3 * abs(expected).max())


@pytest.mark.parametrize(("bound", "steps"), [({"max_steps": 20}, 17), ({"max_seconds": 1e-9}, 9)])
def test_integrated_gradients_that_are_stopped_say_so(traced, bound, steps):
    result = attribute(traced("gpt2"), 3, tolerance=1e-9, **bound)
    assert result.attrs["steps"] == steps
    assert result.attrs["error"] > 1e-9
    (option,) = bound
    assert "have not converged" in result.attrs["note"] and f"({option})" in result.attrs["note"]
    matrix = attribution_matrix(traced("gpt2"), -2, tolerance=1e-9, **bound)
    assert "have not converged" in matrix.attrs["note"] and matrix.error.shape == (2,)


def test_integrated_gradients_need_no_more_than_they_are_allowed(traced):
    """A rougher tolerance takes fewer gradients, and what is found is within it."""
    trace = traced("llama-biases")
    fine, rough = (attribute(trace, 3, tolerance=tolerance) for tolerance in (1e-4, 0.05))
    assert rough.attrs["steps"] < fine.attrs["steps"]
    np.testing.assert_allclose(rough.attribution, fine.attribution, atol=0.05 * float(abs(fine.attribution).max()))


# The norms of OPT and Gemma run in float32 whatever the model's dtype: their F has noise of 1e-7, which a step must outgrow.
@pytest.mark.parametrize(("name", "step", "tolerance"), [("gpt2", 1e-5, 1e-5), ("gemma2", 1e-3, 5e-3), ("opt", 1e-3, 1e-3)])
def test_gradients_are_finite_differences(traced, name, step, tolerance):
    trace = traced(name, dtype="float64")
    embeddings = trace.embeddings.detach()
    found = attribute(trace, 3, versus=4, method="input_x_gradient", objective="log_prob")
    for source in (0, 4, 9):
        nudge = torch.zeros_like(embeddings)
        nudge[0, source] = step * embeddings[0, source]

        def difference(shift):
            moved = embeddings + shift
            return value_at(trace.model, moved, 3, -1, "log_prob") - value_at(trace.model, moved, 4, -1, "log_prob")

        slope = (difference(nudge) - difference(-nudge)) / (2 * step)
        assert float(found.attribution[source]) == pytest.approx(slope, rel=tolerance, abs=tolerance)


def test_saliency_and_norms_are_of_the_gradient(traced):
    trace = traced("gpt2")
    gradient = torch.autograd.grad(trace.logits[-1, 3], trace.embeddings, retain_graph=True)[0][0]
    product = gradient * trace.embeddings.detach()[0]
    np.testing.assert_allclose(attribute(trace, 3, method="saliency").attribution, gradient.norm(dim=-1), rtol=1e-5)
    np.testing.assert_allclose(attribute(trace, 3, method="input_x_gradient_norm").attribution, product.norm(dim=-1), rtol=1e-5)
    np.testing.assert_allclose(attribute(trace, 3, method="input_x_gradient").attribution, product.sum(-1), rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in trace.model.parameters())


@pytest.mark.parametrize("objective", ["logit", "log_prob", "prob"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_occlusion_against_a_slow_loop(traced, name, objective):
    trace = traced(name)
    embeddings = trace.embeddings.detach()
    start = baseline_embedding(trace, "pad")
    expected = []
    for source in range(8):
        without = embeddings.clone()
        without[0, source] = start
        expected.append(value_at(trace.model, embeddings, 3, 7, objective) - value_at(trace.model, without, 3, 7, objective))
    found = attribute(trace, 3, method="occlusion", position=7, objective=objective, baseline="pad").attribution
    np.testing.assert_allclose(found, [*expected, 0, 0], atol=1e-5)


@pytest.mark.parametrize("name", ["gemma", "bloom", "gpt2"])
def test_baselines_are_what_the_first_block_would_see(traced, name):
    trace = traced(name)
    model = trace.model
    with torch.no_grad():
        vocabulary = run_model(model, torch.arange(model.cfg.d_vocab)[:, None], reads=["hook_embed"]).activations["hook_embed"][:, 0]
    torch.testing.assert_close(baseline_embedding(trace, "mean"), vocabulary.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(baseline_embedding(trace, "pad"), vocabulary[1])


@pytest.mark.parametrize("method", ["saliency", "input_x_gradient", "integrated_gradients", "occlusion", "attention", "rollout", "kernel_shap"])
def test_matrix_rows_are_attributions(traced, method):
    trace = traced("gpt2")
    options = {"max_steps": 32, "tolerance": 0.9} if method == "integrated_gradients" else {}
    matrix = attribution_matrix(trace, -3, method=method, **options)
    assert matrix.attribution.dims == ("generated", "source")
    assert matrix.generated.values.tolist() == [7, 8, 9]
    for t in (7, 8, 9):
        row = attribute(trace, IDS[t], method=method, position=t - 1, **options).attribution
        np.testing.assert_allclose(matrix.attribution.sel(generated=t), row, atol=2e-4 * float(abs(row).max()) + 1e-6)
        assert (matrix.attribution.sel(generated=t)[t:] == 0).all()


def test_interventions_hold_in_every_further_run(tiny_model):
    model = tiny_model("gpt2")
    trace = run_trace(model, IDS, reads=[], interventions=[Halve()])
    result = attribute(trace, 3)
    assert result.attrs["completeness"] <= 0.01
    assert float(result.attribution.sum()) == pytest.approx(
        float(trace.logits[-1, 3]) - value_at(model, torch.zeros(1, len(IDS), 32), 3, -1, interventions=[Halve()]), rel=0.02, abs=1e-4
    )


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("deeplift", "lime")])
def test_every_method_in_bfloat16(tiny_model, method):
    half = run_trace(tiny_model("gpt2", dtype="bfloat16"), IDS, reads=[], gradients=True)
    options = {"max_steps": 32} if method == "integrated_gradients" else {"n_samples": 8} if method in CAPTUM_METHODS else {}
    result = attribute(half, 3, method=method, **options)
    assert result.attribution.dtype == np.float32
    assert np.isfinite(result.attribution).all()
    assert result.attrs["signed"] == int(method not in UNSIGNED)
    if method == "input_x_gradient":
        full = attribute(run_trace(tiny_model("gpt2"), IDS, reads=[], gradients=True), 3, method=method).attribution
        np.testing.assert_allclose(result.attribution, full, atol=0.1 * float(abs(full).max()))


def test_refusals(traced, tiny_model):
    trace = traced("gpt2")
    with pytest.raises(AnalysisError, match=r"Unknown method 'integrated_gradient'\. Did you mean 'integrated_gradients'"):
        attribute(trace, 3, method="integrated_gradient")
    with pytest.raises(AnalysisError, match="Unknown objective 'loss'"):
        attribute(trace, 3, objective="loss")
    with pytest.raises(AnalysisError, match="Unknown baseline 'noise'"):
        attribute(trace, 3, baseline="noise")
    with pytest.raises(AnalysisError, match="max_seconds must be above 0, or None"):
        attribute(trace, 3, max_seconds=0)
    with pytest.raises(AnalysisError, match="max_steps must be at least 9, got 8"):
        attribute(trace, 3, max_steps=8)
    with pytest.raises(TokenError, match="exactly one is expected"):
        attribute(trace, "the cat sat")
    with pytest.raises(TraceError, match="outside the prompt of 10 tokens"):
        attribute(trace, 3, position=10)
    with pytest.raises(AnalysisError, match="first token, which the model does not predict"):
        attribution_matrix(trace, 0)
    plain = run_trace(tiny_model("gpt2"), IDS, reads=[])
    with pytest.raises(TraceError, match=r"gradients=True.*'integrated_gradients'"):
        attribute(plain, 3, method="saliency")
    with pytest.raises(AnalysisError, match="'integrated_gradients'"):
        attribute(trace, 3, method="deeplift")
