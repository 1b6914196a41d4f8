"""Integrated gradients (Sundararajan et al. 2017): the integral of the gradient along the straight path from the baseline b to the embeddings e.

    score of token s = ∫₀¹ (e_s - b) · ∂F/∂e_s (b + α (e - b)) dα

The path is cut into pieces, each with Boole's rule over five evenly spaced nodes. A piece shows its error in two ways: its scores must sum to
F(high) - F(low), which its own nodes give, and they must agree, token by token, with Simpson's rule over the same nodes. The pieces that err
most are halved, all of their nodes kept, until the error is within the tolerance or the steps or the seconds are used up.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch

from lensplorer.analyses.question import Question
from lensplorer.errors import AnalysisError

_FINE = torch.tensor([7, 32, 12, 32, 7], dtype=torch.float64) / 90  # Boole's rule
_COARSE = torch.tensor([1, 4, 2, 4, 1], dtype=torch.float64) / 12  # Simpson's on both halves
_CUT = 4  # nodes between those of a piece
_FIRST_STEPS = 2 * _CUT + 1


def integrated_gradients(question: Question, *, tolerance: float, max_steps: int, max_seconds: float | None) -> tuple[torch.Tensor, dict[str, Any]]:
    """Scores [row, position], and what is to be said of them.

    Raises:
        AnalysisError: a number outside of its range.
    """
    if not 0 < tolerance < 1:
        raise AnalysisError(f"tolerance must be between 0 and 1, got {tolerance}.")
    if max_steps < _FIRST_STEPS:
        raise AnalysisError(f"max_steps must be at least {_FIRST_STEPS}, got {max_steps}.")
    if max_seconds is not None and not max_seconds > 0:
        raise AnalysisError(f"max_seconds must be above 0, or None for no bound, got {max_seconds}.")
    path = _Path(question)
    pieces = path.pieces(torch.linspace(0, 1, _FIRST_STEPS, dtype=torch.float64))
    difference = pieces[-1].values[-1] - pieces[0].values[0]  # [row]
    while True:
        scores = torch.stack([piece.scores for piece in pieces]).sum(0)  # [row, position]
        allowed = tolerance * torch.cat([difference.abs()[:, None], scores.abs().amax(-1, keepdim=True).expand_as(scores)], -1)
        errors = torch.stack([piece.errors for piece in pieces]) / allowed.clamp_min(question.noise)  # [piece, row, 1 + position]
        # The sum's error is known with its sign; the root of the squares keeps large errors from cancelling by luck.
        error = torch.maximum(errors.square().sum(0).sqrt().amax(-1), errors[..., 0].sum(0).abs())  # [row]
        affordable, bound = path.affordable(max_steps, max_seconds)
        if bool((error <= 1).all()) or affordable == 0:
            break
        pieces = path.refine(pieces, _worst(errors.square().amax((1, 2)))[:affordable])
    start_value = pieces[0].values[0]
    attrs = {
        "baseline_value": start_value.numpy(),
        "completeness": relative_error(scores, difference),
        "error": (tolerance * error).numpy(),
        "steps": path.steps,
    }
    if bool((error > 1).any()):
        attrs["note"] = (
            f"Integrated gradients have not converged: after {path.steps} gradients ({bound}) they may be off by {tolerance * float(error.max()):.1%}"
            f" and not {tolerance:.1%}. Do not read them: raise {bound}, or use method='linear', which is exact after one backward pass."
        )
    return scores, attrs


def _worst(squares: torch.Tensor) -> list[int]:
    """The pieces to halve, the worst first: so many that the others err by half of what is allowed. [piece]"""
    order = squares.argsort(descending=True)
    left = squares[order].flip(0).cumsum(0).flip(0)  # of a piece and of all that err less
    return order[: max(int((left > 0.25).sum()), math.ceil(len(order) / 8))].tolist()


class _Path:
    """F and its slope along the path, and what they have cost."""

    def __init__(self, question: Question) -> None:
        self.question, self.steps, self.started = question, 0, time.perf_counter()
        embeddings = cast(torch.Tensor, question.run(lambda value: value, 1, gradients=True)[1]).detach()[0].double()
        self.change = embeddings - question.start.to(embeddings)  # e - b [position, d_model]

    def at(self, shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """F and its slope through each token. α [node] → [node, row], [node, row, position]"""
        values, slopes = [], []
        for batch in self.question.batches(shares, gradients=True):
            found, leaf = self.question.run(self.question.along(batch), len(batch), gradients=True)
            gradients = gradients_of(found.sum(0), cast(torch.Tensor, leaf))  # [row, node, position, d_model]
            values.append(found.detach().double().cpu())
            slopes.append(torch.einsum("rnpd,pd->nrp", gradients.double(), self.change).cpu())
        self.steps += len(shares)
        return torch.cat(values), torch.cat(slopes)

    def pieces(self, shares: torch.Tensor) -> list[_Piece]:
        """The path in pieces of five nodes of ``shares``, neighbours sharing one."""
        return _pieces(shares, *self.at(shares))

    def refine(self, pieces: list[_Piece], chosen: list[int]) -> list[_Piece]:
        """The pieces, those chosen in halves."""
        between = torch.cat([(pieces[index].shares[1:] + pieces[index].shares[:-1]) / 2 for index in chosen])
        new = zip(*(torch.split(numbers, _CUT) for numbers in (between, *self.at(between))))
        halves = {index: _pieces(*map(_interleaved, pieces[index].numbers, each)) for index, each in zip(chosen, new)}
        return [part for index, piece in enumerate(pieces) for part in halves.get(index, [piece])]

    def affordable(self, max_steps: int, max_seconds: float | None) -> tuple[int, str]:
        """How many pieces can still be halved, and the option that allows no more."""
        by_steps = (max_steps - self.steps) // _CUT
        if max_seconds is None:
            return by_steps, "max_steps"
        seconds = time.perf_counter() - self.started
        by_seconds = max(0, int((max_seconds - seconds) / (seconds / self.steps * _CUT)))
        return min((by_steps, "max_steps"), (by_seconds, "max_seconds"))


@dataclass(frozen=True, eq=False)
class _Piece:
    """A stretch of the path at five nodes: α [node], F [node, row] and its slope through each token [node, row, position]."""

    shares: torch.Tensor
    values: torch.Tensor
    slopes: torch.Tensor

    @property
    def numbers(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.shares, self.values, self.slopes

    def _integral(self, rule: torch.Tensor) -> torch.Tensor:
        return (self.shares[-1] - self.shares[0]) * torch.einsum("n,nrp->rp", rule, self.slopes)

    @cached_property
    def scores(self) -> torch.Tensor:
        """[row, position]"""
        return self._integral(_FINE)

    @cached_property
    def errors(self) -> torch.Tensor:
        """Of the sum of the scores, signed, and of each score. [row, 1 + position]"""
        of_sum = self.scores.sum(-1) - (self.values[-1] - self.values[0])
        return torch.cat([of_sum[:, None], self.scores - self._integral(_COARSE)], -1)


def _pieces(shares: torch.Tensor, values: torch.Tensor, slopes: torch.Tensor) -> list[_Piece]:
    cuts = [slice(start, start + _CUT + 1) for start in range(0, len(shares) - 1, _CUT)]
    return [_Piece(shares[cut], values[cut], slopes[cut]) for cut in cuts]


def _interleaved(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """``new`` between the neighbours of ``old``. [n + 1, ...], [n, ...] → [2 n + 1, ...]"""
    return torch.cat([torch.stack([old[:-1], new], 1).flatten(0, 1), old[-1:]])


def gradients_of(values: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """∂ values[row] / ∂ embeddings, one backward pass each; the graph is kept. [row] → [row, *embeddings.shape]"""
    return torch.stack([torch.autograd.grad(value, embeddings, retain_graph=True)[0] for value in values])


def relative_error(scores: torch.Tensor, difference: torch.Tensor) -> np.ndarray:
    """|Σ scores - difference| / |difference| of each row; 0 when both vanish."""
    delta = (scores.double().sum(-1) - difference).abs()
    return (delta / difference.abs().clamp_min(1e-30)).numpy()
