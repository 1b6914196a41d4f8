"""Stored as it is read, a model computes what it computed before, and a step copies neither weights nor the past."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lensplorer import products
from lensplorer.kvcache import WorkingCache
from lensplorer.layout import lay_out_weights
from lensplorer.models import load_model, model_info
from lensplorer.running import hook_names, run_model
from tests import tiny
from tests.test_models import BRIDGED, IDS

HOOKED = [name for name in tiny.ARCHITECTURES if name not in BRIDGED]
STEPS = [range(6), range(6, 10), *(range(i, i + 1) for i in range(10, 16))]  # a prompt, a chunk, and token by token past the sliding windows

#: What HookedTransformer has and no tiny model shows.
RARE: dict[str, dict[str, Any]] = {
    "soft caps and windows": dict(
        attn_scores_soft_cap=3.0, output_logits_soft_cap=5.0, use_local_attn=True, attn_types=["local", "global"], window_size=4
    ),
    "rotations by adjacent pairs": dict(rotary_adjacent_pairs=True, rotary_dim=4),
    "norms over all heads": dict(original_architecture="Olmo2ForCausalLM"),
    "norms before and after": dict(use_normalization_before_and_after=True, normalization_type="RMS"),
    "clipped queries": dict(clip_qkv=0.5),
    "sinks": dict(use_attention_sinks=True),
    "bidirectional": dict(attention_dir="bidirectional"),
    "a norm in the MLP": dict(act_fn="solu_ln", gated_mlp=False),
    "experts": dict(num_experts=4, experts_per_token=2),
    "attention alone": dict(attn_only=True),
}


@contextmanager
def quiet() -> Iterator[None]:
    with pytest.warns(DeprecationWarning):
        yield


def usual(model: Any) -> Any:
    """The same HookedTransformer as TransformerLens lays it out."""
    from transformer_lens import HookedTransformer

    with quiet():
        copied = HookedTransformer(model.cfg, move_to_device=False)
    copied.load_state_dict({key: value.contiguous() for key, value in model.state_dict().items()})
    copied.tokenizer = model.tokenizer
    return copied.eval().requires_grad_(False)


def rare(options: dict[str, Any]) -> tuple[Any, Any]:
    """A random model, laid out and as it came."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    base: dict[str, Any] = dict(n_layers=2, d_model=32, n_ctx=32, d_head=8, n_heads=4, n_key_value_heads=2, d_mlp=64, d_vocab=tiny.D_VOCAB)
    base |= dict(act_fn="silu", gated_mlp=True, normalization_type="RMSPre", positional_embedding_type="rotary", rotary_dim=8, seed=0)
    with quiet():
        model = HookedTransformer(HookedTransformerConfig(**{**base, **options}), move_to_device=False)
    model.tokenizer = tiny.tokenizer()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    model.eval().requires_grad_(False)
    before = usual(model)
    lay_out_weights(model)
    return model, before


def stepped(model: Any, **options: Any) -> list[dict[str, torch.Tensor]]:
    """Every activation and the logits of each of ``STEPS``."""
    as_new(model)
    past = WorkingCache(model).past
    found = []
    for span in STEPS:
        run = run_model(model, torch.tensor([IDS])[:, span], reads=sorted(hook_names(model)), past=past, start=span.start, **options)
        found.append({**run.activations, "logits": run.logits})
    return found


def agree(ours: list[dict[str, torch.Tensor]], theirs: list[dict[str, torch.Tensor]], *, exact: bool = False) -> None:
    for our, their in zip(ours, theirs, strict=True):
        assert our.keys() == their.keys()
        for name in our:
            if exact:
                assert torch.equal(our[name], their[name]), name
            torch.testing.assert_close(our[name], their[name], rtol=1e-5, atol=1e-5, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}")


def as_new(model: Any) -> None:
    """HookedTransformer takes the last of the longest distances (ALiBi) it has seen, so its scores depend on runs before."""
    for block in model.blocks:
        block.attn.alibi = None


def whole(model: Any, **options: Any) -> dict[str, torch.Tensor]:
    as_new(model)
    run = run_model(model, torch.tensor([IDS, IDS[::-1]]), reads=sorted(hook_names(model)), **options)
    return {**run.activations, "logits": run.logits}


@pytest.mark.parametrize("processing", ["none", "default"])
@pytest.mark.parametrize("name", HOOKED)
def test_every_activation_is_that_of_the_usual_layout(name, processing, tiny_model, monkeypatch):
    model = tiny_model(name, processing=processing)
    before = usual(model)
    # MLPs without gate are multiplied as stored, by columns where TransformerLens has rows: all else is the same product
    agree([whole(model)], [whole(before)], exact=bool(model.cfg.gated_mlp))
    steps = stepped(before)
    agree(stepped(model), steps)
    monkeypatch.setattr(products, "_LARGE", 1)  # as large weights are multiplied
    agree([whole(model)], [whole(before)])
    agree(stepped(model), steps)


@pytest.mark.parametrize("options", RARE.values(), ids=RARE)
def test_what_no_tiny_model_has(options, monkeypatch):
    model, before = rare(options)
    steps = stepped(before)
    for large in (products._LARGE, 1):
        monkeypatch.setattr(products, "_LARGE", large)
        agree([whole(model)], [whole(before)])
        agree(stepped(model), steps)


FLAGS = ["use_attn_result", "use_split_qkv_input", "use_attn_in", "use_hook_mlp_in", "ungroup_grouped_query_attention"]


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("name", ["gpt2", "neox-parallel", "qwen3"])
def test_what_can_be_switched_on(name, flag, tiny_model):
    model = tiny_model(name)
    grouped = model.cfg.n_key_value_heads is not None
    if grouped == (flag == "use_attn_in") or grouped < flag.startswith("ungroup"):
        pytest.skip("TransformerLens refuses it")
    before = usual(model)
    for each in (model, before):
        getattr(each, f"set_{flag}")(True)
    try:
        # TransformerLens refuses ungrouped keys in a cache
        runs = [[whole(each), *(stepped(each) if not flag.startswith("ungroup") else [])] for each in (model, before)]
        agree(*runs)
        assert flag != "use_attn_result" or "blocks.0.attn.hook_result" in runs[0][0]
    finally:
        getattr(model, f"set_{flag}")(False)


POINTS = ["attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_attn_scores", "attn.hook_pattern"]
POINTS += ["attn.hook_z", "mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post", "hook_mlp_out", "ln1.hook_scale"]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "neox"])
def test_a_change_at_any_point_does_the_same(name, point, tiny_model):
    model = tiny_model(name)
    if f"blocks.1.{point}" not in hook_names(model):
        pytest.skip(f"{name} has no {point}")

    def change(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return value * 1.5 + 0.25

    hooks = [(f"blocks.1.{point}", change)]
    changed, before = stepped(model, hooks=hooks), stepped(usual(model), hooks=hooks)
    agree(changed, before)
    assert not torch.allclose(changed[-1]["logits"], stepped(model)[-1]["logits"])


@pytest.mark.parametrize("name", ["llama", "neox"])
def test_scores_of_nothing_and_a_hook_that_writes_in_place(name, tiny_model):
    model = tiny_model(name)
    assert not torch.isnan(stepped(model, hooks=[("blocks.1.attn.hook_attn_scores", lambda scores, hook: scores - torch.inf)])[-1]["logits"]).any()

    def overwrite(keys: torch.Tensor, hook: Any) -> torch.Tensor:
        return keys.mul_(2)

    def replace(keys: torch.Tensor, hook: Any) -> torch.Tensor:
        return keys * 2

    agree(*(stepped(model, hooks=[("blocks.1.attn.hook_rot_k", change)]) for change in (overwrite, replace)))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_replaced_weights_are_read(name, tiny_folder, monkeypatch):
    monkeypatch.setattr(products, "_LARGE", 1)
    model = load_model(str(tiny_folder(name)), backend="hooked")
    own = model.blocks[1].attn._parameters
    key = "_W_K" if "_W_K" in own else "W_K"
    before = stepped(model)
    own[key].data.mul_(2)  # where it lies
    doubled = stepped(model)
    own[key] = torch.nn.Parameter(own[key].data / 2, requires_grad=False)  # elsewhere
    agree(stepped(model), before)
    assert not torch.allclose(doubled[-1]["logits"], before[-1]["logits"])
    agree(stepped(copy.deepcopy(model)), before)


@pytest.mark.parametrize("name", HOOKED)
def test_hook_points_fire_in_the_same_order(name, tiny_model):
    def order(model: Any) -> list[str]:
        fired: list[str] = []

        def note(value: torch.Tensor, hook: Any) -> torch.Tensor:
            fired.append(hook.name)
            return value

        stepped(model, hooks=[(each, note) for each in sorted(hook_names(model))])
        return fired

    model = tiny_model(name)
    assert order(model) == order(usual(model))


@pytest.mark.parametrize("name", HOOKED)
def test_gradients_are_the_same(name, tiny_model):
    model = tiny_model(name)
    gradients = []
    for each in (model, usual(model)):
        run = run_model(each, torch.tensor([IDS]), gradients=True)
        run.logits.square().sum().backward()
        assert run.embeddings is not None
        gradients.append(run.embeddings.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", HOOKED)
def test_padding_and_its_own_cache_are_left_to_transformer_lens(name, tiny_model):
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    model = tiny_model(name)
    tokens, mask = torch.tensor([IDS[:8], IDS[2:10]]), torch.ones(2, 8, dtype=torch.int64)
    mask[1, :3] = 0
    results = []
    for each in (model, usual(model)):
        cache = TransformerLensKeyValueCache.init_cache(each.cfg, "cpu", batch_size=2)
        with torch.no_grad():
            results.append((each(tokens, attention_mask=mask, past_kv_cache=cache), each(tokens[:, :1], past_kv_cache=cache)))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


class Writes(TorchDispatchMode):
    """Elements of each tensor that is written: made new, or copied into."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {value.untyped_storage().data_ptr() for value in args if isinstance(value, torch.Tensor)}
        name = func.overloadpacket.__name__
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor) and (name == "copy_" or value.untyped_storage().data_ptr() not in given):
                self.written.append((name, value.numel()))
        return result


def written_in_a_step(model: Any, n_past: int) -> list[tuple[str, int]]:
    past = WorkingCache(model).past
    ids = torch.arange(n_past + 2)[None] % tiny.D_VOCAB
    with torch.no_grad():  # under inference_mode, as steps run, no dispatch mode sees what a product is made of
        run_model(model, ids[:, :n_past], past=past, hooks=[no_change(model)])
        run_model(model, ids[:, n_past:-1], past=past, start=n_past, hooks=[no_change(model)])
        with Writes() as writes:
            run_model(model, ids[:, -1:], past=past, start=n_past + 1, hooks=[no_change(model)])
    assert len(writes.written) > 100
    return writes.written


def no_change(model: Any) -> tuple[str, Callable[[torch.Tensor, Any], torch.Tensor]]:
    return "hook_embed", lambda value, hook: value


@pytest.mark.parametrize(("name", "backend"), [(name, "hooked") for name in HOOKED] + [(name, "bridge") for name in tiny.ARCHITECTURES])
def test_a_step_copies_no_weight(name, backend, tiny_model):
    model = tiny_model(name, backend=backend)
    weights = [parameter.numel() for key, parameter in model.named_parameters() if parameter.ndim >= 2 and "embed.W_E" not in key]
    smallest = min(size for size in weights if size >= 512)  # a key-value head's; biases of all heads are smaller
    assert max(written_in_a_step(model, 6), key=lambda write: write[1])[1] < smallest


@pytest.mark.parametrize("name", HOOKED)
def test_a_step_copies_nothing_of_the_past(name, tiny_model):
    model = tiny_model(name)
    past = 50 * int(model.cfg.d_head) * int(model.cfg.n_key_value_heads or model.cfg.n_heads)
    assert model_info(model).backend == "hooked"
    assert max(written_in_a_step(model, 50), key=lambda write: write[1])[1] < past
