"""Interventions in a session: part of its state, so undone and saved with it; and the plain model's run beside the changed one.

Each set of interventions has keys and values of its own, and so a ``TokenTree`` of its own: the plain model and the changed one each take one
step per token, never the prompt again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lensplorer.errors import PromptError, SessionError
from lensplorer.interventions.saving import from_dict, to_dict
from lensplorer.models import LensModel
from lensplorer.running import Intervention, Reads, resolve_reads
from lensplorer.stepping import TokenTree
from lensplorer.trace import Trace

if TYPE_CHECKING:
    import xarray as xr

    from lensplorer.session import State


class InterventionSession:
    """What a ``Session`` can do with interventions."""

    if TYPE_CHECKING:
        model: LensModel
        state: State

        @property
        def ids(self) -> tuple[int, ...]: ...

        def _become(self, state: State) -> None: ...

        def _require_model(self) -> None: ...

    def _keep_trees(self, reads: Reads, max_bytes: int | None) -> None:
        self._plain = TokenTree(self.model, reads=reads, max_bytes=max_bytes)
        self._reads, self._max_bytes = reads, self._plain.max_bytes
        self._changed: TokenTree | None = None

    def read_also(self, reads: Reads) -> None:
        """Have each trace from now on cache these activations too (those of an SAE, say).

        Raises:
            TraceError: the model has no such activation. The session is as it was.

        Cost: when any of them is new, what has been run is forgotten: one more run of the prompt.
        """
        before, more = resolve_reads(self.model, self._reads), resolve_reads(self.model, reads)
        if not more <= before:
            self._keep_trees(sorted(before | more), self._max_bytes)

    @property
    def tree(self) -> TokenTree:
        """What has been run under the interventions there are now."""
        interventions = self.interventions
        if not interventions:
            return self._plain
        if self._changed is None or self._changed.interventions != interventions:
            share = self._max_bytes // 2
            self._changed = TokenTree(self.model, reads=self._reads, interventions=interventions, max_bytes=share)
            self._plain.max_bytes = share
        return self._changed

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """The changes under which the model runs, in order. Setting them is an action like any other: it can be undone, and is saved."""
        return self.state.interventions

    @interventions.setter
    def interventions(self, interventions: Iterable[Intervention]) -> None:
        self._become(replace(self.state, interventions=checked(self.model, interventions)))

    def intervene(self, *interventions: Intervention) -> None:
        """Add interventions to those there are.

        >>> import lensplorer as lp
        >>> session = lp.Session(lp.load_model("storyworld"), "Once upon a")
        >>> session.intervene(lp.ablate_mlp(0))
        >>> session.interventions, session.undo(), session.interventions
        ((ablate('blocks.0.hook_mlp_out'),), None, ())

        Raises:
            AnalysisError, TraceError, SAEError: the model has no such head, layer or hook, or cannot be edited there. The session is as it was.
        """
        self.interventions = (*self.interventions, *interventions)

    def remove_intervention(self, index: int = -1) -> None:
        """Take one intervention off; -1 is the last.

        Raises:
            SessionError: there is no such one.
        """
        n = len(self.interventions)
        if not -n <= index < n:
            raise SessionError(f"There is no intervention {index}: the session has {n}.")
        kept = list(self.interventions)
        del kept[index]
        self.interventions = tuple(kept)

    def plain_trace(self) -> Trace:
        """``trace()`` without the interventions: the plain model's run beside the changed one.

        Raises:
            as ``trace``.

        Cost: one step per token not seen before, as ``trace``.
        """
        self._require_model()
        if not self.ids:
            raise PromptError("The prompt is empty: give at least one token of text.")
        return self._plain.trace(self._plain.extend(self._plain.root, self.ids))

    def running_diff(self, *, k: int = 10) -> xr.Dataset:
        """The plain model's next tokens beside the changed one's: ``next_token_change`` at the last position.

        Raises:
            as ``trace``; AnalysisError: k is below 1.

        Cost: one step of each per token not seen before; it does not grow with the prompt.
        """
        from lensplorer.analyses.comparison import next_token_change

        self._require_model()
        if not self.ids:
            raise PromptError("The prompt is empty: give at least one token of text.")
        windows = [tree.window(tree.extend(tree.root, self.ids)) for tree in (self._plain, self.tree)]
        return next_token_change(windows[0], windows[1], k=k).assign_attrs(position=len(self.ids) - 1)


def checked(model: LensModel, interventions: Iterable[Intervention]) -> tuple[Intervention, ...]:
    """The interventions, each asked for its hooks once, so that one that does not fit the model is refused before it is kept."""
    found = tuple(interventions)
    for intervention in found:
        if not isinstance(intervention, Intervention):
            raise SessionError(f"{intervention!r} is no intervention: lensplorer.interventions makes them, e.g. ablate_head(1, 3).")
        intervention.hooks(model, range(1))
    return found


def saved_interventions(interventions: Sequence[Any]) -> list[dict[str, Any]]:
    """As they stand in a session file.

    Raises:
        SessionError: one is not of ``lensplorer.interventions``.
    """
    return [to_dict(intervention) for intervention in interventions]


def read_interventions(saved: Iterable[Mapping[str, Any]], *, saes: Iterable[Any] = ()) -> tuple[Intervention, ...]:
    """Out of a session file."""
    at_hand = tuple(saes)
    return tuple(from_dict(item, saes=at_hand) for item in saved)
