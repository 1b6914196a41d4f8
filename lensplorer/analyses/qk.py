"""Why a head attends: its score before the softmax, as a sum over pairs of terms of the residual stream.

With the scales of norms held, query and key are sums over the terms of the residual stream at their positions (embedding, position, each head and
MLP before, biases), each carried through the norm, W_Q or W_K, the norm of queries or keys, and the rotation R. So the score is a sum over pairs,
(R W_Q x_i) · (R W_K x_j) · scale. What is not such a product is named: the soft cap, and ALiBi.

A softmax does not see what all sources have in common. So each pair stands beside its mean over the other sources that the query may read: only the
difference moves the pattern. That mean is the pair of the query's term and the mean rotated key, since the product is linear in the key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lensplorer.analyses.attention import chosen, valid_sources, window_of
from lensplorer.analyses.base import analysis, check_finite, make_result
from lensplorer.analyses.scoring import SCORE_READS, Projection, alibi_slope, score_cap, score_scale
from lensplorer.analyses.unembedding import ROUNDING
from lensplorer.errors import AnalysisError

if TYPE_CHECKING:
    import xarray as xr

    from lensplorer.trace import Trace

_SOURCES = 256  # sources whose keys are taken apart together
ADDITIONS = ("soft cap", "ALiBi")


@analysis(reads=SCORE_READS, source="Elhage et al. 2021, QK circuit; Kamath et al. 2025, QK attributions; scales of norms held at their values")
def qk_attribution(trace: Trace, *, layer: int, head: int, source: int, query: int = -1) -> xr.Dataset:
    """Which terms of the residual stream make a head attend from a query to a source. Exact: the pairs sum to the score.

    >>> import lensplorer as lp
    >>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a time", reads=[lp.qk_attribution])
    >>> pairs = lp.qk_attribution(trace, layer=2, head=2, source=1)
    >>> abs(float(pairs.contribution.sum() + pairs.addition.sum() - pairs.score)) < 1e-3
    True

    Args:
        trace: any trace that read this analysis' activations.
        layer, head: the block and its head, from 0.
        source: the position that is read, from 0; negative from the end of the prompt.
        query: the position that reads; -1 is the last. Of a window of a stepped trace, it counts from the window's start, and the source as always.

    Returns:
        Scores are before the softmax, in nats. "Others" are all other sources that this query may read; without any, what is about them is NaN.

        - (query_term, key_term): contribution, of the pair to the score; mean_of_others, of the same pair to the others' scores; difference.
        - (query_term): query_contribution, query_difference, and (key_term): key_contribution, key_difference: the sums of pairs.
        - (addition_term): addition, addition_difference: "soft cap", what a model's cap takes off the sum, and "ALiBi", -slope · distance.
        - score, the sum of pairs and additions; score_mean_of_others; pattern, the weight after the softmax.

        Terms: "embed", "pos_embed", "head 0.0", …, "mlp 0", … of the blocks before; "bias", all constants; and, where interventions edit the stream,
        queries or keys, "interventions". "attn 0" stands for all heads of a block whose output an intervention wrote over.
        attrs: layer, head, query_position, source_position; scale, by which products are multiplied; soft_cap; ``completeness``, how far
        log(pattern) is from the scores that the terms sum to, over all sources of the query, a constant aside, relative to the largest score or
        pair; ``pattern_edited``: 1 where an intervention edits scores or pattern, which are then not compared.

    Raises:
        AnalysisError: there is no such layer or head; the source lies after the query or outside the block's sliding window; the terms do not sum to
            the model's queries, keys and pattern (their gap is in the message); or activations are NaN or infinite.
        TraceError: a position is outside the prompt, or an activation was not read.

    Cost: O(position · terms · d_head · d_model) per head, 256 sources at a time; no forward pass. A stepped trace runs the blocks before again.
    """
    chosen("layer", layer, trace.n_layers)
    chosen("head", head, int(trace.model.cfg.n_heads))
    first = trace.n_sources - len(trace)  # of a window
    query = first + trace.position(query)
    source = _source(trace, layer, query, source)
    seen = valid_sources(trace.model, layer, query + 1, first=query)[0].nonzero()[:, 0]  # a stretch that ends in the query
    scale, cap, slope = score_scale(trace, layer), score_cap(trace, layer), alibi_slope(trace, head)
    query_terms, rows = Projection(trace, layer, head, "q", query - first).terms(query - first, query - first + 1)
    queries = rows[:, 0].double() * scale  # [term, d_head]
    keys = _keys(Projection(trace, layer, head, "k", query - first), seen - first, source - first, queries.sum(0))

    at_source, of_others = queries @ keys.at_source.T, queries @ keys.of_others.T  # [query term, key term]
    capped = keys.products if cap is None else cap * (keys.products / cap).tanh()
    additions = torch.stack([capped - keys.products, -slope * (query - seen).to(capped)])  # [addition, source]
    scores = keys.products + additions.sum(0)
    here, others = seen.to(scores.device) == source, seen.to(scores.device) != source
    row = trace.at(f"blocks.{layer}.attn.hook_pattern", query - first)[head].detach().double()[seen[0] : query + 1]
    completeness = _compare(trace, layer, head, scores, row, float(at_source.abs().max()))
    of_addition = additions[:, here][:, 0]
    return make_result(
        trace,
        qk_attribution,
        {
            "contribution": (["query_term", "key_term"], at_source),
            "mean_of_others": (["query_term", "key_term"], of_others),
            "difference": (["query_term", "key_term"], at_source - of_others),
            "query_contribution": (["query_term"], at_source.sum(1)),
            "query_difference": (["query_term"], (at_source - of_others).sum(1)),
            "key_contribution": (["key_term"], at_source.sum(0)),
            "key_difference": (["key_term"], (at_source - of_others).sum(0)),
            "addition": (["addition_term"], of_addition),
            "addition_difference": (["addition_term"], of_addition - additions[:, others].mean(1)),
            "score": ([], scores[here][0]),
            "score_mean_of_others": ([], scores[others].mean()),
            "pattern": ([], row[here.to(row.device)][0]),
        },
        {
            "query_term": np.array(query_terms, dtype=object),
            "key_term": np.array(keys.names, dtype=object),
            "addition_term": np.array(ADDITIONS, dtype=object),
        },
        layer=layer,
        head=head,
        query_position=query,
        source_position=source,
        scale=scale,
        soft_cap=cap or 0.0,
        **({"pattern_edited": 1} if completeness is None else {"completeness": completeness, "pattern_edited": 0}),
    )


def _source(trace: Trace, layer: int, query: int, source: int) -> int:
    """The source counted from the front."""
    n = trace.n_sources
    if not -n <= source < n:
        raise AnalysisError(f"Source {source} is outside the prompt of {n} tokens: expected {-n} to {n - 1}.")
    source %= n
    window = window_of(trace.model, layer)
    lowest = 0 if window is None else max(0, query - window + 1)
    if not lowest <= source <= query:
        why = "a query reads nothing after itself" if source > query else f"block {layer} has a sliding window of {window} tokens"
        raise AnalysisError(f"Query {query} does not read source {source}: {why}. Expected {lowest} to {query}.")
    return source


@dataclass(frozen=True, eq=False)
class _Keys:
    """A head's keys, taken apart.

    Attributes:
        names: of the terms.
        at_source, of_others: at the source, and their mean over the others. [term, d_head]
        products: the query times the whole key of each source. [source]
    """

    names: list[str]
    at_source: torch.Tensor
    of_others: torch.Tensor
    products: torch.Tensor


def _keys(projection: Projection, seen: torch.Tensor, source: int, query: torch.Tensor) -> _Keys:
    """Keys of a stretch of sources, some at a time. A block's heads may be terms at some and one term at others: what is no term is zero."""
    at_source: dict[str, torch.Tensor] = {}
    total: dict[str, torch.Tensor] = {}
    products = []
    start, stop = int(seen[0]), int(seen[-1]) + 1
    for low in range(start, stop, _SOURCES):
        names, terms = projection.terms(low, min(stop, low + _SOURCES))
        terms = terms.double()  # [term, source, d_head]
        products.append(terms.sum(0) @ query)
        inside = 0 <= source - low < terms.shape[1]
        for name, term in zip(names, terms):
            total[name] = total.get(name, torch.zeros_like(query)) + term.sum(0)
            at_source.setdefault(name, torch.zeros_like(query))
            if inside:
                at_source[name] = term[source - low]
    chosen_key, summed = torch.stack(list(at_source.values())), torch.stack(list(total.values()))
    n_others = stop - start - 1
    others = (summed - chosen_key) / n_others if n_others else torch.full_like(summed, torch.nan)
    return _Keys(list(total), chosen_key, others, torch.cat(products))


def _compare(trace: Trace, layer: int, head: int, scores: torch.Tensor, row: torch.Tensor, largest: float) -> float | None:
    """How far the pattern's logarithm is from the scores, a constant aside; None where an intervention wrote over scores or pattern."""
    expected = scores.log_softmax(0)
    compared = expected > math.log(torch.finfo(trace.dtype).tiny)  # below that, weights are zero or coarse
    gap, weight = (row.log() - expected)[compared], row[compared]
    gap = gap - (gap * weight).sum() / weight.sum()  # a sink beside the sources takes a share of all
    completeness = float(gap.abs().max() / max(largest, float(scores.abs().max()), 1e-30))
    if completeness <= ROUNDING[trace.dtype]:
        return completeness
    check_finite(trace)
    if trace.interventions:
        return None
    raise AnalysisError(
        f"The pattern of head {layer}.{head} differs from the softmax of its queries times its keys by {completeness:.1e} of the largest score: this"
        f" {trace.info.architecture} does something to its scores that is not known here. Refused."
    )
