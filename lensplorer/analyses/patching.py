"""Patching: which activation of a clean run, put into a corrupt one, brings the clean answer back.

The effect of a patch is (m(patched) - m(corrupt)) / (m(clean) - m(corrupt)): 0 where it changes nothing, 1 where it restores the metric m
(Meng et al. 2022; Wang et al. 2022; Heimersheim and Nanda 2024). **Attribution patching** is its first-order estimate about the corrupt run,
Σ (a_clean - a_corrupt) · ∂m/∂a, all cells from one backward pass (Nanda 2023; Syed et al. 2023). It is an estimate: ``confirm_patching``
really patches its top cells.

A direct contribution is not an effect either: ``verify_by_ablation`` puts both side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch

from lensplorer.alignment import align_tokens
from lensplorer.analyses.base import analysis, choose, make_result
from lensplorer.analyses.components import component_attribution
from lensplorer.analyses.metrics import Measure, Metric, MetricLike, measure
from lensplorer.analyses.residual import residual_decomposition
from lensplorer.errors import AnalysisError
from lensplorer.interventions.checks import check_editable, check_hook, check_writes
from lensplorer.linear import LINEAR
from lensplorer.running import Hook, run_model
from lensplorer.sizes import batch_rows
from lensplorer.trace import Trace

if TYPE_CHECKING:
    import xarray as xr

#: what is patched → its hook in each block, and what a cell of the grid is besides its layer
SITES: dict[str, tuple[str, str]] = {
    "resid_pre": ("blocks.{}.hook_resid_pre", "position"),
    "resid_mid": ("blocks.{}.hook_resid_mid", "position"),
    "resid_post": ("blocks.{}.hook_resid_post", "position"),
    "attn_out": ("blocks.{}.hook_attn_out", "position"),
    "mlp_out": ("blocks.{}.hook_mlp_out", "position"),
    "z": ("blocks.{}.attn.hook_z", "head"),
    "pattern": ("blocks.{}.attn.hook_pattern", "head"),
}
_ALIASES = {"head_output": "z", "attention_output": "attn_out", "attention_pattern": "pattern"}

_SOURCE = "Meng et al. 2022; Wang et al. 2022; Heimersheim and Nanda 2024"
_BATCH_BYTES = 2**29

#: (runs done, runs in all) → None, after each batch; what it raises ends the analysis, and leaves no hook behind.
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class _Cell:
    """One run of a batch: the activation that it edits, which slice of it, and what is put there.

    Attributes:
        name: the hook.
        axis: of the slice, without batch dimension; None: all of the activation.
        unit: which slice.
        source: an activation whose slice replaces it; None: zeros.
    """

    name: str
    axis: int | None = None
    unit: int = 0
    source: torch.Tensor | None = None


@analysis(reads=(), source=_SOURCE)
def activation_patching(
    clean: Trace, corrupt: Trace, hook: str, metric: MetricLike, *, batch_size: int | None = None, progress: Progress | None = None
) -> xr.Dataset:
    """How much of the clean answer each activation brings back, patched alone into the corrupt run.

    >>> import lensplorer as lp
    >>> model = lp.load_model("storyworld")
    >>> clean, corrupt = lp.run_trace(model, "The capital of France is"), lp.run_trace(model, "The capital of Norway is")
    >>> grid = lp.activation_patching(clean, corrupt, "resid_pre", (" Paris", " Oslo"))
    >>> bool(abs(grid.effect.sel(layer=0, position=4) - 1) < 1e-3)  # the only token that differs
    True

    Args:
        clean, corrupt: runs of one model over prompts of as many tokens. Each keeps its interventions.
        hook: ``"resid_pre"``, ``"resid_mid"``, ``"resid_post"``, ``"attn_out"``, ``"mlp_out"``: at each position. ``"z"`` (or ``"head_output"``),
            ``"pattern"``: each head, at all positions.
        metric: two tokens, for the difference of their logits; one, for its logit; ``log_prob(token)``; any of these at a position
            (``logit_difference(a, b, position=3)``); or a function of logits [batch, position, d_vocab] that gives numbers [batch].
        batch_size: runs at a time; None: what fits half a GB.
        progress: called with (runs done, runs in all) after each batch. What it raises, e.g. ``Cancelled``, ends the analysis.

    Returns:
        (layer, position) or (layer, head): effect, 1 = the clean metric restored; metric, as patched. Layers count blocks. Cells that can
        change nothing, before the first token that differs or after the position read, are exactly 0. attrs: hook, metric_name,
        metric_clean, metric_corrupt, runs.

    Raises:
        PromptError: the prompts are not of as many tokens; the message shows the first mismatch.
        AnalysisError: another model, an unknown hook, a metric that is the same for both, patterns that this model does not compute with.
        TraceError: the model has no such hook (``resid_mid`` in parallel blocks).
        TokenError: a token of the metric is not exactly one.

    Cost: one forward pass per cell that can change something, in batches; one more if ``clean`` did not read the hook.
    """
    grid = _Grid(clean, corrupt, hook, metric)
    cells = grid.cells()
    values = _run_cells(corrupt, [grid.patch(*cell) for cell in cells], grid.measure, batch_size=batch_size, progress=progress)
    patched = np.full(grid.shape, grid.corrupt_value)
    for cell, value in zip(cells, values):
        patched[cell] = value
    return grid.result(
        activation_patching, {"effect": grid.normalised(patched - grid.corrupt_value), "metric": patched}, runs=len(cells), method="measured"
    )


@analysis(reads=(), source="Nanda 2023, attribution patching; Syed et al. 2023; Jafari et al. 2025, RelP")
def attribution_patching(
    clean: Trace, corrupt: Trace, hook: str, metric: MetricLike, *, gradients: bool | str = True, rule: str = "gate"
) -> xr.Dataset:
    """The first-order estimate of ``activation_patching``: an estimate, not a measurement. ``confirm_patching`` measures its top cells.

    >>> import lensplorer as lp
    >>> model = lp.load_model("storyworld")
    >>> clean, corrupt = lp.run_trace(model, "The capital of France is"), lp.run_trace(model, "The capital of Norway is")
    >>> lp.attribution_patching(clean, corrupt, "mlp_out", (" Paris", " Oslo")).attrs["method"]
    'first-order estimate'

    Args:
        clean, corrupt, hook, metric: as ``activation_patching``; a function must be differentiable.
        gradients: True: the model's; ``"linear"``: those of the corrupt run's local linear model, which is relevance patching (RelP, Jafari et
            al. 2025). It ranks cells worse on the models measured, and is nearer in the size of some: docs/methods.md has the figures.
        rule: of the linear model, see ``run_trace``.

    Returns:
        (layer, position) or (layer, head): estimate, of ``activation_patching``'s effect. attrs as there, without runs; gradients, rule.

    Raises:
        As ``activation_patching``; AnalysisError: the metric has no gradient; or the hook is a pattern, which the linear model holds.
        TraceError: the model has no local linear model; the message says why.

    Cost: one forward and one backward pass, whatever the number of cells.
    """
    grid = _Grid(clean, corrupt, hook, metric)
    if gradients == LINEAR and grid.hook == "pattern":
        raise AnalysisError("The local linear model holds attention patterns: gradients=True estimates what patching one does.")
    names = [grid.name(layer) for layer in range(corrupt.n_layers)]
    run = run_model(
        corrupt.model,
        corrupt.tokens[None],
        reads=[*names, *grid.measure.reads],
        interventions=corrupt.interventions,
        hooks=grid.measure.hooks,
        gradients=gradients,
        rule=rule,
    )
    value = grid.measure.of_run(run)[0]
    if not value.requires_grad:
        raise AnalysisError(f"The metric {grid.measure.name} has no gradient: attribution patching needs one. Use activation_patching.")
    shown = [run.graph[name] for name in names]
    slopes = torch.autograd.grad(value, [one.tensor for one in shown if one.tensor.requires_grad], allow_unused=True)
    found = iter(slopes)
    rows = []
    for name, one in zip(names, shown):
        slope = next(found) if one.tensor.requires_grad else None
        if slope is None:  # what a later intervention overwrites is read by nothing
            rows.append(torch.zeros(grid.shape[1]))
            continue
        slope = one.show(slope)[0]
        moved = (grid.source[name].to(slope) - run.activations[name][0]) * slope  # as the activation
        axis = 1 if grid.hook == "z" else 0
        rows.append(moved.movedim(axis, 0).flatten(1).sum(-1).float().cpu())
    estimate = grid.normalised(torch.stack(rows).numpy())
    method = "relevance patching" if gradients == LINEAR else "first-order estimate"
    return grid.result(attribution_patching, {"estimate": estimate}, method=method, gradients=str(gradients).lower(), rule=rule)


@analysis(reads=(), source=_SOURCE)
def confirm_patching(
    estimate: xr.Dataset,
    clean: Trace,
    corrupt: Trace,
    metric: MetricLike,
    *,
    top: int = 16,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Really patch the cells that ``attribution_patching`` ranks first, and put prediction and measurement side by side.

    >>> import lensplorer as lp
    >>> model = lp.load_model("storyworld")
    >>> clean = lp.run_trace(model, "The capital of France is")
    >>> corrupt = lp.run_trace(model, "The capital of Italy is")
    >>> metric = lp.logit_difference(" Paris", " Rome")
    >>> estimate = lp.attribution_patching(clean, corrupt, "resid_pre", metric)
    >>> list(lp.confirm_patching(estimate, clean, corrupt, metric, top=3).data_vars)
    ['predicted', 'measured']

    Args:
        estimate: what ``attribution_patching`` returned.
        clean, corrupt, metric: as given to it.
        top: how many cells, by the size of the estimate.
        batch_size, progress: as ``activation_patching``.

    Returns:
        (component): predicted, measured; coordinates layer and position or head, and component, a label. attrs: correlation (Pearson) of the
        two over these cells, NaN for fewer than two.

    Raises:
        AnalysisError: the estimate is of something else, or as ``activation_patching``.

    Cost: ``top`` forward passes, in batches.
    """
    if estimate.attrs.get("analysis") != "attribution_patching":
        raise AnalysisError(f"confirm_patching takes a result of attribution_patching, got one of {estimate.attrs.get('analysis')!r}.")
    if top < 1:
        raise AnalysisError(f"top must be at least 1, got {top}.")
    grid = _Grid(clean, corrupt, str(estimate.attrs["hook"]), metric)
    if estimate.estimate.shape != grid.shape or estimate.attrs["metric_name"] != grid.measure.name:
        raise AnalysisError("The estimate is of other prompts or of another metric: give those that attribution_patching was given.")
    order = np.argsort(-np.abs(estimate.estimate.values), axis=None, kind="stable")[:top]
    cells = [(int(layer), int(unit)) for layer, unit in zip(*np.unravel_index(order, grid.shape))]
    values = _run_cells(corrupt, [grid.patch(*cell) for cell in cells], grid.measure, batch_size=batch_size, progress=progress)
    measured = grid.normalised(np.array(values) - grid.corrupt_value)
    predicted = np.array([estimate.estimate.values[cell] for cell in cells])
    labels = [f"{grid.hook} {layer}, {grid.unit} {unit}" for layer, unit in cells]
    return _side_by_side(corrupt, confirm_patching, labels, {"layer": [c[0] for c in cells], grid.unit: [c[1] for c in cells]}, predicted, measured,
                         hook=grid.hook, metric_name=grid.measure.name, quantity="effect of a patch")  # fmt: skip


@analysis(reads=cast(Any, residual_decomposition).reads, source="Elhage et al. 2021 (direct contribution); zero ablation, one component at a time")
def verify_by_ablation(
    trace: Trace,
    target: str | int,
    *,
    versus: str | int | None = None,
    unit: str = "layer",
    contribution: str = "direct",
    rule: str = "gate",
    position: int = -1,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Each component's contribution to a logit beside what its removal really costs.

    A direct contribution differs from it by what later layers make of a component, and by the final norm, whose scale it holds fixed. A total one
    has what later layers make of it, but holds their attention patterns, norms and gates.

    >>> import lensplorer as lp
    >>> trace = lp.run_trace(lp.load_model("storyworld"), "Once upon a", reads=[lp.verify_by_ablation])
    >>> lp.verify_by_ablation(trace, " time").measured.sizes["component"]
    8

    Args:
        trace: any trace that read this analysis' activations.
        target, versus, position: as ``residual_decomposition``.
        unit: ``"layer"``: attention and MLP of each block; ``"head"``: each head.
        contribution: ``"direct"``, of ``residual_decomposition``, or ``"total"``, of ``component_attribution``, summed over positions.
        rule: of total ones, see ``lensplorer.linear``.
        batch_size, progress: as ``activation_patching``.

    Returns:
        (component): predicted, the contribution; measured, logit (or difference) as it ran minus the same with the component's output
        set to zero everywhere. Coordinates: component, a label; layer, and head. attrs: correlation (Pearson), target, versus, position,
        contribution.

    Raises:
        As ``residual_decomposition`` and ``ablate``, and ``component_attribution`` for total contributions.

    Cost: one forward pass per component, in batches.
    """
    choose("unit", unit, ("layer", "head"))
    choose("contribution", contribution, ("direct", "total"))
    parts = residual_decomposition(trace, target, versus=versus, unit=unit, position=position)
    credit = parts.contribution
    if contribution == "total":
        credit = component_attribution(trace, target, versus=versus, unit=unit, position=position, rule=rule).total.sum("position")
    result = measure(trace, Metric(target, versus, position=position))
    cells: list[_Cell]
    if unit == "layer":
        named = [(name, name.split()) for name in parts.component.values if name.split()[0] in ("attn", "mlp")]
        labels = [name for name, _ in named]
        layers = [int(words[1]) for _, words in named]
        predicted = credit.sel(component=labels).values
        cells = [_Cell(f"blocks.{words[1]}.hook_{words[0]}_out") for _, words in named]
        coords = {"layer": layers}
        for layer in set(layers):
            check_writes(trace.model, layer)
    else:
        n_layers, n_heads = credit.shape
        pairs = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
        labels = [f"head {layer}.{head}" for layer, head in pairs]
        predicted = credit.values.reshape(-1)
        cells = [_Cell(f"blocks.{layer}.attn.hook_z", 1, head) for layer, head in pairs]
        coords = {"layer": [layer for layer, _ in pairs], "head": [head for _, head in pairs]}
    for name in {cell.name for cell in cells}:
        check_editable(trace.model, name)
    values = _run_cells(trace, cells, result, batch_size=batch_size, progress=progress)
    measured = result.of_trace(trace) - np.array(values)
    return _side_by_side(trace, verify_by_ablation, labels, coords, predicted, measured,
                         unit=unit, contribution=contribution, metric_name=result.name, quantity="logit", position=int(parts.attrs["position"]),
                         target=str(parts.attrs["target"]), versus=str(parts.attrs["versus"]))  # fmt: skip


class _Grid:
    """The experiment: a clean and a corrupt run, what is patched, and what is measured."""

    def __init__(self, clean: Trace, corrupt: Trace, hook: str, metric: MetricLike) -> None:
        if clean.model is not corrupt.model:
            raise AnalysisError(
                f"Patching is within one model: the clean run is of {clean.info.name!r} and the corrupt one of {corrupt.info.name!r}."
            )
        self.clean, self.corrupt = clean, corrupt
        differ = align_tokens(clean, corrupt)
        self.hook = choose("hook", _ALIASES.get(hook, hook), tuple(SITES))
        self.unit = SITES[self.hook][1]
        for layer in range(corrupt.n_layers):
            check_hook(corrupt.model, self.name(layer))
        check_editable(corrupt.model, self.name(0))  # the blocks of a model are alike
        self.measure = measure(corrupt, metric)
        self.clean_value, self.corrupt_value = self.measure.of_trace(clean), self.measure.of_trace(corrupt)
        last = corrupt.logits_at(len(corrupt) - 1, len(corrupt))
        noise = 16 * torch.finfo(last.dtype).eps * max(abs(self.clean_value), abs(self.corrupt_value), float(last.abs().max()))
        if abs(self.clean_value - self.corrupt_value) <= noise:
            raise AnalysisError(
                f"The metric, {self.measure.name}, is {self.clean_value:.6g} on the clean run and {self.corrupt_value:.6g} on the corrupt one: no"
                " difference that a patch could bring back. Choose a metric or a corrupt prompt that tells them apart."
            )
        same_run = clean.interventions == corrupt.interventions
        #: positions whose patch can change the metric: what precedes the first difference is the same, what follows the position read is not read
        self.first = (differ[0] if differ else len(corrupt)) if same_run else 0
        self.last = self.measure.position if self.measure.position is not None else len(corrupt) - 1
        n_units = len(corrupt) if self.unit == "position" else int(corrupt.model.cfg.n_heads)
        self.shape = (corrupt.n_layers, n_units)
        self.source = self._source()

    def name(self, layer: int) -> str:
        return SITES[self.hook][0].format(layer)

    def _source(self) -> dict[str, torch.Tensor]:
        """The clean activations, from the trace or from another run. name → as the hook, without batch dimension"""
        names = [self.name(layer) for layer in range(self.clean.n_layers)]
        if all(name in self.clean for name in names):
            return {name: self.clean[name].detach() for name in names}
        run = run_model(self.clean.model, self.clean.tokens[None], reads=names, interventions=self.clean.interventions)
        return {name: run.activations[name][0] for name in names}

    def cells(self) -> list[tuple[int, int]]:
        units = range(self.first, self.last + 1) if self.unit == "position" else range(self.shape[1])
        return [(layer, unit) for layer in range(self.shape[0]) for unit in units]

    def patch(self, layer: int, unit: int) -> _Cell:
        name = self.name(layer)
        return _Cell(name, 1 if self.hook == "z" else 0, unit, self.source[name])

    def normalised(self, change: np.ndarray) -> np.ndarray:
        return np.asarray(change / (self.clean_value - self.corrupt_value), dtype=np.float32)

    def result(self, function: Callable[..., Any], variables: dict[str, np.ndarray], **attrs: Any) -> xr.Dataset:
        dims = ["layer", self.unit]
        coords: dict[str, Any] = {}
        if self.unit == "position":
            coords["clean_token"] = ("position", np.array(self.clean.token_texts, dtype=object))
        return make_result(
            self.corrupt,
            function,
            {name: (dims, np.asarray(values, dtype=np.float32)) for name, values in variables.items()},
            coords,
            hook=self.hook,
            metric_name=self.measure.name,
            metric_clean=self.clean_value,
            metric_corrupt=self.corrupt_value,
            **attrs,
        )


def _side_by_side(
    trace: Trace, function: Callable[..., Any], labels: list[str], coords: dict[str, list[int]], predicted: Any, measured: Any, **attrs: Any
) -> xr.Dataset:
    spread = len(labels) > 1 and np.ptp(predicted) > 0 and np.ptp(measured) > 0
    return make_result(
        trace,
        function,
        {
            "predicted": (["component"], np.asarray(predicted, dtype=np.float32)),
            "measured": (["component"], np.asarray(measured, dtype=np.float32)),
        },
        {"component": np.array(labels, dtype=object), **{name: ("component", np.array(values)) for name, values in coords.items()}},
        correlation=float(np.corrcoef(predicted, measured)[0, 1]) if spread else float("nan"),
        **attrs,
    )


def _run_cells(trace: Trace, cells: Sequence[_Cell], result: Measure, *, batch_size: int | None, progress: Progress | None) -> list[float]:
    """The metric of the trace's prompt under each cell's edit alone, and the trace's own interventions."""
    if batch_size is not None and batch_size < 1:
        raise AnalysisError(f"batch_size must be at least 1, got {batch_size}.")
    size = batch_size or _batch_size(trace, result)
    values: list[float] = []
    for start in range(0, len(cells), size):
        batch = cells[start : start + size]
        edits: dict[str, list[tuple[int, _Cell]]] = {}
        for row, cell in enumerate(batch):
            edits.setdefault(cell.name, []).append((row, cell))
        hooks = [*(_edit_rows(name, rows) for name, rows in edits.items()), *result.hooks]
        tokens = trace.tokens.expand(len(batch), -1)
        run = run_model(trace.model, tokens, reads=result.reads, interventions=trace.interventions, hooks=hooks)
        values += result.of_run(run).double().tolist()
        if progress is not None:
            progress(len(values), len(cells))
    return values


def _edit_rows(name: str, cells: list[tuple[int, _Cell]]) -> Hook:
    """The hook that makes each cell's edit in its own row of the batch. Cells of one name have one axis and one source."""
    rows, units = [row for row, _ in cells], [cell.unit for _, cell in cells]
    axis, source = cells[0][1].axis, cells[0][1].source

    def function(value: torch.Tensor, hook: Any) -> torch.Tensor:
        edited = value.clone()
        if axis is None:
            edited[rows] = 0
        else:
            sliced = edited.movedim(1 + axis, 1)  # a view: [batch, unit, ...]
            sliced[rows, units] = sliced.new_zeros(()) if source is None else source.movedim(axis, 0)[units].to(sliced)
        return edited

    return name, function


def _batch_size(trace: Trace, result: Measure) -> int:
    """Runs whose activations fit the memory for one batch."""
    cfg: Any = trace.model.cfg
    n = len(trace)
    d_mlp = int(cfg.d_mlp or 4 * cfg.d_model)
    block = n * (20 * int(cfg.d_model) + 5 * d_mlp + 5 * int(cfg.n_heads) * n)
    logits = 3 * (n if result.position is None else 1) * int(cfg.d_vocab)
    return batch_rows(trace.model, n, 4 * (2 * block + logits), _BATCH_BYTES)
