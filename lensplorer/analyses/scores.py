"""Scores of tokens, from the model's own logits.

The model's prediction of the token at position i is softmax(z[i-1]). Everything about token i is read from that distribution; the first
token has none and gets NaN. With a BOS token in front, that is BOS itself, and the first token of the text has a prediction.

Definitions: probability p = softmax(z[i-1])[token i]; surprisal -log2 p (bits); rank 1 = most likely; entropy -Σ p ln p (nats), and the same
over ln V (0..1); Helmholtz free energy -T logsumexp(z[i-1] / T) (Liu et al. 2020, "Energy-based Out-of-distribution Detection").
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lensplorer.analyses.base import analysis, check_finite, make_result
from lensplorer.errors import AnalysisError
from lensplorer.tokens import token_texts

if TYPE_CHECKING:
    import xarray as xr

    from lensplorer.trace import Trace

_ROWS = 256  # positions whose logits are asked for at a time
_CHUNK = 2**21  # logits at a time in float32: 8 MiB, which stay in cache from one pass to the next


@analysis(reads=(), source="Liu et al. 2020 (energy); surprisal and entropy as in Shannon 1948", along=2)
def token_scores(trace: Trace, *, temperature: float = 1.0) -> xr.Dataset:
    """How well the model expected each token of the prompt.

    >>> import lensplorer as lp
    >>> scores = lp.token_scores(lp.run_trace(lp.load_model("storyworld"), "Once upon a time"))
    >>> bool(scores.probability.isnull()[0]), float(scores.probability[1:].max()) <= 1
    (True, True)

    Args:
        trace: any trace.
        temperature: T of the free energy.

    Returns:
        (position): token_id; probability; surprisal, bits; rank, 1 = most likely of the whole vocabulary; entropy, nats;
        normalised_entropy, 0..1; energy, nats. NaN at the first position, of which the model made no prediction. Ties share the better rank.

    Raises:
        AnalysisError: temperature is not above 0, or logits are NaN or infinite.

    Cost: O(position · d_vocab), streamed; no forward pass.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise AnalysisError(f"temperature must be above 0, got {temperature}.")
    n, d_vocab = len(trace), trace.d_vocab
    scores = torch.full((4, n), torch.nan)
    step = max(1, _CHUNK // d_vocab)
    for start, stop, logits in _chunks(trace, n - 1, step):
        z = logits.float()  # [chunk, d_vocab]
        targets = trace.tokens[start:stop, None].to(z.device)
        highest = z.amax(-1, keepdim=True)
        shifted = (z - highest).clamp_min_(torch.finfo(z.dtype).min)  # a masked logit of -inf counts as probability 0, not NaN
        exponential = shifted.exp()
        total = exponential.sum(-1)
        log_total = total.log()
        target = shifted.gather(1, targets)
        scores[0, start:stop] = (target[:, 0] - log_total).cpu()
        scores[1, start:stop] = (1 + (shifted > target).sum(-1, dtype=torch.int32)).float().cpu()
        scores[2, start:stop] = (log_total - torch.linalg.vecdot(exponential, shifted) / total).clamp_min_(0).cpu()
        log_sum = highest[:, 0] + log_total if temperature == 1 else torch.logsumexp(z / temperature, -1)
        scores[3, start:stop] = (-temperature * log_sum).cpu()
    if bool(scores[:, 1:].isnan().any()):
        check_finite(trace)
    log_p_token, rank, entropy, energy = scores
    processed_elsewhere = getattr(trace.model, "lensplorer_info", None) is None
    return make_result(
        trace,
        token_scores,
        {
            "token_id": (["position"], trace.tokens),
            "probability": (["position"], log_p_token.exp()),
            "surprisal": (["position"], -log_p_token / math.log(2)),
            "rank": (["position"], rank),
            "entropy": (["position"], entropy),
            "normalised_entropy": (["position"], entropy / math.log(d_vocab)),
            "energy": (["position"], energy),
        },
        units={"surprisal": "bits", "entropy": "nats", "energy": "nats"},
        temperature=temperature,
        gauge="logits as given: centred weights would shift the energy" if processed_elsewhere else "the model's own logits",
    )


def _chunks(trace: Trace, n: int, step: int) -> Iterator[tuple[int, int, torch.Tensor]]:
    """The logits of the first ``n`` positions, a few rows at a time, with the positions of the tokens that they predict."""
    for first in range(0, n, _ROWS):
        block = trace.logits_at(first, min(n, first + _ROWS)).detach()
        for start in range(0, len(block), step):
            rows = block[start : start + step]
            yield first + start + 1, first + start + 1 + len(rows), rows


@analysis(reads=(), source="softmax of the model's logits; z-score over the vocabulary")
def next_token(trace: Trace, *, k: int = 30, position: int = -1, search: str | None = None) -> xr.Dataset:
    """The model's most likely next tokens after a position.

    >>> import lensplorer as lp
    >>> candidates = lp.next_token(lp.run_trace(lp.load_model("storyworld"), "Once upon a"), k=3)
    >>> candidates["rank"].values.tolist(), bool(candidates.probability[0] >= candidates.probability[1])
    ([1, 2, 3], True)

    Args:
        trace: any trace.
        k: how many at most.
        position: the position whose prediction is read; -1 is the last.
        search: keep only tokens whose text contains this, ignoring case; ``rank`` stays the rank in the whole vocabulary.

    Returns:
        (rank): token_id; token, exact text; logit; probability; z_score = (logit - mean) / standard deviation over the vocabulary.
        attrs: position, total_probability of the rows.

    Raises:
        AnalysisError: k is below 1, or logits are NaN or infinite.
        TraceError: the position is outside the prompt.

    Cost: O(d_vocab) and a sort of it; no forward pass.
    """
    if k < 1:
        raise AnalysisError(f"k must be at least 1, got {k}.")
    position = trace.position(position)
    z = trace.logits_at(position, position + 1)[0].detach().float()  # [d_vocab]
    probability = z.softmax(-1)
    if bool(probability[0].isnan()):
        check_finite(trace)
    if search:
        order = torch.sort(z, descending=True, stable=True).indices.cpu()
        texts = _vocabulary(trace.model.tokenizer, len(z))
        matches = np.char.find(texts[order.numpy()], search.lower()) >= 0
        ranks = np.flatnonzero(matches)[:k]
        ids = order[torch.from_numpy(ranks)].to(z.device)
    else:
        ids = torch.topk(z, min(k, len(z))).indices
        ranks = np.arange(len(ids))
    return make_result(
        trace,
        next_token,
        {
            "token_id": (["rank"], ids),
            "token": (["rank"], np.array(token_texts(trace.model.tokenizer, ids.tolist()), dtype=object)),
            "logit": (["rank"], z[ids]),
            "probability": (["rank"], probability[ids]),
            "z_score": (["rank"], (z[ids] - z.mean()) / z.std(correction=0)),
        },
        {"rank": ranks + 1},
        position=position,
        total_probability=float(probability[ids].sum()),
        search=search or "",
    )


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Any, d_vocab: int) -> np.ndarray:
    """Lower-case text of every token, without the escapes of bytes and unknown ids, for searching. [d_vocab]"""
    return np.array([re.sub("⟨.*?⟩", "", text.lower()) for text in token_texts(tokenizer, range(d_vocab))])
