"""Sampling in a session: one step, many, what each token was chosen from, and when to stop.

``SamplingSession`` is the part of ``Session`` that samples. The knobs and the constraint are settings, outside of undo; each token that was chosen
remembers those it was chosen under (``ChosenToken``), so that its distribution can be shown again and another token taken.

The *completion* of a prompt is what follows its first ``n_given`` tokens, however it came there. The constraint governs all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from lensplorer.errors import SamplingError, SessionError
from lensplorer.models import LensModel, model_info
from lensplorer.sampling.constraints import CompiledConstraint, compile_constraint
from lensplorer.sampling.grammars import Constraint
from lensplorer.sampling.params import DecodingParams
from lensplorer.sampling.pipeline import draw_for, pick, run_stages
from lensplorer.sampling.stopping import end_ids, reached_stop
from lensplorer.tokens import token_text

if TYPE_CHECKING:
    import xarray as xr

    from lensplorer.session import PromptState, State
    from lensplorer.stepping import TokenTree

#: Why generation ends → how a page says it.
STOP_REASONS = {
    "end_of_text": "the model ended the text",
    "stop_sequence": "a stop sequence was reached",
    "constraint_complete": "the constraint is complete",
    "context_full": "the context is full",
}


#: The knobs, the constraint, and whether the model is on.
SamplingSettings: TypeAlias = tuple[DecodingParams, Constraint | None, bool]


@dataclass(frozen=True)
class ChosenToken:
    """How the token at one position was chosen: enough to show again what it was chosen from.

    Attributes:
        position: where it stands in the prompt.
        how: ``"sampled"``, ``"greedy"`` or ``"forced"`` (by a person).
        params, constraint: the settings then.
        n_prompt: how many tokens were prompt then.
        draw: the number in [0, 1) that picked it; None unless sampled.
    """

    position: int
    how: str
    params: DecodingParams
    constraint: Constraint | None
    n_prompt: int
    draw: float | None = None


@dataclass(frozen=True)
class Step:
    """One token that was sampled.

    Attributes:
        position, token_id, token: where and what it is; the exact text.
        p_base: its probability in the model's own distribution.
        p_final: its probability in the distribution it was chosen from.
        how: ``"sampled"`` or ``"greedy"``.
        stop_reason: a key of ``STOP_REASONS`` when generation ends with it, else None.
    """

    position: int
    token_id: int
    token: str
    p_base: float
    p_final: float
    how: str
    stop_reason: str | None


def holding(before: PromptState, after: PromptState) -> tuple[ChosenToken, ...]:
    """The choices of ``before`` that are still about the completion when its ids have become those of ``after``."""
    same = next((at for at, (one, other) in enumerate(zip(before.ids, after.ids)) if one != other), min(len(before.ids), len(after.ids)))
    return tuple(choice for choice in before.choices if after.n_given <= choice.position < same)


class SamplingSession:
    """What a ``Session`` can do with the sampling pipeline."""

    if TYPE_CHECKING:
        model: LensModel
        state: State

        @property
        def tree(self) -> TokenTree: ...

        @property
        def ids(self) -> tuple[int, ...]: ...

        def _become(self, state: State) -> None: ...

        def _replaced(self, prompt: PromptState) -> State: ...

    def __init__(self) -> None:
        self._decoding = DecodingParams()
        self._constraint: Constraint | None = None
        self._model_on = True

    # -- settings ------------------------------------------------------------------------------------------------------------------

    @property
    def decoding(self) -> DecodingParams:
        """The knobs of the next step. May be set to a ``DecodingParams`` or to the name of a preset."""
        return self._decoding

    @decoding.setter
    def decoding(self, params: DecodingParams | str) -> None:
        self._decoding = DecodingParams.preset(params) if isinstance(params, str) else params

    @property
    def constraint(self) -> Constraint | None:
        """What completions must match, or None. Setting it is ``constrain``."""
        return self._constraint

    @constraint.setter
    def constraint(self, constraint: Constraint | None) -> None:
        self.constrain(constraint)

    def constrain(self, constraint: Constraint | None, *, from_here: bool = False) -> None:
        """Restrict completions to what matches ``constraint``; None lifts it.

        Args:
            constraint: what to match.
            from_here: count all the text so far as prompt, so that the match begins with the next token.

        Raises:
            SamplingError: it is invalid, admits nothing, or the completion so far does not fit it. The session is as it was.
        """
        n_given = len(self.ids) if from_here else self.state.prompt.n_given
        if constraint is not None:
            compiled = self._compiled(constraint)
            completion = self.ids[n_given:]
            try:
                compiled.require(completion)
            except SamplingError as error:
                raise SamplingError(f"{error} Take it off, or use constrain(..., from_here=True).") from error
            compiled.allowed(completion)
        if n_given != self.state.prompt.n_given:
            self._become(self._replaced(replace(self.state.prompt, n_given=n_given)))
        self._constraint = constraint

    @property
    def model_on(self) -> bool:
        """Whether the model may run. Switched off, text is edited freely and the constraint is not checked."""
        return self._model_on

    @model_on.setter
    def model_on(self, on: bool) -> None:
        self._model_on = bool(on)

    # -- steps ---------------------------------------------------------------------------------------------------------------------

    def sample_step(self, n: int = 1) -> list[Step]:
        """Let the model choose the next token, or up to ``n``: one action, one undo.

        Returns:
            The steps taken; fewer than ``n`` when the last one has a ``stop_reason``.

        Raises:
            SessionError: n is below 1, the model is switched off, or generation has stopped already.
            PromptError: the prompt is empty.
            SamplingError: no token is left to choose from. The session is as it was.

        Cost: one cached step of the model and about a tenth of one for each token.
        """
        if n < 1:
            raise SessionError(f"At least one step is taken, not {n}.")
        if self.stop_reason is not None:
            raise SessionError(f"Generation has stopped: {STOP_REASONS[self.stop_reason]}. Take a token off or append one to go on.")
        prompt, steps = self.state.prompt, list[Step]()
        while len(steps) < n and not (steps and steps[-1].stop_reason):
            prompt, step = self._sampled(prompt)
            steps.append(step)
        self._become(self._replaced(prompt))
        return steps

    def play(self, n: int | None = None) -> Iterator[Step]:
        """Take steps one by one, each an action of its own, until generation stops or ``n`` are taken; at once if it has stopped already.

        The caller sets the pace and pauses by not asking for more. What a person does in between (another prompt, undo, other knobs) counts
        from the next step on.

        Raises:
            as ``sample_step``.
        """
        taken = 0
        while (n is None or taken < n) and self.stop_reason is None:
            yield self.sample_step()[0]
            taken += 1

    @property
    def stop_reason(self) -> str | None:
        """Why generation cannot go on from here, a key of ``STOP_REASONS``; None if it can."""
        return self._stop_reason(self.state.prompt)

    # -- what was chosen from ------------------------------------------------------------------------------------------------------

    def distribution_at(self, position: int | None = None, *, k: int = 30) -> xr.Dataset:
        """What the token at ``position`` was chosen from; None: what the next one would be, under the settings of now.

        ``choose(position, token)`` takes another of its candidates.

        Returns:
            As ``sampling_distribution``, with attrs ``token_position``; ``how``, "sampled", "greedy", "forced", "given" (with the prompt) or
            "next"; ``draw``, the number that picked it, where one was drawn.

        Raises:
            SessionError: the position is not 1 to the number of tokens, or the model is switched off.
            SamplingError: as ``sample_step``.
        """
        from lensplorer.sampling.distribution import distribution_of

        self._require_model()
        prompt = self.state.prompt
        at = len(prompt.ids) if position is None else position
        if not 1 <= at <= len(prompt.ids):
            raise SessionError(f"No distribution came before position {at}: expected 1 to {len(prompt.ids)}.")
        choice = next((choice for choice in prompt.choices if choice.position == at), None)
        if choice is None:
            is_next = at == len(prompt.ids)
            choice = ChosenToken(at, "next" if is_next else "given", self._decoding, self._constraint if is_next else None, min(prompt.n_given, at))
        node = self.tree.extend(self.tree.root, prompt.ids[:at])
        result = distribution_of(
            self.tree.window(node),
            self.tree.logits(node),
            prompt.ids[:at],
            params=choice.params,
            k=k,
            n_prompt=choice.n_prompt,
            constraint=choice.constraint,
            chosen=prompt.ids[at] if at < len(prompt.ids) else None,
        )
        result.attrs |= {"token_position": at, "how": choice.how} | ({} if choice.draw is None else {"draw": choice.draw})
        return result

    # -- inside --------------------------------------------------------------------------------------------------------------------

    def _sampled(self, prompt: PromptState) -> tuple[PromptState, Step]:
        """``prompt`` with one more token."""
        self._require_model()
        params, ids = self._decoding, prompt.ids
        if not ids:
            raise SessionError("There is nothing to go on from: the prompt is empty.")
        stages = run_stages(
            self.tree.logits(self.tree.extend(self.tree.root, ids)),
            params=params,
            history=ids,
            n_prompt=prompt.n_given,
            allowed=self._allowed(prompt),
        )
        how = "greedy" if params.is_greedy else "sampled"
        draw = None if params.is_greedy else draw_for(params.seed, prompt.key, len(ids))
        token_id = pick(stages.p_final, draw or 0.0)
        choice = ChosenToken(len(ids), how, params, self._constraint, prompt.n_given, draw)
        longer = replace(prompt, ids=(*ids, token_id), choices=(*prompt.choices, choice))
        p_base, p_final = float(stages.p_base[token_id]), float(stages.p_final[token_id])
        return longer, Step(len(ids), token_id, token_text(self.model.tokenizer, token_id), p_base, p_final, how, self._stop_reason(longer))

    def _stop_reason(self, prompt: PromptState) -> str | None:
        completion = prompt.ids[prompt.n_given :]
        if completion and completion[-1] in end_ids(self.model.tokenizer):
            return "end_of_text"
        if reached_stop(self.model.tokenizer, completion, self._decoding.stop_sequences) is not None:
            return "stop_sequence"
        if self._constraint is not None and self._compiled(self._constraint).is_complete(completion):
            return "constraint_complete"
        return "context_full" if len(prompt.ids) >= model_info(self.model).n_ctx else None

    def _forced(self, prompt: PromptState, new: Sequence[int]) -> PromptState:
        """``prompt`` with tokens that a person put there, each with what it was chosen from.

        Raises:
            SamplingError: they violate the constraint.
        """
        ids = (*prompt.ids, *new)
        if not self._model_on:
            return replace(prompt, ids=ids)
        if self._constraint is not None:
            self._compiled(self._constraint).require(ids[prompt.n_given :])
        choices = tuple(
            ChosenToken(at, "forced", self._decoding, self._constraint, prompt.n_given) for at in range(max(1, len(prompt.ids)), len(ids))
        )
        return replace(prompt, ids=ids, choices=(*prompt.choices, *choices))

    def _most_likely(self) -> int:
        """The model's first choice, among what the constraint admits."""
        self._require_model()
        logits = self.tree.logits(self.tree.extend(self.tree.root, self.ids)).float().cpu()
        allowed = self._allowed(self.state.prompt)
        if allowed is not None:
            logits = logits.masked_fill(~torch.from_numpy(allowed), -torch.inf)
        return int(logits.argmax())

    def _allowed(self, prompt: PromptState) -> np.ndarray | None:
        return None if self._constraint is None else self._compiled(self._constraint).allowed(prompt.ids[prompt.n_given :])

    def _compiled(self, constraint: Constraint) -> CompiledConstraint:
        return compile_constraint(constraint, self.model.tokenizer, int(self.model.cfg.d_vocab))

    def _require_model(self) -> None:
        if not self._model_on:
            raise SessionError("The model is switched off: set model_on = True.")

    # -- files ---------------------------------------------------------------------------------------------------------------------

    def _sampling_content(self) -> dict[str, Any]:
        constraint = self._constraint
        return {
            "decoding": self._decoding.to_dict(),
            "constraint": None if constraint is None else {"kind": constraint.kind, "text": constraint.text},
            "model_on": self._model_on,
        }

    def _take_up_sampling(self, saved: SamplingSettings) -> None:
        self._decoding, self._constraint, self._model_on = saved
