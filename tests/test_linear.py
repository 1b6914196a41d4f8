"""The local linear model: complete on every architecture, the model's own bits, a slow frozen forward pass, refusals."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from lensplorer import interventions as edits
from lensplorer.errors import TraceError
from lensplorer.linear import RULES, _quotient
from lensplorer.models import load_model
from lensplorer.running import hook_points, run_model
from lensplorer.trace import run_trace
from tests import tiny

IDS = [5, 9, 30, 31, 200, 17, 44, 60, 61, 62]
#: HookedTransformer does not load these, or wrongly.
BRIDGED = ("llama-biases", "llama-linear-rope", "qwen2-window", "gemma", "gemma2", "gemma3", "olmo2")
CASES = [
    *((name, "hooked", processing) for name in tiny.ARCHITECTURES if name not in BRIDGED for processing in ("default", "none")),
    *((name, "bridge", "default") for name in tiny.ARCHITECTURES),
]


def error(terms, value):
    """|Σ terms - value|, relative to the largest of them."""
    return abs(sum(terms) - value) / max(abs(value), *map(abs, terms))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("name", "backend", "processing"), CASES)
def test_terms_sum_to_the_logit_and_no_bit_changes(tiny_model, name, backend, processing, rule):
    model = tiny_model(name, backend=backend, processing=processing)
    rows = [*(f"blocks.{layer}.hook_resid_pre" for layer in range(3)), "blocks.2.hook_resid_post"]
    trace = run_trace(model, IDS, reads=rows, gradients="linear", rule=rule)
    for graph in (False, True):
        plain = run_trace(model, IDS, gradients=graph)
        assert torch.equal(trace.logits, plain.logits)
        assert all(torch.equal(trace[row], plain[row]) for row in rows)
    for position, target in ((-1, 3), (4, 200)):
        value = trace.logits[position, target]
        found = trace.linear.gradients(value, rows)
        terms = [*found.tokens.tolist(), *found.rest.values()]
        assert error(terms, value.item()) <= 1e-5
        assert found.tokens[len(IDS) if position == -1 else 5 :].abs().sum() == 0  # a later token is no term
        for depth, row in enumerate(rows):
            stream = (trace[row].double() * found.at[row].double()).sum(-1)
            assert error([*stream.tolist(), found.after(depth)], value.item()) <= 1e-5, row
    assert (float(found.positions.abs().sum()) > 0) == (name in ("gpt2", "opt"))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def frozen_llama(model, embeddings, held, rule):
    """The linear map by hand, in float64: patterns, scales and gates as held. [position, d_model] → [position, d_vocab]"""
    h = embeddings
    for layer, block in enumerate(model.blocks):
        x = h / held[f"blocks.{layer}.ln1.hook_scale"]
        v = torch.einsum("pd,hde->phe", x, block.attn.W_V.double())
        z = torch.einsum("hqs,she->qhe", held[f"blocks.{layer}.attn.hook_pattern"], v)
        h = h + torch.einsum("qhe,hed->qd", z, block.attn.W_O.double())
        x = h / held[f"blocks.{layer}.ln2.hook_scale"]
        pre, lin = held[f"blocks.{layer}.mlp.hook_pre"], held[f"blocks.{layer}.mlp.hook_pre_linear"]
        gate = torch.nn.functional.silu(pre)
        post = gate * (x @ block.mlp.W_in.double())
        if rule == "half":
            post = 0.5 * post + 0.5 * (gate / pre) * lin * (x @ block.mlp.W_gate.double())
        h = h + post @ block.mlp.W_out.double()
    return (h / held["ln_final.hook_scale"]) @ model.W_U.double()


def frozen_gpt2(model, embeddings, held, rule):
    h = embeddings + held["hook_pos_embed"]
    for layer, block in enumerate(model.blocks):
        x = (h - h.mean(-1, keepdim=True)) / held[f"blocks.{layer}.ln1.hook_scale"]
        v = torch.einsum("pd,hde->phe", x, block.attn.W_V.double()) + block.attn.b_V.double()
        z = torch.einsum("hqs,she->qhe", held[f"blocks.{layer}.attn.hook_pattern"], v)
        h = h + torch.einsum("qhe,hed->qd", z, block.attn.W_O.double()) + block.attn.b_O.double()
        x = (h - h.mean(-1, keepdim=True)) / held[f"blocks.{layer}.ln2.hook_scale"]
        pre = held[f"blocks.{layer}.mlp.hook_pre"]
        ratio = torch.nn.functional.gelu(pre, approximate="tanh") / pre
        h = h + (ratio * (x @ block.mlp.W_in.double() + block.mlp.b_in.double())) @ block.mlp.W_out.double() + block.mlp.b_out.double()
    x = (h - h.mean(-1, keepdim=True)) / held["ln_final.hook_scale"]
    return x @ model.W_U.double() + model.b_U.double()


@pytest.mark.parametrize(
    ("name", "rule", "frozen"), [("llama", "gate", frozen_llama), ("llama", "half", frozen_llama), ("gpt2", "gate", frozen_gpt2)]
)
def test_gradients_are_differences_of_a_frozen_forward_pass(tmp_path, name, rule, frozen):
    """Two layers; the map is affine, so a difference of any size is the gradient."""
    layers = {"n_layer": 2} if name == "gpt2" else {"num_hidden_layers": 2}
    model = load_model(str(tiny.save(name, tmp_path, **layers)), dtype="float64", backend="hooked")
    trace = run_trace(model, IDS, gradients="linear", rule=rule)
    held = {key: value.double() for key, value in trace.cache.cache_dict.items()}
    embeddings = trace.linear.embeddings.detach()[0]

    def value(moved):
        return float(frozen(model, moved, held, rule)[-1, 3])

    assert value(embeddings) == pytest.approx(trace.logits[-1, 3].item(), rel=1e-9)
    tokens = trace.linear.gradients(trace.logits[-1, 3]).tokens
    for token in range(len(IDS)):
        without, twice = embeddings.clone(), embeddings.clone()
        without[token], twice[token] = 0, 2 * embeddings[token]
        assert float(tokens[token]) == pytest.approx(value(embeddings) - value(without), rel=1e-7, abs=1e-9)
        assert float(tokens[token]) == pytest.approx((value(twice) - value(without)) / 2, rel=1e-7, abs=1e-9)
    rest = sum(trace.linear.gradients(trace.logits[-1, 3]).rest.values())
    assert rest == pytest.approx(value(torch.zeros_like(embeddings)), rel=1e-7, abs=1e-9)


def test_the_rules_differ_in_a_gated_model_alone(tiny_model):
    for name, same in (("gpt2", True), ("llama", False)):
        tokens = []
        for rule in RULES:
            trace = run_trace(tiny_model(name), IDS, reads=[], gradients="linear", rule=rule)
            tokens.append(trace.linear.gradients(trace.logits[-1, 3]).tokens)
        assert torch.allclose(*tokens) == same


EDITS = {
    "ablate": lambda: edits.ablate_head(1, 2),
    "scale": lambda: edits.scale("blocks.1.hook_mlp_out", 0.5),
    "steer": lambda: edits.steer(torch.linspace(-1, 1, 32), 1, 3.0),
    "knock out": lambda: edits.knock_out_attention(1, None, 2, query=9),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize(("name", "backend"), [("gpt2", "hooked"), ("llama", "hooked"), ("llama", "bridge"), ("gemma2", "bridge")])
def test_interventions_apply_and_what_they_add_is_a_term(tiny_model, name, backend, edit):
    model = tiny_model(name, backend=backend)
    options = {"interventions": [EDITS[edit]()]}
    rows = [f"blocks.{layer}.hook_resid_pre" for layer in range(3)]
    trace = run_trace(model, IDS, reads=rows, gradients="linear", **options)
    assert torch.equal(trace.logits, run_trace(model, IDS, reads=[], **options).logits)
    assert not torch.equal(trace.logits, run_trace(model, IDS, reads=[]).logits)
    value = trace.logits[-1, 3]
    found = trace.linear.gradients(value, rows)
    assert error([*found.tokens.tolist(), *found.rest.values()], value.item()) <= 1e-5
    for depth, row in enumerate(rows):
        stream = (trace[row].double() * found.at[row].double()).sum(-1)
        assert error([*stream.tolist(), found.after(depth)], value.item()) <= 1e-5
    assert (abs(found.rest["interventions"]) > 1e-3) == (edit == "steer")


def test_an_activation_that_is_overwritten_is_a_constant(tiny_model):
    """The clean MLP's activation, put in its place: what it says comes from no token."""
    model, name = tiny_model("llama"), "blocks.2.mlp.hook_post"
    other = run_trace(model, [7] * len(IDS), reads=[name])
    put = other[name]
    trace = run_trace(model, IDS, reads=[name], interventions=[edits.patch(name, other)], gradients="linear")
    value = trace.logits[-1, 3]
    found = trace.linear.gradients(value, [name])
    assert error([*found.tokens.tolist(), *found.rest.values()], value.item()) <= 1e-5
    assert found.rest["interventions"] == pytest.approx(float((put.double() * found.at[name].double()).sum()), rel=1e-5)


def test_the_quotient_at_zero_is_the_derivative():
    x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    for function, slope in ((torch.nn.functional.gelu, 0.5), (torch.nn.functional.silu, 0.5), (torch.relu, 0.0)):
        value = function(x)
        expected = value.detach() / x.detach()
        expected[1] = slope
        assert torch.equal(_quotient(x, value), expected)


def test_few_positions_of_a_larger_model_have_the_bits_of_a_run_without_graph(storyworld):
    """Where a product of few rows goes its own way."""
    ids = [1, 50, 60, 70, 80]
    plain = run_trace(storyworld, ids, reads=[]).logits
    for gradients in (True, "linear"):
        trace = run_trace(storyworld, ids, reads=[], gradients=gradients)
        assert torch.equal(trace.logits, plain)
    found = trace.linear.gradients(trace.logits[-1, 3])
    assert error([*found.tokens.tolist(), *found.rest.values()], float(plain[-1, 3])) <= 1e-5


@pytest.mark.parametrize(("name", "backend"), [("gpt2", "hooked"), ("llama", "bridge")])
def test_nothing_stays_behind_an_exception(tiny_model, name, backend):
    model = tiny_model(name, backend=backend)
    before = dict(model.named_parameters())

    class Fails:
        def hooks(self, model, positions):
            def fail(value, hook):
                raise RuntimeError("in the middle")

            return [("blocks.1.hook_mlp_out", fail)]

    with pytest.raises(RuntimeError, match="in the middle"):
        run_trace(model, IDS, interventions=[Fails()], gradients="linear")
    assert all(not point._forward_hooks and "forward" not in point.__dict__ for point in hook_points(model).values())
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and all(before[key] is after[key] for key in before)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_graph_goes_with_the_trace(tiny_model):
    trace = run_trace(tiny_model("llama"), IDS, gradients="linear")
    leaf = weakref.ref(trace.linear.embeddings)
    del trace
    gc.collect()
    assert leaf() is None


class Doubled:
    def __init__(self, name):
        self.name = name

    def hooks(self, model, positions):
        return [(self.name, lambda value, hook: 2 * value)]


def without_points(monkeypatch, model, ending):
    """Hook points without some, as a model of another kind has them."""
    points = {name: point for name, point in hook_points(model).items() if not name.endswith(ending)}
    monkeypatch.setattr("lensplorer.running.hook_points", lambda model: points)


def test_refusals(tiny_model, monkeypatch):
    model = tiny_model("llama")
    with pytest.raises(TraceError, match=r"gradients is False, True or 'linear', not 'lineal'"):
        run_trace(model, IDS, gradients="lineal")
    with pytest.raises(TraceError, match=r"Unknown rule 'third': expected one of 'gate', 'half'"):
        run_trace(model, IDS, gradients="linear", rule="third")
    bridge = tiny_model("llama", backend="bridge")
    with pytest.raises(TraceError, match=r"this LlamaForCausalLM \(bridge backend\): an intervention at 'blocks.1.ln1.hook_scale'"):
        run_trace(bridge, IDS, interventions=[Doubled("blocks.1.ln1.hook_scale")], gradients="linear")
    for ending, why in (
        ("mlp.hook_pre", r"MLP of block 0 \(GatedMLP\) has no hooks .* mixture of experts"),
        ("attn.hook_k", "no 'blocks.0.attn.hook_k'"),
    ):
        with monkeypatch.context() as patched:
            without_points(patched, model, ending)
            with pytest.raises(TraceError, match=why):
                run_model(model, torch.tensor([IDS]), gradients="linear")


def test_a_hook_that_is_not_reached_is_refused(tiny_model, monkeypatch):
    """A block that shows a hook and computes past it: its run would be linear in part."""
    model = tiny_model("gpt2")
    norm, attention = model.blocks[1].ln1, model.blocks[1].attn
    for module, name, why in (
        (norm, "hook_scale", "does not reach 'blocks.1.ln1.hook_scale'"),
        (attention, "hook_k", "'blocks.1.attn.hook_pattern'"),
    ):
        with monkeypatch.context() as patched:
            patched.setitem(module._modules, name, torch.nn.Identity())
            with pytest.raises(TraceError, match=why):
                run_trace(model, IDS, reads=[], gradients="linear")
