"""Lenses: what the model would predict if it stopped after layer l.

``softcap(W_U · norm_final(h[l]) + b_U)``, the final norm's statistics recomputed for each layer's own residual. The last row is the model's
own prediction; how far it is from that is each result's ``completeness``, max |Δ log p|.

Logits of all layers and positions are never held together: they are made some rows at a time in one buffer, reduced while they are there
(top tokens, chosen tokens, entropy, divergence), and overwritten. Where the time goes is the product with W_U; each reduction is one pass
over the buffer beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lensplorer.analyses.base import analysis, check_finite, choose, make_result, require_finite
from lensplorer.analyses.residual import residual_rows
from lensplorer.analyses.unembedding import ROUNDING, Unembedding
from lensplorer.errors import AnalysisError
from lensplorer.tokens import token_texts

if TYPE_CHECKING:
    import xarray as xr

    from lensplorer.trace import Trace

LENSES = ("logit",)

_STREAM = ("blocks.0.hook_resid_pre", "blocks.*.hook_resid_post")
_CHUNK = 2**23  # logits at a time: 32 MiB in float32, and as much again for their exponentials
_GROUP = 64  # logits per group in the search for the largest


@analysis(
    reads=_STREAM, source="nostalgebraist 2020, the logit lens; final norm recomputed per layer; KL(model || lens) as Belrose et al. 2023", along=1
)
def logit_lens(trace: Trace, *, tokens: Sequence[str | int] | str | None = None, top_k: int = 5, lens: str = "logit") -> xr.Dataset:
    """What each layer would predict, at each position.

    >>> import lensplorer as lp
    >>> grid = lp.logit_lens(lp.run_trace(lp.load_model("storyworld"), "Once upon a"), tokens=[" time"])
    >>> grid.top_token.dims, bool(grid.attrs["completeness"] < 1e-3)
    (('layer', 'position', 'rank'), True)

    Args:
        trace: any trace that read the residual stream.
        tokens: tokens to follow, by text (exactly one token each) or id; or ``"next"``: at each position the token that follows it in the
            prompt (NaN at the last).
        top_k: how many of the most likely tokens to keep.
        lens: which lens; ``"logit"`` is the only one yet.

    Returns:
        - (layer, position, rank): top_token_id, top_token (exact text), top_probability; rank 1 is the most likely.
        - (layer, position): entropy, nats; kl_to_final, KL(model's prediction || lens), nats.
        - with tokens, (layer, position, target): logit; probability; target_rank, 1 = most likely of the whole vocabulary; correlation, the
          probability divided by its maximum over layers. Coordinates: target_id, target_token.

        layer 0 is the embedding, l is after block l - 1. attrs: lens; completeness = max |Δ log p| of the last row to the model's own.

    Raises:
        AnalysisError: top_k below 1; an unknown lens; NaN or infinite activations; or a last row that is not the model's prediction.
        TokenError: one of ``tokens`` is not exactly one token.

    Cost: one product of (n_layers + 1) · position rows with W_U, and about 100 MiB.
    """
    choose("lens", lens, LENSES)
    if top_k < 1:
        raise AnalysisError(f"top_k must be at least 1, got {top_k}.")
    targets, labels = _targets(trace, tokens)
    rows = residual_rows(trace)
    with torch.no_grad():
        grid = _Grid(trace, rows, Unembedding(trace.model), targets, top_k).fill()
    require_finite(trace, grid.entropy, grid.kl)
    ids = grid.top_ids.cpu().numpy()
    dims = ["layer", "position"]
    variables: dict[str, Any] = {
        "top_token_id": ([*dims, "rank"], ids),
        "top_token": ([*dims, "rank"], _texts_of(trace, ids)),
        "top_probability": ([*dims, "rank"], grid.top_probability),
        "entropy": (dims, grid.entropy),
        "kl_to_final": (dims, grid.kl),
    }
    coords: dict[str, Any] = {}
    if targets is not None:
        of_target = [*dims, "target"]
        most = grid.probability.amax(0)
        variables |= {
            "logit": (of_target, grid.logit),
            "probability": (of_target, grid.probability),
            "target_rank": (of_target, grid.rank),
            "correlation": (of_target, grid.probability / most),
        }
        coords = {"target": np.arange(len(labels)), "target_token": ("target", np.array(labels, dtype=object))}
        if not isinstance(tokens, str):
            coords["target_id"] = ("target", targets[0].numpy())
    return make_result(
        trace, logit_lens, variables, coords, units={"entropy": "nats", "kl_to_final": "nats"}, lens=lens, completeness=grid.completeness
    )


@analysis(reads=_STREAM, source="logit lens of two tokens; probabilities over the full vocabulary")
def contrast(trace: Trace, a: str | int, b: str | int, *, position: int = -1) -> xr.Dataset:
    """How the model comes to prefer one token to another, layer by layer.

    >>> import lensplorer as lp
    >>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a", reads=[lp.contrast])
    >>> lp.contrast(trace, " time", " a").logit_difference.dims
    ('layer',)

    Args:
        trace: any trace that read the residual stream.
        a, b: the two tokens, by text (exactly one token, leading space significant) or id.
        position: the position whose prediction is read; -1 is the last.

    Returns:
        (layer): logit_difference, logit(a) - logit(b); probability_difference, p(a) - p(b); probability_a; probability_b. layer 0 is the
        embedding. attrs: a, b (texts), position, completeness = max |Δ log p| of the last row to the model's own.

    Raises:
        TokenError: a or b is not exactly one token; the message names the alternatives.
        TraceError: the position is outside the prompt.
        AnalysisError: activations are NaN or infinite, or the last row is not the model's prediction.

    Cost: one product of n_layers + 1 rows with W_U.
    """
    ids = [trace.token_id(token) for token in (a, b)]
    position = trace.position(position)
    residuals = torch.stack([row[0] for row in residual_rows(trace, position, position + 1)])  # [layer, d_model]
    unembedding = Unembedding(trace.model)
    logits, log_p = [], []
    for chunk in torch.split(residuals, max(1, _CHUNK // unembedding.d_vocab)):
        z = unembedding.logits(chunk)
        logits.append(z[:, ids])
        log_p.append(z[:, ids] - z.logsumexp(-1, keepdim=True))
    own = trace.logits_at(position, position + 1)[0].detach().to(z)
    completeness = _checked(trace, z[-1:], own[None], z[-1:].logsumexp(-1), own[None].logsumexp(-1))
    z_ab, p_ab = torch.cat(logits), torch.cat(log_p).exp()  # [layer, 2]
    require_finite(trace, z_ab)
    texts = token_texts(trace.model.tokenizer, ids)
    return make_result(
        trace,
        contrast,
        {
            "logit_difference": (["layer"], z_ab[:, 0] - z_ab[:, 1]),
            "probability_difference": (["layer"], p_ab[:, 0] - p_ab[:, 1]),
            "probability_a": (["layer"], p_ab[:, 0]),
            "probability_b": (["layer"], p_ab[:, 1]),
        },
        a=texts[0],
        b=texts[1],
        position=position,
        completeness=completeness,
    )


def _checked(trace: Trace, z: torch.Tensor, own: torch.Tensor, log_sum: torch.Tensor, own_log_sum: torch.Tensor) -> float:
    """max |Δ log p| of the last row to the model's own; refuses where rounding does not explain it. [row, d_vocab], [row]"""
    difference = (z - own).sub_((log_sum - own_log_sum)[:, None]).abs_().amax(-1)
    gap, largest = float(difference.max()), float(own.abs().max())
    if not gap <= ROUNDING[trace.dtype] * max(1.0, largest):
        check_finite(trace)
        raise AnalysisError(
            f"The lens at the last layer is not this model's own prediction (max |Δ log p| = {gap:.2g}): this {trace.info.architecture} does"
            " something between its last block and its logits that is not known here, or an intervention does. Refused."
        )
    return gap


def _targets(trace: Trace, tokens: Sequence[str | int] | str | None) -> tuple[torch.Tensor | None, list[str]]:
    """Ids per position [position, target] (-1 where there is none), and labels."""
    if tokens is None:
        return None, []
    if isinstance(tokens, str):
        choose("tokens", tokens, ("next",))
        return torch.cat([trace.tokens[1:], torch.tensor([-1])])[:, None], ["next"]
    ids = [trace.token_id(token) for token in tokens]
    if not ids:
        return None, []
    return torch.tensor(ids).expand(len(trace), -1), token_texts(trace.model.tokenizer, ids)


def _texts_of(trace: Trace, ids: np.ndarray) -> np.ndarray:
    unique, inverse = np.unique(ids, return_inverse=True)
    return np.array(token_texts(trace.model.tokenizer, unique.tolist()), dtype=object)[inverse.reshape(ids.shape)]


@dataclass(eq=False)
class _Grid:
    """The lens at every layer and position, filled some positions and some layers at a time."""

    trace: Trace
    rows: list[torch.Tensor]
    unembedding: Unembedding
    targets: torch.Tensor | None
    top_k: int
    completeness: float = 0.0

    def __post_init__(self) -> None:
        shape = (len(self.rows), len(self.trace))
        top_k = min(self.top_k, self.unembedding.d_vocab)
        like = torch.empty(0, dtype=self.unembedding.dtype, device=self.rows[0].device)
        self.top_ids = torch.empty(*shape, top_k, dtype=torch.long, device=like.device)
        self.top_probability = like.new_empty(*shape, top_k)
        self.entropy, self.kl = like.new_empty(shape), like.new_empty(shape)
        if self.targets is not None:
            self.targets = self.targets.to(like.device)
            self.logit, self.probability, self.rank = (like.new_empty(*shape, self.targets.shape[1]) for _ in range(3))
        # Rows end in a whole number of groups; what is past the vocabulary is so low that its exponential is zero.
        self.width = -(-self.unembedding.d_vocab // _GROUP) * _GROUP
        per_chunk = max(1, _CHUNK // self.width)
        self.n_positions = min(shape[1], per_chunk)
        self.n_layers = min(shape[0], max(1, per_chunk // self.n_positions))
        self.logits = like.new_empty(self.n_layers * self.n_positions, self.width)
        self.logits[:, self.unembedding.d_vocab :] = torch.finfo(like.dtype).min
        self.exponentials = torch.empty_like(self.logits)
        self.final = like.new_zeros(self.n_positions, self.width)

    def fill(self) -> _Grid:
        for first in range(0, len(self.trace), self.n_positions):
            positions = slice(first, min(first + self.n_positions, len(self.trace)))
            self._read_final(positions)
            for lowest in range(0, len(self.rows), self.n_layers):
                self._fill(slice(lowest, min(lowest + self.n_layers, len(self.rows))), positions)
        return self

    def _read_final(self, positions: slice) -> None:
        """The model's own distribution at these positions: its probabilities and its negative entropy."""
        d_vocab, n = self.unembedding.d_vocab, positions.stop - positions.start
        self.own = self.trace.logits_at(positions.start, positions.stop).detach().to(self.final)
        own = self.own
        highest = own.amax(-1)
        p = self.final[:n, :d_vocab]
        torch.sub(own, highest[:, None], out=p)
        exponential = p.exp()
        total = exponential.sum(-1)
        log_total = total.log()
        exponential.div_(total[:, None])
        self.final_negative_entropy = torch.linalg.vecdot(exponential, p) - log_total
        self.final_log_sum = highest + log_total
        p.copy_(exponential)

    def _fill(self, layers: slice, positions: slice) -> None:
        """These layers at these positions: row = layer-major pairs of both."""
        n_layers, n = layers.stop - layers.start, positions.stop - positions.start
        residual = torch.stack([row[positions] for row in self.rows[layers]]).flatten(0, 1)  # [row, d_model]
        padded, exponential = self.logits[: n_layers * n], self.exponentials[: n_layers * n]  # [row, width]
        z = padded[:, : self.unembedding.d_vocab]
        self.unembedding.logits(residual, out=z)

        top_z, top_ids = _top(padded, min(self.top_k, self.unembedding.d_vocab))
        highest = top_z[:, :1]
        if layers.stop == len(self.rows):
            last = z[-n:]
            log_sum = last.logsumexp(-1)
            self.completeness = max(self.completeness, _checked(self.trace, last, self.own.to(last), log_sum, self.final_log_sum))
        z.sub_(highest)  # both sums below then lose nothing to a large common constant
        torch.exp(padded, out=exponential)
        total = exponential.sum(-1)
        log_total = total.log()
        self.top_ids[layers, positions] = top_ids.view(n_layers, n, -1)
        self.top_probability[layers, positions] = ((top_z - highest).exp() / total[:, None]).view(n_layers, n, -1)
        # H = ln Σ e^z - Σ p z, and KL(q || p) = Σ q ln q - Σ q z + ln Σ e^z.
        self.entropy[layers, positions] = (log_total - torch.linalg.vecdot(exponential, padded) / total).clamp_min_(0).view(n_layers, n)
        cross = torch.linalg.vecdot(padded.view(n_layers, n, -1), self.final[None, :n])
        self.kl[layers, positions] = (log_total.view(n_layers, n) - cross + self.final_negative_entropy).clamp_min_(0)
        if self.targets is not None:
            self._follow(layers, positions, z, highest, log_total)

    def _follow(self, layers: slice, positions: slice, z: torch.Tensor, highest: torch.Tensor, log_total: torch.Tensor) -> None:
        """Logit, probability and rank of the chosen tokens."""
        assert self.targets is not None
        shape = (layers.stop - layers.start, positions.stop - positions.start)
        ids = self.targets[positions].expand(*shape, -1).flatten(0, 1)  # [row, target]
        found = z.gather(1, ids.clamp_min(0))
        for column in range(ids.shape[1]):
            above = (z > found[:, column, None]).sum(-1, dtype=torch.int32)
            self.rank[layers, positions, column] = torch.where(ids[:, column] < 0, torch.nan, above + 1.0).view(shape)
        missing = torch.where(ids < 0, torch.nan, 0.0)
        self.logit[layers, positions] = (found + highest + missing).view(*shape, -1)
        self.probability[layers, positions] = ((found - log_total[:, None]).exp() + missing).view(*shape, -1)


def _top(padded: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row, and where they are: ``padded.topk(k)`` in one fast pass. [row, k]

    The k largest lie in the k groups with the largest maxima, so that only those need be sorted.
    """
    n_rows, width = padded.shape
    groups = padded.view(n_rows, -1, _GROUP)
    best = groups.amax(-1).topk(min(k, width // _GROUP)).indices  # [row, group]
    members = groups.gather(1, best[:, :, None].expand(-1, -1, _GROUP)).flatten(1)  # [row, group · _GROUP]
    values, at = members.topk(k)
    return values, best.gather(1, at // _GROUP) * _GROUP + at % _GROUP
