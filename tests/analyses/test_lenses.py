"""The logit lens and contrast: the last row is the model on every architecture, and a slow loop agrees with the stream."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from lensplorer import products
from lensplorer.analyses import lenses as module
from lensplorer.analyses import unembedding as unembedding_module
from lensplorer.analyses.lenses import contrast, logit_lens
from lensplorer.analyses.residual import residual_rows
from lensplorer.analyses.unembedding import Unembedding, unembed
from lensplorer.errors import AnalysisError, TokenError, TraceError
from lensplorer.models import load_model, model_info
from lensplorer.norms import read_norm
from lensplorer.trace import make_trace, run_trace
from tests.tiny import ARCHITECTURES

TEXT = "the cat sat on the mat"
BRIDGED = ("gpt2", "bloom", "neox-parallel", "phi3")  # architectures that HookedTransformer would take


def every_model(tiny_model):
    return lambda name, processing: tiny_model(name, processing=processing)


def changed(trace, logits=None, **activations):
    cache = {**trace.cache.cache_dict, **{name.replace("__", "."): value for name, value in activations.items()}}
    return make_trace(trace.model, trace.tokens, trace.logits if logits is None else logits, cache)


@pytest.fixture(scope="module")
def trace(tiny_model):
    return run_trace(tiny_model("gpt2", processing="none"), TEXT, reads=[logit_lens])


def reference(trace, layer):
    """Log-probs of one layer by the model's own modules. [position, d_vocab], float64"""
    model = trace.model
    z = model.unembed(model.ln_final(residual_rows(trace)[layer][None]))[0].double()
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or -1
    return cap * torch.tanh(z / cap) if cap > 0 else z


@pytest.mark.parametrize("processing", ["default", "none"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_last_row_is_the_model(tiny_model, name, processing):
    trace = run_trace(tiny_model(name, processing=processing), TEXT, reads=[logit_lens])
    found = logit_lens(trace, tokens=[40, 77])
    log_p = trace.logits.double().log_softmax(-1)
    assert found.attrs["completeness"] <= 1e-4
    np.testing.assert_allclose(np.log(found.probability[-1]), log_p[:, [40, 77]], atol=1e-4)
    np.testing.assert_array_equal(found.top_token_id[-1], trace.logits.topk(5).indices)
    assert float(found.kl_to_final[-1].max()) <= 1e-5
    assert float(found.kl_to_final[0].min()) > 1e-3  # or the lens would be the model at every layer
    assert dict(found.sizes) == {"layer": 4, "position": len(trace), "rank": 5, "target": 2}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_against_the_models_own_modules(tiny_model, name):
    trace = run_trace(tiny_model(name, processing="none"), TEXT, reads=[logit_lens])
    targets = [40, 77]
    found = logit_lens(trace, tokens=targets, top_k=3)
    final = trace.logits.double().log_softmax(-1)
    for layer in range(trace.n_layers + 1):
        z = reference(trace, layer)
        log_p = z.log_softmax(-1)
        here = found.sel(layer=layer)
        np.testing.assert_allclose(here.logit, z[:, targets], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(here.probability, log_p.exp()[:, targets], rtol=1e-4, atol=1e-7)
        np.testing.assert_array_equal(here.target_rank, torch.stack([1 + (z > z[:, t, None]).sum(-1) for t in targets], -1))
        np.testing.assert_allclose(here.top_probability, log_p.exp().topk(3).values, rtol=1e-4)
        np.testing.assert_allclose(here.entropy, -(log_p.exp() * log_p).sum(-1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(here.kl_to_final, (final.exp() * (final - log_p)).sum(-1), rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(found.correlation.max("layer"), 1)
    np.testing.assert_allclose(found.correlation, found.probability / found.probability.max("layer"), rtol=1e-6)


@pytest.mark.parametrize("name", BRIDGED)
def test_the_bridge_gives_what_hooked_transformer_gives(tiny_model, name):
    grids = [logit_lens(run_trace(tiny_model(name, backend=backend), TEXT, reads=[logit_lens])) for backend in ("bridge", "hooked")]
    assert max(grid.attrs["completeness"] for grid in grids) <= 1e-4
    np.testing.assert_allclose(grids[0].entropy, grids[1].entropy, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "olmo2"])
def test_bfloat16_stays_within_its_floor(tiny_model, name):
    found = logit_lens(run_trace(tiny_model(name, dtype="bfloat16"), TEXT, reads=[logit_lens]))
    assert 0 < found.attrs["completeness"] <= 0.1  # the model rounds its logits, |z| up to 10, to 8 bits; the lens does not
    assert found.entropy.dtype == np.float32


def test_half_precision_weights_are_converted_block_by_block(tiny_model, monkeypatch):
    model = tiny_model("gpt2", dtype="bfloat16")
    residual = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    whole = unembed(model, residual)
    monkeypatch.setattr("lensplorer.analyses.unembedding._BLOCK", 32 * 50)  # 320 ids: six whole blocks and a rest
    torch.testing.assert_close(unembed(model, residual), whole)
    assert whole.dtype == torch.float32


@pytest.mark.parametrize("chunk", [1, 2 * 320, 5 * 320, 12 * 320])
def test_chunks_change_nothing(trace, monkeypatch, chunk):
    whole = logit_lens(trace, tokens=[40])
    monkeypatch.setattr(module, "_CHUNK", chunk)
    parts = logit_lens(trace, tokens=[40])
    np.testing.assert_array_equal(parts.top_token_id, whole.top_token_id)
    for name in ("entropy", "kl_to_final", "probability", "top_probability"):
        np.testing.assert_allclose(parts[name], whole[name], atol=2e-6)


@pytest.mark.parametrize(("width", "k"), [(64, 1), (64, 64), (320, 5), (320, 300), (6400, 70)])
def test_the_grouped_search_is_topk(width, k):
    z = torch.randn(9, width, generator=torch.Generator().manual_seed(width))
    z[:4] = z[:4].round()  # many ties
    values, ids = module._top(z, k)
    torch.testing.assert_close(values, z.topk(k).values, rtol=0, atol=0)
    torch.testing.assert_close(z.gather(1, ids), values, rtol=0, atol=0)
    assert all(len(set(row)) == k for row in ids.tolist())


def test_a_constant_in_every_logit_costs_no_precision(tiny_folder):
    """GPT-2's logits are all near -100: entropies must not be differences of such numbers."""
    trace = run_trace(load_model(str(tiny_folder("gpt2")), processing="none"), TEXT, reads=[logit_lens])
    lens = logit_lens(trace)
    trace.model.unembed.b_U.data += 1000
    moved = logit_lens(changed(trace, logits=trace.logits + 1000))
    np.testing.assert_allclose(moved.entropy, lens.entropy, atol=2e-3)  # float32 holds 1000 to 6e-5, and z is rounded to that before anything


def test_next_follows_each_positions_own_next_token(trace):
    found = logit_lens(trace, tokens="next")
    assert found.target_token.values.tolist() == ["next"]
    assert found.probability[:, -1].isnull().all() and found.target_rank[:, -1].isnull().all()
    for position, token in enumerate(trace.tokens[1:].tolist()):
        single = logit_lens(trace, tokens=[token])
        np.testing.assert_allclose(found.probability[:, position, 0], single.probability[:, position, 0])


def test_tokens_are_labelled(trace):
    found = logit_lens(trace, tokens=["t", 77])
    assert found.target_token.values[0] == "t"
    assert found.target_id.values.tolist() == [trace.token_id("t"), 77]
    assert found.top_token.values[0, 0, 0] == found.top_token.values[0, 0].tolist()[0]


def test_contrast_is_the_lens_of_both_tokens(trace):
    found = contrast(trace, 40, 77, position=2)
    grid = logit_lens(trace, tokens=[40, 77]).sel(position=2)
    np.testing.assert_allclose(found.logit_difference, grid.logit[:, 0] - grid.logit[:, 1], atol=1e-5)
    np.testing.assert_allclose(found.probability_difference, grid.probability[:, 0] - grid.probability[:, 1], atol=1e-7)
    assert found.attrs["completeness"] <= 1e-4 and found.attrs["position"] == 2


def test_contrast_is_antisymmetric(trace):
    np.testing.assert_allclose(contrast(trace, 40, 77).logit_difference, -contrast(trace, 77, 40).logit_difference)


def test_bad_input_is_refused_with_the_alternatives(trace):
    with pytest.raises(AnalysisError, match=r"Unknown lens 'logits'.*'logit'"):
        logit_lens(trace, lens="logits")
    with pytest.raises(AnalysisError, match="Unknown tokens 'nexxt'"):
        logit_lens(trace, tokens="nexxt")
    with pytest.raises(AnalysisError, match="top_k must be at least 1"):
        logit_lens(trace, top_k=0)
    with pytest.raises(TokenError, match="exactly one is expected"):
        logit_lens(trace, tokens=["the cat"])
    with pytest.raises(TokenError, match="exactly one is expected"):
        contrast(trace, "the cat", 3)
    with pytest.raises(TraceError, match="outside the prompt"):
        contrast(trace, 3, 4, position=99)
    with pytest.raises(TraceError, match="did not read"):
        logit_lens(run_trace(trace.model, TEXT, reads=[]))


def test_top_k_is_cut_to_the_vocabulary(trace):
    found = logit_lens(trace, top_k=10_000)
    assert found.sizes["rank"] == 320
    np.testing.assert_allclose(found.top_probability.sum("rank"), 1, rtol=1e-5)


def test_a_model_that_does_something_else_to_its_logits_is_refused(trace):
    scaled = changed(trace, logits=trace.logits * 0.5)  # as models with a logit scale do
    with pytest.raises(AnalysisError, match="not this model's own prediction"):
        logit_lens(scaled)
    with pytest.raises(AnalysisError, match="not this model's own prediction"):
        contrast(scaled, 3, 4)


def test_activations_that_are_not_finite_are_reported_with_the_first_layer(trace):
    broken = trace["blocks.1.hook_resid_post"].clone()
    broken[3, 5] = torch.nan
    with pytest.raises(AnalysisError, match=r"NaN activations first appear at blocks\.1\.hook_resid_post \(block 1 of 0 to 2\), position 3"):
        logit_lens(changed(trace, blocks__1__hook_resid_post=broken, blocks__2__hook_resid_post=broken))
    with pytest.raises(AnalysisError, match=r"Infinite activations first appear at blocks\.0\.hook_resid_pre"):
        contrast(changed(trace, blocks__0__hook_resid_pre=broken.nan_to_num(torch.inf)), 3, 4, position=3)


def test_unembedding_keeps_the_shape(trace):
    rows = torch.stack(residual_rows(trace))
    found = unembed(trace.model, rows)
    assert found.shape == (*rows.shape[:2], 320)
    torch.testing.assert_close(found[-1], trace.logits, rtol=1e-4, atol=1e-4)


def test_a_norm_of_another_kind_is_refused(trace):
    with pytest.raises(AnalysisError, match="norm is a BatchNorm1d"):
        read_norm(torch.nn.BatchNorm1d(4), trace.model.cfg)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pulling_a_direction_back_through_a_norm_is_its_transpose(tiny_model, name):
    norm = read_norm(tiny_model(name, processing="none").ln_final, tiny_model(name, processing="none").cfg)
    generator = torch.Generator().manual_seed(0)
    x, direction = torch.randn(32, generator=generator).double(), torch.randn(32, 1, generator=generator).double()
    through = norm(x) @ direction
    back = x @ norm.pull_back(direction, norm.scale(x)) + norm.constant(direction)
    torch.testing.assert_close(through, back)


def test_intervened_traces_have_a_lens_of_their_own(tiny_model):
    from lensplorer.interventions import ablate_head

    model = tiny_model("gpt2")
    plain = logit_lens(run_trace(model, TEXT, reads=[logit_lens]))
    ablated = logit_lens(run_trace(model, TEXT, reads=[logit_lens], interventions=[ablate_head(1, 2)]))
    assert ablated.attrs["completeness"] <= 1e-4
    np.testing.assert_array_equal(plain.entropy[:2], ablated.entropy[:2])
    assert float(abs(plain.entropy[2:] - ablated.entropy[2:]).max()) > 1e-4
    assert model_info(model).name == ablated.attrs["model"]


def test_gradients_do_not_leak_into_the_lens(tiny_model):
    trace = run_trace(tiny_model("gpt2"), TEXT, reads=[logit_lens], gradients=True)
    assert logit_lens(trace).attrs["completeness"] <= 1e-4


MEMORY = """
import resource, types
import xarray  # its own memory is not the lens's
import torch
from lensplorer.analyses import lenses
from lensplorer.analyses.lenses import logit_lens
from lensplorer.trace import Trace, make_trace

torch.set_num_threads(1)
N_LAYERS, N, D_MODEL, D_VOCAB = {n_layers}, {n}, 4, 151_936

class Tokenizer:
    bos_token_id = None
    added_tokens_decoder = {{}}
    backend_tokenizer = None
    def convert_ids_to_tokens(self, token_id):
        return "t"

norm = torch.nn.Identity()
cfg = types.SimpleNamespace(n_layers=N_LAYERS, n_ctx=N, d_vocab=D_VOCAB, dtype=torch.float32, device="cpu", output_logits_soft_cap=None)
model = types.SimpleNamespace(cfg=cfg, tokenizer=Tokenizer(), ln_final=norm, W_U=torch.randn(D_MODEL, D_VOCAB), b_U=None, hook_dict={{}})
rows = [torch.randn(N, D_MODEL) for _ in range(N_LAYERS + 1)]
cache = {{"blocks.0.hook_resid_pre": rows[0]}} | {{f"blocks.{{l}}.hook_resid_post": rows[l + 1] for l in range(N_LAYERS)}}
trace = Trace(model, torch.zeros(N, dtype=torch.long), ["t"] * N, rows[-1] @ model.W_U, types.SimpleNamespace(cache_dict=cache))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
grid = logit_lens(trace, tokens=[3])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, grid.sizes["layer"], grid.attrs["completeness"])
"""


@pytest.mark.parametrize(("n_layers", "n"), [(1, 512), (24, 24)])
def test_memory_is_bounded_by_the_chunk(n_layers, n):
    """A vocabulary of 151,936 with all positions, then with all layers: neither factor shows in the peak, so neither does their product.

    In a process of its own, by the kernel's count of its peak above what the model, the residuals and the model's own logits take. One
    layer's logits at 512 positions are 311 MB, all layers' at 24 positions 365 MB: holding either would show.
    """
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", MEMORY.format(n_layers=n_layers, n=n)], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    peak_kib, layers, completeness = ran.stdout.split()
    assert int(layers) == n_layers + 1 and float(completeness) < 1e-4
    assert int(peak_kib) < 300 * 1024  # 240 to 270 MB are usual; either of the two would come on top


def test_logits_of_the_full_grid_would_not_fit():
    """What the test above extrapolates to: buffers depend on the chunk alone, results are a few numbers per layer and position."""
    unembedding = object.__new__(Unembedding)
    unembedding.weight, unembedding.dtype = torch.empty(4, 151_936, device="meta"), torch.float32
    rows = [torch.empty(512, 4)] * 25
    grid = module._Grid.__new__(module._Grid)
    grid.trace, grid.rows, grid.unembedding, grid.targets, grid.top_k = [None] * 512, rows, unembedding, None, 5  # type: ignore[assignment]
    grid.__post_init__()
    held = [value for value in vars(grid).values() if isinstance(value, torch.Tensor)]
    assert sum(value.numel() * value.element_size() for value in held) < 2**27  # 128 MiB


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_few_rows_and_many_are_the_same_product(dtype, tiny_model, monkeypatch):
    """Some rows go through another library, in blocks of the vocabulary; with a bias, which GPT-2 does not have."""
    unembedding = Unembedding(tiny_model("gpt2", dtype=dtype))
    unembedding.bias = torch.linspace(-1, 1, unembedding.d_vocab).to(unembedding.weight.dtype)
    monkeypatch.setattr(unembedding_module, "_BLOCK", 100 * len(unembedding.weight))  # blocks of 100 of 320
    monkeypatch.setattr(products, "_LARGE", 1)
    rows = torch.randn(products._FEW + 1, len(unembedding.weight), generator=torch.Generator().manual_seed(0))
    normed = unembedding.normed(rows).double()
    expected = normed @ unembedding.weight.double() + unembedding.bias.double()
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    for n in (1, 2, products._FEWEST, products._FEWEST + 1, len(rows) - 1, len(rows)):
        few = products.is_product_of_few(unembedding.normed(rows[:n]), unembedding.weight.to(unembedding.dtype))
        assert few == (dtype != "float64" and n < len(rows) and torch.backends.mkldnn.is_available())
        padded = torch.full((n, unembedding.d_vocab + 7), torch.nan)
        for out in (None, padded.to(unembedding.dtype)[:, : unembedding.d_vocab]):
            found = unembedding.logits(rows[:n], out=out)
            assert found.dtype == unembedding.dtype
            assert float((found.double() - expected[:n]).abs().max() / expected.abs().max()) <= tolerance
