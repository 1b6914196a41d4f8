"""From logits to one token, with nothing hidden in between.

The stages, in order: repetition penalty; frequency and presence penalties; temperature; constraint mask; top-k; top-p; min-p; for greedy
decoding, the most likely token alone; then softmax and the choice. A stage that changes nothing is not run.

Which tokens a penalty counts. *Repetition* (Keskar et al. 2019, CTRL) counts every token before this one, the prompt and its BOS included, each
once: that is what transformers does, and what a value copied from elsewhere was tuned under. *Frequency* and *presence* count the completion
alone, as OpenAI defines them ("how often that token was sampled"): z[j] - count[j] · frequency - (count[j] > 0) · presence, in that order
of subtraction, which float arithmetic can tell apart from the other.

Repetition and temperature are transformers' own processors. Top-k, top-p and min-p give what transformers' give, bit for bit, in a fraction of
the time: its top-p sorts indices along with a vocabulary of 150,000, which takes as long as a step of a small model, where a sort of the values
will do; its min-p looks for tokens to spare, which a threshold below the maximum always does; its top-k sorts the k. Its top-p leaves open which of
several exactly equal logits at the boundary stay, since its sort is unstable; here the lowest ids stay, as in greedy decoding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lensplorer.errors import SamplingError
from lensplorer.sampling.params import DecodingParams

#: Every stage, in order; ``"base"`` is the model's own distribution.
STAGES = ("base", "repetition", "frequency", "presence", "temperature", "constraint", "top_k", "top_p", "min_p", "greedy")

#: Those that exclude tokens; the ones before them reshape.
EXCLUDING = STAGES[STAGES.index("constraint") :]


@dataclass(frozen=True, eq=False)
class Stages:
    """What each stage made of the logits.

    Attributes:
        scores: stage → logits after it, for ``"base"`` and the stages that ran. [d_vocab] each, float32, CPU
        allowed: which tokens the constraint admits, or None without a constraint. [d_vocab], bool
        p_final: the distribution that the token is chosen from. [d_vocab]
    """

    scores: dict[str, torch.Tensor]
    allowed: torch.Tensor | None
    p_final: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "p_final", self.final.softmax(-1))

    @property
    def final(self) -> torch.Tensor:
        """Logits after the last stage, -inf where excluded. [d_vocab]"""
        return next(reversed(self.scores.values()))

    @property
    def p_base(self) -> torch.Tensor:
        """The model's own distribution. [d_vocab]"""
        return self.scores["base"].softmax(-1)

    def kept(self, ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Which of these tokens can be drawn. [id], bool"""
        return self.final[ids] > -torch.inf

    def valid(self, ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Which of these tokens the constraint admits: all without one. [id], bool"""
        return self.allowed[ids] if self.allowed is not None else torch.ones(len(ids), dtype=torch.bool)


@dataclass(frozen=True)
class Summary:
    """What one stage did to the whole distribution.

    Attributes:
        stage: its name.
        active: whether it ran.
        n_kept: tokens with a probability after it.
        mass_removed: what it excluded, as a share of the distribution after penalties and temperature. These shares and the mass of what
            is kept in the end add up to 1.
        mass_moved: total variation distance between the distributions before and after it.
        kl: KL(after ‖ before), nats.
    """

    stage: str
    active: bool
    n_kept: int
    mass_removed: float
    mass_moved: float
    kl: float


def run_stages(
    logits: torch.Tensor,
    *,
    params: DecodingParams,
    history: Sequence[int] = (),
    n_prompt: int | None = None,
    allowed: np.ndarray | torch.Tensor | None = None,
) -> Stages:
    """Run the logits of one position through every stage.

    >>> stages = run_stages(torch.tensor([2.0, 1.0, -1.0]), params=DecodingParams(temperature=1.0, top_k=2, top_p=1.0))
    >>> [name for name in stages.scores], bool(stages.p_final[2] == 0)
    (['base', 'top_k'], True)

    Args:
        logits: the model's logits at one position; -inf marks a token that cannot be. [d_vocab]
        params: the knobs.
        history: ids of every token before the one to choose.
        n_prompt: how many of ``history`` are prompt; None: all of them.
        allowed: which tokens a constraint admits here. [d_vocab], bool

    Raises:
        SamplingError: the logits are NaN or +inf, or no token is left.

    Cost: O(d_vocab log d_vocab) with top-p, else O(d_vocab); about 3 ms for 150,000 tokens.
    """
    if logits.ndim != 1:
        raise SamplingError(f"The logits of one position have shape [d_vocab], got {list(logits.shape)}.")
    if allowed is not None and len(allowed) != len(logits):
        raise SamplingError(f"The constraint mask is of {len(allowed)} tokens, and the logits of {len(logits)}.")
    history = list(history)
    completion = [] if n_prompt is None else history[n_prompt:]
    mask = None if allowed is None else torch.as_tensor(allowed, dtype=torch.bool)
    z = logits.detach().float().cpu()[None]  # [1, d_vocab]
    _check(z, "The model's logits")
    scores = {"base": z}
    for stage, run in _active_stages(params, history, completion, mask).items():
        z = run(z)
        _check(z, f"After the stage {stage!r} the logits")
        scores[stage] = z
    return Stages({stage: z[0] for stage, z in scores.items()}, mask)


def _active_stages(
    params: DecodingParams, history: list[int], completion: list[int], mask: torch.Tensor | None
) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """The stages that change something, each a function [1, d_vocab] → [1, d_vocab]."""
    from transformers.generation import logits_process as theirs

    ids = torch.tensor([history], dtype=torch.long)
    stages: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    if params.repetition_penalty != 1 and history:
        repetition = theirs.RepetitionPenaltyLogitsProcessor(params.repetition_penalty)
        stages["repetition"] = lambda z: repetition(ids, z)
    counts = Counter(completion)
    said, times = torch.tensor(list(counts), dtype=torch.long), torch.tensor(list(counts.values()), dtype=torch.float32)
    if params.frequency_penalty and counts:
        stages["frequency"] = lambda z: z.index_add(1, said, times[None] * params.frequency_penalty, alpha=-1)
    if params.presence_penalty and counts:
        stages["presence"] = lambda z: z.index_add(1, said, torch.full_like(times[None], params.presence_penalty), alpha=-1)
    if not params.is_greedy and params.temperature != 1:
        temperature = theirs.TemperatureLogitsWarper(params.temperature)
        stages["temperature"] = lambda z: temperature(ids, z)
    if mask is not None:
        stages["constraint"] = lambda z: _masked(z, mask)
    if params.top_k:
        stages["top_k"] = lambda z: _top_k(z, params.top_k)
    if params.top_p < 1:
        stages["top_p"] = lambda z: _top_p(z, params.top_p)
    if params.min_p:
        stages["min_p"] = lambda z: _min_p(z, params.min_p)
    if params.is_greedy:
        stages["greedy"] = _most_likely
    return stages


def _check(z: torch.Tensor, what: str) -> None:
    top = float(z.max())  # NaN if any is
    if top == -np.inf:
        raise SamplingError(f"{what} admit no token here: every one is excluded.")
    if not np.isfinite(top):
        raise SamplingError(f"{what} hold {'NaN' if np.isnan(top) else 'infinity'}: no distribution can be made of them.")


def _masked(z: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """-inf where the mask is False: a minimum with ±inf, since choosing element by element is four times slower on an irregular mask."""
    return torch.minimum(z, mask[None].float().mul_(2).sub_(1).mul_(torch.inf))


def _from(z: torch.Tensor, boundary: torch.Tensor) -> torch.Tensor:
    """-inf below ``boundary``, by the fastest operation that does it; it keeps what is above its threshold."""
    return torch.nn.functional.threshold(z, float(np.nextafter(boundary.numpy(), np.float32(-np.inf))), -torch.inf)


def _top_k(z: torch.Tensor, top_k: int) -> torch.Tensor:
    at = max(0, z.shape[1] - top_k)
    return _from(z, torch.from_numpy(np.partition(z.numpy()[0], at))[at])


def _top_p(z: torch.Tensor, top_p: float) -> torch.Tensor:
    ascending = torch.from_numpy(np.sort(z.numpy(), axis=-1))  # values alone: thirty times faster than with indices
    below = ascending.softmax(-1).cumsum(-1)[0].numpy()  # mass of each token and of those less likely
    n_removed = int(np.searchsorted(below, np.float32(1 - top_p), side="right"))  # as many as are <= 1 - top_p
    n_removed = min(n_removed, z.shape[1] - 1)  # one token always stays
    boundary = ascending[0, n_removed]
    kept = _from(z, boundary)
    if ascending[0, n_removed - 1] == boundary and n_removed > 0:  # only some of those that equal the boundary stay
        tied = torch.nonzero(z[0] == boundary)[:, 0]
        n_above = z.shape[1] - int(np.searchsorted(ascending[0].numpy(), boundary.numpy(), side="right"))
        kept[0, tied[z.shape[1] - n_removed - n_above :]] = -torch.inf
    return kept


def _min_p(z: torch.Tensor, min_p: float) -> torch.Tensor:
    p = z.softmax(-1)
    below = p.numpy() < (min_p * p.max()).numpy()
    return z.masked_fill(torch.from_numpy(below), -torch.inf)


def _most_likely(z: torch.Tensor) -> torch.Tensor:
    token = int(np.argmax(z.numpy()[0]))  # numpy promises the first of equals
    only = torch.full_like(z, -torch.inf)
    only[0, token] = z[0, token]
    return only


def pick(p: torch.Tensor, draw: float) -> int:
    """The token whose share of [0, 1), in the order of ids, holds ``draw``.

    >>> [pick(torch.tensor([0.25, 0.0, 0.75]), draw) for draw in (0.0, 0.24, 0.25, 0.99)]
    [0, 0, 2, 2]
    """
    values = p.numpy()
    kept = np.flatnonzero(values > 0)
    edges = np.cumsum(values[kept], dtype=np.float64)
    return int(kept[np.searchsorted(edges[:-1], draw * edges[-1], side="right")])


def draw_for(seed: int | None, branch: int, position: int) -> float:
    """A number in [0, 1) for one token: the same for the same three, and unrelated for others.

    Nothing is consumed, so undoing, redoing and other branches cannot disturb it. Without a seed it is fresh each time.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(branch, position))
    return float(sequence.generate_state(1, np.uint64)[0] >> np.uint64(11)) * 2.0**-53


def summarise(stages: Stages) -> list[Summary]:
    """What each stage did, in the order of ``STAGES``; those that did not run changed nothing.

    Cost: O(d_vocab) for each stage that ran.
    """
    summaries = [Summary("base", True, _n_kept(stages.scores["base"]), 0.0, 0.0, 0.0)]
    whole = _log_mass(_shaped(stages))
    before = stages.scores["base"]
    for stage in STAGES[1:]:
        after = stages.scores.get(stage)
        if after is None:
            summaries.append(Summary(stage, False, summaries[-1].n_kept, 0.0, 0.0, 0.0))
            continue
        if stage in EXCLUDING:  # what is kept grows in proportion, so the mass kept says all
            log_before, log_after = _log_mass(before), _log_mass(after)
            removed = math.exp(log_before - whole) - math.exp(log_after - whole)
            moved, kl = -math.expm1(log_after - log_before), log_before - log_after
        else:
            log_p, log_q = after.log_softmax(-1), before.log_softmax(-1)
            p, q = log_p.exp(), log_q.exp()
            removed, moved = 0.0, float((q - p).clamp_(min=0).sum(dtype=torch.float64))
            kl = float(torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dtype=torch.float64))
        summaries.append(Summary(stage, True, _n_kept(after), removed, moved, max(0.0, kl)))
        before = after
    return summaries


def mass_kept(stages: Stages) -> float:
    """The share of the distribution after penalties and temperature that the excluding stages leave."""
    return float(_shaped(stages).double().softmax(-1)[stages.final > -torch.inf].sum())


def _shaped(stages: Stages) -> torch.Tensor:
    return next(z for stage, z in reversed(stages.scores.items()) if stage not in EXCLUDING)


def _log_mass(z: torch.Tensor) -> float:
    return float(z.double().logsumexp(-1))


def _n_kept(z: torch.Tensor) -> int:
    return int(np.count_nonzero(z.numpy() > -np.inf))
