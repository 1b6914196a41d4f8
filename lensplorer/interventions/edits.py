"""The interventions themselves: frozen values, equal when they mean the same, that become hooks of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lensplorer.arguments import expects
from lensplorer.errors import AnalysisError, did_you_mean
from lensplorer.interventions.checks import check_hook, check_layer, check_writes
from lensplorer.interventions.values import (
    ALL,
    HeadsLike,
    Positions,
    PositionsLike,
    Reference,
    as_heads,
    check_finite,
    check_heads_given,
    edit,
    index,
    option,
    where,
)
from lensplorer.models import LensModel
from lensplorer.running import Hook
from lensplorer.segments import is_attention
from lensplorer.trace import Trace

ABLATIONS = ("zero", "mean", "resample")


@dataclass(frozen=True, repr=False)
class Ablation:
    """Activations replaced by ones that know nothing of the prompt. Made by ``ablate_head`` and its like.

    Attributes:
        names: the hooks whose activation is replaced.
        heads: of those, or None for all.
        method: ``"zero"``; ``"mean"`` over the positions of the reference set; ``"resample"``, each position from one drawn from them.
        reference: the reference set; empty for ``"zero"``.
        seed: of the draws; the draw for a position is the same in every run.
    """

    names: tuple[str, ...]
    heads: tuple[int, ...] | None = None
    positions: Positions = ALL
    method: str = "zero"
    reference: tuple[Reference, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ABLATIONS:
            raise AnalysisError(f"Unknown method {self.method!r}.{did_you_mean(self.method, ABLATIONS)}")
        if bool(self.reference) != (self.method != "zero"):
            wanted = "needs reference=, a trace or text or several" if self.method != "zero" else "takes no reference"
            raise AnalysisError(f"method={self.method!r} {wanted}.")
        if not self.names:
            raise AnalysisError("ablate needs the name of at least one hook, such as 'blocks.0.hook_mlp_out'.")
        if not -(2**63) <= self.seed < 2**63:
            raise AnalysisError("The seed of an ablation is a whole number of 64 bits.")
        check_heads_given(self.heads)

    def hooks(self, model: LensModel, positions: range) -> list[Hook]:
        found: list[Hook] = []
        for name in self.names:
            check_hook(model, name)
            if name.endswith(("hook_attn_out", "hook_mlp_out")):
                check_writes(model, int(name.split(".")[1]))
            found += edit(model, name, positions, self._change(model, name), positions=self.positions, heads=self.heads)
        return found

    def _change(self, model: LensModel, name: str) -> Any:
        if self.method == "zero":
            return lambda part, at: torch.zeros_like(part)
        if is_attention(name):
            raise AnalysisError(f"Attention has other sources in every prompt: {name!r} can be ablated by method='zero' alone, not {self.method!r}.")
        rows = torch.cat([_after_first(reference.activation(model, name)) for reference in self.reference])  # [row, ...]
        if self.heads is not None:
            rows = rows[:, list(self.heads)]
        mean = rows.mean(0)

        def change(part: torch.Tensor, at: list[int]) -> torch.Tensor:
            if self.method == "mean":
                return mean.to(part).expand_as(part)
            generator = torch.Generator().manual_seed(self.seed)
            draws = torch.randint(len(rows), (at[-1] + 1,), generator=generator)[at]
            return rows[draws.to(rows.device)].to(part).expand_as(part)

        return change

    def __repr__(self) -> str:
        heads = option("heads", None if self.heads is None else list(self.heads), None)
        seed = option("seed", self.seed, 0) if self.method == "resample" else ""
        return f"ablate({', '.join(map(repr, self.names))}{heads}{where(self.positions)}{self._how()}{seed})"

    def _how(self) -> str:
        return "" if self.method == "zero" else f", method={self.method!r}, reference={list(self.reference)}"


def _after_first(activation: torch.Tensor) -> torch.Tensor:
    """Without the first position, the attention sink of most models, where there are others."""
    return activation[1:] if len(activation) > 1 else activation


@expects
def ablate(
    *hooks: str, heads: HeadsLike = None, method: str = "zero", reference: Any = None, seed: int = 0, positions: PositionsLike = None
) -> Ablation:
    """Replace activations by ones that know nothing of the prompt.

    >>> ablate("blocks.0.attn.hook_z", heads=[2, 1]) == ablate("blocks.0.attn.hook_z", heads=(1, 2, 2))
    True

    Args:
        hooks: names of activations.
        heads: which of their heads; None: all, or an activation without heads.
        method: ``"zero"``; ``"mean"`` of the reference set; ``"resample"``, at each position the activation of a position drawn from the
            reference set, the same draw for the same position in every run.
        reference: for ``"mean"`` and ``"resample"``: a trace, a text, or several. Their first positions, attention sinks, are left out.
        seed: of the draws.
        positions: absolute positions, from 0: one, several, or a slice (``slice(5, None)`` is 5 and all that follow). None: all.

    Raises:
        AnalysisError: an unknown method, a reference missing or idle, a negative position or head. When it runs: a layer or head that the
            model lacks, a hook that it does not compute with.
        TraceError: when it runs, a hook that the model does not have.
    """
    references = () if reference is None else Reference.several(reference, hooks)
    return Ablation(tuple(hooks), as_heads(heads), Positions.of(positions), method, references, seed if method == "resample" else 0)


@expects
def ablate_head(layer: int, head: HeadsLike, **options: Any) -> Ablation:
    """Ablate one head, or several, of a block: what they read (``hook_z``), before W_O, so that no bias goes with them.

    >>> ablate_head(3, 5)
    ablate('blocks.3.attn.hook_z', heads=[5])

    Args:
        layer: the block, from 0.
        head: one or several, from 0.
        options: ``method``, ``reference``, ``seed``, ``positions`` of ``ablate``.

    Raises:
        AnalysisError: no head is given, a negative layer or head, or as ``ablate``. When it runs: no such block or head.
    """
    if head is None:
        raise AnalysisError("ablate_head needs a head, or several. ablate_attention takes all, with the output bias.")
    return ablate(f"blocks.{index('layer', layer)}.attn.hook_z", heads=head, **options)


@expects
def ablate_attention(layer: int, **options: Any) -> Ablation:
    """Ablate all that a block's attention adds to the residual stream, its biases and the norm after it included.

    >>> ablate_attention(0, positions=3)
    ablate('blocks.0.hook_attn_out', positions=3)

    Args:
        layer: the block, from 0.
        options: ``method``, ``reference``, ``seed``, ``positions`` of ``ablate``.

    Raises:
        AnalysisError: a negative layer, or as ``ablate``. When it runs: no such block.
    """
    return ablate(f"blocks.{index('layer', layer)}.hook_attn_out", **options)


@expects
def ablate_mlp(layer: int, **options: Any) -> Ablation:
    """Ablate all that a block's MLP adds to the residual stream, its biases and the norm after it included.

    >>> ablate_mlp(0)
    ablate('blocks.0.hook_mlp_out')

    Args:
        layer: the block, from 0.
        options: ``method``, ``reference``, ``seed``, ``positions`` of ``ablate``.

    Raises:
        AnalysisError: a negative layer, or as ``ablate``. When it runs: no such block.
    """
    return ablate(f"blocks.{index('layer', layer)}.hook_mlp_out", **options)


@expects
def ablate_layer(layer: int, **options: Any) -> Ablation:
    """Ablate attention and MLP of a block: with ``method="zero"`` the residual stream passes through it unchanged.

    >>> ablate_layer(1)
    ablate('blocks.1.hook_attn_out', 'blocks.1.hook_mlp_out')

    Args:
        layer: the block, from 0.
        options: ``method``, ``reference``, ``seed``, ``positions`` of ``ablate``.

    Raises:
        AnalysisError: a negative layer, or as ``ablate``. When it runs: no such block.
    """
    return ablate(f"blocks.{index('layer', layer)}.hook_attn_out", f"blocks.{layer}.hook_mlp_out", **options)


@expects
def ablate_position(position: PositionsLike, *, layer: int = 0, **options: Any) -> Ablation:
    """Ablate the residual stream of a position, or several, on its way into a block; at block 0, the token itself.

    >>> ablate_position(3)
    ablate('blocks.0.hook_resid_pre', positions=3)

    Args:
        position: absolute, from 0; one, several or a slice.
        layer: the block, from 0.
        options: ``method``, ``reference``, ``seed`` of ``ablate``.

    Raises:
        AnalysisError: a negative layer, or as ``ablate``. When it runs: no such block.
    """
    return ablate(f"blocks.{index('layer', layer)}.hook_resid_pre", positions=position, **options)


@dataclass(frozen=True, repr=False)
class Patch:
    """An activation replaced by that of another run, position by position. Made by ``patch``."""

    name: str
    reference: Reference
    positions: Positions = ALL
    heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_heads_given(self.heads)

    def hooks(self, model: LensModel, positions: range) -> list[Hook]:
        check_hook(model, self.name)
        source = self.reference.activation(model, self.name)
        if is_attention(self.name):
            source = source.movedim(1, 0)  # [query, head, source]
        covered = range(positions.start, min(positions.stop, len(source)))
        at = self.positions.within(covered)
        if self.positions.chosen and self.positions.chosen[-1] >= len(source):
            raise AnalysisError(
                f"Position {self.positions.chosen[-1]} is to be patched from a run of {len(source)} tokens: expected 0 to {len(source) - 1}."
            )

        def change(part: torch.Tensor, at: list[int]) -> torch.Tensor:
            rows = source[at] if self.heads is None else source[at][:, list(self.heads)]
            if is_attention(self.name):  # as many sources as this run has; none lies beyond a query
                wider = rows.new_zeros(*rows.shape[:-1], part.shape[-1])
                n = min(part.shape[-1], rows.shape[-1])
                wider[..., :n] = rows[..., :n]
                rows = wider
            if rows.shape != part.shape[1:]:
                raise AnalysisError(f"{self.name!r} is {list(part.shape[2:])} per position here and {list(rows.shape[1:])} in the run patched from.")
            return rows.to(part).expand_as(part)

        return edit(model, self.name, positions, change, positions=Positions(tuple(at)), heads=self.heads)

    def __repr__(self) -> str:
        heads = option("heads", None if self.heads is None else list(self.heads), None)
        return f"patch({self.name!r}, {self.reference!r}{where(self.positions)}{heads})"


@expects
def patch(hook: str, trace: Trace | str, *, positions: PositionsLike = None, heads: HeadsLike = None) -> Patch:
    """Put the activation of another run in place of this one's, at the same positions.

    >>> import lensplorer as lp
    >>> model = lp.load_model("storyworld")
    >>> clean = lp.run_trace(model, "The capital of France is")
    >>> patched = lp.run_trace(model, "The capital of Norway is", interventions=[lp.patch("blocks.0.hook_resid_pre", clean)])
    >>> bool((patched.logits - clean.logits).abs().max() < 1e-3)
    True

    Args:
        hook: name of the activation, e.g. ``"blocks.3.hook_resid_pre"`` or ``"blocks.3.attn.hook_pattern"`` (rows are queries).
        trace: the run borrowed from, or a text. It is saved as its tokens and interventions, and run again when loaded.
        positions: absolute positions (see ``ablate``); None: all that the trace has.
        heads: which heads; None: all.

    Raises:
        As ``ablate``; AnalysisError when it runs: a position that the trace does not have.
    """
    return Patch(hook, Reference.of(trace, [hook]), Positions.of(positions), as_heads(heads))


@dataclass(frozen=True, repr=False)
class Scale:
    """An activation times a number. Made by ``scale``."""

    name: str
    factor: float
    positions: Positions = ALL
    heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_finite("factor", self.factor)
        check_heads_given(self.heads)

    def hooks(self, model: LensModel, positions: range) -> list[Hook]:
        return edit(model, self.name, positions, lambda part, at: part * self.factor, positions=self.positions, heads=self.heads)

    def __repr__(self) -> str:
        heads = option("heads", None if self.heads is None else list(self.heads), None)
        return f"scale({self.name!r}, {self.factor:g}{where(self.positions)}{heads})"


@expects
def scale(hook: str, factor: float, *, positions: PositionsLike = None, heads: HeadsLike = None) -> Scale | Ablation:
    """Multiply an activation by a number.

    >>> scale("blocks.0.hook_mlp_out", 0) == ablate_mlp(0)
    True

    Args:
        hook, positions, heads: as ``patch``.
        factor: 0 is the same as ``ablate``.

    Raises:
        AnalysisError: a negative or relative position, or a head that is no whole number from 0.
        TraceError: when it runs: the model has no such activation.
    """
    if float(factor) == 0:
        return ablate(hook, heads=heads, positions=positions)
    return Scale(hook, float(factor), Positions.of(positions), as_heads(heads))


@dataclass(frozen=True, repr=False)
class KnockOut:
    """Attention from some positions to others taken away. Made by ``knock_out_attention``."""

    layer: int
    heads: tuple[int, ...] | None
    sources: Positions
    queries: Positions
    renormalise: bool = True

    def __post_init__(self) -> None:
        check_heads_given(self.heads)

    def hooks(self, model: LensModel, positions: range) -> list[Hook]:
        check_layer(model, self.layer)

        def change(part: torch.Tensor, at: list[int]) -> torch.Tensor:
            kept = part.clone()  # [batch, query, head, source]
            kept[..., self.sources.within(range(part.shape[-1]))] = 0
            if self.renormalise:
                kept = kept * (part.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp_min(torch.finfo(part.dtype).tiny))
            return kept

        return edit(model, f"blocks.{self.layer}.attn.hook_pattern", positions, change, positions=self.queries, heads=self.heads)

    def __repr__(self) -> str:
        heads = None if self.heads is None else self.heads[0] if len(self.heads) == 1 else list(self.heads)
        return f"knock_out_attention({self.layer}, {heads}, {self.sources!r}, {self.queries!r}{option('renormalise', self.renormalise, True)})"


@expects
def knock_out_attention(layer: int, head: HeadsLike, source: PositionsLike, query: PositionsLike = None, *, renormalise: bool = True) -> KnockOut:
    """Keep heads from reading some positions.

    >>> knock_out_attention(1, 3, source=2, query=7)
    knock_out_attention(1, 3, 2, 7)

    Args:
        layer: the block, from 0.
        head: one, several, or None for all.
        source: the positions not to be read (see ``ablate`` for how they are given).
        query: the positions that may not read them; None: all.
        renormalise: share the weight taken among the other sources, as masking before the softmax does; False leaves it missing. A query
            all of whose weight is taken reads nothing.

    Raises:
        AnalysisError: when it runs: a layer or head out of range; or a model whose patterns are read-only, which the bridge's are for some
            architectures (OPT, GPT-J, GPT-Neo).
    """
    return KnockOut(index("layer", layer), as_heads(head), Positions.of(source), Positions.of(query), bool(renormalise))
