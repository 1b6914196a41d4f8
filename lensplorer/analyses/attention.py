"""Attention: who read whom, and how much it moved.

``pattern[h, q, s]`` is head h's weight on source s at query q; each row sums to 1 over its valid sources: s ≤ q, and within the sliding
window of a layer that has one. The masked sources hold zeros that are no measurement, so statistics leave them out.

Position 0 is where heads park the attention they have no use for (the sink: Xiao et al. 2023). It is left out of the variance by default.

- Influence (as in the programs that this one replaces): the mean pattern row of the heads with the largest variance, over its maximum.
- Value-weighted: ‖pattern[h, q, s] · v[h, s] · W_O[h]‖₂ in place of the weight (Kobayashi et al. 2020, "Attention is Not Only a Weight").
- Rollout: Π over layers of (A + I) / 2, A the mean over heads (Abnar and Zuidema 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lensplorer.analyses.base import analysis, make_result
from lensplorer.errors import AnalysisError
from lensplorer.memory import free_bytes, readable

if TYPE_CHECKING:
    import xarray as xr

    from lensplorer.models import LensModel
    from lensplorer.trace import Trace

PATTERN_READS = ("blocks.*.attn.hook_pattern",)
_QUERIES = 256  # queries whose patterns are looked at together
_MASKED = "masked sources (s > q, outside the window) excluded"


@analysis(reads=PATTERN_READS, source="softmax of the attention scores (Vaswani et al. 2017)")
def attention_patterns(trace: Trace, *, layer: int | None = None, head: int | None = None) -> xr.Dataset:
    """Every head's attention pattern, or those of one block or one head.

    >>> import lensplorer as lp
    >>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a time")
    >>> patterns = lp.attention_patterns(trace)
    >>> patterns.weight.dims, bool(abs(patterns.weight.sum("source") - 1).max() < 1e-5)
    (('layer', 'head', 'query', 'source'), True)

    Args:
        trace: one that read ``blocks.*.attn.hook_pattern``.
        layer, head: the block and the head, from 0; None: all.

    Returns:
        (layer, head, query, source): weight, 0..1, 0 where masked. layer is the block, 0 … n_layers - 1.

    Raises:
        TraceError: the trace did not read the patterns.
        AnalysisError: there is no such block or head; a pattern is not finite, and the message names the first layer; or all patterns together do
            not fit the memory that is free.

    Cost: a copy of the patterns, layer · head · position² numbers; no forward pass. A stepped trace runs the attention of the blocks again.
    """
    n_heads = int(trace.model.cfg.n_heads)
    layers, heads = chosen("layer", layer, trace.n_layers), chosen("head", head, n_heads)
    needed = 8 * len(layers) * len(heads) * len(trace) * trace.n_sources
    if needed > (free := free_bytes()):
        raise AnalysisError(
            f"These patterns of {len(trace):,} tokens take {readable(needed)}, and {readable(free)} are free: ask for one block (layer=0)."
        )
    stacked = torch.empty(len(layers), len(heads), len(trace), trace.n_sources)
    for row, block in enumerate(layers):
        for start, pattern in pattern_rows(trace, block):
            stacked[row, :, start : start + pattern.shape[1]] = pattern[heads.start : heads.stop]
    return make_result(
        trace,
        attention_patterns,
        {"weight": (["layer", "head", "query", "source"], stacked)},
        {"layer": np.array(layers), "head": np.array(heads)},
    )


@analysis(reads=PATTERN_READS, source="variance over sources, averaged over queries; Xiao et al. 2023 (attention sink)")
def head_statistics(trace: Trace, *, exclude_first: bool = True) -> xr.Dataset:
    """How each head spreads its attention on this prompt.

    >>> import lensplorer as lp
    >>> statistics = lp.head_statistics(lp.run_trace(lp.load_model("storyworld"), "Once upon a time"))
    >>> statistics.entropy.dims, bool(statistics.sink_share.max() <= 1)
    (('layer', 'head'), True)

    Args:
        trace: one that read ``blocks.*.attn.hook_pattern``.
        exclude_first: leave source position 0 (the sink) out of the variance.

    Returns:
        (layer, head): variance, population variance of a query's weights over its valid sources, averaged over the queries that have at
        least two of them (NaN when none has); entropy, nats, of the whole row, and sink_share, the weight on position 0, both averaged over
        queries from 1 on (query 0 can only read itself; NaN for a prompt of one token).

    Raises:
        TraceError: the trace did not read the patterns.
        AnalysisError: a pattern is not finite; the message names the first layer.

    Cost: O(layer · head · position²); no forward pass. A stepped trace runs the attention of new positions again.
    """
    spread = _by_query(trace, query_spread)
    later = slice(1, None)
    entropy, sink_share = (spread[name][later].mean(0) if len(trace) > 1 else np.full(spread[name].shape[1:], np.nan) for name in ("entropy", "sink"))
    variance = head_variances(trace, exclude_first=exclude_first)
    dims = ["layer", "head"]
    return make_result(
        trace,
        head_statistics,
        {"variance": (dims, variance), "entropy": (dims, entropy), "sink_share": (dims, sink_share)},
        units={"entropy": "nats"},
        sources=_MASKED + (", position 0 excluded from the variance" if exclude_first else ""),
    )


@analysis(reads=("blocks.*.attn.hook_pattern", "blocks.*.attn.hook_v"), source="top heads by variance; Kobayashi et al. 2020 when weighted by values")
def attention_influence(trace: Trace, *, top_heads: int = 32, value_weighted: bool = False, position: int = -1) -> xr.Dataset:
    """How much the most selective heads read from each token.

    >>> import lensplorer as lp
    >>> influence = lp.attention_influence(lp.run_trace(lp.load_model("storyworld"), "Once upon a time"))
    >>> influence.influence.dims, float(influence.influence.max())
    (('source',), 1.0)

    Args:
        trace: one that read ``blocks.*.attn.hook_pattern`` (and ``blocks.*.attn.hook_v`` if value_weighted).
        top_heads: how many heads, by variance (see ``head_statistics``, position 0 excluded); all when the model has fewer.
        value_weighted: average ‖pattern · v · W_O‖₂ in place of the weight; before any norm that the block puts after attention.
        position: the query; -1 is the last.

    Returns:
        (source): influence, the mean over those heads divided by its maximum, 0..1; 0 after the query.
        attrs: heads, as "layer.head" from the largest variance; position; top_heads used.

    Raises:
        AnalysisError: top_heads is below 1, or an activation is not finite.
        TraceError: the position is outside the prompt, or the trace did not read what is needed.

    Cost: O(layer · head · position²), and O(top_heads · position · d_head · d_model) if value_weighted; no forward pass.
    """
    if top_heads < 1:
        raise AnalysisError(f"top_heads must be at least 1, got {top_heads}.")
    position = trace.position(position)
    variance = torch.from_numpy(np.nan_to_num(head_variances(trace)))  # [layer, head]; NaN only when the prompt is too short to have any
    row = rows_at(trace, position)  # [layer, head, source]
    n_heads = variance.shape[1]
    chosen = variance.flatten().argsort(descending=True, stable=True)[:top_heads].tolist()
    heads = [divmod(index, n_heads) for index in chosen]
    weights = torch.stack([row[layer, head] for layer, head in heads])  # [chosen, source]
    if value_weighted:
        norms = torch.zeros(weights.shape)
        for i, (layer, head) in enumerate(heads):
            norms[i, : position + 1] = _output_norms(trace, layer, head, n_heads, position + 1)
        weights = weights * norms
    mean = weights.mean(0)
    return make_result(
        trace,
        attention_influence,
        {"influence": (["source"], mean / mean.max().clamp_min(torch.finfo(mean.dtype).tiny))},
        position=position,
        top_heads=len(heads),
        heads=" ".join(f"{layer}.{head}" for layer, head in heads),
        value_weighted=int(value_weighted),
        sources="position 0 excluded from the variance that ranks the heads, not from the row",
    )


@analysis(reads=PATTERN_READS, source="mean of the pattern over heads")
def attention_by_layer(trace: Trace, *, position: int = -1) -> xr.Dataset:
    """What each block reads, on average over its heads.

    >>> import lensplorer as lp
    >>> lp.attention_by_layer(lp.run_trace(lp.load_model("storyworld"), "Once upon a time")).weight.dims
    ('layer', 'source')

    Args:
        trace: one that read ``blocks.*.attn.hook_pattern``.
        position: the query; -1 is the last.

    Returns:
        (layer, source): weight, the mean over heads; each row sums to 1.

    Raises:
        TraceError: the position is outside the prompt, or the trace did not read the patterns.

    Cost: O(layer · head · position); no forward pass.
    """
    position = trace.position(position)
    rows = rows_at(trace, position).mean(1)  # [layer, source]
    return make_result(trace, attention_by_layer, {"weight": (["layer", "source"], rows)}, position=position)


@analysis(reads=PATTERN_READS, source="Abnar and Zuidema 2020, Quantifying Attention Flow in Transformers")
def attention_rollout(trace: Trace) -> xr.Dataset:
    """Attention followed through all layers, the residual connection counted as half.

    >>> import lensplorer as lp
    >>> rollout = lp.attention_rollout(lp.run_trace(lp.load_model("storyworld"), "Once upon a time"))
    >>> bool(abs(rollout.weight.sum("source") - 1).max() < 1e-5)
    True

    Args:
        trace: one that read ``blocks.*.attn.hook_pattern``.

    Returns:
        (query, source): weight, the product over layers of (A + I) / 2 with rows normalised, A the mean over heads; each row sums to 1.

    Raises:
        TraceError: the trace did not read the patterns.

    Cost: O(layer · position³); no forward pass.
    """
    n = len(trace)
    rollout = torch.eye(n)
    for layer in range(trace.n_layers):
        mean = torch.cat([pattern.mean(0) for _, pattern in pattern_rows(trace, layer)])  # [query, source]
        mixed = (mean + torch.eye(n)) / 2
        rollout = mixed / mixed.sum(-1, keepdim=True) @ rollout
    return make_result(trace, attention_rollout, {"weight": (["query", "source"], rollout)})


# -- what other analyses share ---------------------------------------------------------------------------------------------------------


def pattern_rows(trace: Trace, layer: int) -> Iterator[tuple[int, torch.Tensor]]:
    """One block's pattern, some queries at a time: the first of them, and their rows, detached, float32, on the CPU. [head, query, source]

    Raises:
        TraceError: the trace did not read it.
        AnalysisError: it is not finite.
    """
    for start in range(0, len(trace), _QUERIES):
        rows = trace.read(f"blocks.{layer}.attn.hook_pattern", start, min(len(trace), start + _QUERIES))
        rows = _require_finite(trace, layer, rows)
        yield start, torch.nn.functional.pad(rows, (0, trace.n_sources - rows.shape[-1]))


def rows_at(trace: Trace, position: int) -> torch.Tensor:
    """What every head reads at one query, detached, float32, on the CPU. [layer, head, source]

    Raises:
        as ``pattern_rows``.
    """
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(trace.n_layers)]
    return torch.stack([_require_finite(trace, layer, trace.at(name, position)[:, None])[:, 0] for layer, name in enumerate(names)])


def _require_finite(trace: Trace, layer: int, rows: torch.Tensor) -> torch.Tensor:
    rows = rows.detach().float().cpu()
    # HookedTransformer turns a NaN row into zeros, so a row without weight is a NaN in disguise.
    totals = rows.sum(-1)
    if not bool(totals.isfinite().all()) or (not trace.interventions and not bool(totals.min() > 0)):
        raise AnalysisError(f"The attention pattern of layer {layer} is not finite, the first where this shows: this trace cannot be analysed.")
    return rows


def head_variances(trace: Trace, *, exclude_first: bool = True) -> np.ndarray:
    """Variance of each head's weights over a query's valid sources, averaged over the queries with two or more; NaN if none. [layer, head]"""
    by_query = _by_query(trace, query_variance, exclude_first=exclude_first)["variance"]  # [query, layer, head]
    known = ~np.isnan(by_query)
    total = np.where(known, by_query, 0.0).sum(0, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return (total / known.sum(0)).astype(np.float32)


def _by_query(trace: Trace, function: Callable[..., Any], **options: Any) -> dict[str, np.ndarray]:
    """What a function of a trace says of each query, of a stepped trace for new ones alone."""
    known = trace.along(function, options, last=1)
    return known[0] if known is not None else {str(name): values.values for name, values in function(trace, **options).data_vars.items()}


def query_variance(trace: Trace, *, exclude_first: bool = True) -> xr.Dataset:
    """(position, layer, head): variance of a query's weights over its valid sources; NaN where it has less than two."""
    n, first = trace.n_sources, trace.n_sources - len(trace)
    found = torch.full((len(trace), trace.n_layers, int(trace.model.cfg.n_heads)), torch.nan)
    for layer in range(trace.n_layers):
        valid = valid_sources(trace.model, layer, n, first=first)  # [query, source]
        if exclude_first:
            valid[:, 0] = False
        count = valid.sum(-1)  # [query]
        for start, pattern in pattern_rows(trace, layer):
            stop = start + pattern.shape[1]
            weights, counted = pattern * valid[start:stop], count[start:stop].clamp_min(1)
            difference = (weights - (weights.sum(-1) / counted)[..., None]) * valid[start:stop]
            variance = torch.linalg.vecdot(difference, difference) / counted  # [head, query]
            found[start:stop, layer] = torch.where(count[start:stop] >= 2, variance, torch.nan).T
    return make_result(trace, query_variance, {"variance": (["position", "layer", "head"], found)})


def query_spread(trace: Trace) -> xr.Dataset:
    """(position, layer, head): entropy of a query's weights, nats, and its weight on position 0."""
    shape = len(trace), trace.n_layers, int(trace.model.cfg.n_heads)
    entropy, sink = torch.empty(shape), torch.empty(shape)
    for layer in range(trace.n_layers):
        for start, pattern in pattern_rows(trace, layer):
            rows = slice(start, start + pattern.shape[1])
            entropy[rows, layer], sink[rows, layer] = torch.special.entr(pattern).sum(-1).T, pattern[..., 0].T
    dims = ["position", "layer", "head"]
    return make_result(trace, query_spread, {"entropy": (dims, entropy), "sink": (dims, sink)})


def valid_sources(model: LensModel, layer: int, n: int, *, first: int = 0) -> torch.Tensor:
    """Which sources each query of a block from ``first`` on may read: s ≤ q, and within its sliding window. [query, source]"""
    distance = torch.arange(first, n)[:, None] - torch.arange(n)[None]
    window = window_of(model, layer)
    return (distance >= 0) & (distance < (window if window is not None else n))


def chosen(what: str, index: int | None, n: int) -> range:
    """The one, or all of them."""
    if index is None:
        return range(n)
    if not 0 <= index < n:
        raise AnalysisError(f"There is no {what} {index}: expected 0 to {n - 1}.")
    return range(index, index + 1)


def window_of(model: LensModel, layer: int) -> int | None:
    """Length of the sliding window of a block (a query reads itself and the window - 1 tokens before it), or None."""
    cfg: Any = model.cfg
    if getattr(cfg, "use_local_attn", False) and cfg.attn_types is not None:
        return int(cfg.window_size) if cfg.attn_types[layer] == "local" else None
    config: Any = getattr(getattr(model, "original_model", None), "config", None)  # the bridge
    kinds = getattr(config, "attention_layers", None)  # GPT-Neo's
    if kinds is not None:
        return int(config.window_size) if kinds[layer] == "local" else None
    window = getattr(config, "sliding_window", None)
    if not window:
        return None
    types = getattr(config, "layer_types", None)
    return int(window) if types is None or "sliding" in types[layer] else None


def _output_norms(trace: Trace, layer: int, head: int, n_heads: int, n: int) -> torch.Tensor:
    """‖v[s] · W_O‖₂ of one head at the first ``n`` positions, the value taken from its key-value group. [source]"""
    values = trace.read(f"blocks.{layer}.attn.hook_v", 0, n)  # [source, kv_head, d_head]
    value = values[:, head * values.shape[1] // n_heads].detach().float()
    model: Any = trace.model
    output = model.blocks[layer].attn.W_O[head].detach().float()  # [d_head, d_model]
    return torch.linalg.vector_norm(value @ output, dim=-1).cpu()


def head_labels(n_layers: int, n_heads: int) -> tuple[np.ndarray, np.ndarray]:
    """Layer and head of each of a model's heads in order. Each [head_index]"""
    layer, head = np.divmod(np.arange(n_layers * n_heads), n_heads)
    return layer, head
