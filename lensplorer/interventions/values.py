"""What interventions are made of: positions, borrowed activations, and the edit of one hook.

Positions are absolute, from 0: a step with a KV cache runs only the last one, and an edit of position 3 has nothing to do there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch

from lensplorer.errors import AnalysisError, TraceError, check_unicode
from lensplorer.interventions.checks import check_editable, check_heads
from lensplorer.models import LensModel, model_info
from lensplorer.running import Hook, Intervention, run_model
from lensplorer.segments import is_attention, position_axis
from lensplorer.tokens import visible
from lensplorer.trace import Trace, prompt_ids
from lensplorer.weights import Weights, weights_of

#: A part of an activation, [batch, chosen position, ...] or [batch, chosen position, chosen head, ...], and its absolute positions →
#: what stands in its place.
Change: TypeAlias = Callable[[torch.Tensor, list[int]], torch.Tensor]

PositionsLike: TypeAlias = "Positions | int | Iterable[int] | slice | None"
HeadsLike: TypeAlias = int | Iterable[int] | None


@dataclass(frozen=True)
class Positions:
    """Absolute positions: the ``chosen`` ones, or without them all from ``start`` on."""

    chosen: tuple[int, ...] | None = None
    start: int = 0

    def __post_init__(self) -> None:
        if self.start < 0 or (self.chosen and self.chosen[0] < 0):
            raise AnalysisError(f"Positions of an intervention are absolute, from 0, got {self!r}.")
        if self.chosen is not None and any(later <= earlier for earlier, later in pairwise(self.chosen)):
            raise AnalysisError(f"Positions of an intervention are given once each, in order, got {self!r}.")

    @classmethod
    def of(cls, positions: PositionsLike) -> Positions:
        """From None (all), a position, several, or a slice without step, which may be open: ``slice(5, None)``.

        Raises:
            AnalysisError: a position is negative: the last one of a growing prompt is another at each step.
        """
        if positions is None:
            return cls()
        if isinstance(positions, Positions):
            return positions
        if isinstance(positions, slice):
            start = positions.start or 0
            if positions.step not in (None, 1) or start < 0 or (positions.stop or 0) < 0:
                raise AnalysisError(f"A slice of positions counts from 0 and has no step, got {positions}.")
            return cls(start=int(start)) if positions.stop is None else cls(tuple(range(start, positions.stop)))
        chosen = tuple(sorted({int(p) for p in ([positions] if isinstance(positions, int) else positions)}))
        if chosen and chosen[0] < 0:
            raise AnalysisError(f"Positions of an intervention are absolute, from 0, got {chosen[0]}: trace.position({chosen[0]}) is that one.")
        return cls(chosen)

    def within(self, run: range) -> list[int]:
        """Those that a run over ``run`` covers, ascending."""
        if self.chosen is None:
            return list(range(max(run.start, self.start), run.stop))
        return [p for p in self.chosen if p in run]

    def __repr__(self) -> str:
        if self.chosen is None:
            return "None" if self.start == 0 else f"slice({self.start}, None)"
        return str(self.chosen[0]) if len(self.chosen) == 1 else str(list(self.chosen))


ALL = Positions()


def as_heads(heads: HeadsLike) -> tuple[int, ...] | None:
    """Heads in order, once each; None stands for all.

    Raises:
        AnalysisError: one is negative, or there is none.
    """
    if heads is None:
        return None
    found = tuple(sorted({int(h) for h in ([heads] if isinstance(heads, int) else heads)}))
    if not found or found[0] < 0:
        raise AnalysisError(f"Heads are counted from 0, and at least one is expected, got {list(found)}.")
    return found


def index(what: str, value: int) -> int:
    """A layer, head, position or feature, which counts from 0."""
    if isinstance(value, bool) or int(value) != value or value < 0:
        raise AnalysisError(f"A {what} of an intervention is a whole number from 0, got {value!r}.")
    return int(value)


def check_heads_given(heads: tuple[int, ...] | None) -> None:
    """
    Raises:
        AnalysisError: they are not as ``as_heads`` gives them.
    """
    if as_heads(heads) != heads:
        raise AnalysisError(f"Heads of an intervention are given once each, in order, got {heads}.")


def check_finite(what: str, value: float) -> None:
    """
    Raises:
        AnalysisError: it is infinite or not a number.
    """
    if not math.isfinite(value):
        raise AnalysisError(f"The {what} of an intervention is a finite number, got {value}.")


def option(name: str, value: Any, default: Any) -> str:
    """``, name=value`` for a printed call, or nothing where it is the default."""
    return "" if value == default else f", {name}={value!r}"


def where(positions: Positions) -> str:
    """``, positions=…`` for a printed call, or nothing where all are meant."""
    return "" if positions == ALL else f", positions={positions!r}"


# -- borrowed activations --------------------------------------------------------------------------------------------------------


def model_key(model: LensModel) -> str:
    """What tells whose activations they are, e.g. ``"storyworld (default, float32)"``."""
    info = model_info(model)
    revision = f"@{info.revision}" if info.revision else ""
    return f"{info.name}{revision} ({info.processing}, {info.dtype})"


@dataclass(frozen=True, repr=False)
class Reference:
    """Another run whose activations are borrowed: what was fed and under which changes, and so a value; the tensors are only kept.

    Attributes:
        prompt: the ids fed, or a text that each model encodes its own way.
        model: ``model_key`` of the model that ran; empty for a text, which stands for a run of whichever model asks.
        interventions: the changes under which it ran.
    """

    prompt: tuple[int, ...] | str
    model: str = ""
    interventions: tuple[Intervention, ...] = ()
    _known: WeakKeyDictionary[Weights, dict[str, torch.Tensor]] = field(default_factory=WeakKeyDictionary, compare=False)

    def __post_init__(self) -> None:
        if not self.prompt:
            raise AnalysisError("Activations are borrowed from a trace or a text, and this one is empty.")
        if isinstance(self.prompt, str):
            check_unicode(self.prompt, "The text that activations are borrowed from", AnalysisError)

    @classmethod
    def of(cls, source: Any, hooks: Sequence[str] = ()) -> Reference:
        """From a trace, whose activations at ``hooks`` are kept if it read them, or a text.

        Raises:
            AnalysisError: it is neither.
        """
        if isinstance(source, Reference):
            return source
        if isinstance(source, str) and source:
            return cls(source)
        if not isinstance(source, Trace):
            raise AnalysisError(f"Activations are borrowed from a trace or a text, not from {source!r}.")
        reference = cls(tuple(source.tokens.tolist()), model_key(source.model), source.interventions)
        reference._known[source.weights or weights_of(source.model)] = {hook: source[hook].detach().clone() for hook in hooks if hook in source}
        return reference

    @classmethod
    def several(cls, sources: Any, hooks: Sequence[str] = ()) -> tuple[Reference, ...]:
        """From one trace or text, or several."""
        listed = [sources] if isinstance(sources, (str, Trace, Reference)) else list(sources)
        if not listed:
            raise AnalysisError("A reference set needs at least one trace or text.")
        return tuple(cls.of(source, hooks) for source in listed)

    def __repr__(self) -> str:
        changed = f", {len(self.interventions)} interventions" if self.interventions else ""
        if isinstance(self.prompt, str):
            return f"'{visible(self.prompt)}'"
        shown = ", ".join(map(str, self.prompt[:6])) + (", …" if len(self.prompt) > 6 else "")
        return f"trace([{shown}]{changed})"

    def activation(self, model: LensModel, hook: str) -> torch.Tensor:
        """The activation at ``hook``. [position, ...]

        Raises:
            AnalysisError: another model ran, and its activation was not kept.

        Cost: one run over the prompt, the first time, unless the trace had it.
        """
        if self.model and self.model != model_key(model):
            for kept in self._known.values():
                if hook in kept:
                    return kept[hook]
            raise AnalysisError(
                f"These activations are of {self.model}, and the model that runs is {model_key(model)}: load that one, or trace this one."
            )
        kept = self._known.setdefault(weights_of(model), {})
        if hook not in kept:
            ids = prompt_ids(model, self.prompt if isinstance(self.prompt, str) else list(self.prompt))
            run = run_model(model, torch.tensor([ids]), reads=[hook], interventions=self.interventions)
            if hook not in run.activations:
                raise AnalysisError(f"The model has the hook {hook!r} but does not reach it in a run.")
            kept[hook] = run.activations[hook][0]
        return kept[hook]


# -- the edit of one hook --------------------------------------------------------------------------------------------------------


def edit(
    model: LensModel, name: str, run: range, change: Change, *, positions: Positions, heads: tuple[int, ...] | None = None, backend_check: bool = True
) -> list[Hook]:
    """The hook that replaces the chosen part of an activation by ``change`` of it; none where the run covers no chosen position.

    Attention is laid out as everything else: [batch, query, head, source].

    Raises:
        TraceError: the model has no such hook.
        AnalysisError: what it computes with is not what the hook gives back, or it has no such head.
    """
    if backend_check:
        check_editable(model, name)
    check_heads(model, name, heads)
    at = positions.within(run)
    if not at:
        return []
    bridge = model_info(model).backend == "bridge"

    def function(value: torch.Tensor, hook: Any) -> torch.Tensor:
        axis = 2 if is_attention(name) else 1 + position_axis(name, value[0], head_first=bridge)
        laid = value.movedim(axis, 1)
        if laid.shape[1] != len(run):
            raise TraceError(f"{name!r} of shape {list(value.shape)} is not one value per position of {len(run)}, so its positions cannot be edited.")
        rows = torch.tensor(at, device=value.device) - run.start
        edited = laid.clone()
        if heads is None:
            edited[:, rows] = change(laid[:, rows], at)
        else:
            chosen = rows[:, None], torch.tensor(heads, device=value.device)
            edited[:, chosen[0], chosen[1]] = change(laid[:, chosen[0], chosen[1]], at)
        return edited.movedim(1, axis)

    return [(name, function)]
