"""What an attribution explains: F, one number per row, as a function of the token embeddings.

A row is one target at one position: its logit, log-probability or probability, or the difference to a second token. ``attribute`` asks one
row, ``attribution_matrix`` one per generated token, and every method serves any number of rows of the same runs.

F is a function of ``hook_embed``: the embedding of each token as the first block receives it (scaled where the model scales it), before any
learned position is added. Positions are part of the model and are attributed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lensplorer.errors import AnalysisError, TraceError
from lensplorer.running import EMBEDDING_HOOK, Hook, run_model
from lensplorer.sizes import batch_rows
from lensplorer.trace import Trace

OBJECTIVES = ("logit", "log_prob", "prob")
BASELINES = ("zero", "mean", "pad")

_UNEMBED_INPUT = "unembed.hook_in"
#: Memory for the activations of one batch, graph included. Larger batches gain little on an accelerator.
_BATCH_BYTES = 2**30

#: Embeddings as the model computes them → what they are replaced with. [batch, position, d_model]
Replace = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Question:
    """Rows to explain, on one trace.

    Attributes:
        trace: the run they are asked about; its interventions hold in every further run.
        positions: where each row's prediction is made, ascending. [row]
        targets: token of each row. [row]
        versus: token whose F is subtracted, of each row, or None. [row]
        objective: what is read of the logits, see ``OBJECTIVES``.
        start: the embeddings from which contributions count. [d_model]
    """

    trace: Trace
    positions: tuple[int, ...]
    targets: torch.Tensor
    versus: torch.Tensor | None
    objective: str
    start: torch.Tensor

    @property
    def rows(self) -> int:
        return len(self.positions)

    @property
    def length(self) -> int:
        """Tokens that a further run feeds: up to the last position asked, since what comes later changes nothing before it.

        All of them under interventions, which may look at the whole prompt.
        """
        return len(self.trace) if self.trace.interventions else self.positions[-1] + 1

    def of_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """F of each row, from the logits at the rows' positions. [batch, row, d_vocab] → [batch, row]"""
        z = logits.float() if logits.dtype != torch.float64 else logits
        if self.objective == "log_prob":
            z = z.log_softmax(-1)
        elif self.objective == "prob":
            z = z.softmax(-1)
        of_target = self._pick(z, self.targets)
        return of_target if self.versus is None else of_target - self._pick(z, self.versus)

    @staticmethod
    def _pick(z: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return z.gather(-1, tokens.to(z.device).expand(len(z), -1)[..., None])[..., 0]

    def _own_logits(self) -> torch.Tensor:
        """The trace's logits at the rows' positions. [row, d_vocab]"""
        return torch.cat([self.trace.logits_at(position, position + 1) for position in self.positions])

    def of_trace(self) -> torch.Tensor:
        """F of each row as the trace ran, with its graph if it has one. [row]

        Raises:
            AnalysisError: a logit is not finite.
        """
        value = self.of_logits(self._own_logits()[None])[0]
        if not bool(value.isfinite().all()):
            raise AnalysisError(f"The model's prediction to be explained is not finite.{first_not_finite(self.trace)}")
        return value

    def run(self, replace: Replace, batch: int, *, gradients: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """F [batch, row] with the embeddings replaced, and the replaced embeddings as the graph's leaf [batch, position, d_model]."""
        positions = torch.tensor(self.positions)
        # Only the rows' positions are unembedded: the vocabulary is the largest product of a small model.
        hooks: list[Hook] = [
            (EMBEDDING_HOOK, lambda value, hook: replace(value).to(value.dtype)),
            (_UNEMBED_INPUT, lambda value, hook: value[:, positions.to(value.device)]),
        ]
        tokens = self.trace.tokens[: self.length].expand(batch, -1)
        run = run_model(self.trace.model, tokens, interventions=self.trace.interventions, hooks=hooks, gradients=gradients)
        with torch.set_grad_enabled(gradients):
            return self.of_logits(run.logits), run.embeddings

    def of_path(self, shares: torch.Tensor) -> torch.Tensor:
        """F at points of the straight path from the start (0) to the prompt (1), without graph. [point] → [point, row], CPU float64"""
        pieces = [self.run(self.along(piece), len(piece))[0].double().cpu() for piece in self.batches(shares, gradients=False)]
        return torch.cat(pieces)

    def along(self, shares: torch.Tensor) -> Replace:
        """Replaces a batch of embeddings by points of the path."""

        def move(value: torch.Tensor) -> torch.Tensor:
            start = self.start.to(value)
            return start + shares.to(value)[:, None, None] * (value - start)

        return move

    def without(self, keep: torch.Tensor) -> torch.Tensor:
        """F with each position's embedding kept or replaced by the start, without graph. [case, position] bool → [case, row], CPU float64"""
        if len(keep) == 0:
            return torch.zeros(0, self.rows, dtype=torch.float64)
        pieces = []
        for piece in self.batches(keep[:, : self.length], gradients=False):

            def swap(value: torch.Tensor, piece: torch.Tensor = piece) -> torch.Tensor:
                return torch.where(piece.to(value.device)[..., None], value, self.start.to(value))

            pieces.append(self.run(swap, len(piece))[0].double().cpu())
        return torch.cat(pieces)

    def batches(self, cases: torch.Tensor, *, gradients: bool) -> Iterator[torch.Tensor]:
        """``cases`` in pieces whose runs fit the memory for one batch."""
        cfg: Any = self.trace.model.cfg
        d_mlp = int(cfg.d_mlp or 4 * cfg.d_model)
        per_block = self.length * (20 * int(cfg.d_model) + 5 * d_mlp + 5 * int(cfg.n_heads) * self.length)
        kept = self.trace.n_layers if gradients else 2  # without a graph a block's activations are freed after it
        numbers = kept * per_block + 3 * self.rows * int(cfg.d_vocab)
        yield from torch.split(cases, batch_rows(self.trace.model, self.length, 4 * numbers, _BATCH_BYTES))

    @property
    def noise(self) -> float:
        """What rounding in the model's dtype does to F: differences below it mean nothing."""
        logits = self._own_logits().detach()
        return float(torch.finfo(logits.dtype).eps * logits.abs().max())

    def pad(self, attributions: torch.Tensor) -> np.ndarray:
        """Attributions with exact zeros for the tokens after each row's position. [row, ≤ position] → [row, position], float32"""
        full = torch.zeros(self.rows, len(self.trace))
        for row, position in enumerate(self.positions):
            full[row, : position + 1] = attributions[row, : position + 1].detach().float().cpu()
        if not bool(full.isfinite().all()):
            raise AnalysisError(f"The attribution is not finite.{first_not_finite(self.trace)}")
        return full.numpy()


def default_baseline(trace: Trace) -> str:
    """``"zero"`` where the model adds learned positions to the embeddings, else ``"mean"``.

    Without positions a zero embedding is a zero residual, and a norm divides by its length: F jumps within the first millionths of the path
    from there, and integrated gradients are large numbers that cancel.
    """
    return "zero" if trace.model.cfg.positional_embedding_type == "standard" else "mean"


def baseline_embedding(trace: Trace, baseline: str) -> torch.Tensor:
    """The embedding that stands for "no token", as it appears at ``hook_embed``. [d_model]

    ``zero``: zeros. ``mean``: the mean over the vocabulary. ``pad``: the padding token.

    Raises:
        AnalysisError: the model has no padding token, or its embedding cannot be read outside a run.
    """
    model: Any = trace.model
    if baseline == "zero":
        return torch.zeros(int(model.cfg.d_model), device=model.cfg.device)
    if baseline == "pad":
        token = getattr(model.tokenizer, "pad_token_id", None)
        if token is None:
            raise AnalysisError("baseline='pad': this model's tokenizer has no padding token. Use 'zero' or 'mean'.")
        run = run_model(model, torch.tensor([[token]]), reads=[EMBEDDING_HOOK])
        return run.activations[EMBEDDING_HOOK][0, 0].float()
    with torch.no_grad():
        vocabulary = torch.arange(int(model.cfg.d_vocab), device=model.cfg.device)
        total = torch.stack([model.embed(piece[None])[0].float().sum(0).double() for piece in torch.split(vocabulary, 2**14)]).sum(0)
        probe = trace.tokens[:1].to(model.cfg.device)
        seen = run_model(model, probe[None], reads=[EMBEDDING_HOOK]).activations[EMBEDDING_HOOK][0]
        if not torch.allclose(model.embed(probe[None])[0], seen):
            raise AnalysisError("baseline='mean': this model changes embeddings on the way to its first block. Use 'zero' or 'pad'.")
    return (total / len(vocabulary)).float()


def needs_gradients(trace: Trace, method: str, alternatives: tuple[str, ...]) -> torch.Tensor:
    """The trace's embeddings as the leaf of its graph. [1, position, d_model]

    Raises:
        TraceError: the trace ran without gradients.
    """
    if trace.embeddings is None:
        raise TraceError(
            f"{method!r} needs a trace run with run_trace(model, prompt, gradients=True); this one has no gradients."
            f" Without them: {', '.join(map(repr, alternatives))}."
        )
    return trace.embeddings


def first_not_finite(trace: Trace) -> str:
    """A sentence that names the first block whose activations are not finite, as far as the trace read them."""
    for layer in range(trace.n_layers):
        for name, value in trace.cache.cache_dict.items():
            if name.startswith(f"blocks.{layer}.") and value.is_floating_point() and not bool(value.isfinite().all()):
                return f" The first activation that is not finite is {name!r}, in layer {layer}."
    return ""
