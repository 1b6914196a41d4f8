"""A trace is one run, of exactly the tokens it shows."""

from __future__ import annotations

import pytest
import torch

from lensplorer.analyses.base import analysis
from lensplorer.errors import PromptError, TraceError
from lensplorer.running import hook_names, resolve_reads, run_model
from lensplorer.trace import run_trace
from tests import tiny

TEXT = "the cat sat"


class Zero:
    """An intervention: one activation becomes 0."""

    def __init__(self, name: str) -> None:
        self.name = name

    def hooks(self, model, positions):
        return [(self.name, lambda value, hook: torch.zeros_like(value))]

    def __repr__(self) -> str:
        return f"Zero({self.name!r})"


class Fail:
    def hooks(self, model, positions):
        def fail(value, hook):
            raise RuntimeError("in the middle")

        return [("blocks.1.hook_resid_pre", fail)]


def n_hooks(model) -> int:
    return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in model.hook_dict.values())


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_one_run_per_trace(name, tiny_model, monkeypatch):
    model = tiny_model(name)
    runs = []
    original = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, *args, **kwargs: runs.append(1) or original(self, *args, **kwargs))
    trace = run_trace(model, TEXT)
    _ = trace.logits, trace["blocks.0.hook_resid_post"], trace.cache["pattern", 1]
    assert len(runs) == 1


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_shapes_have_no_batch_dimension(name, tiny_model):
    model = tiny_model(name)
    trace = run_trace(model, TEXT)
    n = len(trace)
    assert trace.tokens.shape == (n,) and trace.logits.shape == (n, tiny.D_VOCAB)
    assert trace["blocks.2.hook_resid_post"].shape == (n, 32)
    assert trace.cache["pattern", 0].shape == (4, n, n)
    assert trace.cache["resid_post", 2] is trace["blocks.2.hook_resid_post"]


def test_text_ids_and_chat_are_fed_as_shown(tiny_model):
    model = tiny_model("gpt2")
    from_text = run_trace(model, TEXT)
    assert from_text.token_texts == ["<|endoftext|>", "the", " cat", " sat"]
    for same in (from_text.tokens.tolist(), from_text.tokens, from_text.tokens[None], from_text.tokens.numpy()):
        assert torch.equal(run_trace(model, same).logits, from_text.logits)
    chat = run_trace(model, [{"role": "user", "content": "the cat"}])
    assert chat.token_texts == ["<|user|>", "the", " cat", "<|assistant|>"]


def test_bos_is_never_doubled(tiny_model):
    model = tiny_model("gpt2")
    once = run_trace(model, TEXT).tokens.tolist()
    assert run_trace(model, "<|endoftext|>" + TEXT).tokens.tolist() == once
    assert run_trace(model, once, prepend_bos=True).tokens.tolist() == once
    assert run_trace(model, TEXT, prepend_bos=False).tokens.tolist() == once[1:]


def test_a_model_that_wants_no_bos_gets_none(tiny_model):
    assert run_trace(tiny_model("bloom"), TEXT).token_texts[0] == "the"


def test_reads_cache_what_was_asked_and_no_more(tiny_model):
    @analysis(reads=("blocks.*.hook_resid_post", "no_such.*", "hook_pos_embed"), source="test")
    def probe(trace):
        raise NotImplementedError

    model = tiny_model("llama")
    trace = run_trace(model, TEXT, reads=[probe, "blocks.0.attn.hook_pattern"])
    assert set(trace.cache.keys()) == {"blocks.0.attn.hook_pattern", *(f"blocks.{i}.hook_resid_post" for i in range(3))}
    assert len(run_trace(model, TEXT, reads=[]).cache) == 0
    assert "blocks.0.attn.hook_attn_scores" not in resolve_reads(model, None)
    with pytest.raises(TraceError, match=r"did not read 'blocks\.1\.attn\.hook_z'"):
        trace["blocks.1.attn.hook_z"]


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_a_hook_that_does_not_exist_is_refused(name, tiny_model):
    """The bridge ignores unknown names in silence; a trace does not."""
    model = tiny_model(name)
    with pytest.raises(TraceError, match=r"Did you mean.*hook_resid_post"):
        run_trace(model, TEXT, reads=["blocks.0.hook_resid_pots"])
    with pytest.raises(TraceError, match="no activation"):
        run_trace(model, TEXT, interventions=[Zero("blocks.9.hook_mlp_out")])
    with pytest.raises(TraceError, match="no activation"):
        run_trace(model, TEXT)["nonsense"]


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_interventions_act_in_the_run_and_leave_nothing_behind(name, tiny_model):
    model = tiny_model(name)
    plain = run_trace(model, TEXT)
    changed = run_trace(model, TEXT, interventions=[Zero("blocks.1.hook_mlp_out")])
    assert changed["blocks.1.hook_mlp_out"].abs().max() == 0  # the cache holds what the model used
    torch.testing.assert_close(changed["blocks.1.hook_resid_post"], changed["blocks.1.hook_resid_mid"])
    assert not torch.allclose(changed.logits, plain.logits)
    assert "Zero('blocks.1.hook_mlp_out')" in repr(changed.interventions)
    with pytest.raises(RuntimeError, match="in the middle"):
        run_trace(model, TEXT, interventions=[Fail()])
    assert n_hooks(model) == 0
    assert torch.equal(run_trace(model, TEXT).logits, plain.logits)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bloom"])
def test_gradients_reach_the_embeddings(name, tiny_model):
    """The gradient of a logit agrees with a finite difference along a random direction."""
    model = tiny_model(name, dtype="float64", processing="none")
    trace = run_trace(model, TEXT, gradients=True, reads=[])
    assert trace.embeddings is not None
    (gradient,) = torch.autograd.grad(trace.logits[-1, 7], trace.embeddings)
    direction = torch.randn(trace.embeddings.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = [
        run_model(model, trace.tokens[None], hooks=[("hook_embed", lambda value, hook, step=step: value + step * direction)]).logits[0, -1, 7]
        for step in (1e-3, -1e-3)
    ]
    # Several models compute their norms in float32 whatever their dtype: the difference is good to about 1e-3.
    torch.testing.assert_close((gradient * direction).sum(), (ends[0] - ends[1]) / 2e-3, rtol=5e-3, atol=2e-3)
    assert run_trace(model, TEXT).embeddings is None


def test_batched_runs_equal_single_ones(tiny_model):
    model = tiny_model("qwen2")
    batch = torch.tensor([[290, 302, 313], [5, 6, 7]])
    together = run_model(model, batch, reads=["blocks.1.hook_resid_post"])
    for row, ids in enumerate(batch.tolist()):
        alone = run_trace(model, ids)
        torch.testing.assert_close(together.logits[row], alone.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.activations["blocks.1.hook_resid_post"][row], alone["blocks.1.hook_resid_post"], rtol=1e-5, atol=1e-5)


def test_positions(tiny_model):
    trace = run_trace(tiny_model("gpt2"), TEXT)
    assert trace.position(-1) == 3 and trace.position(0) == 0
    with pytest.raises(TraceError, match="Position 4 is outside the prompt of 4 tokens"):
        trace.position(4)


@pytest.mark.parametrize(
    "prompt, message",
    [
        ([], "empty"),
        ([0, 320], "Token id 320 is outside the vocabulary: expected 0 to 319"),
        ([0, -1], "outside the vocabulary"),
        ([[1], [2]], "shape"),
        ([0.5], "A prompt is"),
        ([{"role": "user"}], "needs 'role' and 'content'"),
        ("a" * 500, "500 tokens|tokens, and the context"),
    ],
)
def test_bad_prompts_are_refused(prompt, message, tiny_model):
    with pytest.raises(PromptError, match=message):
        run_trace(tiny_model("gpt2"), prompt)


def test_an_empty_text_without_bos_is_refused(tiny_model):
    with pytest.raises(PromptError, match="empty"):
        run_trace(tiny_model("bloom"), "")
    assert run_trace(tiny_model("gpt2"), "").token_texts == ["<|endoftext|>"]  # BOS alone is a prompt


def test_a_long_prompt_is_truncated_only_if_asked(tiny_model):
    model = tiny_model("gpt2")
    with pytest.raises(PromptError, match=r"101 tokens, and the context of .* is 64"):
        run_trace(model, "z" * 100)
    kept = run_trace(model, "z" * 100, truncate=True)
    assert len(kept) == 64 and kept.token_texts[0] == "<|endoftext|>"


def test_chat_without_a_template_says_so(tiny_model):
    model = tiny_model("opt")
    template, model.tokenizer.chat_template = model.tokenizer.chat_template, None
    try:
        with pytest.raises(PromptError, match="no chat template"):
            run_trace(model, [{"role": "user", "content": "hi"}])
    finally:
        model.tokenizer.chat_template = template


def test_what_a_template_refuses_is_a_prompt_error(tiny_model):
    model = tiny_model("opt")
    template = model.tokenizer.chat_template
    model.tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}{{ messages[0].content }}"
    try:
        with pytest.raises(PromptError, match=r"refuses these messages \(system\): no system role"):
            run_trace(model, [{"role": "system", "content": "hi"}])
    finally:
        model.tokenizer.chat_template = template


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("backend", ["hooked", "bridge"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "neox-parallel", "bloom", "gemma3"])
def test_recorded_is_what_transformer_lens_caches(name, backend, gradients, tiny_model):
    if (name, backend) == ("gemma3", "hooked"):
        pytest.skip("the bridge runs it")
    model = tiny_model(name, backend=backend)

    class Twice:
        def hooks(self, model, positions):
            return [("blocks.1.attn.hook_v", lambda value, hook: value * 2), ("blocks.1.hook_resid_mid", lambda value, hook: value + 1)]

    interventions = [] if name == "neox-parallel" else [Twice()]  # it has no middle
    hooks = [hook for each in interventions for hook in each.hooks(model, range(8))]
    ids = list(range(20, 28))
    trace = run_trace(model, ids, reads=sorted(hook_names(model)), interventions=interventions, gradients=gradients)
    with torch.no_grad(), model.hooks(fwd_hooks=[(name, lambda value, hook, change=change: change(value, hook)) for name, change in hooks]):
        logits, cache = model.run_with_cache(torch.tensor([ids]), return_cache_object=False)
    assert torch.equal(trace.logits.detach(), logits[0])
    assert trace.cache.cache_dict.keys() == cache.keys()
    for key, value in cache.items():
        assert torch.equal(trace[key].flatten(), value.flatten()) and not trace[key].requires_grad, key
