"""HookedTransformer at the speed of its products: weights stored as they are read, and a step that touches only what is new.

TransformerLens' modules stay, with their weights, names and hooks; what is replaced is the arithmetic between hook points that copies more than
it computes. On every call HookedTransformer copies W_O, W_U, a gated MLP's three weights and, from its usual layout, W_Q, W_K and W_V; and at
every step with a key-value cache it rotates all past keys again and repeats keys and values for each query head that shares them.

How much longer a step of SmolLM2's shape takes with one part left as it came, after 128, 1,000 and 4,000 tokens (processor time of one thread):

- unembedding 2.5, 2.3 and 2.1 x: W_U is copied, 113 MB;
- gated MLP 2.0, 1.9 and 1.8 x: 90 copies, 318 MB;
- attention 1.2, 1.5 and 2.5 x, and 1.5, 1.8 and 2.7 x with its weights as they came: 106 MB, and the past;
- queries, keys and values in three products instead of one 1.07 x (two threads, after 128 tokens; 1.12 x of GPT-2's shape; nothing on one).

Each is the same sum of the same products. Many positions go through the very call that TransformerLens makes, and differ in no bit; but for MLPs
without gate, whose weights TransformerLens reads by rows. A few go through ``products``, and an attention step through fewer, larger products:
these round otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch

from lensplorer.kvcache import HookedEntry
from lensplorer.products import is_product_of_few, linear, product_of_few


def lay_out_weights(model: Any) -> None:
    """Store each weight of a HookedTransformer in the order in which its product reads it, values unchanged, and let the modules read it so.

    Quantized weights, experts and MLPs with a norm are left as they are. Cost: one copy of the weights.
    """
    from transformer_lens.components import MLP, GatedMLP

    for block in model.blocks:
        if not model.cfg.load_in_4bit:
            _lay_out_attention(block.attn)
        mlp = getattr(block, "mlp", None)
        if type(mlp) in (MLP, GatedMLP) and not model.cfg.is_layer_norm_activation():
            _lay_out_mlp(mlp, gated=type(mlp) is GatedMLP)
    _store_by_columns(model.unembed.W_U)
    model.unembed.forward = MethodType(_unembed, model.unembed)


def _store_by_columns(weight: torch.nn.Parameter) -> None:
    """[d_in, d_out], read as [d_out, d_in]"""
    weight.data = weight.data.T.contiguous().T


def quicken_linear_layers(model: Any) -> None:
    """Give the bridge's linear layers ``products.linear``: their weights lie as they are read, and on two threads are read in half the time."""
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.forward = MethodType(_linear, module)  # type: ignore[method-assign]


def _linear(module: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """``torch.nn.Linear.forward``."""
    return linear(x, module.weight, module.bias)


# -- the unembedding ---------------------------------------------------------------------------------------------------------------


def _unembed(module: Any, residual: torch.Tensor) -> torch.Tensor:
    """``Unembed.forward``, which copies W_U to read it by columns."""
    return module.hook_out(linear(module.hook_in(residual), module.W_U.T, module.b_U))


# -- MLPs --------------------------------------------------------------------------------------------------------------------------


def _lay_out_mlp(mlp: Any, *, gated: bool) -> None:
    if gated or mlp.W_in.dtype == torch.float32:  # other dtypes have no product of few, and theirs of many would round otherwise
        for weight in (mlp.W_in, mlp.W_out, *((mlp.W_gate,) if gated else ())):
            _store_by_columns(weight)
    mlp.forward = MethodType(_gated_mlp if gated else _mlp, mlp)


def _gated_mlp(module: Any, x: torch.Tensor) -> torch.Tensor:
    """``GatedMLP.forward``, which copies its weights to read them by columns."""
    pre = module.hook_pre(linear(x, module.W_gate.T, None))
    pre_linear = module.hook_pre_linear(linear(x, module.W_in.T, None))
    post = module.hook_post(module.act_fn(pre) * pre_linear + module.b_in)
    return linear(post, module.W_out.T, module.b_out)


def _mlp(module: Any, x: torch.Tensor) -> torch.Tensor:
    """``MLP.forward``, one position in two thirds of the time: it copies nothing, but leaves a row to one thread."""
    from transformer_lens.utilities.addmm import batch_addmm

    def product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return product_of_few(rows, weight, bias) if is_product_of_few(rows, weight) else batch_addmm(bias, weight, rows)

    post = module.hook_post(module.act_fn(module.hook_pre(product(x, module.W_in, module.b_in))))
    return product(post, module.W_out, module.b_out)


# -- attention ---------------------------------------------------------------------------------------------------------------------


def _lay_out_attention(attention: Any) -> None:
    weights, biases = _projections(attention, "W"), _projections(attention, "b")
    flat = torch.cat([weight.data.transpose(1, 2) for weight in weights])  # [head of queries, keys and values in turn, d_head, d_model]
    heads = [len(weight) for weight in weights]
    for weight, laid in zip(weights, flat.split_with_sizes(heads)):
        weight.data = laid.transpose(1, 2)
    for bias, laid in zip(biases, torch.cat([bias.data for bias in biases]).split_with_sizes(heads)):
        bias.data = laid
    output = attention.W_O  # [head, d_head, d_model], read as [d_model, (head d_head)]
    output.data = output.data.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    attention.calculate_qkv_matrices = MethodType(_queries_keys_values, attention)
    if _steps(attention):
        attention.forward = MethodType(_attention, attention)


def _projections(attention: Any, kind: str) -> list[torch.nn.Parameter]:
    """Queries', keys' and values' weights ("W") or biases ("b"); TransformerLens calls by other names what several heads share."""
    shared = "_" if "_W_K" in attention._parameters else ""
    return [attention._parameters[name] for name in (f"{kind}_Q", f"{shared}{kind}_K", f"{shared}{kind}_V")]


def _steps(attention: Any) -> bool:
    """Whether ``_attention`` is all of this attention: causal, and without what few models have."""
    cfg = attention.cfg
    causal = (attention._attention_dir_override or cfg.attention_dir) == "causal"
    rare = cfg.use_attention_sinks or cfg.use_logn_attn or cfg.use_dynamic_ntk_rope or cfg.clip_qkv is not None
    return causal and not rare and cfg.positional_embedding_type in ("standard", "rotary", "alibi")


def _queries_keys_values(module: Any, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``calculate_qkv_matrices``, of a few positions in one product. Three of [batch, position, d_model] → [batch, position, head, d_head]"""
    cfg, x, biases = module.cfg, inputs[0], _projections(module, "b")
    heads = [len(bias) for bias in biases]
    weight, bias = _joined([weight.transpose(1, 2) for weight in _projections(module, "W")]), _joined(biases)
    split = cfg.use_split_qkv_input or cfg.use_attn_in or cfg.ungroup_grouped_query_attention
    # the three inputs are equal, but not the same: blocks add 0.0 to those of queries and keys
    few = not split and weight is not None and is_product_of_few(x, weight.T) and all(torch.equal(x, other) for other in inputs[1:])
    if not few or weight is None or bias is None:
        return type(module).calculate_qkv_matrices(module, *inputs)
    parts = linear(x, weight, bias).view(*x.shape[:-1], sum(heads), -1).split_with_sizes(heads, dim=-2)
    q, k, v = module.hook_q(parts[0]), module.hook_k(parts[1]), module.hook_v(parts[2])
    if cfg.use_qk_norm:
        q, k = module._apply_qk_norm(q, module.q_norm), module._apply_qk_norm(k, module.k_norm)
    return q, k, v


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """All parts as one view, where they still lie one after the other: any may have been replaced. [head, d_head, ...] → [(head d_head), ...]"""
    if any(part.requires_grad for part in parts):  # a view of the storage would be a gradient of the first part alone
        return None if parts[0].ndim > 2 else torch.cat([part.flatten() for part in parts])
    first, ends = parts[0], [part.data_ptr() + part.nbytes for part in parts]
    follow = [part.data_ptr() for part in parts[1:]] == ends[:-1] and all(part.is_contiguous() for part in parts)
    if not follow or len({part.untyped_storage().data_ptr() for part in parts}) > 1:
        return None
    return first.as_strided((sum(len(part) for part in parts) * first.shape[1], *first.shape[2:]), first.stride()[1:])


def _attention(
    module: Any, query_input: torch.Tensor, key_input: torch.Tensor, value_input: torch.Tensor, *args: Any, **options: Any
) -> torch.Tensor:
    """``AbstractAttention.forward`` of new positions after those in a ``GrowingLayer``; without that, TransformerLens' own.

    A key's rotation depends on its position alone, so the layer holds it rotated, and ``hook_rot_k`` still sees all. Heads that share keys are
    multiplied with them together. Nothing of a tree is padding, so a single query is masked by a sliding window at most.
    """
    from transformer_lens.utilities.activation_functions import apply_softcap

    entry = options.get("past_kv_cache_entry")
    if not isinstance(entry, HookedEntry):
        return type(module).forward(module, query_input, key_input, value_input, *args, **options)
    cfg, start = module.cfg, entry.layer.length
    q, k, v = module.calculate_qkv_matrices(query_input, key_input, value_input)  # [1, new position, head, d_head]
    if module.q_norm is not None and not cfg.use_qk_norm:  # OLMo norms all heads together
        q, k = module.q_norm(q.flatten(2)).view(q.shape), module.k_norm(k.flatten(2)).view(k.shape)
    if cfg.positional_embedding_type == "rotary":
        q, k = module.apply_rotary(torch.cat((q, k), dim=2), start).split((q.shape[2], k.shape[2]), dim=2)
        q = module.hook_rot_q(q)
    keys, values = entry.append(k, v)  # [1, position, head that may be shared, d_head]
    if cfg.positional_embedding_type == "rotary":
        keys = module.hook_rot_k(keys.clone() if module.hook_rot_k._forward_hooks else keys)  # a hook must not change the past
    scores = _grouped(q.transpose(1, 2), keys.permute(0, 2, 3, 1)) / module.attn_scale  # [1, head, new position, position]
    scores = apply_softcap(scores, cfg.attn_scores_soft_cap)
    if cfg.positional_embedding_type == "alibi":
        scores += _alibi(module, range(start, scores.shape[3]))
    if scores.shape[2] > 1 or (module.attn_type == "local" and scores.shape[3] > cfg.window_size):  # else one query sees all
        scores = module.apply_causal_mask(scores, start)
    pattern = module.hook_pattern(module.hook_attn_scores(scores).softmax(dim=-1).nan_to_num(nan=0.0)).to(values.dtype)
    z = module.hook_z(_grouped(pattern, values.transpose(1, 2)).transpose(1, 2))
    if cfg.use_attn_result:
        return module.hook_result((z[..., None] * module.W_O).sum(-2)).sum(2) + module.b_O
    flat = module.W_O.permute(2, 0, 1).reshape(cfg.d_model, -1)  # a view
    return linear(z.flatten(2), flat, module.b_O)


def _alibi(module: Any, queries: range) -> torch.Tensor:
    """Less attention the further back, for each head by its own factor; TransformerLens makes that of all queries again. [head, query, source]"""
    factors = module.create_alibi_multipliers(module.cfg.n_heads, module.cfg.device)
    distance = torch.arange(queries.stop, device=factors.device) - torch.arange(queries.start, queries.stop, device=factors.device)[:, None]
    return factors[:, None, None] * distance.clamp(max=0).to(torch.float32)


def _grouped(x: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """``x @ shared``, each of ``shared`` for several heads of ``x`` in turn. [1, head, n, m], [1, shared head, m, l] → [1, head, n, l]"""
    _, heads, n, m = x.shape
    return (x.reshape(len(shared[0]), -1, m) @ shared[0]).view(1, heads, n, -1)
