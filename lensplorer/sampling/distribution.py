"""The sampling pipeline as an analysis: each candidate's probability from p_base to p_final, and what each stage took."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lensplorer.analyses.base import analysis, make_result
from lensplorer.errors import AnalysisError
from lensplorer.sampling.constraints import compile_constraint
from lensplorer.sampling.grammars import Constraint
from lensplorer.sampling.params import DecodingParams
from lensplorer.sampling.pipeline import STAGES, Stages, mass_kept, run_stages, summarise
from lensplorer.tokens import resolve_token, token_texts

if TYPE_CHECKING:
    import xarray as xr

    from lensplorer.trace import Trace


@analysis(reads=(), source="transformers' logits processors; OpenAI's presence and frequency penalties; llguidance masks")
def sampling_distribution(
    trace: Trace,
    *,
    params: DecodingParams | None = None,
    position: int = -1,
    k: int = 30,
    n_prompt: int | None = None,
    constraint: Constraint | None = None,
    chosen: str | int | None = None,
) -> xr.Dataset:
    """How the distribution after a position changes on its way to the choice.

    >>> import lensplorer as lp
    >>> from lensplorer.sampling.distribution import sampling_distribution
    >>> from lensplorer.sampling.params import DecodingParams
    >>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a")
    >>> shown = sampling_distribution(trace, params=DecodingParams(temperature=0.5, top_k=4))
    >>> int(shown.kept.sum()) <= 4, bool((shown.p_final.where(~shown.kept, 0) == 0).all())
    (True, True)

    Args:
        trace: any trace.
        params: the knobs; None: the preset ``"balanced"``.
        position: the position whose prediction is sampled from; -1 is the last.
        k: show the k most likely tokens of the model and the k most likely in the end.
        n_prompt: how many of the tokens up to ``position`` are prompt; the rest is the completion that the presence and frequency penalties
            count and that the constraint governs. None: all are prompt.
        constraint: what the completion must match.
        chosen: a token to show in any case and to mark.

    Returns:
        (candidate), most likely of the model first: token_id; token, exact text; rank in the whole vocabulary, 1 = most likely, ties share it;
        logit; p_base; p_final, 0 when excluded; kept, by every stage; valid, under the constraint; chosen.
        (stage, candidate): p after each stage. (stage): active, whether it ran; n_kept, tokens left; mass_removed, share of the distribution
        after penalties and temperature that it excluded; mass_moved, total variation distance to the stage before; kl, KL(after ‖ before), nats.
        attrs: mass_kept, which with mass_removed adds up to 1; completeness, by how much it does not; total_probability of p_final.

    Raises:
        AnalysisError: k is below 1, or n_prompt is no number of tokens up to the position.
        SamplingError: no token is left, or the constraint is invalid or violated by the completion so far.
        TraceError: the position is outside the prompt.

    Cost: O(d_vocab log d_vocab); no forward pass.
    """
    position = trace.position(position)
    history = trace.tokens[: position + 1].tolist()
    return distribution_of(
        trace,
        trace.logits_at(position, position + 1)[0],
        history,
        params=params or DecodingParams(),
        k=k,
        n_prompt=n_prompt,
        constraint=constraint,
        chosen=chosen,
    )


def stages_of(
    tokenizer: Any, logits: torch.Tensor, history: Sequence[int], *, params: DecodingParams, n_prompt: int, constraint: Constraint | None
) -> Stages:
    """Every stage of the pipeline from the logits after ``history`` [d_vocab], of which ``n_prompt`` tokens are the prompt.

    Raises:
        AnalysisError: n_prompt is no number of tokens of the history.
        SamplingError: as ``sampling_distribution``.
    """
    if not 0 <= n_prompt <= len(history):
        raise AnalysisError(f"n_prompt must be 0 to {len(history)}, the tokens up to position {len(history) - 1}, got {n_prompt}.")
    allowed = None if constraint is None else compile_constraint(constraint, tokenizer, len(logits)).allowed(list(history[n_prompt:]))
    return run_stages(logits, params=params, history=list(history), n_prompt=n_prompt, allowed=allowed)


def distribution_of(
    trace: Trace,
    logits: torch.Tensor,
    history: Sequence[int],
    *,
    params: DecodingParams,
    k: int = 30,
    n_prompt: int | None = None,
    constraint: Constraint | None = None,
    chosen: str | int | None = None,
) -> xr.Dataset:
    """``sampling_distribution`` from the logits after ``history`` [d_vocab]; the trace, of whatever part of it, says whose they are."""
    if k < 1:
        raise AnalysisError(f"k must be at least 1, got {k}.")
    history = list(history)
    position = len(history) - 1
    if n_prompt is None:
        n_prompt = len(history)
    stages = stages_of(trace.model.tokenizer, logits, history, params=params, n_prompt=n_prompt, constraint=constraint)
    mark = -1 if chosen is None else resolve_token(trace.model.tokenizer, chosen, d_vocab=len(logits))
    ids = _candidates(stages, k, mark)
    summaries = summarise(stages)
    kept_mass = mass_kept(stages)
    z = stages.scores["base"]
    p = _by_stage(stages, ids)
    return make_result(
        trace,
        sampling_distribution,
        {
            "token_id": (["candidate"], ids),
            "token": (["candidate"], np.array(token_texts(trace.model.tokenizer, ids.tolist()), dtype=object)),
            "rank": (["candidate"], 1 + torch.cat([(z > some[:, None]).sum(-1) for some in torch.split(z[ids], 64)])),
            "logit": (["candidate"], z[ids]),
            "p_base": (["candidate"], p[0]),
            "p_final": (["candidate"], p[-1]),
            "kept": (["candidate"], stages.kept(ids)),
            "valid": (["candidate"], stages.valid(ids)),
            "chosen": (["candidate"], ids == mark),
            "p": (["stage", "candidate"], p),
            **{name: (["stage"], np.array([getattr(s, name) for s in summaries])) for name in ("active", "n_kept")},
            **{name: (["stage"], np.array([getattr(s, name) for s in summaries])) for name in ("mass_removed", "mass_moved", "kl")},
        },
        {"stage": list(STAGES), "candidate": np.arange(len(ids))},
        units={"kl": "nats"},
        position=position,
        mass_kept=kept_mass,
        completeness=abs(kept_mass + sum(s.mass_removed for s in summaries) - 1),
        total_probability=float(stages.p_final.sum(dtype=torch.float64)),
        n_prompt=n_prompt,
        preset=params.preset_name,
        params=json.dumps(params.to_dict(), ensure_ascii=False),
        constraint="" if constraint is None else f"{constraint.kind}: {constraint.text}",
    )


def _candidates(stages: Stages, k: int, mark: int) -> torch.Tensor:
    """The ids to show, by falling base logit, equals by rising id. [candidate]"""
    z = stages.scores["base"]
    k = min(k, len(z))
    shown = {*torch.topk(z, k).indices.tolist(), *torch.topk(stages.final, k).indices[: int((stages.final > -torch.inf).sum())].tolist()}
    if mark >= 0:
        shown.add(mark)
    return torch.tensor(sorted(shown, key=lambda token: (-float(z[token]), token)))


def _by_stage(stages: Stages, ids: torch.Tensor) -> torch.Tensor:
    """Each candidate's probability after each stage. [stage, candidate]"""
    rows: list[torch.Tensor] = []
    for stage in STAGES:
        rows.append(stages.scores[stage].softmax(-1)[ids] if stage in stages.scores else rows[-1])
    return torch.stack(rows)
